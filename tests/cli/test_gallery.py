"The page of `dra_nb score --out`: what it holds, and what it does in a browser, opened as a file."

import json
import os
import re
import shutil

import in_jupyterlab as lab
import numpy as np
import pandas as pd
import pytest
from conftest import mvtec_folder
from in_process import call
from PIL import Image

from dra_nb.cli import score_files
from dra_nb.detector.detector import AnomalyDetector

pytestmark = pytest.mark.slow

HOW = dict(image_size=48, backbone="resnet18_stage2", weights=None, epochs=1, steps=2, batch=9, device="cpu")
HOSTILE = [
    "<img src=x onerror=alert(1)>.png",
    "\"'><script>alert(2).png",
    "100%25 #1?.png",
    "Größe ü.png",
    "x</script>.png",
]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "parts"
    mvtec_folder(root, n_train=16, n_test=8, classes={"dent": 8, "scratch": 8}, size=48)
    return root


@pytest.fixture(scope="module")
def model(parts):
    "A detector with several heads and the threshold in the middle of what is scored"
    detector = AnomalyDetector("dra", **HOW).fit(parts / "train/good", {"dent": parts / "test/dent"})
    scores = detector.score_samples(parts / "test")
    detector.calibrate(threshold=float(np.median(scores))).save(parts / "m.safetensors")
    return parts / "m.safetensors"


@pytest.fixture(scope="module")
def out(parts, model, tmp_path_factory):
    "A scoring of photos of other shapes, hostile names and a broken file; 90 more make the page long"
    box = tmp_path_factory.mktemp("scored") / "in box"
    shutil.copytree(parts / "test", box)
    (box / "x<").mkdir()  # a folder and a file whose path ends a script
    for name in HOSTILE:
        Image.open(parts / "test/dent/000.png").resize((150, 60)).save(os.path.join(box, name))
    for i in range(90):
        Image.open(parts / "test/good/000.png").rotate(4 * i).save(box / "good" / f"more {i:02}.jpg")
    Image.open(parts / "test/scratch/000.png").resize((900, 700)).save(box / "large.png")
    (box / "broken <b>.png").write_bytes(b"no image")
    status, said, _ = call("score", model, box, "--out", box.parent / "out", "--device", "cpu")
    assert status == 3 and str(box.parent / "out" / "index.html") in said
    return box.parent / "out"


def held(out, name):
    "What a script element of the page holds"
    page = (out / "index.html").read_text(encoding="utf-8")
    return json.loads(re.search(rf'id="{name}">(.*?)</script>', page, re.S)[1])


def test_rows_and_pictures(out):
    table, rows = pd.read_csv(out / "scores.csv"), held(out, "rows")
    assert len(rows) == len(table) == 121
    for row, line in zip(rows, table.to_dict("records")):
        assert line["name"].endswith(row["name"]) and (row.get("score") == line["score"] or "error" in row)
    large = next(o for o in rows if o["name"] == "large.png")
    assert (large["width"], large["height"]) == (320, 249)
    assert Image.open(out / "overlays/large.png.jpg").size == (900, 700)  # at the size of the photo
    assert {o["folder"] for o in rows if "score" in o} == {"", "dent", "good", "scratch", "x<"}
    assert len(held(out, "facts")["heads"]) == 4
    assert sum(o.stat().st_size for o in (out / "gallery").rglob("*.jpg")) < 3_000_000


def test_names_are_escaped(out):
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page and "<script>alert" not in page
    assert set(HOSTILE) <= {o["name"] for o in held(out, "rows")}
    assert 'href="http' not in page and 'src="http' not in page and "@import" not in page


@pytest.fixture(scope="module")
def page(out, tmp_path_factory):
    "The page in a browser, with all that it asks for"
    if not lab.chromium_path():
        (pytest.fail if os.environ.get("DRA_NB_GATE") else pytest.skip)("the gallery is looked at with chromium")
    pytest.importorskip("websocket")
    with lab.browser(tmp_path_factory.mktemp("chromium")) as tab:
        for domain in ("Network", "Page", "Runtime", "Log"):
            tab.call(f"{domain}.enable")
        yield tab


def opened(page, out, width):
    "Open the page anew at a width"
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    page.events.clear()
    page.call("Page.navigate", url=(out / "index.html").resolve().as_uri())
    page.wait("document.readyState == 'complete' && document.querySelectorAll('.card').length > 0")
    page.js("document.images[0].decode().catch(() => 0)")


def press(page, key, code=0):
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)


def verdicts(page):
    return page.js("[...document.querySelectorAll('.card')].map(o => o.classList.contains('anomaly'))")


@pytest.mark.parametrize("width", [400, 1400])
def test_it_fits_and_asks_for_nothing_from_elsewhere(page, out, width):
    opened(page, out, width)
    assert page.js("document.documentElement.scrollWidth") <= width
    page.wait("[...document.images].some(i => i.complete && i.src.includes('gallery/'))", 30)
    seen = page.js(
        "[...document.images].filter(i => i.complete && i.src.includes('gallery/')).map(i => i.naturalWidth)"
    )
    assert seen and min(seen) > 0
    asked = [o["params"]["request"]["url"] for o in page.events if o["method"] == "Network.requestWillBeSent"]
    elsewhere = [o for o in asked if not o.startswith(("file://", "data:"))]
    assert (out / "index.html").resolve().as_uri() in asked and elsewhere == []
    assert len(asked) < 130  # of 239 pictures; those further down are not loaded
    trouble = [o for o in page.events if o["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
    assert trouble == []
    page.js("for (let i = 0; i < 3; i++) document.querySelector('#further').click()")
    shape = page.js(
        "(() => { const i = [...document.images].find(o => o.alt.includes('Gr')); i.loading = 'eager';"
        "return [i.width, i.height, i.getAttribute('width') / i.getAttribute('height')] })()"
    )
    assert abs(shape[0] / shape[1] - shape[2]) < 0.05 and shape[2] == 2.5


@pytest.mark.parametrize("width", [400, 1400])
def test_the_slider_changes_verdicts(page, out, width):
    opened(page, out, width)
    scores, facts = [o["score"] for o in held(out, "rows") if "score" in o], held(out, "facts")
    now = sum(o > facts["threshold"] for o in scores)
    assert page.js("document.querySelector('#summary').textContent").startswith("121 images: ")
    assert page.js("document.querySelector('#n-anomaly').textContent") == f"anomaly ({now})"
    page.js("document.querySelector('#order').value = 'low'")
    page.js("document.querySelector('#order').dispatchEvent(new Event('change')), 0")
    assert not all(verdicts(page))
    page.js("document.querySelector('#slider').focus()")
    press(page, "Home", 36)
    assert page.js("document.querySelector('#n-anomaly').textContent") == f"anomaly ({len(scores)})"
    assert all(verdicts(page))
    assert "(model: normal)" in page.js("document.querySelector('#cards').textContent")
    press(page, "End", 35)
    assert page.js("document.querySelector('#n-anomaly').textContent") == "anomaly (0)" and not any(verdicts(page))
    assert f"anomaly ({now})" in page.js("document.querySelector('#back').click(), document.body.textContent")
    page.js("document.querySelector('#fewer').click()")
    fewer = int(re.search(r"\d+", page.js("document.querySelector('#n-anomaly').textContent"))[0])
    assert now - 6 <= fewer < now  # equal scores go together


def test_filters_order_and_keys(page, out):
    opened(page, out, 1400)
    rows = {o["name"]: o for o in held(out, "rows")}
    names = "[...document.querySelectorAll('.card .name')].map(o => o.textContent.replace(/^\\d+\\. /, ''))"
    ranked = sorted((o for o in rows.values() if "score" in o), key=lambda o: -o["score"])
    assert page.js(names)[:60] == [o["name"] for o in ranked[:60]]
    assert "broken <b>.png" in page.js("document.querySelector('#errors').textContent")
    page.js(
        "document.querySelector('#folder').value = '1',"
        "document.querySelector('#folder').dispatchEvent(new Event('change'))"
    )
    assert {rows[o]["folder"] for o in page.js(names)} == {"dent"} and len(page.js(names)) == 8
    page.js("document.querySelector('[value=anomaly]').click()")
    threshold = held(out, "facts")["threshold"]
    assert set(page.js(names)) == {n for n, o in rows.items() if o.get("folder") == "dent" and o["score"] > threshold}
    page.js("document.querySelector('[value=all]').click()")
    page.js("document.querySelector('.card .shots').focus()")
    press(page, "Enter", 13)
    page.js("document.querySelector('.card .shots').click()")  # where Enter does it, once more changes nothing
    assert page.js("document.querySelector('#viewer').open")
    first = page.js("document.querySelector('#caption').textContent")
    press(page, "ArrowRight", 39)
    assert page.js("document.querySelector('#caption').textContent") != first
    page.wait("document.querySelector('#large').naturalWidth == 48")
    press(page, "Escape", 27)
    page.wait("!document.querySelector('#viewer').open")
    assert page.js("[...document.images].every(o => o.alt)") and page.js(
        "[...document.querySelectorAll('input, select')].every(o => o.labels.length || o.ariaLabel)"
    )


@pytest.mark.parametrize("width", [400, 1400])
def test_the_report_of_an_evaluation_fits(page, parts, model, tmp_path, width):
    assert call("eval", model, parts, "--report", tmp_path / "r.html", "--device", "cpu")[0] == 0
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    page.events.clear()
    page.call("Page.navigate", url=(tmp_path / "r.html").as_uri())
    page.wait("document.readyState == 'complete' && document.querySelectorAll('figure.chart').length == 2")
    assert page.js("document.documentElement.scrollWidth") <= width
    assert page.js("[...document.images].every(o => o.naturalWidth)") and page.js("document.images.length") > 40
    asked = [o["params"]["request"]["url"] for o in page.events if o["method"] == "Network.requestWillBeSent"]
    assert [o for o in asked if not o.startswith(("file://", "data:"))] == []


@pytest.mark.parametrize("maps", [True, False])
def test_a_page_that_was_not_written_is_made_by_the_same_command(parts, model, tmp_path, monkeypatch, maps):
    "All rows are there, the process dies before the page is; nothing is scored twice"
    args = ["score", model, parts / "test", "--out", tmp_path / "out", "--device", "cpu", *["--no-maps"] * (not maps)]

    def die(*args, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("dra_nb.detector.gallery.write_gallery", die)
        assert call(*args)[0] == 130
    assert not (tmp_path / "out/index.html").exists() and (tmp_path / "out/unfinished.jsonl").exists()
    monkeypatch.setattr(score_files.Pictures, "add", lambda *o: pytest.fail("an image was scored twice"))
    status, said, err = call(*args)
    assert status == 1 and said.startswith("24 images") and "continuing after 24 images" in err
    rows = held(tmp_path / "out", "rows")
    assert len({o["name"] for o in rows}) == len(rows) == 24 and all(("full" in o) == maps for o in rows)
    assert not (tmp_path / "out/unfinished.jsonl").exists()
