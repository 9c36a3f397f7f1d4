"Outliers are images of another dataset that do not overlap with the target; each is drawn once, as the seed decides."

import numpy as np
import pytest
import torch
from conftest import mvtec_folder

from dra_nb.core import DraError
from dra_nb.data.catalog import make_catalog
from dra_nb.data.outliers import Outliers, outlier_rows
from dra_nb.data.readers.mvtec import read_mvtec
from dra_nb.data.store import open_store


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def external(name, *categories):
    rows = [
        (f"{c}/{i}.png", None, c, split, label, "x" * label, None)
        for c in categories
        for i, (split, label) in enumerate([("train", 0), ("train", 0), ("test", 0), ("test", 1)])
    ]
    return make_catalog(rows, "somewhere", name)


@pytest.mark.parametrize(
    "target,gone",
    [
        ((), []),
        (("elpv",), []),
        (("mvtec", "grid"), ["grid"]),
        (("mvtec", "carpet"), ["carpet"]),
        (("aitex",), ["carpet"]),
        (("textures", "weave"), ["carpet"]),
        (("textures", "wood"), ["wood"]),
        (("mine", "Grid"), ["grid"]),
    ],
)
def test_overlapping_categories_are_left_out(target, gone):
    catalog = external("mvtec", "carpet", "grid", "wood")
    rows = outlier_rows(catalog, *target)
    assert sorted(set(catalog.category) - set(catalog.category[rows])) == gone
    assert (
        (catalog.label[rows] == 0).all() and (catalog.split[rows] == "train").all() and len(rows) == 2 * (3 - len(gone))
    )


def test_both_classes_of_lag():
    assert (
        len(outlier_rows(external("lag", ""), "hyperkvasir")) == 4
        and len(outlier_rows(external("brainmri", ""), "hyperkvasir")) == 2
    )


@pytest.mark.parametrize("name,target", [("lag", ("lag",)), ("headct", ("brainmri",)), ("aitex", ("mvtec", "carpet"))])
def test_nothing_left(name, target):
    with pytest.raises(DraError, match=f"no outliers are left in {name}.*{'/'.join(target)}.*another dataset"):
        outlier_rows(external(name, ""), *target)


def test_a_whole_dataset_of_categories_is_no_outlier_to_itself():
    with pytest.raises(DraError, match="name the category"):
        outlier_rows(external("mvtec", "carpet", "grid"), "mvtec")
    with pytest.raises(DraError, match="Did you mean 'grid'"):
        outlier_rows(external("mvtec", "carpet", "grid"), "mvtec", "gird")


def test_outliers_of_a_folder(tmp_path):
    catalog = read_mvtec(mvtec_folder(tmp_path / "mine"))
    store = open_store(catalog, 32, tmp_path / "cache", progress=False)
    outliers = Outliers(store, outlier_rows(catalog, "elpv"))
    assert len(outliers) == 12 and outliers.size == 32
    drawn = outliers.draw(12, seeded(0))
    assert (
        drawn.shape == (12, 3, 32, 32)
        and drawn.dtype == torch.float32
        and drawn.device.type == "cpu"
        and drawn.min() >= 0
        and drawn.max() <= 1
    )
    wanted = {o.numpy().tobytes() for o in store[np.flatnonzero((catalog.label == 0) & (catalog.split == "train"))]}
    assert {(o * 255).round().byte().numpy().tobytes() for o in drawn} == wanted  # each once
    assert (
        len(outliers.draw(30, seeded(0))) == 30
        and torch.equal(drawn, outliers.draw(12, seeded(0)))
        and not torch.equal(drawn, outliers.draw(12, seeded(1)))
    )


@pytest.mark.parametrize("rows", [[], [5, 40], [-1], np.ones(28, bool), [0.5]])
def test_rows_that_are_none(rows):
    class Store:
        size = 8

        def __len__(self):
            return 28

    with pytest.raises(DraError, match="outlier"):
        Outliers(Store(), rows)
