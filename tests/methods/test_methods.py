"Every registered method, whichever it is: it learns, it scores, it can be saved, it finds what anybody sees."

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from toys import OUTLIERS, SPLIT, STORE, fit_toys, new, short, trained

from dra_nb.core import DraError
from dra_nb.data.outliers import Outliers
from dra_nb.data.protocols import Split, make_split
from dra_nb.evaluation.scoring import score, score_columns
from dra_nb.methods.base import outlier_source
from dra_nb.methods.io import load_method, save_method
from dra_nb.methods.registry import create_method, load_methods, method_schedule
from dra_nb.methods.schedule import Schedule
from dra_nb.models.fused import folded
from dra_nb.training.batches import make_batch
from dra_nb.training.compute import Compute
from dra_nb.training.loop import fit
from dra_nb.training.samples import Samples


@pytest.fixture(params=sorted(load_methods()))
def name(request):
    return request.param


@pytest.fixture
def images():
    return next(Samples(STORE, SPLIT, Compute("cpu", "fp32")).batches(SPLIT.test[4:14]))


def test_entry(name):
    entry = load_methods()[name]
    assert (
        entry.name == name
        and entry.title
        and entry.paper
        and entry.needs
        and entry.supervision in ("few anomalies", "normals only")
    )
    assert isinstance(method_schedule(name, {}), Schedule)
    assert new(name).needs_anomalies == (entry.supervision == "few anomalies")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_learns_without_nan(name, precision):
    method, history = trained(name, precision)
    assert len(history.losses) == sum(s.epochs for _, s in method.stages(short(name)))
    assert all(np.isfinite(list(losses.values())).all() for losses in history.losses)
    assert all(p.isfinite().all() for p in method.parameters())
    scores = score_columns(score(method, STORE, SPLIT.test, compute=Compute("cpu", precision)))
    assert all(np.isfinite(s).all() and s.shape == (24,) for s in scores.values()) and scores["score"].std() > 0
    parts = [s for k, s in scores.items() if k != "score"]
    np.testing.assert_allclose(np.sum(parts, 0), scores["score"], rtol=2e-2, atol=2e-2)


@torch.enable_grad()
def test_every_parameter_learns(name):
    method, data = new(name), Samples(STORE, SPLIT, Compute("cpu", "fp32"), outliers=OUTLIERS)
    for stage, schedule in method.stages(short(name)):
        with torch.no_grad():
            method.begin(stage, data)
        method.train()
        if not schedule.epochs:
            continue
        g = torch.Generator().manual_seed(0)
        sampler = method.sampler(stage, SPLIT, schedule, g)
        optimiser = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=1e-3)
        for _ in range(3):  # some layers have no gradient before the first steps
            optimiser.zero_grad()
            sum(
                method.training_step(
                    make_batch(STORE, sampler.draw(), method, g, data.device, outliers=OUTLIERS) if sampler else None
                ).values()
            ).backward()
            optimiser.step()
        learners = [(n, p) for n, p in method.named_parameters() if p.requires_grad]
        assert learners and [n for n, p in learners if p.grad is None or not p.grad.isfinite().all()] == []
        assert sum(p.grad.abs().sum() > 0 for _, p in learners) > 0.9 * len(learners)


@torch.no_grad()
def test_scores_do_not_depend_on_the_batch(name, images):
    method, _ = trained(name)
    whole, alone = method.predict(images).score, torch.cat([method.predict(i[None]).score for i in images])
    torch.testing.assert_close(alone, whole, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(method.predict(images.flip(0)).score.flip(0), whole, rtol=1e-3, atol=1e-4)


def test_folded_it_scores_the_same(name):
    method, _ = trained(name)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded(method).backbone.modules())
    plain, quick = (
        score_columns(score(method, STORE, SPLIT.test, compute=Compute("cpu", "fp32"), fold=fold))
        for fold in (False, True)
    )
    for head, scores in plain.items():
        np.testing.assert_allclose(quick[head], scores, rtol=1e-3, atol=1e-4 * np.abs(scores).max())
    assert any(
        isinstance(m, torch.nn.BatchNorm2d) for m in method.backbone.modules()
    )  # the method itself stays as it is


@torch.no_grad()
def test_saved_and_loaded(name, tmp_path, images):
    method, _ = trained(name)
    save_method(method, tmp_path / "m.safetensors")
    loaded = load_method(tmp_path / "m.safetensors")
    assert not loaded.training
    torch.testing.assert_close(loaded.predict(images).score, method.predict(images).score, rtol=1e-4, atol=1e-5)
    other, _ = trained(name, seed=1)
    assert not torch.allclose(
        other.predict(images).score, method.predict(images).score, rtol=1e-4, atol=1e-5
    )  # the training was saved, not the seed


def test_same_seed_same_scores(name):
    again = new(name)
    fit_toys(again, short(name), Compute("cpu", "fp32"))
    np.testing.assert_array_equal(
        *(score(m, STORE, SPLIT.test, compute=Compute("cpu", "fp32")).score for m in (again, trained(name)[0]))
    )


@torch.no_grad()
def test_score_map(name, images):
    method, _ = trained(name)
    if not load_methods()[name].maps:
        assert not method.has_maps
        with pytest.raises(DraError, match="no score map"):
            method.predict(images, maps=True)
        return
    maps = method.predict(images, maps=True).map
    assert maps.ndim == 3 and len(maps) == len(images) and maps.isfinite().all() and maps.flatten(1).std(1).gt(0).all()


@pytest.fixture(scope="module")
def wood():
    "The wood of the embedded textures: catalog, store and split with ten given anomalies of any class"
    from dra_nb.data.datasets import load_catalog
    from dra_nb.data.store import open_store

    catalog = load_catalog("textures")
    return catalog, open_store(catalog, 40, progress=False), make_split(catalog, shots=10, seed=2, category="wood")


LEARN_LATE = ("deep_sad", "flos", "kdad", "multiclass", "saoe")  # find a hole after 100 steps, the others after 50


@pytest.mark.slow
def test_sees_a_hole(name, wood):
    "From random weights, in fp32 so that all machines do the same: holes in wood score above the normals"
    catalog, store, split = wood
    whole = {"kdad": dict(lam=0.01), "ahl": {}}  # the values of random features tell little; AHL as it is
    method = create_method(name, backbone="resnet18_stage2", **whole[name]) if name in whole else new(name)
    rows = np.flatnonzero((catalog.category == "weave") & (catalog.split == "train"))
    epochs = 10 if name in LEARN_LATE else 5
    schedule = Schedule(
        **{
            **method_schedule(name, {}).shortened(epochs=epochs, steps=10, batch=18).__dict__,
            "lr": 1e-3,
            "decay_every": 0,
        }
    )
    fit(
        method,
        store,
        split,
        schedule,
        compute=Compute("cpu", "fp32"),
        outliers=Outliers(store, rows) if outlier_source(method) else None,
    )
    classes = catalog.defect.to_numpy()[split.test]
    keep = np.isin(classes, ["", "hole"])
    auroc = roc_auc_score(
        classes[keep] == "hole", score(method, store, split.test, compute=Compute("cpu", "fp32")).score[keep]
    )
    assert auroc > 0.75, auroc


def test_refuses_what_cannot_work():
    cpu = Compute("cpu")

    def says(word, f, *args, **kw):
        with pytest.raises(DraError, match=word):
            f(*args, **kw)

    none = Split(SPLIT.normal, np.array([], int), SPLIT.references, SPLIT.test, np.zeros(24, bool), "")
    for name, entry in load_methods().items():
        if entry.supervision == "few anomalies" and not new(name).optional_anomalies:
            says("given anomalies", fit, new(name), STORE, none, short(name), compute=cpu)
        else:
            fit(new(name), STORE, none, short(name, epochs=1), compute=cpu)
        says("setting", create_method, name, hedas=1)
    wanting = create_method("dra", backbone="resnet18_stage2", n_reference=31)
    says("n_reference", fit, wanting, STORE, SPLIT, short("dra"), compute=cpu)
    says("unknown loss", create_method, "dra", loss="hinge")
    says("outliers=", fit, new("saoe"), STORE, SPLIT, short("saoe"), compute=cpu)
    whole = create_method("dra", backbone="resnet18_stage2", heads=("normality",)).eval()
    says("no score map", whole.predict, torch.zeros(1, 3, 64, 64), maps=True)
