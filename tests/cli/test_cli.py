"The command line: help, lists, one run, and what it answers to mistakes."

import json
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import dra_nb, mvtec_folder, python, refused, succeeded
from toys import UNTRAINED


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    "Run the command in this process, in an empty folder: status, output, errors"
    monkeypatch.chdir(tmp_path)

    def run(*args):
        from dra_nb.cli.main import main

        monkeypatch.setattr(sys, "argv", ["dra_nb", *map(str, args)])
        try:
            main()
            status = 0
        except SystemExit as e:
            status = e.code or 0
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    "command, options",
    [
        ([], "reproduce plan status run runs datasets methods fit compare score eval export".split()),
        (
            ["reproduce"],
            "--profile --data --weights --out --dataset --method --shots --seed --medical --workers --runs-per-device "
            "--executor --address --retries --tls --slurm --checkpoint-every --device --precision".split(),
        ),
        (["plan"], "--profile --data --weights --out --dataset --method --shots --seed --medical --workers".split()),
        (["status"], ["--profile", "--out"]),
        (["runs"], "verify ls show diff rm export".split()),
        (
            ["run"],
            "--method --category --known-class --shots --seed --profile --setting --backbone --data --weights --out "
            "--save --device --precision".split(),
        ),
        (["datasets"], ["--data", "check", "download", "show"]),
        (["datasets", "download"], ["--data"]),
        (["datasets", "show"], ["--data", "--out", "--category"]),
        (["methods"], []),
    ],
)
def test_help(call, command, options, monkeypatch):
    for name, value in dict(COLUMNS="200", TERM="dumb", NO_COLOR="1").items():
        monkeypatch.setenv(name, value)
    status, out, _ = call(*command, "--help")
    assert status == 0 and "Usage: " in out
    assert [o for o in options if o not in out] == []


def test_help_needs_no_torch():
    done = succeeded(
        python(
            "import sys\nsys.argv = ['dra_nb', '--help']\nfrom dra_nb.cli.main import main\n"
            "try: main()\nfinally: print('TORCH', 'torch' in sys.modules)"
        )
    )
    assert "TORCH False" in done.stdout and "Usage: dra_nb" in done.stdout


def test_methods(call):
    from dra_nb.methods.registry import load_methods

    status, out, _ = call("methods")
    assert status == 0
    for entry in load_methods().values():
        assert entry.name in out and entry.title in out and entry.paper in out


def test_datasets(call, cache, tmp_path, monkeypatch):
    from dra_nb.data.datasets import load_catalog, load_datasets

    monkeypatch.setenv("DRA_NB_CACHE", str(tmp_path / "cache"))  # an empty one
    status, out, _ = call("datasets")
    assert status == 0 and "not usable" not in out
    assert "textures" in out and "present" not in out and not (tmp_path / "cache").exists()  # nothing is drawn
    for d in load_datasets().values():
        assert d.title in out and (not d.folder or d.where in out)
    mvtec_folder(tmp_path / "data" / "MVTec" / "carpet", n_train=3, n_test=2, classes={"hole": 2})
    monkeypatch.setenv("DRA_NB_CACHE", str(cache))  # where the textures are drawn once for all tests
    load_catalog("textures")
    status, out, _ = call("datasets", "--data", tmp_path / "data")
    assert status == 0
    assert "present: 3 train, 4 test images, 1 category(ies), anomaly classes: hole" in out
    assert "present: 480 train, 560 test images, 4 category(ies)" in out  # the embedded textures
    assert (
        f"absent: there is no folder elpv/ in {tmp_path / 'data'}" in out
        and "no folder brainmri/" in out
        and "no folder mvtec/" not in out
        and "not usable" not in out
    )
    (tmp_path / "data" / "elpv").mkdir()
    assert f"not usable: {tmp_path / 'data' / 'elpv'}" in call("datasets", "--data", tmp_path / "data")[1]
    status, _, err = call("datasets", "--data", tmp_path / "nowhere")
    assert status == 2 and f"{tmp_path / 'nowhere'} does not exist" in err


def test_datasets_check(call, tmp_path):
    status, _, err = call("datasets", "--check", tmp_path)  # as it was spelt before
    assert status == 2 and "is now 'datasets check ROOT'" in err
    status, _, err = call("datasets", "check", tmp_path)
    assert status == 2 and "holds none of the datasets" in err and "elpv" in err
    mvtec_folder(tmp_path / "mvtec" / "carpet", n_train=3, n_test=2, classes={"hole": 2})
    (tmp_path / "elpv").mkdir()
    status, out, _ = call("datasets", "check", tmp_path)
    assert (
        status == 1
        and "carpet" in out
        and "280" in out
        and "elpv: cannot be read" in out
        and "not in" in out
        and "brainmri" in out.splitlines()[-1]
    )


def test_datasets_show(call, tmp_path):
    mvtec_folder(tmp_path / "data" / "plates", n_train=3, n_test=2, classes={"hole": 2})
    for args, file in (
        (
            ("datasets", "show", "plates", "--data", tmp_path / "data"),
            tmp_path / "outputs" / "contact_sheets" / "plates.png",
        ),
        (("datasets", "--data", tmp_path / "data", "show", "plates", "--out", "a/b.png"), tmp_path / "a" / "b.png"),
    ):
        status, out, _ = call(*args)
        assert status == 0 and (tmp_path / out.strip()) == file and file.read_bytes().startswith(b"\x89PNG")
    status, _, err = call("datasets", "show", "platse", "--data", tmp_path / "data")
    assert status == 2 and "Did you mean 'plates'" in err


WEAVE = ("run", "textures", "--category", "weave")


@pytest.mark.parametrize(
    "args, parts",
    [
        (("reproduce", "tabel1"), ["artefact 'tabel1'", "mean 'table1'"]),
        (("reproduce", "table1", "--profile", "smok"), ["profile 'smok'", "mean 'smoke'"]),
        (("reproduce", "table1", "--dataset", "texturs"), ["dataset 'texturs'", "mean 'textures'"]),
        (("reproduce", "table1", "--method", "devnt"), ["method 'devnt'", "mean 'devnet'"]),
        (("reproduce", "table1", "--weights", "no.pth"), ["no.pth does not exist", "'imagenet'", "'none'"]),
        (("reproduce", "table1", "--device", "cuda:99"), ["'cuda:99'", "cpu, cuda or auto"]),
        (("reproduce", "table1", "--shots", "500"), ["500 given anomalies", "has 100 anomalies", "shots=99"]),
        (("reproduce", "table1", "--precision", "fp8"), ["precision 'fp8'", "fp32"]),
        (("reproduce", "table2", "--seed", "-1"), ["seed is -1"]),
        (("run", "texture"), ["dataset 'texture'", "mean 'textures'"]),
        (("run", "textures"), ["4 categories", "metal, tiles, weave, wood"]),
        (("run", "textures", "--category", "weav"), ["category 'weav'", "mean 'weave'"]),
        ((*WEAVE, "--profile", "cpus"), ["profile 'cpus'", "mean 'cpu'"]),
        ((*WEAVE, "--method", "devnett"), ["method 'devnett'", "mean 'devnet'"]),
        ((*WEAVE, "--setting", "n_referenc=3"), ["setting of dra 'n_referenc'", "mean 'n_reference'"]),
        ((*WEAVE, "--setting", "preset=papr"), ["preset 'papr'", "mean 'paper'"]),
        ((*WEAVE, "--setting", "loss=devation"), ["loss 'devation'", "mean 'deviation'"]),
        ((*WEAVE, "--setting", "nonsense"), ["'nonsense'", "name=value"]),
        ((*WEAVE, "--setting", "n_reference=121"), ["n_reference is 121", "120 train normals"]),
        ((*WEAVE, "--setting", "n_reference=abc"), ["n_reference", "abc"]),
        ((*WEAVE, "--setting", "scales=0"), ["scales", "0"]),
        ((*WEAVE, "--setting", "topk_ratio=7"), ["topk_ratio", "7"]),
        ((*WEAVE, "--known-class", "hol"), ["anomaly class 'hol'", "mean 'hole'"]),
        (
            (*WEAVE, "--known-class", "hole", "--shots", "21"),
            ["21 given anomalies", "20 anomalies of class 'hole'", "shots=20"],
        ),
        ((*WEAVE, "--shots", "101"), ["101 given anomalies", "has 100 anomalies", "shots=99"]),
        ((*WEAVE, "--shots", "0"), ["learns from given anomalies", "shots >= 1"]),
        ((*WEAVE, "--weights", "no.pth"), ["no.pth does not exist", "'imagenet'", "'none'"]),
        ((*WEAVE, "--precision", "fp8"), ["precision 'fp8'", "fp32"]),
    ],
    ids=lambda v: " ".join(v[-2:]) if isinstance(v, tuple) else "",
)
def test_mistakes(call, tmp_path, args, parts):
    status, _, err = call(*args, "--out", tmp_path / "out")
    assert status == 2 and [p for p in parts if p not in err] == []
    assert "error: " in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_unreadable_weights(call, tmp_path):
    (tmp_path / "w.safetensors").write_text("not weights")
    for args in (WEAVE, ("reproduce", "table1", "--shots", "1", "--method", "devnet")):
        status, _, err = call(*args, "--weights", "w.safetensors", "--out", tmp_path / "out")
        assert status == 2 and "w.safetensors cannot be read" in err
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("args", [("run", "elpv"), ("reproduce", "table1", "--dataset", "elpv")])
def test_missing_data(call, tmp_path, args):
    (tmp_path / "data").mkdir()
    for data in ([], ["--data", tmp_path / "nowhere"], ["--data", tmp_path / "data"]):
        status, _, message = call(*args, *data, "--out", tmp_path / "out")
        assert status == 2 and "Traceback" not in message
        assert (
            "github.com/zae-bayern/elpv-dataset" in message
            and "Expected in elpv/:\nlabels.csv\nimages/cell0001.png" in message
        )
        if data:
            assert str(data[1]) in message
    assert not (tmp_path / "out").exists()


def test_a_crash_is_no_answer(call, monkeypatch):
    "1 is an answer of some commands, and what Python ends with by itself"

    def crash(*args):
        raise RuntimeError("out of luck")

    monkeypatch.setattr("dra_nb.cli.detector_commands.open_detector", crash)
    open("a.png", "w").close()
    status, _, err = call("score", "model", "a.png")
    assert status == 2 and "Traceback" in err and "RuntimeError: out of luck" in err


@pytest.mark.slow
def test_real_process_refuses(tmp_path):
    message = refused(dra_nb("run", "textures", "--category", "weav", "--out", tmp_path / "out"))
    assert "Did you mean 'weave'?" in message and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_run_on_the_textures(call, tmp_path):
    args = (
        "run",
        "textures",
        "--category",
        "weave",
        "--method",
        "devnet",
        "--out",
        tmp_path / "out",
        "--save",
        tmp_path / "m" / "model.safetensors",
    )
    metrics = json.loads(succeeded(dra_nb(*args, cwd=tmp_path)).stdout)
    files = sorted((tmp_path / "out").rglob("*.*"))
    assert files == [tmp_path / "out" / "smoke" / "runs" / f"{metrics['key']}.{kind}" for kind in ("json", "parquet")]
    assert metrics["n_normal"] == 40 and metrics["n_seen"] + metrics["n_unseen"] == 90 and 0 < metrics["auroc"] < 1

    times = [f.stat().st_mtime_ns for f in files]
    status, again, _ = call(*args[:-2])
    assert status == 0 and json.loads(again) == metrics
    assert [f.stat().st_mtime_ns for f in files] == times

    from dra_nb.data.datasets import load_catalog
    from dra_nb.data.store import open_store
    from dra_nb.evaluation.scoring import score
    from dra_nb.experiments.profiles import PROFILES
    from dra_nb.methods.io import load_method
    from dra_nb.training.compute import Compute

    record, table = json.loads(files[0].read_text()), pd.read_parquet(files[1])
    catalog = load_catalog("textures")
    rows = [i for i, p in enumerate(catalog.path) if p.removeprefix(catalog.attrs["root"] + "/") in set(table.path)]
    predicted = score(
        load_method(tmp_path / "m" / "model.safetensors"),
        open_store(catalog, PROFILES["smoke"].image_size, progress=False),
        rows,
        compute=Compute("cpu", record["provenance"]["precision"]),
    )
    assert len(rows) == len(table) == 130 and table.score.std() > 0
    np.testing.assert_allclose(predicted.score, table.score, rtol=1e-3, atol=1e-3)


def test_settings_and_known_class_reach_the_run(call, tmp_path, monkeypatch):
    from dra_nb.experiments import profiles

    monkeypatch.setitem(
        profiles.PROFILES, "smoke", replace(profiles.PROFILES["smoke"], **UNTRAINED, epochs=1, steps=2, batch=6)
    )
    mvtec_folder(tmp_path / "data" / "mine")
    status, out, _ = call(
        "run",
        "mine",
        "--data",
        tmp_path / "data",
        "--known-class",
        "DENT",
        "--shots",
        1,
        "--seed",
        3,
        "--out",
        "out",
        "--setting",
        "n_reference=4",
        "--setting",
        "heads=('seen', 'residual')",
        "--setting",
        "preset=paper",
    )
    metrics = json.loads(out)
    spec = json.loads((tmp_path / "out" / "smoke" / "runs" / f"{metrics['key']}.json").read_text())["spec"]
    assert status == 0 and (spec["protocol"], spec["shots"], spec["seed"]) == ("hard", 1, 3)
    assert (
        spec["settings"] == {"n_reference": 4, "heads": ["seen", "residual"], "preset": "paper"}
        and spec["schedule"]["decay_every"] == 0
    )
    table = pd.read_parquet(tmp_path / "out" / "smoke" / "runs" / f"{metrics['key']}.parquet")
    assert set(table.defect) == {"", "scratch"} and not table.seen.any()  # the known class leaves the test set
    assert {"score_seen", "score_residual"} < set(table) and "score_pseudo" not in table
    assert metrics["auroc_seen"] is None and metrics["auroc"] == metrics["auroc_unseen"]
    np.testing.assert_allclose(table.score, table.score_seen + table.score_residual, rtol=1e-2)


def test_plan_and_status(call, tmp_path, monkeypatch):
    from dra_nb.experiments import grids, profiles
    from dra_nb.experiments.locks import claimed
    from dra_nb.experiments.record_writing import write_failure
    from dra_nb.experiments.records import Runs

    monkeypatch.setitem(
        profiles.PROFILES, "smoke", replace(profiles.PROFILES["smoke"], **UNTRAINED, epochs=1, steps=2, batch=6)
    )
    mvtec_folder(tmp_path / "data" / "mine")
    only = ("--data", "data", "--dataset", "mine", "--method", "devnet", "--shots", 1, "--out", "out")
    status, out, _ = call("plan", "table1", "table2", *only)
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith("table")}
    assert status == 0 and lines == {"table1": ["1", "0", "0", "0", "1", "0"], "table2": ["2", "0", "0", "0", "2", "0"]}
    assert "together 3 different runs" in out and "no measured runs yet" in out and not (tmp_path / "out").exists()
    status, _, err = call("status", "--out", "out")
    assert status == 2 and "nothing was run at profile smoke yet" in err

    first, second, third = grids.plan(
        "table1", "smoke", "data", datasets=["mine"], methods=["devnet"], shots=[1], seeds=[0, 1, 2], out="out"
    ).specs
    assert call("run", "mine", "--data", "data", "--method", "devnet", "--shots", 1, "--out", "out")[0] == 0
    runs = Runs(tmp_path / "out" / "smoke" / "runs")
    write_failure(runs, third, RuntimeError("out of memory"), 2)
    with claimed(runs.path(second, "claim")):
        status, out, _ = call("status", "--out", "out")
    assert (
        status == 0
        and "1 runs done" in out
        and "1 running, 1 failed" in out
        and f"running: {second.key}" in out
        and "2 attempt(s): RuntimeError: out of memory" in out
    )
    assert f"process {__import__('os').getpid()}" in out and "seed 2" in out
    lines = {
        line.split()[0]: line.split()[1:]
        for line in call("plan", "table1", *only, "--seed", 0, "--seed", 1, "--seed", 2)[1].splitlines()
    }
    assert lines["table1"] == ["3", "1", "0", "1", "1", "0"]
    status, out, _ = call("runs", "ls", "--out", "out")
    assert status == 0 and first.key in out and "devnet" in out
    assert call("runs", "rm", first.key, "--out", "out")[0] == 0 and not runs.done(first)


@pytest.mark.slow
def test_a_whole_paper_is_planned_without_data_or_weights(call, tmp_path):
    (tmp_path / "data").mkdir()
    status, out, _ = call("plan", "all", "--profile", "paper", "--data", "data")
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line[:1].isalpha()}
    assert status == 0 and lines["table1"] == ["0"] * 5 + [
        str(23 * 3 * (2 * 5 + 2))
    ]  # rows x seeds x (five methods at two numbers of shots, two from normals alone)
    assert (
        lines["table4"][-1] == str(17 * 3 * 5)
        and lines["c3"][-1] == str(3 * (20 + 5))
        and "MVTec AD is missing" in out
        and "LAG is missing" in out
    )
    status, _, err = call("reproduce", "table1", "--profile", "paper", "--data", "data")
    assert status == 2 and "nothing to run" in err and not (tmp_path / "outputs").exists()


def pretend_to_fail(monkeypatch):
    "Every run fails; the specs of those that were asked for"
    from dra_nb.experiments import study
    from dra_nb.experiments.progress import RunCounts
    from dra_nb.experiments.record_writing import write_failure

    seen = []

    def pretended(specs, context, runs, **how):
        seen.extend(specs)
        write_failure(runs, specs[0], ValueError("the loss of head 'deviation' is nan"), attempts=1)
        return RunCounts(failed=1)

    monkeypatch.setattr(study, "run_missing", pretended)
    return seen


def test_a_run_that_fails_says_why(call, monkeypatch):
    seen = pretend_to_fail(monkeypatch)
    status, out, err = call(
        "run", "textures", "--method", "devnet", "--backbone", "resnet18_stage2", "--weights", "none"
    )
    assert status == 2 and not out and "failed: ValueError: the loss of head 'deviation' is nan" in err
    assert [spec.backbone for spec in seen] == ["resnet18_stage2"]


@pytest.mark.parametrize("failed", [0, 3])
def test_a_study_with_failed_runs_is_drawn_and_ends_with_1(call, monkeypatch, failed):
    from dra_nb.cli import study_commands

    drawn = []
    monkeypatch.setattr(study_commands, "run_studies", lambda *args, **how: failed)
    monkeypatch.setattr(study_commands, "draw_studies", lambda studies, *args: drawn.extend(studies))
    assert call("reproduce", "table1", "--profile", "smoke")[0] == min(failed, 1)
    assert [study.artefact.name for study in drawn] == ["table1"]


def test_status_names_a_record_that_cannot_be_read(call, tmp_path):
    runs = tmp_path / "outputs" / "smoke" / "runs"
    runs.mkdir(parents=True)
    (runs / "0123456789abcdef.json").write_text("{")
    status, out, _ = call("status", "--profile", "smoke")
    assert (
        status == 0
        and "0 runs done" in out
        and "not readable: 0123456789abcdef: record" in out
        and "ends too early" in out
    )


def test_a_place_for_scores_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    import os

    from dra_nb.cli import score_files
    from dra_nb.core import DraError
    from dra_nb.evaluation.heat_scale import HeatScale

    monkeypatch.setattr(os, "access", lambda *args: False)
    with pytest.raises(DraError, match=f"{tmp_path} cannot be written to; pass another"):
        score_files.check_writable(tmp_path / "scores.csv")
    (tmp_path / "file").touch()
    score_files.write_legend(HeatScale(0.0, 1.0, 0.5, 3), tmp_path / "file" / "legend.png")
    assert "no legend of the overlays: " in capsys.readouterr().err


def test_a_notebook_that_cannot_be_written(tmp_path, monkeypatch):
    import papermill

    from dra_nb.cli import paper_notebooks
    from dra_nb.core import DraError

    def full(*args, **how):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(papermill, "execute_notebook", full)
    with pytest.raises(DraError, match="table1.ipynb cannot be written .No space left on device.; make room"):
        paper_notebooks.run_notebook("table1_general", tmp_path / "table1.ipynb", profile="smoke")
