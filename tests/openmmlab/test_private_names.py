"""The private names of other packages on which configs, hooks and runs rely: a new version may lack one."""

import ast
import inspect
import re
from importlib import import_module

import pytest

from tests.helpers.processes import ROOT

# class or module, and its private names, and what for. A method of a subclass overrides those that say so
NAMES = {
    "mmengine.runner.Runner": {
        "_load_from": "the checkpoint of the start",
        "_resume": "whether the start continues a training",
        "_has_loaded": "whether the checkpoint was loaded",
        "_train_loop": "the loop, or its config before it is built; also with the prefixes of ranks.py",
    },
    "mmengine.runner.FlexibleRunner": {"_load_from": "as of Runner", "_resume": "as of Runner"},
    "mmengine.runner.EpochBasedTrainLoop": {"_decide_current_val_interval": "before the repeated validation"},
    "mmengine.runner.IterBasedTrainLoop": {"_decide_current_val_interval": "before the repeated validation"},
    "mmengine.runner.CheckpointLoader": {"_schemes": "the functions that read files"},
    "mmengine.hooks.EMAHook": {"_swap_ema_state_dict": "to use trained weights in place of averages"},
    "mmengine.hooks.CheckpointHook": {"_save_checkpoint_with_step": "overridden: old files go afterwards"},
    "mmengine.hooks.Hook": {"_before_epoch": "overridden, for bars", "_after_iter": "overridden, for bars"},
    "mmengine.optim.OptimWrapper": {"_accumulative_counts": "for the images per step"},
    "mmengine.optim.LinearLR": {"_last_value": "the value of each parameter group"},
    "mmengine.optim.ReduceOnPlateauLR": {"_last_value": "the value of each parameter group"},
    "mmengine.config.Config": {
        "_cfg_dict": "its dictionary",
        "_to_lazy_dict": "its dictionary with the objects that it imports",
        "_get_cfg_path": "replaced: configs of packages",
    },
    "mmengine.utils.ManagerMixin": {"_instance_dict": "loggers and visualizers by name"},
    "mmengine.dataset.BaseDataset": {"_load_metainfo": "the classes without building the data set"},
    "torch.utils.data.DataLoader": {"_iterator": "of persistent workers"},
    "torch.nn.Module": {"_metadata": "versions in a state dict"},
    "multiprocessing.queues.Queue": {"_on_queue_feeder_error": "replaced: the loader's worker ends"},
    "numpy": {"_core": "for pickles of logs"},
    "numpy._core.multiarray": {"_reconstruct": "for pickles of logs"},
}
OTHERS = {"_exit"}  # of os, documented
ROOMS = ("runs", "hooks", "config", ".")


@pytest.mark.parametrize("owner", NAMES)
def test_the_installed_version_has_the_name(owner):
    path, _, name = owner.rpartition(".")
    target = getattr(import_module(path), name) if path else import_module(name)
    for private in NAMES[owner]:
        text = "".join(map(inspect.getsource, target.__mro__[:-1])) if inspect.isclass(target) else ""
        is_set = re.search(rf"\.{private}\b[^=\n]* = |__setattr__\('{private}'", text)  # by a method
        assert hasattr(target, private) or is_set, private


def names_in(path):
    """The names that a module defines, the private names that it reads or sets, and its texts."""
    own, read, texts = set(), set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        elif isinstance(node, ast.Attribute):
            is_own = isinstance(node.ctx, ast.Store) and getattr(node.value, "id", "") == "self"
            (own if is_own else read).add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.add(node.value)
    return own, {name for name in read if name.startswith("_") and not name.startswith("__")}, texts


def test_the_table_is_complete_and_has_nothing_else():
    table = {name for names in NAMES.values() for name in names}
    used = set()
    for path in (path for room in ROOMS for path in (ROOT / "dcnzoo/openmmlab" / room).glob("*.py")):
        own, read, texts = names_in(path)
        assert read - own <= table | OTHERS, path
        used |= own | read | texts
    assert table <= used
