"Small detectors of made-up parts: images, folders and settings that take a second."

import json

import numpy as np
import pytest
from conftest import picture
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from dra_nb.core import DraError
from dra_nb.detector.detector import AnomalyDetector

QUICK = dict(
    image_size=64, backbone="resnet18_stage2", weights=None, epochs=1, steps=2, batch=9, device="cpu", precision="fp32"
)


def images(kind, n, seed=0, size=64):
    "(n, size, size, 3) uint8 images of a kind"
    rng = np.random.default_rng(seed)
    return np.stack([np.asarray(picture(kind, rng, size)) for _ in range(n)])


GOOD, DENTS, SCRATCHES = images("good", 24), images("dent", 4, 1), images("scratch", 4, 2)


def write(folder, arrays):
    "Images as PNG files; their paths"
    folder.mkdir(parents=True, exist_ok=True)
    for i, a in enumerate(arrays):
        Image.fromarray(a).save(folder / f"{i:03}.png")
    return sorted(str(p) for p in folder.iterdir())


def says(word, f, *args, **kwargs):
    "The message of the DraError that a call raises, which matches `word`"
    with pytest.raises(DraError, match=word) as caught:
        f(*args, **kwargs)
    return str(caught.value)


def parts_folder(root):
    "A folder with good/, bad/dent and bad/scratch"
    write(root / "good", GOOD)
    write(root / "bad/dent", DENTS)
    write(root / "bad/scratch", SCRATCHES)
    return root


def small_detector(folder):
    "A detector of such a folder"
    return AnomalyDetector("dra", **QUICK).fit(folder / "good", folder / "bad")


def rewritten(file, path, tensors=None, **changes):
    "A copy of a detector's file with other metadata: paths of keys, joined by '__', and values"
    with safe_open(file, "pt") as f:
        meta, old = dict(f.metadata()), {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    config = json.loads(meta["detector"])
    for key, value in changes.items():
        *inner, last = key.split("__")
        at = config
        for k in inner:
            at = at[k]
        at[last] = value
    meta["detector"] = json.dumps(config)
    save_file(old if tensors is None else tensors(old), path, metadata=meta)
    return path
