"""Windows, as the files of dcnzoo see it. With this folder on PYTHONPATH, Python imports it in each process.

Other packages need POSIX's modules on Linux and keep them. For all packages, processes are spawned, and files
that are open, and their folders, are neither renamed nor removed.
"""

import builtins
import multiprocessing
import os
import types
import warnings
from multiprocessing import context

POSIX = {"fcntl", "grp", "pty", "pwd", "resource", "termios"}
ABSENT = {"sysconf", "fork", "getuid", "sched_getaffinity", "statvfs", "killpg"}
import_module = builtins.__import__


def open_files(path):
    """List the files that this process has open at a path, or below it."""
    path, files = os.path.realpath(path), []
    for number in os.listdir("/proc/self/fd"):
        try:
            files.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:  # that of listdir
            continue
    return [file for file in files if f"{file}/".startswith(f"{path}/")]


def refusing_open_files(function):
    def changed(*paths, **options):
        names = [path for path in paths if isinstance(path, str | os.PathLike) and "dir_fd" not in options]
        if files := [file for path in names for file in open_files(path)]:
            raise PermissionError(13, "[WinError 32] another process uses the file", files[0])
        return function(*paths, **options)

    return changed


for name in ("rename", "replace", "unlink", "remove", "rmdir"):
    setattr(os, name, refusing_open_files(getattr(os, name)))
windows = types.ModuleType("os")
vars(windows).update({name: value for name, value in vars(os).items() if name not in ABSENT}, name="nt")


def imported(name, globals=None, locals=None, fromlist=(), level=0):
    if ((globals or {}).get("__package__") or "").partition(".")[0] == "dcnzoo":
        if name.partition(".")[0] in POSIX:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if name == "os":
            return windows
    return import_module(name, globals, locals, fromlist, level)


builtins.__import__ = imported
context._concrete_contexts["fork"] = context._concrete_contexts["spawn"]  # MMEngine sets fork on Linux
multiprocessing.set_start_method("spawn")
warnings.filterwarnings("error", category=EncodingWarning, module=r"dcnzoo\b")
