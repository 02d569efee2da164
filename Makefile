# The two commands to know: `make demo` and `make test`. `make help` lists the rest.

PYTHON ?= python3
VENV ?= .venv
# The versions that are installed; constraints-lowest.txt has the lowest that pyproject.toml allows.
CONSTRAINTS ?= constraints.txt
# Further arguments for the command behind `demo` and `test`: make test ARGS="-k plan"
ARGS =

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c $(CONSTRAINTS)
# Empty files that say what is installed, and since when.
INSTALLED := $(VENV)/.loraprune-installed
INSTALLED_DEV := $(VENV)/.loraprune-installed-dev

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs clean

help: ## list these targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-12s %s\n", $$1, $$2 }'

demo: $(INSTALLED) ## prune the bundled model on this machine and show the result
	@$(BIN)/loraprune demo $(ARGS)

# One process a core, each with one thread: threads of several processes get into each other's way.
test: $(INSTALLED_DEV) ## run the tests, on all cores
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses=8 --dist worksteal $(ARGS)

lint: $(INSTALLED_DEV) ## check style, format, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(INSTALLED_DEV) ## build the documentation as a website in site/; broken links fail; needs no network
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo "open site/index.html"

clean: ## remove caches and packaging leftovers (not the environment, not your runs)
	rm -rf build/lib build/bdist.* dist site src/*.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(wildcard src scripts tests benchmarks) -type d -name __pycache__ -prune -exec rm -rf {} +

# `bin/pip` is the last thing that a new environment gets: one without it is unfinished and made again.
$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || \
		{ echo "make: no '$(PYTHON)' here; name a Python 3.10 or newer: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "make: $(PYTHON) is $$($(PYTHON) -V 2>&1), but loraprune needs Python 3.10 or newer:" \
			"make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml $(CONSTRAINTS) constraints-dev.txt | $(BIN)/pip
	$(PIP_INSTALL) -e .
	@touch $@

# What development needs includes what the demo needs.
$(INSTALLED_DEV): pyproject.toml $(CONSTRAINTS) constraints-dev.txt | $(BIN)/pip
	$(PIP_INSTALL) -e ".[dev]"
	@touch $(INSTALLED) $@
