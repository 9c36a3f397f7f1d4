"""Figures that keep the sources in order: layout, lines, functions, notebooks; `make house` prints them as a table."""

import ast
import json
import re
import statistics
import sys
from collections import Counter, defaultdict
from functools import lru_cache
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
PACKAGE = REPO / "dra_nb"

# A folder may import itself and what stands before it.
LAYERS = {
    "core": set(),
    "data": {"core"},
    "models": {"core"},
    "methods": {"core", "data", "models"},
    "training": {"core", "data", "models", "methods"},
    "evaluation": {"core", "data", "models", "methods", "training"},
    "detector": {"core", "data", "models", "methods", "training", "evaluation"},
    "experiments": {"core", "data", "models", "methods", "training", "evaluation"},
    "reporting": {"core", "data", "models", "methods", "training", "evaluation", "experiments"},
    "profiling": {
        "core",
        "data",
        "models",
        "methods",
        "training",
        "evaluation",
        "detector",
        "experiments",
        "reporting",
    },
}
LAYERS["cli"] = {*LAYERS}
FREE = ("__init__", "moved")  # the public face and the old module paths refer to everything

TRUTH = (ast.Compare, ast.BoolOp)
ASSERTS = re.compile(r"\b(test_\w+\(|assert\b|ExceptionExpected)")
PICTURES = ("data", "models", "methods")


@lru_cache
def modules():
    "Module name without the package -> its file"
    files = [f for f in sorted(PACKAGE.rglob("*.py")) if f.name != "_modidx.py"]
    return {".".join(f.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


def notebooks():
    "The notebooks that export modules: path below nbs/ -> code cells"
    found = {}
    for file in sorted((REPO / "nbs").rglob("*.ipynb")):
        name = file.relative_to(REPO / "nbs")
        if name.parts[0] not in ("paper", "tutorials", "index.ipynb") and ".ipynb_checkpoints" not in name.parts:
            cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
            found[name.with_suffix("").as_posix()] = [c for c in cells if c["cell_type"] == "code"]
    return found


def imports(name, file):
    "Modules of the package that a module imports, wherever in it; without the package's name"
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (n.name.removeprefix("dra_nb.") for n in node.names if n.name.startswith("dra_nb."))
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            target = [*start, *(node.module or "").split(".")]
            if not node.level and target[0] != "dra_nb":
                continue
            path = ".".join(p for p in target if p).removeprefix("dra_nb").strip(".")
            inner = [f"{path}.{n.name}".strip(".") for n in node.names]
            known = modules()
            yield from {i if i in known else path for i in inner} - {""}


@lru_cache
def arrows():
    "Module -> set of the modules that it imports"
    return {name: set(imports(name, file)) for name, file in modules().items() if name not in FREE}


def wrong_arrows():
    "Imports against the order of the folders"
    found = []
    for name, targets in arrows().items():
        room = name.split(".")[0]
        found += [f"{name} -> {t}" for t in targets if (o := t.split(".")[0]) != room and o not in LAYERS.get(room, ())]
    return sorted(found)


def circles():
    "Modules that import each other, directly or not"
    graph, state, found = arrows(), {}, []

    def visit(name, path):
        state[name] = "open"
        for target in sorted(graph.get(name, ())):
            if state.get(target) == "open" and target in path + [name]:
                found.append(" -> ".join([*(path + [name])[(path + [name]).index(target) :], target]))
            elif target in graph and target not in state:
                visit(target, path + [name])
        state[name] = "done"

    for name in sorted(graph):
        if name not in state:
            visit(name, [])
    return found


def exported_twice():
    "Names in the `__all__` of two modules"
    where = defaultdict(list)
    for name, file in modules().items():
        match = re.search(r"__all__ = (\[.*?\])", file.read_text(encoding="utf-8"), re.S)
        if match and name not in FREE:
            for public in ast.literal_eval(match[1]):
                where[public].append(name)
    return sorted(f"{public}: {', '.join(names)}" for public, names in where.items() if len(names) > 1)


def code_lines(file):
    "The lines of a generated module that somebody wrote"
    return [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("# %% ")]


def functions(tree):
    "(name, number of lines) of each function, without what is defined inside of functions"
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [(n.name, n.end_lineno - n.lineno + 1) for n in ast.walk(tree) if isinstance(n, kinds)]


def parallel(tree):
    "Assignments, and those of several values at once that are written side by side"
    assigned = [n for n in ast.walk(tree) if isinstance(n, (ast.Assign, ast.AnnAssign, ast.AugAssign))]
    several = [n for n in assigned if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Tuple)]
    return len(assigned), [n.lineno for n in several if isinstance(n.value, ast.Tuple)]


def multiplied(tree):
    "Lines on which a text or a list is multiplied by a truth value"
    found = []
    for n in ast.walk(tree):
        if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Mult):
            for a, b in ((n.left, n.right), (n.right, n.left)):
                text = isinstance(a, (ast.List, ast.JoinedStr)) or isinstance(getattr(a, "value", None), str)
                truth = isinstance(b, TRUTH) or (
                    isinstance(b, ast.Call) and getattr(b.func, "id", "") in ("bool", "isinstance")
                )
                if text and truth:
                    found.append(n.lineno)
    return found


def exported(cells):
    "The cells that become code of the module, imports alone left out"
    found = []
    for cell in cells:
        source = "".join(cell["source"])
        if re.search(r"^#\|\s*export", source, re.M):
            body = [n for n in ast.parse(re.sub(r"^[%!].*$", "", source, flags=re.M)).body]
            if not all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in body):
                found.append(source)
    return found


def asserting(cells):
    "The cells that show the module at work and assert what they show"
    sources = ["".join(c["source"]) for c in cells]
    return [s for s in sources if not re.search(r"^#\|\s*export", s, re.M) and ASSERTS.search(s)]


def process_wide(source):
    "What a cell of a notebook changes for the notebooks that are tested after it in the same process"
    calls = [n.value for n in ast.parse(re.sub(r"^[%!].*$", "", source, flags=re.M)).body if isinstance(n, ast.Expr)]
    names = {ast.unparse(c.func) for c in calls if isinstance(c, ast.Call)}
    return sorted(names & {"torch.set_grad_enabled", "torch.set_default_dtype", "torch.set_default_device", "os.chdir"})


def without_picture(books):
    "Notebooks about images that show none"

    def pictured(cells):
        outputs = [o for c in cells for o in c.get("outputs", [])]
        return any(k.startswith("image/") for o in outputs for k in o.get("data", {}))

    return [n for n, cells in books.items() if n.split("/")[0] in PICTURES and not pictured(cells)]


@lru_cache
def figures(rooms=()):
    "Name of a figure -> (value, limit, offenders); rooms: only these folders"
    mine = {n: f for n, f in modules().items() if not rooms or n.split(".")[0] in rooms}
    books = {n: c for n, c in notebooks().items() if not rooms or n.split("/")[0] in rooms}
    texts = {n: code_lines(f) for n, f in mine.items()}
    trees = {n: ast.parse(f.read_text(encoding="utf-8")) for n, f in mine.items()}
    total = sum(map(len, texts.values())) or 1
    wide = [f"{n}: {line.strip()[:60]}" for n, ls in texts.items() for line in ls if len(line) > 120]
    lengths = [(f"{n}.{f}", size) for n, t in trees.items() for f, size in functions(t)]
    assigned = {n: parallel(t) for n, t in trees.items()}
    side = [f"{n}:{line}" for n, (_, lines) in assigned.items() for line in lines]
    cells = [(n, s) for n, c in books.items() for s in exported(c)]
    changed = [f"{n}: {o}" for n, c in books.items() for cell in c for o in process_wide("".join(cell["source"]))]
    big = [f"{n}: {len(s.splitlines())} lines, {len(s)} characters, {s.splitlines()[1][:50]}" for n, s in cells]
    big = [b for b, (_, s) in zip(big, cells) if len(s.splitlines()) > 40 or len(s) > 1600]
    shown = sum(len(asserting(c)) for c in books.values())
    thin = [n for n, c in books.items() if len(asserting(c)) < 1.2 * len(exported(c))]
    long_modules = [f"{n} {len(f.read_text(encoding='utf-8').splitlines())}" for n, f in mine.items()]
    return {
        "imports against the order": (len(w := wrong_arrows()), 0, w),
        "circles of imports": (len(c := circles()), 0, c),
        "names exported twice": (len(e := exported_twice()), 0, e),
        "modules above 400 lines": (len(m := [o for o in long_modules if int(o.split()[1]) > 400]), 0, m),
        "lines above 120 columns, %": (100 * len(wide) / total, 0.5, wide),
        "parallel assignments, %": (100 * len(side) / (sum(n for n, _ in assigned.values()) or 1), 1, side),
        "text or list times a truth value": (
            len(x := [f"{n}:{line}" for n, t in trees.items() for line in multiplied(t)]),
            0,
            x,
        ),
        "functions above 40 lines": (len(o := [f"{n} {s}" for n, s in lengths if s > 40]), 0, o),
        "lines of a function, median": (statistics.median([s for _, s in lengths] or [0]), 10, []),
        "exported cells above 40 lines or 1,600 characters": (len(big), 0, big),
        "exported cells per asserting cell, 1.2 wanted": (len(cells) / max(1, shown), 1 / 1.2, thin),
        "cells that change the process for later notebooks": (len(changed), 0, changed),
        "notebooks about images without a picture": (len(p := without_picture(books)), 0, p),
    }


def table(rooms=(), offenders=True):
    "The figures as text"
    lines = []
    for name, (value, limit, which) in figures(rooms).items():
        lines.append(f"{'ok ' if value <= limit else 'NO '} {name:52} {value:8.2f}  at most {limit:.2f}")
        if offenders and value > limit:
            lines += [f"      {o}" for o in which[:40]]
    return "\n".join(lines)


def test_house():
    assert all(value <= limit for value, limit, _ in figures().values()), table()


def test_figures_can_fail():
    tree = ast.parse("a, b = 1, 2\nc = 'x' * (a > b)\nd = [1] * bool(a)\na, b = divmod(7, 2)\ne = 'x' * 3")
    assert parallel(tree) == (5, [1])
    assert multiplied(tree) == [2, 3]
    assert process_wide("torch.set_grad_enabled(False)\nwith torch.set_grad_enabled(False):\n    pass") == [
        "torch.set_grad_enabled"
    ]
    assert Counter(
        n for n, _ in functions(ast.parse("def f():\n    pass\nclass A:\n    def g(self): pass"))
    ) == Counter("fg")


if __name__ == "__main__":
    print(table(tuple(sys.argv[1:])))
