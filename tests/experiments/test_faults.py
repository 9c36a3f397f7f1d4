"""A run that dies at any point of its life, and disks that are full at any of its writes.

Nothing half-written counts, and the same command finishes the rest to the same bits."""

import errno
import os
import resource
import shutil
import signal
from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import mvtec_folder
from forking import specs
from matplotlib.figure import Figure
from processes import forking

from dra_nb.core import DraError
from dra_nb.experiments.export import export_records
from dra_nb.experiments.locks import holder
from dra_nb.experiments.published import published
from dra_nb.experiments.records import Runs
from dra_nb.experiments.verify import verify
from dra_nb.methods.io import save_method
from dra_nb.methods.registry import create_method
from dra_nb.reporting.cells import compare_runs
from dra_nb.reporting.figures import save_figure
from dra_nb.reporting.page import write_page
from dra_nb.reporting.results_table import write_table

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")]
KINDS = ("json", "parquet", "features.parquet")


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    "Do a job in a forked child of a process that has everything imported, see forking.py"
    home = tmp_path_factory.mktemp("faults")
    mvtec_folder(home / "data" / "mine", n_train=12, n_test=4, classes={"scratch": 6, "dent": 6}, size=32)
    with forking(home / "data", home / "cache") as do:
        yield do


@pytest.fixture(scope="module")
def undisturbed(forks, tmp_path_factory):
    "Runs of two seeds that nothing has disturbed"
    home = tmp_path_factory.mktemp("undisturbed")
    done = forks(home / "run", "study", data=forks.data, out=str(home / "runs"))
    assert done.status == 0 and done.result == dict(done=2, skipped=0, failed=0, elsewhere=0, steps=12), done
    return Runs(home / "runs")


@pytest.fixture
def started(undisturbed, tmp_path):
    "A folder in which the first of the two runs is done"
    (tmp_path / "runs").mkdir()
    for kind in KINDS:
        shutil.copy(undisturbed.path(specs([0])[0], kind), tmp_path / "runs")
    return Runs(tmp_path / "runs")


def snapshot(runs, spec):
    return [(runs.path(spec, k).read_bytes(), runs.path(spec, k).stat().st_mtime_ns) for k in KINDS]


def equal_to(runs, other):
    "Are both runs there, to the last bit, and nothing else?"
    assert sorted(p.name for p in runs.folder.iterdir() if p.name != ".claims.lock") == sorted(
        other.path(s, k).name for s in specs([0, 1]) for k in KINDS
    )
    assert verify(runs) == []
    for s in specs([0, 1]):
        assert (
            runs.read(s).metrics == other.read(s).metrics and runs.read(s).scores_sha256 == other.read(s).scores_sha256
        )
        for k in KINDS[1:]:
            assert runs.path(s, k).read_bytes() == other.path(s, k).read_bytes()


# ---- deaths

STUDY = "dra_nb.experiments.study:"
RUN = "dra_nb.experiments.execution:"


def renamed(kind, when, n=1):
    return dict(where="os:replace", only=kind, n=n, when=when)


POINTS = {  # what happens where, and how many of the six training steps are left for the next process
    "while decoding": (dict(where="dra_nb.data.store:decode_file", n=5), 6),
    "before the claim": (dict(where=STUDY + "claimed"), 6),
    "the claim created, not written": (dict(where="dra_nb.experiments.locks:_here"), 6),
    "claimed, nothing begun": (dict(where=STUDY + "execute"), 6),
    "the method created": (
        dict(where=RUN + "create_method", n=2, when="after"),
        6,
    ),  # the first one is made to check the settings
    "in the first epoch": (dict(where="dra_nb.data.samplers:BalancedSampler.draw", n=2), 6),
    "half of the first checkpoint": (dict(where="dra_nb.training.checkpoint:save_file", when="half"), 6),
    "the first checkpoint not renamed": (renamed(".ckpt", "before"), 6),
    "a checkpoint there": (renamed(".ckpt", "after"), 4),
    "in the second epoch": (dict(where="dra_nb.data.samplers:BalancedSampler.draw", n=4), 4),
    "half of the second checkpoint": (dict(where="dra_nb.training.checkpoint:save_file", n=2, when="half"), 4),
    "trained": (dict(where=RUN + "score"), 0),
    "in scoring": (dict(where="dra_nb.methods.dra:DRA.predict", when="after"), 0),
    "half of the features": (dict(where="pandas:DataFrame.to_parquet", when="half"), 0),
    "features not renamed": (renamed(".features.parquet", "before"), 0),
    "features there": (renamed(".features.parquet", "after"), 0),
    "half of the scores": (dict(where="pandas:DataFrame.to_parquet", n=2, when="half"), 0),
    "scores not renamed": (renamed(".parquet", "before", 2), 0),
    "scores there": (renamed(".parquet", "after", 2), 0),
    "half of the record": (dict(where="pathlib:Path.write_text", when="half"), 0),
    "record not renamed": (renamed(".json", "before"), 0),
    "record there": (renamed(".json", "after"), None),
    "checkpoint removed": (dict(where=RUN + "remove_checkpoint", when="after"), None),
    "claim given up": (dict(where="dra_nb.experiments.locks:release", when="after"), None),
}


@pytest.mark.parametrize("point", POINTS)
def test_death(forks, undisturbed, started, tmp_path, point):
    (at, left), (first, second) = POINTS[point], specs([0, 1])
    kept, how = snapshot(started, first), "exit" if len(point) % 2 else "kill"  # both kinds of sudden death
    cache = dict(cache=str(tmp_path / "cache")) if "decoding" in point else {}
    dead = forks(tmp_path / "first", "study", data=forks.data, out=str(started.folder), at=at | dict(how=how), **cache)
    assert dead.status == (9 if how == "exit" else -signal.SIGKILL), dead
    assert started.done(second) == (left is None) and {f.kind for f in verify(started)} <= {"left over"}
    claim = started.path(second, "claim")
    if claim.exists() and not claim.stat().st_size:
        os.utime(claim, (0, 0))  # else the next process waits, whether its writer still lives
    assert holder(claim) is None

    again = forks(tmp_path / "second", "study", data=forks.data, out=str(started.folder), **cache)
    assert again.status == 0, again.err
    assert again.result == dict(
        done=int(left is not None), skipped=1 + (left is None), failed=0, elsewhere=0, steps=left or 0
    )
    assert snapshot(started, first) == kept
    equal_to(started, undisturbed)
    if cache:
        assert len(list((tmp_path / "cache" / "images").glob("*.npy"))) == 1 and not list(
            (tmp_path / "cache" / "images").glob(".*.part")
        )


def test_many_deaths(forks, undisturbed, started, tmp_path):
    "One run that dies again and again, each time a little later"
    points = [
        "in the first epoch",
        "a checkpoint there",
        "half of the second checkpoint",
        "trained",
        "half of the scores",
        "scores there",
        "record not renamed",
    ]
    for point in points:
        assert forks(
            tmp_path / "first", "study", data=forks.data, out=str(started.folder), at=POINTS[point][0]
        ).status in (-signal.SIGKILL, 0)
    assert forks(tmp_path / "last", "study", data=forks.data, out=str(started.folder)).status == 0
    equal_to(started, undisturbed)


# ---- Ctrl-C and SIGTERM


@pytest.mark.parametrize("how", ["int", "term"])
def test_the_command_is_interrupted(forks, tmp_path, how):
    out, at = (
        tmp_path / "out" / "smoke",
        dict(where="dra_nb.data.samplers:BalancedSampler.draw", n=9, how=how),
    )  # in the second of two runs
    args = [
        "reproduce",
        "table1",
        "--dataset",
        "mine",
        "--method",
        "devnet",
        "--seed",
        "0",
        "--workers",
        "1",
        "--data",
        forks.data,
        "--out",
        str(out.parent),
    ]
    stopped = forks(tmp_path / "first", "command", args=args, at=at)
    assert (
        stopped.status == 130
        and stopped.err.splitlines()[-1] == "interrupted; what is finished is kept"
        and "Traceback" not in stopped.err
    )
    runs = Runs(out / "runs")
    (first,) = runs.keys()
    kept = runs.path(first).stat().st_mtime_ns
    assert {p.name for p in runs.folder.iterdir()} <= {f"{first}.json", f"{first}.parquet", ".claims.lock"} and not (
        out / "index.html"
    ).exists()
    done = forks(tmp_path / "second", "command", args=args)
    assert (
        done.status == 0
        and len(runs.keys()) == 2
        and runs.path(first).stat().st_mtime_ns == kept
        and (out / "index.html").is_file()
    )


# ---- full disks

FULL = "No space left on device"
WRITES = {  # what is being written when the disk is full
    "claim": dict(where="dra_nb.experiments.locks:_here"),
    "checkpoint": dict(where="dra_nb.training.checkpoint:save_file", when="half"),
    "features": dict(where="pandas:DataFrame.to_parquet", when="half"),
    "scores": dict(where="pandas:DataFrame.to_parquet", when="half", n=2),
    "record": dict(where="pathlib:Path.write_text", when="half"),
    "flush": dict(where="os:fsync"),
    "rename": renamed(".json", "before"),
}


@pytest.mark.parametrize("what", WRITES)
def test_full_disk(forks, undisturbed, started, tmp_path, what):
    "From some write on there is no room, neither for the second attempt nor for the note of the failure"
    first, second = specs([0, 1])
    kept = snapshot(started, first)
    full = forks(
        tmp_path / "first",
        "study",
        data=forks.data,
        out=str(started.folder),
        at=WRITES[what] | dict(how="full", each=True),
    )
    assert full.status == 0 and full.result["failed"] == 1 and full.result["done"] == 0, full
    last = full.err.splitlines()[-1]
    assert last.startswith(f"failed: {second}: ") and FULL in last and "Traceback" not in full.err
    assert not started.done(second) and verify(started) == [] and snapshot(started, first) == kept
    assert {p.name for p in started.folder.glob("*") if second.key in p.name and p.suffix != ".ckpt"} <= {
        started.path(second, k).name for k in (*KINDS[1:], "failed.json")
    }
    assert forks(tmp_path / "second", "study", data=forks.data, out=str(started.folder)).status == 0
    assert snapshot(started, first) == kept
    equal_to(started, undisturbed)


def test_a_disk_that_is_full_for_a_moment(forks, undisturbed, started, tmp_path):
    "The second attempt of the same command finds room"
    done = forks(
        tmp_path / "first", "study", data=forks.data, out=str(started.folder), at=WRITES["scores"] | dict(how="full")
    )
    assert (
        done.result["done"] == 1 and done.result["failed"] == 0 and "tried again later" in done.err and FULL in done.err
    )
    equal_to(started, undisturbed)


FIGURE = Figure()
CELLS = pd.DataFrame(
    dict(
        dataset="elpv",
        category="",
        known_class="",
        method="dra",
        shots=10,
        seed=[0, 1],
        auroc=[0.8, 0.9],
        ap=0.5,
        auroc_seen=0.9,
        auroc_unseen=0.7,
        comparable=True,
    )
)
WRITERS = {  # what else is written, and the file that is looked at
    "table": (lambda d: write_table(compare_runs(CELLS, CELLS, published("table1")), d, "t", "A table"), "t.csv"),
    "figure": (lambda d: save_figure(FIGURE, CELLS, d, "f"), "f.png"),
    "page": (write_page, "index.html"),
    "model": (
        lambda d: save_method(create_method("devnet", backbone="resnet18_stage2"), d / "m.safetensors"),
        "m.safetensors",
    ),
    "export": (lambda d: export_records(Runs(d / "runs"), d / "all.parquet"), "all.parquet"),
}


@pytest.mark.parametrize("how", ["no room", "limit", "flush"])
@pytest.mark.parametrize("what", WRITERS)
def test_full_disk_elsewhere(undisturbed, tmp_path, monkeypatch, what, how):
    "Tables, figures, pages and models: an error of our own that says so, the file before is kept, nothing else is left"
    write, name = WRITERS[what]
    shutil.copytree(undisturbed.folder, tmp_path / "runs")
    write(tmp_path)
    kept, files = (tmp_path / name).read_bytes(), sorted(tmp_path.rglob("*"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if how == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (40, limits[1]))
    else:
        monkeypatch.setattr(os, "fsync" if how == "flush" else "replace", full)
    try:
        with pytest.raises(DraError, match="cannot be written.*(No space left|File too large)"):
            write(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / name).read_bytes() == kept and sorted(tmp_path.rglob("*")) == files


def test_full_disk_at_the_end_of_the_command(forks, tmp_path):
    "The runs are done, the page cannot be written: a sentence, no traceback, and the same command goes on from there"
    args = [
        "reproduce",
        "table1",
        "--dataset",
        "mine",
        "--method",
        "devnet",
        "--seed",
        "0",
        "--workers",
        "1",
        "--data",
        forks.data,
        "--out",
        str(tmp_path / "out"),
    ]
    full = forks(
        tmp_path / "first",
        "command",
        args=args,
        at=dict(where="pathlib:Path.write_text", only=".index.html", when="half", how="full"),
    )
    assert (
        full.status == 2
        and "Traceback" not in full.err
        and FULL in full.err.splitlines()[-1]
        and "index.html cannot be written" in full.err
    )
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out" / "smoke" / "runs").glob("*.json")}
    assert (
        forks(tmp_path / "second", "command", args=args).status == 0
        and (tmp_path / "out" / "smoke" / "index.html").is_file()
    )
    assert (
        kept == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out" / "smoke" / "runs").glob("*.json")}
        and len(kept) == 2
    )


@pytest.mark.parametrize("free, checkpoint", [(0, 0), (1, 0), (3, 0), (4, 0), (8, 1)])
def test_a_small_disk(forks, undisturbed, started, tmp_path, free, checkpoint):
    "A real disk with so many free pages of 4 KiB, then with room"
    got = forks(
        tmp_path / "both",
        "full_disk",
        data=forks.data,
        out=str(started.folder),
        free=4096 * free,
        checkpoint=checkpoint,
    )
    if got.status and "PermissionError" in got.err:
        pytest.skip("this system lets only root mount a disk")
    assert got.status == 0, got.err
    first, second = (SimpleNamespace(**got.result[k]) for k in ("first", "second"))
    assert (
        first.status == 0
        and first.result["failed"] == 1
        and FULL in first.err.splitlines()[-1]
        and "Traceback" not in first.err
    )
    assert not [p for p in got.result["between"] if ".part" in p or p.endswith(".claim")]
    assert second.status == 0 and second.result["done"] == 1
    equal_to(started, undisturbed)


@pytest.mark.parametrize("limit, cold", [(3000, False), (20_000, False), (20_000, True)])
def test_files_of_limited_size(forks, undisturbed, started, tmp_path, limit, cold):
    "A quota: no file may be larger; it is reached by the record, the features, the decoded images"
    how = dict(data=forks.data, out=str(started.folder))
    done = forks(tmp_path / "first", "study", limit=limit, **how, **dict(cache=str(tmp_path / "cache")) if cold else {})
    if cold:
        assert (
            done.status == 1
            and "DraError: the decoded images cannot be written to" in done.err.splitlines()[-1]
            and not list((tmp_path / "cache").rglob("*.np*"))
        )
    else:
        assert done.status == 0 and done.result["failed"] == 1 and "File too large" in done.err.splitlines()[-1]
    assert not started.done(specs([1])[0]) and not list(started.folder.glob(".*.part"))
    assert forks(tmp_path / "second", "study", **how).status == 0
    equal_to(started, undisturbed)
