"Equal pictures under different names: refused with two purposes, noted with one, and never both learnt and held out."

import numpy as np
import pytest
from PIL import Image
from small_detectors import DENTS, GOOD, QUICK, SCRATCHES, images, says, write

from dra_nb.data.datasets import load_catalog
from dra_nb.detector.detector import AnomalyDetector
from dra_nb.detector.inputs import read_training_images
from dra_nb.detector.settings import Settings


def fit(*args, method="patchcore", threshold="fpr", **kwargs):
    return AnomalyDetector(method, threshold=threshold, **QUICK).fit(*args, **kwargs)


@pytest.fixture
def untrained(monkeypatch):
    "Whatever trains fails"
    import dra_nb.detector.detector as module

    monkeypatch.setattr(module, "train", lambda *a, **k: pytest.fail("it trained"))


def test_a_picture_among_normals_and_anomalies_is_refused(tmp_path, untrained):
    "Under another name, in another format, as an array, as a crop of a larger picture"
    good = write(tmp_path / "good", GOOD[:6])
    write(tmp_path / "bad", DENTS)
    Image.fromarray(GOOD[3]).save(tmp_path / "bad/again.bmp")
    message = says(
        "1 picture is among the normals and the given anomalies, equal pixel by pixel", fit, good, tmp_path / "bad"
    )
    assert f"{good[3]} = {tmp_path}/bad/again.bmp. A picture can be only one of them; take the copy out" in message
    message = says("1 picture is among", fit, good, [*DENTS, GOOD[1]])
    assert f"{good[1]} = image 4." in message
    Image.fromarray(np.hstack([DENTS[0], GOOD[2]])).save(tmp_path / "wide.png")
    crops = f'path,label,box\n{tmp_path}/wide.png,1,"64,0,128,64"\n{tmp_path}/wide.png,1,"0,0,64,64"\n'
    (tmp_path / "crops.csv").write_text(crops + "".join(f"{o},0,\n" for o in good))
    assert f"{good[2]} = {tmp_path}/wide.png[64, 0, 128, 64]." in says("1 picture is", fit, tmp_path / "crops.csv")


def test_the_first_three_are_named_and_the_others_counted(untrained):
    message = says("5 pictures are among the normals and the given anomalies", fit, GOOD, [*DENTS, *GOOD[10:15]])
    assert "image 10 = image 4; image 11 = image 5; image 12 = image 6; and 2 more. A picture" in message
    message = says("1 picture is among", fit, [*GOOD, GOOD[0]], [*DENTS, GOOD[0], GOOD[0]])
    assert "image 0 and 1 more = image 4 and 1 more." in message


def test_normals_that_the_user_has_divided(tmp_path, untrained):
    "Among those that are learnt from and those that the threshold is chosen on"
    more = images("good", 5, 7)
    check = (np.concatenate([more, GOOD[:1]]), SCRATCHES)
    message = says("1 picture is among the normals and the validation normals", fit, GOOD, DENTS, check)
    assert "image 0 = image 5" in message and "or pass all normals together" in message
    says("among the given anomalies and the validation anomalies", fit, GOOD, DENTS, (more, [*SCRATCHES, DENTS[2]]))
    says("among the validation normals and the validation anomalies", fit, GOOD, None, (more, [*SCRATCHES, more[0]]))
    write(tmp_path / "mine/train/good", GOOD[:5])
    write(tmp_path / "mine/test/good", [*more[:2], GOOD[4]])
    write(tmp_path / "mine/test/dent", DENTS)
    message = says("1 picture is among the normals and the held-out normals", fit, tmp_path / "mine")
    assert "train/good/004.png = " in message and "test/good/002.png." in message
    outliers = [*images("scratch", 3, 9), GOOD[7]]
    message = says("1 picture is among the images to learn from and the outliers", fit, GOOD, DENTS, outliers=outliers)
    assert "image 7 = image 3" in message


def test_other_photos_are_not_equal(tmp_path):
    "Nor is a picture that only shrinking makes equal"
    large = np.kron(GOOD[0], np.ones((8, 8, 1), np.uint8))
    other = large.copy()
    other[100, 100] ^= 1
    for name, pixels in (("a", large), ("b", other)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    data = read_training_images([*GOOD[:5], tmp_path / "a.png"], [tmp_path / "b.png"], None, Settings(image_size=16))
    assert data.notes == [] and data.groups == []
    row = data.images.names.index(str(tmp_path / "a.png"))
    assert data.images.store[[row]].equal(data.images.store[data.given])  # they are equal at this size
    both = read_training_images([*GOOD[:5], large], [tmp_path / "b.png"], None, Settings(image_size=16))
    assert both.groups == []
    says("1 picture", read_training_images, [*GOOD[:5], large], [tmp_path / "a.png"], None, Settings(image_size=16))


def test_ten_copies_among_the_normals_are_noted_and_stay_together(tmp_path):
    good = write(tmp_path / "good", [*GOOD[:12], *[GOOD[5]] * 9])
    detector = fit(tmp_path / "good", DENTS)
    note = "10 of 21 normals are equal to others, pixel by pixel: 005.png = 012.png = 013.png"
    assert note in str(detector.report_)
    assert str(tmp_path) not in str(detector.report_)  # nor in the file, which goes to other machines
    detector.save(tmp_path / "d.safetensors")
    assert note in str(AnomalyDetector.load(tmp_path / "d.safetensors").report_)
    for seed in range(10):
        data = read_training_images(good, None, None, Settings(image_size=16, seed=seed))
        copies = np.flatnonzero([name in [good[5], *good[12:]] for name in data.images.names])
        assert np.isin(copies, data.held_out).sum() in (0, 10)
        assert len(data.held_out) == 7 and sorted([*data.normal, *data.held_out]) == list(range(21))
        again = read_training_images(good, None, None, Settings(image_size=16, seed=seed))
        assert np.array_equal(again.held_out, data.held_out)


def test_blank_images_are_pictures_too():
    blank = np.zeros((2, 64, 64, 3), np.uint8)
    data = read_training_images([*GOOD[:8], *blank], None, None, Settings(image_size=16))
    assert data.notes == ["2 of 10 normals are equal to others, pixel by pixel: image 8 = image 9"]
    says("all 2 normals are one picture", read_training_images, blank, None, None, Settings(image_size=16))
    says("1 picture is among", read_training_images, [*GOOD[:3], blank[0]], blank[:1], None, Settings(image_size=16))


def test_anomalies_that_are_equal_are_left_out_together():
    detector = fit(GOOD, [*DENTS[:2], DENTS[0], *SCRATCHES[:2]], method="devnet", check="seen")
    assert "2 of 5 given anomalies are equal to others, pixel by pixel: image 0 = image 2" in str(detector.report_)
    parts = [group for group in detector.groups_ if group.role == "left out, seen"]
    equal = [score for group in parts for score in group.scores if group.scores.count(score) == 2]
    assert len(parts) == 3 and sum(len(group.scores) for group in parts) == 5 and len(equal) == 2
    says("all 2 are one picture", fit, GOOD, DENTS[[0, 0]], method="devnet", check="seen")


def test_equal_pictures_of_brainmri(shared):
    "22 normals and 25 anomalies have a twin; the paper's split has five pictures on both of its sides"
    root = shared / "data" / "brainmri"
    data = read_training_images(root / "no", root / "yes", None, Settings(image_size=32))
    normal, anomaly = data.notes
    assert normal.startswith("22 of 98 normals are equal to others") and normal.endswith("; and 8 more")
    assert anomaly.startswith("25 of 155 given anomalies are equal to others")
    assert all(np.isin(group, data.held_out).sum() in (0, len(group)) for group in data.groups)
    paper = load_catalog("brainmri", shared / "data")
    settings = Settings(image_size=32)
    message = says(
        "5 pictures are among the normals and the held-out", read_training_images, paper, None, None, settings
    )
    assert message.count(" = ") == 3 and "; and 2 more" in message


@pytest.mark.parametrize("n, held_out", [(1, 0), (2, 1)])
def test_a_number_as_threshold_needs_no_held_out_normals(n, held_out):
    detector = fit(GOOD[:n], threshold=2.0)
    assert (detector.summary_["normals"], detector.summary_["held_out"]) == (n - held_out, held_out)
    assert detector.threshold_.value == 2.0 and len(detector.predict(GOOD[:3])) == 3
    says("give at least 2, or a number as threshold", fit, GOOD[:1])
