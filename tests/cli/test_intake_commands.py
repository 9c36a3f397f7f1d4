"What fit, eval and score say of the files that they are given: the summary, what is skipped, the exit status."

import json

import numpy as np
import pytest
from conftest import picture
from in_process import call
from PIL import Image
from typer.testing import CliRunner

from dra_nb.cli.main import app as APP
from dra_nb.detector.detector import AnomalyDetector

QUICK = "--method patchcore --image-size 32 --backbone resnet18_stage2 --weights none --device cpu".split()


def draw(root, folder, n, kind="good", start=0, ending="png"):
    (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(start, start + n):
        picture(kind, np.random.default_rng([i, kind == "good"]), 32).save(root / folder / f"{i}.{ending}")
    return root


def mask(file):
    Image.new("L", (32, 32)).save(file)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "A detector that finds nothing anomalous"
    root = draw(tmp_path_factory.mktemp("made"), "good", 8)
    d = AnomalyDetector("patchcore", image_size=32, backbone="resnet18_stage2", weights=None, device="cpu")
    d.fit(root / "good").calibrate(threshold=1e6).save(root / "m.safetensors")
    return root / "m.safetensors"


def test_fit_says_what_it_has_understood(tmp_path):
    draw(tmp_path / "set", "no", 8), draw(tmp_path / "set", "yes", 3, "dent")
    mask(tmp_path / "set/no/0_mask.png")
    (tmp_path / "set/notes.txt").write_text("no picture")
    (tmp_path / "set/.DS_Store").touch()
    status, out, err = call("fit", tmp_path / "set", *QUICK, "-o", tmp_path / "m.safetensors")
    said = "8 normals in no/, 3 anomalies in yes/ (1 class), 3 files skipped: 0_mask.png (mask of 0.png), .DS_Store ("
    assert status == 0 and err.startswith(said)
    assert "left out of the folders: 0_mask.png (mask of 0.png)" in out
    d = AnomalyDetector.load(tmp_path / "m.safetensors", "cpu")
    assert d.summary_["normals"] + d.summary_["held_out"] == 8 and d.summary_["anomalies"] == {"anomaly": 3}


@pytest.mark.parametrize("normal, anomaly", [("OK", "NG"), ("pass", "fail"), ("0", "1")])
def test_fit_and_eval_understand_the_same(normal, anomaly, model, tmp_path):
    draw(tmp_path / "set", normal, 6, start=50), draw(tmp_path / "set", anomaly, 2, "dent")
    said = f"6 normals in {normal}/, 2 anomalies in {anomaly}/ (1 class)"
    assert call("fit", tmp_path / "set", *QUICK, "-o", tmp_path / "m")[2].startswith(said)
    status, out, err = call("eval", model, tmp_path / "set", "--json", "--device", "cpu")
    assert status == 0 and err.startswith(said) and [g["n"] for g in json.loads(out)["groups"]] == [6, 2]


def test_fit_counts_sub_folders_without_a_role(tmp_path):
    draw(tmp_path / "set", "cam1", 5), draw(tmp_path / "set", "cam2", 3, start=20)
    assert call("fit", tmp_path / "set", *QUICK, "-o", tmp_path / "m")[2].startswith(
        "8 normals in set/ (cam1 5, cam2 3)"
    )


def test_fit_refuses_an_unknown_role_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr("dra_nb.detector.detector.train", lambda *a, **k: pytest.fail("it trained"))
    for folder in ("ok", "ng", "shift2"):
        draw(tmp_path / "set", folder, 3)
    status, _, message = call("fit", tmp_path / "set", *QUICK, "-o", tmp_path / "m")
    assert status == 2 and "'shift2' with 3 images" in message and "rename it" in message


def test_score_counts_what_it_skipped_and_its_status_says_so(model, tmp_path):
    box = draw(tmp_path, "box", 4) / "box"
    assert call("score", model, box, "--device", "cpu")[::2] == (0, "")
    for name in (".DS_Store", "Thumbs.db", "notes.txt", "@eaDir/0.png"):
        (box / name).parent.mkdir(exist_ok=True)
        (box / name).write_text("no picture")
    status, out, err = call("score", model, box, "--device", "cpu")
    assert status == 0 and len(out.splitlines()) == 4 and err.startswith("4 scored, 4 skipped: .DS_Store (hidden), ")
    mask(box / "0.bmp")
    (box / "gone.png").symlink_to(box / "nowhere.png")
    status, out, err = call("score", model, box, "--out", tmp_path / "out", "--device", "cpu")
    said = "4 scored, 6 skipped: 0.bmp (mask of 0.png), gone.png (link that leads nowhere), "
    assert status == 4 and err.startswith(said) and len((tmp_path / "out/scores.csv").read_text().splitlines()) == 5
    (box / "9.heic").write_text("a photo of a telephone")
    status, out, err = call("score", model, box, "--device", "cpu")
    assert status == 3 and "9.heic cannot be used (a photo in the format HEIC" in out and "1 of 5 images" in err


@pytest.mark.parametrize("ending", ["jfif", "gif", "pgm", "dib", "tga"])
def test_score_takes_every_format(ending, model, tmp_path):
    (tmp_path / "box").mkdir()
    photo = picture("good", np.random.default_rng(0), 32)
    (photo.convert("L") if ending == "pgm" else photo).save(tmp_path / f"box/a.{ending}", {"jfif": "jpeg"}.get(ending))
    status, out, _ = call("score", model, tmp_path / "box", "--device", "cpu")
    assert status == 0 and out.startswith("normal")


def test_the_help_of_score_explains_status_4():
    text = CliRunner().invoke(APP, ["score", "--help"], env={"COLUMNS": "250", "TERM": "dumb"}).output
    assert "4 files were skipped that may have been meant as images" in text
