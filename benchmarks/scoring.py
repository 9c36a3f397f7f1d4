"""How long scoring takes beside the forward passes of the backbone, and how much memory.

    python benchmarks/scoring.py                                         # 1,000 images of 224 px
    python benchmarks/scoring.py --size 64 --images 20 40 --batch 16 --repeats 1      # a trial
    python benchmarks/scoring.py --maps --images 48 --repeats 7          # only: what score maps add (scoring_maps.md)

Prints a markdown report and writes it (scoring.md), with the numbers as csv (scoring.csv), to `--out`.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from measured import alone, backbone_option, main, numbers, parser, positive, row, say

from dra_nb.data.store import ImageStore
from dra_nb.evaluation.scoring import score
from dra_nb.methods.registry import create_method, method_schedule
from dra_nb.profiling.cases import make_case, noise_split, noise_store
from dra_nb.profiling.memory import MemoryPeak, peak_mb
from dra_nb.profiling.scoring import count_passes, run_backbone, run_scoring
from dra_nb.profiling.steps import new_learner, noise_batch
from dra_nb.profiling.timing import in_turn, ratios, time_call
from dra_nb.training.compute import Compute
from dra_nb.training.loop import fit


def open_case(path: Path, args) -> tuple:
    "A case, its method after a step of training, and how often that encoded references"
    store = ImageStore(path)
    compute = Compute(args.device, args.precision)
    case = make_case(store, noise_split(len(store)), 1, 6, compute=compute, backbone=args.backbone)
    method = new_learner(case).method
    with count_passes(method) as count:
        fit(method, store, case.split, case.schedule, compute=case.compute)
    return case, method, count.references


def measure_seconds(path: Path, n: int, args) -> dict:
    "Scoring and bare forward passes in turn, and what passes through the backbone"
    case, method, encoded = open_case(path, args)
    rows = np.arange(n)
    with count_passes(method) as count:
        run_scoring(case, method, rows[: args.batch], args.batch)
    run_backbone(case, method, min(n, args.batch), args.batch)
    ways = {
        "score": lambda: run_scoring(case, method, rows, args.batch).seconds,
        "backbone": lambda: run_backbone(case, method, n, args.batch),
        "folded": lambda: run_backbone(case, method, n, args.batch, fold=True),
        "heads": lambda: run_backbone(case, method, n, args.batch, heads=True, fold=True),
    }
    return dict(
        in_turn(ways, args.repeats), passes=count.images / min(n, args.batch), encoded=encoded + count.references
    )


def measure_memory(path: Path, n: int, args) -> tuple:
    "(growth, peak of the process) in MB of making a detector and scoring n images"
    store = ImageStore(path)
    compute = Compute(args.device, args.precision)
    case = make_case(store, noise_split(len(store)), 1, 6, compute=compute, backbone=args.backbone)
    with MemoryPeak(case.device) as memory:
        method = new_learner(case).method.eval()
        method.set_references(noise_batch(case).references)
        run_scoring(case, method, np.arange(n), args.batch)
    return memory.mb, peak_mb()


def measure(args, tmp: Path) -> list:
    "Seconds at the first number of images, memory at all"
    path = noise_store(tmp / "noise.npy", max(args.images), args.size).path
    n = args.images[0]
    names = {n: f"{n} images, {args.size} px" for n in args.images}
    say(f"{names[n]}: scoring")
    found = alone(measure_seconds, path, n, args)
    rows = [
        row("score", names[n], "images/s", [n / s for s in found["score"]]),
        row("bare backbone", names[n], "images/s", [n / s for s in found["backbone"]]),
        row(
            "wall time, score / bare backbone",
            names[n],
            "",
            ratios(found["score"], found["backbone"]),
            "at most 1.1",
        ),
        row("wall time, score / bare backbone, folded", names[n], "", ratios(found["score"], found["folded"])),
        row(
            "wall time, backbone and heads, folded / bare backbone, folded",
            names[n],
            "",
            ratios(found["heads"], found["folded"]),
        ),
        row("passes of an image through the backbone", names[n], "", found["passes"], "at most 2"),
        row("times that references were encoded", names[n], "", found["encoded"], "at most 1"),
    ]
    memory = {}
    for n in args.images:
        say(f"{names[n]}: memory")
        memory[n] = alone(measure_memory, path, n, args)
        growth, process = memory[n]
        rows += [
            row("memory: growth while scoring", names[n], "MB", growth),
            row("memory: peak of the process, with what it has mapped", names[n], "MB", process),
        ]
    least, most = min(args.images), max(args.images)
    return rows + [
        row(
            f"growth of memory, {most} / {least} images",
            f"{args.size} px",
            "",
            memory[most][0] / max(memory[least][0], 1),
            "at most 1.1",
        )
    ]


MAPS_OF = ("dra", "patchcore")


def measure_maps(path: Path, name: str, n: int, args) -> dict:
    "Seconds of `score` without and with score maps, in turn, in one process"
    store, rows = ImageStore(path), np.arange(n)
    compute = Compute(args.device, args.precision)
    method = create_method(name)
    schedule = method_schedule(name, {})
    if method.needs_steps:
        schedule = replace(schedule, epochs=1, steps=1, batch=6, anomalies=2)
    fit(method, store, noise_split(40), schedule, compute=compute)
    ways = {
        maps: lambda maps=maps: (
            time_call(score, method, store, rows, compute=compute, batch_size=args.batch, maps=maps).seconds
        )
        for maps in (False, True)
    }
    for way in ways.values():
        way()
    return in_turn(ways, args.repeats)


def measure_all_maps(args, tmp: Path) -> list:
    "Rates without and with maps, and what maps add"
    n, rows = args.images[0], []
    path = noise_store(tmp / "noise.npy", max(n, 40), args.size).path
    for name in MAPS_OF:
        case = f"{name}, {n} images, {args.size} px"
        say(f"{case}: score maps")
        found = alone(measure_maps, path, name, n, args)
        rows += [
            row("score", case, "images/s", [n / s for s in found[False]]),
            row("score with maps", case, "images/s", [n / s for s in found[True]]),
            row("wall time, score with maps / score", case, "", ratios(found[True], found[False]), "at most 1.15"),
            row("smallest wall times, score with maps / score", case, "", min(found[True]) / min(found[False])),
        ]
    return rows


MAPS_NOTES = """
- `score` with and without `maps=True` in turn in one process, after a call of each that is not counted; the quotient
  is that of each pair. Maps are at the resolution of the patches.
- The quotient of the smallest times says what is left where other work on the machine disturbs single calls."""

NOTES = """
- Bare backbone: as many images of random numbers that are on the device, at both scales, in batches of the same sizes
  and the same precision. `score` folds normalisations into convolutions; the bare backbone is as it was trained, and a
  second time folded, too. Backbone and heads: with what the heads compute, the least that a score can take.
- Two passes per image: one for each scale. References are encoded when the training ends.
- Growth: anonymous memory (on a GPU: of tensors), from before the network is copied and its references are encoded to
  the peak of scoring, each in a process of its own. The peak of the process also counts what it imported, and the pages
  of the store that it touched, which the system may take back."""

if __name__ == "__main__":
    p = parser(__doc__)
    backbone_option(p)
    p.add_argument("--device", default="auto", help="auto (default), cpu, cuda, ...")
    p.add_argument("--precision", default="auto", help="auto (default), fp32 or bf16")
    p.add_argument("--size", type=positive, default=224, help="image size in px (default 224)")
    numbers(p, "--images", [1000, 4000], "images to score; speed at the first number, memory at all")
    p.add_argument("--batch", type=positive, default=64, help="images per forward pass (default 64)")
    p.add_argument("--maps", action="store_true", help="measure what score maps add, and nothing else")
    args = p.parse_args()
    if args.maps:
        intro = f"Random weights, {args.size} px, batches of {args.batch}, {args.repeats} repeats in turn."
        main("scoring_maps", "Score maps", args, measure_all_maps, intro, MAPS_NOTES)
        raise SystemExit
    main(
        "scoring",
        "Scoring",
        args,
        measure,
        f"DRA with {args.backbone}, random weights, {args.size} px, batches of {args.batch}, "
        f"{args.repeats} repeats in turn.",
        NOTES,
    )
