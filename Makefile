# make demo   sets everything up and runs the main job (about 5 minutes on 2 cores)
# make test   sets everything up, lints, type-checks and runs the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test lint types clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,examples]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps dynamic-network-architectures
	touch $@

demo: setup
	rm -rf demo
	$(BIN)/lampseg demo --out demo

test: lint types
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

clean:
	rm -rf $(VENV) demo
