"""What comes from strangers stays data: reading a file runs no code and does not fill the memory, names and values are
shown and never obeyed.

More in test_download.py (archives), test_checkpoint.py, test_detector.py and test_tables.py (LaTeX)."""

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import mvtec_folder, picture
from limits import bounded
from typer.testing import CliRunner

from dra_nb.cli.main import app
from dra_nb.cli.options import parse_setting
from dra_nb.cli.paper_notebooks import check_parameters, notebook_path
from dra_nb.core import DraError
from dra_nb.data.contact_sheet import contact_sheet
from dra_nb.data.datasets import load_catalog
from dra_nb.data.decode import decode
from dra_nb.data.masks import read_mask
from dra_nb.data.readers.own_csv import read_list
from dra_nb.detector.detector import AnomalyDetector
from dra_nb.experiments.grids import plan
from dra_nb.experiments.record_writing import write_failure, write_run
from dra_nb.experiments.records import Runs
from dra_nb.experiments.spec import RunSpec
from dra_nb.methods.io import load_method, save_method
from dra_nb.methods.registry import create_method
from dra_nb.models.backbone import create_backbone
from dra_nb.models.weights import read_weights
from dra_nb.reporting.cells import compare_study
from dra_nb.reporting.comparison_figure import plot_comparison
from dra_nb.reporting.page import write_page
from dra_nb.reporting.results_table import write_table

pytestmark = pytest.mark.slow

# ---- code in files


class Trap:
    "Makes a folder when it is unpickled"

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def torch_file(value, **how):
    file = io.BytesIO()
    torch.save(value, file, **how)
    return file.getvalue()


def numpy_file(value):
    file = io.BytesIO()
    np.save(file, np.array([value], dtype=object), allow_pickle=True)
    return file.getvalue()


PACKED = {
    "pickle": pickle.dumps,
    "torch": lambda t: torch_file({"conv1.weight": t}),
    "old torch": lambda t: torch_file({"conv1.weight": t}, _use_new_zipfile_serialization=False),
    "numpy": numpy_file,
}
READERS = {
    "weights .pth": (".pth", read_weights),
    "weights .pt": (".pt", read_weights),
    "weights .safetensors": (".safetensors", read_weights),
    "weights without ending": ("", read_weights),
    "backbone": (".pth", lambda p: create_backbone("resnet18_stage2", p)),
    "method": (".safetensors", load_method),
    "detector": (".safetensors", AnomalyDetector.load),
    "image": (".npy", decode),
    "mask": (".npy", read_mask),
    "record": (".json", lambda p: Runs(p.parent).read("x" * 16)),
    "scores": (".parquet", lambda p: Runs(p.parent).features("x" * 16)),
}


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("reader", READERS)
def test_nothing_is_unpickled(tmp_path, reader, packed):
    ending, read = READERS[reader]
    path = tmp_path / {"record": "x" * 16 + ".json", "scores": "x" * 16 + ".features.parquet"}.get(
        reader, f"file{ending}"
    )
    path.write_bytes(PACKED[packed](Trap(tmp_path / "sprung")))
    with pytest.raises(DraError):
        read(path)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").exists(), "the trap works"


def test_a_trap_as_weights_of_the_command(tmp_path):
    (tmp_path / "w.pth").write_bytes(PACKED["torch"](Trap(tmp_path / "sprung")))
    with pytest.raises(DraError, match="w.pth cannot be read"):
        CliRunner().invoke(
            app,
            [
                "run",
                "textures",
                "--category",
                "weave",
                "--weights",
                str(tmp_path / "w.pth"),
                "--out",
                str(tmp_path / "out"),
            ],
            catch_exceptions=False,
        )
    assert not (tmp_path / "sprung").exists() and not (tmp_path / "out").exists()


def test_objects_that_are_no_weights(tmp_path):
    for value in (
        {"conv1.weight": 5},
        {3: torch.zeros(1)},
        [torch.zeros(1)],
        torch.zeros(1),
        {"state_dict": 1},
        {"state_dict": {"a": {}}},
        "text",
    ):
        (tmp_path / "w.pth").write_bytes(torch_file(value))
        with pytest.raises(DraError, match="w.pth cannot be read"):
            create_backbone("resnet18_stage2", tmp_path / "w.pth")


# ---- files that are larger than they look

HEADERS = {
    "a header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "of 2^64 - 1": b"\xff" * 8,
    "of 8 GB": struct.pack("<Q", 2**33) + b"{}" + b" " * 100,
    "of 90 MB, not there": struct.pack("<Q", 90 * 10**6) + b"{",
    "a tensor beyond the end": b"",
    "a tensor of 2^60": b"",
    "two tensors in one place": b"",
    "a negative place": b"",
    "nested": b"",
}


def header(text):
    return struct.pack("<Q", len(text)) + text.encode() + bytes(8)


def tensor(shape, start, end):
    return dict(dtype="F32", shape=shape, data_offsets=[start, end])


HEADERS |= {
    k: header(json.dumps(v))
    for k, v in {
        "a tensor beyond the end": {"a": tensor([4], 0, 16)},
        "a tensor of 2^60": {"a": tensor([2**58], 0, 2**60)},
        "a shape that overflows": {"a": tensor([2**40, 2**40], 0, 8)},
        "two tensors in one place": {"a": tensor([2], 0, 8), "b": tensor([2], 0, 8)},
        "a negative place": {"a": tensor([2], -8, 0)},
    }.items()
}
HEADERS["nested"] = header("[" * 10**5)


@pytest.mark.parametrize("what", HEADERS)
def test_absurd_safetensors(tmp_path, what):
    (tmp_path / "a.safetensors").write_bytes(HEADERS[what])
    with bounded(megabytes=300):
        for read in (read_weights, load_method, AnomalyDetector.load):
            with pytest.raises(DraError, match="a.safetensors"):
                read(tmp_path / "a.safetensors")


def test_compressed_weights(tmp_path):
    "torch would unpack 200 KB to 200 MB"
    with (
        zipfile.ZipFile(io.BytesIO(torch_file({"a": torch.zeros(10)}))) as old,
        zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for o in old.infolist():
            new.writestr(o.filename, bytes(2 * 10**8) if o.filename.endswith("data/0") else old.read(o))
    assert (tmp_path / "w.pth").stat().st_size < 10**6
    with bounded(megabytes=100), pytest.raises(DraError, match="cannot be read"):
        read_weights(tmp_path / "w.pth")


def test_a_method_whose_settings_are_huge(tmp_path):
    m = create_method("deep_sad", backbone="resnet18_stage2")
    m.config["settings"] = dict(dimensions=10**9)
    save_method(m, tmp_path / "m.safetensors")
    with bounded(megabytes=300), pytest.raises(DraError, match="does not fit its own settings"):
        load_method(tmp_path / "m.safetensors")


def test_scores_without_end(tmp_path):
    "100 million equal rows are half a megabyte of parquet"
    part, spec, runs = pa.table(dict(label=pa.array(np.zeros(10**6, "int8")))), RunSpec("elpv"), Runs(tmp_path)
    with pq.ParquetWriter(runs.path(spec, "features.parquet"), part.schema) as file:
        for _ in range(11):
            file.write_table(part)
    with bounded(megabytes=100), pytest.raises(DraError, match="not readable as parquet"):
        runs.features(spec)


# ---- images that are larger than they look


def png(width, height, data=b""):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "width, height", [(2**31 - 1, 2**31 - 1), (10**5, 10**5), (1, 2**31 - 1), (13378, 13378), (0, 5)]
)
def test_image_bombs(tmp_path, width, height):
    (tmp_path / "a.png").write_bytes(png(width, height))
    with bounded(megabytes=300):
        for read in (decode, read_mask):
            with pytest.raises(DraError, match="a.png cannot be used"):
                read(tmp_path / "a.png")


def test_a_text_chunk_that_unpacks_without_end(tmp_path):
    whole = png(8, 8, b"\0" * 8 * 25)
    body = b"Comment\0\0" + zlib.compress(bytes(2 * 10**8))
    (tmp_path / "a.png").write_bytes(
        whole[:33]
        + struct.pack(">I", len(body))
        + b"zTXt"
        + body
        + struct.pack(">I", zlib.crc32(b"zTXt" + body))
        + whole[33:]
    )
    with bounded(megabytes=300):
        try:
            decode(tmp_path / "a.png")
        except DraError as e:
            assert "a.png cannot be used" in str(e)


# ---- lists of images


@pytest.fixture
def listed(tmp_path):
    "Read a list with one more line; the folder is tmp_path/data"
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("secret")
    for name in ("b.png", *(f"a/{i}.png" for i in range(5))):
        picture("good", np.random.default_rng(0), 16).save(tmp_path / "data" / name)

    def read(*cells, header="path,label,class"):
        lines = [f"a/{i}.png,{int(i > 3)},{'dent' * (i > 3)}" for i in range(5)]
        (tmp_path / "data" / "list.csv").write_text(
            "\n".join([header, *lines, ",".join('"' + c.replace('"', '""') + '"' for c in cells)]) + "\n",
            encoding="utf-8",
        )
        return read_list(tmp_path / "data" / "list.csv")

    return read


@pytest.mark.parametrize(
    "path",
    [
        "../secret.txt",
        "/etc/passwd",
        "../secret.txt\x00.png",
        "a/../../secret.txt",
        '=HYPERLINK("http://x")',
        "http://127.0.0.1:9/x.png",
        "|cat ../secret.txt",
        "\\\\server\\share\\x.png",
        "a/\n0.png",
    ],
)
def test_a_path_is_an_image_that_is_there_or_refused(listed, path):
    with pytest.raises(DraError, match="is not an image by its ending|does not exist") as e:
        listed(path, "1", "x")
    assert "secret\n" not in str(e.value)


def test_a_path_outside_is_only_read_as_an_image(listed, tmp_path):
    "A list may name images anywhere; a file that is no image is refused when it is decoded, and none of it is shown"
    (tmp_path / "secret.png").write_text("the password is swordfish")
    catalog = listed("../secret.png", "1", "x")
    with pytest.raises(DraError, match="secret.png cannot be used") as e:
        decode(catalog.path[catalog.defect == "x"].item())
    assert "swordfish" not in str(e.value)


HOSTILE = [
    "<script>alert(1)</script>",
    "=1+1",
    '"><img src=x onerror=alert(1)>',
    "'; import os #",
    "a\nb",
    "$\\frac{$",
    "| a | b |",
    "](javascript:alert(1))",
    "{{ 7*7 }}{% raw %}",
    "\\input{/etc/passwd}",
    "\x1b]0;x\x07",
    "\u202etxet",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_class_names_are_taken_as_they_are(listed, name):
    assert name in set(listed("b.png", "1", name).defect)


# ---- names in tables, figures and pages


class Tags(HTMLParser):
    "The tags and attributes of a page, and its text"

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {k for k, _ in attributes}

    def handle_data(self, data):
        self.text.append(data)


FOLDERS = [
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "$\\frac{$ {{ 7*7 }}",
]  # names that a folder can have


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    "Table, figure and page of a dataset whose own name and classes are hostile; the runs are made up"
    home = tmp_path_factory.mktemp("hostile")
    name = "<script>alert(document.title)<script>"
    mvtec_folder(home / "data" / name, classes=dict.fromkeys(FOLDERS, 12))
    study = plan(
        "table2", "smoke", str(home / "data"), out=str(home / "out"), datasets=[name], methods=["devnet"], shots=[10]
    )
    assert {s.known_class for s in study.specs} == set(FOLDERS)
    scores = pd.DataFrame(
        dict(path=["a", "b"], label=[0, 1], defect=["", FOLDERS[0]], seen=[False, False], score=[0.0, 1.0])
    )
    for s in study.specs[1:]:
        write_run(
            study.runs,
            s,
            scores,
            metrics=dict(auroc=0.8, ap=0.5, auroc_seen=None, auroc_unseen=0.8, n_normal=1, n_seen=0, n_unseen=1),
            timing=dict(seconds=1.0),
            provenance=dict(device="<b>d</b>", version="<i>", finished="<u>2026-01-01"),
        )
    write_failure(study.runs, study.specs[0], DraError(f"{FOLDERS[0]} <script>alert(2)</script>"))
    compared = compare_study(study)
    files = write_table(compared, study.folder, "table2", study.artefact.caption, study.notes()) | plot_comparison(
        compared, study.folder, "table2", study.artefact.caption, study.notes()
    )
    return files | dict(page=write_page(study.folder)), home, name


def test_names_stay_text_in_pages(results):
    files, _, name = results
    for kind in ("html", "page"):
        found = Tags(files[kind].read_text(encoding="utf-8"))
        assert not found.tags & {"script", "svg", "iframe", "object"} and not {
            a for a in found.attributes if a.startswith("on")
        }, kind
        assert (
            "alert(document.title)" in "".join(found.text)
            and "onerror=alert(1)" in "".join(found.text)
            and "onload=alert(1)" in "".join(found.text)
        )
        assert kind == "html" or "{{ 7*7 }}" in "".join(found.text)


def test_names_stay_text_in_markdown_and_latex(results):
    files, *_ = results
    md, tex = (files[k].read_text(encoding="utf-8") for k in ("md", "tex"))
    assert not [t for t in ("<script", "<img", "<svg") if t in md.lower()] and "&lt;script" in md
    assert "\\frac" not in tex.replace("\\textbackslash{}frac", "") and "{{ 7*7 }}" not in tex


def test_names_stay_data_in_csv(results):
    files, _, name = results
    table = (
        pd.read_csv(files["csv"], keep_default_na=False)
        if files["csv"].name == "table2.csv"
        else pd.read_csv(files["csv"].with_name("table2.csv"), keep_default_na=False)
    )
    assert set(FOLDERS) <= set(table.known_class) and set(table.dataset) == {name}


def test_names_are_drawn_as_they_are(results, tmp_path):
    "Neither the figure nor the contact sheet takes them for formulas"
    files, home, name = results
    assert files["png"].stat().st_size > 1000
    contact_sheet(load_catalog(name, str(home / "data"))).savefig(tmp_path / "sheet.png")


# ---- parameters of notebooks


@pytest.mark.parametrize("name", ["x = 1; import os", "a b", "__class__", "import", "profile\n", "1x", ""])
def test_a_parameter_cannot_have_a_new_name(name):
    with pytest.raises(DraError, match="unknown parameter"):
        check_parameters(notebook_path("table1_general"), {name: "x"})


def test_a_setting_is_never_evaluated():
    for text in ("__import__('os').mkdir('x')", "open('x', 'w')", "[o for o in ()]", "lambda: 1", "f'{1}'"):
        assert parse_setting(f"a={text}") == ("a", text)
