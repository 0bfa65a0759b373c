# Two commands matter: `make tutorial` and `make test`. GNU make, on Linux and macOS.

VENV ?= .venv
PYTHON ?=
PY := $(VENV)/bin/python
# Written last, so that an interrupted installation is done again; named after this folder, so that
# one that was moved is, too.
STAMP := $(VENV)/.installed-$(shell echo "$(CURDIR)" | cksum | cut -d ' ' -f 1)
# the site's tools want other versions than the notebooks': an environment of their own
SITE_VENV ?= .venv-site
SITE_STAMP := $(SITE_VENV)/$(notdir $(STAMP))
# so does Snakemake
SWEEP_VENV ?= .venv-sweep
SWEEP_STAMP := $(SWEEP_VENV)/$(notdir $(STAMP))
OFFLINE := HF_HUB_OFFLINE=1
# the models are so small that a second thread costs more than it brings
PYTEST := $(OFFLINE) OMP_NUM_THREADS=1 $(PY) -m pytest
ROOT_MAY := $(if $(filter 0,$(shell id -u)),--allow-root)

.DEFAULT_GOAL := help
.PHONY: help env tutorial test test-quick test-long test-colab test-company test-browser lab \
  notebooks bench experiments sweep site lint format clean clean-all

help:
	@echo "make tutorial     every notebook, run on the embedded suite, no network needed"
	@echo "make test         the tests;  make test-quick: an answer in two minutes"
	@echo "make lab          open the notebooks in JupyterLab"
	@echo
	@echo "make env          only the environment ($(VENV)); the others make it where it is missing"
	@echo "make test-long    the tests that take minutes;  make test-colab: with Colab's versions"
	@echo "make test-company the tests of other libraries' files, with SAELens itself"
	@echo "make test-browser the tests that need Chromium: notebooks, widgets, feature pages, the site"
	@echo "make notebooks    notebooks/*.ipynb from notebooks/src/*.py, executed"
	@echo "make bench        the benchmarks;  make experiments: can the numbers be trusted?"
	@echo "make sweep        one notebook with many settings, here or on a cluster: workflow/README.md"
	@echo "make site         the pages of the project, to read and search offline: build/site/index.html"
	@echo "make lint         look at the style;  make format: mend it"
	@echo "make clean        remove caches;  make clean-all: also runs/ and $(VENV)"

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@tools/install.sh "$(VENV)" "$(PYTHON)"
	@touch "$(STAMP)"

tutorial: env
	@$(OFFLINE) $(PY) tools/run_notebooks.py

test: env
	@$(PYTEST) -n 2 --dist worksteal

test-quick: env
	@$(PYTEST) -n 2 --dist worksteal -m "not long and not slow"

# how many faults were tried and survived goes into docs/reliability.md by tools/fault_table.py
test-long: env
	@CTT_FAULTS="$(CURDIR)/build/faults" $(PYTEST) -n 2 --dist worksteal -m long \
	  --timeout 3600

test-colab: env
	@$(PY) -m pip install -q --no-deps --upgrade --target $(VENV)/colab -r tests/colab-versions.txt
	@PYTHONPATH="$(CURDIR)/$(VENV)/colab" $(PYTEST) -n 2 --dist worksteal

# dictionary_learning is on no registry: with COMPANY=<folder that has it>, its tests run, too
COMPANY ?=
test-company: env
	@$(PY) -m pip install -q --no-deps --upgrade --target $(VENV)/company \
	  -r tests/company/requirements.txt
	@PYTHONPATH="$(CURDIR)/$(VENV)/company:$(COMPANY)" $(PYTEST) tests/test_formats.py -rs

# which of them: BROWSER="browser and not long" leaves out most of the notebooks
BROWSER ?= browser
# Playwright (170 MB) drives the Chromium of the system, and brings none
test-browser: env $(VENV)/browser/.installed
	@PYTHONPATH="$(CURDIR)/$(VENV)/browser" $(PYTEST) -m "$(BROWSER)" --durations 5
	@echo "Look at the pictures, the times and what is too wide: runs/browser"

$(VENV)/browser/.installed: $(STAMP) tests/browser/requirements.txt
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
	  { echo "There is no Chromium here: install it (apt install chromium)." >&2; exit 1; }
	@echo "Installing Playwright (170 MB) into $(VENV)/browser"
	@$(PY) -m pip install -q --no-deps --upgrade --target $(VENV)/browser \
	  -r tests/browser/requirements.txt
	@touch "$@"

lab: env
	@$(PY) -m jupyter lab --notebook-dir . $(ROOT_MAY)

notebooks: env
	@$(OFFLINE) $(PY) tools/build_notebooks.py

bench: env
	@$(OFFLINE) $(PY) -m benchmarks

experiments: env
	@$(OFFLINE) $(PY) -m experiments

# what to run, where, and further options of Snakemake
CONFIG ?= workflow/config.yaml
PROFILE ?= laptop
OPTIONS ?=
sweep: env $(SWEEP_STAMP)
	@$(SWEEP_VENV)/bin/python workflow/sweep.py "$(CONFIG)" --profile "$(PROFILE)" $(OPTIONS)

$(SWEEP_STAMP): workflow/requirements.txt workflow/constraints.txt | $(STAMP)
	@echo "Installing Snakemake into $(SWEEP_VENV): 0.3 GB, a minute."
	@$(PY) -m venv "$(SWEEP_VENV)"
	@$(SWEEP_VENV)/bin/python -m pip install -q --disable-pip-version-check \
	  -r workflow/requirements.txt
	@touch "$(SWEEP_STAMP)"

site: $(SITE_STAMP)
	@rm -rf build/site build/doctrees build/jupyter_execute
	@$(SITE_VENV)/bin/python -m sphinx -q -W --keep-going -c docs -d build/doctrees . build/site
	@$(SITE_VENV)/bin/python tools/check_site.py build/site

$(SITE_STAMP): docs/requirements.txt docs/constraints.txt
	@$(or $(PYTHON),python3) tools/check_machine.py --python
	@$(or $(PYTHON),python3) -m venv "$(SITE_VENV)"
	@echo "Installing what makes the site into $(SITE_VENV): 0.25 GB, a minute."
	@$(SITE_VENV)/bin/python -m pip install -q --disable-pip-version-check -r docs/requirements.txt
	@touch "$(SITE_STAMP)"

lint: env
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

format: env
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis .coverage .snakemake
	find . -name .git -prune -o -path "./$(VENV)*" -prune -o -type d \
	  \( -name __pycache__ -o -name .ipynb_checkpoints \) -exec rm -rf {} +

clean-all: clean
	rm -rf runs notebooks/runs
	for venv in "$(VENV)" "$(SITE_VENV)" "$(SWEEP_VENV)"; do \
	  if [ -f "$$venv/pyvenv.cfg" ]; then rm -rf "$$venv"; fi; done
