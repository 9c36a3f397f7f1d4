"""What tiles cost beside forward passes of the network, and how much memory a stream of large photos takes.

    python benchmarks/tiles.py                                  # photos of 2,000 px, streams of 50 and 2,000
    python benchmarks/tiles.py --side 256 --size 64 --tiles 1 2 4 --photos 2 6      # a trial

Prints a markdown report and writes it (tiles.md), with the numbers as csv (tiles.csv), to `--out`.
"""

from pathlib import Path

import numpy as np
from measured import alone, main, numbers, parser, positive, row, say
from PIL import Image

from dra_nb.detector.detector import AnomalyDetector
from dra_nb.detector.scorer import score_pixels
from dra_nb.profiling.memory import MemoryPeak
from dra_nb.profiling.timing import in_turn, time_call
from dra_nb.training.compute import Compute


def photo(side: int, seed: int) -> np.ndarray:
    "Noise of the size of a photo, uint8 (side, side, 3)"
    small = np.random.default_rng(seed).integers(0, 255, (side // 8 + 1, side // 8 + 1, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))


def write_photos(folder: Path, side: int, n: int = 4) -> list:
    "A few photos as files"
    folder.mkdir(exist_ok=True)
    for i in range(n):
        Image.fromarray(photo(side, i)).save(folder / f"{i}.jpg", quality=90)
    return sorted(map(str, folder.iterdir()))


def learnt(files: list, tiles: int, args) -> AnomalyDetector:
    "A detector that has seen the photos: scoring takes as long as after a real training"
    settings = dict(image_size=args.size, backbone=args.backbone, weights=None, device=args.device)
    return AnomalyDetector("patchcore", tiles=tiles, threshold=1.0, holdout=0, **settings).fit(files)


def measure_tiles(files: list, tiles: int, args) -> dict:
    "Seconds per photo of a stream, and of the network alone on as many tiles in one batch, in turn"
    detector = learnt(files, tiles, args)
    scorer = detector.scorer_
    pixels = next(scorer.preprocessing.stream(files[:1])).pixels.reshape(-1, 3, args.size, args.size)
    device = Compute(args.device).resolve()
    ways = {
        "stream": lambda: time_call(lambda: list(detector.score_stream(files)), device=device).seconds / len(files),
        "passes": lambda: time_call(lambda: score_pixels(scorer, pixels, batch_size=32), device=device).seconds,
        "one pass": lambda: time_call(lambda: score_pixels(scorer, pixels[:1]), device=device).seconds,
    }
    for way in ways.values():
        way()
    return dict(in_turn(ways, args.repeats), n=len(pixels))


def measure_memory(files: list, tiles: int, n: int, args) -> float:
    "Growth in MB while n photos are scored with heat maps"
    detector = learnt(files, tiles, args)
    with MemoryPeak(Compute(args.device).resolve()) as memory:
        for _ in detector.score_stream((files[i % len(files)] for i in range(n)), maps="score"):
            pass
    return memory.mb


def measure(args, folder: Path) -> list:
    "All measurements"
    files = write_photos(folder / "photos", args.side)
    rows = []
    each = {}
    for tiles in args.tiles:
        say(f"{tiles} tiles along {args.side} px: speed")
        found = alone(measure_tiles, files, tiles, args)
        n = found["n"]
        case = f"{args.side} px, {n} tiles of {args.size} px"
        each[n] = float(np.median(found["stream"])) / n
        rows += [
            row("seconds per photo", case, "s", found["stream"]),
            row("photo / one pass of its tiles", case, "", [a / b for a, b in zip(found["stream"], found["passes"])]),
            row(
                "photo / forward pass of one image",
                case,
                "",
                [a / b for a, b in zip(found["stream"], found["one pass"])],
            ),
        ]
    few, many = min(each), max(each)
    if few < many:
        rows.append(
            row(f"time per tile, {many} / {few} tiles", f"{args.side} px", "", each[many] / each[few], "at most 1.2")
        )
    memory = {}
    for n in args.photos:
        say(f"{n} photos: memory")
        memory[n] = alone(measure_memory, files, max(args.tiles), n, args)
        rows.append(row("memory: growth while scoring", f"{n} photos of {args.side} px, {many} tiles", "MB", memory[n]))
    least, most = min(memory), max(memory)
    ratio = memory[most] / max(memory[least], 1)
    return [*rows, row(f"growth of memory, {most} / {least} photos", f"{args.side} px", "", ratio, "at most 1.1")]


NOTES = """
- Photos are JPEG files of smooth noise, in the page cache; the method is PatchCore with random weights, which takes as
  long as with trained ones.
- Photo / one pass of its tiles: a stream of files, decoded, cut, resized and scored, over the network and the memory of
  patches alone on the same tiles in batches of 32.
- Photo / forward pass of one image: what tiles cost beside the same photo resized as a whole and already decoded.
- Memory: of a fresh process, from after the training to the end of a stream with heat maps."""

if __name__ == "__main__":
    p = parser(__doc__)
    p.add_argument("--side", type=positive, default=2000, help="of the photos, px (default 2000)")
    p.add_argument("--size", type=positive, default=224, help="of the tiles as the model takes them, px (default 224)")
    p.add_argument("--backbone", default="resnet18", help="registered backbone (default resnet18)")
    numbers(p, "--tiles", [1, 4, 10], "tiles along a photo")
    numbers(p, "--photos", [50, 2000], "photos of a stream whose memory is measured")
    p.add_argument("--device", default="auto", help="auto (default), cpu, cuda, ...")
    args = p.parse_args()
    main("tiles", "Tiles", args, measure, f"PatchCore on {args.backbone}, photos of {args.side} px.", NOTES)
