"The page that fit and eval write: numbers, pictures of the worst mistakes, names that are meant to harm, no file lost."

import re

import numpy as np
import pytest
from conftest import mvtec_folder
from in_process import call
from PIL import Image
from sklearn.metrics import roc_auc_score
from small_detectors import QUICK, says

from dra_nb.core import DraError
from dra_nb.detector.detector import AnomalyDetector
from dra_nb.detector.report_page import Sides, meaning, sides_of, table_rows_of, worst_of, write_report
from dra_nb.detector.widgets import explorer
from dra_nb.evaluation.curves import auroc_interval, rate_curve

pytestmark = pytest.mark.slow

SMALL = QUICK | dict(image_size=48)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "parts"
    mvtec_folder(root, n_train=16, n_test=6, classes={"dent": 5, "scratch": 5}, size=48)
    Image.open(root / "test/dent/000.png").resize((120, 60)).save(root / "test/dent/wide <b>\"'&.png")
    return root


@pytest.fixture(scope="module")
def detector(parts):
    return AnomalyDetector("patchcore", **SMALL).fit(parts / "train/good")


def written(detector, report, file):
    write_report(detector, report, file)
    return file.read_text(encoding="utf-8")


def test_the_page_of_an_evaluation(detector, parts, tmp_path):
    report = detector.evaluate(parts)
    page = written(detector, report, tmp_path / "r.html")
    scores = detector.score_samples(parts / "test")
    sides = sides_of(report)
    area = roc_auc_score([0] * len(sides.normal) + [1] * len(sides.anomaly), sides.normal + sides.anomaly)
    assert len(scores) == len(sides.normal) + len(sides.anomaly) == 17
    assert f"AUROC {area:.3f}" in page and page.count("<svg") == 2
    lows = sorted(sides.anomaly)
    assert [o.kind for o in worst_of(report, True)][0] in ("dent", "scratch") and len(worst_of(report, True)) == 11
    shown = re.findall(r"score ([\d.]+)", page)
    assert f"{lows[0]:.4g}" in shown and f"{max(sides.normal):.4g}" in shown
    assert page.count("data:image/jpeg") == 2 * 17 + 1  # photo and heat map of each, and the colours
    assert not re.search(r'(?:src|href)="(?!data:)', page) and "<script" not in page
    assert "wide <b>" not in page and "wide &lt;b&gt;" in page


def test_pictures_keep_their_shape(detector, parts, tmp_path):
    import base64
    import io

    page = written(detector, detector.evaluate(parts), tmp_path / "r.html")
    found = [base64.b64decode(o) for o in re.findall(r"data:image/jpeg;base64,([^\"]+)", page)]
    sizes = [Image.open(io.BytesIO(o)).size for o in found]
    assert sizes.count((120, 60)) == 2 and sizes.count((48, 48)) == 32


def test_fit_writes_a_page_beside_its_model_and_eval_where_it_is_asked(parts, tmp_path):
    options = [f"--{k.replace('_', '-')}={v if v else 'none'}" for k, v in SMALL.items()]
    good, bad = parts / "train/good", parts / "test/scratch"
    file = tmp_path / "m.safetensors"
    status, out, err = call("fit", good, "--anomalies", bad, "--method", "devnet", *options, "-o", file)
    assert status == 0 and str(tmp_path / "m.report.html") in out, err
    page = (tmp_path / "m.report.html").read_text(encoding="utf-8")
    assert "learnt from: new ones will be found less often" in page and page.count("<svg") == 2
    assert "Normals with the highest scores" in page and "Anomalies with the lowest scores" in page
    status, out, err = call("eval", file, parts, "--report", tmp_path / "e.html", "--device", "cpu")
    assert (
        status == 0 and "e.html" in err and "found less often" not in (tmp_path / "e.html").read_text(encoding="utf-8")
    )
    assert call("eval", file, parts, "--report", tmp_path, "--device", "cpu")[0] == 2


def test_the_report_of_a_loaded_detector_has_no_pictures(detector, tmp_path):
    assert detector.groups_[0].names
    detector.save(tmp_path / "m.safetensors")
    loaded = AnomalyDetector.load(tmp_path / "m.safetensors", "cpu")
    assert loaded.groups_ == detector.groups_ and loaded.groups_[0].names == []
    page = written(loaded, loaded.report_, tmp_path / "r.html")
    assert "<figure style" not in page and "Curves need scores" in page


def test_images_that_are_gone_or_no_files(detector, parts, tmp_path):
    arrays = [
        np.asarray(Image.open(o).convert("RGB").resize((48, 48))) for o in sorted((parts / "test/dent").iterdir())
    ]
    report = detector.evaluate(arrays[:3], {"dent": arrays[3:]})
    assert written(detector, report, tmp_path / "r.html").count("<figure style") == 0
    says("learnt nothing", write_report, AnomalyDetector(**SMALL), report, tmp_path / "r.html")


def test_thumbnails_of_the_explorer_keep_their_shape(detector, parts):
    import base64
    import io

    pytest.importorskip("ipywidgets")
    images = [str(o) for o in sorted((parts / "test/dent").iterdir())]
    view = explorer(detector, images[:5], {"dent": images[5:]}, side=96)
    sizes = [Image.open(io.BytesIO(base64.b64decode(o.picture.partition(",")[2]))).size for o in view.images]
    assert sizes == [(48, 48)] * 5 + [(96, 48)]


def test_intervals_are_honest_where_everything_is_found():
    "Eight of eight found is no certainty: neither for the rate nor for the AUROC"
    normal, anomaly = np.arange(40), np.arange(40, 48)
    found = rate_curve(normal, anomaly).found
    at = int((rate_curve(normal, anomaly).thresholds >= 39.5).sum()) - 1
    assert found[at][0] == 1 and 0.6 < found[at][1] < 0.75 and found[at][2] == 1
    area = auroc_interval(normal, anomaly)
    assert area.auroc == 1 and 0.7 < area.low < 0.95
    with pytest.raises(DraError, match="Pass images of both"):
        auroc_interval([], [1.0])


def test_the_band_of_review_is_explained_and_counted(parts):
    d = AnomalyDetector("devnet", **SMALL, review=0.5, fpr=0.2).fit(parts / "train/good", parts / "test/dent")
    inside = sum(d.threshold_.review < score <= d.threshold_.value for score in d.threshold_.normal)
    [line] = [o for o in meaning(d.threshold_, Sides(list(d.threshold_.normal), [], "")) if "to a person" in o]
    assert inside and f"{inside} of {len(d.threshold_.normal)} normals" in line
    found = table_rows_of(d.evaluate(parts / "test/good", parts / "test/dent"))
    looked_at = sum(image.review for image in d.score_stream(parts / "test/good"))
    assert {len(row) for row in found} == {7} and found[0][0] == "normals" and found[0][-1] == str(looked_at)
