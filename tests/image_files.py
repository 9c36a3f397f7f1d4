"Image files of every kind, some of which Pillow cannot write, and what has to be read of them."

import struct
import zlib

import numpy as np
from PIL import Image

SIDE = 12
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
GREY = RGB[..., 0]
DEEP = RNG.integers(0, 65536, (SIDE, SIDE, 3)).astype(np.uint16)
DEEP[0, 0] = 0
DEEP[0, 1] = 65535
COLOURS = RNG.integers(0, 256, (4, 3), dtype=np.uint8)
PEAK = r"""
import re, sys
from pathlib import Path
def peak(): return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])/1024
def restart_peak(): Path("/proc/self/clear_refs").write_text("5")
"""  # a script starts with it to measure its peak memory in MB, which Linux keeps


def png16(path, array, colour):
    "A PNG of 16 bits per channel; `colour` is the colour type of its header"

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in array)
    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, colour, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    )


def grey_tiff(path, array, bits, zero_is_black=True):
    "An uncompressed grey TIFF of 12 or 16 bits"
    if bits == 12:
        data = b"".join(
            int("".join(f"{v:012b}" for v in line), 2).to_bytes(array.shape[1] * 12 // 8, "big")
            for line in array.tolist()
        )
    else:
        data = array.astype("<u2").tobytes()
    h, w = array.shape
    tags = {256: w, 257: h, 258: bits, 259: 1, 262: int(zero_is_black), 273: 8, 277: 1, 278: h, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    path.write_bytes(
        b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)
    )


def scaled(x, white):
    return np.round(x * (255 / white)).astype(np.uint8)


def repeated(x):
    return np.repeat(x[..., None], 3, -1)


def image(array):
    return Image.fromarray(array)


def with_alpha(array, alpha):
    o = image(array)
    o.putalpha(image(alpha))
    return o


def paletted():
    o = image(GREY // 64).convert("P")
    o.putpalette(COLOURS.ravel().tolist())
    return o


def rows_of(names):
    "A catalog of these files: normals, and the first once more as an anomaly"
    return [(o, None, "", "train", 0, "", None) for o in names] + [(names[0], None, "", "test", 1, "dent", None)]
