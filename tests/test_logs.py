"""What a training tells while it runs."""

import csv
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from models import random_suite

import ctt_helpers as ctt
from ctt_helpers import logs


def stream(seed=0):
    x = torch.randn(4096, 2, 8, generator=torch.Generator().manual_seed(seed))
    return ctt.TensorStream(x, batch_size=256, source={"data": "x"})


def crosscoder():
    return ctt.Crosscoder(2, 8, 24, k=4, seed=0)


CONFIG = ctt.TrainConfig(steps=100, checkpoint_every=10)


def test_rows_come_as_they_are_logged_and_what_comes_back_is_added():
    rows = []

    def mark(row):
        return {"twice": 2 * row["step"]}

    result = ctt.train(crosscoder(), stream(), CONFIG, on_log=[mark, rows.append])
    assert [row["step"] for row in rows] == [1, 20, 40, 60, 80, 100]
    assert list(result.history["twice"]) == [2 * row["step"] for row in rows]
    pd.testing.assert_frame_equal(result.history, pd.DataFrame(rows))
    # and nothing else changes
    plain = ctt.train(crosscoder(), stream(), CONFIG).history
    same = [name for name in plain if name != "seconds"]
    pd.testing.assert_frame_equal(result.history[same], plain[same])


def test_a_csv_file_goes_on_where_a_run_is_taken_up(tmp_path):
    path = tmp_path / "log.csv"

    def stop(row):
        if row["step"] == 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ctt.train(crosscoder(), stream(), CONFIG, tmp_path, on_log=[logs.to_csv(path), stop])
    assert list(pd.read_csv(path)["step"]) == [1, 20, 40, 60]
    result = ctt.train(crosscoder(), stream(), CONFIG, tmp_path, on_log=logs.to_csv(path))
    assert result.resumed_from == 50
    pd.testing.assert_frame_equal(pd.read_csv(path), result.history, rtol=1e-9)


def test_a_csv_file_of_another_kind_or_run_is_left(tmp_path):
    other, log = tmp_path / "other.csv", tmp_path / "log.csv"
    other.write_text("a,b\n1,2\n")
    with pytest.raises(FileExistsError, match=r"other\.csv is no log of a training"):
        logs.to_csv(other)({"step": 1, "tokens": 8})
    write = logs.to_csv(log)
    for row in ({"step": 1, "tokens": 8}, {"step": 20, "tokens": 160, "dce": 0.5}):
        write(row)
    with open(log, newline="") as file:
        assert list(csv.reader(file)) == [
            ["step", "tokens", "dce"],
            ["1", "8", ""],
            ["20", "160", "0.5"],
        ]
    with pytest.raises(FileExistsError, match="up to step 20, and this one begins afresh"):
        logs.to_csv(log)({"step": 1, "tokens": 8})
    assert other.read_text() == "a,b\n1,2\n"


def test_evaluation_every_so_many_steps(tmp_path):
    suite = random_suite(tmp_path)
    ckpts = suite.checkpoints(device="cpu")
    text = torch.randint(3, 40, (24, 12), generator=torch.Generator().manual_seed(0))
    own = ctt.Crosscoder(len(ckpts), ckpts.d_model, 48, k=6, seed=0)
    config = ctt.TrainConfig(steps=100, k_anneal=0.3)
    look = logs.evaluating(own, ckpts, text, every=50)
    own_stream = ctt.ActivationStream(ckpts, text, batch_size=32)
    history = ctt.train(own, own_stream, config, on_log=look).history
    looked = history[history["dce"].notna()]
    assert list(looked["step"]) == [60, 100]
    report = ctt.evaluate(own, ckpts, text)
    assert looked["dce"].iloc[-1] == pytest.approx(sum(report.dce) / len(report.dce))
    assert looked["held_out_l0"].iloc[-1] == pytest.approx(report.l0)
    # looking changes nothing of the training
    again = ctt.Crosscoder(len(ckpts), ckpts.d_model, 48, k=6, seed=0)
    ctt.train(again, ctt.ActivationStream(ckpts, text, batch_size=32), config)
    assert torch.equal(own.W_dec, again.W_dec)


def test_to_weights_and_biases(monkeypatch):
    told = []
    run = SimpleNamespace(log=lambda row, step: told.append((step, row)))
    monkeypatch.setitem(
        sys.modules, "wandb", SimpleNamespace(init=lambda **given: told.append(given) or run)
    )
    write = logs.to_wandb(project="crosscoders", mode="offline")
    write({"step": 20, "loss": 0.5})
    assert told == [{"project": "crosscoders", "mode": "offline"}, (20, {"loss": 0.5})]


def test_to_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    ctt.train(crosscoder(), stream(), CONFIG, on_log=logs.to_tensorboard(tmp_path))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 20, 40, 60, 80, 100]


@pytest.mark.parametrize("name, install", [("tensorboard", "tensorboard"), ("wandb", "wandb")])
def test_what_is_not_installed_is_told(monkeypatch, tmp_path, name, install):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    make = {"tensorboard": lambda: logs.to_tensorboard(tmp_path), "wandb": logs.to_wandb}[name]
    with pytest.raises(ImportError, match=f"pip install {install}"):
        make()
