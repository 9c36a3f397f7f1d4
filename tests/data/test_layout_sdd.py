"SDD: every third of every image, its label, and what is said of a spoiled download."

import numpy as np
import pytest
import raw_layouts as raw
from catalog_rows import draw_layouts, normals, rows, spoilable
from PIL import Image

from dra_nb.data.datasets import load_catalog


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "The layout as published; the tests only read it"
    return draw_layouts(tmp_path_factory.mktemp("raw"), "sdd")


@pytest.fixture
def own(data, tmp_path):
    "A function that gives a copy to spoil, and what its reader says then"
    return spoilable(data, tmp_path)


def test_sdd(data):
    catalog = load_catalog("sdd", data)
    thirds = {
        (name, i): (f"{name}.jpg", (0, h * i // 3, 500, h * (i + 1) // 3))
        for name, (h, _, _) in raw.SDD.items()
        for i in range(3)
    }
    bad = {
        thirds[name, i]: ("test", 1, "defect", (f"{name}_label.bmp",))
        for name, (_, _, hit) in raw.SDD.items()
        for i in hit
    }
    want = normals(set(thirds.values()) - set(bad)) | bad
    assert rows(catalog) == want and len(want) == 24 and len(bad) == 5
    for o in catalog[catalog.label == 1].itertuples():
        with Image.open(o.mask) as label:
            assert np.asarray(label.crop(o.box)).any()
    assert dict((name, h) for name, (h, _, _) in raw.SDD.items())["kos02/Part3"] == 1257  # thirds of 419 pixels each
    assert ("kos02/Part3.jpg", (0, 419, 500, 838)) in want and ("kos01/Part5.jpg", (0, 836, 500, 1255)) in want


def test_sdd_crops(data):
    from dra_nb.data.decode import decode

    catalog = load_catalog("sdd", data)
    o = catalog[catalog.path.str.endswith("kos10/Part7.jpg") & (catalog.label == 1)].iloc[0]
    with Image.open(o.path) as image:
        third = image.convert("RGB").crop((0, 846, 500, 1270)).resize((60, 60), Image.Resampling.BILINEAR)
    assert (decode(o.path, o.box, 60) == np.asarray(third).transpose(2, 0, 1)).all()


def spoil_sdd(root, what):
    if what == "label gone":
        (root / "kos02/Part0_label.bmp").unlink()
    if what == "image gone":
        (root / "kos02/Part0.jpg").unlink()
    if what == "sizes":
        raw.put(root / "kos02/Part0_label.bmp", raw.marks(500, 1241))
    if what == "label broken":
        (root / "kos02/Part0_label.bmp").write_bytes(b"BM")
    if what == "folder empty":
        [o.unlink() for o in (root / "kos50").iterdir()]


@pytest.mark.parametrize(
    "what, says",
    [
        ("label gone", "Part0.jpg has no label beside it"),
        ("image gone", "Part0_label.bmp is the label of an image that does not exist"),
        ("sizes", "Part0_label.bmp is 500 x 1241 pixels, but its image 500 x 1240"),
        ("label broken", "Part0_label.bmp cannot be used"),
        ("folder empty", "kos50 holds no image"),
    ],
)
def test_sdd_errors(own, what, says):
    root, message = own("sdd")
    spoil_sdd(root, what)
    assert says in message()
