# Two commands: `make demo` and `make test`. Each sets up all it needs and skips what is done.
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python

OPS := $(shell find ops -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.cuh')

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all bench gpu wheel docs lint format peers clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(VENV)/.built  ## .venv with pinned packages, and the compiled operators in dcnzoo/ops

# An interrupted installation leaves .installing behind and is begun anew.
$(VENV)/.installed: requirements.txt requirements-openmmlab.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and f"dcnzoo needs Python 3.10 or newer; {sys.executable} is {sys.version.split()[0]}. Choose one: make PYTHON=python3.12 …")'
	test ! -e $(VENV)/.installing || rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	touch $(VENV)/.installing
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-openmmlab.txt
	mv $(VENV)/.installing $@

$(VENV)/.built: $(VENV)/.installed setup.py pyproject.toml $(OPS)
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	$(RUN) -m dcnzoo env
	touch $@

demo: setup  ## make data, train without and with DCNv2, compare, draw (SEEDS=3 for mean ± spread)
	$(RUN) tools/demo.py --seeds $(or $(SEEDS),1)

test: setup  ## the tests, in under 15 minutes on two cores
	$(RUN) -m pytest -n 2 -m "not slow and not peers" $(ARGS)

test-all: setup  ## the tests with the long tail
	$(RUN) -m pytest -n 2 -m "not peers" $(ARGS)

lint: setup  ## style, as CI checks it
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: setup  ## apply the style
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

wheel: setup  ## dist/*.whl, one for every Python >= 3.10 and torch >= 2.10
	$(RUN) -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps -w dist .

clean:  ## remove what was built (not .venv, data or work_dirs)
	rm -rf build dist *.egg-info dcnzoo/ops/*.so $(VENV)/.built
