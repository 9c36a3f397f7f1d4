"From the command to tables, figures and executed notebooks, and what the notebooks refuse."

import json
import shutil
import sys
from pathlib import Path

import notebook_files
import pandas as pd
import pytest
from conftest import REPO, dra_nb, mvtec_folder, records, succeeded
from in_process import call

from dra_nb.cli import main as cli
from dra_nb.cli import paper_notebooks, study_commands
from dra_nb.core import DraError
from dra_nb.experiments.artefacts import ARTEFACTS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    "Table 1 on a folder of our own: two runs at profile smoke"
    tmp = tmp_path_factory.mktemp("reproduce")
    mvtec_folder(tmp / "data" / "mine")
    return tmp, (
        "reproduce",
        "table1",
        "--profile",
        "smoke",
        "--data",
        tmp / "data",
        "--dataset",
        "mine",
        "--method",
        "devnet",
        "--out",
        tmp / "out",
    )


@pytest.fixture(scope="module")
def first(study):
    "Its output, after the first call"
    tmp, args = study
    return succeeded(dra_nb(*args, cwd=tmp, timeout=600)).stdout


def test_files(study, first):
    out = study[0] / "out" / "smoke"
    assert "table1: 2 runs at profile smoke" in first
    for name in (
        "table1.csv",
        "table1.md",
        "table1.tex",
        "table1.png",
        "table1.pdf",
        "table1.txt",
        "table1_general.ipynb",
    ):
        assert (out / name).stat().st_size > 100, name
    for name in ("table1.md", "table1.png", "table1_general.ipynb"):
        assert str(out / name) in first
    assert (out / "table1.png").read_bytes()[:4] == b"\x89PNG" and (out / "table1.pdf").read_bytes()[:4] == b"%PDF"
    assert (
        "Profile smoke: 128 px" in (out / "table1.md").read_text()
        and "published" not in (out / "table1.md").read_text()
    )  # nothing is published for our own data


def test_table_holds_the_records(study, first):
    out = study[0] / "out" / "smoke"
    table = pd.read_csv(out / "table1.csv", keep_default_na=False, na_values=[""]).set_index("shots").sort_index()
    assert list(table.index) == [1, 10] and set(table.dataset) == {"mine"} and set(table.method) == {"devnet"}
    assert list(table.missing) == [0, 0] and table.published.isna().all()
    read = {r["spec"]["shots"]: r["metrics"] for r in (json.loads(c) for c, _ in records(out / "runs").values())}
    assert set(read) == {1, 10}
    for shots, metrics in read.items():
        assert table.auroc[shots] == pytest.approx(metrics["auroc"], abs=1e-12)
        assert (
            f"{metrics['auroc']:.3f}" in (out / "table1.md").read_text()
            and f"{metrics['auroc']:.3f}" in (out / "table1.tex").read_text()
        )
    scores = {len(pd.read_parquet(p)) for p in (out / "runs").glob("*.parquet")}
    assert scores == {4 + 24 - 10}  # one test set for both numbers of shots


def test_notebook_is_executed_with_the_parameters(study, first):
    nb = notebook_files.read(study[0] / "out" / "smoke" / "table1_general.ipynb")
    injected = [c.source for c in nb.cells if "injected-parameters" in c.metadata.get("tags", [])]
    assert (
        len(injected) == 1
        and "['mine']" in injected[0].replace('"', "'")
        and "['devnet']" in injected[0].replace('"', "'")
    )
    code = [c for c in nb.cells if c.cell_type == "code"]
    assert all(c.execution_count for c in code) and not [o for c in code for o in c.outputs if o.output_type == "error"]
    assert any("image/png" in o.get("data", {}) for c in code for o in c.outputs)


def test_again_runs_nothing_and_a_deleted_record_runs_once(study, first, monkeypatch):
    tmp, args = study
    runs = tmp / "out" / "smoke" / "runs"
    before, table = records(runs), (tmp / "out" / "smoke" / "table1.csv").read_bytes()
    with monkeypatch.context() as patch:  # the notebook is executed again below
        patch.setattr(study_commands, "run_notebooks", lambda *args: None)
        assert call(*args)[0] == 0
    assert records(runs) == before and len(before) == 2
    gone, kept = sorted(before)
    scores = pd.read_parquet(runs / gone.replace("json", "parquet"))
    (runs / gone).unlink()
    succeeded(dra_nb(*args, cwd=tmp))
    after = records(runs)
    assert list(after) == [gone, kept] and after[kept] == before[kept] and after[gone][1] > before[gone][1]
    old, new = (json.loads(o[gone][0]) for o in (before, after))
    assert new["metrics"] == old["metrics"] and new["scores_sha256"] == old["scores_sha256"]
    pd.testing.assert_frame_equal(pd.read_parquet(runs / gone.replace("json", "parquet")), scores, check_exact=True)
    assert (tmp / "out" / "smoke" / "table1.csv").read_bytes() == table


@pytest.mark.parametrize("method", ["devnet"])
def test_table2_with_one_method(tmp_path, method):
    "The hard setting, every number of shots and only one method: the notebook copes with what is not there"
    from dra_nb.experiments.grids import plan
    from dra_nb.experiments.provenance import provenance
    from dra_nb.experiments.record_writing import write_run

    mvtec_folder(tmp_path / "data" / "mine")
    given = dict(datasets=["mine"], methods=[method], shots=[10])
    s = plan("table2", "smoke", str(tmp_path / "data"), out=str(tmp_path / "out"), **given)
    assert [x.known_class for x in s.specs] == ["dent", "scratch"]
    for i, x in enumerate(s.specs):  # records as a run writes them: this test is about the notebook
        metrics = dict(
            auroc=0.6 + i / 10, ap=0.5, auroc_seen=None, auroc_unseen=0.6 + i / 10, n_normal=4, n_seen=0, n_unseen=12
        )
        scores = pd.DataFrame(
            dict(path=["a", "b"], label=[0, 1], defect=["", "dent"], seen=[False, False], score=[0.0, 1.0])
        )
        origin = provenance("cpu", "fp32")
        write_run(s.runs, x, scores, metrics=metrics, timing=dict(seconds=1.0), provenance=origin)
    target = tmp_path / "out" / "table2.ipynb"
    paper_notebooks.run_notebook(
        ARTEFACTS["table2"].notebook,
        target,
        profile="smoke",
        data=str(tmp_path / "data"),
        out=str(tmp_path / "out"),
        **given,
    )
    table = pd.read_csv(tmp_path / "out" / "smoke" / "table2.csv")
    assert list(table.known_class) == ["dent", "scratch", "mean"] and list(table.auroc.round(6)) == [0.6, 0.7, 0.65]


def brainmri_folder(root):
    "A small folder in the layout of BrainMRI"
    made = mvtec_folder(root.parent / "made", n_train=16, n_test=1, classes={"tumor": 14})
    (made / "train" / "good").rename(made / "no"), (made / "test" / "tumor").rename(made / "yes")
    made.rename(root)


def test_a_dataset_that_is_not_there(tmp_path):
    from dra_nb.experiments.grids import plan
    from dra_nb.experiments.published import published
    from dra_nb.reporting.cells import compare_runs
    from dra_nb.reporting.results_table import write_table

    (tmp_path / "data").mkdir()
    brainmri_folder(tmp_path / "data" / "brainmri")
    s = plan("table1", "cpu-finetune", str(tmp_path / "data"), weights="none", out=str(tmp_path / "out"))
    assert {x.dataset for x in s.specs} == {"brainmri"} and {x.dataset for x in s.absent} == {"elpv"}
    assert (
        len(s.gaps) == 1
        and s.gaps[0].startswith("ELPV is missing: there is no folder 'elpv'")
        and "the data folder" in s.gaps[0]
        and str(tmp_path) not in s.gaps[0]
    )
    files = write_table(
        compare_runs(s.results(), s.expected(), published("table1")), tmp_path, "table1", s.artefact.caption, s.notes()
    )
    text = files["md"].read_text()
    assert "Not comparable with the published values" in text and "LAG" in text
    assert "ELPV is missing" in text and "| ELPV" in text and "| BrainMRI" in text
    with pytest.raises(DraError, match="no folder 'elpv'"):
        plan(
            "table1",
            "cpu-finetune",
            str(tmp_path / "data"),
            weights="none",
            out=str(tmp_path / "out"),
            datasets=["elpv"],
        )
    (tmp_path / "empty").mkdir()
    with pytest.raises(DraError, match="(?s)nothing to run.*ELPV.*BrainMRI"):
        plan("table1", "cpu-finetune", str(tmp_path / "empty"), weights="none")


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    "Put a notebook of these cells in the place of every paper notebook; the first cell holds the parameters"
    monkeypatch.chdir(tmp_path)

    def put(*cells, tags=("parameters",)):
        given = notebook_files.write(notebook_files.notebook(*cells, tags=tags), tmp_path / "given.ipynb")
        monkeypatch.setattr(paper_notebooks, "notebook_path", lambda name: given)
        return tmp_path / "out" / "done.ipynb"

    return put


def test_failing_notebook_is_kept_and_marked(study, first, notebook, tmp_path, monkeypatch, capsys):
    tmp, args = study
    out = shutil.copytree(tmp / "out", tmp_path / "copy")
    texts = ["profile", "data", "weights", "out", "medical", "device", "precision"]
    lists = ["datasets", "methods", "shots", "seeds"]
    defaults = "\n".join([*(f"{name} = ''" for name in texts), *(f"{name} = []" for name in lists), "recorded = False"])
    notebook(defaults, "one = 1", "one/0", "two = 2")
    target = out / "smoke" / "table1_general.ipynb"
    monkeypatch.setattr(sys, "argv", ["dra_nb", *map(str, args[:-1]), str(out)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    err = capsys.readouterr().err
    assert end.value.code == 2 and "ZeroDivisionError" in err and str(target) in err and "Traceback" not in err
    nb = notebook_files.read(target)
    marks = [c for c in nb.cells if "papermill-error-cell-tag" in c.metadata.get("tags", [])]
    assert marks and any("raceback" in str(o) for c in nb.cells if c.source == "one/0" for o in c.outputs)
    assert [c.execution_count for c in nb.cells if c.source == "two = 2"] == [None]


def test_parameter_values_arrive_as_themselves(notebook):
    values = dict(
        text='it\'s a "quoted" \\ back\\nslash,\na new line, {braces}, $x and ünïcode',
        words=["a'b", 'c"d', ""],
        number=-3,
        share=0.25,
        flag=False,
    )
    target = notebook(
        "text = ''\nwords = []\nnumber = 1\nshare = 1.0\nflag = True",
        "import json\nfrom pathlib import Path\n"
        "Path('got.json').write_text(json.dumps(dict(text=text, words=words, number=number, share=share, flag=flag)))",
    )
    paper_notebooks.run_notebook("any", target, **values)
    assert json.loads(Path("got.json").read_text()) == values


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(profil="smoke"), "'profil'.*mean 'profile'"),
        (dict(profile=3), "must be a str"),
        (dict(shots="1"), "must be a list"),
        (dict(shots=(1,)), "must be a list"),
    ],
)
def test_wrong_parameters_are_refused(tmp_path, values, message):
    with pytest.raises(DraError, match=message):
        paper_notebooks.run_notebook("table1_general", tmp_path / "never.ipynb", **values)
    assert not list(tmp_path.iterdir())


def test_a_notebook_without_parameters_is_refused(notebook):
    target = notebook("profile = ''", tags=())
    with pytest.raises(DraError, match="no cell tagged 'parameters'"):
        paper_notebooks.run_notebook("any", target, profile="smoke")
    assert not target.exists()


@pytest.mark.parametrize("artefact", ARTEFACTS)
def test_the_command_passes_what_the_notebook_takes(artefact):
    "Every option of `reproduce` that a notebook needs is one of its parameters"
    values = dict(
        profile="cpu",
        data="",
        weights="",
        out="o",
        medical="lag",
        recorded=True,
        device="cpu",
        precision="fp32",
        datasets=["a"],
        methods=["b"],
        shots=[1],
        seeds=[0],
    )
    paper_notebooks.check_parameters(paper_notebooks.notebook_path(ARTEFACTS[artefact].notebook), values)


PAPER = sorted((REPO / "nbs" / "paper").glob("*.ipynb"))


def test_every_artefact_has_its_notebook():
    assert {a.notebook for a in ARTEFACTS.values()} <= {p.stem for p in PAPER}


@pytest.mark.parametrize("path", PAPER, ids=lambda p: p.stem)
def test_one_parameters_cell_after_cleaning(path):
    from configparser import ConfigParser

    from execnb.nbio import read_nb
    from nbdev.clean import clean_nb

    config = ConfigParser(delimiters=["="])
    config.read(REPO / "settings.ini", encoding="utf-8")
    nb = read_nb(path)
    clean_nb(nb, allowed_cell_metadata_keys=config["DEFAULT"]["allowed_cell_metadata_keys"].split(), clean_ids=True)
    assert sum("parameters" in c.metadata.get("tags", []) for c in nb.cells) == 1
    clean_nb(nb)  # what the setting in settings.ini prevents
    assert sum("parameters" in c.metadata.get("tags", []) for c in nb.cells) == 0
