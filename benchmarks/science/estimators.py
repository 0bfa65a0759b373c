"""Estimators of indirect effects against exact ablation: order, sign, size, cost; why integrated gradients differ."""

import time

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import ctt_helpers as ctt
from benchmarks.report import markdown
from benchmarks.science.context import spearman
from ctt_helpers import effects, paths
from ctt_helpers.paths import METHODS, ActivationPath

CHEAP = ("atp", "ig_near", "ig")
LARGE = 1e-3  # logits; below it the order of features is noise
SHARES, DRAWS = (0.02, 0.05, 0.1, 0.25, 1.0), 5  # of the pairs, for exact ablation on fewer; draws of them
GRADIENT = 3  # a gradient costs about as much as three forward passes
OWN_PAIRS = 50  # one's own path costs five gradients a latent


def run(context) -> dict[str, pd.DataFrame]:
    """Tables over the context's tasks and checkpoints; see `benchmarks.science`."""
    rows, budget, why = [], [], []
    for task in context.tasks:
        print(f"estimators: {task}", flush=True)
        find = context.pairs(task, "find")
        found, cost = {}, {}
        for method in METHODS:
            pairs = find[:OWN_PAIRS] if method == "ig_own" else find
            begin = time.perf_counter()
            found[method] = (
                ctt.indirect_effects(context.crosscoder, context.ckpts, pairs, method)
                if method == "ig_own"
                else context.effects(task, "find", method)
            )
            cost[method] = (time.perf_counter() - begin) * 100 / len(pairs)
        own = ctt.indirect_effects(context.crosscoder, context.ckpts, find[:OWN_PAIRS], "ablation")
        shares = ctt.rel_ie(found["ablation"].mean, inactive_below=1e-3)
        for method in METHODS:
            exact = own if method == "ig_own" else found["ablation"]
            estimate = found[method]
            off = np.abs(ctt.rel_ie(estimate.mean, inactive_below=0) - shares)
            for c, name in enumerate(context.ckpts.labels):
                rows.append(
                    {"task": task, "checkpoint": name, "method": method}
                    | agreement(estimate.mean[c], exact.mean[c])
                    | {"relie_error": np.nan if method == "ig_own" else np.nanmean(off[c])}
                    | {"passes": passes(method, estimate.n_nodes[c]), "seconds": cost[method]}
                )
        truth = context.effects(task, "test").mean
        budget += on_a_budget(task, context.ckpts.labels, found, truth, context.seed)
        why += frozen_norm(task, context, find[: min(100, len(find))])
    gaps = completeness(context)
    return {
        "estimators": pd.DataFrame(rows),
        "budget": pd.DataFrame(budget),
        "frozen_norm": pd.DataFrame(why),
        "completeness": gaps,
    }


def agreement(estimate: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """Order, sign and size over the features that count, and order over all that are active."""
    large, active = np.abs(exact) > LARGE, exact != 0
    top = np.argsort(-np.abs(exact))[:20]
    return {
        "features": int(large.sum()),
        "rank_large": float(spearman(estimate[large], exact[large])),
        "rank_all": float(spearman(estimate[active], exact[active])),
        "sign": float(np.mean(np.sign(estimate[large]) == np.sign(exact[large]))),
        "size": float((estimate[top] @ exact[top]) / (exact[top] @ exact[top])),
    }


def passes(method: str, nodes: float) -> float:
    """Forward passes of the layers above for a pair and checkpoint, a gradient counted as three."""
    return float(nodes if method == "ablation" else GRADIENT * nodes)


def on_a_budget(task: str, names: list[str], found: dict, truth: np.ndarray, seed: int) -> list[dict]:
    """What a number of passes buys: estimates from the find half against exact effects on other sentences.

    Those from a share of the pairs are means over `DRAWS` draws of the pairs.
    """
    rows = []
    exact, rng = found["ablation"], np.random.default_rng(seed)
    orders = [rng.permutation(exact.per_pair.shape[1]) for _ in range(DRAWS)]
    for c, name in enumerate(names):
        dense = exact.per_pair[c].to_dense().double().numpy()
        ways = {m: ([found[m].mean[c]], passes(m, found[m].n_nodes[c])) for m in CHEAP}
        for share in SHARES:
            n = max(1, round(share * len(dense)))
            cost = n / len(dense) * passes("ablation", exact.n_nodes[c])
            some = [dense[order[:n]].mean(0) for order in (orders if n < len(dense) else orders[:1])]
            ways[f"ablation, {share:.0%} of pairs"] = (some, cost)
        for way, (estimates, cost) in ways.items():
            figures = pd.DataFrame([agreement(estimate, truth[c]) for estimate in estimates]).mean().to_dict()
            rows.append({"task": task, "checkpoint": name, "way": way, "passes": cost, **figures})
    return rows


class FrozenNorm(ActivationPath):
    """The same read-out with the final norm's divisor kept at its clean value: what is left is linear there."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.sigma = None
        with torch.no_grad():
            hidden = self._hidden(self.x, paths.EVERY)
        self.sigma = self._divisor(hidden)

    def _hidden(self, x: Tensor, rows: paths.Rows) -> Tensor:
        caught = []
        handle = self.model.final_norm.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        try:
            super().metric_of(x, rows)
        finally:
            handle.remove()
        return caught[0]

    def _centred(self, hidden: Tensor) -> Tensor:
        is_layer_norm = isinstance(self.model.final_norm, torch.nn.LayerNorm)
        return hidden - hidden.mean(-1, keepdim=True) if is_layer_norm else hidden

    def _divisor(self, hidden: Tensor) -> Tensor:
        return self._centred(hidden).pow(2).mean(-1, keepdim=True).sqrt()

    def metric_of(self, x: Tensor, rows: paths.Rows = paths.EVERY) -> Tensor:
        with torch.set_grad_enabled(x.requires_grad):
            hidden = self._centred(self._hidden(x, rows))
            weight = getattr(self.model.final_norm, "weight", None)
            weight = 1.0 if weight is None else weight
            right, wrong = self.model.unembedding.weight[self.pair.answers[rows].to(hidden.device)].unbind(1)
            return (hidden / self.sigma[rows] * weight * (wrong - right)).sum(-1)


def frozen_norm(task: str, context, pairs) -> list[dict]:
    """Rank correlation of IG with exact ablation, both under the plain final norm and under the frozen one."""
    x, f, keep = effects._activations(context.crosscoder.eval(), context.ckpts, pairs)
    W_dec, b_dec = (t.detach() for t in context.crosscoder.raw_decoder())
    rows = []
    for c, model in enumerate(context.ckpts):
        for norm, path in (("plain", ActivationPath), ("frozen", FrozenNorm)):
            run = path(model, pairs, x[:, :, c], b_dec[c].to(x), keep)
            ends = run.metric(torch.tensor([0.0, 1.0]))
            budget = 0.01 * float((ends[1] - ends[0]).abs().mean())
            mean = {
                m: paths.estimate(run, f, W_dec[:, c].to(x), m, budget).ie.mean(0).double().cpu().numpy()
                for m in ("ablation", "ig", "atp")
            }
            rows += [
                {"task": task, "checkpoint": model.label, "norm": norm, "method": m}
                | agreement(mean[m], mean["ablation"])
                for m in ("ig", "atp")
            ]
    return rows


def completeness(context) -> pd.DataFrame:
    """The completeness gap of "ig" at the default tolerance, at every checkpoint and task of the suite."""
    rows = []
    for task in dict.fromkeys([*context.tasks, *context.suite.task_names]):
        pairs = context.pairs(task, "find")
        found = ctt.indirect_effects(context.crosscoder, context.ckpts, pairs, "ig")
        for c, name in enumerate(found.names):
            gaps = {"gap": found.gap[c], "gap_per_pair": found.info["gap_per_pair"][c]}
            rows.append({"task": task, "checkpoint": name, **gaps, "gradients": found.n_nodes[c], "pairs": len(pairs)})
    return pd.DataFrame(rows)


def headline(frames: dict[str, pd.DataFrame]) -> str:
    table, gaps = frames["estimators"], frames["completeness"]
    exact = table[table["method"] == "ablation"].groupby("task")["seconds"].first().sum() * gaps["pairs"].max() / 100
    return (
        f"**Estimators.** Mean over tasks and checkpoints, against exact ablation on the same sentences. All active "
        f"latents, {table['task'].nunique()} tasks of {gaps['pairs'].max()} pairs, {table['checkpoint'].nunique()} "
        f"checkpoints, by exact ablation: {exact:.0f} s. IG's completeness gap is at most {gaps['gap'].max():.2%}, "
        f"over {gaps['task'].nunique()} tasks."
    )


def brief(frames: dict[str, pd.DataFrame]) -> str:
    """One row a method."""
    heads = {"rank_large": "rank, large effects", "rank_all": "rank, all active", "relie_error": "RelIE off by"}
    heads |= {"passes": "passes a pair"}
    table, last = frames["estimators"], frames["estimators"]["checkpoint"].iloc[-1]
    shown = table.groupby("method", sort=False)[
        ["rank_large", "rank_all", "sign", "size", "relie_error", "passes"]
    ].mean()
    at_end = table[table["checkpoint"] == last].groupby("method")["rank_all"].mean()
    shown.insert(2, f"rank, all active, {last}", at_end)
    return markdown(shown.rename(columns=heads).reset_index(), {"passes a pair": 0, "RelIE off by": 3})


def section(frames: dict[str, pd.DataFrame]) -> str:
    table = frames["estimators"]
    by = ["method", "checkpoint"]
    figures = ["rank_large", "rank_all", "sign", "size", "relie_error", "passes", "seconds"]
    mean = table.groupby(by, sort=False)[figures].mean().reset_index()
    budget = frames["budget"].groupby(["way", "checkpoint"], sort=False)[["rank_large", "passes"]].mean()
    in_order = budget.index.unique("way"), budget.index.unique("checkpoint")  # unstack(sort=False) errs in pandas 2
    passes = budget["passes"].groupby("way").mean()
    budget = budget["rank_large"].unstack("checkpoint").loc[in_order].assign(passes=passes)
    norm = frames["frozen_norm"].groupby(["method", "checkpoint", "norm"], sort=False)["rank_all"].mean()
    in_order = norm.index.droplevel("norm").unique(), norm.index.unique("norm")
    norm = norm.unstack("norm").loc[in_order].reset_index()
    gaps = frames["completeness"]
    sizes = f"Mean over {table['task'].nunique()} tasks. Features with an exact effect above {LARGE} logits: "
    sizes += f"{table['features'].min()} to {table['features'].max()}."
    heads = {"rank_large": "rank, large", "rank_all": "rank, all active", "relie_error": "RelIE off by"}
    return (
        "## Estimators against exact ablation\n\n"
        f"Same features, sentences and checkpoints. {sizes} size: slope of the estimate on the exact effect over the "
        "20 strongest (1: right). RelIE off by: mean |share - exact share|. passes: forward passes of the layers above "
        f"a pair, a gradient counted as {GRADIENT}; seconds: for 100 pairs, all checkpoints.\n\n"
        f"{markdown(mean.rename(columns=heads), {'passes': 0, 'RelIE off by': 3})}\n\n"
        "What passes buy: rank correlation (large effects) with the exact effects on *other* sentences; on a share of "
        f"the pairs, mean of {DRAWS} draws.\n\n"
        f"{markdown(budget.reset_index(), {'passes': 0})}\n\n"
        "Rank correlation with exact ablation over all active features when the final norm divides by its clean value "
        "(frozen) instead of the present one (plain), in the estimate and in the exact effect alike.\n\n"
        f"{markdown(norm)}\n\n"
        f"Completeness gap of IG at the default tolerance, {gaps['task'].nunique()} tasks at "
        f"{gaps['checkpoint'].nunique()} checkpoints, {gaps['pairs'].max()} pairs: largest {gaps['gap'].max():.2%} "
        f"(mean |difference| of a single pair: largest {gaps['gap_per_pair'].max():.2%}), with "
        f"{gaps['gradients'].min():.0f} to {gaps['gradients'].max():.0f} gradients a pair."
    )
