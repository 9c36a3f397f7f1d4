"A dataset with files that cannot be used is refused as a whole, before anything is trained."

import pytest
from conftest import dra_nb, mvtec_folder, short_spec

from dra_nb.core import DraError
from dra_nb.experiments.context import RunContext, cached_catalog
from dra_nb.experiments.executors import ExecutorOptions
from dra_nb.experiments.progress import RunCounts
from dra_nb.experiments.records import Runs
from dra_nb.experiments.study import run_missing


def truncated(path):
    path.write_bytes(path.read_bytes()[:400])


def text(path):
    path.write_text("this is not a picture\n")


def empty(path):
    path.write_bytes(b"")


BROKEN = {"train/good/003.png": truncated, "test/scratch/000.png": text, "test/good/001.png": empty}


def nothing_left(tmp_path):
    "No store, no part of a store, no record"
    return not [
        p
        for p in [*(tmp_path / "cache").rglob("*"), *(tmp_path / "out").rglob("*")]
        if p.suffix in (".npy", ".part", ".json", ".parquet")
    ]


@pytest.fixture
def attempt(tmp_path, monkeypatch):
    "Run specs of the folder `mine`; the message of the error"
    monkeypatch.setenv("DRA_NB_CACHE", str(tmp_path / "cache"))

    def run(**changes):
        with pytest.raises(DraError) as caught:
            run_missing(
                [short_spec("mine", seed=s, **changes) for s in (0, 1)],
                RunContext(str(tmp_path)),
                Runs(tmp_path / "out"),
                progress=False,
                executor=ExecutorOptions(workers=1),
            )
        assert nothing_left(tmp_path)
        return str(caught.value)

    return run


@pytest.mark.parametrize("file", BROKEN)
def test_one_broken_file(tmp_path, attempt, file):
    root = mvtec_folder(tmp_path / "mine")
    BROKEN[file](root / file)
    message = attempt()
    assert str(root / file) in message and "restore or replace the file" in message
    assert not [f for f in BROKEN if f != file and f in message]


@pytest.mark.slow
def test_all_in_one_report_through_the_command(tmp_path):
    root = mvtec_folder(tmp_path / "mine")
    for file, spoil in BROKEN.items():
        spoil(root / file)
    done = dra_nb(
        "run",
        "mine",
        "--data",
        tmp_path,
        "--method",
        "devnet",
        "--out",
        tmp_path / "out",
        DRA_NB_CACHE=tmp_path / "cache",
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "3 of 40 image files cannot be used" in done.stderr
    for file in BROKEN:
        assert str(root / file) in done.stderr
    assert nothing_left(tmp_path)


def test_a_repaired_folder_runs(tmp_path, attempt):
    root = mvtec_folder(tmp_path / "mine")
    keep = (root / "train/good/003.png").read_bytes()
    truncated(root / "train/good/003.png")
    attempt()
    (root / "train/good/003.png").write_bytes(keep)
    cached_catalog.cache_clear()
    counts = run_missing([short_spec("mine")], RunContext(str(tmp_path)), Runs(tmp_path / "out"), progress=False)
    assert counts == RunCounts(done=1)


def test_empty_class_folder(tmp_path, attempt):
    root = mvtec_folder(tmp_path / "mine")
    (root / "test" / "stain").mkdir()
    assert f"{root}/test/stain holds no image" in attempt()


def test_no_anomalies(tmp_path, attempt):
    root = mvtec_folder(tmp_path / "mine", classes={})
    assert f"{root} has no anomalies" in attempt()


def test_one_class_in_the_hard_setting(tmp_path, attempt):
    mvtec_folder(tmp_path / "mine", classes={"dent": 12})
    message = attempt(protocol="hard", known_class="dent")
    assert "two anomaly classes" in message and "mine has 1 (dent)" in message and "general" in message


def test_a_second_fault_does_not_wait_for_the_first_to_train(tmp_path, attempt):
    "A run that could start is not trained when another of the same list could not"
    mvtec_folder(tmp_path / "mine")
    with pytest.raises(DraError, match="25 given anomalies"):
        run_missing(
            [short_spec("mine"), short_spec("mine", shots=25)],
            RunContext(str(tmp_path)),
            Runs(tmp_path / "out"),
            progress=False,
            executor=ExecutorOptions(workers=1),
        )
    assert not (tmp_path / "out").exists()
