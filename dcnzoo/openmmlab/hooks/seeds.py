"""Random numbers that are the same in a resumed and in an uninterrupted training.

MMEngine's loop by iterations loads and discards all batches that a resumed training has used. Here, batches
have numbers: only the indices of the pictures are read, which restores every sampler, and the random numbers
of a batch depend on its number, not on the batches before.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from functools import partial
from itertools import chain, count, repeat
from typing import Any

from mmengine.dataset.utils import worker_init_fn
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS, HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner, set_random_seed
from torch.utils.data import BatchSampler, Dataset, Sampler

from dcnzoo.openmmlab.hooks.random_states import mix, random_states, restore_states, seed_generators, states


class Stream(IntEnum):
    """What random numbers are for. Each use has a seed of its own, of which this number is a part."""

    EPOCH = 0  # of an epoch, before its first iteration
    WORKERS = 1  # of a data loader's workers, in an epoch
    MODEL = 2  # in an iteration
    VALIDATION = 3
    BATCH = 4  # of the pipelines, in a numbered batch
    SAMPLER = 5  # of the samplers of numbered batches


class Batch(list[int]):
    """The indices of the pictures of a batch, with the batch's number in the training, from 0."""

    number = 0


@DATA_SAMPLERS.register_module()
class NumberedBatches(BatchSampler):
    """The batches of another sampler as :class:`Batch`, epoch after epoch without end.

    It has no batches before :meth:`start`: MMEngine's loop starts its loader before the checkpoint is read.

    Args:
        sampler, batch_size, drop_last: see ``torch.utils.data.BatchSampler``.
        batches: the config of a batch sampler, such as ``AspectRatioBatchSampler``; None: torch's.

    Attributes:
        batches: the batch sampler that is numbered.
    """

    def __init__(
        self,
        sampler: Sampler,
        batch_size: int,
        drop_last: bool = False,
        batches: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(sampler, batch_size, drop_last)
        self.batches: Any = BatchSampler(sampler, batch_size, drop_last)
        if batches:
            arguments = {"sampler": sampler, "batch_size": batch_size}
            self.batches = DATA_SAMPLERS.build(batches, default_args=arguments)
        self._start: tuple[int, int] | None = None

    def start(self, seed: int, first: int) -> None:
        """Let the next iterator begin with the batch number ``first``.

        Args:
            seed: seed of the global generators when samplers draw from them.
        """
        self._start = seed, first

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        if self._start is None:
            return
        seed, first = self._start
        batches = self._of_all_epochs()
        with random_states():
            seed_generators(seed)
            for _ in range(first):
                next(batches, None)
            own = states()
        for number in count(first):
            with random_states():  # those of the pipelines, which may run in this process
                restore_states(own)
                indices = next(batches, None)
                own = states()
            if indices is None:
                return
            batch = Batch(indices)
            batch.number = number
            yield batch

    def _of_all_epochs(self) -> Iterator[list[int]]:
        for epoch in count():
            if epoch and hasattr(self.sampler, "set_epoch"):
                self.sampler.set_epoch(epoch)
            is_empty = True
            for indices in self.batches:
                is_empty = False
                yield indices
            if is_empty:
                return


def load_seeded(dataset: Dataset, numbers: Sequence[int], batch: Batch) -> list[Any]:
    """Load a batch as torch's loader does, seeded by ``numbers`` and by the batch's own number."""
    seed_generators(mix(*numbers, batch.number))
    load: Callable | None = getattr(type(dataset), "__getitems__", None)
    return load(dataset, batch) if load else [dataset[index] for index in batch]


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seed each epoch by (seed, epoch, rank), and the model in each iteration by (seed, iteration, rank).

    Checkpoints do not contain the states of random generators, and a data loader's workers do not expose
    theirs. With this hook, no state needs to be saved: the random numbers of an epoch do not depend on
    earlier ones, and those of the loader do not depend on the model or on validation.

    Workers restart with every epoch, persistent ones too; their caches of images are lost. In a training by
    iterations, each batch is loaded with a seed of its own: see :class:`NumberedBatches`. If a pipeline keeps
    pictures, mmengine loads the batches already used again, which restores the loader's generators; this
    requires ``randomness.seed``.
    """

    priority = "VERY_HIGH"  # before any other hook draws random numbers

    def __init__(self) -> None:
        self._seed: int | None = None  # that of the start, before a checkpoint is loaded
        self._states: tuple[Any, ...] = ()  # of the generators that the loader uses, while the model computes

    def before_run(self, runner: Runner) -> None:
        self._seed = runner.seed

    def before_train(self, runner: Runner) -> None:
        """Give the samplers the checkpoint's seed: without ``randomness.seed``, they have a random one."""
        loader = runner.train_dataloader
        for sampler in (loader.sampler, getattr(loader.batch_sampler, "sampler", None)):
            if sampler is not None and getattr(sampler, "seed", None) == self._seed:
                sampler.seed = runner.seed

    def before_train_epoch(self, runner: Runner) -> None:
        set_random_seed(mix(runner.seed, Stream.EPOCH, runner.epoch, get_rank()))
        loader = runner.train_dataloader
        if isinstance(loader.batch_sampler, NumberedBatches):
            self._start_batches(runner, loader.batch_sampler)
        if not isinstance(runner.train_loop, EpochBasedTrainLoop) or loader.num_workers == 0:
            return
        loader._iterator = None
        initialise = loader.worker_init_fn
        # mmengine's function, not one from the config
        if isinstance(initialise, partial) and initialise.func is worker_init_fn:
            loader.worker_init_fn = partial(initialise, seed=mix(runner.seed, Stream.WORKERS, runner.epoch))

    def _start_batches(self, runner: Runner, batches: NumberedBatches) -> None:
        """Start the loader of a training by iterations at the batch that follows the checkpoint."""
        loader = runner.train_dataloader
        loader._iterator = None  # else persistent workers keep the data set without the method
        numbers = (runner.seed, Stream.BATCH, get_rank())
        loader.dataset.__getitems__ = partial(load_seeded, loader.dataset, numbers)
        batches.start(mix(runner.seed, Stream.SAMPLER, get_rank()), first=runner.iter)
        # the loop discards as many batches as there were iterations
        runner.train_loop.dataloader_iterator = chain(repeat(None, runner.iter), iter(loader))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        self._seed_model(runner.seed, Stream.MODEL, runner.iter)

    def before_val(self, runner: Runner) -> None:
        self._seed_model(runner.seed, Stream.VALIDATION)

    def _seed_model(self, *numbers: int) -> None:
        self._states = states()
        set_random_seed(mix(*numbers, get_rank()))

    def after_train_iter(self, *args: object, **kwargs: object) -> None:
        restore_states(self._states)

    after_val = after_train_iter
