"The page on what reproduces: a built-in confounder is found, regimes stand side by side, gaps are named."

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_up_records import table, write

from dra_nb.experiments.published import published
from dra_nb.experiments.records import Runs
from dra_nb.experiments.spec import RunSpec
from dra_nb.reporting.claims import check_claims
from dra_nb.reporting.effects import effects, plot_effects
from dra_nb.reporting.names import KEYS
from dra_nb.reporting.regimes import regime_table, sibling_profiles
from dra_nb.reporting.reproducibility import PageFacts, page_parts, verdict_sentences, write_page_parts
from dra_nb.reporting.spread import spread_table
from dra_nb.reporting.type_ranking import confounder_sentences, type_rankings


def typed(seed, bias):
    "Made-up scores of images of two types; `bias`: how much higher images of type mono score"
    scores = table(seed, n=60)
    scores["group"] = np.where(np.random.default_rng(seed).random(len(scores)) < 0.5, "mono", "poly")
    return scores.assign(score=(scores.score + bias * (scores.group == "mono")).astype("float32"))


def hard_runs(folder, **biases):
    runs = Runs(folder / "runs")
    specs = [RunSpec("elpv", protocol="hard", known_class="mono", method=m, seed=s) for m in biases for s in range(3)]
    for spec in specs:
        write(runs, spec, typed(spec.seed, biases[spec.method]))
    return runs, specs


def test_a_built_in_confounder_is_found_and_nothing_where_there_is_none(tmp_path):
    found = type_rankings(*hard_runs(tmp_path, dra=3.0, devnet=0.0)).set_index("method")
    assert found.low["dra"] > 0.9 and found.seeds["dra"] == 3
    assert found.low["devnet"] < 0.5 < found.high["devnet"]
    assert found.within["dra"] > found.auroc["dra"] + 0.05  # the anomalies are told apart within a type
    assert abs(found.within["devnet"] - found.auroc["devnet"]) < 0.05
    [sentence] = confounder_sentences(found.reset_index())
    assert "with DRA (" in sentence and "DevNet" not in sentence
    assert len(type_rankings(*plain_runs(tmp_path / "plain"))) == 0


def plain_runs(folder):
    "Records without types of images"
    runs = Runs(folder / "runs")
    return runs, [write(runs, RunSpec("elpv", protocol="hard", known_class="mono"))]


def test_regimes_stand_side_by_side(tmp_path):
    for profile, shift in (("cpu", 3.0), ("cpu-finetune", 0.0)):
        runs = Runs(tmp_path / profile / "runs")
        for seed in range(2):
            spec = RunSpec("elpv", seed=seed, settings={"frozen": True} if profile == "cpu" else {})
            write(runs, spec, table(seed, shift=shift))
            write(runs, replace(spec, settings={"loss": "bce"}))  # another variant, which is left out
    shown = regime_table(sibling_profiles(tmp_path / "cpu"))
    assert list(shown.columns) == [("general", c) for c in ("published", "cpu-finetune", "cpu")]
    printed, old, new = shown.loc["DRA"]
    assert printed == "0.845" and float(new.split(" ± ")[0]) > 0.95 > 0.6 > float(old.split(" ± ")[0])
    alone = regime_table(sibling_profiles(tmp_path / "cpu-finetune")[-1:])
    assert list(alone.columns) == [("general", "published"), ("general", "cpu-finetune")]


@pytest.fixture(scope="module")
def single():
    "Made-up runs: DRA far ahead of DevNet on ELPV, five seeds"
    cells = [("elpv", "", "", m, 10, s) for m in ("dra", "devnet") for s in range(5)]
    t = pd.DataFrame(cells, columns=[*KEYS, "seed"])
    t["auroc"] = t.method.map(dict(dra=0.9, devnet=0.7)) + np.random.default_rng(0).normal(0, 0.01, len(t))
    return t.assign(ap=t.auroc, auroc_seen=t.auroc + 0.02, auroc_unseen=np.nan)


def test_leads_have_intervals_and_published_neighbours(single, tmp_path):
    t = effects(single, published("table1"))
    assert list(t.part) == ["general, all", "general, seen classes"] and (t.low > 15).all() and (t.high < 25).all()
    assert t.published.tolist()[0] == pytest.approx(100 * (0.845 - 0.846)) and np.isnan(t.published.iloc[1])
    [file] = plot_effects(t, tmp_path, "lead").values()
    assert file.read_bytes().startswith(b"\x89PNG") and (tmp_path / "lead_elpv_figure.csv").is_file()


def test_the_page_names_its_gaps(single, tmp_path):
    ours = single.groupby(KEYS).auroc.agg(["mean", "std"]).reset_index().rename(columns=dict(mean="auroc"))
    ours = ours.assign(published=[0.846, 0.845], published_std=0.01, missing=0)
    claims = check_claims({"table1": ours}, runs={"table1": single})
    leads = effects(single, published("table1"))
    none = pd.DataFrame(columns=["known_class", "shots"])
    gap = "AITEX is missing: there is no folder 'aitex' in the data folder."
    facts = PageFacts(
        claims, leads, {"elpv": "reproduces_elpv.png"}, none, pd.DataFrame(), [gap], spread_table(pd.DataFrame())
    )
    files = write_page_parts(page_parts(facts), tmp_path, "reproduces")
    text = {kind: file.read_text(encoding="utf-8") for kind, file in files.items()}
    assert gap in text["md"] and "AITEX is missing" in text["html"]
    assert "No record of the hard setting names a type" in text["md"]
    assert "no data: nothing of table2 was run" in text["md"] and 'src="reproduces_elpv.png"' in text["html"]
    counts = claims.verdict.value_counts()
    assert f"and of {counts['cannot be told']} it cannot be told" in verdict_sentences(claims)[0]
    assert "Regimes side by side" not in text["md"]


def test_without_records_the_page_says_so(tmp_path):
    empty = effects(pd.DataFrame(columns=[*KEYS, "seed", "auroc", "auroc_seen", "auroc_unseen"]), published("table1"))
    none = pd.DataFrame(columns=["known_class", "shots"])
    parts = page_parts(PageFacts(check_claims({}), empty, {}, none, regime_table([]), [], spread_table(pd.DataFrame())))
    text = write_page_parts(parts, tmp_path, "reproduces")["md"].read_text(encoding="utf-8")
    assert "Of 77 sentences 0 hold, 0 do not hold, and of 77 it cannot be told. For 77 of the last" in text


def test_the_page_shows_confounders_and_regimes_where_there_are_any(single, tmp_path):
    rankings = type_rankings(*hard_runs(tmp_path, dra=3.0))
    regimes = pd.DataFrame({("general", "published"): ["0.845"]}, index=["DRA"])
    leads = effects(single, published("table1"))
    facts = PageFacts(check_claims({}), leads, {}, rankings, regimes, [], spread_table(pd.DataFrame()))
    text = write_page_parts(page_parts(facts), tmp_path, "reproduces")["md"].read_text(encoding="utf-8")
    assert "with DRA (" in text and "Type ranking: AUROC of the test normals of the given type" in text
    assert "Regimes side by side" in text and "| 0.845 |" in text
