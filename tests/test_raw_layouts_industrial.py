"The industrial datasets in the layouts of their authors (drawn by `raw_layouts`): every row, every box, every mask, every error."
import os, re, shutil, time
from pathlib import Path

import numpy as np, pytest
from PIL import Image
from sklearn.model_selection import train_test_split

import raw_layouts as raw
from dra_nb.core import DraError
from dra_nb.data.catalog import fingerprint, load_catalog, load_datasets, relative_paths, split_normals
from dra_nb.data.protocols import make_split

NAMES = tuple(raw.LAYOUTS)

@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "A folder with all five datasets; the tests only read it"
    folder = tmp_path_factory.mktemp("raw")
    for name, draw in raw.LAYOUTS.items(): draw(folder/name)
    return folder

@pytest.fixture
def own(data, tmp_path):
    "A function that gives a copy of a dataset to spoil, and what its reader says then"
    def copy(name):
        shutil.copytree(data/name, tmp_path/name)
        def says():
            with pytest.raises(DraError) as caught: load_catalog(name, tmp_path)
            return str(caught.value)
        return tmp_path/name, says
    return copy

def rows(catalog):
    "{(relative path, box): (split, label, class, masks)}; the catalog has one row each, sorted"
    start = catalog.attrs["root"] + "/"
    masks = [None if o is None else tuple(p.removeprefix(start) for p in ([o] if isinstance(o, str) else o)) for o in catalog["mask"]]
    found = {(path, box): (split, label, defect, mask) for path, box, split, label, defect, mask
             in zip(relative_paths(catalog), catalog["box"], catalog["split"], catalog["label"], catalog["defect"], masks)}
    assert len(found) == len(catalog) and set(catalog.category) == {""}
    assert list(found) == sorted(found, key=lambda o: (found[o][0], o[0], o[1] or ()))
    return found

def normals(keys):
    "What `rows` gives for normals: split as the released scripts' call of scikit-learn does it, on the sorted keys"
    keys = sorted(keys)
    test = set(train_test_split(np.arange(len(keys)), test_size=0.25, random_state=42)[1].tolist())
    return {o: ("test" if i in test else "train", 0, "", None) for i, o in enumerate(keys)}

# ELPV ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("clone", [False, True])
def test_elpv(tmp_path, clone):
    catalog = load_catalog("elpv", raw.elpv(tmp_path/"elpv", clone).parent)
    cells = [(f"images/cell{i:04}.png", None) for i in range(1, len(raw.ELPV) + 1)]
    want = normals(o for o, (p, _) in zip(cells, raw.ELPV) if p == "0.0")
    want |= {o: ("test", 1, kind, None) for o, (p, kind) in zip(cells, raw.ELPV) if p == "1.0"}
    assert rows(catalog) == want and len(want) == 14
    assert catalog.attrs["left_out"] == {"probability 1/3 or 2/3": ["images/cell0010.png", "images/cell0011.png"]}

# AITEX --------------------------------------------------------------------------------------------------------------

def aitex_rows(good, bad, mask):
    "What should be found, from the tables of `raw_layouts` alone"
    box = lambda i, width=4096: (256*i, 0, min(256*i + 256, width), 256)
    want = normals((f"{good}/{name}", box(i)) for name in raw.AITEX_NORMAL for i in range(16))
    for strip, (defect, masks, tiles) in raw.AITEX_DEFECTS.items():
        paths = tuple(f"{mask}/{strip}_mask{j if len(masks) > 1 else ''}.png" for j in range(1, len(masks) + 1))
        want |= {(f"{bad}/{strip}.png", box(i, raw.aitex_width(strip))): ("test", 1, defect, paths) for i in tiles}
    return want

def test_aitex(data):
    catalog = load_catalog("aitex", data)
    want = aitex_rows("NODefect_images", "Defect_images/Defect_images", "Mask_images/Mask_images")
    assert rows(catalog) == want and sum(o[1] for o in want.values()) == 33
    assert catalog.groupby("split").label.value_counts().to_dict() == {("train", 0): 84, ("test", 0): 28, ("test", 1): 33}
    assert {o for o in catalog["mask"] if isinstance(o, tuple)} == {tuple(f"{catalog.attrs['root']}/Mask_images/Mask_images/{o}_mask{j}.png" for j in (1, 2))
                                                                  for o in ("0044_019_04", "0097_030_03")}
    assert list(catalog.attrs["left_out"].values()) == [[f"Defect_images/Defect_images/{o}.png" for o in ("0100_025_08", "0106_010_03")]]
    assert set(catalog.defect[catalog.label == 1]) == set(load_datasets()["aitex"].classes) and catalog.defect.nunique() == 13

def test_aitex_as_its_authors_pack_it(data, tmp_path):
    flat = load_catalog("aitex", raw.aitex(tmp_path/"AITEX", nested=False).parent)
    assert rows(flat) == aitex_rows("NODefect_images", "Defect_images", "Mask_images")
    nested = load_catalog("aitex", data)
    assert flat[["box", "split", "label", "defect"]].equals(nested[["box", "split", "label", "defect"]])

def test_aitex_tiles_show_what_is_marked(data):
    "Pixel by pixel: all tiles of the strips with a defect, and the crops that the models get"
    from dra_nb.data.images import decode
    catalog = load_catalog("aitex", data)
    bad = catalog[catalog.label == 1]
    for path, own in bad.groupby("path"):
        paths = own["mask"].iloc[0]
        marked = np.maximum.reduce([np.asarray(Image.open(o)) for o in ([paths] if isinstance(paths, str) else paths)]) > 0
        tiles = {256*i for i in range(16) if marked[:, 256*i:256*i + 256].any()}
        assert {o[0] for o in own.box} == tiles, path
    strip = np.asarray(Image.open(bad.path.iloc[0]))
    assert (decode(bad.path.iloc[0], bad.box.iloc[2], 256) == strip[:, 2816:3072]).all() and bad.box.iloc[2][0] == 2816
    narrow = bad[bad.path.str.contains("0094_027_05")].iloc[0]
    assert narrow.box == (3584, 0, 3796, 256) and decode(narrow.path, narrow.box, 64).shape == (3, 64, 64)

def spoil_aitex(root, what):
    bad, mask, good = root/"Defect_images"/"Defect_images", root/"Mask_images"/"Mask_images", root/"NODefect_images"
    if what == "mask gone": (mask/"0001_002_00_mask.png").unlink()
    if what == "mask empty": raw.put(mask/"0070_023_01_mask.png", raw.marks(4096, 256))
    if what == "mask size": raw.put(mask/"0001_002_00_mask.png", raw.marks(4096, 255, (0, 0, 9, 9)))
    if what == "two masks, two sizes": raw.put(mask/"0044_019_04_mask2.png", raw.marks(4095, 256, (0, 0, 9, 9)))
    if what == "mask broken": (mask/"0099_025_00_mask.png").write_bytes(b"\x89PNG\r\n\x1a\n half")
    if what == "code": (bad/"0070_023_01.png").rename(bad/"0070_024_01.png")
    if what == "name": (bad/"0070_023_01.png").rename(bad/"strip 7.png")
    if what == "height": raw.put(good/raw.AITEX_NORMAL[2], raw.surface(2048, 128))
    if what == "strip broken": (good/raw.AITEX_NORMAL[3]).write_bytes(b"")
    if what == "fabric empty": (good/raw.AITEX_NORMAL[0]).unlink()
    if what == "no masks": shutil.rmtree(root/"Mask_images")

@pytest.mark.parametrize("what, says", [
    ("mask gone", "0001_002_00.png shows a defect, but Mask_images has no 0001_002_00_mask.png"),
    ("mask empty", "0070_023_01.png shows a defect, but its mask Mask_images/Mask_images/0070_023_01_mask.png is empty"),
    ("mask size", "0001_002_00_mask.png is 4096 x 255 pixels, but its image 4096 x 256"),
    ("two masks, two sizes", "0044_019_04_mask2.png is 4095 x 256 pixels"), ("mask broken", "0099_025_00_mask.png cannot be used"),
    ("code", "0070_024_01.png has no known defect code"), ("name", "strip 7.png has no known defect code"),
    ("height", "0014_000_00.png is 2048 x 128 pixels"), ("strip broken", "0015_000_01.png cannot be used"),
    ("fabric empty", "2306881-210020u holds no image"), ("no masks", "it needs the folders NODefect_images, Defect_images, Mask_images")])
def test_aitex_errors(own, what, says):
    root, message = own("aitex")
    spoil_aitex(root, what)
    assert says in message()

def test_aitex_two_strips_may_lack_a_mark_but_need_not(own):
    "Somebody who has drawn the missing mask gets its tiles"
    root, _ = own("aitex")
    raw.put(root/"Mask_images/Mask_images/0100_025_08_mask.png", raw.marks(4096, 256, (600, 0, 610, 9)))
    catalog = load_catalog("aitex", root.parent)
    tile = catalog[catalog.path.str.contains("0100_025_08")]
    assert tile.box.tolist() == [(512, 0, 768, 256)] and tile.defect.tolist() == ["Warp_ball"]
    assert sum(map(len, catalog.attrs["left_out"].values())) == 1

# SDD ----------------------------------------------------------------------------------------------------------------

def test_sdd(data):
    catalog = load_catalog("sdd", data)
    thirds = {(name, i): (f"{name}.jpg", (0, h*i//3, 500, h*(i + 1)//3)) for name, (h, _, _) in raw.SDD.items() for i in range(3)}
    bad = {thirds[name, i]: ("test", 1, "defect", (f"{name}_label.bmp",)) for name, (_, _, hit) in raw.SDD.items() for i in hit}
    want = normals(set(thirds.values()) - set(bad)) | bad
    assert rows(catalog) == want and len(want) == 24 and len(bad) == 5
    for o in catalog[catalog.label == 1].itertuples():
        with Image.open(o.mask) as label: assert np.asarray(label.crop(o.box)).any()
    assert dict((name, h) for name, (h, _, _) in raw.SDD.items())["kos02/Part3"] == 1257  # thirds of 419 pixels each
    assert ("kos02/Part3.jpg", (0, 419, 500, 838)) in want and ("kos01/Part5.jpg", (0, 836, 500, 1255)) in want

def test_sdd_crops(data):
    from dra_nb.data.images import decode
    catalog = load_catalog("sdd", data)
    o = catalog[catalog.path.str.endswith("kos10/Part7.jpg") & (catalog.label == 1)].iloc[0]
    with Image.open(o.path) as image: third = image.convert("RGB").crop((0, 846, 500, 1270)).resize((60, 60), Image.Resampling.BILINEAR)
    assert (decode(o.path, o.box, 60) == np.asarray(third).transpose(2, 0, 1)).all()

def spoil_sdd(root, what):
    if what == "label gone": (root/"kos02/Part0_label.bmp").unlink()
    if what == "image gone": (root/"kos02/Part0.jpg").unlink()
    if what == "sizes": raw.put(root/"kos02/Part0_label.bmp", raw.marks(500, 1241))
    if what == "label broken": (root/"kos02/Part0_label.bmp").write_bytes(b"BM")
    if what == "folder empty": [o.unlink() for o in (root/"kos50").iterdir()]

@pytest.mark.parametrize("what, says", [
    ("label gone", "Part0.jpg has no label beside it"), ("image gone", "Part0_label.bmp is the label of an image that does not exist"),
    ("sizes", "Part0_label.bmp is 500 x 1241 pixels, but its image 500 x 1240"), ("label broken", "Part0_label.bmp cannot be used"),
    ("folder empty", "kos50 holds no image")])
def test_sdd_errors(own, what, says):
    root, message = own("sdd")
    spoil_sdd(root, what)
    assert says in message()

# Optical ------------------------------------------------------------------------------------------------------------

def optical_rows(nested, beside=False):
    "What should be found; `beside`: the folder Label lies beside Train and Test"
    good, bad = [], {}
    for i in range(1, 11):
        folder = f"Class{i}/Class{i}" if nested else f"Class{i}"
        for part, (start, flags) in raw.OPTICAL_FLAGS.items():
            label = f"{folder}/Label" if beside else f"{folder}/{part}/Label"
            for j, flag in enumerate(flags, start):
                if flag: bad[f"{folder}/{part}/{j:04}.PNG", None] = ("test", 1, "defect", (f"{label}/{j:04}_label.PNG",))
                else: good.append((f"{folder}/{part}/{j:04}.PNG", None))
    return normals(good) | bad

def test_optical(data, tmp_path):
    nested, flat = load_catalog("optical", data), load_catalog("optical", raw.optical(tmp_path/"optical", nested=False).parent)
    assert rows(nested) == optical_rows(True) and rows(flat) == optical_rows(False)
    assert nested.split.tolist() == flat.split.tolist() and nested.label.sum() == 20 and (nested.label == 0).sum() == 50
    assert all(os.path.isfile(o) for o in nested["mask"].dropna())
    anomalies = nested[nested.label == 1]
    assert {Path(p).parts[-4] for p in anomalies.path} == {f"Class{i}" for i in range(1, 11)}  # no texture lost among equal names

def test_optical_twice_in_one_archive(own):
    "Kaggle's archive holds a second copy in a folder; it is not counted"
    root, _ = own("optical")
    shutil.copytree(root, root.parent/"copy")
    shutil.move(root.parent/"copy", root/"DAGM_KaggleUpload")
    assert rows(load_catalog("optical", root.parent)) == optical_rows(True)

def test_optical_labels_beside_train_and_test(tmp_path):
    root = raw.optical(tmp_path/"optical", nested=False)
    for folder in root.iterdir():
        lines = []
        (folder/"Label").mkdir()
        for part in raw.OPTICAL_FLAGS:
            lines += (folder/part/"Label"/"Labels.txt").read_text().splitlines()[1:]
            for o in (folder/part/"Label").glob("*.PNG"): o.rename(folder/"Label"/o.name)
            shutil.rmtree(folder/part/"Label")
        (folder/"Label"/"Labels.txt").write_text("1\n" + "\n".join(lines) + "\n")
    assert rows(load_catalog("optical", tmp_path)) == optical_rows(False, beside=True)

def test_optical_some_textures(tmp_path):
    "A download of three of the ten is read; it is for the check to say what is missing"
    catalog = load_catalog("optical", raw.optical(tmp_path/"optical", textures=3).parent)
    assert len(catalog) == 18 + 3 and catalog.label.sum() == 6

def spoil_optical(root, what):
    labels = root/"Class3/Class3/Test/Label/Labels.txt"
    if what == "image gone": (root/"Class3/Class3/Test/0003.PNG").unlink()
    if what == "image more": shutil.copyfile(root/"Class3/Class3/Test/0003.PNG", root/"Class3/Class3/Test/0009.PNG")
    if what == "mask gone": (labels.parent/"0002_label.PNG").unlink()
    if what == "labels gone": labels.unlink()
    if what == "flag": labels.write_text(labels.read_text().replace("2\t1\t", "2\tyes\t"))
    if what == "field": labels.write_text(labels.read_text().replace("\t0\t0002_label.PNG", ""))
    if what == "binary": labels.write_bytes(b"\xff\xfe\x00\x01")
    if what == "part gone": shutil.rmtree(root/"Class3/Class3/Test")

@pytest.mark.parametrize("what, says", [
    ("image gone", "Labels.txt lists 1 images that do not exist: 0003.png"), ("image more", "0009.PNG is not listed in"),
    ("mask gone", "0002_label.PNG does not exist"), ("labels gone", "Labels.txt cannot be read"), ("flag", "line 3 is malformed"),
    ("field", "line 3 is malformed"), ("binary", "not text"), ("part gone", "Class3/Class3 has no folder Test")])
def test_optical_errors(own, what, says):
    root, message = own("optical")
    spoil_optical(root, what)
    assert says in message()

# Mastcam ------------------------------------------------------------------------------------------------------------

def test_mastcam(data):
    catalog = load_catalog("mastcam", data)
    files = {o.relative_to(data/"mastcam").as_posix() for o in (data/"mastcam").rglob("*.npy")}
    want = {(o, None): ("train" if "train" in o else "test", 0, "", None) for o in files if o.startswith(("train_typical/", "test_typical/"))}
    want |= {(o, None): ("test", 1, o.split("/")[1], None) for o in files if o.startswith("test_novel/") and "/all/" not in o}
    assert rows(catalog) == want
    assert catalog.groupby(["split", "defect"]).size().to_dict() == {("train", ""): 7, ("test", ""): 3} | {
        ("test", kind): n + (kind == "dump-pile") for kind, n in raw.MASTCAM_CLASSES.items()}
    assert set(catalog.defect[catalog.label == 1]) == set(load_datasets()["mastcam"].classes)

def test_mastcam_tiles_become_pictures(data):
    from dra_nb.data.images import decode
    o = load_catalog("mastcam", data).path.iloc[0]
    assert np.load(o).shape == (64, 64, 6) and (decode(o, None, 64) == np.load(o)[..., :3].transpose(2, 0, 1)).all()

def test_mastcam_each_zip_in_a_folder_of_its_own(data, own):
    root, _ = own("mastcam")
    for name in ("train_typical", "test_typical", "test_novel"):
        (root/name).rename(root/"moved"); (root/name).mkdir(); (root/"moved").rename(root/name/name)
    nested, catalog = load_catalog("mastcam", root.parent), load_catalog("mastcam", data)
    assert nested.drop(columns="path").equals(catalog.drop(columns="path")) and not nested.path.str.contains("/all/").any()

def test_mastcam_errors(own):
    root, message = own("mastcam")
    for o in (root/"test_novel/veins").iterdir(): o.unlink()
    assert "veins holds no image; expected files ending in npy" in message()
    shutil.rmtree(root/"test_typical")
    assert "it needs the folders train_typical, test_typical, test_novel" in message()

# All ----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", NAMES)
def test_order_and_times_of_the_files_do_not_enter(data, tmp_path, name):
    catalogs = [load_catalog(name, raw.shuffled_copy(data/name, tmp_path/str(i)/name, i).parent) for i in (1, 2)]
    one, two = map(rows, catalogs)
    assert one == two == rows(load_catalog(name, data)) and list(one) == list(two)
    assert fingerprint(catalogs[0], times=False) == fingerprint(catalogs[1], times=False) and fingerprint(catalogs[0]) != fingerprint(catalogs[1])
    for seed in (0, 1):
        a, b = (make_split(o, shots=2, withheld=3, seed=seed) for o in catalogs)
        assert all(np.array_equal(getattr(a, o), getattr(b, o)) for o in ("normal", "given", "references", "test", "seen"))

@pytest.mark.parametrize("name", [o for o in NAMES if o != "elpv"])  # ELPV names its files in labels.csv
def test_endings_in_any_letter_case(data, tmp_path, name):
    shutil.copytree(data/name, tmp_path/name)
    for o in list((tmp_path/name).rglob("*.*")):
        if o.suffix.lower() in (".png", ".jpg", ".bmp", ".npy"): o.rename(o.with_suffix(o.suffix.swapcase()))
    swapped, catalog = load_catalog(name, tmp_path), load_catalog(name, data)
    columns = ["box", "split", "label", "defect"]
    assert swapped[columns].equals(catalog[columns]) and swapped["mask"].notna().equals(catalog["mask"].notna())
    one, two = ([o.lower() for o in relative_paths(o)] for o in (swapped, catalog))
    assert one == two and relative_paths(swapped) != relative_paths(catalog)
    assert all(os.path.isfile(p) for o in swapped["mask"].dropna() for p in ([o] if isinstance(o, str) else o))

@pytest.mark.parametrize("name", NAMES)
def test_a_folder_around_it(data, tmp_path, name):
    (tmp_path/name/"download").mkdir(parents=True)
    shutil.copytree(data/name, tmp_path/name/"download"/name)
    assert rows(load_catalog(name, tmp_path)) == rows(load_catalog(name, data))

@pytest.mark.parametrize("name", NAMES)
def test_wrong_folder(tmp_path, name):
    o = load_datasets()[name]
    raw.put(tmp_path/name/"pictures"/"a.png", raw.surface(8, 8))
    raw.put(tmp_path/name/"more"/"b.png", raw.surface(8, 8))
    with pytest.raises(DraError) as caught: load_catalog(name, tmp_path)
    assert f"does not hold {o.title}" in str(caught.value) and o.layout in str(caught.value) and o.where in str(caught.value)

def test_no_file_of_a_layout_is_unknown_to_the_check(data):
    from dra_nb.data.check import check_dataset
    for name in NAMES: assert check_dataset(name, data).unknown == (), name

def test_registry():
    from dra_nb.experiments.published import TITLES, published
    known, table = load_datasets(), published("table2")
    for name in NAMES:
        assert known[name].title == TITLES[name] and known[name].folder == name and set(known[name].expected) == {""}
        assert set(table.known_class[table.dataset == name]) - {"mean"} <= set(known[name].classes)
    for o in (known[name] for name in (*NAMES, "mvtec")):
        for file in o.files:
            assert file.url.startswith("https://") and re.fullmatch(r"|sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", file.digest) and file.size >= 0
    assert len(known["mvtec"].expected) == 15 and known["mvtec"].expected["carpet"] == {"train": 280, "test": 28, "*": 89}

# At full size -------------------------------------------------------------------------------------------------------

def link(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    try: os.link(source, target)
    except OSError: shutil.copyfile(source, target)

def empty(path): open(path, "wb").close()

def full_aitex(root):
    "141 strips without a defect and 106 with one, of which 183 tiles are marked"
    strip, codes = raw.put(root.parent/"strip.png", raw.surface(4096, 256)), [f"{o:03}" for o in (2, 6, 10, 16, 19, 22, 23, 25, 27, 29, 30, 36)]
    masks = [raw.put(root.parent/f"mask{n}.png", raw.marks(4096, 256, (0, 9, 256*n, 12))) for n in (1, 2)]
    for i in range(141): link(strip, root/f"NODefect_images/{raw.AITEX_FABRICS[i % 7]}/{i:04}_000_{i % 7:02}.png")
    for i in range(106):
        stem = f"{i:04}_{codes[i % 12]}_01"
        link(strip, root/f"Defect_images/{stem}.png"); link(masks[i < 77], root/f"Mask_images/{stem}_mask.png")

def full_sdd(root):
    "399 images, 52 of them with a defect, two across a border"
    image = raw.put(root.parent/"image.jpg", raw.surface(500, 1260))
    labels = [raw.put(root.parent/f"label{i}.bmp", raw.marks(500, 1260, *boxes)) for i, boxes in enumerate([[], [(9, 9, 20, 20)], [(9, 410, 20, 430)]])]
    for i in range(399):
        link(image, root/f"kos{i//8 + 1:02}/Part{i % 8}.jpg"); link(labels[2 if i < 2 else i < 52], root/f"kos{i//8 + 1:02}/Part{i % 8}_label.bmp")

def full_optical(root):
    "575 + 575 images of each of six textures, 1150 + 1150 of four"
    for i in range(1, 11):
        n, bad = (575, 75) if i < 7 else (1150, 150)
        for part, start in ("Test", 1), ("Train", n + 1):
            labels, lines = root/f"Class{i}/{part}/Label", ["1"]
            labels.mkdir(parents=True)
            for j in range(start, start + n):
                flag = j < start + bad
                empty(f"{labels.parent}/{j:04}.PNG")
                if flag: empty(f"{labels}/{j:04}_label.PNG")
                lines.append(f"{j}\t{int(flag)}\t{j:04}.PNG\t0\t{f'{j:04}_label.PNG' if flag else 0}")
            (labels/"Labels.txt").write_text("\n".join(lines) + "\n")

def full_mastcam(root):
    for folder, n in ("train_typical", 9302), ("test_typical", 426), *((f"test_novel/{o}", 41) for o in raw.MASTCAM_CLASSES):
        (root/folder).mkdir(parents=True)
        for i in range(n): empty(f"{root}/{folder}/mcam{i:05}_R0_sol0069_7.npy")

@pytest.mark.parametrize("draw, train, test, anomalies", [(full_aitex, 1692, 564, 183), (full_sdd, 857, 286, 54),
                                                          (full_optical, 10500, 3500, 2100), (full_mastcam, 9302, 426, 451)])
def test_full_size(tmp_path, draw, train, test, anomalies):
    "The counts of table 5 (of SDD, those of its script), within seconds, and the check agrees"
    from dra_nb.data.check import check_dataset
    name = draw.__name__.removeprefix("full_")
    draw(tmp_path/"data"/name)
    start = time.perf_counter()
    catalog = load_catalog(name, tmp_path/"data")
    assert time.perf_counter() - start < 10
    counts = catalog.groupby("split").label.value_counts()
    assert (counts["train", 0], counts["test", 0], counts["test", 1]) == (train, test, anomalies) and len(catalog) == train + test + anomalies
    check = check_dataset(name, tmp_path/"data")
    assert check.ok and check.unknown == () and check.missing == () and bool(check.explained) == (name == "sdd")

def test_arithmetic_of_the_splits():
    for n, train, test in (141*16, 1692, 564), (399*3 - 54, 857, 286), (14_000, 10500, 3500), (1508, 1131, 377):
        split = split_normals(n)
        assert (split.count("train"), split.count("test")) == (train, test)
