# Every target does its own set-up: a bare machine needs Python 3.11+, its venv module, a C compiler and make.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: help setup demo test lint format clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(STAMP)  ## the virtual environment .venv with the pinned packages

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# torch first and alone: pinned, it takes the CPU wheel where one is offered instead of a CUDA build of several GB.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup  ## text to a trained, killed, resumed, evaluated model and its report, in minutes
	$(BIN)/pha demo

test: lint  ## lint, types and the whole test suite
	$(BIN)/python -m pytest

lint: setup  ## ruff and mypy on the whole tree
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## let ruff format and fix the tree
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the environment, the demo's output and caches; other runs and datasets stay
	rm -rf $(VENV) runs/demo data/demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
