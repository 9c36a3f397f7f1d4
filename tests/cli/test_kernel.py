"The notebooks are executed by the Python that runs the command, whatever kernels are registered."

import json
import sys

import notebook_files
import pytest

from dra_nb.cli import main as cli
from dra_nb.cli import paper_notebooks, study_commands
from dra_nb.core import DraError

pytestmark = pytest.mark.slow

OTHERS = {  # contents of a foreign kernel.json
    "another Python": json.dumps(dict(argv=["false", "{connection_file}"], display_name="x", language="python")),
    "another language": json.dumps(dict(argv=["true"], display_name="R", language="R")),
    "broken": "{",
}


def register(folder, text, name="python3"):
    (folder / "kernels" / name).mkdir(parents=True)
    (folder / "kernels" / name / "kernel.json").write_text(text)


def which_python(folder, monkeypatch, kernel="python3"):
    "What the kernel of an executed notebook says it is"
    cells = "a = 0", "import sys, dra_nb; print(a, sys.executable)"
    given = notebook_files.write(notebook_files.notebook(*cells, name=kernel), folder / "given.ipynb")
    monkeypatch.setattr(paper_notebooks, "notebook_path", lambda name: given)
    paper_notebooks.run_notebook("any", folder / "done.ipynb", a=1)
    return notebook_files.read(folder / "done.ipynb").cells[-1].outputs[0].text.strip()


@pytest.mark.parametrize("what", OTHERS)
def test_a_foreign_kernel_comes_first(tmp_path, monkeypatch, what):
    register(tmp_path, OTHERS[what])
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    paper_notebooks.check_kernel()
    assert which_python(tmp_path, monkeypatch) == f"1 {sys.executable}"


def test_kernels_of_the_user_and_a_name_that_nobody_knows(tmp_path, monkeypatch):
    register(tmp_path, OTHERS["another Python"])
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    assert which_python(tmp_path, monkeypatch, kernel="of-a-colleague") == f"1 {sys.executable}"


@pytest.mark.parametrize(
    "module, text",
    [("ipykernel_launcher", "raise SystemExit('no kernel')"), ("dra_nb", "raise ImportError('of another place')")],
)
def test_a_kernel_that_does_not_work_is_refused_before_the_runs(tmp_path, monkeypatch, capsys, module, text):
    (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(study_commands, "run_studies", lambda *args, **how: pytest.fail("it ran"))
    asked = ["reproduce", "table1", "--method", "devnet", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["dra_nb", *asked])
    with pytest.raises(SystemExit) as end:
        cli.main()
    err = capsys.readouterr().err
    assert end.value.code == 2 and f"error: the kernel of {sys.executable}" in err and "Traceback" not in err
    assert ("of another place" in err) == (module == "dra_nb") and not (tmp_path / "out").exists()
    with pytest.raises(DraError, match="-m pip install"):
        paper_notebooks.check_kernel()
