# Two commands on a fresh machine: `make demo` and `make test`. Both install first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test lint types layers docs check bench clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all,test,dev,docs]'
	touch $@

# Trains on the digits that scikit-learn bundles, samples, evaluates; leaves runs/demo/report.html.
demo: install
	rm -rf runs/demo
	$(BIN)/condiff train digits --out runs/demo

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: install
	$(BIN)/ruff check condiff tests benchmarks docs examples
	$(BIN)/ruff format --check condiff tests benchmarks docs examples

types: install
	$(BIN)/pyright condiff

layers: install
	$(BIN)/lint-imports

docs: install
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

check: test lint types layers docs

bench: install
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf docs/_build .pytest_cache .ruff_cache .hypothesis build *.egg-info
