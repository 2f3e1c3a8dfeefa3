"""What a test leaves behind in its process: ``pytest -p tests.state``, or ``nox -s state``.

The process is compared before and after each test; differences are printed at the end and make the status 1.
What libraries keep for good when they are first used is in ``LASTING``. ``--order 1`` runs the files, and the
tests of each file, in a random order; another number, in another.
"""

import contextlib
import gc
import logging
import os
import re
import resource  # noqa: TID251  a program of Linux
import signal
import sys
import threading
import zlib

import pytest
import torch

LIMITS = {name: getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
LASTING = [
    r"environment: (PYTEST_CURRENT_TEST|PYTEST_VERSION)$",  # pytest's own
    # set by torch's compiler at its first use, for good
    r"environment: (TORCHINDUCTOR_CACHE_DIR|TRITON_\w+)$",
    r"(environment: |value of )_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR",
    r"recursion: (1000|2000), excepthook: <built-in",
    r"signal: 17 (0|<function _set_SIGCHLD_handler)",  # torch's first data loader with workers
    r"thread: (QueueFeederThread|Thread-\d+( \(_serve\))?)$",  # the pool of tests/fused
    r"file: (/dev/|anon_inode|socket|pipe|.*\.(so|lock|json|py|pt2|ttf)\b)",  # of event loops and of caches
    r"thread: (Thread-\d+ \((_read_thread|_monitor|_run)\)|pymp|ThreadPoolExecutor|InductorSubproc|tqdm)",
    r"finder: (_SixMetaPathImporter|.*EditableFinder)",
]
differences: dict[str, list[str]] = {}


def snapshot() -> set[str]:
    """Return what a test can change, one text for each thing."""
    numbers = [*range(1, signal.NSIG)]
    files = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            files.add(os.readlink(f"/proc/self/fd/{number}"))
    return {
        *(f"limit: {name} {resource.getrlimit(limit)}" for name, limit in LIMITS.items()),
        *(f"environment: {name}" for name in os.environ),
        *(
            f"value of {name}: {value}"
            for name, value in os.environ.items()
            if name not in ("PYTEST_CURRENT_TEST",)
        ),
        *(f"signal: {number} {signal.getsignal(number)}" for number in numbers),
        *(f"thread: {thread.name}" for thread in threading.enumerate()),
        *(f"file: {re.sub(r':.[0-9]+.$', '', name)}" for name in files),
        *(f"finder: {getattr(finder, '__name__', type(finder).__name__)}" for finder in sys.meta_path),
        f"folder: {os.getcwd()}",
        f"dtype: {torch.get_default_dtype()}, device: {torch.get_default_device()}",
        f"threads of torch: {torch.get_num_threads()}",
        f"gradients: {torch.is_grad_enabled()}, {torch.is_inference_mode_enabled()}",
        f"deterministic: {torch.are_deterministic_algorithms_enabled()}",
        f"logging: raiseExceptions {logging.raiseExceptions}, disable {logging.root.manager.disable}",
        f"recursion: {sys.getrecursionlimit()}, excepthook: {sys.excepthook}",
    }


def lasting(text: str) -> bool:
    return any(re.match(pattern, text) for pattern in LASTING)


def pytest_addoption(parser):
    parser.addoption("--order", help="run the tests in a random order, by this number")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    if (order := config.getoption("--order")) is not None:
        # files together, for the fixtures of modules
        items.sort(key=lambda item: [zlib.crc32(f"{order}{x}".encode()) for x in (item.path, item.nodeid)])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    before = snapshot()
    result = yield
    if snapshot() != before:
        gc.collect()  # the traceback of an expected exception keeps files open
    after = snapshot()
    same_module = nextitem is not None and nextitem.path == item.path
    changed = [f"+ {text}" for text in after - before] + [f"- {text}" for text in before - after]
    changed = sorted(text for text in changed if not lasting(text[2:]))
    if changed and not same_module:
        differences[item.nodeid] = changed
    elif changed:
        differences.setdefault(f"{item.nodeid} (until its module ends?)", changed)
    return result


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Take what a worker of xdist has found."""
    differences.update(getattr(node, "workeroutput", {}).get("state", {}))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["state"] = differences
    if differences and exitstatus == 0:
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter):
    terminalreporter.section(f"{len(differences)} tests change the process")
    for test, changed in differences.items():
        terminalreporter.write_line(test)
        for text in changed:
            terminalreporter.write_line(f"    {text[:200]}")
