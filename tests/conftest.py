"What the tests share: a cache of their own, small folders of real images, and the command in a process of its own."

import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import numpy as np
import pytest
from PIL import Image, ImageDraw

REPO = Path(__file__).resolve().parents[1]


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: runs in `make test-all` alone")


LONG = (  # files of half a minute and more: first, so that no process is left alone with one of them at the end
    "tests/test_wheel.py",
    "tests/detector/test_onnx.py",
    "tests/test_site.py",
    "tests/profiling/test_benchmarks.py",
    "tests/test_reproduce.py",
    "tests/methods/test_methods.py",
    "tests/cli/test_cli.py",
    "tests/experiments/test_executors.py",
    "tests/detector/test_jupyter.py",
    "tests/training/test_determinism.py",
    "tests/experiments/test_faults.py",
    "tests/methods/test_fidelity.py",
    "tests/training/test_training_options.py",
    "tests/training/test_checkpoint.py",
)


def pytest_collection_modifyitems(items):
    "The long files first, the others in the random order that pytest-randomly has put them in"
    places = {file: i for i, file in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(LONG)))


def pytest_terminal_summary(terminalreporter, config):
    terminalreporter.write_line(f"the order again: pytest --randomly-seed={config.getoption('randomly_seed')}")


FAST_METHODS = ("cove", "dra", "patchcore")  # of a test that every method passes, these are in the fast tier


def in_tiers(values, fast=FAST_METHODS):
    "Values for `parametrize`: the others than the fast ones are marked slow"
    assert any(value in fast for value in values), f"none of {list(values)} is left in the fast tier"
    several = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*row, marks=() if value in fast else pytest.mark.slow) for value, row in zip(values, several)]


def same_numbers():
    "Unseeded draws do not depend on the tests that ran before in this process"
    import torch

    random.seed(0), np.random.seed(0), torch.manual_seed(0)


def pytest_runtest_setup(item):
    same_numbers()


def pytest_runtest_call(item):
    same_numbers()


def link_textures(folder):
    "Take over the textures that the notebooks have rendered, where the system has links; others are rendered anew"
    from dra_nb.core import cache_dir

    for done in cache_dir().glob("textures-v*/.textures.json"):
        with suppress(OSError):
            os.symlink(done.parent, folder / done.parent.name, target_is_directory=True)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    "The cache folder of the whole session: the textures are rendered into it once, unless they are there"
    folder, before = tmp_path_factory.mktemp("cache"), os.environ.get("DRA_NB_CACHE")
    link_textures(folder)
    os.environ["DRA_NB_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["DRA_NB_CACHE"]
    else:
        os.environ["DRA_NB_CACHE"] = before


@pytest.fixture(autouse=True)
def one_thread():
    "Whatever ran before in this process: results depend on the number of threads"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def shared():
    "The folder with real data and weights; a folder that was asked for and is not there fails, none at all skips"
    asked = os.environ.get("DRA_NB_SHARED")
    folder = Path(asked or REPO.parent / "shared").resolve()
    if folder.is_dir():
        return folder
    if asked:
        pytest.fail(f"DRA_NB_SHARED is {asked}, which does not exist")
    pytest.skip("no folder with real data: set DRA_NB_SHARED")


def picture(kind, rng, size):
    "A grey surface with a gradient and noise; `kind` other than good adds a defect (an (size, size, 3) uint8 image)"
    y, x = np.mgrid[:size, :size] / size
    image = Image.fromarray(
        (255 * np.clip(0.5 + 0.15 * x + 0.1 * y + rng.normal(0, 0.04, (size, size)), 0, 1)).astype(np.uint8)
    ).convert("RGB")
    draw, (a, b) = ImageDraw.Draw(image), rng.integers(size // 4, 3 * size // 4, 2)
    if kind == "scratch":
        draw.line([(a - size // 5, b), (a + size // 5, b + size // 8)], fill=(250, 250, 235), width=2)
    elif kind != "good":
        draw.ellipse([a - size // 9, b - size // 9, a + size // 9, b + size // 9], fill=(40, 35, 60))
    return image


def mvtec_folder(root, n_train=12, n_test=4, classes=None, size=64):
    """Write a dataset in MVTec layout; `root` (its name is the dataset's) is returned

    `classes` gives the number of test images of each class of anomalies: 12 scratches and 12 dents if it is None."""
    classes = {"scratch": 12, "dent": 12} if classes is None else classes
    rng = np.random.default_rng(0)
    for folder, n in [("train/good", n_train), ("test/good", n_test), *((f"test/{c}", n) for c, n in classes.items())]:
        (root / folder).mkdir(parents=True)
        for i in range(n):
            picture(folder.split("/")[1], rng, size).save(root / folder / f"{i:03}.png")
    return root


def python(code, *args, cwd=None, timeout=300, **env):
    "Run Python code in a process of its own: returncode, stdout, stderr"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in env.items()}}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return SimpleNamespace(returncode=done.returncode, stdout=done.stdout, stderr=done.stderr)


def dra_nb(*args, **kwargs):
    "Run the command in a process of its own"
    return python("import sys; sys.argv[0] = 'dra_nb'; from dra_nb.cli.main import main; main()", *args, **kwargs)


def succeeded(done):
    "The result of a process that ended well; else its error output fails the test"
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def refused(done):
    "The message of a command that was refused as it should be: exit status 2, a sentence, no traceback"
    assert done.returncode == 2, (done.returncode, done.stdout[-500:], done.stderr[-2000:])
    assert "Traceback" not in done.stderr and done.stderr.startswith("error: "), done.stderr[-2000:]
    return done.stderr


def short_spec(dataset, **changes):
    "A run of a second: 6 steps at 64 px"
    from dra_nb.experiments.spec import RunSpec
    from dra_nb.methods.schedule import Schedule

    return RunSpec(
        **dict(
            dataset=dataset,
            method="devnet",
            shots=2,
            image_size=64,
            backbone="resnet18_stage2",
            schedule=Schedule(epochs=2, steps=3, batch=6, anomalies=2),
        )
        | changes
    )


def records(folder):
    "Names of the records (json) in a folder of runs, with their contents and times of change"
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.glob("*.json"))}


def killed(done):
    "Was the process killed, not ended?"
    return done.returncode == -signal.SIGKILL


SERIAL = """
import sys
from conftest import short_spec
from dra_nb.experiments.context import RunContext
from dra_nb.experiments.executors import ExecutorOptions
from dra_nb.experiments.study import run_missing
from dra_nb.experiments.records import Runs
specs, serial = [short_spec("mine", seed=s) for s in range(4)], ExecutorOptions("serial")
print(run_missing(specs, RunContext(sys.argv[1]), Runs(sys.argv[2]), progress=False, executor=serial))
"""


def serial_runs(data, folder):
    """The four runs of the executors' tests, one after the other in a process of its own

    State of this process, its threads and caches, must not enter."""
    done = succeeded(python(SERIAL, data, folder, cwd=Path(__file__).parent))
    assert "RunCounts(done=4, skipped=0, failed=0, elsewhere=0)" in done.stdout
