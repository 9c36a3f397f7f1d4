"What the values of pixels mean: understood where that is certain, else refused or noted with the numbers seen."

import struct
import warnings
import zlib

import numpy as np
import pytest
from image_files import DEEP, RGB, SIDE, grey_tiff, image, png16, repeated, scaled
from PIL import Image, TiffImagePlugin

from dra_nb.core import DraError
from dra_nb.data.catalog import make_catalog
from dra_nb.data.decode import decode
from dra_nb.data.pixels import read_pixels
from dra_nb.data.store import open_store
from dra_nb.data.value_range import ValueRange

RGB = RGB.copy()
RGB[0, :2] = np.array([[0], [255]])
GREY = RGB[..., 0]
TWELVE = np.round(RGB / 255 * 4095).astype(np.uint16)  # what a camera of 12 bits sees of RGB


def tiff(path, array, kind="u2", order="<", *, planar=False, packed=False):
    "A TIFF of any type of number, grey or with three colours"
    h, w, c = (*array.shape, 1)[:3]
    planes = np.moveaxis(np.atleast_3d(array), -1, 0) if planar else np.atleast_3d(array)
    chunks = [o.astype(order + kind).tobytes() for o in (planes if planar else [planes])]
    chunks = [zlib.compress(o) for o in chunks] if packed else chunks
    bits, sample = 8 * int(kind[1]), {"u": 1, "i": 2, "f": 3}[kind[0]]
    starts = 8 + np.cumsum([0, *map(len, chunks)])
    data = b"".join(chunks)
    values = {258: (3, [bits] * c), 273: (4, starts[:-1]), 279: (4, [len(o) for o in chunks]), 339: (3, [sample] * c)}
    values |= {256: (4, [w]), 257: (4, [h]), 259: (3, [8 if packed else 1]), 262: (3, [2 if c == 3 else 1])}
    values |= {277: (3, [c]), 278: (4, [h]), 284: (3, [2 if planar else 1])}
    lists, entries = b"", b""
    for tag, (code, numbers) in sorted(values.items()):
        raw = struct.pack(f"{order}{len(numbers)}{'HI'[code == 4]}", *map(int, numbers))
        place = raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack(f"{order}I", 8 + len(data) + len(lists))
        lists += raw if len(raw) > 4 else b""
        entries += struct.pack(f"{order}HHI", tag, code, len(numbers)) + place
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data) + len(lists))
    path.write_bytes(start + data + lists + struct.pack(f"{order}H", len(values)) + entries + bytes(4))


def pnm(path, array, max_value):
    "A PGM or PPM that states its largest value"
    magic = "P6" if array.ndim == 3 else "P5"
    path.write_bytes(f"{magic}\n{SIDE} {SIDE}\n{max_value}\n".encode() + array.astype(">u2").tobytes())


def read(path, max_value=None):
    "The pixels of a file (SIDE, SIDE, 3), and what was noticed"
    values = ValueRange(max_value)
    return decode(path, None, SIDE, values).transpose(1, 2, 0), values.note


# ---- 12 bits in files of 16: noted, and right with `max_value`

CAMERAS = {  # file: (write 16-bit values, colour?)
    "grey.png": (lambda p, x: image(x[..., 0]).save(p), False),
    "grey.tif": (lambda p, x: image(x[..., 0]).save(p), False),
    "grey_big_endian.tif": (lambda p, x: tiff(p, x[..., 0], order=">"), False),
    "grey_signed.tif": (lambda p, x: tiff(p, x[..., 0], "i2"), False),
    "grey.pgm": (lambda p, x: pnm(p, x[..., 0], 65535), False),
    "grey_alpha.png": (lambda p, x: png16(p, x[..., :2], 4), False),
    "colour.png": (lambda p, x: png16(p, x, 2), True),
    "colour_alpha.png": (lambda p, x: png16(p, np.dstack([x, x[..., 0] * 16]), 6), True),
    "colour.tif": (lambda p, x: tiff(p, x), True),
    "colour_big_endian.tif": (lambda p, x: tiff(p, x, order=">"), True),
    "colour_packed.tif": (lambda p, x: tiff(p, x, packed=True), True),
}


@pytest.mark.parametrize("name", CAMERAS)
@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_cameras_of_fewer_bits(tmp_path, name, bits):
    write, colour = CAMERAS[name]
    white = 2**bits - 1
    write(tmp_path / name, np.round(RGB / 255 * white).astype(np.uint16))
    dark, note = read(tmp_path / name)
    full = 32767 if "signed" in name else 65535
    if full / white > 3:
        assert f"is {white} of {full}, as in data of {bits} bits" in note and dark.max() <= 64
        assert f"Pass max_value={white} (--max-value {white})" in note
    bright, note = read(tmp_path / name, white)
    assert (bright == (RGB if colour else repeated(GREY))).all() and not note
    with pytest.raises(DraError, match=rf"{name} cannot be used \(.* {white}[, ].*{white // 2}; correct max_value"):
        read(tmp_path / name, white // 2)


@pytest.mark.parametrize("name", CAMERAS)
def test_full_range_is_not_noted(tmp_path, name):
    write, colour = CAMERAS[name]
    write(tmp_path / name, DEEP // 2 if "signed" in name else DEEP)
    assert not read(tmp_path / name)[1]


def test_one_note_for_a_catalog(tmp_path):
    "Of all files together: a dark one among bright ones is no reason to speak"
    for i, white in enumerate((900, 4095, 2000)):
        image(np.full((SIDE, SIDE), white, np.uint16)).save(tmp_path / f"{i}.png")
    image(GREY).save(tmp_path / "eight.png")
    rows = [(f"{o}.png", None, "", "train", 0, "", None) for o in (0, 1, 2, "eight")]
    catalog = make_catalog(rows, tmp_path, check=False)
    for _ in ("decoded", "from the cache"):
        with pytest.warns(UserWarning, match="the largest value of all 3 images .* is 4095 of 65535") as caught:
            store = open_store(catalog, SIDE, tmp_path / "cache", progress=False)
        assert len(caught) == 1 and store.notes == [str(caught[0].message)]
    image(np.full((SIDE, SIDE), 60_000, np.uint16)).save(tmp_path / "2.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not open_store(catalog, SIDE, tmp_path / "cache", progress=False).notes
        told = open_store(catalog, SIDE, tmp_path / "cache", progress=False, max_value=65535)
    assert (told[0] == round(900 / 257)).all()


def test_stated_ranges_are_certain(tmp_path):
    "A file that says how many bits it has is read by that, with and without `max_value`"
    grey_tiff(tmp_path / "twelve.tif", TWELVE[..., 0], 12)
    pnm(tmp_path / "twelve.pgm", TWELVE[..., 0], 4095)
    pnm(tmp_path / "twelve.ppm", TWELVE, 4095)
    image(RGB).save(tmp_path / "eight.png")
    for name in ("twelve.tif", "twelve.pgm", "twelve.ppm", "eight.png"):
        for max_value in (None, 1023):
            found, note = read(tmp_path / name, max_value)
            expected = RGB if name in ("twelve.ppm", "eight.png") else repeated(GREY)
            assert np.abs(found.astype(int) - expected).max() <= (name == "twelve.ppm") and not note


# ---- numbers that are no bytes

FRACTIONS = (RGB[..., 0] / 255).astype(np.float32)
NUMBERS = {  # file: (write it, max_value, uint8 grey that is read, or what the error says)
    "fractions.tif": (lambda p: tiff(p, FRACTIONS, "f4"), None, GREY),
    "floats.tif": (lambda p: tiff(p, FRACTIONS * 300, "f4"), None, "unknown range, from .* to 300"),
    "negative.tif": (lambda p: tiff(p, FRACTIONS - 1, "f4"), None, "unknown range, from -1 to 0"),
    "nan.tif": (lambda p: tiff(p, FRACTIONS * np.nan, "f4"), None, "unknown range, from nan to nan"),
    "floats_told.tif": (lambda p: tiff(p, FRACTIONS * 300, "f4"), 300, GREY),
    "fractions_told.tif": (lambda p: tiff(p, FRACTIONS, "f4"), 4095, "to 1, which is black with max_value=4095"),
    "integers.tif": (lambda p: tiff(p, TWELVE[..., 0], "i4"), None, "unknown range, from .* to 4095"),
    "integers_told.tif": (lambda p: tiff(p, TWELVE[..., 0], "i4"), 4095, GREY),
    "signed.tif": (
        lambda p: tiff(p, TWELVE[..., 0].astype(int) - 2000, "i2"),
        None,
        "go from -2000 to 2095, not from 0",
    ),
    "signed_told.tif": (
        lambda p: tiff(p, TWELVE[..., 0].astype(int) - 1, "i2"),
        4095,
        "go from -1 to 4094, not from 0",
    ),
    "signed_bytes.tif": (lambda p: tiff(p, GREY // 2, "i1"), None, "signed bytes of unknown range"),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(tmp_path, name):
    write, max_value, expected = NUMBERS[name]
    write(tmp_path / name)
    if isinstance(expected, str):
        with pytest.raises(DraError, match=rf"{name} cannot be used \(.*{expected}"):
            read(tmp_path / name, max_value)
    else:
        assert (read(tmp_path / name, max_value)[0] == repeated(GREY)).all()


@pytest.mark.parametrize("order", "<>")
def test_planes_of_16_bits(tmp_path, order):
    "Red, green and blue one after the other, which Pillow takes for bytes"
    tiff(tmp_path / "planes.tif", DEEP, order=order, planar=True)
    tiff(tmp_path / "packed.tif", DEEP, order=order, planar=True, packed=True)
    for name in ("planes.tif", "packed.tif"):
        assert (read(tmp_path / name)[0] == DEEP >> 8).all()


def test_jpeg_of_12_bits(tmp_path):
    "Refused by name: no decoder for it is at hand"
    image(RGB).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    at = content.index(b"\xff\xc0") + 4  # the precision in the header of the frame
    (tmp_path / "a.jpg").write_bytes(content[:at] + bytes([12]) + content[at + 1 :])
    with pytest.raises(DraError, match=r"a\.jpg cannot be used \("):
        read(tmp_path / "a.jpg")


# ---- arrays

ARRAYS = {  # what: (array, max_value, what is read, or what the error says)
    "bytes": (RGB, None, RGB),
    "bytes with a range": (RGB, 4095, RGB),
    "booleans": (GREY > 99, None, repeated((GREY > 99) * 255)),
    "fractions": (RGB / 255, None, RGB),
    "half": ((RGB / 255).astype(np.float16), None, RGB),
    "channels first": (RGB.transpose(2, 0, 1), None, RGB),
    "channels first, fractions": ((RGB / 255).transpose(2, 0, 1), None, RGB),
    "alpha first": (np.concatenate([RGB.transpose(2, 0, 1), GREY[None]]), None, RGB),
    "one channel first": (GREY[None], None, repeated(GREY)),
    "16 bits": (DEEP, None, scaled(DEEP, 65535)),
    "12 bits": (TWELVE, 4095, RGB),
    "12 bits, signed": (TWELVE.astype(np.int32), 4095, RGB),
    "12 bits, floats": (TWELVE.astype(float), 4095, RGB),
    "floats": (RGB.astype(float), None, "float64 values go from 0 to 255, and nothing says"),
    "negative": (RGB / 255 - 1, None, "float64 values go from -1 to 0"),
    "normalised": ((RGB / 255 - 0.45) / 0.22, None, "values go from -2.0.* to 2.5"),
    "integers": (RGB.astype(np.int64), None, "int64 values go from 0 to 255, and nothing says"),
    "too large": (TWELVE, 1023, "uint16 values go from 0 to 4095, not from 0 to 1023; correct max_value"),
    "not a number": (RGB * np.nan, None, "from nan to nan"),
    "two channels": (RGB[..., :2], None, "is no image"),
    "six channels first": (np.zeros((6, SIDE, SIDE), np.uint8), None, "is no image"),
}


@pytest.mark.parametrize("what", ARRAYS)
def test_array(what):
    array, max_value, expected = ARRAYS[what]
    if isinstance(expected, str):
        with pytest.raises(DraError, match=f"an array of .*{expected}"):
            read_pixels(array, None, SIDE, ValueRange(max_value))
    else:
        found = read_pixels(array, None, SIDE, ValueRange(max_value))
        assert np.abs(found.transpose(1, 2, 0).astype(int) - expected).max() <= (what in ("half", "16 bits"))


def test_array_of_12_bits_is_noted():
    values = ValueRange()
    read_pixels(TWELVE, None, SIDE, values)
    assert "an image with 16 bits per channel is 4095 of 65535, as in data of 12 bits" in values.note


NPY = {  # what: (array, max_value, what is read, or what the error says)
    "bands first": (RGB.transpose(2, 0, 1), None, RGB),
    "16 bits": (DEEP, None, "hold values from 0 to 65535; they must lie in 0 to 255, or max_value"),
    "16 bits told": (DEEP, 65535, scaled(DEEP, 65535)),
    "12 bits told": (TWELVE, 4095, RGB),
    "bytes as floats": (RGB.astype(np.float32), None, RGB),
    "fractions": (RGB / 255, None, "lie in 0 to 1; save them multiplied by 255, or pass max_value=1"),
    "fractions told": (RGB / 255, 1, RGB),
    "beyond": (TWELVE, 2000, "go from 0 to 4095, not from 0 to 2000"),
    "ambiguous bands": (np.zeros((6, SIDE, SIDE)), None, r"float64 of shape \(6, 12, 12\)"),
}


@pytest.mark.parametrize("what", NPY)
def test_npy(tmp_path, what):
    array, max_value, expected = NPY[what]
    np.save(tmp_path / "a.npy", array)
    if isinstance(expected, str):
        with pytest.raises(DraError, match=rf"a\.npy cannot be used \(.*{expected}"):
            read(tmp_path / "a.npy", max_value)
    else:
        assert np.abs(read(tmp_path / "a.npy", max_value)[0].astype(int) - expected).max() <= (what == "16 bits told")


# ---- several pages or frames


def pages(path, n=2, **how):
    first, *others = (image((RGB + 40 * i).astype(np.uint8)) for i in range(n))
    first.save(path, save_all=True, append_images=others, **how)


SEVERAL = {"four.tif": (4, "4 pages"), "two.gif": (2, "2 frames"), "three.webp": (3, "3 frames")}
SEVERAL |= {"two.png": (2, "2 frames"), "two.apng": (2, "2 frames"), "lzw.tif": (2, "2 pages")}


@pytest.mark.parametrize("name", SEVERAL)
def test_several_pictures_in_a_file(tmp_path, name):
    "A four-page TIFF with its defects on pages 2 to 4 is not normal; nor is any other file of several pictures"
    n, says = SEVERAL[name]
    pages(tmp_path / name, n, **(dict(format="png") if name.endswith("apng") else {}))
    with pytest.raises(
        DraError, match=rf"{name} cannot be used \(it holds {says}, of which only the first would be read"
    ):
        read(tmp_path / name)


def test_reduced_copies_are_no_pages(tmp_path):
    "They say so; a smaller page that does not is a page"
    for kind, says in ((1, ""), (4, ""), (0, "it holds 2 pages"), (2, "it holds 2 pages")):
        with TiffImagePlugin.AppendingTiffWriter(str(tmp_path / "a.tif"), new=True) as file:
            for picture, tags in ((image(RGB), {}), (image(RGB).reduce(2), {254: kind})):
                picture.save(file, format="tiff", tiffinfo=tags)
                file.newFrame()
        assert (
            read_or_error(tmp_path / "a.tif").startswith(says) if says else (read(tmp_path / "a.tif")[0] == RGB).all()
        )


def test_preview_of_a_phone_is_no_frame(tmp_path):
    smooth = image(RGB).resize((96, 96), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "plain.jpg", quality=95)
    smooth.save(tmp_path / "phone.mpo", save_all=True, append_images=[smooth.reduce(8)], quality=95)
    (tmp_path / "phone.mpo").rename(tmp_path / "phone.jpg")
    with Image.open(tmp_path / "phone.jpg") as o:
        assert o.format == "MPO" and o.n_frames == 2
    assert (read(tmp_path / "phone.jpg")[0] == read(tmp_path / "plain.jpg")[0]).all()


def read_or_error(path):
    try:
        read(path)
    except DraError as e:
        return str(e).partition("(")[2]
    return ""
