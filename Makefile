# `make test` and `make demo` set themselves up: a virtual environment in .venv, made again only when the requirements change.

PYTHON ?= python3
VENV := .venv
BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.installed

.PHONY: help setup test coverage lint format demo clean

help:
	@echo "make test    style, types, import order and tests"
	@echo "make demo    simulate a nest, learn from a few labels, predict, evaluate (about 6 minutes)"
	@echo "make coverage  the tests once more, and which error paths they take"
	@echo "make format  put the code in order"
	@echo "make clean   remove the environment, caches and the demo's output"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $(STAMP)

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2  # two workers of one thread each: threads that share a core wait for each other

coverage: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m coverage run --source=smp_plugin,converters -m pytest
	$(BIN)/python -m coverage json -o coverage.json
	$(BIN)/python benchmarks/error_paths.py coverage.json -o benchmarks/results/error_paths.json

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: $(STAMP)
	PATH="$(BIN):$$PATH" bash examples/pups/demo.sh runs/demo

clean:
	rm -rf $(VENV) runs/demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache *.egg-info
