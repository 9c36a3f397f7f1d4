"Pixel metrics against pyaupro and scikit-learn; heat maps of every method; overlays; do they find what anybody sees?"

import copy

import numpy as np
import pytest
import torch
import toys
from conftest import in_tiers
from sklearn.metrics import precision_recall_curve, roc_auc_score
from toys import SPLIT, STORE

from dra_nb.core import DraError
from dra_nb.evaluation.contributions import contributions, loudest
from dra_nb.evaluation.explain import explain
from dra_nb.evaluation.f1 import f1_max, f1_threshold
from dra_nb.evaluation.heatmaps import above_normals, gradient_map, heatmaps, map_kinds
from dra_nb.evaluation.image_batches import image_batches
from dra_nb.evaluation.overlay import common_scale, overlay
from dra_nb.evaluation.patch_centres import patch_shift
from dra_nb.evaluation.pixel_metrics import aupro, pixel_auroc, pixel_metrics
from dra_nb.evaluation.scoring import score
from dra_nb.methods.registry import create_method, load_methods
from dra_nb.methods.schedule import Schedule
from dra_nb.training.compute import Compute
from dra_nb.training.loop import fit

CPU = dict(compute=Compute("cpu", "fp32"))


def noise(seed, digits=9, n=8, size=64):
    "Maps that are a little higher in the masks; rectangles that may touch; the first image is normal"
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, size, size), bool)
    for m in masks[1:]:
        for y, x, h, w in rng.integers(2, (size - 15, size - 15, 14, 14), size=(3, 4)):
            m[y : y + h, x : x + w] = True
    return np.round(1 / (1 + np.exp(-rng.normal(size=masks.shape) - (1 + seed) * masks)), digits), masks


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_aupro_as_pyaupro(seed, limit):
    pyaupro = pytest.importorskip("pyaupro")
    maps, masks = noise(seed)
    for reference in (False, True):
        curve = pyaupro.PerRegionOverlap(reference_implementation=reference)
        curve.update(torch.tensor(maps), torch.tensor(masks).int())
        other = float(pyaupro.auc_compute(*curve.compute(), limit=limit, reorder=True))
        assert abs(aupro(maps, masks, limit) - other) < 2e-4, (
            reference
        )  # pyaupro cuts the curve at a point, not between two


@pytest.mark.parametrize("digits", [0, 1, 2, 9])
def test_auroc_and_f1_as_sklearn(digits):
    maps, masks = noise(1, digits)
    assert np.isclose(pixel_auroc(maps, masks), roc_auc_score(masks.ravel(), maps.ravel()))
    precision, recall, _ = precision_recall_curve(masks.ravel(), maps.ravel())
    best = (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()
    assert np.isclose(f1_max(maps, masks), best) and np.isclose(f1_max(maps.ravel(), masks.ravel()), best)
    f1, level = f1_threshold(torch.tensor(maps), torch.tensor(masks))
    assert np.isclose(f1, best) and np.isclose(
        2 * ((maps >= level) & masks).sum() / ((maps >= level).sum() + masks.sum()), f1, atol=1e-3
    )


def test_ties_do_not_depend_on_the_order():
    maps, masks = noise(2, 1)
    order = np.random.default_rng(0).permutation(len(maps))
    for f in (aupro, pixel_auroc, f1_max):
        assert np.isclose(f(maps[order], masks[order]), f(maps, masks))
    constant = np.zeros(masks.shape)
    assert np.isclose(aupro(constant, masks), 0.15) and np.isclose(pixel_auroc(constant, masks), 0.5)


def test_regions_count_alike():
    mask = np.zeros((1, 40, 40), bool)
    mask[0, :20, :20] = mask[0, 30, 30] = True  # 400 pixels and one
    found = np.zeros(mask.shape)
    found[0, :20, :20] = 1
    assert pixel_auroc(found, mask) > 0.99 and 0.5 < aupro(found, mask) < 0.6
    found[0, 30, 30] = 1
    assert np.isclose(aupro(found, mask), 1)
    touching = np.zeros((1, 8, 8), bool)
    touching[0, 1, 1] = touching[0, 2, 2] = True
    half = np.zeros(touching.shape)
    half[0, 1, 1] = 1
    assert np.isclose(aupro(half, touching), 0.5 + 0.5 * 0.15)  # one region of two pixels, not two regions


def test_pixel_metrics_refuse():
    maps, masks = noise(0, n=3, size=20)
    for word, args in {
        "need masks": (maps, None),
        "no mask marks": (maps, 0 * masks),
        "every pixel": (maps, masks | True),
        "one mask per map": (maps, masks[:2]),
        "resize": (maps, masks[:, :9]),
        "not finite": (np.where(masks, np.nan, maps), masks),
        "limit": (maps, masks, 1.5),
    }.items():
        with pytest.raises(DraError, match=word):
            aupro(*args)
    for word, args in {"need masks": (maps, []), "not finite": (maps * np.inf, masks)}.items():
        with pytest.raises(DraError, match=word):
            pixel_metrics(*args)
        with pytest.raises(DraError, match=word):
            pixel_auroc(*args)
    for word, args in {
        "do not fit": (maps, masks[0]),
        "all labels are normal": ([1.0, 2], [0, 0]),
        "not finite": ([np.nan, 1], [0, 1]),
    }.items():
        with pytest.raises(DraError, match=word):
            f1_max(*args)


def trained(name):
    "A method after a few steps on made-up images, in fp32"
    return toys.trained(name)[0]


@pytest.mark.parametrize("name", in_tiers(sorted(load_methods())))
def test_every_method_has_heat_maps(name):
    method, rows = trained(name), [30, 33, 50, 55]
    assert ("score" in map_kinds(method)) == load_methods()[name].maps and map_kinds(method)[-1] == "gradient"
    for kind in map_kinds(method):
        maps = heatmaps(method, STORE, kind, rows, **CPU)
        assert (
            maps.shape == (4, STORE.size, STORE.size)
            and maps.dtype == np.float32
            and np.isfinite(maps).all()
            and (np.ptp(maps, (1, 2)) > 0).all()
        ), kind
        with torch.inference_mode():
            np.testing.assert_array_equal(heatmaps(method, STORE, kind, rows, **CPU), maps, err_msg=kind)
        alone = heatmaps(method, STORE.images[rows[2:3]], kind, batch_size=1, **CPU)
        near = (
            5e-2 if kind == "gradient" else 1e-3
        )  # a ReLU whose input is nearly 0 may flip with the rounding; the next test is exact
        np.testing.assert_allclose(alone, maps[2:3], rtol=1e-2, atol=near * np.abs(maps).max(), err_msg=kind)
        assert np.isfinite(heatmaps(method, STORE, kind, rows[:1], compute=Compute("cpu", "bf16"))).all()
    parts = contributions(method, STORE, rows, batch_size=3, **CPU)
    np.testing.assert_allclose(
        parts["score"], score(method, STORE, rows, compute=Compute("cpu", "fp32")).score, rtol=1e-4, atol=1e-4
    )
    assert loudest(parts).isin(parts.columns[1:]).all()


@pytest.mark.parametrize("name", sorted(set(load_methods()) - {"cove", "patchcore"}))  # whose memory is fp32
def test_a_gradient_depends_on_its_image_alone(name):
    method, images = copy.deepcopy(trained(name)).double(), next(image_batches(STORE, [30, 33, 50, 55])).double()
    alone = torch.cat([gradient_map(method, x[None]) for x in images])
    np.testing.assert_allclose(alone, gradient_map(method, images), rtol=1e-5, atol=1e-7 * alone.max().item())


def test_heads_add_up():
    for name in ("dra", "ahl"):
        method = trained(name)
        assert method.map_heads == ("seen", "pseudo", "residual")
        maps = {
            k: heatmaps(method, STORE, k, SPLIT.test, size=(80, 100), batch_size=5, **CPU)
            for k in ("score", *method.map_heads)
        }
        np.testing.assert_allclose(sum(maps[h] for h in method.map_heads), maps["score"], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(
        heatmaps(trained("devnet"), STORE, "seen", [50], **CPU),
        heatmaps(trained("devnet"), STORE, "score", [50], **CPU),
    )


def test_heat_maps_leave_the_method_as_it_was():
    method = trained("dra")
    before = {k: v.clone() for k, v in method.state_dict().items()}
    method.zero_grad()
    state = torch.get_rng_state()
    with torch.no_grad():
        heatmaps(method, STORE, "gradient", [50], **CPU)
    heatmaps(method, STORE, "score", [50], **CPU)
    assert torch.equal(state, torch.get_rng_state()) and all(
        torch.equal(v, before[k]) for k, v in method.state_dict().items()
    )
    assert all(p.grad is None for p in method.parameters())


def test_heat_maps_refuse():
    method, images = trained("dra"), STORE.images[:2]
    whole = create_method("dra", backbone="resnet18_stage2", heads=("normality",))
    for word, change in {
        "no score map": dict(kind="normality"),
        "unknown kind": dict(kind="sean"),
        "unknown head": dict(kind="gradient:bag"),
        "sigma": dict(sigma=-1),
        "outside": dict(images=images.float()),
        "shape": dict(images=images[0]),
        "no images": dict(rows=[]),
        "batch": dict(batch_size=0),
        "whole images": dict(method=whole),
        "device": dict(compute=Compute("cuda:77")),
    }.items():
        with pytest.raises(DraError, match=word):
            heatmaps(**dict(method=method, images=images, **CPU) | change)
    assert heatmaps(whole, images, "gradient:normality", **CPU).shape == (2, STORE.size, STORE.size)


def test_patches_look_where_the_map_says():
    odd, tiles = torch.nn.Conv2d(3, 4, 5, stride=4, padding=2), torch.nn.Conv2d(3, 4, 16, stride=16)
    for even in (odd, tiles):
        torch.nn.init.ones_(even.weight)  # random weights have their centre of gravity somewhere else
    assert patch_shift(odd, (64, 80)) > 0.9 and patch_shift(tiles, (64, 80)) < 0.1
    assert patch_shift(trained("dra").backbone, (96, 96)) > 0.9  # a ResNet


@pytest.fixture(scope="module")
def metal():
    "The metal of the embedded textures after a short training of DRA: method, store, test rows, classes, masks"
    from dra_nb.data.datasets import load_catalog
    from dra_nb.data.masks import read_mask
    from dra_nb.data.protocols import make_split
    from dra_nb.data.store import open_store

    catalog = load_catalog("textures")
    store, split = open_store(catalog, 48, progress=False), make_split(catalog, shots=10, seed=0, category="metal")
    method = create_method("dra", backbone="resnet18_stage2")
    fit(
        method,
        store,
        split,
        Schedule(epochs=12, steps=10, batch=18, anomalies=6, lr=1e-3, decay_every=0),
        compute=Compute("cpu", "fp32"),
    )
    rows = split.test[np.isin(catalog.defect.to_numpy()[split.test], ["", "hole", "color"])]
    return method, store, rows, np.stack([read_mask(catalog.loc[r], size=48) for r in rows]), split.normal[:20]


@pytest.mark.slow
def test_finds_holes_and_spots_in_metal(metal):
    method, store, rows, masks, normal = metal
    maps = {k: heatmaps(method, store, k, rows, sigma=1.5, **CPU) for k in map_kinds(method)}
    got = {k: pixel_metrics(m, masks) for k, m in maps.items()}
    for kind in ("score", "seen", "residual", "gradient"):
        assert got[kind].pixel_auroc > 0.75 and got[kind].aupro > 0.4, got
    less = pixel_metrics(
        above_normals(maps["score"], heatmaps(method, store, "score", normal, sigma=1.5, **CPU)), masks
    )
    assert less.aupro > 0.4, less
    flipped = pixel_metrics(maps["score"][:, ::-1, ::-1], masks)
    assert got["score"].aupro > flipped.aupro + 0.15  # in the right place, not just on the right images


def test_explains(tmp_path):
    method, masks = trained("dra"), np.zeros((2, STORE.size, STORE.size), bool)
    masks[1, 20:30, 22:34] = True
    figure = explain(
        method,
        STORE,
        [30, 50],
        masks=masks,
        names=["normal", "spot"],
        normals=contributions(method, STORE, SPLIT.normal[:10], **CPU),
        **CPU,
    )
    figure.savefig(tmp_path / "f.png")
    assert (
        len(figure.axes) == 2 * 7 and (tmp_path / "f.png").stat().st_size > 10_000
    )  # image, three heads, score, overlay, bars
    assert (
        len(explain(trained("deep_sad"), STORE, [50], **CPU).axes) == 4
        and len(explain(trained("devnet"), STORE.images[:1], **CPU).axes) == 4
    )


def test_overlays():
    image, heat = np.random.default_rng(0).integers(0, 256, (3, 50, 70), dtype=np.uint8), np.arange(12.0).reshape(3, 4)
    for form in (image, torch.tensor(image), image.transpose(1, 2, 0), image / 255):
        out = overlay(form, heat, (0, 1))
        assert out.shape == (50, 70, 3) and out.dtype == np.uint8
    scale = common_scale([heat, 3 * heat])
    assert (overlay(image, heat * 0, scale) == image.transpose(1, 2, 0)).all(), "what is not suspicious stays as it is"
    with pytest.raises(TypeError, match="scale"):
        overlay(image, heat)  # there is no scale of one image alone
    assert (overlay(image, heat, scale) != overlay(image, 3 * heat, scale)).any(), "one scale for a set"
    mask = np.zeros((50, 70), bool)
    mask[20:30, 20:30] = True
    assert (overlay(image, heat * 0, scale, mask=mask)[19, 20:30] == (0, 255, 255)).all()
    for word, change in {
        "quantiles": None,
        "shape": dict(image=image[:2]),
        "mask": dict(mask=mask.T),
        "scale": dict(scale=(2, 1)),
        "one \\(h, w\\)": dict(heat=heat[None]),
        "colour map": dict(colours="jeet"),
        "outside": dict(image=image * 2.5),
    }.items():
        with pytest.raises(DraError, match=word):
            overlay(**dict(image=image, heat=heat, scale=scale) | change) if change else common_scale(heat, 1, 0)


def test_a_score_without_a_gradient_has_no_gradient_map():
    from dra_nb.evaluation.heatmaps import input_gradient
    from dra_nb.methods.base import Prediction

    with pytest.raises(DraError, match="the score of this method has no gradient; use another kind of map"):
        input_gradient(Prediction(torch.ones(2), {}, None), torch.zeros(2, 3, 8, 8))
