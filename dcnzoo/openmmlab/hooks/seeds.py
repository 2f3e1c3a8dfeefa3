"""Random numbers that are the same in a resumed and in an uninterrupted training."""

from functools import partial
from itertools import chain, repeat

from mmengine.dataset.utils import worker_init_fn
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner, set_random_seed

from dcnzoo.openmmlab.hooks.batches import NumberedBatches, SeededLoading
from dcnzoo.openmmlab.hooks.random_states import mix, restore_states, states


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seed each epoch by (seed, epoch, rank), and the model in each iteration by (seed, iteration, rank).

    Checkpoints do not contain the states of random generators, and a data loader's workers do not expose
    theirs. With this hook, no state needs to be saved: the random numbers of an epoch do not depend on
    earlier ones, and those of the loader do not depend on the model or on validation.

    Workers restart with every epoch, persistent ones too; their caches of images are lost. In a training by
    iterations, each batch is loaded with a seed of its own: see :mod:`dcnzoo.openmmlab.hooks.batches`.
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
        set_random_seed(mix(runner.seed, 0, runner.epoch, get_rank()))
        loader = runner.train_dataloader
        if isinstance(loader.batch_sampler, NumberedBatches):
            self._start_batches(runner, loader.batch_sampler)
        if not isinstance(runner.train_loop, EpochBasedTrainLoop) or loader.num_workers == 0:
            return
        loader._iterator = None
        initialise = loader.worker_init_fn
        # mmengine's function, not one from the config
        if isinstance(initialise, partial) and initialise.func is worker_init_fn:
            loader.worker_init_fn = partial(initialise, seed=mix(runner.seed, 1, runner.epoch))

    def _start_batches(self, runner: Runner, batches: NumberedBatches) -> None:
        """Start the loader of a training by iterations at the batch that follows the checkpoint."""
        loop, loader = runner.train_loop, runner.train_dataloader
        loader._iterator = None  # else persistent workers keep the data set without the method
        loader.dataset.__getitems__ = SeededLoading(loader.dataset, runner.seed, 4, get_rank())
        batches.start(mix(runner.seed, 5, get_rank()), first=runner.iter)
        # the loop discards as many batches as there were iterations
        loop.dataloader_iterator = chain(repeat(None, runner.iter), iter(loader))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        self._seed_model(runner.seed, 2, runner.iter)

    def before_val(self, runner: Runner) -> None:
        self._seed_model(runner.seed, 3)

    def _seed_model(self, *numbers: int) -> None:
        self._states = states()  # those that the loader uses
        set_random_seed(mix(*numbers, get_rank()))

    def after_train_iter(self, *args: object, **kwargs: object) -> None:
        restore_states(self._states)

    after_val = after_train_iter
