"Verifying a folder of records: what is damaged is named, and what processes leave behind goes."

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from made_up_records import SEEN_ONLY, change, command_on, long_ago, table, two_runs, with_features

from dra_nb.core import DraError
from dra_nb.experiments.left_overs import remove_left_overs, remove_run
from dra_nb.experiments.locks import claimed
from dra_nb.experiments.overview import list_failures, list_records, results_table
from dra_nb.experiments.record_writing import write_failure, write_features
from dra_nb.experiments.records import Runs
from dra_nb.experiments.spec import RunSpec, spec_from_dict
from dra_nb.experiments.verify import verify


@pytest.fixture
def runs(tmp_path):
    return two_runs(tmp_path)


@pytest.fixture
def call(runs, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    return command_on(runs)


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def rewrite(path, **columns):
    pd.read_parquet(path).assign(**columns).to_parquet(path, index=False)


def digest(runs, key):
    "Sign the scores that are there now, as one would who knows how"
    change(
        runs.path(key),
        lambda r: r.update(scores_sha256=hashlib.sha256(runs.path(key, "parquet").read_bytes()).hexdigest()),
    )


def fewer(runs, key):
    pd.read_parquet(runs.path(key, "parquet")).iloc[1:].to_parquet(runs.path(key, "parquet"), index=False)
    digest(runs, key)


def otherwise(runs, key, **columns):
    rewrite(runs.path(key, "parquet"), **columns)
    digest(runs, key)


def nested(n):
    return [nested(n - 1)] if n else []


DAMAGE = {  # what is done -> the kinds that verify finds
    "json cut": (lambda r, k: cut(r.path(k)), ["truncated"]),
    "json empty": (lambda r, k: r.path(k).write_text(""), ["truncated"]),
    "json cut behind a brace": (lambda r, k: r.path(k).write_text('{"spec": {}'), ["truncated"]),
    "json of zeros": (lambda r, k: r.path(k).write_bytes(bytes(2000)), ["not JSON"]),
    "json is prose": (lambda r, k: r.path(k).write_text("see the other folder"), ["not JSON"]),
    "json is a list": (lambda r, k: r.path(k).write_text("[]"), ["not JSON"]),
    "json nested without end": (lambda r, k: r.path(k).write_text('{"a":' * 10**5 + "1" + "}" * 10**5), ["not JSON"]),
    "json nested too deep": (
        lambda r, k: change(r.path(k), lambda x: x["provenance"].update(a=nested(100))),
        ["not JSON"],
    ),
    "json too large": (lambda r, k: os.truncate(r.path(k), 10**9), ["not readable"]),
    "json is a folder": (lambda r, k: (r.path(k).unlink(), r.path(k).mkdir()), ["not readable"]),
    "json is a pipe": (lambda r, k: (r.path(k).unlink(), os.mkfifo(r.path(k))), ["not readable"]),
    "metric edited": (
        lambda r, k: change(r.path(k), lambda x: x["metrics"].update(auroc=0.99), resign=False),
        ["edited"],
    ),
    "provenance edited": (
        lambda r, k: change(r.path(k), lambda x: x["provenance"].update(device="abacus"), resign=False),
        ["edited"],
    ),
    "metric edited and signed": (
        lambda r, k: change(r.path(k), lambda x: x["metrics"].update(auroc=0.99)),
        ["metrics"],
    ),
    "metric gone": (lambda r, k: change(r.path(k), lambda x: x["metrics"].pop("auroc") and None), ["metrics"]),
    "counts edited and signed": (lambda r, k: change(r.path(k), lambda x: x["metrics"].update(n_normal=31)), ["rows"]),
    "spec edited and signed": (lambda r, k: change(r.path(k), lambda x: x["spec"].update(shots=1)), ["key"]),
    "spec with an unknown field": (lambda r, k: change(r.path(k), lambda x: x["spec"].update(moon="full")), ["key"]),
    "json renamed": (lambda r, k: [r.path(k, e).rename(r.path("0" * 16, e)) for e in ("json", "parquet")], ["key"]),
    "no metrics": (lambda r, k: change(r.path(k), lambda x: x.pop("metrics") and None), ["edited"]),
    "scores gone": (lambda r, k: r.path(k, "parquet").unlink(), ["scores missing"]),
    "scores cut": (lambda r, k: cut(r.path(k, "parquet")), ["truncated"]),
    "scores edited": (lambda r, k: rewrite(r.path(k, "parquet"), score=0.5), ["edited"]),
    "scores edited and signed": (lambda r, k: otherwise(r, k, score=np.linspace(0, 1, 60)), ["metrics"]),
    "a row gone, signed": (fewer, ["rows", "metrics"]),
    "scores not finite, signed": (lambda r, k: otherwise(r, k, score=np.nan), ["metrics"]),
    "scores are text, signed": (lambda r, k: otherwise(r, k, score="high"), ["corrupt"]),
    "labels of another kind, signed": (lambda r, k: otherwise(r, k, label=7), ["corrupt"]),
    "scores are no parquet, signed": (
        lambda r, k: (r.path(k, "parquet").write_bytes(b"PAR1 and more PAR1"), digest(r, k)),
        ["corrupt"],
    ),
    "features of other images": (
        lambda r, k: write_features(r, spec_from_dict(r.read(k).spec), with_features(table(3, 29))),
        ["rows"],
    ),
    "features of another run": (
        lambda r, k: (
            write_features(r, RunSpec("x"), with_features(table())),
            r.path(RunSpec("x"), "features.parquet").rename(r.path(k, "features.parquet")),
        ),
        ["key"],
    ),
    "failure beside a record": (
        lambda r, k: write_failure(r, spec_from_dict(r.read(k).spec), ValueError()),
        ["left over"],
    ),
    "checkpoint beside a record": (lambda r, k: r.path(k, "ckpt").write_bytes(b""), ["left over"]),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_verify(runs, call, what):
    damage, kinds = DAMAGE[what]
    key = RunSpec("elpv", seed=0, settings=SEEN_ONLY).key
    damage(runs, key)
    found, key = verify(runs), "0" * 16 if "renamed" in what else key
    assert sorted(f.kind for f in found) == sorted(kinds) and all(f.file.startswith(key) for f in found), found
    status, out = call("verify")
    assert status == 1 and all(f"{f.file}: {f.kind}: " in out for f in found)
    call("ls")  # lists what can be listed
    if kinds == ["left over"]:
        assert call("verify", "--sweep")[0] == 0
    else:
        if "folder" in what:
            runs.path(key).rmdir()
        call("rm", key)
        assert call("verify")[0] == 0 and len(runs.keys()) == 1


def dead():
    "The number of a process that is gone"
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_what_processes_leave(runs):
    key, gone = runs.keys()[0], dead()

    def part(pid, old=True):
        path = runs.folder / f".{key}.json.{pid}.part"
        path.write_text("{")
        if old:
            long_ago(path)
        return path

    living, fresh, left = part(os.getpid()), part(f"{gone}0000"), part(gone)  # a number this large is no process
    fresh.touch()
    assert [f.file for f in verify(runs)] == [left.name] == remove_left_overs(runs)
    assert living.exists() and fresh.exists() and not left.exists()
    other = RunSpec("elpv", seed=9)
    runs.path(other, "parquet").write_bytes(b"")
    long_ago(runs.path(other, "parquet"))
    runs.path(other, "ckpt").write_bytes(b"")
    long_ago(runs.path(other, "ckpt"))  # of a run that will be continued
    with claimed(runs.path(other, "claim")):
        assert verify(runs) == [] == remove_left_overs(runs)
        with pytest.raises(DraError, match="is being computed just now"):
            remove_run(runs, other.key)
        kept = runs.path(other, "claim").read_text()
    assert [f.file for f in verify(runs)] == [f"{other.key}.parquet"]
    runs.path(other, "claim").write_text(json.dumps(json.loads(kept) | dict(pid=gone)))
    assert [f.file for f in verify(runs)] == [f"{other.key}.claim", f"{other.key}.parquet"]
    assert (
        sorted(remove_left_overs(runs)) == [f"{other.key}.claim", f"{other.key}.parquet"]
        and verify(runs) == []
        and runs.path(other, "ckpt").exists()
    )


def test_a_folder_that_is_not_there(tmp_path):
    runs = Runs(tmp_path / "none")
    assert (
        verify(runs) == [] == runs.keys() == remove_left_overs(runs)
        and list_records(runs).empty
        and list_failures(runs).empty
        and results_table(runs, [RunSpec("x")]).empty
    )
    assert not runs.folder.exists()
