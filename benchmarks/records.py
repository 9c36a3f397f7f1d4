"""How fast the records of a large study are written, listed and read into one table.

    python benchmarks/records.py                               # about a minute, 100 MB of disk for that time
    python benchmarks/records.py --records 200 --repeats 1     # a trial

Records are made up: a spec each, metrics, timing, provenance with the losses of 30 epochs, and the scores of 1,000 test
images, which all of them share. They lie in a temporary folder that is removed. Every measurement runs
in a process of its own.
Prints a markdown report and writes it (records.md), with the numbers as csv (records.csv), to `--out`.
"""

import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from measured import alone, link, main, parser, positive, row, say

from dra_nb.core import DraError
from dra_nb.evaluation.metrics import evaluate
from dra_nb.experiments.export import export_records
from dra_nb.experiments.left_overs import remove_left_overs
from dra_nb.experiments.overview import list_records, results_table
from dra_nb.experiments.provenance import provenance
from dra_nb.experiments.record_files import RECORD_SCHEMA, checksum
from dra_nb.experiments.record_writing import write_run
from dra_nb.experiments.records import Runs
from dra_nb.experiments.spec import RunSpec
from dra_nb.experiments.verify import verify
from dra_nb.profiling.memory import peak_mb, reset_peak
from dra_nb.profiling.timing import time_call

IMAGES, EPOCHS, METHODS, WRITTEN = 1000, 30, ("dra", "devnet", "flos", "saoe"), 50
TARGET = "below 5"  # seconds for 10,000 records


# ---- records to read


def specs(n: int) -> list:
    "n different runs"
    return [
        RunSpec("elpv", method=METHODS[i % 4], shots=1 + 9 * (i // 4 % 2), seed=i // 8, settings={"n_reference": 5})
        for i in range(n)
    ]


def scores() -> pd.DataFrame:
    "Made-up scores of test images"
    rng, label = np.random.default_rng(0), np.arange(IMAGES) % 2
    score = (label + rng.normal(size=IMAGES)).astype("float32")
    return pd.DataFrame(
        dict(
            path=[f"images/cell{i:04}.png" for i in range(IMAGES)],
            label=label,
            defect=np.where(label, "mono", ""),
            seen=label == 1,
            score=score,
            score_seen=score / 2,
            score_residual=score / 2,
        )
    )


def parts() -> tuple:
    "Metrics, timing and provenance of a made-up run"
    t, losses = (
        scores(),
        [
            {"seen": 1 / (i + 1), "pseudo": 2 / (i + 1), "residual": 3 / (i + 1), "normality": 4 / (i + 1)}
            for i in range(EPOCHS)
        ],
    )
    return (
        evaluate(t.score, t.label, t.seen).asdict(),
        dict(seconds=80.0, training=60.0, batches=2.0, images=28_800),
        provenance("cpu", "fp32") | dict(losses=losses),
    )


def fill(folder: Path, n: int):
    "A folder of n records; their scores are further names of one file"
    metrics, timing, origin = parts()
    folder.mkdir(parents=True)
    scores().to_parquet(folder / "scores", index=False)
    digest = hashlib.sha256((folder / "scores").read_bytes()).hexdigest()
    for spec in specs(n):
        record = json.loads(
            json.dumps(
                dict(
                    schema=RECORD_SCHEMA,
                    key=spec.key,
                    spec=asdict(spec),
                    metrics=metrics,
                    timing=timing,
                    provenance=origin,
                    scores_sha256=digest,
                )
            )
        )
        (folder / f"{spec.key}.json").write_text(
            json.dumps(record | dict(record_sha256=checksum(record)), indent=1) + "\n", encoding="utf-8"
        )
        link(folder / "scores", folder / f"{spec.key}.parquet")


# ---- what is measured, each in a fresh process


def measure_reading(folder: Path, n: int, repeats: int) -> dict:
    "Seconds to list the folder, to read a study's table and to find what is left over; growth of the first peak"
    runs, study, found = Runs(folder), specs(n), dict(ls=[], frame=[], cpu=[], missing=[], sweep=[])
    reset_peak()
    before = peak_mb()
    for repeat in range(repeats):
        for name, call in (
            ("frame", lambda: results_table(runs, study)),
            ("ls", lambda: list_records(runs)),
            ("missing", lambda: [s for s in study if not runs.done(s)]),
            ("sweep", lambda: remove_left_overs(runs)),
        ):
            clock = time.process_time()
            seconds, result = time_call(call)
            found[name].append(seconds)
            if name == "frame":
                found["cpu"].append(time.process_time() - clock)
            if name in ("frame", "ls") and len(result) != n:
                raise DraError(f"{len(result)} of {n} records were read; the folder is not the benchmark's own")
        if not repeat:
            found["mb"] = peak_mb() - before
    return found


def measure_export(folder: Path, file: Path, repeats: int) -> dict:
    "Seconds to write all records to one parquet file, and the scores of a hundred of them at most"
    runs, some = Runs(folder), dict(images=True, shots=1, method="dra", seed=list(range(100)))
    return dict(
        export=[time_call(export_records, runs, file)[0] for _ in range(repeats)],
        rows=export_records(runs, file, **some),
        scores=[time_call(export_records, runs, file, **some)[0] for _ in range(repeats)],
    )


def measure_each(folder: Path) -> dict:
    "Seconds per record to write (flushed to the disk), and to verify"
    runs, (metrics, timing, origin), t = Runs(folder), parts(), scores()
    record = dict(metrics=metrics, timing=timing, provenance=origin)
    written = [time_call(write_run, runs, spec, t, **record)[0] for spec in specs(WRITTEN)]
    verify(runs)
    return dict(write=written, verify=[time_call(verify, runs)[0] / WRITTEN for _ in range(3)])


def measure(args, tmp: Path) -> list:
    "Everything, one after the other"
    say(f"{args.records} records")
    fill(tmp / "runs", args.records)
    found = (
        alone(measure_reading, tmp / "runs", args.records, args.repeats)
        | alone(measure_export, tmp / "runs", tmp / "all.parquet", args.repeats)
        | alone(measure_each, tmp / "each")
    )
    n, images, target = f"{args.records} records", f"{IMAGES} images", TARGET if args.records >= 10_000 else ""
    return [
        row("table of a study (results_table)", n, "s", found["frame"], target),
        row("table of a study, CPU time", n, "s", found["cpu"]),
        row("list (list_records)", n, "s", found["ls"], target),
        row("peak memory above import", n, "MB", found["mb"]),
        row("which runs are missing (Runs.done)", n, "s", found["missing"]),
        row("look for what is left over (remove_left_overs)", n, "s", found["sweep"]),
        row("export, a row per run", n, "s", found["export"]),
        row(
            f"export, a row per image, of some of {args.records} records", f"{found['rows']} rows", "s", found["scores"]
        ),
        row("write a record", images, "ms", [1000 * s for s in found["write"]]),
        row("verify a record", images, "ms", [1000 * s for s in found["verify"]]),
    ]


NOTES = f"""
- Records have the losses of {EPOCHS} epochs; the files are in the page cache. Table and list read every JSON file,
  check its checksum and its parts.
- Scores are {IMAGES} rows; to verify a record its metrics are computed again from them.
- Write: both files, each flushed to the disk before it is renamed, so it depends on the disk."""

if __name__ == "__main__":
    p = parser(__doc__, repeats=5)
    p.add_argument("--records", type=positive, default=10_000, help="records of the study (default 10000)")
    args = p.parse_args()
    if args.records < 8:
        p.error("fewer than 8 records")
    main("records", "Records", args, measure, f"{args.repeats} repeats.", NOTES)
