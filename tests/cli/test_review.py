"Images that are left to a person: two lines from the command line, in the model file, in the results and on the page."

import json
import os
import re

import in_jupyterlab as lab
import numpy as np
import pandas as pd
import pytest
from in_process import call
from small_detectors import QUICK, images, rewritten, says, write

from dra_nb.core import DraError
from dra_nb.detector.detector import AnomalyDetector
from dra_nb.detector.persistence import read_description

pytestmark = pytest.mark.slow

SMALL = QUICK | dict(image_size=48)


def refused(word, *args):
    status, _, message = call(*args)
    assert status == 2 and word in message, (status, message)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    "A model without a line of review, labelled images to calibrate on, and others to score"
    root = tmp_path_factory.mktemp("parts")
    detector = AnomalyDetector("patchcore", **SMALL, holdout=0.5).fit(images("good", 60, 3, 48))
    detector.save(root / "m.safetensors")
    for folder, seed in (("known", 5), ("inbox", 9)):
        write(root / folder / "good", images("good", 30, seed, 48))
        mixed = (images("scratch", 10, seed + 1, 48) // 2 + images("good", 10, seed + 2, 48) // 2).astype(np.uint8)
        write(root / folder / "bad/dent", images("dent", 6, seed + 3, 48))
        write(root / folder / "bad/scratch", mixed)
    return root


@pytest.fixture(scope="module")
def model(parts):
    "The model with two lines, chosen by cost"
    how = ("--threshold", "cost", "--look", "0.2", "--prevalence", "0.05", "-o", parts / "two.safetensors")
    status, text, err = call("calibrate", parts / "m.safetensors", "--normal", parts / "known", *how)
    assert status == 0 and "a person looks from" in text and "0.2 per look" in text, (text, err)
    return parts / "two.safetensors"


def test_show_tells_what_the_review_is_worth(parts, model):
    status, text, _ = call("show", model)
    assert status == 0 and "left out in turn, of 30 normals passed" in text and "looking at everything 0.2" in text
    assert "for a person to look at" in text
    card = json.loads(call("show", model, "--json")[1])
    assert card["review"] < card["threshold"] and card["groups"][0]["review"] is not None
    assert json.loads(call("show", parts / "m.safetensors", "--json")[1])["review"] is None


def test_lines_survive_the_file_and_decide(parts, model):
    loaded = AnomalyDetector.load(model, "cpu")
    lines = loaded.threshold_
    assert (lines.rule.look, loaded.look) == (0.2, 0.2)
    found = list(loaded.score_stream(str(parts / "inbox")))
    expected = ["anomaly" if o.score > lines.value else "review" if o.score > lines.review else "normal" for o in found]
    assert [o.verdict for o in found] == expected and set(expected) == {"normal", "review", "anomaly"}
    assert loaded.predict(str(parts / "inbox")).tolist() == [int(o == "anomaly") for o in expected]
    report = loaded.evaluate(str(parts / "inbox"))
    assert report.frame.review.sum() == expected.count("review") and "to review" in str(report)


def test_score_writes_verdicts_and_ends_with_a_status_of_its_own(parts, model, tmp_path):
    status, text, _ = call("score", model, parts / "inbox", "--out", tmp_path / "o", "--device", "cpu")
    table = pd.read_csv(tmp_path / "o/scores.csv")
    counts = table.verdict.value_counts()
    assert status == 1 and f"{counts['anomaly']} anomalies, {counts['review']} to review" in text
    assert (table.anomaly == (table.verdict == "anomaly")).all()
    review = table.name[table.verdict == "review"].iloc[0]
    status, text, _ = call("score", model, review, "--device", "cpu")
    assert status == 5 and text.startswith("review ")
    assert call("score", model, table.name[table.verdict == "normal"].iloc[0], "--device", "cpu")[0] == 0


def test_a_share_of_the_normals_and_numbers(parts, tmp_path):
    model, new = parts / "m.safetensors", tmp_path / "n.safetensors"
    status, text, _ = call("calibrate", model, "--fpr", "0.1", "--review", "0.3", "-o", new)
    assert status == 0 and "for at most 30.0% of normals above that line" in text
    lines = AnomalyDetector.load(new).threshold_
    assert lines.review == sorted(lines.normal)[-9] and lines.value == sorted(lines.normal)[-3]
    status, text, _ = call("calibrate", new, "--threshold", "9", "--review", "7.5", "-o", new)
    assert status == 0 and "threshold 9, as it was given; a person looks from 7.5 on" in text
    status, text, _ = call("calibrate", new, "--no-review", "-o", new)
    assert status == 0 and AnomalyDetector.load(new).threshold_.review is None


def test_what_has_no_meaning_is_refused(parts, model, tmp_path):
    plain, new = parts / "m.safetensors", tmp_path / "n.safetensors"
    refused("not chosen by cost", "calibrate", plain, "--look", "0.1", "-o", new)
    refused("must lie above the rate of false alarms", "calibrate", plain, "--review", "0.01", "-o", new)
    refused("review is 1.5", "calibrate", plain, "--review", "1.5", "-o", new)
    refused("pass one of them", "calibrate", model, "--no-review", "--review", "0.2", "-o", new)
    refused("less than a miss", "calibrate", model, "--look", "3", "-o", new)
    refused("--no-review", "calibrate", model, "--threshold", "fpr", "-o", new)
    refused("no anomaly among them", "calibrate", plain, "--threshold", "cost", "--look", "0.1", "-o", new)
    refused("less than a miss", "fit", parts / "known/good", "--threshold", "cost", "--look", "2", "-o", new)
    assert not new.exists()
    says("damaged", AnomalyDetector.load, rewritten(model, tmp_path / "d.safetensors", threshold__review=1e9))
    says("damaged", AnomalyDetector.load, rewritten(plain, tmp_path / "e.safetensors", threshold__review=0.0))


def test_a_file_without_a_review_is_what_earlier_versions_read(parts, model):
    "The keys of the description are those of before, so that neither side is surprised"
    before = read_description(parts / "m.safetensors")
    assert before["schema"] == 2 and not {"look", "review"} & {*before["params"], *before["threshold"]["rule"]}
    assert read_description(model)["schema"] == 4


def test_an_explorer_keeps_the_line_of_review(parts):
    pytest.importorskip("ipywidgets")
    from dra_nb.detector.widgets import explorer

    detector = AnomalyDetector.load(parts / "m.safetensors", "cpu").calibrate(threshold=3.0, review=2.0)
    view = explorer(detector, str(parts / "inbox/good"), {"dent": str(parts / "inbox/bad/dent")}, side=48)
    view.value = 4.0
    view.apply()
    assert (detector.threshold_.value, detector.threshold_.review) == (4.0, 2.0)
    view.value = 1.0
    view.apply()
    assert (detector.threshold_.value, detector.threshold_.review) == (1.0, None)


def held(out, name):
    "What a script element of the page holds"
    page = (out / "index.html").read_text(encoding="utf-8")
    return json.loads(re.search(rf'id="{name}">(.*?)</script>', page, re.S)[1])


def test_the_page_filters_by_verdict_and_class(parts, model, tmp_path):
    if not lab.chromium_path():
        (pytest.fail if os.environ.get("DRA_NB_GATE") else pytest.skip)("the gallery is looked at with chromium")
    pytest.importorskip("websocket")
    out = tmp_path / "o"
    call("score", model, parts / "inbox", "--out", out, "--device", "cpu")
    rows, facts = held(out, "rows"), held(out, "facts")
    assert {o["kind"] for o in rows} == {"", "dent", "scratch"}
    (tmp_path / "chromium").mkdir()
    with lab.browser(tmp_path / "chromium") as page:
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        page.call("Page.navigate", url=(out / "index.html").resolve().as_uri())
        page.wait("document.readyState == 'complete' && document.querySelectorAll('.card').length > 0")
        names = "[...document.querySelectorAll('.card .name')].map(o => o.textContent.replace(/^\\d+\\. /, ''))"
        page.js("document.querySelector('[value=review]').click()")
        band = {o["name"] for o in rows if facts["review"] < o["score"] <= facts["threshold"]}
        assert set(page.js(names)) == band and band
        assert page.js("[...document.querySelectorAll('.card')].every(o => o.classList.contains('review'))")
        page.js("document.querySelector('[value=all]').click()")
        choose = "document.querySelector('#class').value = '1', document.querySelector('#class').dispatchEvent"
        page.js(f"{choose}(new Event('change'))")
        assert set(page.js(names)) == {o["name"] for o in rows if o["kind"] == "dent"}
        assert re.search(r"Found \d+ of 16 anomalies, \d+ left to a person", page.js("document.body.innerText"))
        page.js("document.querySelector('#number2').value = -100")
        page.js("document.querySelector('#number2').dispatchEvent(new Event('input'))")
        assert page.js("document.querySelector('#n-normal').textContent") == "normal (0)"
        assert "--review -100 -o NEW" in page.js("document.querySelector('#keep').textContent")
        assert [o for o in page.events if o["method"] == "Runtime.exceptionThrown"] == []


def test_a_rule_says_what_is_wrong():
    for wrong in (dict(look=0.1), dict(threshold="f1", review=0.1), dict(threshold=1.0, review=2.0)):
        with pytest.raises(DraError):
            AnomalyDetector(**wrong)
