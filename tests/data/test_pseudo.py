"Each kind of pseudo anomaly changes a part of every image, differently for each sample, and the same for a seed."

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import ColorJitter

from dra_nb.core import DraError
from dra_nb.data.cutpaste import cutpaste_scar, scar_boxes
from dra_nb.data.pseudo import PSEUDO

LARGEST = {"cutpaste_scar": 0.02, "perlin": 0.7}  # share of an image that may change; the others paste up to 15 %
MEAN = {
    "cutmix": (0.07, 0.10),
    "cutmix_other": (0.07, 0.10),
    "cutpaste_scar": (0.001, 0.006),
    "cutpaste_mix": (0.03, 0.06),
    "perlin": (0.03, 0.12),
}


def noise(n, h, w=None, seed=0):
    return torch.rand(n, 3, h, w or h, generator=torch.Generator().manual_seed(seed))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def share(made, images):
    return (made != images).any(1).flatten(1).float().mean(1)


def test_every_kind_has_its_bounds():
    assert set(MEAN) == set(PSEUDO)


@pytest.mark.parametrize("size", [(32, 32), (97, 97), (224, 224), (60, 110)])
@pytest.mark.parametrize("kind", PSEUDO)
def test_part_of_each_image_changes(kind, size):
    images = noise(12, *size)
    before = images.clone()
    made = PSEUDO[kind](images, seeded(1))
    assert torch.equal(images, before), "the input was written to"
    assert (
        made.shape == images.shape
        and made.dtype == images.dtype
        and made.isfinite().all()
        and made.min() >= 0
        and made.max() <= 1
    )
    changed = share(made, images)
    assert (changed > 0).all() and changed.max() < LARGEST.get(kind, 0.17)


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
    assert other.dtype == dtype and ((other.float() - made).abs() > 0.06).float().mean() < 0.01
    assert torch.equal(made, PSEUDO[kind](images.to(memory_format=torch.channels_last), seeded(6)))


@pytest.mark.parametrize("kind", PSEUDO)
def test_smallest_batches(kind):
    assert PSEUDO[kind](noise(0, 32), seeded(0)).shape == (0, 3, 32, 32)
    assert share(PSEUDO[kind](noise(1, 32), seeded(0)), noise(1, 32)) > 0
    assert PSEUDO[kind](noise(4, 1), seeded(0)).shape == (4, 3, 1, 1)


@pytest.mark.parametrize("kind", PSEUDO)
def test_wrong_input_is_refused(kind):
    for wrong in (noise(1, 32)[0], (noise(2, 32) * 255).byte(), noise(2, 32)[:, :1]):
        with pytest.raises(DraError, match="to_float"):
            PSEUDO[kind](wrong, seeded(0))


def scar_by_pillow(image, rng):
    "The published recipe for one image (uint8 PIL, square), with draws of its own; sizes relative to the side"
    side = image.width
    width, length = (max(1, round(rng.uniform(*span) * side / 256)) for span in ((2, 16), (10, 25)))
    left, top = int(rng.integers(side - width + 1)), int(rng.integers(side - length + 1))
    patch = ColorJitter(0.1, 0.1, 0.1, 0.1)(image.crop((left, top, left + width, top + length)))
    patch = patch.convert("RGBA").rotate(rng.uniform(-45, 45), expand=True)
    place = int(rng.integers(side - patch.width + 1)), int(rng.integers(side - patch.height + 1))
    image = image.copy()
    image.paste(patch.convert("RGB"), place, mask=patch.split()[-1])
    return image


@pytest.mark.parametrize("size", [64, 224])
def test_scars_are_distributed_as_the_plain_recipe(size):
    n, rng = 200, np.random.default_rng(0)
    base = (noise(n, size) * 255).byte()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = torch.stack(
            [
                torch.from_numpy(np.array(scar_by_pillow(Image.fromarray(b.permute(1, 2, 0).numpy()), rng))).permute(
                    2, 0, 1
                )
                for b in base
            ]
        )
    images = base / 255
    fast = cutpaste_scar(images, seeded(7))
    area, slow = share(fast, images), share(plain, base)
    error = math.sqrt((area.var() + slow.var()) / n)
    assert abs(area.mean() - slow.mean()) < 4 * error and error < 0.1 * slow.mean()
    assert 0.75 < area.std() / slow.std() < 1.33
    where = [(a != b).any(1).float().mean(0) for a, b in ((fast, images), (plain, base))]  # the map of changed pixels
    middle = slice(size // 4, 3 * size // 4)
    assert abs(where[0][middle, middle].sum() / where[0].sum() - where[1][middle, middle].sum() / where[1].sum()) < 0.15


def test_scar_sizes_follow_the_image():
    for size in (64, 128, 448):
        s = scar_boxes(4000, size, size, seeded(8))
        assert (
            abs(s.width.mean() / size - 9 / 256) < 0.003
            and abs(s.height.mean() / size - 17.5 / 256) < 0.003
            and s.width.min() >= 1
        )
