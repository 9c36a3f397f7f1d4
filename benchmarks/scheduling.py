"""What a study costs beside its runs: 1,000 runs that do nothing, on each engine.

    python benchmarks/scheduling.py                                     # under a minute
    python benchmarks/scheduling.py --runs 100 --repeats 1 --engines serial local   # a trial

A run is claimed, looked for among the records, done (nothing), released and counted, as every run is. Where the engine starts
processes, the time until the first run has ended is also given alone.
Prints a markdown report and writes it (scheduling.md), with the numbers as csv (scheduling.csv), to `--out`.
"""
import argparse, sys, tempfile, time
from functools import partial
from pathlib import Path

import pandas as pd

from dra_nb.core import DraError, atomic
from dra_nb.experiments.engine import attempt, conduct
from dra_nb.experiments.engines import ENGINES, open_engine, places
from dra_nb.experiments.runs import Runs, RunSpec

try: from .training import about, cell, positive, say, slug, spread, table  # imported as a part of `benchmarks`
except ImportError: from training import about, cell, positive, say, slug, spread, table  # run as a script

TARGETS = {"local": 30}  # ms per run

def nothing(spec, progress=None, features=False):
    "A run that does nothing"

def study(name:str, workers:int, n:int, folder:Path)->tuple:
    "(seconds until the first run has ended, seconds of all) of a study of n runs that leave no record"
    runs, specs, firsts, start = Runs(folder), [RunSpec("nothing", seed=i) for i in range(n)], [], time.perf_counter()
    engine = open_engine(name, partial(attempt, run=nothing, runs=runs), places([], 1 if name == "serial" else workers))
    real = engine.wait
    def wait(seconds):
        ended = real(seconds)
        if ended and not firsts: firsts.append(time.perf_counter() - start)
        return ended
    engine.wait = wait
    counts = conduct(specs, engine, runs, progress=False)
    if counts["done"] != n: raise DraError(f"{counts} of {n} runs on engine {name}")
    return firsts[0], time.perf_counter() - start

def measure(engine:str, args)->list:
    "Rows of the report for one engine"
    times = []
    for i in range(args.repeats):
        say(f"{engine}, {i + 1} of {args.repeats}")
        with tempfile.TemporaryDirectory() as folder: times.append(study(engine, args.workers, args.runs, Path(folder)))
    workers, target = 1 if engine == "serial" else args.workers, TARGETS.get(engine)
    return [dict(measure="all in, per run", engine=engine, workers=workers, unit="ms", **spread(1000*all_/args.runs for _, all_ in times), target=target),
            dict(measure="once started, per run", engine=engine, workers=workers, unit="ms", **spread(1000*(all_ - first)/max(1, args.runs - 1) for first, all_ in times), target=target),
            dict(measure="start: until the first run has ended", engine=engine, workers=workers, unit="s", **spread(first for first, _ in times), target=None)]

def met(row)->str:
    "Is the target met?"
    return "" if pd.isna(row["target"]) else "yes" if row["median"] < row["target"] else "no"

def report(frame:pd.DataFrame, origin:dict, args)->str:
    "The measurements in markdown"
    rows = [[r["measure"], r["engine"], r["workers"], cell(r, "{:.3g}"), r["unit"], "" if pd.isna(r["target"]) else f"below {r['target']:.0f}", met(r)] for r in frame.to_dict("records")]
    return (f"# Scheduling: {origin['device']}\n\n{origin['finished']}, dra_nb {origin['version']} (commit {origin['commit']}), {origin['platform']}, "
            f"load average {origin['load_average']} before. python {origin['python']}, torch {origin['torch']}.\n\n"
            f"Studies of {args.runs} runs that do nothing, {args.repeats} repeat(s). Median (smallest to largest).\n\n"
            + table(["measure", "engine", "workers", "value", "unit", "target", "met"], rows)
            + "\n\n## How it was measured\n\n`conduct` on a temporary folder: every run is claimed (a file is created and removed), looked for among the records, and counted. "
              "*All in* counts the start and the end of the processes. The workers of `local` and `dask` import torch when they start.\n")

def arguments(argv=None)->argparse.Namespace:
    "The command line"
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--runs", type=positive, default=1000)
    p.add_argument("--workers", type=positive, default=2, help="processes of local and dask")
    p.add_argument("--repeats", type=positive, default=3)
    p.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    p.add_argument("--out", type=Path, help="default: outputs/benchmarks/<device>")
    return p.parse_args(argv)

def main(argv=None):
    "Measure, print, write"
    args = arguments(argv)
    origin = about("cpu", "fp32")
    try: frame = pd.DataFrame([row for engine in args.engines for row in measure(engine, args)])
    except DraError as e: sys.exit(f"error: {e}")
    out, text = args.out or Path("outputs", "benchmarks", slug(origin["device"])), report(frame, origin, args)
    with atomic(out/"scheduling.csv") as part: frame.assign(device=origin["device"], date=origin["finished"][:10]).to_csv(part, index=False, float_format="%.6g")
    with atomic(out/"scheduling.md") as part: part.write_text(text, encoding="utf-8")
    print(text)
    say(f"written to {out}")


if __name__ == "__main__": main()
