"""Speed and memory of the data: listing a large folder, decoding images into the store, reading batches from it.

    python benchmarks/data.py                    # about a minute on two cores, 4 GB of disk for that time
    python benchmarks/data.py --files 2000 --batch-images 500 --memory-images 100 --build-images 100 --repeats 1 # trial

Files are drawn into a temporary folder and removed. Every measurement runs in a process of its own, so that its memory
counts alone.
Prints a markdown report and writes it (data.md), with the numbers as csv (data.csv), to `--out`.
"""

import shutil
import time
from pathlib import Path

import numpy as np
from measured import alone, link, main, numbers, parser, positive, row, say
from PIL import Image
from plain_pipeline import decode_all

from dra_nb.core import available_cores
from dra_nb.data.catalog import fingerprint
from dra_nb.data.contents import content_digests
from dra_nb.data.readers.mvtec import read_mvtec
from dra_nb.data.store import ImageStore, open_store
from dra_nb.profiling.memory import peak_mb, reset_peak
from dra_nb.profiling.timing import in_turn, ratios, time_call

BATCH = 48  # rows per batch
DISTINCT = 100  # different images; all others are further names (hard links) of the same files
KINDS = {
    "grey PNG, 300 x 300": ("png", "L", (300, 300)),  # as in ELPV
    "colour JPEG, 640 x 480": ("jpg", "RGB", (640, 480)),
}


# ---- files to read


def draw(path: Path, mode: str, size: tuple, seed: int):
    "Write one image: a blurred pattern with noise, which compresses about as a photograph does"
    rng, (w, h) = np.random.default_rng(seed), size
    rough = Image.fromarray(rng.integers(0, 256, (max(h // 40, 2), max(w // 40, 2), 3), dtype=np.uint8)).resize(
        (w, h), Image.Resampling.BICUBIC
    )
    noisy = np.asarray(rough) + rng.integers(-5, 6, (h, w, 1))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode).save(path)


def names(n: int) -> list:
    "Names of n images in MVTec layout, one in ten of them an anomaly of five classes"
    folders = ["train/good"] * 7 + ["test/good"] * 2
    return [f"test/class{i // 10 % 5}/{i:06}" if i % 10 == 9 else f"{folders[i % 10]}/{i:06}" for i in range(n)]


def image_folder(root: Path, kind: tuple, n: int, distinct: int = DISTINCT) -> Path:
    "A dataset of n images in MVTec layout; kind: ending, mode, (width, height)"
    ending, mode, size = kind
    for i, name in enumerate(names(n)):
        path = root / f"{name}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i < distinct:
            draw(path, mode, size, i)
        else:
            link(root / f"{names(distinct)[i % distinct]}.{ending}", path)
    return root


def empty_folder(root: Path, n: int) -> Path:
    "A dataset of n empty files in MVTec layout"
    for name in names(n):
        path = root / f"{name}.png"
        try:
            path.touch()
        except FileNotFoundError:
            path.parent.mkdir(parents=True)
            path.touch()
    return root


# ---- what is measured, each in a fresh process


def measure_catalog(root: Path, repeats: int) -> dict:
    "Seconds to read the folder and to fingerprint it, and the growth of the peak of the first time"
    reset_peak()
    before, found = peak_mb(), dict(read=[], fingerprint=[])
    for repeat in range(repeats):
        seconds, catalog = time_call(read_mvtec, root)
        found["read"].append(seconds)
        if not repeat:
            found.update(read_mb=peak_mb() - before, rows=len(catalog))
        found["fingerprint"].append(time_call(fingerprint, catalog)[0])
        if not repeat:
            found.update(both_mb=peak_mb() - before)
    return found


def measure_contents(root: Path, repeats: int) -> list:
    "Seconds to hash the bytes of all files of a folder, which are in the page cache"
    paths = read_mvtec(root)["path"].tolist()
    content_digests(paths, available_cores())
    return [time_call(content_digests, paths, available_cores())[0] for _ in range(repeats)]


def measure_build(root: Path, folder: Path, size: int, repeats: int) -> dict:
    "(seconds, CPU seconds) of building the store and of the loop over the files, in turn"
    catalog = read_mvtec(root)
    for path in catalog["path"]:
        Path(path).read_bytes()  # both find the files in the page cache

    def timed(call):
        clock = time.process_time()
        seconds, _ = time_call(call)
        shutil.rmtree(folder, ignore_errors=True)
        return seconds, time.process_time() - clock

    return in_turn(
        {
            "store": lambda: timed(lambda: open_store(catalog, size, cache=folder, progress=False)),
            "loop": lambda: timed(lambda: decode_all(catalog, size)),
        },
        repeats,
    )


def measure_memory(root: Path, folder: Path, size: int) -> dict:
    "Growth of the peak while the store is built"
    catalog = read_mvtec(root)
    reset_peak()
    before = peak_mb()
    store = open_store(catalog, size, cache=folder, progress=False)
    return dict(growth=peak_mb() - before, path=store.path, file=store.path.stat().st_size / 1e6)


def measure_batches(path: Path, repeats: int = 300) -> list:
    "Milliseconds of reading random batches from a store in the page cache; this process touches most pages first"
    with open(path, "rb") as f:
        while f.read(2**24):
            pass
    store, rng = ImageStore(path), np.random.default_rng(0)
    return [
        1000 * time_call(store.__getitem__, rng.choice(len(store), min(BATCH, len(store)), replace=False))[0]
        for _ in range(repeats)
    ]


# ---- all measurements


def catalog_rows(args, tmp: Path) -> list:
    "A folder of empty files"
    found, n = alone(measure_catalog, empty_folder(tmp / "empty", args.files), args.repeats), f"{args.files} files"
    shutil.rmtree(tmp / "empty")
    return [
        row("catalog: read the folder", n, "s", found["read"], "below 5"),
        row("catalog: fingerprint", n, "s", found["fingerprint"]),
        row("catalog: peak memory above import", n, "MB", found["read_mb"], "below 300"),
        row("catalog and fingerprint: peak memory above import", n, "MB", found["both_mb"], "below 300"),
    ]


def contents_rows(args, tmp: Path) -> list:
    "Files of the kind that ELPV has, all of them different"
    kind, n = next(iter(KINDS)), args.contents
    root = image_folder(tmp / "contents", KINDS[kind], n, distinct=n)
    found = alone(measure_contents, root, args.repeats)
    shutil.rmtree(root)
    return [row("contents: hash all files", f"{n} files, {kind}", "s", found, "below 0.5")]


def build_rows(args, tmp: Path, kind: str) -> list:
    "The store against a loop over the files"
    root = image_folder(tmp / kind, KINDS[kind], args.build_images)
    (store, cpu_store), (loop, cpu_loop) = (
        zip(*found) for found in alone(measure_build, root, tmp / "cache", args.size, args.repeats).values()
    )
    return [
        row("build: store", kind, "images/s", [args.build_images / s for s in store]),
        row("build: PIL loop, 1 thread", kind, "images/s", [args.build_images / s for s in loop]),
        row("build: store / loop", kind, "", ratios(loop, store)),
        row("build: CPU time, store / loop", kind, "", ratios(cpu_store, cpu_loop)),
    ]


def memory_rows(args, tmp: Path, n: int) -> list:
    "What a store of n images takes to build, and, of one of them, to read"
    found = alone(
        measure_memory, image_folder(tmp / f"memory{n}", next(iter(KINDS.values())), n), tmp / f"cache{n}", args.size
    )
    rows = [
        row("memory: growth while building", f"{n} images", "MB", found["growth"]),
        row("memory: file", f"{n} images", "MB", found["file"]),
    ]
    if n == args.batch_images:
        ms, case = alone(measure_batches, found["path"]), f"{BATCH} of {n} images"
        rows += [
            row("batch: read", case, "ms", ms, "below 20"),
            row("batch: read, 95th percentile", case, "ms", float(np.percentile(ms, 95)), "below 20"),
        ]
    shutil.rmtree(tmp / f"cache{n}")
    return rows


def measure(args, tmp: Path) -> list:
    "Everything, one after the other; what is no longer needed is removed"
    say(f"catalog of {args.files} files")
    rows = catalog_rows(args, tmp)
    say(f"contents of {args.contents} files")
    rows += contents_rows(args, tmp)
    for kind in KINDS:
        say(f"store of {args.build_images} images: {kind}")
        rows += build_rows(args, tmp, kind)
    for n in sorted({*args.memory_images, args.batch_images}):
        say(f"store of {n} images: memory")
        rows += memory_rows(args, tmp, n)
    return rows


NOTES = """
- Catalog: empty files in MVTec layout, 7 folders; the peak is above what the process held after its imports.
- Contents: the files of the page cache, one thread per core ({cores}).
- Build: images in the page cache, the store with one thread per core ({cores}) in turn with a loop that opens, converts
  and resizes one file after the other; the ratios pair by pair. Images are drawn; {distinct} are different.
- Memory: growth of the peak of the process from before the build to its end; grey PNG, 300 x 300.
- Batch: random rows from a store in the page cache, after one pass over the file; this process touches most pages for
  the first time."""

if __name__ == "__main__":
    p = parser(__doc__)
    p.add_argument("--files", type=positive, default=100_000, help="files of the catalog (default 100000)")
    p.add_argument("--contents", type=positive, default=2624, help="files whose bytes are hashed (default 2624, ELPV)")
    p.add_argument(
        "--build-images", type=positive, default=1000, help="images of the race with the loop (default 1000)"
    )
    numbers(p, "--memory-images", [1000, 5000, 20_000], "images of the stores whose memory is measured")
    p.add_argument(
        "--batch-images",
        type=positive,
        default=20_000,
        help="images of the store that batches are read from (default 20000)",
    )
    p.add_argument("--size", type=positive, default=224, help="image size in px (default 224)")
    args = p.parse_args()
    if min(args.files, args.build_images, args.batch_images, *args.memory_images) < DISTINCT:
        p.error(f"fewer than {DISTINCT} files or images")
    main(
        "data",
        "Data",
        args,
        measure,
        f"Images of {args.size} px, {args.repeats} repeats.",
        NOTES.format(cores=available_cores(), distinct=DISTINCT),
    )
