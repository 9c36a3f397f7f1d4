"Optical: every image of the ten textures in all nestings, and what is said of a spoiled download."

import os
import shutil
from pathlib import Path

import pytest
import raw_layouts as raw
from catalog_rows import draw_layouts, normals, rows, spoilable

from dra_nb.data.datasets import load_catalog


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "The layout as published; the tests only read it"
    return draw_layouts(tmp_path_factory.mktemp("raw"), "optical")


@pytest.fixture
def own(data, tmp_path):
    "A function that gives a copy to spoil, and what its reader says then"
    return spoilable(data, tmp_path)


def optical_rows(nested, beside=False):
    "What should be found; `beside`: the folder Label lies beside Train and Test"
    good, bad = [], {}
    for i in range(1, 11):
        folder = f"Class{i}/Class{i}" if nested else f"Class{i}"
        for part, (start, flags) in raw.OPTICAL_FLAGS.items():
            label = f"{folder}/Label" if beside else f"{folder}/{part}/Label"
            for j, flag in enumerate(flags, start):
                if flag:
                    bad[f"{folder}/{part}/{j:04}.PNG", None] = ("test", 1, "defect", (f"{label}/{j:04}_label.PNG",))
                else:
                    good.append((f"{folder}/{part}/{j:04}.PNG", None))
    return normals(good) | bad


def test_optical(data, tmp_path):
    nested, flat = (
        load_catalog("optical", data),
        load_catalog("optical", raw.optical(tmp_path / "optical", nested=False).parent),
    )
    assert rows(nested) == optical_rows(True) and rows(flat) == optical_rows(False)
    assert nested.split.tolist() == flat.split.tolist() and nested.label.sum() == 20 and (nested.label == 0).sum() == 50
    assert all(os.path.isfile(o) for o in nested["mask"].dropna())
    anomalies = nested[nested.label == 1]
    assert {Path(p).parts[-4] for p in anomalies.path} == {
        f"Class{i}" for i in range(1, 11)
    }  # no texture lost among equal names


def test_optical_twice_in_one_archive(own):
    "Kaggle's archive holds a second copy in a folder; it is not counted"
    root, _ = own("optical")
    shutil.copytree(root, root.parent / "copy")
    shutil.move(root.parent / "copy", root / "DAGM_KaggleUpload")
    assert rows(load_catalog("optical", root.parent)) == optical_rows(True)


def test_optical_labels_beside_train_and_test(tmp_path):
    root = raw.optical(tmp_path / "optical", nested=False)
    for folder in root.iterdir():
        lines = []
        (folder / "Label").mkdir()
        for part in raw.OPTICAL_FLAGS:
            lines += (folder / part / "Label" / "Labels.txt").read_text().splitlines()[1:]
            for o in (folder / part / "Label").glob("*.PNG"):
                o.rename(folder / "Label" / o.name)
            shutil.rmtree(folder / part / "Label")
        (folder / "Label" / "Labels.txt").write_text("1\n" + "\n".join(lines) + "\n")
    assert rows(load_catalog("optical", tmp_path)) == optical_rows(False, beside=True)


def test_optical_some_textures(tmp_path):
    "A download of three of the ten is read; it is for the check to say what is missing"
    catalog = load_catalog("optical", raw.optical(tmp_path / "optical", textures=3).parent)
    assert len(catalog) == 18 + 3 and catalog.label.sum() == 6


def spoil_optical(root, what):
    labels = root / "Class3/Class3/Test/Label/Labels.txt"
    if what == "image gone":
        (root / "Class3/Class3/Test/0003.PNG").unlink()
    if what == "image more":
        shutil.copyfile(root / "Class3/Class3/Test/0003.PNG", root / "Class3/Class3/Test/0009.PNG")
    if what == "mask gone":
        (labels.parent / "0002_label.PNG").unlink()
    if what == "labels gone":
        labels.unlink()
    if what == "flag":
        labels.write_text(labels.read_text().replace("2\t1\t", "2\tyes\t"))
    if what == "field":
        labels.write_text(labels.read_text().replace("\t0\t0002_label.PNG", ""))
    if what == "binary":
        labels.write_bytes(b"\xff\xfe\x00\x01")
    if what == "part gone":
        shutil.rmtree(root / "Class3/Class3/Test")


@pytest.mark.parametrize(
    "what, says",
    [
        ("image gone", "Labels.txt lists 1 images that do not exist: 0003.png"),
        ("image more", "0009.PNG is not listed in"),
        ("mask gone", "0002_label.PNG does not exist"),
        ("labels gone", "Labels.txt cannot be read"),
        ("flag", "line 3 is malformed"),
        ("field", "line 3 is malformed"),
        ("binary", "not text"),
        ("part gone", "Class3/Class3 has no folder Test"),
    ],
)
def test_optical_errors(own, what, says):
    root, message = own("optical")
    spoil_optical(root, what)
    assert says in message()
