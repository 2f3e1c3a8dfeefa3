"""Which modules compute what their class says, and that conversion and fusing leave the others alone."""

import copy
import functools
import pickle
from random import Random

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import dcnzoo
from dcnzoo.layers import PackedDeformConv2d, fuse, track_offsets
from dcnzoo.layers.same_as import same_as

KINDS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, PackedDeformConv2d)


class Halved(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight / 2, bias)


class Masked(nn.Conv2d):
    @property
    def bias(self):
        return self._bias

    @bias.setter
    def bias(self, value):
        self._bias = value


class Checked(nn.BatchNorm2d):
    def _check_input_dim(self, input):
        raise ValueError


class Read(nn.Conv2d):
    def __getattr__(self, name):
        return super().__getattr__(name)


class Unmodulated(PackedDeformConv2d):
    def predict(self, input):
        return super().predict(input)[0], None


class Renamed(nn.Conv2d):
    """Changes nothing that the forward uses."""

    note = "a class attribute"

    def __init__(self, channels):
        super().__init__(channels, channels, 3)

    def reset_parameters(self):
        nn.init.ones_(self.weight)

    def fuse(self):
        return self


class Scaled(nn.Parameter):
    pass


def changed(layer, **attributes):
    for name, value in attributes.items():
        setattr(layer, name, value)
    return layer


def conv():
    return nn.Conv2d(3, 3, 3)


REPLACED = {
    "forward": lambda: changed(conv(), forward=print),
    "_conv_forward": lambda: changed(conv(), _conv_forward=print),
    "subclass": lambda: Halved(3, 3, 3),
    "property": lambda: Masked(3, 3, 3),
    "check": lambda: Checked(3),
    "__getattr__": lambda: Read(3, 3, 3),
    "predict": lambda: Unmodulated(3, 3, 3, modulated=True),
    "pack's function": lambda: changed(PackedDeformConv2d(3, 3, 3), function=print),
    "class of the parameter": lambda: changed(conv(), weight=Scaled(torch.ones(3, 3, 3, 3))),
    "parametrization": lambda: parametrizations.weight_norm(conv()),
    "weight_norm": lambda: weight_norm(conv()),
    "spectral_norm": lambda: spectral_norm(conv()),
    "prune": lambda: prune.random_unstructured(conv(), "weight", 0.5),
    "lazy": lambda: nn.LazyConv2d(3, 3),
    "another class": nn.Identity,
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", REPLACED)
def test_replaced(name):
    assert same_as(REPLACED[name](), KINDS) is None


def tracked():
    layer = PackedDeformConv2d(3, 3, 3, modulated=True)
    track_offsets(layer)
    layer(torch.randn(1, 3, 5, 6))
    return layer


SAME = {
    "itself": (conv, nn.Conv2d),
    "harmless subclass": (lambda: Renamed(3), nn.Conv2d),
    "representation": (lambda: changed(conv(), extra_repr=str, f=-1, lr_scale=0.1), nn.Conv2d),
    "hooks": (lambda: changed(conv(), handle=conv().register_forward_hook(print)), nn.Conv2d),
    "frozen": (lambda: conv().requires_grad_(False), nn.Conv2d),
    "meta": (lambda: nn.Conv2d(3, 3, 3, device="meta"), nn.Conv2d),
    "statistics": (tracked, PackedDeformConv2d),
    "removed norm": (lambda: prune.remove(prune.identity(conv(), "weight"), "weight"), nn.Conv2d),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same(name):
    make, kind = SAME[name]
    assert same_as(make(), KINDS) is kind


@pytest.mark.parametrize(("owner", "name"), [(nn.Conv2d, "forward"), (nn.Module, "__call__")])
def test_a_patched_class_of_torch(owner, name, monkeypatch):
    """Conversion keeps the network's ``nn.Module``, and fusing does not call it."""
    model, x = nn.Sequential(conv(), nn.ReLU()).eval(), torch.randn(2, 3, 8, 9)
    original = getattr(owner, name)
    doubled = functools.wraps(original)(lambda self, x: 2 * original(self, x))
    monkeypatch.setattr(owner, name, doubled)
    torch.testing.assert_close(dcnzoo.fused(model)(x), model(x).detach())
    assert same_as(model[0], KINDS) is (nn.Conv2d if owner is nn.Module else None)


def test_equal_classes():
    class Own(nn.Module):
        def forward(self, x):
            return self.compute(x)

        def compute(self, x):
            return x

    class Other(Own):
        def compute(self, x):
            return 2 * x

    equal = {Own: nn.ReLU}
    assert same_as(Own(), (nn.ReLU,), equal) is nn.ReLU
    assert same_as(Own(), (nn.ReLU,)) is None and same_as(Other(), (nn.ReLU,), equal) is None


@pytest.fixture(autouse=True)
def small_layers_too(monkeypatch):
    monkeypatch.setattr(fuse, "LEAST_PIXELS", 1)
    monkeypatch.setattr(fuse, "LEAST_PRODUCTS", 1)


def loaded_later(norm):
    """Its weight is computed in a pre-hook: after ``load_state_dict`` the attribute is still the old one."""
    layer, other = norm(conv()), norm(conv())
    layer(torch.randn(1, 3, 5, 5))
    layer.load_state_dict({name: 3 * value for name, value in other.state_dict().items()})
    return layer


FUSED = {
    "overridden _conv_forward": lambda: Halved(3, 3, 3),
    "forward of the instance": lambda: changed(conv(), forward=lambda x: x[..., 1:-1, 1:-1].sin()),
    "weight_norm": lambda: loaded_later(weight_norm),
    "spectral_norm": lambda: loaded_later(spectral_norm),
    "deformable": lambda: Unmodulated(3, 3, 3, modulated=True),
    "plain": conv,
    "pack": lambda: PackedDeformConv2d(3, 3, 3, modulated=True),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("shape", [(2, 3, 8, 9), (3, 8, 9)], ids=["batch", "picture"])
@pytest.mark.parametrize("name", FUSED)
def test_fused_layers_compute_what_the_model_does(name, shape):
    torch.manual_seed(0)
    model = nn.Sequential(FUSED[name](), nn.ReLU()).eval()
    if len(shape) == 4:
        model.insert(1, nn.BatchNorm2d(3).eval())
        model[1].running_mean.normal_()
    x = torch.randn(shape)
    torch.testing.assert_close(dcnzoo.fused(model)(x), model(x).detach(), rtol=1e-4, atol=1e-5)


def test_a_fused_network_follows_its_model():
    model = nn.Sequential(conv(), nn.BatchNorm2d(3), nn.ReLU()).eval()
    predict, x = dcnzoo.fused(model), torch.randn(2, 3, 8, 9)
    last = predict(x)
    for twin in (copy.deepcopy(predict), pickle.loads(pickle.dumps(predict))):
        assert torch.equal(twin(x), last)
    for change in (
        lambda: model[1].running_var.mul_(4),
        lambda: model.load_state_dict({**model.state_dict(), "0.bias": torch.ones(3)}),
        lambda: setattr(model[0].weight, "data", model[0].weight.data * 2),
        lambda: setattr(model[1], "weight", nn.Parameter(torch.full((3,), 3.0))),
        lambda: setattr(model[1], "eps", 0.5),
        # these count no versions of the parameters
        lambda: model[0].weight.data.mul_(-1),
        lambda: [p.data.copy_(p.data.flip(0)) for p in model.parameters()],
        lambda: model[1].bias.detach().numpy().__setitem__(0, 5),
        lambda: model[0].weight.data[0].zero_(),
        lambda: model.train()(3 * x + 1) is model.eval(),  # changes the running values
        lambda: model[1].register_forward_hook(lambda module, args, output: output + 1),
        lambda: setattr(model[0], "forward", lambda x: x.cos()),
        lambda: model.insert(1, nn.Tanh()),
    ):
        with torch.no_grad():
            change()
        last, before = predict(x), last
        torch.testing.assert_close(last, model(x).detach(), rtol=1e-4, atol=1e-5)
        assert last.shape != before.shape or not torch.allclose(last, before)
    assert not predict(x).requires_grad and all(p.requires_grad for p in model.parameters())


class Remembers(nn.Module):
    """Networks for videos; the parts are called by name."""

    def __init__(self):
        super().__init__()
        self.parts, self.last = nn.Sequential(conv(), nn.BatchNorm2d(3), nn.ReLU()), 0
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.count = self.count + 1
        self.last = self.last + self.parts[0](input=self.parts(input=x))
        return self.last


def test_a_fused_network_has_the_state_of_its_model(monkeypatch):
    monkeypatch.setattr(fuse, "LEAST_PRODUCTS", 1)
    model, x = Remembers().eval(), torch.randn(2, 3, 20, 20)
    expected = [copy.deepcopy(model)(x).detach() * n for n in (1, 2, 3)]
    predict = dcnzoo.fused(model)
    torch.testing.assert_close([predict(x) for _ in range(3)], expected, rtol=1e-4, atol=1e-5)
    assert model.count == 3 and isinstance(model.last, torch.Tensor)
    with pytest.raises(RuntimeError, match="fused: model: expected evaluation"):
        dcnzoo.fused(model.train())(x)


class Stateful(nn.Module):
    """Changes itself, and refers to a part that it also has as a module."""

    def __init__(self, rng, parts):
        super().__init__()
        self.parts, self.listed = nn.ModuleList(parts), [rng.choice(parts)]
        self.changes, self.calls = rng.choice(["", "module", "reference", "tensor"]), 0

    def forward(self, x):
        self.calls += 1
        if self.changes == "module" and self.calls == 1:
            self.made = nn.Conv2d(3, 3, 1).eval()
        if self.changes == "reference":
            self.last = self.parts[0]
        if self.changes == "tensor":
            self.memory = x = x + getattr(self, "memory", 0)
        for part in (*self.parts, self.listed[0]):
            x = part(x)
        return self.made(x) if self.changes == "module" else x


def random_part(rng, depth=0):
    kind = rng.randrange(9 if depth < 2 else 7)
    if kind < 2:
        mode, kernel = rng.choice(["zeros", "zeros", "reflect"]), rng.choice([1, 3])
        return nn.Conv2d(3, 3, kernel, padding=kernel // 2, padding_mode=mode, bias=rng.random() < 0.5)
    if kind < 4:
        norm = nn.BatchNorm2d(3, affine=rng.random() < 0.7)
        norm.running_mean.normal_()
        return norm
    if kind < 6:
        return rng.choice(
            [nn.ReLU(), nn.ReLU(inplace=True), nn.SiLU(), nn.GELU(), nn.LeakyReLU(0.2), nn.Tanh()]
        )
    if kind == 6:
        pack = PackedDeformConv2d(3, 3, 3, padding=1, modulated=rng.random() < 0.5)
        nn.init.normal_(pack.conv_offset.weight)
        return pack
    parts = [random_part(rng, depth + 1) for _ in range(rng.randint(1, 4))]
    return nn.Sequential(*parts) if kind == 7 else Stateful(rng, parts)


def random_network(seed):
    rng = Random(seed)
    torch.manual_seed(seed)
    network = nn.Sequential(*[random_part(rng) for _ in range(rng.randint(2, 6))]).eval()
    for module in rng.choices([*network.modules()][1:], k=rng.randint(0, 2)):
        forward = module.forward
        change = rng.randrange(4)
        if change == 0:
            module.register_forward_hook(lambda module, args, output: 2 * output)
        elif change == 1:
            module.forward = lambda x, forward=forward: forward(x) / 2
        elif change == 2:
            module.train()
        elif isinstance(module, nn.Sequential):
            module.append(module[0])
    return network


@pytest.mark.parametrize("seeds", [range(start, start + 25) for start in range(0, 100, 25)], ids=str)
def test_random_networks_fused_and_not(seeds):
    """Three calls have the same outputs, and leave the same states and attributes."""
    for seed in seeds:
        plain, model = random_network(seed), random_network(seed)
        x, results = torch.randn(1, 3, 6, 7), []
        for predict in (plain, dcnzoo.fused(model)):
            torch.manual_seed(0)
            with torch.no_grad():
                results.append([predict(x.clone()) for _ in range(3)])
        scale = max(float(output.abs().max()) for output in results[0])
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4 * scale, msg=f"seed {seed}")
        torch.testing.assert_close(plain.state_dict(), model.state_dict(), rtol=1e-4, atol=1e-4 * scale)
        for one, other in zip(plain.modules(), model.modules(), strict=True):
            assert vars(one).keys() == vars(other).keys(), f"seed {seed}"
            assert getattr(one, "calls", 0) == getattr(other, "calls", 0), f"seed {seed}"
