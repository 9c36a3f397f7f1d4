"Every registered method, whichever it is: it learns, it scores, it can be saved."
import pytest, torch

from dra_nb.methods.method import Batch, Schedule, create_method, load_method, load_methods, method_schedule, save_method

def batch_of(method):
    "A batch with every kind of sample, and references if the method takes them"
    g = torch.Generator().manual_seed(0)
    images, labels = torch.randn(6, 3, 64, 64, generator=g), torch.tensor([0, 0, 1, 1, 2, 2])
    return Batch(images, labels, torch.randn(method.n_reference, 3, 64, 64, generator=g) if method.n_reference else None)

@torch.enable_grad()
def trained(name):
    "A method after three steps of training, with its references, in evaluation mode"
    method = create_method(name, backbone="resnet18_stage2", seed=0)
    batch, optimiser = batch_of(method), torch.optim.Adam(method.parameters(), lr=1e-3)
    for _ in range(3):
        optimiser.zero_grad()
        sum(method.training_step(batch).values()).backward()
        optimiser.step()
    method.eval()
    if method.n_reference: method.set_references(batch.references)
    return method, batch.images

@pytest.fixture(params=sorted(load_methods()))
def name(request): return request.param

def test_entry(name):
    entry = load_methods()[name]
    assert entry.name == name and entry.title and entry.paper and entry.needs
    assert isinstance(method_schedule(name, {}), Schedule)

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_parameter_learns(name, dtype):
    method = create_method(name, backbone="resnet18_stage2", seed=0)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16): losses = method.training_step(batch_of(method))
    assert losses and all(v.ndim == 0 and v.isfinite() for v in losses.values())
    sum(losses.values()).backward()
    assert [n for n, p in method.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert all(any(p.grad.abs().sum() > 0 for p in part.parameters()) for part in [method.backbone, *getattr(method, "heads", {}).values()])

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_scores(name, dtype):
    method, images = trained(name)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16): scores, heads = method.score(images), method.head_scores(images)
    assert scores.shape == (6,) and scores.isfinite().all() and scores.float().std() > 0
    assert all(h.shape == (6,) for h in heads.values())
    torch.testing.assert_close(sum(heads.values()).float(), scores.float(), rtol=2e-2, atol=2e-2)

@torch.no_grad()
def test_scores_do_not_depend_on_the_batch(name):
    method, images = trained(name)
    whole, alone = method.score(images), torch.cat([method.score(i[None]) for i in images])
    torch.testing.assert_close(alone, whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(method.score(images.flip(0)).flip(0), whole, rtol=1e-4, atol=1e-5)

@torch.no_grad()
def test_saved_and_loaded(name, tmp_path):
    method, images = trained(name)
    save_method(method, tmp_path/"m.safetensors")
    loaded = load_method(tmp_path/"m.safetensors")
    assert not loaded.training and torch.equal(loaded.score(images), method.score(images))
    fresh = create_method(name, backbone="resnet18_stage2", seed=0).eval()
    if method.n_reference: fresh.set_references(batch_of(fresh).references)
    assert not torch.equal(fresh.score(images), method.score(images))  # the training was saved, not the seed

@torch.no_grad()
def test_score_map(name):
    if not load_methods()[name].maps: pytest.skip("this method gives no score maps")
    method, images = trained(name)
    maps = method.score_map(images)
    assert maps.ndim == 3 and len(maps) == 6 and maps.isfinite().all() and maps.flatten(1).std(1).gt(0).all()
