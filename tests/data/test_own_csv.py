"A user's own images in a csv file of any size, and what is said when something is wrong with it."

import os
from collections import Counter

import pytest
from conftest import python, succeeded
from own_files import NORMALS, listing, touch

from dra_nb.core import DraError
from dra_nb.data.catalog import relative_paths, split_normals
from dra_nb.data.paths import common_folder, path_from
from dra_nb.data.readers.own import read_own
from dra_nb.data.readers.own_csv import read_list


def test_csv_all_columns(tmp_path):
    touch(tmp_path, "i/a.png", "i/b.png", "i/c.png", "i/d.png", "far/e.tif", "m/e.png")
    file = listing(
        tmp_path,
        "i/a.png,0,,,train,u,",
        "i/b.png,Good,normal,,TEST,u,",
        '"i\\c.png",normal,,,train,v,"0, 0, 4, 8"',
        "i/c.png,0,good,,train,v,(4 0 8 8)",
        "",
        f"{tmp_path}/far/e.tif, 1 ,big dent,m/e.png,,u,",
        "./i/../i/d.png,BAD,,,test,v,",
        header=" Path ,LABEL,class,mask,split,category,box",
    )
    catalog = read_list(file)
    assert list(
        zip(relative_paths(catalog), *(catalog[o] for o in ("category", "split", "label", "defect", "box")))
    ) == [
        ("far/e.tif", "u", "test", 1, "big dent", None),
        ("i/b.png", "u", "test", 0, "", None),
        ("i/a.png", "u", "train", 0, "", None),
        ("i/d.png", "v", "test", 1, "anomaly", None),
        ("i/c.png", "v", "train", 0, "", (0, 0, 4, 8)),
        ("i/c.png", "v", "train", 0, "", (4, 0, 8, 8)),
    ]
    assert catalog["mask"].tolist() == [f"{catalog.attrs['root']}/m/e.png", None, None, None, None, None]


def test_csv_order_does_not_matter(tmp_path):
    touch(tmp_path, *NORMALS, "x.png")
    lines = [f"{o},0" for o in NORMALS] + ["x.png,1"]
    a, b = read_list(listing(tmp_path, *lines)), read_list(listing(tmp_path, *lines[::-1]))
    assert (
        a.equals(b) and [s for p, s in zip(relative_paths(a), a.split) if p in NORMALS and s == "test"] == ["test"] * 3
    )


def test_crops_of_one_image_stay_together(tmp_path):
    touch(tmp_path, *NORMALS, "x.png")
    catalog = read_list(
        listing(
            tmp_path,
            *(f'{o},0,"{i},0,{i + 8},8"' for o in NORMALS for i in range(5)),
            "x.png,1,",
            header="path,label,box",
        )
    )
    sides = catalog[catalog.label == 0].groupby("path").split.agg(["nunique", "first"])
    assert (sides["nunique"] == 1).all() and sides["first"].tolist() == split_normals(10)


PLAIN = "path,label"


@pytest.mark.parametrize(
    "header, lines, says",
    [
        (
            PLAIN,
            ["a.png,0", "b.png,maybe", "a.png,2"],
            r"parts.csv, line 3 \(and 1 more\): the label 'maybe' is unknown; "
            "write 0, normal or good, or 1, anomaly or bad",
        ),
        (
            PLAIN,
            ["a.png,0", "", "", "gone.png,1"],
            "line 5: the path 'gone.png' does not exist; a path that is not absolute counts from",
        ),
        (PLAIN, ["a.png,0", "sub,1"], "line 3: the path 'sub' is not an image"),
        (PLAIN, ["a.png,0", ",1"], "line 3: the path '' is not an image"),
        (PLAIN, ["a.png,0", "sub.png,1"], "line 3: the path 'sub.png' does not exist"),
        (PLAIN, ["a.png,0", "b.png"], "line 3: the label '' is unknown"),
        (PLAIN, ["a.png,0", "./a.png,1"], "line 3: the path './a.png' is there already"),
        (PLAIN, ["a.png,0", "b.png,1,dent"], "malformed .*line 3.*more fields"),
        (PLAIN, ['"a.png,0', "b.png,1"], "malformed"),
        (PLAIN, [], "lists no images"),
        (PLAIN, ["a.png,0", "b.png,0"], "has no anomalies"),
        ("path,labels", ["a.png,0"], "line 1: unknown column 'labels'. Did you mean 'label'"),
        ("path;label", ["a.png;0", "c.png;0"], "parts.csv has no anomalies"),
        ("path|label", ["a.png|0"], "separated by commas, semicolons or tabs"),
        ("path,class", ["a.png,x"], "line 1: the column 'label' is missing"),
        ("label,path,,", ["0,a.png,,"], "line 1: unknown column"),
        ("path,label,split", ["a.png,0,val"], "line 2: the split 'val' is unknown; write train or test"),
        (
            "path,label,split",
            ["b.png,1,train"],
            "line 2: the split 'train' is that of an anomaly; anomalies belong in test",
        ),
        (
            "path,label,split",
            ["a.png,0,train", "c.png,0,", "b.png,1,"],
            "line 3: the split '' of a normal image is missing",
        ),
        ("path,label,class", ["a.png,0,dent"], "line 2: the class 'dent' does not fit the label"),
        ("path,label,class", ["a.png,1,Good"], "does not fit the label"),
        ("path,label,mask", ["b.png,1,m.png"], "line 2: the mask 'm.png' does not exist"),
        ("path,label,mask", ["a.png,0,b.png"], "line 2: the mask 'b.png' belongs to a normal"),
        ("path,label,box", ['a.png,0,"0,0,8"'], "line 2: the box '0,0,8' is not one; write left, top, right, bottom"),
        ("path,label,box", ['a.png,0,"8,0,0,8"'], "left < right"),
    ],
)
def test_csv_errors(header, lines, says, tmp_path):
    touch(tmp_path, "a.png", "b.png", "c.png", "sub.png/inner.png")
    with pytest.raises(DraError, match=says):
        read_list(listing(tmp_path, *lines, header=header))


def test_csv_encodings(tmp_path):
    touch(tmp_path, "käfer.png", "b.png", "c.png")
    for mark in (b"", b"\xef\xbb\xbf"):
        (tmp_path / "p.csv").write_bytes(mark + "path,label\r\nkäfer.png,0\r\nc.png,0\r\nb.png,1\r\n".encode())
        assert len(read_list(tmp_path / "p.csv")) == 3
    (tmp_path / "p.csv").write_bytes("path,label\nkäfer.png,0\n".encode("latin-1"))
    with pytest.raises(DraError, match="not UTF-8 text"):
        read_list(tmp_path / "p.csv")
    (tmp_path / "p.csv").write_bytes(b"")
    with pytest.raises(DraError, match="has no header"):
        read_list(tmp_path / "p.csv")


LINES = [["Path", "LABEL", "box"], ["a, b.png", "0", "0,0,4,8"], ["i\\k\u00e4fer.png", "0", ""], ["c.png", "1", ""]]


@pytest.mark.parametrize(
    "separator, encoding, start",
    [
        (",", "utf-8", ""),
        (";", "utf-8-sig", ""),  # Excel where the comma is a decimal sign, "CSV UTF-8"
        ("\t", "utf-16", ""),  # Excel's "Unicode text"
        (";", "utf-16", ""),
        ("\t", "utf-8", ""),
        (";", "utf-8", "sep=;"),  # Excel's own first line
    ],
)
def test_what_a_spreadsheet_program_writes(separator, encoding, start, tmp_path):
    import csv

    touch(tmp_path, "a, b.png", "i/k\u00e4fer.png", "c.png")
    with open(tmp_path / "p.csv", "w", encoding=encoding, newline="") as f:
        f.write(f"{start}\r\n" if start else "")
        csv.writer(f, delimiter=separator).writerows(LINES)
    catalog = read_list(tmp_path / "p.csv")
    found = dict(zip(relative_paths(catalog), zip(catalog.label, catalog["box"])))
    assert found == {"a, b.png": (0, (0, 0, 4, 8)), "i/k\u00e4fer.png": (0, None), "c.png": (1, None)}
    with open(tmp_path / "p.csv", "a", encoding=encoding.replace("utf-16", "utf-16-le"), newline="") as f:
        csv.writer(f, delimiter=separator).writerow(["gone.png", "1", ""])
    with pytest.raises(DraError, match=f"p.csv, line {6 if start else 5}: the path 'gone.png' does not exist"):
        read_list(tmp_path / "p.csv")


def test_errors_of_a_csv_file_name_the_file(tmp_path):
    "Not a folder: columns that were found and that are expected, lines"
    touch(tmp_path, "i/a.png", "i/b.png")
    for text, says in (
        ("path,label\ni/a.png,1\n", "p.csv has no normal images to train on"),
        ("path,label\ni/a.png,0\ni/b.png,0\n", "p.csv has no anomalies"),
        ("path,label,category\ni/a.png,0,u\ni/b.png,1,v\n", "p.csv, category [uv] has no normal images"),
        ("file,label\n", "p.csv, line 1: unknown column 'file'. .*path, split"),
        ("path;box\n", "p.csv, line 1: the column 'label' is missing; there are: path, box"),
        ("", "p.csv has no header; its first line must name the columns, of: path, label"),
    ):
        (tmp_path / "p.csv").write_text(text)
        with pytest.raises(DraError, match=says) as caught:
            read_list(tmp_path / "p.csv")
        assert "folder" not in str(caught.value)
    with pytest.raises(DraError, match="p.xlsx is a workbook, no csv file; save the sheet"):
        read_list(tmp_path / "p.xlsx")


def test_images_on_two_drives_of_windows(tmp_path, monkeypatch):
    "Python's commonpath and relpath raise an error there"
    import ntpath
    from types import SimpleNamespace

    from dra_nb.data.readers import own_csv

    file = listing(tmp_path, "D:\\ok\\a.png,0,", "E:\\ng\\b.png,1,F:/m/b.png", header="path,label,mask")
    cells = own_csv.open_list(file)
    windows = SimpleNamespace(path=ntpath, sep="\\", fspath=os.fspath)
    monkeypatch.setattr(own_csv, "os", windows)
    monkeypatch.setattr(own_csv, "file_names", lambda folder: {"a.png", "b.png"})
    monkeypatch.setattr(own_csv, "common_folder", lambda folders: common_folder(folders, ntpath))
    monkeypatch.setattr(own_csv, "path_from", lambda path, root: path_from(path, root, ntpath))
    paths = own_csv.find_paths(cells)
    assert (paths.root, paths.path.tolist()) == ("", ["D:/ok/a.png", "E:/ng/b.png"])
    assert paths.mask.tolist() == [None, "F:/m/b.png"]
    catalog = own_csv.list_catalog(cells, own_csv.parse_classes(cells), paths, ["train", "test"])
    assert relative_paths(catalog) == catalog["path"].tolist() == ["E:/ng/b.png", "D:/ok/a.png"]
    assert catalog["mask"].tolist() == ["F:/m/b.png", None]
    one = listing(tmp_path, "D:\\ok\\a.png,0", "d:\\ok\\sub\\b.png,1")
    assert (
        own_csv.find_paths(own_csv.Listing(one, own_csv.parse_csv(one, own_csv.FIELDS).assign(mask=""))).root == "D:/ok"
    )


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_a_file_name_that_is_no_text(tmp_path):
    touch(tmp_path, "normal/a.png", "normal/b.png", "bad/a.png")
    try:
        open(os.fsencode(tmp_path) + b"/normal/caf\xe9.png", "wb").close()
    except OSError:
        pytest.skip("the file system allows no such name")
    with pytest.raises(DraError, match="is not UTF-8 text; rename the file"):
        read_own(tmp_path)


def test_each_folder_is_listed_once(tmp_path, monkeypatch):
    names = [f"{k}/{i}.png" for k in "abcd" for i in range(250)]
    file = listing(touch(tmp_path, *names), *(f"{o},{int(o[0] == 'd')}" for o in names))
    calls = Counter()

    def counted(name, f):
        return lambda *args, **kwargs: calls.update([name]) or f(*args, **kwargs)

    for name in ("scandir", "stat", "listdir"):
        monkeypatch.setattr(os, name, counted(name, getattr(os, name)))
    assert len(read_list(file)) == 1000
    assert calls["scandir"] == 4 and calls["stat"] + calls["listdir"] < 20


MILLION = """
import sys, time
from pathlib import Path
from dra_nb.data.readers import own_csv as own
from dra_nb.profiling.memory import peak_mb
from dra_nb.training.compute import Compute
root, kind = Path(sys.argv[1]), sys.argv[2]
def lines():
    if kind == "crops":   # of 5,000 images that are there
        for i in range(5000):
            for o in range(200): yield f'{i % 10}/{i:05}.png,{int(i % 10 == 0)},"{o},0,{o + 8},8"\\n'
    else:                 # a million images; their folders are not made, only what a listing of them would give
        for i in range(1_000_000):
            defect = "" if i % 10 else "cut"
            yield f'{i // 10000:03}/{i % 10000:05}.png,{int(not i % 10)},{defect}\\n'
header = "path,label,box\\n" if kind == "crops" else "path,label,class\\n"
with open(root/"parts.csv", "w") as f: f.writelines([header, *lines()])
if kind == "crops":
    for i in range(10): (root/str(i)).mkdir()
    for i in range(5000): (root/f"{i % 10}/{i:05}.png").touch()
else: own.file_names = lambda folder: {f"{i:05}.png" for i in range(10000)}
start = time.process_time()
catalog = own.read_list(root/"parts.csv")
seconds = time.process_time() - start
assert len(catalog) == 1_000_000 and (catalog.label == 1).sum() == 100_000
assert (catalog.split == "train").sum() == 675_000
assert catalog.path.iloc[-1].startswith(str(root)) and catalog.category.nunique() == 1
print(seconds, peak_mb() / 1e3)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["crops", "images"])
def test_a_million_rows(kind, tmp_path):
    "4 to 5 s of one core and 0.8 GB were measured; a slow machine may take longer, but not call the disk for each row"
    seconds, gigabytes = map(float, succeeded(python(MILLION, tmp_path, kind)).stdout.split())
    assert seconds < 15 and gigabytes < 2
