"""``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` of modules, through huggingface_hub.

Installation: ``pip install "./dcnzoo[hub]"``. The methods import huggingface_hub when they are called. This
module does not import torch.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from typing_extensions import Self


class HubMixin:
    """Adds the methods of huggingface_hub's ``PyTorchModelHubMixin`` to an ``nn.Module``.

    A folder, local or on the Hub, contains ``config.json`` with the constructor's arguments and
    ``model.safetensors`` with the state dict. No other file is loaded: no pickle, no code. The arguments
    ``device`` and ``dtype`` are not saved: a module is loaded to the CPU, in torch's default dtype.
    """

    if TYPE_CHECKING:  # TorchScript must not find these annotations
        _hub_modules: ClassVar[dict[str, type]]
        _hub_arguments: tuple[tuple, dict[str, Any]]

    # module classes allowed as constructor arguments; their constructors must take their public attributes
    _hub_modules = {}

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        module = super().__new__(cls)
        # not setattr: nn.Module.__init__ has not run
        vars(module)["_hub_arguments"] = args, kwargs
        return module

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Writes ``config.json``, ``model.safetensors`` and a model card, ``README.md``, into a folder.

        Args:
            save_directory: the folder; it is created.
            **options: ``push_to_hub``, ``repo_id`` and others of ``PyTorchModelHubMixin.save_pretrained``.

        Raises:
            ImportError: huggingface_hub is not installed.
            TypeError: an argument of the constructor cannot be written as JSON.
        """
        return self._as_hub_model().save_pretrained(save_directory, config=self._hub_config(), **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Uploads the files of :meth:`save_pretrained`, as ``PyTorchModelHubMixin.push_to_hub`` does."""
        return self._as_hub_model().push_to_hub(repo_id, config=self._hub_config(), **options)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Load a module, in evaluation mode, from a folder that :meth:`save_pretrained` wrote.

        Args:
            pretrained_model_name_or_path: a local folder, which needs no network, or a name on the Hub.
            **options: arguments of the constructor, which override ``config.json``; ``strict=False`` to
                ignore missing and unexpected keys; ``map_location``, ``revision``, ``token``, ``cache_dir``
                and others of ``PyTorchModelHubMixin.from_pretrained``.

        Raises:
            ImportError: huggingface_hub is not installed.
            ValueError: an argument is a module of another package: pass it in ``options``.
            RuntimeError: keys or shapes in the file do not match the module.
        """
        module = _hub_class(cls).from_pretrained(  # type: ignore[arg-type]
            pretrained_model_name_or_path, **options
        )
        vars(module).pop("_hub_mixin_config", None)
        module.__class__ = cls
        return module.eval()  # not all versions of huggingface_hub do this

    def _as_hub_model(self) -> Any:
        """A shallow copy of the module with huggingface_hub's methods."""
        model = copy.copy(self)
        model.__class__ = _hub_class(type(self))  # type: ignore[arg-type]  # a class is hashable
        return model

    def _hub_config(self) -> dict[str, Any]:
        positional, named = self._hub_arguments
        parameters = inspect.signature(type(self)).parameters
        defaults = {k: p.default for k, p in parameters.items() if p.default is not p.empty}
        config = {}
        for name, value in {**defaults, **dict(zip(parameters, positional, strict=False)), **named}.items():
            if name in ("device", "dtype"):
                continue
            kind = type(value)
            if hasattr(value, "state_dict"):  # a module, without importing torch
                known = self._hub_modules.get(kind.__name__) is kind
                public = {k: v for k, v in vars(value).items() if k != "training" and k[0] != "_"}
                label = kind.__name__ if known else f"{kind.__module__}.{kind.__qualname__}"
                value = {"module": label, **(public if known else {})}
            try:
                json.dumps(value)
            except TypeError:
                raise TypeError(
                    f"{type(self).__name__}: {name}: expected a value that can be written as JSON, "
                    f"got {value!r}"
                ) from None
            config[name] = value
        return config

    @classmethod
    def _hub_argument(cls, name: str, value: Any) -> Any:
        if not isinstance(value, dict) or "module" not in value:
            return value
        kind = cls._hub_modules.get(value["module"])
        if kind is None:
            raise ValueError(
                f"{cls.__name__}.from_pretrained: {name}: expected an instance of {value['module']}, which "
                f"is not in the file: from_pretrained(…, {name}=…)"
            )
        return kind(**{k: v for k, v in value.items() if k != "module"})


@functools.cache
def _hub_class(cls: Any) -> Any:
    try:
        import safetensors  # noqa: F401  (huggingface_hub imports it when it saves)
        from huggingface_hub import PyTorchModelHubMixin
    except ImportError as error:
        raise ImportError(
            f"{cls.__name__}: expected huggingface_hub and safetensors, got {error}; run "
            'pip install "dcnzoo[hub]"',
            name=error.name,
        ) from None

    class HubModel(PyTorchModelHubMixin, cls, library_name="dcnzoo"):  # type: ignore[call-arg]
        def __new__(new, *args: Any, **kwargs: Any) -> Any:
            return cls.__new__(new, *args, **kwargs)

        @classmethod
        def _from_pretrained(new, *, strict: bool = True, **options: Any) -> Any:
            options = {name: cls._hub_argument(name, value) for name, value in options.items()}
            return super()._from_pretrained(strict=strict, **options)

        @classmethod
        def _load_as_pickle(new, model: Any, model_file: str, *args: Any) -> Any:
            raise ValueError(
                f"{cls.__name__}.from_pretrained: expected model.safetensors, got {Path(model_file).name}"
            )

    HubModel.__name__ = cls.__name__
    return HubModel
