"AITEX: every tile of every strip, its mask, and what is said of a spoiled download."

import shutil

import numpy as np
import pytest
import raw_layouts as raw
from catalog_rows import draw_layouts, normals, rows, spoilable
from PIL import Image

from dra_nb.data.datasets import load_catalog, load_datasets


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "The layout as published; the tests only read it"
    return draw_layouts(tmp_path_factory.mktemp("raw"), "aitex")


@pytest.fixture
def own(data, tmp_path):
    "A function that gives a copy to spoil, and what its reader says then"
    return spoilable(data, tmp_path)


def aitex_rows(good, bad, mask):
    "What should be found, from the tables of `raw_layouts` alone"

    def box(i, width=4096):
        return 256 * i, 0, min(256 * i + 256, width), 256

    want = normals((f"{good}/{name}", box(i)) for name in raw.AITEX_NORMAL for i in range(16))
    for strip, (defect, masks, tiles) in raw.AITEX_DEFECTS.items():
        paths = tuple(f"{mask}/{strip}_mask{j if len(masks) > 1 else ''}.png" for j in range(1, len(masks) + 1))
        want |= {(f"{bad}/{strip}.png", box(i, raw.aitex_width(strip))): ("test", 1, defect, paths) for i in tiles}
    return want


def test_aitex(data):
    catalog = load_catalog("aitex", data)
    want = aitex_rows("NODefect_images", "Defect_images/Defect_images", "Mask_images/Mask_images")
    assert rows(catalog) == want and sum(o[1] for o in want.values()) == 33
    assert catalog.groupby("split").label.value_counts().to_dict() == {
        ("train", 0): 84,
        ("test", 0): 28,
        ("test", 1): 33,
    }
    assert {o for o in catalog["mask"] if isinstance(o, tuple)} == {
        tuple(f"{catalog.attrs['root']}/Mask_images/Mask_images/{o}_mask{j}.png" for j in (1, 2))
        for o in ("0044_019_04", "0097_030_03")
    }
    assert list(catalog.attrs["left_out"].values()) == [
        [f"Defect_images/Defect_images/{o}.png" for o in ("0100_025_08", "0106_010_03")]
    ]
    assert (
        set(catalog.defect[catalog.label == 1]) == set(load_datasets()["aitex"].classes)
        and catalog.defect.nunique() == 13
    )


def test_aitex_as_its_authors_pack_it(data, tmp_path):
    flat = load_catalog("aitex", raw.aitex(tmp_path / "AITEX", nested=False).parent)
    assert rows(flat) == aitex_rows("NODefect_images", "Defect_images", "Mask_images")
    nested = load_catalog("aitex", data)
    assert flat[["box", "split", "label", "defect"]].equals(nested[["box", "split", "label", "defect"]])


def test_aitex_tiles_show_what_is_marked(data):
    "Pixel by pixel: all tiles of the strips with a defect, and the crops that the models get"
    from dra_nb.data.decode import decode

    catalog = load_catalog("aitex", data)
    bad = catalog[catalog.label == 1]
    for path, own in bad.groupby("path"):
        paths = own["mask"].iloc[0]
        marked = (
            np.maximum.reduce([np.asarray(Image.open(o)) for o in ([paths] if isinstance(paths, str) else paths)]) > 0
        )
        tiles = {256 * i for i in range(16) if marked[:, 256 * i : 256 * i + 256].any()}
        assert {o[0] for o in own.box} == tiles, path
    strip = np.asarray(Image.open(bad.path.iloc[0]))
    assert (decode(bad.path.iloc[0], bad.box.iloc[2], 256) == strip[:, 2816:3072]).all() and bad.box.iloc[2][0] == 2816
    narrow = bad[bad.path.str.contains("0094_027_05")].iloc[0]
    assert narrow.box == (3584, 0, 3796, 256) and decode(narrow.path, narrow.box, 64).shape == (3, 64, 64)


def spoil_aitex(root, what):
    bad, mask, good = (
        root / "Defect_images" / "Defect_images",
        root / "Mask_images" / "Mask_images",
        root / "NODefect_images",
    )
    if what == "mask gone":
        (mask / "0001_002_00_mask.png").unlink()
    if what == "mask empty":
        raw.put(mask / "0070_023_01_mask.png", raw.marks(4096, 256))
    if what == "mask size":
        raw.put(mask / "0001_002_00_mask.png", raw.marks(4096, 255, (0, 0, 9, 9)))
    if what == "two masks, two sizes":
        raw.put(mask / "0044_019_04_mask2.png", raw.marks(4095, 256, (0, 0, 9, 9)))
    if what == "mask broken":
        (mask / "0099_025_00_mask.png").write_bytes(b"\x89PNG\r\n\x1a\n half")
    if what == "code":
        (bad / "0070_023_01.png").rename(bad / "0070_024_01.png")
    if what == "name":
        (bad / "0070_023_01.png").rename(bad / "strip 7.png")
    if what == "height":
        raw.put(good / raw.AITEX_NORMAL[2], raw.surface(3200, 200))
    if what == "two heights":
        raw.put(good / raw.AITEX_NORMAL[2], raw.surface(2048, 128))
    if what == "strip broken":
        (good / raw.AITEX_NORMAL[3]).write_bytes(b"")
    if what == "fabric empty":
        (good / raw.AITEX_NORMAL[0]).unlink()
    if what == "no masks":
        shutil.rmtree(root / "Mask_images")


@pytest.mark.parametrize(
    "what, says",
    [
        ("mask gone", "0001_002_00.png shows a defect, but Mask_images has no 0001_002_00_mask.png"),
        (
            "mask empty",
            "0070_023_01.png shows a defect, but its mask Mask_images/Mask_images/0070_023_01_mask.png is empty",
        ),
        ("mask size", "0001_002_00_mask.png is 4096 x 255 pixels, but its image 4096 x 256"),
        ("two masks, two sizes", "0044_019_04_mask2.png is 4095 x 256 pixels"),
        ("mask broken", "0099_025_00_mask.png cannot be used"),
        ("code", "0070_024_01.png has no known defect code"),
        ("name", "strip 7.png has no known defect code"),
        ("height", "0014_000_00.png is 3200 x 200 pixels"),
        ("two heights", "0014_000_00.png (128 pixels)"),
        ("strip broken", "0015_000_01.png cannot be used"),
        ("fabric empty", "2306881-210020u holds no image"),
        ("no masks", "it needs the folders NODefect_images, Defect_images, Mask_images"),
    ],
)
def test_aitex_errors(own, what, says):
    root, message = own("aitex")
    spoil_aitex(root, what)
    assert says in message()


def test_aitex_two_strips_may_lack_a_mark_but_need_not(own):
    "Somebody who has drawn the missing mask gets its tiles"
    root, _ = own("aitex")
    raw.put(root / "Mask_images/Mask_images/0100_025_08_mask.png", raw.marks(4096, 256, (600, 0, 610, 9)))
    catalog = load_catalog("aitex", root.parent)
    tile = catalog[catalog.path.str.contains("0100_025_08")]
    assert tile.box.tolist() == [(512, 0, 768, 256)] and tile.defect.tolist() == ["Warp_ball"]
    assert sum(map(len, catalog.attrs["left_out"].values())) == 1
