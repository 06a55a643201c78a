# The commands of the project; each prepares what it needs. PYTHON=... chooses the interpreter (>= 3.11).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The compiler's own files first: installed after the build they would look newer than what was made of them, and all would be made twice.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check 'cython>=3.1,<4' 'setuptools>=77' wheel && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation
SOURCES := $(shell find _core hal bench -name '*.pyx' -o -name '*.pxd' 2>/dev/null)
.PHONY: run test check bench soak build clean help
.DEFAULT_GOAL := help

help:
	@echo "make run     start Ballast with the virtual cabinet in real time, shown live (Ctrl-C ramps to 0 and ends it)"
	@echo "make check   the quick gate: ruff, mypy, fast tests"
	@echo "make test    everything CI runs (under 12 minutes on 2 cores)"
	@echo "make bench   the benchmarks, as a table and as JSON in out/bench.json"
	@echo "make soak    hours of simulation, 1,000 power cuts, 61 broken kernels, a walk of commissioning, fuzzers (about an hour on 2 cores)"

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Ballast needs Python >= 3.11; set PYTHON=..."; exit 1; }
	@command -v gcc >/dev/null || { echo "Ballast compiles its core: install gcc (apt-get install gcc python3-dev)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "no venv module: apt-get install python3-venv"; rm -rf $(VENV); exit 1; }

$(VENV)/.run: $(VENV)/bin/python pyproject.toml setup.py $(SOURCES)
	@echo "Building Ballast into $(VENV) (once; a minute or two) ..."
	@$(INSTALL) -e '.[bench]'
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml
	@$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.run $(VENV)/.built

$(VENV)/.built: $(VENV)/.dev setup.py $(SOURCES)
	@$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

build: $(VENV)/.built

run: $(VENV)/.run
	@$(BIN)/ballast run

check: build
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -m 'not realtime and not slow and not soak'

test: build
	@sh tests/apt.sh
	@$(BIN)/python -m pytest -n 2 -m 'not realtime and not soak'
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m 'realtime and not soak'

bench: build
	@sh tests/apt.sh
	@mkdir -p out
	@$(BIN)/python -m bench.perf --json out/bench.json

soak: build
	@$(BIN)/python -m pytest -m soak --ignore=tests/fuzz --timeout 7200
	@$(BIN)/python -m pytest -n 2 -m soak tests/fuzz --timeout 7200

clean:
	rm -rf build dist out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks $(VENV)/.run $(VENV)/.dev $(VENV)/.built
	find . -name '*.so' -not -path './$(VENV)/*' -delete
