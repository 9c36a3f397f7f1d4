"Pixel metrics of masks that are noisy, do not fit, or mark nothing."

from pathlib import Path

import numpy as np
import pytest
from conftest import mvtec_folder
from PIL import Image, ImageDraw
from small_detectors import parts_folder, says, small_detector

import dra_nb.detector.evaluate as evaluation
from dra_nb.data.labelled import read_labelled

SIDE = 64


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return small_detector(parts_folder(tmp_path_factory.mktemp("parts")))


def blot(i):
    "The mask of the i-th anomaly"
    mask = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(mask).ellipse((10 + 5 * i, 20, 40 + 5 * i, 44), 255)
    return mask


def masked_folder(root, draw=blot, ending="png", n=4, **options):
    "A folder in MVTec layout whose anomalies have these masks"
    mvtec_folder(root, 4, 4, {"dent": n}, size=SIDE)
    (root / "ground_truth/dent").mkdir(parents=True)
    for i in range(n):
        draw(i).save(root / f"ground_truth/dent/{i:03}_mask.{ending}", **options)
    return root


def masks_of(report):
    return [o for o in report.notes if "mask" in o]


@pytest.fixture(scope="module")
def reference(detector, tmp_path_factory):
    "What exact masks give"
    return detector.evaluate(masked_folder(tmp_path_factory.mktemp("exact") / "set"), pixels=True)


@pytest.mark.parametrize(
    ("ending", "options"),
    [("jpg", {"quality": 75}), ("jpg", {"quality": 40}), ("webp", {"quality": 40})],
)
def test_pixel_metrics_do_not_see_the_noise_of_masks(tmp_path, detector, reference, ending, options):
    "C1: pixel F1 rose from 0.51 to 1.00"
    found = detector.evaluate(masked_folder(tmp_path / "set", ending=ending, **options), pixels=True)
    assert masks_of(found) == masks_of(reference) == []
    for name, value in reference.metrics.items():
        assert found.metrics[name] == pytest.approx(value, abs=0.03)


def test_two_masks_give_what_one_gives(tmp_path, detector, reference):
    def half(side):
        return lambda i: Image.fromarray(np.asarray(blot(i)) * ((np.arange(SIDE) < 40) == side))

    root = masked_folder(tmp_path / "set", half(True))
    for i in range(4):
        folder = root / f"ground_truth/dent/{i:03}"
        folder.mkdir()
        (root / f"ground_truth/dent/{i:03}_mask.png").rename(folder / "000.png")
        half(False)(i).save(folder / "001.png")
    assert detector.evaluate(root, pixels=True).metrics == reference.metrics


def unscored(monkeypatch):
    monkeypatch.setattr(evaluation, "score_labelled", lambda *a, **k: pytest.fail("images were scored"))


@pytest.mark.parametrize(("width", "height"), [(64, 48), (32, 32), (128, 128)])
def test_masks_that_do_not_fit_are_refused_before_scoring(tmp_path, monkeypatch, detector, width, height):
    "C2: AUPRO fell from 0.92 to 0.36"
    unscored(monkeypatch)
    root = masked_folder(tmp_path / "set", lambda i: blot(i) if i != 2 else blot(i).resize((width, height)))
    said = f"002_mask.png is {width} x {height} pixels, but its image {root}/test/dent/002.png 64 x 64"
    assert str(root) in says(said, detector.evaluate, root, pixels=True)


def test_all_masks_that_cannot_be_used_are_named_before_scoring(tmp_path, monkeypatch, detector):
    unscored(monkeypatch)
    root = masked_folder(tmp_path / "set", lambda i: blot(i) if i else blot(i).resize((9, 9)))
    (root / "ground_truth/dent/003_mask.png").write_text("no picture")
    said = says("2 of 4 masks cannot be used", detector.evaluate, root, pixels=True)
    assert "000_mask.png is 9 x 9" in said and "003_mask.png cannot be used" in said
    assert "001_mask.png" not in said


def test_empty_masks_of_anomalies_are_left_out_and_named(tmp_path, detector):
    "C4: what is left out changes nothing, and is said"
    root = masked_folder(tmp_path / "set", lambda i: blot(i) if i % 2 else Image.new("L", (SIDE, SIDE)))
    found = detector.evaluate(root, pixels=True)
    (note,) = masks_of(found)
    assert note.startswith("2 of 4 masks of anomalies mark nothing; these images are left out of the pixel metrics: ")
    assert "000.png" in note and "002.png" in note and "001.png" not in note
    assert note in str(found) and len(found.frame) == 2
    catalog = read_labelled(root)
    kept = catalog[~catalog.path.str.contains("dent/00[02]")]
    pixels = ("pixel_auroc", "aupro", "pixel_f1")
    alone = detector.evaluate(kept, pixels=True).metrics
    assert [found.metrics[o] for o in pixels] == [alone[o] for o in pixels]


def test_empty_masks_of_all_kinds(tmp_path, monkeypatch, detector):
    "In a box, of noise and colour, all of them"
    root = masked_folder(tmp_path / "set")
    catalog = read_labelled(root)
    boxes = [(0, 0, 64, 10) if "dent/000" in o else (0, 0, 64, 64) for o in catalog.path]
    (note,) = masks_of(detector.evaluate(catalog.assign(box=boxes), pixels=True))
    assert note.startswith("1 of 4 masks of anomalies mark nothing") and "000.png[0, 0, 64, 10]" in note
    unscored(monkeypatch)
    for ending, empty in (("jpg", Image.new("L", (SIDE, SIDE))), ("png", Image.new("RGBA", (SIDE, SIDE)))):
        root = masked_folder(tmp_path / ending, lambda i, empty=empty: empty, ending, n=2)
        assert "test/dent/000.png" in says("all 2 are empty", detector.evaluate, root, pixels=True)


def test_no_mask_and_an_empty_one_are_two_things(tmp_path, detector):
    root = masked_folder(tmp_path / "set", lambda i: blot(i) if i else Image.new("L", (SIDE, SIDE)))
    Path(root / "ground_truth/dent/003_mask.png").unlink()
    first, second = masks_of(detector.evaluate(root, pixels=True))
    assert first == "pixel metrics of 2 of 4 anomalies, 1 without a mask"
    assert second.startswith("1 of 3 masks of anomalies mark nothing")


def test_masks_that_look_inverted_or_turned_are_noted(tmp_path, detector, reference):
    root = masked_folder(tmp_path / "set", lambda i: Image.eval(blot(i), lambda v: 255 - v) if i == 1 else blot(i))
    (note,) = masks_of(detector.evaluate(root, pixels=True))
    assert note.startswith("1 of 4 masks mark most of their image") and "001.png" in note
    blot(1).save(root / "ground_truth/dent/001_mask.png")
    exif = Image.Exif()
    exif[0x0112] = 3
    photo = root / "test/dent/002.png"
    with Image.open(photo) as picture:
        picture.transpose(Image.Transpose.ROTATE_180).save(photo, exif=exif)
    found = detector.evaluate(root, pixels=True)
    (note,) = masks_of(found)
    assert note.startswith("1 of 4 masks were taken as drawn on the upright photo") and "002.png" in note
    assert found.metrics == reference.metrics
