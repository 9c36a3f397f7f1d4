"Runs and detectors on a user's own data: crops, outliers, labels that only test, images as they come."

import shutil

import numpy as np
import pytest
from conftest import mvtec_folder, picture, short_spec
from own_files import listing

from dra_nb.core import DraError
from dra_nb.data.readers.own import read_own


def test_a_run_on_crops_from_a_csv(tmp_path):
    import numpy as np

    from dra_nb.experiments.context import RunContext
    from dra_nb.experiments.records import Runs
    from dra_nb.experiments.study import run_missing

    rng, lines = np.random.default_rng(0), []
    for i in range(16):
        kind = "good" if i < 7 else "dent"
        picture(kind, rng, 96).save(tmp_path / f"{i}.png")
        lines += [f'{i}.png,{int(kind != "good")},"0,{y},96,{y + 48}"' for y in (0, 48)]
    listing(tmp_path, *lines, header="path,label,box")
    spec, runs = short_spec("parts", shots=2), Runs(tmp_path / "runs")
    assert run_missing([spec], RunContext(str(tmp_path)), runs, progress=False).done == 1
    scores = runs.scores(spec)
    assert len(scores) == 2 * 2 + 2 * 9 - 10 and set(scores.path) <= {
        f"{i}.png" for i in range(16)
    }  # two crops each; ten anomalies are withheld


@pytest.mark.slow
def test_any_folder_serves_as_outliers(tmp_path):
    "A run takes its pseudo anomalies from a folder of pictures in no layout; as a dataset such a folder is refused"
    from dra_nb.experiments.context import RunContext
    from dra_nb.experiments.execution import check_runs, execute
    from dra_nb.experiments.records import Runs
    from dra_nb.training.compute import Compute

    mvtec_folder(tmp_path / "data" / "parts")
    (tmp_path / "data" / "holiday" / "sea").mkdir(parents=True)
    rng = np.random.default_rng(1)
    for name in ("a.png", "b.JPG", "sea/c.png"):
        picture("dent", rng, 50).save(tmp_path / "data" / "holiday" / name)
    place, runs = RunContext(str(tmp_path / "data"), compute=Compute("cpu")), Runs(tmp_path / "runs")
    for method, settings in (
        ("dra", {"n_reference": 3, "pseudo_source": "holiday"}),
        ("saoe", {"outliers": "holiday"}),
    ):
        spec = short_spec("parts", method=method, settings=settings)
        check_runs([spec], place)
        assert 0 <= execute(spec, place, runs)["auroc"] <= 1
        assert list(runs.read(spec).provenance["outliers"]) == ["holiday"]
    with pytest.raises(DraError, match="holds none of what is expected"):
        check_runs([short_spec("holiday")], place)
    with pytest.raises(DraError, match="unknown dataset 'holidya'"):
        check_runs([short_spec("parts", method="dra", settings={"n_reference": 3, "pseudo_source": "holidya"})], place)


def test_labels_that_only_test(tmp_path):
    "What lacks train normals or anomalies judges a detector and chooses its threshold; it is not learnt from"
    from dra_nb.detector.detector import AnomalyDetector

    root = mvtec_folder(tmp_path / "parts", n_train=8, n_test=4, classes={"dent": 3}, size=32)
    for part in ("good", "dent"):
        shutil.copytree(root / "test" / part, tmp_path / "tests" / "test" / part)
    all_test = listing(
        tmp_path,
        *(f"tests/test/{k}/{i:03}.png,{int(k == 'dent')},test" for k in ("good", "dent") for i in range(3)),
        header="path,label,split",
        name="tests.csv",
    )
    one = listing(tmp_path, "tests/test/good/000.png,0", "tests/test/dent/000.png,1", name="one.csv")
    normals, anomalies = (
        listing(tmp_path, *(f"tests/test/{k}/{i:03}.png,{n}" for i in range(3)), name=f"{k}.csv")
        for k, n in (("good", 0), ("dent", 1))
    )

    def new(**settings):
        return AnomalyDetector(
            "patchcore", image_size=32, backbone="resnet18_stage2", weights=None, device="cpu", **settings
        )

    d = new().fit(root / "train/good")
    for source, counts in (
        (tmp_path / "tests", (4, 3)),
        (all_test, (3, 3)),
        (one, (1, 1)),
        (normals, (3, 0)),
        (anomalies, (0, 3)),
    ):
        rows = d.evaluate(source).frame.set_index("images").n.to_dict()
        assert (rows.pop("normals", 0), sum(rows.values())) == counts
    for source, n in ((tmp_path / "tests", 4), (all_test, 3), (one, 1), (normals, 3)):
        assert len(d.calibrate(source, threshold="fpr").threshold_.normal) == n
        assert len(new().fit(root / "train/good", validation=source).threshold_.normal) == n
    for source, says in (
        (tmp_path / "tests", "no normal images to train on"),
        (all_test, "no normal images to train on"),
        (anomalies, "no normal images to train on"),
        (normals, "has no anomalies"),
    ):
        with pytest.raises(DraError, match=says):
            new().fit(source)
    table = read_own(tmp_path / "tests", check=False)
    assert (
        len(new().fit(table).threshold_.normal) == 1 and len(d.evaluate(table).frame) == 2
    )  # whoever passes rows has picked them


def test_images_as_they_come(tmp_path):
    "Generators by class, files among arrays, and tables that are no catalogs"
    import pandas as pd
    from PIL import Image

    from dra_nb.detector.detector import AnomalyDetector

    root = mvtec_folder(tmp_path / "parts", n_train=8, n_test=1, classes={"dent": 3}, size=32)
    paths, dents = ([str(o) for o in sorted(f.iterdir())] for f in (root / "train/good", root / "test/dent"))

    def arrays(names):
        return [np.asarray(Image.open(o).convert("RGB")) for o in names]

    def new():
        return AnomalyDetector(
            "devnet",
            image_size=32,
            backbone="resnet18_stage2",
            weights=None,
            epochs=1,
            steps=1,
            batch=6,
            device="cpu",
            precision="fp32",
        )

    same = [
        new().fit(n, a).score_samples(dents)
        for n, a in (
            (arrays(paths), {"dent": arrays(dents)}),
            (arrays(paths), {"dent": (o for o in arrays(dents))}),
            ([paths[0], *arrays(paths[1:])], arrays(dents[:2]) + dents[2:]),
        )
    ]
    np.testing.assert_array_equal(same[0], same[1])
    np.testing.assert_array_equal(same[0], same[2])
    d, table = new().fit(paths, dents), pd.DataFrame({"path": dents})
    for call in (
        lambda: new().fit(paths, table),
        lambda: new().fit(table, dents),
        lambda: d.score_samples(table),
        lambda: d.evaluate(paths, table),
        lambda: d.evaluate(table.assign(label=1)),
    ):
        with pytest.raises(DraError, match="needs the columns path, box.* and lacks box"):
            call()
