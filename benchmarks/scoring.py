"""How long scoring takes beside the forward passes of the backbone, and how much memory.

    python benchmarks/scoring.py                                         # 1,000 images of 224 px
    python benchmarks/scoring.py --size 64 --images 20 40 --batch 16 --repeats 1      # a trial

Prints a markdown report and writes it (scoring.md), with the numbers as csv (scoring.csv), to `--out`.
"""
from pathlib import Path

import numpy as np

from dra_nb.data.images import ImageStore
from dra_nb.training.loop import fit
from dra_nb.training.speed import MemoryPeak, counted, in_turn, make_case, noise_split, noise_store, peak_mb, ratios, run_backbone, run_scoring

from measured import alone, main, numbers, parser, positive, row, say


def open_case(path:Path, args)->tuple:
    "A case, its method after a step of training, and how often that encoded references"
    store = ImageStore(path)
    case = make_case(store, noise_split(len(store)), 1, 6, device=args.device, precision=args.precision)
    method, _ = case.start()
    with counted(method) as count: fit(method, store, case.split, case.schedule, str(case.device), case.precision)
    return case, method, count["references"]

def measure_seconds(path:Path, n:int, args)->dict:
    "Scoring and bare forward passes in turn, and what passes through the backbone"
    case, method, encoded = open_case(path, args)
    rows = np.arange(n)
    with counted(method) as count: run_scoring(case, method, rows[:args.batch], args.batch)
    run_backbone(case, method, min(n, args.batch), args.batch)
    ways = {"score": lambda: run_scoring(case, method, rows, args.batch)["seconds"], "backbone": lambda: run_backbone(case, method, n, args.batch),
            "folded": lambda: run_backbone(case, method, n, args.batch, fold=True), "heads": lambda: run_backbone(case, method, n, args.batch, heads=True, fold=True)}
    return dict(in_turn(ways, args.repeats), passes=count["images"]/min(n, args.batch), encoded=encoded + count["references"])

def measure_memory(path:Path, n:int, args)->tuple:
    "(growth, peak of the process) in MB of making a detector and scoring n images"
    store = ImageStore(path)
    case = make_case(store, noise_split(len(store)), 1, 6, device=args.device, precision=args.precision)
    with MemoryPeak(case.device) as memory:
        method = case.start()[0].eval()
        method.set_references(case.noise().references)
        run_scoring(case, method, np.arange(n), args.batch)
    return memory.mb, peak_mb()

def measure(args, tmp:Path)->list:
    "Seconds at the first number of images, memory at all"
    path, n, names = noise_store(tmp/"noise.npy", max(args.images), args.size).path, args.images[0], {n: f"{n} images, {args.size} px" for n in args.images}
    say(f"{names[n]}: scoring")
    found = alone(measure_seconds, path, n, args)
    rows = [row("score_rows", names[n], "images/s", [n/s for s in found["score"]]), row("bare backbone", names[n], "images/s", [n/s for s in found["backbone"]]),
            row("wall time, score_rows / bare backbone", names[n], "", ratios(found["score"], found["backbone"]), "at most 1.1"),
            row("wall time, score_rows / bare backbone, folded", names[n], "", ratios(found["score"], found["folded"])),
            row("wall time, backbone and heads, folded / bare backbone, folded", names[n], "", ratios(found["heads"], found["folded"])),
            row("passes of an image through the backbone", names[n], "", found["passes"], "at most 2"), row("times that references were encoded", names[n], "", found["encoded"], "at most 1")]
    memory = {n: (say(f"{names[n]}: memory"), alone(measure_memory, path, n, args))[1] for n in args.images}
    for n, (growth, process) in memory.items():
        rows += [row("memory: growth while scoring", names[n], "MB", growth), row("memory: peak of the process, with what it has mapped", names[n], "MB", process)]
    least, most = min(args.images), max(args.images)
    return rows + [row(f"growth of memory, {most} / {least} images", f"{args.size} px", "", memory[most][0]/max(memory[least][0], 1), "at most 1.1")]

NOTES = """
- Bare backbone: as many images of random numbers that are on the device, at both scales, in batches of the same sizes and the same precision. `score_rows`
  folds normalisations into convolutions; the bare backbone is as it was trained, and a second time folded, too. Backbone and heads: with what the
  heads compute, the least that a score can take.
- Two passes per image: one for each scale. References are encoded when the training ends.
- Growth: anonymous memory (on a GPU: of tensors), from before the network is
  copied and its references are encoded to the peak of scoring, each in a process of its own. The peak of the process also counts what it imported, and the pages of the store that it touched, which the system may take back."""

if __name__ == "__main__":
    p = parser(__doc__)
    p.add_argument("--device", default="auto", help="auto (default), cpu, cuda, ...")
    p.add_argument("--precision", default="auto", help="auto (default), fp32 or bf16")
    p.add_argument("--size", type=positive, default=224, help="image size in px (default 224)")
    numbers(p, "--images", [1000, 4000], "images to score; speed at the first number, memory at all")
    p.add_argument("--batch", type=positive, default=64, help="images per forward pass (default 64)")
    args = p.parse_args()
    main("scoring", "Scoring", args, measure, f"DRA, random weights, {args.size} px, batches of {args.batch}, {args.repeats} repeats in turn.", NOTES)
