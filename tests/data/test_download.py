"Whole datasets downloaded from a real server on this machine, in one process, in two at once, and killed at any stage."

import io
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import REPO, in_tiers, picture, python, succeeded
from download_site import contents, local_site, pack

from dra_nb.core import DraError
from dra_nb.data.datasets import load_catalog, load_datasets
from dra_nb.data.download import download
from dra_nb.data.fetch import file_digest
from dra_nb.data.readers.mvtec import read_mvtec
from dra_nb.data.registry import Archive, Dataset


@pytest.fixture
def site(monkeypatch):
    with local_site(monkeypatch) as site:
        yield site


FACTS = dict(
    title="Toy",
    domain="drawn plates",
    folder="toy",
    layout="train/good/*.png\ntest/...",
    where="ask toy@example.org for a password",
    licence="CC0",
    classes=("dent",),
    reader=read_mvtec,
    expected={"": {"train": 3, "test": 2, "dent": 2}},
)


def png(kind, seed):
    picture(kind, np.random.default_rng(seed), 32).save(file := io.BytesIO(), "png")
    return file.getvalue()


def toy(site, tmp_path, **how):
    "A dataset that is published in two files"
    (tmp_path / "published").mkdir(exist_ok=True)
    images = [
        (f"toy-1.0/{folder}/{i}.png", png(folder.split("/")[1], 9 * i))
        for folder, n in (("train/good", 3), ("test/good", 2), ("test/dent", 2))
        for i in range(n)
    ]
    files = (
        pack(tmp_path / "published" / "images.zip", images),
        pack(tmp_path / "published" / "masks.tar.gz", [(f"dent/{i}_mask.png", png("dent", i)) for i in range(2)]),
    )
    urls = [site.put(f.name, f.read_bytes(), **how) for f in files]
    return Dataset(
        "toy",
        **FACTS,
        files=(
            Archive(urls[0], f"sha256:{file_digest(files[0])}", files[0].stat().st_size, strip=1),
            Archive(urls[1], into="ground_truth"),
        ),
    )


@pytest.fixture
def known(site, tmp_path, monkeypatch):
    monkeypatch.setitem(load_datasets(), "toy", toy(site, tmp_path))
    monkeypatch.setitem(load_datasets(), "form", Dataset("form", **FACTS | dict(folder="form", title="Form")))
    return tmp_path / "data"


def test_download(site, known, caplog):
    caplog.set_level("INFO", "dra_nb")
    folder = download("toy", known, progress=False)
    out = caplog.text
    assert "3 train and 4 test images, 2 of them anomalies (dent 2)" in out and "none is published" in out
    catalog = load_catalog("toy", known)
    assert (
        folder == known / "toy"
        and len(catalog) == 7
        and catalog["mask"].notna().sum() == 2
        and os.listdir(known) == ["toy"]
    )
    times = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert (
        download("toy", known) == folder and len(site.log) == 2 and f"Toy is in {known / 'toy'}" in caplog.messages[-1]
    )
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == times


def test_download_through_the_command(site, known, capsys, monkeypatch):
    from dra_nb.cli.main import main

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["dra_nb", "datasets", *map(str, args)])
        try:
            main()
            status = 0
        except SystemExit as e:
            status = e.code or 0
        return status, *capsys.readouterr()

    assert "get it: dra_nb datasets download toy   (or: ask toy@example.org" in call()[1]
    site.server.files["/images.zip"].cuts.append(1000)
    status, out, err = call("download", "toy", "--data", known)
    assert status == 0 and f"Toy is in {known / 'toy'}: 3 train" in err and site.ranges[1] == "bytes=1000-"
    assert "present: 3 train, 4 test images" in call("--data", known)[1]
    status, out, _ = call("--check", known)
    assert status == 0 and "toy" in out and "elpv" in out
    (known / "toy" / "test" / "dent" / "1.png").unlink()
    assert call("--check", known)[0] == 1
    status, out, err = call("download", "form", "--data", known)
    assert status == 2 and not (known / "form").exists()
    for part in ("ask toy@example.org for a password", str(known / "form"), "train/good/*.png\ntest/..."):
        assert part in err
    status, _, err = call("download", "tyo", "--data", known)
    assert status == 2 and "Did you mean 'toy'" in err


def test_a_folder_that_is_there_is_not_touched(site, known):
    (known / "TOY").mkdir(parents=True)
    (known / "TOY" / "notes.txt").write_text("mine")
    with pytest.raises(DraError, match="Move the folder away") as caught:
        download("toy", known, progress=False)
    assert str(known / "TOY") in str(caught.value) and contents(known) == {"TOY/notes.txt": b"mine"} and not site.log


def test_an_empty_folder_is_filled(site, known):
    (known / "toy").mkdir(parents=True)
    assert len(load_catalog("toy", download("toy", known, progress=False).parent)) == 7


def test_wrong_archive_of_a_dataset(site, known):
    "Refused; and once the right one is served, the same call succeeds"
    right = site.server.files["/images.zip"]
    site.put("images.zip", right.body[::-1])
    with pytest.raises(DraError, match="another file than the published one"):
        download("toy", known, progress=False)
    assert not (known / "toy").exists()
    site.server.files["/images.zip"] = right
    assert download("toy", known, progress=False) == known / "toy" and os.listdir(known) == ["toy"]


def test_unreadable_content_does_not_become_a_dataset(site, known, monkeypatch):
    dataset = load_datasets()["toy"]
    monkeypatch.setitem(load_datasets(), "toy", Dataset("toy", **FACTS, files=dataset.files[1:]))
    with pytest.raises(DraError, match="cannot be read") as caught:
        download("toy", known, progress=False)
    assert "train/good" in str(caught.value) and not (known / "toy").exists()


def test_malicious_archive_of_a_dataset(site, known, tmp_path, monkeypatch):
    evil = pack(tmp_path / "published" / "evil.zip", [("train/good/a.png", png("good", 0)), ("../../evil.png", b"")])
    monkeypatch.setitem(
        load_datasets(), "toy", Dataset("toy", **FACTS, files=(Archive(site.put("evil.zip", evil.read_bytes())),))
    )
    with pytest.raises(DraError, match="leads out"):
        download("toy", known, progress=False)
    assert not list(tmp_path.rglob("*.png")) and not (known / "toy").exists()


def test_files_put_by_hand_are_used(site, known, tmp_path):
    site.server.files.clear()
    with pytest.raises(DraError) as caught:
        download("toy", known, progress=False)
    place = str(caught.value).split("put it at ")[1].split(", and repeat")[0]
    for name in ("images.zip", "masks.tar.gz"):
        if name not in place:
            place = place.replace("file 1", "file 2").replace("images.zip", name)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        shutil.copy(tmp_path / "published" / name, place)
    assert download("toy", known, progress=False) == known / "toy"


# ---- processes that are killed, or meet

PROCESS = """
import logging
logging.basicConfig(level="INFO")
import os, signal, sys
from dra_nb.data import download as module
from dra_nb.data.datasets import load_datasets
from dra_nb.data.readers.mvtec import read_mvtec
from dra_nb.data.registry import Archive, Dataset
address, digest, size, data, where, n = sys.argv[1:]
facts = dict(title="Toy", domain="", folder="toy", layout="", where="", licence="", classes=(), reader=read_mvtec)
images = Archive(f"{address}/images.zip", digest, int(size), strip=1)
files = images, Archive(f"{address}/masks.tar.gz", into="ground_truth")
load_datasets()["toy"] = Dataset("toy", **facts, files=files)
if where:
    owner, _, name = where.rpartition(".")
    owner, calls = getattr(module, owner), []
    real = getattr(owner, name)
    def deadly(*args, **kwargs):
        calls.append(1)
        if len(calls) == int(n): os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    setattr(owner, name, deadly)
module.download("toy", data, progress=False)
"""


def arguments(site, data, where="", n=0):
    o = load_datasets()["toy"].files[0]
    return site.address, o.digest, o.size, data, where, n


def begin(site, data):
    "A process of its own that downloads; it is not waited for"
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, *map(str, arguments(site, data))],
        cwd=REPO,
        env={**os.environ, "no_proxy": "127.0.0.1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(site, data, where="", n=0):
    return python(PROCESS, *arguments(site, data, where, n), cwd=REPO, no_proxy="127.0.0.1")


def test_killed_half_way_through_the_download(site, known):
    file = site.server.files["/images.zip"]
    file.cuts, file.hold, half = [len(file.body) // 2], 30, len(file.body) // 2
    process = begin(site, known)
    part, limit = known / ".toy.download" / "file 1" / "images.zip.part", time.monotonic() + 60
    while not (part.is_file() and site.log and site.log[0].sent == half):
        assert time.monotonic() < limit and process.poll() is None
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    come = part.stat().st_size
    assert not (known / "toy").exists() and come <= half
    succeeded(run(site, known))
    assert [o.range for o in site.log] == [None, f"bytes={come}-" if come else None, None] and os.listdir(known) == [
        "toy"
    ]
    assert len(load_catalog("toy", known)) == 7


STAGES = {
    "in the first archive": ("shutil.copyfileobj", 3),
    "in the second archive": ("shutil.copyfileobj", 9),
    "first file not renamed": ("os.replace", 1),
    "dataset not renamed": ("os.replace", 3),
    "archives not removed": ("shutil.rmtree", 1),
}


@pytest.mark.parametrize("stage", in_tiers(STAGES, ["archives not removed"]))
def test_killed_at(site, known, stage):
    done = run(site, known, *STAGES[stage])
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert (known / "toy").exists() == (stage == "archives not removed")
    if (known / "toy").exists():
        assert len(load_catalog("toy", known)) == 7
    succeeded(run(site, known))
    assert len(site.log) == 2 and len(load_catalog("toy", known)) == 7  # no file was fetched twice


@pytest.mark.slow
def test_two_at_once(site, known):
    file = site.server.files["/images.zip"]
    file.cuts, file.hold = [1000], 1.5
    both = [begin(site, known), begin(site, known)]
    ends = [o.communicate(timeout=120) for o in both]
    assert [o.returncode for o in both] == [0, 0], ends
    assert [o.path for o in site.log] == ["/images.zip", "/images.zip", "/masks.tar.gz"] and site.sent == sum(
        len(o.body) for o in site.server.files.values()
    )
    assert (
        all("Toy is in" in err for _, err in ends)
        and any("waiting" in err for _, err in ends)
        and len(load_catalog("toy", known)) == 7
    )
