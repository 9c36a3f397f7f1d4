"""Build the documentation site into _docs/html: notebooks as they are committed, an API page per module, the gallery.

Nothing is executed and nothing is fetched.
"""

import ast
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "_docs" / "source"
HTML = ROOT / "_docs" / "html"

# Reading order: folder of nbs/ -> title of its part of the site
PARTS = {
    "tutorials": "Tutorials",
    "data": "Data: images in, batches out",
    "models": "Models: backbones, heads, losses",
    "methods": "Methods",
    "training": "Training",
    "evaluation": "Evaluation",
    "detector": "The detector",
    "experiments": "Experiments: specs, records, studies",
    "reporting": "Reporting: tables, figures, claims",
    "profiling": "Speed and memory",
    "cli": "The command line",
    "paper": "The paper's tables and figures",
}
ALONE = ("public", "core", "moved")  # notebooks that stand in no folder; index.md lists them
DROPPED = re.compile(r"^#\|\s*(hide|default_exp)\b", re.M)
DIRECTIVE = re.compile(r"^#\|.*\n?", re.M)


def is_shown(cell):
    "Whether a reader of the site needs a cell"
    source = "".join(cell["source"])
    return bool(source.strip()) and not (cell["cell_type"] == "code" and DROPPED.search(source))


def without_directives(cell):
    "A code cell without nbdev's comments"
    source = DIRECTIVE.sub("", "".join(cell["source"])).strip("\n")
    return cell | {"source": source.splitlines(keepends=True)}


def with_anchors(cell):
    "A text cell whose links within a page are spelt as the site spells them: #the-folder, not #The-folder"
    source = re.sub(r"(\]\([^)\s]*#)([^)\s]+)\)", lambda m: f"{m[1]}{m[2].lower()})", "".join(cell["source"]))
    source = source.replace("```mermaid", "```text")  # drawn by JupyterLab; here it would take a script
    return cell | {"source": source.splitlines(keepends=True)}


def with_pictures(text):
    "Text of a paper notebook or a table, whose pictures lie where the gallery has them"
    return re.sub(r"\]\((\w+\.png)\)", r"](/_static/gallery/\1)", text)


def copy_notebook(file, target):
    "One notebook as the site shows it"
    notebook = json.loads(with_pictures(file.read_text(encoding="utf-8")))
    cells = [c for c in notebook["cells"] if is_shown(c)]
    notebook["cells"] = [without_directives(c) if c["cell_type"] == "code" else with_anchors(c) for c in cells]
    notebook["metadata"] = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(notebook), encoding="utf-8")


def made(pattern):
    "Committed results of that name, each of the largest profile that has it"
    found = {}
    for profile in ("cpu", "paper"):
        found |= {file.name: file for file in (ROOT / "outputs" / profile).glob(pattern)}
    return [found[name] for name in sorted(found)]


def executed(file):
    "The committed executed copy of a paper notebook, if there is one; else the notebook itself"
    return next(iter(made(file.name)), file)


def copy_notebooks():
    "All notebooks; names below `notebooks/` by part, in reading order"
    pages = {}
    for part in PARTS:
        files = sorted(f for f in (ROOT / "nbs" / part).rglob("*.ipynb") if ".ipynb_checkpoints" not in f.parts)
        pages[part] = [f.relative_to(ROOT / "nbs").with_suffix("").as_posix() for f in files]
        for file in files:
            chosen = executed(file) if part == "paper" else file
            copy_notebook(chosen, SOURCE / "notebooks" / file.relative_to(ROOT / "nbs"))
    for name in ALONE:
        copy_notebook(ROOT / "nbs" / f"{name}.ipynb", SOURCE / "notebooks" / f"{name}.ipynb")
    return pages


def toctree(names, caption="", depth=1):
    "A table of contents of pages"
    lines = ["```{toctree}", f":maxdepth: {depth}", *([f":caption: {caption}"] if caption else []), "", *names, "```"]
    return "\n".join(lines)


def write_parts(pages):
    "A page per part that lists its notebooks"
    for part, names in pages.items():
        text = f"# {PARTS[part]}\n\n{toctree([f'notebooks/{n}' for n in names])}\n"
        (SOURCE / f"part_{part}.md").write_text(text, encoding="utf-8")


def annotation(value):
    "A type as text; '' where there is none"
    if value in (inspect.Parameter.empty, None):
        return ""
    return value if isinstance(value, str) else inspect.formatannotation(value)


def parameter_rows(item):
    "(name, type, default, meaning) of each parameter and of what is returned, from the comments beside them"
    from fastcore.docments import docments

    rows = []
    for name, known in docments(item, full=True, returns=True).items():
        default = known.get("default", inspect.Parameter.empty)
        shown = "" if default is inspect.Parameter.empty else f"`{default!r}`"
        rows.append((name, annotation(known["anno"]), shown, known["docment"] or ""))
    empty = ("return", "", "", "")
    return [r for r in rows if r != empty and r[0] != "self"]


def cell_text(text):
    "Text for a cell of a Markdown table"
    return re.sub(r"\s+", " ", str(text)).replace("|", "\\|").replace("<", "&lt;")


def parameter_table(item):
    "The parameters of a function or class as a Markdown table"
    try:
        rows = parameter_rows(item)
    except Exception:  # what has no source, such as an enumeration
        return ""
    if not rows:
        return ""
    head = ["| name | type | default | meaning |", "|---|---|---|---|"]
    body = [f"| *{n}* | {f'`{cell_text(t)}`' if t else ''} | {cell_text(d)} | {cell_text(m)} |" for n, t, d, m in rows]
    return "\n".join([*head, *body])


def signature(item):
    "What stands in brackets after a name, without types"
    try:
        parameters = inspect.signature(item).parameters.values()
    except (TypeError, ValueError):
        return "()"
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in parameters if p.name != "self"]
    short = [re.sub(r"<[^>]*>", "...", str(p)) for p in plain]
    return f"({', '.join(short)})"


def doc_of(item):
    "Own docstring of a thing"
    return inspect.cleandoc(getattr(item, "__doc__", None) or "")


def methods_of(cls):
    "Public methods that a class defines itself, with docstrings"
    return [(n, f) for n, f in vars(cls).items() if inspect.isfunction(f) and not n.startswith("_") and f.__doc__]


def entry(name, item, module):
    "The API entry of one name"
    if inspect.isclass(item):
        lines = [f"::::{{py:class}} {name}{signature(item)}", f":module: {module}", "", doc_of(item), ""]
        lines += [parameter_table(item), ""]
        for method, function in methods_of(item):
            lines += [f":::{{py:method}} {method}{signature(function)}", "", doc_of(function), ""]
            lines += [parameter_table(function), ":::", ""]
        return "\n".join([*lines, "::::", ""])
    if inspect.isroutine(item):
        head = [f"::::{{py:function}} {name}{signature(item)}", f":module: {module}", "", doc_of(item), ""]
        return "\n".join([*head, parameter_table(item), "::::", ""])
    return f"::::{{py:data}} {name}\n:module: {module}\n\n`{cell_text(repr(item))[:200]}`\n::::\n"


def write_api():
    """A page per module of the package, and a page that lists them by folder

    They are kept out of the navigation, which every page of the site repeats.
    """
    sys.path.insert(0, str(ROOT))
    lines = ["# Modules", "", "One page per module: its public names, their parameters and results."]
    folder = None
    for file in sorted((ROOT / "dra_nb").rglob("*.py")):
        if file.name in ("__init__.py", "_modidx.py"):
            continue
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        loaded = importlib.import_module(module)
        public = ast.literal_eval(re.search(r"__all__ = (\[.*?\])", file.read_text(encoding="utf-8"), re.S)[1])
        entries = [entry(n, getattr(loaded, n), module) for n in public]
        page = SOURCE / "api" / f"{module}.md"
        page.parent.mkdir(parents=True, exist_ok=True)
        head = f"---\norphan: true\n---\n# {module}\n\n{doc_of(loaded)}\n\n"
        page.write_text(head + "\n".join(entries), encoding="utf-8")
        if file.parent != folder:
            folder = file.parent
            lines += ["", f"## {module.rpartition('.')[0]}", ""]
        lines.append(f"- [{module}](api/{module}.md): {doc_of(loaded)}")
    (SOURCE / "api.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def caption_of(file):
    "The first sentence of the caption that is kept beside a table or figure"
    text = file.with_suffix(".txt")
    return text.read_text(encoding="utf-8").split(". ")[0].strip() if text.is_file() else file.stem


def figure(picture):
    "A picture of the gallery with its caption"
    place = f"_static/gallery/{picture.name}"
    image = f'<a href="{place}"><img src="{place}" alt="{picture.stem}" loading="lazy"></a>'
    caption = f"<b>{picture.stem}</b> {escape(caption_of(picture))} (profile {picture.parent.name})"
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def write_gallery():
    "Figures and tables that papermill wrote"
    (SOURCE / "gallery").mkdir(parents=True, exist_ok=True)
    (SOURCE / "_static" / "gallery").mkdir(parents=True, exist_ok=True)
    lines = [
        "# Tables and figures",
        "",
        "Made by `dra_nb reproduce` at profile `cpu`; committed with their records.",
        "",
    ]
    lines.append('<div class="gallery">')
    for picture in made("*.png"):
        shutil.copy(picture, SOURCE / "_static" / "gallery")
        lines.append(figure(picture))
    lines += ["</div>", ""]
    tables = made("*.md")
    for table in tables:
        text = with_pictures(re.sub(r"^#+ ", "", table.read_text(encoding="utf-8"), flags=re.M))
        (SOURCE / "gallery" / table.name).write_text(f"# {table.stem}\n\n{text}", encoding="utf-8")
    lines.append(toctree([f"gallery/{t.stem}" for t in tables], "Tables"))
    (SOURCE / "gallery.md").write_text("\n".join(lines), encoding="utf-8")


def main():
    "Lay out the pages and run Sphinx; warnings are errors"
    shutil.rmtree(ROOT / "_docs", ignore_errors=True)
    shutil.copytree(ROOT / "docs", SOURCE, ignore=shutil.ignore_patterns("build.py", "__pycache__"))
    write_parts(copy_notebooks())
    write_api()
    write_gallery()
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(SOURCE), str(HTML)]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}).returncode


if __name__ == "__main__":
    sys.exit(main())
