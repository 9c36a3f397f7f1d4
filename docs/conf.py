"Configuration of the documentation site; `make docs` copies the pages beside this file and runs Sphinx on them."

import sys
from configparser import ConfigParser
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

settings = ConfigParser(delimiters=["="])
settings.read(HERE.parents[1] / "settings.ini", encoding="utf-8")
settings = settings["DEFAULT"]

project = settings["title"]
author = settings["author"]
project_copyright = settings["copyright"]
release = settings["version"]

extensions = ["myst_nb", "sphinx_copybutton", "mathml"]
html_math_renderer = "mathml"
nb_execution_mode = "off"  # notebooks are committed executed
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "attrs_inline"]
myst_heading_anchors = 3
myst_update_mathjax = False
exclude_patterns = ["_build"]
templates_path = ["_templates"]

toc_object_entries = False  # the navigation has pages alone
html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False


def open_own_branch(app, pagename, templatename, context, doctree):
    "Let the navigation open the branch of its page alone: all six hundred entries on every page took half of the build"
    if whole := context.get("toctree"):
        context["toctree"] = lambda **options: whole(**options | {"collapse": True})


def setup(app):
    app.connect("html-page-context", open_own_branch, priority=400)  # before the theme draws the navigation
