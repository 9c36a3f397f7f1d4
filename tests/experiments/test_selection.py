"Parameters of the paper's notebooks as papermill hands them over: single values, and what is none."

import json

import pytest
from conftest import REPO

from dra_nb.core import DraError
from dra_nb.experiments.grids import Study, plan

NOTEBOOKS = sorted((REPO / "nbs" / "paper").glob("*.ipynb"))


class Planned(Exception):
    "Ends a notebook when its study is planned"


def planned(notebook, monkeypatch, **typed):
    "The study of a paper notebook with parameters as they are typed after -p; lists and numbers are given as they are"
    from papermill.cli import _resolve_type  # what `papermill -p name text` makes of a text; slow to import

    cells = [c for c in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    parameters, first = ("".join(c["source"]) for c in cells[:2])
    values = {k: _resolve_type(v) if isinstance(v, str) else v for k, v in typed.items()}
    monkeypatch.setattr(Study, "run", lambda self: (_ for _ in ()).throw(Planned(self)))
    names = {}
    exec(parameters, names)
    with pytest.raises(Planned) as end:
        exec(first, names | values)
    return end.value.args[0]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_single_value_is_a_list_of_one(notebook, monkeypatch):
    listed = planned(notebook, monkeypatch, seeds=[3], shots=[2], datasets=["textures"])
    single = planned(notebook, monkeypatch, seeds="3", shots="2", datasets="textures")
    assert single.specs == listed.specs
    if listed.artefact.tables or listed.artefact.parts:
        assert listed.specs and {s.seed for s in single.specs} == {3} and {s.shots for s in single.specs} <= {0, 2}
    with pytest.raises(DraError, match="seeds must be a whole number"):
        planned(notebook, monkeypatch, seeds="True")
    with pytest.raises(DraError, match="data must be text, not 0; papermill takes it as text with -r data 0"):
        planned(notebook, monkeypatch, data="0")


TABLE1 = REPO / "nbs" / "paper" / "table1_general.ipynb"


def test_zero_is_a_value(monkeypatch):
    assert {s.seed for s in planned(TABLE1, monkeypatch, seeds="0").specs} == {0}
    every = planned(TABLE1, monkeypatch).specs
    assert planned(TABLE1, monkeypatch, seeds="None", methods="", shots=[]).specs == every and len(every) > 4


@pytest.mark.parametrize(
    "typed, found",
    [
        (dict(seeds="0,1"), {(0, 10), (1, 10), (0, 1), (1, 1)}),
        (dict(seeds=(0, 1), shots="10"), {(0, 10), (1, 10)}),
        (dict(seeds=range(2), shots=["1"]), {(0, 1), (1, 1)}),
    ],
    ids=str,
)
def test_several_values(monkeypatch, typed, found):
    specs = planned(TABLE1, monkeypatch, methods="dra", **typed).specs
    assert {(s.seed, s.shots) for s in specs} == found and {s.method for s in specs} == {"dra"}


@pytest.mark.parametrize(
    "typed, message",
    [
        (dict(shots="1.5"), "shots must be a whole number, such as 0, or a list.*not 1.5"),
        (dict(seeds="[0, 1]"), r"seeds must be a whole number.*papermill takes as -y 'seeds: \[0\]'.*not '\[0'"),
        (dict(seeds=[True]), "seeds must be a whole number.*not True"),
        (dict(datasets="2024"), "datasets must be a name, such as textures.*not 2024"),
        (dict(methods={"dra": 1}), "methods must be a name, such as dra"),
        (dict(methods="dra,devnet"), "unknown method 'dra,devnet'"),
        (dict(profile="1"), "profile must be text, not 1"),
        (dict(medical="True"), "medical must be text, not True"),
        (dict(weights="0"), "weights must be text, not 0"),
    ],
    ids=str,
)
def test_what_is_refused_is_named(monkeypatch, typed, message):
    with pytest.raises(DraError, match=message):
        planned(TABLE1, monkeypatch, **typed)


def test_python_too():
    assert (
        plan("table1", methods="dra", seeds=0, shots=1).specs
        == plan("table1", methods=["dra"], seeds=[0], shots=[1]).specs
    )
