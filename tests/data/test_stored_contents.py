"What is stored is what is on the disk: no two files share pixels, whatever their names, sizes and times."

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from image_files import image, rows_of

from dra_nb.core import DraError
from dra_nb.data import store as store_module
from dra_nb.data.catalog import fingerprint, make_catalog
from dra_nb.data.contents import content_digests
from dra_nb.data.decode import decode, decode_file
from dra_nb.data.sources import read_images
from dra_nb.data.store import STORE_VERSION, open_store
from dra_nb.experiments.context import cached_catalog, cached_store

FIXED = (1577836800,) * 2  # the times of every file, as archives that can be reproduced set them
SIDE = 24


def random_images(folder, seed, names=("a", "b", "c"), ending="bmp"):
    "Pictures of one size in bytes, all of one time"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for name in names:
        path = folder / f"{name}.{ending}"
        image(rng.integers(0, 256, (30, 30, 3), dtype=np.uint8)).save(path)
        os.utime(path, FIXED)
    return folder


def catalog_of(folder, names=("a.bmp", "b.bmp", "c.bmp")):
    return make_catalog(rows_of(list(names)), folder)


def opened(catalog, cache, size=SIDE):
    "The store of a catalog, compared with the files as they are"
    store = open_store(catalog, size, cache, progress=False)
    expected = [decode(p, b, size) for p, b in zip(catalog["path"], catalog["box"], strict=True)]
    assert (store[:].numpy() == np.stack(expected)).all()
    return store


def test_two_products_with_equal_names_sizes_and_times(tmp_path):
    catalogs = [catalog_of(random_images(tmp_path / name / "good", i)) for i, name in enumerate("AB")]
    assert fingerprint(catalogs[0]) == fingerprint(catalogs[1])  # all that was looked at before
    stores = [opened(o, tmp_path / "cache") for o in catalogs]
    assert stores[0].key != stores[1].key and not (stores[0][:] == stores[1][:]).all()


def test_two_products_of_a_detector(tmp_path, monkeypatch):
    "The same by way of `fit`: the normals of B are learnt from, not those of A"
    monkeypatch.setenv("DRA_NB_CACHE", str(tmp_path / "cache"))
    folders = [random_images(tmp_path / name / "good", i) for i, name in enumerate("AB")]
    sets = [read_images(folder, 0, SIDE) for folder in folders]
    for folder, one in zip(folders, sets, strict=True):
        assert (one.store[[1]][0].numpy() == decode(folder / "b.bmp", None, SIDE)).all()


def test_replaced_in_place(tmp_path):
    "The same path, size and times before and after"
    catalog = catalog_of(random_images(tmp_path / "good", 0))
    first = opened(catalog, tmp_path / "cache")
    random_images(tmp_path / "good", 1)
    second = opened(catalog, tmp_path / "cache")
    assert first.key != second.key
    random_images(tmp_path / "good", 0)
    assert opened(catalog, tmp_path / "cache").key == first.key  # as it was: found again


def test_replaced_in_place_within_a_session(tmp_path):
    "The store that a process keeps open is not used for files that were replaced"
    root = tmp_path / "mine"
    for name, seed in (("train/good", 0), ("test/dent", 1), ("test/good", 2)):
        random_images(root / name, seed, ending="png")
    stores = [cached_store("mine", str(tmp_path), SIDE) for _ in range(2)]
    assert stores[0] is stores[1]
    place = next(i for i, o in enumerate(cached_catalog("mine", str(tmp_path)).path) if o.endswith("train/good/a.png"))
    size = (root / "train/good/a.png").stat().st_size
    flat = image(np.zeros((30, 30, 3), np.uint8))
    flat.save(root / "train/good/a.png")
    with open(root / "train/good/a.png", "ab") as file:
        file.write(bytes(size - file.tell()))
    os.utime(root / "train/good/a.png", FIXED)
    assert not cached_store("mine", str(tmp_path), SIDE)[place].any()


@pytest.mark.skipif(not hasattr(os, "symlink") or os.name == "nt", reason="needs symbolic links")
def test_another_release_behind_a_link(tmp_path):
    "`current` points to another folder of equal names, sizes and times"
    for i in range(2):
        random_images(tmp_path / f"release{i}", i)
    (tmp_path / "current").symlink_to(tmp_path / "release0")
    catalog = catalog_of(tmp_path / "current")
    first = opened(catalog, tmp_path / "cache")
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to(tmp_path / "release1")
    assert opened(catalog, tmp_path / "cache").key != first.key


def test_swapped_names(tmp_path):
    "Two files of one folder exchange their names: the set of contents is the same, the rows are not"
    catalog = catalog_of(random_images(tmp_path / "good", 0))
    opened(catalog, tmp_path / "cache")
    for old, new in (("a", "x"), ("b", "a"), ("x", "b")):
        os.rename(tmp_path / f"good/{old}.bmp", tmp_path / f"good/{new}.bmp")
    opened(catalog, tmp_path / "cache")


def test_copies_at_two_places_and_other_labels(tmp_path):
    "The place counts; the labels do not"
    catalogs = [catalog_of(random_images(tmp_path / name, 0)) for name in "AB"]
    stores = [opened(o, tmp_path / "cache") for o in catalogs]
    assert stores[0].key != stores[1].key
    relabelled = catalogs[0].assign(label=0, defect="", split="train")
    assert opened(relabelled, tmp_path / "cache").key == stores[0].key
    assert opened(catalogs[0][::-1], tmp_path / "cache").key != stores[0].key


# ---- files that change while they are read


def writes_meanwhile(monkeypatch, path, content, when):
    "Another program writes to a file before or after it is decoded"

    def decoding(name, *args):
        if when == "before" and name == str(path):
            path.write_bytes(content)
        try:
            return decode_file(name, *args)
        finally:
            if when == "after" and name == str(path):
                path.write_bytes(content)

    monkeypatch.setattr(store_module, "decode_file", decoding)


@pytest.mark.parametrize("when", ["before", "after"])
def test_changed_while_it_was_read(tmp_path, monkeypatch, when):
    catalog = catalog_of(random_images(tmp_path / "good", 0))
    random_images(tmp_path / "other", 1)
    writes_meanwhile(monkeypatch, tmp_path / "good/b.bmp", (tmp_path / "other/b.bmp").read_bytes(), when)
    with pytest.raises(DraError, match=r"good/b\.bmp changed while it was read; start again once"):
        open_store(catalog, SIDE, tmp_path / "cache", progress=False)
    assert not list((tmp_path / "cache").glob("*.npy")) and not list((tmp_path / "cache").glob(".*.part"))
    monkeypatch.undo()
    opened(catalog, tmp_path / "cache")


def test_removed_while_it_was_read(tmp_path, monkeypatch):
    catalog = catalog_of(random_images(tmp_path / "good", 0))
    monkeypatch.setattr(
        store_module, "decode_file", lambda name, *args: (decode_file(name, *args), Path(name).unlink())[0]
    )
    with pytest.raises(DraError, match=r"3 of 3 image files cannot be used(.|\n)*a\.bmp changed while it was read"):
        open_store(catalog, SIDE, tmp_path / "cache", progress=False)


# ---- what earlier versions left


def test_old_stores_are_not_trusted(tmp_path):
    "A store under the key of the first version, full of other pixels, is not opened, and goes with the next one built"
    catalog, cache = catalog_of(random_images(tmp_path / "good", 0)), tmp_path / "cache"
    cache.mkdir()
    old = cache / f"{fingerprint(catalog)}-{SIDE}-v1.npy"
    np.save(old, np.zeros((len(catalog), 3, SIDE, SIDE), np.uint8))
    shutil.copy(old, cache / "mine.npy")
    assert STORE_VERSION > 1
    opened(catalog, cache)
    assert not old.exists() and (cache / "mine.npy").exists()


def test_another_pillow_decodes_anew(tmp_path, monkeypatch):
    catalog = catalog_of(random_images(tmp_path / "good", 0))
    first = opened(catalog, tmp_path / "cache")
    monkeypatch.setattr(store_module, "decoder_versions", lambda: "pillow 99")
    assert opened(catalog, tmp_path / "cache").path != first.path


def test_unreadable_files_have_no_hash(tmp_path):
    "They are told of by the decoder, all at once"
    catalog = catalog_of(random_images(tmp_path / "good", 0))
    (tmp_path / "good/a.bmp").unlink()
    (tmp_path / "good/b.bmp").unlink()
    (tmp_path / "good/b.bmp").mkdir()
    digests = content_digests(catalog["path"], 2)
    assert [bool(digests[str(tmp_path / f"good/{o}.bmp")]) for o in "abc"] == [False, False, True]
    with pytest.raises(DraError, match=r"2 of 3 image files cannot be used(.|\n)*No such file(.|\n)*directory"):
        open_store(catalog, SIDE, tmp_path / "cache", progress=False)
