"""How fast a detector is fitted and scores: images per second and latency, PyTorch and ONNX, pixels and files.

    python benchmarks/detector.py                       # COVE (the default), DRA and PatchCore, 224 px
    python benchmarks/detector.py --methods cove --normal photos/good.csv --anomalies photos/bad.csv --weights imagenet
    python benchmarks/detector.py --methods devnet --size 448 --threads 1
    python benchmarks/detector.py --methods devnet --size 64 --batches 2 --seconds 0.1   # a trial

What `fit` costs is measured of methods without training steps; others take as long as their schedule says.
Prints a markdown report and writes it (detector.md), with the numbers as csv (detector.csv), to `--out`. ONNX is left
out where its packages are missing.
"""

import os
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from measured import main, numbers, parser, positive, row, say

from dra_nb.core import DraError
from dra_nb.data.datasets import load_catalog
from dra_nb.data.resident import MemoryStore
from dra_nb.detector.detector import AnomalyDetector
from dra_nb.detector.onnx import export_onnx
from dra_nb.detector.onnx_graph import example_images
from dra_nb.detector.onnx_runtime import OnnxDetector, onnx_tools
from dra_nb.detector.plan import BACKBONE
from dra_nb.detector.scorer import score_pixels
from dra_nb.evaluation.scoring import score
from dra_nb.methods.registry import load_methods
from dra_nb.models.backbone import create_backbone
from dra_nb.models.colour import normalize
from dra_nb.models.fused import folded
from dra_nb.profiling.timing import time_call
from dra_nb.training.compute import Compute


def latencies(call, seconds: float, device, least: int = 5) -> np.ndarray:
    "Seconds of each call, after two that are not counted, for as long as asked"
    for _ in range(2):
        call()
    found, end = [], time.perf_counter() + seconds
    while len(found) < least or time.perf_counter() < end:
        found.append(time_call(call, device=device).seconds)
    return np.array(found)


def latency_rows(times: np.ndarray, n: int, case: str) -> list:
    "Images per second, and the time of a call with its percentiles"
    return [
        row("images per second", case, "images/s", n / float(np.median(times))),
        row("latency", case, "ms", (1e3 * times).tolist()),
        *[row(f"latency, {p}th percentile", case, "ms", 1e3 * float(np.percentile(times, p))) for p in (90, 99)],
    ]


def learnt(method: str, args, paths: tuple) -> AnomalyDetector:
    "A detector after two steps: scoring takes as long as after two thousand"
    weights = None if args.weights == "none" else args.weights
    d = AnomalyDetector(
        method,
        image_size=args.size,
        weights=weights,
        backbone=args.backbone,
        epochs=1,
        steps=2,
        batch=12,
        device=args.device,
        precision="fp32",
    )
    return d.fit(*paths)


@contextmanager
def empty_cache():
    "While inside, no image has been decoded before"
    kept = os.environ.get("DRA_NB_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DRA_NB_CACHE"] = folder
        try:
            yield
        finally:
            os.environ.pop("DRA_NB_CACHE")
            if kept is not None:
                os.environ["DRA_NB_CACHE"] = kept


def forward_pass(args, pixels: torch.Tensor):
    "A function that runs the bare backbone over images, 32 at a time"
    device = Compute(args.device).resolve()
    net = create_backbone(args.backbone).eval().to(device, memory_format=torch.channels_last)

    @torch.no_grad()
    def run():
        for part in pixels.split(32):
            net(normalize(part.to(device).contiguous(memory_format=torch.channels_last) / 255))

    return run


def fit_rows(method: str, args, paths: tuple, d: AnomalyDetector) -> list:
    "What `fit` and a score with its map cost, in seconds and against a forward pass of the same images, in this run"
    device = Compute(args.device).resolve()
    n = sum(map(len, paths))
    rows = []
    pass_all = forward_pass(args, example_images(n, args.size))
    if not d.method_.needs_steps:
        with empty_cache():
            before = time.process_time(), time.perf_counter()
            learnt(method, args, paths)
            cpu, wall = (now - then for now, then in zip((time.process_time(), time.perf_counter()), before))
        pass_all()
        passed = time_call(pass_all, device=device).seconds
        case = f"{method}, {len(paths[0])} normals and {len(paths[1])} anomalies"
        rows += [
            row("fit, from files to threshold: processor time", case, "s", cpu),
            row("fit, from files to threshold", case, "s", wall),
            row("fit, against a forward pass of the same number of images", case, "times", wall / passed),
        ]
    if load_methods()[method].maps:
        pixels = example_images(max(args.batches), args.size)
        passed = np.median(latencies(forward_pass(args, pixels), args.seconds, device))
        scored = np.median(latencies(lambda: score_pixels(d.scorer_, pixels.numpy(), "score"), args.seconds, device))
        case = f"{method}, batch of {len(pixels)}"
        rows.append(row("score with map, against a forward pass", case, "times", float(scored / passed)))
    return rows


def with_onnx() -> bool:
    "Are the packages there?"
    try:
        return bool(onnx_tools())
    except DraError as e:
        say(str(e))


def detector_ways(d: AnomalyDetector, exported, n: int, args) -> dict:
    "name -> (function that scores a batch of n images, its device)"
    device = Compute(args.device).resolve()
    images = MemoryStore(example_images(n, args.size))
    options = dict(compute=Compute(str(device), "fp32"), batch_size=n, fold=False)
    quick = folded(d.method_)  # as a detector does it, once
    ways = {"PyTorch": (lambda: score(quick, images, np.arange(n), **options), device)}
    if exported:
        pixels = example_images(n, args.size)
        ways["ONNX"] = (lambda: exported.scores(pixels.numpy()), torch.device("cpu"))
    return ways


def stream_row(d: AnomalyDetector, method: str, args, files: list) -> dict:
    "Images per second from files in a folder"

    def stream():
        return [o.score for o in d.score_stream(files, batch=max(args.batches))]

    seconds = latencies(stream, args.seconds, Compute(args.device).resolve(), least=2)
    case = f"{method}, {len(files)} files"
    return row("files: read, decoded, resized and scored", case, "images/s", (len(files) / seconds).tolist())


def measure_method(method: str, args, paths: tuple, folder: Path) -> list:
    "All measurements of one method"
    say(f"{method}: measuring")
    d = learnt(method, args, paths)
    file = folder / f"{method}.safetensors"
    d.save(file)
    rows = [
        row("parameters", method, "million", sum(p.numel() for p in d.method_.parameters()) / 1e6),
        row("detector file", method, "MB", file.stat().st_size / 1e6),
        *fit_rows(method, args, paths, d),
    ]
    exported = None
    if with_onnx():
        report = export_onnx(d, folder / f"{method}.onnx", pixels="uint8", repeats=0)
        exported = OnnxDetector(folder / f"{method}.onnx", args.threads)
        rows += [
            row("ONNX file", method, "MB", report["size_mb"]),
            row("ONNX: largest difference of scores", method, "", report["difference"]),
        ]
        d = AnomalyDetector.load(file, args.device)
    for n in args.batches:
        for way, (call, device) in detector_ways(d, exported, n, args).items():
            rows += latency_rows(latencies(call, args.seconds, device), n, f"{method}, {way}, batch of {n}")
    return [*rows, stream_row(d, method, args, paths[0])]


def given_paths(args) -> tuple[list, list]:
    "Normals and anomalies to learn from: those asked for, or the embedded textures"
    if args.normal:
        return tuple([*map(str, read_images_of(Path(o)))] for o in (args.normal, args.anomalies))
    catalog = load_catalog("textures")
    weave = catalog[catalog.category == "weave"]
    return weave.path[weave.label == 0].tolist()[: args.files], weave.path[weave.label == 1].tolist()[:8]


def read_images_of(source: Path) -> list:
    "Paths of the images of a folder, or of the column path of a csv file"
    return sorted(source.rglob("*.*")) if source.is_dir() else pd.read_csv(source).path.tolist()


def measure(args, folder: Path) -> list:
    "All methods"
    if args.threads:
        torch.set_num_threads(args.threads)
    paths = given_paths(args)
    return [o for method in args.methods for o in measure_method(method, args, paths, folder)]


NOTES = """
- A call scores one batch of decoded bytes: scaling, normalisation, network, heads; latency is the time of a call,
  images/s the batch over its median.
- Fit: decoding, features, views, threshold, colours of heat maps; once, in this process, after a first one has warmed
  it up. The forward pass is that of the bare backbone, in batches of 32 decoded images; a score with map is folded,
  smoothed and full size.
- Files: `score_stream` over the images (by default those of the embedded textures, 128 px PNG), in the page cache, at
  the largest batch."""

if __name__ == "__main__":
    p = parser(__doc__)
    p.add_argument(
        "--methods",
        nargs="+",
        default=["cove", "dra", "patchcore"],
        help="registered methods (default cove dra patchcore)",
    )
    p.add_argument("--size", type=positive, default=224, help="image size in px (default 224)")
    p.add_argument("--backbone", default=BACKBONE, help=f"registered backbone (default {BACKBONE})")
    p.add_argument(
        "--weights",
        default="none",
        help="of the backbone: imagenet, a file, or none (default); no matter for the speed",
    )
    p.add_argument("--normal", help="folder or csv file of normals (default: embedded textures)")
    p.add_argument("--anomalies", help="folder or csv file of anomalies, with --normal")
    numbers(p, "--batches", [1, 32], "images per call")
    p.add_argument("--files", type=positive, default=96, help="images of the folder (default 96)")
    p.add_argument("--seconds", type=float, default=10, help="length of each measurement (default 10)")
    p.add_argument("--threads", type=positive, help="of PyTorch and onnxruntime (default: as PyTorch chooses)")
    p.add_argument("--device", default="auto", help="of PyTorch: auto (default), cpu, cuda, ...")
    args = p.parse_args()
    main(
        "detector",
        "Detector",
        args,
        measure,
        f"{args.backbone}, {args.size} px, {args.threads or torch.get_num_threads()} threads, fp32.",
        NOTES,
    )
