"""CPU seconds of imports, fixtures and tests: ``pytest -p tests.times``, or ``nox -s times``.

The seconds of processes that a test starts count for it. A module that several files import counts for the
first of them, and a fixture for the test files that share it.
"""

import os
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

TICKS = os.sysconf("SC_CLK_TCK")
SHOWN = 25  # rows of each table
seconds: Counter = Counter()  # of (kind, name)


def cpu_seconds() -> float:
    """Of this process, and of those that it has started, also while they run."""
    total, waiting = sum(os.times()[:4]), [os.getpid()]
    while waiting:
        number = waiting.pop()
        with suppress(OSError):  # it has ended
            for task in Path(f"/proc/{number}/task").iterdir():
                waiting += (children := (task / "children").read_text().split())
                for child in children:
                    fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                    total += sum(map(int, fields[11:15])) / TICKS  # its own and those of its children
    return total


@contextmanager
def measured(kind: str, name: str):
    before = cpu_seconds()
    try:
        yield
    finally:
        seconds[kind, name] += cpu_seconds() - before


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    if not isinstance(collector, pytest.Module):
        return (yield)
    with measured("import", collector.nodeid):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    with measured("fixture", f"{request.node.nodeid.partition('::')[0]} {fixturedef.argname}"):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    with measured("test", item.nodeid):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item):
    with measured("test", item.nodeid):
        return (yield)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Take what a worker of xdist has measured."""
    for (kind, name), value in getattr(node, "workeroutput", {}).get("times", ()):
        seconds[kind, name] += value


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["times"] = list(seconds.items())


def pytest_terminal_summary(terminalreporter):
    tables: dict[str, Counter] = {name: Counter() for name in ("folder", "import", "fixture", "test")}
    for (kind, name), value in seconds.items():
        tables[kind][name] += value
        tables["folder"][os.path.dirname(name.partition(" ")[0].partition("::")[0])] += value
    for title, table in tables.items():
        terminalreporter.section(f"CPU seconds by {title}: {table.total():.0f}")
        for name, value in table.most_common(SHOWN):
            terminalreporter.write_line(f"{value:8.2f}  {name}")
