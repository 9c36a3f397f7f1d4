"Mastcam: every tile of the authors' own split, and what is said of a spoiled download."

import shutil

import numpy as np
import pytest
import raw_layouts as raw
from catalog_rows import draw_layouts, rows, spoilable

from dra_nb.data.datasets import load_catalog, load_datasets


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "The layout as published; the tests only read it"
    return draw_layouts(tmp_path_factory.mktemp("raw"), "mastcam")


@pytest.fixture
def own(data, tmp_path):
    "A function that gives a copy to spoil, and what its reader says then"
    return spoilable(data, tmp_path)


def test_mastcam(data):
    catalog = load_catalog("mastcam", data)
    files = {o.relative_to(data / "mastcam").as_posix() for o in (data / "mastcam").rglob("*.npy")}
    want = {
        (o, None): ("train" if "train" in o else "test", 0, "", None)
        for o in files
        if o.startswith(("train_typical/", "test_typical/"))
    }
    want |= {
        (o, None): ("test", 1, o.split("/")[1], None) for o in files if o.startswith("test_novel/") and "/all/" not in o
    }
    assert rows(catalog) == want
    assert catalog.groupby(["split", "defect"]).size().to_dict() == {("train", ""): 7, ("test", ""): 3} | {
        ("test", kind): n + (kind == "dump-pile") for kind, n in raw.MASTCAM_CLASSES.items()
    }
    assert set(catalog.defect[catalog.label == 1]) == set(load_datasets()["mastcam"].classes)


def test_mastcam_tiles_become_pictures(data):
    from dra_nb.data.decode import decode

    o = load_catalog("mastcam", data).path.iloc[0]
    assert np.load(o).shape == (64, 64, 6) and (decode(o, None, 64) == np.load(o)[..., :3].transpose(2, 0, 1)).all()


def test_mastcam_each_zip_in_a_folder_of_its_own(data, own):
    root, _ = own("mastcam")
    for name in ("train_typical", "test_typical", "test_novel"):
        (root / name).rename(root / "moved")
        (root / name).mkdir()
        (root / "moved").rename(root / name / name)
    nested, catalog = load_catalog("mastcam", root.parent), load_catalog("mastcam", data)
    assert (
        nested.drop(columns="path").equals(catalog.drop(columns="path")) and not nested.path.str.contains("/all/").any()
    )


def test_mastcam_errors(own):
    root, message = own("mastcam")
    for o in (root / "test_novel/veins").iterdir():
        o.unlink()
    assert "veins holds no image; expected files ending in npy" in message()
    shutil.rmtree(root / "test_typical")
    assert "it needs the folders train_typical, test_typical, test_novel" in message()
