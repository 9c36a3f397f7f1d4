"""What is an image and what it is for (A1, A3, A4): one intake for training, scoring, evaluation and Python.

The property: of any tree of files, each is exactly one of used, skipped with a reason, or refused by name."""

import os
import shutil
import socket
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import picture
from PIL import Image

from dra_nb.core import DraError
from dra_nb.data.formats import RefusedFile, Skipped
from dra_nb.data.intake import skipped_of
from dra_nb.data.labelled import read_labelled, training_parts
from dra_nb.data.sources import catalog_of
from dra_nb.data.stream import iterate_images, stream_images
from dra_nb.data.walk import list_contents, walk_files

PHOTO = picture("good", np.random.default_rng(0), 32)
WRITES = {
    "jfif": "jpeg",
    "jpe": "jpeg",
    "apng": "png",
    "dib": "dib",
    "jp2": "jpeg2000",
    "pgm": "ppm",
    "tga": "tga",
    "mpo": "mpo",
    "qoi": "qoi",
    "avif": "avif",
}


def photo(seed=0, kind="good", size=32):
    return picture(kind, np.random.default_rng(seed), size)


def write(path, image=PHOTO, kind="png"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as f:
        (image.convert("L") if kind == "ppm" else image).save(f, kind)
    return path


def names(paths, root):
    return [os.path.relpath(o, root).replace(os.sep, "/") for o in paths]


# ---- A1: every format that Pillow reads, by content where the ending is unknown or wrong


def written_by_pillow(kind):
    "AVIF depends on the build of Pillow, QOI on its version"
    Image.init()
    return kind not in ("avif", "qoi") or kind.upper() in Image.SAVE


@pytest.mark.filterwarnings("ignore:IM image format")
@pytest.mark.parametrize("ending", [*WRITES, "gif", "GIF", "bmp", "tif", "webp", "pcx", "sgi", "im", "ppm"])
def test_every_format_is_read(ending, tmp_path):
    kind = WRITES.get(ending.lower(), ending.lower())
    if not written_by_pillow(kind):
        pytest.skip(f"this Pillow writes no {kind.upper()}")
    image = PHOTO.convert("L").convert("RGB") if kind == "ppm" else PHOTO
    write(tmp_path / f"a.{ending}", image, "tiff" if kind == "tif" else kind)
    assert names(catalog_of(tmp_path, 0)["path"], tmp_path) == [f"a.{ending}"]
    [read] = stream_images(tmp_path, 16)
    assert not read.error and read.pixels.shape == (3, 16, 16)


@pytest.mark.parametrize(
    "name, kind", [("DSC0001", "jpeg"), ("scan.001", "tiff"), ("frame.dat", "png"), ("a.jpg", "png"), ("a.png", "jpeg")]
)
def test_content_decides_where_the_ending_does_not(name, kind, tmp_path):
    write(tmp_path / name, kind=kind)
    [read] = stream_images(tmp_path, 16)
    assert not read.error and read.name.endswith(name) and len(catalog_of(tmp_path, 0)) == 1


def test_what_is_no_image_behind_its_ending_is_refused_by_name(tmp_path):
    write(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    assert [bool(o.error) for o in stream_images(tmp_path, 16)] == [False, True]


@pytest.mark.parametrize("name", ["IMG_1.HEIC", "DSC_1.NEF", "slice.dcm"])
def test_a_photo_that_pillow_does_not_read_is_refused_by_name(name, tmp_path):
    write(tmp_path / "a.png")
    (tmp_path / name).write_bytes(b"II*\0 a photo")
    with pytest.raises(DraError, match=rf"{name} cannot be used \(a photo in the format"):
        catalog_of(tmp_path, 0)
    assert {Path(o.name).name: bool(o.error) for o in stream_images(tmp_path, 16)} == {"a.png": False, name: True}


def test_a_raw_file_beside_its_jpeg_is_skipped(tmp_path):
    write(tmp_path / "DSC_1.JPG", kind="jpeg")
    (tmp_path / "DSC_1.NEF").write_bytes(b"II*\0 a photo")
    assert [str(o) for o in catalog_of(tmp_path, 0).attrs["skipped"]] == ["DSC_1.NEF (raw file of DSC_1.JPG)"]


JUNK = ["@eaDir/a.jpg", "#recycle/a.jpg", "$RECYCLE.BIN/a.jpg", "System Volume Information/a.jpg", ".Trash-1000/a.jpg"]
JUNK += ["lost+found/a.jpg", "__MACOSX/._a.jpg", ".thumbnails/a.jpg", ".ipynb_checkpoints/a.jpg", "._a.jpg", ".a.jpg"]
JUNK += ["Thumbs.db", ".DS_Store", "desktop.ini"]


def test_what_systems_leave_is_never_an_image(tmp_path):
    for i, name in enumerate(JUNK):
        write(tmp_path / name, photo(i + 1), "jpeg")
    write(tmp_path / "a.png")
    catalog = catalog_of(tmp_path, 0)
    assert names(catalog["path"], tmp_path) == ["a.png"]
    assert not any(o.notable for o in catalog.attrs["skipped"]) and len(catalog.attrs["skipped"]) == len(JUNK)


# ---- A3: what the names of sub-folders mean


def tree(root, **counts):
    for name, n in counts.items():
        for i in range(n):
            write(root / name / f"{name}_{i}.png", photo(zlib.crc32(f"{name} {i}".encode())))
    return root


PAIRS = [("OK", "NG"), ("no", "yes"), ("pass", "fail"), ("0", "1"), ("good", "bad"), ("normal", "anomaly")]
PAIRS += [
    ("ok_front", "def_front"),
    ("Negative", "Positive"),
    ("Non-Defective", "Defective"),
    ("ok", "ko"),
    ("ＯＫ", "ＮＧ"),
]


@pytest.mark.parametrize("normal, anomaly", PAIRS)
def test_folders_with_roles_are_understood(normal, anomaly, tmp_path):
    tree(tmp_path, **{normal: 3, anomaly: 2})
    parts = training_parts(read_labelled(tmp_path))
    assert {Path(o).parent.name for o in parts.normals["path"]} == {normal} and len(parts.normals) == 3
    assert {Path(o).parent.name for o in parts.anomalies["path"]} == {anomaly} and len(parts.anomalies) == 2


def test_brainmri_is_understood(shared):
    catalog = read_labelled(shared / "data/brainmri")
    assert (int((catalog.label == 0).sum()), int((catalog.label == 1).sum())) == (98, 155)
    assert set(catalog.split[catalog.label == 0]) == {"train"} and not catalog.attrs["skipped"]


@pytest.mark.parametrize("folders", [("ok", "ng", "shift2"), ("no", "yes", "maybe"), ("0", "1", "unsorted")])
def test_an_unknown_role_beside_known_ones_is_refused_by_name(folders, tmp_path):
    tree(tmp_path, **dict.fromkeys(folders, 2))
    with pytest.raises(DraError) as error:
        labelled = read_labelled(tmp_path)
        catalog_of(tmp_path if labelled is None else labelled, 0)
    assert folders[2] in str(error.value) and "2" in str(error.value) and "rename" in str(error.value)


def test_folders_without_roles_are_all_normal(tmp_path):
    tree(tmp_path, cam1=2, cam2=1)
    tree(tmp_path / "numbered", **{"0": 1, "1": 1, "2": 1})
    assert read_labelled(tmp_path) is None and len(catalog_of(tmp_path, 0)) == 6
    assert read_labelled(tmp_path / "numbered") is None and len(catalog_of(tmp_path / "numbered", 0)) == 3


@pytest.mark.parametrize("deep", ["NG", "fail", "Anomalies"])
def test_anomalies_by_name_deep_among_normals_are_refused(deep, tmp_path):
    tree(tmp_path / "cam1", **{deep: 1, "OK": 1})
    tree(tmp_path, cam2=2)
    with pytest.raises(DraError, match=f"cam1 holds 'OK' beside '{deep}' \\(1\\)"):
        catalog_of(tmp_path, 0)


@pytest.mark.parametrize(
    "train, good, bad", [("train", "good", "hole"), ("Train", "OK", "NG"), ("train", "Normal", "Anomaly")]
)
def test_mvtec_layout_with_other_names_of_normals(train, good, bad, tmp_path):
    tree(tmp_path / train, **{good: 2})
    tree(tmp_path / "test", **{good: 1, bad: 2})
    assert [len(o) for o in training_parts(read_labelled(tmp_path))] == [2, 1, 2]


# ---- A4: masks beside photos


def tiles(root, n=4, photo_kind="jpeg", mask_kind="png", mask_name="{}"):
    endings = {"jpeg": "jpg", "png": "png", "bmp": "bmp", "tiff": "tif"}
    for i in range(n):
        black = np.zeros((32, 32), np.uint8)
        if i % 2:
            black[4:9, 4:9] = 255
        write(root / f"exp{i}.{endings[photo_kind]}", photo(i), photo_kind)
        write(root / f"{mask_name.format(f'exp{i}')}.{endings[mask_kind]}", Image.fromarray(black), mask_kind)
    return root


@pytest.mark.parametrize(
    "how",
    [
        {},
        dict(photo_kind="png", mask_kind="bmp"),
        dict(photo_kind="bmp", mask_kind="jpeg"),
        dict(mask_name="{}_mask"),
        dict(mask_name="{}-GT", photo_kind="png"),
        dict(mask_name="{}_label", mask_kind="bmp"),
        dict(mask_name="mask_{}"),
    ],
)
def test_masks_beside_photos_are_skipped(how, tmp_path):
    tiles(tmp_path, **how)
    catalog = catalog_of(tmp_path, 0)
    ending = {"jpeg": "jpg"}.get(how.get("photo_kind", "jpeg"), how.get("photo_kind"))
    assert names(catalog["path"], tmp_path) == [f"exp{i}.{ending}" for i in range(4)]
    reasons = [o.reason for o in catalog.attrs["skipped"]]
    assert reasons == [f"mask of exp{i}.{ending}" for i in range(4)] and all(
        o.notable for o in catalog.attrs["skipped"]
    )
    assert [Path(o.name).name for o in iterate_images(tmp_path)] == [f"exp{i}.{ending}" for i in range(4)]


@pytest.mark.parametrize("folder", ["masks", "ground_truth", "Labels", "annotations"])
def test_folders_of_masks_are_skipped(folder, tmp_path):
    tree(tmp_path, **{folder: 3})
    write(tmp_path / "a.png")
    catalog = catalog_of(tmp_path, 0)
    assert len(catalog) == 1 and [o.folder for o in catalog.attrs["skipped"]] == [True]


@pytest.mark.parametrize("kinds", [("png", "jpeg"), ("bmp", "png"), ("tiff", "jpeg")])
def test_one_photo_in_two_formats_is_refused(kinds, tmp_path):
    for kind in kinds:
        write(tmp_path / f"a.{kind}", photo(3, size=64), kind)
    with pytest.raises(DraError, match="the same photo in two files"):
        catalog_of(tmp_path, 0)


def test_two_photos_of_one_name_are_both_used(tmp_path):
    write(tmp_path / "a.png", photo(1)), write(tmp_path / "a.jpg", photo(2, "dent"), "jpeg")
    assert len(catalog_of(tmp_path, 0)) == 2


def test_masks_beside_photos_of_labelled_data(tmp_path):
    tiles(tmp_path / "ok"), tiles(tmp_path / "ng", 2)
    catalog = read_labelled(tmp_path)
    assert catalog.label.tolist().count(0) == 4 and len(catalog) == 6 and len(skipped_of([catalog])) == 6
    tiles(tmp_path / "set/train/good"), tiles(tmp_path / "set/test/hole", 2), tiles(tmp_path / "set/test/good", 2)
    assert [len(o) for o in training_parts(read_labelled(tmp_path / "set"))] == [4, 2, 2]


# ---- The property

ENDINGS = [
    "png",
    "jpg",
    "JPG",
    "tif",
    "bmp",
    "gif",
    "jfif",
    "dat",
    "",
    "txt",
    "csv",
    "db",
    "mp4",
    "nef",
    "png~",
    "json",
]
STEMS = ["a", "A", "b", "c_mask", "c", "Thumbs", ".d", "._e", "f g", "\u00fc", "desktop", "a.b"]
FOLDERS = ["", "x", "y/z", "@eaDir", ".git", "masks", "#recycle", "Good", "NG", "1", "sub/#snapshot", "labels"]


def fill(file, rng):
    "A photo, a mask, a truncated photo, a text or nothing, whatever the name says"
    what = rng.choice(["photo", "photo", "mask", "cut", "text", "empty"])
    kind = rng.choice(["png", "jpeg", "bmp", "tiff"])
    if what in ("photo", "cut"):
        write(file, photo(int(rng.integers(4)), size=24), kind)
    elif what == "mask":
        write(file, Image.new("L", (24, 24), int(rng.choice([0, 255]))), kind)
    if what == "cut":
        file.write_bytes(file.read_bytes()[:60])
    elif what in ("text", "empty"):
        file.write_text("no picture" * (what == "text"))


def grow(root, rng):
    "A random tree: formats, names, cases, links, junk, duplicates"
    root.mkdir()
    for _ in range(rng.integers(1, 14)):
        folder = root / str(rng.choice(FOLDERS))
        folder.mkdir(parents=True, exist_ok=True)
        ending = str(rng.choice(ENDINGS))
        file = folder / (str(rng.choice(STEMS)) + (f".{ending}" if ending else ""))
        if os.path.lexists(file):
            continue
        special = rng.integers(12)
        if special == 0:
            file.symlink_to(rng.choice([str(root / "nowhere"), str(root), str(folder), str(root / "x")]))
        elif special == 1 and hasattr(os, "mkfifo"):
            os.mkfifo(file)
        elif special == 2 and (there := [o for o in root.rglob("*") if o.is_file() and not o.is_symlink()]):
            shutil.copy(there[rng.integers(len(there))], file)
        else:
            fill(file, rng)
    return root


def all_entries(root):
    "Every path below a folder that is no folder itself; links are not followed"
    found = []
    for folder, folders, files in os.walk(root):
        linked = [o for o in folders if os.path.islink(os.path.join(folder, o))]
        found += [os.path.join(folder, o) for o in [*files, *linked]]
    return found


def fates(root, found):
    "Path -> what was done with it, once for each time; what lies in a skipped folder shares its fate"
    given = {"used": [], "skipped": [], "refused": []}
    for item in found:
        if isinstance(item, str):
            given["used"].append(item)
        elif isinstance(item, Skipped):
            assert item.reason
            given["skipped"].append(item.path)
        else:
            assert isinstance(item, RefusedFile) and item.path in str(item)
            given["refused"].append(item.path)
    result = {}
    for path in all_entries(root):
        up = [path, *map(str, Path(path).parents)]
        result[path] = [kind for kind, paths in given.items() for o in paths if o in up]
    return result


def broken_fates(root, found):
    return {path: kinds for path, kinds in fates(root, found).items() if len(kinds) != 1}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("seed", range(10))
def test_every_file_has_exactly_one_fate(seed, tmp_path):
    rng = np.random.default_rng(seed)
    for i in range(20):
        root = grow(tmp_path / str(i), rng)
        found = list(walk_files(root))
        wrong = broken_fates(root, found)
        wrong = {o: k for o, k in wrong.items() if k or not (os.path.islink(o) and os.path.isdir(o))}  # entered links
        assert not wrong, (seed, i, wrong)
        agree(root, found)


def agree(root, found):
    "Training, scoring and Python say the same of a tree; none of them fails in another way than by a DraError"
    contents = list_contents(root)
    assert contents.images == [o for o in found if isinstance(o, str)]
    scored = list(stream_images(root, 8))
    assert [o.name for o in scored] == [
        o if isinstance(o, str) else o.path for o in found if not isinstance(o, Skipped)
    ]
    assert all((o.pixels is None) == bool(o.error) for o in scored)
    for read in (read_labelled, lambda o: catalog_of(o, 0), lambda o: catalog_of(o, 1)):
        try:
            catalog = read(root)
        except DraError as e:
            assert str(e)
            continue
        if catalog is None:
            continue
        used = set(catalog["path"])
        assert len(used) == len(catalog) and used <= set(contents.images)
        left = {o.path for o in catalog.attrs["skipped"]}
        assert not used & left
        assert used | left >= set(contents.images) and (contents.refused == [] or read is read_labelled)


def test_the_property_can_fail(tmp_path):
    "A walk that forgets a file, or gives one twice, is found out"
    rng = np.random.default_rng(0)
    roots = [grow(tmp_path / str(i), rng) for i in range(30)]

    def forgets(root):
        return [o for o in walk_files(root) if not (isinstance(o, Skipped) and "content" in o.reason)]

    def doubles(root):
        found = list(walk_files(root))
        return found + [Skipped(o, "twice") for o in found if isinstance(o, str)]

    assert any(broken_fates(o, forgets(o)) for o in roots) and any(broken_fates(o, doubles(o)) for o in roots)


def test_sockets_and_loops(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's name is short
    write(tmp_path / "x/a.png")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind("x/socket")
        (tmp_path / "x/loop").symlink_to(tmp_path / "x")
        (tmp_path / "x/gone.png").symlink_to(tmp_path / "nowhere")
        contents = list_contents(tmp_path / "x")
    assert names(contents.images, tmp_path) == ["x/a.png"]
    assert sorted(o.reason for o in contents.skipped) == [
        "link that leads nowhere",
        "link to a folder around it",
        "no regular file",
    ]
