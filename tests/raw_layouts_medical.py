"""Small folders in the layouts in which the authors of the medical datasets publish them, with every irregularity of
the real downloads: names, endings, nesting, image sizes and modes. Each function fills `root` and returns it; the
tables beside it say what a reader should find."""

import uuid
from pathlib import Path

import numpy as np
from PIL import Image

DARK, BRIGHT = 60, 180  # the left and the right half of every picture


def picture(path, size, mode="RGB", format=None):
    "Write an image of a mode; the format follows from the ending, unless the file lies about it"
    pixels = np.full(size[::-1], DARK, np.uint8)
    pixels[:, size[0] // 2 :] = BRIGHT
    ending = path.suffix[1:].upper()
    Image.fromarray(pixels).convert(mode).save(path, format=format or {"JPG": "JPEG"}.get(ending, ending))


def lay(root, files):
    "Write files: path below `root` -> (size, mode[, format]) of a picture, or a text"
    for path, o in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(o, str):
            (root / path).write_text(o)
        else:
            picture(root / path, *o)
    return Path(root)


# BrainMRI: no/ and yes/; .jpg .JPG .jpeg .png, and files named .jpg that are PNG inside

BRAINMRI = {
    "no/1 no.jpeg": ((630, 630), "L"),
    "no/10 no.jpg": ((201, 251), "RGB"),
    "no/11 no.jpg": ((300, 168), "L"),
    "no/N1.JPG": ((225, 225), "RGB"),
    "no/N11.jpg": ((150, 198), "L"),
    "no/No12.jpg": ((232, 217), "RGB"),
    "no/no.jpg": ((200, 243), "RGBA", "PNG"),
    "no/no 9.png": ((221, 228), "L"),
    "no/no 923.jpg": ((225, 224), "P", "PNG"),
    "no/no 7.jpeg": ((236, 236), "RGB"),
    "yes/Y1.jpg": ((180, 218), "RGB"),
    "yes/Y10.jpg": ((400, 470), "L"),
    "yes/Y100.JPG": ((351, 445), "RGB"),
    "yes/Y258.JPG": ((256, 256), "RGB"),
    "yes/Y42.jpg": ((1920, 1080), "RGBA", "PNG"),
}
BRAINMRI_COUNTS = {"": 10, "tumor": 5}


def brainmri(root, nested=False):
    "no/ and yes/, or, as one of two copies in the archive, in brain_tumor_dataset/"
    return lay(root, {f"brain_tumor_dataset/{k}" if nested else k: o for k, o in BRAINMRI.items()})


# HeadCT: labels.csv with a blank in its header, the bleedings first; numbers without leading zeros

HEADCT = {i: int(i < 6) for i in range(15)}  # number -> hemorrhage
HEADCT_COUNTS = {"": 9, "hemorrhage": 6}
HEADCT_SIZES = [(512, 512), (134, 156), (216, 265), (289, 350)]


def headct(root, folder="head_ct/head_ct"):
    "labels.csv and head_ct/head_ct/000.png, ..."
    files = {f"{folder}/{i:03}.png": (HEADCT_SIZES[i % 4], ("RGB", "L", "RGBA", "P")[i % 4]) for i in HEADCT}
    return lay(
        root, files | {"labels.csv": "id, hemorrhage\n" + "".join(f"{i},{label}\n" for i, label in HEADCT.items())}
    )


# Hyper-Kvasir: random names; the labels of all images in one csv; the lower tract beside the upper one

HYPERKVASIR = {
    "upper-gi-tract/anatomical-landmarks": {"pylorus": 5, "retroflex-stomach": 4, "z-line": 6},
    "upper-gi-tract/pathological-findings": {
        "barretts": 2,
        "barretts-short-segment": 3,
        "esophagitis-a": 4,
        "esophagitis-b-d": 3,
    },
    "lower-gi-tract/anatomical-landmarks": {"cecum": 2, "ileum": 1},
    "lower-gi-tract/pathological-findings": {"polyps": 2, "hemorrhoids": 1},
    "lower-gi-tract/quality-of-mucosal-views": {"bbps-0-1": 1, "bbps-2-3": 1, "impacted-stool": 1},
}
HYPERKVASIR_COUNTS = {"": 15, "barretts": 2, "barretts-short-segment": 3, "esophagitis-a": 4, "esophagitis-b-d": 3}
HYPERKVASIR_SIZES = [(633, 532), (332, 352), (720, 576), (1280, 1024)]


def hyperkvasir(root, above=True):
    "labeled-images/ as the archive unpacks to it, or its content"
    start, files, lines = "labeled-images/" if above else "", {}, ["Video file,Organ,Finding,Classification"]
    for folder, classes in HYPERKVASIR.items():
        for name, n in classes.items():
            for i in range(n):
                image = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{name}/{i}"))
                files[f"{start}{folder}/{name}/{image}.jpg"] = (HYPERKVASIR_SIZES[len(files) % 4], "RGB")
                lines.append(f"{image},{folder.split('-')[0].capitalize()} GI,{name},{folder.split('/')[1]}")
    return lay(root, files | {f"{start}image-labels.csv": "\n".join(lines)})


# LAG: per class the images, small maps of where an ophthalmologist looked under the same names, and a label per file

LAG_COUNTS = {"": 9, "glaucoma": 5}


def lag(root, above=False):
    "non_glaucoma/ and suspicious_glaucoma/, or both in LAG_database_part_1/"
    start, files, number = "LAG_database_part_1/" if above else "", {}, 0
    for folder, n, label in (("non_glaucoma", 9, 0), ("suspicious_glaucoma", 5, 1)):
        for _ in range(n):
            number += 1
            files[f"{start}{folder}/image/{number:04}.{'JPG' if number == 3 else 'jpg'}"] = (
                (112, 112) if number == 7 else (500, 500),
                "RGB",
            )
            files[f"{start}{folder}/attention_map/{number:04}.jpg"] = ((112, 112), "L")
            files[f"{start}{folder}/label/{number:04}.txt"] = f"{label}\n"
    return lay(root, files)
