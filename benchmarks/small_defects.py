"""Are small defects in large photos found? AUROC of the default detector on photos as a whole and in tiles.

    python benchmarks/small_defects.py --data DATA              # also strips of fabric (AITEX); an hour on two cores
    python benchmarks/small_defects.py --materials weave        # embedded textures alone
    python benchmarks/small_defects.py --materials weave --side 384 --size 64 --tiles 1 3 --given 2 --tested 4

Photos show a piece of a surface of the embedded textures; a defect is that of a picture of the dataset, made smaller.
Prints a markdown report and writes it (small_defects.md), with the numbers as csv (small_defects.csv), to `--out`.
"""

from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from measured import main, numbers, parser, positive, row, say
from PIL import Image

from dra_nb.core import DraError
from dra_nb.data.datasets import load_catalog
from dra_nb.data.masks import mask_paths
from dra_nb.data.textures import TEXTURES, render_normal, render_pair
from dra_nb.data.tiling import MOST_TILES, tile_side
from dra_nb.detector.detector import AnomalyDetector
from dra_nb.evaluation.metrics import auroc

VISIBLE = 24  # grey levels by which a defect changes its pixels, on average


class Trial(NamedTuple):
    "Photos to learn from and to test"

    name: str
    normal: list  # paths
    given: pd.DataFrame  # catalog of anomalies with masks
    test: list  # paths
    labels: np.ndarray  # (len(test),) 0 normal, 1 anomaly


def as_catalog(rows: list) -> pd.DataFrame:
    "Anomalies from (path, mask)"
    facts = dict(box=None, category="", split="train", label=1, defect="small")
    return pd.DataFrame([dict(path=str(path), mask=str(mask), **facts) for path, mask in rows])


def small_defect(material: str, defect: str, index: int, size: int) -> tuple:  # (h, w, 3) float, (h, w) bool
    "What a defect, made `size` pixels long, changes about a surface, and where"
    pair = render_pair(material, defect, index)
    rows, columns = np.nonzero(pair.mask)
    box = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    scale = size / max(box[2] - box[0], box[3] - box[1])
    shape = [max(1, round((box[i + 2] - box[i]) * scale)) for i in (0, 1)]

    def small(pixels):
        return np.asarray(Image.fromarray(pixels).crop(box).resize(shape, Image.Resampling.BOX), float)

    return small(pair.image) - small(pair.normal), small(np.uint8(255 * pair.mask)) > 64


def visibility(change: np.ndarray, mask: np.ndarray) -> float:
    "How much the pixels of a defect change, on average, in grey levels"
    return np.abs(change).mean(2)[mask].mean()


def paste(photo: np.ndarray, change: np.ndarray, mask: np.ndarray, rng) -> tuple:
    "A photo with a defect at a random place, and the mask of it"
    h, w = mask.shape
    y, x = (int(rng.integers(30, photo.shape[axis] - 30 - side)) for axis, side in ((0, h), (1, w)))
    place = slice(y, y + h), slice(x, x + w)
    changed, whole = photo.copy(), np.zeros(photo.shape[:2], bool)
    changed[place] = np.clip(photo[place] + change, 0, 255)
    whole[place] = mask
    return changed, whole


def with_defects(material: str, n: int, folder: Path, args) -> list:
    "Write n photos with a visible defect each, of all classes in turn; (photo, mask) of them"
    rng = np.random.default_rng(1)
    written = []
    for index, defect in product(range(20), TEXTURES[material].defect_names):
        change, mask = small_defect(material, defect, index, args.defect)
        if len(written) == n or visibility(change, mask) < VISIBLE:
            continue
        photo = render_normal(material, args.tested + len(written), size=args.side)
        changed, whole = paste(photo, change, mask, rng)
        written.append((folder / f"{len(written)}.png", folder / f"{len(written)}_mask.png"))
        for picture, path in zip((changed, whole), written[-1]):
            Image.fromarray(picture).save(path)
    if len(written) < n:
        raise DraError(
            f"{material} has {len(written)} defects that are visible at {args.defect} px, not {n}; test fewer"
        )
    return written


def textures(material: str, folder: Path, args) -> Trial:
    "Large photos of a material"
    folder = folder / material
    folder.mkdir(parents=True)
    kept = {"train": [], "test": []}
    for split, n in (("train", args.normals), ("test", args.tested)):
        for i in range(n):
            kept[split].append(str(folder / f"{split}{i}.png"))
            Image.fromarray(render_normal(material, i, split, args.side)).save(kept[split][-1])
    bad = with_defects(material, args.given + args.tested, folder, args)
    found = [str(path) for path, _ in bad[args.given :]]
    labels = np.repeat([0, 1], [args.tested, len(found)])
    return Trial(
        f"{material}, {args.side} px", kept["train"], as_catalog(bad[: args.given]), kept["test"] + found, labels
    )


def strips(args) -> Trial:
    "Whole strips of fabric; as many normals as anomalies are tested"
    catalog = load_catalog("aitex", args.data)
    label = catalog.groupby("path").label.max()
    good, bad = (label.index[label == value].to_series().sample(frac=1, random_state=0).tolist() for value in (0, 1))
    masks = catalog[catalog.label == 1].groupby("path")["mask"].first()
    tested = good[-args.strips :] + bad[args.given : args.given + args.strips]
    labels = np.repeat([0, 1], [args.strips, len(tested) - args.strips])
    given = as_catalog([(path, mask_paths(masks[path])[0]) for path in bad[: args.given]])
    return Trial("AITEX strips", good[: -args.strips], given, tested, labels)


def trials(args, folder: Path):
    "(photos, numbers of tiles) of each"
    for material in args.materials:
        yield textures(material, folder, args), args.tiles
    if args.data:
        trial = strips(args)
        width, height = Image.open(trial.normal[0]).size
        yield trial, (1, next(n for n in range(2, MOST_TILES + 1) if tile_side(width, n) <= height))


def measure(args, folder: Path) -> list:
    "All measurements"
    rows = []
    for trial, tilings in trials(args, folder):
        for tiles in tilings:
            say(f"{trial.name}: {tiles} tiles")
            settings = dict(image_size=args.size, device=args.device, precision="fp32", tiles=tiles)
            detector = AnomalyDetector(**settings).fit(trial.normal, trial.given)
            scores = detector.score_samples(trial.test)
            found = auroc(scores[trial.labels == 0], scores[trial.labels == 1])
            target = "below 0.7" if tiles == 1 else "at least 0.95" if tiles == max(tilings) else ""
            rows.append(row("AUROC", f"{trial.name}, {tiles} tiles along the longer side", "", found, target))
    return rows


NOTES = f"""
- COVE on EfficientNet-Lite0, the defaults of a detector, with given anomalies whose masks are known.
- A defect is what distinguishes a picture of the textures from its normal counterpart, made smaller and added to a
  photo; it changes its pixels by {VISIBLE} grey levels or more, on average. Fainter ones are left out.
- No photo of a surface is a piece of another, and thread counts, pitch and light differ from photo to photo."""

if __name__ == "__main__":
    p = parser(__doc__)
    p.add_argument("--data", type=Path, help="folder with AITEX; without it textures alone")
    p.add_argument("--materials", nargs="*", default=["weave", "metal"], help="(default weave metal)")
    p.add_argument("--side", type=positive, default=2000, help="of the photos, px (default 2000)")
    p.add_argument("--defect", type=positive, default=20, help="longer side of a defect, px (default 20)")
    p.add_argument("--size", type=positive, default=224, help="of the tiles as the model takes them, px (default 224)")
    numbers(p, "--tiles", [1, 10, 16], "tiles along a photo")
    p.add_argument("--normals", type=positive, default=16, help="photos to learn from (default 16)")
    p.add_argument("--given", type=positive, default=6, help="given anomalies (default 6)")
    p.add_argument("--tested", type=positive, default=16, help="normals and anomalies tested, each (default 16)")
    p.add_argument("--strips", type=positive, default=40, help="the same of AITEX (default 40)")
    p.add_argument("--device", default="auto", help="auto (default), cpu, cuda, ...")
    args = p.parse_args()
    main("small_defects", "Small defects", args, measure, f"Defects of {args.defect} px in large photos.", NOTES)
