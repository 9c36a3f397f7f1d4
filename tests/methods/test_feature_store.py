"Kept features that are foreign, damaged, cut short, half written or written by two at once are never taken for others."

import json
import os
import resource
import shutil

import numpy as np
import pytest
import torch
from conftest import in_tiers, killed, python
from processes import end_all, ended, start_python
from toys import noise

import dra_nb.methods.feature_store as module
from dra_nb.core import DraError
from dra_nb.data.record_file import RecordFile
from dra_nb.methods.feature_store import FeatureFiles, FeatureStore
from dra_nb.methods.views import PLAIN, View, make_view

ROWS = np.arange(12)
IMAGES = noise(40, 32) / 255


class Halves:
    "A backbone of its own kind: two mean maps of an image, multiplied"

    parts = ("scale1", "scale2")

    def __init__(self, factor=1.0):
        self.factor = factor
        self.digest = f"times{factor:g}"

    def __call__(self, images, parts=None):
        for part in range(2) if parts is None else parts:
            yield self.factor * torch.nn.functional.avg_pool2d(images, (4, 8)[part])


def features(folder, factor=1.0, calls=None):
    "A feature store as another run would open it; the rows that it encodes are added to `calls`"

    def images(rows, view):
        if calls is not None:
            calls.extend(map(int, rows))
        return make_view(IMAGES[torch.as_tensor(rows)], rows, view)

    encoder = Halves(factor)
    return FeatureStore(encoder, images, FeatureFiles("toy", encoder.digest, "fp32", len(IMAGES), folder))


def right(store, rows=ROWS, view=PLAIN):
    "Does it give what its own encoder computes?"
    return all(torch.equal(a, b.half()) for a, b in zip(store.read(rows, view).maps, store.encode(rows, view)))


@pytest.fixture
def file(tmp_path):
    "The file of the first part, with the features of twelve images"
    assert right(features(tmp_path))
    return features(tmp_path).kept.path(PLAIN, "scale1")


def test_nothing_is_computed_twice(file, tmp_path):
    calls = []
    features(tmp_path, calls=calls).read(ROWS)
    assert calls == []


def test_features_of_another_backbone(file, tmp_path):
    "Copied or renamed to the place of this one's: the header says whose they are"
    other = features(tmp_path, factor=3.0)
    shutil.copyfile(file, other.kept.path(PLAIN, "scale1"))
    assert right(other)
    assert RecordFile(other.kept.path(PLAIN, "scale1")).about["backbone"] == "times3"


@pytest.mark.parametrize("what", ["images", "precision", "part", "view", "rows"])
def test_features_of_other_images(file, tmp_path, what):
    kept = features(tmp_path).kept
    about = kept.about(PLAIN, "scale1")
    rows = len(IMAGES)
    if what == "rows":
        rows += 1
    else:
        about |= {what: "another"}
    module.create_records(file, rows, (3, 8, 8), about)
    module.add_records(RecordFile(file), ROWS, np.zeros((12, 3, 8, 8)))
    assert right(features(tmp_path))


def test_cut_anywhere(file, tmp_path):
    "What is whole is kept, the rest is computed again"
    whole, start = file.read_bytes(), RecordFile(file).start
    one = RecordFile(file).bytes
    for size in (
        0,
        1,
        100,
        4095,
        4096,
        4100,
        start - 1,
        start,
        start + 1,
        start + one,
        len(whole) - one - 1,
        len(whole) - 1,
    ):
        file.write_bytes(whole[:size])
        calls = []
        assert right(features(tmp_path), ROWS) and file.stat().st_size >= len(whole), size
        file.write_bytes(whole[:size])
        features(tmp_path, calls=calls).read(ROWS)
        lost = 12 - max(0, size - start) // one
        assert len(set(calls)) == lost, (size, calls)


@pytest.mark.parametrize("where", in_tiers(["header", "table", "records"], ["records"]))
def test_any_byte_changed(file, tmp_path, where):
    "Digits, brackets, names, padding; places and checksums; values"
    whole, start = file.read_bytes(), RecordFile(file).start
    rng = np.random.default_rng(0)
    text = len(whole[:4096].rstrip())
    places = {
        "header": [*range(text), text, 4095],
        "table": range(4096, 4096 + 8 * len(ROWS)),
        "records": rng.integers(start, len(whole), 60),
    }
    for place in places[where]:
        for value in {whole[place] ^ 1, whole[place] ^ 0x80, ord("9"), ord("-"), ord(" ")} - {whole[place]}:
            damaged = bytearray(whole)
            damaged[place] = value
            file.write_bytes(damaged)
            assert right(features(tmp_path)), (int(place), bytes([value]))


def test_header_of_something_else(file, tmp_path):
    for header in ([], 3, None, "text", {"digest": 0}, {"rows": 40, "shape": [3, 8, 8], "about": {}}):
        content = bytearray(file.read_bytes())
        content[:4096] = json.dumps(header).encode().ljust(4096)
        file.write_bytes(content)
        assert right(features(tmp_path)), header


# ---- full disks


@pytest.mark.parametrize("part", ["header", "first record", "in the middle of a record", "second file", "table"])
def test_full_disk(tmp_path, part, monkeypatch):
    "A sentence; what is whole is kept, the rest is computed when there is room, in this process and in another"
    store = features(tmp_path)
    start, one = 4096 + 8 * len(IMAGES), 2 * 3 * 8 * 8
    room = {"header": 100, "first record": start, "in the middle of a record": start + 5 * one + 7, "second file": 0}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if part == "table":  # entries lie before the records, so a quota is what stops them

        def full(file, rows, values):
            real(file, rows[:4], values[:4])
            raise OSError(28, os.strerror(28))

        real = module.add_records
        monkeypatch.setattr(module, "add_records", full)
        size = limits[0]
    elif part == "second file":
        store.encoder.parts = ("scale1",)
        store.read(ROWS)
        store = features(tmp_path)
        size = 100
    else:
        size = room[part]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with pytest.raises(DraError, match="cannot be written.*(File too large|No space left).*make room"):
            store.read(ROWS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        monkeypatch.undo()
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and f.suffix not in (".records", ".lock")]
    assert right(features(tmp_path), ROWS[:6])
    assert right(store) and right(features(tmp_path))


def test_disk_without_room_is_refused_after_the_first_images(tmp_path, monkeypatch):
    calls = []
    store = features(tmp_path, calls=calls)
    store.read(ROWS[:1])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=100))
    calls.clear()
    with pytest.raises(DraError, match="the cache of features.*needs.*make room"):
        store.read(np.arange(40))
    assert calls == list(range(1, 33)), "those that tell how large a record is"


# ---- processes


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from methods.test_feature_store import features
import dra_nb.methods.feature_store as module
import dra_nb.data.record_file as record_file
folder, point = Path(sys.argv[1]), sys.argv[2]
die = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
real, calls = module.add_records, []
def deadly(file, rows, values):
    calls.append(1)
    if len(calls) < 5:
        return real(file, rows, values)
    if point == "between":
        die()
    if point == "half a record":
        file.file.seek(0, 2)
        file.file.write(np.ascontiguousarray(values, "<f2").tobytes()[:100])
        file.file.flush()
        die()
    record_file.crc32 = lambda value, n=[]: die() if len(n) == 2 else n.append(1) or 0
    real(file, rows, values)
module.add_records = deadly
chunk = module.compute_missing
module.compute_missing = lambda store, missing, view: chunk(store, missing, view, size=4)
features(folder).read(np.arange(12))
"""


@pytest.mark.parametrize("point", in_tiers(["between", "half a record", "records there, entries not"], ["between"]))
def test_killed_and_repeated(tmp_path, point):
    "SIGKILL in the third of three chunks: the second run computes that chunk alone"
    done = python(KILLED, tmp_path, point, cwd=os.path.dirname(os.path.dirname(__file__)))
    assert killed(done), done.stderr[-2000:]
    calls = []
    store = features(tmp_path, calls=calls)
    store.read(ROWS)
    assert sorted(set(calls)) == [8, 9, 10, 11]
    assert right(store) and right(features(tmp_path))
    calls.clear()
    features(tmp_path, calls=calls).read(ROWS)
    assert calls == []


TWO = """
import sys, time
from pathlib import Path
import numpy as np
from methods.test_feature_store import VIEW, features
folder, me = Path(sys.argv[1]), int(sys.argv[2])
calls = []
store = features(folder, calls=calls)
images = store.images
def slow(rows, view):
    time.sleep(0.01)
    return images(rows, view)
store.images = slow
(folder / f"ready{me}").touch()
while len(list(folder.glob("ready*"))) < 2: time.sleep(0.001)
rng = np.random.default_rng(me)
for _ in range(20):
    store.read(rng.choice(40, 3, replace=False), VIEW)
store.read(np.arange(40), VIEW)
print(*calls)
"""
VIEW = View("cutmix", 90.0, 1)


@pytest.mark.slow
def test_two_processes_fill_the_same_files(tmp_path):
    "In different order, a few rows at a time: each row is computed and kept once, and both find the same"
    started = []
    try:
        for me in range(2):
            start_python(started, "-c", TWO, tmp_path, me)
        lines = [ended(process).out.splitlines()[-1].split() for process in started]  # not of the wait for each other
    finally:
        end_all(started)
    both = [int(row) for line in lines for row in line]
    assert sorted(both) == list(range(40))
    calls = []
    store = features(tmp_path, calls=calls)
    maps = store.read(np.arange(40), VIEW).maps
    assert calls == []
    for part, kept in zip(store.encoder.parts, maps):
        file = RecordFile(store.kept.path(VIEW, part))
        assert file.refresh() == 40 and sorted(file.table["place"].tolist()) == list(range(1, 41))
        assert kept.dtype == torch.float16
    assert right(store, np.arange(40), VIEW)
