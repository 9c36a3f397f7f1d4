"Records: keys that never change, what is written comes back, and failures say what happened."

import json
import pickle
from dataclasses import replace

import pandas as pd
import pytest
from conftest import REPO
from made_up_records import REAL, SEEN_ONLY, change, command_on, long_ago, table, two_runs, with_features, write

from dra_nb.core import DraError
from dra_nb.evaluation.metrics import evaluate
from dra_nb.experiments import record_writing
from dra_nb.experiments.export import export_records
from dra_nb.experiments.failures import describe_error, error_traceback
from dra_nb.experiments.left_overs import remove_left_overs
from dra_nb.experiments.overview import list_failures, list_records, results_table
from dra_nb.experiments.record_files import Damaged, checksum
from dra_nb.experiments.record_writing import write_failure, write_features
from dra_nb.experiments.records import Runs
from dra_nb.experiments.spec import RunSpec, spec_from_dict
from dra_nb.experiments.verify import verify
from dra_nb.methods.schedule import Schedule


@pytest.fixture
def runs(tmp_path):
    return two_runs(tmp_path)


@pytest.fixture
def call(runs, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    return command_on(runs)


# ---- keys


def test_keys_never_change():
    assert RunSpec("elpv").key == "c31b4a489ba82f07"
    hard = RunSpec(
        "mvtec",
        "carpet",
        "hard",
        "hole",
        1,
        2,
        "devnet",
        {"heads": ("a", "b"), "x": 1.5},
        Schedule(epochs=3, lr=1e-3),
        224,
        "resnet18_stage2",
        "w-1",
    )
    assert hard.key == "a1cbbc3bb3ef26cd" and replace(hard, source="tile").key == "69b82a0bbb06ebc5"


def test_keys_of_the_committed_records():
    files = sorted(REAL.glob("[!.]*.json"))
    assert len(files) >= 144
    for f in files:
        assert spec_from_dict(json.loads(f.read_text())["spec"]).key == f.stem


def test_the_committed_records_are_whole():
    runs = Runs(REAL)
    assert verify(runs) == [] and len(list_records(runs)) == len(runs.keys()) >= 144


# ---- older and newer


def test_older_records_are_read(runs):
    key = RunSpec("elpv", seed=0, settings=SEEN_ONLY).key

    def age(record):
        for field in ("schema", "key", "provenance", "record_sha256", "scores_sha256"):
            del record[field]
        del record["spec"]["source"]

    change(runs.path(key), age, resign=False)
    assert "schema" not in json.loads(runs.path(key).read_text())
    assert (
        verify(runs) == []
        and len(runs.scores(key)) == 60
        and len(results_table(runs, [spec_from_dict(runs.read(key).spec)])) == 1
    )
    assert (
        list_records(runs).set_index("key").loc[key, "device"] == ""
        and export_records(runs, runs.folder.parent / "all.parquet") == 2
    )


def test_newer_records_are_refused(runs, call):
    key = runs.keys()[0]
    change(runs.path(key), lambda r: dict(schema=2, something="else"))
    for read in (runs.read, runs.scores):
        with pytest.raises(
            DraError, match=rf"{key}.json has schema 2, this version of dra_nb reads up to 1; upgrade dra_nb"
        ):
            read(key)
    status, out = call("verify")
    assert status == 1 and "newer" in out and "upgrade" in out


# ---- writing


def test_whats_written_comes_back(runs):
    spec = write(runs, RunSpec("elpv", seed=7, settings={"heads": ("seen",), "x": None, "é": "\u2028"}))
    record, raw = runs.read(spec), json.loads(runs.path(spec).read_text())
    assert (
        record == runs.read(spec.key)
        and record.metrics["auroc"] == evaluate(*(table(7)[c] for c in ("score", "label", "seen"))).auroc
    )
    assert spec_from_dict(record.spec).key == spec.key and raw["record_sha256"] == checksum(raw)
    pd.testing.assert_frame_equal(runs.scores(spec), table(7))
    assert results_table(runs, [spec, RunSpec("none")]).key.tolist() == [spec.key] and verify(runs) == []


def test_stopped_between_scores_and_record(runs, monkeypatch):
    "A run is repeated, its scores come out otherwise, and the process dies before it writes the record"
    spec = RunSpec("elpv", seed=0, settings=SEEN_ONLY)

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(record_writing, "write_json", die)
    with pytest.raises(KeyboardInterrupt):
        write(runs, spec)
    assert runs.done(spec) and verify(runs) == []  # the same scores: the old record still holds
    with pytest.raises(KeyboardInterrupt):
        write(runs, spec, table(99))
    assert not runs.done(spec) and verify(runs) == []
    long_ago(runs.path(spec, "parquet"))
    assert [f.kind for f in verify(runs)] == ["left over"] and remove_left_overs(runs) == [f"{spec.key}.parquet"]


def test_features(runs):
    spec = RunSpec("elpv", seed=0, settings=SEEN_ONLY)
    assert runs.done(spec) and not runs.done(spec, features=True)
    with pytest.raises(DraError, match="has no features"):
        runs.features(spec)
    with pytest.raises(DraError, match="has no column row, given, tested, features"):
        write_features(runs, spec, table())
    write_features(runs, spec, with_features(table(0)))
    assert runs.done(spec, features=True) and verify(runs) == []
    pd.testing.assert_frame_equal(runs.features(spec), with_features(table(0)))
    path = runs.path(spec, "features.parquet")
    data = bytearray(path.read_bytes())
    data[len(data) // 4] ^= 1  # one bit in a page of values
    path.write_bytes(data)
    with pytest.raises(DraError, match="features.parquet.*delete it"):
        runs.features(spec)


def test_failures(runs):
    spec = RunSpec("elpv", seed=5)

    def remote():
        try:
            raise RuntimeError(
                '\n"""\nTraceback:\n  File "/home/anna/env/lib/python3.11/site-packages/torch/nn/m.py", line 1, in f\n'
                'ValueError: /srv/anna/data/elpv/x.png\n"""'
            )
        except RuntimeError as e:
            raise MemoryError("out of memory in /srv/anna/data/elpv/x.png") from e

    try:
        remote()
    except MemoryError as e:
        write_failure(runs, spec, e, attempts=3)
    failure, text = runs.failure(spec), runs.path(spec, "failed.json").read_text()
    assert (
        failure.error == "MemoryError: out of memory in elpv/x.png"
        and failure.attempts == 3
        and spec_from_dict(failure.spec) == spec
    )
    assert (
        "anna" not in text
        and str(REPO) not in text
        and '  File "torch/nn/m.py", line 1, in f' in failure.traceback
        and "test_records.py" in text
    )
    assert failure.time[:2] == "20" and failure.provenance["python"] and not runs.done(spec) and verify(runs) == []
    assert list_failures(runs)[["key", "run", "attempts"]].to_numpy().tolist() == [[spec.key, str(spec), 3]]
    runs.path(spec, "failed.json").write_text(text[:100])
    with pytest.raises(DraError, match=r"failed.json ends too early; delete it"):
        runs.failure(spec)
    write(runs, spec)
    assert runs.failure(spec) is None and list_failures(runs).empty
    runs.path(spec, "failed.json").write_text(
        '{"schema": 1, "error": "E: e", "spec": {"dataset": "elpv"}}'
    )  # of the version before
    assert runs.failure(spec).attempts == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(error=7), "does not say what failed"),
        (dict(spec=[]), "does not say which run failed"),
        (dict(provenance="here"), "provenance that is not a JSON object"),
        (dict(attempts="two"), "attempts that are not a number"),
        (dict(time=1), "time that is not text"),
        (dict(traceback=[1]), "traceback that is not text"),
    ],
)
def test_a_failure_that_says_nonsense_is_named(runs, changes, message):
    spec = RunSpec("elpv", seed=5)
    write_failure(runs, spec, ValueError("no"), attempts=1)
    file = runs.path(spec, "failed.json")
    content = {k: v for k, v in json.loads(file.read_text()).items() if k != "record_sha256"}
    file.write_text(json.dumps(content | changes))
    with pytest.raises(DraError, match=f"failed.json.*{message}.*delete it"):
        runs.failure(spec)


class Mute(Exception):
    def __str__(self):
        raise OSError


def test_any_error_can_be_described():
    assert describe_error(Mute()) == "Mute"

    def deep(n):
        return deep(n + 1)

    try:
        deep(0)
    except RecursionError as e:
        assert len(error_traceback(e)) < 30
    assert len(error_traceback(ValueError("x\n" * 10**6))) <= 200


def test_errors_of_records_travel_between_processes(runs):
    key = runs.keys()[0]
    runs.path(key).write_text("{")
    with pytest.raises(Damaged) as error:
        runs.read(key)
    again = pickle.loads(pickle.dumps(error.value))
    assert (str(again), again.kind, again.file) == (str(error.value), "truncated", f"{key}.json")
