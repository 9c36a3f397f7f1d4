"Engines, claims, failures and progress of a study, with real processes."
import os, signal, subprocess, sys, threading, time
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd, pytest

import pretend_runs
from conftest import mvtec_folder, serial_runs, short_spec
from dra_nb.core import DraError
from dra_nb.experiments import engine
from dra_nb.experiments.claiming import claimed, holder
from dra_nb.experiments.engine import Place, run_missing
from dra_nb.experiments.progress import status
from dra_nb.experiments.runs import Runs
from pretend_runs import begun, holders, specs, study

HERE = os.path.dirname(__file__)

def until(condition, seconds=120):
    "Wait for something; its value"
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(.02)
    return value

def alive(pid):
    try: return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError: return False

@pytest.fixture
def start():
    "Start Python in a process of its own; what a test leaves running is killed"
    started = []
    def begin(*argv):
        started.append(subprocess.Popen([sys.executable, *map(str, argv)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=HERE))
        return started[-1]
    yield begin
    for process in started:
        process.kill()
        process.communicate()

def ended(process):
    "Output of a process that ended well"
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err[-3000:]
    return SimpleNamespace(out=out, err=err)

# ---- the local engine

REAL = """
import os, sys
if hasattr(os, "sched_setaffinity"): os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # so two workers have one thread each
from conftest import short_spec
from dra_nb.experiments.engine import Place, run_missing
from dra_nb.experiments.runs import Runs
print(run_missing([short_spec("mine", seed=s) for s in range(4)], Place(sys.argv[1]), Runs(sys.argv[2]), workers=2))
"""
def test_a_killed_worker_is_replaced_and_nothing_differs_from_serial(tmp_path, start):
    mvtec_folder(tmp_path/"mine")
    plain, runs, todo = Runs(tmp_path/"serial"), Runs(tmp_path/"local"), [short_spec("mine", seed=s) for s in range(4)]
    serial_runs(tmp_path, plain.folder)
    process = start("-c", REAL, tmp_path, runs.folder)
    victim = until(lambda: holders(runs.folder))[0]
    os.kill(victim, signal.SIGKILL)
    done = ended(process)
    assert str(dict(done=4, skipped=0, failed=0, elsewhere=0)) in done.out
    assert "tried again later" in done.err and "killed by signal 9" in done.err
    assert "\r" not in done.err and done.err.splitlines()[-1] == "runs: 4 of 4 ended, 0 running, 0 failed"
    for s in todo:
        pd.testing.assert_frame_equal(runs.scores(s), plain.scores(s), check_exact=True)
        assert runs.read(s)["metrics"] == plain.read(s)["metrics"] and runs.failure(s) is None
    assert {p.suffix for p in runs.folder.glob("[!.]*")} == {".json", ".parquet"} and len(list(runs.folder.glob("*.json"))) == 4

def test_a_run_that_kills_its_worker_each_time_is_given_up(tmp_path):
    runs, todo, got = Runs(tmp_path), specs(1), {}
    thread = threading.Thread(target=lambda: got.update(study(tmp_path, todo, "local")))
    thread.start()
    for n in (1, 2):
        until(lambda: len(begun(runs)) == n)
        os.kill(holders(tmp_path)[0], signal.SIGKILL)
    thread.join()
    assert got == dict(done=0, failed=1, elsewhere=0) and begun(runs) == [0, 0]
    assert runs.failure(todo[0])["attempts"] == 2 and "killed by signal 9" in runs.failure(todo[0])["error"]

def test_workers_end_with_a_killed_study_and_the_next_one_finishes(tmp_path, start):
    runs = Runs(tmp_path)
    process = start("pretend_runs.py", tmp_path, 4, "local", 2)
    until(lambda: len(begun(runs)) == 2)
    workers, now = holders(tmp_path), status(specs(4), runs)
    assert (now.done, now.running, now.open) == (0, 2, 2) and all(map(alive, workers))
    process.kill()
    until(lambda: not any(map(alive, workers)), 10)
    now = status(specs(4), runs)
    assert (now.done, now.running, now.open) == (0, 0, 4)
    (tmp_path/"go").touch()
    assert study(tmp_path, specs(4)) == dict(done=4, failed=0, elsewhere=0)
    assert len(begun(runs)) == 6 and status(specs(4), runs).done == 4 and not list(tmp_path.glob("*.claim"))

def test_a_study_that_is_asked_to_end_ends_at_once_and_in_order(tmp_path, start):
    process = start("pretend_runs.py", tmp_path, 4, "local", 1)
    until(lambda: begun(Runs(tmp_path)))
    workers = holders(tmp_path)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode != 0 and "KeyboardInterrupt" in err and "runs: 0 of 4 ended, 1 running" in err
    assert not any(map(alive, workers)) and not list(tmp_path.glob("*.claim")) and not list(tmp_path.glob("*.json"))

# ---- two studies

def test_two_studies_at_once_run_each_spec_once(tmp_path, start):
    runs, here = Runs(tmp_path), {}
    there = start("pretend_runs.py", tmp_path, 9, "local", 1)
    thread = threading.Thread(target=lambda: here.update(study(tmp_path, specs(9), "local")))
    thread.start()
    until(lambda: len(begun(runs)) == 2)
    assert len(set(holders(tmp_path))) == 2 and sorted(begun(runs)) == [0, 1]
    (tmp_path/"go").touch()
    thread.join()
    counts = [here, eval(ended(there).out)]
    assert sorted(begun(runs)) == list(range(9)) and status(specs(9), runs).done == 9
    assert sum(c["done"] for c in counts) == 9 and all(c["done"] + c["elsewhere"] == 9 and not c["failed"] for c in counts)

def test_others_first_then_wait_for_a_foreign_claim(tmp_path):
    runs, todo = Runs(tmp_path), specs(3)
    (tmp_path/"go").touch()
    got = {}
    with claimed(runs.path(todo[0].key, "claim")) as mine:
        assert mine
        thread = threading.Thread(target=lambda: got.update(study(tmp_path, todo)))
        thread.start()
        until(lambda: all(map(runs.done, todo[1:])))
        assert thread.is_alive() and not runs.done(todo[0])
        pretend_runs.pretend(todo[0], runs=runs)
    thread.join(10)
    assert got == dict(done=2, failed=0, elsewhere=1) and begun(runs) == [1, 2, 0]

def test_a_claim_given_up_without_a_record_is_run_here(tmp_path):
    runs, todo = Runs(tmp_path), specs(2)
    (tmp_path/"go").touch()
    got = {}
    with claimed(runs.path(todo[0].key, "claim")):
        thread = threading.Thread(target=lambda: got.update(study(tmp_path, todo)))
        thread.start()
        until(lambda: runs.done(todo[1]))
    thread.join(10)
    assert got == dict(done=2, failed=0, elsewhere=0) and begun(runs) == [1, 0]

def test_the_claim_of_a_dead_process_is_taken_over(tmp_path, start):
    runs, todo = Runs(tmp_path), specs(1)
    process = start("-c", f"import sys, time\nfrom dra_nb.experiments.claiming import take\ntake({str(runs.path(todo[0].key, 'claim'))!r}); print('mine', flush=True); time.sleep(60)")
    assert process.stdout.readline() == "mine\n" and holder(runs.path(todo[0].key, "claim"))["pid"] == process.pid
    process.kill()
    until(lambda: holder(runs.path(todo[0].key, "claim")) is None, 5)  # a zombie, which nobody has waited for
    (tmp_path/"go").touch()
    assert study(tmp_path, todo) == dict(done=1, failed=0, elsewhere=0) and not list(tmp_path.glob("*.claim"))

# ---- failures

def test_failures_are_kept_and_stop_nobody(tmp_path, capsys):
    runs, todo = Runs(tmp_path), specs(4, broken=[1], stumbles=[2])
    (tmp_path/"go").touch()
    assert study(tmp_path, todo) == dict(done=3, failed=1, elsewhere=0)
    assert begun(runs) == [0, 1, 2, 3, 2] and runs.failure(todo[2]) is None  # a wrong result is not tried again, a full disk is
    failure = runs.failure(todo[1])
    assert failure["error"] == "DraError: the loss is nan" and failure["attempts"] == 1 and failure["spec"]["seed"] == 1
    assert any("in pretend" in line for line in failure["traceback"])
    now = status(todo, runs)
    assert (now.done, now.failed, now.open) == (3, 1, 0)
    err = capsys.readouterr().err
    assert "failed: " in err and "the loss is nan" in err and "tried again later" in err
    assert study(tmp_path, todo, retries=0) == dict(done=0, failed=1, elsewhere=0)  # the next command tries again

def test_no_retries(tmp_path):
    (tmp_path/"go").touch()
    assert study(tmp_path, todo := specs(2, stumbles=[0]), retries=0) == dict(done=1, failed=1, elsewhere=0)
    assert "No space left" in Runs(tmp_path).failure(todo[0])["error"]

def test_a_training_that_diverges_says_where(tmp_path):
    mvtec_folder(tmp_path/"mine")
    good = short_spec("mine")
    bad = replace(good, schedule=replace(good.schedule, lr=1e38))
    runs = Runs(tmp_path/"out")
    assert run_missing([bad, good], Place(str(tmp_path)), runs, progress=False, workers=1) == dict(done=1, skipped=0, failed=1, elsewhere=0)
    assert "loss of head 'deviation'" in runs.failure(bad)["error"] or "loss of head" in runs.failure(bad)["error"]

# ---- what a run leaves

def test_checkpoints_go_when_the_record_is_there_and_features_come(tmp_path, monkeypatch):
    mvtec_folder(tmp_path/"mine")
    runs, spec, seen = Runs(tmp_path/"out"), short_spec("mine"), []
    real = engine.remove_checkpoint
    def remove(path):
        seen.append((path.name, path.exists(), runs.done(spec)))
        real(path)
    monkeypatch.setattr(engine, "remove_checkpoint", remove)
    assert run_missing([spec], Place(str(tmp_path), checkpoint_every=1), runs, progress=False, workers=1)["done"] == 1
    assert seen == [(f"{spec.key}.ckpt", True, True), (f"{spec.key}.tune.ckpt", False, True)] and not list(runs.folder.glob("*ckpt"))
    before = runs.read(spec)
    assert run_missing([spec], Place(str(tmp_path)), runs, progress=False, workers=1, features=True)["done"] == 1
    assert runs.done(spec, features=True) and runs.read(spec)["scores_sha256"] == before["scores_sha256"]
    assert run_missing([spec], Place(str(tmp_path)), runs, progress=False, workers=1, features=True)["skipped"] == 1

@pytest.mark.parametrize("how, message", [(dict(engine="loacl"), "Did you mean 'local'"), (dict(workers=0), "workers must be"), (dict(retries=-1), "retries must be"),
                                          (dict(slots="2"), "slots must be"), (dict(address="tcp://a:1"), 'engine="dask"'), (dict(engine="dask", address="a:1"), "tcp://host:port")])
def test_wrong_arguments_are_refused_first(tmp_path, how, message):
    with pytest.raises(DraError, match=message): run_missing([short_spec("nothing")], Place("nowhere"), Runs(tmp_path/"out"), **how)
    assert not (tmp_path/"out").exists()
