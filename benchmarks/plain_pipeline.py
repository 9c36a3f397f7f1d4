"""The plain pipeline that the image store is compared with: PIL, torchvision transforms and a DataLoader.

It makes one sample at a time. It draws the same balanced batches as `dra_nb.training.loop.fit`, but opens, converts and
resizes the file of every sample at every step, makes pseudo anomalies with PIL, and collates single samples.
"""

import math
import random

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from dra_nb.data.samplers import BalancedSampler
from dra_nb.methods.base import Batch
from dra_nb.models.colour import IMAGENET_MEAN, IMAGENET_STD


def open_square(
    path,  # an image file
    box,  # (left, top, right, bottom) in pixels, or None
    size: int,  # side of the result in pixels
) -> Image.Image:
    "Open, convert, crop and resize"
    with Image.open(path) as image:
        image = image.convert("RGB")
    if box is not None:
        image = image.crop(box)
    return image.resize((size, size), Image.Resampling.BILINEAR)


def decode_all(catalog, size: int) -> int:
    "Decode every row of a catalog, one after the other, and keep nothing"
    for path, box in zip(catalog["path"], catalog["box"]):
        open_square(path, box, size)
    return len(catalog)


class CutMix:
    "Pseudo anomaly (eq. 4) on a PIL image: a jittered rectangle pasted elsewhere in the same image"

    def __init__(self):
        from torchvision.transforms import ColorJitter

        self.jitter = ColorJitter(0.1, 0.1, 0.1, 0.1)

    def __call__(self, image):
        W, H = image.size
        area, aspect = random.uniform(0.02, 0.15) * W * H, math.exp(random.uniform(math.log(0.3), math.log(1 / 0.3)))
        w, h = (min(max(round(o), 1), top) for o, top in ((math.sqrt(area * aspect), W), (math.sqrt(area / aspect), H)))
        left, top = random.randint(0, W - w), random.randint(0, H - h)
        image.paste(
            self.jitter(image.crop((left, top, left + w, top + h))),
            (random.randint(0, W - w), random.randint(0, H - h)),
        )
        return image


class PlainImages(Dataset):
    "Samples by key (row of the catalog, label); label 2 asks for a pseudo anomaly"

    def __init__(self, catalog, size: int):
        from torchvision import transforms as T

        self.path, self.box, self.size, self.cutmix = catalog["path"].tolist(), catalog["box"].tolist(), size, CutMix()
        self.augment = T.Compose([T.RandomRotation(180), T.ToTensor(), T.Normalize(IMAGENET_MEAN, IMAGENET_STD)])

    def __len__(self):
        return len(self.path)

    def __getitem__(self, key):  # (3, size, size) float32, label
        row, label = key
        image = open_square(self.path[row], self.box[row], self.size)
        if label == 2:
            image = self.cutmix(image)
        return self.augment(image), label


class BalancedKeys:
    "Endless batch sampler: the keys of a balanced batch, followed by those of a fresh set of references"

    def __init__(self, split, method, schedule, seed: int = 0):
        self.sampler = BalancedSampler(
            split,
            schedule.batch,
            schedule.anomalies,
            method.pseudo,
            method.n_reference,
            fresh_references=True,
            generator=torch.Generator().manual_seed(seed),
        )
        self.pseudo = method.pseudo

    def __iter__(self):
        while True:
            index = self.sampler.draw()
            keys = list(zip(index.rows.tolist(), index.labels.tolist()))
            if index.references is not None:
                keys += [(row, 2 * (random.random() < self.pseudo)) for row in index.references.tolist()]
            yield keys


def plain_batches(
    catalog,
    split,
    method,
    schedule,
    size: int,  # side of the images in pixels
    workers: int,  # processes that decode; 0: the training process itself
    device,  # torch.device
    seed: int = 0,
    layout=torch.channels_last,  # of the pixels in memory
):  # endless iterator of `Batch`
    "Training batches the plain way, normalised and on the device"
    torch.manual_seed(seed)
    random.seed(seed)
    loader = DataLoader(
        PlainImages(catalog, size),
        batch_sampler=BalancedKeys(split, method, schedule, seed),
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    for images, labels in loader:
        images = images.to(device, non_blocking=True).contiguous(memory_format=layout)
        n = schedule.batch
        yield Batch(images[:n], labels[:n].to(device), images[n:] if method.n_reference else None)
