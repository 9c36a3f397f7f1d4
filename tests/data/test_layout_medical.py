"The medical datasets, read from small folders in the layouts of the raw downloads (raw_layouts_medical.py)."

from pathlib import Path

import numpy as np
import pytest
import raw_layouts_medical as raw
from raw_layouts import shuffled_copy
from sklearn.model_selection import train_test_split

from dra_nb.core import DraError
from dra_nb.data.catalog import COLUMNS, relative_paths
from dra_nb.data.datasets import load_catalog, load_datasets
from dra_nb.data.protocols import make_split
from dra_nb.data.store import open_store

COUNTS = dict(
    brainmri=raw.BRAINMRI_COUNTS, headct=raw.HEADCT_COUNTS, hyperkvasir=raw.HYPERKVASIR_COUNTS, lag=raw.LAG_COUNTS
)
PLACES = [
    ("brainmri", {}),
    ("brainmri", dict(nested=True)),
    ("headct", {}),
    ("headct", dict(folder="head_ct")),
    ("hyperkvasir", {}),
    ("hyperkvasir", dict(above=False)),
    ("lag", {}),
    ("lag", dict(above=True)),
]


def build(name, data, **options):
    "The dataset below the folder `data`, read by name"
    getattr(raw, name)(data / load_datasets()[name].folder, **options)
    return load_catalog(name, data)


def rows(catalog):
    return [
        (p, *o) for p, o in zip(relative_paths(catalog), catalog[list(COLUMNS[1:])].itertuples(index=False, name=None))
    ]


@pytest.mark.parametrize("name, options", PLACES)
def test_rows(name, options, tmp_path):
    catalog = build(name, tmp_path, **options)
    assert catalog.defect.value_counts().to_dict() == COUNTS[name]
    assert set(COUNTS[name]) - {""} == set(load_datasets()[name].classes)
    assert (catalog.label == (catalog.defect != "")).all() and (catalog.split[catalog.label == 1] == "test").all()
    assert catalog.path.is_unique and all(Path(p).is_file() for p in catalog.path)
    assert catalog["box"].isna().all() and catalog["mask"].isna().all() and set(catalog.category) == {""}
    normals = sorted(catalog.path[catalog.label == 0])
    train, test = train_test_split(normals, test_size=0.25, random_state=42)  # the released scripts', on sorted files
    assert set(catalog.path[catalog.split == "train"]) == set(train) and set(
        catalog.path[(catalog.label == 0) & (catalog.split == "test")]
    ) == set(test)


@pytest.mark.parametrize("name", COUNTS)
def test_where_it_was_unpacked_does_not_matter(name, tmp_path):
    a, b = (
        build(name, tmp_path / str(i), **options) for i, (_, options) in enumerate(p for p in PLACES if p[0] == name)
    )
    assert len(a) == len(b) and (name == "headct" or rows(a) == rows(b))  # HeadCT's inner folder is part of the paths
    assert a.drop(columns=["path"]).equals(b.drop(columns=["path"]))


@pytest.mark.parametrize("name", COUNTS)
def test_shuffled_copies_give_the_same_split(name, tmp_path):
    build(name, tmp_path / "first")
    folder = load_datasets()[name].folder
    copies = [
        load_catalog(name, tmp_path / str(seed))
        for seed in (1, 2)
        if shuffled_copy(tmp_path / "first" / folder, tmp_path / str(seed) / folder, seed)
    ]
    assert rows(copies[0]) == rows(copies[1]) == rows(load_catalog(name, tmp_path / "first"))
    for seed in range(3):
        a, b = (make_split(o, shots=2, withheld=2, seed=seed) for o in copies)
        assert all(
            np.array_equal(getattr(a, o), getattr(b, o)) for o in ("normal", "given", "references", "test", "seen")
        )


@pytest.mark.parametrize("name", COUNTS)
def test_all_sizes_and_modes_decode(name, tmp_path):
    catalog = build(name, tmp_path)
    store = open_store(catalog, 24, tmp_path / "cache", progress=False)
    assert store[:].shape == (len(catalog), 3, 24, 24)
    for half, grey in ((store[:][..., :8], raw.DARK), (store[:][..., 16:], raw.BRIGHT)):
        assert (half.float() - grey).abs().max() < 4


def test_classes_by_name(tmp_path):
    catalog = build("brainmri", tmp_path)
    assert {p: d for p, d in zip(relative_paths(catalog), catalog.defect)} == {
        p: "tumor" if p.startswith("yes") else "" for p in raw.BRAINMRI
    }
    catalog = build("headct", tmp_path)
    assert {int(Path(p).stem): o for p, o in zip(catalog.path, catalog.label)} == raw.HEADCT
    catalog = build("hyperkvasir", tmp_path)
    assert all(d == Path(p).parent.name for p, d in zip(catalog.path, catalog.defect) if d)
    assert {Path(p).parent.name for p in catalog.path[catalog.label == 0]} == {"pylorus", "retroflex-stomach", "z-line"}
    catalog = build("lag", tmp_path)
    for path, label in zip(catalog.path, catalog.label):
        assert (Path(path).parents[1] / "label" / f"{Path(path).stem}.txt").read_text() == f"{label}\n" and Path(
            path
        ).parent.name == "image"


def published(name, root):
    "Empty files in the numbers of the full dataset; readers do not open images"
    normal = load_datasets()[name].expected[""]["train"] + load_datasets()[name].expected[""]["test"]
    landmarks = {"pylorus": 999, "retroflex-stomach": 764, "z-line": 932}
    assert name != "hyperkvasir" or sum(landmarks.values()) == normal
    files = {
        "brainmri": {"no": normal, "yes": 155},
        "headct": {"head_ct/head_ct": 200},
        "hyperkvasir": {f"labeled-images/upper-gi-tract/anatomical-landmarks/{k}": n for k, n in landmarks.items()}
        | {
            f"labeled-images/upper-gi-tract/pathological-findings/{k}": load_datasets()[name].expected[""].get(k, 0)
            for k in load_datasets()["hyperkvasir"].classes
        },
    }[name]
    for folder, n in files.items():
        (root / folder).mkdir(parents=True)
        for i in range(n):
            (root / folder / f"{i:03}.png").touch()
    if name == "headct":
        (root / "labels.csv").write_text("id, hemorrhage\n" + "".join(f"{i},{int(i < 100)}\n" for i in range(200)))


@pytest.mark.parametrize("name", ["brainmri", "headct", "hyperkvasir"])
def test_a_full_copy_has_the_counts_of_table_5(name, tmp_path):
    published(name, tmp_path / name)
    catalog, expected = load_catalog(name, tmp_path), load_datasets()[name].expected[""]
    normal = catalog[catalog.label == 0].split.value_counts().to_dict()
    assert normal | catalog[catalog.label == 1].defect.value_counts().to_dict() == expected


def test_every_file_of_a_full_copy_is_known(tmp_path):
    from dra_nb.data.check import check_dataset

    for name in COUNTS:
        build(name, tmp_path)
        assert check_dataset(name, tmp_path).unknown == (), name
        Path(load_catalog(name, tmp_path).attrs["root"], "mine.png").touch()
        assert check_dataset(name, tmp_path).unknown == ("mine.png",), name
    assert {k: len(v) for k, v in check_dataset("hyperkvasir", tmp_path).left_out.items()} == {
        "the paper takes the upper tract": 9
    }
    assert [len(v) for v in check_dataset("lag", tmp_path).left_out.values()] == [14]


def test_the_real_brainmri(shared):
    catalog, expected = load_catalog("brainmri", shared / "data"), load_datasets()["brainmri"].expected[""]
    assert catalog[catalog.label == 0].split.value_counts().to_dict() | {"tumor": int(catalog.label.sum())} == expected
    assert sum(p.endswith((".JPG", ".jpeg")) for p in catalog.path) == 80  # the released code loses these
    train, _ = train_test_split(sorted(catalog.path[catalog.label == 0]), test_size=0.25, random_state=42)
    assert set(train) == set(catalog.path[catalog.split == "train"])


@pytest.mark.parametrize(
    "name, spoil, says",
    [
        ("brainmri", "yes", "yes does not exist"),
        ("brainmri", "no", "no folder 'no'"),
        ("headct", "labels.csv", "labels.csv cannot be read"),
        ("headct", "head_ct/head_ct/003.png", "names 1 images that do not exist"),
        ("headct", "head_ct", "head_ct does not exist"),
        ("hyperkvasir", "labeled-images/upper-gi-tract/anatomical-landmarks/z-line", "z-line does not exist"),
        ("hyperkvasir", "labeled-images/upper-gi-tract", "no folder 'upper-gi-tract'"),
        ("lag", "suspicious_glaucoma/image", "image does not exist"),
    ],
)
def test_an_incomplete_copy_is_refused(name, spoil, says, tmp_path):
    build(name, tmp_path)
    (tmp_path / load_datasets()[name].folder / spoil).rename(tmp_path / "lost")
    with pytest.raises(DraError, match=says):
        load_catalog(name, tmp_path)


def test_classes_are_those_of_table_2():
    from dra_nb.experiments.published import published

    table = published("table2").query("dataset == 'hyperkvasir' and known_class != 'mean'")
    assert set(table.known_class) == set(load_datasets()["hyperkvasir"].classes)
