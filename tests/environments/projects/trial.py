"""Compare a model's results on dcnzoo's operators with those in plain PyTorch, for the other programs."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Operators(TorchDispatchMode):
    """Collects the names of dcnzoo's operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator.namespace == "dcnzoo":
            self.names.add(operator._schema.name)
        return operator(*args, **(kwargs or {}))


def results(model: nn.Module, call: Callable[[], object]) -> list[Tensor]:
    """The outputs, and the gradients of their mean square with respect to the parameters."""
    torch.manual_seed(1)  # dropout, and the picture
    model.zero_grad()
    outputs = [x for x in tree_leaves(call()) if isinstance(x, Tensor) and x.requires_grad]
    sum(output.double().square().mean() for output in outputs).backward()
    return [
        *(output.detach() for output in outputs),
        *(p.grad for p in model.parameters() if p.grad is not None),
    ]


def compare(
    model: nn.Module,
    call: Callable[[], object],
    plain: AbstractContextManager,
    compiled: AbstractContextManager | None = None,
) -> None:
    """Compare forward and backward on dcnzoo's operators with those in the context ``plain``."""
    for parameter in model.parameters():  # so that offsets are not zero
        parameter.data.add_(torch.randn_like(parameter) * 0.01)
    with Operators() as operators, compiled or nullcontext():
        actual = results(model, call)
    backward = {name for name in operators.names if "backward" in name}
    assert backward and backward != operators.names, f"not all of them ran: {operators.names}"
    with plain, Operators() as others:
        expected = results(model, call)
    assert not others.names
    floor = max(float(tensor.norm()) for tensor in expected) / 100  # for small tensors
    pairs = zip(actual, expected, strict=True)
    worst = max(float((a - b).norm() / b.norm().clamp(min=floor)) for a, b in pairs)
    print(f"{len(actual)} outputs and gradients, relative difference at most {worst:.0e}")
    assert worst < 5e-3  # a ReLU close to zero may open in only one of the runs


def without_weights() -> AbstractContextManager:
    """Context in which torchvision's ResNet-50 has random weights and one block in each stage."""
    from torchvision.models import resnet

    def resnet50(pretrained: object = None, **options: object) -> nn.Module:
        return resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], **options)

    return mock.patch("torchvision.models.resnet50", resnet50)
