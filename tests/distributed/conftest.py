import contextlib
import os
import signal
import subprocess

import pytest

from tests.helpers.launching import ip

MACHINES = 3


def remove(name):
    for process in ip("netns", "pids", name).split():
        os.kill(int(process), signal.SIGKILL)
    ip("netns", "del", name)


@pytest.fixture(scope="module")
def machines():
    """Network namespaces at a switch; the link of machine N is eN, its address 10.77.0.(N + 1)."""
    names = [f"dcnzoo{os.getpid()}m{number}" for number in range(MACHINES)]
    switch = f"dcnzoo{os.getpid()}switch"
    with contextlib.ExitStack() as stack:
        try:
            for name in (switch, *names):
                ip("netns", "add", name)
                stack.callback(remove, name)
            subprocess.run(["unshare", "-mu", "true"], check=True, capture_output=True)
            ip("-n", switch, "link", "add", "name", "bridge", "type", "bridge")
            ip("-n", switch, "link", "set", "bridge", "up")
            for number, name in enumerate(names):
                ends = ("type", "veth", "peer", "name", f"p{number}", "netns", switch)
                ip("link", "add", f"e{number}", "netns", name, *ends)
                ip("-n", switch, "link", "set", f"p{number}", "master", "bridge", "up")
                ip("-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", f"e{number}")
                for link in ("lo", f"e{number}"):
                    ip("-n", name, "link", "set", link, "up")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"the system allows no namespaces: {getattr(error, 'stderr', error)}")
        yield names
