"Image stores in memory and short trainings on them: what the tests of methods, training and evaluation share."

from functools import lru_cache

import numpy as np
import torch

from dra_nb.data.outliers import Outliers
from dra_nb.data.protocols import Split
from dra_nb.methods.base import outlier_source
from dra_nb.methods.registry import create_method, load_methods, method_schedule
from dra_nb.training.compute import Compute
from dra_nb.training.loop import fit

UNTRAINED = dict(
    image_size=64, backbone="resnet18_stage2", weights="none", frozen=False
)  # of a Profile: quick, no weights


def noise(n, size, seed=0):
    "Grey noise: n images, a tensor (n, 3, size, size) of uint8"
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(90, 160, (n, 3, size, size), generator=generator, dtype=torch.uint8)


class ToyStore:
    "An image store that holds a tensor (n, 3, size, size) of uint8"

    def __init__(self, images):
        self.images = images
        self.size = images.shape[-1]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, rows):
        return self.images[torch.as_tensor(rows)]


def toy_store():
    "60 noise images of 48 px; the last 20 carry a bright blot"
    images = noise(60, 48)
    for i in range(40, 60):
        images[i, :, 14 + i % 7 : 26 + i % 7, 22:34] = 250
    return ToyStore(images)


STORE = toy_store()
SPLIT = Split(
    normal=np.arange(30),
    given=np.arange(40, 46),
    references=np.arange(30)[::-1].copy(),
    test=np.r_[30:40, 46:60],
    seen=np.arange(24) >= 10,
    known_class="",
)
OUTLIERS = Outliers(STORE, np.arange(30, 40))


def new(name, seed=0, **settings):
    "A method with a small backbone; AHL with a small pool and one inner step"
    if load_methods()[name].needs_outliers:
        settings["outliers"] = "toy"
    if name == "ahl":
        settings |= dict(pool=24, inner=1)
    return create_method(name, backbone="resnet18_stage2", seed=seed, **settings)


def short(name, epochs=2):
    "A method's own schedule in a few steps of 12 images"
    return method_schedule(name, {}).shortened(epochs=epochs, steps=3, batch=12)


def fit_toys(method, schedule, compute, seed=0):
    "Train a method on the toy images; its history"
    outliers = OUTLIERS if outlier_source(method) else None
    return fit(method, STORE, SPLIT, schedule, compute=compute, seed=seed, outliers=outliers)


@lru_cache(maxsize=None)
@torch.enable_grad()
def trained(name, precision="fp32", seed=0):
    "A method after a short training, and its history"
    method = new(name, seed)
    return method, fit_toys(method, short(name), Compute("cpu", precision), seed)
