"What a catalog says, as a dictionary that tests compare with plain tables, and how to spoil a raw layout."

import shutil

import numpy as np
import pytest
import raw_layouts as raw
from sklearn.model_selection import train_test_split

from dra_nb.core import DraError
from dra_nb.data.catalog import relative_paths
from dra_nb.data.datasets import load_catalog


def rows(catalog):
    "{(relative path, box): (split, label, class, masks)}; the catalog has one row each, sorted"
    start = catalog.attrs["root"] + "/"
    masks = [
        None if o is None else tuple(p.removeprefix(start) for p in ([o] if isinstance(o, str) else o))
        for o in catalog["mask"]
    ]
    found = {
        (path, box): (split, label, defect, mask)
        for path, box, split, label, defect, mask in zip(
            relative_paths(catalog), catalog["box"], catalog["split"], catalog["label"], catalog["defect"], masks
        )
    }
    assert len(found) == len(catalog) and set(catalog.category) == {""}
    assert list(found) == sorted(found, key=lambda o: (found[o][0], o[0], o[1] or ()))
    return found


def normals(keys):
    "What `rows` gives for normals: split as the released scripts' call of scikit-learn does it, on the sorted keys"
    keys = sorted(keys)
    test = set(train_test_split(np.arange(len(keys)), test_size=0.25, random_state=42)[1].tolist())
    return {o: ("test" if i in test else "train", 0, "", None) for i, o in enumerate(keys)}


def draw_layouts(folder, *names):
    "A folder with these raw layouts"
    for name in names:
        raw.LAYOUTS[name](folder / name)
    return folder


def spoilable(data, folder):
    "A function that gives a copy of a dataset of `data` to spoil, and what its reader says then"

    def copy(name):
        shutil.copytree(data / name, folder / name)

        def says():
            with pytest.raises(DraError) as caught:
                load_catalog(name, folder)
            return str(caught.value)

        return folder / name, says

    return copy
