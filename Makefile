# `make demo` and `make test` need Python 3.11 or newer and make, nothing else; they set up .venv themselves.

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1
TEST_ARGS ?=
# Two processes, each with servers of its own; a file's tests stay together.
TEST_WORKERS ?= 2
SOAK_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench soak servers clean

help:
	@echo "make demo     the whole job on real data, no server needed (about a minute)"
	@echo "make test     every test; tests of servers that are missing are skipped with the reason"
	@echo "make check    lint and types"
	@echo "make bench    the benchmarks, one JSON line each"
	@echo "make soak     kills workers, broker and database over 2,000,000 records; about 7 minutes (SOAK_ARGS=...)"
	@echo "make servers  what the tests with real servers need: shows it, installs it where allowed"
	@echo "make clean    remove .venv and caches"

$(VENV)/.created:
	@if [ -z "$(PYTHON)" ]; then echo "driftd needs Python 3.11 or newer. Install it, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; fi
	@echo "Making a virtual environment with $(PYTHON) in $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { echo "Python's venv module is missing. On Debian: apt-get install python3-venv"; exit 1; }
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.created
	@echo "Installing driftd (about half a minute)"
	@$(BIN)/pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.created
	@echo "Installing driftd with its test tools (about a minute)"
	@$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.installed

demo: $(VENV)/.installed
	@$(BIN)/driftd demo

test: $(VENV)/.installed-dev
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile $(TEST_ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-dev
	@for b in tests/benchmarks/*.py; do OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python $$b || exit 1; done

soak: $(VENV)/.installed-dev
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python tests/soak/run.py $(SOAK_ARGS)

servers: $(VENV)/.installed-dev
	@$(BIN)/python tests/servers/install.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
