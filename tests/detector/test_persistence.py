"Files of detectors: read by another process, damaged, malicious, of another version."

import json
import os

import numpy as np
import pytest
import torch
from conftest import python, succeeded
from safetensors import safe_open
from safetensors.torch import save_file
from small_detectors import DENTS, GOOD, QUICK, parts_folder, rewritten, says, small_detector

from dra_nb.detector.detector import AnomalyDetector
from dra_nb.methods.io import load_method


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return parts_folder(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def detector(folder):
    return small_detector(folder)


@pytest.fixture(scope="module")
def file(detector, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "parts.safetensors"
    detector.save(path)
    return path


@pytest.mark.slow
def test_another_process_scores_the_same(file, folder, detector):
    code = (
        "import sys; from dra_nb.detector.detector import AnomalyDetector as A; d = A.load(sys.argv[1], 'cpu'); "
        "print(*(s.hex() for s in map(float, d.score_samples(sys.argv[2])))); print(d.report_)"
    )
    first, _, rest = succeeded(python(code, file, folder / "good")).stdout.partition("\n")
    np.testing.assert_array_equal([float.fromhex(s) for s in first.split()], detector.score_samples(folder / "good"))
    assert rest.strip() == str(detector.report_).strip()


def test_the_file_is_a_method_too(file, detector):
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            load_method(file).predict(x).score, detector.method_.predict(x).score, rtol=1e-4, atol=1e-5
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_scores_the_same(file, folder, detector):
    there = AnomalyDetector.load(file, "cuda").score_samples(folder / "good")
    here = detector.score_samples(folder / "good")
    np.testing.assert_allclose(there, here, rtol=1e-2, atol=1e-2 * np.abs(here).max())  # TF32 convolutions


def test_files_that_are_not_what_they_seem(file, tmp_path):
    load, p = AnomalyDetector.load, tmp_path / "x.safetensors"
    says("newer", load, rewritten(file, p, schema=99))
    says("finite", load, rewritten(file, p, threshold__value=float("inf")))
    says("damaged", load, rewritten(file, p, threshold__normal=["__import__('os')"]))
    says("holds a dra and describes", load, rewritten(file, p, params__method="devnet"))
    says("unknown setting", load, rewritten(file, p, params__evil=1))
    says("image_size", load, rewritten(file, p, params__image_size=10**9))
    says("unknown way", load, rewritten(file, p, threshold__rule__by="os.system"))
    says("not a detector", load, rewritten(file, p, groups=[{"x": 1}]))
    says("not a detector", load, rewritten(file, p, summary={}))
    says("not a detector", load, rewritten(file, p, params=[]))
    says(
        "fit its own settings",
        load,
        rewritten(file, p, lambda t: {k: v for k, v in t.items() if k != "heads.seen.classify.weight"}),
    )
    says(
        "not finite",
        load,
        rewritten(
            file, p, lambda t: t | {"heads.seen.classify.weight": t["heads.seen.classify.weight"] * float("nan")}
        ),
    )
    says("damaged", load, rewritten(file, p, lambda t: t | {"reference_9": torch.zeros(2, 2), "more": torch.zeros(2)}))
    says("damaged", load, rewritten(file, p, lambda t: t | {"reference_0": torch.zeros(2, 2)}))
    for n in (0, 7, 100, 5000):
        p.write_bytes(file.read_bytes()[:n])
        says("not a detector", load, p)
    p.write_bytes(b"\x80\x04\x95" + b"cos\nsystem\n(S'touch /tmp/pwned'\ntR.")  # a pickle
    says("not a detector", load, p)
    assert not os.path.exists("/tmp/pwned")
    says("does not exist", load, tmp_path / "gone")
    says("is a folder", load, tmp_path)


def test_huge_settings_take_no_memory(tmp_path):
    AnomalyDetector("deep_sad", **QUICK).fit(GOOD, DENTS).save(tmp_path / "d.safetensors")
    with safe_open(tmp_path / "d.safetensors", "pt") as f:
        meta, tensors = dict(f.metadata()), {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    for part in ("dra_nb", "detector"):
        config = json.loads(meta[part])
        config.get("params", config.get("settings", {})).update(dimensions=10**9)
        meta[part] = json.dumps(config)
    save_file(tensors, tmp_path / "huge.safetensors", metadata=meta)
    says("does not fit its own settings", AnomalyDetector.load, tmp_path / "huge.safetensors")


def test_a_loaded_detector_can_be_fitted_again(folder, tmp_path, monkeypatch):
    p, start = tmp_path / "d.safetensors", AnomalyDetector("patchcore", **QUICK).fit(GOOD)
    start.save(p)
    again = AnomalyDetector.load(p, "cpu")
    assert again.weights is None
    np.testing.assert_array_equal(again.fit(GOOD).score_samples(GOOD[:4]), start.score_samples(GOOD[:4]))
    save_file(
        {k: v.contiguous() for k, v in start.method_.backbone.body.state_dict().items()}, tmp_path / "w.safetensors"
    )
    AnomalyDetector("patchcore", **QUICK | dict(weights=str(tmp_path / "w.safetensors"))).fit(GOOD).save(p)
    own = AnomalyDetector.load(p, "cpu")
    message = says("to fit it again, call set_params", own.fit, GOOD)
    assert (
        own.summary_["weights"] in message
        and own.summary_["weights"].startswith("w-")
        and str(tmp_path) not in str(own.get_params())
    )
    own.set_params(weights=str(tmp_path / "w.safetensors")).fit(GOOD)
    monkeypatch.setattr(own, "params_", own.params_ | dict(weights="imagenet"))
    own.save(p)
    assert AnomalyDetector.load(p, "cpu").weights == "imagenet"


def test_loaded_where_nobody_wants_gradients(file, folder):
    "Heat maps ask for them all the same"
    import torch

    with torch.inference_mode():
        maps = AnomalyDetector.load(file, "cpu").score_map(DENTS[:2], "gradient")
    np.testing.assert_array_equal(maps, AnomalyDetector.load(file, "cpu").score_map(DENTS[:2], "gradient"))


def test_a_file_of_an_earlier_version(tmp_path):
    "has other names for some settings; it scores the same"
    d = AnomalyDetector("devnet", topk_ratio=0.2, **QUICK).fit(GOOD, DENTS)
    d.save(tmp_path / "new.safetensors")
    with safe_open(tmp_path / "new.safetensors", "pt") as f:
        meta, tensors = dict(f.metadata()), {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    old = {k: v.replace('"topk_ratio"', '"fraction"') for k, v in meta.items()}
    assert old != meta
    save_file(tensors, tmp_path / "old.safetensors", metadata=old)
    again = AnomalyDetector.load(tmp_path / "old.safetensors", "cpu")
    assert again.settings == {"topk_ratio": 0.2}
    np.testing.assert_array_equal(again.score_samples(GOOD[:4]), d.score_samples(GOOD[:4]))
