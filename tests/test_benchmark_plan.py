"""The plan of docs/scale.md: its figures are amounts over rates, and the page has no others."""

import re

import pandas as pd
import pytest

from benchmarks import plan as benchmark
from benchmarks.scaling import Run

RATES = "benchmarks/results"


@pytest.fixture(scope="module")
def made(root) -> pd.DataFrame:
    return benchmark.plan(root / RATES).set_index(["stage", "what"])["amount"]


def test_the_page_and_the_tables_are_those_of_the_rates(root, made):
    frames = {"plan": benchmark.plan(root / RATES), "plan_places": benchmark.places(root / RATES)}
    page = (root / "docs" / "scale.md").read_text(encoding="utf-8")
    assert benchmark.with_tables(page, frames) == page, "run python -m benchmarks.plan"
    for name, frame in frames.items():
        written = pd.read_csv(root / RATES / f"{name}.csv")
        pd.testing.assert_frame_equal(written, frame, rtol=1e-5, check_dtype=False)
    other = frames["plan"].assign(amount=frames["plan"]["amount"] * 2)
    assert benchmark.with_tables(page, {"plan": other}) != page


def test_hours_are_amounts_over_rates(root, made):
    """Of the triplet and of all checkpoints, written out."""
    gpu = pd.read_csv(root / RATES / "effects_gpu.csv").set_index("what")["a_second"]
    harvest = gpu[gpu.index.str.startswith("harvest")].iloc[0]
    # operations a token through a block: 24 d^2 and attention over 1,024 tokens; biases and norms
    # are some thousandths
    blocks = {d: 24 * d**2 + 4 * 1024 * d for d in (2048, 5120)}
    longer = 19 * blocks[5120] / (9 * blocks[2048])
    of_three = made[made.index.get_level_values(0).str.startswith("2.")].droplevel(0)
    expected = 100_000 * 4096 / harvest / 3600 * longer
    assert of_three["harvest"] == pytest.approx(expected, rel=0.01)
    first = made[made.index.get_level_values(0).str.startswith("1.")].droplevel(0)
    expected = 154 * 100_000 / (3 * harvest) / 3600 * longer
    assert first["similarities"] == pytest.approx(expected, rel=0.01)
    assert first["download"] == pytest.approx(154 * 23.84, rel=1e-3)
    assert first["download at 1 Gbit/s"] == pytest.approx(154 * 23.84 / 0.125 / 3600, rel=1e-3)
    of_all = made[made.index.get_level_values(0).str.startswith("4.")].droplevel(0)
    for what in ("harvest", "training", "effects, IG, all languages"):
        assert of_all[what] / of_three[what] == pytest.approx(154 / 3)
    # weights, and Adam's two moments of each: the least that training can take
    assert of_three["memory: training, to be shared"] > 3 * 4 * 2 * 3 * 5120 * 40_960 / 1e9


def test_as_many_gpus_as_it_takes_and_no_more():
    run = Run("pythia-12b", 154, 40_960)
    memory = benchmark.held(run, benchmark.SMALL_BUFFER)
    free = benchmark.USED * benchmark.GPU - memory.rest
    assert memory.training / memory.gpus <= free < memory.training / (memory.gpus - 1)
    assert benchmark.held(run, 2**17).gpus == 0  # the buffer alone is larger
    most = benchmark.most_checkpoints(run, benchmark.SMALL_BUFFER)
    for n, fits in ((most, True), (most + 1, False)):
        one = benchmark.held(Run("pythia-12b", n, 40_960), benchmark.SMALL_BUFFER)
        assert (one.training + one.rest <= benchmark.USED * benchmark.GPU) is fits


def test_what_the_prose_says_is_what_the_table_says(root, made):
    page = (root / "docs" / "scale.md").read_text(encoding="utf-8")
    of_all = made[made.index.get_level_values(0).str.startswith("4.")].droplevel(0)
    assert "more than a terabyte of memory for training" in page
    assert 1000 < of_all["memory: training, to be shared"] < 2000
    assert "hundreds of terabytes" in page
    assert 2e5 < of_all["activation cache on disk"] < 1e6
    assert "no more than two\n   batches" in page and benchmark.SMALL_BUFFER == 2 * 4096
    loading = re.search(r"loading \((\d+) GB", page)[1]
    assert int(loading) == round(made.filter(like="one checkpoint after").iloc[0])


def test_amounts_are_said_with_two_digits():
    for amount, unit, told in (
        (0.0109, "GPU hours", "0.011 GPU hours"),
        (9.96, "hours", "10.0 hours"),
        (133.6, "GPU hours", "134 GPU hours"),
        (3672.0, "GB", "3.7 TB"),
        (54, "GPUs", "54"),
    ):
        assert benchmark._amount(amount, unit) == told
