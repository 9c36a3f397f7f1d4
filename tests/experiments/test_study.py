"Studies: two at once, claims, failures, and what a run leaves."

import threading
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import pretend_runs
import pytest
import torch
from conftest import mvtec_folder, short_spec
from pretend_runs import begun, holders, specs, study
from processes import end_all, ended, start_python, until

from dra_nb.core import DraError
from dra_nb.experiments import execution, progress
from dra_nb.experiments.context import RunContext
from dra_nb.experiments.executors import ExecutorOptions
from dra_nb.experiments.local_executor import visible_gpus
from dra_nb.experiments.locks import claimed, holder
from dra_nb.experiments.progress import RunCounts, study_status
from dra_nb.experiments.records import Runs
from dra_nb.experiments.study import context_there, run_missing


@pytest.fixture
def start():
    "Start Python in a process of its own; what a test leaves running is killed"
    started = []
    yield partial(start_python, started)
    end_all(started)


# ---- two studies


@pytest.mark.slow
def test_two_studies_at_once_run_each_spec_once(tmp_path, start):
    runs, here = Runs(tmp_path), []
    there = start("pretend_runs.py", tmp_path, 9, "local", 1)
    thread = threading.Thread(target=lambda: here.append(study(tmp_path, specs(9), "local")))
    thread.start()
    until(lambda: len(begun(runs)) == 2)
    assert len(set(holders(tmp_path))) == 2 and sorted(begun(runs)) == [0, 1]
    (tmp_path / "go").touch()
    thread.join()
    counts = [*here, eval(ended(there).out)]
    assert sorted(begun(runs)) == list(range(9)) and study_status(specs(9), runs).done == 9
    assert sum(c.done for c in counts) == 9 and all(c.done + c.elsewhere == 9 and not c.failed for c in counts)


def test_others_first_then_wait_for_a_foreign_claim(tmp_path):
    runs, todo = Runs(tmp_path), specs(3)
    (tmp_path / "go").touch()
    got = []
    with claimed(runs.path(todo[0].key, "claim")) as mine:
        assert mine
        thread = threading.Thread(target=lambda: got.append(study(tmp_path, todo)))
        thread.start()
        until(lambda: all(map(runs.done, todo[1:])))
        assert thread.is_alive() and not runs.done(todo[0])
        pretend_runs.pretend(todo[0], runs=runs)
    thread.join(10)
    assert got == [RunCounts(done=2, elsewhere=1)] and begun(runs) == [1, 2, 0]


def test_a_claim_given_up_without_a_record_is_run_here(tmp_path):
    runs, todo = Runs(tmp_path), specs(2)
    (tmp_path / "go").touch()
    got = []
    with claimed(runs.path(todo[0].key, "claim")):
        thread = threading.Thread(target=lambda: got.append(study(tmp_path, todo)))
        thread.start()
        until(lambda: runs.done(todo[1]))
    thread.join(10)
    assert got == [RunCounts(done=2)] and begun(runs) == [1, 0]


def test_the_claim_of_a_dead_process_is_taken_over(tmp_path, start):
    runs, todo = Runs(tmp_path), specs(1)
    claim = runs.path(todo[0].key, "claim")
    take = f"import time; from dra_nb.experiments.locks import take; take({str(claim)!r})"
    process = start("-c", f"{take}; print('mine', flush=True); time.sleep(60)")
    assert process.stdout.readline() == "mine\n" and holder(runs.path(todo[0].key, "claim"))["pid"] == process.pid
    process.kill()
    until(lambda: holder(runs.path(todo[0].key, "claim")) is None, 5)  # a zombie, which nobody has waited for
    (tmp_path / "go").touch()
    assert study(tmp_path, todo) == RunCounts(done=1) and not list(tmp_path.glob("*.claim"))


# ---- failures


def test_failures_are_kept_and_stop_nobody(tmp_path, capsys):
    runs, todo = Runs(tmp_path), specs(4, broken=[1], stumbles=[2])
    (tmp_path / "go").touch()
    assert study(tmp_path, todo) == RunCounts(done=3, failed=1)
    assert (
        begun(runs) == [0, 1, 2, 3, 2] and runs.failure(todo[2]) is None
    )  # a wrong result is not tried again, a full disk is
    failure = runs.failure(todo[1])
    assert failure.error == "DraError: the loss is nan" and failure.attempts == 1 and failure.spec["seed"] == 1
    assert any("in pretend" in line for line in failure.traceback)
    now = study_status(todo, runs)
    assert (now.done, now.failed, now.open) == (3, 1, 0)
    err = capsys.readouterr().err
    assert "failed: " in err and "the loss is nan" in err and "tried again later" in err
    assert study(tmp_path, todo, retries=0) == RunCounts(failed=1)  # the next command tries again


def test_no_retries(tmp_path):
    (tmp_path / "go").touch()
    assert study(tmp_path, todo := specs(2, stumbles=[0]), retries=0) == RunCounts(done=1, failed=1)
    assert "No space left" in Runs(tmp_path).failure(todo[0]).error


def test_a_training_that_diverges_says_where(tmp_path):
    mvtec_folder(tmp_path / "mine")
    good = short_spec("mine")
    bad = replace(good, schedule=replace(good.schedule, lr=1e38))
    runs = Runs(tmp_path / "out")
    assert run_missing(
        [bad, good], RunContext(str(tmp_path)), runs, progress=False, executor=ExecutorOptions(workers=1)
    ) == RunCounts(done=1, failed=1)
    assert "loss of head 'deviation'" in runs.failure(bad).error or "loss of head" in runs.failure(bad).error


# ---- what a run leaves


def test_checkpoints_go_when_the_record_is_there_and_features_come(tmp_path, monkeypatch):
    mvtec_folder(tmp_path / "mine")
    runs, spec, seen = Runs(tmp_path / "out"), short_spec("mine"), []
    real = execution.remove_checkpoint

    def remove(path):
        seen.append((path.name, path.exists(), runs.done(spec)))
        real(path)

    monkeypatch.setattr(execution, "remove_checkpoint", remove)
    assert (
        run_missing(
            [spec],
            RunContext(str(tmp_path), checkpoint_every=1),
            runs,
            progress=False,
            executor=ExecutorOptions(workers=1),
        ).done
        == 1
    )
    assert seen == [(f"{spec.key}.ckpt", True, True), (f"{spec.key}.tune.ckpt", False, True)] and not list(
        runs.folder.glob("*ckpt")
    )
    before = runs.read(spec)
    assert (
        run_missing(
            [spec], RunContext(str(tmp_path)), runs, progress=False, executor=ExecutorOptions(workers=1), features=True
        ).done
        == 1
    )
    assert runs.done(spec, features=True) and runs.read(spec).scores_sha256 == before.scores_sha256
    assert (
        run_missing(
            [spec], RunContext(str(tmp_path)), runs, progress=False, executor=ExecutorOptions(workers=1), features=True
        ).skipped
        == 1
    )


@pytest.mark.parametrize(
    "how, message",
    [
        (dict(executor=ExecutorOptions("loacl")), "Did you mean 'local'"),
        (dict(executor=ExecutorOptions(workers=0)), "workers must be"),
        (dict(retries=-1), "retries must be"),
        (dict(executor=ExecutorOptions(runs_per_device="2")), "runs per device must be"),
        (dict(executor=ExecutorOptions(address="tcp://a:1")), "address is an option of the dask executor"),
        pytest.param(
            dict(executor=ExecutorOptions("dask", address="a:1")),
            "tcp://host:port",
            marks=pytest.mark.skipif(find_spec("distributed") is None, reason="dask is not installed"),
        ),
    ],
)
def test_wrong_arguments_are_refused_first(tmp_path, how, message):
    with pytest.raises(DraError, match=message):
        run_missing([short_spec("nothing")], RunContext("nowhere"), Runs(tmp_path / "out"), **how)
    assert not (tmp_path / "out").exists()


def test_on_a_terminal_a_bar_counts_the_runs(monkeypatch):
    monkeypatch.setattr(progress, "is_interactive", lambda: True)
    shown = progress.StudyProgress(4, None, True)
    shown.update(progress.RunCounts(done=2, failed=1), [], [], slots=1, last=True)
    assert shown.bar.n == 3 and shown.bar.postfix == "0 running, 1 failed"


def test_a_path_of_weights_holds_in_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pt").touch()
    there = context_there(RunContext(None, "w.pt"), one_gpu=False)
    assert (
        there.weights == str(tmp_path / "w.pt")
        and context_there(RunContext(None, "imagenet"), False).weights == "imagenet"
    )
    assert context_there(RunContext(None), one_gpu=True).compute.device == "cuda"


def test_gpus_of_a_study(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus("cuda") == ["0", "1", "2"] and visible_gpus("cuda:1") == ["1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,5,GPU-ab")
    assert visible_gpus("cuda:2") == ["GPU-ab"] and visible_gpus("cuda")[0] == "7"
