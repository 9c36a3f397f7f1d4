"Package metadata, read from settings.ini, the project's one configuration."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

parser = ConfigParser(delimiters=["="])
parser.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
extras = {
    key.removesuffix("_requirements"): value.split() for key, value in cfg.items() if key.endswith("_requirements")
}

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    license="Apache-2.0",
    keywords=cfg["keywords"].split(),
    url=cfg["git_url"],
    # the paper's notebooks travel inside the package, so that an installed `dra_nb reproduce` finds them
    packages=[*find_packages(include=["dra_nb", "dra_nb.*"]), "dra_nb.paper"],
    package_dir={"dra_nb.paper": "nbs/paper"},
    package_data={"dra_nb.paper": ["*.ipynb"], "dra_nb": ["**/*.csv", "**/*.html", "py.typed"]},
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": cfg["console_scripts"].split()},
)
