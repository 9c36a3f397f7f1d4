"""Whatever a list of images, a picture, a parameter or a weights file holds: a result or an error of our own.

Records and tables are in test_fuzz_records.py (860 cases), checkpoints in test_checkpoint.py (150)."""

import ast
import io
import math
import os

import forking
import notebook_files
import numpy as np
import pytest
import torch
from conftest import picture
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from limits import bounded
from mutations import edits
from safetensors.torch import save

from dra_nb.cli import options, paper_notebooks
from dra_nb.core import DraError
from dra_nb.data.decode import decode_file
from dra_nb.data.masks import read_mask
from dra_nb.data.readers.own_csv import FIELDS, read_list
from dra_nb.methods.io import load_method
from dra_nb.methods.registry import create_method
from dra_nb.models.backbone import BACKBONES, BackboneEntry
from dra_nb.models.weights import read_weights

pytestmark = pytest.mark.slow


def fuzz(n):
    return settings(
        max_examples=n, deadline=20_000, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )


def survives(call):
    "A value, or None after a DraError"
    try:
        result = call()
    except DraError as e:
        assert str(e)
        return event("refused")
    event("accepted")
    return result


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    "A folder with a few images"
    root, rng = tmp_path_factory.mktemp("fuzz"), np.random.default_rng(0)
    (root / "a").mkdir()
    for name in [*(f"a/{i}.png" for i in range(6)), "b.JPG", "=1+1.png", "m.png"]:
        picture("good", rng, 16).save(root / name, "png" if name.endswith("g") else None)
    return root


# ---- lists of images

PATHS = st.sampled_from(
    [
        *(f"a/{i}.png" for i in range(6)),
        "b.JPG",
        "./a/../a/1.png",
        "a\\2.png",
        "=1+1.png",
        "m.png",
        "a",
        "",
        "../../../etc/passwd",
        "../x.png",
        "/etc/hosts.png",
        "a/\x00.png",
        "x" * 300 + ".png",
        "a/" * 2000 + "1.png",
        "//a//1.png",
        "~/1.png",
        "a\x00/1.png",
        "file:///a/1.png",
        "a/1.png\n",
        '"',
        "=cmd|'/C calc'!A0",
        "\u202egnp.1",
        "\ud7ff.png",
        "con.png",
        "a/1.png:stream.png",
        "|ls.png",
        "$(ls).png",
    ]
)
CELLS = dict(
    path=PATHS,
    label=st.sampled_from(["0", "1", "normal", "Anomaly", "good", "bad", "", "2", "-0", "٣", "NaN", "1e400", "True"]),
    mask=st.sampled_from(["", "", "m.png"]) | PATHS,
    split=st.sampled_from(["", "train", "test", "Train", "val"]),
    category=st.sampled_from(["", "", "a", "../..", "=A1", "<b>", "\x00", "x" * 5000]),
    box=st.sampled_from(
        [
            "",
            "",
            "0,0,8,8",
            "(4;0;8;8)",
            "0,0,8",
            "-1,0,8,8",
            "8,0,0,8",
            "9" * 5000 + ",0,1,2",
            "0,0,9e9,9",
            "٠,٠,٨,٨",
            "0,0,99999999999999999999,9",
            "nan,0,1,1",
        ]
    ),
    **{
        "class": st.sampled_from(
            [
                "",
                "dent",
                "good",
                "=1+1",
                "<script>",
                "a\nb",
                '"',
                "a,b",
                "\ud800".encode("utf-8", "replace").decode(),
                "../up",
            ]
        )
    },
)


def quoted(cell):
    return '"' + cell.replace('"', '""') + '"'


@st.composite
def lists(draw):
    "A csv file: mostly well-formed, with odd cells in some rows"
    names = ["path", "label", *draw(st.lists(st.sampled_from(FIELDS[2:]), unique=True, max_size=4))]
    lines = (
        [",".join([f"a/{i}.png", str(int(i > 3)), *[""] * (len(names) - 2)]) for i in range(6)]
        if draw(st.booleans())
        else []
    )
    for i in range(draw(st.integers(0, 3))):  # mostly one odd cell in a row
        cells = dict.fromkeys(names, "") | dict(path=["b.JPG", "m.png", "=1+1.png"][i], label="1")
        for n in draw(st.lists(st.sampled_from(names), min_size=1, max_size=2)):
            cells[n] = draw(CELLS[n])
        lines.append(",".join(c if draw(st.integers(0, 5)) == 0 else quoted(c) for c in cells.values()))
    return "\n".join([",".join(names), *lines]).encode("utf-8", "surrogatepass")


def reads_only_images(root, data):
    "The catalog of a list, if it is one: all its files are there, and none is opened"
    (root / "list.csv").write_bytes(data)
    catalog = survives(lambda: read_list(root / "list.csv"))
    if catalog is None:
        return
    assert (
        set(catalog.label) <= {0, 1}
        and catalog.path.map(os.path.isfile).all()
        and catalog.path.str.lower().str.endswith((".png", ".jpg")).all()
    )
    assert not catalog.duplicated(["path", "box"]).any()


@fuzz(300)
@given(data=lists())
def test_lists_with_odd_cells(root, data):
    reads_only_images(root, data)


WHOLE = b"path,label,class,mask,split,category,box\n" + b"".join(
    b'a/%d.png,%d,%s,,,,"0,0,8,8"\n' % (i, i > 3, b"dent" * (i > 3)) for i in range(6)
)


@fuzz(200)
@given(data=edits(WHOLE) | st.binary(max_size=80))
def test_lists_of_odd_bytes(root, data):
    reads_only_images(root, data)


# ---- pictures


def encoded(kind, **how):
    file, rng = io.BytesIO(), np.random.default_rng(1)
    image = picture("dent", rng, 24)
    if kind in ("npy",):
        np.save(file, np.asarray(image)[:20, :24])
    else:
        image.convert(how.pop("mode", "RGB")).save(file, kind, **how)
    return file.getvalue()


PICTURES = {
    "a.png": encoded("png"),
    "p.png": encoded("png", mode="P"),
    "l.png": encoded("png", mode="LA"),
    "a.jpg": encoded("jpeg"),
    "g.jpg": encoded("jpeg", progressive=True, mode="CMYK"),
    "a.bmp": encoded("bmp"),
    "p.bmp": encoded("bmp", mode="P"),
    "a.tif": encoded("tiff"),
    "z.tif": encoded("tiff", compression="tiff_adobe_deflate"),
    "w.tif": encoded("tiff", compression="tiff_lzw", mode="L"),
    "b.tif": encoded("tiff", compression="group4", mode="1"),
    "a.webp": encoded("webp"),
    "a.npy": encoded("npy"),
}
LARGE = [n.to_bytes(4, order) for n in (2**31 - 1, 2**32 - 1, 2**16, 10**5, 0) for order in ("big", "little")]


def decodes(path):
    with bounded():
        for image in survives(lambda: decode_file(str(path), [None], 16)) or []:
            assert image.shape == (3, 16, 16) and image.dtype == np.uint8
        with bounded():
            mask = survives(lambda: read_mask(str(path), None, 16))
    assert mask is None or mask.shape == (16, 16) and mask.dtype == bool


@fuzz(500)
@given(data=st.data(), name=st.sampled_from(sorted(PICTURES)))
@pytest.mark.filterwarnings("ignore")
def test_damaged_pictures(root, data, name):
    "Bytes of the header more often than others"
    whole = PICTURES[name]
    n = data.draw(st.sampled_from([40, 120, len(whole)]))
    (root / name).write_bytes(data.draw(edits(whole[:n])) + whole[n:])
    decodes(root / name)


@fuzz(200)
@given(
    name=st.sampled_from(sorted(PICTURES)), at=st.integers(0, 160), size=st.sampled_from(LARGE), cut=st.integers(0, 3)
)
@pytest.mark.filterwarnings("ignore")
def test_pictures_that_say_they_are_huge(root, name, at, size, cut):
    "Four bytes somewhere in the header become a large number, as the width or a length would"
    data = bytearray(PICTURES[name])
    data[at : at + 4] = size
    if data[:4] == b"\x89PNG":  # with a checksum that fits, else nobody reads on
        import zlib

        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    (root / name).write_bytes(data[: len(data) * (4 - cut) // 4])
    decodes(root / name)


# ---- parameters


@pytest.fixture(scope="module")
def little():
    "Name of a network that is made at once"
    BACKBONES["little"] = BackboneEntry(forking.little, "", ())
    yield "little"
    del BACKBONES["little"]


@pytest.fixture(scope="module")
def translated():
    "Python code that papermill puts into a notebook for some values"
    from papermill.parameterize import parameterize_notebook

    def translate(values):
        nb = notebook_files.notebook("")
        return next(
            c.source
            for c in parameterize_notebook(nb, values).cells
            if "injected-parameters" in c.metadata.get("tags", [])
        )

    return translate


HOSTILE = [
    "'",
    '"',
    "'''",
    '"""',
    "\\",
    "\\'",
    "\n",
    "\r\n",
    "\u2028",
    "{x}",
    "%s",
    "$x",
    "`ls`",
    '"); import os; os.abort()  #',
    "'+__import__('os').getcwd()+'",
    "# %%",
    "\x00",
    "\x1b]0;x\x07",
    "é\U0001f642",
]
texts = st.text(max_size=12) | st.lists(st.sampled_from(HOSTILE) | st.text(max_size=3), max_size=5).map("".join)
plain = texts | st.integers(-(10**12), 10**12) | st.booleans() | st.floats(allow_nan=False)
NAMES = (
    "profile",
    "data",
    "weights",
    "out",
    "datasets",
    "methods",
    "shots",
    "seeds",
    "medical",
    "recorded",
    "device",
    "precision",
)


@fuzz(400)
@given(values=st.dictionaries(st.sampled_from(NAMES), plain | st.lists(plain, max_size=4), max_size=5))
def test_values_arrive_as_themselves_and_are_never_code(translated, values):
    got = {}
    for line in ast.parse(translated(values)).body:  # nothing but assignments of literals, and the infinities
        assert isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name)
        assert {ast.unparse(n) for n in ast.walk(line.value) if isinstance(n, ast.Call)} <= {
            "float('inf')",
            "float('-inf')",
        }
        assert {n.id for n in ast.walk(line.value) if isinstance(n, ast.Name)} <= {"float"}
        got[line.targets[0].id] = eval(ast.unparse(line.value), {"__builtins__": {}, "float": float})
    assert got == values and [type(v) for v in got.values()] == [type(v) for v in values.values()]


@fuzz(100)
@given(
    values=st.dictionaries(
        st.sampled_from(NAMES) | texts, st.none() | plain | st.lists(plain, max_size=2) | st.tuples(plain), max_size=3
    )
)
def test_parameters_are_checked_by_name_and_type(values):
    accepted = survives(
        lambda: paper_notebooks.check_parameters(paper_notebooks.notebook_path("table1_general"), values) or True
    )
    kinds = dict.fromkeys(NAMES, str) | dict.fromkeys(("datasets", "methods", "shots", "seeds"), list)
    kinds |= dict(recorded=bool)
    assert bool(accepted) == all(type(v) is kinds.get(k) for k, v in values.items())


LITERALS = st.text(max_size=20) | st.recursive(
    st.sampled_from(
        [
            "1",
            "'a'",
            "None",
            "[]",
            "{}",
            "x",
            "f(1)",
            "1e999",
            "-",
            "0x",
            "b'a'",
            "\x00",
            "lambda: 1",
            "__import__('os')",
        ]
    ),
    lambda t: (
        st.builds("[{},{}]".format, t, t)
        | st.builds("{{{}:{}}}".format, t, t)
        | st.builds("{{{}}}".format, t)
        | st.builds("-({})".format, t)
    ),
    max_leaves=5,
)


@fuzz(200)
@given(
    text=st.builds("{}={}".format, st.text(max_size=5), LITERALS)
    | LITERALS
    | st.sampled_from(
        ["a=" + "[" * n for n in (50, 500, 10**4)] + ["a=" + "9" * 5000, "a=" + "-" * 10**4 + "1", "a={[]:1}"]
    )
)
def test_settings_on_the_command_line(text):
    got = survives(lambda: options.parse_setting(text))
    assert (got is None) == ("=" not in text) and (got is None or isinstance(got[0], str))


SETTINGS = dict(
    heads=[("seen",), ["seen", "seen"], (), ("sean",), "seen", [None], [[]], {}],
    n_reference=[0, -1, 2.5, "5", True, None, 1],
    topk_ratio=[0, -0.5, 1.0, 7, math.nan, math.inf, "x"],
    scales=[0, -1, 2, 3, 99, 1.5],
    loss=["deviation", "focal", "", "x", None, ["bce"]],
    pseudo_source=["cutmix", "mvtec", "", "x\x00", 5],
    preset=["paper", "code", "", 1],
    nonsense=[1],
)


@fuzz(150)
@given(values=st.fixed_dictionaries({}, optional={k: st.sampled_from(v) for k, v in SETTINGS.items()}))
def test_settings_of_a_method(little, values):
    survives(lambda: create_method("dra", backbone=little, **values))


# ---- files of weights and methods


def torch_bytes(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


STATE = {"conv1.weight": torch.zeros(2, 3), "bn1.bias": torch.arange(5)}
WEIGHTS = {"w.safetensors": save(STATE), "w.pth": torch_bytes(STATE), "d.pt": torch_bytes({"state_dict": STATE})}


@fuzz(150)
@given(data=st.data(), name=st.sampled_from(sorted(WEIGHTS)))
@pytest.mark.filterwarnings("ignore")
def test_damaged_weights(root, data, name):
    whole = WEIGHTS[name]
    n = data.draw(st.sampled_from([60, len(whole)]))
    (root / name).write_bytes(
        data.draw(edits(whole[:n]) | st.binary(max_size=40)) + data.draw(st.sampled_from([whole[n:], b""]))
    )
    with bounded():
        got = survives(lambda: read_weights(root / name))
    assert got is None or all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in got.items())


META = st.sampled_from(
    [
        "",
        "{}",
        "[]",
        "null",
        "5",
        '"x"',
        '{"name": "devnet"}',
        '{"name": [], "backbone": {}, "settings": 1}',
        '{"name": "devnt", "backbone": "little", "settings": {}}',
        "[" * 10**5,
        '{"name": "devnet", "backbone": "little", "settings": {}}',
        '{"name": "devnet", "backbone": "little", "settings": {"nonsense": 1}}',
        '{"name": "../x", "backbone": "os", "settings": []}',
    ]
) | st.text(max_size=10)


@fuzz(60)
@given(
    meta=META,
    tensors=st.dictionaries(
        st.sampled_from(["a", "backbone.body.conv1.weight", "reference_0", "heads.x.learned", "", ".", "\u202e"]),
        st.sampled_from([torch.zeros(0), torch.zeros(2, 3), torch.ones(1, dtype=torch.int8)]),
        max_size=2,
    ),
)
def test_method_files_with_other_contents(root, little, meta, tensors):
    (root / "m.safetensors").write_bytes(save({k: v.clone() for k, v in tensors.items()}, {"dra_nb": meta}))
    assert survives(lambda: load_method(root / "m.safetensors")) is None
