"Masks of every format, way of drawing, orientation, size, number and name."

import io
import unicodedata

import numpy as np
import pytest
from conftest import mvtec_folder
from image_files import grey_tiff
from own_files import counts, touch
from PIL import Image, ImageDraw, ImageFilter

from dra_nb.core import DraError
from dra_nb.data.catalog import relative_paths
from dra_nb.data.check import check_dataset
from dra_nb.data.datasets import load_catalog
from dra_nb.data.decode import decode
from dra_nb.data.labelled import read_labelled, training_parts
from dra_nb.data.masks import load_mask, read_marks, read_mask
from dra_nb.data.readers.own import read_own

SIDE = 256
DRAWING = Image.new("L", (SIDE, SIDE))
ImageDraw.Draw(DRAWING).ellipse((40, 60, 120, 130), 255)
ImageDraw.Draw(DRAWING).line((150, 30, 230, 200), 255, width=9)
BLOT = np.asarray(DRAWING) > 0
LARGE = DRAWING.resize((4 * SIDE, 4 * SIDE))


def through(picture, ending, **options):
    "The picture after it has been saved and opened"
    file = io.BytesIO()
    picture.save(file, ending, **options)
    return Image.open(io.BytesIO(file.getvalue()))


def in_colours(mark, ground):
    return Image.fromarray(np.where(BLOT[..., None], np.uint8(mark), np.uint8(ground)))


def with_palette(ground, marks, number=1):
    "Numbers 0 and 1 with these colours; the marks have this number"
    picture = Image.frombytes("P", DRAWING.size, np.where(BLOT, number, 1 - number).astype(np.uint8).tobytes())
    picture.putpalette([*(ground + marks if number else marks + ground)] + [0] * 762)
    return picture


def with_alpha(colour, alpha):
    picture = Image.new("RGB", DRAWING.size, colour)
    picture.putalpha(alpha)
    return picture


def numbers(step):
    "An instance number for each of the two regions"
    return Image.fromarray(np.uint8(BLOT * np.where(np.arange(SIDE) > 135, 2, 1) * step))


def as_read(path, picture, **options):
    picture.save(path, **options)
    return read_marks(path)


def edge(width):
    "The pixels within so many of the edge of the marks"
    grown = DRAWING.filter(ImageFilter.MaxFilter(2 * width + 1))
    shrunk = DRAWING.filter(ImageFilter.MinFilter(2 * width + 1))
    return np.asarray(grown) != np.asarray(shrunk)


@pytest.mark.parametrize("quality", [75, 40, 10])
@pytest.mark.parametrize("ending", ["jpg", "webp", "png", "tif"])
def test_noise_of_compression_is_no_defect(tmp_path, ending, quality):
    "C1; the png was a JPEG file before"
    if ending == "png":
        found = as_read(tmp_path / "m.png", through(DRAWING, "JPEG", quality=quality))
    else:
        options = {"compression": "jpeg"} if ending == "tif" else {}
        found = as_read(tmp_path / f"m.{ending}", DRAWING, quality=quality, **options)
    wrong = found != BLOT
    assert not wrong[~edge(2)].any() and wrong.sum() < 0.03 * BLOT.sum()


@pytest.mark.parametrize("ground", [(255, 255, 255), (0, 0, 0), (68, 1, 84)])
@pytest.mark.parametrize("ending", ["jpg", "webp"])
def test_noise_of_colours_is_no_defect(tmp_path, ending, ground):
    wrong = as_read(tmp_path / f"m.{ending}", in_colours((235, 60, 60), ground), quality=40) != BLOT
    assert not wrong[~edge(3)].any() and wrong.sum() < 0.08 * BLOT.sum()


EXACT = {
    "0 and 255": DRAWING,
    "0 and 1": Image.fromarray(np.uint8(BLOT)),
    "one bit": DRAWING.convert("1"),
    "16 bits": Image.fromarray(np.uint16(BLOT) * 65535),
    "16 bits, 0 and 1": Image.fromarray(np.uint16(BLOT)),
    "numbers of instances": numbers(1),
    "numbers as grey levels": numbers(100),
    "palette of VOC": with_palette((0, 0, 0), (128, 0, 0)),
    "palette, ground second": with_palette((0, 0, 0), (255, 255, 255), number=0),
    "palette of colours": with_palette((68, 1, 84), (253, 231, 37)),
    "palette, all black": with_palette((0, 0, 0), (0, 0, 0)),
    "red on white": in_colours((255, 0, 0), (255, 255, 255)),
    "dark blue on black": in_colours((0, 0, 128), (0, 0, 0)),
    "white on grey": in_colours((255, 255, 255), (128, 128, 128)),
    "paint on nothing": with_alpha((200, 30, 60), DRAWING),
    "black paint on nothing": with_alpha((0, 0, 0), DRAWING),
    "opaque": DRAWING.convert("RGBA"),
    "invisible layer": Image.merge("LA", (DRAWING, Image.new("L", DRAWING.size))),
}


@pytest.mark.parametrize("kind", EXACT)
def test_marks_are_found_however_they_are_drawn(tmp_path, kind):
    assert (as_read(tmp_path / "m.png", EXACT[kind]) == BLOT).all()


@pytest.mark.parametrize(("bits", "zero_is_black"), [(12, True), (16, True), (16, False)])
def test_deep_masks_with_black_or_white_for_zero(tmp_path, bits, zero_is_black):
    grey_tiff(
        tmp_path / "m.tif", np.where(zero_is_black == BLOT, 2**bits - 1, 0).astype(np.uint16), bits, zero_is_black
    )
    assert (read_marks(tmp_path / "m.tif") == BLOT).all()


@pytest.mark.parametrize(
    "soft",
    [
        DRAWING.filter(ImageFilter.GaussianBlur(2)),
        LARGE.filter(ImageFilter.GaussianBlur(3)).resize(DRAWING.size, Image.Resampling.BOX),
        LARGE.resize(DRAWING.size, Image.Resampling.LANCZOS),
        with_alpha((0, 200, 0), DRAWING.filter(ImageFilter.GaussianBlur(1))),
    ],
    ids=["blurred", "antialiased", "resampled", "soft brush"],
)
def test_soft_edges_end_at_half(tmp_path, soft):
    wrong = as_read(tmp_path / "m.png", soft) != BLOT
    assert not wrong[~edge(2)].any() and wrong.sum() < 0.06 * BLOT.sum()


def random_drawing(rng):
    "Up to five ellipses, rectangles and strokes, four times too large, and their instance numbers"
    width, height = rng.integers(60, 260, 2).tolist()
    large, small = Image.new("L", (4 * width, 4 * height)), Image.new("L", (width, height))
    for number in range(1, rng.integers(2, 7)):
        x, y, w, h = (rng.random(4) * [width, height, width / 2, height / 2]).astype(int).tolist()
        shape = rng.choice(["ellipse", "rectangle", "line"])
        wide = {"width": 3} if shape == "line" else {}
        getattr(ImageDraw.Draw(small), shape)((x, y, x + w + 2, y + h + 2), number, **wide)
        wide = {"width": 12} if shape == "line" else {}
        getattr(ImageDraw.Draw(large), shape)((4 * x, 4 * y, 4 * (x + w + 2), 4 * (y + h + 2)), 255, **wide)
    return large.resize((width, height), Image.Resampling.BOX), np.asarray(small)


@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_drawn_is_read_alike(tmp_path, seed):
    "Soft, noisy and coloured versions differ from the exact one at its edges alone"
    soft, numbered = random_drawing(np.random.default_rng(seed))
    truth = np.asarray(soft) > 127
    exact = Image.fromarray(np.uint8(255 * truth))
    red = Image.fromarray(np.where(truth[..., None], np.uint8([220, 40, 40]), np.uint8(255)))
    paint = Image.new("RGB", soft.size, (0, 200, 0))
    paint.putalpha(soft)
    near = exact.filter(ImageFilter.MaxFilter(7)), exact.filter(ImageFilter.MinFilter(7))
    near = np.asarray(near[0]) != np.asarray(near[1])
    for name, picture, options in (
        ("soft.png", soft, {}),
        ("paint.png", paint, {}),
        ("75.jpg", exact, {"quality": 75}),
        ("40.jpg", exact, {"quality": 40}),
        ("red.jpg", red, {"quality": 75}),
        ("30.webp", exact, {"quality": 30}),
        ("97.png", through(exact, "JPEG", quality=97), {}),
    ):
        wrong = as_read(tmp_path / name, picture, **options) != truth
        assert not wrong[~near].any(), name
    for step in (1, 40):
        assert (as_read(tmp_path / "numbers.png", Image.fromarray(np.uint8(numbered * step))) == (numbered > 0)).all()


def test_nothing_is_marked_and_everything_is(tmp_path):
    for ending, options in (("png", {}), ("jpg", {"quality": 40}), ("webp", {"quality": 30})):
        for level in (0, 255):
            found = as_read(tmp_path / f"m.{ending}", Image.new("L", (64, 48), level), **options)
            assert found.shape == (48, 64) and (found == (level > 0)).all()


def test_what_could_mean_two_things_is_refused(tmp_path):
    hole = DRAWING.convert("RGBA")
    hole.putalpha(Image.fromarray(np.uint8(255 * (np.indices(BLOT.shape)[1] > 30))))
    photo = Image.fromarray(np.uint8(127 + 90 * np.sin(np.indices((SIDE, SIDE)).sum(0) / 9)))
    for name, picture, why in (
        ("classes.jpg", numbers(1), "differ by at most"),
        ("blurred.jpg", numbers(120), "regions of several grey levels"),
        ("photo.png", photo, "as in a photo"),
        ("hole.png", hole, "partly transparent"),
    ):
        picture.save(tmp_path / name)
        with pytest.raises(
            DraError, match=f"the mask .*{name} cannot be used .*{why}.*; save it with 0 for the ground"
        ):
            read_mask(tmp_path / name)


def row_of(folder, image, *masks):
    paths = tuple(str(folder / o) for o in masks)
    return {"path": str(folder / image), "box": None, "label": 1, "mask": paths if len(paths) > 1 else paths[0]}


@pytest.mark.parametrize("tag", range(1, 9))
def test_mask_is_turned_as_its_photo(tmp_path, tag):
    "Drawn on the photo as it is stored, or with the tag of the photo: the sizes or the tags tell"
    stored = Image.fromarray(np.uint8(255 * BLOT[20:160, 30:240]))
    exif = Image.Exif()
    exif[0x0112] = tag
    stored.convert("RGB").save(tmp_path / "a.png", exif=exif)
    stored.save(tmp_path / "plain.png")
    stored.save(tmp_path / "tagged.png", exif=exif)
    truth = decode(tmp_path / "a.png", None, 420)[0] > 127
    certain = [tag == 1 or tag > 4, True]
    for name, known in zip(("plain.png", "tagged.png"), certain):
        mask = load_mask(row_of(tmp_path, "a.png", name), 420)
        assert mask.certain == known
        assert not known or (mask.pixels != truth).mean() < 0.02


@pytest.mark.parametrize("size", [(128, 128), (256, 255), (512, 512), (128, 256)])
def test_mask_of_another_size_is_refused(tmp_path, size):
    "C2"
    Image.new("RGB", (256, 256)).save(tmp_path / "a.jpg")
    DRAWING.save(tmp_path / "good.png")
    DRAWING.resize(size).save(tmp_path / "bad.png")
    said = f"bad.png is {size[0]} x {size[1]} pixels, but its image .*a.jpg 256 x 256; save it at the size"
    for masks in (["bad.png"], ["good.png", "bad.png"]):
        with pytest.raises(DraError, match=said):
            read_mask(row_of(tmp_path, "a.jpg", *masks))
    assert (read_mask(row_of(tmp_path, "a.jpg", "good.png"), size=SIDE) == BLOT).all()


def loco(root, start=""):
    "A category of MVTec LOCO: 12 normals in validation, two masks for the first logical anomaly"
    touch(
        root,
        *(f"{start}train/good/{i:03}.png" for i in range(9)),
        *(f"{start}validation/good/{i:03}.png" for i in range(12)),
        *(f"{start}test/good/{i:03}.png" for i in range(4)),
        *(f"{start}test/logical_anomalies/{i:03}.png" for i in range(2)),
        *(f"{start}test/structural_anomalies/{i:03}.png" for i in range(2)),
        f"{start}ground_truth/logical_anomalies/000/000.png",
        f"{start}ground_truth/logical_anomalies/000/001.png",
        f"{start}ground_truth/logical_anomalies/001/000.png",
        f"{start}ground_truth/structural_anomalies/001/000.png",
    )
    return root


@pytest.mark.parametrize("start", ["", "juice_bottle/"])
def test_folders_of_mvtec_loco(tmp_path, start):
    "C6"
    catalog = read_own(loco(tmp_path, start))
    assert counts(catalog) == {
        ("train", ""): 21,
        ("test", ""): 4,
        ("test", "logical_anomalies"): 2,
        ("test", "structural_anomalies"): 2,
    }
    found = dict(zip(relative_paths(catalog), catalog["mask"]))
    below = f"{catalog.attrs['root']}/{start}ground_truth"
    first = found[f"{start}test/logical_anomalies/000.png"]
    assert first == tuple(f"{below}/logical_anomalies/000/00{i}.png" for i in range(2))
    assert found[f"{start}test/logical_anomalies/001.png"] == f"{below}/logical_anomalies/001/000.png"
    assert found[f"{start}test/structural_anomalies/000.png"] is None


@pytest.mark.parametrize("name", ["validation", "Validation", "val", "VALID"])
def test_normals_for_validation_are_learnt_from(tmp_path, name):
    loco(tmp_path)
    (tmp_path / "validation").rename(tmp_path / name)
    parts = training_parts(read_labelled(tmp_path))
    assert [len(o) for o in parts] == [21, 4, 4]
    touch(tmp_path, f"{name}/dent/0.png")
    with pytest.raises(DraError, match=f"{name} may hold only the folder 'good'"):
        read_own(tmp_path)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_letter_case_and_accents_do_not_matter(tmp_path, form):
    "Folders and files, as macOS and Windows write them"
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    touch(
        tmp_path,
        "Train/Good/a.png",
        "TEST/good/a.png",
        unicodedata.normalize(form, "TEST/Rißé/Gehäuse.JPG"),
        unicodedata.normalize(other, "Ground_Truth/rißé/gehäuse_MASK.PNG"),
    )
    catalog = read_own(tmp_path)
    assert catalog.split.tolist() == ["test", "test", "train"]
    assert unicodedata.normalize("NFC", catalog["mask"].dropna().item()).endswith("Ground_Truth/rißé/gehäuse_MASK.PNG")
    assert read_labelled(tmp_path).split.tolist() == catalog.split.tolist()


@pytest.mark.parametrize(
    "name", ["a.bmp", "A_mask.png", "a-mask.png", "a.GT.png", "a_label.PNG", "a.jpg_seg.png", "a/0.png"]
)
def test_names_of_masks(tmp_path, name):
    touch(tmp_path, "normal/0.png", "normal/1.png", "bad/a.jpg", f"masks/{name}")
    assert read_own(tmp_path)["mask"].dropna().tolist() == [f"{tmp_path}/masks/{name}"]
    touch(tmp_path / "m", "train/good/0.png", "test/dent/a.jpg", f"ground_truth/dent/{name}")
    assert read_own(tmp_path / "m")["mask"].dropna().tolist() == [f"{tmp_path}/m/ground_truth/dent/{name}"]


def test_several_masks_count_together(tmp_path):
    folder = mvtec_folder(tmp_path, 2, 2, {"dent": 1}, size=SIDE)
    (folder / "ground_truth/dent").mkdir(parents=True)
    left = np.uint8(BLOT) * (np.arange(SIDE) < 135)
    for name, part in (("000_mask_1.png", left * 255), ("000_mask_2.png", (np.uint8(BLOT) - left))):
        Image.fromarray(part.astype(np.uint8)).save(folder / "ground_truth/dent" / name)
    row = read_own(folder).iloc[0]
    assert len(row["mask"]) == 2 and (read_mask(row, size=SIDE) == BLOT).all()


@pytest.mark.parametrize(
    "lost", ["dent/9_mask.png", "rust/0_mask.png", "0_mask.png", "dent/0_old/deep/1.png", "train/a.png"]
)
def test_masks_of_no_image_are_named(tmp_path, lost):
    touch(tmp_path, "train/good/0.png", "test/dent/0.png", "ground_truth/dent/0_mask.png", f"ground_truth/{lost}")
    with pytest.raises(DraError, match=f"1 of 2 masks belong to no anomaly: ground_truth/{lost}. Expected"):
        read_own(tmp_path)


def test_check_of_a_dataset_lists_masks_of_no_image(tmp_path):
    folder = mvtec_folder(tmp_path / "mvtec/tile", 2, 2, {"crack": 1})
    (folder / "ground_truth/crack").mkdir(parents=True)
    for name in ("000_mask.png", "007_mask.png"):
        Image.new("L", (64, 64), 255).save(folder / "ground_truth/crack" / name)
    assert len(load_catalog("mvtec", tmp_path)["mask"].dropna()) == 1
    check = check_dataset("mvtec", tmp_path)
    assert check.unknown == ("tile/ground_truth/crack/007_mask.png",) and "007_mask.png" in str(check)


def test_black_masks_of_normals_are_none_and_others_are_refused(tmp_path):
    folder = mvtec_folder(tmp_path, 2, 2, {"dent": 1})
    (folder / "ground_truth/good").mkdir(parents=True)
    mask = folder / "ground_truth/good/001_mask.png"
    Image.new("L", (64, 64)).save(mask)
    assert read_own(folder)["mask"].isna().all()
    DRAWING.resize((64, 64)).save(mask)
    with pytest.raises(DraError, match="001_mask.png marks a defect, but its image 001.png is a normal one"):
        read_own(folder)
