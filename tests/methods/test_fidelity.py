"""DRA against the network and the training step of the authors' released code: scores, losses, gradients, three steps.

released_dra.json holds numbers that were computed with the released code in float64 on a CPU. The file says by which
formula weights, images and the prior of the deviation loss are made: a comparison needs nothing but its numbers."""

import json
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from dra_nb.data.protocols import Split
from dra_nb.methods.base import Batch
from dra_nb.methods.dra import HEADS
from dra_nb.methods.registry import create_method, method_schedule
from dra_nb.training.compute import Compute
from dra_nb.training.loop import train_step
from dra_nb.training.samples import Samples
from dra_nb.training.state import TrainingRun

RELEASED = json.loads((Path(__file__).parent / "released_dra.json").read_text(encoding="utf-8"))
CASES = pytest.mark.parametrize("case", RELEASED["cases"], ids=lambda case: f"{case['px']} px")
PAPER = [48124, 49837, 48973, 10, 10, 10]  # sums of drawn rows of three batches, then of their references
CHANCE = [48124, 51481, 49099, 3137, 1816, 3917]
ELPV = Split(np.arange(1131), np.arange(2000, 2010), np.arange(1131), np.array([3000]), np.array([False]))


def wave(name, *shape):
    "The numbers of the formula, float64"
    i = torch.arange(int(np.prod(shape)), dtype=torch.float64)
    return torch.sin(1 + 12.9898 * i + zlib.crc32(name.encode()) % 1000).reshape(shape)


def by_formula(own, tensor):
    "The value of a parameter or buffer of this package; the formula has names of its own"
    name = own.replace("backbone.body.", "backbone.").removeprefix("heads.")
    module, _, kind = name.rpartition(".")
    values = wave(name, *tensor.shape)
    if kind == "running_var":
        return 1 + 0.5 * values.abs()
    if kind == "weight" and tensor.ndim == 1:
        return 1 + 0.1 * values
    if kind in ("bias", "running_mean"):
        return 0.1 * values
    return values * (2 / np.prod(tensor.shape[1:])) ** 0.5


@pytest.fixture
def net(monkeypatch):
    "DRA of the preset `released`, filled by the formula, all of it in float64; the prior is that of the file"
    net = create_method("dra", preset="released").to(torch.float64)
    for name, tensor in net.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            tensor.copy_(by_formula(name, tensor))
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor.double())  # heads and losses compute in float32
    monkeypatch.setattr(torch, "randn", lambda n, **kw: 1.5 * wave("prior", n))
    return net


def close(ours, theirs, rtol):
    np.testing.assert_allclose(ours, theirs, rtol=rtol)


def images(case, what, n):
    return wave(case[what], n, 3, case["px"], case["px"])


@torch.no_grad()
def evaluation(net, case):
    "Raw scores of the heads, and the anomaly score"
    net.eval()
    net.set_references(images(case, "references", 5))
    found = net.predict(images(case, "images", case["batch"]))
    return {h: v.abs() if h == "normality" else v for h, v in found.heads.items()} | {"score": found.score}


def test_prior():
    prior = 1.5 * wave("prior", 5000)
    close([prior.mean(), prior.std()], [RELEASED["prior_mean"], RELEASED["prior_std"]], 1e-9)


@CASES
def test_scores(net, case):
    found = evaluation(net, case)
    assert set(found) == set(case["evaluation"]) == {*HEADS, "score"}
    for head, theirs in case["evaluation"].items():
        close(found[head], theirs, 1e-9)


@pytest.mark.slow
@CASES
def test_three_steps(net, case, monkeypatch):
    "The optimiser steps of the training loop with the schedule of the preset, the same batch each time"
    data = Samples(None, ELPV, Compute("cpu", "fp32"))
    run = TrainingRun(net, data, [("train", method_schedule("dra", {}))])
    run.next_epoch()
    run.stage.set_learning_rate()
    norms, clip = [], torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *a, **kw: norms.append(float(clip(*a, **kw))))
    labels = torch.tensor(case["labels"])
    batch = Batch(images(case, "images", case["batch"]), labels, images(case, "references", 5))
    for step, theirs in enumerate(case["training"]["losses"]):
        losses = train_step(run, batch)
        assert set(losses) == set(theirs)
        for head, loss in theirs.items():
            close(float(losses[head]), loss, 1e-8 if not step else 1e-6)
    close(norms, case["training"]["gradient_norm_before_clipping"], 1e-6)
    found = evaluation(net, case)
    for head, theirs in case["training"]["evaluation_after"].items():
        close(found[head], theirs, 1e-6)


# ------------------------------------------------------------------ what a training draws


def drawn(**settings):
    "The 600 batches of a whole training on as many images as ELPV has"
    method, schedule = create_method("dra", **settings), method_schedule("dra", settings)
    sampler = method.sampler("train", ELPV, schedule, torch.Generator().manual_seed(0))
    return [sampler.draw() for _ in range(schedule.epochs * schedule.steps)]


def spread(rows, n):
    "The smallest and the largest number of times that one of n rows is used"
    counts = Counter(rows.tolist())
    return (min(counts.values()) if len(counts) == n else 0, max(counts.values()))


def test_released_draws_in_passes():
    batches = drawn()
    rows = torch.cat([b.rows for b in batches])
    assert len(batches) == 600 and len(rows) == 600 * 48
    assert spread(rows[rows < 2000], 1131) == (16, 17)
    assert spread(rows[rows >= 2000], 10) == (960, 960)
    references = torch.cat([b.references for b in batches])
    assert spread(references, 1131) == (2, 3)
    for part, n in ((rows[rows < 2000], 1131), (references, 1131), (rows[rows >= 2000], 10)):
        whole = part[: len(part) // n * n].view(-1, n).sort(1).values
        assert (whole == whole[0]).all() and whole[0].unique().numel() == n, "each once before any twice"
        assert not torch.equal(part[:n], part[n : 2 * n]), "in a new order each time"


def test_half_of_the_normals_of_a_pass_become_pseudo_anomalies():
    labels = torch.cat([b.labels for b in drawn()])
    assert (labels == 1).sum() == 9600 and abs((labels == 2).sum() - 9600) < 5 * 70


def test_preset_paper_draws_by_chance():
    rows = torch.cat([b.rows for b in drawn(preset="paper")])
    low, high = spread(rows[rows < 2000], 1131)
    assert low < 12 and high > 24
    assert all(b.references.tolist() == list(range(5)) for b in drawn(preset="paper")[:3])


def test_draws_of_other_presets_are_those_of_0_1():
    "Sums over the rows of the first batches; records of runs depend on them"
    for settings, sums in (({"preset": "paper"}, PAPER), ({"draws": "chance", "preset": "released"}, CHANCE)):
        batches = drawn(**settings)[:3]
        assert [int(b.rows.sum()) for b in batches] + [int(b.references.sum()) for b in batches] == sums


@pytest.mark.parametrize("epochs", [3, 10, 15, 20, 30, 60])
def test_shortened_schedule_keeps_the_shares_of_its_levels(epochs):
    whole = method_schedule("dra", {})
    short = whole.shortened(epochs=epochs)
    full = [sum(s.lr_at(e) == s.lr for e in range(s.epochs)) for s in (whole, short)]
    assert full[0] == 9 and abs(full[1] - 0.3 * epochs) <= 0.5
    if epochs == 10:
        assert full[1] == 3
