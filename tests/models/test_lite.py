"EfficientNet-Lite0: weights from the installed package, the cache or a download; what is damaged is refused."

import sys

import numpy as np
import pytest
import torch
from download_site import Site

from dra_nb.core import DraError, cache_dir
from dra_nb.methods.io import load_method, save_method
from dra_nb.methods.registry import create_method
from dra_nb.models.backbone import BACKBONES, create_backbone, weights_id
from dra_nb.models.colour import normalize
from dra_nb.models.lite import LITE_URL, LiteEntry
from dra_nb.models.weights import PACKAGED, packaged_file

timm = pytest.importorskip("timm", reason='pip install "dra_nb[lite]"')
NAME = LITE_URL.rsplit("/", 1)[-1]
PACKAGE = PACKAGED[NAME].package


@pytest.fixture(scope="module")
def packaged():
    "The file in the installed package"
    pytest.importorskip(PACKAGE, reason='pip install "dra_nb[lite]"')
    return packaged_file(NAME)


@pytest.fixture
def site(monkeypatch, tmp_path):
    "The address of the weights is on this machine, the cache is empty and the package is hidden"
    site = Site()
    monkeypatch.setenv("DRA_NB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setitem(BACKBONES, "efficientnet_lite0", LiteEntry(url=f"{site.address}/{NAME}"))
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    yield site
    site.server.shutdown()
    site.server.server_close()


def test_tensors_are_those_of_timm_s_network(packaged):
    "By position, the plain second formula to the renaming by rule"
    state = torch.load(packaged, map_location="cpu", weights_only=True)
    wanted = dict(zip(timm.create_model("tf_efficientnet_lite0").state_dict(), state.values(), strict=True))
    net = create_backbone("efficientnet_lite0", "imagenet", seed=5)
    own = net.body.state_dict()
    assert len(own) > 250 and all(torch.equal(v, wanted[k]) for k, v in own.items())
    assert set(wanted) - set(own) == {k for k in wanted if k.startswith(("conv_head", "bn2.", "classifier"))}


@torch.no_grad()
def test_maps_are_those_of_timm_s_network(packaged):
    state = torch.load(packaged, map_location="cpu", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    pixels = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    net = create_backbone("efficientnet_lite0", "imagenet").eval()
    assert model.pretrained_cfg["mean"] == model.pretrained_cfg["std"] == (0.5,) * 3
    wanted = model.forward_intermediates(2 * pixels - 1, intermediates_only=True)
    for a, b in zip(net.stages(normalize(pixels)), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_download_where_the_package_is_missing(packaged, site):
    site.put(NAME, packaged.read_bytes())
    net = create_backbone("efficientnet_lite0", "imagenet")
    assert len(site.server.log) == 1 and (cache_dir("weights") / NAME).is_file()
    again = create_backbone("efficientnet_lite0", "imagenet")
    assert len(site.server.log) == 1, "the second one is from the cache"
    assert torch.equal(net.body.conv_stem.weight, again.body.conv_stem.weight)


def test_package_comes_before_the_download_and_after_the_cache(packaged, site, monkeypatch):
    monkeypatch.delitem(sys.modules, PACKAGE)
    create_backbone("efficientnet_lite0", "imagenet")
    assert not site.server.log and not (cache_dir("weights") / NAME).exists()
    (cache_dir("weights") / NAME).write_bytes(packaged.read_bytes()[:-1])
    with pytest.raises(DraError, match=f"weights/{NAME} is not the published .*Delete it"):
        create_backbone("efficientnet_lite0", "imagenet")


@pytest.mark.parametrize("body", [None, b"junk", "cut"], ids=["not found", "other content", "cut short"])
def test_download_that_fails_names_all_places(body, packaged, site):
    if body is not None:
        site.put(NAME, packaged.read_bytes()[:100_000] if body == "cut" else body)
    with pytest.raises(DraError) as e:
        create_backbone("efficientnet_lite0", "imagenet")
    said = str(e.value)
    places = [str(cache_dir("weights")), f"installed package {PACKAGE}", site.address]
    assert [said.index(place) for place in places] == sorted(said.index(place) for place in places)
    assert 'pip install "dra_nb[lite]"' in said and "--weights none" in said
    assert list(cache_dir("weights").iterdir()) == [], "nothing half downloaded stays"


@pytest.mark.parametrize("change", ["tampered", "cut short"])
def test_damaged_package_is_refused(change, packaged, site, tmp_path, monkeypatch):
    content = bytearray(packaged.read_bytes())
    if change == "tampered":
        content[len(content) // 2] ^= 1
    else:
        del content[-1000:]
    folder = tmp_path / "site" / PACKAGE / "models"
    folder.mkdir(parents=True)
    (folder / NAME).write_bytes(content)
    (folder.parent / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, PACKAGE)
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(DraError, match=f"{PACKAGE}.*is not the published {NAME}.*--force-reinstall"):
        create_backbone("efficientnet_lite0", "imagenet")
    assert not site.server.log, "a damaged file is not silently replaced"


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(DraError, match=r'efficientnet_lite0 needs one more package: pip install "dra_nb\[lite\]"'):
        create_backbone("efficientnet_lite0")


def test_other_networks_name_all_places_too(site, monkeypatch):
    monkeypatch.setattr("dra_nb.models.backbone._imagenet_url", lambda kind: f"{site.address}/resnet18-f37072fd.pth")
    with pytest.raises(DraError, match="weights.*installed packages .none.*127.0.0.1.*efficientnet_lite0.*lite"):
        create_backbone("resnet18", "imagenet")


def test_name_of_the_weights(packaged, site):
    "The same whether the weights are here or not"
    assert weights_id("imagenet", "efficientnet_lite0") == "efficientnet_lite0-57934424"
    assert weights_id(str(packaged), "efficientnet_lite0") == f"{packaged.stem}-57934424"
    assert not site.server.log


def test_methods_take_it_and_survive_a_file(packaged, tmp_path):
    method = create_method("dra", backbone="efficientnet_lite0", weights="imagenet", n_reference=1).eval()
    x = normalize(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        wanted = method.backbone(x)
    save_method(method, tmp_path / "m.safetensors")
    loaded = load_method(tmp_path / "m.safetensors").eval()
    assert loaded.config["backbone"] == "efficientnet_lite0"
    with torch.no_grad():
        np.testing.assert_array_equal(loaded.backbone(x), wanted)
