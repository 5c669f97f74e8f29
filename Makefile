# Everything starts from nothing: python3 (3.11 or later), make and a package index are enough.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt

.PHONY: help install demo test check bench serve train eval-model eval-words

help:  ## What there is to make
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /make \1\t/' | expand -t 16

install: $(VENV)/.installed  ## A virtual environment with everything in it

# torch first and alone, so that the version of the constraints is taken in whichever build the machine's index offers.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV) || { echo "make: $(PYTHON) cannot make a virtual environment; on Debian: apt install python3-venv"; exit 1; }
	@echo "installing into $(VENV), which takes some minutes the first time"
	$(PIP) $$(grep '^torch==' constraints.txt)
	$(PIP) -e '.[dev]'
	@# The tests let a second C2PA implementation read our signatures; it runs on Node.js, where that is there.
	@! command -v npm >/dev/null || npm ci --silent --ignore-scripts --prefix tests/compliance/c2pa_ts || echo "npm could not install it: those tests will be skipped"
	@touch $@

demo: install  ## One picture, from nothing to signed and verified: out/demo.jpg
	@$(BIN)/python -m gateway demo

serve: install  ## The whole stack on http://127.0.0.1:8080, until Ctrl-C
	@$(BIN)/python -m gateway up

# Whole files go to one of the two processes: what a file starts up, it starts up once. tests/conftest.py has their order.
test: install  ## All tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: install  ## Format, lint, types and who may import whom
	$(BIN)/ruff format --check . && $(BIN)/ruff check .
	$(BIN)/mypy && $(BIN)/lint-imports

bench: install  ## What it costs, against the floors
	$(BIN)/python -m bench

TRAIN ?= --samples-vae 40000 --samples-unet 500000 --seed 0
LORA ?= --samples 100000 --seed 0

train: install  ## Train the built-in model and its characters from nothing, into var/train: see its model card
	$(BIN)/python -m handler.builtin.train --out var/train $(TRAIN) $(if $(wildcard var/train/*.pt),--resume)
	$(BIN)/python -m handler.builtin.export --run var/train --model var/train/model
	$(BIN)/python -m handler.builtin.lora --model var/train/model --out var/train/loras $(LORA)

eval-model: install  ## How well the built-in model does what it is told, figure by figure: 10 to 30 minutes
	@$(BIN)/python -m handler.builtin.evaluate

eval-words: install  ## What the word rules find in the labelled texts, and what they refuse of ordinary prompts
	@$(BIN)/python -m bench words
