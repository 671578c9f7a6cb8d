# make demo   install what the demo needs, train a small PromptIR on five degradations, write a table and a picture
# make test   install everything, check style and types, run the tests in two processes (WORKERS=8 for more)
# make slow   the tests that take longer
# make docs   the pages of docs/ as a site in build/docs that needs no server; a warning is an error
# make dist   the source distribution and the wheel in dist/
# make lock   write requirements/*.txt from pyproject.toml with the newest versions; run the tests before committing them
# make latest the tests with the newest version of everything; make oldest: with the lower bounds of pyproject.toml
# make master the tests on a build of BasicSR's git master
# Python 3.11 to 3.14; another one than python3: make PYTHON=python3.12 test

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
TESTS := -m pytest -n $(WORKERS) --dist loadfile

# The locked versions hold whatever constraints the machine sets for pip.
LOCKED = PIP_CONSTRAINT=$< $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes
INSTALL := python -m pip install --quiet --disable-pip-version-check
# $(call package,ENVIRONMENT): this package, in place, and BasicSR.
package = $(1)/bin/$(INSTALL) --no-deps --no-build-isolation -e . && \
  $(1)/bin/python -m promptir_basicsr.install_basicsr

# Small tensors gain little from a second thread, and threads that wait for each other stall where other processes use
# the cores. The demo gets two where a second core is idle.
test slow master latest oldest: export OMP_NUM_THREADS = 1
# The processes that tests start read the compiled bytecode of the first ones.
test slow master latest oldest: export PYTHONDONTWRITEBYTECODE =
# On Linux, glibc puts large tensors into huge pages: a step takes less time, see docs/performance.md.
demo: export GLIBC_TUNABLES = glibc.malloc.hugetlb=1
demo: export OMP_NUM_THREADS = $(shell $(PYTHON) -c 'import os; print(1 + (os.cpu_count() - os.getloadavg()[0] > 0.8))')

.PHONY: demo test slow docs dist lock latest oldest master lint env clean

env: $(VENV)/.dev

# One environment serves both: the versions in run.txt are those in dev.txt.
$(VENV)/.run: requirements/run.txt pyproject.toml setup.py | $(VENV)/.made
	@echo 'Installing what the demo needs in $(VENV): about 3.2 GB to download where torch comes with CUDA.'
	$(LOCKED) -r $<
	$(call package,$(VENV))
	@touch $@

$(VENV)/.dev: requirements/dev.txt pyproject.toml setup.py | $(VENV)/.made
	@echo 'Installing everything in $(VENV): about 3.4 GB to download where torch comes with CUDA, 6.8 GB on disk.'
	$(LOCKED) -r $<
	$(call package,$(VENV))
	@touch $(VENV)/.run $@

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v < (3, 11) and f"Python {v[0]}.{v[1]} is too old; 3.11 to 3.14 are supported. Type: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

demo: $(VENV)/.run
	$(BIN)/basicsr train -opt options/demo.yml

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python $(TESTS)

slow: env
	$(BIN)/python -m pytest -m slow

docs: env
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

dist: env
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .

lock: env
	$(BIN)/uv pip compile --upgrade $(UV) --extra dev -o requirements/dev.txt
	$(BIN)/uv pip compile --upgrade $(UV) -c requirements/dev.txt -o requirements/run.txt
UV := --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header pyproject.toml

latest:
	$(PYTHON) -m venv --clear $(VENV)-latest
	$(VENV)-latest/bin/$(INSTALL) --upgrade pip '.[dev]'
	$(call package,$(VENV)-latest)
	$(VENV)-latest/bin/python $(TESTS)

oldest: env
	@mkdir -p build
	$(BIN)/uv pip compile --quiet --resolution lowest-direct --python $(PYTHON) --extra dev pyproject.toml -o build/oldest.txt
	$(PYTHON) -m venv --clear $(VENV)-oldest
	PIP_CONSTRAINT=build/oldest.txt $(VENV)-oldest/bin/$(INSTALL) -r build/oldest.txt
	$(call package,$(VENV)-oldest)
	$(VENV)-oldest/bin/python $(TESTS)

master: env
	$(BIN)/$(INSTALL) --no-deps --no-build-isolation --target $(VENV)/master basicsr-fixed==1.4.2
	PYTHONPATH=$(abspath $(VENV)/master) $(BIN)/python $(TESTS)

clean:
	rm -rf $(VENV) $(VENV)-latest $(VENV)-oldest build dist *.egg-info
