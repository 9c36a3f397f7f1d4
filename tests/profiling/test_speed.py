"What measures speed measures what it says: parts, bare steps, memory, shares, and the page that shows them."

import platform
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import python, succeeded

from dra_nb.core import DraError
from dra_nb.profiling.benchmarks import read_benchmarks
from dra_nb.profiling.cases import make_case, noise_split, noise_store, released, with_schedule
from dra_nb.profiling.memory import MemoryPeak
from dra_nb.profiling.parts import PARTS, Watch, step_parts
from dra_nb.profiling.scoring import count_passes, run_backbone, run_scoring
from dra_nb.profiling.speed import measure_speed, speed_summary
from dra_nb.profiling.speed_figures import speed_figure
from dra_nb.profiling.steps import bare_step, new_learner, noise_batch, run_bare, run_fit, run_steady
from dra_nb.profiling.targets import allowance
from dra_nb.profiling.timing import in_turn
from dra_nb.profiling.utilisation import device_peak, step_flops
from dra_nb.profiling.waits import synchronisations
from dra_nb.reporting.tables import write_frame
from dra_nb.training import batches, loop, samples
from dra_nb.training.compute import Compute

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return noise_store(tmp_path_factory.mktemp("speed") / "noise.npy", 60, 64)


@pytest.fixture
def case(store):
    return make_case(store, noise_split(60), compute=Compute("cpu"), steps=3, batch=6, backbone="resnet18_stage2")


def test_the_parts_sum_to_the_time_of_a_step(case):
    parts = step_parts(case, warm=1)
    steps = run_steady(with_schedule(case, steps=5), warm=2)
    assert tuple(parts.index) == PARTS and (parts > -1e-6).all() and parts["other"] < 0.3 * parts.sum()
    assert 0.3 < parts.sum() / np.median(steps) < 3 and len(steps) == 5


@pytest.mark.slow
def test_a_slow_part_is_named(case, monkeypatch):
    "Each part that is slowed down by 100 ms gets these 100 ms, and no other does"
    before = step_parts(case, warm=1)

    def slowed(function):
        return lambda *a, **k: (time.sleep(0.1), function(*a, **k))[1]

    for owner, name, part in (
        (samples, "random_rotation", "rotate"),
        (torch.nn.utils, "clip_grad_norm_", "optimiser"),
        (type(case.method), "training_step", "heads and losses"),
        (type(case.method.backbone), "forward", "backbone"),
    ):
        with monkeypatch.context() as m:
            m.setattr(owner, name, slowed(getattr(owner, name)))
            more = step_parts(case, warm=1) - before
        assert more[part] > 0.09 and (more.drop(part) < 0.07).all(), (part, more)


def test_watching_leaves_nothing_behind(case):
    originals = [
        batches.make_batch,
        samples.random_rotation,
        torch.autograd.backward,
        type(case.store).__getitem__,
        dict(samples.PSEUDO),
    ]
    step_parts(case, warm=1)
    run_steady(case, warm=1)
    assert originals == [
        batches.make_batch,
        samples.random_rotation,
        torch.autograd.backward,
        type(case.store).__getitem__,
        dict(samples.PSEUDO),
    ]
    from torch.optim import optimizer

    assert not optimizer._global_optimizer_post_hooks and not optimizer._global_optimizer_pre_hooks


def test_another_thread_is_not_watched():
    watch, seen = Watch(CPU), []
    function = watch.wrap("read", lambda: seen.append(1))
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()
    assert seen == [1] and watch.spans == []
    function()
    assert [s.part for s in watch.spans] == ["read"]


def test_bare_steps_train(case):
    learner = new_learner(case)
    method = learner.method
    before = {k: v.clone() for k, v in method.named_parameters()}
    batch = noise_batch(case)
    losses = [sum(bare_step(case, learner, batch).values()).item() for _ in range(6)]
    assert losses[-1] < losses[0] and all(not torch.equal(v, before[k]) for k, v in method.named_parameters())
    assert all(torch.equal(v, before[k]) for k, v in case.method.named_parameters()), "every measurement trains a copy"


def test_released_computes_in_float32(case):
    old = released(case)
    learner = new_learner(old)
    seen = []
    learner.method.backbone.register_forward_hook(
        lambda _, inputs, out: seen.append((inputs[0].dtype, out.dtype, inputs[0].is_contiguous()))
    )
    bare_step(old, learner, noise_batch(old))
    assert set(seen) == {(torch.float32, torch.float32, True)} and not learner.optimiser.defaults["fused"]
    assert new_learner(case).optimiser.defaults["fused"]


@pytest.mark.slow
def test_fit_and_bare_steps_take_time_in_proportion(case):
    run_bare(case)
    found = in_turn(
        {n: lambda n=n: run_bare(with_schedule(case, steps=n)).seconds for n in (4, 16)},
        3,
    )
    assert 1.5 < np.median(found[16]) / np.median(found[4]) < 10
    assert run_fit(case).history.images == 18


def test_scoring_encodes_each_image_once_per_scale(case, store):
    method = new_learner(case).method
    with count_passes(method) as count:
        loop.fit(method, store, case.split, case.schedule, compute=Compute("cpu", case.precision))
    assert count.references == 1
    with count_passes(method) as count:
        scores = run_scoring(case, method, np.arange(50), 16).result.score
    assert (count.images, count.calls, count.references) == (100, 8, 0) and len(scores) == 50
    with count_passes(method) as count:
        assert run_backbone(case, method, 50, 16) > 0
    assert (count.images, count.calls) == (100, 8)


def test_memory_of_a_moment_is_seen():
    import mmap

    with MemoryPeak() as memory:
        block = mmap.mmap(-1, 60_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        np.frombuffer(block, np.uint8)[:] = 1
        time.sleep(0.05)
        block = None
    assert 50 < memory.mb < 120


def test_share_of_the_peak(case):
    flops, seconds = step_flops(case), np.median(run_steady(case, warm=1))
    share = flops / seconds / device_peak(CPU, case.precision, 0.1, (512, 1024))
    assert 0 < share < 2.5  # of a processor that another process may take half of meanwhile


def test_operations_grow_with_the_images(case):
    twice = step_flops(with_schedule(case, batch=17, anomalies=5))
    assert twice / step_flops(case) == pytest.approx(22 / 11, rel=0.05)


def test_a_cpu_never_waits_for_a_gpu(case):
    assert synchronisations(case) == []


def test_what_cannot_be_measured_is_refused(store):
    for wrong in (
        lambda: make_case(store, noise_split(60), 1, 6, method="dar"),
        lambda: make_case(store, noise_split(60), 0, 6),
        lambda: noise_split(15),
        lambda: make_case(store, noise_split(60), 1, 6, compute=Compute("cuda:99")),
    ):
        with pytest.raises(DraError):
            wrong()


RECYCLED = """
import resource, threading, torch
from dra_nb.training.allocator import recycled_memory
from dra_nb.profiling.memory import memory_mb
cpu = torch.device("cpu")
def faults(n=4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(n): torch.ones(25_000_000)  # 100 MB: more than glibc keeps by itself
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)/n
faults()
plain, start = faults(), memory_mb(cpu)
try:
    with recycled_memory(cpu):
        with recycled_memory(cpu), recycled_memory(torch.device("meta")): faults()
        inside = min(faults() for _ in range(6))  # until the blocks that lie free are large enough for all
        kept = memory_mb(cpu) - start
        raise KeyError
except KeyError: pass
print(plain, inside, kept, memory_mb(cpu) - start, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
@pytest.mark.slow
def test_freed_memory_is_used_again_and_given_back():
    plain, inside, kept, left, after = map(float, succeeded(python(RECYCLED)).stdout.split())
    assert plain > 10_000 and inside < 100 and kept > 90 and left < 10 and after > 5_000


@pytest.mark.slow
def test_table_and_picture(tmp_path):
    table = measure_speed(
        [48, 32], batch=6, steps=1, repeats=1, compute=Compute("cpu", "fp32"), backbone="resnet18_stage2"
    )
    assert (
        set(table.way) >= {"fit, fp32", "bare steps, fp32", *PARTS}
        and "bf16" not in " ".join(table.way)
        and list(table["size"].unique()) == [32, 48]
    )
    summary = speed_summary(table)
    assert (summary["fit, fp32: memory, MB"] > 0).all()
    files, figure = write_frame(summary, tmp_path, "speed", "Caption."), speed_figure(table)
    assert "Caption." in files["html"].read_text() and len(pd.read_csv(files["csv"])) == 2
    bars = figure.axes[0].patches
    for i in range(2):
        assert sum(b.get_height() for b in bars[i::2]) == pytest.approx(1, abs=1e-3)


def test_targets_count_from_either_side():
    assert allowance("at least 2", 3) < 1 < allowance("at least 2", 1.9) and allowance("below 5", 4) < 1 < allowance(
        "at most 1.1", 1.2
    )


def test_damaged_measurements_are_passed_over(tmp_path):
    (tmp_path / "a").mkdir()
    for name, text in (
        ("x", "a,b\n1,2\n"),
        ("y", ""),
        ("z", "\0\1"),
        ("head", "measure,case,unit,median,min,max,target,device,date\n"),
    ):
        (tmp_path / "a" / f"{name}.csv").write_text(text)
    assert len(read_benchmarks(tmp_path)) == 0 and len(read_benchmarks(Path("nowhere"))) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu(store):
    case = make_case(store, noise_split(60), compute=Compute("cuda"), steps=4, batch=6)
    assert synchronisations(case) == []
    parts = step_parts(case)
    assert (parts > -1e-6).all() and parts["backward"] > 0
    assert 0 < step_flops(case) / np.median(run_steady(case)) / device_peak(case.device, "bf16", 0.1) < 1.1
    with MemoryPeak(case.device) as memory:
        run_fit(case)
    assert memory.mb > 50
