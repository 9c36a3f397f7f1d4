"""How fast the features of a frozen backbone are computed, against the bare network, and how soon a second run starts.

    python benchmarks/features.py --data DATA                 # ELPV at 224 px, EfficientNet-Lite0 with ImageNet weights
    python benchmarks/features.py --data DATA --size 128
    python benchmarks/features.py --backbone resnet18_stage2 --weights none --size 64 --images 4 --bank 8    # a trial

Prints a markdown report and writes it (features.md; features_SIZE.md at another size than 224), with the numbers as
csv, to `--out`.
"""

import os
import time
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from measured import main, parser, positive, row, say

from dra_nb.data.datasets import load_catalog
from dra_nb.data.protocols import make_split
from dra_nb.data.store import open_store
from dra_nb.methods.feature_store import FeatureStore
from dra_nb.methods.registry import create_method, method_schedule
from dra_nb.methods.views import PLAIN, View
from dra_nb.profiling.timing import in_turn, ratios
from dra_nb.training.compute import Compute
from dra_nb.training.loop import fit
from dra_nb.training.samples import feature_store

VIEWS = {
    "plain": PLAIN,
    "turned": View("", 180.0, 0),
    **{kind: View(kind, 180.0, 0) for kind in ("cutmix", "cutpaste_scar", "cutpaste_mix", "perlin")},
}
TARGETS = dict.fromkeys(("plain", "turned", "cutmix", "cutpaste_scar", "cutpaste_mix"), "at least 0.9")
BATCH = 32  # images per forward pass, as features are computed


class Started(Exception):
    "The first step of a training"


class Seconds(NamedTuple):
    "What a call takes"

    wall: float
    processor: float  # of all threads


def both_times(call) -> Seconds:
    "Measure a call"
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return Seconds(time.perf_counter() - wall, time.process_time() - processor)


def opened(args, store, folder: Path) -> FeatureStore:
    "A feature store whose files are not there yet"
    features = feature_store(new(args, args.images), store, compute(args))
    features.progress = False
    features.kept.folder = folder
    return features


def new(args, bank_size: int):
    "A method with a frozen backbone"
    weights = None if args.weights == "none" else args.weights
    return create_method(args.method, weights, args.backbone, 0, frozen=True, bank_size=bank_size)


def compute(args) -> Compute:
    "Where and how precisely"
    return Compute(args.device, args.precision)


@torch.no_grad()
def bare_network(features: FeatureStore, rows: np.ndarray):
    "A function that runs the network on images that are on the device already"
    images = features.images(rows[:BATCH], PLAIN)

    def run():
        for start in range(0, len(rows), BATCH):
            with torch.no_grad(), features.autocast():
                list(features.encoder(images[: len(rows) - start]))

    return run


def speed_rows(args, store, rows: np.ndarray, tmp: Path) -> list:
    "Each kind of view against the bare network, in turn"
    made, measured = 0, []
    bare = bare_network(opened(args, store, tmp), rows)
    bare()
    for name, view in VIEWS.items():
        say(f"view: {name}")

        def computed(view=view):
            nonlocal made
            made += 1
            opened_here = opened(args, store, tmp / str(made))
            return both_times(lambda: opened_here.fill(rows, view))

        found = in_turn({"bare": lambda: both_times(bare), "features": computed}, args.repeats)
        wall, processor = (ratios(*([t[i] for t in found[way]] for way in ("bare", "features"))) for i in range(2))
        measured += [
            row("speed of features / bare network", name, "", wall, TARGETS.get(name, "")),
            row("processor time of bare network / features", name, "", processor),
            row("processor time of an image", name, "ms", [1e3 * t.processor / len(rows) for t in found["features"]]),
        ]
    alone = [1e3 * t.processor / len(rows) for t in found["bare"]]
    measured.append(row("processor time of an image", "bare network", "ms", alone))
    size = sum(f.bytes for f in opened(args, store, tmp / "1").files(PLAIN))
    return [*measured, row("size of an image's features", "one view", "kB", size / 1e3)]


def first_step(args, store, split, tmp: Path) -> float:  # seconds
    "From the start of `fit` to its first step, with what is kept below a folder"
    method = new(args, args.bank)

    def step(batch):
        raise Started

    method.training_step = step
    start = time.perf_counter()
    try:
        with patch.dict(os.environ, DRA_NB_CACHE=str(tmp)):
            fit(method, store, split, method_schedule(args.method, {}), compute=compute(args))
    except Started:
        return time.perf_counter() - start
    raise AssertionError("the training ended before its first step")


def measure(args, tmp: Path) -> list:
    "All rows of the report"
    catalog = load_catalog("elpv", args.data) if args.data else load_catalog("textures")
    category = "" if args.data else "weave"
    store = open_store(catalog, args.size, tmp / "images", progress=False)
    split = make_split(catalog, shots=10, seed=0, category=category)
    rows = split.normal[: args.images]
    measured = speed_rows(args, store, rows, tmp / "features")
    say("first step of a run")
    times = [first_step(args, store, split, tmp / "cache") for _ in range(1 + args.repeats)]
    case = f"{len(split.normal)} normals, bank of {args.bank}"
    return [
        *measured,
        row("from fit to the first step, features not there yet", case, "s", times[0]),
        row("from fit to the first step, features kept", case, "s", times[1:], "below 2"),
    ]


NOTES = f"""
- Bare network: forward passes of {BATCH} images that are there already, in a loop. Features: from the image store
  to the records on the disk, in a new folder each time: reading, changing and normalising the images, the same forward
  passes, half precision, checksums, writing. Both in turn; a ratio is of two neighbours.
- Processor time is that of all threads. On a busy machine it can be trusted, the wall time cannot.
- Turned and pseudo anomalies are turned by up to 180 degrees; a pseudo anomaly is made first.
- First step: a new method each time, from `fit` to its first training step, with the checks and the bank of
  features."""

if __name__ == "__main__":
    p = parser(__doc__)
    p.add_argument("--data", help="folder that holds elpv/; without it the embedded textures, a trial")
    p.add_argument("--method", default="dra", help="whose part of the network is run (default dra)")
    p.add_argument("--backbone", default="efficientnet_lite0", help="(default efficientnet_lite0)")
    p.add_argument("--weights", default="imagenet", help="imagenet (default), a file, or none")
    p.add_argument("--size", type=positive, default=224, help="image size in px (default 224)")
    p.add_argument("--images", type=positive, default=128, help="images of a measurement (default 128)")
    p.add_argument("--bank", type=positive, default=1024, help="views of normals that are trained on (default 1024)")
    p.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    p.add_argument("--precision", default="fp32", help="fp32 (default) or bf16")
    args = p.parse_args()
    main(
        "features" if args.size == 224 else f"features_{args.size}",
        f"Features of a frozen backbone, {args.size} px",
        args,
        measure,
        f"{args.backbone}, weights {args.weights}, as {args.method} uses it, {args.images} images.",
        NOTES,
    )
