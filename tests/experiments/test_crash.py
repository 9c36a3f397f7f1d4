"Processes that are killed: what they leave is never taken for a result, and the same command finishes the work."

import json
import os
import signal

import pandas as pd
import pytest
from conftest import mvtec_folder
from processes import forking

from dra_nb.data.readers.mvtec import read_mvtec
from dra_nb.experiments.overview import results_table
from dra_nb.experiments.records import Runs
from dra_nb.experiments.spec import spec_from_dict

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")]

STAGES = {  # the files of the run are renamed into place in this order: image store, scores, record
    "store half decoded": ("dra_nb.data.store:decode_file", 20, []),
    "store written, not renamed": ("os:replace", 1, []),
    "in training": ("dra_nb.data.samplers:BalancedSampler.draw", 4, []),
    "scores not renamed": ("os:replace", 2, []),
    "scores there, record not": ("os:replace", 3, ["parquet"]),
}


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    "Do a job in a process of its own"
    home = tmp_path_factory.mktemp("crash")
    mvtec_folder(home / "data" / "mine")
    with forking(home / "data", home / "cache") as do:
        yield do


def run(forks, tmp, at=None):
    "`dra_nb run` with a cache of its own, in a process that kills itself at a point"
    args = ["run", "mine", "--data", forks.data, "--method", "devnet", "--out", str(tmp / "out")]
    return forks(tmp / "run", "command", args=args, at=at, cache=str(tmp / "cache"))


def metrics_of(done):
    assert done.status == 0, done.err[-3000:]
    return json.loads(done.out)


@pytest.fixture(scope="module")
def uninterrupted(forks, tmp_path_factory):
    "Metrics, scores and spec of a run that nothing disturbed"
    tmp = tmp_path_factory.mktemp("uninterrupted")
    metrics = metrics_of(run(forks, tmp))
    runs = tmp / "out" / "smoke" / "runs"
    record = json.loads((runs / f"{metrics['key']}.json").read_text())
    return metrics, pd.read_parquet(runs / f"{metrics['key']}.parquet"), spec_from_dict(record["spec"])


@pytest.mark.parametrize("stage", STAGES)
def test_killed_and_repeated(forks, uninterrupted, tmp_path, stage):
    (metrics, scores, spec), (where, n, left) = uninterrupted, STAGES[stage]
    images, runs = tmp_path / "cache" / "images", tmp_path / "out" / "smoke" / "runs"
    done = run(forks, tmp_path, at=dict(where=where, n=n))
    assert done.status == -signal.SIGKILL, (done.status, done.err[-2000:])
    found = sorted(p.suffix[1:] for p in runs.glob("[!.]*") if p.suffix != ".claim")
    assert found == left  # no record, whatever the stage
    if "store" in stage:
        assert not list(images.glob("*.npy")) and list(images.glob(".*.part"))
    assert not Runs(runs).done(spec) and results_table(Runs(runs), [spec]).empty

    assert metrics_of(run(forks, tmp_path)) == metrics
    pd.testing.assert_frame_equal(pd.read_parquet(runs / f"{metrics['key']}.parquet"), scores, check_exact=True)
    assert [p.name for p in runs.glob("*.json")] == [f"{metrics['key']}.json"]
    assert len(list(images.glob("*.npy"))) == 1 and not list(images.glob(".*.part"))


def test_killed_while_rendering_the_textures(forks, tmp_path):
    half, whole = tmp_path / "half", tmp_path / "whole"
    at = dict(where="dra_nb.data.textures:TextureFile.write", n=20)
    assert forks(tmp_path / "job", "render", root=str(half), at=at).status == -signal.SIGKILL and not half.exists()
    for root in (half, whole):
        done = forks(tmp_path / "job", "render", root=str(root))
        assert done.status == 0 and done.result == str(root), done.err[-3000:]
    files = {root: {p.relative_to(root): p.read_bytes() for p in root.rglob("*.png")} for root in (half, whole)}
    assert len(files[whole]) == 4 * (2 + 1 + 2 * 5) and files[half] == files[whole]
    assert len(read_mvtec(half)) == 4 * (2 + 1 + 5)
