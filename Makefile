# Everything a newcomer needs; `make` alone lists it.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all faults lint fix bench reference docs wheel clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY) ## make .venv with torch, torchvision and this package

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $(READY)

demo: $(READY) ## source only, AdaBN and RCCR side by side on toyland, in minutes on a CPU
	$(BIN)/udaseg demo

# one process a core, one thread each: most tests are too small for more
test: $(READY) ## the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m 'not slow and not faults and not bench and not gpu'

test-all: $(READY) ## every test, the slow ones too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m 'not bench and not faults'

faults: $(READY) ## fault campaigns at full size; prints counts and bounds
	$(BIN)/python -m pytest -m faults -s

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: $(READY) ## fix what ruff can fix, and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## measure against the published forms; prints ratios
	@for file in tests/bench/bench_*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

reference: $(READY) ## write docs/recipes.md, every key of a recipe, anew
	$(BIN)/udaseg recipes schema --markdown > docs/recipes.md

docs: $(READY) ## write the documentation as a site into site/; fails on a dead link
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

wheel: $(READY) ## build the wheel into dist/
	$(BIN)/python -m build --wheel

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache
