"""How fast a detector scores: images per second and latency, PyTorch and ONNX, pixels in memory and files in a folder.

    python benchmarks/detector.py                                # DRA and PatchCore, 224 px, batches of 1 and 32
    python benchmarks/detector.py --methods devnet --size 448 --threads 1
    python benchmarks/detector.py --methods devnet --size 64 --batches 2 --seconds 0.1   # a trial

Prints a markdown report and writes it (detector.md), with the numbers as csv (detector.csv), to `--out`. ONNX is left out where its packages are missing.
"""
import time
from pathlib import Path

import numpy as np
import torch

from dra_nb.core import DraError
from dra_nb.data.catalog import load_catalog
from dra_nb.data.sources import Decoded
from dra_nb.models.folding import folded
from dra_nb.training.detector import AnomalyDetector
from dra_nb.training.export import OnnxDetector, examples, export_onnx, onnx_tools
from dra_nb.training.loop import pick_device, score_rows
from dra_nb.training.speed import seconds_of

from measured import main, numbers, parser, positive, row, say


def latencies(call, seconds:float, device, least:int=5)->np.ndarray:
    "Seconds of each call, after two that are not counted, for as long as asked"
    for _ in range(2): call()
    found, end = [], time.perf_counter() + seconds
    while len(found) < least or time.perf_counter() < end: found.append(seconds_of(call, device=device)[0])
    return np.array(found)

def latency_rows(times:np.ndarray, n:int, case:str)->list:
    "Images per second, and the time of a call with its percentiles"
    return [row("images per second", case, "images/s", n/float(np.median(times))), row("latency", case, "ms", (1e3*times).tolist()),
            *[row(f"latency, {p}th percentile", case, "ms", 1e3*float(np.percentile(times, p))) for p in (90, 99)]]

def learnt(method:str, args, paths:tuple)->AnomalyDetector:
    "A detector after two steps: scoring takes as long as after two thousand"
    weights = None if args.weights == "none" else args.weights
    d = AnomalyDetector(method, image_size=args.size, weights=weights, backbone=args.backbone, epochs=1, steps=2, batch=12, device=args.device, precision="fp32")
    return d.fit(*paths)

def with_onnx()->bool:
    "Are the packages there?"
    try: return bool(onnx_tools())
    except DraError as e: say(str(e))

def measure_method(method:str, args, paths:tuple, folder:Path)->list:
    "All measurements of one method"
    say(f"{method}: measuring")
    device, d, file = pick_device(args.device), learnt(method, args, paths), folder/f"{method}.safetensors"
    d.save(file)
    rows, exported = [row("parameters", method, "million", sum(p.numel() for p in d.method_.parameters())/1e6), row("detector file", method, "MB", file.stat().st_size/1e6)], None
    if with_onnx():
        report = export_onnx(d, folder/f"{method}.onnx", repeats=0)
        exported = OnnxDetector(folder/f"{method}.onnx", args.threads)
        rows += [row("ONNX file", method, "MB", report["size_mb"]), row("ONNX: largest difference of scores", method, "", report["difference"])]
        d = AnomalyDetector.load(file, args.device)
    quick = folded(d.method_)  # as a detector does it, once
    for n in args.batches:
        images = examples(n, args.size)
        ways = {"PyTorch": (lambda: score_rows(quick, Decoded(images), np.arange(n), str(device), "fp32", n, fold=False), device)}
        if exported: ways["ONNX"] = (lambda: exported.scores(images.numpy()), torch.device("cpu"))
        for way, (call, where) in ways.items(): rows += latency_rows(latencies(call, args.seconds, where), n, f"{method}, {way}, batch of {n}")
    stream = latencies(lambda: [o.score for o in d.score_stream(paths[0], batch=max(args.batches))], args.seconds, device, least=2)
    return rows + [row("files: read, decoded, resized and scored", f"{method}, {len(paths[0])} files", "images/s", (len(paths[0])/stream).tolist())]

def measure(args, folder:Path)->list:
    "All methods"
    if args.threads: torch.set_num_threads(args.threads)
    catalog = load_catalog("textures")
    weave = catalog[catalog.category == "weave"]
    paths = weave.path[weave.label == 0].tolist()[:args.files], weave.path[weave.label == 1].tolist()[:8]
    return [o for method in args.methods for o in measure_method(method, args, paths, folder)]

NOTES = """
- A call scores one batch of decoded bytes: scaling, normalisation, network, heads; latency is the time of a call, images/s the batch over its median.
- Files: `score_stream` over the images of the embedded textures (128 px PNG), in the page cache, at the largest batch."""

if __name__ == "__main__":
    p = parser(__doc__)
    p.add_argument("--methods", nargs="+", default=["dra", "patchcore"], help="registered methods (default dra patchcore)")
    p.add_argument("--size", type=positive, default=224, help="image size in px (default 224)")
    p.add_argument("--backbone", default="resnet18", help="registered backbone (default resnet18)")
    p.add_argument("--weights", default="none", help="of the backbone: imagenet, a file, or none (default); no matter for the speed")
    numbers(p, "--batches", [1, 32], "images per call")
    p.add_argument("--files", type=positive, default=96, help="images of the folder (default 96)")
    p.add_argument("--seconds", type=float, default=10, help="length of each measurement (default 10)")
    p.add_argument("--threads", type=positive, help="of PyTorch and onnxruntime (default: as PyTorch chooses)")
    p.add_argument("--device", default="auto", help="of PyTorch: auto (default), cpu, cuda, ...")
    args = p.parse_args()
    main("detector", "Detector", args, measure, f"{args.backbone}, {args.size} px, {args.threads or torch.get_num_threads()} threads, fp32.", NOTES)
