"A user's own data: a pair of folders, a csv file of any size, and what is said when something is wrong with them."
import os, shutil
from collections import Counter

import numpy as np, pytest

from conftest import dra_nb, mvtec_folder, picture, python, refused, short_spec, succeeded
from dra_nb.core import DraError
from dra_nb.data.catalog import fingerprint, load_catalog, relative_paths, split_normals
from dra_nb.data.own import read_list, read_own
from dra_nb.data.protocols import make_split
from raw_layouts import shuffled_copy

def touch(root, *names):
    "Empty files; catalogs do not open images"
    for name in names:
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        (root/name).touch()
    return root

def listing(root, *lines, header="path,label", name="parts.csv"):
    (root/name).write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return root/name

def counts(catalog): return catalog.groupby(["split", "defect"]).size().to_dict()

# pairs ----------------------------------------------------------------------------------------------------------------

NORMALS = [f"{i:02}.png" for i in range(10)]

@pytest.mark.parametrize("normal", ["normal", "Normals", "GOOD"])
@pytest.mark.parametrize("anomaly", ["anomalies", "Anomaly", "defects", "bad"])
def test_pair_names(normal, anomaly, tmp_path):
    touch(tmp_path/"p", *(f"{normal}/{o}" for o in NORMALS), f"{anomaly}/x.JPEG", f"{anomaly}/y.TIF", f"{anomaly}/readme.txt")
    catalog = load_catalog("p", tmp_path)
    assert counts(catalog) == {("train", ""): 7, ("test", ""): 3, ("test", "anomaly"): 2}
    assert {p.split("/")[1]: s for p, s in zip(relative_paths(catalog), catalog.split) if p.startswith(normal)} == dict(zip(NORMALS, split_normals(10)))

def test_pair_with_classes_and_masks(tmp_path):
    touch(tmp_path, *(f"normal/{o}" for o in NORMALS), "anomalies/dent/a.png", "anomalies/dent/b.png", "anomalies/rust/a.png", "masks/dent/a_mask.png", "masks/rust/a.bmp")
    catalog = read_own(tmp_path)
    masks = {p: m and m.removeprefix(catalog.attrs["root"] + "/") for p, m in zip(relative_paths(catalog), catalog["mask"]) if p.startswith("anomalies")}
    assert masks == {"anomalies/dent/a.png": "masks/dent/a_mask.png", "anomalies/dent/b.png": None, "anomalies/rust/a.png": "masks/rust/a.bmp"}
    assert sorted(set(catalog.defect)) == ["", "dent", "rust"] and len(make_split(catalog, "hard", "dent", shots=1).test) == 4

def test_pair_does_not_depend_on_the_file_system(tmp_path):
    touch(tmp_path/"a", *(f"normal/{o}" for o in NORMALS), *(f"anomalies/{k}/{i}.png" for k in ("dent", "rust") for i in range(6)))
    tables = [read_own(shuffled_copy(tmp_path/"a", tmp_path/str(seed), seed)) for seed in (1, 2)]
    assert relative_paths(tables[0]) == relative_paths(tables[1]) and tables[0].drop(columns="path").equals(tables[1].drop(columns="path"))
    assert (make_split(tables[0], shots=3).given == make_split(tables[1], shots=3).given).all()
    assert fingerprint(tables[0], times=False) == fingerprint(tables[1], times=False)

@pytest.mark.parametrize("files, says", [
    ([f"normal/{i}.png" for i in range(4)], "has no anomalies: at least one is needed"), (["bad/a.png"], "no normal images to train on"),
    (["normal/a.png", "bad/x/a.png", "bad/b.png"], "'b.png' lies directly in"), (["normal/a.png", "normal/old/b.png", "bad/a.png"], "'old', whose images would not be used"),
    (["normal/a.png", "normal/b.png", "good/a.png", "bad/a.png"], "good and normal, which mean the same"),
    (["normal/a.png", "normal/b.png", "bad/a.png", "masks/b.png"], "1 of 1 masks belong to no anomaly: masks/b.png"),
    (["pictures/a.png"], "Either MVTec layout"), (["a.png"], "Either MVTec layout")])
def test_pair_errors(files, says, tmp_path):
    with pytest.raises(DraError, match=says): read_own(touch(tmp_path, *files))

# names ----------------------------------------------------------------------------------------------------------------

def test_what_a_name_stands_for(tmp_path):
    mvtec_folder(tmp_path/"board", n_train=3, n_test=1, classes={"hole": 2})
    touch(tmp_path/"shots", *NORMALS)
    listing(tmp_path, *(f"shots/{o},{int(i > 7)}" for i, o in enumerate(NORMALS)), name="shots.csv")
    touch(tmp_path/"kept"/"i", *NORMALS)
    listing(tmp_path/"kept", *(f"i/{o},{int(i > 7)}" for i, o in enumerate(NORMALS)), name="labels.csv")
    assert [len(load_catalog(o, tmp_path)) for o in ("board", "shots", "shots.csv", "kept")] == [6, 10, 10, 10]
    for name in ("board", "shots.csv", "kept"): assert load_catalog(name, tmp_path).attrs["dataset"] == name
    with pytest.raises(DraError, match="unknown dataset 'boards'. Did you mean 'board'"): load_catalog("boards", tmp_path)

def test_the_data_folder_is_a_file(tmp_path):
    file = listing(tmp_path, "a.png,0")
    for name in ("elpv", "mine"):
        with pytest.raises(DraError, match="parts.csv is a file, not a folder; pass the folder that holds it"): load_catalog(name, file)
        with pytest.raises(DraError, match="nowhere does not exist"): load_catalog(name, tmp_path/"nowhere")
    assert "is a file, not a folder" in refused(dra_nb("run", "mine", "--data", file, "--method", "devnet", cwd=tmp_path))

# csv ------------------------------------------------------------------------------------------------------------------

def test_csv_all_columns(tmp_path):
    touch(tmp_path, "i/a.png", "i/b.png", "i/c.png", "i/d.png", "far/e.tif", "m/e.png")
    file = listing(tmp_path, "i/a.png,0,,,train,u,", "i/b.png,Good,normal,,TEST,u,", '"i\\c.png",normal,,,train,v,"0, 0, 4, 8"', 'i/c.png,0,good,,train,v,(4 0 8 8)',
                   "", f"{tmp_path}/far/e.tif, 1 ,big dent,m/e.png,,u,", "./i/../i/d.png,BAD,,,test,v,", header=" Path ,LABEL,class,mask,split,category,box")
    catalog = read_list(file)
    assert list(zip(relative_paths(catalog), *(catalog[o] for o in ("category", "split", "label", "defect", "box")))) == [
        ("far/e.tif", "u", "test", 1, "big dent", None), ("i/b.png", "u", "test", 0, "", None), ("i/a.png", "u", "train", 0, "", None),
        ("i/d.png", "v", "test", 1, "anomaly", None), ("i/c.png", "v", "train", 0, "", (0, 0, 4, 8)), ("i/c.png", "v", "train", 0, "", (4, 0, 8, 8))]
    assert catalog["mask"].tolist() == [f"{catalog.attrs['root']}/m/e.png", None, None, None, None, None]

def test_csv_order_does_not_matter(tmp_path):
    touch(tmp_path, *NORMALS, "x.png")
    lines = [f"{o},0" for o in NORMALS] + ["x.png,1"]
    a, b = read_list(listing(tmp_path, *lines)), read_list(listing(tmp_path, *lines[::-1]))
    assert a.equals(b) and [s for p, s in zip(relative_paths(a), a.split) if p in NORMALS and s == "test"] == ["test"]*3

def test_crops_of_one_image_stay_together(tmp_path):
    touch(tmp_path, *NORMALS, "x.png")
    catalog = read_list(listing(tmp_path, *(f'{o},0,"{i},0,{i + 8},8"' for o in NORMALS for i in range(5)), "x.png,1,", header="path,label,box"))
    sides = catalog[catalog.label == 0].groupby("path").split.agg(["nunique", "first"])
    assert (sides["nunique"] == 1).all() and sides["first"].tolist() == split_normals(10)

PLAIN = "path,label"
@pytest.mark.parametrize("header, lines, says", [
    (PLAIN, ["a.png,0", "b.png,maybe", "a.png,2"], r"parts.csv, line 3 \(and 1 more\): the label 'maybe' is unknown; write 0, normal or good, or 1, anomaly or bad"),
    (PLAIN, ["a.png,0", "", "", "gone.png,1"], "line 5: the path 'gone.png' does not exist; a path that is not absolute counts from"),
    (PLAIN, ["a.png,0", "sub,1"], "line 3: the path 'sub' is not an image"), (PLAIN, ["a.png,0", ",1"], "line 3: the path '' is not an image"),
    (PLAIN, ["a.png,0", "sub.png,1"], "line 3: the path 'sub.png' does not exist"), (PLAIN, ["a.png,0", "b.png"], "line 3: the label '' is unknown"),
    (PLAIN, ["a.png,0", "./a.png,1"], "line 3: the path './a.png' is there already"), (PLAIN, ["a.png,0", "b.png,1,dent"], "malformed .*line 3.*more fields"),
    (PLAIN, ['"a.png,0', "b.png,1"], "malformed"), (PLAIN, [], "lists no images"), (PLAIN, ["a.png,0", "b.png,0"], "has no anomalies"),
    ("path,labels", ["a.png,0"], "line 1: unknown column 'labels'. Did you mean 'label'"), ("path;label", ["a.png;0"], "separated by commas"),
    ("path,class", ["a.png,x"], "line 1: the column 'label' is missing"), ("label,path,,", ["0,a.png,,"], "line 1: unknown column"),
    ("path,label,split", ["a.png,0,val"], "line 2: the split 'val' is unknown; write train or test"),
    ("path,label,split", ["b.png,1,train"], "line 2: the split 'train' is that of an anomaly; anomalies belong in test"),
    ("path,label,split", ["a.png,0,train", "c.png,0,", "b.png,1,"], "line 3: the split '' of a normal image is missing"),
    ("path,label,class", ["a.png,0,dent"], "line 2: the class 'dent' does not fit the label"), ("path,label,class", ["a.png,1,Good"], "does not fit the label"),
    ("path,label,mask", ["b.png,1,m.png"], "line 2: the mask 'm.png' does not exist"), ("path,label,mask", ["a.png,0,b.png"], "line 2: the mask 'b.png' belongs to a normal"),
    ("path,label,box", ['a.png,0,"0,0,8"'], "line 2: the box '0,0,8' is not one; write left, top, right, bottom"), ("path,label,box", ['a.png,0,"8,0,0,8"'], "left < right")])
def test_csv_errors(header, lines, says, tmp_path):
    touch(tmp_path, "a.png", "b.png", "c.png", "sub.png/inner.png")
    with pytest.raises(DraError, match=says): read_list(listing(tmp_path, *lines, header=header))

def test_csv_encodings(tmp_path):
    touch(tmp_path, "käfer.png", "b.png", "c.png")
    for mark in (b"", b"\xef\xbb\xbf"):
        (tmp_path/"p.csv").write_bytes(mark + "path,label\r\nkäfer.png,0\r\nc.png,0\r\nb.png,1\r\n".encode())
        assert len(read_list(tmp_path/"p.csv")) == 3
    (tmp_path/"p.csv").write_bytes("path,label\nkäfer.png,0\n".encode("latin-1"))
    with pytest.raises(DraError, match="not UTF-8 text"): read_list(tmp_path/"p.csv")
    (tmp_path/"p.csv").write_bytes(b"")
    with pytest.raises(DraError, match="has no header"): read_list(tmp_path/"p.csv")

@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_a_file_name_that_is_no_text(tmp_path):
    touch(tmp_path, "normal/a.png", "normal/b.png", "bad/a.png")
    try: open(os.fsencode(tmp_path) + b"/normal/caf\xe9.png", "wb").close()
    except OSError: pytest.skip("the file system allows no such name")
    with pytest.raises(DraError, match="is not UTF-8 text; rename the file"): read_own(tmp_path)

def test_each_folder_is_listed_once(tmp_path, monkeypatch):
    names = [f"{k}/{i}.png" for k in "abcd" for i in range(250)]
    file = listing(touch(tmp_path, *names), *(f"{o},{int(o[0] == 'd')}" for o in names))
    calls = Counter()
    def counted(name, f): return lambda *args, **kwargs: calls.update([name]) or f(*args, **kwargs)
    for name in ("scandir", "stat", "listdir"): monkeypatch.setattr(os, name, counted(name, getattr(os, name)))
    assert len(read_list(file)) == 1000
    assert calls["scandir"] == 4 and calls["stat"] + calls["listdir"] < 20

# a million rows -------------------------------------------------------------------------------------------------------

MILLION = """
import resource, sys, time
from pathlib import Path
from dra_nb.data import own
root, kind = Path(sys.argv[1]), sys.argv[2]
def lines():
    if kind == "crops":   # of 5,000 images that are there
        for i in range(5000):
            for o in range(200): yield f'{i % 10}/{i:05}.png,{int(i % 10 == 0)},"{o},0,{o + 8},8"\\n'
    else:                 # a million images; their folders are not made, only what a listing of them would give
        for i in range(1_000_000): yield f'{i // 10000:03}/{i % 10000:05}.png,{int(i % 10 == 0)},{"cut" if i % 10 == 0 else ""}\\n'
with open(root/"parts.csv", "w") as f: f.writelines(["path,label,box\\n" if kind == "crops" else "path,label,class\\n", *lines()])
if kind == "crops":
    for i in range(10): (root/str(i)).mkdir()
    for i in range(5000): (root/f"{i % 10}/{i:05}.png").touch()
else: own._file_names = lambda folder: {f"{i:05}.png" for i in range(10000)}
start = time.process_time()
catalog = own.read_list(root/"parts.csv")
seconds = time.process_time() - start
assert len(catalog) == 1_000_000 and (catalog.label == 1).sum() == 100_000 and (catalog.split == "train").sum() == 675_000
assert catalog.path.iloc[-1].startswith(str(root)) and catalog.category.nunique() == 1
print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(1e9 if sys.platform == "darwin" else 1e6))
"""

@pytest.mark.parametrize("kind", ["crops", "images"])
def test_a_million_rows(kind, tmp_path):
    "4 to 5 s of one core and 0.8 GB were measured; the limits leave room for a slow machine, not for a call to the disk per row"
    seconds, gigabytes = map(float, succeeded(python(MILLION, tmp_path, kind)).stdout.split())
    assert seconds < 15 and gigabytes < 2

# all the way ----------------------------------------------------------------------------------------------------------

def test_a_run_on_crops_from_a_csv(tmp_path):
    import numpy as np
    from dra_nb.experiments.engine import Place, run_missing
    from dra_nb.experiments.runs import Runs
    rng, lines = np.random.default_rng(0), []
    for i in range(16):
        kind = "good" if i < 7 else "dent"
        picture(kind, rng, 96).save(tmp_path/f"{i}.png")
        lines += [f'{i}.png,{int(kind != "good")},"0,{y},96,{y + 48}"' for y in (0, 48)]
    listing(tmp_path, *lines, header="path,label,box")
    spec, runs = short_spec("parts", shots=2), Runs(tmp_path/"runs")
    assert run_missing([spec], Place(str(tmp_path)), runs, progress=False)["done"] == 1
    scores = runs.scores(spec)
    assert len(scores) == 2*2 + 2*9 - 10 and set(scores.path) <= {f"{i}.png" for i in range(16)}  # two crops each; ten anomalies are withheld

def test_any_folder_serves_as_outliers(tmp_path):
    "A run takes its pseudo anomalies from a folder of pictures in no layout; as a dataset such a folder is refused"
    from dra_nb.experiments.engine import Place, check, execute
    from dra_nb.experiments.runs import Runs
    mvtec_folder(tmp_path/"data"/"parts")
    (tmp_path/"data"/"holiday"/"sea").mkdir(parents=True)
    rng = np.random.default_rng(1)
    for name in ("a.png", "b.JPG", "sea/c.png"): picture("dent", rng, 50).save(tmp_path/"data"/"holiday"/name)
    place, runs = Place(str(tmp_path/"data"), device="cpu"), Runs(tmp_path/"runs")
    for method, settings in (("dra", {"n_reference": 3, "pseudo_source": "holiday"}), ("saoe", {"outliers": "holiday"})):
        spec = short_spec("parts", method=method, settings=settings)
        check([spec], place)
        assert 0 <= execute(spec, place, runs)["auroc"] <= 1
        assert list(runs.read(spec)["provenance"]["outliers"]) == ["holiday"]
    with pytest.raises(DraError, match="holds none of what is expected"): check([short_spec("holiday")], place)
    with pytest.raises(DraError, match="unknown dataset 'holidya'"): check([short_spec("parts", method="dra", settings={"n_reference": 3, "pseudo_source": "holidya"})], place)

def test_labels_that_only_test(tmp_path):
    "What lacks train normals or anomalies judges a detector and chooses its threshold; it is not learnt from"
    from dra_nb.training.detector import AnomalyDetector
    root = mvtec_folder(tmp_path/"parts", n_train=8, n_test=4, classes={"dent": 3}, size=32)
    for part in ("good", "dent"): shutil.copytree(root/"test"/part, tmp_path/"tests"/"test"/part)
    all_test = listing(tmp_path, *(f"tests/test/{k}/{i:03}.png,{int(k == 'dent')},test" for k in ("good", "dent") for i in range(3)), header="path,label,split", name="tests.csv")
    one = listing(tmp_path, "tests/test/good/000.png,0", "tests/test/dent/000.png,1", name="one.csv")
    normals, anomalies = (listing(tmp_path, *(f"tests/test/{k}/{i:03}.png,{n}" for i in range(3)), name=f"{k}.csv") for k, n in (("good", 0), ("dent", 1)))
    def new(**settings): return AnomalyDetector("patchcore", image_size=32, backbone="resnet18_stage2", weights=None, device="cpu", **settings)
    d = new().fit(root/"train/good")
    for source, counts in ((tmp_path/"tests", (4, 3)), (all_test, (3, 3)), (one, (1, 1)), (normals, (3, 0)), (anomalies, (0, 3))):
        rows = d.evaluate(source).frame.set_index("images").n.to_dict()
        assert (rows.pop("normals", 0), sum(rows.values())) == counts
    for source, n in ((tmp_path/"tests", 4), (all_test, 3), (one, 1), (normals, 3)):
        assert len(d.calibrate(source, threshold="fpr").threshold_.normal) == n
        assert len(new().fit(root/"train/good", validation=source).threshold_.normal) == n
    for source, says in ((tmp_path/"tests", "no normal images to train on"), (all_test, "no normal images to train on"), (anomalies, "no normal images to train on"), (normals, "has no anomalies")):
        with pytest.raises(DraError, match=says): new().fit(source)
    table = read_own(tmp_path/"tests", check=False)
    assert len(new().fit(table).threshold_.normal) == 1 and len(d.evaluate(table).frame) == 2  # whoever passes rows has picked them

def test_images_as_they_come(tmp_path):
    "Generators by class, files among arrays, and tables that are no catalogs"
    import pandas as pd
    from PIL import Image
    from dra_nb.training.detector import AnomalyDetector
    root = mvtec_folder(tmp_path/"parts", n_train=8, n_test=1, classes={"dent": 3}, size=32)
    paths, dents = ([str(o) for o in sorted(f.iterdir())] for f in (root/"train/good", root/"test/dent"))
    def arrays(names): return [np.asarray(Image.open(o).convert("RGB")) for o in names]
    def new(): return AnomalyDetector("devnet", image_size=32, backbone="resnet18_stage2", weights=None, epochs=1, steps=1, batch=6, device="cpu", precision="fp32")
    same = [new().fit(n, a).score_samples(dents) for n, a in (
        (arrays(paths), {"dent": arrays(dents)}), (arrays(paths), {"dent": (o for o in arrays(dents))}), ([paths[0], *arrays(paths[1:])], arrays(dents[:2]) + dents[2:]))]
    np.testing.assert_array_equal(same[0], same[1])
    np.testing.assert_array_equal(same[0], same[2])
    d, table = new().fit(paths, dents), pd.DataFrame({"path": dents})
    for call in (lambda: new().fit(paths, table), lambda: new().fit(table, dents), lambda: d.score_samples(table), lambda: d.evaluate(paths, table), lambda: d.evaluate(table.assign(label=1))):
        with pytest.raises(DraError, match="needs the columns path, box.* and lacks box"): call()
