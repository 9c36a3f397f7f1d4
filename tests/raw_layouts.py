"""Small folders in the layouts in which the authors of the industrial datasets publish them, with every irregularity
of the real downloads: names, nesting, formats of the label files, image sizes and modes. Each function fills `root`
and returns it; what a reader should find in it is written down beside it, as plain tables."""

import os
import random
import shutil
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image


def put(path, pixels, format=None):
    "Write an image; the format follows from the ending in any letter case"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(
        path, format=format or {"JPG": "JPEG"}.get(path.suffix[1:].upper(), path.suffix[1:].upper())
    )
    return path


def surface(width, height, seed=0):
    "A grey weave that compresses well"
    y, x = np.mgrid[:height, :width]
    return (118 + 6 * ((x // 2 + y // 3 + seed) % 5) + 3 * ((x - y + seed) % 7)).astype(np.uint8)


def marks(width, height, *boxes, value=255):
    "A black mask with these boxes (left, top, right, bottom) filled"
    pixels = np.zeros((height, width), np.uint8)
    for left, top, right, bottom in boxes:
        pixels[top:bottom, left:right] = value
    return pixels


def shuffled_copy(source, target, seed=0):
    "The same folder, its files created in another order and with other times of change"
    source, target, rng = Path(source), Path(target), random.Random(seed)
    files = [o for o in sorted(source.rglob("*")) if o.is_file()]
    rng.shuffle(files)
    for o in files:
        new = target / o.relative_to(source)
        new.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(o, new)
        os.utime(new, ns=(rng.randrange(10**18), rng.randrange(10**18)))
    return target


# ELPV: path, probability of a defect and type of module, separated by blanks; no header

ELPV = (
    [("0.0", "mono")] * 5
    + [("0.0", "poly")] * 4
    + [("0.3333333333333333", "mono"), ("0.6666666666666666", "poly")]
    + [("1.0", "mono")] * 2
    + [("1.0", "poly")] * 3
)


def elpv(root, clone=False):
    "labels.csv and images/, or where a clone of the authors' repository has them"
    inner = root / "src" / "elpv_dataset" / "data" if clone else root
    rows = [(f"images/cell{i:04}.png", *o) for i, o in enumerate(ELPV, 1)]
    random.Random(1).shuffle(rows)
    for i, (path, *_) in enumerate(rows):
        put(inner / path, surface(300, 300, i))
    (inner / "labels.csv").write_text("".join(f"{path}  {p:<20}  {kind}\n" for path, p, kind in rows))
    return root


# AITEX: strips of 4096 x 256; name = number of the strip, code of the defect, code of the fabric

AITEX_FABRICS = (
    "2306881-210020u",
    "2306894-210033u",
    "2311517-195063u",
    "2311694-1930c7u",
    "2311694-2040n7u",
    "2311980-185026u",
    "2608691-202020u",
)
AITEX_NORMAL = [
    f"{fabric}/{i:04}_{'00' if i == 18 else '000'}_{i % 7:02}.png" for i, fabric in enumerate(AITEX_FABRICS, 12)
]  # 0018_00_01: two digits

AITEX_DEFECTS = {  # strip -> (class, masks as lists of boxes, numbers of the tiles they touch)
    "0001_002_00": (
        "Broken_end",
        [[(250, 40, 262, 44), (3000, 5, 3002, 9)]],
        [0, 1, 11],
    ),  # across the border of two tiles
    "0019_019_02": ("Fuzzyball", [[(4095, 255, 4096, 256)]], [15]),  # the last pixel
    "0044_019_04": ("Fuzzyball", [[(520, 10, 530, 20)], [(700, 90, 800, 99)]], [2, 3]),  # two masks, _mask1 and _mask2
    "0031_022_01": ("Cut_selvage", [[(1024, 0, 1280, 256)]], [4]),  # exactly one tile
    "0052_010_02": ("Broken_pick", [[(0, 128, 4096, 130)]], list(range(16))),  # the whole width
    "0060_016_05": ("Weft_curling", [[(900, 1, 901, 2)]], [3]),  # one pixel
    "0070_023_01": ("Crease", [[(100, 0, 110, 256)]], [0]),
    "0080_029_02": ("Contamination", [[(2000, 100, 2010, 110)]], [7]),
    "0081_006_04": ("Broken_yarn", [[(1500, 100, 1530, 110)]], [5]),
    "0090_030_03": ("Nep", [[(2600, 100, 2604, 104), (2700, 30, 2703, 33)]], [10]),
    "0094_027_05": ("Knots", [[(3700, 20, 3705, 25)]], [14]),  # 3796 pixels wide: the last tile has 212
    "0097_030_03": ("Nep", [[(10, 10, 12, 12)], [(11, 10, 13, 12)]], [0]),  # two masks in one tile
    "0098_036_06": ("Weft_crack", [[(3800, 0, 3900, 9)]], [14, 15]),
    "0099_025_00": ("Warp_ball", [[(300, 50, 310, 60)]], [1]),
    "0100_025_08": ("Warp_ball", [], []),  # no mask
    "0106_010_03": ("Broken_pick", [[]], []),  # an empty mask
}


def aitex_width(strip):
    return 3796 if strip == "0094_027_05" else 4096


def aitex(root, nested=True):
    "NODefect_images, Defect_images and Mask_images; nested as Kaggle's archive unpacks, or as the authors' do"
    good, bad, mask = (
        root / o / o if nested and o[0] != "N" else root / o
        for o in ("NODefect_images", "Defect_images", "Mask_images")
    )
    for i, name in enumerate(AITEX_NORMAL):
        pixels = surface(4096, 256, i)
        if i % 2 == 0:
            pixels[:, 2800:] = 255  # white padding
        put(good / name, pixels)
    for i, (strip, (_, masks, _)) in enumerate(AITEX_DEFECTS.items()):
        width = aitex_width(strip)
        put(bad / f"{strip}.png", surface(width, 256, i))
        for j, boxes in enumerate(masks, 1):
            put(mask / f"{strip}_mask{j if len(masks) > 1 else ''}.png", marks(width, 256, *boxes))
    return root


# SDD: KolektorSDD; grey, 500 pixels wide, heights differ; a label for every image

SDD = {  # image -> (height, rows of the label that are marked, numbers of the thirds they touch)
    "kos01/Part0": (1268, [], []),
    "kos01/Part1": (1268, [(100, 130)], [0]),
    "kos01/Part5": (1255, [], []),
    "kos02/Part0": (1240, [], []),
    "kos02/Part3": (1257, [(830, 845)], [1, 2]),  # across the border at 838
    "kos10/Part6": (1270, [(422, 423)], [0]),  # the last row of the upper third: 1270//3 = 423
    "kos10/Part7": (1270, [(846, 847)], [2]),  # the first row of the lower one: 2*1270//3 = 846
    "kos50/Part2": (1241, [], []),
}


def sdd(root):
    "kos01/Part0.jpg, kos01/Part0_label.bmp, ..."
    for i, (name, (height, rows, _)) in enumerate(SDD.items()):
        put(root / f"{name}.jpg", surface(500, height, i))
        put(root / f"{name}_label.bmp", marks(500, height, *((200, top, 260, bottom) for top, bottom in rows)))
    return root


# Optical: DAGM 2007; ten textures with equal file names; Labels.txt starts with a line "1"

OPTICAL_FLAGS = {
    "Test": (1, [0, 1, 0]),
    "Train": (4, [0, 0, 1, 0]),
}  # number of the first image, flags; the same in all ten textures


def optical(root, nested=True, textures=10):
    "Class1/Class1/{Train,Test} as Kaggle's archive unpacks, or Class1/{Train,Test}"
    image, ellipse = surface(512, 512), np.zeros((512, 512), np.uint8)
    y, x = np.mgrid[:512, :512]
    ellipse[((x - 300) / 60) ** 2 + ((y - 200) / 25) ** 2 < 1] = 255
    for i in range(1, textures + 1):
        folder = root / f"Class{i}" / f"Class{i}" if nested else root / f"Class{i}"
        for part, (start, flags) in OPTICAL_FLAGS.items():
            lines = ["1"]
            for j, flag in enumerate(flags, start):
                put(folder / part / f"{j:04}.PNG", np.roll(image, 37 * i + j, 1))
                if flag:
                    put(folder / part / "Label" / f"{j:04}_label.PNG", ellipse)
                lines.append(f"{j}\t{flag}\t{j:04}.PNG\t0\t{f'{j:04}_label.PNG' if flag else 0}")
            (folder / part / "Label" / "Labels.txt").write_text("\n".join(lines) + "\n")
            (folder / part / "Thumbs.db").write_bytes(b"\0")  # as in the real archives
    return root


# Mastcam: .npy tiles of six bands, grey values of 8 bits as 64-bit floats

MASTCAM_CLASSES = {
    "bedrock": 3,
    "broken-rock": 2,
    "drill-hole": 3,
    "drt": 2,
    "dump-pile": 2,
    "edge_cases": 1,
    "float": 2,
    "meteorite": 2,
    "other": 1,
    "scuff": 2,
    "veins": 3,
}


@lru_cache
def tile(seed):
    "(64, 64, 6) floats with whole values of 0 to 255"
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 6)).astype(np.float64)


def mastcam(root, n_train=7, n_test=3):
    "train_typical, test_typical, validation_typical, and test_novel with its classes and the folder all"

    def save(folder, *names):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i, name in enumerate(names):
            np.save(root / folder / name, tile(i % 4))

    save("train_typical", *(f"mcam{i:05}_R0_sol{i % 1000:04}_{i}.npy" for i in range(117, 117 + n_train)))
    save("test_typical", *(f"mcam{i:05}_MR_0_sol{i % 1000:04}_{i}.npy" for i in range(500, 500 + n_test)))
    save("validation_typical", "mcam00600_L0_sol0600_1.npy", "mcam00601_L0_sol0601_1.npy")
    for k, (kind, n) in enumerate(MASTCAM_CLASSES.items()):
        save(f"test_novel/{kind}", *(f"mcam{1000 + 10 * k + i:05}_L0_sol0{k:03}_{i}.npy" for i in range(n)))
    shutil.copyfile(
        root / "test_novel/drill-hole/mcam01020_L0_sol0002_0.npy",
        root / "test_novel/dump-pile/mcam01020_L0_sol0002_0.npy",
    )  # shows both
    for o in sorted((root / "test_novel").rglob("*.npy")):
        (root / "test_novel/all").mkdir(exist_ok=True)
        shutil.copyfile(o, root / "test_novel/all" / o.name)
    return root


LAYOUTS = {"elpv": elpv, "aitex": aitex, "sdd": sdd, "optical": optical, "mastcam": mastcam}
