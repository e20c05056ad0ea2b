# Everything here sets itself up: a fresh machine needs only Python 3.11-3.13, make and git.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
# TORCH=cpu installs PyTorch's CPU build from PyTorch's own index (0.7 GB instead of 5 GB on Linux).
TORCH ?= default
BIN := $(VENV)/bin
UV := $(BIN)/uv
CLI := $(BIN)/mllm-align

# The tables: which seeds, how many cells at a time, which world (scenes or published), and further overrides, as in
# ARGS="dataset.size=100 benchmark.n=300".
SEEDS ?= 0,1,2
WORKERS ?= 2
WORLD ?= scenes
ARGS ?=
SUFFIX := $(if $(filter scenes,$(WORLD)),,-$(WORLD))
TABLES := $(sort $(basename $(notdir $(wildcard conf/table/*.yaml))))

.DEFAULT_GOAL := help
.PHONY: help setup test test-fast check format demo base-models bench wheel lock clean

help:  ## list the targets
	@grep -E '^[a-z0-9%-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{sub("%", "NN", $$1); printf "  make %-12s %s\n", $$1, $$2}'
	@echo "  tables: $(TABLES)"

setup: $(VENV)/.ready  ## create the environment with every pinned dependency (the other targets do this by themselves)

$(UV): requirements/uv.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v[:2] <= (3, 13) else f"Python 3.11, 3.12 or 3.13 is needed, {v[0]}.{v[1]} was found: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@touch $(UV)

$(VENV)/.ready: $(UV) requirements/dev.txt pyproject.toml
ifeq ($(TORCH),cpu)
	$(BIN)/python requirements/without_torch.py requirements/dev.txt > $(VENV)/without-torch.txt
	VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --torch-backend=cpu torch torchvision
	VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --require-hashes --no-deps --compile-bytecode -r $(VENV)/without-torch.txt
else
	VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --require-hashes --compile-bytecode -r requirements/dev.txt
endif
	VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

test: setup  ## run every test
	$(BIN)/python -m pytest tests

test-fast: setup  ## run the tests that take seconds
	$(BIN)/python -m pytest tests -m "not slow"

check: setup  ## formatter, linter, type checker and every test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests

format: setup  ## format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

demo: setup  ## train and compare a real small grid on the scenes world (about 5 minutes on 2 cores)
	@rm -f outputs/sweeps/demo/summary.json  # cells of other code would stand beside these
	$(CLI) train -m alignment=none,dpo,online_dpo dataset=scenes/povid,scenes/rlhf_v sweep.name=demo benchmark.n=1000
	$(CLI) table sweep=demo report=outputs/reports/demo title="DPO and Online-DPO on two datasets" \
	  'next=[["three seeds and every offline method", "$(CLI) train -m alignment=none,dpo,ipo,slic,online_dpo dataset=scenes/povid,scenes/rlhf_v,scenes/vlfeedback seed=0,1,2 sweep.workers=2"]]'

# A failed cell shows in the table, so it is rendered all the same; not after a refusal (2) or Ctrl-C (130).
table%: setup  ## a table of the study, from nothing; SEEDS=0,1,2 WORKERS=2 ARGS="dataset.size=100" (docs/tables.md)
	$(CLI) train -m sweep.table=$@ world=$(WORLD) sweep.name=$@$(SUFFIX) seed=$(SEEDS) sweep.workers=$(WORKERS) $(ARGS); code=$$?; \
	if [ $$code -gt 1 ]; then exit $$code; fi; \
	$(CLI) table table=$@ world=$(WORLD) 'seeds=[$(SEEDS)]' 'overrides="$(ARGS)"' && exit $$code

base-models: setup  ## train the scenes base models from nothing (hours on a CPU; uses a GPU where there is one)
	for name in base large weak; do $(BIN)/python -m mllm_align.models.family.recipe name=$$name || exit 1; done

bench: setup  ## speed and memory of a DPO step (plain, shared prefix, stored reference, TRL), and of BDHS against generate
	VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --require-hashes -r requirements/bench.txt
	$(BIN)/python benchmarks/dpo_step.py
	$(BIN)/python benchmarks/bdhs.py

wheel: setup  ## build the wheel into dist/
	$(BIN)/python -m build --no-isolation --wheel

lock: setup  ## pin the dependencies anew, with hashes
	./requirements/lock $(UV)

clean:  ## remove the environment and caches (outputs/ stays)
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache
