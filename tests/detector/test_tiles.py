"Tiles and regions of interest: small defects in large photos, in the photo's own coordinates."

import json
import tracemalloc

import numpy as np
import pytest
from large_photos import large_photo, mask_of, spots, write_photos
from PIL import Image
from safetensors import safe_open
from small_detectors import says

from dra_nb.detector import scorer
from dra_nb.detector.detector import AnomalyDetector

SIZE = (512, 384)
SMALL = dict(image_size=64, backbone="resnet18_stage2", weights=None, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"), normals=10, tests=6, anomalies=6, size=SIZE)


@pytest.fixture(scope="module")
def tiled(folder):
    return AnomalyDetector("patchcore", tiles=6, **SMALL).fit(folder / "train/good")


def fitted(folder, **settings):
    return AnomalyDetector("patchcore", **SMALL, **settings).fit(folder / "train/good")


def test_a_small_defect_is_found_in_tiles_and_not_in_the_resized_photo(folder, tiled):
    found = tiled.evaluate(str(folder), pixels=True).metrics
    assert found["auroc"] > 0.95 and found["pixel_auroc"] > 0.99 and found["pixel_f1"] > 0.3
    whole = fitted(folder).evaluate(str(folder)).metrics
    assert whole["auroc"] < 0.7


def test_the_threshold_and_the_report_rest_on_photos(folder, tiled):
    photos = sorted(map(str, (folder / "train/good").iterdir()))
    scores = tiled.score_samples(photos)
    held_out = np.sort(tiled.threshold_.normal)
    assert len(held_out) == 3 and tiled.summary_["normals"] == 7
    near = [np.abs(scores - value).min() for value in held_out]
    np.testing.assert_allclose(near, 0, atol=1e-6)
    assert "64 px, 6 tiles along the longer side: 7 normals" in tiled.report_.title


def test_heat_is_where_the_defect_is_in_the_photo(tiled):
    for i, spot in enumerate(spots(4, SIZE, 12, seed=3)):
        [found] = tiled.score_stream(large_photo(300 + i, SIZE, spot), maps="score")
        height, width = found.map.shape
        y, x = np.unravel_index(found.map.argmax(), found.map.shape)
        place = np.array([x / width * SIZE[0], y / height * SIZE[1]])
        assert np.abs(place - (np.array(spot[:2]) + 6)).max() < 14
        assert found.image.shape == (height, width, 3) and abs(width / height - SIZE[0] / SIZE[1]) < 0.01
        assert tiled.overlay(large_photo(300 + i, SIZE, spot)).shape == (*SIZE[::-1], 3)


@pytest.mark.slow
def test_saved_detectors_keep_tiles_and_roi(folder, tiled, tmp_path):
    test = sorted(map(str, (folder / "test/spot").iterdir()))
    disc = np.hypot(*(np.mgrid[: SIZE[1], : SIZE[0]] - np.array(SIZE[::-1])[:, None, None] / 2)) < 150
    for name, detector in dict(
        tiles=tiled, box=fitted(folder, tiles=3, roi=(50, 20, 400, 300)), mask=fitted(folder, roi=disc)
    ).items():
        file = tmp_path / f"{name}.safetensors"
        detector.save(file)
        loaded = AnomalyDetector.load(file)
        assert loaded.get_params()["tiles"] == detector.tiles and loaded.get_params()["roi"] == detector.roi
        np.testing.assert_array_equal(loaded.score_samples(test), detector.score_samples(test))
        assert str(loaded.report_) == str(detector.report_)
    assert "roi: 36% of 512 x 384 px by a mask" in str(loaded.report_)


def test_a_file_of_an_earlier_version_has_one_tile(folder, tmp_path):
    whole = fitted(folder)
    whole.save(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        saved = json.loads(file.metadata()["detector"])
    assert saved["schema"] == 2 and not {"tiles", "roi"} & set(saved["params"])  # as it was written before
    loaded = AnomalyDetector.load(tmp_path / "a.safetensors")
    assert (loaded.tiles, loaded.roi) == (1, None)
    np.testing.assert_array_equal(loaded.score_samples(large_photo(5)), whole.score_samples(large_photo(5)))


@pytest.mark.parametrize("how", ["box", "mask"])
def test_what_lies_outside_of_the_roi_changes_nothing(folder, how):
    inside = np.zeros(SIZE[::-1], bool)
    inside[60:300, 100:420] = True
    if how == "mask":
        inside[:150, :200] = False
    detector = fitted(folder, tiles=3, roi=inside if how == "mask" else (100, 60, 320, 240))
    photo = large_photo(77)
    noise = np.where(inside[..., None], photo, 255 - photo)
    spotted = large_photo(77, SIZE, (300, 200, 20))
    scores = detector.score_samples([photo, noise, spotted])
    assert scores[0] == scores[1] < scores[2]
    heat = detector.score_map(noise)
    rows, columns = (np.linspace(0, n - 1, m).round().astype(int) for n, m in zip(inside.shape, heat.shape))
    outside = ~inside[np.ix_(rows, columns)]
    assert (heat[outside] <= np.quantile(heat, 0.9)).mean() > 0.97 and heat[~outside].max() == heat.max()


@pytest.mark.slow
def test_pixel_metrics_look_where_the_roi_mask_does(folder):
    detector = fitted(folder, tiles=3, roi=np.ones(SIZE[::-1], bool))
    whole = fitted(folder, tiles=3).evaluate(str(folder), pixels=True).metrics
    assert detector.evaluate(str(folder), pixels=True).metrics == pytest.approx(whole)
    blind = ~np.logical_or.reduce([mask_of((x - 8, y - 8, side + 16), SIZE) for x, y, side in spots(6, SIZE)])
    says(
        "masks that mark something; all 6 are empty",
        fitted(folder, tiles=3, roi=blind).evaluate,
        str(folder),
        pixels=True,
    )


def refuse(*_, **__):
    raise AssertionError("decoded")


def test_what_does_not_fit_is_refused_by_name_before_anything_is_decoded(folder, tmp_path, monkeypatch):
    for module in ("dra_nb.data.store.decode_file", "dra_nb.data.pixels.decode_file"):
        monkeypatch.setattr(module, refuse)
    name = str(folder / "train/good/000.png")
    assert name in says("does not lie inside the 512 x 384 pixels", fitted, folder, roi=(500, 0, 100, 100))
    assert name in says("the roi mask is 100 x 50 pixels, but the photo", fitted, folder, roi=np.ones((50, 100)))
    assert name in says("tiles are larger than the photo", fitted, folder, tiles=2, roi=(0, 0, 500, 100))
    small = SMALL | dict(image_size=640)
    message = says(
        "the model takes 640 x 640", AnomalyDetector("patchcore", tiles=2, **small).fit, folder / "train/good"
    )
    assert "10 photos cannot be used" in message and name in message and "and 5 more" in message
    Image.fromarray(np.zeros((50, 100), np.uint8)).save(tmp_path / "black.png")
    says("marks nothing", AnomalyDetector, roi=str(tmp_path / "black.png"))
    says("x,y,w,h in pixels, or a mask image that exists", AnomalyDetector, roi="mask.png")
    for wrong in (0, 65, 2.5, True):
        says("tiles along the longer side of a photo, 1 to 64", AnomalyDetector, tiles=wrong)


def test_a_stream_reports_what_does_not_fit_and_scores_the_rest(tiled):
    found = list(
        tiled.score_stream([large_photo(1), large_photo(1, (40, 30)), large_photo(2, (640, 60)), large_photo(2)])
    )
    assert [bool(o.error) for o in found] == [False, True, True, False]
    assert "smaller than one tile" in found[1].error and "tiles are larger than the photo image 2" in found[2].error


def test_tiles_go_through_the_network_in_batches(tiled, monkeypatch):
    counts, predict = [], scorer.predict_with_maps
    monkeypatch.setattr(
        scorer,
        "predict_with_maps",
        lambda m, store, *a, **k: counts.append((len(store), k["batch_size"])) or predict(m, store, *a, **k),
    )
    list(tiled.score_stream([large_photo(1), large_photo(2)], batch=8))
    assert counts == [(30, 30), (30, 30)]  # a photo at a time, in passes of at most 32 tiles
    counts.clear()
    list(tiled.score_stream([large_photo(1), large_photo(2)], batch=72))
    assert counts == [(60, 32)]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_photos(tiled):
    def peak(n):
        tracemalloc.start()
        for _ in tiled.score_stream((large_photo(i % 3) for i in range(n)), batch=32, workers=1, maps="score"):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(2)
    assert peak(24) < 1.2 * peak(8)


def test_only_marked_tiles_of_anomalies_are_learnt(folder, tmp_path):
    from dra_nb.detector.inputs import read_training_images
    from dra_nb.detector.settings import settings_from

    data = read_training_images(str(folder), None, None, settings_from(SMALL | dict(method="dra", tiles=6)))
    given = data.split(data.given, 0).given
    per_photo = len(data.images.frames[0].boxes)
    assert 6 <= len(given) < 6 * per_photo / 4
    for row in given:
        photo = int(np.searchsorted(data.images.starts, row, side="right")) - 1
        a, b, c, d = data.images.frames[photo].boxes[row - data.images.starts[photo]]
        number = int(data.images.names[photo][-7:-4])
        mask = np.asarray(Image.open(folder / f"ground_truth/spot/{number:03}_mask.png"))
        assert mask[b:d, a:c].any()
    assert len(data.split(data.given, 0).normal) == len(data.normal) * per_photo


@pytest.mark.slow
def test_without_masks_the_tile_that_stands_out_is_learnt(folder):
    detector = AnomalyDetector("dra", tiles=6, epochs=1, steps=2, batch=9, **SMALL)
    detector.fit(folder / "train/good", folder / "test/spot")
    assert "6 anomalies have no mask: of each, the tile farthest" in str(detector.report_)
    assert detector.report_.frame.n.tolist() == [3, 6]  # photos, not tiles
    marked = AnomalyDetector("dra", tiles=6, epochs=1, steps=2, batch=9, **SMALL).fit(str(folder))
    assert "no mask" not in str(marked.report_)


def test_a_mask_outside_of_the_roi_is_refused(folder):
    left = min(range(6), key=lambda i: spots(6, SIZE)[i][0])
    x, y, side = spots(6, SIZE)[left]
    detector = AnomalyDetector("dra", roi=(x + 80, 0, 100, 100), **SMALL)
    message = says("marks nothing of what is looked at", detector.fit, str(folder))
    assert f"{left:03}.png" in message


def test_calibrate_and_labels_work_on_tiles(folder, tiled, tmp_path):
    tiled.save(tmp_path / "a.safetensors")
    detector = AnomalyDetector.load(tmp_path / "a.safetensors")
    before = detector.heat_["score"].normals
    detector.calibrate(folder / "test/good", fpr=0.2)
    assert len(detector.threshold_.normal) == 6 and (before, detector.heat_["score"].normals) == (3, 6)
    says("were learnt from", detector.calibrate, folder / "train/good")


def test_clones_are_equal_and_pages_show_photos(folder, tiled):
    sklearn = pytest.importorskip("sklearn.base")
    copied = sklearn.clone(AnomalyDetector(tiles=3, roi=mask_of((9, 9, 40), (64, 64))))
    assert copied.tiles == 3 and copied.roi.bounds == (9, 9, 49, 49)
    assert "tiles=3" in repr(copied)


def test_the_report_in_jupyterlab_shows_tiled_photos(folder, tiled):
    from dra_nb.detector.widgets import report

    found = report(tiled, str(folder), top=3)
    assert len(found.shown) == 3 and all(o.map.shape == o.image.shape[:2] for o in found.shown)
