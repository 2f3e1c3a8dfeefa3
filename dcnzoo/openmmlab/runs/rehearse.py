"""Build every part of a training by mmengine's own methods before it starts, with two entries as data."""

import copy
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from inspect import signature
from typing import Any

import torch
from mmcv.transforms import Compose
from mmengine.dataset import BaseDataset
from mmengine.hooks import EMAHook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from mmengine.runner.base_loop import BaseLoop
from torch import nn
from torch.distributed import init_process_group
from torch.nn.modules.batchnorm import _BatchNorm

from dcnzoo.compat.patches import Changes
from dcnzoo.openmmlab.checkpoints import require_address
from dcnzoo.openmmlab.config.errors import config_errors, frames_of, require_none
from dcnzoo.openmmlab.config.read import words_in
from dcnzoo.openmmlab.config.tree import datasets, dicts
from dcnzoo.openmmlab.config.watched import Asked, misspelt, unread, watched
from dcnzoo.openmmlab.datasets import coco
from dcnzoo.openmmlab.runs.schedules import EffectHook
from dcnzoo.openmmlab.runs.separate_run import trial
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.findings import Finding

_LEAST_STEP = 1e-6  # of the rate
# have the data set and do not use it
_BUILDERS = ("mmengine.runner", "mmengine.registry", "torch.utils.data")
# attributes of a runner → the parts of its config that are read when a training is built
_WATCHED = {
    "optim_wrapper": "optim_wrapper",
    "_train_dataloader": "train_dataloader",
    "auto_scale_lr": "auto_scale_lr",
}
_ENTRIES = [
    {
        **{"img_path": f"{number}.png", "img_id": number, "height": 64, "width": 96, "sample_idx": number},
        "instances": [{"bbox": [0.0, 0.0, 8.0, 9.0], "bbox_label": 0, "ignore_flag": 0, "mask": []}],
    }
    for number in range(2)
]


def require_parts(runner: Runner, only_checks: bool) -> None:
    """Raise UserError with a line for each part of a training that its class refuses; warn of other findings.

    The runner, and the state of random generators, stay as they were.

    Args:
        only_checks: also show the warnings of the parts, which a training shows when it builds them.
    """
    problems, findings = rehearse(runner, only_checks)
    if problems:
        raise UserError(*problems)
    require_none(findings, runner.cfg.filename)


def load_data(runner: Runner, only_checks: bool) -> None:
    """Build the loops with the data, as the training would do next: it then uses these.

    Args:
        only_checks: a line says that data do not exist, and nothing is written. If they exist, also build the
            schedules for their number of batches.

    Raises:
        UserError: the data cannot be used.
    """
    with Changes() as changes:
        if only_checks:
            changes.set(coco, "make_shapes", lambda *args: None)
        for name in ("train", "val"):
            part, loop = f"{name}_dataloader", getattr(runner, f"_{name}_loop")
            folder = _lacking_folder(getattr(runner, f"_{part}")) if only_checks else ""
            if folder:
                text = f"the data were not tried: {folder} does not exist"
                require_none([Finding(part, text, stops=False)], runner.cfg.filename)
            elif loop is not None:
                setattr(runner, f"_{name}_loop", getattr(runner, f"build_{name}_loop")(loop))
    own = words_in(runner.cfg, are_published=False) if only_checks else ()
    folder = _lacking_folder(runner._test_dataloader) if "test_dataloader" in own else ""
    if folder:
        finding = Finding("test_dataloader", f"a test needs {folder}, which does not exist", stops=False)
        require_none([finding], runner.cfg.filename)
    for path, node in dicts(runner.cfg.model.to_dict(), "model") if only_checks else ():
        file = str(node.get("checkpoint"))
        if path.endswith("init_cfg") and "://" in file:
            try:
                require_address(file)
            except UserError as error:
                raise UserError(f"{path}.checkpoint: {error}") from error
    if only_checks and isinstance(runner._train_loop, BaseLoop):
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
        if runner.param_schedulers is not None:
            runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
        EffectHook().before_run(runner)


def _lacking_folder(loader: Any) -> str:
    """Return a folder of a loader's data that does not exist; empty if all do."""
    for dataset in datasets(loader["dataset"]) if isinstance(loader, Mapping) else ():
        root = dataset.get("data_root") or os.path.dirname(dataset.get("ann_file") or "")
        if isinstance(root, str) and root and "://" not in root and not os.path.isdir(root):
            return root
    return ""


def rehearse(runner: Runner, only_checks: bool = False) -> tuple[list[str], list[Finding]]:
    """Build the loops, the optimizer and the schedules of a training.

    mmengine builds them in this way when the training starts, after it has read the data.

    Returns:
        An error for each part that fails, apart from those that may come from the entries in place of data;
        and the settings that no part has read.
    """
    asked, problems, findings, complete = Asked(), list[str](), list[Finding](), True
    with trial(runner.cfg, logging.INFO if only_checks else logging.CRITICAL) as changes:
        changes.callback(vars(runner).update, dict(vars(runner)))
        _replace_data(changes)
        for name, key in _WATCHED.items():
            setattr(runner, name, watched(getattr(runner, name), key, asked))
        parts: dict[str, Callable] = {
            "_train_loop": runner.build_train_loop,
            "optim_wrapper": runner.build_optim_wrapper,
            "param_schedulers": runner.build_param_scheduler,
            "_val_loop": runner.build_val_loop,
        }
        for name, build in parts.items():
            if getattr(runner, name) is None or (name == "param_schedulers" and not complete):
                continue  # schedules need the loop and the optimizer
            try:
                with config_errors(runner.cfg):
                    setattr(runner, name, build(getattr(runner, name)))
                    if name == "optim_wrapper":
                        findings += _try(runner.optim_wrapper)
                        runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
                        (runner.auto_scale_lr or {}).get("base_batch_size")  # also if it is not enabled
            except UserError as error:
                complete = False
                key, text = misspelt(runner.cfg, _WATCHED.get(name, ""), asked, error) or ("", "")
                if key or not _of_data(error):
                    problems += [f"{runner.cfg.filename}: {key}: {text}"] if key else error.args
        if complete:
            findings += [*_unread_of_parts(runner, asked), *_frozen_at_random(runner)]
            with config_errors(runner.cfg):
                _try_hooks(runner)
    return problems, findings


def _unread_of_parts(runner: Runner, asked: Asked) -> Iterator[Finding]:
    """Yield the settings that no part has read, of the environment, too."""
    runner.setup_env(watched(runner.cfg.get("env_cfg") or {}, "env_cfg", asked))
    asked["env_cfg"].add("dist_cfg")
    asked["env_cfg.dist_cfg"] = {*signature(init_process_group).parameters, "port", "init_backend"}
    for part in ("env_cfg", *_WATCHED.values()):
        for finding in unread(runner.cfg, part, asked):
            # of a data set, only the filter is used now
            if part != "train_dataloader" or ".filter_cfg." in finding.subject:
                yield finding


def _try_hooks(runner: Runner) -> None:
    """Begin copies of the hooks that may require another model, and build pipelines of a later epoch."""
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):  # it passes its other settings on
            copy.copy(hook).before_run(runner)
        if type(hook).__module__.startswith("mmdet."):
            copy.copy(hook).before_train(runner)
        if pipeline := getattr(hook, "switch_pipeline", None):
            Compose(pipeline)


def _frozen_at_random(runner: Runner) -> Iterator[Finding]:
    """Yield the parts of a model that freeze layers to which no file gives weights."""
    modules = dict(runner.model.named_modules()) if not (runner._load_from or runner._resume) else {}
    from_files = tuple(
        f"{name}." if name else ""
        for name, each in modules.items()
        if "checkpoint" in str(vars(each).get("init_cfg"))
    )
    flagged = list[str]()
    for name, module in modules.items():
        is_frozen = _is_fixed(module)
        is_evaluated = getattr(module, "norm_eval", False) and any(
            isinstance(each, _BatchNorm) for each in module.modules()
        )
        key = "norm_cfg" if getattr(module, "frozen_stages", 0) < 0 else "frozen_stages"
        if not (is_frozen and hasattr(module, "frozen_stages")):
            key = "norm_eval" if is_evaluated else ""
        if key and not f"{name}.".startswith(from_files):
            text = "expected init_cfg or load_from with weights for frozen layers, got random ones"
            flagged.append(f"{name}.")
            yield Finding(f"model.{name}.{key}", text, stops=False)
    fixed = [name for name, each in modules.items() if isinstance(each, _BatchNorm) and _is_fixed(each)]
    known = (*from_files, *flagged, "teacher.")
    for name in [each for each in fixed if not f"{each}.".startswith(known)][:1]:
        text = "expected init_cfg or load_from with weights for what is not trained, got none"
        yield Finding(f"model.{name}", text, stops=False)
    groups = [group for each in _wrappers(runner.optim_wrapper) for group in each.param_groups]
    rates = [(group.get("initial_lr", group["lr"]), group["params"]) for group in groups]
    still = {id(value) for rate, values in rates if rate == 0 for value in values}
    for name, value in runner.model.named_parameters() if modules else ():
        if id(value) in still and value.dim() > 1 and not name.startswith(from_files):
            text = f"expected weights from a file for parameters with a rate of 0, got random ones as {name}"
            yield Finding("optim_wrapper.paramwise_cfg", text, stops=False)
            break


def _is_fixed(module: nn.Module) -> bool:
    return any(not each.requires_grad for each in module.parameters())


def _wrappers(wrapper: object) -> list[OptimWrapper]:
    own = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    return [each for each in own if isinstance(each, OptimWrapper)]


def _try(wrapper: object) -> Iterator[Finding]:
    """Try the function that clips gradients, and a step of the optimizer; require a learning rate."""
    for each in _wrappers(wrapper):
        rate = max((group["lr"] for group in each.param_groups), default=0)
        if not rate:
            raise UserError("optim_wrapper: expected a learning rate above 0, got 0 for all parameters")
        parameter = torch.zeros(1, requires_grad=True)
        parameter.grad = torch.zeros(1)
        if each.clip_grad_kwargs:
            each.clip_func([parameter], **each.clip_grad_kwargs)
        kind: Any = type(each.optimizer)
        if kind.__module__.startswith("torch.optim"):
            parameter.grad = torch.ones(1)
            with suppress(Exception):  # of one that needs more than gradients
                known = each.optimizer.defaults.keys() & signature(kind).parameters.keys()
                kind([parameter], **{key: each.optimizer.defaults[key] for key in known}).step()
                if not float(parameter) < -_LEAST_STEP * rate:
                    text = f"expected a step of about {-rate:.3g} for a gradient of 1"
                    text = f"{text}, got {float(parameter):.3g}"
                    yield Finding("optim_wrapper.optimizer", text, stops=False)


def _replace_data(changes: Changes) -> None:
    """Let data sets have two entries, and metrics read no annotations."""

    def full_init(self: BaseDataset) -> None:
        if not self._fully_initialized:
            self.serialize_data, self.data_list, self._fully_initialized = False, [*_ENTRIES], True
            with suppress(Exception):  # for other entries
                self.filter_data()

    for kind in _subclasses(BaseDataset):
        if "full_init" in vars(kind):
            changes.set(kind, "full_init", full_init)
    changes.set(coco, "CheckedCOCO", lambda *args, **kwargs: None)


def _subclasses(kind: Any) -> Iterator[Any]:
    yield kind
    for subclass in kind.__subclasses__():
        yield from _subclasses(subclass)


def _of_data(error: UserError) -> bool:
    """Whether an error arose in code that may use the entries of a data set."""
    return any(
        getattr(value, "_fully_initialized", False)
        for frame in frames_of(error.__cause__)
        if not frame.f_globals.get("__name__", "").startswith(_BUILDERS)
        for value in frame.f_locals.values()
    )
