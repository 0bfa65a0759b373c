"""Every public function with arguments that are wrong: a plain error of ours, or a right result.

A call that is known to be right is made again with one or two of its arguments replaced: by a
value of another kind, by a number out of range, by the same thing cut, emptied or with numbers that
are none. What comes must be

- an error that our code raised on purpose: the last line of its traceback is a `raise` in
  ctt_helpers, of ValueError, TypeError, OSError (files that are not there ...) or RuntimeError. An
  error of Python's or of another library's counts as one from deep inside;
- or a result that passes a check (`RIGHT`): against another way to compute it, where there is one,
  else that its numbers are finite;
- and either within SECONDS.
"""

import ast
import functools
import importlib
import inspect
import math
import signal
import traceback
import warnings
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import module_calls
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from faults import counted, tries
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import ctt_helpers as ctt
from ctt_helpers import formats

PACKAGE = Path(ctt.__file__).parent
SECONDS = 20
OURS = (ValueError, TypeError, OSError, RuntimeError, ImportError)


class TooLong(BaseException):
    pass


@contextmanager
def deadline(seconds: int):
    """Raise TooLong in the main thread after so many seconds."""

    def stop(*_):
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@functools.cache
def raises_in(file: str) -> list[range]:
    """The lines of each `raise` of a file."""
    tree = ast.parse(Path(file).read_text())
    return [
        range(node.lineno, node.end_lineno + 1)
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise)
    ]


def is_ours(error: BaseException) -> bool:
    """Whether our code raised this on purpose, with something to say."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    if not Path(last.filename).is_relative_to(PACKAGE) or not isinstance(error, OURS):
        return False
    return any(last.lineno in lines for lines in raises_in(last.filename)) and len(str(error)) > 15


def test_what_counts_as_from_deep_inside():
    for call, ours in (
        (lambda: ctt.rel_ie(np.ones((1, 2))), True),
        (lambda: {}["x"], False),
        (lambda: ctt.arguments._is(1, 1 / 0), False),
        (lambda: ctt.metrics.to_numpy.__call__(), False),
    ):
        with pytest.raises(Exception) as caught:
            call()
        assert is_ours(caught.value) == ours
    with pytest.raises(TooLong), deadline(1):
        while True:
            pass


# ---- a small world, in which every call is right


@functools.cache
def world() -> SimpleNamespace:
    suite = ctt.load_suite("tiny")
    ckpts = suite.checkpoints(suite.default_triplet, device="cpu")
    pairs = suite.pairs("agreement/pp", split="find", n=8)
    text = suite.text(4 * 10, length=10, split="validation")
    full = ctt.Crosscoder.load(suite.crosscoder_folder)
    activations = ctt.activations.stacked_activations(ckpts, text)[:, 1:].flatten(0, 1)
    busy = (
        (full.encode(activations) > 0).sum(0).argsort(descending=True)[:24].sort().values.tolist()
    )
    crosscoder = full.part(busy)
    effects = ctt.indirect_effects(crosscoder, ckpts, pairs, method="atp")
    curve = ctt.accuracy_curve(suite, {"a": pairs}, ckpts.labels, device="cpu")
    curve = curve.assign(accuracy=[0.2, 0.6, 0.9])  # far enough from chance
    many = suite.pairs("agreement/pp", split="find", n=32)
    long_text = suite.text(20 * 64, split="train")
    sim = ctt.similarity_matrix(suite, pairs, revisions=ckpts.labels, device="cpu")
    ratios = ctt.rel_ie(effects.mean)
    draws = ctt.resample(effects, 20)
    places = ctt.active_places(crosscoder, ckpts, text, [0, 1, 2])
    of_many = ctt.indirect_effects(crosscoder, ckpts, many, method="atp")
    factorial = ctt.factorial_of(of_many, many, n_draws=20)
    x = torch.randn(64, 3, 8, generator=torch.Generator().manual_seed(0))
    small = ctt.Crosscoder(3, 8, 16, k=2)
    ctt.train(small, ctt.TensorStream(x, 16), ctt.TrainConfig(steps=4), device="cpu")
    stream = ctt.residual_stream(ckpts[0], text)
    scaling = ctt.latent_scaling(small, [x])
    return SimpleNamespace(**locals())


# function -> arguments with which it is right; a method's object is `self`
CALLS = {
    "ActivationStream": lambda w: {"ckpts": w.ckpts, "text": w.text, "batch_size": 8, "seed": 0,
                                   "buffer_tokens": 16, "sequences_per_group": 2},
    "ActivationCache.size": lambda w: {"ckpts": w.ckpts, "text": w.text},
    "ActivationCache.build": lambda w: {"ckpts": w.ckpts, "text": w.text, "folder": "cache",
                                        "sequences_per_group": 2},
    "ActivationCache.open": lambda w: {"folder": "cache"},
    "Crosscoder": lambda w: {"n_checkpoints": 3, "d_model": 8, "n_latents": 16, "k": 2, "seed": 0,
                             "sparsity": "batch_topk", "decoder_norm": 0.5, "scales": [1.0] * 3},
    "Crosscoder.encode": lambda w: {"self": w.small, "x": w.x},
    "Crosscoder.pre_activations": lambda w: {"self": w.small, "x": w.x},
    "Crosscoder.forward": lambda w: {"self": w.small, "x": w.x},
    "Crosscoder.decode": lambda w: {"self": w.small, "f": w.small.encode(w.x)},
    "Crosscoder.decode_scaled": lambda w: {"self": w.small, "f": w.small.encode(w.x)},
    "Crosscoder.part": lambda w: {"self": w.small, "features": [1, 3]},
    "Crosscoder.check_source": lambda w: {"self": w.crosscoder, "here": w.ckpts.source},
    "Crosscoder.save": lambda w: {"self": w.small, "folder": "saved"},
    "Crosscoder.load": lambda w: {"folder": w.suite.crosscoder_folder},
    "Crosscoder.from_pretrained": lambda w: {"repo_id_or_folder": w.suite.crosscoder_folder},
    "Crosscoder.push_to_hub": lambda w: {"self": w.small, "repo_id": "some/one"},
    "Effects.save": lambda w: {"self": w.effects, "folder": "effects"},
    "Effects.load": lambda w: {"folder": "effects"},
    "Report.save": lambda w: {"self": ctt.evaluate(w.crosscoder, w.ckpts, w.text),
                              "path": "report.json"},
    "MinimalPairs.positions": lambda w: {"self": w.pairs, "role": "answer"},
    "MinimalPairs.cell": lambda w: {"self": w.pairs, "subject": "sg", "attractor": "pl"},
    "MinimalPairs.partners": lambda w: {"self": w.pairs, "factor": "subject"},
    "MinimalPairs.to": lambda w: {"self": w.pairs, "device": "cpu"},
    "MinimalPairs.batches": lambda w: {"self": w.pairs, "size": 3},
    "MinimalPairs.sample": lambda w: {"self": w.pairs, "n": 3, "seed": 0},
    "Suite.check_task": lambda w: {"self": w.suite, "task": "agreement/pp"},
    "Suite.tokens_seen": lambda w: {"self": w.suite, "revision": w.ckpts.labels[0]},
    "Suite.check_revisions": lambda w: {"self": w.suite, "revisions": w.ckpts.labels},
    "Suite.local_folder": lambda w: {"self": w.suite, "revision": w.ckpts.labels[0]},
    "Suite.folder": lambda w: {"self": w.suite, "revision": w.ckpts.labels[0]},
    "Suite.config_of": lambda w: {"self": w.suite, "revision": w.ckpts.labels[0]},
    "Suite.pairs": lambda w: {"self": w.suite, "task": "agreement/pp", "split": "find", "n": 4,
                              "continuation": "first", "seed": 0},
    "Suite.text": lambda w: {"self": w.suite, "n_tokens": 30, "split": "train", "seed": 0,
                             "length": 10},
    "Suite.checkpoints": lambda w: {"self": w.suite, "revisions": w.ckpts.labels, "layer": 2,
                                    "device": "cpu", "dtype": "float32", "part": "all"},
    "Subsets.number": lambda w: {"self": subsets(w), "off": [0]},
    "Subsets.without": lambda w: {"self": subsets(w), "off": [0]},
    "Checkpoints.file_bytes": lambda w: {"self": w.ckpts, "revision": w.ckpts.labels[0]},
    "Checkpoints.fingerprint_of": lambda w: {"self": w.ckpts, "index": 1},
    "TensorStream": lambda w: {"x": w.x, "batch_size": 16, "seed": 0, "buffer_tokens": 32,
                               "max_norm": 4.0},
    "TensorStream.batches": lambda w: {"self": ctt.TensorStream(w.x, 16), "start": 2},
    "TrainConfig": lambda w: {"steps": 3, "lr": 1e-3, "k_anneal": 0.5},
    "ablate": lambda w: {"crosscoder": w.crosscoder, "ckpts": w.ckpts, "pairs": w.pairs,
                         "features": [0, 1], "batch_size": 4, "seed": 0},
    "ablate_subsets": lambda w: {"crosscoder": w.crosscoder, "ckpts": w.ckpts, "pairs": w.pairs,
                                 "features": [0, 1], "batch_size": 4},
    "ablation_curve": lambda w: {"crosscoder": w.crosscoder, "ckpts": w.ckpts, "pairs": w.pairs,
                                 "ranking": [3, 0, 1], "sizes": [1, 2], "batch_size": 8},
    "accuracy": lambda w: {"model": w.ckpts[0], "pairs": w.pairs, "whole": False},
    "accuracy_curve": lambda w: {"suite": w.suite, "tasks": {"a": w.pairs},
                                 "revisions": w.ckpts.labels[:1], "device": "cpu", "cells": True},
    "activation_similarity": lambda w: {"first": w.x[:, 0].numpy(), "second": w.x[:, 1].numpy()},
    "active_places": lambda w: {"crosscoder": w.crosscoder, "ckpts": w.ckpts, "text": w.text,
                                "features": [0, 1]},
    "artefacts": lambda w: {"ratios": ctt.rel_dec(w.small.decoder_norms().detach()),
                            "scaling": w.scaling, "names": ["a", "b", "c"], "specific": 0.4},
    "behaviour_factorial": lambda w: {
        "differences": torch.stack([ctt.logit_differences(m, w.pairs) for m in w.ckpts]),
        "pairs": w.pairs, "n_draws": 10, "seed": 0, "confidence": 0.9},
    "classify": lambda w: {"ratios": w.ratios, "names": w.ckpts.labels, "specific": 0.7,
                           "shared": 0.3},
    "classify_draws": lambda w: {"ratios": ctt.rel_ie_draws(w.draws), "names": w.ckpts.labels,
                                 "level": 0.9, "point": w.ratios},
    "control_groups": lambda w: {"group": [0, 1], "eligible": range(24), "n_groups": 2, "seed": 0,
                                 "size": np.arange(1.0, 25.0), "among": 3},
    "decide": lambda w: {"effects": w.effects, "clusters": ctt.twins(w.pairs), "null": np.zeros(3),
                         "rate": 0.1, "inactive_below": 1e-3, "names": w.ckpts.labels},
    "decoder_similarity": lambda w: {"first": w.small.W_dec.detach().numpy(),
                                     "second": w.small.W_dec[:5].detach().numpy()},
    "effects_from_gradient": lambda w: {"f": w.small.encode(w.x), "grad": w.x[:, 0],
                                        "W_dec": w.small.W_dec[:, 0].detach()},
    "estimate": lambda w: {"ckpts": w.ckpts, "speeds": ctt.forecast.Speeds(), "tokens": 100,
                           "pairs": {"atp": 3}, "n_latents": 8, "k": 2, "steps": 3,
                           "batch_size": 8},
    "evaluate": lambda w: {"crosscoder": w.crosscoder, "ckpts": w.ckpts, "text": w.text},
    "examples_by_band": lambda w: {"places": w.places, "ckpts": w.ckpts, "text": w.text, "k": 2,
                                   "seed": 0},
    "factorial_of": lambda w: {"values": w.effects, "pairs": w.pairs, "features": [0, 1],
                               "n_draws": 10, "seed": 0, "confidence": 0.9},
    "fingerprint": lambda w: {"model": w.ckpts[0].hf_model},
    "harness_curve": lambda w: {"paths": ["results.json"], "suite": w.suite, "metric": "acc"},
    "indirect_effects": lambda w: {"crosscoder": w.crosscoder, "ckpts": w.ckpts, "pairs": w.pairs,
                                   "method": "ablation", "features": [0, 1, 2], "tol": 0.01,
                                   "batch_size": 8, "seed": 0},
    "interval": lambda w: {"draws": w.draws, "level": 0.9},
    "latent_scaling": lambda w: {"crosscoder": w.small, "batches": [w.x]},
    "load_suite": lambda w: {"name": "tiny", "revisions": w.ckpts.labels},
    "logit_differences": lambda w: {"model": w.ckpts[0], "pairs": w.pairs, "batch_size": 3},
    "logits_above": lambda w: {"model": w.ckpts[0], "x": w.stream},
    "make_pairs": lambda w: {"rows": w.pairs.table.to_dict("records"),
                             "tokenizer": w.suite.tokenizer, "continuation": "first"},
    "match_features": lambda w: {"similarity": np.eye(4) * 0.5, "at_least": 0.1},
    "null_threshold": lambda w: {"null": [w.effects], "quantile": 0.9},
    "pairwise": lambda w: {"v": w.ratios},
    "pca_baseline": lambda w: {"fitted": w.x, "held_out": w.x[:20], "rank": 2,
                               "scales": torch.ones(3)},
    "pick_device": lambda w: {"device": "cpu"},
    "predict_others": lambda w: {"ckpts": w.ckpts, "text": w.long_text, "ridge": 1e-3},
    "promoted_tokens": lambda w: {"crosscoder": w.crosscoder, "ckpts": w.ckpts, "feature": 1,
                                  "k": 2},
    "random_directions": lambda w: {"crosscoder": w.small, "seed": 0},
    "rank_correlation": lambda w: {"a": np.arange(5.0), "b": np.array([2.0, 1, 3, 5, 4])},
    "readout_of": lambda w: {"model": w.ckpts[0], "pairs": w.pairs,
                             "x": ctt.residual_stream(w.ckpts[0], w.pairs.input_ids,
                                                      w.pairs.attention_mask),
                             "b_dec": w.crosscoder.raw_decoder()[1][0].detach()},
    "rel_dec": lambda w: {"norms": w.small.decoder_norms().detach().numpy(),
                          "dead": np.zeros(16, bool)},
    "rel_ie": lambda w: {"ie": w.effects.mean, "inactive_below": 1e-3, "total": np.ones(3)},
    "rel_ie_draws": lambda w: {"draws": w.draws, "inactive_below": 1e-3, "total": np.ones(3)},
    "resample": lambda w: {"effects": w.effects, "n_draws": 10, "seed": 0,
                           "clusters": ctt.twins(w.pairs)},
    "residual_stream": lambda w: {"model": w.ckpts[0], "input_ids": w.text, "layer": 1,
                                  "attention_mask": torch.ones_like(w.text)},
    "shares_of_effect": lambda w: {"found": w.factorial, "n_draws": 10, "seed": 0,
                                   "confidence": 0.9},
    "similarity_matrix": lambda w: {"suite": w.suite, "pairs": w.pairs, "layer": 1,
                                    "revisions": w.ckpts.labels[:2], "device": "cpu"},
    "spliced_logits": lambda w: {"model": w.ckpts[0], "input_ids": w.text, "x": w.stream,
                                 "attention_mask": torch.ones_like(w.text)},
    "suggest_triplet": lambda w: {"curve": w.curve, "sim": w.sim},
    "top_examples": lambda w: {"crosscoder": w.crosscoder, "ckpts": w.ckpts, "text": w.text,
                               "features": [0, 1], "k": 2},
    "train": lambda w: {"crosscoder": ctt.Crosscoder(3, 8, 16, k=2), "device": "cpu",
                        "stream": ctt.TensorStream(w.x, 16), "config": ctt.TrainConfig(steps=4)},
    "trajectory": lambda w: {"ratios": w.ratios, "names": w.ckpts.labels},
    "trajectory_draws": lambda w: {"ratios": ctt.rel_ie_draws(w.draws), "names": w.ckpts.labels,
                                   "level": 0.9, "point": w.ratios},
    "twins": lambda w: {"pairs": w.pairs, "words": ["head", "verb"]},
    "formats.from_dictionary_learning": lambda w: {"where": "theirs"},
    "formats.to_dictionary_learning": lambda w: {"crosscoder": w.small, "folder": "written"},
    "formats.from_saelens": lambda w: {"where": "sae", "n_checkpoints": 3},
    "formats.to_saelens": lambda w: {"dictionary": w.small, "folder": "written_sae"},
    **module_calls.CALLS,
}  # fmt: skip
# what is public and is not fuzzed here, and why
EXEMPT = {
    "check_parameters": "takes a notebook's variables: fuzzed below, notebook by notebook",
    "use_profile": "as check_parameters",
    "setup": "as check_parameters",
    "ActivationCache": "made by build and open",
    "ActivationCache.stream": "see ActivationStream; tests/test_cache.py compares the two",
    "ActivationCache.read": "indices that its stream counts",
    "ActivationCache.fetch": "indices that its stream counts",
    "Checkpoints": "made by Suite.checkpoints",
    "Checkpoints.take_fingerprints": "what other processes have found",
    "Dictionary": "a protocol: what a class of one's own must offer",
    "Effects": "a result", "Factorial": "a result", "Forecast": "a result", "Report": "a result",
    "Subsets": "a result", "TrainResult": "a result", "TripletChoice": "a result",
    "HookedModel": "made by Suite.checkpoints",
    "Metric": "two functions and their names",
    "MinimalPairs": "made by make_pairs and Suite.pairs",
    "Suite": "made by load_suite",
    "TensorStream.part": "takes this process's group, which train makes",
    **module_calls.EXEMPT,
}  # fmt: skip


def subsets(w):
    return ctt.ablate_subsets(w.crosscoder, w.ckpts, w.pairs, [0, 1])


def public() -> set[str]:
    """Functions, classes and their methods with arguments, of what `ctt` and docs/api.md list."""
    found = set()
    for name in sorted(ctt._WHERE):
        thing = getattr(ctt, name)
        found.add(name)
        if not inspect.isclass(thing) or name == "Dictionary":
            continue
        found |= methods(thing)
    whole = [name for name, module in ctt._MODULES.items() if module not in ctt._EXPORTS]
    return found | {each for name in whole for each in inside(name)}


def inside(name: str) -> set[str]:
    """What docs/api.md lists of a module of which it lists all that has a docstring."""
    # not by `ctt.plots`, which is the module's old name once somebody has imported that
    module = importlib.import_module(f"ctt_helpers.{ctt._MODULES[name]}")
    found = set()
    for member, thing in vars(module).items():
        own = getattr(thing, "__module__", "").startswith(module.__name__)
        if not own or member.startswith("_") or not getattr(thing, "__doc__", None):
            continue
        if inspect.isclass(thing):
            found |= {f"{name}.{member}", *(f"{name}.{one}" for one in methods(thing))}
        elif takes_something(thing):
            found.add(f"{name}.{member}")
    return found


def methods(thing: type) -> set[str]:
    """Its public methods that take arguments."""
    named = {
        name: getattr(function, "__func__", function)
        for name, function in vars(thing).items()
        if not name.startswith("_")
    }
    return {f"{thing.__name__}.{name}" for name, one in named.items() if takes_something(one)}


def takes_something(function) -> bool:
    if not inspect.isfunction(function):
        return False
    return bool(set(inspect.signature(function).parameters) - {"self", "cls"})


def test_every_public_function_is_fuzzed_or_says_why_not():
    assert public() == set(CALLS) | set(EXEMPT)
    assert not set(CALLS) & set(EXEMPT)


def called(name: str, given: dict):
    """Call it as a user would, and take from an iterator what it gives first."""
    given = dict(given)
    head, _, method = name.rpartition(".")
    if "self" in given:
        function = getattr(given.pop("self"), method)
    else:
        function = getattr(getattr(ctt, head) if head else ctt, method)
    result = function(**given)
    if isinstance(result, ctt.TensorStream):
        result.scales()
        result = result.batches()
    if name == "Crosscoder":
        result(torch.ones(1, result.n_checkpoints, result.d_model))
    if head == "logs":
        return result({"step": 1, "tokens": 2, "loss": 0.5})
    if hasattr(result, "gen"):  # a `with` block
        with result as inside:
            if isinstance(inside, Path):
                inside.write_text("new")
        return None
    return next(result, None) if hasattr(result, "__next__") else result


# ---- what is wrong


def changed(value) -> list:
    """A right value made wrong, or only different, in ways that fit its kind."""
    if isinstance(value, (bool, str, type(None), Path)):
        return ["", f"{value}x", f"{value}\0", [value], Path("nowhere")]
    if isinstance(value, (int, float)):
        near = [value - 1, value + 1, -value, 0, value * 100, value + 0.5, float(value)]
        return [*near, str(value), [value], np.float32(value), torch.tensor(value)]
    if isinstance(value, torch.Tensor) and not value.is_floating_point():
        long = value.repeat(1, 30) if value.ndim == 2 else value
        return [
            value[:0],
            value[..., :1],
            value[..., :2],
            value[0],
            value[:1],
            value[None],
            long,
            -value,
            value + 10**6,
            value.float(),
            value.numpy(),
            value.tolist(),
        ]
    if isinstance(value, (torch.Tensor, np.ndarray)):
        bad = []
        for number in (math.nan, math.inf, 1e30, -1.0):
            one = value.clone() if isinstance(value, torch.Tensor) else value.astype(float)
            if one.size if isinstance(one, np.ndarray) else one.numel():
                one.reshape(-1)[0] = number
            bad.append(one)
        return [
            *bad,
            value[:0],
            value[:1],
            value[..., :1],
            value[0],
            value[None],
            value * 0,
            value * 1e30,
            value > 0,
            value.tolist(),
            value[..., :0],
        ]
    if isinstance(value, (list, tuple, range)):
        value = list(value)
        return [
            [],
            value[:1],
            value[::-1],
            value * 2,
            [*value, *value[-1:]],
            [*value, "x"],
            [*value, 10**6],
            [*value, -1],
            [*value, None],
            [value],
            set(map(str, value)),
            dict.fromkeys(map(str, value)),
            np.array(value[:1], object),
            iter(value),
        ]
    if isinstance(value, dict):
        return [{}, {**value, "x": 1}, {1: 2}, list(value), dict(list(value.items())[1:])]
    if isinstance(value, pd.DataFrame):
        none = value.assign(**{value.columns[-1]: math.nan})
        return [
            value.iloc[:0],
            value.iloc[:1],
            value.iloc[:, :1],
            none,
            value.to_dict(),
            value.astype(str),
            value.rename(columns=str.upper),
            value.T,
        ]
    if isinstance(value, ctt.MinimalPairs):
        return [value[:0], value[:1], value[::-1], value.table, list(value.text), value.input_ids]
    if isinstance(value, ctt.Checkpoints):
        return [value[:1], value[:2], value[::-1], value[0], list(value), value.suite]
    if isinstance(value, (ctt.Crosscoder, ctt.TensorStream)):
        return [ctt.Crosscoder(2, 8, 16, k=2), ctt.Crosscoder(3, 9, 16, k=2), ctt.Crosscoder]
    if isinstance(value, ctt.Effects):
        return [value.mean, value.per_pair, value.per_pair.to_dense().numpy(), value.info]
    return []


JUNK = [
    None, True, False, -1, 0, 1, 2, 300, 10**30, 1.5, 1e-300, math.nan, math.inf, -math.inf,
    1j, Fraction(1, 2), "", "x", "auto", "no such thing", "a/b/c", "../..", "\ud800", b"x", [], [0],
    [-1], [1.5], ["x"], [None], [[]], (), {}, {"x": 1}, {1}, object(), int, len, Path("nowhere"),
    np.float64("nan"), np.int64(-1), np.bool_(True), np.array(3), np.array([]), np.zeros((2, 3)),
    np.array(["a"]), np.array([None]), np.full((3, 4), math.nan), np.ones((3, 2, 5)), torch.ones(2),
    torch.zeros(0, 3), torch.ones(2, 3, 4), torch.tensor(1), torch.ones(2, 3).long(),
    torch.full((2, 3, 8), math.nan), pd.DataFrame(), pd.DataFrame({"a": [1, "x"]}), pd.Series([1]),
]  # fmt: skip
ANYTHING = st.one_of(
    st.sampled_from(JUNK),
    st.integers(-5, 300),
    st.floats(width=32),
    st.text(max_size=6).filter(lambda text: not text.startswith(("/", "~"))),
    st.lists(st.one_of(st.integers(-3, 40), st.floats(), st.text(max_size=3)), max_size=4),
)


@st.composite
def wrong_calls(draw, name: str):
    """Arguments of a right call, of which one or two are replaced; and what was done, in words."""
    given = CALLS[name](world())
    thing = given["self"] if "self" in given else None
    head, _, method = name.rpartition(".")
    function = getattr(thing or (getattr(ctt, head) if head else ctt), method)
    known = inspect.signature(function).parameters.values()
    names = [p.name for p in known if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names += [name for name in given if name not in (*names, "self")]
    told = []
    for parameter in draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True)):
        near = changed(given.get(parameter))
        if near and draw(st.booleans()):
            value = near[draw(st.integers(0, len(near) - 1))]
        else:
            value = draw(ANYTHING)
        given[parameter] = value
        told.append(f"{parameter}={str(value)[:60]!r} ({type(value).__name__})")
    return given, f"{name}: {', '.join(told)}"


# ---- what is right

# where a number may be missing by design: of what is inactive, not known, or divided by nothing
MAY_BE_NAN = {
    "rel_ie", "rel_dec", "pairwise", "rel_ie_draws", "trajectory", "trajectory_draws", "interval",
    "classify_draws", "rank_correlation", "latent_scaling", "artefacts", "evaluate", "decide",
    "factorial_of", "behaviour_factorial", "indirect_effects", "shares_of_effect",
    "match_features", "accuracy_curve", "make_pairs", "Suite.pairs", "MinimalPairs.sample",
    "MinimalPairs.cell", "MinimalPairs.batches", "MinimalPairs.to", "ablate", "ablation_curve",
    "Effects.load", "Crosscoder", "formats.from_saelens", *module_calls.MAY_BE_NAN,
}  # fmt: skip
# what is NaN or infinite in what these are given is so in what comes, never a plain number
PASS_ON = {
    "readout_of",
    "Crosscoder.encode", "Crosscoder.pre_activations", "Crosscoder.forward", "Crosscoder.decode",
    "Crosscoder.decode_scaled", "effects_from_gradient", "logits_above", "spliced_logits",
    *module_calls.PASS_ON,
}  # fmt: skip


def numbers(thing):
    """All arrays of numbers in a result."""
    if isinstance(thing, torch.Tensor):
        thing = thing.detach()
        yield (thing.to_dense() if thing.is_sparse else thing).double().numpy()
    elif isinstance(thing, (int, float, np.ndarray, np.generic)):
        yield np.asarray(thing)
    elif isinstance(thing, pd.DataFrame):
        yield from (thing[column].to_numpy() for column in thing.select_dtypes("number"))
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from numbers(value)
    elif isinstance(thing, (list, tuple)):
        for value in thing:
            yield from numbers(value)
    elif isinstance(thing, torch.nn.Module):
        yield from numbers(thing.state_dict())
    elif is_dataclass(thing):
        for field in fields(thing):
            yield from numbers(getattr(thing, field.name))


def are_small(given) -> bool:
    """Whether squares and sums of these numbers stay in the range of float32."""
    return all(
        np.isfinite(found).all() and np.abs(found).max(initial=0) < 1e15
        for found in numbers({name: v for name, v in given.items() if name != "self"})
        if found.dtype.kind == "f"
    )


def are_finite(result) -> bool:
    for found in numbers(result):
        if found.dtype.kind in "fc" and not np.isfinite(found).all():
            return False
    return True


def array(values) -> np.ndarray:
    return np.asarray(values.detach() if isinstance(values, torch.Tensor) else values, float)


def shares(values, active) -> np.ndarray:
    size = np.abs(array(values))
    return np.where(active, size / np.where(active, size.sum(0), 1), np.nan)


def check_rel_ie(found, ie, inactive_below=1e-3, total=None):
    size = np.abs(array(ie))
    summed = size.sum(0)
    by = 1.0 if total is None else array(total)[:, None]
    active = (summed > 0) & (summed >= inactive_below * summed.sum())
    np.testing.assert_allclose(found, shares(size / by, active), rtol=1e-6, atol=1e-9)


def check_rel_dec(found, norms, dead=None):
    alive = (array(norms).sum(0) > 0) & ~(False if dead is None else np.asarray(dead))
    np.testing.assert_allclose(found, shares(norms, alive), rtol=1e-6)


def check_pairwise(found, v):
    size = np.abs(array(v))
    for a in range(len(size)):
        for b in range(len(size)):
            summed = size[a] + size[b]
            with np.errstate(invalid="ignore", divide="ignore"):
                np.testing.assert_allclose(found[a, b], size[b] / summed, rtol=1e-6)


def check_rank_correlation(found, a, b):
    a, b = array(a), array(b)
    if a.ndim == b.ndim == 1 and len(a) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = scipy.stats.spearmanr(a, b).statistic
        np.testing.assert_allclose(found, expected, atol=1e-9)


def check_interval(found, draws, level=0.95):
    ends = [(1 - level) / 2, (1 + level) / 2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.nanquantile(array(draws), ends, axis=0)
    np.testing.assert_allclose(np.stack(found), expected, rtol=1e-5, atol=1e-7)


def check_activation_similarity(found, first, second):
    first, second = array(first), array(second)
    assert found.shape == (first.shape[1], second.shape[1]) and np.abs(found).max(initial=0) < 1.001
    for i in range(min(2, first.shape[1])):
        for j in range(min(2, second.shape[1])):
            a, b = first[:, i], second[:, j]
            if min(a.std(), b.std()) > 1e-6 * max(abs(a).max(), abs(b).max()):
                np.testing.assert_allclose(found[i, j], np.corrcoef(a, b)[0, 1], atol=1e-4)


def check_accuracy(found, model, pairs, whole=False):
    difference = ctt.logit_differences(model, pairs, whole)
    wins = sum(1.0 if d > 0 else 0.5 if d == 0 else 0.0 for d in difference.tolist())
    assert abs(found - wins / len(pairs)) < 1e-6


def check_logit_differences(found, model, pairs, whole=False, batch_size=256):
    assert len(found) == len(pairs)
    if not whole:
        with torch.no_grad():
            logits = model.hf_model(pairs.input_ids, attention_mask=pairs.attention_mask).logits
        rows = torch.arange(len(pairs))
        last = logits[rows, pairs.answer_position]
        expected = last[rows, pairs.right] - last[rows, pairs.wrong]
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)


def check_residual_stream(found, model, input_ids, attention_mask=None, layer=None):
    with torch.no_grad():
        states = model.hf_model(
            input_ids, attention_mask=attention_mask, output_hidden_states=True
        ).hidden_states
    layer = model.layer if layer is None else layer
    if layer + 1 < model.n_layers:  # the last one is given after its norm
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        keep = mask.bool()
        torch.testing.assert_close(found[keep], states[layer + 1][keep], atol=1e-4, rtol=1e-4)


def check_batches(name):
    def check(found, x=None, ckpts=None, batch_size=1024, max_norm=None, **_):
        n = x.shape[1] if x is not None else len(ckpts)
        assert found.shape[1] == n and found.shape[0] <= batch_size
        assert max_norm is not None or found.shape[0] == batch_size
        if x is not None:
            known = {tuple(row) for row in array(x).reshape(len(x), -1).astype(np.float32).tolist()}
            assert {tuple(row) for row in found.flatten(1).float().tolist()} <= known

    return check


def check_encode(found, self, x):
    code = self.pre_activations(x).relu()
    keep = code * self.code_norms() > self.threshold
    torch.testing.assert_close(found, code * keep, equal_nan=True)


def check_forward(found, self, x):
    assert found.shape == x.shape


def check_part(found, self, features):
    features = list(features)
    assert torch.equal(found.W_dec, self.W_dec[features]) and found.n_latents == len(features)


def check_groups(found, group, eligible, n_groups=5, **_):
    group, eligible = set(map(int, group)), set(map(int, eligible))
    assert len(found) == n_groups
    assert all(set(each) <= eligible - group and len(each) == len(group) for each in found)


def check_resample(found, effects, n_draws=1000, seed=0, clusters=None):
    per_pair = getattr(effects, "per_pair", effects)
    dense = per_pair.to_dense() if isinstance(per_pair, torch.Tensor) else per_pair
    values = array(dense)
    assert found.shape == (n_draws, values.shape[0], values.shape[2])
    low, high = values.min(1), values.max(1)
    slack = 1e-5 * np.abs(values).max(initial=1)
    assert (found >= low - slack).all() and (found <= high + slack).all()


def check_evaluate(found, crosscoder, ckpts, text):
    x = ctt.activations.stacked_activations(ckpts, text)[:, 1:].flatten(0, 1)
    f = crosscoder.encode(x)
    assert abs(found.l0 - float((f > 0).sum(1).double().mean())) < 1e-3
    ids = torch.as_tensor(text)
    with torch.no_grad():
        logits = ckpts[0].hf_model(ids).logits[:, 1:-1].float()
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 2:].flatten())
    assert abs(found.ce_clean[0] - float(expected)) < 1e-3


def check_effects(found, crosscoder, ckpts, pairs, method="ablation", features=None, **given):
    assert found.mean.shape == (len(ckpts), crosscoder.n_latents)
    np.testing.assert_allclose(found.mean, found.per_pair.to_dense().mean(1).numpy(), atol=1e-5)
    if method == "ablation" and features and not set(given) - {"batch_size", "tol", "seed"}:
        one = int(next(iter(features)))
        table = ctt.ablate(crosscoder, ckpts, pairs, [one])
        assert len(table)


def check_make_pairs(found, rows, **_):
    assert len(found) + sum(found.left_out.values()) == len(list(rows))


def check_sample(found, self, n, seed=0):
    assert len(found) == min(n, len(self))
    assert set(found.text) <= set(self.text)


def check_pairs_of_suite(found, n=None, **_):
    assert n is None or len(found) <= n


def check_text(found, n_tokens, length=None, **_):
    assert found.numel() >= n_tokens and (length is None or found.shape[1] == length)
    assert found.numel() - n_tokens < found.shape[1]


def check_match(found, similarity, at_least=0.0):
    similarity = array(similarity)
    assert len(found) == len(similarity)
    np.testing.assert_allclose(found["similarity"], similarity.max(1))


def check_top(found, features, k=6, **_):
    assert set(found) == set(np.atleast_1d(features).tolist())
    assert all(len(examples) <= k for examples in found.values())


def check_gradient(found, f, W_dec, grad):
    torch.testing.assert_close(found, -f * (grad @ W_dec.T), rtol=1e-3, atol=1e-4, equal_nan=True)


def check_pca(found, fitted, held_out, rank, scales=None):
    assert all((values <= 1 + 1e-6).all() for values in found.values())


def check_training(found, crosscoder, stream, config=None, **_):
    assert math.isfinite(found.history["loss"].iloc[-1])
    assert found.history["step"].iloc[-1] == (config or ctt.TrainConfig()).steps


def check_classes(found, ratios, names, specific=0.7, shared=0.3):
    ratios = array(ratios)
    for feature, label in zip(found["feature"], found["label"], strict=True):
        own = ratios[:, feature]
        if np.isnan(own).any():
            assert label == "inactive"
        elif (own > specific).any():
            assert label == "specific"
        else:
            assert label == ("shared" if (own >= shared).sum() > 1 else "other")


RIGHT = {
    "rel_ie": check_rel_ie, "rel_dec": check_rel_dec, "pairwise": check_pairwise,
    "rank_correlation": check_rank_correlation, "interval": check_interval,
    "activation_similarity": check_activation_similarity, "accuracy": check_accuracy,
    "logit_differences": check_logit_differences, "residual_stream": check_residual_stream,
    "TensorStream": check_batches("x"), "ActivationStream": check_batches("ckpts"),
    "Crosscoder.encode": check_encode, "Crosscoder.forward": check_forward,
    "Crosscoder.part": check_part, "control_groups": check_groups, "resample": check_resample,
    "evaluate": check_evaluate, "indirect_effects": check_effects, "make_pairs": check_make_pairs,
    "MinimalPairs.sample": check_sample, "Suite.pairs": check_pairs_of_suite,
    "Suite.text": check_text, "match_features": check_match, "top_examples": check_top,
    "effects_from_gradient": check_gradient, "pca_baseline": check_pca, "train": check_training,
    "classify": check_classes, **module_calls.RIGHT,
}  # fmt: skip


def what_is_wrong(name: str, given: dict, may_raise: bool = True) -> str:
    """Nothing, or what was wrong with what came of a call."""
    try:
        with warnings.catch_warnings(), deadline(SECONDS):
            warnings.simplefilter("ignore")
            result = called(name, given)
    except TooLong:
        return f"it took more than {SECONDS} s"
    except Exception as error:
        if may_raise and is_ours(error):
            return ""
        last = traceback.extract_tb(error.__traceback__)[-1]
        ours = [f for f in traceback.extract_tb(error.__traceback__) if str(PACKAGE) in f.filename]
        at = ours[-1] if ours else last
        where = f"{Path(at.filename).name}:{at.lineno}"
        return f"{type(error).__name__} at {where}: {str(error)[:90]!r}"
    finally:
        plt.close("all")
    try:
        if name in RIGHT:
            RIGHT[name](result, **given)
        if name in PASS_ON and not are_small(given):
            assert not are_finite(result) or are_finite(given)
        elif name not in MAY_BE_NAN and not are_finite(result):
            return f"its numbers are not finite: {str(result)[:60]}"
    except Exception as error:
        return f"it is not right: {type(error).__name__} {str(error)[:200]}"
    return ""


def explore(make, look, n: int) -> list[str]:
    """Complaints about up to n cases that hypothesis draws, "" for each that is fine.

    There are fewer where there are not as many.
    """
    found: list[str] = []

    @settings(
        max_examples=n,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(make)
    def one(case):
        found.append(look(case))

    one()
    return found


def few(tries: int, names: list[str]) -> list[int]:
    """How many of the tries each gets; a fifth more, for some have fewer cases than that."""
    tries += tries // 5
    return [tries // len(names) + (i < tries % len(names)) for i in range(len(names))]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to be in, with what some calls read."""
    here = tmp_path / "a" / "b"  # so that nothing is written beside it by "../.."
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    w = world()
    module_calls.write_files(w)
    formats.to_dictionary_learning(w.small, "theirs")
    formats.to_saelens(w.small, "sae")
    w.effects.save("effects")
    ctt.ActivationCache.build(w.ckpts, w.text, "cache", sequences_per_group=2)
    results = {
        "results": {"blimp": {"acc,none": 0.5, "acc_stderr,none": 0.01}},
        "config": {"model_args": f"pretrained={w.suite.source},revision={w.ckpts.labels[0]}"},
        "n-samples": {"blimp": {"effective": 100}},
    }
    ctt.files.write_json("results.json", results)
    return here


def test_the_calls_are_right(folder):
    wrong = {name: what_is_wrong(name, CALLS[name](world()), may_raise=False) for name in CALLS}
    assert wrong.pop("Crosscoder.push_to_hub").startswith("ConnectionError")  # a network
    assert [f"{name}: {what}" for name, what in wrong.items() if what] == []


@tries(300, 10_000)
def test_wrong_arguments(folder, tries):
    """Errors of ours, or right results."""
    outcomes = []
    for name, n in zip(CALLS, few(tries, list(CALLS)), strict=True):

        def look(case, name=name):
            given, told = case
            complaint = what_is_wrong(name, given)
            return complaint and f"{told}\n    {complaint}"

        outcomes += explore(wrong_calls(name), look, n)
    assert len(outcomes) >= tries
    wrong = sorted({one for one in outcomes if one})
    print(f"{len(wrong)} complaints", *wrong, sep="\n")
    promise = "an error of ours that says what is taken, or the right result, in time"
    n = len(outcomes)
    with counted("a public function called with wrong arguments", n, promise) as count:
        for complaint in outcomes:
            count(not complaint)


# ---- parameters of notebooks

NOTEBOOKS = sorted((PACKAGE.parent / "notebooks" / "src").glob("0*.py"))


@functools.cache
def beginning(path: Path) -> tuple[str, str]:
    """A notebook's parameters, and the call that checks them with the imports that it needs."""
    tree = ast.parse(path.read_text())
    declared = [node for node in tree.body if isinstance(node, ast.AnnAssign)]
    setup = next(
        node
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("ctt.setup(")
    )
    imports = [
        node
        for node in tree.body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        and ast.unparse(node).split()[1].startswith("ctt_helpers")
        and node.lineno < setup.lineno
    ]
    before = [node for node in declared if node.lineno < setup.lineno]
    return tuple("\n".join(map(ast.unparse, nodes)) for nodes in (before, [*imports, setup]))


def started(path: Path, given: dict) -> dict:
    """A notebook's variables after its check, with these parameters injected as papermill does."""
    parameters, check = beginning(path)
    namespace: dict = {}
    exec(compile(parameters, "parameters", "exec"), namespace)
    namespace |= given
    exec(compile(check, "check", "exec"), namespace)
    return namespace


UNKNOWN = ["seeds", "n_pair", "modle"]
# what papermill can inject: what YAML and JSON hold
VALUES = st.one_of(
    st.sampled_from([
        None, True, False, 0, 1, -1, 2, 300, 10**30, 0.5, -0.5, 1e300, math.nan, math.inf, "", "x",
        "auto", "cpu", "cuda", "tiny", "paper", "pythia-160m", "agreement/pp", "blimp/x", "a/b",
        "../..", "\0", "None", "3", [], ["x"], ["step320"], ["step3000", "step320"], [1], [None],
        [[]], {}, {"lr": 1e-3}, {"lr": -1}, {"lr": "x"}, {"x": 1}, {"steps": 3},
    ]),
    st.integers(-5, 1000),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.one_of(st.text(max_size=4), st.integers(-3, 3)), max_size=3),
)  # fmt: skip


# of the kind that is declared, and seldom what is meant
FITTING = {
    "int": st.integers(-3, 1000),
    "float": st.floats(),
    "str": st.sampled_from(["", "x", "\0", "cpu", "tiny", "agreement/pp", "blimp/x", "far", "atp"]),
    "list": st.lists(st.sampled_from(["x", "step320", "step3000", "agreement/pp"]), max_size=3),
    "dict": st.dictionaries(st.sampled_from(["lr", "x", "l1"]), st.floats(), max_size=2),
}


@st.composite
def wrong_parameters(draw, path: Path):
    declared = dict(line.split(" = ")[0].split(": ") for line in beginning(path)[0].splitlines())
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from(UNKNOWN)), draw(VALUES)
    name = draw(st.sampled_from(sorted(declared)))
    fitting = FITTING.get(declared[name].split(" | ")[0])
    if fitting is None or draw(st.integers(0, 2)) == 0:
        return name, draw(VALUES)
    return name, draw(fitting)


def may_be(name: str, value, notebook: str) -> bool:
    """Whether a value can be meant, said independently of the checks."""
    if value is None:
        return True
    if name == "profile":
        return value in ("tiny", "colab", "paper")
    if name in ("decoder_norm", "penalty"):
        return isinstance(value, (int, float)) and 0 <= value < math.inf
    if name.startswith("n_") or name in ("k", "seed", "steps", "batch_size", "top_k", "layer"):
        least = {"seed": 0, "layer": 0, "steps": 0}.get(name, 1)
        return type(value) is int and value >= least and (name != "layer" or value < 6)
    if name == "train":
        return isinstance(value, bool)
    if name in ("tasks", "revisions", "runner_up", "other_models"):
        known = world().suite.task_names if name == "tasks" else world().suite.revisions
        if not isinstance(value, list) or name == "other_models":
            return isinstance(value, list)
        return all(one in known or str(one).startswith("blimp/") for one in value)
    if name == "training":
        good = isinstance(value, dict) and "x" not in value and value.get("lr", 1) != "x"
        return good and all(0 <= number < math.inf for number in value.values())
    if not isinstance(value, str) or "\0" in value:
        return False
    if name.endswith("task"):
        return value in world().suite.task_names or value.startswith("blimp/")
    return value in {"device": ["auto", "cpu"], "split": ["find", "test", "far"]}.get(name, value)


def complaint_about(path: Path, case: tuple) -> str:
    """Nothing, or what is wrong with what a notebook says of one parameter."""
    name, value = case
    told = f"{path.stem}: {name}={value!r}"
    try:
        with warnings.catch_warnings(), deadline(SECONDS):
            warnings.simplefilter("ignore")
            found = started(path, {name: value})
    except TooLong:
        return f"{told}: it took more than {SECONDS} s"
    except Exception as error:
        if is_ours(error) and name in str(error):
            return ""
        return f"{told}: {type(error).__name__} {str(error)[:150]}"
    if not may_be(name, value, path.stem) or name in UNKNOWN:
        return f"{told}: it is accepted"
    if value is not None and found[name] != value:
        return f"{told}: {found[name]!r} is in force"
    return ""


@tries(100, 2000)
def test_wrong_parameters_of_notebooks(tmp_path, monkeypatch, tries):
    """Refused with their name before anything is computed, or right."""
    monkeypatch.chdir(tmp_path)
    outcomes = []
    for path, n in zip(NOTEBOOKS, few(tries, NOTEBOOKS), strict=True):
        outcomes += explore(wrong_parameters(path), functools.partial(complaint_about, path), n)
    assert len(outcomes) >= tries
    print(*sorted({one for one in outcomes if one}), sep="\n")
    promise = "refused with the parameter's name before anything is computed, or it is right"
    n = len(outcomes)
    with counted("a notebook started with a wrong parameter", n, promise) as count:
        for complaint in outcomes:
            count(not complaint)
