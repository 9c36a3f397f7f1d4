"Industrial layouts with as many files as the authors publish: the counts of table 5 within seconds."

import os
import shutil
import time

import numpy as np
import pytest
import raw_layouts as raw

from dra_nb.data.catalog import split_normals
from dra_nb.data.datasets import load_catalog

pytestmark = pytest.mark.slow


def link(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def full_aitex(root):
    "141 strips without a defect and 106 with one, of which 183 tiles are marked"
    strip, codes = (
        raw.put(root.parent / "strip.png", raw.surface(4096, 256)),
        [f"{o:03}" for o in (2, 6, 10, 16, 19, 22, 23, 25, 27, 29, 30, 36)],
    )
    masks = [raw.put(root.parent / f"mask{n}.png", raw.marks(4096, 256, (0, 9, 256 * n, 12))) for n in (1, 2)]
    for i in range(141):
        link(strip, root / f"NODefect_images/{raw.AITEX_FABRICS[i % 7]}/{i:04}_000_{i % 7:02}.png")
    for i in range(106):
        stem = f"{i:04}_{codes[i % 12]}_01"
        link(strip, root / f"Defect_images/{stem}.png")
        link(masks[i < 77], root / f"Mask_images/{stem}_mask.png")


def full_sdd(root):
    "399 images, 52 of them with a defect, two across a border"
    image = raw.put(root.parent / "image.jpg", raw.surface(500, 1260))
    labels = [
        raw.put(root.parent / f"label{i}.bmp", raw.marks(500, 1260, *boxes))
        for i, boxes in enumerate([[], [(9, 9, 20, 20)], [(9, 410, 20, 430)]])
    ]
    for i in range(399):
        link(image, root / f"kos{i // 8 + 1:02}/Part{i % 8}.jpg")
        link(labels[2 if i < 2 else i < 52], root / f"kos{i // 8 + 1:02}/Part{i % 8}_label.bmp")


def full_optical(root):
    "575 + 575 images of each of six textures, 1150 + 1150 of four"
    image = raw.put(root.parent / "image.PNG", raw.surface(16, 16))
    mark = raw.put(root.parent / "mark.PNG", raw.marks(16, 16, (4, 4, 9, 9)))
    for i in range(1, 11):
        n, bad = (575, 75) if i < 7 else (1150, 150)
        for part, start in ("Test", 1), ("Train", n + 1):
            labels, lines = root / f"Class{i}/{part}/Label", ["1"]
            labels.mkdir(parents=True)
            for j in range(start, start + n):
                flag = j < start + bad
                link(image, labels.parent / f"{j:04}.PNG")
                if flag:
                    link(mark, labels / f"{j:04}_label.PNG")
                lines.append(f"{j}\t{int(flag)}\t{j:04}.PNG\t0\t{f'{j:04}_label.PNG' if flag else 0}")
            (labels / "Labels.txt").write_text("\n".join(lines) + "\n")


def full_mastcam(root):
    "Six bands of 64 x 64 pixels each"
    root.parent.mkdir(parents=True)
    np.save(root.parent / "bands.npy", np.full((64, 64, 6), 90, np.uint8))
    for folder, n in (
        ("train_typical", 9302),
        ("test_typical", 426),
        *((f"test_novel/{o}", 41) for o in raw.MASTCAM_CLASSES),
    ):
        (root / folder).mkdir(parents=True)
        for i in range(n):
            link(root.parent / "bands.npy", root / folder / f"mcam{i:05}_R0_sol0069_7.npy")


@pytest.mark.parametrize(
    "draw, train, test, anomalies",
    [
        (full_aitex, 1692, 564, 183),
        (full_sdd, 857, 286, 54),
        (full_optical, 10500, 3500, 2100),
        (full_mastcam, 9302, 426, 451),
    ],
)
def test_full_size(tmp_path, draw, train, test, anomalies):
    "The counts of table 5 (of SDD, those of its script), within seconds, and the check agrees"
    from dra_nb.data.check import check_dataset

    name = draw.__name__.removeprefix("full_")
    draw(tmp_path / "data" / name)
    start = time.perf_counter()
    catalog = load_catalog(name, tmp_path / "data")
    assert time.perf_counter() - start < 10
    counts = catalog.groupby("split").label.value_counts()
    assert (counts["train", 0], counts["test", 0], counts["test", 1]) == (train, test, anomalies) and len(
        catalog
    ) == train + test + anomalies
    check = check_dataset(name, tmp_path / "data")
    assert check.ok and check.unknown == () and check.missing == () and bool(check.explained) == (name == "sdd")


def test_arithmetic_of_the_splits():
    for n, train, test in (141 * 16, 1692, 564), (399 * 3 - 54, 857, 286), (14_000, 10500, 3500), (1508, 1131, 377):
        split = split_normals(n)
        assert (split.count("train"), split.count("test")) == (train, test)
