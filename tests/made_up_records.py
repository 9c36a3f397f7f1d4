"Made-up run records for tests, and ways to damage them."

import json
import os

import numpy as np
import pandas as pd
from conftest import REPO
from typer.testing import CliRunner

from dra_nb.cli.record_commands import runs_app
from dra_nb.evaluation.metrics import evaluate
from dra_nb.experiments.record_files import checksum
from dra_nb.experiments.record_writing import write_run
from dra_nb.experiments.records import Runs
from dra_nb.experiments.spec import RunSpec

REAL = REPO / "outputs" / "cpu-finetune" / "runs"
SEEN_ONLY = {"heads": ["seen"]}  # settings of the records in the fixture `runs`


def table(seed=0, n=30, shift=1.0):
    "Scores of 2n made-up test images; every path has two rows, as crops of one image have"
    rng, label = np.random.default_rng(seed), np.repeat([0, 1], n)
    score = (shift * label + rng.normal(0, 1, 2 * n)).astype("float32")
    return pd.DataFrame(
        dict(
            path=[f"images/{i // 2:03}.png" for i in range(2 * n)],
            label=label,
            defect=np.where(label, "dent", ""),
            seen=(label == 1) & (rng.random(2 * n) < 0.5),
            score=score,
            score_seen=score / 2,
            score_pseudo=score / 2,
        )
    )


ORIGIN = dict(
    version="0.1.0",
    commit="0123456789ab",
    device="a processor, 1 threads",
    finished="2026-11-23T12:00:00+00:00",
    losses=[{"seen": 0.5}, {"seen": 0.25}],
)


def write(runs, spec, scores=None):
    scores = table(spec.seed) if scores is None else scores
    metrics = evaluate(scores.score, scores.label, scores.seen).asdict()
    write_run(runs, spec, scores, metrics=metrics, timing=dict(seconds=12.5, training=10.0), provenance=ORIGIN)
    return spec


def with_features(scores):
    vectors = list(np.random.default_rng(0).normal(size=(len(scores), 4)).astype("float32"))
    return scores[["path", "label", "defect", "seen"]].assign(
        row=range(len(scores)), given=False, tested=True, features=vectors
    )


def change(path, function=None, resign=True):
    "Edit a record; resign: also its checksum, as one would who knows how"
    record = json.loads(path.read_text())
    record = function(record) or record
    if resign:
        record["record_sha256"] = checksum(record)
    path.write_text(json.dumps(record))


def long_ago(path):
    os.utime(path, (1, 1))


def two_runs(folder):
    "A folder with two records"
    runs = Runs(folder / "runs")
    for seed in range(2):
        write(runs, RunSpec("elpv", seed=seed, settings=SEEN_ONLY))
    return runs


def command_on(runs):
    "The command `dra_nb runs` on a folder, as a function that gives status and output, or raises the DraError"

    def run(*args, folder=runs.folder):
        result = CliRunner().invoke(runs_app, [*map(str, args), "--runs", str(folder)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return run
