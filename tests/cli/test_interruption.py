"Ctrl-C and sudden death: what is printed is true, and the same command goes on, or starts again."

import json
import os
import shutil
import signal
import subprocess
import sys

import pandas as pd
import pytest
from conftest import mvtec_folder
from in_process import call

from dra_nb.cli import score_files
from dra_nb.core import file_lock
from dra_nb.detector.detector import AnomalyDetector
from dra_nb.detector.scorer import judge

pytestmark = pytest.mark.slow

HOW = dict(image_size=32, backbone="resnet18_stage2", weights=None, device="cpu")
# In a process of its own: the detector waits in its n-th batch until the test has sent its signal
SLOW = """
import signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell takes it away from what it starts in the background
import dra_nb.detector.scorer as module
from dra_nb.cli.main import main
judge, calls, n = module.judge, [], int(sys.argv[1])
def waiting(*args, **how):
    calls.append(1)
    if len(calls) == n:
        print("waiting", file=sys.stderr, flush=True)
        threading.Event().wait(100)
    return judge(*args, **how)
module.judge = waiting
sys.argv = ["dra_nb", *sys.argv[2:]]
main()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "A detector that calls everything normal, beside twelve pictures of normal parts"
    root = mvtec_folder(tmp_path_factory.mktemp("stop") / "parts", n_train=12, n_test=1, classes={"dent": 1}, size=32)
    AnomalyDetector("patchcore", threshold=1e6, **HOW).fit(root / "train/good").save(root / "m.safetensors")
    return root / "m.safetensors"


@pytest.fixture
def inbox(model, tmp_path):
    shutil.copytree(model.parent / "train/good", tmp_path / "inbox")
    return tmp_path / "inbox"


@pytest.fixture
def scored(monkeypatch):
    "The images that go through the network from now on"
    import dra_nb.detector.scorer as module

    seen = []

    def counting(d, portion, maps=None):
        seen.extend(o.name for o in portion)
        return judge(d, portion, maps)

    monkeypatch.setattr(module, "judge", counting)
    return seen


NAMES = ["gallery", "index.html", "overlays", "scores.csv", "scores.jsonl"]


def results(out):
    "The tables and the pictures of a scoring, whatever their order"
    table = pd.read_csv(out / "scores.csv").sort_values("name", ignore_index=True)
    lines = sorted((json.loads(o) for o in (out / "scores.jsonl").read_text().splitlines()), key=lambda o: o["name"])
    pictures = {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*.jpg"))}
    return table, lines, pictures


def same(a, b):
    pd.testing.assert_frame_equal(a[0], b[0])
    assert a[1:] == b[1:]


def stopped(sign, *args, n):
    "The command in a process that gets a signal in its n-th batch: status and error output"
    command = [sys.executable, "-c", SLOW, str(n), *map(str, args)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        said = []
        while not said or said[-1] != "waiting\n":
            said.append(process.stderr.readline())
            assert said[-1], "".join(said)
        process.send_signal(sign)
        return process.wait(100), process.stderr.read()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("sign", ["SIGINT", "SIGKILL"])
def test_score_continues(model, inbox, tmp_path, scored, sign):
    "Eight images are done when the signal comes"
    args = ("score", model, inbox, "--batch", 4, "--device", "cpu", "--scale", 0, 9, "--out")
    assert call(*args, tmp_path / "whole")[0] == 0
    status, err = stopped(getattr(signal, sign), *args, tmp_path / "out", n=5)  # two are trials
    if sign == "SIGINT":
        assert status == 130 and "interrupted after 8 images" in err and "Traceback" not in err
        kept = f"the rows in {tmp_path / 'out'} are kept"
        assert err.splitlines()[-1] == f"interrupted; {kept}, and the same command continues after them"
    else:
        assert status == -signal.SIGKILL
    assert len(pd.read_csv(tmp_path / "out/scores.csv")) == 8 and (tmp_path / "out/unfinished.jsonl").exists()
    scored.clear()
    status, out, err = call(*args, tmp_path / "out")
    assert status == 0 and "continuing after 8 images" in err and out.startswith("12 images, 0 anomalies; rows in")
    assert {o for o in scored if o.startswith(str(inbox))} == {str(inbox / f"{i:03}.png") for i in range(8, 12)}
    same(results(tmp_path / "whole"), results(tmp_path / "out"))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == NAMES
    assert call(*args, tmp_path / "out")[0] == 2  # now it is finished, and is not overwritten


@pytest.fixture
def half(model, inbox, tmp_path, monkeypatch):
    "A scoring without overlays that was interrupted after six images, and the command that continues it"
    add, args = score_files.ResultFiles.add, ["score", model, inbox, "--device", "cpu", "--batch", 2, "--no-maps"]

    def stop(self, o):
        if o.name.endswith("006.png"):
            raise KeyboardInterrupt
        add(self, o)

    with monkeypatch.context() as patched:
        patched.setattr(score_files.ResultFiles, "add", stop)
        assert call(*args, "--out", tmp_path / "out")[0] == 130
    return tmp_path / "out", [*args, "--out", tmp_path / "out"]


def test_files_that_changed_meanwhile_are_scored_again(half, inbox, scored):
    out, args = half
    before = os.stat(inbox / "001.png")
    (inbox / "001.png").write_bytes((inbox / "011.png").read_bytes().ljust(before.st_size)[: before.st_size])
    os.utime(inbox / "001.png", ns=(before.st_atime_ns, before.st_mtime_ns))  # same name, size and time
    (inbox / "002.png").unlink()
    shutil.copy(inbox / "003.png", inbox / "000b.png")
    os.replace(inbox / "004.png", inbox / "x.png"), os.replace(inbox / "x.png", inbox / "004.png")
    status, said, _ = call(*args)
    assert status in (0, 3) and said.startswith("12 images")
    names = [os.path.basename(o) for o in pd.read_csv(out / "scores.csv").name]
    assert sorted(names) == sorted(os.listdir(inbox)) and names[:3] == ["000.png", "003.png", "005.png"]
    assert {"001.png", "000b.png"} <= {os.path.basename(o) for o in scored} and "003.png" not in map(
        os.path.basename, scored
    )


@pytest.mark.parametrize(
    "tail", [b'{"row": {"name": "', b"\xff\xfe\n", b'{"row": 3, "stamp": [], "scale": null}\n', b"[]\n"], ids=repr
)
def test_a_list_that_was_cut(half, tail, scored):
    out, args = half
    with open(out / "unfinished.jsonl", "ab") as file:
        file.write(tail)
    (out / "scores.csv").write_text("na")
    (out / "scores.jsonl").unlink()
    assert call(*args)[0] == 0 and len(pd.read_csv(out / "scores.csv")) == 12
    assert len((out / "scores.jsonl").read_text().splitlines()) == 12


def test_it_is_continued_by_the_same_command_alone(half, model, inbox, tmp_path):
    out, args = half
    other = tmp_path / "other.safetensors"
    AnomalyDetector.load(model, "cpu").calibrate(threshold=0.5).save(other)
    for changed, word in (
        (["score", other, *args[2:]], "another model"),
        (["score", model, inbox / "000.png", *args[3:]], "other images"),
        ([*args[:7], *args[8:]], "another choice of overlays"),
    ):
        status, _, message = call(*changed)
        assert status == 2 and f"unfinished scoring with {word}; repeat that command" in message, message
    assert len(pd.read_csv(out / "scores.csv")) == 6  # nothing was touched
    (out / "notes.txt").write_text("mine")
    status, _, message = call(*args)
    assert status == 2 and "is not empty" in message
    (out / "notes.txt").unlink()
    with file_lock(out / ".scoring.lock"):
        status, _, message = call(*args)
        assert status == 2 and "another process writes to" in message
    assert call(*args, "--batch", 5)[0] == 0 and len(pd.read_csv(out / "scores.csv")) == 12


def test_colours_are_those_without_an_interruption(model, inbox, tmp_path, monkeypatch):
    "They are the model's, whatever was scored before"
    args = ("score", model, inbox, "--batch", 2, "--device", "cpu", "--out")
    assert call(*args, tmp_path / "whole")[0] == 0
    add = score_files.Pictures.add

    def stop(self, scored):
        if scored.name.endswith("004.png"):
            raise KeyboardInterrupt
        return add(self, scored)

    with monkeypatch.context() as patched:
        patched.setattr(score_files.Pictures, "add", stop)
        assert call(*args, tmp_path / "out")[0] == 130
    (tmp_path / "out/overlays/.001.png.jpg.aaaaaa.1.part").write_bytes(b"half a picture")
    assert call(*args, tmp_path / "out")[0] == 0
    same(results(tmp_path / "whole"), results(tmp_path / "out"))
    assert len(os.listdir(tmp_path / "out/overlays")) == 12


def test_without_a_folder_it_starts_again(model, inbox, monkeypatch):
    from dra_nb.cli import detector_commands

    def stop(scored):
        raise KeyboardInterrupt

    monkeypatch.setattr(detector_commands, "score_line", stop)
    status, _, err = call("score", model, inbox, "--device", "cpu")
    assert status == 130 and err.splitlines() == [
        "interrupted after 0 images, 0 anomalies",
        "interrupted; the same command starts from the beginning",
    ]


def test_fit_and_eval_leave_nothing(model, tmp_path, monkeypatch):
    good = model.parent / "train/good"
    fit = (
        "fit",
        good,
        "--method",
        "patchcore",
        "--image-size",
        32,
        "--backbone",
        "resnet18_stage2",
        "--weights",
        "none",
    )
    fit = (*fit, "--device", "cpu", "-o", tmp_path / "new" / "m.safetensors")
    test = ("eval", model, good, "--anomalies", model.parent / "test/dent", "--device", "cpu")

    def stop(*args, **how):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("dra_nb.detector.detector.train", stop)
        status, _, err = call(*fit)
        assert status == 130 and err.splitlines()[-1] == (
            "interrupted; no model was written, and the same command starts from the beginning"
        )
        assert list(tmp_path.rglob("*.safetensors*")) == []
        patched.setattr("dra_nb.detector.scorer.judge", stop)
        status, _, err = call(*test)
        assert status == 130 and err.splitlines()[-1] == "interrupted; the same command starts from the beginning"
    assert call(*fit)[0] == 0 and (tmp_path / "new/m.safetensors").exists()
    assert call(*test)[0] == 0
