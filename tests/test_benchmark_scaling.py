"""The benchmark of scaling: its slope is a power law's, its runs add up, and all of it runs."""

import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import scaling as benchmark


@given(st.floats(-2, 3), st.floats(1e-3, 1e3))
def test_the_slope_of_a_power_law_is_its_exponent(exponent, factor):
    sizes = np.array([3.0, 6.0, 14.0, 50.0])
    found, error = benchmark.slope(sizes, factor * sizes**exponent)
    assert found == pytest.approx(exponent, abs=1e-9) and error < 1e-6


def test_the_slope_has_the_standard_error_of_a_regression():
    rng = np.random.default_rng(0)
    sizes = 2.0 ** np.arange(6)
    drawn = [benchmark.slope(sizes, sizes * np.exp(rng.normal(0, 0.1, 6))) for _ in range(400)]
    exponents, errors = np.array(drawn).T
    assert exponents.mean() == pytest.approx(1, abs=0.01)
    assert np.sqrt((errors**2).mean()) == pytest.approx(exponents.std(), rel=0.15)


@pytest.fixture(scope="module")
def runs(root):
    frame = benchmark.whole_runs(root / "benchmarks" / "results")
    return frame.set_index(["run", "what"])["amount"].unstack()


def test_a_run_of_the_measured_shape_is_amount_over_rate(root, runs):
    results = root / "benchmarks" / "results"
    rates = pd.read_csv(results / "effects_gpu.csv").set_index("what")["a_second"]
    of_this = runs.loc[str(benchmark.MEASURED)]
    harvest = rates[rates.index.str.startswith("harvest")].iloc[0]
    assert of_this["harvest"] == pytest.approx(100_000 * 4096 / harvest / 3600)
    steps = pd.read_csv(results / "training_gpu.csv")
    ms = steps[(steps.precision == "bf16") & (steps.dead == 0.1)]["ms"].iloc[0]
    assert of_this["training"] == pytest.approx(100_000 * ms / 1000 / 3600)
    assert of_this["activation cache on disk"] == pytest.approx(100_000 * 4096 * 3 * 2048 * 2 / 1e9)
    parts = ["harvest", "training", "evaluate", "IG", "exact ablation"]
    np.testing.assert_allclose(runs[parts].sum(axis=1), runs["in all"])


def test_more_checkpoints_take_as_many_times_longer(runs):
    three, many = (runs.loc[str(run)] for run in (benchmark.RUNS[0], benchmark.RUNS[2]))
    alike = ["harvest", "training", "evaluate", "IG", "exact ablation", "download"]
    np.testing.assert_allclose(many[alike] / three[alike], 32 / 3)


@pytest.mark.slow
def test_the_benchmark_runs_shrunk(tmp_path, root):
    for name in ("effects_gpu", "training_gpu"):
        shutil.copy(root / "benchmarks" / "results" / f"{name}.csv", tmp_path)
    frames = benchmark.main(["--shrink", "--rates", str(tmp_path), "--out", str(tmp_path)])
    assert set(frames) == set(benchmark.TABLES)
    assert len(frames["scaling"]) == 10 and np.isfinite(frames["scaling"]["exponent"]).all()
    assert (tmp_path / "scaling_runs.csv").is_file() and "how cost grows" in (
        (tmp_path / "TABLES.md").read_text().lower()
    )
