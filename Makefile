# make install | demo | test | test-fast | test-quick | test-long | test-chaos | test-learn | lint
# The first Python found that this project runs on and that can make environments; PYTHON=... replaces it.
SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
FOUND = $(shell for each in python3.13 python3.12 python3.11 python3.14 python3; do \
	$$each -c '$(SUITABLE)' 2>/dev/null && echo $$each && break; done)
MISSING = $(error no Python 3.11 to 3.14 with venv found: install one (Debian: python3 and python3-venv), or set PYTHON=PATH)
PYTHON ?= $(or $(FOUND),$(MISSING))
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO ?= runs/demo
SEED ?= 0
# A few processes share the tests; torch's threads would spin for cores that another process has.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q
# One process gets the tests on a shared Ray cluster, one those with clusters of their own (tests/conftest.py), and all
# the rest, file by file. Starting Ray's processes leaves cores idle: three processes fill two cores.
PARALLEL := --dist loadfile --no-loadscope-reorder

.PHONY: install demo test test-fast test-quick test-long test-chaos test-learn lint clean-demo

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/python jobs/prepare_data.py synthetic --data $(DEMO)/data setting=studio objects=3000 test_objects=375 views=4 size=32
	$(BIN)/python jobs/pretrain.py --preset demo --data $(DEMO)/data --run $(DEMO)/run-$(SEED) seed=$(SEED)
	$(BIN)/python jobs/evaluate.py --data $(DEMO)/data --run $(DEMO)/run-$(SEED) --tasks probe,knn,reconstruction

clean-demo:
	rm -rf $(DEMO)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy soda_dist

test-fast: $(STAMP)
	$(PYTEST) -n 2 $(PARALLEL) -m "not ray and not slow and not long and not learn and not chaos"

# What another version of Python or of a library would break first: imports, options, tensors, decoding.
test-quick: $(STAMP)
	$(PYTEST) -m "not ray and not slow and not long and not learn and not chaos" tests/rules/test_imports.py \
		tests/rules/test_console.py tests/config/test_config.py tests/diffusion tests/runs tests/data/views tests/data/test_pairs.py

test-learn: $(STAMP)
	$(BIN)/python -m pytest -q -s tests/learn -m learn --timeout 7200 --results docs/results.md

test-chaos: $(STAMP)
	$(PYTEST) tests/chaos -m chaos

test-long: $(STAMP)
	$(PYTEST) -n 2 $(PARALLEL) -m long

test: $(STAMP)
	$(PYTEST) -n 3 $(PARALLEL) -m "not long and not learn and not chaos" --durations 40
