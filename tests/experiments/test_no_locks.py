"File systems without locks: work is done, nobody waits for ever, what a dead process left stops nobody."

import errno
import os
import re
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import python
from PIL import Image

from dra_nb import core
from dra_nb.core import DraError, WriteError, file_lock
from dra_nb.data.catalog import make_catalog
from dra_nb.data.disk import exclusive
from dra_nb.data.store import open_store
from dra_nb.data.textures import render_textures
from dra_nb.experiments.locks import take

CODES = ["ENOSYS", "ENOLCK", "EOPNOTSUPP"]


def refuse(monkeypatch, code):
    "Every lock is refused as such a file system does"

    def flock(file, operation):
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr("fcntl.flock", flock)


@pytest.mark.parametrize("code", CODES)
def test_images_are_decoded_and_textures_rendered(tmp_path, monkeypatch, code):
    refuse(monkeypatch, code)
    Image.fromarray(np.full((9, 9, 3), 77, np.uint8)).save(tmp_path / "a.png")
    rows = [("a.png", None, "", "train", 0, "", None), ("a.png", None, "", "test", 1, "dent", None)]
    catalog = make_catalog(rows, tmp_path, "mine")
    assert (open_store(catalog, 8, cache=tmp_path / "cache", progress=False)[0] == 77).all()
    root = render_textures(tmp_path / "textures", 1, 1, 1, progress=False)
    assert len(list(root.rglob("*.png"))) > 8
    with exclusive(tmp_path / "new" / ".lock"):
        pass
    assert [p.name for p in tmp_path.rglob("*.held")] == []


@pytest.mark.parametrize("code", CODES)
def test_the_claim_of_a_dead_process_is_taken_over(tmp_path, monkeypatch, code):
    refuse(monkeypatch, code)
    (tmp_path / "run.claim").write_text("{}")
    os.utime(tmp_path / "run.claim", (0, 0))
    assert take(tmp_path / "run.claim") and not take(tmp_path / "run.claim")


def test_one_at_a_time(tmp_path, monkeypatch):
    refuse(monkeypatch, "ENOLCK")
    inside, most = [], []

    def work():
        with file_lock(tmp_path / "x.lock", poll_interval=0.001):
            inside.append(1)
            most.append(len(inside))
            threading.Event().wait(0.01)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == [1] * 6


def test_what_a_killed_process_left_is_taken_over(tmp_path, monkeypatch):
    code = (
        "import errno, fcntl, os, signal, sys\n"
        "def flock(*args): raise OSError(errno.ENOLCK, 'No locks available')\n"
        "fcntl.flock = flock\n"
        "from dra_nb.core import file_lock\n"
        "with file_lock(sys.argv[1]): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert python(code, tmp_path / "x.lock").returncode == -signal.SIGKILL and (tmp_path / "x.lock.held").exists()
    refuse(monkeypatch, "ENOLCK")
    monkeypatch.setattr(core, "LOCK_SECONDS", 20)
    with file_lock(tmp_path / "x.lock"):
        pass


def test_another_machine_is_waited_for_and_then_named(tmp_path, monkeypatch):
    refuse(monkeypatch, "ENOSYS")
    (tmp_path / "x.lock.held").write_text("1\nanother-machine\n")
    monkeypatch.setattr(core, "LOCK_SECONDS", 0.1)
    with (
        pytest.raises(DraError, match=r"x\.lock\.held has been there for 0\.1 seconds.*delete this file"),
        file_lock(tmp_path / "x.lock"),
    ):
        pass


def test_a_lock_file_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "x.lock").mkdir()
    with (
        pytest.raises(WriteError, match=r"x\.lock cannot be opened \(Is a directory\).*another folder"),
        file_lock(tmp_path / "x.lock"),
    ):
        pass


def test_the_oldest_filelock_that_is_admitted():
    "3.20.3 and older wait for ever on ENOLCK, those before 3.23 for a dead process"
    from test_package import settings

    (bound,) = [r for r in settings()["requirements"].split() if r.startswith("filelock")]
    assert tuple(map(int, bound.partition(">=")[2].split("."))) >= (3, 24)


def test_every_lock_is_had_by_this_rule():
    "One module alone imports filelock"
    package = Path(core.__file__).parent
    users = [
        p.name for p in package.rglob("*.py") if re.search(r"^\s*(from|import) filelock", p.read_text("utf-8"), re.M)
    ]
    assert users == ["core.py"]
