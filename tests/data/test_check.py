"Found against published: on the real copies of ELPV and BrainMRI, on damaged ones, and on every raw layout."

import os

import numpy as np
import pytest
from conftest import mvtec_folder
from PIL import Image, ImageOps
from raw_layouts import LAYOUTS

from dra_nb.data.check import check_dataset
from dra_nb.data.datasets import load_catalog, load_datasets


def counts(check):
    return {o.what: o.found for o in check.table.itertuples()}


def verdicts(check):
    return {o.what: o.verdict for o in check.table.itertuples()}


def printed(check):
    "What a terminal of 100 columns shows"
    text = str(check)
    assert max(map(len, text.splitlines())) <= 100
    return text


def linked(source, target):
    "A copy of a folder of which every file is a link to the original"
    for file in source.rglob("*"):
        if file.is_dir():
            continue
        (target / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(file, target / file.relative_to(source))
    return target


@pytest.mark.slow
def test_complete_elpv(shared):
    check = check_dataset("elpv", shared / "data")
    assert check.ok and check.unknown == () and check.missing == () and check.explained == ""
    assert counts(check) == {"train normals": 1131, "test normals": 377, "mono": 313, "poly": 402} and set(
        verdicts(check).values()
    ) == {"ok"}
    ((why, uncertain),) = check.left_out.items()
    assert (
        "1/3" in why
        and len(uncertain) == 401
        and not set(uncertain) & {o.partition("/elpv/")[2] for o in load_catalog("elpv", shared / "data").path}
    )
    assert "left out by rule: 401 files" in printed(check) and "unknown" not in str(check)


def test_complete_brainmri(shared):
    check = check_dataset("brainmri", shared / "data")
    assert check.ok and check.unknown == () and check.missing == () and check.left_out == {}
    assert counts(check) == {
        "train normals": 73,
        "test normals": 25,
        "tumor": 155,
    } and "all 3 counts as in the paper" in printed(check)


def test_equal_pictures_of_brainmri(shared):
    "Counted here once more, from the pixels themselves"
    catalog = load_catalog("brainmri", shared / "data")
    pictures = {}
    for row in catalog.itertuples():
        with Image.open(row.path) as image:
            rgb = ImageOps.exif_transpose(image).convert("RGB")
        pictures.setdefault((rgb.size, rgb.tobytes()), []).append(row)
    groups = [rows for rows in pictures.values() if len(rows) > 1]
    learnt = {key for key, rows in pictures.items() if any(o.split == "train" for o in rows)}
    tested = [key for key, rows in pictures.items() for o in rows if o.split == "test" and not o.label]
    assert (len(groups), sum(map(len, groups)), len(tested)) == (22, 47, 25)
    assert sum(key in learnt for key in tested) == 5 and not any(len({o.label for o in rows}) > 1 for rows in groups)
    check = check_dataset("brainmri", shared / "data")
    assert check.ok and check.repeats == (
        "22 groups of equal pictures (47 images)",
        "5 of 25 test normals are also train normals",
        "0 groups across normal and anomaly",
    )
    text = printed(check)
    assert text.startswith("brainmri: all 3 counts as in the paper; 22 groups of equal pictures (47 images)\n")
    assert "  equal pictures: 5 of 25 test normals are also train normals; 0 groups across normal and anomaly" in text
    assert "and 19 more groups" in text and len(check.examples) == 22
    assert "no/10 no.jpg = no/9 no.jpg" in check.examples


@pytest.mark.slow
def test_complete_elpv_has_no_equal_pictures(shared):
    check = check_dataset("elpv", shared / "data")
    assert check.repeats == check.examples == check.unreadable == () and "equal" not in printed(check)


def test_equal_pictures_are_found_whatever_their_files(tmp_path):
    "As PNG, BMP and TIFF, grey and RGB, turned by EXIF; not a copy with another pixel, nor one of another category"
    root = mvtec_folder(tmp_path / "mine/a", 4, 2, {"dent": 2}, size=16)
    mvtec_folder(tmp_path / "mine/b", 4, 2, {"dent": 2}, size=16)  # the same pictures in another category
    image = Image.open(root / "train/good/000.png")
    image.save(root / "train/good/again.bmp")
    turned = Image.Exif()
    turned[274] = 8  # to be turned by a quarter
    image.transpose(Image.Transpose.ROTATE_270).save(root / "test/dent/turned.tif", exif=turned)
    other = np.asarray(image).copy()
    other[3, 3, 0] ^= 1
    Image.fromarray(other).save(root / "test/good/near.png")
    check = check_dataset("mine", tmp_path)
    assert check.examples == (
        "a/test/dent/turned.tif = a/train/good/000.png = a/train/good/again.bmp",
    ) and check.repeats == (
        "1 group of equal pictures (3 images)",
        "0 of 5 test normals are also train normals",
        "1 group across normal and anomaly",
    )


def test_damaged_images_are_no_complete_copy(tmp_path):
    root = mvtec_folder(tmp_path / "mine", 4, 2, {"dent": 2}, size=16)
    for name in ("train/good/000.png", "test/dent/000.png"):
        (root / name).write_bytes((root / name).read_bytes()[:60])
    check = check_dataset("mine", tmp_path)
    assert not check.ok and len(check.unreadable) == 2 and check.repeats == ()
    assert "cannot be read: 2 files" in printed(check)


@pytest.mark.slow
def test_damaged_elpv(shared, tmp_path):
    "A csv that lost three normals and an anomaly, a file of the user's own, and a hidden one"
    root = linked(shared / "data" / "elpv", tmp_path / "ELPV")
    lines = (root / "labels.csv").read_text().splitlines(keepends=True)
    lost = [o for o in lines if float(o.split()[1]) == 0][:3] + [
        o for o in lines if float(o.split()[1]) == 1 and o.split()[2] == "poly"
    ][:1]
    (root / "labels.csv").unlink()
    (root / "labels.csv").write_text("".join(o for o in lines if o not in lost))
    (root / "notes.txt").touch()
    (root / ".DS_Store").touch()
    (root / ".git").mkdir()
    (root / ".git" / "config").touch()
    check = check_dataset("elpv", tmp_path)
    assert not check.ok and check.unknown == tuple(sorted(o.split()[0] for o in lost)) + ("notes.txt",)
    assert check.missing == (
        "normal: 3 images fewer than a complete copy has",
        "poly: 1 image fewer than a complete copy has",
    )
    assert verdicts(check) == {
        "train normals": "differs",
        "test normals": "ok",
        "mono": "ok",
        "poly": "differs",
    }  # a quarter of 1,505 is still 377
    assert sum(
        map(len, check.left_out.values())
    ) == 401 and "poly                401       402  differs (-1)" in printed(check)


def test_one_image_too_many(shared, tmp_path):
    root = linked(shared / "data" / "brainmri", tmp_path / "brainmri")
    os.symlink(next((root / "yes").iterdir()).resolve(), root / "yes" / "again.jpg")
    check = check_dataset("brainmri", tmp_path)
    assert (
        not check.ok
        and check.missing == check.unknown == ()
        and counts(check)["tumor"] == 156
        and "differs (+1)" in printed(check)
    )


def test_category_that_is_not_there(tmp_path):
    mvtec_folder(tmp_path / "mvtec" / "toothbrush", n_train=60, n_test=12, classes={"defective": 30}, size=8)
    (tmp_path / "mvtec" / "license.txt").touch()
    check = check_dataset("mvtec", tmp_path)
    assert (
        not check.ok
        and check.unknown == ()
        and check.table[check.table.category == "toothbrush"].verdict.isin(["ok", "not published"]).all()
    )
    (said,) = check.missing
    assert said.startswith(
        "14 categories are not there: bottle, cable"
    ) and "14 categories missing; all 3 counts as in the paper" in printed(check)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_file_of_a_raw_layout_is_known(tmp_path, name):
    "Nothing that the authors publish is reported; what they do not is"
    root = LAYOUTS[name](tmp_path / name)
    check = check_dataset(name, tmp_path)
    assert check.unknown == () and set(check.table.category) == {""} and printed(check)
    assert (
        counts(check)["train normals"] == ((c := load_catalog(name, tmp_path)).split.eq("train")).sum()
        and not (c.label & c.split.eq("train")).any()
    )
    (root / "readme_of_mine.doc").touch()
    (root / "tmp").mkdir()
    (root / "tmp" / "b.bin").touch()
    assert check_dataset(name, tmp_path).unknown == ("readme_of_mine.doc", "tmp/b.bin")


def test_sdd_is_explained_only_as_it_is(tmp_path, monkeypatch):
    "The paper's 594 cannot be right; a copy that lost images must not hide behind that"
    from dataclasses import replace

    datasets = load_datasets()
    LAYOUTS["sdd"](tmp_path / "sdd")
    found = counts(check_dataset("sdd", tmp_path))
    as_found = {"train": found["train normals"] - 7, "test": found["test normals"], "defect": found["defect"]}
    for complete, ok in ((found["train normals"], True), (found["train normals"] + 3, False)):
        monkeypatch.setitem(
            datasets, "sdd", replace(datasets["sdd"], expected={"": as_found}, complete={"": {"train": complete}})
        )
        check = check_dataset("sdd", tmp_path)
        assert check.ok == ok and check.explained == datasets["sdd"].deviations and "explained: " in printed(check)
        assert check.missing == (() if ok else ("normal: 3 crops fewer than a complete copy has",))


def test_data_of_ones_own(tmp_path):
    mvtec_folder(tmp_path / "mine")
    (tmp_path / "mine" / "val").mkdir()
    for i in range(20):
        (tmp_path / "mine" / "val" / f"{i}.png").touch()
    check = check_dataset("mine", tmp_path)
    assert (
        check.ok
        and len(check.unknown) == 20
        and check.table.expected.isna().all()
        and set(check.table.verdict) == {"not published"}
    )
    assert "    val/: 20 files" in printed(check) and "the paper has no counts of it" in str(check)


def test_textures():
    check = check_dataset("textures")
    assert (
        check.ok
        and check.unknown == check.missing == ()
        and check.table.found.sum() == 4 * (160 + 5 * 20)
        and printed(check)
    )
