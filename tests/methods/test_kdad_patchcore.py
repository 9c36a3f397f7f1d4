"The methods that learn from normals only, from raw folder to record: they neither need given anomalies nor use them."

import numpy as np
import pytest
import torch
from conftest import in_tiers, mvtec_folder, short_spec

from dra_nb.core import DraError
from dra_nb.evaluation.scoring import score
from dra_nb.experiments.context import RunContext
from dra_nb.experiments.execution import execute
from dra_nb.experiments.records import Runs
from dra_nb.methods.io import load_method
from dra_nb.methods.registry import method_schedule
from dra_nb.methods.schedule import Schedule
from dra_nb.training.compute import Compute

SCHEDULES = {
    "kdad": Schedule(epochs=2, steps=3, batch=6, anomalies=0, lr=1e-3),
    "patchcore": method_schedule("patchcore", {}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "A folder that holds one small dataset"
    folder = tmp_path_factory.mktemp("normals_only")
    mvtec_folder(folder / "mine")
    return folder


@pytest.fixture(params=sorted(SCHEDULES))
def run(request, data, tmp_path):
    "Execute a run of one of the methods: metrics and the table of scores"

    def go(save=None, **changes):
        spec, runs = (
            short_spec("mine", method=request.param, schedule=SCHEDULES[request.param], **changes),
            Runs(tmp_path),
        )
        metrics = execute(spec, RunContext(str(data), compute=Compute("cpu", "fp32")), runs, save=save)
        assert runs.done(spec) and runs.read(spec).metrics == metrics
        return metrics, runs.scores(spec)

    return go


def test_no_anomaly_given(run):
    metrics, table = run(shots=0)
    assert (
        metrics["auroc_seen"] is None and metrics["n_seen"] == 0 and metrics["n_unseen"] == 24 - 10
    )  # ten are withheld, as for the others
    assert np.isfinite(table.score).all() and metrics["auroc"] > 0.6


def test_given_anomalies_do_not_enter(run):
    (_, none), (_, ten) = run(shots=0), run(shots=10)
    assert none.path.tolist() == ten.path.tolist() and np.array_equal(none.score, ten.score) and ten.seen.any()


def test_kdad_refuses_a_schedule_with_anomalies(data, tmp_path):
    spec = short_spec("mine", method="kdad", shots=4)  # whose schedule puts anomalies into every batch
    with pytest.raises(DraError, match="anomalies=0"):
        execute(spec, RunContext(str(data), compute=Compute("cpu")), Runs(tmp_path))
    assert not Runs(tmp_path).done(spec)


def test_hard_setting_without_anomalies(run):
    metrics, table = run(shots=0, protocol="hard", known_class="dent")
    assert set(table.defect) == {"", "scratch"} and metrics["n_unseen"] == 12


def test_saved_by_the_engine(run, data, tmp_path):
    from dra_nb.data.datasets import load_catalog
    from dra_nb.data.protocols import make_split
    from dra_nb.data.store import open_store

    _, table = run(tmp_path / "m.safetensors", shots=0)
    catalog = load_catalog("mine", str(data))
    again = score(
        load_method(tmp_path / "m.safetensors"),
        open_store(catalog, 64, progress=False),
        make_split(catalog, shots=0).test,
        compute=Compute("cpu", "fp32"),
    )
    np.testing.assert_allclose(again.score, table.score, rtol=1e-5)


def slope_of(net, x):
    "The derivative of the score by the pixels"
    x = x.clone().requires_grad_()
    return torch.autograd.grad(net.predict(x).score.sum(), x)[0]


def kept_bytes(net, batch):
    "What a training step keeps for its backward pass"
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (sizes.append(t.numel() * t.element_size()), t)[1], lambda t: t
    ):
        net.training_step(batch)
    return sum(sizes)


def test_gradient_by_the_pixels_goes_through_the_teacher_and_training_does_not():
    from dra_nb.methods.base import Batch
    from dra_nb.methods.registry import create_method

    g = torch.Generator().manual_seed(0)
    net, x = (
        create_method("kdad", backbone="resnet18_stage2").eval().double(),
        torch.rand(1, 3, 32, 32, generator=g, dtype=torch.double),
    )
    slope, h = slope_of(net, x), 1e-3
    without = create_method("kdad", backbone="resnet18_stage2").eval().double()
    without.backbone.stages = lambda images, stages=without.backbone.stages: [m.detach() for m in stages(images)]
    part = slope_of(without, x)
    for along in (slope / slope.norm(), (slope - part) / (slope - part).norm()):
        with torch.no_grad():
            by_hand = (net.predict(x + h * along).score - net.predict(x - h * along).score).item() / (2 * h)
        assert np.isclose((slope * along).sum().item(), by_hand, rtol=0.05)
    assert not np.isclose((part * along).sum().item(), by_hand, rtol=0.5)  # along the teacher's part
    net, batch = (
        create_method("kdad", backbone="resnet18_stage2"),
        Batch(torch.rand(4, 3, 32, 32, generator=g), torch.zeros(4, dtype=torch.long)),
    )
    usual, stages = kept_bytes(net, batch), net.backbone.stages
    net.backbone.stages = torch.no_grad()(lambda images: stages(images))
    assert kept_bytes(net, batch) == usual > 0
    net.backbone.stages = stages
    assert (
        kept_bytes(net, Batch(batch.images.requires_grad_(), batch.labels)) > 1.5 * usual
    )  # the measure sees a teacher that is kept
    assert all(p.grad is None for p in net.parameters())


def vit(size, n=10):
    return np.random.default_rng(0).integers(0, 255, (n, size, size, 3), np.uint8)


@pytest.mark.parametrize("backbone, size", [("timm:test_vit", 64), ("timm:vit_small_patch14_dinov2", 56)])
@pytest.mark.slow
def test_patchcore_takes_a_vision_transformer_as_it_is(backbone, size):
    "Without a setting: the stages of its only patch size, also 14 px"
    pytest.importorskip("timm")
    from dra_nb.detector.detector import AnomalyDetector

    d = AnomalyDetector(
        "patchcore", image_size=size, backbone=backbone, weights=None, device="cpu", precision="fp32"
    ).fit(vit(size))
    r = d.method_.backbone.reduction
    assert (
        d.method_.levels == (r,)
        and d.score_map(vit(size, 1)[0]).shape == (size, size)
        and np.isfinite(d.score_samples(vit(size, 3))).all()
    )
    assert d.method_.memory.shape[1] == sum(d.method_.backbone.stage_channels)


def test_patchcore_names_its_setting_where_it_cannot_choose():
    from types import SimpleNamespace

    from dra_nb.methods.patchcore import levels_of

    with pytest.raises(DraError, match=r"pass the setting levels, some of \[4, 32\], such as levels=\(32,\)"):
        levels_of(SimpleNamespace(stage_reductions=(4, 32)))
    with pytest.raises(DraError, match=r"levels are pixels per patch.*\[14\], not \(8,\)"):
        levels_of(SimpleNamespace(stage_reductions=(14, 14)), (8,))


@pytest.mark.slow
def test_mlep_refuses_patches_that_no_doubling_reaches():
    pytest.importorskip("timm")
    from dra_nb.methods.registry import create_method

    with pytest.raises(DraError, match="power of 2 pixels a side, not 14; pass another backbone"):
        create_method("mlep", backbone="timm:vit_small_patch14_dinov2")
    net = create_method("mlep", backbone="timm:test_vit", score="psnr").eval()
    with torch.no_grad():
        found = net.predict(torch.rand(2, 3, 64, 64), maps=True)
        assert found.score.isfinite().all() and found.map.shape == (2, 64, 64)


@pytest.mark.parametrize("side", in_tiers([33, 75, 100], [75]))
@torch.no_grad()
def test_images_of_odd_size(side):
    from dra_nb.methods.patchcore import image_patches
    from dra_nb.methods.registry import create_method

    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    for backbone in ("resnet18", "vgg16"):
        net = create_method("kdad", backbone=backbone).eval()
        found = net.predict(images, maps=True)
        assert found.score.isfinite().all() and found.map.isfinite().all()
        net = create_method("patchcore", backbone=backbone).eval()
        net.register_buffer("memory", image_patches(net.backbone, net.levels, images)[0].flatten(0, 1))
        assert net.predict(images).score[0] < 1e-3 < net.predict(images).score[1]


def test_a_teacher_that_is_too_fine_is_refused():
    from types import SimpleNamespace

    from dra_nb.methods.kdad import compared_stages

    assert compared_stages(SimpleNamespace(stage_reductions=(2, 8, 4))) == {4: 2, 8: 1}
    with pytest.raises(DraError, match="px per patch, none 4 or more; pass another backbone"):
        compared_stages(SimpleNamespace(stage_reductions=(1, 2)))
