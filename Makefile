# make demo   sets everything up and runs the main job (about 5 minutes on 2 cores)
# make test   sets everything up, lints, type-checks and runs the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

BROWSERS := chromium chromium-browser google-chrome google-chrome-stable

.PHONY: setup demo test lint types browser clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0 --editable '.[dev,examples]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps dynamic-network-architectures
	touch $@

demo: setup
	rm -rf demo
	$(BIN)/lampseg demo --out demo

# The browser is fetched while Python's packages are. Every file is one process's; tests/conftest.py says which go first.
# Modules are compiled once for all processes, whatever the environment says.
test:
	@$(MAKE) --no-print-directory --jobs 2 lint types browser
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# The report is tested in Chromium, which is no Python package: the system's, or on Debian, as root, installed here.
browser:
	@for name in "$$LAMPSEG_CHROMIUM" $(BROWSERS); do \
		if [ -n "$$name" ] && command -v "$$name" >/dev/null 2>&1; then exit 0; fi; \
	done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium; \
	else \
		echo "make test needs Chromium or Chrome: install it (Debian: apt-get install chromium), or set" \
			"LAMPSEG_CHROMIUM to its path" >&2; \
		exit 1; \
	fi

clean:
	rm -rf $(VENV) demo
