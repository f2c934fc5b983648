VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON ?= python3
MNIST ?= ../shared/mnist
OUT ?= demo-out

.PHONY: help install demo test check format bench-p6 clean

help:  ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## */  \1\t/'

install: $(STAMP)  ## create .venv and install everything into it

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet --editable '.[dev]'
	touch $(STAMP)

demo: $(STAMP)  ## learn six digit tasks one after another, predict, inspect, prune
	PATH="$(abspath $(BIN)):$$PATH" sh examples/demo.sh $(OUT)

test: $(STAMP)  ## run the tests
	$(BIN)/python -m pytest tests

check: $(STAMP)  ## the gate: lint, format, types, import directions, tests with warnings as errors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests -W error

format: $(STAMP)  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-p6: $(STAMP)  ## the paper's experiment on all of MNIST (MNIST=root of torchvision's data set)
	$(BIN)/python benchmarks/p6.py --root $(MNIST) --out bench-out

clean:  ## remove what the targets made
	rm -rf demo-out bench-out build .pytest_cache .mypy_cache .ruff_cache
