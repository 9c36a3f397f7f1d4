"Every script in benchmarks/ runs with trial sizes and leaves its report; what cannot be measured is refused."

import os
import subprocess
import sys

import pandas as pd
import pytest
from conftest import REPO, python, succeeded

pytestmark = pytest.mark.slow

TRIALS = {  # name of the files -> command line
    "training": "training.py --sizes 64 --compare 64 --steps 1 --batch 6 --workers 0 --raw 80 --raw-images 120 "
    "--backbone resnet18_stage2",
    "growth": "growth.py --sizes 64 --images 60 120 --lengths 1 2 --steps 1 --batch 6 --backbone resnet18_stage2",
    "scoring": "scoring.py --size 64 --images 20 40 --batch 16 --backbone resnet18_stage2",
    "options": "options.py --size 64 --batch 6 --steps 1 --images 40 --paper 1 --backbone resnet18_stage2",
    "precision": "precision.py --seeds 2 --size 48 --epochs 1 --steps 1 --batch 6 --categories 1",
    "detector": "detector.py --methods devnet patchcore --backbone resnet18_stage2 --size 64 --batches 2 "
    "--seconds 0.05 --files 12",
    "tiles": "tiles.py --side 256 --size 64 --tiles 1 3 --photos 2 4 --backbone resnet18_stage2",
    "small_defects": "small_defects.py --materials weave --side 256 --size 48 --tiles 1 2 --normals 14 --given 2 "
    "--tested 4",
    "records": "records.py --records 20",
    "data": "data.py --files 150 --contents 100 --build-images 100 --memory-images 100 --batch-images 120 --size 32",
    "scheduling": "scheduling.py --runs 10 --executors serial",
    "features": "features.py --backbone resnet18_stage2 --weights none --size 64 --images 4 --bank 8",
}
FILES = dict.fromkeys(TRIALS) | {"training": "training_raw", "features": "features_64"}
EXPECTED = {  # name -> measures that must be there
    "training": [
        "wall time, fit / bare steps",
        "part of a step: backward",
        "speed-up of a run of 600 steps with building the store, as released",
        "speed-up of bf16, channels last over fp32, NCHW",
    ],
    "growth": ["time of an epoch, 120 / 60 images", "time per step, 2 / 1 steps", "memory: growth while training"],
    "scoring": [
        "wall time, score / bare backbone",
        "passes of an image through the backbone",
        "growth of memory, 40 / 20 images",
    ],
    "options": [
        "bare steps, all",
        "share of the bf16 peak, all",
        "fit, images kept on the device",
        "a whole run of fit, as it comes",
    ],
    "precision": [
        "AUROC, fp32",
        "bf16 - fp32, standard error of the mean",
        "size of bf16 - fp32, in standard deviations over the seeds",
    ],
    "detector": [
        "latency",
        "latency, 99th percentile",
        "fit, against a forward pass of the same number of images",
        "score with map, against a forward pass",
        "files: read, decoded, resized and scored",
    ],
    "tiles": ["photo / one pass of its tiles", "time per tile, 9 / 1 tiles", "growth of memory, 4 / 2 photos"],
    "small_defects": ["AUROC"],
    "records": ["table of a study (results_table)", "verify a record"],
    "data": ["catalog: read the folder", "build: store / loop", "batch: read"],
    "scheduling": ["all in, per run", "start: until the first run has ended"],
    "features": [
        "speed of features / bare network",
        "processor time of an image",
        "size of an image's features",
        "from fit to the first step, features kept",
    ],
}

TOGETHER = """
import runpy, sys
sys.path.insert(0, "benchmarks")
import measured
measured.alone = lambda function, *args: function(*args)  # no further processes
for line in sys.argv[2:]:
    sys.argv = ["benchmarks/" + line.split()[0], *line.split()[1:], "--repeats", "1", "--out", sys.argv[1]]
    out = sys.argv[-1]
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.argv = ["", out]
"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    "Folder of the reports: `scoring` as a user runs it, with its own processes; the others in one process"
    out = tmp_path_factory.mktemp("reports")
    succeeded(
        python(TOGETHER, out, *[line for name, line in TRIALS.items() if name != "scoring"], cwd=REPO, timeout=1200)
    )  # bf16 is slow where a CPU has it not
    script, *options = TRIALS["scoring"].split()
    done = subprocess.run(
        [sys.executable, REPO / "benchmarks" / script, *options, "--repeats", "1", "--out", out],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0 and "| wall time, score / bare backbone |" in done.stdout, done.stderr[-2000:]
    return out


@pytest.mark.parametrize("name", TRIALS)
def test_the_report_has_its_numbers(reports, name):
    stem = FILES[name] or name
    table, text = (
        pd.read_csv(reports / f"{stem}.csv", keep_default_na=False),
        (reports / f"{stem}.md").read_text(encoding="utf-8"),
    )
    assert list(table.columns) == ["measure", "case", "unit", "median", "min", "max", "target", "device", "date"]
    assert set(EXPECTED[name]) <= set(table.measure)
    numbers = table[table["median"] != ""].astype({"median": float, "min": float, "max": float})
    assert (numbers["min"] <= numbers["median"]).all() and (numbers["median"] <= numbers["max"]).all()
    signed = numbers.measure.str.contains("bf16 - fp32|growth|difference|part of a step|above import")
    assert (numbers[~signed]["median"] > 0).all(), numbers[~signed & (numbers["median"] <= 0)]
    assert table.device.nunique() == 1 and table.device[0] in text.splitlines()[0] and table.date[0] in text
    for row in numbers.to_dict("records"):
        assert f"| {row['measure']} | {row['case']} |" in text
    assert text.count("\n| ") == len(table) + 2  # head and rule; no cell breaks the table


def test_what_a_device_lacks_is_said(reports):
    table, text = pd.read_csv(reports / "options.csv"), (reports / "options.md").read_text(encoding="utf-8")
    gone = table[table["median"].isna()]
    import torch

    if not torch.cuda.is_available():
        assert gone.measure.str.contains("CUDA graphs").any() and text.count("not on this device") == len(gone)


def test_steps_are_counted_once(reports):
    "The parts of a step are those of one step, and an image passes the backbone once per scale"
    t = pd.read_csv(reports / "training_raw.csv").set_index("measure")["median"]
    parts = t[t.index.str.startswith("part of a step")].sum() / 1000
    assert 0 < parts < 30 / t["bare steps"]  # seconds of a step of 6 images, within a factor of five
    assert (
        pd.read_csv(reports / "scoring.csv").set_index("measure")["median"]["passes of an image through the backbone"]
        == 2
    )


def test_the_numbers_can_be_drawn(reports):
    from dra_nb.profiling.benchmarks import drawn_numbers, read_benchmarks
    from dra_nb.profiling.speed_figures import speed_figure
    from dra_nb.profiling.targets import targets_figure, targets_table

    numbers = read_benchmarks(reports.parent)
    assert {"growth", "scoring", "data"} <= set(numbers.file)
    drawn, targets = drawn_numbers(numbers), targets_table(numbers)
    assert set(drawn.measure) == {"memory"} and set(targets.met) <= {"yes", "no"} and len(targets) > 5
    assert len(speed_figure(drawn).axes) == 1 and len(targets_figure(targets).axes) == 1


@pytest.mark.parametrize(
    "line, message",
    [
        ("training.py --sizes 0", "0 is below 1"),
        ("data.py --files 5", "fewer than 100"),
        ("training.py --raw 64 --raw-images 9", "fewer than 120"),
        ("records.py --records 3", "fewer than 8"),
        ("precision.py --seeds 1", "two seeds"),
        ("scheduling.py --executors none", "invalid choice"),
        ("growth.py --repeats few", "invalid positive value"),
    ],
)
def test_wrong_arguments_are_refused(line, message, monkeypatch, capsys, tmp_path):
    import runpy

    script, *options = line.split()
    monkeypatch.setattr(sys, "path", [str(REPO / "benchmarks"), *sys.path])
    monkeypatch.setattr(sys, "argv", [script, *options, "--out", str(tmp_path / "out")])
    for name in ("data", "measured", "plain_pipeline"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(REPO / "benchmarks" / script), run_name="__main__")
    assert end.value.code == 2 and message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_what_cannot_be_measured_is_said(tmp_path):
    done = python(
        "import runpy, sys; sys.path.insert(0, 'benchmarks'); sys.argv = ['x', *sys.argv[1:]]; "
        "runpy.run_path('benchmarks/training.py', run_name='__main__')",
        "--data",
        tmp_path,
        "--out",
        tmp_path / "out",
        cwd=REPO,
    )
    assert (
        done.returncode == 1
        and done.stderr.startswith("error: ")
        and "Traceback" not in done.stderr
        and not (tmp_path / "out").exists()
    )
