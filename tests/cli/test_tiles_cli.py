"`dra_nb fit --tiles --roi`, and what `score` and `eval` make of it."

import csv
import json

import numpy as np
import pytest
from in_process import call
from large_photos import write_photos
from PIL import Image

OPTIONS = (
    "--method patchcore --image-size 64 --backbone resnet18_stage2 --weights none --device cpu --precision fp32"
).split()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"), normals=8, tests=3, anomalies=3)


@pytest.fixture(scope="module")
def model(photos, tmp_path_factory):
    file = tmp_path_factory.mktemp("model") / "tiles.safetensors"
    region = ("--tiles", "6", "--roi", "0,0,512,380")
    status, out, err = call("fit", photos / "train/good", *region, *OPTIONS, "-o", file)
    assert status == 0 and "6 tiles along the longer side, roi: 512 x 380 px at 0,0" in out, (out, err)
    return file


@pytest.mark.slow
def test_score_and_eval_use_the_tiles_of_the_model(photos, model, tmp_path):
    status, _, err = call("score", model, photos / "test", "--out", tmp_path / "out", "--batch", "8")
    assert status == 1, err
    rows = list(csv.DictReader((tmp_path / "out/scores.csv").read_text().splitlines()))
    scores = {kind: [float(row["score"]) for row in rows if f"/{kind}/" in row["name"]] for kind in ("good", "spot")}
    assert len(rows) == 6 and min(scores["spot"]) > max(scores["good"])
    for row in rows:
        assert Image.open(tmp_path / "out" / row["overlay"]).size == (512, 384)
    status, out, err = call("eval", model, photos, "--pixels", "--json")
    found = json.loads(out)["metrics"]
    assert status == 0 and found["auroc"] == 1 and found["pixel_auroc"] > 0.99, (out, err)


def test_a_mask_image_is_a_region(photos, tmp_path):
    marked = np.zeros((384, 512), np.uint8)
    marked[100:300, 100:400] = 255
    Image.fromarray(marked).save(tmp_path / "mask.png")
    fit = ("fit", photos / "train/good", *OPTIONS, "-o", tmp_path / "m.safetensors")
    status, out, err = call(*fit, "--roi", tmp_path / "mask.png")
    assert status == 0 and "roi: 31% of 512 x 384 px by a mask" in out, (out, err)


def test_what_does_not_fit_ends_with_status_2_and_no_model(photos, tmp_path):
    fit = ("fit", photos / "train/good", *OPTIONS, "-o", tmp_path / "m.safetensors")
    for options, words in {
        ("--tiles", "0"): "1 to 64, not 0",
        ("--tiles", "2", "--image-size", "600"): "smaller than one tile",
        ("--tiles", "2", "--roi", "0,0,512,64"): "tiles are larger than the photo",
        ("--roi", "400,0,200,200"): "does not lie inside the 512 x 384 pixels",
        ("--roi", "nowhere.png"): "a mask image that exists, not 'nowhere.png'",
    }.items():
        status, _, message = call(*fit, *options)
        assert status == 2 and words in message, (options, message)
    assert not (tmp_path / "m.safetensors").exists()
