"""Run the code of other projects on dcnzoo's operators, at a commit of their public repository.

::

    python -m benchmarks.projects                # all of benchmarks.projects.models.py
    python -m benchmarks.projects FairMOT STDF   # some

Clones go to a folder of the system's temporary files and stay unmodified. Each project runs in a process of
its own, on the CPU, with small inputs and random weights: the model is built by the project's code, predicts,
propagates gradients and makes a training step. For another commit, change a record, run this, and write the
date. ``nox -s projects`` installs the packages that the projects import.
"""

import argparse
import contextlib
import datetime
import multiprocessing
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.projects.models import DETECTRON2, PROJECTS, Project, Trial
from dcnzoo.compat import provide

FOLDER = Path(tempfile.gettempdir()) / "dcnzoo-projects"
SECONDS = 600
FORK = multiprocessing.get_context("fork")  # inherits torch, whose import takes seconds


def check_out(project: Project) -> Path:
    """Return a clone at the project's commit."""
    repository, _, commit = project.source.partition("@")
    folder = FOLDER / repository.replace("/", "+")
    git = ("git", "-C", str(folder))
    if not folder.exists():
        subprocess.run(["git", "init", "-q", str(folder)], check=True)
        address = f"https://github.com/{repository}"
        subprocess.run([*git, "remote", "add", "origin", address], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    if head != commit:
        subprocess.run([*git, "fetch", "-q", "--depth", "1", "origin", commit], check=True)
        subprocess.run([*git, "checkout", "-q", "-f", commit], check=True)
    return folder


def install(package: str) -> Path:
    """Install a package that the others in the environment do not need; return its folder."""
    folder = FOLDER / "packages" / package
    if not folder.exists():
        pip = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation")
        environment = {**os.environ, "MMCV_WITH_OPS": "0"}
        subprocess.run([*pip, "--target", str(folder), package], check=True, env=environment)
    return folder


class Operators(TorchDispatchMode):
    """Collects the names of dcnzoo's operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator.namespace == "dcnzoo":
            self.names.add(operator._schema.name)
        return operator(*args, **(kwargs or {}))


def tensors(node: object) -> Iterator[Tensor]:
    """Yield the floating-point tensors in nested containers and objects with fields."""
    if isinstance(node, Tensor):
        if node.is_floating_point():
            yield node
    elif isinstance(node, dict):
        yield from tensors(list(node.values()))
    elif isinstance(node, list | tuple):
        for value in node:
            yield from tensors(value)


def gradients(trial: Trial) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs of a model, and the gradients of their mean square by its parameters."""
    torch.manual_seed(1)  # dropout
    trial.model.zero_grad()
    outputs = [output for output in tensors(trial.call()) if output.requires_grad]
    sum(output.double().square().mean() for output in outputs).backward()
    parameters = [each.grad for each in trial.model.parameters() if each.grad is not None]
    return [output.detach() for output in outputs], parameters


def differ(actual: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative difference of the tensors of two lists, by their norms.

    Of a small tensor: relative to a hundredth of the largest norm.
    """
    floor = max(float(tensor.norm()) for tensor in expected) / 100
    pairs = zip(actual, expected, strict=True)
    return max(float((a - b).norm() / b.norm().clamp(min=floor)) for a, b in pairs)


def run(project: Project) -> str:
    """Run a project in this process; return how it compares with its own PyTorch code.

    Raises:
        AssertionError: the operators did not run, or a result is not as the record says.
    """
    folders = [Path.cwd() / folder for folder in project.path] + [*map(install, project.packages)]
    sys.path[:0] = map(str, folders)
    sys.dont_write_bytecode = True
    sys.argv = sys.argv[:1]  # projects parse it
    if project.provide:
        provide(*project.provide)
    with contextlib.ExitStack() as stack:
        if project.cpu:
            from dcnzoo.compat.cpu import on_cpu

            stack.enter_context(on_cpu())
        torch.manual_seed(0)
        trial = project.build()
        for parameter in trial.model.parameters():  # offsets that are not zero
            parameter.data.add_(torch.randn_like(parameter) * 0.01)
        with Operators() as operators:
            results = gradients(trial)
        backward = [name for name in operators.names if "backward" in name]
        if not backward or len(backward) == len(operators.names):
            raise AssertionError(f"dcnzoo's operators did not run in both directions: {operators.names}")
        if not all(tensor.isfinite().all() for tensors in results for tensor in tensors):
            raise AssertionError("an output or a gradient is not finite")
        before = [parameter.detach().clone() for parameter in trial.model.parameters()]
        compared = ""
        if trial.own:
            with trial.own():
                expected = gradients(trial)
            errors = list(map(differ, results, expected))
            if max(errors) > 5e-3:  # a ReLU close to zero opens in one of the runs
                raise AssertionError(f"expected the results of the project's own code, got {errors}")
            compared = f", equal to its own PyTorch code to {max(errors):.0e}"
        torch.optim.SGD(trial.model.parameters(), 1e-3).step()
        if all(map(torch.equal, before, trial.model.parameters())):
            raise AssertionError("the training step changed nothing")
        if ("*equal*" in project.ran) != bool(compared):
            raise AssertionError(f"expected the record to mention the comparison or not, got {project.ran!r}")
        return f"{project.ran.removesuffix(', *equal*')}{compared}"


def run_apart(project: Project) -> str:
    """Run a project in a forked process, which writes what it prints to a file."""
    folder = check_out(project)
    if DETECTRON2 in project.path:
        check_out(PROJECTS["detectron2"])
    receiver, sender = FORK.Pipe(duplex=False)

    def child() -> None:
        with open(f"{folder}.log", "w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            os.chdir(folder)
            try:
                result = run(project)
            except BaseException as error:
                traceback.print_exc()
                result = f"{type(error).__name__}: {error}"
            sender.send(result)

    process = FORK.Process(target=child)
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(SECONDS) else "no result"
    except EOFError:
        return f"the process ended: {folder}.log"
    finally:
        process.kill()


def main() -> None:
    torch.set_num_threads(1)  # threads do not survive a fork
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="PROJECT", help="default: all")
    for name in parser.parse_args().names or list(PROJECTS):
        result = run_apart(PROJECTS[name])
        print(
            f"{name}: {PROJECTS[name].source.partition('@')[2][:7]}, {datetime.date.today()}: {result}",
            flush=True,
        )


if __name__ == "__main__":
    main()
