"Looking at records: list, show, compare, remove, export, as functions and as the command."

import json
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from made_up_records import ORIGIN, SEEN_ONLY, command_on, table, two_runs, with_features, write
from typer.testing import CliRunner

from dra_nb.cli.record_commands import runs_app
from dra_nb.core import DraError
from dra_nb.experiments.compare import compare_records
from dra_nb.experiments.export import export_records
from dra_nb.experiments.overview import list_records
from dra_nb.experiments.record_writing import write_failure, write_features
from dra_nb.experiments.records import Runs
from dra_nb.experiments.spec import RunSpec, spec_from_dict


@pytest.fixture
def runs(tmp_path):
    return two_runs(tmp_path)


@pytest.fixture
def call(runs, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    return command_on(runs)


def test_ls(runs, call):
    write(
        runs,
        RunSpec(
            "mvtec",
            "metal_nut",
            "hard",
            "scratch",
            1,
            method="devnet",
            settings={"heads": ["seen", "pseudo", "residual", "normality"], "n_reference": 10},
        ),
    )
    write(runs, RunSpec("bottle", "b", "cross_domain", source="a", shots=0))
    for path in runs.folder.glob("*.parquet"):
        path.write_bytes(b"lists do not read scores")
    frame = list_records(runs)
    assert list(frame.dataset) == ["bottle", "elpv", "elpv", "mvtec"] and list(frame.columns[[0, -1]]) == [
        "key",
        "commit",
    ]
    assert list(list_records(runs, dataset="elpv", seed=[1, 2]).seed) == [1] and list_records(runs, method="none").empty
    with pytest.raises(DraError, match="unknown field to select by 'metod'. Did you mean 'method'"):
        list_records(runs, metod="dra")
    status, out = call("ls")
    assert (
        status == 0
        and max(map(len, out.splitlines())) <= 120
        and "4 records" in out
        and "mvtec/metal_nut known=scratch" in out
        and "bottle/b from a" in out
    )
    assert "1 records" in call("ls", "--method", "devnet", "--shots", 1)[1]
    with pytest.raises(DraError, match="unknown method of the records 'devnt'. Did you mean 'devnet'"):
        call("ls", "--method", "devnt")
    runs.path(frame.key[0]).write_text("{")
    assert list(list_records(runs).attrs["unreadable"]) == [frame.key[0]] and len(list_records(runs)) == 3
    assert "not listed" in call("ls")[1]
    with pytest.raises(DraError, match="ends too early"):
        export_records(runs, runs.folder / "x.parquet")


def test_what_a_terminal_would_obey_is_not_printed(runs, call):
    spec = write(runs, RunSpec("evil\x1b[2J\n", method="\u202e", settings={"a": "\x07"}))
    write_failure(runs, RunSpec("\x1b[31m", seed=3), ValueError("\x1b[2J"))
    for args in (
        ("ls",),
        ("ls", "--failed"),
        ("show", spec.key),
        ("diff", spec.key, runs.keys()[0]),
        ("verify",),
        ("show", RunSpec("\x1b[31m", seed=3).key),
    ):
        out = call(*args)[1]
        assert not {"\x1b", "\u202e", "\x07"} & set(out)


def test_show(runs, call):
    key = runs.keys()[0]
    out = call("show", key[:6])[1]
    assert f"{key}\n" in out and "2 epochs, from" in out and "60 images" in out
    assert json.loads(call("show", key, "--json")[1]) == json.loads(runs.path(key).read_text())
    write_failure(runs, RunSpec("elpv", seed=8), MemoryError("out of memory"), 2)
    failed = RunSpec("elpv", seed=8).key
    assert "attempt 2: MemoryError: out of memory" in call("show", failed)[1]
    assert json.loads(call("show", failed, "--json")[1])["error"] == "MemoryError: out of memory"


def test_diff(runs, call, tmp_path):
    a, b = (RunSpec("elpv", seed=s, settings=SEEN_ONLY) for s in range(2))
    d = compare_records(runs, a.key, b.key[:8])
    assert d.fields[d.fields.part == "spec"][["field", "first", "second"]].to_numpy().tolist() == [["seed", 0, 1]]
    assert len(d.images) == 60 and np.allclose(
        np.sort(d.images.difference), np.sort(table(1).score - table(0).score, kind="stable"), atol=1e-6
    )
    there = Runs(tmp_path / "there")
    write(
        there,
        a,
        table(0)
        .iloc[:-3]
        .assign(score=lambda t: t.score + np.where(t.path == "images/001.png", np.float32(0.25), 0).astype("float32")),
    )
    d = compare_records(runs, a.key, a.key, there)
    assert (
        set(d.fields.part) == {"metrics"}
        and d.images.difference.isna().sum() == 3
        and sorted(d.images.difference.abs())[-5:-3] == pytest.approx([0.25] * 2, abs=1e-6)
    )
    out = call("diff", a.key, a.key, "--other", there.folder)[1]
    assert "57 images in both, 3 only in the first, 0 only in the second" in out and out.count("images/001.png") == 2
    elsewhere = Runs(tmp_path / "elsewhere")
    write(elsewhere, a, table(0).assign(path=lambda t: "other/" + t.path))
    out = call("diff", a.key, a.key, "--other", elsewhere.folder)[1]
    assert "0 images in both, 60 only in the first, 60 only in the second" in out and "rank correlation" not in out
    assert "the records are equal" in (out := call("diff", a.key, a.key)[1]) and "equal to the last digit" in out


def test_rm(runs, call):
    spec = RunSpec("elpv", seed=0, settings=SEEN_ONLY)
    write_features(runs, spec, with_features(table()))
    runs.path(spec, "ckpt").write_bytes(b"")
    (runs.folder / "notes.txt").write_text("mine")
    files = sorted(p.name for p in runs.folder.iterdir())
    with pytest.raises(DraError, match="is the beginning of 3 keys"):
        runs.path(f"{spec.key[:4]}{'0' * 12}", "failed.json").write_text("{}")
        runs.path(f"{spec.key[:4]}{'1' * 12}", "failed.json").write_text("{}")
        call("rm", spec.key[:4])
    for digit in "01":
        call("rm", spec.key[:4] + digit * 12)
    with pytest.raises(DraError, match="no run in .* has a key that starts with 'zz'"):
        call("rm", spec.key, "zz")
    out = call("rm", spec.key[:10], "--dry-run")[1]
    assert sorted(p.name for p in runs.folder.iterdir()) == files and out.count("would remove") == 4
    out = call("rm", spec.key[:10])[1].splitlines()
    assert (
        out[0].endswith(f"{spec.key}.json")
        and {p.name for p in runs.folder.iterdir()} == set(files) - {line.split("/")[-1] for line in out}
        and len(out) == 4
    )
    assert len(runs.keys()) == 1 and (runs.folder / "notes.txt").exists()


def test_export(runs, call, tmp_path):
    write(
        runs,
        RunSpec("brainmri", method="devnet"),
        table(5).drop(columns=["score_pseudo"]).assign(score_other=np.float32(1)),
    )
    assert (
        "3 rows (runs)" in call("export", tmp_path / "a" / "runs.parquet")[1]
        and "60 rows (test images)" in call("export", tmp_path / "one.parquet", "--scores", "--dataset", "brainmri")[1]
    )
    flat = pd.read_parquet(tmp_path / "a" / "runs.parquet").set_index("key")
    for key in list(runs.keys()):
        record = runs.read(key)
        assert (
            spec_from_dict(
                {
                    k: flat.loc[key, k].item() if hasattr(flat.loc[key, k], "item") else flat.loc[key, k]
                    for k in asdict(RunSpec(""))
                    if k not in ("settings", "schedule")
                }
                | dict(
                    settings=json.loads(flat.loc[key, "settings"]),
                    schedule={k: type(v)(flat.loc[key, f"schedule_{k}"]) for k, v in record.spec["schedule"].items()},
                )
            ).key
            == key
        )
        assert (
            flat.loc[key, "auroc"] == record.metrics["auroc"]
            and flat.loc[key, "timing_seconds"] == 12.5
            and json.loads(flat.loc[key, "provenance_losses"]) == ORIGIN["losses"]
        )
    assert export_records(runs, tmp_path / "scores.parquet", images=True) == 180
    rows = pd.read_parquet(tmp_path / "scores.parquet")
    for key, part in rows.groupby("key"):
        scores = runs.scores(key).astype({c: float for c in runs.scores(key) if c.startswith("score")})
        pd.testing.assert_frame_equal(part[list(scores)].reset_index(drop=True), scores)
        assert part[["score_other", "score_pseudo"]].isna().all().sum() == 1
    with pytest.raises(DraError, match="cannot be written"):
        export_records(runs, runs.folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(DraError, match="cannot be written"):
        export_records(runs, tmp_path / "file" / "x.parquet")
    with pytest.raises(DraError, match="no record to export"):
        export_records(Runs(tmp_path / "none"), tmp_path / "x.parquet")
    assert not [p for p in tmp_path.rglob("*.part")]


def test_command_without_records(call, tmp_path):
    for args, message in (
        (["ls", "--out", str(tmp_path)], "no folder of records .*smoke/runs; pass the --out and --profile"),
        (["verify", "--profile", "cup"], "unknown profile 'cup'. Did you mean 'cpu'"),
    ):
        with pytest.raises(DraError, match=message):
            CliRunner().invoke(runs_app, args, catch_exceptions=False)
    (tmp_path / "smoke").mkdir()
    (tmp_path / "smoke" / "runs").mkdir()
    result = CliRunner().invoke(runs_app, ["verify", "--out", str(tmp_path)])
    assert result.exit_code == 0 and "0 records" in result.output
