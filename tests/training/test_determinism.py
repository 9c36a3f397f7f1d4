"The same spec gives the same scores: in another process, beside other runs, and in another order."

from pathlib import Path

import pandas as pd
import pytest
from conftest import mvtec_folder, python, succeeded

pytestmark = pytest.mark.slow

CODE = """
import os, sys
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # two workers then have one thread each
sys.path.insert(0, sys.argv[1])
from conftest import short_spec
from dra_nb.experiments.context import RunContext
from dra_nb.experiments.executors import ExecutorOptions
from dra_nb.experiments.study import run_missing
from dra_nb.experiments.records import Runs
from dra_nb.training.compute import Compute
specs = [short_spec("mine", method=m, seed=s) for m, s in (("dra", 0), ("dra", 1), ("devnet", 0))]
if sys.argv[5] == "reversed": specs = specs[::-1]
context = RunContext(sys.argv[2], compute=Compute(precision=sys.argv[6]))
executor = ExecutorOptions(workers=int(sys.argv[4]))
print(run_missing(specs, context, Runs(sys.argv[3]), progress=False, executor=executor))
print([s.key for s in specs])
"""


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    "Scores of three runs, made in three ways: {way: {file: table}}"
    tmp, here = tmp_path_factory.mktemp("same"), str(Path(__file__).parents[1])
    mvtec_folder(tmp / "mine")
    ways = {"first": (1, "", 1), "again": (1, "reversed", 2), "pool": (2, "", 3)}
    for name, (workers, order, hash_seed) in ways.items():
        done = succeeded(
            python(
                CODE,
                here,
                tmp,
                tmp / name,
                workers,
                order,
                "auto",
                PYTHONHASHSEED=hash_seed,
                DRA_NB_CACHE=tmp / f"cache-{name}",
            )
        )
        assert "RunCounts(done=3, skipped=0, failed=0, elsewhere=0)" in done.stdout
    return {name: {p.name: pd.read_parquet(p) for p in sorted((tmp / name).glob("*.parquet"))} for name in ways}


def test_tables_are_of_three_different_runs(tables):
    first = list(tables["first"].values())
    assert len(first) == 3
    for i in range(3):
        assert first[i].score.std() > 0
        assert not first[i].score.equals(first[i - 1].score)


@pytest.mark.parametrize("way", ["again", "pool"])
def test_same_scores(tables, way):
    assert list(tables[way]) == list(tables["first"])
    for name, table in tables["first"].items():
        pd.testing.assert_frame_equal(tables[way][name], table, check_exact=True)
