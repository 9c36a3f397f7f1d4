"The dask executor with a real scheduler and workers: one is killed, the scheduler is killed, and Slurm is a script."

import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import pandas as pd
import pretend_runs
import pytest
from conftest import mvtec_folder, serial_runs, short_spec
from pretend_runs import begun, holders, specs
from processes import HERE, alive, until

from dra_nb.core import DraError
from dra_nb.experiments.context import RunContext
from dra_nb.experiments.dask_executor import DaskExecutor, connect_scheduler, local_cluster, security
from dra_nb.experiments.executors import ExecutorOptions, open_executor
from dra_nb.experiments.local_executor import Slot
from dra_nb.experiments.progress import RunCounts
from dra_nb.experiments.records import Runs
from dra_nb.experiments.serial_executor import Outcome
from dra_nb.experiments.study import run_missing

pytestmark = pytest.mark.slow

pytest.importorskip("distributed")


@pytest.fixture
def cluster(tmp_path_factory):
    "Start a scheduler and workers as a user does: (number of workers) -> address, processes"
    folder, started = tmp_path_factory.mktemp("dask"), []
    file = folder / "scheduler.json"

    def dask(*argv):
        command = [sys.executable, "-m", "dask", *map(str, argv), "--scheduler-file", str(file)]
        with open(folder / f"{len(started)}.log", "w") as log:
            started.append(
                subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=os.environ | {"PYTHONPATH": HERE})
            )

    def start(workers):
        dask("scheduler", "--host", "127.0.0.1", "--port", 0, "--dashboard-address", "127.0.0.1:0")
        for _ in range(workers):
            dask("worker", "--nthreads", 1, "--no-nanny", "--no-dashboard", "--memory-limit", 0)
        address = until(lambda: file.exists() and json.loads(file.read_text())["address"])
        assert address.startswith("tcp://127.0.0.1:")
        return address, started

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_killed_worker_and_nothing_differs_from_serial(cluster, tmp_path):
    address, processes = cluster(2)
    mvtec_folder(tmp_path / "mine")
    plain, runs, todo, got = (
        Runs(tmp_path / "serial"),
        Runs(tmp_path / "dask"),
        [short_spec("mine", seed=s) for s in range(4)],
        [],
    )
    executor = ExecutorOptions("dask", address=address)
    serial_runs(tmp_path, plain.folder)
    thread = threading.Thread(
        target=lambda: got.append(run_missing(todo, RunContext(str(tmp_path)), runs, progress=False, executor=executor))
    )
    thread.start()
    victim = until(lambda: runs.folder.exists() and holders(runs.folder))[0]
    assert victim in [p.pid for p in processes[1:]]
    os.kill(victim, signal.SIGKILL)
    thread.join()
    assert got == [RunCounts(done=4)] and not alive(victim)
    for s in todo:
        pd.testing.assert_frame_equal(runs.scores(s), plain.scores(s), check_exact=True)
    assert {p.suffix for p in runs.folder.glob("[!.]*")} == {".json", ".parquet"} and len(
        list(runs.folder.glob("*.json"))
    ) == 4


def test_a_lost_scheduler_is_an_error_and_records_stay(cluster, tmp_path):
    address, (scheduler, *workers) = cluster(1)
    runs, error = Runs(tmp_path), []

    def conduct():
        try:
            pretend_runs.study(tmp_path, specs(2), "dask", address=address)
        except DraError as e:
            error.append(str(e))

    thread = threading.Thread(target=conduct)
    thread.start()
    until(lambda: begun(runs))
    assert len(begun(runs)) == 1, "a worker computes one run at a time"
    scheduler.kill()
    thread.join(30)
    assert error and f"scheduler at {address} is gone" in error[0] and "finished runs are kept" in error[0]
    (tmp_path / "go").touch()
    assert pretend_runs.study(tmp_path, specs(2)) in (
        RunCounts(done=1, elsewhere=1),
        RunCounts(done=2),
    )  # its last run may have been finished


def test_nobody_answers(tmp_path):
    with pytest.raises(DraError, match="no dask scheduler answers at tcp://127.0.0.1:9"):
        connect_scheduler("tcp://127.0.0.1:9", "tcp://127.0.0.1:9", security(), timeout=1)


def certificate(folder):
    "(authority, certificate, key), as .pem files; a certificate that signs itself is its own authority"
    if not shutil.which("openssl"):
        pytest.skip("no openssl to make a certificate with")
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=localhost",
            "-days",
            "1",
            "-keyout",
            folder / "key.pem",
            "-out",
            folder / "cert.pem",
        ],
        check=True,
        capture_output=True,
    )
    return [folder / "cert.pem", folder / "cert.pem", folder / "key.pem"]


def test_a_cluster_of_our_own_with_encryption(tmp_path):
    safe = security(certificate(tmp_path))
    cluster = local_cluster([Slot(None, 1)], safe)
    client = connect_scheduler(cluster.scheduler_address, cluster, safe, timeout=20)
    with DaskExecutor(os.getenv, client, cluster=cluster) as executor:
        assert executor.address.startswith("tls://127.0.0.1:")
        until(lambda: executor.slots == 1)
        executor.start(("OMP_NUM_THREADS",))
        assert executor.wait(60) == [(("OMP_NUM_THREADS",), "1")]
        with pytest.raises(DraError, match="no dask scheduler answers"):
            address = executor.address.replace("tls", "tcp")
            connect_scheduler(address, address, security(), timeout=2)


def test_without_an_address_a_cluster_of_this_machine_is_started_and_ended():
    with open_executor(ExecutorOptions("dask"), Outcome, [Slot(None, 1)]) as executor:
        executor.start(("done", 2.0))
        assert executor.wait(60) == [(("done", 2.0), Outcome("done", 2.0))]
        address = executor.address
    with pytest.raises(DraError, match="no dask scheduler answers"):
        connect_scheduler(address, address, security(), timeout=1)


def test_slurm(tmp_path, monkeypatch):
    "sbatch is a script here that starts what it is given; scancel ends it"
    pytest.importorskip("dask_jobqueue")
    sbatch = f"""#!/bin/sh
cp $1 {tmp_path}/job.sh
setsid bash {tmp_path}/job.sh >{tmp_path}/job.log 2>&1 &
echo $! >{tmp_path}/pid
echo Submitted batch job $!
"""
    for name, text in (("sbatch", sbatch), ("scancel", "#!/bin/sh\nkill -- -$1\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    options = dict(
        queue="gpu",
        cores=1,
        memory="1GB",
        processes=1,
        interface="lo",
        worker_extra_args=["--resources", "GPU=1"],
        log_directory=str(tmp_path),
    )
    with open_executor(ExecutorOptions("dask", 1, slurm=options), Outcome, []) as executor:
        assert "127.0.0.1" in executor.client.dashboard_link
        until(lambda: executor.slots == 1, 60)
        executor.start(("done", 3.0))
        assert executor.gpu and executor.wait(60) == [(("done", 3.0), Outcome("done", 3.0))]
        job, pid = (tmp_path / "job.sh").read_text(), int((tmp_path / "pid").read_text())
        assert "#SBATCH -p gpu" in job and alive(pid)
    until(lambda: not alive(pid), 30)
    with pytest.raises(DraError, match="Slurm options"):
        open_executor(ExecutorOptions("dask", 1, slurm=dict(cores=1)), Outcome, [])
