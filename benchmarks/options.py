"""What each way to compute brings on a device.

The ways: bf16, channels last, fused optimiser, torch.compile, CUDA graphs, recycled memory (CPU), images on the device.

    python benchmarks/options.py --paper         # on a GPU: 448 px, batches of 48, and a whole run of the paper's size
    python benchmarks/options.py --size 64 --batch 6 --steps 1 --repeats 1 --paper 1   # a trial on a CPU

Starts from float32, NCHW, Adam as it comes, and switches one thing on at a time; then all that the package uses, and
less one at a time. What a device does not have is said. On a CPU torch.compile is measured with `--compile` only, since
the compiler takes a minute.
Prints a markdown report and writes it (options.md), with the numbers as csv (options.csv), to `--out`.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from measured import alone, backbone_option, main, parser, positive, row, say

from dra_nb.profiling.cases import Case, computed, make_case, noise_split, noise_store, released, with_schedule
from dra_nb.profiling.memory import MemoryPeak
from dra_nb.profiling.steps import bare_step, new_learner, noise_batch, run_fit, run_steady
from dra_nb.profiling.timing import ratios, time_call
from dra_nb.profiling.utilisation import device_peak, step_flops
from dra_nb.profiling.waits import synchronisations
from dra_nb.training.compute import Compute

EPOCHS, STEPS = 30, 20  # of a run of the paper


def cases(case: Case, args) -> dict:
    "name -> Case of bare steps, or None where the device does not have it"
    gpu = case.device.type == "cuda"
    base = released(case)
    full = computed(case, precision="bf16")
    ways = {
        "base: fp32, NCHW, plain Adam": base,
        "base + bf16": computed(base, precision="bf16"),
        "base + channels last": replace(base, channels_last=True),
        "base + fused optimiser": replace(base, fused=True),
        "base + recycled memory": None if gpu else replace(base, recycled=True),
        "all": full,
        "all - bf16": computed(full, precision="fp32"),
        "all - channels last": replace(full, channels_last=False),
        "all - fused optimiser": replace(full, fused=False),
        "all - recycled memory": None if gpu else replace(full, recycled=False),
        "all + compile": computed(full, compile="default"),
        "all + CUDA graphs": computed(full, compile="reduce-overhead") if gpu else None,
    }
    return {k: c for k, c in ways.items() if gpu or args.compile or not k.endswith("compile")}


def forget():
    "Let nothing that was compiled for one case stand in for another; torch gives up after some recompilations"
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def bare_steps(case: Case, repeats: int) -> list:
    "Seconds per bare step; a compiled step is compiled before the clock starts"
    forget()
    learner = new_learner(case)
    batch = noise_batch(case)
    n = case.schedule.steps

    def steps():
        for _ in range(n):
            bare_step(case, learner, batch)

    with case.memory():
        steps()
        return [time_call(steps, device=case.device).seconds / n for _ in range(repeats)]


def bare_rows(case: Case, args, name: str) -> list:
    "Images per second of bare steps, and the share of the measured peak"
    flops, peaks, base, rows = step_flops(case), {}, None, []
    for precision in ("fp32", "bf16"):
        peaks[precision] = device_peak(case.device, precision)
        rows.append(row(f"peak of a matrix product, {precision}", name, "TFLOP/s", peaks[precision] / 1e12))
    rows.append(row("operations of a step", name, "TFLOP", flops / 1e12))
    for way, c in cases(case, args).items():
        say(f"bare steps, {way}")
        seconds = (
            [] if c is None else bare_steps(c, args.repeats) if c.recycled else alone(bare_steps, c, args.repeats)
        )  # here it would find what others have freed
        base = base or seconds
        rows += [
            row(f"bare steps, {way}", name, "images/s", [args.batch / s for s in seconds]),
            row(f"speed-up over base, {way}", name, "", ratios(base, seconds) if seconds else []),
            row(
                f"share of the {c.precision if c else 'bf16'} peak, {way}",
                name,
                "",
                [flops / s / peaks[c.precision] for s in seconds],
            ),
        ]
    return rows


def compilers(case: Case, args) -> dict:
    "name -> arguments of `fit`, or None where the device does not have it"
    gpu = case.device.type == "cuda"
    return ({"compile": dict(compute=replace(case.compute, compile="default"))} if gpu or args.compile else {}) | {
        "CUDA graphs": dict(compute=replace(case.compute, compile="reduce-overhead")) if gpu else None
    }


def fit_rows(case: Case, args, name: str) -> list:
    "`fit`: images read from the mapped file and prefetched, or kept on the device; compiled; as CUDA graphs"
    rows = []
    for way, how in (
        {"mapped file, prefetched": dict(resident=False), "images kept on the device": dict(resident=True)}
        | compilers(case, args)
    ).items():
        say(f"fit, {way}")
        forget()
        rows.append(
            row(
                f"fit, {way}",
                name,
                "images/s",
                [args.batch / s for s in run_steady(case, **how)] if how is not None else [],
            )
        )
    return rows + [
        row(
            "waits for the device within the steps",
            name,
            "",
            len(synchronisations(case)) if case.device.type == "cuda" else [],
            "at most 0",
        )
    ]


def paper_rows(case: Case, args, name: str) -> list:
    "A whole run by `fit`, as it comes and compiled"
    gpu, full = case.device.type == "cuda", args.paper == EPOCHS
    run = with_schedule(case, epochs=args.paper, steps=STEPS if full else case.schedule.steps)
    length, rows = f"{name}, {args.paper} x {run.schedule.steps} steps", []
    for way, how in ({"as it comes": {}} | compilers(case, args)).items():
        say(f"a whole run, {way}")
        forget()
        with MemoryPeak(case.device, 0.0) as memory:
            seconds = run_fit(run, **how).seconds if how is not None else []
        rows.append(
            row(
                f"a whole run of fit, {way}",
                length,
                "s",
                seconds,
                "below 60" if full and gpu and (args.size, args.batch) == (448, 48) else "",
            )
        )
        if gpu:
            rows.append(row(f"memory: peak of the tensors on the GPU, {way}", length, "MB", memory.mb))
    return rows


def measure(args, folder: Path) -> list:
    "Everything"
    store = noise_store(folder / "noise.npy", args.images, args.size)
    compute = Compute(args.device)
    case = make_case(store, noise_split(len(store)), args.steps, args.batch, compute=compute, backbone=args.backbone)
    name = f"{args.size} px, {args.batch} images per step"
    rows = bare_rows(case, args, name) + fit_rows(case, args, name)
    return rows + (paper_rows(case, args, name) if args.paper else [])


NOTES = """
- Bare steps: forward, backward and update on random numbers that are on the device, after a round that is not timed.
  Every way is timed by itself, those that leave memory to the C library in processes of their own.
- The peak is the best rate of a square matrix product in the same precision (on a CPU also as a convolution of single
  pixels); operations are counted by torch, forward and backward, references included.
- `fit`: each step after the first four, so that neither the start nor the compiler counts. A whole run counts
  everything; its compiler finds on the disk what it made for the steps before."""

if __name__ == "__main__":
    p = parser(__doc__)
    backbone_option(p)
    p.add_argument("--device", default="auto", help="auto (default), cpu, cuda, ...")
    p.add_argument("--size", type=positive, help="image size in px (default 448, on a CPU 128)")
    p.add_argument("--batch", type=positive, help="images per step (default 48, on a CPU 12)")
    p.add_argument("--steps", type=positive, help="timed steps per repeat (default 50, on a CPU 3)")
    p.add_argument("--images", type=positive, default=400, help="of the store (default 400)")
    p.add_argument("--compile", action="store_true", help="measure torch.compile on a CPU, too")
    p.add_argument(
        "--paper",
        type=positive,
        nargs="?",
        const=EPOCHS,
        help=f"also a whole run, of so many epochs (without a number {EPOCHS} of {STEPS} steps)",
    )
    args = p.parse_args()
    for key, gpu, cpu in (("size", 448, 128), ("batch", 48, 12), ("steps", 50, 3)):
        if getattr(args, key) is None:
            setattr(
                args,
                key,
                gpu if args.device.startswith("cuda") or args.device == "auto" and torch.cuda.is_available() else cpu,
            )
    main(
        "options",
        "Options",
        args,
        measure,
        f"DRA with {args.backbone} on noise: {args.batch} images per step and 5 references at {args.size} px, "
        f"{args.steps} steps, {args.repeats} repeats.",
        NOTES,
    )
