"Heat maps in the colours of the detector: alone and among others, saved and loaded, of any shape; normals stay cold."

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from small_detectors import DENTS, GOOD, QUICK, images, rewritten, says, write

from dra_nb.detector.detector import AnomalyDetector
from dra_nb.detector.heat import heat_of
from dra_nb.detector.widgets import report

SHARP = QUICK | dict(image_size=96)
MANY = images("good", 60, 9)  # 36 to learn from and hold out, 24 that it has never met


@pytest.fixture(scope="module")
def detector():
    "PatchCore sees the dents even with random weights"
    return AnomalyDetector("patchcore", **SHARP).fit(MANY[:36])


@pytest.fixture(scope="module")
def file(detector, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "d.safetensors"
    detector.save(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Forty images: 24 normals, dents and again normals, of which the first one is looked at"
    return write(tmp_path_factory.mktemp("forty"), np.concatenate([MANY[36:], DENTS, GOOD[:12]]))


def share_changed(picture, photo):
    "Share of the pixels that an overlay changes"
    return (picture != photo).any(-1).mean()


def test_one_image_looks_as_it_does_in_a_folder_of_forty(detector, folder):
    alone = detector.overlay(folder[0])
    assert len(folder) == 40
    np.testing.assert_array_equal(alone, detector.overlay(folder)[0])
    np.testing.assert_array_equal(alone, detector.overlay(folder[:1] + folder[20:28])[0])


@pytest.mark.parametrize("batch", [1, 7, 32])
def test_batches_of_any_size_give_the_same_picture(detector, folder, batch):
    maps = [o.map for o in detector.score_stream(folder[20:34], batch, "score")]
    np.testing.assert_allclose(maps, detector.score_map(folder[20:34]), rtol=1e-4, atol=1e-5)


def test_normals_are_cold_and_defects_glow(detector, folder):
    pictures = detector.overlay(folder)
    photos = [np.asarray(Image.open(o)) for o in folder]
    changed = np.array([share_changed(*pair) for pair in zip(pictures, photos)])
    normal, dents = np.r_[changed[:24], changed[28:]], changed[24:28]
    assert np.median(normal) < 0.02 and normal.mean() < 0.1
    heat = detector.heat_["score"]
    peaks = detector.score_map(folder[24:28]).max((1, 2))
    assert (peaks > heat.high).all() and dents.min() > 0.01
    green = [(o == (0, 255, 0)).all(-1).any() for o in pictures]
    assert all(green[24:28]) and np.mean(green[:24] + green[28:]) < 0.3


def test_a_refit_and_a_file_hold_the_same_colours(detector, file, folder):
    again = AnomalyDetector("patchcore", **SHARP).fit(MANY[:36])
    loaded = AnomalyDetector.load(file, "cpu")
    assert again.heat_ == loaded.heat_ == detector.heat_ and set(detector.heat_) == {"score"}
    np.testing.assert_array_equal(loaded.overlay(folder[24]), detector.overlay(folder[24]))


def test_calibration_moves_colours_and_threshold_together(file):
    d = AnomalyDetector.load(file, "cpu")
    before, threshold = d.heat_["score"], d.threshold_.value
    d.calibrate(fpr=0.3)
    assert d.heat_["score"] == before  # of the same normals
    d.calibrate(np.clip(MANY[36:] * 1.6, 0, 255).astype(np.uint8))
    assert d.threshold_.value > threshold and d.heat_["score"].low > before.low and d.heat_["score"].normals == 24
    after = d.heat_["score"]
    d.calibrate(None, DENTS)
    assert d.heat_["score"] == after  # anomalies choose no colours
    says("no threshold was chosen", d.calibrate, [*MANY[36:], "gone.png"])
    assert d.heat_["score"] == after


def test_no_held_out_normals(tmp_path):
    d = AnomalyDetector("patchcore", threshold=2, holdout=0, **QUICK).fit(GOOD)
    assert not d.heat_["score"].held_out and "calibrate(normal=...)" in str(d.report_)
    assert d.heat_["score"].normals == 24
    d.calibrate(MANY[36:])
    assert d.heat_["score"].held_out and "colours of heat maps" not in str(d.report_)


def first_version(file, path):
    "The file as the first version wrote it: without colours"
    with safe_open(file, "pt") as f:
        meta, tensors = dict(f.metadata()), {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    about = json.loads(meta["detector"])
    del about["heat"]
    save_file(tensors, path, metadata=meta | {"detector": json.dumps(about | {"schema": 1})})
    return path


def test_a_file_of_the_first_version_draws_no_picture_in_silence(detector, file, folder, tmp_path):
    old = AnomalyDetector.load(first_version(file, tmp_path / "old.safetensors"), "cpu")
    np.testing.assert_array_equal(old.score_samples(folder[:4]), detector.score_samples(folder[:4]))
    assert "save it again" in says(r"calibrate\(normal=", old.overlay, folder[0])
    assert "calibrate(normal=...)" in str(report(old, folder[:3], top=2))
    old.calibrate(MANY[36:]).save(tmp_path / "new.safetensors")
    assert AnomalyDetector.load(tmp_path / "new.safetensors", "cpu").overlay(folder[0]).shape == (64, 64, 3)
    says("low below high", AnomalyDetector.load, rewritten(file, tmp_path / "x.safetensors", heat__score__low=1e9))


def test_a_method_without_score_maps_has_colours_of_its_gradient():
    d = AnomalyDetector("deep_sad", **QUICK).fit(GOOD, DENTS)
    assert list(d.heat_) == ["gradient"] and d.overlay(GOOD[0]).shape == (64, 64, 3)
    says("has those of gradient", heat_of, d, "score")


def test_the_shape_of_the_photo_and_of_its_box(detector, tmp_path):
    sizes = [(300, 40), (40, 300), (2100, 700), (5, 9)]
    paths = []
    for i, size in enumerate(sizes):
        Image.fromarray(MANY[40]).resize(size).save(tmp_path / f"{i}.png")
        paths.append(str(tmp_path / f"{i}.png"))
    expected = [(40, 300, 3), (300, 40, 3), (700, 2100, 3), (9, 5, 3)]
    assert [o.shape for o in detector.overlay(paths)] == expected
    assert [o.shape for o in detector.overlay([np.asarray(Image.open(p)) for p in paths])] == expected
    table = pd.DataFrame({"path": paths[:1], "box": [(100, 0, 140, 20)]})
    (crop,) = detector.overlay(table)
    part = np.asarray(Image.open(paths[0]))[:20, 100:140]
    assert crop.shape == part.shape and detector.heat_["score"].low is not None
    kept = (crop == part).all(-1)
    heat = detector.score_map(table)[0]
    assert kept.any() or heat.min() > detector.heat_["score"].low  # what is cold is the crop's own pixels


def test_heat_lies_where_the_defect_is_in_a_wide_photo(detector):
    "A dark square at the left of a wide photo: the green contour surrounds it, and not the right half"
    photo = np.asarray(Image.fromarray(MANY[41]).resize((192, 64))).copy()
    photo[20:40, 30:60] = 0
    picture = detector.overlay(photo)
    ys, xs = np.nonzero((picture == (0, 255, 0)).all(-1))
    assert len(xs) and xs.max() < 150 and abs(np.median(xs) - 45) < 30
    warm = (picture.astype(int) - photo).clip(0)[..., 0].sum(0)  # magma adds red
    assert abs(warm.argmax() - 45) < 20


def test_pictures_of_a_report_have_the_shape_of_their_photos(detector, tmp_path):
    write(tmp_path, DENTS)
    Image.fromarray(DENTS[0]).resize((120, 40)).save(tmp_path / "wide.png")
    shown = report(detector, tmp_path, top=5, side=90)
    assert shown.heat == detector.heat_["score"] and "no colour up to" in shown._repr_html_()
    wide = next(o for o in shown.shown if o.name.endswith("wide.png"))
    assert wide.picture(90).shape == (30, 90, 3)
    (tmp_path / "wide.png").unlink()
    assert "once" not in str(shown) and wide.photo is not None
