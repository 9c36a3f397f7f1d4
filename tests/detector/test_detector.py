"A detector from images of every kind: what it learns from, its settings, its scores and their signs."

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import in_tiers, mvtec_folder
from PIL import Image
from small_detectors import DENTS, GOOD, QUICK, SCRATCHES, images, parts_folder, says, small_detector

from dra_nb.data.labelled import read_labelled
from dra_nb.detector.detector import AnomalyDetector
from dra_nb.methods.registry import load_methods
from dra_nb.methods.schedule import Schedule


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return parts_folder(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def detector(folder):
    return small_detector(folder)


@pytest.mark.slow
def test_learns_from_whatever_images_come_as(folder, detector):
    good, bad = (
        sorted(map(str, (folder / "good").iterdir())),
        {k: sorted(map(str, (folder / "bad" / k).iterdir())) for k in ("dent", "scratch")},
    )
    catalog = read_labelled(mvtec_folder(folder.parent / "other"))
    reference = detector.score_samples(GOOD[:3])
    for normal, anomalies in (
        (folder / "good", folder / "bad"),
        (good[::-1], bad),
        (GOOD, {"dent": DENTS, "scratch": folder / "bad/scratch"}),
    ):
        again = AnomalyDetector("dra", **QUICK).fit(normal, anomalies)
        assert (
            again.summary_["anomalies"] == {"dent": 4, "scratch": 4}
            and again.summary_["normals"] + again.summary_["held_out"] == 24
        )
        np.testing.assert_array_equal(again.score_samples(GOOD[:3]), reference)  # the same images, so the same detector
    whole = AnomalyDetector("dra", **QUICK).fit(catalog)
    assert (whole.summary_["normals"], whole.summary_["held_out"]) == (12, 4)  # its test normals are held out


def test_arrays_and_files_have_the_same_scores(folder, detector):
    reference, good = detector.score_samples(folder / "good"), sorted(map(str, (folder / "good").iterdir()))
    for source in (
        good,
        GOOD,
        [Path(o) for o in good],
        list(GOOD),
        [Image.fromarray(a) for a in GOOD],
        iter(good),
        pd.DataFrame({"path": good, "box": None}),
    ):
        np.testing.assert_allclose(detector.score_samples(source), reference, rtol=1e-5)
    np.testing.assert_allclose(detector.score_samples(GOOD, batch=1), reference, rtol=1e-4, atol=1e-5)
    grey = GOOD[..., 0]
    np.testing.assert_array_equal(
        detector.score_samples(grey), detector.score_samples(np.repeat(grey[..., None], 3, -1))
    )


def test_signs(detector):
    both = np.concatenate([GOOD[:4], DENTS])
    scores = detector.score_samples(both)
    np.testing.assert_array_equal(detector.decision_function(both), scores - detector.threshold_.value)
    np.testing.assert_array_equal(detector.predict(both), (scores > detector.threshold_.value).astype(int))
    held = np.asarray(detector.threshold_.normal)
    np.testing.assert_allclose(detector.p_values(both), [(1 + (held >= s).sum()) / (1 + len(held)) for s in scores])


@pytest.mark.parametrize("n", [0, 1, 8])
@pytest.mark.parametrize("name", in_tiers(sorted(load_methods())))
def test_every_method_with_none_one_and_many_anomalies(name, n, tmp_path):
    d = AnomalyDetector(name, **QUICK, **{"pool": 24} if name == "ahl" else {})
    anomalies = {"dent": DENTS, "scratch": SCRATCHES} if n == 8 else DENTS[:1] if n else None
    extra = {"outliers": images("good", 4, 5)} if name == "saoe" else {}
    able = load_methods()[name].supervision == "normals only" or name in ("cove", "dra", "multiclass", "saoe")
    if not n and not able:
        message = says("learns from given anomalies, and there are none", d.fit, GOOD, None, **extra)
        assert "method='cove', which can do without" in message
        return
    d.fit(GOOD, anomalies, **extra)
    scores = d.score_samples(GOOD[:4])
    assert np.isfinite(scores).all() and len(d.report_.frame) == 1 + (2 if n == 8 else n)
    d.save(tmp_path / "d.safetensors")
    np.testing.assert_array_equal(
        AnomalyDetector.load(tmp_path / "d.safetensors", "cpu").score_samples(GOOD[:4]), scores
    )
    if load_methods()[name].maps:
        assert d.score_map(GOOD[0]).shape == (64, 64)
    else:
        says("score map", d.score_map, GOOD[0])


def test_without_anomalies_it_says_what_it_does():
    d = AnomalyDetector("dra", **QUICK).fit(GOOD)
    assert (
        "no seen head" in str(d.report_)
        and list(d.method_.heads) == ["pseudo", "residual", "normality"]
        and d.summary_["schedule"]["anomalies"] == 0
    )
    assert d.get_params() == AnomalyDetector("dra", **QUICK).get_params()  # its settings stay what they were
    says("seen head learns", AnomalyDetector("dra", heads=("seen", "pseudo"), **QUICK).fit, GOOD)
    says("outliers=", AnomalyDetector("saoe", **QUICK).fit, GOOD, DENTS)


def test_a_title_counts_in_words(detector):
    assert "normals and 8 anomalies (dent 4, scratch 4) in" in detector.report_.title
    for n, words in ((0, "no anomalies in"), (1, "1 anomaly in"), (3, "3 anomalies in")):
        assert f"normals and {words}" in AnomalyDetector("patchcore", **QUICK).fit(GOOD, DENTS[:n]).report_.title
    assert detector.evaluate(GOOD[:1], DENTS[:1]).title == "dra, tested on 1 normal and 1 anomaly"


def test_learning_rate(folder, tmp_path):
    for wrong in (0, -1e-3, float("inf"), float("nan"), "fast", True):
        says("lr is a learning rate, a number above 0 such as 0.0002", AnomalyDetector, lr=wrong)
    says("such as 0.0001", AnomalyDetector().set_params, method="deep_sad", lr=0)
    usual, slow = (AnomalyDetector("devnet", lr=lr, **QUICK).fit(GOOD, DENTS) for lr in (None, 1e-8))
    assert (
        usual.summary_["schedule"]["lr"] == 2e-4
        and slow.summary_["schedule"]["lr"] == 1e-8
        and usual.get_params()["lr"] is None
    )
    start = AnomalyDetector(
        "devnet",
        schedule=Schedule(epochs=1, steps=1, batch=9, anomalies=3, lr=1e-12),
        **QUICK | dict(epochs=None, steps=None, batch=None),
    ).fit(GOOD, DENTS)
    moved = [
        max(
            (a - b).abs().max().item()
            for a, b in zip(d.method_.backbone.parameters(), start.method_.backbone.parameters())
        )
        for d in (usual, slow)
    ]
    assert moved[0] > 1e-4 > 1e-6 > moved[1]  # Adam moves a weight by the rate at a step
    slow.save(tmp_path / "d.safetensors")
    again = AnomalyDetector.load(tmp_path / "d.safetensors", "cpu")
    assert again.lr == 1e-8 and again.summary_["schedule"]["lr"] == 1e-8
    over = AnomalyDetector("devnet", lr=3e-4, schedule=Schedule(epochs=1, steps=1, lr=1e-3), **QUICK).fit(GOOD, DENTS)
    assert over.summary_["schedule"]["lr"] == 3e-4


def test_scores_follow_the_weights(detector, folder):
    "also where they are changed in place, and though a folded copy computes them"
    d = AnomalyDetector("dra", **QUICK).fit(folder / "good", folder / "bad")
    first = d.score_samples(GOOD[:4])
    kept, again = d.scorer_.quick, d.score_samples(GOOD[:4])
    assert d.scorer_.quick is kept and np.array_equal(again, first)
    size = len(pickle.dumps(d))
    d.scorer_._folded = None
    assert size == len(pickle.dumps(d))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(d)).score_samples(GOOD[:4]), first)
    d.score_samples(GOOD[:4])
    other = AnomalyDetector("dra", **QUICK | dict(seed=1)).fit(folder / "good", folder / "bad")
    d.method_.load_state_dict(other.method_.state_dict())
    np.testing.assert_array_equal(d.score_samples(GOOD[:4]), other.score_samples(GOOD[:4]))
    assert not np.allclose(d.score_samples(GOOD[:4]), first)
    a, b = (AnomalyDetector("patchcore", **QUICK).fit(o) for o in (GOOD[:12], GOOD[12:]))
    assert not np.allclose(a.score_samples(DENTS), b.score_samples(DENTS))
    a.method_.memory = b.method_.memory  # another tensor in the place of one
    np.testing.assert_array_equal(a.score_samples(DENTS), b.score_samples(DENTS))


def test_settings_of_the_next_training_change_no_trained_detector(folder, tmp_path):
    d = AnomalyDetector("devnet", topk_ratio=0.2, **QUICK).fit(folder / "good", folder / "bad")
    scores, report, p = d.score_samples(GOOD[:4]), str(d.report_), tmp_path / "d.safetensors"
    d.set_params(method="flos", image_size=96, fpr=0.3)
    assert d.image_size == 96 and d.size_ == 64
    np.testing.assert_array_equal(d.score_samples(GOOD[:4]), scores)
    assert (
        str(d.report_) == report
        and d.score_map(GOOD[0]).shape == (64, 64)
        and d.evaluate(GOOD[:2], DENTS).title.startswith("devnet")
    )
    d.save(p)
    again = AnomalyDetector.load(p, "cpu")
    np.testing.assert_array_equal(again.score_samples(GOOD[:4]), scores)
    assert (again.method, again.image_size, again.fpr, again.settings) == ("devnet", 64, None, {"topk_ratio": 0.2})
    d.set_params(method="devnet", fpr=None).calibrate(fpr=0.25).save(p)
    assert (
        AnomalyDetector.load(p, "cpu").get_params()
        == AnomalyDetector("devnet", topk_ratio=0.2, **QUICK | dict(device="cpu"), fpr=0.25).get_params()
    )
    assert d.fit(folder / "good", folder / "bad").size_ == 96


def test_images_from_a_generator(detector):
    fresh = images("good", 6, 7), images("dent", 3, 8)

    def make():
        return iter(list(fresh[0])), {"dent": (o for o in fresh[1])}

    assert str(detector.evaluate(*make())) == str(detector.evaluate(fresh[0], {"dent": fresh[1]}))
    assert detector.evaluate(*make()).frame.n.tolist() == [6, 3]
    d = AnomalyDetector("patchcore", **QUICK).fit(iter(list(GOOD)), {"dent": iter(list(DENTS))})
    assert (
        d.summary_["anomalies"] == {"dent": 4}
        and d.calibrate(*make(), threshold="f1").threshold_.normal
        == d.calibrate(fresh[0], {"dent": fresh[1]}).threshold_.normal
    )


def test_habits_of_scikit_learn():
    from sklearn.base import clone

    d = AnomalyDetector("devnet", fpr=0.1, topk_ratio=0.3, schedule=Schedule(epochs=1))
    again = clone(d)
    assert again is not d and again.get_params() == d.get_params() and again.method_ is None
    assert d.set_params(topk_ratio=0.2, seed=3).get_params()["topk_ratio"] == 0.2
    says("unknown setting of devnet", d.set_params, fractoin=0.2)
    says("epochs", AnomalyDetector, epochs=0)
    assert d.set_params(schedule=None, **QUICK).fit(GOOD, DENTS) is d
