"Consoles that lack characters, and readers that leave: what the command prints, keeps and ends with."

import io
import json
import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from conftest import mvtec_folder

from dra_nb.cli import main as cli
from dra_nb.cli.console import tolerant_output
from dra_nb.detector.detector import AnomalyDetector

COMMAND = "import sys; sys.argv[0] = 'dra_nb'; from dra_nb.cli.main import main; main()"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "A detector that calls everything normal, and twelve pictures"
    root = mvtec_folder(
        tmp_path_factory.mktemp("console") / "parts", n_train=12, n_test=1, classes={"dent": 1}, size=32
    )
    how = dict(image_size=32, backbone="resnet18_stage2", weights=None, device="cpu", threshold=1e6)
    AnomalyDetector("patchcore", **how).fit(root / "train/good").save(root / "m.safetensors")
    return root / "m.safetensors"


@pytest.fixture
def strange(model, tmp_path):
    "Pictures with Chinese, accents, box characters and bytes that are no text in their names"
    (tmp_path / "in").mkdir()
    for i, name in enumerate(("中文.png".encode(), "é─.png".encode(), b"\xff.png")):
        shutil.copy(model.parent / f"train/good/{i:03}.png", os.fsencode(tmp_path / "in") + b"/" + name)
    return tmp_path / "in"


class Console(io.TextIOWrapper):
    "A console of an encoding, as Python makes it"

    def __init__(self, encoding):
        super().__init__(io.BytesIO(), encoding=encoding)

    def text(self):
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)


def typed(monkeypatch, encoding, *args):
    "Status and both outputs of a command in this process, on a console of an encoding"
    monkeypatch.setattr(sys, "argv", ["dra_nb", *map(str, args)])
    out, err = Console(encoding), Console(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code, out.text(), err.text()


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "latin-1"])
def test_every_name_can_be_printed(model, strange, tmp_path, monkeypatch, encoding):
    status, out, err = typed(monkeypatch, encoding, "score", model, strange, "--device", "cpu")
    assert status == 0 and out.count("normal") == 3 and r"\u4e2d\u6587.png" in out and r"\udcff.png" in out, err
    status, out, err = typed(
        monkeypatch, encoding, "score", model, strange, "--out", tmp_path / "文", "--device", "cpu", "--no-maps"
    )
    assert status == 0 and r"\u6587" in out, err
    names = pd.read_csv(tmp_path / "文" / "scores.csv", encoding="utf-8").name.tolist()
    assert str(strange / "中文.png") in names and len(names) == 3
    status, _, err = typed(monkeypatch, encoding, "score", model, tmp_path / "空")
    assert status == 2 and r"\u7a7a does not exist" in err


def test_help_on_a_console_without_box_characters(monkeypatch):
    for encoding in ("cp437", "cp1252"):
        status, out, err = typed(monkeypatch, encoding, "score", "--help")
        assert status == 0 and "overlays" in out and not err


@pytest.mark.parametrize(
    "settings",
    [dict(PYTHONIOENCODING="cp1252"), dict(PYTHONIOENCODING="ascii"), dict(LC_ALL="C", PYTHONCOERCECLOCALE="0")],
    ids=str,
)
def test_real_consoles(strange, settings):
    "In a process of its own, with what each environment makes of the streams"
    code = (
        "import sys, typer\nfrom dra_nb.cli.console import tolerant_output\n"
        "with tolerant_output():\n    typer.echo('\\u4e2d \\udcff'); print('\\u4e2d'); typer.echo('\\u4e2d', err=True)"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "PYTHONIO", "LANG"))}
    done = subprocess.run([sys.executable, "-c", code], env=clean | settings, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2 and done.stderr.strip() in (rb"\u4e2d", "中".encode())


def without_reader(*args, **how):
    "The command with a standard output that nobody reads: status, error output"
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-c", COMMAND, *map(str, args)]
    done = subprocess.run(command, stdout=write_end, stderr=how.pop("stderr", subprocess.PIPE), text=True, timeout=200)
    os.close(write_end)
    return done.returncode, done.stderr


def test_a_list_that_nobody_reads():
    assert without_reader("datasets") == (141, "")


@pytest.mark.slow
def test_files_are_complete_though_nobody_reads(model, tmp_path):
    "Both outputs go into the closed pipe"
    out = tmp_path / "out"
    args = ("score", model, model.parent / "train/good", "--out", out, "--device", "cpu")
    assert without_reader(*args, stderr=subprocess.STDOUT) == (141, None)
    assert len(pd.read_csv(out / "scores.csv")) == 12 and len(list((out / "overlays").iterdir())) == 12
    assert [json.loads(o)["anomaly"] for o in (out / "scores.jsonl").read_text().splitlines()] == [False] * 12


def test_scoring_stops_when_nobody_reads_its_lines(model, monkeypatch):
    seen = []
    stream = AnomalyDetector.score_stream

    def counted(self, *args):
        for scored in stream(self, *args):
            seen.append(scored.name)
            yield scored

    monkeypatch.setattr(AnomalyDetector, "score_stream", counted)
    monkeypatch.setattr(sys, "argv", ["dra_nb", "score", str(model), str(model.parent / "train/good"), "--device=cpu"])
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "w") as pipe, monkeypatch.context() as patched, pytest.raises(SystemExit) as end:
        patched.setattr(sys, "stdout", pipe)
        cli.main()
    assert end.value.code == 141 and len(seen) == 2


@pytest.mark.slow  # the same without a process: test_a_list_that_nobody_reads
def test_the_first_line_is_all_that_is_read(model):
    command = [sys.executable, "-c", COMMAND, "score", str(model), str(model.parent / "train/good"), "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("normal")
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(200) in (0, 141) and err == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_said(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dra_nb", "--version"])
    with open("/dev/full", "w") as full, monkeypatch.context() as patched, pytest.raises(SystemExit) as end:
        patched.setattr(sys, "stdout", full)
        cli.main()
    err = capsys.readouterr().err
    assert end.value.code == 2 and "could not be written (No space left on device)" in err and "Traceback" not in err


def test_streams_are_given_back():
    before = sys.stdout, sys.stderr
    with tolerant_output():
        pass
    assert (sys.stdout, sys.stderr) == before
