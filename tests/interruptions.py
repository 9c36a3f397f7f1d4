"Short trainings that can be interrupted at a chosen call, for the tests of checkpoints."

from functools import lru_cache

import numpy as np
from toys import ToyStore, noise

from dra_nb.data.outliers import Outliers
from dra_nb.data.protocols import Split
from dra_nb.methods.base import outlier_source
from dra_nb.methods.registry import create_method, method_schedule
from dra_nb.training.compute import Compute
from dra_nb.training.loop import fit


def small_store(seed=0):
    "36 noise images of 32 px; the last 12 carry a bright blot"
    images = noise(36, 32, seed)
    images[24:, :, 10:18, 12:20] = 250
    return ToyStore(images)


STORE = small_store()
SPLIT = Split(
    normal=np.arange(18),
    given=np.arange(24, 28),
    references=np.arange(18)[::-1].copy(),
    test=np.r_[18:24, 28:36],
    seen=np.arange(14) >= 6,
)
OUTLIERS = Outliers(STORE, np.arange(18, 24))
SMALL = {  # settings that make a method small
    "ahl": dict(pool=24, inner=1, history=1, at_once=4),
    "saoe": dict(outliers="toy"),
}


class Stop(Exception):
    "What interrupts a training here"


def new(name, **kw):
    return create_method(name, backbone="resnet18_stage2", **SMALL.get(name, {}) | kw)


def short(name, epochs=3):
    return method_schedule(name, {}).shortened(epochs=epochs, steps=2, batch=6)


def train(name, method=None, precision="fp32", seed=0, **kw):
    "A method after a short training, and its history"
    method = method or new(name)
    return method, fit(
        method,
        STORE,
        SPLIT,
        kw.pop("schedule", short(name)),
        compute=Compute("cpu", precision),
        seed=seed,
        outliers=OUTLIERS if outlier_source(method) else None,
        **kw,
    )


@lru_cache(maxsize=None)
def undisturbed(name, precision="fp32"):
    return train(name, precision=precision)


def stops(method, place, n=0):
    "The method, failing at the n-th call of `place`, counted from 0; `method.calls` counts those that went well"
    real, method.calls = getattr(method, place), 0

    def call(*args):
        if method.calls == n:
            raise Stop
        method.calls += 1
        return real(*args)

    setattr(method, place, call)
    return method
