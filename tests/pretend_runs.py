"Runs that only pretend to compute, for tests of what lies around them. Program: OUT NUMBER-OF-RUNS EXECUTOR WORKERS"

import json
import sys
import time
from functools import partial
from pathlib import Path

import pandas as pd

from dra_nb.core import DraError
from dra_nb.experiments.executors import ExecutorOptions, open_executor
from dra_nb.experiments.local_executor import Slot
from dra_nb.experiments.pace import Pace
from dra_nb.experiments.progress import StudyProgress
from dra_nb.experiments.record_writing import write_run
from dra_nb.experiments.records import Runs
from dra_nb.experiments.spec import RunSpec
from dra_nb.experiments.study import StudyQueue, attempt, conduct


def specs(n, **settings):
    return [RunSpec("pretended", seed=s, settings=settings) for s in range(n)]


def begun(runs):
    "Seeds of the runs that were begun, in order, as often as they were"
    file = runs.folder / "begun.log"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def pretend(spec, progress=None, features=False, runs=None):
    """Note that the run was begun, wait for the file `go`, write a record

    Settings of the spec: broken (seeds that fail), stumbles (seeds that fail at the first attempt)."""
    first = spec.seed not in begun(runs)
    with open(runs.folder / "begun.log", "a") as f:
        f.write(f"{spec.seed}\n")
    if spec.seed in spec.settings.get("broken", ()):
        raise DraError("the loss is nan")
    if spec.seed in spec.settings.get("stumbles", ()) and first:
        raise OSError(28, "No space left on device")
    while not (runs.folder / "go").exists():
        time.sleep(0.02)
    scores = pd.DataFrame(
        dict(path=["a", "b"], label=[0, 1], defect=["", "dent"], seen=[False, True], score=[0.0, 1.0])
    )
    origin = dict(device="none")
    write_run(runs, spec, scores, metrics=dict(auroc=1.0), timing=dict(seconds=1.0), provenance=origin)


def study(out, todo, executor="serial", workers=1, *, address=None, progress=False, retries=1):
    "Run them; counts"
    runs = Runs(out)
    runs.folder.mkdir(parents=True, exist_ok=True)
    task = partial(attempt, run=partial(pretend, runs=runs), runs=runs)
    todo = [s for s in todo if not runs.done(s)]
    shown = StudyProgress(len(todo), Pace(), progress)
    options = ExecutorOptions(executor, workers, address=address)
    return conduct(
        StudyQueue(todo, runs, shown, retries=retries), open_executor(options, task, [Slot(None, 1)] * workers)
    )


def holders(out):
    "Process numbers of the claims"
    found = [json.loads(text) for p in Path(out).glob("*.claim") if (text := p.read_text())]
    return sorted(o["pid"] for o in found)


if __name__ == "__main__":
    print(study(sys.argv[1], specs(int(sys.argv[2])), sys.argv[3], int(sys.argv[4]), progress=True))
