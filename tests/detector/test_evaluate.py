"Thresholds, anomalies that are left out, and evaluation on labelled images."

import numpy as np
import pandas as pd
import pytest
from conftest import mvtec_folder
from PIL import Image
from small_detectors import DENTS, GOOD, QUICK, images, parts_folder, rewritten, says, small_detector, write

from dra_nb.data.labelled import read_labelled
from dra_nb.detector.detector import AnomalyDetector
from dra_nb.evaluation.threshold import Rule, choose_threshold
from dra_nb.methods.schedule import Schedule


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return parts_folder(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def detector(folder):
    return small_detector(folder)


@pytest.mark.slow
def test_threshold_of_a_detector(folder):
    validation = (images("good", 8, 7), {"dent": images("dent", 3, 8), "ink": images("scratch", 3, 9)})
    d = AnomalyDetector("dra", threshold="f1", **QUICK).fit(folder / "good", folder / "bad", validation=validation)
    assert (
        d.summary_["normals"] == 24 and len(d.threshold_.normal) == 8 and len(d.threshold_.anomaly) == 6
    )  # nothing has to be held out
    roles = d.report_.frame.set_index("images").role.astype(str).groupby(level=0).agg(" ".join)
    assert "validation, seen" in roles["dent"] and "validation, unseen" in roles["ink"]
    unnamed = AnomalyDetector("dra", **QUICK).fit(folder / "good", DENTS).evaluate(folder / "good", folder / "bad")
    assert set(unnamed.frame.role) == {"tested"}  # without the names of classes nobody knows what was seen
    n, a = d.score_samples(validation[0]), np.concatenate([d.score_samples(v) for v in validation[1].values()])
    assert d.threshold_.value == pytest.approx(
        choose_threshold(Rule("f1"), n, a).value
    )  # scores of other batches may differ in the last digits
    assert d.calibrate(threshold="cost", miss=np.int64(100)).threshold_.value == pytest.approx(
        choose_threshold(Rule("cost", miss=100), n, a).value
    )
    d.save(folder.parent / "cost.safetensors")
    assert AnomalyDetector.load(folder.parent / "cost.safetensors", "cpu").threshold_ == d.threshold_
    assert (
        d.calibrate(fpr=0.25, threshold="fpr").threshold_.value == pytest.approx(np.sort(n)[-2])
        and d.get_params()["fpr"] == 0.25
    )
    says("validation=", AnomalyDetector("dra", threshold="cost", **QUICK).fit, folder / "good", folder / "bad")
    says(
        "cannot resolve a false-alarm rate of 0.001",
        AnomalyDetector("dra", fpr=0.001, **QUICK).fit,
        folder / "good",
        folder / "bad",
    )
    says("cannot resolve", d.calibrate, fpr=0.01)
    assert d.threshold_.rule.fpr == 0.25  # a refused one changes nothing
    loose = AnomalyDetector("dra", **QUICK).fit(folder / "good", folder / "bad")
    assert "too few for a false-alarm rate of 5 %" in str(loose.report_) and loose.threshold_.value == max(
        loose.threshold_.normal
    )
    free = AnomalyDetector("patchcore", threshold="f1", **QUICK).fit(folder / "good", folder / "bad")
    assert len(free.threshold_.anomaly) == 8 and set(free.report_.frame.role) == {
        "held out",
        "not trained on",
    }  # not trained on, so they may choose


@pytest.mark.slow
def test_left_out_classes_and_parts(folder):
    d = AnomalyDetector("devnet", **QUICK).fit(folder / "good", folder / "bad", check=("unseen", "seen"))
    left = d.report_.frame[d.report_.frame.role.str.startswith("left out")]
    assert list(left.images) == ["dent", "scratch", "part 1", "part 2", "part 3"] and left.n.tolist() == [4, 4, 3, 3, 2]
    for group in d.groups_[-5:]:
        assert len(group.normal) == d.summary_["held_out"]
    alone = AnomalyDetector("devnet", **QUICK | dict(seed=0)).fit(folder / "good", {"scratch": folder / "bad/scratch"})
    np.testing.assert_allclose(
        alone.score_samples(folder / "bad/dent"), d.groups_[-5].scores, rtol=1e-4, atol=1e-5
    )  # what a detector that never saw dents says
    before = left.above.tolist()
    d.calibrate(fpr=0.5)
    after = d.report_.frame[d.report_.frame.role.str.startswith("left out")].above.tolist()
    assert all(a >= b for a, b in zip(after, before))
    says(
        "needs two or more",
        AnomalyDetector("devnet", **QUICK).fit,
        folder / "good",
        folder / "bad/dent",
        check="unseen",
    )
    says("unknown check", AnomalyDetector("devnet", **QUICK).fit, folder / "good", folder / "bad", check="unsen")


@pytest.mark.slow
def test_a_new_threshold_that_cannot_judge_what_was_left_out(folder, tmp_path):
    "is reported without it, saved and loaded; a rule that can brings it back"
    d = AnomalyDetector("devnet", **QUICK).fit(folder / "good", folder / "bad", check="unseen")
    more = (images("good", 60, 7), images("dent", 4, 8))
    assert d.report_.frame.role.tolist().count("left out, unseen") == 2
    for new in (dict(threshold="f1"), dict(threshold=d.threshold_.value), dict(threshold="fpr", fpr=0.02)):
        d.calibrate(*more, **new)
        assert "left out, unseen" not in str(d.report_) and "what was left out is not shown" in str(d.report_)
        d.save(tmp_path / "d.safetensors")
        assert str(AnomalyDetector.load(tmp_path / "d.safetensors", "cpu").report_) == str(d.report_)
    d.calibrate(fpr=0.2)
    assert d.report_.frame.role.tolist().count("left out, unseen") == 2 and "is not shown" not in str(d.report_)


def test_a_method_without_anomalies_says_that_nothing_was_left_out(folder):
    d = AnomalyDetector("patchcore", **QUICK).fit(folder / "good", folder / "bad", check=("seen", "unseen"))
    assert "check=seen+unseen left nothing out: patchcore does not learn from anomalies" in str(d.report_)
    few = AnomalyDetector(
        "patchcore",
        schedule=Schedule(epochs=1, steps=1, batch=9, anomalies=2),
        **QUICK | dict(epochs=None, steps=None, batch=None),
    ).fit(GOOD)
    assert few.summary_["schedule"]["anomalies"] == 0 and few.summary_["schedule"]["batch"] == 7


@pytest.mark.slow
def test_images_that_were_met_before_are_no_judges(folder, tmp_path):
    "Whatever their files are called; what nothing rests on may judge"
    fresh = images("good", 6, 7), images("dent", 3, 8)
    copies = write(tmp_path / "copies", GOOD[:5])
    d = AnomalyDetector("dra", **QUICK).fit(
        folder / "good", folder / "bad", validation=(images("good", 6, 9), images("scratch", 2, 9))
    )

    def met(normal, anomalies):
        return d.evaluate(normal, anomalies).notes

    assert (
        met(*fresh) == [] and met(fresh[0], images("scratch", 2, 9)) == []
    )  # these chose nothing: the threshold is one by fpr
    assert met([*write(tmp_path / "fresh", fresh[0]), *copies], fresh[1]) == [
        "5 of 14 images were learnt from, or chose the threshold: these numbers are too good"
    ]
    assert "10 of 13" in met(images("good", 6, 9), np.concatenate([DENTS, fresh[1]]))[0]
    assert copies[0] in says(
        "5 of 11 images were learnt from", d.calibrate, [*copies, *write(tmp_path / "fresh", fresh[0])]
    )
    says("4 of 10 images were learnt from", d.calibrate, fresh[0], DENTS)
    d.calibrate(images("good", 6, 9), images("scratch", 2, 9), threshold="f1")
    assert "8 of 8" in met(images("good", 6, 9), images("scratch", 2, 9))[0]
    d.calibrate(*fresh)
    assert "9 of 9" in met(*fresh)[0] and met(images("good", 6, 9), images("scratch", 2, 9)) == []
    d.save(tmp_path / "d.safetensors")
    assert AnomalyDetector.load(tmp_path / "d.safetensors", "cpu").evaluate(*fresh).notes == met(*fresh)
    old = rewritten(
        tmp_path / "d.safetensors",
        tmp_path / "old.safetensors",
        summary={k: v for k, v in d.summary_.items() if k != "known"},
    )
    assert AnomalyDetector.load(old, "cpu").evaluate(copies, DENTS).notes == []  # of a version that kept no digests
    p = AnomalyDetector("patchcore", threshold=2.0, **QUICK).fit(GOOD, DENTS, validation=(images("good", 6, 9), []))
    assert (
        p.evaluate(images("good", 6, 9), DENTS).notes == []
    )  # it has not learnt from the anomalies that it was given, and its threshold was given
    AnomalyDetector.load(old, "cpu").calibrate(GOOD, DENTS)


def test_a_threshold_is_not_chosen_on_what_can_be_read_alone(folder, tmp_path):
    d = AnomalyDetector("patchcore", **QUICK).fit(GOOD)
    before = d.threshold_
    (tmp_path / "x.png").write_text("no picture")
    assert str(tmp_path / "x.png") in says(
        "1 image cannot be read, so no threshold was chosen",
        d.calibrate,
        [*sorted(map(str, (folder / "good").iterdir())), tmp_path / "x.png"],
    )
    assert d.threshold_ == before


def test_many_broken_images_are_counted_and_the_first_are_named(folder, detector, tmp_path):
    good = sorted(map(str, (folder / "good").iterdir()))
    for i in range(8):
        (tmp_path / f"{i}.png").write_text("no picture")
    result = detector.evaluate(good[:4] + sorted(map(str, tmp_path.iterdir())), folder / "bad")
    named = ", ".join(str(tmp_path / f"{i}.png") for i in range(5))
    assert (
        f"8 of 20 images could not be read and are not counted: {named} and 3 more "
        f"(the image {tmp_path / '0.png'} cannot be used (cannot identify image file))" in str(result)
    )
    assert len(result.unreadable) == 8 and result.metrics == detector.evaluate(good[:4], folder / "bad").metrics


def test_pixel_metrics_where_there_are_masks(tmp_path, detector):
    root = mvtec_folder(tmp_path / "set", 4, 3, {"dent": 3})
    says("need masks", detector.evaluate, root, pixels=True)
    (root / "ground_truth/dent").mkdir(parents=True)
    for i in range(3):
        Image.fromarray(np.uint8(255 * (np.indices((64, 64)).sum(0) < 40))).save(
            root / f"ground_truth/dent/{i:03}_mask.png"
        )
    result = detector.evaluate(root, pixels=True)
    assert set(result.metrics) == {"auroc", "ap", "pixel_auroc", "aupro", "pixel_f1"} and result.frame.n.tolist() == [
        3,
        3,
    ]

    def masks(result):
        return [o for o in result.notes if "mask" in o]

    assert masks(result) == []
    catalog = read_labelled(root)
    half = detector.evaluate(
        catalog.assign(
            mask=pd.Series(
                [m if p.endswith("000.png") else None for p, m in zip(catalog["path"], catalog["mask"])], dtype=object
            )
        ),
        pixels=True,
    )
    assert masks(half) == ["pixel metrics of 1 of 3 anomalies, the others have no mask"]
    boxed = detector.evaluate(catalog.assign(box=[(0, 0, 64, 64)] * len(catalog)), pixels=True)  # all of each image
    assert boxed.metrics == result.metrics and masks(boxed) == []
