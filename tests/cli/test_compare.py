"The command `compare`: images of something else reach the methods that learn from them."

import json
import shutil

import pytest
from conftest import mvtec_folder
from in_process import call


@pytest.fixture
def command(tmp_path):
    "A comparison of two methods on made-up parts, with options"
    root = mvtec_folder(tmp_path / "mine", n_train=20, classes={"scratch": 4, "dent": 4}, size=48)
    shutil.move(root / "test" / "good", tmp_path / "others")
    short = "--image-size 48 --weights none --backbone resnet18_stage2 --epochs 1 --steps 2 --device cpu --json".split()
    methods = ("--method", "saoe", "--method", "patchcore")
    return lambda *options: call(
        "compare", root / "train" / "good", "--anomalies", root / "test", *methods, *short, *options
    )


@pytest.mark.slow
def test_outliers_are_asked_for_and_taken(command, tmp_path):
    status, _, message = command()
    assert status == 2 and "saoe" in message and "--outliers" in message
    status, out, _ = command("--outliers", tmp_path / "others")
    found = json.loads(out[out.index("{") :])
    assert status == 0 and {d["detector"] for d in found["detectors"]} == {"saoe", "patchcore"}
    assert found["recommendation"]
