# Two commands matter: `make tutorial` and `make test`. Works with GNU make on Linux and macOS.

VENV ?= .venv
PYTHON ?=
PY = $(VENV)/bin/python
# Written last, so that an interrupted install is done again; named after this folder, so that a moved one is too.
STAMP := $(VENV)/.installed-$(shell echo "$(CURDIR)" | cksum | cut -d ' ' -f 1)

.DEFAULT_GOAL := help
.PHONY: help env tutorial test test-long test-colab lab notebooks bench science lint format clean clean-all

help:
	@echo "make tutorial   the whole story: every notebook, run on the embedded suite, no network needed"
	@echo "make test       the tests"
	@echo "make lab        open the notebooks in JupyterLab"
	@echo
	@echo "make env        only the virtual environment ($(VENV)); the others make it when it is not there"
	@echo "make test-long  the tests that take minutes;  make test-colab  the tests with Colab's versions"
	@echo "make notebooks  make notebooks/*.ipynb from notebooks/src/*.py, and run them"
	@echo "make bench      the benchmarks;  make science  test the numbers: what we found"
	@echo "make lint       check the style;  make format  repair it"
	@echo "make clean      remove caches and build leftovers;  make clean-all  also runs/ and $(VENV)"

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@set -e; python="$(PYTHON)"; \
	if [ -z "$$python" ]; then \
	  for candidate in python3 python3.13 python3.12 python3.11; do \
	    if $$candidate tools/check_machine.py --python >/dev/null 2>&1; then python=$$candidate; break; fi; \
	  done; \
	fi; \
	if [ -z "$$python" ]; then \
	  echo "No suitable Python was found. Tried:" >&2; \
	  for candidate in python3 python3.13 python3.12 python3.11; do \
	    echo "  $$candidate: $$($$candidate tools/check_machine.py --python 2>&1 | head -n 1)" >&2; \
	  done; \
	  exit 1; \
	fi; \
	"$$python" tools/check_machine.py --install "$(VENV)"; \
	if ! "$(PY)" tools/check_machine.py --python >/dev/null 2>&1 || ! "$(PY)" -m pip --version >/dev/null 2>&1; then \
	  clear=; if [ -f "$(VENV)/pyvenv.cfg" ]; then clear=--clear; fi; \
	  "$$python" -m venv $$clear "$(VENV)"; \
	fi
	@"$(PY)" -m pip install --disable-pip-version-check -c constraints.txt -e ".[lab,test]"
	@touch "$(STAMP)"
	@echo "Installed: $(VENV) is ready."

tutorial: env
	@HF_HUB_OFFLINE=1 "$(PY)" tools/run_notebooks.py

test: env
	@HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 "$(PY)" -m pytest -n 2 --dist worksteal

test-long: env
	@HF_HUB_OFFLINE=1 "$(PY)" -m pytest -m long --timeout 3600

test-colab: env
	@"$(PY)" -m pip install -q --no-deps --upgrade --target $(VENV)/colab -r tests/colab-versions.txt
	@PYTHONPATH="$(CURDIR)/$(VENV)/colab" HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 "$(PY)" -m pytest -n 2 --dist worksteal

lab: env
	@"$(PY)" -m jupyter lab --notebook-dir .

notebooks: env
	@HF_HUB_OFFLINE=1 "$(PY)" tools/build_notebooks.py

science: env
	@HF_HUB_OFFLINE=1 "$(PY)" -m benchmarks.science

bench: env
	@HF_HUB_OFFLINE=1 "$(PY)" -m benchmarks

lint: env
	@"$(PY)" -m ruff check .
	@"$(PY)" -m ruff format --check .

format: env
	@"$(PY)" -m ruff check --fix .
	@"$(PY)" -m ruff format .

clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis .coverage
	find . -name .git -prune -o -path "./$(VENV)" -prune -o -type d \
	  \( -name __pycache__ -o -name .ipynb_checkpoints \) -exec rm -rf {} +

clean-all: clean
	rm -rf runs notebooks/runs
	if [ -f "$(VENV)/pyvenv.cfg" ]; then rm -rf "$(VENV)"; fi
