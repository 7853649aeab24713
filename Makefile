# `make` prints what there is. Every target makes `.venv` first when it is missing or older than what it is made from.
PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CODE := mmexp tests $(wildcard experiments)

export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-all faults gpu check format format-check lint type docs notebooks smoke clean distclean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## .venv with the tested versions and the project in it

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) > /dev/null || { echo "no $(PYTHON) found: install Python 3.11 or newer, or say make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$$($(PYTHON) --version) found, 3.11 or newer needed: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-warn-conflicts -c constraints.txt -e '.[deepspeed,demo,dev,lmms-eval,optuna,quantize,serve,submitit,tables,tensorboard]'
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps -c constraints.txt lmms-eval
	@touch $@

demo: setup  ## LLaVA-1.5's laptop twin: both stages, evaluation and report, in minutes on two cores
	$(BIN)/python -m mmexp.pipeline recipe=llava15 scale=shapes

test: setup  ## the default suite: CPU, no network, minutes, in WORKERS=2 processes
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-slow: setup  ## only the tests marked slow
	$(BIN)/python -m pytest -m "slow and not gpu and not multigpu and not weights" --timeout=1800

test-all: setup  ## the default and the slow suite
	$(BIN)/python -m pytest -m "not gpu and not multigpu and not weights" --timeout=1800

faults: setup  ## real runs that are killed, stopped and starved (part of the slow suite)
	$(BIN)/python -m pytest tests/faults -m faults

gpu: setup  ## what needs one GPU
	$(BIN)/python -m pytest -m gpu --timeout=1800

check: format-check lint type test  ## everything a change must pass

format: setup  ## rewrite the code in the one format
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix --select I $(CODE)

format-check: setup
	$(BIN)/ruff format --check $(CODE)

lint: setup  ## ruff and codespell
	$(BIN)/ruff check $(CODE)
	$(BIN)/codespell mmexp conf *.md

type: setup  ## pyright
	$(BIN)/pyright --warnings

docs: setup  ## run every command and example of the documentation
	$(BIN)/python -m pytest tests/test_docs.py -m "not gpu and not multigpu and not weights" --timeout=1800

notebooks: setup  ## execute the notebooks on tiny parts
	@for file in $(wildcard notebooks/*.ipynb); do echo "$$file"; \
	  $(BIN)/jupyter execute "$$file" || exit 1; done

smoke: setup  ## two optimizer steps of the default run on tiny parts
	$(BIN)/python -m mmexp.train encoder=tiny llm=tiny trainer=smoke logger=none evaluation=none

clean:  ## remove outputs and caches; .venv stays
	rm -rf outputs wandb build dist .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove .venv
	rm -rf $(VENV)
