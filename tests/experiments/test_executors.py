"The local executor with real processes: killed workers, a killed study, a study that is asked to end."

import os
import signal
import threading
from functools import partial

import pandas as pd
import pytest
from conftest import mvtec_folder, serial_runs, short_spec
from pretend_runs import begun, holders, specs, study
from processes import alive, end_all, ended, start_python, until

from dra_nb.experiments.progress import RunCounts, study_status
from dra_nb.experiments.records import Runs

pytestmark = pytest.mark.slow


@pytest.fixture
def start():
    "Start Python in a process of its own; what a test leaves running is killed"
    started = []
    yield partial(start_python, started)
    end_all(started)


REAL = """
import os, sys
if hasattr(os, "sched_setaffinity"):  # so two workers have one thread each
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
from conftest import short_spec
from dra_nb.experiments.context import RunContext
from dra_nb.experiments.executors import ExecutorOptions
from dra_nb.experiments.study import run_missing
from dra_nb.experiments.records import Runs
specs = [short_spec("mine", seed=s) for s in range(4)]
print(run_missing(specs, RunContext(sys.argv[1]), Runs(sys.argv[2]), executor=ExecutorOptions(workers=2)))
"""


def test_a_killed_worker_is_replaced_and_nothing_differs_from_serial(tmp_path, start):
    mvtec_folder(tmp_path / "mine")
    plain, runs, todo = (
        Runs(tmp_path / "serial"),
        Runs(tmp_path / "local"),
        [short_spec("mine", seed=s) for s in range(4)],
    )
    serial_runs(tmp_path, plain.folder)
    process = start("-c", REAL, tmp_path, runs.folder)
    victim = until(lambda: holders(runs.folder))[0]
    os.kill(victim, signal.SIGKILL)
    done = ended(process)
    assert "RunCounts(done=4, skipped=0, failed=0, elsewhere=0)" in done.out
    assert "tried again later" in done.err and "killed by signal 9" in done.err
    assert "\r" not in done.err and done.err.splitlines()[-1] == "runs: 4 of 4 ended, 0 running, 0 failed"
    for s in todo:
        pd.testing.assert_frame_equal(runs.scores(s), plain.scores(s), check_exact=True)
        assert runs.read(s).metrics == plain.read(s).metrics and runs.failure(s) is None
    assert {p.suffix for p in runs.folder.glob("[!.]*")} == {".json", ".parquet"} and len(
        list(runs.folder.glob("*.json"))
    ) == 4


def test_a_run_that_kills_its_worker_each_time_is_given_up(tmp_path):
    runs, todo, got = Runs(tmp_path), specs(1), []
    thread = threading.Thread(target=lambda: got.append(study(tmp_path, todo, "local")))
    thread.start()
    for n in (1, 2):
        until(lambda n=n: len(begun(runs)) == n)
        os.kill(holders(tmp_path)[0], signal.SIGKILL)
    thread.join()
    assert got == [RunCounts(failed=1)] and begun(runs) == [0, 0]
    assert runs.failure(todo[0]).attempts == 2 and "killed by signal 9" in runs.failure(todo[0]).error


def test_workers_end_with_a_killed_study_and_the_next_one_finishes(tmp_path, start):
    runs = Runs(tmp_path)
    process = start("pretend_runs.py", tmp_path, 4, "local", 2)
    until(lambda: len(begun(runs)) == 2)
    workers, now = holders(tmp_path), study_status(specs(4), runs)
    assert (now.done, now.running, now.open) == (0, 2, 2) and all(map(alive, workers))
    process.kill()
    until(lambda: not any(map(alive, workers)), 10)
    now = study_status(specs(4), runs)
    assert (now.done, now.running, now.open) == (0, 0, 4)
    (tmp_path / "go").touch()
    assert study(tmp_path, specs(4)) == RunCounts(done=4)
    assert len(begun(runs)) == 6 and study_status(specs(4), runs).done == 4 and not list(tmp_path.glob("*.claim"))


def test_a_study_that_is_asked_to_end_ends_at_once_and_in_order(tmp_path, start):
    process = start("pretend_runs.py", tmp_path, 4, "local", 1)
    until(lambda: begun(Runs(tmp_path)))
    workers = holders(tmp_path)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode != 0 and "KeyboardInterrupt" in err and "runs: 0 of 4 ended, 1 running" in err
    assert not any(map(alive, workers)) and not list(tmp_path.glob("*.claim")) and not list(tmp_path.glob("*.json"))
