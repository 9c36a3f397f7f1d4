"The package and its notebooks as a whole: what it needs, what it says it needs, and what is committed."

import json
import re
import warnings
from configparser import ConfigParser

import pytest
from conftest import REPO, mvtec_folder, python, succeeded

BLOCKED = "nbdev papermill IPython openTSNE ipykernel jupyterlab execnb fastcore nbformat nbclient ipywidgets".split()
BARE = """
import sys, importlib.abc
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[4].split(","): raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
sys.path.insert(0, sys.argv[1])
import pkgutil, dra_nb
for m in pkgutil.walk_packages(dra_nb.__path__, "dra_nb."):
    if not m.name.startswith("dra_nb._"): __import__(m.name)
from conftest import short_spec
from dra_nb.core import DraError
from dra_nb.cli import paper_notebooks as cli
from dra_nb.reporting.cells import compare_runs
from dra_nb.reporting.comparison_figure import plot_comparison
from dra_nb.reporting.results_table import write_table
from dra_nb.experiments.context import RunContext
from dra_nb.experiments.executors import ExecutorOptions
from dra_nb.experiments.overview import results_table
from dra_nb.experiments.study import run_missing
from dra_nb.experiments.records import Runs
from dra_nb.experiments.published import published
import pandas as pd
spec, runs = short_spec("mine"), Runs(sys.argv[3])
print(run_missing([spec], RunContext(sys.argv[2]), runs, executor=ExecutorOptions(workers=1)))
results = results_table(runs, [spec])
compared = compare_runs(results, results, published("table1"))
write_table(compared, sys.argv[3], "t", "A table")
plot_comparison(compared, sys.argv[3], "t", "A figure")
try: cli.run_notebook("table1_general", runs.folder/"x.ipynb")
except DraError as e: print("REFUSED", e)
print("LOADED", [m for m in sys.argv[4].split(",") if m in sys.modules])
"""


@pytest.mark.slow
def test_runs_without_notebook_tools(tmp_path):
    mvtec_folder(tmp_path / "mine")
    done = succeeded(python(BARE, __file__.rpartition("/")[0], tmp_path, tmp_path / "out", ",".join(BLOCKED)))
    assert "RunCounts(done=1, skipped=0, failed=0, elsewhere=0)" in done.stdout and "LOADED []" in done.stdout
    assert "REFUSED notebooks need papermill" in done.stdout and "pip install" in done.stdout
    assert {p.name for p in (tmp_path / "out").iterdir() if p.stem == "t"} == {
        f"t.{k}" for k in ("csv", "md", "tex", "html", "png", "pdf", "txt")
    }


def test_import_is_light():
    code = (
        "import sys, time; t = time.perf_counter(); import dra_nb; t = time.perf_counter() - t; "
        "print(t, 'torch' in sys.modules, dra_nb.__version__)"
    )
    times = [succeeded(python(code)).stdout.split() for _ in range(3)]
    assert min(float(t) for t, *_ in times) < 0.3 and {torch for _, torch, _ in times} == {"False"}
    assert {v for *_, v in times} == {settings()["version"]}


def test_modules_compile_without_warnings():
    files = sorted((REPO / "dra_nb").rglob("*.py"))
    assert len(files) > 20
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in files:
            compile(path.read_text(encoding="utf-8"), str(path), "exec")


def settings():
    parser = ConfigParser(delimiters=["="])
    parser.read(REPO / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def plain(name):
    return re.split(r"[<>=!~\[; ]", name.strip().strip("'\""))[0].lower().replace("_", "-")


def environment_names():
    "Names of the packages in environment.yml: the conda ones and those under pip"
    lines = (REPO / "environment.yml").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("dependencies:"))
    items = [line.split("#")[0].strip() for line in lines[start + 1 :]]
    return {plain(item[2:]) for item in items if item.startswith("- ") and item != "- pip:"}


def test_environment_names_every_requirement():
    same = {"torch": {"torch", "pytorch"}, "matplotlib": {"matplotlib", "matplotlib-base"}}  # conda has other names
    names = environment_names()
    assert len(names) > 10 and "python" in names
    assert [r for r in map(plain, settings()["requirements"].split()) if not same.get(r, {r}) & names] == []


def test_every_imported_package_is_a_requirement():
    "What the modules import is required, part of Python, or of an extra"
    import ast
    import sys

    found = set()
    for path in (REPO / "dra_nb").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            if isinstance(node, ast.Import):
                found |= {a.name.partition(".")[0] for a in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.partition(".")[0])
    names = {"sklearn": "scikit-learn", "PIL": "pillow"}
    required, extras = (
        {
            plain(r)
            for k, v in settings().items()
            if k.endswith("requirements") and (k == "requirements") == own
            for r in v.split()
        }
        for own in (True, False)
    )
    assert {"torch", "numpy"} <= found
    extra = {names.get(f, f) for f in found} - required - set(sys.stdlib_module_names) - {"dra_nb"}
    assert {"papermill", "distributed"} <= extra and {plain(e) for e in extra} - extras == set()


NOTEBOOKS = sorted(p for p in (REPO / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|root|home|tmp|Users|mnt)/\w+")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: str(p.relative_to(REPO / "nbs")))
def test_notebook(path):
    nb = json.loads(path.read_text(encoding="utf-8"))
    code = [c for c in nb["cells"] if c["cell_type"] == "code"]
    if path.parent.name not in ("paper", "tutorials") and path.stem != "index":
        assert sum("#| default_exp" in "".join(c["source"]) for c in code) == 1
    assert path.stat().st_size < 1_000_000
    outputs = [o for c in code for o in c["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert (
        MACHINE_PATH.findall(
            json.dumps([{k: v for k, v in o.get("data", o).items() if k != "image/png"} for o in outputs])
        )
        == []
    )
    assert not [c for c in code if c.get("execution_count")]  # cleaned


def test_machine_paths_are_recognised():
    assert (
        MACHINE_PATH.search("in /home/main/x")
        and MACHINE_PATH.search('"/home/me"')
        and not MACHINE_PATH.search("nbs/home/me, up to 1/work")
    )


def test_every_module_comes_from_a_notebook():
    made = {p.relative_to(REPO / "dra_nb").as_posix() for p in (REPO / "dra_nb").rglob("*.py")} - {"_modidx.py"}
    targets = {re.search(r"#\| default_exp ([\w.]+?)(?=\\n|\")", p.read_text(encoding="utf-8")) for p in NOTEBOOKS}
    targets = {m[1].replace(".", "/") + ".py" for m in targets if m}
    assert {m for m in made if m == "__init__.py" or not m.endswith("__init__.py")} == targets
