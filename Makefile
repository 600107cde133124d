PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
CODE := $(wildcard batchpipe tests examples bench)

# Many tests wait for processes, so four at a time fill two cores. Compiled files are kept, also where the environment
# forbids it: rewriting all asserts anew takes each of the four eight seconds. Files run in the order of their names: else
# those with few tests come last, and among them are the longest.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder

.PHONY: help dev demo test slow chaos matrix check format docs bench clean
.DEFAULT_GOAL := help

help:  ## show this list
	@sed -n 's/^\([a-z]*\): .*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-14s%s\n", $$1, $$2 }'

dev: $(INSTALLED)  ## make .venv with batchpipe and all tools
	@echo "Ready: . $(BIN)/activate"

demo: $(INSTALLED)  ## run 3,600 requests through the sandbox; no key, no cost
	$(BIN)/python examples/airports.py

test: $(INSTALLED)  ## run the tests
	$(PYTEST) -m "not slow"

slow: $(INSTALLED)  ## run the tests that are too slow for every day, and more made-up cases
	TEST_SCALE=$${TEST_SCALE:-1} $(PYTEST) -m "slow or scaled"

chaos: $(INSTALLED)  ## kill, freeze, lie and fill up for about 10 minutes; all rows must be there, none paid twice
	$(BIN)/python -m tests.chaos $(CHAOS)

matrix: $(INSTALLED)  ## try the versions and neighbours of docs/compatibility.md; PART=ci: those that CI tries
	$(BIN)/pytest -v -n 2 --dist loadfile -m "matrix$(if $(PART), and $(PART))" tests/matrix

check: $(INSTALLED)  ## check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(CODE)

format: $(INSTALLED)  ## format the code and repair what lint can
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

docs: $(INSTALLED)  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(INSTALLED)  ## run the benchmarks
	@set -e; for script in bench/[a-z]*.py; do \
		test -f "$$script" || { echo "There are no benchmarks yet."; break; }; \
		echo "== $$script"; $(BIN)/python "$$script"; \
	done

clean:  ## remove .venv, .matrix, caches, builds and the demo's output
	rm -rf .venv .matrix .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage build dist demo-output site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "batchpipe needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make virtual environments. On Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $@
