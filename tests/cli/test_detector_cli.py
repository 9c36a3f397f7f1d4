"The detector's commands: fit, score, eval, export; what is broken, what is refused, what is left when a process dies."

import json
import os
import shutil
import tracemalloc
from pathlib import Path, PureWindowsPath

import numpy as np
import pandas as pd
import pytest
from conftest import mvtec_folder, python, succeeded
from in_process import call
from PIL import Image
from typer.testing import CliRunner

from dra_nb.cli import score_files
from dra_nb.cli.main import app as APP
from dra_nb.core import DraError
from dra_nb.data.paths import common_folder, path_below
from dra_nb.detector import gallery
from dra_nb.detector.detector import AnomalyDetector
from dra_nb.evaluation.heat_scale import HeatScale

QUICK = (
    "--image-size 48 --backbone resnet18_stage2 --weights none --epochs 1 --steps 2 --batch 9 "
    "--device cpu --precision fp32"
).split()


def done(*args, status=0):
    "The output of a command that ended as it should"
    got, out, err = call(*args)
    assert got == status, (got, out, err)
    return out


def close(a, b):
    "Two pictures differ by no more than a JPEG file of good quality differs from its pixels"
    assert a.shape == b.shape and np.abs(a.astype(int) - b).mean() < 6


def refused(word, *args):
    status, _, message = call(*args)
    assert status == 2 and word in message, (status, message)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    "A folder with train/good, test/good, test/dent and test/scratch"
    root = tmp_path_factory.mktemp("data") / "parts"
    mvtec_folder(root, n_train=14, n_test=4, classes={"dent": 4, "scratch": 4}, size=48)
    (root / "bad").mkdir()
    for k in ("dent", "scratch"):
        shutil.copytree(root / "test" / k, root / "bad" / k)
    return root


@pytest.fixture(scope="module")
def fitted(parts, tmp_path_factory):
    "What fit printed, its model, and what it said while it worked"
    file = tmp_path_factory.mktemp("model") / "new" / "parts.safetensors"
    status, out, err = call(
        "fit", parts / "train/good", "--anomalies", parts / "bad", "--method", "dra", *QUICK, "-o", file
    )
    assert status == 0, (out, err)
    return out, file, err


def test_csv_files_in_place_of_folders(parts, tmp_path):
    "To fit, to score with boxes, to evaluate; what is wrong with one is said with its lines"
    good = sorted((parts / "train/good").iterdir())
    (tmp_path / "n.csv").write_text("Path;Box\n" + "".join(f"{o};\n" for o in good))
    (tmp_path / "a.csv").write_text("path,class\n" + "".join(f"{o},dent\n" for o in (parts / "bad/dent").iterdir()))
    model = tmp_path / "m.safetensors"
    lists = (tmp_path / "n.csv", "--anomalies", tmp_path / "a.csv")
    assert "and 4 anomalies (dent 4)" in done("fit", *lists, "--method", "devnet", *QUICK, "-o", model)
    (tmp_path / "s.csv").write_text(f'path,box\n{good[0]},"0,0,24,48"\n{parts}/bad/dent/000.png,\n')
    status, out, _ = call("score", model, tmp_path / "s.csv", "--out", tmp_path / "out")
    assert status in (0, 1) and "2 images" in out
    rows = pd.read_csv(tmp_path / "out/scores.csv")
    assert rows.name.tolist() == [f"{good[0]}[0, 0, 24, 48]", f"{parts}/bad/dent/000.png"]
    drawn = sorted(
        o.relative_to(tmp_path / "out/overlays").as_posix()
        for o in (tmp_path / "out").rglob("*.png.jpg")
        if "overlays" in o.parts
    )
    assert drawn == ["bad/dent/000.png.jpg"]  # below the folder that holds the images, wherever the csv file is
    assert (tmp_path / "out/overlays/train/good/000.png[0, 0, 24, 48].jpg").is_file()
    (tmp_path / "e.csv").write_text(f"path,label\n{good[0]},0\n{parts}/bad/scratch/000.png,1\n")
    assert "tested on 1 normal and 1 anomaly" in done("eval", model, tmp_path / "e.csv")
    (tmp_path / "s.csv").write_text("path\ngone.png\n")
    refused("s.csv, line 2: the path 'gone.png' does not exist", "score", model, tmp_path / "s.csv")
    refused(
        "e.csv, line 3: the label '1' is that of", "eval", model, tmp_path / "e.csv", "--anomalies", tmp_path / "a.csv"
    )


def test_one_normal_and_a_number_as_threshold(parts, tmp_path):
    one = parts / "train/good/000.png"
    options = ("--method", "patchcore", *QUICK, "-o", tmp_path / "m.safetensors")
    assert "1 normal and no anomalies" in done("fit", one, "--threshold", 2, *options)
    refused("give at least 2, or a number as threshold, which needs none", "fit", one, *options)


def test_images_on_two_drives_of_windows(tmp_path, monkeypatch):
    "Overlays go to a folder for each drive"
    import ntpath

    monkeypatch.setattr(score_files, "common_folder", lambda folders: common_folder(folders, ntpath))
    monkeypatch.setattr(gallery, "path_below", lambda path, root: path_below(path, root, ntpath))
    monkeypatch.setattr(score_files.os.path, "abspath", str)
    images = [PureWindowsPath(o) for o in (r"D:\parts\1.png", r"E:\parts\1.png", r"\\lab\cell\1.png")]
    monkeypatch.setattr(PureWindowsPath, "is_dir", lambda self: False, raising=False)
    root = score_files.common_root(images)
    assert root == ""
    names = [gallery.picture_name(str(o), root) for o in images]
    assert names == ["D/parts/1.png.jpg", "E/parts/1.png.jpg", "lab/cell/1.png.jpg"]
    assert score_files.common_root(images[:1]) == "D:/parts"


@pytest.fixture(scope="module")
def model(fitted):
    return fitted[1]


@pytest.fixture(scope="module")
def strict(model):
    "The same detector, with a threshold that nothing exceeds, and one that everything does"
    files = [model.with_name(f"{k}.safetensors") for k in ("none", "all")]
    for file, value in zip(files, (1e6, -1e6)):
        AnomalyDetector.load(model, "cpu").calibrate(threshold=value).save(file)
    return files


@pytest.fixture
def inbox(parts, tmp_path):
    "left/000.png, left/001.png, right/000.png, right/000.bmp and a broken picture in the middle"
    box = tmp_path / "inbox"
    for folder in ("left", "right"):
        (box / folder).mkdir(parents=True)
    for name, source in (
        ("left/000.png", "train/good/000.png"),
        ("left/001.png", "test/dent/000.png"),
        ("right/000.png", "test/dent/001.png"),
    ):
        shutil.copy(parts / source, box / name)
    Image.open(parts / "test/scratch/000.png").save(box / "right/000.bmp")
    (box / "left/000b.png").write_bytes((parts / "test/good/000.png").read_bytes()[:200])
    return box


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_fit_prints_its_report_and_saves_it(fitted, parts):
    printed, file, said = fitted
    assert "dra: 0 of 2 step" in said and "\r" not in said  # lines, since this is no terminal
    d = AnomalyDetector.load(file, "cpu")
    assert (
        str(d.report_) in printed
        and str(file) in printed
        and d.summary_["anomalies"] == {"dent": 4, "scratch": 4}
        and d.image_size == 48
    )
    same = AnomalyDetector(
        "dra",
        image_size=48,
        backbone="resnet18_stage2",
        weights=None,
        epochs=1,
        steps=2,
        batch=9,
        device="cpu",
        precision="fp32",
    ).fit(parts / "train/good", parts / "bad")
    np.testing.assert_array_equal(same.score_samples(parts / "bad"), d.score_samples(parts / "bad"))


def test_every_option_of_fit_arrives(parts, tmp_path, monkeypatch):
    "The detector is made with what was typed; nothing is trained"
    asked = {}

    def catch(self, *args, **kwargs):
        raise DraError(str(asked.update(params=self.get_params(), args=args, **kwargs) or "caught"))

    monkeypatch.setattr(AnomalyDetector, "fit", catch)
    refused(
        "caught",
        "fit",
        "N",
        "--anomalies",
        "A",
        "--validation",
        "V.csv",
        "--outliers",
        "O",
        "--method",
        "devnet",
        "--image-size",
        96,
        "--max-value",
        4095,
        "--tiles",
        3,
        "--roi",
        "1,2,300,400",
        "--weights",
        "none",
        "--backbone",
        "resnet18",
        "--epochs",
        3,
        "--steps",
        4,
        "--batch",
        5,
        "--lr",
        "1e-3",
        "--setting",
        "topk_ratio=.2",
        "--threshold",
        "cost",
        "--fpr",
        0.1,
        "--miss",
        7,
        "--false-alarm",
        2,
        "--prevalence",
        0.01,
        "--look",
        0.5,
        "--holdout",
        0.3,
        "--check",
        "unseen",
        "--check",
        "seen",
        "--seed",
        6,
        "--device",
        "cpu",
        "--precision",
        "fp32",
        "-o",
        tmp_path / "m",
    )
    assert asked["args"] == ("N", "A", "V.csv", "O") and list(asked["check"]) == ["unseen", "seen"]
    assert asked["params"] == dict(
        method="devnet",
        image_size=96,
        max_value=4095,
        tiles=3,
        roi=(1, 2, 300, 400),
        weights="none",
        backbone="resnet18",
        epochs=3,
        steps=4,
        batch=5,
        lr=1e-3,
        schedule=None,
        device="cpu",
        precision="fp32",
        seed=6,
        threshold="cost",
        fpr=0.1,
        miss=7,
        false_alarm=2,
        prevalence=0.01,
        look=0.5,
        review=None,
        holdout=0.3,
        topk_ratio=0.2,
    )
    refused("caught", "fit", "N", "--review", "0.2", "-o", tmp_path / "m")
    assert asked["params"]["review"] == 0.2
    refused("caught", "fit", "N", "--threshold", "1.5", "-o", tmp_path / "m")
    plain = AnomalyDetector().get_params()
    assert (
        asked["params"] == plain | dict(threshold=1.5)
        and asked["args"] == ("N", None, None, None)
        and list(asked["check"]) == []
    )
    assert not (tmp_path / "m").exists()


def test_fit_refuses_before_it_trains(parts, tmp_path, monkeypatch):
    monkeypatch.setattr("dra_nb.detector.detector.train", lambda *a, **k: pytest.fail("it trained"))
    good, out = parts / "train/good", tmp_path / "m.safetensors"
    (tmp_path / "empty").mkdir(), (tmp_path / "file").write_text("x")
    refused("holds no image", "fit", tmp_path / "empty", *QUICK, "-o", out)
    refused("does not exist", "fit", tmp_path / "gone", *QUICK, "-o", out)
    refused("does not exist", "fit", good, "--anomalies", tmp_path / "gone", *QUICK, "-o", out)
    refused("unknown method", "fit", good, *QUICK, "--method", "dar", "-o", out)
    refused("unknown setting", "fit", good, *QUICK, "--setting", "hedas=1", "-o", out)
    refused("name=value", "fit", good, *QUICK, "--setting", "heads", "-o", out)
    refused("options of 'dra_nb fit", "fit", good, *QUICK, "--setting", "seed=1", "-o", out)
    refused("lr is a learning rate", "fit", good, *QUICK, "--lr", "0", "-o", out)
    refused("options of 'dra_nb fit", "fit", good, *QUICK, "--setting", "lr=1", "-o", out)
    refused("unknown way to choose a threshold", "fit", good, *QUICK, "--threshold", "f2", "-o", out)
    refused("finite", "fit", good, *QUICK, "--threshold", "nan", "-o", out)
    refused("no anomaly among them", "fit", good, *QUICK, "--threshold", "f1", "-o", out)
    refused("cannot resolve", "fit", good, *QUICK, "--fpr", ".001", "-o", out)
    refused("learns from given anomalies", "fit", good, *QUICK, "--method", "devnet", "-o", out)
    refused("unknown check", "fit", good, "--anomalies", parts / "bad", *QUICK, "--check", "both", "-o", out)
    refused("is a folder", "fit", good, *QUICK, "-o", tmp_path)
    refused("cannot be made", "fit", good, *QUICK, "-o", tmp_path / "file/m.safetensors")
    assert not out.exists()


def test_score_writes_rows_and_overlays(model, inbox, tmp_path):
    out = tmp_path / "new" / "out"
    said = done("score", model, inbox, "--out", out, "--batch", 2, "--device", "cpu", status=3)
    names = [
        str(inbox / n) for n in ("left/000.png", "left/000b.png", "left/001.png", "right/000.bmp", "right/000.png")
    ]
    expected = list(AnomalyDetector.load(model, "cpu").score_stream(names, batch=2))
    table, lines = (
        pd.read_csv(out / "scores.csv", float_precision="round_trip"),
        [json.loads(o) for o in (out / "scores.jsonl").read_text().splitlines()],
    )
    assert table.name.tolist() == [o["name"] for o in lines] == names
    assert (
        list(table)
        == [
            "name",
            "score",
            "anomaly",
            "verdict",
            "p_value",
            "error",
            "score_seen",
            "score_pseudo",
            "score_residual",
            "score_normality",
            "overlay",
        ]
        == list(lines[0])[:6] + list(table)[6:]
    )
    for o, row, line in zip(expected, table.to_dict("records"), lines):
        assert {k: v for k, v in line.items() if k != "overlay"} == o.record()
        if o.error:
            assert (
                "000b.png" in row["error"]
                and np.isnan(row["score"])
                and np.isnan(row["anomaly"])
                and line["overlay"] is None
            )
        else:
            assert (row["score"], row["anomaly"], row["p_value"]) == (o.score, int(o.anomaly), o.p_value) and row[
                "score_seen"
            ] == o.heads["seen"]
    drawn = ["left/000.png.jpg", "left/001.png.jpg", "right/000.bmp.jpg", "right/000.png.jpg"]
    assert files(out / "overlays") == drawn and table.overlay.dropna().tolist() == [f"overlays/{o}" for o in drawn]
    pixels = [np.asarray(Image.open(out / "overlays" / o)) for o in drawn]
    assert all(p.shape == (48, 48, 3) for p in pixels)
    for picture, name in zip(pixels, [n for n in names if "000b" not in n]):
        close(picture, AnomalyDetector.load(model, "cpu").overlay(name))  # colours of the model
    call("score", model, inbox / "right", "--out", out / "hot", "--scale", -9, 9, "--device", "cpu")
    assert (np.asarray(Image.open(out / "hot/overlays/000.png.jpg")) != pixels[3]).any()
    assert Image.open(out / "legend.png").size[0] > 400 and not (out / "hot/legend.png").exists()
    assert f"5 images, {int(table.anomaly.sum())} anomal" in said and "1 without a score" in said and "--scale" in said


def test_the_colour_scale_is_printed_and_can_be_given(model, inbox, tmp_path):
    (inbox / "left/000b.png").unlink()
    low, high = call("score", model, inbox, "--out", tmp_path / "a", "--device", "cpu")[1].split("--scale ")[1].split()
    call("score", model, inbox / "right", "--out", tmp_path / "b", "--device", "cpu", "--scale", low, high)
    a, b = (
        np.asarray(Image.open(tmp_path / k / "overlays" / o)).astype(int)
        for k, o in (("a", "right/000.png.jpg"), ("b", "000.png.jpg"))
    )
    assert np.abs(a - b).max() <= 3  # four digits of the scale
    call("score", model, inbox / "right", "--out", tmp_path / "c", "--device", "cpu", "--scale", 1e5, 1e6)
    close(np.asarray(Image.open(tmp_path / "c/overlays/000.png.jpg")), np.asarray(Image.open(inbox / "right/000.png")))
    refused("smaller one first", "score", model, inbox, "--out", tmp_path / "d", "--scale", 2, 1)
    refused("smaller one first", "score", model, inbox, "--out", tmp_path / "d", "--scale", 0, "nan")
    assert not (tmp_path / "d").exists()


def test_exit_statuses(strict, inbox, tmp_path):
    none, everything = strict
    good, broken = inbox / "left/000.png", inbox / "left/000b.png"
    assert done("score", none, good, inbox / "right", "--device", "cpu").count("normal") == 3
    assert done("score", everything, good, "--device", "cpu", status=1).startswith("anomaly")
    for model in strict:
        assert "no score" in done("score", model, good, broken, "--device", "cpu", status=3)
    said = done(
        "score", none, broken, "--out", tmp_path / "out", "--device", "cpu", status=3
    )  # nothing at all can be read
    assert (
        "1 image, 0 anomalies, 1 without a score" in said
        and len(pd.read_csv(tmp_path / "out/scores.csv")) == 1
        and files(tmp_path / "out") == ["index.html", "scores.csv", "scores.jsonl"]
    )
    help_ = CliRunner().invoke(APP, ["score", "--help"], env={"COLUMNS": "250", "TERM": "dumb"}).output
    assert all(
        o in help_
        for o in ("0 no anomaly", "1 anomalies found", "2 refused", "3 some images could not", "5 no anomaly")
    )


def test_overlays_of_images_from_anywhere_are_kept_apart(strict, inbox, tmp_path, monkeypatch):
    monkeypatch.chdir(inbox / "left")
    done(
        "score",
        strict[0],
        "000.png",
        "../right",
        "001.png",
        "../left/../right/000.png",
        "--out",
        tmp_path / "out",
        "--device",
        "cpu",
    )
    assert files(tmp_path / "out/overlays") == [
        "left/000.png.jpg",
        "left/001.png.jpg",
        "right/000.bmp.jpg",
        "right/000.png.jpg",
    ]
    assert files(tmp_path / "out")[-2:] == ["scores.csv", "scores.jsonl"]
    assert pd.read_csv(tmp_path / "out/scores.csv").name.tolist() == [
        "000.png",
        "../right/000.bmp",
        "../right/000.png",
        "001.png",
        "../left/../right/000.png",
    ]


def test_no_maps(model, inbox, tmp_path, monkeypatch):
    monkeypatch.setattr("dra_nb.evaluation.heatmaps.heatmaps", lambda *a, **k: pytest.fail("a heat map was made"))
    call("score", model, inbox, "--device", "cpu")
    assert call("score", model, inbox, "--out", tmp_path / "out", "--no-maps", "--device", "cpu")[0] == 3
    assert {o.split("/")[0] for o in files(tmp_path / "out")} == {"gallery", "index.html", "scores.csv", "scores.jsonl"}
    assert files(tmp_path / "out/gallery")[0] == "photo/left/000.png.jpg" and len(files(tmp_path / "out/gallery")) == 4
    assert "overlay" not in pd.read_csv(tmp_path / "out/scores.csv")


def test_a_method_without_score_maps_draws_its_gradient(parts, inbox, tmp_path):
    done(
        "fit",
        parts / "train/good",
        "--anomalies",
        parts / "bad",
        *QUICK,
        "--method",
        "deep_sad",
        "-o",
        tmp_path / "d.safetensors",
    )
    status, said, _ = call(
        "score", tmp_path / "d.safetensors", inbox / "right", "--out", tmp_path / "out", "--device", "cpu"
    )
    assert status in (0, 1) and "overlays of gradient" in said and len(files(tmp_path / "out/overlays")) == 2


def test_earlier_results_are_not_overwritten(model, inbox, tmp_path):
    out = tmp_path / "out"
    call("score", model, inbox, "--out", out, "--device", "cpu")
    before = {f: (out / f).read_bytes() for f in files(out)}
    refused("not empty", "score", model, inbox, "--out", out)
    refused("is a file", "score", model, inbox, "--out", out / "scores.csv")
    refused("lies within", "score", model, inbox, "--out", inbox / "scored")
    (tmp_path / "link").symlink_to(inbox)
    refused("lies within", "score", model, inbox, "--out", tmp_path / "link/scored")
    assert {f: (out / f).read_bytes() for f in files(out)} == before and not (inbox / "scored").exists()
    (out / "overlays").rename(tmp_path / "kept")
    with pytest.raises(DraError, match="exists already"):
        score_files.ResultFiles([], score_files.Pictures(out, str(inbox)))  # of two at once, the second
    assert (out / "scores.csv").read_bytes() == before["scores.csv"]


def test_a_place_that_cannot_be(model, inbox, parts, tmp_path, monkeypatch):
    "Refused before the model is loaded, and nothing is left; so is an image whose name no disk would take"
    monkeypatch.setattr(AnomalyDetector, "load", lambda *a, **k: pytest.fail("it was loaded"))
    monkeypatch.setattr("dra_nb.detector.detector.train", lambda *a, **k: pytest.fail("it trained"))
    (tmp_path / "file").write_text("x")
    places = [tmp_path / "file/out", tmp_path / ("x" * 300), *["/proc/out"] * os.path.isdir("/proc")]
    for out in places:
        refused("cannot be made", "score", model, inbox, "--out", out)
    refused("cannot be made", "fit", parts / "train/good", *QUICK, "-o", tmp_path / ("x" * 300) / "m.safetensors")
    refused("cannot be written", "fit", parts / "train/good", *QUICK, "-o", tmp_path / ("x" * 300))
    refused("does not exist", "score", model, tmp_path / ("x" * 300), "--out", tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["file", "inbox"]


def test_a_folder_of_both_is_no_folder_of_normals(model, parts, monkeypatch):
    monkeypatch.setattr("dra_nb.detector.detector.train", lambda *a, **k: pytest.fail("it trained"))
    refused("holds 'good' beside 'scratch'", "fit", parts / "test", *QUICK, "-o", parts / "m.safetensors")
    refused("holds 'good' beside 'scratch'", "eval", model, parts / "test", "--device", "cpu")
    assert call("score", model, parts / "test", "--device", "cpu")[0] in (0, 1)  # no labels, no question


def test_what_is_not_there_or_no_detector(model, inbox, tmp_path):
    (tmp_path / "empty/deeper").mkdir(parents=True), (tmp_path / "empty/notes.txt").write_text("no picture")
    out = ["--out", tmp_path / "out", "--device", "cpu"]
    refused("holds no image", "score", model, inbox, tmp_path / "empty", *out)
    refused("gone.png does not exist", "score", model, inbox, tmp_path / "gone.png", *out)
    for command in (
        ["score", inbox / "right/000.png", inbox, *out],
        ["eval", inbox / "right/000.png", inbox],
        ["export", inbox / "right/000.png", "--onnx", tmp_path / "x.onnx"],
    ):
        refused("not a detector", *command)
    refused("does not exist", "score", tmp_path / "gone", inbox, *out)
    refused("is a folder", "score", inbox, inbox, *out)
    assert not (tmp_path / "out").exists() and not (tmp_path / "x.onnx").exists()
    assert (
        call("score", model)[0] == 2
        and call("score", model, inbox, "--batch", 0)[0] == 2
        and call("fit", inbox)[0] == 2
    )


def test_what_was_scored_is_kept_when_it_dies(model, parts, tmp_path, monkeypatch):
    "A batch fails half-way: the rows and overlays before it are whole, and the status is not that of an answer"
    import dra_nb.detector.scorer as module

    judge, calls = module.judge, []

    def dying(d, portion, maps=None):
        calls.append(len(portion))
        if len(calls) == 4:
            raise RuntimeError("out of memory")  # the first is a trial
        return judge(d, portion, maps)

    monkeypatch.setattr(module, "judge", dying)
    refused(
        "scoring stopped after 4 images",
        "score",
        model,
        parts / "train/good",
        "--out",
        tmp_path / "out",
        "--batch",
        2,
        "--device",
        "cpu",
    )
    table = pd.read_csv(tmp_path / "out/scores.csv")
    assert (
        table.name.tolist() == [str(parts / f"train/good/{i:03}.png") for i in range(4)] and table.score.notna().all()
    )
    assert len((tmp_path / "out/scores.jsonl").read_text().splitlines()) == 4 and files(tmp_path / "out/overlays") == [
        f"{i:03}.png.jpg" for i in range(4)
    ]


def test_rows_are_on_disk_before_the_next_image(model, parts, tmp_path):
    d, seen = AnomalyDetector.load(model, "cpu"), []
    with score_files.ResultFiles(["seen"], score_files.Pictures(tmp_path, str(parts))) as results:
        for o in d.score_stream(parts / "bad", batch=3, maps="score"):
            results.add(o)
            seen.append(
                (len(pd.read_csv(tmp_path / "scores.csv")), len((tmp_path / "scores.jsonl").read_text().splitlines()))
            )
    assert seen == [(i, i) for i in range(1, 9)]


def test_an_interrupt_is_no_answer(model, parts, tmp_path, monkeypatch):
    add = score_files.ResultFiles.add

    def stop(self, o):
        if o.name.endswith("003.png"):
            raise KeyboardInterrupt
        add(self, o)

    monkeypatch.setattr(score_files.ResultFiles, "add", stop)
    status, _, err = call("score", model, parts / "train/good", "--out", tmp_path / "out", "--device", "cpu")
    assert status == 130 and "interrupted after 3 images" in err and len(pd.read_csv(tmp_path / "out/scores.csv")) == 3


def test_an_overlay_that_cannot_be_written_stops_nothing(model, inbox, tmp_path, capsys):
    (inbox / "left/000b.png").unlink()
    (inbox / "left/000.png.jpg").mkdir()  # its overlays would need a folder of the name of another overlay
    shutil.copy(inbox / "left/001.png", inbox / "left/000.png.jpg/a.png")
    status, _, err = call("score", model, inbox, "--out", tmp_path / "out", "--device", "cpu")
    table = pd.read_csv(tmp_path / "out/scores.csv")
    assert (
        status in (0, 1)
        and err.count("no picture of") == 1
        and len(table) == 5
        and len(files(tmp_path / "out/overlays")) == 4
    )
    assert sorted(table.overlay.dropna()) == [
        f"overlays/{o}" for o in files(tmp_path / "out/overlays")
    ]  # a row names a picture that is there
    assert sum(json.loads(o)["overlay"] is None for o in (tmp_path / "out/scores.jsonl").read_text().splitlines()) == 1
    pictures = score_files.Pictures(tmp_path / "one", str(inbox), HeatScale(0, 1, 0.5, 9))
    row = next(AnomalyDetector.load(model, "cpu").score_stream(inbox / "left/000.png", maps="score"))
    assert pictures.add(row) == "overlays/left/000.png.jpg"
    row.map[:] = np.nan
    assert pictures.add(row) is None and "not finite" in capsys.readouterr().err


def test_strange_names(strict, parts, tmp_path):
    "A name can hold commas, quotes, line breaks, escape codes and bytes that are no text"
    box = tmp_path / "in"
    box.mkdir()
    for name in (b'a,b".png', b"line\nbreak.png", b"\x1b[2J.png", b"\xff.png", "\u00fc.png".encode()):
        shutil.copy(parts / "train/good/000.png", os.fsencode(box) + b"/" + name)
    assert "\x1b" not in (said := done("score", strict[0], box, "--device", "cpu")) and len(said.splitlines()) == 5
    done("score", strict[0], box, "--out", tmp_path / "out", "--device", "cpu")
    table = pd.read_csv(tmp_path / "out/scores.csv")
    assert (
        len(table) == 5
        and table.score.nunique() == 1
        and {str(box / "line\nbreak.png"), str(box / 'a,b".png'), str(box / "\u00fc.png")} <= set(table.name)
    )
    assert [os.fsencode(json.loads(o)["name"]) for o in (tmp_path / "out/scores.jsonl").read_text().splitlines()].count(
        os.fsencode(box) + b"/\xff.png"
    ) == 1
    assert sum(p.is_file() for p in (tmp_path / "out/overlays").iterdir()) == 5
    assert sorted(AnomalyDetector.load(strict[0], "cpu").score_table(str(box)).name) == sorted(
        os.fsdecode(o) for o in box.iterdir()
    )


def test_memory_does_not_grow_with_the_number(monkeypatch, tmp_path):
    "Rows and pictures are written and forgotten"
    from dra_nb.detector.results import Scored

    monkeypatch.setattr(score_files, "write_pictures", lambda *o: True)

    def peak(n):
        tracemalloc.start()
        pictures = score_files.Pictures(tmp_path / str(n), "/data", HeatScale(0, 1, 0.5, 9), measured=False)
        with score_files.ResultFiles(["seen"], pictures) as results:
            for i in range(n):
                results.add(
                    Scored(
                        f"/data/{i}.png",
                        0.5,
                        False,
                        0.5,
                        {"seen": 0.5},
                        image=np.zeros((8, 8, 3), np.uint8),
                        map=np.zeros((64, 64), np.float32),
                    )
                )
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(100)
    assert peak(2000) < peak(200) + 200_000


def test_eval(model, parts, tmp_path):
    shutil.copytree(parts / "test", tmp_path / "t")
    d = AnomalyDetector.load(model, "cpu")
    report = d.evaluate(str(parts / "test/good"), str(parts / "bad"))
    assert str(report) in done("eval", model, parts / "test/good", "--anomalies", parts / "bad", "--device", "cpu")
    found = json.loads(
        done("eval", model, parts / "test/good", "--anomalies", parts / "bad", "--json", "--device", "cpu")
    )
    assert (
        found["metrics"] == report.metrics
        and found["threshold"] == d.threshold_.value
        and [g["n"] for g in found["groups"]] == [4, 4, 4]
    )
    refused(
        "pixel metrics need masks",
        "eval",
        model,
        parts / "test/good",
        "--anomalies",
        parts / "bad",
        "--pixels",
        "--device",
        "cpu",
    )
    (tmp_path / "t/dent/9.png").write_text("no picture")
    assert f"1 of 9 images could not be read and are not counted: {tmp_path / 't/dent/9.png'}" in done(
        "eval", model, tmp_path / "t/good", "--anomalies", tmp_path / "t/dent", "--device", "cpu", status=3
    )
    found = json.loads(
        done(
            "eval",
            model,
            tmp_path / "t/good",
            "--anomalies",
            tmp_path / "t/dent",
            "--json",
            "--device",
            "cpu",
            status=3,
        )
    )
    assert (
        [o["name"] for o in found["unreadable"]] == [str(tmp_path / "t/dent/9.png")]
        and "cannot be used" in found["unreadable"][0]["error"]
        and sum(g["n"] for g in found["groups"]) == 8
    )


def test_how_many_could_not_be_read_is_said_at_the_end(strict, inbox, tmp_path):
    for i in range(7):
        (inbox / f"right/{i}.png").write_text("no picture")
    broken = [str(inbox / "left/000b.png"), *(str(inbox / f"right/{i}.png") for i in range(7))]
    status, out, err = call("score", strict[0], inbox, "--device", "cpu")
    assert (
        status == 3
        and out.count("no score") == 8
        and err.strip()
        == f"8 of 12 images could not be read: {', '.join(sorted(broken, key=lambda o: o)[:5])} and 3 more"
    )
    status, out, err = call("score", strict[0], inbox, "--out", tmp_path / "out", "--device", "cpu")
    assert (
        status == 3
        and "12 images, 0 anomalies, 8 without a score" in out
        and "8 of 12 images could not be read: " + broken[0] in err
    )
    assert "could not be read" not in "".join(
        map(str, call("score", strict[0], inbox / "left/000.png", "--device", "cpu"))
    )


def test_fit_names_all_broken_images_before_it_trains(parts, tmp_path, monkeypatch):
    monkeypatch.setattr("dra_nb.detector.detector.train", lambda *a, **k: pytest.fail("it trained"))
    shutil.copytree(parts / "train/good", tmp_path / "good"), shutil.copytree(parts / "bad", tmp_path / "bad")
    broken = [*(tmp_path / f"good/z{i}.png" for i in range(7)), tmp_path / "bad/dent/z.png"]
    for p in broken:
        p.write_text("no picture")
    status, _, message = call(
        "fit", tmp_path / "good", "--anomalies", tmp_path / "bad", *QUICK, "-o", tmp_path / "m.safetensors"
    )
    assert (
        status == 2
        and "8 images cannot be read, so nothing was trained" in message
        and all(str(p) in message for p in broken)
        and not (tmp_path / "m.safetensors").exists()
    )


def test_eval_of_pixels(tmp_path):
    "On the embedded textures, whose masks are exact: the numbers of the metrics called directly"
    from dra_nb.data.datasets import load_catalog
    from dra_nb.data.masks import read_mask
    from dra_nb.evaluation.f1 import f1_max
    from dra_nb.evaluation.pixel_metrics import aupro, pixel_auroc

    catalog = load_catalog("textures")
    weave = catalog[catalog.category == "weave"]
    normal, bad = weave[weave.label == 0], weave[weave.defect.isin(["hole", "color"])].groupby("defect").head(4)
    for folder, paths in (
        ("train/good", normal[normal.split == "train"].path[:16]),
        ("test/good", normal[normal.split == "test"].path[:6]),
        *((f"test/{k}", o.path) for k, o in bad.groupby("defect")),
    ):
        (tmp_path / "set" / folder).mkdir(parents=True)
        for p in paths:
            shutil.copy(p, tmp_path / "set" / folder)
    for o in bad.itertuples():
        (tmp_path / "set/ground_truth" / o.defect).mkdir(parents=True, exist_ok=True)
        shutil.copy(
            o.mask,
            tmp_path / "set/ground_truth" / o.defect / (os.path.splitext(os.path.basename(o.path))[0] + "_mask.png"),
        )
    file = tmp_path / "weave.safetensors"
    done("fit", tmp_path / "set/train/good", *QUICK, "--method", "patchcore", "--image-size", 64, "-o", file)
    found = json.loads(done("eval", file, tmp_path / "set", "--pixels", "--json", "--batch", 5, "--device", "cpu"))[
        "metrics"
    ]
    d = AnomalyDetector.load(file, "cpu")
    paths = sorted(str(p) for p in (tmp_path / "set/test").rglob("*.png"))
    masks = [
        read_mask(p.replace("/test/", "/ground_truth/")[:-4] + "_mask.png", size=64)
        if "/good/" not in p
        else np.zeros((64, 64), bool)
        for p in paths
    ]
    maps = d.score_map(paths)
    assert len(paths) == 14 and sum(m.any() for m in masks) == 8
    for name, value in (
        ("pixel_auroc", pixel_auroc(maps, masks)),
        ("aupro", aupro(maps, masks)),
        ("pixel_f1", f1_max(maps, masks)),
    ):
        assert found[name] == pytest.approx(value, rel=1e-4), name
    assert found["pixel_auroc"] > 0.8 and found["aupro"] > 0.3  # and they say something: chance is .5 and .15
    said = done("eval", file, tmp_path / "set", "--pixels", "--device", "cpu")
    assert all(f"{k} {v:.3f}" in said for k, v in found.items())


def test_a_name_is_no_formula(strict, parts, tmp_path, monkeypatch):
    "In the csv a path that a spreadsheet would compute gets ./ in front, which leads to the same file"
    monkeypatch.chdir(tmp_path)
    names = ["=1+1.png", "@x.png", "+1.png", "-2.png", "\tt.png", "a=1.png", "=box"]
    for n in names[:-1]:
        shutil.copy(parts / "train/good/000.png", n)
    os.mkdir("=box"), shutil.copy(parts / "train/good/000.png", "=box/=b.png")
    done("score", strict[0], "--out", "out", "--device", "cpu", "--", *names)
    table, lines = (
        pd.read_csv("out/scores.csv", dtype=str, keep_default_na=False),
        [json.loads(o)["name"] for o in Path("out/scores.jsonl").read_text().splitlines()],
    )
    given = [*names[:-1], "=box/=b.png"]
    assert (
        lines == given
        and [os.path.normpath(o) for o in table.name] == given
        and all(os.path.isfile(o) for o in table.name)
    )
    assert [o.removeprefix("./") != o for o in table.name] == [True] * 5 + [False, True]
    assert not [
        c
        for row in table.itertuples(index=False)
        for c in (row.name, row.error, row.overlay)
        if c.startswith(("=", "+", "-", "@", "\t", "\r"))
    ]


@pytest.mark.slow
def test_export(model, parts, tmp_path):
    pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    from dra_nb.detector.onnx_runtime import OnnxDetector

    said = done("export", model, "--onnx", tmp_path / "new/p.onnx")
    assert "MB" in said and "ms per image" in said
    np.testing.assert_allclose(
        OnnxDetector(tmp_path / "new/p.onnx").score_samples(parts / "bad"),
        AnomalyDetector.load(model, "cpu").score_samples(parts / "bad"),
        rtol=2e-3,
        atol=1e-3,
    )
    refused("unknown kind of input", "export", model, "--onnx", tmp_path / "x.onnx", "--pixels", "int8")
    said = done("export", model, "--onnx", tmp_path / "u.onnx", "--pixels", "uint8")
    assert "batch of 8" in said and not OnnxDetector(tmp_path / "u.onnx").takes_photos
    said = done("export", model, "--onnx", tmp_path / "p.onnx", "--example", tmp_path / "score.py")
    assert "photo of 1024 x 768" in said and "onnxruntime, numpy and pillow" in said
    compile((tmp_path / "score.py").read_text(encoding="utf-8"), "score.py", "exec")
    both = ("--example", tmp_path / "no.py", "--pixels", "uint8")
    refused("leave out --pixels or --example", "export", model, "--onnx", tmp_path / "x.onnx", *both)
    assert not (tmp_path / "no.py").exists()
    refused("is a folder", "export", model, "--onnx", tmp_path)
    assert not (tmp_path / "x.onnx").exists()


def test_the_module_needs_no_torch():
    assert (
        "False False"
        in succeeded(
            python("import sys, dra_nb.cli.detector_commands\nprint('torch' in sys.modules, 'pandas' in sys.modules)")
        ).stdout
    )
