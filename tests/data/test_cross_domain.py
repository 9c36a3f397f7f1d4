"Train on one category, tune on normals of another, test there (appendix C.3)."

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import mvtec_folder, short_spec

from dra_nb.core import DraError
from dra_nb.experiments.context import RunContext
from dra_nb.experiments.execution import check_runs, execute
from dra_nb.experiments.records import Runs
from dra_nb.experiments.spec import spec_from_dict
from dra_nb.training.compute import Compute


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for category in ("oak", "slate"):
        mvtec_folder(folder / "two" / category)
    return RunContext(str(folder), compute=Compute("cpu"))


def spec(**changes):
    return short_spec(
        "two",
        category="slate",
        source="oak",
        protocol="cross_domain",
        method="dra",
        settings={"n_reference": 3},
        **changes,
    )


def test_a_run(place, tmp_path):
    runs, cross = Runs(tmp_path), spec()
    check_runs([cross], place)
    metrics = execute(cross, place, runs)
    scores, record = runs.scores(cross), runs.read(cross)
    assert scores.path.str.startswith("slate/").all() and not scores.seen.any() and metrics["n_seen"] == 0
    assert metrics["n_unseen"] == 24 and metrics["n_normal"] == 4  # all anomalies of the target, none was given
    assert spec_from_dict(json.loads(json.dumps(record.spec))) == cross


@pytest.mark.slow
def test_the_source_matters(place, tmp_path):
    "Other seeds, and training on the target itself, give other scores"
    runs, specs = Runs(tmp_path), [spec(), spec(seed=1), replace(spec(), source="", protocol="general")]
    for s in specs:
        execute(s, place, runs)
    scores = [runs.scores(s).set_index("path").score for s in specs]
    assert len({s.key for s in specs}) == 3
    for other in scores[1:]:
        assert not np.allclose(scores[0].reindex(other.index), other)


@pytest.mark.parametrize(
    "source, says", [("", "two different categories"), ("slate", "two different categories"), ("pine", "pine")]
)
def test_refused_before_training(place, source, says):
    with pytest.raises(DraError, match=says):
        check_runs([replace(spec(), source=source)], place)
