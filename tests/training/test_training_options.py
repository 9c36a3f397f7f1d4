"Options of a training: batches, micro-batches, memory that runs out, torch.compile, determinism, frozen backbone."

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import in_tiers
from torch.overrides import TorchFunctionMode
from toys import OUTLIERS, SPLIT, STORE, new, short

from dra_nb.core import DraError
from dra_nb.evaluation.scoring import score
from dra_nb.experiments.spec import RunSpec
from dra_nb.methods.base import Method, Prediction
from dra_nb.methods.registry import create_method, load_methods, method_schedule
from dra_nb.methods.schedule import Schedule
from dra_nb.models.losses import LOSSES
from dra_nb.training.batches import draw_batches, make_batch
from dra_nb.training.compute import Compute, check_compute, reproducible
from dra_nb.training.loop import fit
from dra_nb.training.micro_batches import max_chunks, split_gradients
from dra_nb.training.samples import Samples, open_samples
from dra_nb.training.state import TrainingRun, begin_stage
from dra_nb.training.tuning import fine_tune

CPU, META = torch.device("cpu"), torch.device("meta")
SHORT = Schedule(epochs=2, steps=3, batch=12, anomalies=4, lr=1e-3, decay_every=0)


def small(**settings):
    return create_method("dra", backbone="resnet18_stage2", **settings)


class Copies(TorchFunctionMode):
    "Counts the copies from the CPU to `meta`, and notes those that would wait for the device"

    def __init__(self):
        super().__init__()
        self.n, self.waits = 0, []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        if function is torch.Tensor.to and args[0].device == CPU and out.device == META:
            self.n += 1
            if not (kwargs or {}).get("non_blocking"):
                self.waits.append(args[0].shape)
        return out


@pytest.mark.parametrize("name", sorted(n for n in load_methods() if new(n).needs_steps))
def test_no_step_waits_for_the_device(name):
    "A tensor on `meta` has no values: whatever asks for one fails; and whatever goes there does so without waiting"
    method, g = new(name), torch.Generator().manual_seed(0)
    stage, schedule = method.stages(short(name))[0]
    with torch.no_grad():
        method.begin(stage, Samples(STORE, SPLIT, Compute("cpu", "fp32"), outliers=OUTLIERS))
    sampler = method.train().sampler(stage, SPLIT, schedule, g)
    method.to(META)
    with Copies() as copies:
        batch = make_batch(STORE, sampler.draw(), method, g, META, outliers=OUTLIERS)
        sum(method.training_step(batch).values()).backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)
    assert copies.waits == [] and copies.n > 0
    assert batch.images.device == META and any(p.grad is not None for p in method.parameters())


def test_a_step_that_waits_is_found():
    "The check above can fail"
    method, g = small().to(META), torch.Generator().manual_seed(0)
    batch = make_batch(STORE, method.sampler("train", SPLIT, SHORT, g).draw(), method, g, META)
    with Copies() as copies:
        torch.zeros(3).to(META), torch.zeros(2).to(META, non_blocking=True)
    assert (copies.n, copies.waits) == (2, [(3,)])
    for waits in (
        lambda: float(method.training_step(batch)["seen"]),
        lambda: batch.images[batch.labels == 1],
        lambda: bool((batch.labels == 1).any()),
    ):
        with pytest.raises((RuntimeError, NotImplementedError)):
            waits()


def test_rows_are_read_ahead_in_order(monkeypatch):
    "Batches are those of a loop that draws and reads one after the other, whichever thread reads them"
    run = TrainingRun(small(), Samples(STORE, SPLIT, Compute("cpu", "fp32")), [("train", SHORT)], seed=1)
    run.enter(0)
    ahead = list(draw_batches(run.stage.sampler, run.method, run.data, run.augmentation, 5, ahead=True))
    draws, augment = (torch.Generator().manual_seed(i) for i in (2, 3))
    sampler = run.method.sampler("train", SPLIT, SHORT, draws)
    for batch in ahead:
        plain = make_batch(STORE, sampler.draw(), run.method, augment, CPU)
        assert (
            torch.equal(batch.images, plain.images)
            and torch.equal(batch.labels, plain.labels)
            and torch.equal(batch.references, plain.references)
        )
    assert torch.equal(draws.get_state(), run.draws.get_state()), "no batch is drawn that nobody trains on"


def test_a_file_that_cannot_be_read_ends_the_training():
    class Broken:
        size = STORE.size

        def __getitem__(self, rows):
            raise OSError("the disk has gone")

    with pytest.raises(OSError, match="the disk has gone"):
        fit(small(), Broken(), SPLIT, SHORT, compute=Compute("cpu", "fp32"))


@pytest.mark.parametrize(
    "name, n, batch, anomalies",
    [
        ("flos", 2, 12, 4),
        ("dra", 4, 12, 4),
        ("dra", 3, 10, 3),
        ("multiclass", 3, 10, 3),
        ("saoe", 4, 12, 4),
        ("deep_sad", 3, 10, 3),
        ("mlep", 3, 10, 3),
        ("ahl", 3, 10, 3),
    ],
)
def test_accumulated_gradients_are_those_of_the_batch(name, n, batch, anomalies):
    "Without batch statistics (evaluation mode), draws of a prior, MLEP's pairs; counts of labels do not divide"
    how, g = {"dra": dict(loss="focal"), "mlep": dict(weight=0.0)}.get(name, {}), torch.Generator().manual_seed(0)
    method = new(name, **how)
    if name == "ahl":
        method.base.loss = LOSSES["focal"]
    stage, schedule = method.stages(replace(SHORT, batch=batch, anomalies=anomalies))[0]
    with torch.no_grad():
        method.eval().begin(stage, Samples(STORE, SPLIT, Compute("cpu", "fp32"), outliers=OUTLIERS))
    drawn = make_batch(STORE, method.sampler(stage, SPLIT, schedule, g).draw(), method, g, CPU, outliers=OUTLIERS)
    found = []
    for parts in (1, n):
        method.zero_grad()
        losses, _ = split_gradients(
            method,
            method.training_step,
            drawn,
            chunks=parts,
            most=parts,
            autocast=lambda: torch.autocast("cpu", enabled=False),
        )
        grads = [p.grad.flatten() for p in method.parameters() if p.grad is not None]
        found.append(torch.cat(grads + [v[None] for v in losses.values()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)


def test_gradients_of_a_graph_have_a_place_of_their_own():
    "A compiled step may write its gradients where its next run writes"
    method, seen = small(loss="focal"), []

    def compute(batch):
        seen.append([p.grad is None for p in method.parameters()])
        return method.training_step(batch)

    batch = make_batch(
        STORE,
        method.sampler("train", SPLIT, SHORT, torch.Generator().manual_seed(0)).draw(),
        method,
        torch.Generator().manual_seed(0),
        CPU,
    )
    for n in (1, 2):
        split_gradients(method, compute, batch, chunks=n, most=n, autocast=lambda: torch.autocast("cpu", enabled=False))
    assert all(seen[0]) and not any(seen[1]) and not any(seen[2])


def test_portions_are_part_of_the_schedule_and_of_a_records_name():
    plain, cut = RunSpec("x"), RunSpec("x", schedule=Schedule(accumulate=4))
    assert plain.key != cut.key and plain.key == "e81639516f62706f"  # as before there was such a field
    assert (
        Schedule(accumulate=2).shortened(batch=8).accumulate == 2 and max_chunks(48, 16) == 16 and max_chunks(8, 0) == 8
    )
    for bad in (0, 5, 1.5):
        with pytest.raises(DraError, match="accumulate"):
            fit(small(), STORE, SPLIT, replace(SHORT, accumulate=bad), compute=Compute("cpu", "fp32"))


def failing(method, above):
    "Let steps of more images run out of memory, the third one and later"
    real, calls = method.training_step, []

    def step(batch):
        calls.append(len(batch.images))
        if len(calls) > 2 and len(batch.images) > above:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return real(batch)

    method.training_step = step
    return method, calls


def test_memory_runs_out():
    method, calls = failing(small(), 6)
    with pytest.raises(DraError, match="out of memory .* 12 images of .*accumulate=2.*split_on_oom"):
        fit(method, STORE, SPLIT, SHORT, compute=Compute("cpu", "fp32"))
    method, calls = failing(small(), 6)
    history = fit(method, STORE, SPLIT, SHORT, compute=Compute("cpu", "fp32"), split_on_oom=True)
    assert history.portions == 2 and calls == [12, 12, 12] + [6, 6] * 4 and history.images == 6 * 12
    assert np.isfinite(score(method, STORE, SPLIT.test, compute=Compute("cpu", "fp32")).score).all()
    with pytest.raises(DraError, match="4 chunk"):
        fit(failing(small(), 2)[0], STORE, SPLIT, SHORT, compute=Compute("cpu", "fp32"), split_on_oom=True)


def test_the_number_of_portions_survives_an_interruption(tmp_path):
    whole = fit(failing(small(), 6)[0], STORE, SPLIT, SHORT, compute=Compute("cpu", "fp32"), split_on_oom=True)
    method, calls = failing(small(), 6)
    real = method.training_step

    def stop(batch):
        if len(calls) >= 7:
            raise KeyboardInterrupt
        return real(batch)

    method.training_step = stop
    with pytest.raises(KeyboardInterrupt):
        fit(
            method,
            STORE,
            SPLIT,
            SHORT,
            compute=Compute("cpu", "fp32"),
            split_on_oom=True,
            checkpoint=tmp_path / "c",
            checkpoint_every=1,
        )
    later = fit(
        failing(small(), 6)[0],
        STORE,
        SPLIT,
        SHORT,
        compute=Compute("cpu", "fp32"),
        split_on_oom=True,
        checkpoint=tmp_path / "c",
        checkpoint_every=1,
    )
    assert later.portions == 2 and later.losses == whole.losses


class Tiny(Method):
    "A method that is compiled within seconds"

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3, stride=4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(1)
        )
        with torch.no_grad():
            self.net(torch.zeros(1, 3, STORE.size, STORE.size))

    def training_step(self, batch):
        return {
            "a": torch.nn.functional.binary_cross_entropy_with_logits(
                self.net(batch.images).squeeze(1), (batch.labels > 0).float()
            )
        }

    def predict(self, images, maps=False):
        return Prediction.from_heads({"a": self.net(images).squeeze(1)})


@pytest.mark.slow
def test_compiled():
    plain, fast = (
        fit(m, STORE, SPLIT, SHORT, compute=Compute("cpu", "fp32", compile=c)).losses
        for m, c in ((Tiny(), ""), (Tiny(), "default"))
    )
    assert plain != [] and np.allclose([o["a"] for o in fast], [o["a"] for o in plain], rtol=1e-3)
    with pytest.raises(DraError, match="mode of torch.compile"):
        fit(Tiny(), STORE, SPLIT, SHORT, compute=Compute("cpu", compile="fastest"))


@pytest.mark.slow
def test_no_compiler_is_said(monkeypatch):
    monkeypatch.setenv("CXX", "/no/such/compiler")
    torch._dynamo.reset()
    broken = {"cpp.cxx": ("/no/such/compiler",), "force_disable_caches": True}
    with torch._inductor.config.patch(broken), pytest.raises(DraError, match='compile=""'):
        fit(Tiny(), STORE, SPLIT, SHORT, compute=Compute("cpu", "fp32", compile="default"))


def test_deterministic_mode_is_given_back_and_refuses_what_it_must(monkeypatch):
    class Random(Tiny):
        def training_step(self, batch):
            assert torch.are_deterministic_algorithms_enabled()
            return super().training_step(batch) | {
                "b": self.net[0].weight.flatten().put(torch.tensor([0]), torch.ones(1), accumulate=False).sum() * 0
            }

    with pytest.raises(RuntimeError, match="deterministic"):
        fit(Random(), STORE, SPLIT, SHORT, compute=Compute("cpu", "fp32", deterministic=True))
    assert not torch.are_deterministic_algorithms_enabled()
    runs = [fit(small(), STORE, SPLIT, SHORT, compute=Compute("cpu", deterministic=True)).losses for _ in range(2)]
    assert runs[0] == runs[1]
    with pytest.raises(DraError, match="CUBLAS_WORKSPACE_CONFIG"), reproducible(torch.device("cuda")):
        pass
    check_compute(Compute("cpu", deterministic=True))
    monkeypatch.setattr(Compute, "resolve", lambda self: torch.device("cuda"))
    with pytest.raises(DraError, match="CUBLAS_WORKSPACE_CONFIG"):  # before a study begins, not in its first run
        check_compute(Compute("cuda", "fp32", deterministic=True))


@pytest.mark.parametrize("name", ["dra", "devnet", "flos"])
def test_frozen(name, tmp_path):
    "Learns, leaves the backbone alone, goes on from a checkpoint to the same bits, can be tuned"

    def frozen():
        return create_method(name, backbone="resnet18_stage2", frozen=True, bank_size=24)

    method = frozen()
    before = {k: v.clone() for k, v in method.backbone.state_dict().items()}
    schedule = replace(SHORT, epochs=6)
    whole = fit(method, STORE, SPLIT, schedule, compute=Compute("cpu", "fp32"))
    seen = [losses["seen"] for losses in whole.losses]  # means over three steps
    assert sum(seen[-2:]) < sum(seen[:2])
    assert all(torch.equal(v, before[k]) for k, v in method.backbone.state_dict().items())
    stopped, steps = frozen(), []
    inner = stopped.training_step

    def step(batch):
        if len(steps) == 7:
            raise KeyboardInterrupt
        steps.append(1)
        return inner(batch)

    stopped.training_step = step
    with pytest.raises(KeyboardInterrupt):
        fit(
            stopped,
            STORE,
            SPLIT,
            schedule,
            compute=Compute("cpu", "fp32"),
            checkpoint=tmp_path / "c",
            checkpoint_every=1,
        )
    later = frozen()
    assert (
        fit(
            later, STORE, SPLIT, schedule, compute=Compute("cpu", "fp32"), checkpoint=tmp_path / "c", checkpoint_every=1
        ).losses
        == whole.losses
    )
    np.testing.assert_array_equal(
        *(score(m, STORE, SPLIT.test, compute=Compute("cpu", "fp32")).score for m in (later, method))
    )
    head = [p.clone() for p in method.heads.parameters()]
    fine_tune(method, STORE, replace(SPLIT, given=np.array([], int)), schedule, compute=Compute("cpu", "fp32"))
    assert any(not torch.equal(a, b) for a, b in zip(head, method.heads.parameters()))


def test_frozen_draws_as_the_sampler_does():
    "Batches from features have the rows and labels that batches of images have"
    method = create_method("dra", backbone="resnet18_stage2", frozen=True, bank_size=60)
    data = open_samples(method, STORE, SPLIT, Compute("cpu", "fp32"))
    schedule = Schedule(batch=48, anomalies=16)
    stage = begin_stage(method, data, "train", schedule, torch.Generator().manual_seed(1))
    sampler = method.sampler("train", SPLIT, schedule, torch.Generator().manual_seed(1))
    for batch in draw_batches(stage.sampler, method, data, torch.Generator(), 3):
        assert batch.labels.tolist() == sampler.draw().labels.tolist()
        assert [len(m) for m in batch.images.maps] == [48, 48]
        assert len(batch.references) == method.n_reference


@pytest.mark.parametrize("name", ["dra", "devnet", "flos"])
def test_second_frozen_run_computes_no_features(name, tmp_path, monkeypatch):
    "With a store that has a key, neither training nor scoring runs the backbone again, and scores are the same"
    monkeypatch.setenv("DRA_NB_CACHE", str(tmp_path))

    class Kept(type(STORE)):
        key = "kept"

    store = Kept(STORE.images)
    passes = []

    def scores(setting):
        method = create_method(name, backbone="resnet18_stage2", frozen=True, bank_size=24, **setting)
        method.backbone.register_forward_hook(lambda module, images, maps: passes.append(len(maps)))
        fit(method, store, SPLIT, SHORT, compute=Compute("cpu", "fp32"))
        return score(method, store, SPLIT.test, compute=Compute("cpu", "fp32")).score, method

    first, method = scores({})
    assert sum(passes) > len(SPLIT.test)
    passes.clear()
    second, _ = scores({})
    assert passes == []
    np.testing.assert_array_equal(first, second)
    plain = score(method, STORE, SPLIT.test, compute=Compute("cpu", "fp32")).score
    assert np.abs(plain - first).max() < 0.01 * plain.std()
    passes.clear()
    scores({"topk_ratio": 0.2})
    assert passes == []


FROZEN = {
    "minns": {},
    "saoe": {},
    "multiclass": {},
    "deep_sad": {},
    "mlep": {},
    "kdad": {},
    "patchcore": {},
    "cove": {},
    "ahl": {"base": "devnet", "pool": 12, "tasks": 2, "at_once": 1},
}


@pytest.mark.parametrize("name", in_tiers(FROZEN))
def test_every_method_that_can_be_frozen(name):
    "It learns from features, its backbone does not change, and features score as the images that they come from"
    method = create_method(name, backbone="resnet18_stage2", frozen=True, **FROZEN[name])
    before = {k: v.clone() for k, v in method.backbone.state_dict().items()}
    heads = [p.clone() for p in method.parameters() if p.requires_grad]
    schedule = method_schedule(name, FROZEN[name]).shortened(2, 2, 12)
    fit(method, STORE, SPLIT, schedule, compute=Compute("cpu", "fp32"), outliers=OUTLIERS)
    assert all(torch.equal(v, before[k]) for k, v in method.backbone.state_dict().items())
    learnt = [p for p in method.parameters() if p.requires_grad]
    assert name in ("cove", "patchcore") or any(not torch.equal(p, q) for p, q in zip(learnt, heads))
    data = open_samples(method, STORE, compute=Compute("cpu", "fp32"))
    (encoded,) = data.batches(SPLIT.test)
    (images,) = Samples(STORE, None, Compute("cpu", "fp32")).batches(SPLIT.test)
    with torch.no_grad():
        torch.testing.assert_close(method.predict(encoded).score, method.predict(images).score, rtol=1e-4, atol=1e-5)
