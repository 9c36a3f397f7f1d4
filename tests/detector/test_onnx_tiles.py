"A detector that cuts photos, as an ONNX file: the graph cuts, loops and joins as Python does."

import numpy as np
import pytest
from in_process import call
from large_photos import large_photo, spots
from PIL import Image
from sklearn.metrics import roc_auc_score

from dra_nb.core import DraError
from dra_nb.data.datasets import load_catalog
from dra_nb.data.tiling import MOST_TILES, tile_side
from dra_nb.detector.detector import AnomalyDetector
from dra_nb.detector.onnx import export_onnx, map_difference, relative_difference
from dra_nb.detector.onnx_runtime import OnnxDetector

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SIZE = (300, 220)  # width and height
QUICK = dict(image_size=64, backbone="resnet18_stage2", weights=None, epochs=1, steps=2, batch=9, device="cpu")
NORMAL = [large_photo(seed, SIZE) for seed in range(12)]
SPOTTED = [large_photo(100 + i, SIZE, spot) for i, spot in enumerate(spots(4, SIZE))]


def mask():
    marked = np.zeros(SIZE[::-1], bool)
    marked[10:200, 20:280] = True
    marked[120:, 150:] = False
    return marked


def fitted(method="patchcore", **settings):
    return AnomalyDetector(method, precision="fp32", **QUICK, **settings).fit(NORMAL, SPOTTED)


def exported(detector, path, **options):
    report = export_onnx(detector, path, **{"repeats": 0} | options)
    assert report["difference"] < 1e-3
    return OnnxDetector(path)


@pytest.mark.parametrize(
    "settings",
    [dict(tiles=3), dict(roi=(30, 20, 200, 150)), dict(roi=(30, 20, 200, 150), tiles=2), dict(roi=mask(), tiles=4)],
    ids=["tiles", "roi", "tiles in a roi", "tiles in a mask"],
)
def test_says_what_python_says(settings, tmp_path):
    "Scores, verdicts and maps, also of photos that are upright or larger where that is possible"
    d = fitted(**settings)
    file = exported(d, tmp_path / "x.onnx")
    photos = [*NORMAL[:2], *SPOTTED[:2]]
    if not isinstance(settings.get("roi"), np.ndarray):
        photos += [large_photo(50, (410, 300)), large_photo(51, (231, 260))]
    for photo in photos:
        ours = next(iter(d.score_stream(photo, maps="score")))
        theirs = file.outputs(photo)
        assert relative_difference([ours.score], theirs["score"]) < 1e-3
        assert file.about["verdicts"][theirs["verdict"][0]] == d.threshold_.verdicts(theirs["score"])[0]
        assert map_difference(ours.map, theirs["map"][0]) < 1e-3


@pytest.mark.slow
def test_heads_are_those_of_the_worst_tile(tmp_path):
    d = fitted("dra", tiles=2)
    file = exported(d, tmp_path / "x.onnx")
    for image in d.score_stream(SPOTTED):
        photo = SPOTTED[int(image.name.split()[-1])]
        found = file.scores(photo)
        np.testing.assert_allclose(found["score"][0], image.score, rtol=1e-3)
        for head, value in image.heads.items():
            np.testing.assert_allclose(found[head][0], value, rtol=1e-3, atol=1e-4)


def test_a_method_without_maps(tmp_path):
    file = exported(fitted("deep_sad", tiles=2), tmp_path / "x.onnx")
    assert "map" not in file.outputs(NORMAL[0])


@pytest.mark.slow
def test_what_does_not_fit_is_named(tmp_path):
    d = fitted(tiles=3)
    with pytest.raises(DraError, match="3 tiles along the longer side.*so its ONNX file takes photos"):
        export_onnx(d, tmp_path / "x.onnx", pixels="uint8")
    assert list(tmp_path.iterdir()) == []
    file = exported(d, tmp_path / "x.onnx")
    Image.fromarray(NORMAL[0][:40, :50]).save(tmp_path / "small.png")
    with pytest.raises(DraError, match="small.png shows 50 x 40 pixels.*smaller than one tile"):
        file.score_samples([NORMAL[0], tmp_path / "small.png"])
    with pytest.raises(DraError, match="tiles are larger than the photo"):
        file.outputs(np.zeros((70, 400, 3), np.uint8))
    file = exported(fitted(roi=(30, 20, 200, 150)), tmp_path / "y.onnx")
    with pytest.raises(DraError, match="does not lie inside the 220 x 160 pixels"):
        file.outputs(np.zeros((160, 220, 3), np.uint8))


@pytest.mark.slow
def test_the_command_says_how_fast_it_is(tmp_path):
    for name, settings, said in (
        ("t", dict(tiles=2), "photo of 1024 x 768"),
        ("r", dict(roi=(9, 9, 99, 99)), "just holds"),
    ):
        fitted(**settings).save(tmp_path / f"{name}.safetensors")
        done = call("export", tmp_path / f"{name}.safetensors", "--onnx", tmp_path / f"{name}.onnx")
        assert done[0] == 0 and said in done[1]
        assert OnnxDetector(tmp_path / f"{name}.onnx").about["preprocessing"]["size"] == 64


@pytest.mark.slow
def test_strips_of_fabric(shared, tmp_path):
    "AITEX, 16 strips in tiles as wide as a strip is high: a file finds what Python finds"
    catalog = load_catalog("aitex", shared / "data")
    strips = catalog.groupby("path").label.max()
    good, bad = strips.index[strips == 0].tolist(), strips.index[strips == 1].tolist()
    width, height = Image.open(good[0]).size
    tiles = next(n for n in range(2, MOST_TILES + 1) if tile_side(width, n) <= height)
    settings = QUICK | dict(tiles=tiles, precision="fp32")
    d = AnomalyDetector("patchcore", **settings).fit(good[:24])
    file = exported(d, tmp_path / "x.onnx")
    test = good[24:32] + bad[:8]
    ours, theirs = d.score_samples(test), file.score_samples(test)
    assert relative_difference(ours, theirs) < 1e-3
    assert roc_auc_score([0] * 8 + [1] * 8, theirs) == roc_auc_score([0] * 8 + [1] * 8, ours)
