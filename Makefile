# The main targets are `make demo` and `make test`. Each target installs its requirements once and reuses them.
# PYTHON=python3.12 selects another Python. ARGS="…" is passed to the target's command.
# Long checks, other environments and maintenance: .venv/bin/nox -l (noxfile.py).
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
PIP    := $(RUN) -m pip --quiet --disable-pip-version-check
# With this variable, Python does not keep the modules that it compiles: each process compiles all of them again.
unexport PYTHONDONTWRITEBYTECODE

# Installs groups of pyproject.toml with uv if it is on the PATH (`make UV= …` uses pip). `make WHEELHOUSE=wheelhouse …`
# installs from a folder of wheels. --no-compile: Python compiles modules when it imports them.
UV     := $(shell command -v uv)
INSTALL = $(if $(UV),$(UV) pip install --quiet --python $(RUN),$(PIP) install --no-compile) $(if $(WHEELHOUSE),--no-index --find-links $(WHEELHOUSE))

# Installing and compiling are repeated for another PYTHON and for other variables of setup.py.
given   = $(filter environment command,$(firstword $(origin $1)))
version = $(shell $1 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null)
OTHER  := $(if $(call given,PYTHON),$(if $(filter $(call version,$(PYTHON)),$(call version,$(RUN))),,yes))
NAMES  := DCNZOO_BUILD DCNZOO_CUDA DCNZOO_CUDA_ARCHS DCNZOO_STRICT TORCH_CUDA_ARCH_LIST CUDA_HOME CXX CXXFLAGS LDFLAGS
BUILD  := $(strip $(foreach name,$(NAMES),$(if $(call given,$(name)),$(name)=$($(name)))))

OPS := $(shell find ops -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.cuh')

.DEFAULT_GOAL := help
.PHONY: again help setup demo test test-all lint format docs bench gpu hub-kernel wheel clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

setup: $(VENV)/.built  ## create .venv for training and compile the operators into dcnzoo/ops

# An interrupted installation leaves .installing; .venv is then deleted and created again. So does a failure (no network)
# of the first installation, but not that of a later one, which leaves a .venv that works.
FAILED = { test ! -e $@ || rm $(VENV)/.installing; exit 1; }
# Python's own pip can be older than 25.1, the first with --group.
$(VENV)/.installed: pyproject.toml .ci/opencv-python/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15) and "make setup: expected Python 3.10 to 3.14, got %s, %s; choose one: make PYTHON=python3.12 …" % (sys.version.split()[0], sys.executable))'
	test ! -e $(VENV)/.installing -a -z '$(OTHER)' || rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	touch $(VENV)/.installing
	$(INSTALL) "pip>=25.1" || $(FAILED)
	$(INSTALL) --group train || $(FAILED)
	$(INSTALL) --no-deps --group openmmlab || $(FAILED)
	$(INSTALL) --no-deps --no-build-isolation ./.ci/opencv-python || $(FAILED)
	mv $(VENV)/.installing $@

# Installs another group into .venv. An interruption also leaves .installing; a failure (no network) does not.
$(VENV)/.dev $(VENV)/.docs: $(VENV)/.%: $(VENV)/.installed
	mv $< $(VENV)/.installing; $(INSTALL) --group $*; failed=$$?; mv $(VENV)/.installing $<; exit $$failed
	$(if $(filter dev,$*),$(INSTALL) --no-deps --group vit)
	touch $@

ifneq ($(OTHER),)
$(VENV)/.installed: again
endif
ifneq ($(shell cat $(VENV)/.built 2> /dev/null),$(BUILD))
$(VENV)/.built: again
endif

$(VENV)/.built: $(VENV)/.installed setup.py $(OPS)
	DCNZOO_BUILD=$(or $(DCNZOO_BUILD),require) $(INSTALL) --no-build-isolation --no-deps --config-settings editable_mode=compat -e .
	-$(RUN) -m dcnzoo doctor  # a problem, such as a GPU without its torch, does not stop the target
	echo '$(BUILD)' > $@

demo: setup  ## train the demo with and without DCNv2 and write a report (SEEDS=3 for mean ± spread)
	$(RUN) -m benchmarks.demo --seeds $(or $(SEEDS),1) $(ARGS)

test: setup $(VENV)/.dev  ## run the tests (5 to 9 minutes on two idle cores; the first time up to 15)
	$(RUN) -m pytest -n 2 --dist worksteal -m "not slow" $(ARGS)

test-all: setup $(VENV)/.dev  ## run the tests, including the slow ones; not those of nox -s distributed and pages
	$(RUN) -m pytest -n 2 --dist worksteal --ignore tests/distributed --ignore tests/test_pages.py $(ARGS)

CPP := $(OPS) $(shell find tests -name '*.cpp' -o -name '*.h')
SCHEMA := $(VENV)/bin/check-jsonschema --quiet --builtin-schema vendor.
lint: $(VENV)/.dev  ## check style, imports, types, shell scripts, workflows
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $(CPP)
	$(VENV)/bin/lint-imports --no-cache
	$(RUN) -m mypy
	$(VENV)/bin/shellcheck --external-sources --source-path=SCRIPTDIR .ci/run tools/*.sh
	$(SCHEMA)github-workflows .github/workflows/*.yml
	$(SCHEMA)dependabot .github/dependabot.yml
	$(SCHEMA)github-issue-forms .github/ISSUE_TEMPLATE/*.yml
	$(SCHEMA)citation-file-format CITATION.cff
	$(VENV)/bin/zizmor --quiet --offline .github

format: $(VENV)/.dev  ## apply the style
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .
	$(VENV)/bin/clang-format -i $(CPP)

docs: setup $(VENV)/.dev $(VENV)/.docs  ## build the documentation: docs/_build/html/index.html
	$(RUN) -m sphinx --quiet --fail-on-warning --keep-going docs docs/_build/html $(ARGS)

bench: setup $(VENV)/.dev  ## compare time and memory with other packages (docs/benchmarks)
	$(VENV)/bin/nox --session peers --install-only
	.nox/peers/bin/python -m benchmarks.ops $(ARGS)

# Uses neither .venv nor network: the machine with the GPU needs python3 with torch, numpy and pytest, and a
# working tree with dcnzoo/ops/_C_*.so, built on a machine with nvcc by DCNZOO_CUDA=1 make setup.
# One part: make gpu ARGS=correctness (tuning, benchmark, without_library, training).
gpu:  ## test, tune and time the kernels on a GPU, and train with them (docs/gpu.md)
	$(PYTHON) -m benchmarks.gpu $(ARGS)

hub-kernel: setup  ## write work_dirs/hub_kernel: attention for models of Transformers, by the package kernels
	$(RUN) tools/hub_kernel.py work_dirs/hub_kernel

wheel: setup  ## build dist/*.whl, one for Python ≥ 3.10 and torch ≥ 2.10
	$(PIP) wheel --no-build-isolation --no-deps -w dist .

clean:  ## remove build results (not .venv, .nox, data or work_dirs)
	rm -rf build dist docs/_build *.egg-info dcnzoo/ops/*.so dcnzoo/ops/schemas.txt $(VENV)/.built
