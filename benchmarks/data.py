"""How fast a large folder is listed, images are decoded into the store and batches are read from it, and how much memory that takes.

    python benchmarks/data.py                    # about three minutes on two cores, 4 GB of disk for that time
    python benchmarks/data.py --files 2000 --batch-images 500 --memory-images 100 200 --build-images 100 --repeats 1   # a trial

Files are drawn into a temporary folder and removed. Every measurement runs in a process of its own, so that its memory counts alone.
Prints a markdown report and writes it (data.md), with the numbers as csv (data.csv), to `--out`.
"""
import argparse, os, shutil, sys, tempfile, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from dra_nb.core import DraError, atomic
from dra_nb.data.catalog import fingerprint, read_mvtec
from dra_nb.data.images import ImageStore, open_store
from dra_nb.training.loop import pick_device

try: from .plain_pipeline import decode_all  # imported as a part of `benchmarks`
except ImportError: from plain_pipeline import decode_all  # run as a script
try: from .training import about, cell, cores, others_seconds, peak_mb, positive, reset_peak, say, seconds_of, slug, spread, table
except ImportError: from training import about, cell, cores, others_seconds, peak_mb, positive, reset_peak, say, seconds_of, slug, spread, table

BATCH = 48           # rows per batch
DISTINCT = 100       # different images; all others are further names (hard links) of the same files
KINDS = {"grey PNG, 300 x 300": ("png", "L", (300, 300)),  # as in ELPV
         "colour JPEG, 640 x 480": ("jpg", "RGB", (640, 480))}
TARGETS = {"catalog, seconds": 5, "catalog, MB": 300, "batch, ms": 20}


# ---- files to read

def draw(path:Path, kind:str, seed:int):
    "Write one image: a blurred pattern with noise, which compresses about as a photograph does"
    _, mode, (w, h) = KINDS[kind]
    rng = np.random.default_rng(seed)
    rough = Image.fromarray(rng.integers(0, 256, (h//40, w//40, 3), dtype=np.uint8)).resize((w, h), Image.Resampling.BICUBIC)
    noisy = np.asarray(rough) + rng.integers(-5, 6, (h, w, 1))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode).save(path)

def names(n:int)->list:
    "Names of n images in MVTec layout, one in ten of them an anomaly of five classes"
    folders = ["train/good"]*7 + ["test/good"]*2
    return [f"test/class{i//10%5}/{i:06}" if i%10 == 9 else f"{folders[i%10]}/{i:06}" for i in range(n)]

def link(source:Path, target:Path):
    "Another name for a file, or a copy where there are no hard links"
    try: os.link(source, target)
    except OSError: shutil.copyfile(source, target)

def image_folder(root:Path, kind:str, n:int)->Path:
    "A dataset of n images in MVTec layout"
    ending = KINDS[kind][0]
    for i, name in enumerate(names(n)):
        path = root/f"{name}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i < DISTINCT: draw(path, kind, i)
        else: link(root/f"{names(DISTINCT)[i%DISTINCT]}.{ending}", path)
    return root

def empty_folder(root:Path, n:int)->Path:
    "A dataset of n empty files in MVTec layout"
    for name in names(n):
        path = root/f"{name}.png"
        try: path.touch()
        except FileNotFoundError: path.parent.mkdir(parents=True); path.touch()
    return root


# ---- what is measured, each in a fresh process

def alone(function, *args):
    "The result of a call in a fresh process"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool: return pool.submit(function, *args).result()

def measure_catalog(root:Path, repeats:int)->dict:
    "Seconds to read the folder and to fingerprint it, and the growth of the peak of the first time"
    reset_peak()
    before, found = peak_mb(), dict(read=[], fingerprint=[])
    for repeat in range(repeats):
        seconds, catalog = seconds_of(read_mvtec, root)
        found["read"].append(seconds)
        if not repeat: found.update(read_mb=peak_mb() - before, rows=len(catalog))
        found["fingerprint"].append(seconds_of(fingerprint, catalog)[0])
        if not repeat: found.update(both_mb=peak_mb() - before)
    return found

def measure_build(root:Path, folder:Path, size:int, repeats:int)->dict:
    "Seconds of building the store and of the loop over the files, in turn, and the CPU time of both"
    catalog, found = read_mvtec(root), dict(store=[], loop=[], cpu_store=[], cpu_loop=[])
    for path in catalog["path"]: Path(path).read_bytes()  # both find the files in the page cache
    for _ in range(repeats):
        clock = [time.process_time()]
        found["store"].append(seconds_of(open_store, catalog, size, cache=folder, progress=False)[0])
        clock.append(time.process_time())
        shutil.rmtree(folder)
        found["loop"].append(seconds_of(decode_all, catalog, size)[0])
        clock.append(time.process_time())
        for name, spent in zip(("cpu_store", "cpu_loop"), np.diff(clock)): found[name].append(spent)
    return dict(found, images=len(catalog))

def measure_memory(root:Path, folder:Path, size:int)->dict:
    "Growth of the peak while the store is built"
    catalog = read_mvtec(root)
    reset_peak()
    before = peak_mb()
    store = open_store(catalog, size, cache=folder, progress=False)
    return dict(images=len(store), growth_mb=peak_mb() - before, path=store.path, file_mb=store.path.stat().st_size/1e6)

def measure_batches(path:Path, repeats:int=300)->list:
    "Seconds of reading random batches from a store in the page cache, most of whose pages this process touches for the first time"
    with open(path, "rb") as f:
        while f.read(2**24): pass
    store, rng, seconds = ImageStore(path), np.random.default_rng(0), []
    for _ in range(repeats):
        rows = rng.choice(len(store), min(BATCH, len(store)), replace=False)
        seconds.append(seconds_of(store.__getitem__, rows)[0])
    return seconds


# ---- all measurements

def measure(args, tmp:Path)->dict:
    "Everything, one after the other; what is no longer needed is removed"
    say(f"catalog of {args.files} files")
    found = dict(catalog=alone(measure_catalog, empty_folder(tmp/"empty", args.files), args.repeats), build={}, memory=[])
    shutil.rmtree(tmp/"empty")
    for i, kind in enumerate(KINDS):
        say(f"store of {args.build_images} images: {kind}")
        found["build"][kind] = alone(measure_build, image_folder(tmp/f"build{i}", kind, args.build_images), tmp/"cache", args.size, args.repeats)
    for n in sorted({*args.memory_images, args.batch_images}):
        say(f"store of {n} images: memory")
        found["memory"].append(alone(measure_memory, image_folder(tmp/f"memory{n}", next(iter(KINDS)), n), tmp/f"cache{n}", args.size))
        if n == args.batch_images: found["batches"] = alone(measure_batches, found["memory"][-1]["path"])
        shutil.rmtree(tmp/f"cache{n}")
    return found

def rows(found:dict, args)->list:
    "One row per number: measure, case, unit, median, min, max, target"
    def row(measure, case, unit, values, target=None): return dict(measure=measure, case=case, unit=unit, **spread(values), target=target)
    c, n = found["catalog"], f"{found['catalog']['rows']} files"
    out = [row("catalog: read the folder", n, "s", c["read"], TARGETS["catalog, seconds"]), row("catalog: fingerprint", n, "s", c["fingerprint"]),
           row("catalog: peak memory above import", n, "MB", [c["read_mb"]], TARGETS["catalog, MB"]),
           row("catalog and fingerprint: peak memory above import", n, "MB", [c["both_mb"]], TARGETS["catalog, MB"])]
    for kind, o in found["build"].items():
        out += [row("build: store", kind, "images/s", [o["images"]/s for s in o["store"]]),
                row("build: PIL loop, 1 thread", kind, "images/s", [o["images"]/s for s in o["loop"]]),
                row("build: store / loop", kind, "", [slow/fast for slow, fast in zip(o["loop"], o["store"])]),
                row("build: CPU time, store / loop", kind, "", [store/loop for store, loop in zip(o["cpu_store"], o["cpu_loop"])])]
    for o in found["memory"]:
        case = f"{o['images']} images"
        out += [row("memory: growth while building", case, "MB", [o["growth_mb"]]), row("memory: file", case, "MB", [o["file_mb"]])]
    ms = [1000*o for o in found["batches"]]
    case = f"{BATCH} of {args.batch_images} images"
    return out + [row("batch: read", case, "ms", ms, TARGETS["batch, ms"]),
                  row("batch: read, 95th percentile", case, "ms", [np.percentile(ms, 95)], TARGETS["batch, ms"])]


# ---- the report

NOTES = """- Catalog: empty files in MVTec layout, {classes} folders; the peak is above what the process held after its imports.
- Build: {build} images in the page cache, the store with {cores} threads in turn with a loop that opens, converts and resizes one file after
  the other; the ratios pair by pair. Images are drawn; {distinct} are different.
- Memory: growth of the peak of the process from before the build to its end; grey PNG, 300 x 300.
- Batch: random rows from a store in the page cache, after one pass over the file; this process touches most pages for the first time.
- Other work: CPU time that other processes used meanwhile, as a share of all cores. Where it is large trust the memory and the ratio
  of CPU times, not the seconds."""

def text(o:dict, form:str="{:.3g}")->str:
    "Median (smallest to largest) of a row, or its one value"
    return cell(o, form) if o["min"] < o["max"] else form.format(o["median"])

def goal(o:dict)->list:
    "The target of a row, and whether its median meets it"
    return ["", ""] if pd.isna(o["target"]) else [f"below {o['target']:g}", "yes" if o["median"] < o["target"] else "no"]

def report(frame:pd.DataFrame, result:dict)->str:
    "The measurements in markdown"
    a, s = result["about"], result["settings"]
    lines = [[o["measure"], o["case"], text(o, "{:.0f}" if o["median"] >= 100 else "{:.3g}"), o["unit"], *goal(o)] for o in frame.to_dict("records")]
    load = "" if a["load_average"] is None else f", load average {a['load_average']} before"
    others = "" if result["others"] is None else f" Other work took {result['others']:.0%} of the machine meanwhile."
    versions = ", ".join(f"{k} {a[k]}" for k in ("python", "numpy")) + f", pillow {Image.__version__}, pandas {pd.__version__}"
    notes = NOTES.format(classes=7, build=s["build_images"], cores=s["cores"], distinct=min(DISTINCT, s["build_images"]))
    return f"""# Data: {a['device']}

{a['finished']}, dra_nb {a['version']} (commit {a['commit']}), {a['platform']}{load}. {versions}.

Images of {s['size']} px, {s['repeats']} repeats. Median (smallest to largest).

{table(["measure", "case", "value", "unit", "target", "met"], lines)}

## How it was measured

{notes}

The measurement took {result['seconds']:.0f} s.{others}
"""

def write(frame:pd.DataFrame, result:dict, out:Path):
    "data.csv and data.md"
    stamped = frame.assign(device=result["about"]["device"], date=result["about"]["finished"][:10])
    with atomic(out/"data.csv") as part: stamped.to_csv(part, index=False, float_format="%.6g")
    with atomic(out/"data.md") as part: Path(part).write_text(report(frame, result), encoding="utf-8")


# ---- all of it

def arguments(argv=None)->argparse.Namespace:
    "The command line"
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--files", type=positive, default=100_000, help="files of the catalog (default 100000)")
    p.add_argument("--build-images", type=positive, default=1000, help="images of the race with the loop (default 1000)")
    p.add_argument("--memory-images", type=positive, nargs="+", default=[1000, 5000, 20_000],
                   help="images of the stores whose memory is measured (default 1000 5000 20000)")
    p.add_argument("--batch-images", type=positive, default=20_000, help="images of the store that batches are read from (default 20000)")
    p.add_argument("--size", type=positive, default=224, help="image size in px (default 224)")
    p.add_argument("--repeats", type=positive, default=3, help="(default 3)")
    p.add_argument("--out", type=Path, help="folder of the report (default outputs/benchmarks/<device>/)")
    args = p.parse_args(argv)
    if min(args.files, args.build_images, args.batch_images, *args.memory_images) < DISTINCT: p.error(f"fewer than {DISTINCT} files or images")
    return args

def run(args)->dict:
    "All that is measured, and where"
    start, others = time.perf_counter(), others_seconds()
    result = dict(about=about(pick_device("cpu"), "fp32"), settings=dict(vars(args), cores=cores()))
    with tempfile.TemporaryDirectory(prefix="dra_nb_benchmark_") as folder: found = measure(args, Path(folder))
    seconds = time.perf_counter() - start
    share = None if others is None else max(others_seconds() - others, 0)/seconds/os.cpu_count()
    return dict(result, found=found, seconds=seconds, others=share)

def main(argv=None):
    "Measure, print, write"
    args = arguments(argv)
    try: result = run(args)
    except DraError as e: sys.exit(f"error: {e}")
    frame = pd.DataFrame(rows(result["found"], args))
    out = args.out or Path("outputs", "benchmarks", slug(result["about"]["device"]))
    write(frame, result, out)
    print(report(frame, result))
    say(f"written to {out}")


if __name__ == "__main__": main()
