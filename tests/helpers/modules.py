"""Helpers for tests of modules."""

from collections.abc import Callable

import torch
from torch import nn


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The keys and shapes of its state dict."""
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def randomise(module: nn.Module, std: float = 0.3) -> nn.Module:
    """Set every parameter to normally distributed values, the same in each call."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
    return module


def assert_same(
    output: torch.Tensor, expected: torch.Tensor, leaves: list[torch.Tensor], tolerance: float = 1e-9
) -> None:
    """Compare two outputs and their gradients with respect to ``leaves``."""
    results = ([o, *torch.autograd.grad(o.square().sum(), leaves)] for o in (output, expected))
    torch.testing.assert_close(*results, atol=tolerance, rtol=tolerance)


def record_calls(monkeypatch, table: dict) -> set:
    """Return a set that receives the key of each function of a table when it is called."""
    called = set()

    def recorded(key, function):
        return lambda *arguments, **options: called.add(key) or function(*arguments, **options)

    for key, function in table.items():
        monkeypatch.setitem(table, key, recorded(key, function))
    return called


def module_of(function: Callable) -> nn.Module:
    """A module whose forward is a function."""
    module = nn.Module()
    module.forward = function
    return module.eval()
