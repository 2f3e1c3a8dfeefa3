import gc
import importlib
import os
import random
import sys
import weakref
import zlib
from types import SimpleNamespace

# Set before torch is imported. The workers of `-n 2` already use all cores. With two threads each, which
# spin while they wait for each other, the tests take twice as long.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# torch keeps compiled code in a folder that all clones of a machine share
os.environ.setdefault(
    "TORCHINDUCTOR_CACHE_DIR",
    os.path.abspath(os.path.join(os.path.dirname(__file__), os.pardir, "build", "inductor")),
)

import numpy as np
import pytest
import torch
from torch.utils.data import dataloader

import dcnzoo  # noqa: F401  before any import of mmcv.ops, which needs the compiled module

pytest.register_assert_rewrite("tests.helpers")


@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    """Exclude the existing objects from garbage collection, and let mmengine start none for each data set.

    With so many modules, a collection is slow. yapf, which formats the text of a config, takes a second.
    """
    gc.collect()
    gc.freeze()
    if "mmengine" in sys.modules:
        importlib.import_module("mmengine.dataset.base_dataset").gc = SimpleNamespace(collect=int)
        config = importlib.import_module("mmengine.config.config")
        config.FormatCode = lambda text, **options: (f"{text}\n", True)


def pytest_terminal_summary(terminalreporter):
    from dcnzoo import ops

    terminalreporter.write_line(f"cpu capability: {ops.cpu_capability()}")


def seed(request):
    """Give a test the same random numbers whichever tests ran before, on every worker."""
    number = zlib.crc32(request.node.nodeid.encode())
    # torch.manual_seed formats a stack trace for each kind of device that is not initialised: 0.5 ms
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002  mmengine draws the seed of a training from it


seed_of_test = pytest.fixture(seed, autouse=True)
seed_of_module = pytest.fixture(seed, autouse=True, scope="module")  # module fixtures run first


@pytest.fixture(autouse=True)
def no_run_left_behind():
    yield
    if "mmengine" in sys.modules:  # tests that do not import it, such as those on a GPU, need no click either
        from tests.helpers.commands import forget_runs

        forget_runs()


@pytest.fixture(autouse=True)
def no_workers_left_behind(monkeypatch):
    """Stop data loader workers. Left to the garbage collector, each worker of a Runner takes torch 5 s."""
    iterators = weakref.WeakSet()
    begin = dataloader._MultiProcessingDataLoaderIter.__init__

    def begin_and_remember(self, loader):
        begin(self, loader)
        iterators.add(self)

    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter, "__init__", begin_and_remember)

    def end_workers():
        for iterator in iterators:
            iterator._shutdown_workers()

    yield end_workers
    end_workers()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write a module and its parent packages: ``package("basicsr.ops.dcn.deform_conv", "…")``.

    Modules that were imported from them are forgotten after the test.
    """
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, text: str = "") -> str:
        *folders, module = name.split(".")
        folder = tmp_path
        for each in folders:
            folder /= each
            folder.mkdir(exist_ok=True)
            (folder / "__init__.py").touch()
        (folder / f"{module}.py").write_text(text)
        importlib.invalidate_caches()
        return name

    yield write
    for name, module in list(sys.modules.items()):
        if str(tmp_path) in repr(getattr(module, "__spec__", None)):  # also packages without a file
            del sys.modules[name]


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
