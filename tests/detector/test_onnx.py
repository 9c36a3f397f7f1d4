"A detector as an ONNX file: it says what PyTorch says, to anybody, and what cannot be written leaves no file."

import json
import os
import subprocess
import sys
import venv

import numpy as np
import pytest
import torch
from conftest import REPO, in_tiers, picture, python, succeeded
from PIL import Image

from dra_nb.core import DraError
from dra_nb.data.datasets import load_catalog
from dra_nb.detector.detector import AnomalyDetector
from dra_nb.detector.heat import measured_kinds
from dra_nb.detector.onnx import export_onnx, map_difference, relative_difference
from dra_nb.detector.onnx_example import EXAMPLE, write_example
from dra_nb.detector.onnx_resize import PhotoResize
from dra_nb.detector.onnx_runtime import OnnxDetector, whole_photos
from dra_nb.evaluation.heatmaps import is_gradient
from dra_nb.methods.base import Prediction
from dra_nb.methods.registry import load_methods

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

QUICK = dict(
    image_size=64, backbone="resnet18_stage2", weights=None, epochs=1, steps=2, batch=9, device="cpu", precision="fp32"
)


def images(kind, n, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([np.asarray(picture(kind, rng, 64)) for _ in range(n)])


GOOD, DENTS = images("good", 20), images("dent", 6, 1)
BOTH = np.concatenate([GOOD[:6], DENTS[:5]])


@pytest.fixture(scope="module")
def detector():
    return AnomalyDetector("dra", **QUICK).fit(GOOD, DENTS)


@pytest.fixture(scope="module")
def file(detector, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "parts.onnx"
    export_onnx(detector, path, pixels="uint8", repeats=0)
    return path


@pytest.mark.parametrize("name", in_tiers(sorted(load_methods())))
def test_says_what_pytorch_says(name, tmp_path):
    d = AnomalyDetector(name, **QUICK, **{"pool": 24} if name == "ahl" else {}).fit(
        GOOD, DENTS, **{"outliers": 255 - GOOD} if name == "saoe" else {}
    )
    for pixels in ("photo", "uint8"):
        assert export_onnx(d, tmp_path / f"{pixels}.onnx", pixels=pixels, repeats=0)["difference"] < 1e-3
    whole, exported = (OnnxDetector(tmp_path / f"{pixels}.onnx") for pixels in ("photo", "uint8"))
    ours = d.score_samples(BOTH)
    assert relative_difference(ours, whole.score_samples(BOTH)) < 1e-3
    for batch in (1, 8, 11):
        assert relative_difference(ours, exported.score_samples(BOTH, batch)) < 1e-3
    assert exported.threshold == d.threshold_.value and exported.size == 64
    found = exported.outputs(BOTH.transpose(0, 3, 1, 2).copy())
    says = [exported.about["verdicts"][place] for place in found["verdict"]]
    assert says == d.threshold_.verdicts(found["score"]).tolist()
    kind = measured_kinds(d.method_)[0]
    assert ("map" in found) is not is_gradient(kind)
    if "map" in found:
        assert map_difference(d.score_map(BOTH, kind), found["map"]) < 1e-3
        assert exported.about["map"]["kind"] == kind and whole.outputs(BOTH[0])["map"].shape == (1, 64, 64)


@pytest.mark.parametrize(
    "settings",
    [{"heads": ("pseudo", "residual")}, {"scales": 3, "n_reference": 2}, {"loss": "ce"}, {"backbone": "resnet18"}],
    ids=str,
)
@pytest.mark.slow
def test_other_settings(settings, tmp_path):
    d = AnomalyDetector("dra", **QUICK | settings).fit(GOOD, DENTS)
    assert export_onnx(d, tmp_path / "x.onnx", repeats=0)["difference"] < 1e-3


@pytest.mark.slow
def test_trained_weights_at_an_odd_size(tmp_path):
    d = AnomalyDetector("dra", **QUICK | dict(image_size=75, epochs=3, steps=4)).fit(GOOD, DENTS)
    export_onnx(d, tmp_path / "x.onnx", repeats=0)
    assert relative_difference(d.score_samples(BOTH), OnnxDetector(tmp_path / "x.onnx").score_samples(BOTH)) < 1e-3


def test_heads_are_there_too(detector, file):
    pixels = np.ascontiguousarray(BOTH.transpose(0, 3, 1, 2))
    found = OnnxDetector(file).scores(pixels)
    assert list(found) == ["score", "seen", "pseudo", "residual", "normality"]
    np.testing.assert_allclose(sum(v for k, v in found.items() if k != "score"), found["score"], rtol=1e-4, atol=1e-5)
    for head, values in next(iter(detector.score_stream(BOTH[:1]))).heads.items():
        np.testing.assert_allclose(found[head][0], values, rtol=1e-3, atol=1e-5)


CONSUMER = """
import json, sys, numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = json.loads(session.get_modelmeta().custom_metadata_map["dra_nb"])
pixels = np.load(sys.argv[2])
assert pixels.shape[1:] == (3, about["preprocessing"]["size"], about["preprocessing"]["size"])
print(json.dumps([float(s) for s in session.run(["score"], {"images": pixels})[0]]), about["threshold"]["value"])
assert "torch" not in sys.modules and "dra_nb" not in sys.modules
"""


def test_a_program_without_pytorch(detector, file, tmp_path):
    np.save(tmp_path / "x.npy", BOTH.transpose(0, 3, 1, 2))
    scores, _, threshold = succeeded(python(CONSUMER, file, tmp_path / "x.npy")).stdout.strip().rpartition(" ")
    assert (
        relative_difference(detector.score_samples(BOTH), json.loads(scores)) < 1e-3
        and float(threshold) == detector.threshold_.value
    )


def test_numbers_in_place_of_bytes(detector, tmp_path):
    export_onnx(detector, tmp_path / "x.onnx", pixels="float32", repeats=0)
    assert (
        relative_difference(detector.score_samples(BOTH), OnnxDetector(tmp_path / "x.onnx").score_samples(BOTH)) < 1e-3
    )


def test_the_detector_is_left_as_it_was(detector, tmp_path):
    before, scores = {k: v.clone() for k, v in detector.method_.state_dict().items()}, detector.score_samples(BOTH)
    report = export_onnx(detector, tmp_path / "x.onnx", pixels="uint8", repeats=1)
    assert (
        all(torch.equal(v, before[k]) for k, v in detector.method_.state_dict().items())
        and not detector.method_.training
    )
    np.testing.assert_array_equal(detector.score_samples(BOTH), scores)
    assert report["size_mb"] == (tmp_path / "x.onnx").stat().st_size / 1e6 and all(
        report[f"{k}_ms_batch_{n}"] > 0 for k in ("torch", "onnx") for n in (1, 8)
    )


def test_what_cannot_be_written_leaves_no_file(tmp_path):
    d = AnomalyDetector("devnet", **QUICK).fit(GOOD, DENTS)
    d.method_.has_maps, d.method_.map_heads = False, ()
    for heads in (
        lambda x: {"a": torch.from_numpy(x.numpy().mean((1, 2, 3)))},  # a constant of the trace
        lambda x: {"a": x.mean((1, 2, 3)) * (2 if x.shape[0] == 2 else 1)},  # a choice made while tracing
        lambda x: {"a": x.mean((1, 2, 3)).cpu().numpy()},
    ):
        d.method_.predict = lambda x, maps=False, heads=heads: Prediction.from_heads(heads(x))
        with pytest.raises(DraError, match="ONNX"):
            export_onnx(d, tmp_path / "x.onnx", pixels="uint8", repeats=0)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_backbone_that_cannot_be_written_is_named_with_what_would_help(tmp_path, capfd):
    "Positions that have to be stretched: refused before tracing; at the size of the training and one scale it works"
    pytest.importorskip("timm")

    def vit(method, size, **settings):
        noise = np.random.default_rng(0).integers(0, 255, (12, size, size, 3), np.uint8)
        return AnomalyDetector(
            method, **QUICK | dict(image_size=size, backbone="timm:test_vit", steps=1, batch=4), **settings
        ).fit(noise[:9], noise[9:])

    for d in (vit("patchcore", 64), vit("devnet", 160), vit("dra", 96, scales=1, n_reference=2)):
        with pytest.raises(DraError, match=r"^timm:test_vit cannot.*image_size=160.*scales=1.*timm:convnext_tiny"):
            export_onnx(d, tmp_path / "x.onnx", repeats=0)
        assert list(tmp_path.iterdir()) == []
    assert "graph" not in "".join(capfd.readouterr())
    for d in (vit("patchcore", 160), vit("devnet", 160, scales=1)):
        export_onnx(d, tmp_path / "x.onnx", repeats=0)
        assert relative_difference(d.score_samples(BOTH), OnnxDetector(tmp_path / "x.onnx").score_samples(BOTH)) < 1e-3


def test_what_the_exporter_fails_on_is_one_sentence(tmp_path, monkeypatch, capfd):
    "An operation that nobody foresaw: no graph on the screen, backbone and remedy in the message"
    d = AnomalyDetector("devnet", **QUICK).fit(GOOD, DENTS)
    d.method_.has_maps, d.method_.map_heads = False, ()
    d.method_.predict = lambda x, maps=False: Prediction.from_heads({"a": torch.special.bessel_j0(x).mean((1, 2, 3))})
    with pytest.raises(
        DraError,
        match=r"devnet on resnet18_stage2 cannot be written as ONNX.*bessel.*another backbone such as resnet18",
    ):
        export_onnx(d, tmp_path / "x.onnx", repeats=0)
    said = "".join(capfd.readouterr())
    assert "graph" not in said and "Torch IR" not in said and list(tmp_path.iterdir()) == []


def test_what_is_no_export_is_refused(tmp_path, detector, file):
    (tmp_path / "x.onnx").write_bytes(file.read_bytes()[:2000])
    for path, word in (
        (tmp_path / "x.onnx", "not a detector"),
        (tmp_path / "gone.onnx", "does not exist"),
        (tmp_path, "does not exist"),
    ):
        with pytest.raises(DraError, match=word):
            OnnxDetector(path)
    with pytest.raises(DraError, match="learnt nothing"):
        export_onnx(AnomalyDetector(), tmp_path / "y.onnx")


def test_scores_are_asked_for_like_those_of_a_detector(file, tmp_path):
    "Batch by batch; nothing to score, a batch of 0 and what cannot be read are refused"
    exported, asked, first = OnnxDetector(file), [], []
    run = exported.scores
    exported.scores = lambda pixels: first.append(len(asked)) or run(pixels)
    many = 4 * os.cpu_count() + 20  # the stream reads two images ahead for each core
    scores = exported.score_samples((asked.append(i) or BOTH[i % 11] for i in range(many)), batch=4)
    np.testing.assert_allclose(scores, np.resize(run(BOTH.transpose(0, 3, 1, 2))["score"], many), rtol=1e-4)
    assert first[0] < many == len(asked) and len(first) == -(-many // 4)
    for nothing in ([], tmp_path, iter(())):
        with pytest.raises(DraError, match="no images"):
            exported.score_samples(nothing)
    for batch in (0, -1, 1.5):
        with pytest.raises(DraError, match="at least 1"):
            exported.score_samples(BOTH, batch)
    with pytest.raises(DraError, match="1 of 3 images have no score"):
        exported.score_samples([BOTH[0], tmp_path / "gone.png", BOTH[1]], batch=1)


def test_without_onnx_the_extra_is_named(detector, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(DraError, match=r"dra_nb\[export\]"):
        export_onnx(detector, tmp_path / "x.onnx")


@pytest.mark.parametrize("shape", [(64, 64), (192, 192), (301, 97), (97, 301), (40, 700), (1, 500), (500, 1), (31, 17)])
def test_a_photo_is_resized_as_by_pillow(shape):
    "Every byte, whatever the shape and whether rows or columns come first"
    photo = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    for size in (64, 75, 224):
        ours = PhotoResize(size)(torch.tensor(photo))[0].permute(1, 2, 0)
        theirs = Image.fromarray(photo).resize((size, size), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(ours, np.asarray(theirs))


def test_two_lines_and_no_number(tmp_path):
    "Verdicts are those of the detector; a photo without a score is not normal"
    d = AnomalyDetector("patchcore", review=0.5, fpr=0.1, **QUICK).fit(GOOD, DENTS)
    export_onnx(d, tmp_path / "x.onnx", repeats=0)
    exported = OnnxDetector(tmp_path / "x.onnx")
    ours = [image.verdict for image in d.score_stream(BOTH)]
    assert [exported.about["verdicts"][exported.outputs(photo)["verdict"][0]] for photo in BOTH] == ours
    assert {"review", "anomaly"} <= set(ours) and exported.about["threshold"]["review"] == d.threshold_.review
    d = AnomalyDetector("devnet", **QUICK).fit(GOOD, DENTS)
    export_onnx(d, tmp_path / "u.onnx", pixels="float32", repeats=0)
    exported = OnnxDetector(tmp_path / "u.onnx")
    lost = exported.session.run(["score", "verdict"], {"images": np.full((1, 3, 64, 64), np.nan, np.float32)})
    assert np.isnan(lost[0][0]) and lost[1][0] == 2


def real_photos(shared):
    "name of a dataset -> normals to learn from, anomalies to learn from, 70 other photos"
    for name in ("elpv", "brainmri", "mvtec"):
        catalog = load_catalog(name, shared / "data")
        catalog = catalog[catalog.category == "bottle"] if name == "mvtec" else catalog
        normal = catalog[catalog.label == 0]
        bad = catalog.path[catalog.label == 1].tolist()
        test = normal.path[normal.split == "test"].tolist()[:30] + bad[6:]
        yield normal.path[normal.split == "train"].tolist()[:60], bad[:6], test[:70]


@pytest.mark.slow
def test_real_photos(shared, tmp_path):
    "Solar cells, brains and bottles: scores, verdicts and heat maps of the default detector"
    seen = 0
    for normal, bad, test in real_photos(shared):
        d = AnomalyDetector(device="cpu", precision="fp32", review=0.2).fit(normal, bad)
        report = export_onnx(d, tmp_path / "x.onnx", repeats=0)
        exported = OnnxDetector(tmp_path / "x.onnx")
        found = [exported.outputs(photo.pixels) for photo in whole_photos(test)]
        ours = list(d.score_stream(test, maps="score"))
        scores = np.array([image.score for image in ours])
        theirs = np.array([o["score"][0] for o in found])
        near = 1e-2 * scores.std()
        assert np.abs(scores - theirs).max() < near and report["size_mb"] < 30
        for image, score, o in zip(ours, scores, found):
            far = min(abs(score - line) for line in (d.threshold_.value, d.threshold_.review)) > near
            assert exported.about["verdicts"][o["verdict"][0]] == image.verdict or not far
        assert map_difference(np.stack([image.map for image in ours]), np.concatenate([o["map"] for o in found])) < 1e-2
        seen += len(test)
    assert seen >= 200


@pytest.mark.slow
def test_thirty_lines_without_this_package(tmp_path):
    "In an environment that has onnxruntime, NumPy and Pillow, and nothing else"
    detectors = [AnomalyDetector("patchcore", tiles=n, **QUICK).fit(GOOD, DENTS) for n in (1, 2)]
    for d in detectors:
        export_onnx(d, tmp_path / f"{d.tiles}.onnx", repeats=0)
    write_example(tmp_path / "score.py")
    photo = Image.fromarray(DENTS[5]).resize((150, 90))
    photo.save(tmp_path / "dent.png")
    venv.create(tmp_path / "env", with_pip=True)
    program = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"

    def call(*args):
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}
        return subprocess.run([program, *args], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)

    wanted = ("onnxruntime", "numpy", "pillow", "-c", REPO / "constraints.txt")
    done = call("-m", "pip", "install", "--no-cache-dir", *wanted)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("torch", "dra_nb"):
        assert "ModuleNotFoundError" in call("-c", f"import {name}").stderr
    for d in detectors:
        said = json.loads(succeeded(call("score.py", f"{d.tiles}.onnx", "dent.png")).stdout)
        ours = next(iter(d.score_stream(tmp_path / "dent.png")))
        assert relative_difference([ours.score], [said["score"]]) < 1e-3 and said["verdict"] == ours.verdict
        assert set(said["parts"]) == set(ours.heads) and Image.open(tmp_path / "dent.png.heat.png").size == photo.size
        (tmp_path / "dent.png.heat.png").unlink()
    assert len(EXAMPLE.splitlines()) <= 30
