"""Functions that YOLO's projects share, on small modules with their names."""

import importlib
import sys
import textwrap

import pytest
import torch
from torch import nn

import dcnzoo

TORCH_UTILS = """
from torch import nn

def fuse_conv_and_bn(conv, bn):
    new = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, padding=conv.padding)
    return new
"""
TASKS = """
from torch import nn
from ultralytics.utils.torch_utils import fuse_conv_and_bn

class BaseModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))

    def load(self, weights):
        own = self.state_dict()
        given = weights.state_dict().items()
        values = {name: v for name, v in given if name in own and own[name].shape == v.shape}
        self.load_state_dict(values, strict=False)
        return len(values)
"""


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """ultralytics.nn.tasks, imported after dcnzoo."""
    for name, text in (("utils/torch_utils", TORCH_UTILS), ("nn/tasks", TASKS)):
        file = tmp_path / f"ultralytics/{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "ultralytics"]:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    yield importlib.import_module("ultralytics.nn.tasks")
    for name in [name for name in sys.modules if name.partition(".")[0] == "ultralytics"]:
        del sys.modules[name]


def learnt(model, where="model.0"):
    dcnzoo.to_deformable(model, where, kind="v1")
    pack = model.get_submodule(where)
    nn.init.normal_(pack.conv_offset.weight)
    return pack


def test_a_batch_norm_is_folded_into_the_layer(tasks):
    model = tasks.BaseModel().eval()
    pack = learnt(model)
    model.model[1].running_mean.normal_()
    x = torch.randn(2, 4, 5, 6)
    expected = model.model(x)
    fused = tasks.fuse_conv_and_bn(*model.model)
    assert fused is pack
    torch.testing.assert_close(fused(x), expected)
    assert type(tasks.fuse_conv_and_bn(nn.Conv2d(4, 4, 3), model.model[1])) is nn.Conv2d


def test_a_new_network_gets_the_layers_of_the_weights(tasks):
    source, model = tasks.BaseModel(), tasks.BaseModel()
    pack = learnt(source)
    assert model.load(source) == len(source.state_dict())
    assert model.model[0] is not pack
    torch.testing.assert_close(model.state_dict(), source.state_dict())
    plain = tasks.BaseModel()
    plain.load(tasks.BaseModel())
    assert type(plain.model[0]) is nn.Conv2d


def test_a_convolution_of_another_shape_stays(tasks):
    source, model = tasks.BaseModel(), tasks.BaseModel()
    learnt(source)
    model.model[0] = nn.Conv2d(4, 8, 3, padding=1)
    model.load(source)
    assert type(model.model[0]) is nn.Conv2d
