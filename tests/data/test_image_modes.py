"Images of every kind that a folder may hold: what is read, or the name by which it is refused."

import os

import numpy as np
import pytest
from image_files import (
    COLOURS,
    DEEP,
    GREY,
    RGB,
    SIDE,
    grey_tiff,
    image,
    paletted,
    png16,
    repeated,
    rows_of,
    scaled,
    with_alpha,
)
from PIL import Image

from dra_nb.core import DraError
from dra_nb.data.catalog import make_catalog
from dra_nb.data.decode import decode
from dra_nb.data.masks import read_mask
from dra_nb.data.store import open_store

CMYK = image(RGB).convert("CMYK")
MODES = {  # name of the file: (write it, uint8 (SIDE, SIDE, 3) that is read)
    "rgb.png": (lambda p: image(RGB).save(p), RGB),
    "rgb.BMP": (lambda p: image(RGB).save(p, format="bmp"), RGB),
    "rgb.webp": (lambda p: image(RGB).save(p, lossless=True), RGB),
    "grey.png": (lambda p: image(GREY).save(p), repeated(GREY)),
    "grey.Tiff": (lambda p: image(GREY).save(p, format="tiff"), repeated(GREY)),
    "bits.png": (lambda p: image(GREY > 99).save(p), repeated((GREY > 99).astype(np.uint8) * 255)),
    "bits.tif": (lambda p: image(GREY > 99).save(p), repeated((GREY > 99).astype(np.uint8) * 255)),
    "grey16.png": (lambda p: image(DEEP[..., 0]).save(p), repeated(scaled(DEEP[..., 0], 65535))),
    "grey16.tif": (lambda p: image(DEEP[..., 0]).save(p), repeated(scaled(DEEP[..., 0], 65535))),
    "grey16_big_endian.tif": (
        lambda p: image(DEEP[..., 0].astype(">u2")).save(p),
        repeated(scaled(DEEP[..., 0], 65535)),
    ),
    "grey16_white_zero.tif": (
        lambda p: grey_tiff(p, DEEP[..., 0], 16, False),
        repeated(255 - scaled(DEEP[..., 0], 65535)),
    ),
    "grey12.tif": (lambda p: grey_tiff(p, DEEP[..., 0] >> 4, 12), repeated(scaled(DEEP[..., 0] >> 4, 4095))),
    "rgb16.png": (lambda p: png16(p, DEEP, 2), DEEP >> 8),
    "grey_alpha16.png": (lambda p: png16(p, DEEP[..., :2], 4), repeated(DEEP[..., 0] >> 8)),
    "alpha.png": (lambda p: with_alpha(RGB, GREY).save(p), RGB),
    "invisible.png": (lambda p: with_alpha(RGB, 0 * GREY).save(p), RGB),
    "alpha.tif": (lambda p: with_alpha(RGB, GREY).save(p), RGB),
    "grey_alpha.png": (lambda p: with_alpha(GREY, RGB[..., 1]).save(p), repeated(GREY)),
    "palette.png": (lambda p: paletted().save(p), COLOURS[GREY // 64]),
    "palette_hidden.png": (lambda p: paletted().save(p, transparency=2), COLOURS[GREY // 64]),
    "palette_alphas.png": (lambda p: paletted().save(p, transparency=bytes([0, 90, 180, 255])), COLOURS[GREY // 64]),
    "grey_hidden.png": (lambda p: image(GREY).save(p, transparency=int(GREY[0, 0])), repeated(GREY)),
    "rgb_hidden.png": (lambda p: image(RGB).save(p, transparency=tuple(map(int, RGB[0, 0]))), RGB),
    "bits_hidden.png": (
        lambda p: image(GREY > 99).save(p, transparency=0),
        repeated((GREY > 99).astype(np.uint8) * 255),
    ),
    "cmyk.tif": (lambda p: CMYK.save(p), np.asarray(CMYK.convert("RGB"))),
}


@pytest.fixture(scope="module")
def all_modes(tmp_path_factory):
    "A store with an image of every kind, and its rows by name"
    folder = tmp_path_factory.mktemp("modes")
    for name, (write, _) in MODES.items():
        write(folder / name)
    catalog = make_catalog(rows_of(list(MODES)), folder)
    store = open_store(catalog, SIDE, folder / "cache", progress=False)
    return {os.path.basename(path): store[i].numpy() for i, path in enumerate(catalog["path"])}


@pytest.mark.parametrize("name", MODES)
def test_mode(all_modes, name):
    assert (all_modes[name] == MODES[name][1].transpose(2, 0, 1)).all()


@pytest.mark.parametrize("name", ["bright.jpg", "adobe.jpg"])
def test_cmyk_jpeg_is_not_inverted(tmp_path, name):
    "Adobe stores the inverse; Pillow writes and turns it, with and without the marker of a progressive file"
    smooth = image(RGB).resize((64, 64), Image.Resampling.BICUBIC).convert("CMYK")
    smooth.save(tmp_path / name, quality=100, progressive=name == "adobe.jpg")
    with Image.open(tmp_path / name) as o:
        assert o.mode == "CMYK" and "adobe" in o.info
    expected = np.asarray(smooth.convert("RGB")).transpose(2, 0, 1)
    assert np.abs(decode(tmp_path / name, None, 64).astype(int) - expected).mean() < 2


# ---- which way is up

TURNS = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize(
    "kind", ["rgb.png", "rgb.tif", "grey.tif", "grey16.tif", "grey16.png", "lzw.tif", "rgb.webp", "palette.tif"]
)
@pytest.mark.parametrize("turn", TURNS)
def test_orientation(tmp_path, turn, kind):
    "Uncompressed TIFFs are a case of their own: Pillow maps them into memory"
    oblong = {"grey": GREY[:8], "grey16": DEEP[:8, :, 0]}.get(kind.split(".")[0], RGB[:8])
    source = image(oblong).convert("P", palette=Image.Palette.ADAPTIVE) if "palette" in kind else image(oblong)
    source.save(tmp_path / "plain.png")
    exif = Image.Exif()
    exif[0x0112] = turn
    how = {"lzw.tif": {"compression": "tiff_lzw"}, "rgb.webp": {"lossless": True}}
    source.save(tmp_path / kind, exif=exif, **how.get(kind, {}))
    stored = decode(tmp_path / "plain.png", (0, 0, 8, 8), 8), decode(tmp_path / "plain.png", (4, 0, 12, 8), 8)
    upright = TURNS[turn](np.concatenate([stored[0], stored[1][:, :, 4:]], 2).transpose(1, 2, 0))
    left, top = (4, 0) if upright.shape[1] == 12 else (0, 4)
    assert (
        decode(tmp_path / kind, (left, top, left + 8, top + 8), 8)
        == upright[top : top + 8, left : left + 8].transpose(2, 0, 1)
    ).all()


def test_mask_and_image_are_cut_alike(tmp_path):
    "Both turned, both cut by the box of the upright image"
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[5:17, 20:41] = 255
    exif = Image.Exif()
    exif[0x0112] = 8
    image(picture).save(tmp_path / "a.png", exif=exif)
    image(picture[..., 0]).save(tmp_path / "a_mask.tif", exif=exif)
    box = (2, 11, 34, 43)  # of 40 x 60 pixels
    mask = read_mask(str(tmp_path / "a_mask.tif"), box, 32)
    assert 0 < mask.sum() < mask.size and ((decode(tmp_path / "a.png", box, 32) > 0) == mask).all()
    with pytest.raises(
        DraError, match=r"the mask .*a_mask.tif cannot be used \(the box .* does not lie inside its 40 x 60 pixels"
    ):
        read_mask(str(tmp_path / "a_mask.tif"), (0, 0, 41, 60), 32)


def test_too_large(tmp_path):
    "A file that would unpack to 400 million pixels is refused before any memory is taken"
    with Image.new("1", (20_000, 20_000)) as o:
        o.save(tmp_path / "bomb.png")
    image(RGB).save(tmp_path / "a.png")
    with pytest.raises(
        DraError, match=r"bomb.png cannot be used \(.*400000000 pixels.* Shrink it, or cut it into tiles"
    ):
        open_store(make_catalog(rows_of(["a.png", "bomb.png"]), tmp_path), SIDE, tmp_path / "cache", progress=False)


# ---- refused by name


def frames(path):
    image(RGB).save(path, save_all=True, append_images=[image(255 - RGB)])


REFUSED = {
    "frames.tif": (frames, "it holds 2 pages, of which only the first would be read"),
    "frames.webp": (frames, "it holds 2 frames, of which only the first would be read"),
    "float.tif": (lambda p: image(DEEP[..., 0].astype(np.float32)).save(p), "32-bit numbers of unknown range"),
    "int32.tif": (lambda p: image(GREY.astype(np.int32)).save(p), "32-bit numbers of unknown range"),
    "half.png": (lambda p: (png16(p, DEEP, 2), p.write_bytes(p.read_bytes()[:200])), "half.png"),
    "zero.png": (lambda p: p.write_bytes(b""), "cannot identify"),
    "page.webp": (lambda p: p.write_text("<html>not found</html>"), "cannot identify"),
    "folder.png": (lambda p: p.mkdir(), "directory"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path, name):
    write, says = REFUSED[name]
    write(tmp_path / name)
    with pytest.raises(DraError) as caught:
        decode(tmp_path / name, None, 8)
    assert f"the image {tmp_path / name} cannot be used" in str(caught.value) and says in str(caught.value)


def test_pickles_are_not_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    np.save(tmp_path / "a.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(DraError, match="a.npy cannot be used"):
        decode(tmp_path / "a.npy", None, 8)
    assert not (tmp_path / "sprung").exists()
