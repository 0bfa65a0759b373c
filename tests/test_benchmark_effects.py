"""The benchmark of effects: its plain ways are the definition, and all of it runs."""

import pytest
import torch

import ctt_helpers as ctt
from benchmarks import effects as benchmark


@pytest.fixture(scope="module")
def case():
    suite = ctt.load_suite("tiny")
    ckpts = suite.checkpoints(suite.default_triplet, device="cpu")
    crosscoder = ctt.Crosscoder.load(suite.crosscoder_folder).requires_grad_(False)
    return benchmark.make_case(ckpts, crosscoder, suite.pairs(benchmark.TASK, n=4), 1)


def test_the_papers_formulation_comes_to_the_same_integral(case):
    """With many points, what the package finds; with ten, far from adding up."""
    found = case.by("ig", 1e-3)
    ie, _ = case.paper(200)
    size = float(found.ie.abs().max())
    torch.testing.assert_close(found.ie, ie, rtol=0, atol=0.02 * size)
    assert case.gap(found.ie, found.error) < 2e-3 < 0.02 < case.gap(*case.paper())


def test_products_are_counted():
    a = torch.randn(2, 3)
    assert benchmark.operations(lambda: a @ a.T) == 2 * 2 * 3 * 2 / 1e9
    linear = torch.nn.Linear(3, 5)
    assert benchmark.operations(lambda: linear(a)) == 2 * 2 * 3 * 5 / 1e9


@pytest.mark.slow
def test_the_benchmark_runs_shrunk(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "ROUNDS", 1)
    frame = benchmark.main(["--shrink", "--out", str(tmp_path)])
    assert (frame["ms"] > 0).all() and (tmp_path / "effects_speed.csv").is_file()
    (frame,) = benchmark.rates("cpu", benchmark.SHRUNK).values()
    assert (frame["a_second"] > 0).all() and set(frame["unit"]) == {"gradients", "passes", "tokens"}
    for table in ("effects_speed", "effects_gpu"):
        assert table in benchmark.TABLES
