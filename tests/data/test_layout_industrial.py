"What holds for every industrial layout: order, letter case, folders around it, wrong folders, and the registry."

import os
import re
import shutil

import numpy as np
import pytest
import raw_layouts as raw
from catalog_rows import draw_layouts, rows

from dra_nb.core import DraError
from dra_nb.data.catalog import fingerprint, relative_paths
from dra_nb.data.datasets import load_catalog, load_datasets
from dra_nb.data.protocols import make_split

NAMES = tuple(raw.LAYOUTS)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "The layout as published; the tests only read it"
    return draw_layouts(tmp_path_factory.mktemp("raw"), *NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_order_and_times_of_the_files_do_not_enter(data, tmp_path, name):
    catalogs = [load_catalog(name, raw.shuffled_copy(data / name, tmp_path / str(i) / name, i).parent) for i in (1, 2)]
    one, two = map(rows, catalogs)
    assert one == two == rows(load_catalog(name, data)) and list(one) == list(two)
    assert fingerprint(catalogs[0], times=False) == fingerprint(catalogs[1], times=False) and fingerprint(
        catalogs[0]
    ) != fingerprint(catalogs[1])
    for seed in (0, 1):
        a, b = (make_split(o, shots=2, withheld=3, seed=seed) for o in catalogs)
        assert all(
            np.array_equal(getattr(a, o), getattr(b, o)) for o in ("normal", "given", "references", "test", "seen")
        )


@pytest.mark.parametrize("name", [o for o in NAMES if o != "elpv"])  # ELPV names its files in labels.csv
def test_endings_in_any_letter_case(data, tmp_path, name):
    shutil.copytree(data / name, tmp_path / name)
    for o in list((tmp_path / name).rglob("*.*")):
        if o.suffix.lower() in (".png", ".jpg", ".bmp", ".npy"):
            o.rename(o.with_suffix(o.suffix.swapcase()))
    swapped, catalog = load_catalog(name, tmp_path), load_catalog(name, data)
    columns = ["box", "split", "label", "defect"]
    assert swapped[columns].equals(catalog[columns]) and swapped["mask"].notna().equals(catalog["mask"].notna())
    one, two = ([o.lower() for o in relative_paths(o)] for o in (swapped, catalog))
    assert one == two and relative_paths(swapped) != relative_paths(catalog)
    assert all(os.path.isfile(p) for o in swapped["mask"].dropna() for p in ([o] if isinstance(o, str) else o))


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_around_it(data, tmp_path, name):
    (tmp_path / name / "download").mkdir(parents=True)
    shutil.copytree(data / name, tmp_path / name / "download" / name)
    assert rows(load_catalog(name, tmp_path)) == rows(load_catalog(name, data))


@pytest.mark.parametrize("name", NAMES)
def test_wrong_folder(tmp_path, name):
    o = load_datasets()[name]
    raw.put(tmp_path / name / "pictures" / "a.png", raw.surface(8, 8))
    raw.put(tmp_path / name / "more" / "b.png", raw.surface(8, 8))
    with pytest.raises(DraError) as caught:
        load_catalog(name, tmp_path)
    assert (
        f"does not hold {o.title}" in str(caught.value)
        and o.layout in str(caught.value)
        and o.where in str(caught.value)
    )


def test_no_file_of_a_layout_is_unknown_to_the_check(data):
    from dra_nb.data.check import check_dataset

    for name in NAMES:
        assert check_dataset(name, data).unknown == (), name


def test_registry():
    from dra_nb.experiments.published import DATASET_TITLES, published

    known, table = load_datasets(), published("table2")
    for name in NAMES:
        assert (
            known[name].title == DATASET_TITLES[name]
            and known[name].folder == name
            and set(known[name].expected) == {""}
        )
        assert set(table.known_class[table.dataset == name]) - {"mean"} <= set(known[name].classes)
    for o in (known[name] for name in (*NAMES, "mvtec")):
        for file in o.files:
            assert (
                file.url.startswith("https://")
                and re.fullmatch(r"|sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", file.digest)
                and file.size >= 0
            )
    assert len(known["mvtec"].expected) == 15 and known["mvtec"].expected["carpet"] == {
        "train": 280,
        "test": 28,
        "*": 89,
    }
