"A study of runs that only pretend to compute, for tests of what lies around them. As a program: OUT NUMBER-OF-RUNS ENGINE WORKERS"
import json, os, sys, time
from functools import partial
from pathlib import Path

import pandas as pd

from dra_nb.core import DraError
from dra_nb.experiments.engine import attempt, conduct
from dra_nb.experiments.engines import open_engine
from dra_nb.experiments.runs import Runs, RunSpec

def specs(n, **settings):
    return [RunSpec("pretended", seed=s, settings=settings) for s in range(n)]

def begun(runs):
    "Seeds of the runs that were begun, in order, as often as they were"
    file = runs.folder/"begun.log"
    return [int(line) for line in file.read_text().split()] if file.exists() else []

def pretend(spec, progress=None, features=False, runs=None):
    "Note that the run was begun, wait for the file `go`, write a record; settings: broken (seeds), stumbles (seeds, at the first attempt)"
    first = spec.seed not in begun(runs)
    with open(runs.folder/"begun.log", "a") as f: f.write(f"{spec.seed}\n")
    if spec.seed in spec.settings.get("broken", ()): raise DraError("the loss is nan")
    if spec.seed in spec.settings.get("stumbles", ()) and first: raise OSError(28, "No space left on device")
    while not (runs.folder/"go").exists(): time.sleep(.02)
    scores = pd.DataFrame(dict(path=["a", "b"], label=[0, 1], defect=["", "dent"], seen=[False, True], score=[0., 1.]))
    runs.write(spec, dict(auroc=1.), dict(seconds=1.), dict(device="none"), scores)

def study(out, todo, engine="serial", workers=1, address=None, **how):
    "Run them; counts"
    runs = Runs(out)
    runs.folder.mkdir(parents=True, exist_ok=True)
    task = partial(attempt, run=partial(pretend, runs=runs), runs=runs)
    todo = [s for s in todo if not runs.done(s)]
    return conduct(todo, open_engine(engine, task, [(None, 1)]*workers, address=address), runs, **dict(progress=False) | how)

def holders(out):
    "Process numbers of the claims"
    found = [json.loads(text) for p in Path(out).glob("*.claim") if (text := p.read_text())]
    return sorted(o["pid"] for o in found)

if __name__ == "__main__":
    print(study(sys.argv[1], specs(int(sys.argv[2])), sys.argv[3], int(sys.argv[4]), progress=True))
