"The dask engine with a real scheduler and workers: one is killed, the scheduler is killed, and Slurm is a script that starts what it gets."
import json, os, shutil, signal, subprocess, sys, threading

import pandas as pd, pytest

import pretend_runs
from conftest import mvtec_folder, serial_runs, short_spec
from dra_nb.core import DraError
from dra_nb.experiments import engines
from dra_nb.experiments.engine import Place, run_missing
from dra_nb.experiments.engines import Dask, Outcome, local_cluster, security
from dra_nb.experiments.runs import Runs
from pretend_runs import begun, holders, specs
from test_engine import alive, until

pytest.importorskip("distributed")
HERE = os.path.dirname(__file__)

@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    "A scheduler and two workers as a user starts them: (address, processes)"
    folder, started = tmp_path_factory.mktemp("dask"), []
    def dask(*argv):
        log = open(folder/f"{len(started)}.log", "w")
        started.append(subprocess.Popen([sys.executable, "-m", "dask", *map(str, argv)], stdout=log, stderr=log, cwd=folder, env=os.environ | {"PYTHONPATH": HERE}))
    dask("scheduler", "--host", "127.0.0.1", "--port", 0, "--dashboard-address", "127.0.0.1:0", "--scheduler-file", folder/"scheduler.json")
    for _ in range(2): dask("worker", "--scheduler-file", folder/"scheduler.json", "--nthreads", 1, "--no-nanny", "--no-dashboard", "--memory-limit", 0)
    address = until(lambda: (folder/"scheduler.json").exists() and json.loads((folder/"scheduler.json").read_text())["address"])
    assert address.startswith("tcp://127.0.0.1:")
    yield address, started
    for process in started:
        process.kill()
        process.wait()

def test_a_killed_worker_and_nothing_differs_from_serial(cluster, tmp_path):
    address, processes = cluster
    mvtec_folder(tmp_path/"mine")
    plain, runs, todo, got = Runs(tmp_path/"serial"), Runs(tmp_path/"dask"), [short_spec("mine", seed=s) for s in range(4)], {}
    serial_runs(tmp_path, plain.folder)
    thread = threading.Thread(target=lambda: got.update(run_missing(todo, Place(str(tmp_path)), runs, progress=False, engine="dask", address=address)))
    thread.start()
    victim = until(lambda: runs.folder.exists() and holders(runs.folder))[0]
    assert victim in [p.pid for p in processes[1:]]
    os.kill(victim, signal.SIGKILL)
    thread.join()
    assert got == dict(done=4, skipped=0, failed=0, elsewhere=0) and not alive(victim)
    for s in todo: pd.testing.assert_frame_equal(runs.scores(s), plain.scores(s), check_exact=True)
    assert {p.suffix for p in runs.folder.glob("[!.]*")} == {".json", ".parquet"} and len(list(runs.folder.glob("*.json"))) == 4

def test_a_lost_scheduler_is_an_error_and_records_stay(cluster, tmp_path):
    address, (scheduler, *workers) = cluster
    runs, error = Runs(tmp_path), []
    def conduct():
        try: pretend_runs.study(tmp_path, specs(2), "dask", address=address)
        except DraError as e: error.append(str(e))
    thread = threading.Thread(target=conduct)
    thread.start()
    until(lambda: begun(runs))
    assert len(begun(runs)) == 1, "one worker is left, and it computes one run at a time"
    scheduler.kill()
    thread.join(30)
    assert error and f"scheduler at {address} is gone" in error[0] and "finished runs are kept" in error[0]
    (tmp_path/"go").touch()
    assert pretend_runs.study(tmp_path, specs(2)) in (dict(done=1, failed=0, elsewhere=1), dict(done=2, failed=0, elsewhere=0))  # its last run may have been finished

def test_nobody_answers(tmp_path):
    with pytest.raises(DraError, match="no dask scheduler answers at tcp://127.0.0.1:9"): Dask(print, "tcp://127.0.0.1:9", safe=security(), timeout=1)

def certificate(folder):
    "(authority, certificate, key), as .pem files; a certificate that signs itself is its own authority"
    if not shutil.which("openssl"): pytest.skip("no openssl to make a certificate with")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "1",
                    "-keyout", folder/"key.pem", "-out", folder/"cert.pem"], check=True, capture_output=True)
    return [folder/"cert.pem", folder/"cert.pem", folder/"key.pem"]

def test_a_cluster_of_our_own_with_encryption(tmp_path):
    safe = security(certificate(tmp_path))
    with Dask(os.getenv, cluster=local_cluster([(None, 1)], safe), safe=safe) as engine:
        assert engine.address.startswith("tls://127.0.0.1:")
        until(lambda: engine.slots == 1)
        engine.start(("OMP_NUM_THREADS",))
        assert engine.wait(60) == [(("OMP_NUM_THREADS",), "1")]
        with pytest.raises(DraError, match="no dask scheduler answers"): Dask(print, engine.address.replace("tls", "tcp"), safe=engines.security(), timeout=2)

def test_slurm(tmp_path, monkeypatch):
    "sbatch is a script here that starts what it is given; scancel ends it"
    pytest.importorskip("dask_jobqueue")
    sbatch = f"#!/bin/sh\ncp $1 {tmp_path}/job.sh\nsetsid bash {tmp_path}/job.sh >{tmp_path}/job.log 2>&1 &\necho $! >{tmp_path}/pid\necho Submitted batch job $!\n"
    for name, text in (("sbatch", sbatch), ("scancel", "#!/bin/sh\nkill -- -$1\n")):
        (tmp_path/name).write_text(text)
        (tmp_path/name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    options = dict(queue="gpu", cores=1, memory="1GB", processes=1, interface="lo", worker_extra_args=["--resources", "GPU=1"], log_directory=str(tmp_path))
    with engines.open_engine("dask", Outcome, [], workers=1, slurm=options) as engine:
        assert "127.0.0.1" in engine.client.dashboard_link
        until(lambda: engine.slots == 1, 60)
        engine.start(("done", 3.))
        assert engine.gpu and engine.wait(60) == [(("done", 3.), Outcome("done", 3.))]
        job, pid = (tmp_path/"job.sh").read_text(), int((tmp_path/"pid").read_text())
        assert "#SBATCH -p gpu" in job and alive(pid)
    until(lambda: not alive(pid), 30)
    with pytest.raises(DraError, match="Slurm options"): engines.open_engine("dask", Outcome, [], workers=1, slurm=dict(cores=1))
