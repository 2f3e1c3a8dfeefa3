"""Random numbers that a resumed training draws as one that was never interrupted."""

import random
from functools import partial

import numpy as np
import torch
from mmengine.dataset.utils import worker_init_fn
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner, set_random_seed


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seed each epoch by (seed, epoch, rank), each iteration of the model by (seed, iteration, rank).

    Checkpoints hold no state of a generator, and a data loader's workers cannot be asked for theirs. With
    this hook there is none to be held: what an epoch draws does not depend on what was drawn before it,
    in this process or in another; what the loader draws does not depend on the model, nor on validation.

    The workers begin anew with every epoch, persistent ones too: what they carry from one to the next,
    generators and caches of images, is lost with the process. (mmengine seeds workers that are not
    persistent alike in each epoch.)

    In training by iterations mmengine loads the data once more that were trained on, and so brings the
    loader's generators to where they were; with ``randomness.seed`` set.
    """

    priority = "VERY_HIGH"  # before anyone draws

    def before_run(self, runner: Runner) -> None:
        self._seed = runner.seed

    def before_train(self, runner: Runner) -> None:
        """Without ``randomness.seed`` a checkpoint brings the seed, after the samplers have taken another."""
        loader = runner.train_dataloader
        for sampler in (loader.sampler, getattr(loader.batch_sampler, "sampler", None)):
            if getattr(sampler, "seed", None) == self._seed:
                sampler.seed = runner.seed

    def before_train_epoch(self, runner: Runner) -> None:
        set_random_seed(_mix(runner.seed, 0, runner.epoch, get_rank()))
        loader = runner.train_dataloader
        if not isinstance(runner.train_loop, EpochBasedTrainLoop) or loader.num_workers == 0:
            return
        loader._iterator = None
        initialise = loader.worker_init_fn
        if (
            isinstance(initialise, partial) and initialise.func is worker_init_fn
        ):  # mmengine's, not a config's
            loader.worker_init_fn = partial(initialise, seed=_mix(runner.seed, 1, runner.epoch))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        self._loader = _states()
        set_random_seed(_mix(runner.seed, 2, runner.iter, get_rank()))

    def after_train_iter(self, *args: object, **kwargs: object) -> None:
        _restore(*self._loader)

    def before_val(self, runner: Runner) -> None:
        self._loader = _states()
        set_random_seed(_mix(runner.seed, 3, get_rank()))

    def after_val(self, runner: Runner) -> None:
        _restore(*self._loader)


def _mix(*numbers: int) -> int:
    """A seed of 31 bits, to which mmengine can add a worker's number."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0] >> 1)


def _states() -> tuple:
    """Of the three generators that transforms draw from."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002


def _restore(python: tuple, numpy: tuple, own: torch.Tensor) -> None:
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002
    torch.set_rng_state(own)
