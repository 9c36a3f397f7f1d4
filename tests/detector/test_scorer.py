"Streams of images: broken ones among them, endless ones, sources that fail."

import math
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from small_detectors import DENTS, GOOD, QUICK, parts_folder, says, small_detector

from dra_nb.detector.detector import AnomalyDetector
from dra_nb.detector.scorer import Scorer
from dra_nb.training.compute import Compute


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return parts_folder(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def detector(folder):
    return small_detector(folder)


def test_a_broken_image_in_the_middle_of_a_stream(folder, detector, tmp_path):
    good = sorted(map(str, (folder / "good").iterdir()))
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "half.png").write_bytes(Path(good[0]).read_bytes()[:200])
    mixed = [good[0], tmp_path / "text.png", good[1], tmp_path / "half.png", tmp_path / "gone.png", 5, good[2]]
    found = list(detector.score_stream(iter(mixed), batch=3))
    assert [bool(o.error) for o in found] == [False, True, False, True, True, True, False] and [
        o.name for o in found[:2]
    ] == [good[0], str(tmp_path / "text.png")]
    np.testing.assert_allclose([o.score for o in found if not o.error], detector.score_samples(good[:3]), rtol=1e-5)
    assert all(o.score is None and o.anomaly is None for o in found if o.error)
    table = detector.score_table(mixed)
    assert table.error.ne("").sum() == 4 and table.score.notna().sum() == 3
    assert "4 of 7" in says("have no score", detector.predict, mixed)
    os.mkdir(tmp_path / "only")
    (tmp_path / "only/x.png").write_text("no picture")
    assert [bool(o.error) for o in detector.score_stream(tmp_path / "only")] == [True]
    result = detector.evaluate(good[:4] + [str(tmp_path / "text.png")], folder / "bad")
    assert (
        "1 of 13 images could not be read and are not counted: " + str(tmp_path / "text.png") in str(result)
        and result.frame.n.sum() == 4 + 8
    )
    assert (
        [o.name for o in result.unreadable] == [str(tmp_path / "text.png")]
        and "text.png" in result.unreadable[0].error
        and not any("text.png" in o for o in result.notes)
    )
    assert detector.report_.unreadable == []


def test_the_middles_of_patches_are_measured_once_for_a_stream(detector, monkeypatch):
    import copy

    from dra_nb.evaluation import heatmaps, patch_centres

    measure, sizes, d = patch_centres.patch_shift, [], copy.copy(detector)
    monkeypatch.setattr(
        patch_centres,
        "patch_shift",
        lambda backbone, size, device="cpu": sizes.append(size) or measure(backbone, size, device),
    )
    d.scorer_ = Scorer(d.method_, d.scorer_.preprocessing)  # that of `fit` has measured it
    maps = [o.map for o in d.score_stream(GOOD[:12], batch=4, maps="score")]
    assert sizes == [(64, 64)]
    np.testing.assert_array_equal(d.score_map(GOOD[:4]), np.stack(maps[:4]))
    d.score_map(GOOD[:2], "seen"), d.score_map(GOOD[:2], "gradient")
    assert len(sizes) == 1
    fresh = heatmaps.heatmaps(
        d.method_, torch.from_numpy(GOOD[:4].transpose(0, 3, 1, 2).copy()), compute=Compute("cpu", "fp32")
    )
    np.testing.assert_allclose(np.stack(maps[:4]), fresh, rtol=1e-3, atol=1e-4)  # theirs is not folded
    d.fit(GOOD, DENTS).score_map(GOOD[0])
    assert len(sizes) == 3  # another method: measured anew (the second was the direct call)


def test_results_come_while_images_come(detector):
    "The stream does not wait for its end, and holds a batch, not all"
    asked = []

    def camera():
        for i in range(1000):
            asked.append(i)
            yield GOOD[i % 24]

    results = detector.score_stream(camera(), batch=4, workers=1)
    for _ in range(9):
        next(results)
    assert len(asked) < 20
    results.close()


def test_memory_does_not_grow_with_the_folder(detector):
    big = np.zeros((600, 600, 3), np.uint8)

    def peak(n):
        tracemalloc.start()
        for _ in detector.score_stream((big + i % 7 for i in range(n)), batch=8, workers=1):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(8)
    assert peak(160) < 1.3 * peak(40)


def test_a_source_that_fails_in_the_middle(detector):
    "What it gave before is scored first"

    def camera():
        yield from GOOD[:20]
        raise OSError("the camera is gone")

    found = []
    with pytest.raises(OSError, match="gone"):
        found.extend(detector.score_stream(camera(), batch=32, workers=1))
    assert len(found) == 20
    np.testing.assert_allclose(
        [o.score for o in found], detector.score_samples(GOOD[: len(found)]), rtol=1e-4, atol=1e-5
    )


def test_a_score_that_is_no_number_is_an_error_of_its_image(folder):
    spoilt = small_detector(folder)
    with torch.no_grad():
        next(p for name, p in spoilt.method_.named_parameters() if "heads" in name).fill_(math.nan)
    found = list(spoilt.score_stream([GOOD[0], DENTS[0]]))
    assert all(o.score is None and o.anomaly is None and "is not a finite number" in o.error for o in found)
    assert "have no score" in says("finite", spoilt.predict, [GOOD[0]])


def test_maps_of_photos_of_several_shapes(folder):
    tiled = AnomalyDetector("patchcore", **QUICK | dict(epochs=None, steps=None, batch=None), tiles=3).fit(
        folder / "good"
    )
    wide = np.concatenate([GOOD[0], GOOD[1]], axis=1)
    assert tiled.score_map([wide, wide]).shape[1:] == tiled.score_map(wide).shape
    says("differ in shape, and so do their maps; pass one at a time", tiled.score_map, [wide, wide.transpose(1, 0, 2)])
