"A camera of 12 bits: the value of white travels from `fit` to the file, to `score` and to ONNX."

import json
import warnings

import numpy as np
import pytest
from conftest import dra_nb
from in_process import call
from PIL import Image
from small_detectors import DENTS, GOOD, QUICK
from small_detectors import write as write_bytes

from dra_nb.core import DraError
from dra_nb.detector.detector import AnomalyDetector
from dra_nb.detector.persistence import read_description

GREY = {"good": GOOD[..., 0], "dent": DENTS[..., 0]}


def write(folder, arrays, white):
    "Grey images as a camera of other bits would write them into files of 16"
    folder.mkdir(parents=True, exist_ok=True)
    for i, array in enumerate(arrays):
        Image.fromarray(np.round(array / 255 * white).astype(np.uint16)).save(folder / f"{i:03}.png")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "The same images of 8 bits, and of 12 in files of 16"
    root = tmp_path_factory.mktemp("cameras")
    for name, arrays in GREY.items():
        write_bytes(root / "eight" / name, arrays)
        write(root / "twelve" / name, arrays, 4095)
    return root


@pytest.fixture(scope="module")
def detectors(folders):
    "Made with the same images of either kind"
    made = {}
    for kind, white in (("eight", None), ("twelve", 4095)):
        made[kind] = AnomalyDetector("dra", **QUICK, max_value=white).fit(
            folders / kind / "good", folders / kind / "dent"
        )
    return made


def test_told_what_white_is_12_bits_are_as_good_as_8(folders, detectors):
    eight, twelve = detectors["eight"], detectors["twelve"]
    assert twelve.threshold_.value == eight.threshold_.value
    scores = [d.score_samples(folders / kind / "dent") for kind, d in detectors.items()]
    assert (scores[0] == scores[1]).all()
    assert not any("bits" in note for note in twelve.report_.notes)


def test_it_is_in_the_file_and_in_use_after_loading(folders, detectors, tmp_path):
    detectors["twelve"].save(tmp_path / "twelve.safetensors")
    about = read_description(tmp_path / "twelve.safetensors")
    assert about["preprocessing"]["max_value"] == about["params"]["max_value"] == 4095
    loaded = AnomalyDetector.load(tmp_path / "twelve.safetensors", "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = loaded.score_samples(folders / "twelve" / "dent")
    assert (found == detectors["twelve"].score_samples(folders / "twelve" / "dent")).all()
    detectors["eight"].save(tmp_path / "eight.safetensors")
    assert "max_value" not in json.dumps(read_description(tmp_path / "eight.safetensors"))


def test_values_above_it_are_refused_by_name(folders, detectors, tmp_path):
    write(tmp_path / "sixteen", GREY["dent"], 65535)
    with pytest.raises(DraError, match="000.png cannot be used .* not from 0 to 4095; correct max_value"):
        detectors["twelve"].score_samples(tmp_path / "sixteen")
    with pytest.raises(DraError, match="normals: the image .*000.png cannot be used .* not from 0 to 1023"):
        AnomalyDetector("dra", **QUICK, max_value=1023).fit(folders / "twelve/good")


def test_onnx_scores_the_same_files(folders, detectors, tmp_path):
    pytest.importorskip("onnxruntime")
    from dra_nb.detector.onnx import export_onnx
    from dra_nb.detector.onnx_runtime import OnnxDetector

    export_onnx(detectors["twelve"], tmp_path / "a.onnx", repeats=0)
    exported = OnnxDetector(tmp_path / "a.onnx")
    assert exported.about["preprocessing"]["max_value"] == 4095
    ours = detectors["twelve"].score_samples(folders / "twelve/dent")
    assert np.allclose(exported.score_samples(folders / "twelve/dent"), ours, rtol=1e-3, atol=1e-3)


def test_nobody_told_is_noted_in_the_report_and_at_scoring(folders, tmp_path):
    "Once per role and for good: the note is in the file"
    detector = AnomalyDetector("dra", **QUICK)
    with pytest.warns(UserWarning, match="as in data of 12 bits") as caught:
        detector.fit(folders / "twelve" / "good", folders / "twelve" / "dent")
    assert len(caught) == 2
    notes = [note for note in detector.report_.notes if "as in data of 12 bits" in note]
    assert len(notes) == 2 and "Pass max_value=4095 (--max-value 4095)" in notes[0]
    detector.save(tmp_path / "a.safetensors")
    loaded = AnomalyDetector.load(tmp_path / "a.safetensors", "cpu")
    assert [note for note in loaded.report_.notes if "as in data of 12 bits" in note] == notes
    with pytest.warns(UserWarning, match="the largest value of all 4 images with 16 bits per channel is"):
        loaded.score_samples(folders / "twelve" / "dent")


@pytest.mark.slow
def test_option_of_the_command(folders, tmp_path):
    options = "--weights none --image-size 32 --backbone resnet18_stage2 --method patchcore --device cpu".split()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        status, out, err = call(
            "fit", folders / "twelve/good", *options, "--max-value", 4095, "-o", tmp_path / "a.safetensors"
        )
    assert status == 0 and "bits" not in out + err, err
    assert read_description(tmp_path / "a.safetensors")["preprocessing"]["max_value"] == 4095
    assert call("score", tmp_path / "a.safetensors", folders / "twelve/dent")[0] in (0, 1)
    done = dra_nb("fit", folders / "twelve/good", *options, "-o", tmp_path / "b.safetensors")
    assert done.returncode == 0 and "as in data of 12 bits" in done.stdout and "as in data of 12 bits" in done.stderr
