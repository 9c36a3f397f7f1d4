"Processes that are killed: what they leave is never taken for a result, and the same command finishes the work."

import json

import pandas as pd
import pytest
from conftest import killed, mvtec_folder, python, succeeded

pytestmark = pytest.mark.slow

# argv: where, n, the command's own arguments. The process kills itself at the n-th call of `where`; n = 0: never
DRIVER = """
import os, signal, sys
from dataclasses import replace
from importlib import import_module
from dra_nb.cli import main as cli; from dra_nb.experiments.profiles import PROFILES
small = replace(PROFILES["smoke"], image_size=64, backbone="resnet18_stage2", weights="none", frozen=False)
PROFILES["smoke"] = replace(small, epochs=2, steps=3, batch=6)
(module, _, path), n, calls = sys.argv[1].partition(":"), int(sys.argv[2]), []
owner = import_module(module)
*outer, name = path.split(".")
for o in outer: owner = getattr(owner, o)
real = getattr(owner, name)
def deadly(*args, **kwargs):
    calls.append(1)
    if len(calls) == n: os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)
setattr(owner, name, deadly)
sys.argv = ["dra_nb", *sys.argv[3:]]
cli.main()
"""
STAGES = {  # the files of the run are renamed into place in this order: image store, scores, record
    "store half decoded": ("dra_nb.data.store:decode_file", 20, []),
    "store written, not renamed": ("os:replace", 1, []),
    "in training": ("dra_nb.data.samplers:BalancedSampler.draw", 4, []),
    "scores not renamed": ("os:replace", 2, []),
    "scores there, record not": ("os:replace", 3, ["parquet"]),
}


def run(tmp, cache, out, where="os:replace", n=0):
    return python(
        DRIVER, where, n, "run", "mine", "--data", tmp, "--method", "devnet", "--out", out, DRA_NB_CACHE=cache
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    "The data folder, and metrics and scores of a run that nothing disturbed"
    tmp = tmp_path_factory.mktemp("crash")
    mvtec_folder(tmp / "mine")
    metrics = json.loads(succeeded(run(tmp, tmp / "cache", tmp / "out")).stdout)
    return tmp, metrics, pd.read_parquet(tmp / "out" / "smoke" / "runs" / f"{metrics['key']}.parquet")


@pytest.mark.parametrize("stage", STAGES)
def test_killed_and_repeated(uninterrupted, tmp_path, stage):
    (tmp, metrics, scores), (where, n, left) = uninterrupted, STAGES[stage]
    cache, runs = tmp_path / "cache", tmp_path / "out" / "smoke" / "runs"
    done = run(tmp, cache, tmp_path / "out", where, n)
    assert killed(done), (done.returncode, done.stderr[-2000:])
    assert (
        sorted(p.suffix[1:] for p in runs.glob("[!.]*") if p.suffix != ".claim") == left
    )  # no record, whatever the stage
    if "store" in stage:
        assert not list((cache / "images").glob("*.npy")) and list((cache / "images").glob(".*.part"))

    from dra_nb.experiments.overview import results_table
    from dra_nb.experiments.records import Runs
    from dra_nb.experiments.spec import spec_from_dict

    record = json.loads((tmp / "out" / "smoke" / "runs" / f"{metrics['key']}.json").read_text())
    assert (
        not Runs(runs).done(spec_from_dict(record["spec"]))
        and results_table(Runs(runs), [spec_from_dict(record["spec"])]).empty
    )

    assert json.loads(succeeded(run(tmp, cache, tmp_path / "out")).stdout) == metrics
    pd.testing.assert_frame_equal(pd.read_parquet(runs / f"{metrics['key']}.parquet"), scores, check_exact=True)
    assert [p.name for p in runs.glob("*.json")] == [f"{metrics['key']}.json"]
    assert len(list((cache / "images").glob("*.npy"))) == 1 and not list((cache / "images").glob(".*.part"))


RENDER = """
import os, signal, sys
from dra_nb.data import textures
real, calls = textures.TextureFile.write, []
def deadly(*args):
    calls.append(1)
    if len(calls) == int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)
textures.TextureFile.write = deadly
print(textures.render_textures(sys.argv[1], n_train=2, n_test=1, n_anomalies=1, progress=False))
"""


def test_killed_while_rendering_the_textures(tmp_path):
    from dra_nb.data.readers.mvtec import read_mvtec

    assert killed(python(RENDER, tmp_path / "half", 20)) and not (tmp_path / "half").exists()
    for name in ("half", "whole"):
        succeeded(python(RENDER, tmp_path / name, 0))
    files = {
        name: {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.png")}
        for name in ("half", "whole")
    }
    assert len(files["whole"]) == 4 * (2 + 1 + 2 * 5) and files["half"] == files["whole"]
    assert len(read_mvtec(tmp_path / "half")) == 4 * (2 + 1 + 5)
