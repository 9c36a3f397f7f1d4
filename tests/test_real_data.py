"Datasets as their authors publish them (a folder with them is needed, see `shared` in conftest.py)."

import json
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import short_spec

from dra_nb.data.datasets import load_catalog
from dra_nb.data.protocols import make_split


@pytest.fixture(scope="module")
def elpv(shared):
    return load_catalog("elpv", shared / "data")


def counts(catalog):
    return catalog.groupby(["split", "label", "defect"]).size().to_dict()


def test_elpv_counts(elpv):
    assert counts(elpv) == {
        ("train", 0, ""): 1131,
        ("test", 0, ""): 377,
        ("test", 1, "mono"): 313,
        ("test", 1, "poly"): 402,
    }
    assert all(Path(p).is_file() for p in elpv.path) and elpv.path.is_unique


def test_brainmri_counts(shared):
    assert counts(load_catalog("brainmri", shared / "data")) == {
        ("train", 0, ""): 73,
        ("test", 0, ""): 25,
        ("test", 1, "tumor"): 155,
    }


def test_aitex_at_half_resolution(shared):
    "Strips of 2048 x 128 pixels give the tiles of 4096 x 256; two strips more have a mark than the paper counts"
    catalog = load_catalog("aitex", shared / "data")
    assert catalog.groupby(["split", "label"]).size().to_dict() == {
        ("train", 0): 1692,
        ("test", 0): 564,
        ("test", 1): 185,
    }
    assert {box[3] for box in catalog.box} == {128} and {box[0] % 128 for box in catalog.box} == {0}
    assert catalog["mask"].notna().sum() == 185 and catalog.defect.nunique() == 13


def test_mvtec_counts(shared):
    "Two of the fifteen categories"
    found = load_catalog("mvtec", shared / "data").groupby(["category", "split", "label"]).size().to_dict()
    bottle = {("bottle", "train", 0): 209, ("bottle", "test", 0): 20, ("bottle", "test", 1): 63}
    assert found == bottle | {("pill", "train", 0): 267, ("pill", "test", 0): 26, ("pill", "test", 1): 141}


def test_elpv_general(elpv):
    one, ten = (make_split(elpv, "general", shots=n, seed=1) for n in (1, 10))
    assert np.array_equal(one.test, ten.test) and len(ten.test) == 377 + 715 - 10
    assert len(one.given) == 1 and len(ten.given) == 10 and one.given[0] in ten.given
    assert not set(ten.given) & set(ten.test) and (elpv.label.iloc[ten.given] == 1).all()
    assert len(ten.normal) == 1131 and not set(ten.normal) & set(ten.test)
    other = make_split(elpv, "general", shots=10, seed=2)
    assert set(other.given) != set(ten.given) and np.array_equal(other.normal, ten.normal)


@pytest.mark.parametrize("known, unseen", [("mono", "poly"), ("poly", "mono")])
def test_elpv_hard(elpv, known, unseen):
    one, ten = (make_split(elpv, "hard", known, shots=n, seed=1) for n in (1, 10))
    n = {"mono": 313, "poly": 402}
    assert np.array_equal(one.test, ten.test) and len(ten.test) == 377 + n[unseen]
    assert set(elpv.defect.iloc[ten.given]) == {known} and set(elpv.defect.iloc[ten.test]) == {"", unseen}
    assert not ten.seen.any()


def test_brainmri_has_no_hard_setting(shared):
    from dra_nb.core import DraError

    with pytest.raises(DraError, match="two anomaly classes"):
        make_split(load_catalog("brainmri", shared / "data"), "hard", "tumor")


@pytest.mark.slow
def test_a_short_run_on_elpv(shared, tmp_path):
    from dra_nb.experiments.context import RunContext
    from dra_nb.experiments.execution import check_runs, execute
    from dra_nb.experiments.records import Runs
    from dra_nb.methods.schedule import Schedule
    from dra_nb.models.backbone import weights_id

    weights = str(shared / "weights" / "resnet18_tinyimagenet.safetensors")
    spec = short_spec(
        "elpv",
        method="dra",
        shots=10,
        schedule=Schedule(epochs=2, steps=3, batch=6, anomalies=2),
        backbone="resnet18",
        weights=weights_id(weights),
    )
    place, runs = RunContext(str(shared / "data"), weights), Runs(tmp_path / "runs")
    check_runs([spec], place)
    metrics = execute(spec, place, runs)
    assert 0 < metrics["auroc"] < 1 and math.isfinite(metrics["ap"])
    assert (metrics["n_normal"], metrics["n_seen"] + metrics["n_unseen"]) == (377, 705)

    text = runs.path(spec.key).read_text()
    assert "/" + Path.cwd().parts[1] not in text and str(shared) not in text and str(tmp_path) not in text
    record, table = json.loads(text), runs.scores(spec)
    origin = record["provenance"]
    noted = (
        "version commit python platform torch torchvision numpy pandas scikit-learn "
        "device precision finished dataset weights losses"
    )
    assert [k for k in noted.split() if k not in origin] == []
    import torch

    import dra_nb

    assert (
        origin["version"] == dra_nb.__version__
        and torch.__version__.startswith(origin["torch"])
        and origin["device"]
        and len(origin["dataset"]) == 16
    )
    assert origin["weights"].startswith("resnet18_tinyimagenet-") and len(origin["losses"]) == 2
    assert list(table.path) == sorted(table.path) and set(table.path.str[:7]) == {"images/"}

    from sklearn.metrics import roc_auc_score  # the metric, from the table alone

    assert roc_auc_score(table.label, table.score) == pytest.approx(metrics["auroc"])
    heads = table.filter(regex="^score_").sum(axis=1)
    assert table.filter(regex="^score_").shape[1] == 4 and np.allclose(heads, table.score, rtol=2e-2, atol=2e-2)
