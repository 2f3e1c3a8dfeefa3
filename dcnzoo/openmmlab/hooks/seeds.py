"""Random numbers that are the same in a resumed and in an uninterrupted training."""

import contextlib
import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.dataset.utils import worker_init_fn
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner, set_random_seed


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seed each epoch by (seed, epoch, rank), and the model in each iteration by (seed, iteration, rank).

    Checkpoints do not contain the states of random generators, and a data loader's workers do not expose
    theirs. With this hook, no state needs to be saved: the random numbers of an epoch do not depend on
    earlier ones, and those of the loader do not depend on the model or on validation.

    Workers restart with every epoch, persistent ones too; their caches of images are lost. In training by
    iterations, mmengine advances the data loader past the batches already used, which restores the loader's
    generators. This requires ``randomness.seed``.
    """

    priority = "VERY_HIGH"  # before any other hook draws random numbers

    def before_run(self, runner: Runner) -> None:
        self._seed = runner.seed

    def before_train(self, runner: Runner) -> None:
        """Give the samplers the checkpoint's seed: without ``randomness.seed``, they have a random one."""
        loader = runner.train_dataloader
        for sampler in (loader.sampler, getattr(loader.batch_sampler, "sampler", None)):
            if sampler is not None and getattr(sampler, "seed", None) == self._seed:
                sampler.seed = runner.seed

    def before_train_epoch(self, runner: Runner) -> None:
        set_random_seed(_mix(runner.seed, 0, runner.epoch, get_rank()))
        loader = runner.train_dataloader
        if not isinstance(runner.train_loop, EpochBasedTrainLoop) or loader.num_workers == 0:
            return
        loader._iterator = None
        initialise = loader.worker_init_fn
        # mmengine's function, not one from the config
        if isinstance(initialise, partial) and initialise.func is worker_init_fn:
            loader.worker_init_fn = partial(initialise, seed=_mix(runner.seed, 1, runner.epoch))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        self._seed_model(runner.seed, 2, runner.iter)

    def before_val(self, runner: Runner) -> None:
        self._seed_model(runner.seed, 3)

    def _seed_model(self, *numbers: int) -> None:
        self._states = _states()  # those that the loader uses
        set_random_seed(_mix(*numbers, get_rank()))

    def after_train_iter(self, *args: object, **kwargs: object) -> None:
        _restore(self._states)

    after_val = after_train_iter


@contextlib.contextmanager
def random_states() -> Iterator[None]:
    """Context that restores the three random generators that transforms use."""
    states = _states()
    try:
        yield
    finally:
        _restore(states)


def _states() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002


def _restore(states: tuple[Any, ...]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])


def _mix(*numbers: int) -> int:
    """Return a seed of 31 bits, to which mmengine can add a worker's index without overflow."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0] >> 1)
