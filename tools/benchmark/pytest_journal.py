"""A plugin for pytest that writes every result to a journal at once: ``-p pytest_journal --journal=FILE``.

With pytest-xdist, a worker ends after a test that has ended its CUDA context, because all later tests would
fail. pytest-xdist starts another worker.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from journal import Journal, gpu_is_lost, key


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--journal", type=Path)


def pytest_configure(config: pytest.Config) -> None:
    plugin = ExitWithoutGpu() if hasattr(config, "workerinput") else Recorder(config.getoption("--journal"))
    config.pluginmanager.register(plugin)


class Recorder:
    def __init__(self, path: Path) -> None:
        self.journal = Journal(path, 0)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.journal.start({"test": nodeid})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        job = {"test": report.nodeid}
        if self.failed(job) or (report.when != "call" and report.passed):
            return  # the worker that exits after a failed test is reported as another failure
        result = {"outcome": report.outcome, "seconds": round(report.duration, 2)}
        if not report.passed:
            result["problem"] = reason(report)
        self.journal.finish(job, result, show=report.failed)

    def failed(self, job: dict) -> bool:
        return "problem" in (self.journal.known.get(key(job), (job, None))[1] or ())


def reason(report: pytest.TestReport) -> str:
    """Return the error, or why the test was skipped, in one line."""
    if report.skipped:
        return str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    crash = getattr(report.longrepr, "reprcrash", None)
    return " ".join(str(crash.message if crash else report.longrepr).split())[:300]


class ExitWithoutGpu:
    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self):
        result = yield
        if gpu_is_lost():
            os._exit(1)
        return result
