"A csv file wherever a folder of images is taken: to learn from, to test with, and to be scored."

import os

import numpy as np
import pytest
from small_detectors import DENTS, GOOD, QUICK, SCRATCHES, images, says, write

from dra_nb.detector.detector import AnomalyDetector


def fit(*args, method="patchcore", **kwargs):
    return AnomalyDetector(method, **QUICK).fit(*args, **kwargs)


def listed(file, paths, *more, header="path", separator=","):
    "A csv file of these paths below its folder, with more columns"
    rows = zip([os.path.relpath(o, file.parent) for o in paths], *more)
    file.write_text("\n".join(separator.join(map(str, o)) for o in [(header,), *rows]) + "\n")
    return file


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    "Images, and csv files of them"
    root = tmp_path_factory.mktemp("lists")
    good, dents, other = write(root / "i/good", GOOD), write(root / "i/dents", DENTS), write(root / "i/more", SCRATCHES)
    listed(root / "normals.csv", good)
    listed(root / "anomalies.csv", dents + other, ["dent"] * 4 + ["scratch"] * 4, header="Path;Class", separator=";")
    check = write(root / "i/check", images("good", 5, 7))
    bad = write(root / "i/checkbad", images("dent", 3, 8))
    listed(root / "check.csv", check + bad, [0] * 5 + [1] * 3, header="path,label")
    listed(root / "onlygood.csv", good, [0] * 24, header="path,label")
    return root


@pytest.fixture(scope="module")
def detector(root):
    return fit(str(root / "normals.csv"), root / "anomalies.csv", root / "check.csv")


def test_fit_from_csv_files_alone(root, detector):
    "The same detector as from the arrays"
    summary = detector.summary_
    assert (summary["normals"], summary["held_out"]) == (24, 5)
    assert summary["anomalies"] == {"dent": 4, "scratch": 4}
    arrays = fit(GOOD, None, (images("good", 5, 7), images("dent", 3, 8)))
    assert arrays.threshold_.value == detector.threshold_.value


@pytest.mark.parametrize("name", ["normals.csv", "onlygood.csv"])
def test_normals_with_labels_or_without(root, name):
    given = fit(root / name, DENTS)
    assert (given.summary_["normals"] + given.summary_["held_out"], given.summary_["anomalies"]) == (24, {"anomaly": 4})
    if name == "normals.csv":
        assert fit(root / name).threshold_.value == given.threshold_.value
    else:  # data with labels lacks something
        assert "folder" not in says("onlygood.csv has no anomalies, and is labelled.\nA csv file of", fit, root / name)


def test_outliers_from_a_csv_file(root):
    outliers = listed(root / "outliers.csv", write(root / "i/else", images("scratch", 4, 9)))
    assert fit(GOOD, DENTS, method="saoe", outliers=outliers).threshold_ is not None


def test_scores_in_the_order_of_the_file(root, detector):
    "With boxes, quoted paths with commas, backslashes; labels do not matter"
    wide = write(root / "i/a, b", [np.hstack([GOOD[0], DENTS[0]])])[0]
    name = os.path.relpath(wide, root)
    rows = [f'"{name}","64,0,128,64",?', '"{}","0,0,64,64",1'.format(name.replace("/", "\\")), "i/good/000.png,,0"]
    (root / "crops.csv").write_text("\n".join(["PATH,box,label", *rows]) + "\n")
    table = detector.score_table(root / "crops.csv")
    assert table.name.tolist() == [f"{wide}[64, 0, 128, 64]", f"{wide}[0, 0, 64, 64]", f"{root}/i/good/000.png"]
    assert np.allclose(table.score, detector.score_samples([DENTS[0], GOOD[0], GOOD[0]]), atol=1e-5)
    assert len(detector.score_samples([root / "crops.csv", root / "i/dents/000.png"])) == 4
    assert detector.score_map(str(root / "crops.csv")).shape == (3, 64, 64)
    (root / "single.csv").write_text("path\ni/good/000.png\n")
    assert detector.score_map(root / "single.csv").shape == (1, 64, 64)  # a list of one


def test_evaluate(root, detector):
    report = detector.evaluate(root / "check.csv")
    assert {row.images: row.n for row in report.rows} == {"normals": 5, "anomaly": 3}
    report = detector.evaluate(root / "normals.csv", root / "anomalies.csv")
    assert {row.images: row.n for row in report.rows} == {"normals": 24, "dent": 4, "scratch": 4}


def test_what_a_csv_file_cannot_be(root, monkeypatch, detector):
    import dra_nb.detector.detector as module

    monkeypatch.setattr(module, "train", lambda *a, **k: pytest.fail("it trained"))
    for args, word in (
        (
            (root / "normals.csv", root / "check.csv"),
            "check.csv, line 2 .and 4 more.: the label '0' is that of a normal",
        ),
        ((root / "anomalies.csv",), "anomalies.csv, line 2 .*: the class 'dent' is that of an anomaly"),
        ((GOOD, None, root / "normals.csv"), "normals.csv, line 1: the column 'label' is missing, and validation"),
        ((root / "check.csv", DENTS), "holds anomalies itself"),
        ((root / "gone.csv",), "gone.csv does not exist"),
    ):
        assert "folder of normals alone" not in says(word, fit, *args)
    cases = (
        ("file\na.png\n", "wrong.csv, line 1: unknown column 'file'. .*: box, category, class, label, mask, path"),
        ("box\n", "line 1: the column 'path' is missing; there are: box"),
        (
            "path\n\ni/gone.png\n",
            "line 3: the path 'i/gone.png' does not exist; a path that is not absolute counts from",
        ),
        ("path\n", "wrong.csv lists no images"),
        ("", "wrong.csv has no header"),
    )
    for text, word in cases:
        (root / "wrong.csv").write_text(text)
        for call in (fit, detector.score_table, lambda o: fit(GOOD, o)):
            message = says(word, call, root / "wrong.csv")
            assert "folder" not in message and "cannot identify" not in message
    (root / "book.xlsx").write_bytes(b"PK")
    says("book.xlsx is a workbook, no csv file; save the sheet", fit, root / "book.xlsx")
    says("book.xlsx is a workbook", detector.score_table, root / "book.xlsx")
