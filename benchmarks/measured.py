"""What the benchmarks share: the machine, rows of numbers, and a run that measures, prints and writes.

A benchmark is a script with a function `measure(args, folder)` that returns rows; `main` does the rest. Every row is a
number with its measure, case, unit, median, smallest and largest value, and target; they go to `<name>.csv`, and as a
report to `<name>.md`.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pandas as pd

from dra_nb.core import DraError, atomic
from dra_nb.experiments.provenance import provenance
from dra_nb.profiling.benchmarks import BENCHMARK_COLUMNS, slug
from dra_nb.reporting.tables import number_text, to_markdown
from dra_nb.training.compute import Compute

OTHERS = (
    "- Other work: CPU time that other processes used meanwhile, as a share of all cores. "
    "Trust the seconds of an idle machine only."
)


# ---- the machine


def others_seconds():
    "CPU seconds of all but this process and its finished children since the machine started; None: not known"
    try:
        ticks = list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]))
    except (OSError, ValueError):
        return None
    busy = sum(ticks) - ticks[3] - ticks[4]  # neither idle nor waiting for the disk
    return busy / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])


def alone(function, *args):
    "The result of a call in a fresh process, whose memory counts alone"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def link(source: Path, target: Path):
    "Another name for a file, or a copy where there are no hard links"
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def say(text: str):
    "Progress, beside the report"
    print(text, file=sys.stderr, flush=True)


# ---- the command line


def whole(text: str, least: int = 0) -> int:
    "A whole number from `least`"
    if int(text) < least:
        raise argparse.ArgumentTypeError(f"{text} is below {least}")
    return int(text)


def positive(text: str) -> int:
    "A whole number from 1"
    return whole(text, 1)


def parser(doc: str, repeats: int = 3) -> argparse.ArgumentParser:
    "With the options that all have"
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--repeats", type=positive, default=repeats, help=f"(default {repeats})")
    p.add_argument("--out", type=Path, help="folder of the report (default outputs/benchmarks/<device>/)")
    return p


def numbers(p, name: str, default: list, text: str):
    "An option that takes whole numbers"
    p.add_argument(
        name, type=positive, nargs="+", default=default, help=f"{text} (default {' '.join(map(str, default))})"
    )


def backbone_option(p):
    "The network that DRA stands on; a small one makes a trial short"
    p.add_argument("--backbone", default="resnet18", help="registered backbone (default resnet18)")


def training_options(p, batch: int = 24):
    "Backbone, device, precision and the steps to be timed"
    backbone_option(p)
    p.add_argument("--device", default="auto", help="auto (default), cpu, cuda, ...")
    p.add_argument("--precision", default="auto", help="auto (default), fp32 or bf16")
    p.add_argument("--steps", type=positive, default=10, help="timed steps per repeat (default 10)")
    p.add_argument("--batch", type=positive, default=batch, help=f"images per step (default {batch})")


# ---- numbers


def spread(values) -> dict:
    "Median, smallest and largest"
    values = list(values)
    return (
        dict(median=statistics.median(values), min=min(values), max=max(values))
        if values
        else dict.fromkeys(("median", "min", "max"), float("nan"))
    )


def row(measure: str, case: str, unit: str, values, target: str = "") -> dict:
    """One line of a report.

    values: repeats, or a number; []: not on this device. target: such as 'below 5', 'at most 1.1', 'at least 3'."""
    return dict(
        measure=measure,
        case=case,
        unit=unit,
        **spread([values] if isinstance(values, (int, float)) else values),
        target=target,
    )


def met(o: dict) -> str:
    "Does the median meet the target?"
    if not o["target"] or o["median"] != o["median"]:
        return ""
    word, value = o["target"].rsplit(" ", 1)
    return (
        "yes"
        if {
            "below": o["median"] < float(value),
            "at most": o["median"] <= float(value),
            "at least": o["median"] >= float(value),
        }[word]
        else "no"
    )


def value(o: dict) -> str:
    "Median (smallest to largest) of a row, or its one value"
    if o["median"] != o["median"]:
        return "not on this device"
    middle, low, high = (number_text(o[k]) for k in ("median", "min", "max"))
    return f"{middle} ({low} to {high})" if o["min"] < o["max"] else middle


def table(rows: list) -> str:
    "The numbers as a Markdown table"
    lines = [[r["case"], value(r), r["unit"], r["target"], met(r)] for r in rows]
    frame = pd.DataFrame(lines, columns=["case", "value", "unit", "target", "met"])
    return to_markdown(frame.set_index(pd.Index([r["measure"] for r in rows], name="measure"))).strip()


# ---- a report


def report(title: str, intro: str, notes: str, rows: list, origin: dict) -> str:
    "The measurements in markdown"
    o, others = (
        origin,
        "" if origin["others"] is None else f" Other work took {origin['others']:.0%} of the machine meanwhile.",
    )
    load = "" if o["load"] is None else f", load average {o['load']:.2f} before"
    precision = f", {o['precision']}" if o["chosen"] else ""
    versions = ", ".join(f"{k} {o[k]}" for k in ("python", "torch", "torchvision", "numpy", "pandas"))
    return f"""# {title}: {o["device"]}

{o["finished"]}, dra_nb {o["version"]} (commit {o["commit"]}), {o["platform"]}{precision}{load}. {versions}.

{intro} Median (smallest to largest).

{table(rows)}

## How it was measured

{notes.strip()}
{OTHERS}

The measurement took {o["seconds"]:.0f} s.{others}
"""


def main(
    name: str,  # of the files
    title: str,  # of the report
    args,  # from `parser`
    measure,  # function(args, temporary folder) -> rows
    intro: str,  # what was measured, a sentence or two
    notes: str,  # how, a markdown list
):
    "Measure, print, write"
    start, others = time.perf_counter(), others_seconds()
    try:
        compute = Compute(getattr(args, "device", "cpu"), getattr(args, "precision", "fp32"))
        origin = provenance(str(compute.resolve()), compute.resolve_precision()) | dict(
            chosen=hasattr(args, "precision"), load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        )
        with tempfile.TemporaryDirectory(prefix="dra_nb_benchmark_") as folder:
            rows = measure(args, Path(folder))
    except DraError as e:
        sys.exit(f"error: {e}")
    seconds = time.perf_counter() - start
    origin.update(
        seconds=seconds, others=None if others is None else max(others_seconds() - others, 0) / seconds / os.cpu_count()
    )
    out, text = (
        args.out or Path("outputs", "benchmarks", slug(origin["device"])),
        report(title, intro, notes, rows, origin),
    )
    with atomic(out / f"{name}.csv") as part:
        pd.DataFrame(rows, columns=BENCHMARK_COLUMNS[:7]).assign(
            device=origin["device"], date=origin["finished"][:10]
        ).to_csv(part, index=False, float_format="%.6g")
    with atomic(out / f"{name}.md") as part:
        part.write_text(text, encoding="utf-8")
    print(text)
    say(f"written to {out}")
