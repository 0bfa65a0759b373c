"""Estimators of indirect effects against exact ablation: order, sign, size, cost.

And why integrated gradients differ from it.
"""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

import ctt_helpers as ctt
from ctt_helpers import hooks
from ctt_helpers.attribution import METHODS, Options, Readout, Rows
from ctt_helpers.effects import readout_of, touched
from ctt_helpers.metrics import rank_correlation
from experiments.context import INACTIVE, Context

CHEAP = ("atp", "ig_near", "ig")
LARGE = 1e-3  # logits; below it the order of features is noise
TOP = 20  # features that the size is taken over
SHARES = (0.02, 0.05, 0.1, 0.25, 1.0)  # of the pairs, for exact ablation on fewer
DRAWS = 5  # of such a share
GRADIENT = 3  # a gradient costs about as much as three forward passes
OWN_PAIRS = 50  # a line of its own costs five gradients a latent, Shapley values eight passes
ON_FEW = ("ig_own", "shapley")
NORM_PAIRS = 100  # for the frozen norm
TOLERANCE = 0.01  # the default of indirect_effects: a share of the mean |m(b_dec) - m(clean)|

_FIGURES = (
    f"features: how many have an exact effect above {LARGE} logits; rank_large: rank correlation "
    "over these; rank_all: over all that are active; sign: share with the right sign, of the "
    f"large ones; size: slope of the estimate on the exact effect over the {TOP} strongest (1: "
    "right)"
)
_PASSES = (
    "passes: forward passes through the layers above, a pair and checkpoint, a gradient counted as "
    f"{GRADIENT}"
)
TABLES = {
    "estimators": (
        "One row for each task, checkpoint and method: its effects against exact ablation, on the "
        f"same sentences (find half). {_FIGURES}; relie_error: mean |share - exact share| over "
        f"the checkpoints' shares of each latent; {_PASSES}; seconds: for 100 pairs, all "
        f"checkpoints. {' and '.join(ON_FEW)}: on {OWN_PAIRS} pairs."
    ),
    "budget": (
        "What a number of passes buys: one row for each task, checkpoint and way to spend it. "
        "Estimates from the find half against exact effects on *other* sentences, the test half. "
        f"On a share of the pairs: mean of {DRAWS} draws. {_PASSES}. {_FIGURES}."
    ),
    "frozen_norm": (
        "One row for each task, checkpoint, norm and method: the estimate against exact ablation, "
        "both with the final norm dividing by the present size (plain) or by that of the clean run "
        f"(frozen). {_FIGURES}."
    ),
    "completeness": (
        "One row for each task and checkpoint: the completeness gap of IG at the default "
        "tolerance, |sum of effects and error - m(b_dec) + m(clean)| over the mean "
        "|m(b_dec) - m(clean)|. gap: of the mean over pairs; gap_per_pair: mean over single pairs; "
        "gradients: for a pair."
    ),
}


def run(context: Context) -> dict[str, pd.DataFrame]:
    rows, budget, frozen = [], [], []
    for task in context.tasks:
        print(f"estimators: {task}", flush=True)
        find = context.pairs(task, "find")
        found, seconds = {}, {}
        for method in METHODS:
            begin = time.perf_counter()
            if method in ON_FEW:
                pairs = find[:OWN_PAIRS]
                found[method] = ctt.indirect_effects(
                    context.crosscoder, context.ckpts, pairs, method
                )
            else:
                pairs = find
                found[method] = context.effects(task, "find", method)
            seconds[method] = (time.perf_counter() - begin) * 100 / len(pairs)
        rows += against_exact(task, context, find, found, seconds)
        truth = context.effects(task, "test").mean
        budget += on_a_budget(task, context.names, found, truth, context.seed)
        frozen += frozen_norm(task, context, find[: min(NORM_PAIRS, len(find))])
    return {
        "estimators": pd.DataFrame(rows),
        "budget": pd.DataFrame(budget),
        "frozen_norm": pd.DataFrame(frozen),
        "completeness": completeness(context),
    }


# ---- on the same sentences


def against_exact(
    task: str,
    context: Context,
    find: ctt.MinimalPairs,
    found: dict[str, ctt.Effects],
    seconds: dict[str, float],
) -> list[dict]:
    """One row a method and checkpoint.

    Args:
        task: its name.
        context: what it was run on.
        find: the pairs.
        found: method -> effects on them (those in ON_FEW: on the first of them).
        seconds: method -> for 100 pairs.
    """
    exact_of_few = ctt.indirect_effects(
        context.crosscoder, context.ckpts, find[:OWN_PAIRS], "ablation"
    )
    shares = ctt.rel_ie(found["ablation"].mean, INACTIVE)
    rows = []
    for method, estimate in found.items():
        on_few = method in ON_FEW
        exact = exact_of_few if on_few else found["ablation"]
        off = np.abs(ctt.rel_ie(estimate.mean, inactive_below=0) - shares)
        for c, name in enumerate(context.names):
            rows.append(
                {
                    "task": task,
                    "checkpoint": name,
                    "method": method,
                    **agreement(estimate.mean[c], exact.mean[c]),
                    "relie_error": np.nan if on_few else np.nanmean(off[c]),
                    "passes": passes(method, estimate.n_nodes[c]),
                    "seconds": seconds[method],
                }
            )
    return rows


def agreement(
    estimate: Float[np.ndarray, " latents"], exact: Float[np.ndarray, " latents"]
) -> dict[str, float]:
    """Order, sign and size over the features that count, and order over all that are active."""
    large = np.abs(exact) > LARGE
    active = exact != 0
    top = np.argsort(-np.abs(exact))[:TOP]
    return {
        "features": int(large.sum()),
        "rank_large": float(rank_correlation(estimate[large], exact[large])),
        "rank_all": float(rank_correlation(estimate[active], exact[active])),
        "sign": float(np.mean(np.sign(estimate[large]) == np.sign(exact[large]))),
        "size": float((estimate[top] @ exact[top]) / (exact[top] @ exact[top])),
    }


def passes(method: str, evaluations: float) -> float:
    """Forward passes of the layers above for a pair and checkpoint, a gradient counted as three."""
    each = 1 if method in ("ablation", "shapley") else GRADIENT
    return float(each * evaluations)


# ---- on other sentences


def on_a_budget(
    task: str,
    names: list[str],
    found: dict[str, ctt.Effects],
    truth: Float[np.ndarray, "checkpoints latents"],
    seed: int,
) -> list[dict]:
    """What a number of passes buys: estimates from the find half against exact effects elsewhere.

    Those from a share of the pairs are means over `DRAWS` draws of the pairs.
    """
    exact = found["ablation"]
    n_pairs = exact.per_pair.shape[1]
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(n_pairs) for _ in range(DRAWS)]
    rows = []
    for c, name in enumerate(names):
        ways = {}  # name -> estimates (one, or one a draw), and passes
        for method in CHEAP:
            cost = passes(method, found[method].n_nodes[c])
            ways[method] = ([found[method].mean[c]], cost)
        by_pair = exact.per_pair[c].to_dense().double().numpy()
        for share in SHARES:
            n = max(1, round(share * n_pairs))
            cost = n / n_pairs * passes("ablation", exact.n_nodes[c])
            drawn = orders if n < n_pairs else orders[:1]  # all pairs are the same in any order
            estimates = [by_pair[order[:n]].mean(0) for order in drawn]
            ways[f"ablation, {share:.0%} of pairs"] = (estimates, cost)
        for way, (estimates, cost) in ways.items():
            figures = pd.DataFrame([agreement(estimate, truth[c]) for estimate in estimates])
            where = {"task": task, "checkpoint": name, "way": way, "passes": cost}
            rows.append({**where, **figures.mean().to_dict()})
    return rows


# ---- the final norm


def frozen_norm(task: str, context: Context, pairs: ctt.MinimalPairs) -> list[dict]:
    """IG and AtP against exact ablation, under the plain final norm and under the frozen one."""
    crosscoder = context.crosscoder.eval()
    x = hooks.stacked_activations(context.ckpts, pairs.input_ids, pairs.attention_mask)
    where = touched(pairs).to(x.device)
    f = x.new_zeros(*x.shape[:2], crosscoder.n_latents)
    f[where] = crosscoder.encode(x[where]).detach()
    W_dec, b_dec = (weights.detach() for weights in crosscoder.raw_decoder())
    rows = []
    for c, model in enumerate(context.ckpts):
        plain = readout_of(model, pairs, x[:, :, c], b_dec[c])
        readouts = {"plain": plain, "frozen": with_frozen_norm(plain, model, pairs)}
        for norm, readout in readouts.items():
            tolerance = TOLERANCE * float(readout.change.abs().mean())
            mean = {}
            for method in ("ablation", "ig", "atp"):
                attribute = METHODS[method].attribute
                found = attribute(readout, f, W_dec[:, c].to(x), Options(tolerance=tolerance))
                mean[method] = found.ie.mean(0).double().cpu().numpy()
            for method in ("ig", "atp"):
                rows.append(
                    {
                        "task": task,
                        "checkpoint": model.label,
                        "norm": norm,
                        "method": method,
                        **agreement(mean[method], mean["ablation"]),
                    }
                )
    return rows


def with_frozen_norm(
    readout: Readout, model: hooks.HookedModel, pairs: ctt.MinimalPairs
) -> Readout:
    """The same read-out with the final norm's divisor kept at its clean value.

    What is left of the norm is linear. Its bias is left out: a constant, that no effect depends on.
    """

    def centred(x: Float[Tensor, "items t d_model"], rows: Rows) -> Float[Tensor, "items d_model"]:
        """What the final norm divides by its size, at the answer position."""
        final = hooks.at_least_float32(_into_the_norm(model, lambda: readout.metric(x, rows)))
        return final - final.mean(-1, keepdim=True) if model.norm_centres else final

    with torch.no_grad():
        clean = centred(readout.x, slice(None))
        size = clean.square().mean(-1, keepdim=True).sqrt()

    def metric(x: Float[Tensor, "items t d_model"], rows: Rows) -> Float[Tensor, " items"]:
        final = centred(x, rows) / size[rows] * model.norm_gain
        answers = pairs.answers[rows].to(final.device)
        right, wrong = model.unembedding.weight[answers].to(final).unbind(1)
        return (final * (wrong - right)).sum(-1)

    return replace(readout, metric=metric)


def _into_the_norm(
    model: hooks.HookedModel, run: Callable[[], Tensor]
) -> Float[Tensor, "items d_model"]:
    """What goes into the final norm while `run` runs the layers above."""
    caught = []
    handle = model.final_norm.register_forward_pre_hook(
        lambda module, inputs: caught.append(inputs[0])
    )
    try:
        run()
    finally:
        handle.remove()
    return caught[0]


# ---- completeness


def completeness(context: Context) -> pd.DataFrame:
    """The completeness gap of "ig" at the default tolerance, on every task of the suite."""
    rows = []
    for task in dict.fromkeys([*context.tasks, *context.suite.task_names]):
        pairs = context.pairs(task, "find")
        found = ctt.indirect_effects(context.crosscoder, context.ckpts, pairs, "ig")
        for c, name in enumerate(found.names):
            rows.append(
                {
                    "task": task,
                    "checkpoint": name,
                    "gap": found.gap[c],
                    "gap_per_pair": found.info["gap_per_pair"][c],
                    "gradients": found.n_nodes[c],
                    "pairs": len(pairs),
                }
            )
    return pd.DataFrame(rows)
