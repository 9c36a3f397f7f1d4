"A user's own images in folders: pairs, names, and what is said when something is wrong with them."

import pytest
from conftest import mvtec_folder
from in_process import call
from own_files import NORMALS, counts, listing, touch
from raw_layouts import shuffled_copy

from dra_nb.core import DraError
from dra_nb.data.catalog import fingerprint, relative_paths, split_normals
from dra_nb.data.datasets import load_catalog
from dra_nb.data.protocols import make_split
from dra_nb.data.readers.own import read_own


@pytest.mark.parametrize("normal", ["normal", "Normals", "GOOD"])
@pytest.mark.parametrize("anomaly", ["anomalies", "Anomaly", "defects", "bad"])
def test_pair_names(normal, anomaly, tmp_path):
    touch(
        tmp_path / "p",
        *(f"{normal}/{o}" for o in NORMALS),
        f"{anomaly}/x.JPEG",
        f"{anomaly}/y.TIF",
        f"{anomaly}/readme.txt",
    )
    catalog = load_catalog("p", tmp_path)
    assert counts(catalog) == {("train", ""): 7, ("test", ""): 3, ("test", "anomaly"): 2}
    assert {p.split("/")[1]: s for p, s in zip(relative_paths(catalog), catalog.split) if p.startswith(normal)} == dict(
        zip(NORMALS, split_normals(10))
    )


def test_pair_with_classes_and_masks(tmp_path):
    touch(
        tmp_path,
        *(f"normal/{o}" for o in NORMALS),
        "anomalies/dent/a.png",
        "anomalies/dent/b.png",
        "anomalies/rust/a.png",
        "masks/dent/a_mask.png",
        "masks/rust/a.bmp",
    )
    catalog = read_own(tmp_path)
    masks = {
        p: m and m.removeprefix(catalog.attrs["root"] + "/")
        for p, m in zip(relative_paths(catalog), catalog["mask"])
        if p.startswith("anomalies")
    }
    assert masks == {
        "anomalies/dent/a.png": "masks/dent/a_mask.png",
        "anomalies/dent/b.png": None,
        "anomalies/rust/a.png": "masks/rust/a.bmp",
    }
    assert (
        sorted(set(catalog.defect)) == ["", "dent", "rust"]
        and len(make_split(catalog, "hard", "dent", shots=1).test) == 4
    )


def test_pair_does_not_depend_on_the_file_system(tmp_path):
    touch(
        tmp_path / "a",
        *(f"normal/{o}" for o in NORMALS),
        *(f"anomalies/{k}/{i}.png" for k in ("dent", "rust") for i in range(6)),
    )
    tables = [read_own(shuffled_copy(tmp_path / "a", tmp_path / str(seed), seed)) for seed in (1, 2)]
    assert relative_paths(tables[0]) == relative_paths(tables[1]) and tables[0].drop(columns="path").equals(
        tables[1].drop(columns="path")
    )
    assert (make_split(tables[0], shots=3).given == make_split(tables[1], shots=3).given).all()
    assert fingerprint(tables[0], times=False) == fingerprint(tables[1], times=False)


@pytest.mark.parametrize(
    "files, says",
    [
        ([f"normal/{i}.png" for i in range(4)], "has no anomalies: at least one is needed"),
        (["bad/a.png"], "no normal images to train on"),
        (["normal/a.png", "bad/x/a.png", "bad/b.png"], "'b.png' lies directly in"),
        (["normal/a.png", "normal/old/b.png", "bad/a.png"], "'old', whose images would not be used"),
        (["normal/a.png", "normal/b.png", "good/a.png", "bad/a.png"], "good and normal, which mean the same"),
        (
            ["normal/a.png", "normal/b.png", "bad/a.png", "masks/b.png"],
            "1 of 1 masks belong to no anomaly: masks/b.png",
        ),
        (["pictures/a.png"], "Either MVTec layout"),
        (["a.png"], "Either MVTec layout"),
    ],
)
def test_pair_errors(files, says, tmp_path):
    with pytest.raises(DraError, match=says):
        read_own(touch(tmp_path, *files))


def test_what_a_name_stands_for(tmp_path):
    mvtec_folder(tmp_path / "board", n_train=3, n_test=1, classes={"hole": 2})
    touch(tmp_path / "shots", *NORMALS)
    listing(tmp_path, *(f"shots/{o},{int(i > 7)}" for i, o in enumerate(NORMALS)), name="shots.csv")
    touch(tmp_path / "kept" / "i", *NORMALS)
    listing(tmp_path / "kept", *(f"i/{o},{int(i > 7)}" for i, o in enumerate(NORMALS)), name="labels.csv")
    assert [len(load_catalog(o, tmp_path)) for o in ("board", "shots", "shots.csv", "kept")] == [6, 10, 10, 10]
    for name in ("board", "shots.csv", "kept"):
        assert load_catalog(name, tmp_path).attrs["dataset"] == name
    with pytest.raises(DraError, match="unknown dataset 'boards'. Did you mean 'board'"):
        load_catalog("boards", tmp_path)


def test_the_data_folder_is_a_file(tmp_path):
    file = listing(tmp_path, "a.png,0")
    for name in ("elpv", "mine"):
        with pytest.raises(DraError, match="parts.csv is a file, not a folder; pass the folder that holds it"):
            load_catalog(name, file)
        with pytest.raises(DraError, match="nowhere does not exist"):
            load_catalog(name, tmp_path / "nowhere")
    status, _, message = call("run", "mine", "--data", file, "--method", "devnet", "--out", tmp_path / "out")
    assert status == 2 and "is a file, not a folder" in message
