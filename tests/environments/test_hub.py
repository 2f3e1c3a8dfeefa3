"""``save_pretrained`` and ``from_pretrained`` with huggingface_hub: ``make test-others``."""

import json
import socket
from collections import OrderedDict

import pytest
import torch
from torch import nn

import dcnzoo
from dcnzoo import backbones, layers
from dcnzoo.compat import tvdcn

from ..modules import randomise

hub_mixin = pytest.importorskip("huggingface_hub.hub_mixin", exc_type=ImportError)
safetensors = pytest.importorskip("safetensors.torch", exc_type=ImportError)

TINY = dict(channels=16, depths=(1, 1, 2, 1), groups=(1, 2, 4, 8))


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*args):
        raise AssertionError(f"connects to {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def to_deformable_pack(**options):
    model = nn.Sequential(OrderedDict(conv=nn.Conv2d(6, 4, (3, 1), stride=(2, 1), padding=(1, 0), groups=2)))
    dcnzoo.to_deformable(model, "conv", **options)
    return model.conv


MODULES = {
    "InternImage": lambda: backbones.internimage_s(**TINY, out_indices=(1, 3)),
    "FlashInternImage": lambda: backbones.flash_internimage_l(**TINY, num_classes=5),
    "in1d": lambda: layers.PackedDeformConv1d(6, 4, 3, padding=1, offset_limit=2.0),
    "in2d": lambda: layers.PackedDeformConv2d(
        6, 4, (3, 1), (1, 2), groups=2, bias=False, modulated=True, offset_groups=3, mask_activation="softmax"
    ),
    "in3d": lambda: layers.PackedDeformConv3d(
        6, 4, 1, modulated=True, deformable=False, mask_activation=None
    ),
    "transposed": lambda: layers.PackedDeformConvTranspose2d(6, 4, 3, 2, (1, 0), output_padding=(1, 0)),
    "converted": lambda: to_deformable_pack(offset_groups=2),
    "with softmax": lambda: to_deformable_pack(mask_activation="softmax"),
    "tvdcn's": lambda: tvdcn.PackedDeformConv2d(6, 4, 3, modulated=True, generator_bias=True),
}


@pytest.mark.parametrize("name", MODULES)
def test_round_trip(name, tmp_path):
    module = randomise(MODULES[name](), 0.1).eval()
    module.save_pretrained(tmp_path / "first")
    assert {path.name for path in (tmp_path / "first").iterdir()} >= {"config.json", "model.safetensors"}
    loaded = type(module).from_pretrained(tmp_path / "first")
    assert type(loaded) is type(module) and not loaded.training and str(loaded) == str(module)
    torch.testing.assert_close(loaded.state_dict(), module.state_dict(), rtol=0, atol=0)
    size = (3, 32, 64) if "Image" in name else (6, *(8, 9, 7)[: getattr(module, "rank", 0)])
    x = torch.randn(2, *size)
    torch.testing.assert_close(loaded(x), module(x), rtol=0, atol=0)
    loaded.save_pretrained(str(tmp_path / "second"))
    config = (tmp_path / "first/config.json").read_text()
    assert (tmp_path / "second/config.json").read_text() == config


def test_of_another_number_of_classes(tmp_path):
    model = backbones.internimage_t(**TINY, num_classes=5)
    model.reset_classifier(7)
    model.save_pretrained(tmp_path)
    assert backbones.InternImage.from_pretrained(tmp_path).head.out_features == 7
    with pytest.raises(RuntimeError, match=r"size mismatch for head\.weight"):
        backbones.InternImage.from_pretrained(tmp_path, num_classes=3)
    features = backbones.InternImage.from_pretrained(tmp_path, num_classes=None, strict=False)
    assert [y.shape[1] for y in features(torch.randn(1, 3, 32, 32))] == [16, 32, 64, 128]
    torch.testing.assert_close(features.patch_embed.state_dict(), model.patch_embed.state_dict())


def test_the_files_are_those_of_the_hub(tmp_path):
    """safetensors files with the state dict's names and dtypes."""
    module = layers.PackedDeformConv2d(2, 3, 3, device="cpu", dtype=torch.bfloat16)
    module.save_pretrained(tmp_path)
    state = safetensors.load_file(tmp_path / "model.safetensors")
    torch.testing.assert_close(state, dict(module.state_dict()))
    assert not {"device", "dtype"} & json.loads((tmp_path / "config.json").read_text()).keys()
    loaded = layers.PackedDeformConv2d.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.bfloat16().state_dict(), module.state_dict())
    assert "library_name: dcnzoo" in (tmp_path / "README.md").read_text()


class Twice(nn.Module):
    def forward(self, x):
        return 2 * x


def test_a_module_of_another_package_is_passed_again(tmp_path):
    module = layers.PackedDeformConv2d(2, 3, 3, offset_activation=Twice())
    module.save_pretrained(tmp_path)
    load = layers.PackedDeformConv2d.from_pretrained
    with pytest.raises(ValueError, match=r"offset_activation: expected an instance of .*\.Twice, which"):
        load(tmp_path)
    assert isinstance(load(tmp_path, offset_activation=Twice()).offset_activation, Twice)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("os.system", "torch.nn.Linear"):
        (tmp_path / "config.json").write_text(json.dumps({**config, "offset_activation": {"module": name}}))
        with pytest.raises(ValueError, match=f"expected an instance of {name}, which is not in the file"):
            load(tmp_path)


def test_runs_no_code_and_loads_no_pickle(tmp_path, monkeypatch):
    """A Hub repository with a pickle and a Python module, but without safetensors."""
    module = layers.PackedDeformConv2d(2, 3, 3)
    module.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(module.state_dict(), tmp_path / "pytorch_model.bin")
    config = json.loads((tmp_path / "config.json").read_text())
    auto_map = {"AutoModel": "modeling.Model"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "auto_map": auto_map}))
    (tmp_path / "modeling.py").write_text("raise AssertionError('was run')")
    fetched = []

    def download(repo_id, filename, **options):
        fetched.append(filename)
        if not (tmp_path / filename).exists():
            error = hub_mixin.EntryNotFoundError
            raise error.__new__(error)
        return str(tmp_path / filename)

    monkeypatch.setattr(hub_mixin, "hf_hub_download", download)
    with pytest.raises(ValueError, match=r"expected model\.safetensors, got pytorch_model\.bin"):
        layers.PackedDeformConv2d.from_pretrained("someone/something")
    assert fetched == ["config.json", "model.safetensors", "pytorch_model.bin"]


def test_an_argument_that_json_cannot_hold(tmp_path):
    model = backbones.internimage_t(**TINY, layer_scale=torch.tensor(1.0))
    with pytest.raises(
        TypeError, match=r"InternImage: layer_scale: expected .* written as JSON, got tensor\(1"
    ):
        model.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
