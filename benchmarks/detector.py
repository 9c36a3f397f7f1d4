"""How fast a detector scores: images per second and latency, PyTorch and ONNX, pixels in memory and files in a folder.

    python benchmarks/detector.py                                # DRA and PatchCore, 224 px, batches of 1 and 32
    python benchmarks/detector.py --methods devnet --size 448 --threads 1

Prints a markdown report and writes it, with the raw numbers as json, to `--out`. ONNX is left out where its packages are missing.
"""
import argparse, json, os, sys, tempfile, time
from pathlib import Path

import numpy as np
import torch

from dra_nb.core import DraError, atomic
from dra_nb.data.catalog import load_catalog
from dra_nb.data.sources import Decoded
from dra_nb.training.detector import AnomalyDetector
from dra_nb.training.export import OnnxDetector, examples, export_onnx, onnx_tools
from dra_nb.training.loop import pick_device, score_rows

try: from .training import about, others_seconds, positive, say, slug, synchronise, table      # imported as a part of `benchmarks`
except ImportError: from training import about, others_seconds, positive, say, slug, synchronise, table  # run as a script

PERCENTILES = (50, 90, 99)


# ---- measuring

def latencies(call, seconds:float, device, least:int=5)->np.ndarray:
    "Seconds of each call, after two that are not counted, for as long as asked"
    for _ in range(2): call()
    found, end = [], time.perf_counter() + seconds
    while len(found) < least or time.perf_counter() < end:
        synchronise(device)
        start = time.perf_counter()
        call()
        synchronise(device)
        found.append(time.perf_counter() - start)
    return np.array(found)

def numbers(times:np.ndarray, n:int)->dict:
    "Images per second and percentiles of the time of one call in ms"
    return dict(images_per_second=n/float(np.median(times)), calls=len(times), **{f"p{p}": 1e3*float(np.percentile(times, p)) for p in PERCENTILES})

def learnt(method:str, args, paths:tuple)->AnomalyDetector:
    "A detector after two steps: scoring takes as long as after two thousand"
    weights = None if args.weights in (None, "none") else args.weights
    d = AnomalyDetector(method, image_size=args.size, weights=weights, backbone=args.backbone, epochs=1, steps=2, batch=12, device=args.device, precision="fp32")
    return d.fit(*paths)

def measure_method(method:str, args, paths:tuple, folder:str, with_onnx:bool)->dict:
    "All measurements of one method"
    device, d = pick_device(args.device), learnt(method, args, paths)
    found = dict(method=method, parameters=sum(p.numel() for p in d.method_.parameters()), rows=[])
    d.save(Path(folder, f"{method}.safetensors"))
    found["file_mb"], exported = Path(folder, f"{method}.safetensors").stat().st_size/1e6, None
    if with_onnx:
        report = export_onnx(d, Path(folder, f"{method}.onnx"), repeats=0)
        exported = OnnxDetector(Path(folder, f"{method}.onnx"), args.threads)
        found.update(onnx_mb=report["size_mb"], difference=report["difference"])
        d = AnomalyDetector.load(Path(folder, f"{method}.safetensors"), args.device)
    for n in args.batches:
        images = examples(n, args.size)
        ways = {"PyTorch": (lambda: score_rows(d.method_, Decoded(images), np.arange(n), str(device), "fp32", n), device)}
        if exported: ways["ONNX"] = (lambda: exported.scores(images.numpy()), torch.device("cpu"))
        for way, (call, where) in ways.items(): found["rows"].append(dict(way=way, device=str(where), batch=n, **numbers(latencies(call, args.seconds, where), n)))
    found["stream"] = measure_stream(d, paths[0], args)
    return found

def measure_stream(d:AnomalyDetector, paths:list, args)->dict:
    "Images per second of files that are read, decoded, resized and scored"
    times = latencies(lambda: [o.score for o in d.score_stream(paths, batch=max(args.batches))], args.seconds, pick_device(args.device), least=2)
    return dict(images=len(paths), images_per_second=len(paths)/float(np.median(times)))


# ---- the report

def speed_table(found:dict)->str:
    "One row per way and batch"
    head = ["way", "device", "batch", "images/s", *[f"p{p}, ms" for p in PERCENTILES], "calls"]
    return table(head, [[r["way"], r["device"], r["batch"], f"{r['images_per_second']:.1f}", *[f"{r[f'p{p}']:.1f}" for p in PERCENTILES], r["calls"]] for r in found["rows"]])

def method_report(found:dict)->str:
    "The measurements of one method"
    onnx = f", ONNX file {found['onnx_mb']:.1f} MB (scores differ by {found['difference']:.0e})" if "onnx_mb" in found else ""
    return f"""## {found['method']}

{found['parameters']/1e6:.1f} M parameters, detector file {found['file_mb']:.1f} MB{onnx}.

{speed_table(found)}

Files: {found['stream']['images']} images read, decoded, resized and scored at {found['stream']['images_per_second']:.1f} images/s.
"""

NOTES = """- A call scores one batch of decoded bytes: scaling, normalisation, network, heads; latency is the time of a call, images/s the batch over its median.
- Files: `score_stream` over the images of the embedded textures (128 px PNG), in the page cache, at the largest batch.
- Other work: CPU time that other processes used meanwhile, as a share of all cores. Trust the numbers of an idle machine only."""

def report(result:dict)->str:
    "The measurements in markdown"
    a, s = result["about"], result["settings"]
    others = "" if result["others"] is None else f" Other work took {result['others']:.0%} of the machine meanwhile."
    versions = ", ".join(f"{k} {a[k]}" for k in ("python", "torch", "numpy"))
    return f"""# Scoring speed: {a['device']}

{a['finished']}, dra_nb {a['version']} (commit {a['commit']}), {a['platform']}, {s['backbone']}, {s['size']} px, {s['threads']} threads, fp32. {versions}.

{chr(10).join(map(method_report, result['methods']))}
## How it was measured

{NOTES}

The measurement took {result['seconds']:.0f} s.{others}
"""

def write(result:dict, out:Path):
    "detector.json and detector.md"
    for name, text in (("detector.json", json.dumps(result, indent=1) + "\n"), ("detector.md", report(result))):
        with atomic(out/name) as part: Path(part).write_text(text, encoding="utf-8")


# ---- all of it

def arguments(argv=None)->argparse.Namespace:
    "The command line"
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--methods", nargs="+", default=["dra", "patchcore"], help="registered methods (default dra patchcore)")
    p.add_argument("--size", type=positive, default=224, help="image size in px (default 224)")
    p.add_argument("--backbone", default="resnet18", help="registered backbone (default resnet18)")
    p.add_argument("--weights", help="of the backbone: imagenet, a file, or none (default); no matter for the speed")
    p.add_argument("--batches", type=positive, nargs="+", default=[1, 32], help="images per call (default 1 32)")
    p.add_argument("--seconds", type=float, default=10, help="length of each measurement (default 10)")
    p.add_argument("--threads", type=positive, help="of PyTorch and onnxruntime (default: as PyTorch chooses)")
    p.add_argument("--device", default="auto", help="of PyTorch: auto (default), cpu, cuda, ...")
    p.add_argument("--out", type=Path, help="folder of the report (default outputs/benchmarks/<device>/)")
    return p.parse_args(argv)

def run(args)->dict:
    "All that is measured, and where"
    start, others = time.perf_counter(), others_seconds()
    if args.threads: torch.set_num_threads(args.threads)
    catalog = load_catalog("textures")
    weave = catalog[catalog.category == "weave"]
    paths = weave.path[weave.label == 0].tolist()[:96], weave.path[weave.label == 1].tolist()[:8]
    try: with_onnx = bool(onnx_tools())
    except DraError as e:
        say(str(e))
        with_onnx = False
    result = dict(schema=1, about=about(pick_device(args.device), "fp32"), methods=[],
                  settings=dict(size=args.size, backbone=args.backbone, batches=args.batches, threads=torch.get_num_threads(), seconds=args.seconds))
    with tempfile.TemporaryDirectory(prefix="dra_nb_benchmark_") as folder:
        for method in args.methods:
            say(f"{method}: measuring")
            result["methods"].append(measure_method(method, args, paths, folder, with_onnx))
    seconds = time.perf_counter() - start
    result.update(seconds=seconds, others=None if others is None else max(others_seconds() - others, 0)/seconds/os.cpu_count())
    return result

def main(argv=None):
    "Measure, print, write"
    args = arguments(argv)
    try: result = run(args)
    except DraError as e: sys.exit(f"error: {e}")
    out = args.out or Path("outputs", "benchmarks", slug(result["about"]["device"]))
    write(result, out)
    print(report(result))
    say(f"written to {out}")


if __name__ == "__main__": main()
