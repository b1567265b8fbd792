# Every target does its own set-up: a bare machine needs Python 3.11+, its venv module, a C compiler and make.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Other projects' packages, whose pins clash with ours: only benchmarks use them.
PEERS  := .venv-peers

.PHONY: help setup demo test lint format bench-data drills slurm slurm-drills slurm-wide slurm-down clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

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
	# Two processes, a file's tests in one of them, in the order of the folders: whole runs do not all come last.
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: setup  ## ruff and mypy on the whole tree
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## let ruff format and fix the tree
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(PEERS)/.installed: benchmarks/data/peers.txt
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -c benchmarks/data/peers.txt torch
	# No resolver: the file is complete, and says where it departs from what a package declares.
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/data/peers.txt
	@touch $@

bench-data: setup $(PEERS)/.installed  ## measure the data pipeline beside other projects' and write docs/data.md
	$(BIN)/pha bench data --peers $(PEERS)/bin/python --write docs/data.md

drills: setup  ## kill and damage real runs some 2,200 times and write docs/reliability.md (half an hour)
	$(BIN)/python -m tests.drills --write docs/reliability.md

slurm-drills: setup  ## every fault to a real run on a real Slurm; writes docs/reliability.md (root; 40 minutes)
	$(BIN)/python -m tests.slurm.drills --write docs/reliability.md

slurm-wide: setup  ## harm to a job of 32 nodes with stand-ins for ranks; writes docs/scale.md (root; a quarter of an hour)
	$(BIN)/python -m tests.slurm.wide --write docs/scale.md

slurm: setup  ## a real Slurm of four nodes on this machine (root; Debian's packages), to try `pha launch` on
	$(BIN)/python -m tests.slurm.bed up
	@echo "$(BIN)/python -m tests.slurm.bed run COMMAND runs COMMAND on its login host; make slurm-down ends it"

slurm-down: setup  ## end that cluster
	$(BIN)/python -m tests.slurm.bed down

clean:  ## remove the environment, the demo's output and caches; other runs and datasets stay
	rm -rf $(VENV) $(PEERS) runs/demo data/demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
