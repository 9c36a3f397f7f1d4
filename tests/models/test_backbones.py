"Models of timm as backbones: three families are built, run, trained, saved and loaded; what cannot work is refused."

import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dra_nb.core import DraError, cache_dir
from dra_nb.data.protocols import Split
from dra_nb.evaluation.scoring import score, score_columns
from dra_nb.methods.base import Batch
from dra_nb.methods.io import load_method, save_method
from dra_nb.methods.registry import create_method, method_schedule
from dra_nb.methods.schedule import Schedule
from dra_nb.models.backbone import create_backbone, weights_id
from dra_nb.models.colour import IMAGENET_MEAN, IMAGENET_STD, normalize
from dra_nb.models.fused import folded, norm_pairs
from dra_nb.models.network import Backbone
from dra_nb.models.timm_layout import find_layout, find_reductions, full_name
from dra_nb.training.compute import Compute
from dra_nb.training.loop import fit

timm = pytest.importorskip("timm", reason='pip install "dra_nb[backbones]"')

FAMILIES = (
    "timm:test_resnet",
    "timm:test_convnext",
    "timm:test_vit",
)  # a residual network, a ConvNeXt, a vision transformer


@pytest.fixture(scope="module")
def images():
    return normalize(torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0)))


class Noise:
    "30 images of 64 px; the last ten carry a bright blot"

    size = 64

    def __init__(self):
        self.images = torch.randint(
            90, 160, (30, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
        )
        self.images[20:, :, 20:34, 30:44] = 250

    def __len__(self):
        return len(self.images)

    def __getitem__(self, rows):
        return self.images[torch.as_tensor(rows)]


SPLIT = Split(
    normal=np.arange(14),
    given=np.arange(20, 24),
    references=np.arange(14)[::-1].copy(),
    test=np.r_[14:20, 24:30],
    seen=np.arange(12) >= 6,
    known_class="",
)

# ------------------------------------------------------------------ what is announced is what comes


@torch.no_grad()
@pytest.mark.parametrize("name", [*FAMILIES, "timm:test_efficientnet", "efficientnet_lite0"])
def test_folded_the_maps_are_the_same(name, images):
    net = create_backbone(name)
    for _ in range(3):
        net(torch.randn(8, 3, 64, 64))  # statistics that are not 0 and 1
    net.eval()
    if name == FAMILIES[0]:
        assert norm_pairs(net)  # its shortcuts
    for a, b in zip(net.stages(images), folded(net).stages(images), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-4 * a.abs().max().item())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("shape", [(64, 64), (160, 96)])
def test_maps_are_as_announced(name, shape):
    b = create_backbone(name).eval()
    with torch.no_grad():
        maps, last = b.stages(torch.randn(2, 3, *shape)), b(torch.randn(2, 3, *shape))
    assert [tuple(m.shape) for m in maps] == [
        (2, c, shape[0] // r, shape[1] // r) for c, r in zip(b.stage_channels, b.stage_reductions)
    ]
    assert tuple(last.shape) == (2, b.channels, shape[0] // b.reduction, shape[1] // b.reduction) and isinstance(
        b, Backbone
    )
    assert len(b.ends) == len(maps) and all(b.body.get_submodule(end) is not None for end in b.ends)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "vit_small_patch14_reg4_dinov2", "efficientnet_b0"])
def test_found_reductions_are_those_that_timm_documents(name):
    found = [r for _, r in find_layout(full_name(f"timm:{name}")).stages.values()]
    if name == "efficientnet_b0":
        assert list(find_layout(full_name(f"timm:{name}")).stages.values()) == [
            (16, 2),
            (24, 4),
            (40, 8),
            (112, 16),
            (320, 32),
        ]
    else:
        assert found == ([4, 8, 16, 32] if "swin" in name else [int(name.split("patch")[1][:2])] * 4)


def test_a_wrong_claim_does_not_pass():
    class Fixed(torch.nn.Module):
        def forward_intermediates(self, x, **kw):
            assert x.shape[-1] == 64
            return [torch.zeros(1, 4, 4, 4, device="meta")]

    assert find_reductions(Fixed(), True, 64, [16]) == ([16], 16, 64)
    with pytest.raises(DraError, match="timm says"):
        find_reductions(Fixed(), True, 64, [8])


@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_reaches_every_parameter(name, images):
    b = create_backbone(name)
    b(images).square().mean().backward()
    assert (
        all(p.grad is not None and p.grad.isfinite().all() for p in b.parameters())
        and sum(p.grad.abs().sum() > 0 for p in b.parameters()) > 20
    )


@pytest.mark.parametrize(
    "name, prefix", [("timm:test_vit", 1), ("timm:vit_tiny_patch16_dinov3_qkvb", 5)]
)  # class token; class token and registers
@pytest.mark.slow
def test_patches_of_a_transformer_are_its_tokens_in_their_places(name, prefix):
    b = create_backbone(name).eval()
    x = torch.randn(1, 3, 64, 48)
    with torch.no_grad():
        tokens, maps = b.body.forward_features(x if b.factor is None else b.factor * x + b.summand), b(x)
    extra = b.body.num_prefix_tokens
    assert (
        extra == prefix
        and maps.shape[2:] == (4, 3)
        and torch.allclose(maps.flatten(2).transpose(1, 2), tokens[:, extra:], atol=1e-5)
    )


@pytest.mark.slow
def test_positions_of_dinov2_follow_the_image_size():
    with torch.device("meta"):
        b = create_backbone("timm:vit_small_patch14_dinov2.lvd142m").eval()  # shapes alone
    assert (b.reduction, b.multiple, b.only) == (14, 14, 0) and b.body.pos_embed.shape[1] == 1 + 37 * 37
    with torch.no_grad():
        assert b(torch.zeros(1, 3, 56, 28, device="meta")).shape == (1, 384, 4, 2)
    with pytest.raises(DraError, match=r"multiples of 14 px, not 96 x 96.*84 and 98 px.*multiple of 28 px"):
        b(torch.zeros(1, 3, 96, 96))


# ------------------------------------------------------------------ colours


@pytest.mark.parametrize(
    "name, halves", [("timm:test_resnet", True), ("timm:test_vit", True), ("timm:test_efficientnet", False)]
)
def test_network_sees_the_colours_it_was_trained_with(name, halves):
    b, seen, p = create_backbone(name).eval(), [], torch.rand(2, 3, 64, 64)
    first = next(m for m in b.body.modules() if isinstance(m, torch.nn.Conv2d))
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        b(normalize(p)), b.stages(normalize(p).to(memory_format=torch.channels_last))
    m, s = ((0.5,) * 3, (0.5,) * 3) if halves else (IMAGENET_MEAN, IMAGENET_STD)
    wanted = torch.stack([(p[:, i] - m[i]) / s[i] for i in range(3)], 1)
    assert (
        len(seen) == 2 and all(torch.allclose(x, wanted, atol=1e-6) for x in seen) and (b.factor is not None) == halves
    )
    assert halves or torch.equal(seen[0], normalize(p)), "nothing is changed where nothing has to be"


# ------------------------------------------------------------------ methods


@pytest.mark.parametrize("name", FAMILIES)
def test_dra_learns_scores_and_survives_a_file(name, tmp_path):
    method, store = create_method("dra", backbone=name, n_reference=2), Noise()
    before = {k: v.clone() for k, v in method.backbone.named_parameters()}
    history = fit(
        method, store, SPLIT, Schedule(epochs=1, steps=2, batch=6, anomalies=2), compute=Compute("cpu", "fp32"), seed=0
    )
    assert np.isfinite(list(history.losses[-1].values())).all() and all(
        not torch.equal(v, before[k]) for k, v in method.backbone.named_parameters()
    )
    scores = score_columns(score(method, store, SPLIT.test, compute=Compute("cpu", "fp32")))
    assert (
        np.isfinite(scores["score"]).all()
        and method.predict(normalize(torch.rand(1, 3, 64, 64)), maps=True).map.shape[-1]
        == 64 // method.backbone.reduction
    )
    save_method(method, tmp_path / "m.safetensors")
    loaded = load_method(tmp_path / "m.safetensors")
    assert loaded.config["backbone"] == name
    for k, v in score_columns(score(loaded, store, SPLIT.test, compute=Compute("cpu", "fp32"))).items():
        np.testing.assert_array_equal(v, scores[k])


@pytest.mark.parametrize("name", FAMILIES)
def test_bf16_and_channels_last(name, images):
    b = create_backbone(name).eval()
    with torch.no_grad():
        wanted, other = b(images), b.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
        with torch.autocast("cpu", torch.bfloat16):
            half = b(images).float()
    assert (
        torch.allclose(wanted, other, atol=1e-3)
        and half.isfinite().all()
        and (half - wanted).norm() < 0.05 * wanted.norm()
    )


@pytest.mark.parametrize(
    "name, levels", [("timm:test_resnet", ()), ("timm:test_convnext", (4, 8)), ("timm:test_vit", ())]
)
def test_patchcore_compares_stages(name, levels, tmp_path):
    method, store = create_method("patchcore", backbone=name, **({"levels": levels} if levels else {})), Noise()
    whole = create_backbone(name)
    assert sum(p.numel() for p in method.parameters()) <= sum(p.numel() for p in whole.parameters()) and (
        name == FAMILIES[2] or len(method.backbone.ends) < len(whole.ends)
    )
    fit(method, store, SPLIT, method_schedule("patchcore", {}), compute=Compute("cpu", "fp32"), seed=0)
    scores = score(method, store, SPLIT.test, compute=Compute("cpu", "fp32")).score
    assert scores[6:].mean() > scores[:6].mean() and (name == FAMILIES[2] or scores[6:].min() > scores[:6].max()), (
        "a blot is far from everything normal, for random features too"
    )
    save_method(method, tmp_path / "m.safetensors")
    np.testing.assert_array_equal(
        score(load_method(tmp_path / "m.safetensors"), store, SPLIT.test, compute=Compute("cpu", "fp32")).score,
        scores,
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_cut_leaves_the_kept_stages_as_they_are(name, images):
    b = create_backbone(name).eval()
    with torch.no_grad():
        whole, short = b.stages(images), b.cut(2)
        assert all(torch.equal(a, c) for a, c in zip(short.stages(images), whole)) and torch.equal(
            short(images), whole[1]
        )
        assert torch.equal(b(images), whole[-1]), "the whole is not changed by it"
    assert sum(p.numel() for p in short.parameters()) < sum(p.numel() for p in b.parameters()) and (
        short.channels,
        len(short.ends),
    ) == (b.stage_channels[1], 2)


def test_half_of_the_image_has_to_fit_too():
    method = create_method("dra", backbone="timm:test_vit", n_reference=1)

    def batch(side):
        return Batch(torch.zeros(2, 3, side, side), torch.tensor([0, 1]), torch.zeros(1, 3, side, side))

    assert method.min_size == 32 and method.training_step(batch(64))
    with pytest.raises(DraError, match=r"not 40 x 40.*multiple of 32 px"):
        method.training_step(batch(80))


@pytest.mark.skipif("test_vit_relpos" not in timm.list_models(), reason="this timm has no small network of one size")
def test_one_size_only():
    b = create_backbone("timm:test_vit_relpos")
    assert b.only == 160
    with pytest.raises(DraError, match=r"160 x 160 px only, not 80 x 80.*scales=1"):
        create_method("dra", backbone="timm:test_vit_relpos", n_reference=1).training_step(
            Batch(torch.zeros(2, 3, 160, 160), torch.tensor([0, 1]), torch.zeros(1, 3, 160, 160))
        )
    with torch.no_grad():
        assert (
            create_method("devnet", backbone="timm:test_vit_relpos", scales=1)
            .eval()
            .predict(torch.zeros(1, 3, 160, 160))
            .score.isfinite()
            .all()
        )


# ------------------------------------------------------------------ weights


@pytest.fixture(scope="module")
def state():
    return {k: v.contiguous() for k, v in timm.create_model("test_vit", num_classes=5).state_dict().items()}


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_weights_by_path(state, ending, tmp_path):
    path = tmp_path / f"w.{ending}"
    save_file(state, path) if ending == "safetensors" else torch.save({"state_dict": state}, path)
    b = create_backbone("timm:test_vit", str(path), seed=3)
    assert all(torch.equal(v, state[k]) for k, v in b.body.state_dict().items()) and set(state) - set(
        b.body.state_dict()
    ) == {"head.weight", "head.bias"}
    assert weights_id(str(path), "timm:test_vit").startswith("w-")


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda s: {k: v for k, v in s.items() if k != "blocks.3.attn.qkv.weight"},
            "1 missing .*blocks.3.attn.qkv.weight",
        ),
        (lambda s: s | {"blocks.9.ls": torch.zeros(1)}, "1 unknown .*blocks.9.ls"),
        (lambda s: s | {"cls_token": torch.zeros(1, 1, 8)}, r"another shape .*cls_token \(1, 1, 8\) for \(1, 1, 64\)"),
    ],
)
def test_weights_that_do_not_fit(state, change, words, tmp_path):
    save_file(change(state), tmp_path / "w.safetensors")
    with pytest.raises(DraError, match=f"w.safetensors does not fit timm:test_vit: .*{words}.*timm's test_vit"):
        create_backbone("timm:test_vit", str(tmp_path / "w.safetensors"))


def test_weights_file_that_is_none(tmp_path):
    (tmp_path / "junk.pth").write_bytes(b"not weights")
    with pytest.raises(DraError, match="junk.pth cannot be read"):
        create_backbone("timm:test_vit", str(tmp_path / "junk.pth"))
    with pytest.raises(DraError, match="gone.pth does not exist"):
        create_backbone("timm:test_vit", str(tmp_path / "gone.pth"))


@pytest.fixture
def offline(monkeypatch, tmp_path):
    "An empty cache of Hugging Face, and no network"
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_published_weights_that_cannot_be_had(offline):
    with pytest.raises(DraError) as e:
        create_backbone("timm:test_vit", "imagenet")
    for word in (
        "test_vit.r160_in1k.safetensors",
        str(cache_dir("weights")),
        str(offline),
        "installed packages (none carries this file)",
        "https://huggingface.co/timm/test_vit.r160_in1k",
        "--weights PATH",
        "--weights none",
    ):
        assert word in str(e.value), (word, str(e.value))


def test_published_weights_from_the_cache_of_hugging_face(offline, state):
    commit, repo = "0" * 40, offline / "models--timm--test_vit.r160_in1k"
    (repo / "snapshots" / commit).mkdir(parents=True), (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    save_file(
        {k: v if "head" not in k else torch.zeros(1000, *v.shape[1:]) for k, v in state.items()},
        repo / "snapshots" / commit / "model.safetensors",
    )
    b = create_backbone("timm:test_vit", "imagenet")
    assert all(torch.equal(v, state[k]) for k, v in b.body.state_dict().items())


def test_published_weights_put_into_the_cache_folder(offline, state):
    save_file(state, cache_dir("weights") / "test_vit.r160_in1k.safetensors")
    try:
        assert torch.equal(create_backbone("timm:test_vit", "imagenet").body.cls_token, state["cls_token"])
    finally:
        (cache_dir("weights") / "test_vit.r160_in1k.safetensors").unlink()


def test_names_of_published_weights():
    assert (
        weights_id("imagenet", "timm:test_vit")
        == weights_id("imagenet", "timm:test_vit.r160_in1k")
        == "timm-test_vit.r160_in1k"
    )
    assert weights_id(None, "timm:test_vit") == "none"


# ------------------------------------------------------------------ names


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(DraError, match="timm:resnet50"):
        create_backbone("timm:resnet5O")
    with pytest.raises(DraError, match="timm:vit_small_patch14_dinov2"):
        weights_id("imagenet", "timm:vit_smal_patch14_dinov2")
    with pytest.raises(DraError, match="'a1_in1k'"):
        create_backbone("timm:resnet50.a1_in2k")
    with pytest.raises(DraError, match="timm:NAME"):
        create_backbone("convnext_tiny")


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(DraError, match=r"dra_nb\[backbones\]"):
        create_backbone("timm:test_vit")
    assert create_backbone("resnet18_stage2").channels == 128
