"""How fast DRA trains, how little of a run is not training, and how fast the image store is built.

    python benchmarks/training.py                                        # embedded textures, random weights
    python benchmarks/training.py --data DATA --weights WEIGHTS          # ELPV, read from DATA/elpv

Prints a markdown report and writes it, with the raw seconds as json, to `--out`.
"""
import argparse, copy, itertools, json, os, re, shutil, statistics, sys, tempfile, time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from dra_nb.core import DraError, atomic
from dra_nb.data.catalog import load_catalog, load_datasets
from dra_nb.data.images import ImageStore, open_store, resident
from dra_nb.data.protocols import make_split
from dra_nb.data.samplers import BalancedSampler
from dra_nb.experiments.runs import provenance
from dra_nb.methods.method import Batch, create_method, method_schedule
from dra_nb.models.backbone import weights_id
from dra_nb.training.loop import fit, pick_device, pick_precision

try: from .plain_pipeline import decode_all, plain_batches      # imported as a part of `benchmarks`
except ImportError: from plain_pipeline import decode_all, plain_batches  # run as a script

WARM_UP = 2           # steps that are not timed
TARGET_OVERHEAD = .1  # largest share of a run that may be something else than forward, backward and optimiser


# ---- the machine

def cores()->int:
    "Number of cores that this process may use"
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

def slug(name:str)->str:
    "A name as part of a folder name"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")

def about(device, precision:str)->dict:
    "Where and with what a measurement was made"
    return dict(provenance(str(device), precision), load_average=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None)

def peak_mb()->float:
    """Peak resident memory of this process in MB.

    Linux hands `ru_maxrss` of the parent down to a new process, so VmHWM is read where there is one."""
    try: return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text()).group(1))*1024/1e6
    except (OSError, AttributeError):
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*(1 if sys.platform == "darwin" else 1024)/1e6

def reset_peak():
    "Let the peak start again from what is resident now, where the system can (Linux)"
    try: Path("/proc/self/clear_refs").write_text("5")
    except OSError: pass

def others_seconds():
    "CPU seconds that all but this process and its finished children have used since the start of the machine; None: not known"
    try: ticks = list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]))
    except (OSError, ValueError): return None
    return (sum(ticks) - ticks[3] - ticks[4])/os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])  # neither idle nor waiting for the disk

def synchronise(device:torch.device):
    "Wait for a GPU"
    if device.type == "cuda": torch.cuda.synchronize(device)


# ---- building the store

def seconds_of(function, *args, **kwargs)->tuple:
    "(seconds, result) of a call"
    start = time.perf_counter()
    result = function(*args, **kwargs)
    return time.perf_counter() - start, result

def build_store(catalog, size:int, folder:str, repeats:int)->dict:
    "Build the store `repeats` times, in turn with a loop over the files; called in a process of its own"
    for path in dict.fromkeys(catalog["path"]): Path(path).read_bytes()  # both find the files in the page cache
    found = dict(size=size, images=len(catalog), seconds_store=[], seconds_loop=[])
    for repeat in range(repeats):
        cache = Path(folder, f"{size}-{repeat}")
        reset_peak()
        before = peak_mb()
        seconds, store = seconds_of(open_store, catalog, size, cache=cache, progress=False)
        found["seconds_store"].append(seconds)
        if not repeat: found.update(peak_growth_mb=peak_mb() - before, peak_mb=peak_mb())
        found["seconds_loop"].append(seconds_of(decode_all, catalog, size)[0])
        if repeat: shutil.rmtree(Path(folder, f"{size}-{repeat-1}"))
    return dict(found, file_mb=store.path.stat().st_size/1e6, path=str(store.path))

def measure_store(catalog, size:int, folder:str, repeats:int)->dict:
    "`build_store` in a fresh process, so that its memory counts alone"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(build_store, catalog, size, folder, repeats).result()


# ---- training

@dataclass
class Setup:
    "What the ways to train at one image size have in common"
    catalog:object          # catalog
    split:object            # Split
    store:object            # ImageStore or ResidentStore
    method:torch.nn.Module  # every measurement trains a copy
    schedule:object         # one epoch of the steps to be timed
    device:torch.device
    precision:str           # "fp32" or "bf16"
    size:int                # px

    def start(self)->tuple:
        "A copy of the method and its optimiser, as in `fit`"
        method = copy.deepcopy(self.method).to(self.device, memory_format=torch.channels_last).train()
        s = self.schedule
        return method, torch.optim.Adam(method.parameters(), lr=s.lr, weight_decay=s.weight_decay, fused=True)

    def step(self, method, optimiser, batch:Batch):
        "Forward, backward and optimiser, as in `fit`"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"): losses = method.training_step(batch)
        optimiser.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        if self.schedule.clip: torch.nn.utils.clip_grad_norm_(method.parameters(), self.schedule.clip)
        optimiser.step()

def run_fit(setup:Setup, seed:int=0)->dict:
    "Seconds of a whole call of `fit`, and the share of its loop that made batches"
    method, _ = setup.start()
    synchronise(setup.device)
    start = time.perf_counter()
    history = fit(method, setup.store, setup.split, setup.schedule, str(setup.device), setup.precision, seed=seed)
    synchronise(setup.device)
    return dict(seconds=time.perf_counter() - start, batches_share=history.seconds_batches/history.seconds)

def run_bare(setup:Setup, seed:int=0)->dict:
    "Seconds of as many steps on one batch of noise that is already on the device"
    method, optimiser = setup.start()
    s, pixels = setup.schedule, (3, setup.size, setup.size)
    labels = BalancedSampler(setup.split, s.batch, s.anomalies, method.pseudo).draw().labels.to(setup.device)
    images, references = (torch.randn(n, *pixels, device=setup.device).contiguous(memory_format=torch.channels_last)
                          for n in (s.batch, method.n_reference))
    synchronise(setup.device)
    start = time.perf_counter()
    for _ in range(s.steps): setup.step(method, optimiser, Batch(images, labels, references))
    synchronise(setup.device)
    return dict(seconds=time.perf_counter() - start)

def run_plain(setup:Setup, workers:int, seed:int=0)->dict:
    "Seconds of as many steps on batches of the plain pipeline, once its workers run"
    method, optimiser = setup.start()
    batches = plain_batches(setup.catalog, setup.split, method, setup.schedule, setup.size, workers, setup.device, seed)
    for batch in itertools.islice(batches, WARM_UP): setup.step(method, optimiser, batch)
    synchronise(setup.device)
    start = time.perf_counter()
    for batch in itertools.islice(batches, setup.schedule.steps): setup.step(method, optimiser, batch)
    synchronise(setup.device)
    seconds = time.perf_counter() - start
    batches.close()
    return dict(seconds=seconds)

def warm_up(setup:Setup):
    "A few steps of each kind that nobody times"
    short = replace(setup, schedule=replace(setup.schedule, steps=WARM_UP))
    run_bare(short)
    run_fit(short)

def measure_training(setup:Setup, workers:tuple, repeats:int)->dict:
    "The ways to train in turn, `repeats` times, every other time in reverse"
    ways = {"bare": lambda seed: run_bare(setup, seed), "fit": lambda seed: run_fit(setup, seed),
            **{f"plain {n}": lambda seed, n=n: run_plain(setup, n, seed) for n in workers}}
    found = {way: [] for way in ways}
    warm_up(setup)
    for repeat in range(repeats):
        for way in list(ways)[::-1 if repeat % 2 else 1]: found[way].append(ways[way](repeat))
    return dict(size=setup.size, images=setup.schedule.steps*setup.schedule.batch,
                seconds={way: [o["seconds"] for o in runs] for way, runs in found.items()},
                batches_share=[o["batches_share"] for o in found["fit"]])


# ---- from seconds to numbers

def spread(values)->dict:
    "Median, smallest and largest"
    values = list(values)
    return dict(median=statistics.median(values), min=min(values), max=max(values))

def rate(n:int, seconds)->dict:
    "Things per second"
    return spread(n/s for s in seconds)

def training_numbers(raw:dict)->dict:
    "Images per second, the ratio to the better plain pipeline and the overhead, pair by pair"
    seconds, n = raw["seconds"], raw["images"]
    plain = {way: rate(n, s) for way, s in seconds.items() if way.startswith("plain")}
    best = max(plain, key=lambda way: plain[way]["median"])
    overhead = spread(1 - bare/whole for bare, whole in zip(seconds["bare"], seconds["fit"]))
    return dict(raw, fit=rate(n, seconds["fit"]), plain=plain, best_plain=best,
                ratio=spread(slow/fast for slow, fast in zip(seconds[best], seconds["fit"])),
                overhead=overhead, overhead_ok=overhead["median"] < TARGET_OVERHEAD, batches=spread(raw["batches_share"]))

def store_numbers(raw:dict)->dict:
    "Images per second, and the ratio to the loop, pair by pair"
    n, pairs = raw["images"], zip(raw["seconds_loop"], raw["seconds_store"])
    return {**{k: v for k, v in raw.items() if k != "path"}, "store": rate(n, raw["seconds_store"]), "loop": rate(n, raw["seconds_loop"]),
            "ratio": spread(slow/fast for slow, fast in pairs)}


# ---- the report

def cell(o:dict, form:str="{:.1f}")->str:
    "A spread as text"
    return f"{form.format(o['median'])} ({form.format(o['min'])} to {form.format(o['max'])})"

def table(head:list, rows:list)->str:
    "A markdown table"
    return "\n".join("| " + " | ".join(map(str, o)) + " |" for o in [head, ["---"]*len(head), *rows])

def training_table(results:list)->str:
    "One row per image size"
    ways = list(results[0]["plain"])
    head = ["px", "`fit`, images/s", *[f"plain, {o.split()[1]} workers, images/s" for o in ways], "`fit` / better plain",
            "not forward, backward, optimiser", f"below {TARGET_OVERHEAD:.0%}", "making batches"]
    return table(head, [[r["size"], cell(r["fit"]), *[cell(r["plain"][o]) for o in ways], cell(r["ratio"], "{:.2f}"),
                         cell(r["overhead"], "{:.1%}"), "yes" if r["overhead_ok"] else "no", cell(r["batches"], "{:.1%}")] for r in results])

def store_table(results:list)->str:
    "One row per image size"
    head = ["px", "images", "store, images/s", "PIL loop, 1 thread, images/s", "store / loop", "peak memory: growth (process), MB", "file, MB"]
    return table(head, [[r["size"], r["images"], cell(r["store"], "{:.0f}"), cell(r["loop"], "{:.0f}"), cell(r["ratio"], "{:.2f}"),
                         f"{r['peak_growth_mb']:.0f} ({r['peak_mb']:.0f})", f"{r['file_mb']:.0f}"] for r in results])

NOTES = """- `fit`: steps x batch / wall time of the whole call, in which references are not counted as images.
- Plain: the same step on batches from PIL, torchvision transforms and a DataLoader, every file decoded at every step; its workers run
  before the clock starts.
- Not forward, backward, optimiser: 1 - (time of as many steps on noise that is on the device) / (wall time of `fit`), pair by pair. It can
  be negative by noise.
- Making batches: what `fit` itself measures of its loop (on a GPU: time of the host).
- Store: built from nothing in a process of its own, files in the page cache; the growth is from before the build to its peak.
- Other work: CPU time that other processes used while this ran, as a share of all cores. Two busy programs on the same cores can slow a
  step down many times over: trust the numbers of an idle machine only."""

def report(result:dict)->str:
    "The measurements in markdown"
    a, s = result["about"], result["settings"]
    load = "" if a["load_average"] is None else f", load average {a['load_average']} before"
    memory = f", on the GPU {result['peak_gpu_mb']:.0f} MB" if "peak_gpu_mb" in result else ""
    others = "" if result["others"] is None else f" Other work took {result['others']:.0%} of the machine meanwhile."
    versions = ", ".join(f"{k} {a[k]}" for k in ("python", "torch", "torchvision", "numpy"))
    return f"""# Training speed: {a['device']}

{a['finished']}, dra_nb {a['version']} (commit {a['commit']}), {a['platform']}, {a['precision']}{load}. {versions}.

DRA on {s['dataset']}, weights {s['weights']}: {s['batch']} images per step ({s['batch'] - s['anomalies']} + {s['anomalies']}) and \
{s['references']} references, {s['steps']} steps, {s['repeats']} interleaved repeats, {s['store']} store. Median (smallest to largest).

## Training

{training_table(result['training'])}

Peak memory of the process: {result['peak_mb']:.0f} MB{memory}.

## Building the store

{store_table(result['store'])}

## How it was measured

{NOTES}

The measurement took {result['seconds']:.0f} s.{others}
"""

def write(result:dict, out:Path):
    "training.json and training.md"
    for name, text in (("training.json", json.dumps(result, indent=1) + "\n"), ("training.md", report(result))):
        with atomic(out/name) as part: Path(part).write_text(text, encoding="utf-8")


# ---- all of it

def whole(text:str, least:int=0)->int:
    "A whole number from `least`"
    if int(text) < least: raise argparse.ArgumentTypeError(f"{text} is below {least}")
    return int(text)

def positive(text:str)->int:
    "A whole number from 1"
    return whole(text, 1)

def arguments(argv=None)->argparse.Namespace:
    "The command line"
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", help="folder that holds one folder per dataset; without it the embedded textures are used")
    p.add_argument("--dataset", help="default: elpv with --data, else textures")
    p.add_argument("--weights", help="of the backbone: imagenet, a file, or none (default)")
    p.add_argument("--device", default="auto", help="auto (default), cpu, cuda, ...")
    p.add_argument("--precision", default="auto", help="auto (default), fp32 or bf16")
    p.add_argument("--sizes", type=positive, nargs="+", default=[64, 128, 224], help="image sizes in px (default 64 128 224)")
    p.add_argument("--steps", type=positive, help="timed steps per repeat (default 10, on a GPU 100)")
    p.add_argument("--batch", type=positive, default=24, help="images per step (default 24)")
    p.add_argument("--anomalies", type=positive, default=8, help="of which given anomalies (default 8)")
    p.add_argument("--workers", type=whole, nargs="+", default=sorted({0, cores()}), help="of the plain pipeline (default 0 and the number of cores)")
    p.add_argument("--repeats", type=positive, default=3, help="(default 3)")
    p.add_argument("--store", choices=["auto", "mapped", "resident"], default="auto", help="images read from the mapped file, or kept on the device (auto: on a GPU)")
    p.add_argument("--out", type=Path, help="folder of the report (default outputs/benchmarks/<device>/)")
    return p.parse_args(argv)

def say(text:str):
    "Progress, beside the report"
    print(text, file=sys.stderr, flush=True)

def prepare(args)->Setup:
    "Everything but the image size, checked before anything is measured"
    device, name = pick_device(args.device), args.dataset or ("elpv" if args.data else "textures")
    weights = None if args.weights in (None, "none") else args.weights
    catalog = load_catalog(name, args.data)
    split = make_split(catalog, shots=10, category=sorted(catalog.category.unique())[0])
    schedule = replace(method_schedule("dra", {}), epochs=1, steps=args.steps or (100 if device.type == "cuda" else 10),
                       batch=args.batch, anomalies=args.anomalies)
    method = create_method("dra", weights=weights, seed=0)
    BalancedSampler(split, schedule.batch, schedule.anomalies, method.pseudo, method.n_reference)  # raises what cannot be drawn
    return Setup(catalog, split, None, method, schedule, device, pick_precision(args.precision, device), 0)

def open_for(setup:Setup, path:str, store:str):
    "The store that `fit` reads from"
    images = ImageStore(path)
    return resident(images, np.concatenate([setup.split.normal, setup.split.given]), setup.device) if store == "resident" else images

def measure(args, setup:Setup, folder:str)->dict:
    "Both measurements at every size"
    kind = args.store if args.store != "auto" else "resident" if setup.device.type == "cuda" else "mapped"
    s, name, training, stores = setup.schedule, setup.catalog.attrs["dataset"], [], []
    settings = dict(dataset=load_datasets()[name].title if name in load_datasets() else name, weights=weights_id(None if args.weights == "none" else args.weights),
                    batch=s.batch, anomalies=s.anomalies, references=setup.method.n_reference, steps=s.steps, repeats=args.repeats, store=kind)
    for size in args.sizes:
        say(f"{size} px: building the store")
        raw = measure_store(setup.catalog, size, folder, args.repeats)
        stores.append(store_numbers(raw))
        say(f"{size} px: training")
        here = replace(setup, store=open_for(setup, raw["path"], kind), size=size)
        training.append(training_numbers(measure_training(here, args.workers, args.repeats)))
    return dict(settings=settings, training=training, store=stores)

def run(args)->dict:
    "All that is measured, and where"
    start, others = time.perf_counter(), others_seconds()
    setup = prepare(args)
    result = dict(schema=1, about=about(setup.device, setup.precision))
    with tempfile.TemporaryDirectory(prefix="dra_nb_benchmark_") as folder: result.update(measure(args, setup, folder))
    seconds = time.perf_counter() - start
    share = None if others is None else max(others_seconds() - others, 0)/seconds/os.cpu_count()
    result.update(peak_mb=peak_mb(), seconds=seconds, others=share)
    if setup.device.type == "cuda": result["peak_gpu_mb"] = torch.cuda.max_memory_allocated(setup.device)/1e6
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
