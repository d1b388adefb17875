# `make demo` and `make test` set up everything they need; the second time they start at once.
PYTHON ?= python3
DALI ?= cuda13
BIN := .venv/bin
# The default tests share out the cores. Those marked `slow` start clusters of their own, which mostly wait.
PYTEST_ARGS ?= -n auto
HAS_GPU = $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: setup demo test lint docs clean

setup: .venv/ready

# Installed again only when pyproject.toml changes.
.venv/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[$(DALI),test]'
	touch $@

.venv/docs-ready: .venv/ready
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

demo: setup
	$(BIN)/python -m jobs.demo

# Where the machine has a GPU, the tests that need one follow in a single process, unless PYTEST_ARGS chooses the tests.
test: setup
	$(BIN)/python -m pytest $(PYTEST_ARGS)
ifeq ($(origin PYTEST_ARGS),file)
	if $(HAS_GPU); then $(BIN)/python -m pytest -m gpu; fi
endif

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Warnings, dead links and dead anchors are errors.
docs: .venv/docs-ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis site *.egg-info
