"Options of a training: nothing waits for the device, micro-batches, memory that runs out, torch.compile, deterministic mode, frozen backbone."
from dataclasses import replace

import numpy as np, pytest, torch
from torch.overrides import TorchFunctionMode

from dra_nb.core import DraError
from dra_nb.experiments.runs import RunSpec
from dra_nb.methods.method import Method, create_method, load_methods
from dra_nb.methods.schedule import Schedule
from dra_nb.training import loop
from dra_nb.training.loop import Samples, fine_tune, fit, make_batch, score_rows
from dra_nb.training.micro_batches import most_portions
from test_methods import OUTLIERS, SPLIT, STORE, new, short

CPU, META = torch.device("cpu"), torch.device("meta")
SHORT = Schedule(epochs=2, steps=3, batch=12, anomalies=4, lr=1e-3, decay_every=0)

def small(**settings): return create_method("dra", backbone="resnet18_stage2", **settings)

class Copies(TorchFunctionMode):
    "Counts the copies from the CPU to `meta`, and notes those that would wait for the device"
    def __init__(self):
        super().__init__()
        self.n, self.waits = 0, []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        if function is torch.Tensor.to and args[0].device == CPU and out.device == META:
            self.n += 1
            if not (kwargs or {}).get("non_blocking"): self.waits.append(args[0].shape)
        return out

@pytest.mark.parametrize("name", sorted(n for n in load_methods() if new(n).needs_steps))
def test_no_step_waits_for_the_device(name):
    "A tensor on `meta` has no values: whatever asks for one fails; and whatever goes there does so without waiting"
    method, g = new(name), torch.Generator().manual_seed(0)
    stage, schedule = method.stages(short(name))[0]
    with torch.no_grad(): method.begin(stage, Samples(STORE, SPLIT, CPU, outliers=OUTLIERS))
    sampler = method.train().sampler(stage, SPLIT, schedule, g)
    method.to(META)
    with Copies() as copies:
        batch = make_batch(STORE, sampler.draw(), method, g, META, OUTLIERS)
        sum(method.training_step(batch).values()).backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)
    assert copies.waits == [] and copies.n > 0
    assert batch.images.device == META and any(p.grad is not None for p in method.parameters())

def test_a_step_that_waits_is_found():
    "The check above can fail"
    method, g = small().to(META), torch.Generator().manual_seed(0)
    batch = make_batch(STORE, method.sampler("train", SPLIT, SHORT, g).draw(), method, g, META)
    with Copies() as copies: torch.zeros(3).to(META), torch.zeros(2).to(META, non_blocking=True)
    assert (copies.n, copies.waits) == (2, [(3,)])
    for waits in (lambda: float(method.training_step(batch)["seen"]), lambda: batch.images[batch.labels == 1], lambda: bool((batch.labels == 1).any())):
        with pytest.raises((RuntimeError, NotImplementedError)): waits()

def test_rows_are_read_ahead_in_order(monkeypatch):
    "Batches are those of a loop that draws and reads one after the other, whichever thread reads them"
    run = loop.Training(small(), Samples(STORE, SPLIT, CPU), [("train", SHORT)], *(torch.Generator().manual_seed(i) for i in (1, 2)), loop.History())
    run.enter(0)
    ahead = list(loop.draw_batches(run.sampler, run.method, run.data, run.augment, 5, ahead=True))
    draws, augment = (torch.Generator().manual_seed(i) for i in (1, 2))
    sampler = run.method.sampler("train", SPLIT, SHORT, draws)
    for batch in ahead:
        plain = make_batch(STORE, sampler.draw(), run.method, augment, CPU)
        assert torch.equal(batch.images, plain.images) and torch.equal(batch.labels, plain.labels) and torch.equal(batch.references, plain.references)
    assert torch.equal(draws.get_state(), run.draws.get_state()), "no batch is drawn that nobody trains on"

def test_a_file_that_cannot_be_read_ends_the_training():
    class Broken:
        size = STORE.size
        def __getitem__(self, rows): raise OSError("the disk has gone")
    with pytest.raises(OSError, match="the disk has gone"): fit(small(), Broken(), SPLIT, SHORT, "cpu", "fp32")

@pytest.mark.parametrize("name, n, batch, anomalies", [("flos", 2, 12, 4), ("dra", 4, 12, 4), ("dra", 3, 10, 3), ("multiclass", 3, 10, 3), ("saoe", 4, 12, 4), ("deep_sad", 3, 10, 3)])
def test_accumulated_gradients_are_those_of_the_batch(name, n, batch, anomalies):
    "Without batch statistics (evaluation mode); labels as they are drawn, whose counts do not divide"
    method, g = small(loss="focal") if name == "dra" else new(name), torch.Generator().manual_seed(0)
    with torch.no_grad(): method.eval().begin("train", Samples(STORE, SPLIT, CPU, outliers=OUTLIERS))
    drawn = make_batch(STORE, method.sampler("train", SPLIT, replace(SHORT, batch=batch, anomalies=anomalies), g).draw(), method, g, CPU, OUTLIERS)
    found = []
    for parts in (1, n):
        method.zero_grad()
        losses, _ = loop.split_gradients(method, method.training_step, drawn, parts, parts, lambda: torch.autocast("cpu", enabled=False))
        found.append(torch.cat([p.grad.flatten() for p in method.parameters()] + [v[None] for v in losses.values()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)

def test_gradients_of_a_graph_have_a_place_of_their_own():
    "A compiled step may write its gradients where its next run writes"
    method, seen = small(loss="focal"), []
    def compute(batch):
        seen.append([p.grad is None for p in method.parameters()])
        return method.training_step(batch)
    batch = make_batch(STORE, method.sampler("train", SPLIT, SHORT, torch.Generator().manual_seed(0)).draw(), method, torch.Generator().manual_seed(0), CPU)
    for n in (1, 2): loop.split_gradients(method, compute, batch, n, n, lambda: torch.autocast("cpu", enabled=False))
    assert all(seen[0]) and not any(seen[1]) and not any(seen[2])

def test_portions_are_part_of_the_schedule_and_of_a_records_name():
    plain, cut = RunSpec("x"), RunSpec("x", schedule=Schedule(accumulate=4))
    assert plain.key != cut.key and plain.key == "e81639516f62706f"  # as before there was such a field
    assert Schedule(accumulate=2).shortened(batch=8).accumulate == 2 and most_portions(48, 16) == 16 and most_portions(8, 0) == 8
    for bad in (0, 5, 1.5):
        with pytest.raises(DraError, match="accumulate|portions"): fit(small(), STORE, SPLIT, replace(SHORT, accumulate=bad), "cpu", "fp32")

def failing(method, above):
    "Let steps of more images run out of memory, the third one and later"
    real, calls = method.training_step, []
    def step(batch):
        calls.append(len(batch.images))
        if len(calls) > 2 and len(batch.images) > above: raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return real(batch)
    method.training_step = step
    return method, calls

def test_memory_runs_out():
    method, calls = failing(small(), 6)
    with pytest.raises(DraError, match="out of memory .* 12 images of .*accumulate=2.*split_on_oom"): fit(method, STORE, SPLIT, SHORT, "cpu", "fp32")
    method, calls = failing(small(), 6)
    history = fit(method, STORE, SPLIT, SHORT, "cpu", "fp32", split_on_oom=True)
    assert history.portions == 2 and calls == [12, 12, 12] + [6, 6]*4 and history.images == 6*12
    assert np.isfinite(score_rows(method, STORE, SPLIT.test, "cpu", "fp32")["score"]).all()
    with pytest.raises(DraError, match="4 portion"): fit(failing(small(), 2)[0], STORE, SPLIT, SHORT, "cpu", "fp32", split_on_oom=True)

def test_the_number_of_portions_survives_an_interruption(tmp_path):
    whole = fit(failing(small(), 6)[0], STORE, SPLIT, SHORT, "cpu", "fp32", split_on_oom=True)
    method, calls = failing(small(), 6)
    real = method.training_step
    def stop(batch):
        if len(calls) >= 7: raise KeyboardInterrupt
        return real(batch)
    method.training_step = stop
    with pytest.raises(KeyboardInterrupt): fit(method, STORE, SPLIT, SHORT, "cpu", "fp32", split_on_oom=True, checkpoint=tmp_path/"c", every=1)
    later = fit(failing(small(), 6)[0], STORE, SPLIT, SHORT, "cpu", "fp32", split_on_oom=True, checkpoint=tmp_path/"c", every=1)
    assert later.portions == 2 and later.losses == whole.losses

class Tiny(Method):
    "A method that is compiled within seconds"
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, stride=4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(1))
        with torch.no_grad(): self.net(torch.zeros(1, 3, STORE.size, STORE.size))

    def training_step(self, batch):
        return {"a": torch.nn.functional.binary_cross_entropy_with_logits(self.net(batch.images).squeeze(1), (batch.labels > 0).float())}

    def head_scores(self, images): return {"a": self.net(images).squeeze(1)}

def test_compiled():
    plain, fast = (fit(m, STORE, SPLIT, SHORT, "cpu", "fp32", compile=c).losses for m, c in ((Tiny(), False), (Tiny(), True)))
    assert plain != [] and np.allclose([o["a"] for o in fast], [o["a"] for o in plain], rtol=1e-3)
    with pytest.raises(DraError, match="mode of torch.compile"): fit(Tiny(), STORE, SPLIT, SHORT, "cpu", compile="fastest")

def test_no_compiler_is_said(monkeypatch):
    monkeypatch.setenv("CXX", "/no/such/compiler")
    torch._dynamo.reset()
    with torch._inductor.config.patch({"cpp.cxx": ("/no/such/compiler",), "force_disable_caches": True}):
        with pytest.raises(DraError, match="compile=False"): fit(Tiny(), STORE, SPLIT, SHORT, "cpu", "fp32", compile=True)

def test_deterministic_mode_is_given_back_and_refuses_what_it_must():
    class Random(Tiny):
        def training_step(self, batch):
            assert torch.are_deterministic_algorithms_enabled()
            return super().training_step(batch) | {"b": self.net[0].weight.flatten().put(torch.tensor([0]), torch.ones(1), accumulate=False).sum()*0}
    with pytest.raises(RuntimeError, match="deterministic"): fit(Random(), STORE, SPLIT, SHORT, "cpu", "fp32", deterministic=True)
    assert not torch.are_deterministic_algorithms_enabled()
    runs = [fit(small(), STORE, SPLIT, SHORT, "cpu", deterministic=True).losses for _ in range(2)]
    assert runs[0] == runs[1]
    with pytest.raises(DraError, match="CUBLAS_WORKSPACE_CONFIG"):
        with loop.reproducible(torch.device("cuda")): pass

@pytest.mark.parametrize("name", ["dra", "devnet", "flos"])
def test_frozen(name, tmp_path):
    "Learns, leaves the backbone alone, goes on from a checkpoint to the same bits, can be tuned"
    def frozen(): return create_method(name, backbone="resnet18_stage2", frozen=True, views=24)
    method = frozen()
    before = {k: v.clone() for k, v in method.backbone.state_dict().items()}
    schedule = replace(SHORT, epochs=4)
    whole = fit(method, STORE, SPLIT, schedule, "cpu", "fp32")
    assert whole.losses[-1]["seen"] < whole.losses[0]["seen"] and all(torch.equal(v, before[k]) for k, v in method.backbone.state_dict().items())
    stopped, steps = frozen(), []
    inner = stopped.training_step
    def step(batch):
        if len(steps) == 7: raise KeyboardInterrupt
        steps.append(1)
        return inner(batch)
    stopped.training_step = step
    with pytest.raises(KeyboardInterrupt): fit(stopped, STORE, SPLIT, schedule, "cpu", "fp32", checkpoint=tmp_path/"c", every=1)
    later = frozen()
    assert fit(later, STORE, SPLIT, schedule, "cpu", "fp32", checkpoint=tmp_path/"c", every=1).losses == whole.losses
    np.testing.assert_array_equal(*(score_rows(m, STORE, SPLIT.test, "cpu", "fp32")["score"] for m in (later, method)))
    head = [p.clone() for p in method.heads.parameters()]
    fine_tune(method, STORE, replace(SPLIT, given=np.array([], int)), schedule, "cpu", "fp32")
    assert any(not torch.equal(a, b) for a, b in zip(head, method.heads.parameters()))

def test_frozen_draws_as_the_sampler_does():
    method = create_method("dra", backbone="resnet18_stage2", frozen=True, views=24)
    data = Samples(STORE, SPLIT, CPU)
    with torch.no_grad(): method.begin("train", data)
    assert method.sampler("train", SPLIT, Schedule(batch=48, anomalies=16), None) is None
    levels, labels = method.draw_levels()
    assert labels[-16:].eq(1).all() and not labels[:-16].eq(1).any() and len(levels) == 2 and levels[0][0].shape[0] == 48
    share = torch.cat([method.draw_levels()[1][:-16] for _ in range(60)]).eq(2).float().mean().item()
    assert abs(share - 0.5) < 4*0.5/(60*32)**0.5
