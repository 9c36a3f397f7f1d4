"Images of every kind that a user's folder may hold: what is read of each, or by which name it is refused."
import os, struct, zlib

import numpy as np, pytest
from PIL import Image

from conftest import python, succeeded
from dra_nb.core import DraError
from dra_nb.data.catalog import make_catalog, read_mvtec
from dra_nb.data.images import ImageStore, decode, decode_file, open_store, read_mask

SIDE = 12
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
GREY = RGB[..., 0]
DEEP = RNG.integers(0, 65536, (SIDE, SIDE, 3)).astype(np.uint16)
DEEP[0, 0], DEEP[0, 1] = 0, 65535

# ---- files that Pillow cannot write

def png16(path, array, colour):
    "A PNG of 16 bits per channel; `colour` is the colour type of its header"
    def chunk(name, data): return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in array)
    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, colour, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b""))

def grey_tiff(path, array, bits, zero_is_black=True):
    "An uncompressed grey TIFF of 12 or 16 bits"
    if bits == 12: data = b"".join(int("".join(f"{v:012b}" for v in line), 2).to_bytes(array.shape[1]*12//8, "big") for line in array.tolist())
    else: data = array.astype("<u2").tobytes()
    h, w = array.shape
    tags = {256: w, 257: h, 258: bits, 259: 1, 262: int(zero_is_black), 273: 8, 277: 1, 278: h, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4))

# ---- what is read

def scaled(x, white): return np.round(x*(255/white)).astype(np.uint8)
def repeated(x): return np.repeat(x[..., None], 3, -1)
def image(array): return Image.fromarray(array)
def with_alpha(array, alpha): o = image(array); o.putalpha(image(alpha)); return o
def paletted(): o = image(GREY//64).convert("P"); o.putpalette(COLOURS.ravel().tolist()); return o

COLOURS = RNG.integers(0, 256, (4, 3), dtype=np.uint8)
CMYK = image(RGB).convert("CMYK")
MODES = {  # name of the file: (write it, uint8 (SIDE, SIDE, 3) that is read)
    "rgb.png": (lambda p: image(RGB).save(p), RGB),
    "rgb.BMP": (lambda p: image(RGB).save(p, format="bmp"), RGB),
    "rgb.webp": (lambda p: image(RGB).save(p, lossless=True), RGB),
    "grey.png": (lambda p: image(GREY).save(p), repeated(GREY)),
    "grey.Tiff": (lambda p: image(GREY).save(p, format="tiff"), repeated(GREY)),
    "bits.png": (lambda p: image(GREY > 99).save(p), repeated((GREY > 99).astype(np.uint8)*255)),
    "bits.tif": (lambda p: image(GREY > 99).save(p), repeated((GREY > 99).astype(np.uint8)*255)),
    "grey16.png": (lambda p: image(DEEP[..., 0]).save(p), repeated(scaled(DEEP[..., 0], 65535))),
    "grey16.tif": (lambda p: image(DEEP[..., 0]).save(p), repeated(scaled(DEEP[..., 0], 65535))),
    "grey16_big_endian.tif": (lambda p: image(DEEP[..., 0].astype(">u2")).save(p), repeated(scaled(DEEP[..., 0], 65535))),
    "grey16_white_zero.tif": (lambda p: grey_tiff(p, DEEP[..., 0], 16, False), repeated(255 - scaled(DEEP[..., 0], 65535))),
    "grey12.tif": (lambda p: grey_tiff(p, DEEP[..., 0] >> 4, 12), repeated(scaled(DEEP[..., 0] >> 4, 4095))),
    "rgb16.png": (lambda p: png16(p, DEEP, 2), DEEP >> 8),
    "grey_alpha16.png": (lambda p: png16(p, DEEP[..., :2], 4), repeated(DEEP[..., 0] >> 8)),
    "alpha.png": (lambda p: with_alpha(RGB, GREY).save(p), RGB),
    "invisible.png": (lambda p: with_alpha(RGB, 0*GREY).save(p), RGB),
    "alpha.tif": (lambda p: with_alpha(RGB, GREY).save(p), RGB),
    "grey_alpha.png": (lambda p: with_alpha(GREY, RGB[..., 1]).save(p), repeated(GREY)),
    "palette.png": (lambda p: paletted().save(p), COLOURS[GREY//64]),
    "palette_hidden.png": (lambda p: paletted().save(p, transparency=2), COLOURS[GREY//64]),
    "palette_alphas.png": (lambda p: paletted().save(p, transparency=bytes([0, 90, 180, 255])), COLOURS[GREY//64]),
    "grey_hidden.png": (lambda p: image(GREY).save(p, transparency=int(GREY[0, 0])), repeated(GREY)),
    "cmyk.tif": (lambda p: CMYK.save(p), np.asarray(CMYK.convert("RGB"))),
    "frames.tif": (lambda p: image(RGB).save(p, save_all=True, append_images=[image(255 - RGB)]), RGB),
    "frames.webp": (lambda p: image(RGB).save(p, save_all=True, append_images=[image(255 - RGB)], lossless=True), RGB),
}

def rows_of(names):
    "A catalog of these files: normals, and the first once more as an anomaly"
    return [(o, None, "", "train", 0, "", None) for o in names] + [(names[0], None, "", "test", 1, "dent", None)]

@pytest.fixture(scope="module")
def all_modes(tmp_path_factory):
    "A store with an image of every kind, and its rows by name"
    folder = tmp_path_factory.mktemp("modes")
    for name, (write, _) in MODES.items(): write(folder/name)
    catalog = make_catalog(rows_of(list(MODES)), folder)
    store = open_store(catalog, SIDE, folder/"cache", progress=False)
    return {os.path.basename(path): store[i].numpy() for i, path in enumerate(catalog["path"])}

@pytest.mark.parametrize("name", MODES)
def test_mode(all_modes, name):
    assert (all_modes[name] == MODES[name][1].transpose(2, 0, 1)).all()

@pytest.mark.parametrize("name", ["bright.jpg", "adobe.jpg"])
def test_cmyk_jpeg_is_not_inverted(tmp_path, name):
    "Adobe stores the inverse; Pillow writes and turns it, with and without the marker of a progressive file"
    smooth = image(RGB).resize((64, 64), Image.Resampling.BICUBIC).convert("CMYK")
    smooth.save(tmp_path/name, quality=100, progressive=name == "adobe.jpg")
    with Image.open(tmp_path/name) as o: assert o.mode == "CMYK" and "adobe" in o.info
    expected = np.asarray(smooth.convert("RGB")).transpose(2, 0, 1)
    assert np.abs(decode(tmp_path/name, None, 64).astype(int) - expected).mean() < 2

# ---- which way is up

TURNS = {1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1], 5: lambda x: x.swapaxes(0, 1),
         6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(x, 2).swapaxes(0, 1), 8: lambda x: np.rot90(x)}

@pytest.mark.parametrize("kind", ["rgb.png", "rgb.tif", "grey.tif", "grey16.tif", "grey16.png", "lzw.tif", "rgb.webp", "palette.tif"])
@pytest.mark.parametrize("turn", TURNS)
def test_orientation(tmp_path, turn, kind):
    "Uncompressed TIFFs are a case of their own: Pillow maps them into memory"
    oblong = {"grey": GREY[:8], "grey16": DEEP[:8, :, 0]}.get(kind.split(".")[0], RGB[:8])
    source = image(oblong).convert("P", palette=Image.Palette.ADAPTIVE) if "palette" in kind else image(oblong)
    source.save(tmp_path/"plain.png")
    exif = Image.Exif()
    exif[0x0112] = turn
    how = {"lzw.tif": {"compression": "tiff_lzw"}, "rgb.webp": {"lossless": True}}
    source.save(tmp_path/kind, exif=exif, **how.get(kind, {}))
    stored = decode(tmp_path/"plain.png", (0, 0, 8, 8), 8), decode(tmp_path/"plain.png", (4, 0, 12, 8), 8)
    upright = TURNS[turn](np.concatenate([stored[0], stored[1][:, :, 4:]], 2).transpose(1, 2, 0))
    left, top = (4, 0) if upright.shape[1] == 12 else (0, 4)
    assert (decode(tmp_path/kind, (left, top, left + 8, top + 8), 8) == upright[top:top+8, left:left+8].transpose(2, 0, 1)).all()

def test_mask_and_image_are_cut_alike(tmp_path):
    "Both turned, both cut by the box of the upright image"
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[5:17, 20:41] = 255
    exif = Image.Exif()
    exif[0x0112] = 8
    image(picture).save(tmp_path/"a.png", exif=exif)
    image(picture[..., 0]).save(tmp_path/"a_mask.tif", exif=exif)
    box = (2, 11, 34, 43)  # of 40 x 60 pixels
    mask = read_mask(str(tmp_path/"a_mask.tif"), box, 32)
    assert 0 < mask.sum() < mask.size and ((decode(tmp_path/"a.png", box, 32) > 0) == mask).all()
    with pytest.raises(DraError, match=r"the mask .*a_mask.tif cannot be used \(the box .* does not lie inside its 40 x 60 pixels"):
        read_mask(str(tmp_path/"a_mask.tif"), (0, 0, 41, 60), 32)

# ---- sizes

def test_one_pixel_wide(tmp_path):
    line = RNG.integers(0, 256, 500, dtype=np.uint8)
    for name, array in {"a.png": line[:, None], "b.png": line[None], "c.png": line[:1, None]}.items(): image(array).save(tmp_path/name)
    store = open_store(make_catalog(rows_of(["a.png", "b.png", "c.png"]), tmp_path), 50, tmp_path/"cache", progress=False)
    upright, flat, dot = store[1].numpy(), store[2].numpy(), store[3].numpy()
    assert (upright == upright[..., :1]).all() and (flat == upright.swapaxes(1, 2)).all() and (dot == line[0]).all()
    assert np.abs(upright[0, :, 0].astype(int) - line.reshape(50, 10).mean(1)).mean() < 20

LARGE = """
import re, sys
from pathlib import Path
import numpy as np
from PIL import Image
from dra_nb.data.catalog import read_mvtec
from dra_nb.data.images import open_store
def peak(): return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])/1024
catalog = read_mvtec(sys.argv[1])
Path("/proc/self/clear_refs").write_text("5")
before = peak()
store = open_store(catalog, 100, sys.argv[2], workers=2, progress=False)
print(round(peak() - before), *[abs(o.numpy().astype(int) - np.load(sys.argv[3])).mean() for o in store])
"""

@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs the peak memory that Linux keeps")
def test_ten_thousand_pixels_a_side(tmp_path):
    "100 million pixels are read without a warning, one image at a time: two at once would need 200 MB"
    pattern = RNG.integers(0, 256, (100, 100), dtype=np.uint8)
    large = image(pattern).resize((10_000, 10_000), Image.Resampling.NEAREST)
    np.save(tmp_path/"expected.npy", np.asarray(large.resize((100, 100), Image.Resampling.BILINEAR)))
    for name in ("train/good/a.png", "train/good/b.png", "test/dent/a.jpg"):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        large.save(tmp_path/name, compress_level=1)
    done = succeeded(python(LARGE, tmp_path, tmp_path/"cache", tmp_path/"expected.npy"))
    growth, jpeg, *png = map(float, done.stdout.split())  # the rest: mean difference in grey values
    assert growth < 150 and png == [0, 0] and jpeg < 1, done.stdout  # the JPEG is shrunk in two steps
    assert "Warning" not in done.stderr

def test_too_large(tmp_path):
    "A file that would unpack to 400 million pixels is refused before any memory is taken"
    with Image.new("1", (20_000, 20_000)) as o: o.save(tmp_path/"bomb.png")
    image(RGB).save(tmp_path/"a.png")
    with pytest.raises(DraError, match=r"bomb.png cannot be used \(.*400000000 pixels.* Shrink it, or cut it into tiles"):
        open_store(make_catalog(rows_of(["a.png", "bomb.png"]), tmp_path), SIDE, tmp_path/"cache", progress=False)

# ---- refused by name

REFUSED = {"float.tif": (lambda p: image(DEEP[..., 0].astype(np.float32)).save(p), "32-bit numbers of unknown range"),
           "int32.tif": (lambda p: image(GREY.astype(np.int32)).save(p), "32-bit numbers of unknown range"),
           "half.png": (lambda p: (png16(p, DEEP, 2), p.write_bytes(p.read_bytes()[:200])), "half.png"),
           "zero.png": (lambda p: p.write_bytes(b""), "cannot identify"),
           "page.webp": (lambda p: p.write_text("<html>not found</html>"), "cannot identify"),
           "folder.png": (lambda p: p.mkdir(), "directory")}

@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path, name):
    write, says = REFUSED[name]
    write(tmp_path/name)
    with pytest.raises(DraError) as caught: decode(tmp_path/name, None, 8)
    assert f"the image {tmp_path/name} cannot be used" in str(caught.value) and says in str(caught.value)

# ---- multispectral tiles

def test_tiles_of_numpy_files(tmp_path):
    "As in Mastcam: six bands, of which three are read; one file in the wrong range is named with its range"
    tiles = RNG.integers(0, 256, (3, SIDE, SIDE, 6))
    for i, dtype in enumerate((np.uint8, np.float32, np.int16)): np.save(tmp_path/f"{i}.npy", tiles[i].astype(dtype))
    catalog = make_catalog(rows_of(["0.npy", "1.npy", "2.npy"]), tmp_path)
    store = open_store(catalog, SIDE, tmp_path/"cache", progress=False)
    assert (store[1:].numpy() == tiles[..., :3].transpose(0, 3, 1, 2)).all()
    np.save(tmp_path/"1.npy", tiles[1]*4.5)
    with pytest.raises(DraError, match=r"1\.npy cannot be used \(its first three bands hold values from .* to 11\d\d.*0 to 255"):
        open_store(catalog, SIDE, tmp_path/"cache", progress=False)

def test_pickles_are_not_loaded(tmp_path):
    class Trap:
        def __reduce__(self): return os.mkdir, (str(tmp_path/"sprung"),)
    np.save(tmp_path/"a.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(DraError, match="a.npy cannot be used"): decode(tmp_path/"a.npy", None, 8)
    assert not (tmp_path/"sprung").exists()

# ---- strips and thirds

def test_each_file_is_read_once(tmp_path, monkeypatch):
    "16 tiles of a strip, and the thirds of images whose rows lie apart in the catalog"
    strip = RNG.integers(0, 256, (256, 4096), dtype=np.uint8)
    image(strip).save(tmp_path/"strip.png", compress_level=1)
    thirds = [RNG.integers(0, 256, (300, 50), dtype=np.uint8) for _ in range(2)]
    for i, array in enumerate(thirds): image(array).save(tmp_path/f"{i}.png")
    rows = [("strip.png", (256*i, 0, 256*i + 256, 256), "", "train", 0, "", None) for i in range(16)]
    rows += [(f"{i}.png", (0, 100*k, 50, 100*k + 100), "", "train" if k == 1 else "test", int(k == 2), "dent"*(k == 2), None)
             for i in (0, 1) for k in range(3)]
    catalog, calls = make_catalog(rows, tmp_path), []
    monkeypatch.setattr("dra_nb.data.images.decode_file", lambda *args: calls.append(args[0]) or decode_file(*args))
    store = open_store(catalog, 64, tmp_path/"cache", progress=False)
    assert sorted(calls) == sorted(set(catalog["path"]))
    for i, (path, box) in enumerate(zip(catalog["path"], catalog["box"])):
        left, top, right, bottom = box
        part = (strip if "strip" in path else thirds[int(path[-5])])[top:bottom, left:right]
        assert (store[i].numpy() == np.asarray(image(part).resize((64, 64), Image.Resampling.BILINEAR))).all()

def test_box_outside_names_the_file(tmp_path):
    image(RGB).save(tmp_path/"a.png")
    rows = [("a.png", (0, 0, SIDE, SIDE), "", "train", 0, "", None), ("a.png", (4, 0, SIDE + 1, 8), "", "test", 1, "dent", None)]
    with pytest.raises(DraError, match=rf"a.png cannot be used \(the box \(4, 0, 13, 8\) does not lie inside its {SIDE} x {SIDE} pixels"):
        open_store(make_catalog(rows, tmp_path), 8, tmp_path/"cache", progress=False)

# ---- building

def test_threads_do_not_matter(tmp_path):
    for i in range(40): image(RNG.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)).save(tmp_path/f"{i}.png")
    catalog = make_catalog(rows_of([f"{i}.png" for i in range(40)]), tmp_path)
    one, many = (open_store(catalog, 16, tmp_path/str(n), workers=n, progress=False) for n in (1, 7))
    assert one.path.read_bytes() == many.path.read_bytes() and (ImageStore(one.path)[[3, 3, -1]] == one[np.array([3, 3, 40])]).all()

MANY_ERRORS = """
import re, sys
from pathlib import Path
from dra_nb.core import DraError
from dra_nb.data.catalog import read_mvtec
from dra_nb.data.images import open_store
def peak(): return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])/1024
catalog = read_mvtec(sys.argv[1])
catalog["box"] = [(0, 0, 1001, 1001)]*len(catalog)
Path("/proc/self/clear_refs").write_text("5")
before = peak()
try: open_store(catalog, 8, sys.argv[2], workers=2, progress=False)
except DraError as e: print(round(peak() - before), str(e).split(";")[0])
"""

@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs the peak memory that Linux keeps")
def test_errors_hold_no_images(tmp_path):
    "A catalog with a wrong box in every row: 40 images of 4 MB are not kept for the report"
    for i in range(40):
        place = tmp_path/("train/good" if i else "test/dent")/f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        if i < 2: Image.new("RGB", (1000, 1000)).save(place)
        else: os.link(tmp_path/"train/good/1.png", place)
    growth, said = succeeded(python(MANY_ERRORS, tmp_path, tmp_path/"cache")).stdout.split(" ", 1)
    assert said.startswith("40 of 40 image files cannot be used") and int(growth) < 60, (growth, said)

def test_drawn_masks_mark_every_anomaly(tmp_path):
    "A catalog in MVTec layout, row by row"
    for i, folder in enumerate(("train/good", "test/good", "test/dent", "ground_truth/dent")):
        (tmp_path/folder).mkdir(parents=True)
        image(RGB if i < 3 else (GREY > 200).astype(np.uint8)).save(tmp_path/folder/("0_mask.png" if i == 3 else "0.png"))
    catalog = read_mvtec(tmp_path)
    for _, row in catalog.iterrows():
        assert (read_mask(row, size=SIDE) == ((GREY > 200) if row["label"] else False)).all()
    assert catalog["mask"].notna().sum() == 1
