"`show`, `monitor`, `calibrate` and `add`: what they print, how they end, what they refuse."

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from in_process import call
from PIL import Image
from small_detectors import QUICK, images, rewritten, write

from dra_nb.detector.detector import AnomalyDetector

FRESH = images("good", 60, 7, 48)


def refused(word, *args):
    status, _, message = call(*args)
    assert status == 2 and word in message, (status, message)


@pytest.fixture(scope="module")
def life(tmp_path_factory):
    "A folder with a model, new normals, and the scores of two days"
    root = tmp_path_factory.mktemp("life")
    small = QUICK | dict(image_size=48)
    known = write(root / "known", images("good", 60, 3, 48))
    d = AnomalyDetector("patchcore", **small, holdout=0.5).fit(known, write(root / "bad", images("dent", 4, 1, 48)))
    d.save(root / "m.safetensors")
    new = write(root / "new", FRESH)
    for day, part in (("mo", new[:30]), ("tu", new[30:])):
        d.score_table(part).to_csv(root / f"{day}.csv", index=False)
    return root


def test_show_prints_the_card_as_text_and_json(life):
    status, text, _ = call("show", life / "m.safetensors")
    assert status == 0 and "30 learnt from, 30 held out" in text and "history" in text and " fit with dra_nb " in text
    values = json.loads(call("show", life / "m.safetensors", "--json")[1])
    assert (values["method"], values["normals"], values["held_out"]) == ("patchcore", 30, 30)
    assert values["anomalies"] == {"anomaly": 4} and values["groups"][1]["auroc"] is not None
    assert values["events"][0]["what"] == "fit" and values["events"][0]["date"].endswith("+00:00")


def test_a_file_of_an_earlier_version_has_a_card_without_dates(life, tmp_path):
    old = AnomalyDetector.load(life / "m.safetensors")
    for name in ("events", "places", "classes"):
        del old.summary_[name]
    old.save(tmp_path / "old.safetensors")
    status, text, _ = call("show", tmp_path / "old.safetensors")
    assert status == 0 and "no dates: the file was written by an earlier version" in text


def test_monitor_tells_the_same_parts_from_darker_ones(life, tmp_path):
    model = life / "m.safetensors"
    status, text, _ = call("monitor", model, life / "mo.csv", life / "tu.csv", "--plot", tmp_path / "p/drift.png")
    assert status == 0 and "no drift found" in text and "60 images, compared with 30 held-out normals" in text
    assert Image.open(tmp_path / "p/drift.png").size == (1080, 408)
    darker = AnomalyDetector.load(model).score_table(write(tmp_path / "dark", (FRESH * 0.6).astype(np.uint8)))
    darker.to_csv(tmp_path / "we.csv", index=False)
    status, text, _ = call("monitor", model, life / "mo.csv", tmp_path / "we.csv", "--json")
    values = json.loads(text)
    assert status == 1 and values["drifted"] and values["images"] == 90
    assert {o["name"] for o in values["tests"] if o["drifted"]} >= {"trend"}


def test_monitor_refuses_what_is_no_table_of_this_model(life, tmp_path):
    model, table = life / "m.safetensors", pd.read_csv(life / "mo.csv")
    file = tmp_path / "s.csv"

    def monitor(word, rows, *more):
        rows.to_csv(file, index=False)
        refused(word, "monitor", model, file, *more)

    monitor("no column 'p_value'", table.drop(columns="p_value"))
    monitor("another model", table.assign(score=table.score * 2 - 1))
    monitor("there are 19 scores", table[:19])
    monitor("row 1: name is", table.assign(day=table.name), "--date", "name")
    monitor("no column 'day'", table, "--date", "day")
    monitor("row 4: score is 'none'", table.assign(score=[*table.score[:3], "none", *table.score[4:]]))
    monitor("share of anomalies is 0.6", table, "--share", "0.6")
    refused("count more than once", "monitor", model, life / "mo.csv", life / "mo.csv")
    refused("there is no file", "monitor", model, life / "gone.csv")
    refused("is no table of scores", "monitor", model, model)
    number = rewritten(model, tmp_path / "n.safetensors", threshold__normal=[], threshold__rule__by=1.0)
    refused("this detector has none", "monitor", number, life / "mo.csv")


def test_dates_order_the_rows_and_unscored_images_do_not_count(life, tmp_path):
    table = pd.read_csv(life / "mo.csv").sort_values("score", ascending=False)
    table["day"] = pd.date_range("2026-03-01", periods=30)[::-1].astype(str)  # the highest score last
    broken = table[:1].assign(name="b.png", score=np.nan, p_value=np.nan, error="cannot be read")
    pd.concat([table, broken]).to_csv(tmp_path / "s.csv", index=False)
    status, text, _ = call("monitor", life / "m.safetensors", tmp_path / "s.csv", "--date", "day")
    assert status == 1 and "scores rise over time" in text and text.startswith("30 images")


def test_calibrate_on_other_normals_and_by_another_rule(life, tmp_path):
    model, new = life / "m.safetensors", tmp_path / "new.safetensors"
    status, text, _ = call("calibrate", model, "--normal", life / "new", "--fpr", "0.1", "-o", new)
    assert status == 0 and "60 held-out normals" in text and "before:" in text
    before, now = AnomalyDetector.load(model), AnomalyDetector.load(new)
    scores = before.score_samples(str(life / "new"))
    assert (scores > now.threshold_.value).sum() == 5  # 6 of 61 places, the sixth highest is the threshold
    assert [o["what"] for o in now.summary_["events"]] == ["fit", "calibrate"]
    refused("score the images with this model", "monitor", new, life / "mo.csv")
    refused("nothing would change", "calibrate", model, "-o", new)
    refused("were learnt from", "calibrate", model, "--normal", life / "known", "-o", new)
    refused("-1", "calibrate", model, "--threshold", "cost", "--miss", "-1", "-o", new)


def test_add_extends_a_memory_and_compares_on_the_same_images(life, tmp_path):
    model, new = life / "m.safetensors", tmp_path / "new.safetensors"
    write(tmp_path / "bad/dent", images("dent", 3, 9, 48))
    status, text, _ = call("add", model, "--normal", life / "new", "--anomaly", tmp_path / "bad", "-o", new)
    assert status == 0 and "30 more normals learnt from, 30 more held out, 3 more anomalies judge it" in text
    assert "normals (60): before" in text and "dent (3): before" in text and "anomaly (4): before" in text
    before, now = AnomalyDetector.load(model), AnomalyDetector.load(new)
    assert len(now.method_.memory) > len(before.method_.memory) and len(now.threshold_.normal) == 60
    assert now.card_.normals == 60 and now.card_.anomalies == {"anomaly": 4, "dent": 3}
    known, places = now.summary_["known"], now.summary_["places"]
    assert len(known["learnt"]) == 60 and len(known["normal"]) == 60 and not set(known["learnt"]) & set(known["normal"])
    held = now.score_samples(places["normal"])
    np.testing.assert_allclose(np.sort(held), now.threshold_.normal, rtol=1e-5)  # chosen on just these
    learnt = places["learnt"][30:]
    assert (now.score_samples(learnt) < before.score_samples(learnt)).mean() > 0.9  # what it learnt is nearer now
    refused("nothing new", "add", new, "--normal", life / "new", "-o", new)
    write(tmp_path / "one", images("good", 1, 5, 48))
    assert "1 more normals learnt from, 0 more held out" in call("add", new, "--normal", tmp_path / "one", "-o", new)[1]
    assert [o["what"] for o in AnomalyDetector.load(new).card_.events] == ["fit", "add", "add"]


def test_add_needs_the_held_out_images_wherever_they_are(life, tmp_path):
    small = QUICK | dict(image_size=48)
    write(tmp_path / "known", images("good", 20, 3, 48))
    model, new = tmp_path / "m.safetensors", tmp_path / "n.safetensors"
    AnomalyDetector("patchcore", **small).fit(tmp_path / "known").save(model)
    shutil.move(tmp_path / "known", tmp_path / "moved")
    refused("of them have gone or changed; pass a folder", "add", model, "--normal", life / "new", "-o", new)
    assert not new.exists()
    status, text, _ = call("add", model, "--normal", life / "new", "--held-out", tmp_path / "moved", "-o", new)
    assert status == 0 and "more normals learnt from" in text
    refused("as the opposite", "add", model, "--anomaly", tmp_path / "moved", "-o", new)
    trained = AnomalyDetector("devnet", **small).fit(life / "known", life / "bad")
    trained.save(tmp_path / "t.safetensors")
    refused(
        "devnet cannot learn from more images", "add", tmp_path / "t.safetensors", "--normal", life / "new", "-o", new
    )
