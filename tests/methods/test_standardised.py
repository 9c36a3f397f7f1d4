"Heads on frozen features do not depend on the scale of the channels, where a method asks for that."

import numpy as np
import pytest
import torch
from conftest import in_tiers
from toys import SPLIT, STORE

from dra_nb.evaluation.scoring import score
from dra_nb.methods.encoder import PyramidEncoder
from dra_nb.methods.io import load_method, save_method
from dra_nb.methods.registry import create_method
from dra_nb.methods.schedule import Schedule
from dra_nb.training.compute import Compute
from dra_nb.training.loop import fit

COMPUTE = Compute("cpu", "fp32")
SHORT = Schedule(epochs=2, steps=4, batch=12, anomalies=4, decay_every=0)


def trained(name, **settings):
    "A method with a frozen backbone after a short training, and its test scores"
    size = dict(pool=24) if name == "ahl" else dict(bank_size=40)
    net = create_method(name, backbone="resnet18_stage2", frozen=True, **size, **settings)
    fit(net, STORE, SPLIT, SHORT, compute=COMPUTE)
    return net, score(net, STORE, SPLIT.test, compute=COMPUTE).score


def change_scale(monkeypatch):
    "Let backbones give their channels other means and deviations"
    encode = PyramidEncoder.__call__
    monkeypatch.setattr(PyramidEncoder, "__call__", lambda self, *inputs: (20 * m - 3 for m in encode(self, *inputs)))


@pytest.mark.parametrize("name", in_tiers(["devnet", "flos", "dra", "ahl"]))
def test_the_scale_of_channels_does_not_matter(name, monkeypatch):
    _, plain = trained(name)
    change_scale(monkeypatch)
    _, changed = trained(name)
    limit = 0.4 if name == "ahl" else 0.02  # stored in half precision; AHL clusters and trains on what it stored
    assert np.abs(changed - plain).max() < limit * plain.std()


@pytest.mark.parametrize("name", ["multiclass", "minns", "deep_sad"])
def test_others_see_features_as_they_are(name, monkeypatch):
    _, plain = trained(name)
    change_scale(monkeypatch)
    _, changed = trained(name)
    assert np.abs(changed - plain).max() > plain.std()


def test_the_scale_is_saved(tmp_path):
    net, scores = trained("ahl", base="devnet")
    save_method(net, tmp_path / "m.safetensors")
    loaded = load_method(tmp_path / "m.safetensors")
    assert torch.equal(loaded.base.channel_std_0, net.base.channel_std_0) and loaded.base.channel_std_1.std() > 0
    np.testing.assert_array_equal(score(loaded, STORE, SPLIT.test, compute=COMPUTE).score, scores)
