"The wheel, installed with its dependencies in an empty environment: what a user gets from `pip install`."

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from conftest import REPO, mvtec_folder

pytestmark = pytest.mark.slow


def call(*args, cwd, timeout=900):
    "Run a program without anything of the development environment"
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}
    return subprocess.run([str(a) for a in args], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def place():
    "A folder that is removed at the end: the environment has some GB"
    with tempfile.TemporaryDirectory(prefix="dra_nb_wheel_") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def wheel(place):
    "The wheel, built from a copy: in the repository a build would find what an older one left, and leave as much"
    source = place / "source"
    left_out = (".*", "build", "dist", "*.egg-info", "outputs", "__pycache__")
    shutil.copytree(REPO, source, ignore=shutil.ignore_patterns(*left_out))
    build = (sys.executable, "-m", "pip", "wheel", source, "--no-deps", "--no-build-isolation")
    done = call(*build, "--wheel-dir", place / "dist", cwd=place)
    assert done.returncode == 0, done.stderr[-2000:]
    return next((place / "dist").glob("*.whl"))


def share_pytorch(site):
    "Link PyTorch into an environment, where the system has links: 5 GB that pip would only unpack once more"
    for package in Path(torch.__file__).parents[1].iterdir():
        if re.match(r"(torch|torchgen|functorch|triton|nvidia\w*|cuda_\w+)(-[\d.]+\S*\.dist-info)?$", package.name):
            with suppress(OSError):
                (site / package.name).symlink_to(package)


@pytest.fixture(scope="module")
def installed(place, wheel):
    "The folder with the programs of the new environment"
    venv.create(place / "env", with_pip=True)
    programs = place / "env" / ("Scripts" if os.name == "nt" else "bin")
    share_pytorch(next((place / "env").rglob("site-packages")))
    install = (programs / "python", "-m", "pip", "install", "--no-cache-dir", "--no-compile")  # compiled if imported
    done = call(*install, "-c", REPO / "constraints.txt", f"{wheel}[lite]", cwd=place)
    assert done.returncode == 0, done.stderr[-2000:]
    return programs


def test_content(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    expected = [
        f"dra_nb/{p.relative_to(REPO / 'dra_nb').as_posix()}"
        for p in (REPO / "dra_nb").rglob("*")
        if p.suffix in (".py", ".csv")
    ]
    expected += [f"dra_nb/paper/{p.name}" for p in (REPO / "nbs" / "paper").glob("*.ipynb")]
    assert (
        [e for e in expected if e not in names] == []
        and any(e.endswith(".csv") for e in expected)
        and any(e.endswith(".ipynb") for e in expected)
    )
    assert [
        n for n in names if not n.startswith("dra_nb/") and ".dist-info/" not in n
    ] == []  # nothing else lands in site-packages


def test_only_what_is_needed(installed, place):
    code = (
        "import importlib.util as u, json, dra_nb; "
        "tools = ('nbdev', 'papermill', 'IPython', 'openTSNE', 'jupyterlab', 'pytest', 'execnb'); "
        "print(json.dumps([dra_nb.__file__, [m for m in tools if u.find_spec(m)]]))"
    )
    done = call(installed / "python", "-c", code, cwd=place)
    assert done.returncode == 0, done.stderr[-2000:]
    home, present = json.loads(done.stdout)
    assert present == [] and Path(home).is_relative_to(place / "env")
    assert call(installed / "python", "-m", "pip", "check", cwd=place).returncode == 0


@pytest.fixture(scope="module")
def data(place):
    "A data folder with one small dataset"
    mvtec_folder(place / "data" / "mine")
    return place / "data"


def test_the_command(installed, place, data):
    done = call(installed / "dra_nb", "--help", cwd=place)
    assert done.returncode == 0 and "reproduce" in done.stdout
    options = ("--data", data, "--method", "devnet", "--out", place / "out")
    done = call(installed / "dra_nb", "run", "mine", *options, cwd=place)
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = json.loads(done.stdout)
    assert 0 < metrics["auroc"] <= 1 and (place / "out" / "smoke" / "runs" / f"{metrics['key']}.json").is_file()


def test_paper_notebooks_and_tables_are_found(installed, place):
    code = (
        "from dra_nb.cli import paper_notebooks as cli; from dra_nb.experiments.artefacts import ARTEFACTS; "
        "from dra_nb.experiments import published as p; "
        "print([str(cli.notebook_path(a.notebook)) for a in ARTEFACTS.values()], "
        "[len(p.published(t)) > 0 for t in p.PUBLISHED])"
    )
    done = call(installed / "python", "-c", code, cwd=place)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "site-packages" in done.stdout and "False" not in done.stdout


def test_reproduce_says_what_it_needs(installed, place, data):
    options = ("--data", data, "--dataset", "mine", "--method", "devnet", "--shots", "1", "--out", place / "out")
    done = call(installed / "dra_nb", "reproduce", "table1", *options, cwd=place)
    assert done.returncode == 2 and "papermill" in done.stderr and 'pip install "dra_nb[notebooks]"' in done.stderr
    assert "Traceback" not in done.stderr
