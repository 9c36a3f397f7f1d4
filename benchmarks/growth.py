"""How the time of a run grows with its steps and with the dataset, and how much memory it takes.

    python benchmarks/growth.py                    # stores of 1k, 5k and 20k images at 128 and 224 px, 3 GB of disk
    python benchmarks/growth.py --sizes 64 --images 60 120 --lengths 1 2 --steps 1 --batch 6 --repeats 1   # a trial

Stores are random bytes, written into a temporary folder and removed. Every store is measured in a process of its own.
Prints a markdown report and writes it (growth.md), with the numbers as csv (growth.csv), to `--out`.
"""

from pathlib import Path

from measured import alone, main, numbers, parser, row, say, training_options

from dra_nb.data.store import ImageStore
from dra_nb.profiling.cases import make_case, noise_split, noise_store, with_schedule
from dra_nb.profiling.memory import MemoryPeak, peak_mb
from dra_nb.profiling.steps import run_fit
from dra_nb.profiling.timing import in_turn, ratios
from dra_nb.training.compute import Compute


def open_case(path: Path, args, steps: int):
    "A case on a store that lies in the page cache"
    with open(path, "rb") as f:
        while f.read(2**24):
            pass
    store = ImageStore(path)
    compute = Compute(args.device, args.precision)
    return make_case(store, noise_split(len(store)), steps, args.batch, compute=compute, backbone=args.backbone)


def measure_epochs(path: Path, args) -> dict:
    "Seconds of `fit`, `repeats` times, after one run whose memory is watched"
    case = open_case(path, args, args.steps)
    with MemoryPeak(case.device) as memory:
        run_fit(case)
    return dict(seconds=[run_fit(case).seconds for _ in range(args.repeats)], mb=memory.mb, process=peak_mb())


def measure_lengths(path: Path, args) -> dict:
    "Seconds of runs of several lengths, in turn"
    case = open_case(path, args, 2)
    run_fit(case)
    ways = {n: lambda n=n: run_fit(with_schedule(case, steps=n)).seconds for n in args.lengths}
    return in_turn(ways, args.repeats)


def store_rows(args, tmp: Path, size: int) -> list:
    "Epochs of as many steps, on stores of several sizes"
    rows, found = [], {}
    for n in args.images:
        name = f"{size} px, {n} images"
        say(f"{name}: writing, training")
        path = noise_store(tmp / "noise.npy", n, size).path
        found[n] = alone(measure_epochs, path, args)
        path.unlink()
        rows += [
            row(f"fit, an epoch of {args.steps} steps", name, "s", found[n]["seconds"]),
            row("memory: growth while training", name, "MB", found[n]["mb"]),
            row("memory: peak of the process, with what it has mapped", name, "MB", found[n]["process"]),
        ]
    least, most = min(args.images), max(args.images)
    return rows + [
        row(
            f"time of an epoch, {most} / {least} images",
            f"{size} px",
            "",
            ratios(found[most]["seconds"], found[least]["seconds"]),
            "at most 1.1",
        ),
        row(
            f"growth of memory, {most} / {least} images",
            f"{size} px",
            "",
            found[most]["mb"] / max(found[least]["mb"], 1),
            "at most 1.1",
        ),
    ]


def length_rows(args, tmp: Path, size: int) -> list:
    "Runs of several lengths"
    say(f"{size} px: runs of {args.lengths} steps")
    found = alone(measure_lengths, noise_store(tmp / "noise.npy", min(args.images), size).path, args)
    short = min(args.lengths)
    long = max(args.lengths)
    return [
        *[row("fit", f"{size} px, {n} steps", "s", seconds) for n, seconds in found.items()],
        row(
            f"time per step, {long} / {short} steps",
            f"{size} px",
            "",
            [a * short / long for a in ratios(found[long], found[short])],
            "at most 1.1",
        ),
    ]


def measure(args, tmp: Path) -> list:
    "The lengths at the smallest size, the stores at all"
    rows = length_rows(args, tmp, min(args.sizes))
    for size in args.sizes:
        rows += store_rows(args, tmp, size)
    return rows


NOTES = """
- An epoch has the same number of steps whatever the dataset; the stores are in the page cache, and nothing else of the
  dataset is there.
- Growth while training: anonymous memory (on a GPU: of tensors) from before the first `fit` to its peak. The peak of
  the process also counts what it imported, and the pages of the store that it touched, which the system may take back.
- Time per step, long against short run: below 1 because a run has a beginning and an end."""

if __name__ == "__main__":
    p = parser(__doc__)
    training_options(p)
    numbers(p, "--sizes", [128, 224], "image sizes in px")
    numbers(p, "--images", [1000, 5000, 20_000], "images of the stores")
    numbers(p, "--lengths", [10, 20, 40], "steps of the runs")
    args = p.parse_args()
    main(
        "growth",
        "Growth",
        args,
        measure,
        f"DRA with {args.backbone} on noise: {args.batch} images per step and 5 references, {args.repeats} repeats.",
        NOTES,
    )
