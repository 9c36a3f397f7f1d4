"ELPV: every row from the list of cells, also in a clone of the authors' repository."

import pytest
import raw_layouts as raw
from catalog_rows import normals, rows

from dra_nb.data.datasets import load_catalog


@pytest.mark.parametrize("clone", [False, True])
def test_elpv(tmp_path, clone):
    catalog = load_catalog("elpv", raw.elpv(tmp_path / "elpv", clone).parent)
    cells = [(f"images/cell{i:04}.png", None) for i in range(1, len(raw.ELPV) + 1)]
    want = normals(o for o, (p, _) in zip(cells, raw.ELPV) if p == "0.0")
    want |= {o: ("test", 1, kind, None) for o, (p, kind) in zip(cells, raw.ELPV) if p == "1.0"}
    assert rows(catalog) == want and len(want) == 14
    assert catalog.attrs["left_out"] == {"probability 1/3 or 2/3": ["images/cell0010.png", "images/cell0011.png"]}
