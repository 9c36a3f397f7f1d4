"The documentation site: it builds from the committed notebooks, its links resolve, and its pages fit their windows."

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from conftest import REPO

pytestmark = pytest.mark.slow

PAGES = [
    "index",
    "gallery",
    "notebooks/public",
    "paper_map",
    "studies",
    "gallery/table1",
    "api/dra_nb.data.protocols",
    "notebooks/methods/05_dra",
    "notebooks/models/02_losses",
    "notebooks/tutorials/your_own_images",
    "notebooks/paper/table1_general",
]


class Links(HTMLParser):
    "Addresses that a page loads, those that it links to, and the anchors that it has"

    def __init__(self, text):
        super().__init__()
        self.loaded, self.linked, self.anchors, self.equations = [], [], set(), 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[k] for k in ("id", "name") if attrs.get(k)}
        self.equations += tag == "math"
        if tag in ("script", "img", "iframe", "source") and attrs.get("src"):
            self.loaded.append(attrs["src"])
        if tag == "link" and attrs.get("rel") != "canonical" and attrs.get("href"):
            self.loaded.append(attrs["href"])
        if tag == "a" and attrs.get("href"):
            self.linked.append(attrs["href"])


@pytest.fixture(scope="module")
def site():
    "The site as `make docs` builds it"
    pytest.importorskip("sphinx", reason='the site needs the extra docs: pip install "dra_nb[docs]"')
    done = subprocess.run([sys.executable, REPO / "docs" / "build.py"], capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 0, done.stderr[-3000:]
    return REPO / "_docs" / "html"


@pytest.fixture(scope="module")
def pages(site):
    return {f: Links(f.read_text(encoding="utf-8")) for f in site.rglob("*.html") if "_static" not in f.parts}


def test_every_notebook_and_module_has_a_page(pages, site):
    names = {f.relative_to(site).with_suffix("").as_posix() for f in pages}
    for file in (REPO / "nbs").rglob("*.ipynb"):
        name = file.relative_to(REPO / "nbs").with_suffix("").as_posix()
        assert name == "index" or f"notebooks/{name}" in names or ".ipynb_checkpoints" in name, name
    for file in (REPO / "dra_nb").rglob("*.py"):
        module = ".".join(file.relative_to(REPO).with_suffix("").parts)
        assert file.name in ("__init__.py", "_modidx.py") or f"api/{module}" in names, module


def test_nothing_comes_from_elsewhere(pages):
    outside = [(f.name, a) for f, p in pages.items() for a in p.loaded if urlsplit(a).scheme not in ("", "data")]
    assert not outside, outside[:5]


def test_links_resolve(pages, site):
    broken = []
    for file, page in pages.items():
        for address in page.linked:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            anchors = pages[target].anchors if target in pages else None
            if not target.is_file() or (
                parts.fragment and anchors is not None and unquote(parts.fragment) not in anchors
            ):
                broken.append(f"{file.relative_to(site)}: {address}")
    assert not broken, "\n".join(broken[:20])


def test_equations_are_elements(pages, site):
    page = pages[site / "notebooks" / "methods" / "05_dra.html"]
    assert page.equations > 5
    source = json.loads((REPO / "nbs" / "methods" / "05_dra.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "".join("".join(c["source"]) for c in source if c["cell_type"] == "markdown")
    assert page.equations >= text.count("$$") // 2


MEASURE = """<!doctype html><pre id=out>waiting</pre><script>
const pages = %s, widths = [1280, 400], out = {}
async function look(page, width) {
  const frame = document.createElement('iframe')
  frame.style = `width:${width}px;height:900px;border:0`
  frame.src = '/' + page + '.html'
  document.body.append(frame)
  await new Promise(done => frame.onload = done)
  const doc = frame.contentDocument, math = [...doc.querySelectorAll('math')]
  out[page + ' ' + width] = {
    over: doc.documentElement.scrollWidth - width,
    height: doc.documentElement.scrollHeight,
    flat: math.filter(m => m.getClientRects().length && m.getBoundingClientRect().height < 5).length,
    broken: [...doc.images].filter(i => i.complete && !i.naturalWidth && i.loading != 'lazy').length,
  }
  frame.remove()
}
(async () => {
  for (const page of pages) for (const width of widths) await look(page, width)
  document.getElementById('out').textContent = 'measured ' + JSON.stringify(out)
})()
</script>"""


@pytest.fixture(scope="module")
def server(site):
    "The site over HTTP on this machine"

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            if self.path != "/measure":
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write((MEASURE % json.dumps(PAGES)).encode())

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture(scope="module")
def measured(server, tmp_path_factory):
    "What a browser says of the pages at two widths"
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        (pytest.fail if os.environ.get("DRA_NB_GATE") else pytest.skip)(
            "the site is looked at with chromium, which is missing"
        )
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", "--hide-scrollbars"]
    home = tmp_path_factory.mktemp("chromium")
    command = [chromium, *flags, f"--user-data-dir={home}", "--window-size=1400,1000", "--timeout=240000"]
    command += ["--virtual-time-budget=600000", "--dump-dom", f"{server}/measure"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    found = re.search(r"measured (\{.*\})</pre>", done.stdout)
    assert found, done.stdout[:500] + done.stderr[-1000:]
    return json.loads(found[1])


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_fits(measured, page, width):
    seen = measured[f"{page} {width}"]
    assert seen["over"] <= 0, f"{seen['over']} px stick out"
    assert seen["height"] > 300 and not seen["flat"] and not seen["broken"], seen


def test_a_page_that_does_not_fit_is_noticed(site):
    text = (site / "index.html").read_text(encoding="utf-8")
    assert (
        Links(text + '<img src="https://elsewhere.example/x.png"><a href="gone.html">x</a>')
        .loaded[-1]
        .startswith("https")
    )
    assert not (site / "gone.html").exists()


def test_the_build_ends_where_an_equation_cannot_be_typeset(monkeypatch):
    pytest.importorskip("latex2mathml")
    monkeypatch.syspath_prepend(Path(REPO) / "docs")
    import mathml

    said = []
    monkeypatch.setattr(mathml.logger, "warning", lambda *a: said.append(a))
    assert "<math" in mathml.to_mathml(r"\arg\min_x f(x)", "block") and not said
    mathml.to_mathml(r"\nosuchcommand{x}", "inline")
    assert said
