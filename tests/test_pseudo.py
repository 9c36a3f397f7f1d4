"Every kind of pseudo anomaly changes a part of each image, differently for each sample, and repeats itself with the seed."
import math

import numpy as np, pytest, torch
from PIL import Image
from torchvision.transforms import ColorJitter

from conftest import mvtec_folder
from dra_nb.core import DraError
from dra_nb.data.catalog import make_catalog, read_mvtec
from dra_nb.data.images import open_store
from dra_nb.data.pseudo import PSEUDO, Outliers, cutpaste_scar, outlier_rows, scar_boxes

LARGEST = {"cutpaste_scar": .02, "perlin": .7}  # share of an image that may change; the others paste up to 15 %
MEAN = {"cutmix": (.07, .10), "cutmix_other": (.07, .10), "cutpaste_scar": (.001, .006), "cutpaste_mix": (.03, .06), "perlin": (.03, .12)}

def noise(n, h, w=None, seed=0): return torch.rand(n, 3, h, w or h, generator=torch.Generator().manual_seed(seed))
def seeded(seed): return torch.Generator().manual_seed(seed)
def share(made, images): return (made != images).any(1).flatten(1).float().mean(1)

def test_every_kind_has_its_bounds(): assert set(MEAN) == set(PSEUDO)

@pytest.mark.parametrize("size", [(32, 32), (97, 97), (224, 224), (60, 110)])
@pytest.mark.parametrize("kind", PSEUDO)
def test_part_of_each_image_changes(kind, size):
    images = noise(12, *size)
    before = images.clone()
    made = PSEUDO[kind](images, seeded(1))
    assert torch.equal(images, before), "the input was written to"
    assert made.shape == images.shape and made.dtype == images.dtype and made.isfinite().all() and made.min() >= 0 and made.max() <= 1
    changed = share(made, images)
    assert (changed > 0).all() and changed.max() < LARGEST.get(kind, .17)

@pytest.mark.parametrize("kind", PSEUDO)
def test_mean_area(kind):
    images = noise(300, 64)
    low, high = MEAN[kind]
    assert low < share(PSEUDO[kind](images, seeded(2)), images).mean() < high

@pytest.mark.parametrize("kind", PSEUDO)
def test_the_seed_decides(kind):
    images = noise(6, 64)
    made = PSEUDO[kind](images, seeded(3))
    state = torch.get_rng_state()
    assert torch.equal(made, PSEUDO[kind](images, seeded(3))) and torch.equal(state, torch.get_rng_state())
    assert not torch.equal(made, PSEUDO[kind](images, seeded(4)))
    generator = seeded(3)
    assert torch.equal(made, PSEUDO[kind](images, generator)) and not torch.equal(made, PSEUDO[kind](images, generator))

@pytest.mark.parametrize("kind", PSEUDO)
def test_samples_of_a_batch_differ(kind):
    images = noise(1, 64).expand(8, -1, -1, -1)  # eight times the same image
    changed = (PSEUDO[kind](images, seeded(5)) != images).any(1)
    assert len({tuple(c.flatten().tolist()) for c in changed}) == 8

@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", PSEUDO)
def test_types_and_layouts(kind, dtype):
    images = noise(5, 48)
    made, other = PSEUDO[kind](images, seeded(6)), PSEUDO[kind](images.to(dtype), seeded(6))
    assert other.dtype == dtype and ((other.float() - made).abs() > .06).float().mean() < .01
    assert torch.equal(made, PSEUDO[kind](images.to(memory_format=torch.channels_last), seeded(6)))

@pytest.mark.parametrize("kind", PSEUDO)
def test_smallest_batches(kind):
    assert PSEUDO[kind](noise(0, 32), seeded(0)).shape == (0, 3, 32, 32)
    assert share(PSEUDO[kind](noise(1, 32), seeded(0)), noise(1, 32)) > 0
    assert PSEUDO[kind](noise(4, 1), seeded(0)).shape == (4, 3, 1, 1)

@pytest.mark.parametrize("kind", PSEUDO)
def test_wrong_input_is_refused(kind):
    for wrong in (noise(1, 32)[0], (noise(2, 32)*255).byte(), noise(2, 32)[:, :1]):
        with pytest.raises(DraError, match="to_float"): PSEUDO[kind](wrong, seeded(0))

def scar_by_pillow(image, rng):
    "The published recipe for one image (uint8 PIL, square), with draws of its own; sizes relative to the side"
    side = image.width
    width, length = (max(1, round(rng.uniform(*span)*side/256)) for span in ((2, 16), (10, 25)))
    left, top = int(rng.integers(side - width + 1)), int(rng.integers(side - length + 1))
    patch = ColorJitter(.1, .1, .1, .1)(image.crop((left, top, left + width, top + length)))
    patch = patch.convert("RGBA").rotate(rng.uniform(-45, 45), expand=True)
    place = int(rng.integers(side - patch.width + 1)), int(rng.integers(side - patch.height + 1))
    image = image.copy()
    image.paste(patch.convert("RGB"), place, mask=patch.split()[-1])
    return image

@pytest.mark.parametrize("size", [64, 224])
def test_scars_are_distributed_as_the_plain_recipe(size):
    n, rng = 200, np.random.default_rng(0)
    base = (noise(n, size)*255).byte()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = torch.stack([torch.from_numpy(np.array(scar_by_pillow(Image.fromarray(b.permute(1, 2, 0).numpy()), rng))).permute(2, 0, 1) for b in base])
    images = base/255
    fast = cutpaste_scar(images, seeded(7))
    area, slow = share(fast, images), share(plain, base)
    error = math.sqrt((area.var() + slow.var())/n)
    assert abs(area.mean() - slow.mean()) < 4*error and error < .1*slow.mean()
    assert .75 < area.std()/slow.std() < 1.33
    where = [(a != b).any(1).float().mean(0) for a, b in ((fast, images), (plain, base))]  # the map of changed pixels
    middle = slice(size//4, 3*size//4)
    assert abs(where[0][middle, middle].sum()/where[0].sum() - where[1][middle, middle].sum()/where[1].sum()) < .15

def test_scar_sizes_follow_the_image():
    for size in (64, 128, 448):
        s = scar_boxes(4000, size, size, seeded(8))
        assert abs(s.width.mean()/size - 9/256) < .003 and abs(s.height.mean()/size - 17.5/256) < .003 and s.width.min() >= 1

# outliers

def external(name, *categories):
    rows = [(f"{c}/{i}.png", None, c, split, label, "x"*label, None) for c in categories
            for i, (split, label) in enumerate([("train", 0), ("train", 0), ("test", 0), ("test", 1)])]
    return make_catalog(rows, "somewhere", name)

@pytest.mark.parametrize("target,gone", [((), []), (("elpv",), []), (("mvtec", "grid"), ["grid"]), (("mvtec", "carpet"), ["carpet"]), (("aitex",), ["carpet"]),
                                         (("textures", "weave"), ["carpet"]), (("textures", "wood"), ["wood"]), (("mine", "Grid"), ["grid"])])
def test_overlapping_categories_are_left_out(target, gone):
    catalog = external("mvtec", "carpet", "grid", "wood")
    rows = outlier_rows(catalog, *target)
    assert sorted(set(catalog.category) - set(catalog.category[rows])) == gone
    assert (catalog.label[rows] == 0).all() and (catalog.split[rows] == "train").all() and len(rows) == 2*(3 - len(gone))

def test_both_classes_of_lag():
    assert len(outlier_rows(external("lag", ""), "hyperkvasir")) == 4 and len(outlier_rows(external("brainmri", ""), "hyperkvasir")) == 2

@pytest.mark.parametrize("name,target", [("lag", ("lag",)), ("headct", ("brainmri",)), ("aitex", ("mvtec", "carpet"))])
def test_nothing_left(name, target):
    with pytest.raises(DraError, match=f"no outliers are left in {name}.*{'/'.join(target)}.*another dataset"): outlier_rows(external(name, ""), *target)

def test_a_whole_dataset_of_categories_is_no_outlier_to_itself():
    with pytest.raises(DraError, match="name the category"): outlier_rows(external("mvtec", "carpet", "grid"), "mvtec")
    with pytest.raises(DraError, match="Did you mean 'grid'"): outlier_rows(external("mvtec", "carpet", "grid"), "mvtec", "gird")

def test_outliers_of_a_folder(tmp_path):
    catalog = read_mvtec(mvtec_folder(tmp_path/"mine"))
    store = open_store(catalog, 32, tmp_path/"cache", progress=False)
    outliers = Outliers(store, outlier_rows(catalog, "elpv"))
    assert len(outliers) == 12 and outliers.size == 32
    drawn = outliers.draw(12, seeded(0))
    assert drawn.shape == (12, 3, 32, 32) and drawn.dtype == torch.float32 and drawn.device.type == "cpu" and 0 <= drawn.min() and drawn.max() <= 1
    wanted = {o.numpy().tobytes() for o in store[np.flatnonzero((catalog.label == 0) & (catalog.split == "train"))]}
    assert {(o*255).round().byte().numpy().tobytes() for o in drawn} == wanted  # each once
    assert len(outliers.draw(30, seeded(0))) == 30 and torch.equal(drawn, outliers.draw(12, seeded(0))) and not torch.equal(drawn, outliers.draw(12, seeded(1)))

@pytest.mark.parametrize("rows", [[], [5, 40], [-1], np.ones(28, bool), [.5]])
def test_rows_that_are_none(rows):
    class Store:
        size = 8
        def __len__(self): return 28
    with pytest.raises(DraError, match="outlier"): Outliers(Store(), rows)
