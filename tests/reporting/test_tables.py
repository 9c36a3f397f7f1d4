"Tables as files: every kind compiles with pdflatex, and names and captions stay text in LaTeX, Markdown and HTML."

import os
import re
import shutil
import string
import subprocess
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from conftest import in_tiers

from dra_nb.experiments.published import published
from dra_nb.reporting.cells import compare_runs
from dra_nb.reporting.names import KEYS
from dra_nb.reporting.results_table import write_table
from dra_nb.reporting.verdicts import verdict_counts

NASTY = (
    string.punctuation
    + " 100% of $x_i^2$ & {a} \\input{x} [b] ~ C:\\new é ü ñ ø ß Å ± × − – … “q” ’ µ χ² → ≥ 缺 🙂 ▲ ▼ ﬁ"
    + "\n\nsecond\tparagraph\x07"
)


def runs(rows, seeds=3, seen=False, spread=0.01):
    "Runs around the values of `rows` (`KEYS`, auroc)"
    t = pd.concat(
        [rows[[*KEYS, "auroc"]].assign(seed=s, auroc=rows.auroc + spread * (s - 1)) for s in range(seeds)],
        ignore_index=True,
    )
    part = (
        dict(auroc_seen=t.auroc + 0.02, auroc_unseen=t.auroc - 0.05)
        if seen
        else dict(auroc_seen=np.nan, auroc_unseen=t.auroc)
    )
    return t.assign(ap=t.auroc, comparable=True, **part)


def cells_of(table, seen=False, **only):
    "Our cells at the printed values of one table, a little above for every third"
    p = published(table).query("category != 'mean' and known_class != 'mean'").reset_index(drop=True)
    for column, values in only.items():
        p = p[p[column].isin(values)]
    p = p.assign(auroc=(p.auroc + np.resize([0, 0, 0.1], len(p))).clip(upper=1), shots=p.shots)
    return runs(p, seen=seen)


def hard():
    "Known classes with their mean; a run failed, another is missing, another printed text is odd"
    t = cells_of("table2", dataset=["elpv", "aitex"])
    gone = t.index[[4, 9]]
    failed = t.loc[gone[:1]].assign(error="DraError: " + "a_b & <c> 50% | `d` " + "x" * 80)
    return compare_runs(t.drop(gone), t, published("table2"), failed), {}


def general(**kind):
    return compare_runs(
        t := cells_of("table1", seen=True, dataset=["elpv", "mvtec"]),
        t,
        published("table1"),
        within=t[KEYS].drop_duplicates().assign(within=0.03),
    ), kind


def own():
    "Data and methods of a user, under odd names, of which nothing is published"
    rows = pd.DataFrame(
        [
            dict(zip(KEYS, (f"my_data & co #{i} [x] <b>|ü", "", k, m, 5)), auroc=0.8)
            for i in (1, 2)
            for k in ("[a]", "50%_^~\\")
            for m in ("mine_v2%$", "dra")
        ]
    )
    return compare_runs(t := runs(rows), t, published("table1")), {}


KINDS = {
    "hard": hard,
    "hard by method": lambda: (hard()[0], dict(by_method=True)),
    "general": general,
    "general in parts": lambda: general(parts=True),
    "general by method in parts": lambda: (
        general()[0].query("category in ('', 'mean')"),
        dict(by_method=True, parts=True),
    ),
    "own": own,
    "own by method": lambda: (own()[0], dict(by_method=True)),
    "single runs": lambda: (
        compare_runs(t := cells_of("table1", dataset=["elpv"]).query("seed == 0"), t, published("table1")),
        {},
    ),
    "nothing finished": lambda: (
        compare_runs((t := cells_of("table1", dataset=["elpv"])).iloc[:0], t, published("table1")),
        {},
    ),
    "cross domain": lambda: (compare_runs(t := cells_of("c3"), t, published("c3")), {}),
    "two settings by method": lambda: (
        compare_runs(
            t := pd.concat(
                [cells_of(n, dataset=["elpv", "brainmri"]).query("shots != 1") for n in ("table1", "table2")],
                ignore_index=True,
            ),
            t,
            pd.concat([published("table1"), published("table2")]),
        ),
        dict(by_method=True),
    ),
    "all of Table 2": lambda: (compare_runs(t := cells_of("table2"), t, published("table2")), {}),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "Every kind of table as files, and its cells"

    def write(i, kind):
        cells, how = KINDS[kind]()
        return cells, write_table(
            cells, tmp_path_factory.mktemp("tables"), f"table_{i}%#", NASTY, ["A note with 50 % & _"], **how
        )

    return {kind: write(i, kind) for i, kind in enumerate(KINDS)}


@pytest.mark.parametrize("kind", in_tiers(KINDS, ["hard"]))
def test_latex_compiles(files, kind, tmp_path):
    if not shutil.which("pdflatex"):
        if os.environ.get("DRA_NB_GATE"):
            pytest.fail("pdflatex is missing: install texlive-latex-base and texlive-latex-recommended")
        pytest.skip("pdflatex is missing")
    table = files[kind][1]["tex"].read_text(encoding="utf-8")
    packages = re.search(r"needs (\\usepackage\{.*\})", table)[1]
    (tmp_path / "paper.tex").write_text(
        "\n".join([r"\documentclass{article}", packages, r"\begin{document}", table, r"\end{document}"]),
        encoding="utf-8",
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "paper.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
    )
    log = (tmp_path / "paper.log").read_text(errors="replace")
    assert done.returncode == 0, "\n".join(re.findall(r"(?m)^!.*(?:\n.*){0,4}", log))
    assert (tmp_path / "paper.pdf").read_bytes()[:4] == b"%PDF" and "Missing character" not in log
    wide = [float(w) for w in re.findall(r"Overfull \\hbox \((\d+\.?\d*)pt too wide\)", log)]
    assert max(wide, default=0) < 20, f"the table is {max(wide):.0f} pt wider than the page"
    assert "Float too large" not in log, re.findall(r"Float too large.*", log)


class Tags(HTMLParser):
    "The tags of a page, its attributes and its text; fails where tags are not closed in order"

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("kind", KINDS)
def test_html_is_text_and_loads_nothing(files, kind):
    cells, paths = files[kind]
    page = Tags(paths["html"].read_text(encoding="ascii"))
    assert set(page.tags) <= {
        "style",
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "br",
        "small",
        "strong",
        "u",
        "span",
    }
    assert {k for k, _ in page.attributes} <= {"class", "scope", "rowspan", "colspan", "title"}
    assert NASTY.split("\n")[0] in page.text and page.text.count("▲") == NASTY.count("▲") + (
        cells.verdict == "better"
    ).sum() + ("better" in set(cells.verdict))


@pytest.mark.parametrize("kind", KINDS)
def test_markdown_has_its_columns(files, kind):
    table = [line for line in files[kind][1]["md"].read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert len(table) > 2 and len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1


def test_a_failed_run_is_a_named_gap(files):
    cells, paths = files["hard"]
    assert cells.missing.sum() > 0 and cells[cells.failed == 1].error.str.startswith("a_b & <c> 50%").all()
    for kind, text in (
        ("md", "a_b &amp; &lt;c> 50%"),
        ("tex", r"a\_b \& \textless{}c\textgreater{} 50\%"),
        ("html", "a_b &amp; &lt;c&gt; 50%"),
    ):
        page = paths[kind].read_text(encoding="utf-8")
        assert "missing (1 of 3 runs)" in page and f"1 failed: {text}" in page
    assert "of which 1 failed" in paths["md"].read_text(encoding="utf-8")


def test_the_caption_counts_the_verdicts(files):
    for kind, (cells, paths) in files.items():
        counts, text = verdict_counts(cells), paths["md"].read_text(encoding="utf-8")
        assert counts.sum().sum() == cells.published.notna().sum()
        for verdict, n in counts.cells.items():
            assert f"{n} {verdict}" in text.split("Verdicts on")[-1] or not n, (kind, verdict)
