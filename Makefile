# The main targets are `make demo` and `make test`. Each target installs its requirements once and reuses them.
# PYTHON=python3.12 selects another Python. ARGS="…" is passed to the target's command.
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
PIP    := $(RUN) -m pip --quiet --disable-pip-version-check

# Installs into .venv with uv if it is on the PATH (`make UV= …` uses pip). `make WHEELHOUSE=wheelhouse …`
# installs from a folder of wheels. --no-compile: Python compiles modules when it imports them.
UV     := $(shell command -v uv)
INSTALL = $(if $(UV),$(UV) pip install --quiet --python $(RUN),$(PIP) install --no-compile) $(if $(WHEELHOUSE),--no-index --find-links $(WHEELHOUSE))

OPS := $(shell find ops -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.cuh')

.DEFAULT_GOAL := help
.PHONY: help setup dev wheelhouse demo study test test-all test-onedl test-others test-packaging test-matrix test-compilers test-arm coverage coverage-export coverage-openmmlab peers fuzz crash sanitize sanitize-threads soak distributed bench gpu gpu-resources zoo docs audit lint format wheel clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

setup: $(VENV)/.built  ## create .venv for training and compile the operators into dcnzoo/ops

dev: setup $(VENV)/.dev  ## also install the requirements of tests, lint and export into .venv

# An interrupted installation leaves .installing; .venv is then deleted and created again.
$(VENV)/.installed: requirements.txt requirements-openmmlab.txt .ci/opencv-python/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15) and "make setup: expected Python 3.10 to 3.14, got %s, %s; choose one: make PYTHON=python3.12 …" % (sys.version.split()[0], sys.executable))'
	test ! -e $(VENV)/.installing || rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	touch $(VENV)/.installing
	$(INSTALL) -r requirements.txt
	$(INSTALL) --no-deps -r requirements-openmmlab.txt
	$(INSTALL) --no-deps --no-build-isolation ./.ci/opencv-python
	mv $(VENV)/.installing $@

# Installs more packages into .venv. An interruption also leaves .installing; a failure (no network) does not.
EXTEND = mv $(VENV)/.installed $(VENV)/.installing; $(INSTALL) -r $(1); \
  failed=$$?; mv $(VENV)/.installing $(VENV)/.installed; exit $$failed

$(VENV)/.dev: $(VENV)/.installed requirements-dev.txt requirements-export.txt
	$(call EXTEND,requirements-dev.txt)
	touch $@

$(VENV)/.built: $(VENV)/.installed setup.py pyproject.toml $(OPS)
	$(INSTALL) --no-build-isolation --no-deps -e .
	-$(RUN) -m dcnzoo doctor  # a problem, such as a GPU without its torch, does not stop the target
	touch $@

wheelhouse: setup  ## collect the packages for `make demo` and `make test` in wheelhouse/, for offline machines
	$(PIP) wheel --wheel-dir wheelhouse -r requirements-dev.txt
	$(PIP) wheel --wheel-dir wheelhouse --no-deps -r requirements-openmmlab.txt

demo: setup  ## train the demo with and without DCNv2 and write a report (SEEDS=3 for mean ± spread)
	$(RUN) tools/demo.py --seeds $(or $(SEEDS),1) $(ARGS)

study: setup  ## test the papers' claims with 85 trainings: docs/study.md (about 3 hours; resumable)
	$(RUN) -m benchmarks.study $(ARGS)

test: dev  ## run the tests (about 8 minutes on two idle cores)
	$(RUN) -m pytest -n 2 --dist worksteal -m "not slow and not peers and not environments" $(ARGS)

test-all: dev  ## run the tests, including the slow ones
	$(RUN) -m pytest -n 2 --dist worksteal -m "not peers and not environments" $(ARGS)

# Packages that would overwrite others in .venv, or need another torch, get separate environments. These see
# the other packages of .venv through a .pth file.
SITE      = -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
NEW_VENV  = rm -rf $(1) && $(RUN) -m venv --without-pip $(1)
SEE_VENV  = echo "import site; site.addsitedir('$$($(RUN) $(SITE))')" > $$($(1)/bin/python $(SITE))/venv.pth
ELSEWHERE = -m pytest -m environments

# The forks. mmcv is built before torch is visible, so that it is built without its operators.
ONEDL := .venv-onedl
$(ONEDL)/.installed: $(VENV)/.dev requirements-onedl.txt
	$(call NEW_VENV,$(ONEDL))
	$(PIP) --python $(ONEDL)/bin/python install --no-deps -r requirements-onedl.txt
	$(call SEE_VENV,$(ONEDL))
	touch $@

test-onedl: dev $(ONEDL)/.installed  ## test with the forks of OpenMMLab's packages
	$(ONEDL)/bin/python $(ELSEWHERE) tests/environments/test_smoke.py tests/environments/test_onedl.py $(ARGS)

# With a matching pair of torch and torchvision: 6 GB.
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

# OpenMMLab's other packages; uses torchvision and mmpretrain of .venv-others.
OPENMMLAB := .venv-openmmlab
$(OPENMMLAB)/.installed: $(OTHERS)/.installed requirements-openmmlab-others.txt
	$(call NEW_VENV,$(OPENMMLAB))
	echo "import site; site.addsitedir('$$($(OTHERS)/bin/python $(SITE))')" > $$($(OPENMMLAB)/bin/python $(SITE))/venv.pth
	$(PIP) --python $(OPENMMLAB)/bin/python install --no-deps -r requirements-openmmlab-others.txt
	touch $@

test-others: dev $(OTHERS)/.installed $(TRANSFORMERS)/.installed $(OPENMMLAB)/.installed  ## test with torchvision, timm, transformers, YOLO, OpenMMLab's other packages, more of MMDetection
	$(OTHERS)/bin/python $(ELSEWHERE) $(addprefix tests/environments/test_, smoke.py others.py torchvision.py timm.py hub.py yolo.py) $(ARGS)
	$(TRANSFORMERS)/bin/python $(ELSEWHERE) tests/environments/test_transformers.py $(ARGS)
	$(OPENMMLAB)/bin/python $(ELSEWHERE) tests/environments/test_openmmlab.py $(ARGS)

PACKAGING := build/packaging
test-packaging: dev  ## build an sdist and its wheel, and test the wheel in bare environments (5 GB each)
	rm -rf $(PACKAGING)
	$(RUN) setup.py -q sdist --dist-dir $(PACKAGING)
	$(RUN) -m pip --disable-pip-version-check wheel --no-deps -w $(PACKAGING) $(PACKAGING)/*.tar.gz
	PYTHONPATH=tests/packaging:. $(RUN) tools/test_wheel.py $(PACKAGING)/*.whl $(ARGS)

MATRIX := build/matrix
test-matrix: dev  ## build a wheel; train and test with it under other Pythons and other torches (5 GB each)
	rm -rf $(MATRIX)
	$(PIP) wheel --no-build-isolation --no-deps -w $(MATRIX) .
	PYTHONPATH=. $(RUN) tests/packaging/test_matrix.py $(MATRIX)/*.whl $(ARGS)

# For builds with other options: the sources without compiled operators, in a new folder
COPY_SOURCES = rm -rf $(1) && mkdir -p $(1) && cp -r README.md LICENSE pyproject.toml setup.py dcnzoo ops tests $(1) && \
  rm -f $(1)/dcnzoo/ops/*.so

test-compilers: dev  ## compile with every installed GCC and Clang without warnings, and test the operators
	PYTHONPATH=. $(RUN) tests/packaging/test_compilers.py $(ARGS)

# Linux on Arm, emulated: apt install qemu-user-static g++-aarch64-linux-gnu mmdebstrap
ARM := .venv-arm
$(ARM)/.installed: $(VENV)/.dev requirements-arm.txt
	rm -rf $(ARM) && mkdir $(ARM)
	mmdebstrap --quiet --variant=extract --architectures=arm64 --include=python3,libstdc++6 bookworm $(ARM)/root
	$(PIP) install --no-compile --no-deps --target $(ARM)/site --implementation cp --python-version 3.11 \
	  --only-binary=:all: --platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64 -r requirements-arm.txt
	touch $@

test-arm: dev $(ARM)/.installed  ## cross-compile for Linux on Arm and test some of the operators' cases, emulated
	PYTHONPATH=. $(RUN) tests/packaging/test_compilers.py --arm $(ARGS)

# One config per family. Results are in work_dirs/*.xml; ARGS="-k atss" tests some families without writing a page.
TABLE := -m benchmarks.coverage.table
cover = -m pytest -q benchmarks/coverage/test_$(1).py --junitxml=work_dirs/$(2).xml $(ARGS)
coverage: dev $(OTHERS)/.installed  ## try a config of each of MMDetection's families: docs/mmdet_coverage.md, docs/deformable_configs.md
	-$(RUN) $(call cover,mmdet,mmdet)
	-$(OTHERS)/bin/python $(call cover,mmdet,mmdet_others)
	-$(RUN) $(call cover,deformable,deformable)
	test -n "$(ARGS)" || $(RUN) $(TABLE) docs/mmdet_coverage.md work_dirs/mmdet.xml work_dirs/mmdet_others.xml
	test -n "$(ARGS)" || $(RUN) $(TABLE) docs/deformable_configs.md work_dirs/deformable.xml

coverage-export: dev $(OTHERS)/.installed  ## export a config of each of MMDetection's families: docs/export_coverage.md (about three hours)
	-$(RUN) $(call cover,export,export)
	-$(OTHERS)/bin/python $(call cover,export,export_others)
	test -n "$(ARGS)" || $(RUN) $(TABLE) docs/export_coverage.md work_dirs/export.xml work_dirs/export_others.xml

coverage-openmmlab: dev $(OPENMMLAB)/.installed  ## try a config of each family of OpenMMLab's other packages: docs/openmmlab_coverage.md
	-$(OPENMMLAB)/bin/python $(call cover,openmmlab,openmmlab)
	test -n "$(ARGS)" || $(RUN) $(TABLE) docs/openmmlab_coverage.md work_dirs/openmmlab.xml

# Packages to compare with. mmcv is compiled (6–15 minutes on 2 cores) unless you have a wheel:
# make peers MMCV_WHEEL=mmcv-2.1.0-….whl
PEERS      := .venv-peers
MMCV_WHEEL ?= $(firstword $(wildcard ../shared/peers/mmcv-2.1.0-*.whl))
$(PEERS)/.installed: $(VENV)/.dev requirements-peers.txt
	$(call NEW_VENV,$(PEERS))
	$(call SEE_VENV,$(PEERS))
	MMCV_WITH_OPS=1 $(PIP) --python $(PEERS)/bin/python install --no-deps --no-build-isolation $(or $(MMCV_WHEEL),mmcv==2.1.0)
	$(PIP) --python $(PEERS)/bin/python install -r requirements-peers.txt
	$(PIP) --python $(PEERS)/bin/python install --no-deps --no-build-isolation torch-ms-deform-attn==0.1.1
	touch $@

peers: dev $(PEERS)/.installed  ## compare with mmcv's compiled operators
	$(PEERS)/bin/python -m pytest -m peers tests/peers $(ARGS)

fuzz: dev  ## compare 23,500 random calls of the operators with the reference (in `make test`: 2,350)
	DCNZOO_FUZZ_EXAMPLES=250 $(RUN) -m pytest -n 2 --dist worksteal tests/test_fuzz.py $(ARGS)

crash: dev  ## kill and resume a training 50 times, compare it with an uninterrupted one bit by bit
	OMP_NUM_THREADS=1 $(RUN) tests/crash.py work_dirs/crash --kills 50 $(ARGS)

# Builds a copy with the sanitizers. Stack variables are not checked: GCC's instrumentation misaligns vectors
# of 32 bytes and more on the stack.
SANITIZED := build/sanitized
CHECKS    := -fsanitize=address,undefined,float-cast-overflow
PRELOAD    = LD_PRELOAD="$$(for lib in asan ubsan stdc++; do g++ -print-file-name=lib$$lib.so; done | xargs)"
SUITE     := $(addprefix tests/test_, ops.py fuzz.py deform_conv.py roi_pooling.py nms.py)
sanitize: dev  ## run the operators' tests with checks of all memory accesses and arithmetic
	$(call COPY_SOURCES,$(SANITIZED))
	cd $(SANITIZED) && DCNZOO_CUDA=0 CXXFLAGS="-g1 -O1 $(CHECKS) -fno-sanitize-recover=all -fno-sanitize=vptr --param=asan-stack=0" \
	  LDFLAGS="$(CHECKS)" $(abspath $(RUN)) setup.py -q build_ext --inplace
	cd $(SANITIZED) && $(PRELOAD) ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=2 \
	  $(abspath $(RUN)) -m pytest -q -p no:cacheprovider -k "not compile and not opcheck and not export" $(SUITE) $(ARGS)

# The same with the thread sanitizer. It cannot see the barriers of torch's threads, so parallel_for uses its
# own threads here, and only races in our library are reported. The first run has a race that it must find.
THREADED     := build/sanitized-threads
THREAD_CHECK := -g1 -O1 -fsanitize=thread -Wno-tsan -DDCNZOO_STD_THREADS=4
WATCHED       = LD_PRELOAD="$$(for lib in tsan stdc++; do g++ -print-file-name=lib$$lib.so; done | xargs)" OMP_NUM_THREADS=1 \
  TSAN_OPTIONS="halt_on_error=1 exitcode=66 ignore_noninstrumented_modules=1 report_mutex_bugs=0" $(abspath $(RUN))
sanitize-threads: dev  ## check random calls from four threads, with four threads each, for data races
	$(call COPY_SOURCES,$(THREADED))
	cd $(THREADED) && DCNZOO_CUDA=0 CXXFLAGS="$(THREAD_CHECK)" LDFLAGS=-fsanitize=thread $(abspath $(RUN)) setup.py -q build_ext --inplace
	cd $(THREADED) && g++ -std=c++17 -fPIC -shared $(THREAD_CHECK) -Iops tests/race.cpp -o race.so \
	  -isystem $$($(abspath $(RUN)) -c 'import torch; print(torch.__path__[0])')/include
	cd $(THREADED) && $(WATCHED) -c 'import ctypes, torch; ctypes.CDLL("./race.so").race(0)'
	cd $(THREADED) && $(WATCHED) -c 'import ctypes, torch; ctypes.CDLL("./race.so").race(1)' 2> race.log; test $$? = 66 && grep -m1 "data race" race.log
	cd $(THREADED) && $(WATCHED) -m tests.soak --seconds=$(or $(SECONDS),120) --most=9 $(ARGS)

soak: dev  ## check that memory does not grow in half an hour of random calls from four threads
	DCNZOO_SOAK_SECONDS=1800 $(RUN) -m pytest -s -m "" tests/test_soak.py $(ARGS)

distributed: dev  ## test distributed training: results, launchers, killed processes, resuming (10 minutes)
	$(RUN) -m pytest tests/distributed $(ARGS)

bench: dev $(PEERS)/.installed  ## compare time and memory with other packages (docs/benchmarks)
	$(PEERS)/bin/python -m benchmarks.ops $(ARGS)

# Uses neither .venv nor network: the machine with the GPU needs python3 with torch, numpy and pytest, and a
# working tree with dcnzoo/ops/_C_*.so, built on a machine with nvcc by DCNZOO_CUDA=1 make setup.
# One part of four: make gpu ARGS=correctness (tuning, benchmark, training).
gpu:  ## test, tune and time the kernels on a GPU, and train with them (docs/gpu.md)
	$(PYTHON) -m benchmarks.gpu $(ARGS)

# The Triton of torch 2.11; .venv has the one of torch 2.13.
TRITON := .venv-triton
$(TRITON)/.installed: $(VENV)/.dev
	$(call NEW_VENV,$(TRITON))
	$(call SEE_VENV,$(TRITON))
	$(PIP) --python $(TRITON)/bin/python install --no-deps triton==3.6.0
	touch $@

gpu-resources: dev $(TRITON)/.installed  ## compile the fused kernels for GPUs with Triton 3.6.0 and check them
	$(TRITON)/bin/python -m pytest tests/fused/test_resources.py $(ARGS)

zoo: setup  ## write model_zoo.md and model-index.yml from the metafiles
	$(RUN) tools/model_zoo.py

$(VENV)/.docs: $(VENV)/.dev requirements-docs.txt
	$(call EXTEND,requirements-docs.txt)
	touch $@

docs: dev $(VENV)/.docs  ## build the documentation: docs/_build/html/index.html
	$(RUN) -m sphinx --quiet --fail-on-warning --keep-going docs docs/_build/html $(ARGS)

# A separate environment: these tools require other versions of packages in .venv.
AUDIT := .venv-audit
$(AUDIT)/.installed: $(VENV)/.dev requirements-audit.txt
	$(call NEW_VENV,$(AUDIT))
	$(PIP) --python $(AUDIT)/bin/python install -r requirements-audit.txt
	touch $@

audit: dev $(AUDIT)/.installed  ## check our code (bandit) and .venv (pip-audit, needs Internet) for vulnerabilities
	$(AUDIT)/bin/bandit --quiet --configfile pyproject.toml --recursive dcnzoo tools docs setup.py
	$(AUDIT)/bin/pip-audit --strict --skip-editable --path $$($(RUN) $(SITE)) $(ARGS)

CPP := $(OPS) $(shell find tests -name '*.cpp' -o -name '*.h')
SCHEMA := $(VENV)/bin/check-jsonschema --quiet --builtin-schema vendor.
lint: dev  ## check style, imports, types, shell scripts, workflows, Dockerfiles
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

wheel: setup  ## build dist/*.whl, one for Python ≥ 3.10 and torch ≥ 2.10
	$(PIP) wheel --no-build-isolation --no-deps -w dist .

clean:  ## remove build results (not .venv, data or work_dirs)
	rm -rf build dist docs/_build *.egg-info dcnzoo/ops/*.so dcnzoo/ops/schemas.txt $(VENV)/.built
