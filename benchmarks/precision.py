"""Does bf16 change what is learnt? AUROC of runs in bf16 and in fp32, seed by seed.

    python benchmarks/precision.py --data DATA --weights WEIGHTS         # also ELPV; a quarter of an hour on two cores
    python benchmarks/precision.py                                       # embedded textures alone
    python benchmarks/precision.py --seeds 2 --size 64 --epochs 1 --steps 2 --batch 6    # a trial

Both train and score through `fit` and `score`, in channels-last memory, from the same initial weights and on the same
batches.
Prints a markdown report and writes it (precision.md), with the numbers as csv (precision.csv), to `--out`.
"""

import statistics
from dataclasses import replace

from measured import main, parser, positive, row, say

from dra_nb.data.datasets import load_catalog
from dra_nb.data.protocols import make_split
from dra_nb.data.store import open_store
from dra_nb.evaluation.metrics import evaluate
from dra_nb.evaluation.scoring import score
from dra_nb.experiments.profiles import PROFILES
from dra_nb.methods.registry import create_method, method_schedule
from dra_nb.training.compute import Compute
from dra_nb.training.loop import fit


def studies(args):
    "(title, catalog, category, image size, schedule, backbone, weights) of each"
    own, textures, elpv = method_schedule("dra", {}), PROFILES["smoke"], PROFILES["cpu"]
    shorter = (args.epochs, args.steps, args.batch)
    for category in textures.categories[: args.categories]:
        yield (
            f"textures, {category}",
            load_catalog("textures"),
            category,
            args.size or textures.image_size,
            textures.schedule(own).shortened(*shorter),
            textures.backbone,
            None,
        )
    if args.data:
        yield (
            "ELPV",
            load_catalog("elpv", args.data),
            "",
            args.size or elpv.image_size,
            replace(elpv.schedule(own), epochs=5).shortened(*shorter),
            elpv.backbone,
            None if args.weights == "none" else args.weights,
        )


def auroc(study: tuple, seed: int, precision: str, args, folder) -> float:
    "Of one run"
    _, catalog, category, size, schedule, backbone, weights = study
    split, store = (
        make_split(catalog, shots=10, seed=seed, category=category),
        open_store(catalog, size, folder, progress=False),
    )
    method = create_method("dra", weights, backbone, seed)
    fit(method, store, split, schedule, compute=Compute(args.device, precision), seed=seed)
    scores, labels = (
        score(method, store, split.test, compute=Compute(args.device, precision)).score,
        catalog.label.to_numpy()[split.test],
    )
    return evaluate(scores, labels, split.seen).auroc


def measure(args, tmp) -> list:
    "All studies, and what the two precisions differ by"
    rows = []
    for study in studies(args):
        found = {p: [] for p in ("fp32", "bf16")}
        for seed in range(args.seeds):
            for p in found:
                say(f"{study[0]}, seed {seed}, {p}")
                found[p].append(auroc(study, seed, p, args, tmp))
                rows.append(row(f"AUROC, {p}", f"{study[0]}, seed {seed}", "", found[p][-1]))
        difference = [b - a for a, b in zip(found["fp32"], found["bf16"])]
        deviation = statistics.stdev(found["fp32"])
        rows += [
            *[row(f"AUROC, {p}, mean over the seeds", study[0], "", statistics.mean(v)) for p, v in found.items()],
            row("standard deviation over the seeds, fp32", study[0], "", deviation),
            row("bf16 - fp32, mean of the pairs", study[0], "", statistics.mean(difference)),
            row(
                "bf16 - fp32, standard error of the mean",
                study[0],
                "",
                statistics.stdev(difference) / len(difference) ** 0.5,
            ),
            row(
                "size of bf16 - fp32, in standard deviations over the seeds",
                study[0],
                "",
                abs(statistics.mean(difference)) / max(deviation, 1e-9),
                "at most 1",
            ),
        ]
    return rows


NOTES = """
- A seed draws the split, the initial weights, the batches and the augmentation; both precisions get the same.
- Textures: the schedule of profile smoke (random weights, two stages of the network). ELPV: that of profile cpu with
  half its epochs.
- The target: on average the precision changes less than another seed does."""

if __name__ == "__main__":
    p = parser(__doc__, repeats=1)
    p.add_argument("--data", help="folder that holds elpv/; without it only the embedded textures are used")
    p.add_argument("--weights", default="none", help="for ELPV: imagenet, a file, or none (default)")
    p.add_argument("--device", default="auto", help="auto (default), cpu, cuda, ...")
    p.add_argument("--seeds", type=positive, default=5, help="(default 5, at least 2)")
    p.add_argument("--categories", type=positive, default=2, help="of the textures (default 2)")
    for name, text in (
        ("size", "image size in px"),
        ("epochs", "epochs"),
        ("steps", "steps per epoch"),
        ("batch", "images per step"),
    ):
        p.add_argument(f"--{name}", type=positive, help=f"{text} (default: of the profile)")
    args = p.parse_args()
    if args.seeds < 2:
        p.error("a difference needs two seeds")
    main(
        "precision",
        "Precision",
        args,
        measure,
        f"AUROC of DRA, ten given anomalies, general setting, {args.seeds} seeds.",
        NOTES,
    )
