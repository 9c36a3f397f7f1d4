"The report and the explorer of a detector: numbers, names that are meant to harm; the tutorial in JupyterLab."

import json
import os
import re
import shutil
import sys
import time
import tracemalloc
from html.parser import HTMLParser
from pathlib import Path

import in_jupyterlab as lab
import numpy as np
import pytest
from conftest import REPO, picture
from PIL import Image
from sklearn.metrics import precision_recall_curve, roc_curve

from dra_nb.core import DraError
from dra_nb.detector import widgets
from dra_nb.detector.detector import AnomalyDetector
from dra_nb.detector.histogram import Axis, StreamHistogram, bar_counts, make_axis
from dra_nb.detector.image_report import LISTED, ImageReport, StreamSummary, error_lines
from dra_nb.detector.labelled_stream import StreamedImage
from dra_nb.detector.moves import ThresholdCounts, count_at, flips
from dra_nb.detector.results import Scored
from dra_nb.detector.widgets import explorer, report
from dra_nb.evaluation.threshold import Rule, Threshold

pytestmark = pytest.mark.slow

QUICK = dict(
    image_size=48, backbone="resnet18_stage2", weights=None, epochs=1, steps=2, batch=9, device="cpu", precision="fp32"
)
HOSTILE = [
    "<img src=x onerror=alert(1)>.png",
    '"><svg onload=alert(1)>.png',
    "a'b&c{{7*7}}{%x%}.png",
    os.fsdecode(b"no text \xff\xfe.png"),
    "\u202egnp.exe.png",
    "new\nline.png",
    "; url(javascript:alert(1)).png",
]


def images(kind, n, seed=0, size=48):
    rng = np.random.default_rng(seed)
    return np.stack([np.asarray(picture(kind, rng, size)) for _ in range(n)])


GOOD, DENTS, SCRATCHES = images("good", 24), images("dent", 6, 1), images("scratch", 6, 2)


def write(folder, arrays, names=None):
    "Images as PNG files; their paths"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / n for n in (names or [f"{i:03}.png" for i in range(len(arrays))])]
    for path, a in zip(paths, arrays):
        with open(path, "wb") as f:
            Image.fromarray(a).save(f, "PNG")
    return list(map(str, paths))


def says(word, f, *args, **kwargs):
    with pytest.raises(DraError, match=word) as caught:
        f(*args, **kwargs)
    return str(caught.value)


def fitted(method="dra", anomalies=True, **settings):
    return AnomalyDetector(method, **QUICK | settings).fit(
        GOOD, {"dent": DENTS[:3], "scratch": SCRATCHES[:3]} if anomalies else None
    )


@pytest.fixture(scope="module")
def trained():
    return fitted()


@pytest.fixture
def detector(trained, tmp_path):
    "Of one's own, since a threshold may be taken over"
    trained.save(tmp_path / "own.safetensors")
    return AnomalyDetector.load(tmp_path / "own.safetensors", "cpu")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    "A folder with normal/, anomalies/dent and anomalies/scratch"
    root = tmp_path_factory.mktemp("data") / "set"
    (
        write(root / "normal", images("good", 12, 5)),
        write(root / "anomalies/dent", DENTS[3:]),
        write(root / "anomalies/scratch", SCRATCHES[3:]),
    )
    return root


class Tags(HTMLParser):
    "The tags, attributes and text of a page"

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = set(), [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


PLAIN = {"div", "span", "img", "figure", "figcaption", "details", "summary", "ul", "li", "table", "tr", "td", "br"}


def harmless(page, more=frozenset()):
    "The page as `Tags`, after it was found to hold nothing but text, boxes and pictures that lie in it"
    page.encode("utf-8")  # can be written
    seen = Tags(page)
    assert seen.tags <= PLAIN | more, seen.tags
    assert {k for k, _ in seen.attributes} <= {"style", "src", "alt", "title", "open"} | (
        {"lang", "charset", "name", "content"} if more else set()
    )
    assert all(re.match(r"data:image/(jpeg|svg\+xml);base64,[\w+/=]+$", v) for k, v in seen.attributes if k == "src")
    assert not any(re.search(r"url|expression|javascript|import", v) for k, v in seen.attributes if k == "style")
    return seen


# ---- the report


def test_ranks_and_keeps_the_highest(detector):
    every = np.concatenate([GOOD, DENTS, SCRATCHES])
    scores = detector.score_samples(every)
    order = np.argsort(-scores)
    for top in (0, 5, 36, 99):
        r = report(detector, every, top=top)
        assert (
            [o.name for o in r.shown] == [f"image {i}" for i in order[:top]]
            and len(r.frame) == min(top, 36)
            and r._repr_html_().count("<figure") == min(top, 36)
        )
        np.testing.assert_allclose([o.score for o in r.shown], scores[order[:top]], rtol=1e-4)
        assert (f"{36 - top} more are not shown (top={top})" in str(r)) == (top < 36) and (
            "all are shown" in str(r)
        ) == (top >= 36)
    assert (
        f"36 images: {(scores > detector.threshold_.value).sum()} above the threshold, "
        f"{(scores <= detector.threshold_.value).sum()} not" in str(r)
    )
    np.testing.assert_array_equal(r.shown[0].image, every[order[0]])
    np.testing.assert_allclose(r.shown[0].map, detector.score_map(every[order[0]]), rtol=1e-3, atol=1e-4)
    again = report(detector, [GOOD[0]] * 3 + [DENTS[0]], top=2)
    assert [o.name for o in again.shown] in (
        ["image 3", "image 0"],
        ["image 0", "image 1"],
    )  # of equal scores the first


def test_an_image_that_cannot_be_read_is_listed(detector, tmp_path):
    files = write(tmp_path / "in", GOOD[:5])
    Path(files[2]).write_bytes(Path(files[2]).read_bytes()[:200])
    r = report(detector, [*files, tmp_path / "in" / "gone.png"], labels=[0] * 6, batch=2)
    page = Tags(r._repr_html_())
    assert (r.seen.total, r.seen.unread, len(r.shown)) == (6, 2, 4) and "2 without a score, listed below" in page.text
    assert (
        "002.png" in page.text
        and "gone.png" in page.text
        and str(tmp_path) not in r._repr_html_()
        and str(tmp_path) not in str(r)
    )
    np.testing.assert_allclose(
        sorted(o.score for o in r.shown),
        sorted(detector.score_samples([f for i, f in enumerate(files) if i != 2])),
        rtol=1e-4,
    )
    broken = report(detector, [files[2]])  # nothing else
    assert (
        "1 image: 0 above the threshold, 0 not, 1 without a score" in str(broken)
        and "<figure" not in broken._repr_html_()
    )
    assert broken.frame.empty
    many = StreamSummary(3)
    for i in range(LISTED + 7):
        many.add(StreamedImage(Scored(f"/a/{i}.png", error="/a is broken\nreally"), None, None))
    listed = error_lines(ImageReport("t", detector.threshold_, many, [], []))
    assert len(listed) == LISTED + 1 and listed[-1] == "and 7 more" and "\n" not in listed[0]


def test_hostile_names_stay_names(detector, tmp_path):
    files = write(tmp_path / "in", GOOD[:7], HOSTILE)
    (tmp_path / "in" / "<b>broken.png").write_bytes(b"no")
    kinds = ["<script>alert(1)</script>", "", "\udcff{{7*7}}", *["crack"] * 5]
    r = report(detector, [*files, str(tmp_path / "in" / "<b>broken.png")], kinds)
    seen = harmless(r._repr_html_())
    for text in (
        "<img src=x onerror=alert(1)>.png",
        '"><svg onload=alert(1)>.png',
        "{{7*7}}{%x%}.png",
        "\\udcff\\udcfe",
        "\\u202e",
        "new\\nline",
        "<script>alert(1)</script>",
        "<b>broken.png",
    ):
        assert text in seen.text, text
    assert sorted(r.frame.name) == sorted(files) and set(r.frame.label) == set(kinds[:3]) | {"crack"}
    r.save(tmp_path / "a" / "report.html")
    saved = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    assert (
        saved.startswith("<!doctype html>")
        and "color-scheme: light dark" in saved
        and os.listdir(tmp_path / "a") == ["report.html"]
    )
    assert harmless(saved, {"html", "head", "body", "meta", "title", "style"}).text.count("<img src=x") == 1
    says(
        "not UTF-8", explorer, detector, files[:3], files[3:]
    )  # labelled images are named in files, so such a name is refused
    view = explorer(detector, files[:3], {"<script>x</script>": files[4:5], "\udcff": files[5:]}, top=9)
    for view.value in (-1e9, 1e9):
        seen = harmless(view._repr_mimebundle_()["text/html"])
        assert (
            "<img src=x onerror=alert(1)>.png" in seen.text
            or view.value > 0
            or detector.threshold_.value < view.scores.min()
        )
        assert "found: <script>x</script>" in seen.text and "found: \\udcff" in seen.text
    json.dumps(view._repr_mimebundle_()["text/plain"])


def test_labels_as_they_come(detector, labelled, tmp_path):
    "A labelled folder, a csv, a catalog, a list: the same report"
    whole = report(detector, labelled, top=99)
    assert whole.seen.total == 18 and sorted(whole.classes) == [""] * 12 + ["dent"] * 3 + ["scratch"] * 3
    result = detector.evaluate(labelled).frame.set_index("images")
    assert f"{int(result.above[['dent', 'scratch']].sum())} of 6 anomalies found" in str(whole) and re.search(
        rf"^{result.above['normals']} false alarms? of 12 normals$", str(whole), re.M
    )
    from dra_nb.data.labelled import read_labelled

    catalog = read_labelled(labelled)
    names = [o.name for o in whole.shown]
    kinds = dict(zip(catalog.path, catalog.defect))
    for source, labels in (
        (catalog, None),
        (names, [kinds[n] for n in names]),
        (iter(names), iter([int(kinds[n] != "") for n in names])),
        (names, ["01"[kinds[n] != ""] for n in names]),
    ):
        again = report(detector, source, labels, top=99)
        assert [o.name for o in again.shown] == names and [bool(k) for k in again.classes] == [
            bool(k) for k in whole.classes
        ]
    unknown = report(detector, labelled / "normal")
    assert (
        set(unknown.classes) == {None}
        and "of 12 normals" not in str(unknown)
        and "12 images" in Tags(unknown._repr_html_()).text
    )


@pytest.mark.parametrize(
    "bad, word",
    [
        (dict(images=[]), "no images"),
        (dict(images=GOOD[:2], labels=[0]), "fewer labels"),
        (dict(images=GOOD[:2], labels=[0] * 3), "more labels"),
        (dict(images=GOOD[:1], labels=[2]), "a label is"),
        (dict(images=GOOD[:1], labels=[None]), "a label is"),
        (dict(images=GOOD[:1], top=1.5), "top is"),
        (dict(images=GOOD[:1], batch=0), "batch is"),
        (dict(images=GOOD[:1], side=True), "side is"),
        (dict(images=GOOD[:1], maps="sore"), "score"),
        (dict(images="/nowhere/at/all"), "does not exist"),
    ],
)
def test_what_cannot_be_is_refused(detector, bad, word):
    says(word, report, detector, **bad)


def test_an_empty_folder_and_a_detector_that_has_learnt_nothing(detector, tmp_path):
    (tmp_path / "empty").mkdir()
    says("no images", report, detector, tmp_path / "empty")
    says("learnt nothing", report, AnomalyDetector(**QUICK), GOOD[:1])
    says("learnt nothing", explorer, AnomalyDetector(**QUICK), GOOD[:1])
    says("no images", explorer, detector, [])
    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    says("no score", explorer, detector, [tmp_path / "torn.png"])


@pytest.mark.parametrize(
    "method, kind, bars",
    [
        ("deep_sad", "gradient", False),
        ("devnet", "score", False),
        ("patchcore", "score", False),
        ("minns", None, None),
        ("kdad", None, None),
        ("mlep", None, None),
        ("multiclass", None, None),
    ],
)
def test_other_methods(method, kind, bars):
    d = fitted(method)
    r = report(d, np.concatenate([GOOD[:3], DENTS[3:]]), top=4)
    assert len(r.shown) == 4 and (kind is None or r.kind == kind) and r._repr_html_().count("<figure") == 4
    if bars is not None:
        assert ("Bars: what each head adds" in r._repr_html_()) == bars
    harmless(r._repr_html_())


def test_without_maps_heads_or_held_out_normals():
    d = fitted(threshold=2.0, holdout=0.0)
    r = report(d, GOOD[:4], maps=None, top=3)
    page = harmless(r._repr_html_())
    assert (
        r.kind == ""
        and all(o.map is None and o.p_value is None for o in r.shown)
        and "heat map" not in page.text
        and "held-out" not in page.text
        and ", p " not in page.text
    )
    assert "threshold 2, as it was given" in page.text and "seen" in page.text
    for o in r.shown:
        o.heads = {}
    assert "normality" not in Tags(r._repr_html_()).text
    view = explorer(d, GOOD[:4])
    assert (
        view.numbers.recall is None
        and view.numbers.precision in (None, 0)
        and "none" in view._repr_mimebundle_()["text/html"]
    )


def test_a_map_that_is_not_finite_is_left_out(detector, monkeypatch):
    real = widgets.judge

    def broken(*args):
        for i, scored in enumerate(real(*args)):
            if i == 1:
                scored.map = np.full_like(scored.map, np.nan)
            yield scored

    monkeypatch.setattr(widgets, "judge", broken)
    r = report(detector, GOOD[:3])
    assert (
        [o.map is None for o in r.shown] == [False, True, False]
        and "1 heat map is not shown" in str(r)
        and r._repr_html_().count("data:image/jpeg") == 5
    )


def test_a_method_whose_maps_cannot_be_had_is_shown_without_them(detector, monkeypatch):
    def none(*args):
        raise DraError("this method has no gradient; use another kind of map")

    monkeypatch.setattr(widgets, "judge", none)
    found = report(detector, GOOD[:2], maps="auto")
    assert [o.map for o in found.shown] == [None, None] and "no heat maps: this method has no gradient" in str(found)
    with pytest.raises(DraError, match="no gradient"):
        report(detector, GOOD[:2], maps="gradient")


def test_memory_does_not_grow_with_the_number(detector):
    def peak(n):
        source = (GOOD[i % 24] for i in range(n))
        tracemalloc.start()
        try:
            assert report(detector, source, top=4).seen.total == n
        finally:
            used = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return used

    peak(40)
    assert peak(640) < peak(160) + 400_000  # 480 images are 3.3 MB of pixels, their scores as Scored some 0.5 MB


def test_a_spread_of_any_scores():
    rng = np.random.default_rng(0)
    for values in (
        rng.normal(size=5000),
        rng.standard_cauchy(5000) * 1e6,
        np.full(10, 3.5),
        np.r_[0.0, 1e-9, 1e9],
        -rng.random(3000) * 1e-8,
    ):
        s = StreamHistogram(100)
        for v in values:
            s.add(float(v))
        low, high = values.min() - 1e-12, values.max() + 1e-12
        counts = bar_counts(s, lambda v, low=low, high=high: (v - low) / (high - low), 7)[""]
        assert counts.sum() == len(values) and len(s.counts) <= 100
    t = Threshold(1.0, Rule(1.0), tuple(np.linspace(0, 1, 20)))
    for scores in ([], [1.0], [-1e12, 1e12], [1 + 1e-12], rng.normal(size=50)):
        axis = make_axis(t, scores)
        places = [axis.place(v) for v in sorted([*scores, 1.0])]
        assert isinstance(axis, Axis) and all(0 < p < 1 for p in places) and places == sorted(places)
        assert axis.score(0.1) <= axis.score(0.5) <= axis.score(0.9)


# ---- the explorer


def test_numbers_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    for n in (4, 30, 200):
        labels = np.r_[0, 1, rng.integers(0, 2, n)]
        scores = (rng.normal(size=n + 2) + labels).round(1)  # with ties
        precision, recall, levels = precision_recall_curve(labels, scores)
        for p, r, level in zip(precision, recall, levels):
            got = count_at(
                scores, labels, np.nextafter(level, -np.inf)
            )  # theirs counts what is equal, ours what is above
            assert (got.precision, got.recall) == (
                pytest.approx(p),
                pytest.approx(r),
            ) and got.found + got.missed == labels.sum()
        for f, r, level in zip(*(o[1:] for o in roc_curve(labels, scores, drop_intermediate=False))):
            got = count_at(scores, labels, np.nextafter(level, -np.inf))
            assert (got.false_positive_rate, got.recall) == (pytest.approx(f), pytest.approx(r))
    nothing = count_at([], [], 0)
    assert nothing == ThresholdCounts(0, found=0, missed=0, false_alarms=0, passed=0)
    assert {nothing.precision, nothing.recall, nothing.false_positive_rate, nothing.f1} == {None}
    for bad in (([1, 2], [0], 0), ([1.0], [2], 0), ([np.nan], [0], 0), ([[1.0]], [[0]], 0)):
        says("score|label", count_at, *bad)


def test_flips_are_the_changed_verdicts():
    rng = np.random.default_rng(1)
    scores, labels = rng.normal(size=80).round(1), rng.random(80) < 0.4
    for old, new in rng.normal(size=(50, 2)).round(1):
        got = flips(scores, labels, old, new)
        np.testing.assert_array_equal(got != "", (scores > old) != (scores > new))
        a, b = count_at(scores, labels, old), count_at(scores, labels, new)
        assert b.found - a.found == (got == "newly found").sum() - (got == "newly missed").sum()
        assert b.false_alarms - a.false_alarms == (got == "new false alarm").sum() - (got == "false alarm gone").sum()


def test_accepts_what_evaluate_accepts(detector, labelled, tmp_path):
    from dra_nb.data.labelled import read_labelled

    result = detector.evaluate(labelled).frame
    for source in (
        (labelled,),
        (read_labelled(labelled),),
        (labelled / "normal", labelled / "anomalies"),
        (
            sorted(map(str, (labelled / "normal").iterdir())),
            {k: labelled / "anomalies" / k for k in ("dent", "scratch")},
        ),
    ):
        view = explorer(detector, *source)
        now = view.numbers
        assert (now.false_alarms, now.found) == (
            result.above[result.images == "normals"].sum(),
            result.above[result.images != "normals"].sum(),
        )
        assert {k: view.classes.count(k) for k in set(view.classes)} == {"": 12, "dent": 3, "scratch": 3} and not len(
            view.flipped
        )
    arrays = explorer(detector, GOOD[:3], DENTS)
    assert (
        arrays.classes == [""] * 3 + ["anomaly"] * 6 and "found: anomaly" not in arrays._repr_mimebundle_()["text/html"]
    )
    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    torn = explorer(detector, [*sorted(map(str, (labelled / "normal").iterdir())), str(tmp_path / "torn.png")])
    assert (
        len(torn.scores) == 12
        and "no score: " in (page := torn._repr_mimebundle_()["text/html"])
        and "torn.png" in page
    )


@pytest.fixture
def view(detector, labelled):
    pytest.importorskip("ipywidgets")
    return explorer(detector, labelled, top=6)


def test_the_slider_moves_the_numbers(view):
    w, present = view.controls, view.present
    for place in (0, 250, 777, 1000):
        w.slider.value = place
        now = view.numbers
        assert w.slider.value == place and view.value == w.field.value == view.axis.score(place / 1000)
        row = re.search(r"anomalies found</td><td[^>]*>(\d+) of 6</td><td[^>]*>(\d+) of 6", w.view.value)
        assert row.groups() == (str((view.scores[view.labels == 1] > present).sum()), str(now.found))
        n = ((view.scores > present) != (view.scores > view.value)).sum()
        assert (
            len(view.flipped) == n
            and w.view.value.count("<figure") == min(n, 6)
            and (f"{n} verdict" in w.view.value) == (n > 0)
        )
    w.slider.value = 0
    assert view.numbers.passed == view.numbers.missed == 0


def test_an_exact_threshold_does_not_drift(view):
    w = view.controls
    for value in (view.present, 1.23456789012345, 1e6, -1e6, float(view.scores[3])):
        w.field.value = value
        assert view.value == w.field.value == value and 0 <= w.slider.value <= 1000 and f"{value:.4g}" in w.view.value
    w.field.value = float("nan")
    assert view.value == float(view.scores[3])
    with pytest.raises(DraError, match="finite"):
        view.value = float("inf")


def test_buttons(view, tmp_path):
    w, d = view.controls, view.detector

    def alarms():
        return int((view.scores > view.value).sum())

    view.value = float(np.median(view.scores))
    n, levels = alarms(), len(np.unique(view.scores))
    w.buttons["fewer"].click()
    assert alarms() == n - 1
    for _ in range(2):
        w.buttons["more"].click()
    assert alarms() == n + 1
    for _ in range(levels + 3):
        w.buttons["more"].click()
    assert alarms() == 18
    for _ in range(levels + 3):
        w.buttons["fewer"].click()
    assert alarms() == 0
    w.buttons["back"].click()
    assert view.value == d.threshold_.value and not len(view.flipped)
    old, held = d.threshold_.value, d.threshold_.normal
    view.value = chosen = float(np.quantile(view.scores, 0.3))
    assert len(view.flipped) and d.threshold_.value == old
    w.buttons["take"].click()
    assert (
        d.threshold_ == Threshold(chosen, Rule(chosen), held)
        and "the detector&#39;s threshold is" in w.said.value
        and not len(view.flipped)
    )
    np.testing.assert_array_equal(d.predict(GOOD), d.score_samples(GOOD) > chosen)
    d.save(tmp_path / "new.safetensors")
    assert AnomalyDetector.load(tmp_path / "new.safetensors", "cpu").threshold_.value == chosen
    w.field.value = chosen + 1
    assert w.said.value == ""


def test_shown_as_a_widget_but_stored_as_a_page(view, monkeypatch):
    monkeypatch.delenv("IN_TEST", raising=False)
    live = view._repr_mimebundle_(include=None, exclude=None)
    assert "application/vnd.jupyter.widget-view+json" in live and "text/html" in live
    monkeypatch.setenv("IN_TEST", "1")  # nbdev's sign that a notebook is tested or built
    assert set(view._repr_mimebundle_()) == {"text/plain", "text/html"}


def test_without_ipywidgets(detector, labelled, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    assert "dra_nb[notebooks]" in says("ipywidgets", explorer, detector, labelled)
    assert report(detector, labelled)._repr_html_()  # needs no widgets


def test_stored_notebooks_hold_no_widgets():
    for path in (REPO / "nbs/detector/widgets.ipynb", *(REPO / "nbs/tutorials").glob("*.ipynb")):
        nb = json.loads(path.read_text(encoding="utf-8"))
        assert "widgets" not in nb["metadata"] and not [
            o
            for c in nb["cells"]
            for o in c.get("outputs", [])
            if "application/vnd.jupyter.widget-view+json" in o.get("data", {})
        ], path


# ---- the tutorial in JupyterLab


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    "The tutorial in JupyterLab, all cells run"
    missing = [
        name
        for name, there in (
            ("chromium", lab.chromium_path()),
            *((m, lab.installed(m)) for m in ("jupyterlab", "ipywidgets", "websocket")),
        )
        if not there
    ]
    if missing and os.environ.get("DRA_NB_GATE"):
        pytest.fail(f"the gate needs {', '.join(missing)}")
    if missing:
        pytest.skip(f"no {', '.join(missing)}")
    home = tmp_path_factory.mktemp("lab")
    (home / "root").mkdir()
    shutil.copy(REPO / "nbs" / "tutorials" / "your_own_images.ipynb", home / "root")
    with lab.jupyter_lab(home / "root", home, OMP_NUM_THREADS="1", IN_TEST="") as address, lab.browser(home) as page:
        lab.open_notebook(page, address, "your_own_images.ipynb")
        page.before = lab.seen(page)
        lab.run_all(page, 500)
        page.after = lab.seen(page)  # before a test moves the slider
        yield page


def test_the_tutorial_can_be_read_before_it_is_run(page):
    "As a notebook that is not trusted yet: pictures are there, no widget is missing"
    assert (
        page.before["ran"] == 0
        and page.before["figures"] >= 7
        and min(page.before["pictures"]) > 50
        and "model not found" not in page.before["text"]
    )


def test_the_tutorial_runs_in_jupyterlab(page):
    seen = page.after
    assert seen["errors"] == [] and seen["ran"] == seen["code"] > 10
    assert len(seen["pictures"]) > 20 and min(seen["pictures"]) > 50 and seen["figures"] >= 7 and seen["sliders"] == 1
    assert (
        "1 without a score, listed below" in seen["text"]
        and "tested, unseen" in seen["text"]
        and "exit status 3" in seen["text"]
    )


TABLE, FIELD = (
    "document.querySelector('.jp-Notebook .jp-OutputArea table').innerText",
    "document.querySelector('.jp-Notebook .widget-text input').value",
)
# The explorer; the progress bar of the textures is a widget, too.
BOX = "document.querySelector('.jp-Notebook .widget-vbox').innerText"


def settled(page):
    "The number in the field, once it no longer follows the slider"

    def twice():
        value = page.js(FIELD)
        time.sleep(1)
        return value if page.js(FIELD) == value else None

    return lab.wait_for(twice, "end of the slider's messages", 30)


def test_the_slider_works_in_jupyterlab(page):
    before, threshold = page.js(TABLE), page.js(FIELD)
    page.js("document.querySelector('.jp-Notebook .noUi-handle').focus()")
    page.arrow_right(30)
    page.wait(f"{TABLE} !== {json.dumps(before)}", 20)
    assert float(settled(page)) > float(threshold)
    page.js(
        "[...document.querySelectorAll('.jp-Notebook .widget-button')]"
        ".find(o => o.innerText.includes('take over')).click()"
    )
    page.wait(f"{BOX}.includes('save(...) keeps it')", 20)
    page.wait(f"{BOX}.includes('no verdict would change')", 20)
    now, slider = page.js(
        "[...document.querySelectorAll('.jp-Notebook .jp-OutputArea table tr')][1].innerText"
    ).split()[1:]
    assert now == slider == f"{float(page.js(FIELD)):.4g}" and lab.seen(page)["errors"] == []


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_text_can_be_read_in_both_themes(page, theme):
    page.js(f"jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {theme}'}}).then(() => true)")
    page.wait(f"document.body.dataset.jpThemeLight === '{str(theme == 'Light').lower()}'", 20)
    ground = "getComputedStyle(document.querySelector('.jp-Notebook')).backgroundColor"
    texts = ".jp-OutputArea figcaption, .jp-OutputArea table td, .jp-OutputArea summary"
    inks = f"[...new Set([...document.querySelectorAll('{texts}')].map(o => getComputedStyle(o).color))]"
    page.wait(f"/rgb/.test({ground})", 10)

    def light(colour):
        return np.mean([float(v) for v in re.findall(r"[\d.]+", colour)[:3]])

    paper, text = light(page.js(ground)), [light(c) for c in page.js(inks)]
    assert text and all(abs(paper - v) > 130 for v in text), (theme, paper, text)
