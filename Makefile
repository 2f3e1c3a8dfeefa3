# Two commands: `make demo` and `make test`. Each sets up all it needs and skips what is done.
# PYTHON=python3.12 chooses another Python, ARGS="…" goes to the command that a target runs.
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
PIP    := $(RUN) -m pip --quiet --disable-pip-version-check

# Installs into .venv: with uv where it is on the PATH (`make UV= …` uses pip), from a folder of wheels with
# `make WHEELHOUSE=wheelhouse …`. Python compiles what it imports, so that pip need not compile everything.
UV     := $(shell command -v uv)
INSTALL = $(if $(UV),$(UV) pip install --quiet --python $(RUN),$(PIP) install --no-compile) $(if $(WHEELHOUSE),--no-index --find-links $(WHEELHOUSE))

OPS := $(shell find ops -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.cuh')

.DEFAULT_GOAL := help
.PHONY: help setup dev wheelhouse demo study test test-all test-onedl test-others test-packaging test-matrix coverage coverage-openmmlab peers fuzz crash sanitize sanitize-threads soak distributed bench gpu zoo docs audit lint format wheel clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

setup: $(VENV)/.built  ## .venv with what training needs, and the compiled operators in dcnzoo/ops

dev: setup $(VENV)/.dev  ## and what tests, lint and export need, in the same .venv

# An interrupted installation leaves .installing behind: .venv is then deleted and created again.
$(VENV)/.installed: requirements.txt requirements-openmmlab.txt .ci/opencv-python/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and f"dcnzoo needs Python 3.10 or newer; {sys.executable} is {sys.version.split()[0]}. Choose one: make PYTHON=python3.12 …")'
	test ! -e $(VENV)/.installing || rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	touch $(VENV)/.installing
	$(INSTALL) -r requirements.txt
	$(INSTALL) --no-deps -r requirements-openmmlab.txt
	$(INSTALL) --no-deps --no-build-isolation ./.ci/opencv-python
	mv $(VENV)/.installing $@

# Adds to .venv. Interrupted, it leaves .installing behind, too; a failure (no network) leaves .venv in use.
EXTEND = mv $(VENV)/.installed $(VENV)/.installing; $(INSTALL) -r $(1); \
  failed=$$?; mv $(VENV)/.installing $(VENV)/.installed; exit $$failed

$(VENV)/.dev: $(VENV)/.installed requirements-dev.txt requirements-export.txt
	$(call EXTEND,requirements-dev.txt)
	touch $@

$(VENV)/.built: $(VENV)/.installed setup.py pyproject.toml $(OPS)
	$(INSTALL) --no-build-isolation --no-deps -e .
	$(RUN) -m dcnzoo env
	touch $@

wheelhouse: setup  ## wheelhouse/: all packages of `make demo` and `make test`, for a machine without network
	$(PIP) wheel --wheel-dir wheelhouse -r requirements-dev.txt
	$(PIP) wheel --wheel-dir wheelhouse --no-deps -r requirements-openmmlab.txt

demo: setup  ## make data, train without and with DCNv2, compare, draw (SEEDS=3 for mean ± spread)
	$(RUN) tools/demo.py --seeds $(or $(SEEDS),1) $(ARGS)

study: setup  ## the papers in miniature, 160 trainings: docs/study.md (3 hours; goes on where it was interrupted)
	$(RUN) tools/study.py $(ARGS)

test: dev  ## the tests, about 8 minutes on two quiet cores
	$(RUN) -m pytest -n 2 --dist worksteal -m "not slow and not peers and not environments" $(ARGS)

test-all: dev  ## the tests with the long tail
	$(RUN) -m pytest -n 2 --dist worksteal -m "not peers and not environments" $(ARGS)

# What overwrites packages of .venv, or brings a torch, has an environment of its own; everything else is seen in
# .venv through a .pth file.
SITE      = -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
NEW_VENV  = rm -rf $(1) && $(RUN) -m venv --without-pip $(1)
SEE_VENV  = echo "import site; site.addsitedir('$$($(RUN) $(SITE))')" > $$($(1)/bin/python $(SITE))/venv.pth
ELSEWHERE = -m pytest -m environments

# The forks: mmcv is built before it can see a torch, and so without its operators.
ONEDL := .venv-onedl
$(ONEDL)/.installed: $(VENV)/.dev requirements-onedl.txt
	$(call NEW_VENV,$(ONEDL))
	$(PIP) --python $(ONEDL)/bin/python install --no-deps -r requirements-onedl.txt
	$(call SEE_VENV,$(ONEDL))
	touch $@

test-onedl: dev $(ONEDL)/.installed  ## the forks of OpenMMLab's packages: import, train, test, some families
	$(ONEDL)/bin/python $(ELSEWHERE) tests/environments/test_smoke.py tests/environments/test_onedl.py $(ARGS)

# With a torch and a torchvision of its own, which belong together: 6 GB.
OTHERS := .venv-others
$(OTHERS)/.installed: $(VENV)/.dev requirements-others.txt
	$(call NEW_VENV,$(OTHERS))
	$(call SEE_VENV,$(OTHERS))
	$(PIP) --python $(OTHERS)/bin/python install -r requirements-others.txt
	touch $@

TRANSFORMERS := .venv-transformers
$(TRANSFORMERS)/.installed: $(VENV)/.dev requirements-transformers.txt
	$(call NEW_VENV,$(TRANSFORMERS))
	$(call SEE_VENV,$(TRANSFORMERS))
	$(PIP) --python $(TRANSFORMERS)/bin/python install -r requirements-transformers.txt
	touch $@

# OpenMMLab's other packages, beside the torchvision and mmpretrain of .venv-others.
OPENMMLAB := .venv-openmmlab
$(OPENMMLAB)/.installed: $(OTHERS)/.installed requirements-openmmlab-others.txt
	$(call NEW_VENV,$(OPENMMLAB))
	echo "import site; site.addsitedir('$$($(OTHERS)/bin/python $(SITE))')" > $$($(OPENMMLAB)/bin/python $(SITE))/venv.pth
	$(PIP) --python $(OPENMMLAB)/bin/python install --no-deps -r requirements-openmmlab-others.txt
	touch $@

test-others: dev $(OTHERS)/.installed $(TRANSFORMERS)/.installed $(OPENMMLAB)/.installed  ## torchvision, timm, transformers, YOLO, OpenMMLab's other packages, and MMDetection's families that need more packages
	$(OTHERS)/bin/python $(ELSEWHERE) $(addprefix tests/environments/test_, smoke.py others.py torchvision.py timm.py hub.py yolo.py) $(ARGS)
	$(TRANSFORMERS)/bin/python $(ELSEWHERE) tests/environments/test_transformers.py $(ARGS)
	$(OPENMMLAB)/bin/python $(ELSEWHERE) tests/environments/test_openmmlab.py $(ARGS)

PACKAGING := build/packaging
test-packaging: dev  ## an sdist, its wheel built in isolation, and that in bare environments (5 GB each)
	rm -rf $(PACKAGING)
	$(RUN) setup.py -q sdist --dist-dir $(PACKAGING)
	$(RUN) -m pip --disable-pip-version-check wheel --no-deps -w $(PACKAGING) $(PACKAGING)/*.tar.gz
	$(RUN) tools/test_wheel.py $(PACKAGING)/*.whl $(ARGS)

test-matrix: dev  ## train and test under other Pythons and torches, those that are here (5 GB each)
	$(RUN) tools/test_matrix.py $(ARGS)

COVERAGE := tools/analysis/mmdet_coverage.py
TRIED    := work_dirs/mmdet_coverage
coverage: dev $(OTHERS)/.installed  ## a config of each of MMDetection's families: docs/mmdet_coverage.md
	$(RUN) $(COVERAGE) --results $(TRIED).json $(ARGS)
	$(OTHERS)/bin/python $(COVERAGE) --after $(TRIED).json --results $(TRIED)_others.json --out docs/mmdet_coverage.md $(ARGS)

coverage-openmmlab: dev $(OPENMMLAB)/.installed  ## a config of each family of OpenMMLab's other packages: docs/openmmlab_coverage.md
	$(OPENMMLAB)/bin/python tools/analysis/openmmlab_coverage.py --out docs/openmmlab_coverage.md $(ARGS)

# The rivals: mmcv is compiled (6–15 minutes on 2 cores), or comes from a wheel that
# you have: make peers MMCV_WHEEL=mmcv-2.1.0-….whl
PEERS      := .venv-peers
MMCV_WHEEL ?= $(firstword $(wildcard ../shared/peers/mmcv-2.1.0-*.whl))
$(PEERS)/.installed: $(VENV)/.dev requirements-peers.txt
	$(call NEW_VENV,$(PEERS))
	$(call SEE_VENV,$(PEERS))
	MMCV_WITH_OPS=1 $(PIP) --python $(PEERS)/bin/python install --no-deps --no-build-isolation $(or $(MMCV_WHEEL),mmcv==2.1.0)
	$(PIP) --python $(PEERS)/bin/python install -r requirements-peers.txt
	touch $@

peers: dev $(PEERS)/.installed  ## compare with mmcv's compiled operators
	$(PEERS)/bin/python -m pytest -m peers tests/peers $(ARGS)

fuzz: dev  ## 23,500 random calls of the operators beside the reference (in `make test`: 2,350)
	DCNZOO_FUZZ_EXAMPLES=250 $(RUN) -m pytest -n 2 --dist worksteal tests/test_fuzz.py $(ARGS)

crash: dev  ## kill a training 50 times, resume it, compare it with one left alone, bit by bit
	OMP_NUM_THREADS=1 $(RUN) tests/crash.py work_dirs/crash --kills 50 $(ARGS)

# In a copy, whose library is built with the sanitizers. The stack's variables are left unchecked: GCC's
# instrumentation misaligns vectors of 32 bytes and more there.
SANITIZED := build/sanitized
CHECKS    := -fsanitize=address,undefined,float-cast-overflow
PRELOAD    = LD_PRELOAD="$$(for lib in asan ubsan stdc++; do g++ -print-file-name=lib$$lib.so; done | xargs)"
SUITE     := $(addprefix tests/test_, ops.py fuzz.py deform_conv.py roi_pooling.py nms.py)
sanitize: dev  ## the operators' tests with every memory access and all arithmetic checked
	rm -rf $(SANITIZED)
	mkdir -p $(SANITIZED)
	cp -r README.md LICENSE pyproject.toml setup.py dcnzoo ops tests $(SANITIZED)
	rm -f $(SANITIZED)/dcnzoo/ops/*.so
	cd $(SANITIZED) && DCNZOO_CUDA=0 CXXFLAGS="-g1 -O1 $(CHECKS) -fno-sanitize-recover=all -fno-sanitize=vptr --param=asan-stack=0" \
	  LDFLAGS="$(CHECKS)" $(abspath $(RUN)) setup.py -q build_ext --inplace
	cd $(SANITIZED) && $(PRELOAD) ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=2 \
	  $(abspath $(RUN)) -m pytest -q -p no:cacheprovider -k "not compile and not opcheck and not export" $(SUITE) $(ARGS)

# The same with the thread sanitizer. It does not see the barriers of torch's threads, so that here parallel_for has
# threads of its own, and reports are those of our library alone. First a race that it must find.
THREADED     := build/sanitized-threads
THREAD_CHECK := -g1 -O1 -fsanitize=thread -Wno-tsan -DDCNZOO_STD_THREADS=4
WATCHED       = LD_PRELOAD="$$(for lib in tsan stdc++; do g++ -print-file-name=lib$$lib.so; done | xargs)" OMP_NUM_THREADS=1 \
  TSAN_OPTIONS="halt_on_error=1 exitcode=66 ignore_noninstrumented_modules=1 report_mutex_bugs=0" $(abspath $(RUN))
sanitize-threads: dev  ## random calls of the operators from four threads, of four each, watched for races
	rm -rf $(THREADED)
	mkdir -p $(THREADED)
	cp -r README.md LICENSE pyproject.toml setup.py dcnzoo ops tests $(THREADED)
	rm -f $(THREADED)/dcnzoo/ops/*.so
	cd $(THREADED) && DCNZOO_CUDA=0 CXXFLAGS="$(THREAD_CHECK)" LDFLAGS=-fsanitize=thread $(abspath $(RUN)) setup.py -q build_ext --inplace
	cd $(THREADED) && g++ -std=c++17 -fPIC -shared $(THREAD_CHECK) -Iops tests/race.cpp -o race.so \
	  -isystem $$($(abspath $(RUN)) -c 'import torch; print(torch.__path__[0])')/include
	cd $(THREADED) && $(WATCHED) -c 'import ctypes, torch; ctypes.CDLL("./race.so").race(0)'
	cd $(THREADED) && $(WATCHED) -c 'import ctypes, torch; ctypes.CDLL("./race.so").race(1)' 2> race.log; test $$? = 66 && grep -m1 "data race" race.log
	cd $(THREADED) && $(WATCHED) -m tests.soak --seconds=$(or $(SECONDS),120) --most=9 $(ARGS)

soak: dev  ## half an hour of random calls from four threads: memory stays flat
	DCNZOO_SOAK_SECONDS=1800 $(RUN) -m pytest -s -m "" tests/test_soak.py $(ARGS)

distributed: dev  ## several processes: equal numbers, launchers, death and resumption (10 minutes)
	$(RUN) -m pytest tests/distributed $(ARGS)

bench: dev $(PEERS)/.installed  ## time and memory beside every rival (docs/benchmarks)
	$(PEERS)/bin/python tools/benchmark/ops.py $(or $(ARGS),--demo-training)

# Neither .venv nor network: where the GPU is, python3 has torch, numpy and pytest, and dcnzoo/ops/_C_*.so
# come with the working tree, built before where nvcc is: DCNZOO_CUDA=1 make setup.
gpu:  ## where a GPU is: test, tune and time the kernels (docs/benchmarks)
	$(PYTHON) tools/gpu.py $(ARGS)

zoo: setup  ## write model_zoo.md and model-index.yml from the metafiles
	$(RUN) tools/model_zoo.py

$(VENV)/.docs: $(VENV)/.dev requirements-docs.txt
	$(call EXTEND,requirements-docs.txt)
	touch $@

docs: dev $(VENV)/.docs  ## docs/_build/html/index.html
	$(RUN) -m sphinx --quiet --fail-on-warning --keep-going docs docs/_build/html $(ARGS)

# In an environment of their own: they ask for other versions of what .venv has.
AUDIT := .venv-audit
$(AUDIT)/.installed: $(VENV)/.dev requirements-audit.txt
	$(call NEW_VENV,$(AUDIT))
	$(PIP) --python $(AUDIT)/bin/python install -r requirements-audit.txt
	touch $@

audit: dev $(AUDIT)/.installed  ## security: our code (bandit), and known holes in what .venv has (pip-audit: Internet)
	$(AUDIT)/bin/bandit --quiet --configfile pyproject.toml --recursive dcnzoo tools docs setup.py
	$(AUDIT)/bin/pip-audit --strict --skip-editable --path $$($(RUN) $(SITE)) $(ARGS)

CPP := $(OPS) $(shell find tests -name '*.cpp' -o -name '*.h')
SCHEMA := $(VENV)/bin/check-jsonschema --quiet --builtin-schema vendor.
lint: dev  ## style, imports, types, shell scripts, workflows, Dockerfiles
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
	$(VENV)/bin/hadolint Dockerfile Dockerfile.cuda

format: dev  ## apply the style
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .
	$(VENV)/bin/clang-format -i $(CPP)

wheel: setup  ## dist/*.whl, one for every Python from 3.10 and torch from 2.10 on
	$(PIP) wheel --no-build-isolation --no-deps -w dist .

clean:  ## remove what was built (not .venv, data or work_dirs)
	rm -rf build dist docs/_build *.egg-info dcnzoo/ops/*.so dcnzoo/ops/schemas.txt $(VENV)/.built
