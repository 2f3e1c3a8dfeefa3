# Two commands: `make demo` and `make test`. Each sets up all it needs and skips what is done.
# PYTHON=python3.12 chooses another Python, ARGS="…" goes to the command that a target runs.
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
PIP    := $(RUN) -m pip --quiet --disable-pip-version-check

OPS := $(shell find ops -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.cuh')

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all peers bench gpu zoo docs lint format wheel clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(VENV)/.built  ## .venv with pinned packages, and the compiled operators in dcnzoo/ops

# An interrupted installation leaves .installing behind and is begun anew.
$(VENV)/.installed: requirements.txt requirements-openmmlab.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and f"dcnzoo needs Python 3.10 or newer; {sys.executable} is {sys.version.split()[0]}. Choose one: make PYTHON=python3.12 …")'
	test ! -e $(VENV)/.installing || rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	touch $(VENV)/.installing
	$(PIP) install -r requirements.txt
	$(PIP) install --no-deps -r requirements-openmmlab.txt
	mv $(VENV)/.installing $@

$(VENV)/.built: $(VENV)/.installed setup.py pyproject.toml $(OPS)
	$(PIP) install --no-build-isolation --no-deps -e .
	$(RUN) -m dcnzoo env
	touch $@

demo: setup  ## make data, train without and with DCNv2, compare, draw (SEEDS=3 for mean ± spread)
	$(RUN) tools/demo.py --seeds $(or $(SEEDS),1)

test: setup  ## the tests, in under 15 minutes on two cores
	$(RUN) -m pytest -n 2 -m "not slow and not peers" $(ARGS)

test-all: setup  ## the tests with the long tail
	$(RUN) -m pytest -n 2 -m "not peers" $(ARGS)

# The rivals have an environment of their own, since mmcv overwrites mmcv-lite; everything else is seen
# in .venv through a .pth file. mmcv is compiled (6–15 minutes on 2 cores), or comes from a wheel that
# you have: make peers MMCV_WHEEL=mmcv-2.1.0-….whl
PEERS      := .venv-peers
MMCV_WHEEL ?= $(firstword $(wildcard ../shared/peers/mmcv-2.1.0-*.whl))
SITE        = -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
$(PEERS)/.installed: $(VENV)/.installed requirements-peers.txt
	rm -rf $(PEERS)
	$(RUN) -m venv --without-pip $(PEERS)
	echo "import site; site.addsitedir('$$($(RUN) $(SITE))')" > $$($(PEERS)/bin/python $(SITE))/venv.pth
	MMCV_WITH_OPS=1 $(PIP) --python $(PEERS)/bin/python install --no-deps --no-build-isolation $(or $(MMCV_WHEEL),mmcv==2.1.0)
	$(PIP) --python $(PEERS)/bin/python install -r requirements-peers.txt
	touch $@

peers: setup $(PEERS)/.installed  ## compare with mmcv's compiled operators
	$(PEERS)/bin/python -m pytest -m peers tests/peers $(ARGS)

bench: setup $(PEERS)/.installed  ## time and memory beside every rival (docs/benchmarks)
	$(PEERS)/bin/python tools/benchmark/ops.py $(or $(ARGS),--demo-training)

# Neither .venv nor network: where the GPU is, python3 has torch, numpy and pytest, and dcnzoo/ops/_C_*.so
# come with the working tree, built before where nvcc is.
gpu:  ## where a GPU is: test, tune and time the kernels (docs/benchmarks)
	$(PYTHON) tools/gpu.py $(ARGS)

zoo: setup  ## write model_zoo.md and model-index.yml from the metafiles
	$(RUN) tools/model_zoo.py

$(VENV)/.docs: $(VENV)/.installed requirements-docs.txt
	$(PIP) install -r requirements-docs.txt
	touch $@

docs: setup $(VENV)/.docs  ## docs/_build/html/index.html
	$(RUN) -m sphinx --quiet --fail-on-warning --keep-going docs docs/_build/html $(ARGS)

lint: setup  ## style, as CI checks it
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: setup  ## apply the style
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

wheel: setup  ## dist/*.whl, one for every Python from 3.10 and torch from 2.10 on
	$(PIP) wheel --no-build-isolation --no-deps -w dist .

clean:  ## remove what was built (not .venv, data or work_dirs)
	rm -rf build dist docs/_build *.egg-info dcnzoo/ops/*.so $(VENV)/.built
