"COVE on textures with ImageNet features: it uses good labels, survives wrong ones, and its memory is bounded."

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from toys import SPLIT, STORE

from dra_nb.core import DraError
from dra_nb.evaluation.scoring import score
from dra_nb.methods.io import load_method, save_method
from dra_nb.methods.registry import create_method, method_schedule
from dra_nb.models.weights import PACKAGED
from dra_nb.training.compute import Compute
from dra_nb.training.loop import fit

CPU = Compute("cpu", "fp32")
pytest.importorskip("timm", reason='pip install "dra_nb[lite]"')
pytest.importorskip(next(iter(PACKAGED.values())).package, reason='pip install "dra_nb[lite]"')


@pytest.fixture(scope="module")
def wood():
    "Store of the wood of the textures, split of 60 normals and ten given anomalies, ten more normals, rows to test on"
    from dra_nb.data.datasets import load_catalog
    from dra_nb.data.protocols import make_split
    from dra_nb.data.store import open_store

    catalog = load_catalog("textures")
    split = make_split(catalog, shots=10, seed=0, category="wood")
    label = catalog.label.to_numpy()[split.test]
    spare, tested = np.split(split.test[label == 0], [10])
    normal = split.normal[:60]
    split = replace(split, normal=normal, references=split.references[np.isin(split.references, normal)])
    return open_store(catalog, 128, progress=False), split, spare, np.r_[tested, split.test[label == 1][::2]]


@pytest.fixture(scope="module")
def auroc(wood):
    store, split, _, test = wood
    truth = np.arange(len(test)) >= len(test) - 45

    def of(given):
        method = create_method("cove", "imagenet", "efficientnet_lite0", frozen=True)
        fit(method, store, replace(split, given=given), method_schedule("cove", {}), compute=CPU)
        found = score(method, store, test, compute=CPU)
        return roc_auc_score(truth, found.score), found

    return of


@pytest.fixture(scope="module")
def unsupervised(auroc, wood):
    return auroc(wood[1].given[:0])


@pytest.mark.slow
def test_given_anomalies_help(auroc, wood, unsupervised):
    with_ten, found = auroc(wood[1].given)
    assert with_ten > unsupervised[0] and with_ten > 0.97
    assert found.heads["residual"].max() > 1


def test_without_given_anomalies_it_is_its_unsupervised_part(auroc, wood, unsupervised):
    _, found = unsupervised
    assert not found.heads["residual"].any() and not found.heads["pooled"].any()
    _, taught = auroc(wood[1].given)
    parts = sum(taught.heads[view] for view in ("memory", "detail", "place", "shape"))
    np.testing.assert_allclose(found.score, parts, rtol=1e-4, atol=1e-4)


def test_normals_taken_for_anomalies_do_no_harm(auroc, wood, unsupervised):
    assert auroc(wood[2])[0] > unsupervised[0] - 0.02


@pytest.mark.slow
def test_one_wrong_label_among_ten_does_no_harm(auroc, wood):
    given = wood[1].given
    assert abs(auroc(np.r_[given[:9], wood[2][:1]])[0] - auroc(given[:9])[0]) < 0.02


def test_many_normals_stay_within_memory():
    "Patches are kept of at most `calibrated` normals, and of the pool"
    method = create_method("cove", backbone="resnet18_stage2", memory_size=40, pool=200, calibrated=12).eval()
    fit(method, STORE, SPLIT, method_schedule("cove", {}), compute=CPU)
    assert len(method.fitted_memory) == len(method.fitted_detail) == 40 and len(method.fitted_codes) == 12
    assert method.fitted_scores.shape == (12, 6)


def test_one_forward_pass_per_image(monkeypatch):
    method = create_method("cove", backbone="resnet18_stage2")
    fit(method, STORE, SPLIT, method_schedule("cove", {}), compute=CPU)
    seen = []
    monkeypatch.setattr(type(method.backbone), "stages", _counted(type(method.backbone).stages, seen))
    method.predict(torch.zeros(3, 3, 48, 48), maps=True)
    assert seen == [3]


def test_a_file_of_an_earlier_version_and_images_of_another_size_are_refused(tmp_path):
    method = create_method("cove", backbone="resnet18_stage2").eval()
    fit(method, STORE, SPLIT, method_schedule("cove", {}), compute=CPU)
    with pytest.raises(DraError, match="scale them to that size, or fit again"):
        method.predict(torch.zeros(3, 3, 64, 64))
    del method.fitted_places
    save_method(method, tmp_path / "old.safetensors")
    with pytest.raises(DraError, match="earlier version, without the view place: fit again"):
        load_method(tmp_path / "old.safetensors")


def _counted(stages, seen):
    def count(self, images):
        seen.append(len(images))
        return stages(self, images)

    return count
