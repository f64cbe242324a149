# Two commands do everything on a fresh machine with Python 3.11 or newer:
#   make demo    sets up .venv, runs the first private federated training on real data
#   make test    sets up .venv, runs the tests
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
WORKERS ?= 2

export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1

.PHONY: help demo test long lint docs bench threats setup setup-dev clean
help:
	@echo "make demo   the first private federated training (under a minute once installed)"
	@echo "make test   the tests (a few minutes)"
	@echo "make lint   ruff, mypy --strict, import contracts"
	@echo "make docs   the documentation, built strictly into site/"
	@echo "make long   the full acceptance: real data, many more examples (tens of minutes)"
	@echo "make bench  the benchmark programs"
	@echo "make threats  every attack of examples/threat_models, and a gallery of pictures"
	@echo "make clean  removes build products; never runs/ and its ledgers"

setup: .venv/.run
setup-dev: .venv/.dev

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "SecureFL needs Python 3.11 or newer, found: $$($(PYTHON) --version). Try make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.run: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) "pip>=25.1"
	$(PIP) --editable '.[train,report]'
	@touch $@

.venv/.dev: .venv/.run
	$(PIP) --editable '.[train,report,pld,paillier,phe,flower]' --group test --group docs --group bench
	@touch $@

# A folder of results holds ledgers: an older one is moved aside, never overwritten.
demo: .venv/.run
	@if [ -e runs/demo ]; then mv runs/demo "runs/demo.$$(date +%Y%m%d-%H%M%S)"; fi
	$(BIN)/securefl train --preset digits --out runs/demo

test: .venv/.dev
	$(BIN)/python -m pytest -n $(WORKERS) -q

long: .venv/.dev
	SECUREFL_PROFILE=long $(BIN)/python -m pytest -n $(WORKERS) -q -m "long or not long" --timeout 3600

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" lint-imports

docs: .venv/.dev
	$(BIN)/mkdocs build --strict --quiet

bench: .venv/.dev
	for program in benchmarks/*.py; do echo "== $$program"; $(BIN)/python $$program || exit 1; done

threats: .venv/.dev
	$(BIN)/python examples/threat_models/run_all.py --strict

clean:
	rm -rf site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
