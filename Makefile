# Two commands for everybody:   make reproduce   and   make test   (and for CI, with everything that is slow:   make test-all)
# Both do their own set-up in $(VENV); nothing else on the machine is touched.
PYTHON    ?= python3
VENV      ?= .venv
PROFILE   ?= smoke
ARTEFACTS ?= table1 table2
DATA      ?=
WEIGHTS   ?=
OUT       ?= outputs
BIN       := $(VENV)/bin
# modules are compiled when they are first imported, since most of the 19,000 that are installed never are; and they stay so, even
# where the shell forbids it: uncompiled, what a detector imports takes 8 s of processor time instead of 3 in every process that starts
unexport PYTHONDONTWRITEBYTECODE
PIP       := $(BIN)/python -m pip install --progress-bar on --no-compile -c constraints.txt
# files go to the two processes as they come, the long ones first (tests/conftest.py)
TESTS     := pytest -n 2 --dist loadfile --no-loadscope-reorder
PYTEST    := $(BIN)/python -m $(TESTS)

.PHONY: reproduce test test-all check notebooks readme house coverage docs wheel

reproduce: $(VENV)/.notebooks
	$(BIN)/dra_nb reproduce $(ARTEFACTS) --profile $(PROFILE) --out $(OUT) $(if $(DATA),--data "$(DATA)") $(if $(WEIGHTS),--weights "$(WEIGHTS)")

test: $(VENV)/.dev check
	OMP_NUM_THREADS=1 $(BIN)/python .ci/notebooks.py --fast
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.dev check notebooks
	$(MAKE) reproduce ARTEFACTS=all PROFILE=smoke OUT=outputs DATA= WEIGHTS=
	$(PYTEST) --durations=10

# generated files are what the notebooks say, notebooks are clean, README is what nbs/index.ipynb says, no complaints of the linters
check: $(VENV)/.dev
	rm -rf .check && mkdir .check && cp -r nbs dra_nb README.md .check
	$(BIN)/nbdev_clean && $(BIN)/nbdev_export && $(MAKE) readme
	diff -r -x __pycache__ -x .ipynb_checkpoints .check/nbs nbs && diff -r -x __pycache__ .check/dra_nb dra_nb && diff .check/README.md README.md
	rm -rf .check
	$(BIN)/ruff format --check . && $(BIN)/ruff check .
	$(BIN)/mypy

notebooks: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python .ci/notebooks.py

readme: $(VENV)/.dev
	$(BIN)/python .ci/readme.py

# the limits of tests/test_house.py as a table
house: $(VENV)/.dev
	$(BIN)/python tests/test_house.py

# branch coverage of dra_nb/ by notebooks, artefacts and tests together: twice the time of test-all, and a report
coverage: export COVERAGE_FILE = $(CURDIR)/.coverage/data
coverage: COVERED = OMP_NUM_THREADS=1 $(BIN)/coverage run --rcfile=$(CURDIR)/.ci/coverage.ini
coverage: $(VENV)/.dev
	$(PIP) coverage
	rm -rf .coverage && mkdir .coverage
	$(COVERED) .ci/covered_notebooks.py
	$(COVERED) $(BIN)/dra_nb reproduce all --profile smoke --out outputs
	$(COVERED) -m $(TESTS)
	$(BIN)/coverage combine --rcfile=.ci/coverage.ini --quiet
	$(BIN)/coverage report --rcfile=.ci/coverage.ini --skip-covered --sort=cover

# the documentation site, in _docs/html
docs: $(VENV)/.dev
	$(BIN)/python docs/build.py

wheel: $(VENV)/.dev
	$(BIN)/python -m build --wheel

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.notebooks: $(VENV)/bin/python settings.ini setup.py constraints.txt
	$(PIP) -e ".[notebooks,lite]"
	touch $@

$(VENV)/.dev: $(VENV)/bin/python settings.ini setup.py constraints.txt
	$(PIP) -e ".[notebooks,lite,dev,docs,cluster,stats,export,backbones]"
	touch $(VENV)/.notebooks $@
