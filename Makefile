# make demo   set everything up, train a small PromptIR on five degradations, leave a table and a picture
# make test   set everything up, check style and types, run the tests in two processes (WORKERS=8 for more)
# make slow   the tests that take longer
# make docs   the pages of docs/ as a site in build/docs, to be opened without a server; a warning is an error
# make master the tests on a build of BasicSR's git master
# Python 3.10 to 3.12; another one: make PYTHON=python3.12 test

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Small tensors gain little from a second thread, and threads that wait for each other stall where other processes use
# the cores.
demo test slow master: export OMP_NUM_THREADS = 1

.PHONY: demo test slow docs master lint env clean

env: $(READY)

$(READY): pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 10) <= v <= (3, 12) and f"Python {v[0]}.{v[1]} is not supported: BasicSR builds on 3.10 to 3.12. Type: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation basicsr==1.4.2
	@touch $@

demo: env
	$(BIN)/basicsr train -opt options/demo.yml

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

slow: env
	$(BIN)/python -m pytest -m slow

docs: env
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

master: env
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target $(VENV)/master basicsr-fixed==1.4.2
	PYTHONPATH=$(abspath $(VENV)/master) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

clean:
	rm -rf $(VENV) build *.egg-info
