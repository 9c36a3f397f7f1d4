"""What a study costs beside its runs: 1,000 runs that do nothing, on each executor.

    python benchmarks/scheduling.py                                     # under a minute
    python benchmarks/scheduling.py --runs 100 --repeats 1 --executors serial local   # a trial

A run is claimed, looked for among the records, done (nothing), released and counted, as every run is. Where the
executor starts processes, the time until the first run has ended is also given alone.
Prints a markdown report and writes it (scheduling.md), with the numbers as csv (scheduling.csv), to `--out`.
"""

import time
from functools import partial
from pathlib import Path

from measured import main, parser, positive, row, say

from dra_nb.core import DraError
from dra_nb.experiments.executors import EXECUTORS, ExecutorOptions, open_executor
from dra_nb.experiments.local_executor import machine_slots
from dra_nb.experiments.pace import Pace
from dra_nb.experiments.progress import StudyProgress
from dra_nb.experiments.records import Runs
from dra_nb.experiments.spec import RunSpec
from dra_nb.experiments.study import StudyQueue, attempt, conduct

TARGETS = {"local": "below 30"}  # ms per run


def nothing(spec, progress=None, features=False):
    "A run that does nothing"


def study(name: str, workers: int, n: int, folder: Path) -> tuple:
    "(seconds until the first run has ended, seconds of all) of a study of n runs that leave no record"
    runs, specs, firsts, start = Runs(folder), [RunSpec("nothing", seed=i) for i in range(n)], [], time.perf_counter()
    task = partial(attempt, run=nothing, runs=runs)
    executor = open_executor(ExecutorOptions(name), task, machine_slots([], workers, jobs=n))
    real = executor.wait

    def wait(seconds):
        ended = real(seconds)
        if ended and not firsts:
            firsts.append(time.perf_counter() - start)
        return ended

    executor.wait = wait
    counts = conduct(StudyQueue(specs, runs, StudyProgress(n, Pace(), show=False)), executor)
    if counts.done != n:
        raise DraError(f"{counts} of {n} runs on the {name} executor")
    return firsts[0], time.perf_counter() - start


def measure(args, tmp: Path) -> list:
    "Three rows for each executor"
    rows = []
    for executor in args.executors:
        say(executor)
        workers = 1 if executor == "serial" else args.workers
        folders = [tmp / f"{executor}{i}" for i in range(args.repeats)]
        for folder in folders:
            folder.mkdir()
        times = [study(executor, workers, args.runs, folder) for folder in folders]
        case, target = f"{executor}, {workers} worker(s)", TARGETS.get(executor, "")
        rows += [
            row("all in, per run", case, "ms", [1000 * whole / args.runs for _, whole in times], target),
            row(
                "once started, per run",
                case,
                "ms",
                [1000 * (whole - first) / max(1, args.runs - 1) for first, whole in times],
                target,
            ),
            row("start: until the first run has ended", case, "s", [first for first, _ in times]),
        ]
    return rows


NOTES = """
- `conduct` on a temporary folder: every run is claimed (a file is created and removed), looked for among the records,
  and counted.
- *All in* counts the start and the end of the processes. The workers of `local` and `dask` import torch when they
  start."""

if __name__ == "__main__":
    p = parser(__doc__)
    p.add_argument("--runs", type=positive, default=1000, help="(default 1000)")
    p.add_argument("--workers", type=positive, default=2, help="processes of local and dask (default 2)")
    p.add_argument("--executors", nargs="+", choices=EXECUTORS, default=EXECUTORS)
    args = p.parse_args()
    main(
        "scheduling",
        "Scheduling",
        args,
        measure,
        f"Studies of {args.runs} runs that do nothing, {args.repeats} repeat(s).",
        NOTES,
    )
