"Images that a training refuses, before anything is trained."

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import mvtec_folder
from small_detectors import DENTS, GOOD, QUICK, SCRATCHES, images, parts_folder, says, small_detector, write

from dra_nb.core import DraError
from dra_nb.data.labelled import read_labelled
from dra_nb.data.stream import stream_images
from dra_nb.detector.detector import AnomalyDetector
from dra_nb.detector.holdout import held_out_count
from dra_nb.evaluation.threshold import Rule


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return parts_folder(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def detector(folder):
    return small_detector(folder)


def test_broken_images_are_all_named_before_anything_is_trained(folder, tmp_path, monkeypatch):
    import dra_nb.detector.detector as module

    monkeypatch.setattr(module, "train", lambda *a, **k: pytest.fail("it trained"))
    good = sorted(map(str, (folder / "good").iterdir()))
    for name in ("good", "bad/dent", "more"):
        (tmp_path / name).mkdir(parents=True)
    for i in range(9):
        (tmp_path / f"good/{i}.png").write_text("no picture")
    (tmp_path / "bad/dent/x.png").write_bytes(Path(good[0]).read_bytes()[:200])
    write(tmp_path / "bad/dent", DENTS[:2]), (tmp_path / "more/y.png").write_text("no picture")
    message = says(
        "11 images cannot be read, so nothing was trained; restore or replace the files, or leave them out",
        AnomalyDetector("dra", **QUICK).fit,
        iter(good + sorted(map(str, (tmp_path / "good").iterdir()))),
        tmp_path / "bad",
        validation=([*good[:2], tmp_path / "more/y.png"], None),
    )
    for i in range(9):
        assert f"normals: the image {tmp_path}/good/{i}.png cannot be used" in message
    assert (
        f"given anomalies: the image {tmp_path}/bad/dent/x.png" in message
        and f"validation normals: the image {tmp_path}/more/y.png" in message
    )
    assert message.count("restore or replace") == 1 and len(message.splitlines()) == 12
    assert "image 1: an image is a path" in says(
        "1 image cannot be read.*leave it out", AnomalyDetector("dra", **QUICK).fit, [GOOD[0], 5, GOOD[1]], DENTS
    )
    assert "outliers: " in says(
        "1 image cannot be read", AnomalyDetector("saoe", **QUICK).fit, GOOD, DENTS, outliers=tmp_path / "more"
    )
    for wrong in (GOOD / 2, tmp_path / "gone"):
        assert "cannot be read, so" not in says(
            ".", AnomalyDetector("dra", **QUICK).fit, wrong, DENTS
        )  # not the fault of a file


def test_wrong_images(folder, tmp_path, detector):

    def fit(*args, **kwargs):
        return AnomalyDetector("dra", **QUICK).fit(*args, **kwargs)

    (tmp_path / "empty").mkdir()
    (
        write(tmp_path / "all/anomalies", DENTS),
        write(tmp_path / "mixed/good", GOOD[:2]),
        write(tmp_path / "mixed/dent", DENTS),
    )
    says("holds no image", fit, tmp_path / "empty")
    says("holds no image", fit, folder / "good", tmp_path / "empty")
    says("does not exist", fit, tmp_path / "gone")
    says("no normal images", fit, tmp_path / "all")
    says("count as anomalies", fit, folder / "good", tmp_path / "mixed")
    says("among the normals and the given anomalies", fit, folder / "good", folder / "good")
    says(
        "among the normals and the validation normals",
        fit,
        folder / "good",
        folder / "bad",
        validation=(folder / "good", folder / "bad"),
    )
    says("holds anomalies itself", fit, mvtec_folder(tmp_path / "whole"), folder / "bad")
    says("at least 2", fit, GOOD[:1], DENTS)
    says("n_reference", fit, GOOD[:3], DENTS)
    says("one image", fit, GOOD[0])
    says("float64 values go from .* nothing says which of them is white", fit, GOOD / 2)
    says("empty", fit, [])
    assert "no anomalies were given" in str(fit(GOOD, []).report_)  # none is a number of anomalies, too
    (tmp_path / "bad.png").write_text("no picture")
    says("bad.png cannot be used", fit, [*sorted(map(str, (folder / "good").iterdir())), tmp_path / "bad.png"])
    for call in (detector.score_samples, lambda o: list(detector.score_stream(o))):
        says("no images", call, tmp_path / "empty")
    says("does not exist", detector.predict, tmp_path / "gone")
    says("learnt nothing", AnomalyDetector().score_samples, GOOD)
    says("at least 1", detector.score_stream, GOOD, batch=0)
    says("unknown kind of heat map", detector.score_map, GOOD[0], kind="hete")


def test_two_categories_are_two_detectors(tmp_path):
    mvtec_folder(tmp_path / "set/a", 3, 1, {"x": 1}), mvtec_folder(tmp_path / "set/b", 3, 1, {"x": 1})
    says(
        "2 categories",
        AnomalyDetector("dra", **QUICK).fit,
        read_labelled(tmp_path / "set/a").assign(category=["a", "b"] * 2 + ["a"]),
    )


def test_held_out_normals_are_not_trained_on(folder):
    "Replacing a held-out image changes no weight, replacing any other does"
    d = AnomalyDetector("patchcore", **QUICK).fit(GOOD)
    names = np.random.RandomState((0, 2)).permutation(24)[: held_out_count(24, Rule())]
    for i, same in ((names[0], True), (np.setdiff1d(np.arange(24), names)[0], False)):
        other = GOOD.copy()
        other[i] = 255 - other[i]
        again = AnomalyDetector("patchcore", **QUICK).fit(other)
        assert (
            again.method_.memory.shape == d.method_.memory.shape and torch.equal(again.method_.memory, d.method_.memory)
        ) == same


def test_what_cannot_be_is_refused_before_anything_is_trained(folder, monkeypatch):
    import dra_nb.detector.detector as module

    monkeypatch.setattr(module, "train", lambda *a, **k: pytest.fail("it trained"))

    def fit(*args, **kwargs):
        settings = {name: kwargs.pop(name) for name in ("threshold", "holdout") if name in kwargs}
        return AnomalyDetector("dra", **QUICK | settings).fit(*args, **kwargs)

    says("another unit", fit, GOOD, folder / "bad", threshold=1.5, check="unseen")
    says("there are none; give more normals", fit, GOOD, DENTS, threshold="f1", holdout=0.0, validation=([], SCRATCHES))
    for threshold in ("fpr", 1.5):
        says(
            "leave out one of them",
            fit,
            GOOD,
            DENTS,
            threshold=threshold,
            holdout=0.5,
            validation=(images("good", 4, 7), SCRATCHES),
        )
    says("leave out one of them", fit, mvtec_folder(folder.parent / "divided"), holdout=0.5)
    with pytest.raises(pytest.fail.Exception):
        fit(GOOD, DENTS, holdout=0.5, validation=([], SCRATCHES))  # these do train
    with pytest.raises(pytest.fail.Exception):
        fit(GOOD, DENTS, holdout=0.0, validation=(images("good", 4, 7), SCRATCHES))


def test_an_image_is_one_thing_and_once(folder, tmp_path, detector):

    def fit(*args, **kwargs):
        return AnomalyDetector("dra", **QUICK).fit(*args, **kwargs)

    good = sorted(map(str, (folder / "good").iterdir()))
    assert f"{good[0]} is there 2 times among the normals" in says("name each image once", fit, good * 2, DENTS)
    (tmp_path / "l.csv").write_text(
        "path,label,box,split\n"
        + "".join(f'{o},0,"0,0,32,32",test\n{o},0,"32,0,64,32",train\n' for o in good[:3])
        + f"{folder}/bad/dent/000.png,1,,\n"
    )
    assert f"{good[0]} is among the normals and the validation normals" in says(
        "or any crop of it", fit, good, validation=str(tmp_path / "l.csv")
    )
    crops = read_labelled(tmp_path / "l.csv")
    tiles = AnomalyDetector("patchcore", **QUICK).fit(crops[crops.label == 0])  # of a file, for one purpose
    assert tiles.summary_["normals"] + tiles.summary_["held_out"] == 6


def test_a_folder_that_cannot_be_listed(folder, monkeypatch):
    "is reported in its place"
    from dra_nb.data import walk

    listing = walk.list_entries

    def refuse(path):
        if str(path).endswith("dent"):
            raise DraError("the folder dent cannot be listed")
        return listing(path)

    monkeypatch.setattr(walk, "list_entries", refuse)
    found = list(stream_images(folder / "bad", 16))
    assert [o.error for o in found if o.error] == ["the folder dent cannot be listed"] and len(found) == 5
