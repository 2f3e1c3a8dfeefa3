"""The log of a long training: MMEngine's numbers, without copies of all values."""

import json
import pickle

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.model import BaseModel
from mmengine.runner import Runner

import dcnzoo.models  # noqa: F401  applies the patches
from dcnzoo.compat import patches
from dcnzoo.openmmlab.checkpoints import load_file
from dcnzoo.openmmlab.patches.history import Length

NAME = "short_histories"
WINDOWS = (None, 0, 1, 7, 50, 50_000)


@pytest.fixture(autouse=True)
def shortest(monkeypatch):
    monkeypatch.setattr(Length, "values", 50)


def statistics(values, counts, **arguments):
    """All results of a history after each value."""
    buffer = HistoryBuffer(**arguments)
    results = []
    for value, count in zip(values, counts, strict=True):
        buffer.update(value, count)
        results.append(
            [buffer.current(), *(getattr(buffer, m)(w) for m in ("mean", "max", "min") for w in WINDOWS)]
        )
    return results, buffer


RANDOM = np.random.default_rng(0)
FLOATS = (RANDOM.standard_normal(700) * 10.0 ** RANDOM.integers(-9, 9, 700)).tolist()
HISTORIES = {
    "floats": FLOATS,
    "integers": RANDOM.integers(-99, 99, 700).tolist(),
    "booleans, integers, floats": [*([True] * 130), *range(130), *FLOATS[:130], *range(130)],
    "not finite": [*FLOATS[:200], float("inf"), *FLOATS[200:500], float("nan"), *FLOATS[500:]],
}


@pytest.mark.parametrize("values", HISTORIES.values(), ids=HISTORIES)
@pytest.mark.parametrize("limit", [{}, {"max_length": 60}])
def test_statistics_are_mmengines(values, limit):
    counts = RANDOM.integers(1, 9, len(values)).tolist()
    results, buffer = statistics(values, counts, **limit)
    with patches.disabled(NAME):
        expected, complete = statistics(values, counts, **limit)
    assert [list(map(type, row)) for row in results] == [list(map(type, row)) for row in expected]
    # the sums of all values are rounded in another order; those of a window are equal
    np.testing.assert_allclose(results, expected, rtol=1e-9, atol=1e-9)
    inside = [0, *(1 + 6 * method + i for method in range(3) for i in (2, 3, 4))]
    np.testing.assert_array_equal(np.array(results)[:, inside], np.array(expected)[:, inside])
    assert buffer.data[0].dtype == complete.data[0].dtype and len(buffer.data[0]) <= 100
    with pytest.raises(TypeError, match="log_val must be int or float"):
        buffer.update("1")


def test_a_window_that_nobody_announced():
    """The first result is that of the values that are left; later results are exact."""
    buffer = HistoryBuffer()
    for value in range(1000):
        buffer.update(value)
        if value > 200:
            assert buffer.max(200) == value and buffer.min(200) <= value - 49
        if value > 400:
            assert buffer.min(200) == value - 199


def test_copies_and_arrays_do_not_change():
    """MMEngine's arrays are never written again."""
    buffer = HistoryBuffer([1.0, 2.0], [1, 1])
    buffer.update(3.0)
    other, (values, _) = pickle.loads(pickle.dumps(buffer)), buffer.data
    shared = HistoryBuffer()
    shared._log_history, shared._count_history = buffer.data
    for number in range(200):
        buffer.update(4.0)
        shared.update(5.0 + number)
    other.update(6.0)
    assert values.tolist() == [1, 2, 3] and other.data[0].tolist() == [1, 2, 3, 6]
    assert (buffer.max(), shared.max(), buffer.current(), buffer.mean()) == (4, 204, 4, 806 / 203)


def test_an_old_checkpoint_shrinks_at_the_next_save(tmp_path):
    """A history of a million iterations, written by MMEngine, and read by it afterwards."""
    values = np.random.default_rng(0).random(1_000_000)
    hub = MessageHub(
        f"{tmp_path}", resumed_keys={"train/loss": True}, log_scalars={"train/loss": HistoryBuffer()}
    )
    with patches.disabled(NAME):
        hub.log_scalars["train/loss"] = HistoryBuffer(values, np.ones(len(values), int))
        torch.save({"message_hub": hub.state_dict()}, tmp_path / "old.pth")
    assert (tmp_path / "old.pth").stat().st_size > 16_000_000
    hub.load_state_dict(load_file(tmp_path / "old.pth")["message_hub"])
    torch.save({"message_hub": hub.state_dict()}, tmp_path / "new.pth")
    assert (tmp_path / "new.pth").stat().st_size < 10_000
    log = load_file(tmp_path / "new.pth")["message_hub"]["log_scalars"]["train/loss"]
    log.update(2.0)
    assert log.mean(1_000_001) == pytest.approx((values.sum() + 2) / 1_000_001, rel=1e-12)
    assert (log.max(), log.min(), log.mean(2)) == (2, values.min(), (values[-1] + 2) / 2)
    with patches.disabled(NAME):
        log = load_file(tmp_path / "new.pth")["message_hub"]["log_scalars"]["train/loss"]
        log.update(2.0)
        assert log.mean(50) == pytest.approx((values[-49:].sum() + 2) / 50)


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, inputs, mode):
        value = torch.as_tensor(inputs).mean()
        return {"loss": (self.weight - value) ** 2, "accuracy": value, "loss_other": value.abs()}


def train(folder, epoch=230):
    data = list(torch.randn(epoch, generator=torch.Generator().manual_seed(0)))
    sampler = {"type": DefaultSampler, "shuffle": False}
    loader = {"batch_size": 1, "num_workers": 0, "dataset": data, "sampler": sampler}
    windows = ("mean epoch", "max epoch", "mean global", "min global", "max 333", "mean 120")
    entries = []
    for text in windows:
        method, size = text.split()
        size = int(size) if size.isdigit() else size
        entries.append(dict(data_src="loss", log_name=text, method_name=method, window_size=size))
    runner = Runner(
        Model(),
        str(folder),
        train_dataloader=loader,
        train_cfg={"by_epoch": True, "max_epochs": 10},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.01}},
        param_scheduler={"type": "LinearLR", "start_factor": 0.1, "end": 1500, "by_epoch": False},
        default_hooks={
            "logger": {"type": "LoggerHook", "interval": 23},
            "checkpoint": {"type": "CheckpointHook"},
        },
        log_processor={"window_size": 40, "custom_cfg": entries},
        log_level="ERROR",
        experiment_name=folder.name,
    )
    runner.train()
    (path,) = folder.glob("*/vis_data/scalars.json")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    log = load_file(folder / "epoch_10.pth")["message_hub"]["log_scalars"]
    return [{key: row[key] for key in row if "time" not in key} for row in rows], log


def test_the_log_of_a_training_is_mmengines(tmp_path):
    rows, log = train(tmp_path / "patched")
    with patches.disabled(NAME):
        expected, complete = train(tmp_path / "original")
    assert len(rows) == 100 and rows == [pytest.approx(row, rel=1e-12) for row in expected]
    assert [*log] == [*complete] and len(complete["train/loss"].data[0]) == 2300
    assert {len(buffer.data[0]) for buffer in log.values()} == {333}
