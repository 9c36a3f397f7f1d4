"Large photos with small defects: smooth grain with a dark spot of a few pixels."

import numpy as np
from PIL import Image
from scipy import ndimage


def large_photo(seed, size=(512, 384), spot=None):
    "uint8 (H, W, 3) of width and height `size`; spot: (x, y, side) of a dark square"
    rng = np.random.default_rng(seed)
    w, h = size
    grain = ndimage.gaussian_filter(rng.normal(size=(h, w)), 2) * 60 + 140
    if spot:
        x, y, side = spot
        grain[y : y + side, x : x + side] = 40
    return np.repeat(grain.clip(0, 255).astype(np.uint8)[..., None], 3, 2)


def spots(n, size=(512, 384), side=12, seed=7):
    "n places of spots, none of them at the border"
    rng = np.random.default_rng(seed)
    w, h = size
    return [(int(rng.integers(8, w - side - 8)), int(rng.integers(8, h - side - 8)), side) for _ in range(n)]


def mask_of(spot, size=(512, 384)):
    "bool (H, W)"
    x, y, side = spot
    mask = np.zeros(size[::-1], bool)
    mask[y : y + side, x : x + side] = True
    return mask


def write_photos(root, normals=14, tests=8, anomalies=8, size=(512, 384), side=12):
    "A dataset in MVTec layout, with masks"
    folders = {"train/good": range(normals), "test/good": range(100, 100 + tests)}
    for folder, seeds in folders.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in seeds:
            Image.fromarray(large_photo(i, size)).save(root / folder / f"{i:03}.png")
    for folder in ("test/spot", "ground_truth/spot"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i, spot in enumerate(spots(anomalies, size, side)):
        Image.fromarray(large_photo(200 + i, size, spot)).save(root / f"test/spot/{i:03}.png")
        Image.fromarray(mask_of(spot, size)).save(root / f"ground_truth/spot/{i:03}_mask.png")
    return root
