"""What a study costs beside its runs: 1,000 runs that do nothing, on each engine.

    python benchmarks/scheduling.py                                     # under a minute
    python benchmarks/scheduling.py --runs 100 --repeats 1 --engines serial local   # a trial

A run is claimed, looked for among the records, done (nothing), released and counted, as every run is. Where the engine starts
processes, the time until the first run has ended is also given alone.
Prints a markdown report and writes it (scheduling.md), with the numbers as csv (scheduling.csv), to `--out`.
"""
import time
from functools import partial
from pathlib import Path

from dra_nb.core import DraError
from dra_nb.experiments.engine import attempt, conduct
from dra_nb.experiments.engines import ENGINES, open_engine, places
from dra_nb.experiments.runs import Runs, RunSpec

from measured import main, parser, positive, row, say

TARGETS = {"local": "below 30"}  # ms per run

def nothing(spec, progress=None, features=False):
    "A run that does nothing"

def study(name:str, workers:int, n:int, folder:Path)->tuple:
    "(seconds until the first run has ended, seconds of all) of a study of n runs that leave no record"
    runs, specs, firsts, start = Runs(folder), [RunSpec("nothing", seed=i) for i in range(n)], [], time.perf_counter()
    engine = open_engine(name, partial(attempt, run=nothing, runs=runs), places([], workers))
    real = engine.wait
    def wait(seconds):
        ended = real(seconds)
        if ended and not firsts: firsts.append(time.perf_counter() - start)
        return ended
    engine.wait = wait
    counts = conduct(specs, engine, runs, progress=False)
    if counts["done"] != n: raise DraError(f"{counts} of {n} runs on engine {name}")
    return firsts[0], time.perf_counter() - start

def measure(args, tmp:Path)->list:
    "Three rows for each engine"
    rows = []
    for engine in args.engines:
        say(engine)
        workers = 1 if engine == "serial" else args.workers
        folders = [tmp/f"{engine}{i}" for i in range(args.repeats)]
        for folder in folders: folder.mkdir()
        times = [study(engine, workers, args.runs, folder) for folder in folders]
        case, target = f"{engine}, {workers} worker(s)", TARGETS.get(engine, "")
        rows += [row("all in, per run", case, "ms", [1000*whole/args.runs for _, whole in times], target),
                 row("once started, per run", case, "ms", [1000*(whole - first)/max(1, args.runs - 1) for first, whole in times], target),
                 row("start: until the first run has ended", case, "s", [first for first, _ in times])]
    return rows

NOTES = """
- `conduct` on a temporary folder: every run is claimed (a file is created and removed), looked for among the records, and counted.
- *All in* counts the start and the end of the processes. The workers of `local` and `dask` import torch when they start."""

if __name__ == "__main__":
    p = parser(__doc__)
    p.add_argument("--runs", type=positive, default=1000, help="(default 1000)")
    p.add_argument("--workers", type=positive, default=2, help="processes of local and dask (default 2)")
    p.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    args = p.parse_args()
    main("scheduling", "Scheduling", args, measure, f"Studies of {args.runs} runs that do nothing, {args.repeats} repeat(s).", NOTES)
