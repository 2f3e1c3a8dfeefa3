"""Patches of MMEngine's configs and registries: bases in packages, the text of a config, types."""

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import registry

from dcnzoo.compat.patches import Changes
from dcnzoo.openmmlab.config.packages import base_path
from dcnzoo.openmmlab.config.paths import without_templates


def inherit_from_packages(changes: Changes) -> None:
    """Let ``mmengine.config`` find dcnzoo's configs, and MMDetection's without reading metafiles."""
    changes.set_item(MODULE2PACKAGE, "dcnzoo", "dcnzoo")
    changes.set(Config, "_get_cfg_path", staticmethod(base_path))


def types_import_no_modules(changes: Changes) -> None:
    """Look up a type only in the registries, unless it has a dot: ``torch.nn.ReLU`` is still imported."""
    changes.wrap(registry, "get_object_from_string", lambda get, name: get(name) if "." in name else None)


def config_text(changes: Changes) -> None:
    """Format a config once, not for every checkpoint, and without templates."""
    original = Config.pretty_text.fget
    last: dict[str, str] = {}

    def pretty_text(self: Config) -> str:
        if (content := repr(self._cfg_dict)) not in last:
            last.clear()
            last[content] = without_templates(original(self))
        return last[content]

    changes.set(Config, "pretty_text", property(pretty_text))
