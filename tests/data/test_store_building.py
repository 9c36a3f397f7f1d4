"Building an image store: sizes, strips, threads, memory, and the errors of many files in one."

import os

import numpy as np
import pytest
from conftest import python, succeeded
from image_files import GREY, PEAK, RGB, RNG, SIDE, image, rows_of
from PIL import Image

from dra_nb.core import DraError
from dra_nb.data.catalog import make_catalog
from dra_nb.data.decode import decode_file
from dra_nb.data.masks import read_mask
from dra_nb.data.readers.mvtec import read_mvtec
from dra_nb.data.store import ImageStore, open_store

# ---- sizes


def test_one_pixel_wide(tmp_path):
    line = RNG.integers(0, 256, 500, dtype=np.uint8)
    for name, array in {"a.png": line[:, None], "b.png": line[None], "c.png": line[:1, None]}.items():
        image(array).save(tmp_path / name)
    store = open_store(
        make_catalog(rows_of(["a.png", "b.png", "c.png"]), tmp_path), 50, tmp_path / "cache", progress=False
    )
    upright, flat, dot = store[1].numpy(), store[2].numpy(), store[3].numpy()
    assert (upright == upright[..., :1]).all() and (flat == upright.swapaxes(1, 2)).all() and (dot == line[0]).all()
    assert np.abs(upright[0, :, 0].astype(int) - line.reshape(50, 10).mean(1)).mean() < 20


LARGE = (
    PEAK
    + """
import numpy as np
from PIL import Image
from dra_nb.data.readers.mvtec import read_mvtec
from dra_nb.data.store import open_store
catalog = read_mvtec(sys.argv[1])
restart_peak()
before = peak()
store = open_store(catalog, 100, sys.argv[2], workers=2, progress=False)
print(round(peak() - before), *[abs(o.numpy().astype(int) - np.load(sys.argv[3])).mean() for o in store])
"""
)


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs the peak memory that Linux keeps")
@pytest.mark.slow
def test_ten_thousand_pixels_a_side(tmp_path):
    "100 million pixels are read without a warning, one image at a time: two at once would need 200 MB"
    pattern = RNG.integers(0, 256, (100, 100), dtype=np.uint8)
    large = image(pattern).resize((10_000, 10_000), Image.Resampling.NEAREST)
    np.save(tmp_path / "expected.npy", np.asarray(large.resize((100, 100), Image.Resampling.BILINEAR)))
    for name in ("train/good/a.png", "train/good/b.png", "test/dent/a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        large.save(tmp_path / name, compress_level=1)
    done = succeeded(python(LARGE, tmp_path, tmp_path / "cache", tmp_path / "expected.npy"))
    growth, jpeg, *png = map(float, done.stdout.split())  # the rest: mean difference in grey values
    assert growth < 150 and png == [0, 0] and jpeg < 1, done.stdout  # the JPEG is shrunk in two steps
    assert "Warning" not in done.stderr


# ---- multispectral tiles


def test_tiles_of_numpy_files(tmp_path):
    "As in Mastcam: six bands, of which three are read; one file in the wrong range is named with its range"
    tiles = RNG.integers(0, 256, (3, SIDE, SIDE, 6))
    for i, dtype in enumerate((np.uint8, np.float32, np.int16)):
        np.save(tmp_path / f"{i}.npy", tiles[i].astype(dtype))
    catalog = make_catalog(rows_of(["0.npy", "1.npy", "2.npy"]), tmp_path)
    store = open_store(catalog, SIDE, tmp_path / "cache", progress=False)
    assert (store[1:].numpy() == tiles[..., :3].transpose(0, 3, 1, 2)).all()
    np.save(tmp_path / "1.npy", tiles[1] * 4.5)
    with pytest.raises(
        DraError, match=r"1\.npy cannot be used \(its first three bands hold values from .* to 11\d\d.*0 to 255"
    ):
        open_store(catalog, SIDE, tmp_path / "cache", progress=False)


# ---- strips and thirds


def test_each_file_is_read_once(tmp_path, monkeypatch):
    "16 tiles of a strip, and the thirds of images whose rows lie apart in the catalog"
    strip = RNG.integers(0, 256, (256, 4096), dtype=np.uint8)
    image(strip).save(tmp_path / "strip.png", compress_level=1)
    thirds = [RNG.integers(0, 256, (300, 50), dtype=np.uint8) for _ in range(2)]
    for i, array in enumerate(thirds):
        image(array).save(tmp_path / f"{i}.png")
    rows = [("strip.png", (256 * i, 0, 256 * i + 256, 256), "", "train", 0, "", None) for i in range(16)]
    rows += [
        (
            f"{i}.png",
            (0, 100 * k, 50, 100 * k + 100),
            "",
            "train" if k == 1 else "test",
            int(k == 2),
            "dent" * (k == 2),
            None,
        )
        for i in (0, 1)
        for k in range(3)
    ]
    catalog, calls = make_catalog(rows, tmp_path), []
    monkeypatch.setattr("dra_nb.data.store.decode_file", lambda *args: calls.append(args[0]) or decode_file(*args))
    store = open_store(catalog, 64, tmp_path / "cache", progress=False)
    assert sorted(calls) == sorted(set(catalog["path"]))
    for i, (path, box) in enumerate(zip(catalog["path"], catalog["box"], strict=True)):
        left, top, right, bottom = box
        part = (strip if "strip" in path else thirds[int(path[-5])])[top:bottom, left:right]
        assert (store[i].numpy() == np.asarray(image(part).resize((64, 64), Image.Resampling.BILINEAR))).all()


def test_box_outside_names_the_file(tmp_path):
    image(RGB).save(tmp_path / "a.png")
    rows = [
        ("a.png", (0, 0, SIDE, SIDE), "", "train", 0, "", None),
        ("a.png", (4, 0, SIDE + 1, 8), "", "test", 1, "dent", None),
    ]
    with pytest.raises(
        DraError,
        match=rf"a.png cannot be used \(the box \(4, 0, 13, 8\) does not lie inside its {SIDE} x {SIDE} pixels",
    ):
        open_store(make_catalog(rows, tmp_path), 8, tmp_path / "cache", progress=False)


# ---- building


def test_threads_do_not_matter(tmp_path):
    for i in range(40):
        image(RNG.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    catalog = make_catalog(rows_of([f"{i}.png" for i in range(40)]), tmp_path)
    one, many = (open_store(catalog, 16, tmp_path / str(n), workers=n, progress=False) for n in (1, 7))
    assert (
        one.path.read_bytes() == many.path.read_bytes()
        and (ImageStore(one.path)[[3, 3, -1]] == one[np.array([3, 3, 40])]).all()
    )


MANY_ERRORS = (
    PEAK
    + """
from dra_nb.core import DraError
from dra_nb.data.readers.mvtec import read_mvtec
from dra_nb.data.store import open_store
catalog = read_mvtec(sys.argv[1])
catalog["box"] = [(0, 0, 1001, 1001)]*len(catalog)
restart_peak()
before = peak()
try: open_store(catalog, 8, sys.argv[2], workers=2, progress=False)
except DraError as e: print(round(peak() - before), str(e).split(";")[0])
"""
)


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs the peak memory that Linux keeps")
@pytest.mark.slow
def test_errors_hold_no_images(tmp_path):
    "A catalog with a wrong box in every row: 40 images of 4 MB are not kept for the report"
    for i in range(40):
        place = tmp_path / ("train/good" if i else "test/dent") / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        if i < 2:
            Image.new("RGB", (1000, 1000)).save(place)
        else:
            os.link(tmp_path / "train/good/1.png", place)
    growth, said = succeeded(python(MANY_ERRORS, tmp_path, tmp_path / "cache")).stdout.split(" ", 1)
    assert said.startswith("40 of 40 image files cannot be used") and int(growth) < 60, (growth, said)


def test_drawn_masks_mark_every_anomaly(tmp_path):
    "A catalog in MVTec layout, row by row"
    for i, folder in enumerate(("train/good", "test/good", "test/dent", "ground_truth/dent")):
        (tmp_path / folder).mkdir(parents=True)
        image(RGB if i < 3 else (GREY > 200).astype(np.uint8)).save(
            tmp_path / folder / ("0_mask.png" if i == 3 else "0.png")
        )
    catalog = read_mvtec(tmp_path)
    for _, row in catalog.iterrows():
        assert (read_mask(row, size=SIDE) == ((GREY > 200) if row["label"] else False)).all()
    assert catalog["mask"].notna().sum() == 1
