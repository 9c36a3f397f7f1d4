"Contact sheets of real and raw data, in a process without a display."

import io

import numpy as np
import pytest
from conftest import mvtec_folder, python, succeeded
from PIL import Image
from raw_layouts import LAYOUTS

from dra_nb.data.contact_sheet import contact_sheet, sheet_rows
from dra_nb.data.datasets import load_catalog


def texts(figure):
    return [o.get_text() for o in figure.axes[0].texts]


def outlines(figure):
    return sum(hasattr(o, "levels") for o in figure.axes[0].collections)


def pixels(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return np.asarray(Image.open(file).convert("RGB"))


def test_elpv_and_brainmri(shared):
    for name, title, classes in (
        ("elpv", "ELPV", ["normal", "1,508 images", "mono", "313 images", "poly", "402 images"]),
        ("brainmri", "BrainMRI", ["normal", "98 images", "tumor", "155 images"]),
    ):
        figure = contact_sheet(load_catalog(name, shared / "data"), columns=4, size=48)
        assert (
            texts(figure) == [title, *classes]
            and len(figure.axes[0].images) == 4 * len(classes) / 2
            and outlines(figure) == 0
        )


@pytest.mark.parametrize("name", LAYOUTS)
def test_raw_layouts(tmp_path, name):
    "Every kind of file is drawn (crops, tiles of six bands), and every mask that the catalog has"
    LAYOUTS[name](tmp_path / name)
    catalog = load_catalog(name, tmp_path)
    rows = sheet_rows(catalog, columns=3)
    figure = contact_sheet(catalog, columns=3, size=32)
    members = [i for *_, some in rows for i in some]
    assert (
        len(rows) == 1 + len(set(catalog.defect) - {""})
        and rows[0][1] == ""
        and len(figure.axes[0].images) == len(members)
    )
    assert outlines(figure) == catalog["mask"].iloc[members].notna().sum()
    assert any("crop" in o for o in texts(figure)) == (name in ("aitex", "sdd")) and pixels(figure).std() > 0


def test_same_sheet_from_the_same_seed(tmp_path):
    mvtec_folder(tmp_path / "mine")
    first, again, other = (
        pixels(contact_sheet(load_catalog("mine", tmp_path), columns=3, size=32, seed=s)) for s in (0, 0, 1)
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@pytest.mark.slow
def test_no_display_and_no_global_state(tmp_path):
    mvtec_folder(tmp_path / "mine", classes={"dent": 2})
    code = """
import os, sys; os.environ.pop("DISPLAY", None); os.environ["MPLBACKEND"] = "tkagg"
from dra_nb.data.datasets import load_catalog
from dra_nb.data.contact_sheet import contact_sheet
figure = contact_sheet(load_catalog("mine", sys.argv[1]), columns=3, size=32)
for kind in ("png", "pdf", "svg"): figure.savefig(os.path.join(sys.argv[1], f"sheet.{kind}"))
print("pyplot" if "matplotlib.pyplot" in sys.modules else "none", len(figure._repr_png_()) > 1000)
"""
    assert succeeded(python(code, tmp_path)).stdout.split() == ["none", "True"]
    assert all((tmp_path / f"sheet.{kind}").stat().st_size > 1000 for kind in ("png", "pdf", "svg"))


def test_a_broken_image_is_named(tmp_path):
    from dra_nb.core import DraError

    root = mvtec_folder(tmp_path / "mine", classes={"dent": 1})
    (root / "test/dent/000.png").write_text("no picture")
    with pytest.raises(DraError, match="test/dent/000.png"):
        contact_sheet(load_catalog("mine", tmp_path), size=32)
