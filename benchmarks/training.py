"""Speed of training DRA, beside bare steps, a plain pipeline, and other ways to compute.

    python benchmarks/training.py                                        # embedded textures, random weights
    python benchmarks/training.py --data DATA --weights WEIGHTS          # ELPV, read from DATA/elpv
    python benchmarks/training.py --raw 1024                             # drawn PNG of 1024 px, as large as in MVTec AD
    python benchmarks/training.py --sizes 64 --compare 64 --steps 1 --repeats 1 --batch 6   # a trial

On two cores about a quarter of an hour, of which most goes to the slow ways that are compared.
Prints a markdown report and writes it (training.md), with the numbers as csv (training.csv), to `--out`.
"""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
from data import image_folder
from measured import alone, main, numbers, parser, positive, row, say, training_options, whole
from plain_pipeline import plain_batches

from dra_nb.core import available_cores
from dra_nb.data.datasets import load_catalog, load_datasets
from dra_nb.data.protocols import make_split
from dra_nb.data.readers.mvtec import read_mvtec
from dra_nb.data.store import open_store
from dra_nb.models.backbone import weights_id
from dra_nb.profiling.cases import Case, computed, make_case, released, with_schedule
from dra_nb.profiling.memory import peak_mb
from dra_nb.profiling.parts import PARTS, step_parts
from dra_nb.profiling.steps import bare_step, new_learner, run_bare, run_fit
from dra_nb.profiling.timing import in_turn, ratios, time_call
from dra_nb.profiling.waits import synchronisations
from dra_nb.training.compute import Compute

WARM_UP, RUN = 2, 600  # steps that are not timed; steps of a run of the paper
TARGETS = {
    "cpu": dict(overhead="at most 1.1", plain=(224, "at least 3"), compute="at least 2"),
    "cuda": dict(overhead="at most 1.15", plain=(448, "at least 5"), compute=""),
}


# ---- what is trained on


def open_catalog(args, folder: Path):
    "The images: drawn ones, a dataset, or the embedded textures"
    if not args.raw:
        return load_catalog(args.dataset or ("elpv" if args.data else "textures"), args.data)
    say(f"drawing {args.raw_images} images of {args.raw} px")
    return read_mvtec(
        image_folder(folder / "raw", ("png", "RGB", (args.raw, args.raw)), args.raw_images, args.raw_images)
    )


def describe(args) -> str:
    "The images in words"
    if args.raw:
        return f"PNG of {args.raw} px"
    name = args.dataset or ("elpv" if args.data else "textures")
    return load_datasets()[name].title if name in load_datasets() else name


def open_case(args, catalog, size: int, folder: Path) -> tuple:
    "(seconds to build the store, case) at an image size"
    split = make_split(catalog, shots=10, category=sorted(catalog.category.unique())[0])
    rows = np.sort(np.concatenate([split.normal, split.given]))
    place = dict(
        batch=args.batch,
        compute=Compute(args.device, args.precision),
        backbone=args.backbone,
        weights=None if args.weights == "none" else args.weights,
    )
    make_case(None, split, args.steps, **place)  # raises what cannot be trained
    part = catalog.iloc[rows].reset_index(drop=True)  # what a run reads
    seconds, store = time_call(open_store, part, size, cache=folder / "stores", progress=False)
    places = {k: np.searchsorted(rows, getattr(split, k)) for k in ("normal", "given", "references")}
    own = replace(split, **places)
    return seconds, part, make_case(store, own, args.steps, **place)


# ---- ways to train


def run_plain(case: Case, catalog, workers: int, released_code: bool) -> float:
    "Seconds of the steps on batches of the plain pipeline, once its workers run; the released code reads every loss"
    learner = new_learner(case)
    batches = plain_batches(
        catalog, case.split, learner.method, case.schedule, case.store.size, workers, case.device, layout=case.layout
    )

    def steps(n):
        for batch in itertools.islice(batches, n):
            losses = bare_step(case, learner, batch)
            if released_code:
                for loss in losses.values():
                    loss.item()

    with case.memory():
        steps(WARM_UP)
        seconds, _ = time_call(steps, case.schedule.steps, device=case.device)
    batches.close()
    return seconds


def warm_up(case: Case):
    "A few steps of each kind that nobody times"
    short = with_schedule(case, steps=WARM_UP)
    for way in (run_bare, run_fit):
        way(short)


def overhead_rows(case: Case, args, name: str) -> list:
    "`fit` against bare steps, and where the time of a step goes"
    warm_up(case)
    n = case.images
    px = case.store.size
    found = in_turn({"fit": lambda: run_fit(case), "bare": lambda: run_bare(case)}, args.repeats)
    fit, bare = ([o.seconds for o in found[way]] for way in ("fit", "bare"))
    parts, waits = step_parts(case), synchronisations(case)
    rows = [
        row("fit", name, "images/s", [n / s for s in fit]),
        row("bare steps", name, "images/s", [n / s for s in bare]),
        row(
            "wall time, fit / bare steps",
            name,
            "",
            ratios(fit, bare),
            TARGETS[case.device.type]["overhead"] if px >= 128 else "",
        ),
        row("making batches, share of fit", name, "", [o.batch_share for o in found["fit"]]),
        *[row(f"part of a step: {part}", name, "ms", float(1000 * parts[part])) for part in PARTS],
    ]
    if waits:
        say(f"waits for the device: {waits}")
    return rows + (
        [row("waits for the device within the steps", name, "", len(waits), "at most 0")]
        if case.device.type == "cuda"
        else []
    )


def plain_rows(case: Case, catalog, build: float, args, name: str) -> list:
    "`fit` against the plain pipeline: with the same compute, and with that of the released code"
    ways = {"fit": lambda: run_fit(case).seconds}
    for n in args.workers:
        ways["same compute", n] = lambda n=n: run_plain(case, catalog, n, False)
        ways["as released", n] = lambda n=n: alone(
            run_plain, released(case), catalog, n, True
        )  # here it would find the memory that `fit` has freed
    found = in_turn(ways, args.repeats)
    images = case.images
    steps = case.schedule.steps
    size, target = TARGETS[case.device.type]["plain"]
    rows = [
        row(f"plain pipeline, {way[0]}, {way[1]} workers", name, "images/s", [images / s for s in seconds])
        for way, seconds in found.items()
        if way != "fit"
    ]
    for kind in ("same compute", "as released"):
        best = min((found[kind, n] for n in args.workers), key=np.median)
        rows.append(row(f"speed-up over the better plain pipeline, {kind}", name, "", ratios(best, found["fit"])))
        entire = [slow * RUN / steps / (build + fast * RUN / steps) for slow, fast in zip(best, found["fit"])]
        rows.append(
            row(
                f"speed-up of a run of {RUN} steps with building the store, {kind}",
                name,
                "",
                entire,
                target if kind == "as released" and case.store.size == size else "",
            )
        )
    return rows + [row("building the store, once", name, "s", build)]


def compute_rows(case: Case, args, name: str) -> list:
    "Bare steps in bf16 or fp32, channels last or NCHW"
    cases = {
        f"{p}, {'channels last' if last else 'NCHW'}": computed(replace(case, channels_last=last), precision=p)
        for p in ("bf16", "fp32")
        for last in (True, False)
    }
    for c in cases.values():
        run_bare(with_schedule(c, steps=1))
    found = in_turn({k: lambda c=c: run_bare(c).seconds for k, c in cases.items()}, args.repeats)
    fast = (
        TARGETS[case.device.type]["compute"] if case.precision == "bf16" and case.store.size >= 128 else ""
    )  # where the device has it
    return [
        *[
            row(f"bare steps, {k}", name, "ms per step", [1000 * s / case.schedule.steps for s in seconds])
            for k, seconds in found.items()
        ],
        *[
            row(
                f"speed-up of {k} over fp32, NCHW",
                name,
                "",
                ratios(found["fp32, NCHW"], seconds),
                fast if k == "bf16, channels last" else "",
            )
            for k, seconds in found.items()
            if k != "fp32, NCHW"
        ],
    ]


def measure(args, folder: Path) -> list:
    "All sizes"
    catalog, rows = open_catalog(args, folder), []
    for size in sorted({*args.sizes, *args.compare}):
        name = f"{size} px, {describe(args)}"
        say(f"{name}: building the store")
        build, part, case = open_case(args, catalog, size, folder)
        say(f"{name}: fit and bare steps")
        rows += overhead_rows(case, args, name)
        if size not in args.compare:
            continue
        say(f"{name}: plain pipeline")
        rows += plain_rows(case, part, build, args, name)
        say(f"{name}: other ways to compute")
        rows += compute_rows(case, args, name)
    return rows + [row("peak memory of the process", describe(args), "MB", peak_mb())]


NOTES = f"""
- `fit`: steps x batch / wall time of the whole call, in which references are not counted as images. Bare steps: as
  many forward and backward passes and updates on noise that is on the device. They are measured in turn, and compared
  pair by pair.
- Parts of a step: from marks within `fit` (`dra_nb.profiling.parts`); they sum to the whole step. *Read* is how long it
  waited for the rows.
- Plain: PIL, torchvision transforms and a DataLoader, every file, references too, decoded at every step; its workers
  run before the clock starts. *Same compute*: the step of `fit`. *As released*: float32, NCHW, Adam and memory as they
  come, every loss read at every step, in a process of its own.
- A run of {RUN} steps: seconds per step times {RUN}; for `fit` also the building of the store from the same files,
  which later runs find ready.
- Other ways to compute: bare steps, so that nothing but the computing differs."""

if __name__ == "__main__":
    p = parser(__doc__)
    training_options(p)
    p.add_argument("--data", help="folder that holds one folder per dataset; without it the embedded textures are used")
    p.add_argument("--dataset", help="default: elpv with --data, else textures")
    p.add_argument("--raw", type=positive, help="instead: drawn colour PNG files of so many pixels a side")
    p.add_argument("--raw-images", type=positive, default=150, help="number of drawn files (default 150)")
    p.add_argument("--weights", default="none", help="of the backbone: imagenet, a file, or none (default)")
    numbers(p, "--sizes", [128, 224, 448], "image sizes in px")
    numbers(p, "--compare", [224], "sizes at which the plain pipeline and other ways to compute are measured, too")
    p.add_argument(
        "--workers",
        type=whole,
        nargs="+",
        default=sorted({0, available_cores()}),
        help="of the plain pipeline (default 0 and the number of cores)",
    )
    args = p.parse_args()
    if args.raw_images < 120:
        p.error("fewer than 120 drawn files have too few anomalies")
    weights = weights_id(None if args.weights == "none" else args.weights)
    main(
        "training_raw" if args.raw else "training",
        "Training speed",
        args,
        measure,
        f"DRA with {args.backbone} on {describe(args)}, weights {weights}: {args.batch} images per step, a third of "
        f"them given anomalies, and 5 references, {args.steps} steps, {args.repeats} repeats in turn.",
        NOTES,
    )
