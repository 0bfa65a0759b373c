"""The benchmark of streams runs, and what it counts is what there is."""

import pytest

import ctt_helpers as ctt
from benchmarks import stream as benchmark
from ctt_helpers import hooks


def test_passes_are_timed_and_nothing_else(monkeypatch):
    """The overhead is the rest of the time: half of it, where as much is done outside."""
    now = [0.0]

    def one(seconds, result=None):
        now[0] += seconds
        return result

    monkeypatch.setattr(hooks, "residual_stream", lambda seconds: one(seconds, "x"))

    def work():
        assert hooks.residual_stream(3.0) == "x"
        one(2.0)
        hooks.residual_stream(1.0)

    with benchmark.passes_timed("cpu", lambda: now[0]) as seconds:
        in_all = benchmark.taken(work, "cpu", lambda: now[0])
    assert seconds == [3.0, 1.0] and in_all == 6.0


@pytest.mark.slow
def test_the_benchmark_runs_shrunk(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "ROUNDS", 1)
    frames = benchmark.main(["--shrink", "--out", str(tmp_path)])
    assert list(frames) == benchmark.ALL
    assert list(frames["stream"]["from"]) == [
        "memory",
        "float32, warm",
        "float32, cold",
        "float32, kept",
        "bfloat16, warm",
        "bfloat16, cold",
        "bfloat16, kept",
    ]
    assert (frames["stream"][["ms", "ratio", "serve_ms"]] > 0).all(axis=None)
    loads = frames["stream_loads"].set_index("way")
    triplet = len(ctt.load_suite("tiny").default_triplet)
    assert loads.loc["cache", "loads"] == triplet and loads.loc["cache", "most_of_one"] == 1
    assert loads.loc["stream", "loads"] > triplet
    assert (frames["stream_build"]["told_mb"] < frames["stream_build"]["mb"]).all()
    assert (tmp_path / "stream.csv").is_file()
