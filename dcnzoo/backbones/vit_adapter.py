"""ViT-Adapter: maps of strides 4 to 32 from a plain vision transformer (Chen et al., ICLR 2023).

A convolutional stem, the spatial prior, makes maps of strides 4 to 32. Their tokens and those of the ViT
exchange values by multi-scale deformable attention: injectors add the maps to the ViT's tokens before each of
four stages of blocks, extractors add the tokens to the maps after each. The adapter of DINOv3 (Siméoni et al.
2025) is the same network without injectors, around a frozen ViT. Names of parameters are those of the
official releases for the adapter, and timm's for the ViT.
"""

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dcnzoo.backbones import timm_vits
from dcnzoo.backbones.intern_image import DropPath
from dcnzoo.backbones.windows import WindowAttention
from dcnzoo.layers import MultiScaleDeformableAttention
from dcnzoo.layers.base import refuse
from dcnzoo.utils.text import few

PATCH = 16
STAGES = 4
# timm's classes whose parts the adapter can use
VITS = ("VisionTransformer", "VisionTransformerDistilled", "Beit", "Eva")
# the parts of the ViT, which do not train if it is frozen
_VIT = ("patch_embed", "pos_embed", "pos_drop", "norm_pre", "rope", "blocks", "norm")
_OWN = "spm.stem.0.weight"  # a parameter that only adapters have
_PREFIX_TOKENS = ("cls_token", "dist_token", "reg_token")

# arguments of deformable attention: the queries' reference points [1, Q, 1, 2], (x, y), and the shapes of the
# value maps [L, 2], (height, width)
Points = tuple[Tensor, Tensor]


def _points(queries: Sequence[tuple[int, int]], values: Sequence[tuple[int, int]], like: Tensor) -> Points:
    references = []
    for height, width in queries:
        # always float32, because bfloat16 has no value between 0.996 and 1
        y = (torch.arange(height, device=like.device, dtype=torch.float32) + 0.5) / height
        x = (torch.arange(width, device=like.device, dtype=torch.float32) + 0.5) / width
        rows, columns = torch.meshgrid(y, x, indexing="ij")
        references.append(torch.stack([columns, rows], -1).flatten(0, 1))
    return torch.cat(references)[None, :, None], torch.tensor(values, device=like.device)


def _maps(tokens: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:  # [N, S, C] -> [N, C, H, W] each
    parts = tokens.split([height * width for height, width in sizes], 1)
    # contiguous, because torch's batch norm on a CPU has wrong gradients for one transposed image
    return [
        part.transpose(1, 2).unflatten(2, size).contiguous() for part, size in zip(parts, sizes, strict=True)
    ]


def _tokens(maps: Sequence[Tensor]) -> Tensor:
    return torch.cat([level.flatten(2).transpose(1, 2) for level in maps], 1)


class SpatialPrior(nn.Module):
    """Convolutions that return maps of strides 4, 8, 16 and 32; without ``first``, None for stride 4."""

    def __init__(self, inputs: int, inner: int, channels: int, first: bool) -> None:
        super().__init__()
        stem = [*self._layers(inputs, inner, 2), *self._layers(inner, inner), *self._layers(inner, inner)]
        self.stem = nn.Sequential(*stem, nn.MaxPool2d(3, stride=2, padding=1))
        self.conv2 = nn.Sequential(*self._layers(inner, 2 * inner, 2))
        self.conv3 = nn.Sequential(*self._layers(2 * inner, 4 * inner, 2))
        self.conv4 = nn.Sequential(*self._layers(4 * inner, 4 * inner, 2))
        self.fc1 = nn.Conv2d(inner, channels, 1) if first else None
        self.fc2 = nn.Conv2d(2 * inner, channels, 1)
        self.fc3 = nn.Conv2d(4 * inner, channels, 1)
        self.fc4 = nn.Conv2d(4 * inner, channels, 1)

    @staticmethod
    def _layers(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]

    def forward(self, x: Tensor) -> tuple[Tensor | None, list[Tensor]]:
        c1 = self.stem(x)
        c2 = self.conv2(c1)
        c3 = self.conv3(c2)
        rest = [self.fc2(c2), self.fc3(c3), self.fc4(self.conv4(c3))]
        return None if self.fc1 is None else self.fc1(c1), rest


class _Depthwise(nn.Module):  # gives the convolution its official name, ffn.dwconv.dwconv
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        return _tokens([self.dwconv(level) for level in _maps(x, sizes)])


class ConvFFN(nn.Module):
    """A linear layer, a depthwise convolution of each map, GELU, a linear layer."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.dwconv = _Depthwise(hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        return self.fc2(F.gelu(self.dwconv(self.fc1(x), sizes)))


class _Attends(nn.Module):
    def __init__(self, channels: int, levels: int, heads: int, ratio: float, eps: float) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(channels, eps=eps)
        self.feat_norm = nn.LayerNorm(channels, eps=eps)
        self.attn = MultiScaleDeformableAttention(channels, heads, levels, 4, ratio)

    def _attend(self, query: Tensor, value: Tensor, points: Points) -> Tensor:
        reference, shapes = points
        return self.attn(self.query_norm(query), reference, self.feat_norm(value), shapes)


class Injector(_Attends):
    """Adds the maps to the ViT's tokens, times a learnt factor per channel that starts at ``init_value``."""

    def __init__(self, channels: int, init_value: float, **attention: Any) -> None:
        super().__init__(channels, levels=3, **attention)
        self.gamma = nn.Parameter(torch.full((channels,), float(init_value)))

    def forward(self, query: Tensor, value: Tensor, points: Points) -> Tensor:
        return query + self.gamma * self._attend(query, value, points)


class Extractor(_Attends):
    """Adds the ViT's tokens to the maps, then a :class:`ConvFFN`."""

    def __init__(self, channels: int, drop_path: float, **attention: Any) -> None:
        super().__init__(channels, levels=1, **attention)
        self.ffn = ConvFFN(channels, channels // 4)
        self.ffn_norm = nn.LayerNorm(channels, eps=attention["eps"])
        self.drop_path = DropPath(drop_path)

    def forward(
        self, query: Tensor, value: Tensor, points: Points, sizes: Sequence[tuple[int, int]]
    ) -> Tensor:
        query = query + self._attend(query, value, points)
        return query + self.drop_path(self.ffn(self.ffn_norm(query), sizes))


class Interaction(nn.Module):
    """The injector and the extractors of one stage."""

    def __init__(self, injector: Injector | None, extractors: Sequence[Extractor]) -> None:
        super().__init__()
        self.injector = injector
        self.extractor, *extra = extractors
        self.extra_extractors = nn.ModuleList(extra) if extra else None


class ViTAdapter(nn.Module):
    """ViT-Adapter around a vision transformer of timm.

    The adapter takes over parts of the ViT (``patch_embed``, ``pos_embed``, ``blocks``) and changes them:
    pass a copy of a module that is used elsewhere, too. Patches of another size are resized to 16 × 16.
    Pictures are padded with zeros to multiples of 32, and the maps are cropped to ``ceil(size / stride)``, as
    those of a ResNet.

    Args:
        vit: a model of timm (``vit_*``, ``deit_*``, ``beit*``, DINOv2 or DINOv3), its name, or a dict of its
            name (``model_name``) and other arguments of ``timm.create_model``. The authors' ViTs have
            ``init_values=1.0`` (layer scale), except for MAE.
        pretrained: True: load timm's weights of the ViT. A file: load it, see :meth:`load_pretrained`.
        drop_path_rate: rate of stochastic depth, from 0 to below 1, in the extractors and, unless ``vit`` is
            a module, in the ViT.
        conv_inplane: number of channels of the stem.
        deform_num_heads, deform_ratio: number of heads, and ratio of channels, of deformable attention.
        init_values: initial factor of the injectors.
        injectors: False: the maps do not change the ViT's tokens, as in the adapter of DINOv3.
        use_extra_extractor: add two more extractors after the last stage.
        stage_maps: add the tokens of stage i to map i. False: add the last stage's tokens to every map.
        final_norm: apply the ViT's last norm to the tokens that leave the ViT.
        prefix_tokens: keep class and register tokens in the blocks. The authors' ViTs have none.
        window: size of the windows in all blocks, or a list with a size or None (no windows) per block.
        pad_input: see :class:`dcnzoo.backbones.windows.WindowAttention`; True for BEiT and Uni-Perceiver.
        patch_bias: add a bias to the patches of a ViT that has none, for Uni-Perceiver.
        norm_eps: eps of the adapter's layer norms. A value other than 1e-6 is also set in the ViT's norms.
        frozen: the ViT's parameters get no gradients, and it stays in evaluation mode. Without injectors, its
            activations are not stored either.
        with_cp: recompute activations in the backward pass: less memory, more time.
        out_indices: the maps that are returned: 0 to 3 have the strides 4 to 32.

    Returns:
        a tuple of maps ``(N, C, ceil(H / stride), ceil(W / stride))``

    Raises:
        ValueError: an argument is invalid, or arguments contradict each other.
        RuntimeError: the shape of the picture is invalid.
        ModuleNotFoundError: ``vit`` is a name, and timm is not installed.
    """

    def __init__(
        self,
        vit: str | Mapping[str, Any] | nn.Module,
        *,
        pretrained: bool | str = False,
        drop_path_rate: float = 0.0,
        conv_inplane: int = 64,
        deform_num_heads: int = 6,
        deform_ratio: float = 1.0,
        init_values: float = 0.0,
        injectors: bool = True,
        use_extra_extractor: bool = True,
        stage_maps: bool = False,
        final_norm: bool = False,
        prefix_tokens: bool = False,
        window: int | Sequence[int | None] | None = None,
        pad_input: bool = False,
        patch_bias: bool = False,
        norm_eps: float = 1e-6,
        frozen: bool = False,
        with_cp: bool = False,
        out_indices: Sequence[int] = (0, 1, 2, 3),
    ) -> None:
        super().__init__()
        if not isinstance(out_indices, Sequence) or not out_indices or not {*out_indices} <= {*range(STAGES)}:
            refuse(self, "out_indices", "a sequence of numbers from 0 to 3", out_indices)
        if not 0 <= drop_path_rate < 1:
            refuse(self, "drop_path_rate", "a number from 0 to below 1", drop_path_rate)
        self.vit_options: dict[str, Any] | None = None
        if not isinstance(vit, str | Mapping | nn.Module):
            refuse(self, "vit", "a name of timm, a dict with arguments, or a module", repr(vit))
        if not isinstance(vit, nn.Module):
            self.vit_options = {"model_name": vit} if isinstance(vit, str) else dict(vit)
            vit = timm_vits.create(**{"drop_path_rate": drop_path_rate, **self.vit_options})
        self._take_over(vit, final_norm, prefix_tokens, patch_bias)
        self.windows = self._windows(window)
        self.pad_input = pad_input
        _set_patches_and_windows(vit, self.windows, pad_input)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm) and norm_eps != 1e-6:
                module.eps = norm_eps
        channels, depth = self.embed_dim, len(self.blocks)
        self.bounds = [depth * i // STAGES for i in range(STAGES + 1)]
        self.out_indices = tuple(sorted(set(out_indices)))
        self.stage_maps, self.frozen, self.with_cp = stage_maps, frozen, with_cp
        self._detached = frozen and not injectors  # only a gradient of the picture passes through the ViT

        first = 0 in self.out_indices
        attention: dict[str, Any] = dict(heads=deform_num_heads, ratio=deform_ratio, eps=norm_eps)
        self.level_embed = nn.Parameter(torch.zeros(3, channels))
        self.spm = SpatialPrior(self.in_chans, conv_inplane, channels, first)
        self.interactions = nn.ModuleList()
        for number in (1, 1, 1, 3 if use_extra_extractor else 1):
            injector = Injector(channels, init_values, **attention) if injectors else None
            extractors = [Extractor(channels, drop_path_rate, **attention) for _ in range(number)]
            self.interactions.append(Interaction(injector, extractors))
        self.up = nn.ConvTranspose2d(channels, channels, 2, 2) if first else None
        for i in self.out_indices:
            self.add_module(f"norm{i + 1}", nn.BatchNorm2d(channels))
        self._reset_parameters()
        if pretrained:
            self.load_pretrained(pretrained)
        self._freeze()

    def _take_over(self, vit: Any, final_norm: bool, prefix_tokens: bool, patch_bias: bool) -> None:
        projection: Any = getattr(getattr(vit, "patch_embed", None), "proj", None)
        known = any(kind.__name__ in VITS for kind in type(vit).__mro__)
        # refuse ViTs with a convolutional network before them, or with parallel blocks
        plain = known and not hasattr(vit.patch_embed, "backbone")
        if not plain or not all(hasattr(block, "attn") for block in vit.blocks):
            expected = f"a vision transformer of timm ({', '.join(VITS)}), not hybrid or with parallel blocks"
            refuse(self, "vit", expected, type(vit).__name__)
        if getattr(vit, "rel_pos_bias", None) is not None:
            refuse(self, "vit", "relative positions of each block", "relative positions that blocks share")
        if patch_bias and projection.bias is None:
            projection.bias = nn.Parameter(torch.zeros(projection.out_channels))
        self.embed_dim, self.in_chans = vit.embed_dim, projection.in_channels
        self.patch_embed, self.blocks = vit.patch_embed, vit.blocks
        self.grid_size = vit.patch_embed.grid_size  # of pos_embed
        self.pos_embed, self.pos_drop = vit.pos_embed, vit.pos_drop
        self.norm_pre = getattr(vit, "norm_pre", nn.Identity())
        self.rope = getattr(vit, "rope", None)
        self.rope_mixed = getattr(vit, "rope_mixed", False)
        if self.rope is not None and not vit.dynamic_img_size:
            refuse(self, "vit", "dynamic_img_size=True with rotary positions", False)
        # rows of pos_embed before those of the patches
        self.prefix_rows = 0 if getattr(vit, "no_embed_class", False) else vit.num_prefix_tokens
        self.prefix = vit.num_prefix_tokens if prefix_tokens else 0
        if prefix_tokens:
            for name in _PREFIX_TOKENS:
                self.register_parameter(name, getattr(vit, name, None))
        for block in self.blocks:
            if hasattr(block.attn, "num_prefix_tokens"):  # tokens that rotary positions skip
                block.attn.num_prefix_tokens = self.prefix
        self.norm = None
        if final_norm:
            self.norm = vit.fc_norm if isinstance(vit.norm, nn.Identity) else vit.norm

    def _windows(self, window: int | Sequence[int | None] | None) -> list[int | None]:
        depth = len(self.blocks)
        sizes = [window] * depth if isinstance(window, int | None) else list(window)
        if len(sizes) != depth or any(isinstance(size, bool) for size in sizes):
            refuse(self, "window", f"a size or None for each of {depth} blocks", window)
        if any(sizes) and self.rope is not None:
            refuse(self, "window", "None for a ViT with rotary positions", window)
        if any(sizes) and self.prefix:
            refuse(self, "window", "None with prefix_tokens", window)
        relative = [getattr(block.attn, "relative_position_bias_table", None) for block in self.blocks]
        if any(table is not None and not size for table, size in zip(relative, sizes, strict=True)):
            refuse(self, "window", "a size for each block of a ViT with relative positions", sizes)
        return sizes

    def _reset_parameters(self) -> None:
        nn.init.normal_(self.level_embed)
        for module in [m for part in (self.spm, self.interactions, self.up) if part for m in part.modules()]:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.interactions.modules():
            if isinstance(module, MultiScaleDeformableAttention):
                module.reset_parameters()

    def load_pretrained(self, source: bool | str = True) -> None:
        """Load weights.

        Args:
            source: True: timm's weights of the ViT. Or a file with weights of the ViT in a format that timm
                reads; parts that the adapter does not use, such as a classifier, are optional. Or a file with
                weights of an adapter with the same settings, or of a detector with such an adapter.

        Raises:
            ValueError: the ViT was given as a module, or the weights cannot be read, lack parameters, or
                belong to another adapter.
        """
        if self.vit_options is None:
            refuse(self, "pretrained", "False with a module, which has its weights", repr(source))
        # timm refuses weights that lack a parameter. Most lack layer scale, so create the ViT without it
        options = {key: value for key, value in self.vit_options.items() if key != "init_values"}
        try:
            state = {} if source is True else timm_vits.read_weights(str(source))
            prefix = next((key.removesuffix(_OWN) for key in state if key.endswith(_OWN)), None)
            if prefix is not None:
                own = {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
                self.load_state_dict(own)
                return
            vit, unset = timm_vits.with_weights(source, state, **options)
        except Exception as error:  # timm, torch and the Hub raise errors of many types
            expected = "a file of weights, False for random ones, or True with access to timm's on the Hub"
            # shortened: for weights of another ViT, torch's message names each parameter
            text = textwrap.shorten(f"{type(error).__name__} {error}", 300, placeholder=" …")
            address = timm_vits.address_hint(options["model_name"]) if source is True else ""
            refuse(self, "pretrained", expected, f"{source!r}: {text}{address}")
        _set_patches_and_windows(vit, self.windows, self.pad_input)
        loaded = {key: value for key, value in vit.state_dict().items() if key not in unset}
        missing, _ = self.load_state_dict(loaded, strict=False)
        needed = [name for name in missing if name.split(".")[0] in (*_VIT, *_PREFIX_TOKENS)]
        needed = [name for name in needed if not re.search(r"\.ls[12]\.gamma$", name)]
        if needed:
            refuse(self, "pretrained", f"weights with {few(needed)}", repr(source))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Accept the names and forms of the official checkpoints."""
        saved = {key: state_dict.pop(key) for key in list(state_dict) if key.startswith(prefix)}
        values = {key.removeprefix(prefix): value for key, value in saved.items()}
        timm_vits.join_position_embeddings(values)
        if hasattr(self.blocks[0], "ls1"):
            values = {timm_vits.timms_name(name): value for name, value in values.items()}
        for name, value in values.items():
            is_table = name.endswith("relative_position_bias_table")
            if is_table and len(value) == len(self.get_parameter(name)) - 3:
                value = F.pad(value, (0, 0, 0, 3))  # the authors' tables have no rows for the class token
            state_dict[prefix + name] = value
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _freeze(self) -> None:
        if not self.frozen:
            return
        for name in (*_VIT, *_PREFIX_TOKENS):
            part = getattr(self, name, None)
            if part is not None:
                part.requires_grad_(False)
            if isinstance(part, nn.Module):
                part.eval()

    def train(self, mode: bool = True) -> "ViTAdapter":
        super().train(mode)
        self._freeze()
        return self

    def _call(self, module: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(module, *args, use_reentrant=False, **kwargs)
        return module(*args, **kwargs)

    def _embed(self, x: Tensor, size: tuple[int, int]) -> Tensor:  # [N, prefix + H · W, C]
        x = self.patch_embed.norm(self.patch_embed.proj(x).flatten(2).transpose(1, 2))
        if self.pos_embed is not None:
            table = self.pos_embed[:, self.prefix_rows :].transpose(1, 2).unflatten(2, self.grid_size)
            # without antialiasing, as in the authors' code; timm uses antialiasing
            table = F.interpolate(table, size=size, mode="bicubic", align_corners=False)
            x = x + table.flatten(2).transpose(1, 2)
        if self.prefix:
            tokens = torch.cat([t for name in _PREFIX_TOKENS if (t := getattr(self, name)) is not None], 1)
            if self.pos_embed is not None and self.prefix_rows:
                tokens = tokens + self.pos_embed[:, : self.prefix_rows]
            x = torch.cat([tokens.expand(x.shape[0], -1, -1), x], 1)
        return self.norm_pre(self.pos_drop(x))

    def _rotary(self, size: tuple[int, int]) -> Tensor:  # [H · W, 2 · channels of a head]
        rope: Any = self.rope
        if not hasattr(rope, "periods"):
            if any(isinstance(n, torch.SymInt) for n in size):
                refuse(self, "x", "a fixed size with these rotary positions", size, RuntimeError)
            return rope.get_embed(shape=size)
        settings = rope.normalize_coords, rope.grid_offset, rope.grid_indexing, rope.aug_active
        if settings != ("separate", 0, "ij", False):
            refuse(self, "vit", "the rotary positions of DINOv3", rope)
        # as in timm, but without float(height), which would fix the image size of an exported model
        axes = [(torch.arange(n, dtype=torch.float32, device=rope.periods.device) + 0.5) / n for n in size]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 1) * 2 - 1
        angles = (2 * math.pi * grid[..., None].to(rope.periods.dtype) / rope.periods).flatten(1)
        layout = (lambda v: v.repeat(1, 2)) if rope.rotate_half else (lambda v: v.repeat_interleave(2, -1))
        return torch.cat([layout(angles.sin()), layout(angles.cos())], -1)

    def _blocks(self, x: Tensor, stage: int, size: tuple[int, int], rope: Tensor | None) -> Tensor:
        for i in range(self.bounds[stage], self.bounds[stage + 1]):
            block = self.blocks[i]
            if self.windows[i] is not None:
                x = self._call(block, x.unflatten(1, size)).flatten(1, 2)
            elif rope is not None:
                x = self._call(block, x, rope=rope[i] if self.rope_mixed else rope)
            else:
                x = self._call(block, x)
        return x

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if x.dim() != 4 or x.shape[1] != self.in_chans:
            refuse(self, "x", f"(N, {self.in_chans}, H, W)", tuple(x.shape), RuntimeError)
        # True if no parameter and no picture before the ViT needs a gradient. If gradients are already off,
        # nothing is changed: torch.export would record the change
        detached = self._detached and torch.is_grad_enabled() and not x.requires_grad
        vit_gradients = torch.no_grad() if detached else nullcontext()
        height, width = x.shape[-2:]
        rows, columns = (height + 31) // 32, (width + 31) // 32
        x = F.pad(x, (0, 32 * columns - width, 0, 32 * rows - height))
        sizes = [(scale * rows, scale * columns) for scale in (4, 2, 1)]
        size = sizes[1]
        to_vit, to_maps = _points([size], sizes, x), _points(sizes, [size], x)

        c1, rest = self.spm(x)
        c = _tokens(rest)
        c = c + torch.cat([e.expand(h * w, -1) for e, (h, w) in zip(self.level_embed, sizes, strict=True)])
        with vit_gradients:
            x = self._embed(x, size)
            rope = None if self.rope is None else self._rotary(size)
        stage_tokens = []
        stage: Any  # mypy does not know the class of a ModuleList's items
        for i, stage in enumerate(self.interactions):
            if stage.injector is not None:
                patches = self._call(stage.injector, x[:, self.prefix :], c, to_vit)
                x = torch.cat([x[:, : self.prefix], patches], 1) if self.prefix else patches
            with vit_gradients:
                x = self._blocks(x, i, size, rope)
                patches = (x if self.norm is None else self.norm(x))[:, self.prefix :]
            stage_tokens.append(patches)
            for extractor in (stage.extractor, *(stage.extra_extractors or ())):
                c = self._call(extractor, c, patches, to_maps, sizes)
        levels: list[Any] = [c1, *_maps(c, sizes)]
        if self.up is not None:
            levels[0] = self.up(levels[1]) + c1
        outputs = []
        for i in self.out_indices:
            (tokens,) = _maps(stage_tokens[i if self.stage_maps else -1], [size])
            if i != 2:
                shape = levels[i].shape[-2:]
                tokens = F.interpolate(tokens, size=shape, mode="bilinear", align_corners=False)
            stride, level = 4 * 2**i, getattr(self, f"norm{i + 1}")(levels[i] + tokens)
            outputs.append(level[..., : (height + stride - 1) // stride, : (width + stride - 1) // stride])
        return tuple(outputs)


def _set_patches_and_windows(vit: Any, windows: Sequence[int | None], pad_input: bool) -> None:
    """Resize the patches to 16 × 16, as the authors do before they train DINOv2, and add the windows."""
    projection = vit.patch_embed.proj
    if projection.kernel_size != (PATCH, PATCH):
        weight = F.interpolate(projection.weight.detach(), (PATCH, PATCH), mode="bilinear")
        projection.weight = nn.Parameter(weight)
        projection.kernel_size = projection.stride = (PATCH, PATCH)
    for block, size in zip(vit.blocks, windows, strict=True):
        if size is not None:
            block.attn = WindowAttention(block.attn, size, pad_input)
