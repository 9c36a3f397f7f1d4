"Fuzzing records: whatever lies in a folder of runs, a reader gives a value or a DraError."

import json
from dataclasses import asdict

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_up_records import ORIGIN, SEEN_ONLY, change, table, with_features, write
from mutations import edits, structures
from typer.testing import CliRunner

from dra_nb.cli.record_commands import runs_app
from dra_nb.core import DraError
from dra_nb.experiments.compare import compare_records
from dra_nb.experiments.export import export_records
from dra_nb.experiments.overview import list_failures, list_records, results_table
from dra_nb.experiments.record_files import checksum
from dra_nb.experiments.record_writing import write_failure, write_features
from dra_nb.experiments.records import Runs
from dra_nb.experiments.spec import RunSpec, spec_from_dict
from dra_nb.experiments.verify import verify

pytestmark = pytest.mark.slow


def fuzz(n):
    return settings(
        max_examples=n, deadline=10_000, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )


SPEC = RunSpec("elpv", settings=SEEN_ONLY)
BEFORE = {}  # one folder for all cases


def folder(tmp_path_factory):
    "The folder of all cases with one whole record, as it was before the case"
    if not BEFORE:
        runs = BEFORE["runs"] = Runs(tmp_path_factory.mktemp("fuzz"))
        write(runs, SPEC, table(n=6))
        write_features(runs, SPEC, with_features(table(n=6)))
        write_failure(runs, SPEC, ValueError("x"), 2)
        BEFORE.update(
            {
                kind: runs.path(SPEC, kind).read_bytes()
                for kind in ("json", "parquet", "features.parquet", "failed.json")
            }
        )
    for kind in ("json", "parquet", "features.parquet"):
        BEFORE["runs"].path(SPEC, kind).write_bytes(BEFORE[kind])
    BEFORE["runs"].path(SPEC, "failed.json").unlink(missing_ok=True)
    return BEFORE["runs"]


def survives(*calls):
    "Every call gives a value or a DraError"
    for c in calls:
        try:
            c()
        except DraError as e:
            assert str(e)


def command(runs, *args):
    "The command on the folder of all cases"
    error = CliRunner().invoke(runs_app, [*args, "--runs", str(runs.folder)]).exception
    if error is not None and not isinstance(error, SystemExit):
        raise error


ACTIONS = {  # what is done with a folder whose record is accepted; every case does two of them
    "verify": verify,
    "scores": lambda r: r.scores(SPEC),
    "diff": lambda r: compare_records(r, SPEC.key, SPEC.key),
    "export": lambda r: export_records(r, r.folder.parent / "export.parquet"),
    "export scores": lambda r: export_records(r, r.folder.parent / "export.parquet", images=True),
    "spec": lambda r: spec_from_dict(r.read(SPEC).spec).key,
    **{
        f"command {n}": lambda r, args=args: command(r, *args)
        for n, args in {
            "ls": ("ls",),
            "show": ("show", SPEC.key),
            "diff": ("diff", SPEC.key, SPEC.key),
            "verify": ("verify",),
        }.items()
    },
}
actions = st.permutations(sorted(ACTIONS)).map(lambda names: names[:2])


def everything(runs, names):
    "All that reads the JSON of a record; deeper readers only where that is accepted"
    survives(lambda: runs.read(SPEC), lambda: results_table(runs, [SPEC]), lambda: list_records(runs))
    try:
        runs.read(SPEC)
    except DraError:
        return
    survives(*(lambda name=name: ACTIONS[name](runs) for name in names))


WHOLE = json.dumps(
    dict(
        schema=1,
        key=SPEC.key,
        spec=asdict(SPEC),
        metrics=dict(auroc=0.5, ap=0.5, auroc_seen=None, n_normal=6),
        timing=dict(seconds=1.0),
        provenance=ORIGIN,
    ),
    indent=1,
).encode()


@fuzz(300)
@given(data=edits(WHOLE) | st.binary(max_size=60), names=actions)
def test_fuzz_record_bytes(tmp_path_factory, data, names):
    "Without a checksum, so that what can be parsed is not refused for that"
    runs = folder(tmp_path_factory)
    runs.path(SPEC).write_bytes(data)
    everything(runs, names)


@fuzz(250)
@given(data=st.data(), signed=st.booleans(), names=actions)
def test_fuzz_record_structure(tmp_path_factory, data, signed, names):
    runs = folder(tmp_path_factory)
    record = data.draw(structures(json.loads(BEFORE["json"])))
    if signed:
        record["record_sha256"] = checksum(record)
    else:
        record.pop("record_sha256", None)
    runs.path(SPEC).write_text(json.dumps(record))
    everything(runs, names)


@fuzz(150)
@given(data=st.data(), features=st.booleans())
def test_fuzz_parquet(tmp_path_factory, data, features):
    "With and without the checksum in the record: the library must meet the bytes too"
    runs = folder(tmp_path_factory)
    kind = "features.parquet" if features else "parquet"
    runs.path(SPEC, kind).write_bytes(data.draw(edits(BEFORE[kind]) | st.binary(max_size=60)))
    if data.draw(st.booleans()):
        change(runs.path(SPEC), lambda r: r.pop("scores_sha256") and None)
    survives(
        lambda: runs.scores(SPEC),
        lambda: runs.features(SPEC),
        lambda: ACTIONS[data.draw(st.sampled_from(["verify", "diff", "export scores", "command show"]))](runs),
    )


columns = st.sampled_from(["path", "label", "defect", "seen", "score", "score_seen", "score_new", "other"])
cells = st.sampled_from(
    [None, "x", "", 0, 1, 2.5, float("nan"), float("inf"), True, b"bytes", [1.0, 2.0], pd.Timestamp(0), 2**62]
)


@fuzz(60)
@given(
    column=columns, value=cells, rows=st.integers(0, 12), drop=columns | st.none(), index=st.booleans(), names=actions
)
def test_fuzz_tables(tmp_path_factory, column, value, rows, drop, index, names):
    "Well-formed parquet files that are no tables of scores"
    runs, t = folder(tmp_path_factory), table(n=6).iloc[:rows]
    t = t.assign(**{column: pd.Series([value] * len(t), index=t.index)})
    t.drop(columns=drop or [], errors="ignore").to_parquet(runs.path(SPEC, "parquet"), index=index)
    change(runs.path(SPEC), lambda r: r.pop("scores_sha256") and None)
    survives(lambda: runs.scores(SPEC))
    everything(runs, names)


@fuzz(100)
@given(data=st.data(), signed=st.booleans())
def test_fuzz_failures(tmp_path_factory, data, signed):
    runs = folder(tmp_path_factory)
    runs.path(SPEC).unlink()
    path = runs.path(SPEC, "failed.json")
    whole = BEFORE["failed.json"]
    if signed:
        record = data.draw(structures(json.loads(whole)))
        path.write_text(json.dumps(record | dict(record_sha256=checksum(record))))
    else:
        path.write_bytes(data.draw(edits(whole) | st.binary(max_size=60)))
    survives(
        lambda: runs.failure(SPEC),
        lambda: list_failures(runs),
        lambda: command(runs, *data.draw(st.sampled_from([("ls", "--failed"), ("show", SPEC.key), ("verify",)]))),
    )
