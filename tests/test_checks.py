"""The exercises: every check passes on the solution, fails on the stub, and names what is wrong."""

import importlib.util
import inspect
import re
from functools import cache
from pathlib import Path

import jupytext
import numpy as np
import pandas as pd
import pytest
import torch
from models import random_model, word_tokenizer

from ctt_helpers.hooks import HookedModel
from ctt_helpers.notebook import checks
from ctt_helpers.sources.suites import load_suite

ROOT = Path(__file__).resolve().parents[1]
SEEDS = (0, 1, 2, 3, 4)


@cache
def tool():
    """tools/build_notebooks.py as a module."""
    path = ROOT / "tools" / "build_notebooks.py"
    spec = importlib.util.spec_from_file_location("build_notebooks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def exercises() -> dict[str, str]:
    """Name -> the source of its cell with the markers, over all notebooks."""
    found = {}
    for source in tool().sources():
        for cell in jupytext.read(source, fmt="py:percent").cells:
            name = cell.metadata.get("exercise")
            if name:
                assert name not in found, f"two exercises are called {name}"
                found[name] = cell.source
    return found


EXERCISES = exercises()


def defined(code: str, name: str):
    """The function of an exercise's cell, run alone."""
    namespace = {"torch": torch, "np": np, "pd": pd}
    exec(code, namespace)
    return namespace[name]


@cache
def model() -> HookedModel:
    return HookedModel(random_model("gpt_neox"), word_tokenizer(), layer=1)


def check(name: str, student, seed: int | None = None) -> None:
    given = {"from_hidden_states": model, "own_task": lambda: load_suite("tiny").tokenizer}
    more = [given[name]()] if name in given else []
    getattr(checks, name)(student, *more, seed=seed)


# name -> wrong answers: what a student might write in place of the solution -> what the check says.
# The keys are the lines between the markers, indented as there.
WRONG: dict[str, dict[str, str]] = {
    "neighbour_rule": {
        "return 1.0": "would know the subject",
        "return float(subject != attractor)": "turned round",
        "return 0.5": "that model guesses",
        "return float(attractor == 'pl')": "looks at the neighbour alone",
        "return 1.0 if subject == attractor else 0.5": "does not guess",
    },
    "rule_weights": {
        "s, t = np.array([[-1], [1]]), np.array([[-1, 1]])\n"
        "return (v * s).mean() * 2, (v * t).mean() * 2, (v * s * t).mean() * 2": "halve",
        "s, t = np.array([[-1], [1]]), np.array([[-1, 1]])\n"
        "return (v * s).sum(), (v * t).sum(), (v * s * t).sum()": "take the mean",
        "s, t = np.array([[-1, 1]]), np.array([[-1], [1]])\n"
        "return (v * s).mean(), (v * t).mean(), (v * s * t).mean()": "are swapped",
        "s, t = np.array([[1], [-1]]), np.array([[1, -1]])\n"
        "return (v * s).mean(), (v * t).mean(), (v * s * t).mean()": "signs are turned",
        "subject, attractor = v[1].mean() - v[0].mean(), v[:, 1].mean() - v[:, 0].mean()\n"
        "return subject, attractor, v[1, 1] - v[1, 0] - v[0, 1] + v[0, 0]": "not yet divided",
        "subject, attractor = v[1].mean() - v[0].mean(), v[:, 1].mean() - v[:, 0].mean()\n"
        "return subject / 2, attractor / 2, v[1, 1] - v[1, 0] - v[0, 1] + v[0, 0]": "divide by 4",
        "subject, attractor = v[1].mean() - v[0].mean(), v[:, 1].mean() - v[:, 0].mean()\n"
        "return subject / 4, attractor / 4, (v[1, 1] - v[1, 0] - v[0, 1] + v[0, 0]) / 8": (
            "halved once too often"
        ),
        "s, t = np.array([[-1], [1]]), np.array([[-1, 1]])\n"
        "return dict(subject=(v * s).mean(), attractor=(v * t).mean(), both=(v * s * t).mean())": (
            "that is a dict"
        ),
    },
    "rank_correlation": {
        "return np.corrcoef(a, b)[0, 1]": "ordinary correlation of the numbers",
        "return np.corrcoef(a.argsort(), b.argsort())[0, 1]": "argsort of the argsort",
        "return np.corrcoef(a.argsort().argsort(), (-b).argsort().argsort())[0, 1]": "other way",
        "return np.corrcoef(a.argsort().argsort(), b)[0, 1]": "only one",
    },
    "chance_of": {
        "return np.mean(null >= observed)": "your own world counts",
        "return (1 + np.sum(null > observed)) / (1 + len(null))": "as many is as well",
        "return (1 + np.sum(null <= observed)) / (1 + len(null))": "turned round",
        "return (1 + np.sum(null >= observed)) / len(null)": "one more below, too",
    },
    "beyond_chance": {
        "return np.mean(before == after)": "take off what chance gives",
        "chance = 1 / len({*before, *after})\n"
        "return (np.mean(before == after) - chance) / (1 - chance)": "some labels are frequent",
        "chance = sum(np.mean(before == x) * np.mean(after == x) for x in set(before))\n"
        "return np.mean(before == after) - chance": "divide by 1 - c",
        "chance = sum(np.mean(before == x) ** 2 for x in set(before))\n"
        "return (np.mean(before == after) - chance) / (1 - chance)": "multiply the two",
    },
    "subject_share": {
        "return abs(S.sum()) / (abs(S.sum()) + abs(N.sum()) + abs(B.sum()))": "before you add up",
        "return np.abs(S).sum() / (np.abs(S).sum() + np.abs(N).sum())": "belongs below",
        "return np.mean(np.abs(S) / (np.abs(S) + np.abs(N) + np.abs(B)))": "mean of ratios",
        "return (S**2).sum() / (S**2 + N**2 + B**2).sum()": "these are squares",
    },
    "most_alike": {
        "f, g = f - f.mean(0), g - g.mean(0)\n"
        "f, g = f / np.linalg.norm(f, axis=0), g / np.linalg.norm(g, axis=0)\n"
        "return (f.T @ g).argmax(0)": "partners of g's latents",
        "f, g = f / np.linalg.norm(f, axis=0), g / np.linalg.norm(g, axis=0)\n"
        "return (f.T @ g).argmax(1)": "without taking off the means",
        "f, g = f - f.mean(0), g - g.mean(0)\nreturn (f.T @ g).argmax(1)": "divide by the lengths",
        "f, g = f - f.mean(0), g - g.mean(0)\n"
        "f, g = f / np.linalg.norm(f, axis=0), g / np.linalg.norm(g, axis=0)\n"
        "return (f.T @ g).max(1)": "correlations themselves",
    },
    "unwrap": {
        "return output[0]": "first sentence alone",
        "return output": "a tuple came back|some blocks give a tuple",
        "return output[-1] if isinstance(output, tuple) else output": "last entry of the tuple",
    },
    "from_hidden_states": {
        "return hf_model(input_ids=input_ids, attention_mask=attention_mask, "
        "output_hidden_states=True).hidden_states[layer]": "begins with the embeddings",
        "return hf_model(input_ids=input_ids, attention_mask=attention_mask, "
        "output_hidden_states=True).hidden_states[-1]": "after the last block",
        "return hf_model(input_ids=input_ids, attention_mask=attention_mask).logits": "the logits",
    },
    "pair_accuracy": {
        "right, wrong = logits[:, -1].gather(1, answers).T\n"
        "return ((right > wrong) + 0.5 * (right == wrong)).double().mean().item()": "padding",
        "right, wrong = logits[torch.arange(len(logits)), position].gather(1, answers).T\n"
        "return (right > wrong).double().mean().item()": "a tie counts as half",
        "wrong, right = logits[torch.arange(len(logits)), position].gather(1, answers).T\n"
        "return ((right > wrong) + 0.5 * (right == wrong)).double().mean().item()": "are swapped",
        "at = logits[torch.arange(len(logits)), position]\n"
        "return (at.argmax(-1) == answers[:, 0]).double().mean().item()": "not all words",
        "right, wrong = logits[torch.arange(len(logits)), position].gather(1, answers).T\n"
        "return ((right > wrong) + 0.5 * (right == wrong)).double()": (
            "for each pair: take the mean"
        ),
        "right, wrong = logits[torch.arange(len(logits)), position].gather(1, answers).T\n"
        "return right > wrong": "for each pair: take the mean, in which",
        "right, wrong = (logits[:, position, answers[:, i]] for i in (0, 1))\n"
        "return ((right > wrong) + 0.5 * (right == wrong)).double().mean().item()": (
            "takes all positions from every row"
        ),
        "right, wrong = (logits[:, position][..., answers[:, i]] for i in (0, 1))\n"
        "return ((right > wrong) + 0.5 * (right == wrong)).double().mean().item()": (
            "and then all answers"
        ),
    },
    "next_token_loss": {
        "p = logits.log_softmax(-1)\n"
        "return -p[:, 1:].gather(-1, ids[:, 1:, None]).mean().item()": "at the token itself",
        "p = logits.log_softmax(-1)\n"
        "return -p[:, :-1].gather(-1, ids[:, 1:, None]).mean().item()": "first position predicts",
        "p = logits.log_softmax(-1)\n"
        "return p[:, 1:-1].gather(-1, ids[:, 2:, None]).mean().item()": "sign is turned",
        "p = logits.log_softmax(-1)\n"
        "return -p[:, 1:-1].gather(-1, ids[:, 2:, None]).sum().item()": "that is a sum",
        "p = logits[:, 1:-1].softmax(-1).gather(-1, ids[:, 2:, None])\n"
        "return -p.mean().log().item()": "log of a mean",
        "return -logits[:, 1:-1].gather(-1, ids[:, 2:, None]).mean().item()": "raw logits",
        "return -logits[:, 1:-1].softmax(-1).gather(-1, ids[:, 2:, None]).mean().item()": (
            "take their logs"
        ),
        "p = logits[:, 1:-1].softmax(-1).log_softmax(-1)\n"
        "return -p.gather(-1, ids[:, 2:, None]).mean().item()": "softmax of a softmax",
        "p = logits[:, 1:-2].log_softmax(-1)\n"
        "return -p.gather(-1, ids[:, 3:, None]).mean().item()": "token after the next one",
    },
    "two_by_two": {
        "return pd.Series(lead > 0).groupby([attractor, subject]).mean().unstack()": "are swapped",
        "return pd.Series(lead).groupby([subject, attractor]).mean().unstack()": "the mean lead",
        "return pd.Series(lead > 0).groupby([subject, attractor]).sum().unstack()": "not a share",
        "return pd.Series(lead < 0).groupby([subject, attractor]).mean().unstack()": "are wrong",
        "table = pd.Series(lead > 0).groupby([subject, attractor]).mean().unstack()\n"
        "return table.loc[['sg', 'pl'], ['sg', 'pl']].to_numpy()": ("an array has no names"),
        "return pd.Series(lead > 0).groupby([subject, attractor]).mean()": "makes a table",
        "return pd.Series(lead >= 0).groupby([subject, attractor]).mean().unstack()": (
            "exactly 0 is not right: it"
        ),
        "right = pd.Series((lead > 0) + 0.5 * (lead == 0))\n"
        "return right.groupby([subject, attractor]).mean().unstack()": ("not half right"),
        "lead[lead < 0] = 0\n"
        "return pd.Series(lead > 0).groupby([subject, attractor]).mean().unstack()": (
            "you changed lead itself; work on a copy, lead.copy()"
        ),
    },
    "similarity_matrix": {
        "unit = torch.nn.functional.normalize(x[:, mask.bool()], dim=-1)\n"
        "return torch.einsum('atd,btd->ab', unit, unit) / unit.shape[1]": "first token is kept",
        "unit = torch.nn.functional.normalize(x[:, :, 1:].flatten(1, 2), dim=-1)\n"
        "return torch.einsum('atd,btd->ab', unit, unit) / unit.shape[1]": "padding is kept",
        "keep = mask.bool()\nkeep[:, 0] = False\n"
        "unit = torch.nn.functional.normalize(x[:, keep].mean(1), dim=-1)\n"
        "return unit @ unit.T": "mean was taken before the cosine",
        "keep = mask.bool()\nkeep[:, 0] = False\nrows = x[:, keep]\n"
        "return torch.einsum('atd,btd->ab', rows, rows) / rows.shape[1]": "divide by both lengths",
        "keep = mask.bool()\n"
        "keep[:, 0] = False\n"
        "keep[:, -1] = False\n"
        "unit = torch.nn.functional.normalize(x[:, keep], dim=-1)\n"
        "return torch.einsum('atd,btd->ab', unit, unit) / unit.shape[1]": "last column is left out",
        "mask[:, 0] = 0\n"
        "unit = torch.nn.functional.normalize(x[:, mask.bool()], dim=-1)\n"
        "return torch.einsum('atd,btd->ab', unit, unit) / unit.shape[1]": "you changed mask itself",
    },
    "onset": {
        "good = accuracy.min(0) >= 0.75\n"
        "return int(good.argmax()) if good.any() else len(good)": "not ever after",
        "good = accuracy.mean(0) >= 0.75\n"
        "return len(good) - int(good[::-1].cumprod().sum())": "take the worst cell",
        "good = accuracy.min(0) >= 0.75\n"
        "return int(good[::-1].cumprod()[::-1].argmax())": "never must give the number",
        "good = accuracy.min(0) > 0.75\n"
        "return len(good) - int(good[::-1].cumprod().sum())": "exactly 0.75 is good enough",
        "bad = np.flatnonzero(accuracy.min(0) < 0.75)\n"
        "return int(bad[-1]) if len(bad) else 0": "the onset is the one after it",
        "good = accuracy.max(0) >= 0.75\nreturn len(good) - int(good[::-1].cumprod().sum())": (
            "that is the best cell: take the worst one"
        ),
        "good = accuracy.max(0) >= 0.75\nreturn int(good.argmax()) if good.any() else len(good)": (
            "must stay so; and that is the best cell"
        ),
        "good = accuracy.mean(0) >= 0.75\nreturn int(good.argmax()) if good.any() else len(good)": (
            "must stay so; and that is the mean"
        ),
        "good = accuracy >= 0.75\n"
        "return min(len(row) - int(row[::-1].cumprod().sum()) for row in good)": (
            "cell that comes first"
        ),
        "good = accuracy.min(0) >= 0.75\n"
        "stays = int(good[::-1].cumprod().sum())\n"
        "return len(good) - stays if stays else -1": "not -1",
        "good = accuracy.min(0) >= 0.75\n"
        "return len(good) - int(good[::-1].argmin())": "the first is 0",
    },
    "encode": {
        "return torch.relu(torch.einsum('tcd,cdh->th', x, W_enc) + b_enc)": "x was taken raw",
        "return torch.einsum('tcd,cdh->th', x * scales[:, None], W_enc) + b_enc": "ReLU is missing",
        "return torch.relu(torch.einsum('tcd,cdh->th', x * scales[:, None], W_enc)) + b_enc": (
            "inside the ReLU"
        ),
        "return torch.relu(torch.einsum('tcd,cdh->tch', x * scales[:, None], W_enc) + b_enc)": (
            "a code of its own"
        ),
        "each = torch.einsum('tcd,cdh->tch', x * scales[:, None], W_enc)\n"
        "return torch.relu(each + b_enc).sum(1)": "and b_enc counts once",
        "each = torch.einsum('tcd,cdh->tch', x * scales[:, None], W_enc)\n"
        "return torch.relu(each).sum(1) + b_enc": "over checkpoints and b_enc",
        "each = torch.einsum('tcd,cdh->tch', x * scales[:, None], W_enc)\n"
        "return torch.relu(torch.relu(each).sum(1) + b_enc)": "one ReLU is enough",
        "each = torch.einsum('tcd,cdh->tch', x * scales[:, None], W_enc)\n"
        "return torch.relu((each + b_enc).sum(1))": "added at each checkpoint",
        "x *= scales[:, None]\nreturn torch.relu(torch.einsum('tcd,cdh->th', x, W_enc) + b_enc)": (
            "you changed x itself; work on a copy, x.clone()"
        ),
    },
    "decode": {
        "return torch.einsum('th,hcd->tcd', f, W_dec) + b_dec": "in scaled space: divide",
        "return (torch.einsum('th,hcd->tcd', f, W_dec) + b_dec) * scales[:, None]": "way back",
        "return torch.einsum('th,hcd->tcd', f, W_dec) / scales[:, None] + b_dec": "you divide",
        "return torch.einsum('th,hcd->tcd', f, W_dec) / scales[:, None]": "b_dec is missing",
    },
    "batch_topk": {
        "sizes = f * norms\n"
        "return f * (sizes >= sizes.topk(k, dim=1).values[:, -1:])": "of each token",
        "return f * (f >= f.flatten().topk(k * len(f)).values[-1])": "compare sizes",
        "sizes = f * norms\n"
        "return f * (sizes >= sizes.flatten().topk(k).values[-1])": "k in the whole batch",
        "sizes = f * norms\n"
        "return sizes * (sizes >= sizes.flatten().topk(k * len(f)).values[-1])": "give f itself",
        "sizes = f * norms\n"
        "return f * (sizes > sizes.flatten().topk(k * len(f)).values[-1])": "compare with >=",
        "sizes = f / norms\n"
        "return f * (sizes >= sizes.flatten().topk(k * len(f)).values[-1])": "divided by the norms",
        "sizes = f * norms\n"
        "f[sizes < sizes.flatten().topk(k * len(f)).values[-1]] = 0\n"
        "return f": "you changed f itself; work on a copy, f.clone()",
    },
    "above_threshold": {
        "return f * (f > threshold)": "compare sizes",
        "return f * norms * (f * norms > threshold)": "give f itself",
        "return torch.relu(f * norms - threshold) / norms": "was taken off",
    },
    "explained_variance": {
        "return 1 - (x - rebuilt).pow(2).sum((0, 2)) / x.pow(2).sum((0, 2))": "not taken off",
        "return 1 - (x - rebuilt).pow(2).sum() / (x - x.mean(0)).pow(2).sum()": "all checkpoints",
        "each = (x - rebuilt).pow(2).sum(2) / (x - x.mean(0)).pow(2).sum(2)\n"
        "return 1 - each.mean(0)": "mean of ratios",
        "return (x - rebuilt).pow(2).sum((0, 2)) / (x - x.mean(0)).pow(2).sum((0, 2))": (
            "left unexplained"
        ),
        "return 1 - (x - rebuilt).pow(2).sum((0, 2)) / (x - x.mean()).pow(2).sum((0, 2))": (
            "is one number"
        ),
        "return 1 - (x - rebuilt).pow(2).sum((0, 2)) / (x - x.mean((0, 1))).pow(2).sum((0, 2))": (
            "one for all checkpoints: each has its own"
        ),
        "deviation = x - x.mean(-1, keepdim=True)\n"
        "return 1 - (x - rebuilt).pow(2).sum((0, 2)) / deviation.pow(2).sum((0, 2))": (
            "each token's dimensions"
        ),
        "return 1 - (x - rebuilt).pow(2).sum((0, 2)) / (x - rebuilt.mean(0)).pow(2).sum((0, 2))": (
            "not of what was rebuilt"
        ),
        "return 1 - (x - rebuilt).var(0).sum(-1) / x.var(0).sum(-1)": "error's own mean",
        "return rebuilt.var(0).sum(-1) / x.var(0).sum(-1)": "how much of it is an error",
    },
    "rel_dec": {
        "norms = W_dec.norm(dim=-1).T\nreturn norms / norms.sum(1, keepdim=True)": "the latents",
        "size = W_dec.pow(2).sum(-1).T\nreturn size / size.sum(0)": "a norm has a root",
        "norms = W_dec.norm(dim=-1)\nreturn norms / norms.sum(1, keepdim=True)": "are swapped",
    },
    "fold": {
        "return W_enc / scales[:, None, None], W_dec / scales[:, None], b_dec / scales[:, None]": (
            "W_enc went the wrong way"
        ),
        "return W_enc * scales[:, None, None], W_dec * scales[:, None], b_dec / scales[:, None]": (
            "W_dec went the wrong way"
        ),
        "return W_enc * scales[:, None, None], W_dec / scales[:, None], b_dec": "as it was",
    },
    "indirect_effect": {
        "without = x.clone()\nwithout[1:] -= f[1:, [i]] * W_dec[i]\n"
        "return m(x) - m(without)": "sign is turned",
        "return m(x - f[:, [i]] * W_dec[i]) - m(x)": "first token was changed",
        "rest = f.clone()\nrest[:, i] = 0\nwithout = rest @ W_dec\nwithout[0] = x[0]\n"
        "return m(without) - m(x)": "the error is lost",
        "without = x.clone()\nwithout[1:] -= f[1:, [i]] * W_dec[i]\n"
        "return m(without)": "take m of the clean stream off",
        "rest = f.clone()\n"
        "rest[:, i] = 0\n"
        "return m(rest @ W_dec) - m(x)": "lost, at the first token, too",
        "rest = f.clone()\n"
        "rest[:, i] = 0\n"
        "return m(rest @ W_dec) - m(f @ W_dec)": "lost in both, at the first token, too",
        "rest = f.clone()\n"
        "rest[:, i] = 0\n"
        "both = f @ W_dec, rest @ W_dec\n"
        "both[0][0], both[1][0] = x[0], x[0]\n"
        "return m(both[1]) - m(both[0])": "lost in both: subtract",
        "before = m(x)\n"
        "x[1:] -= f[1:, [i]] * W_dec[i]\n"
        "return m(x) - before": "you changed x itself; work on a copy, x.clone()",
        "without = x\n"
        "without[1:] -= f[1:, [i]] * W_dec[i]\n"
        "return m(without) - m(x)": "you changed x itself",
    },
    "attribution_patching": {
        "s = x.clone().requires_grad_()\nG = torch.autograd.grad(m(s), s)[0]\n"
        "return (f * (G @ W_dec.T))[1:].sum(0)": "sign is turned",
        "s = x.clone().requires_grad_()\nG = torch.autograd.grad(m(s), s)[0]\n"
        "return -(f * (G @ W_dec.T)).sum(0)": "first token is counted",
        "s = x.clone().requires_grad_()\nG = torch.autograd.grad(m(s), s)[0]\n"
        "return -(G @ W_dec.T)[1:].sum(0)": "f is missing",
        "s = x.clone().requires_grad_()\n"
        "G = torch.autograd.grad(m(s), s)[0]\n"
        "return (f * (G @ W_dec.T))[1:].sum(0).abs()": "these are sizes: an estimate",
        "s = x.clone().requires_grad_()\n"
        "G = torch.autograd.grad(m(s), s)[0]\n"
        "return (f * (G @ W_dec.T))[1:].abs().sum(0)": "sums of sizes",
        "made = []\n"
        "for i in range(f.shape[1]):\n"
        "    without = x.clone()\n"
        "    without[1:] -= f[1:, [i]] * W_dec[i]\n"
        "    made.append(m(without) - m(x))\n"
        "return torch.stack(made)": "effects themselves",
    },
    "rel_ie": {
        "size = np.abs(per_pair).mean(1)\ntotal = size.sum(0)\n"
        "return size / np.where(total > 0, total, np.nan)": "absolute value came before the mean",
        "size = np.abs(per_pair.mean(1))\ntotal = size.sum(1, keepdims=True)\n"
        "return size / np.where(total > 0, total, np.nan)": "not over the latents",
        "size = np.abs(per_pair.mean(1))\ntotal = size.sum(0)\n"
        "return size / np.where(total > 0, total, 1)": "NaN, and not 0",
        "ie = per_pair.mean(1)\ntotal = ie.sum(0)\n"
        "return ie / np.where(total != 0, total, np.nan)": "these have signs",
    },
    "feature_class": {
        "if shares.max() >= 0.7:\n    return 'specific'\n"
        "return 'shared' if (shares >= 0.3).sum() >= 2 else 'other'": "exactly 0.7",
        "if shares.max() > 0.7:\n    return 'specific'\nreturn 'shared'": "sharing takes two",
        "if shares.max() > 0.7:\n    return 'specific'\n"
        "return 'shared' if (shares > 0.3).sum() >= 2 else 'other'": "exactly 0.3 counts",
        "return 'specific' if shares.max() > 0.5 else 'shared'": "largest share alone",
    },
    "factorial": {
        "e = ie\ns, t = np.array([[-1], [1]]), np.array([[-1, 1]])\n"
        "return e.mean(), (e * s).mean(), (e * t).mean(), (e * s * t).mean()": "turn it first",
        "e = ie * np.array([[-1], [1]])\n"
        "return (e.mean(), e[1].mean() - e[0].mean(), e[:, 1].mean() - e[:, 0].mean(),\n"
        "        (e[1, 1] - e[1, 0] - e[0, 1] + e[0, 0]) / 2)": "whole differences",
        "s, t = np.array([[-1], [1]]), np.array([[-1, 1]])\ne = ie * s\n"
        "return e.mean(), (e * t).mean(), (e * s).mean(), (e * s * t).mean()": "are swapped",
        "s, t = np.array([[-1], [1]]), np.array([[-1, 1]])\ne = ie * s\n"
        "return e.sum(), (e * s).sum(), (e * t).sum(), (e * s * t).sum()": "a mean over the four",
        "s, t = np.array([[1], [-1]]), np.array([[1, -1]])\n"
        "e = ie * s\n"
        "return e.mean(), (e * s).mean(), (e * t).mean(), (e * s * t).mean()": (
            "as well as where the effect is turned"
        ),
        "s, t = np.array([[1], [-1]]), np.array([[1, -1]])\n"
        "e = -ie * s\n"
        "return e.mean(), (e * s).mean(), (e * t).mean(), (e * s * t).mean()": "in s and t, too",
        "e = ie * np.array([[-1], [1]])\n"
        "subject, attractor = e[1].mean() - e[0].mean(), e[:, 1].mean() - e[:, 0].mean()\n"
        "both = e[1, 1] - e[1, 0] - e[0, 1] + e[0, 0]\n"
        "return e.mean(), subject / 2, attractor / 2, both": "the last one is a mean",
        "e = ie * np.array([[-1], [1]])\n"
        "subject, attractor = e[1].mean() - e[0].mean(), e[:, 1].mean() - e[:, 0].mean()\n"
        "both = e[1, 1] - e[1, 0] - e[0, 1] + e[0, 0]\n"
        "return e.mean(), subject, attractor, both": "the last is one of all four cells",
        "s, t = np.array([[-1], [1]]), np.array([[-1, 1]])\n"
        "e = ie * s\n"
        "return e.sum() / 2, (e * s).sum() / 2, (e * t).sum() / 2, (e * s * t).sum() / 2": (
            "halves of sums"
        ),
        "e = ie * np.array([[-1], [1]])\n"
        "subject, attractor = e[1].mean() - e[0].mean(), e[:, 1].mean() - e[:, 0].mean()\n"
        "both = e[1, 1] - e[1, 0] - e[0, 1] + e[0, 0]\n"
        "return e.mean(), subject / 4, attractor / 4, both / 8": "halved once too often",
        "s, t = np.array([[-1], [1]]), np.array([[-1, 1]])\n"
        "e = ie * s\n"
        "return (e * s).mean(), (e * t).mean(), (e * s * t).mean()": "the mean is missing",
    },
    "scales_of": {
        "return x.shape[-1] ** 0.5 / x.mean(0).norm(dim=-1)": "before the norm",
        "return x.norm(dim=-1).mean(0) / x.shape[-1] ** 0.5": "upside down",
        "return 1 / x.norm(dim=-1).mean(0)": "not 1",
        "return x.shape[-1] ** 0.5 / x.norm(dim=-1).mean()": "one factor for all",
        "return len(x) ** 0.5 / x.norm(dim=-1).mean(0)": "number of tokens: d_model",
        "return x.shape[1] ** 0.5 / x.norm(dim=-1).mean(0)": "number of checkpoints: d_model",
        "one = x.shape[-1] ** 0.5 / x.norm(dim=-1).mean()\n"
        "return one.expand(x.shape[1])": "one factor for all, over and over",
        "return x.shape[-1] ** 0.5 / x.flatten(1).norm(dim=1).mean()": "all checkpoints together",
    },
    "ce_recovered": {
        "return (rebuilt - clean) / (zeros - clean)": "share that is lost",
        "return clean / rebuilt": "cross-entropy of 0",
        "return (zeros - rebuilt) / zeros": "all that there is to lose",
    },
    "pca_explained": {
        "V = torch.linalg.svd(seen, full_matrices=False)[2][:rank]\n"
        "rebuilt = probe @ V.T @ V\n"
        "return 1 - (probe - rebuilt).pow(2).sum() / (probe - probe.mean(0)).pow(2).sum()": (
            "mean was not taken off"
        ),
        "mean = probe.mean(0)\n"
        "V = torch.linalg.svd(probe - mean, full_matrices=False)[2][:rank]\n"
        "rebuilt = (probe - mean) @ V.T @ V + mean\n"
        "return 1 - (probe - rebuilt).pow(2).sum() / (probe - mean).pow(2).sum()": (
            "fitted on the text that they are tested on"
        ),
        "mean = seen.mean(0)\n"
        "V = torch.linalg.svd(seen - mean, full_matrices=False)[2][-rank:]\n"
        "rebuilt = (probe - mean) @ V.T @ V + mean\n"
        "return 1 - (probe - rebuilt).pow(2).sum() / (probe - probe.mean(0)).pow(2).sum()": (
            "last directions"
        ),
        "mean = seen.mean(0)\n"
        "V = torch.pca_lowrank(seen, q=rank)[2].T\n"
        "rebuilt = (probe - mean) @ V.T @ V + mean\n"
        "return 1 - (probe - rebuilt).pow(2).sum() / (probe - probe.mean(0)).pow(2).sum()": (
            "pca_lowrank is approximate"
        ),
        "mean = seen.mean(0)\n"
        "V = torch.linalg.svd(seen - mean, full_matrices=False)[2][:rank]\n"
        "rebuilt = (probe - mean) @ V.T @ V + mean\n"
        "return 1 - (probe - rebuilt).pow(2).sum() / (probe - mean).pow(2).sum()": (
            "not from that of seen"
        ),
        "mean = seen.mean(0)\n"
        "V = torch.linalg.svd(seen - mean, full_matrices=False)[2][:rank]\n"
        "own = probe.mean(0)\n"
        "rebuilt = (probe - own) @ V.T @ V + own\n"
        "return 1 - (probe - rebuilt).pow(2).sum() / (probe - probe.mean(0)).pow(2).sum()": (
            "centred by its own mean"
        ),
        "mean = seen.mean(0)\n"
        "V = torch.linalg.svd(seen - mean, full_matrices=False)[2][:rank]\n"
        "rebuilt = (probe - mean) @ V.T @ V\n"
        "return 1 - (probe - rebuilt).pow(2).sum() / (probe - probe.mean(0)).pow(2).sum()": (
            "must be added again"
        ),
    },
    "null_bar": {
        "return np.quantile(np.abs(null), 0.95, axis=1)": "leave them out",
        "return np.quantile(null[:, null.any(0)], 0.95, axis=1)": "before the percentile",
        "return np.quantile(np.abs(null[:, null.any(0)]), 0.95)": "one bar for all",
        "return np.abs(null).max(1)": "largest one",
        "size = np.abs(null[:, null.any(0)])\n"
        "return np.percentile(size, 0.95, axis=1)": "counts from 0 to 100",
        "size = np.abs(null[:, null.any(0)])\n"
        "return np.sort(size, axis=1)[:, int(0.95 * size.shape[1])]": "one of the sizes",
        "return np.array([np.quantile(np.abs(row[row != 0]), 0.95) for row in null])": (
            "at this checkpoint alone"
        ),
        "return np.quantile(np.abs(null[:, null.all(0)]), 0.95, axis=1)": "not null.all",
    },
    "beyond_the_parts": {
        "def effect(features):\n    without = x.clone()\n"
        "    without[1:] -= f[1:, features] @ W_dec[features]\n"
        "    return float(m(without) - m(x))\n"
        "return sum(effect([i]) for i in group) - effect(group)": "sign is turned",
        "without = x - f[:, group] @ W_dec[group]\n"
        "alone = [m(x - f[:, [i]] @ W_dec[[i]]) - m(x) for i in group]\n"
        "return float(m(without) - m(x) - sum(alone))": "first token was changed",
        "without = x.clone()\nwithout[1:] -= f[1:, group] @ W_dec[group]\n"
        "return float(m(without) - m(x))": "take the single ones off",
    },
    "bootstrap_interval": {
        "n = len(values)\nmeans = values[rng.integers(n, size=(10_000, n))].mean(1)\n"
        "return np.quantile(means, [0.025, 0.975])": "drawn one by one",
        "return np.quantile(values, [0.025, 0.975])": "where 95 % of the values lie",
        "names, of = np.unique(groups, return_inverse=True)\n"
        "total, count = np.bincount(of, weights=values), np.bincount(of)\n"
        "picked = rng.integers(len(names), size=(10_000, len(names)))\n"
        "means = total[picked].sum(1) / count[picked].sum(1)\n"
        "return np.quantile(means, [0.05, 0.95])": "leaves 10 % outside",
        "means = np.array([rng.permutation(values).mean() for _ in range(400)])\n"
        "return np.quantile(means, [0.025, 0.975])": "draw with replacement",
    },
    "shapley": {
        "return np.array([m_without([i]) - m_without([]) for i in players])": "taken away alone",
        "return np.array([m_without(players) - m_without([j for j in players if j != i])\n"
        "                 for i in players])": "taken away last",
    },
    "integrated_gradients": {
        "stream = x.clone().requires_grad_()\n"
        "gradient = torch.autograd.grad(m(stream), stream)[0]\n"
        "return -(f * (gradient @ W_dec.T))[1:].sum(0)": "clean stream alone"
    },
    "error_effect": {
        "return ((x - b_dec - f @ W_dec) * gradient)[1:].sum()": "sign is turned",
        "return -((x - b_dec - f @ W_dec) * gradient).sum()": "first token is counted",
        "return -((x - f @ W_dec) * gradient)[1:].sum()": "b_dec is no error",
        "return -((x - b_dec) * gradient)[1:].sum()": "features and error",
    },
}

# name -> line of the solution, what stands there instead, what the check says
CHANGED = {
    "training_step": [
        ("optimiser.zero_grad()\n", "", "pile up"),
        ("optimiser.step()\n", "", "did not move"),
        ("target = x * scales[:, None]", "target = x", "not raw"),
        (
            ".topk(k * len(x)).values[-1])",
            ".topk(sizes.numel()).values[-1])",
            "BatchTopK is missing",
        ),
        (".sum((1, 2)).mean()", ".mean()", "a mean over tokens"),
        (
            "sizes.flatten().topk(k * len(x)).values[-1]",
            "sizes.topk(k).values[:, -1:]",
            "each token",
        ),
        ("target - rebuilt", "x - rebuilt / scales[:, None]", "activations; the loss is in scaled"),
        ("target - rebuilt", "target - rebuilt / scales[:, None]", "and x~ is scaled"),
        ("target - rebuilt", "x - rebuilt", "as what is encoded is"),
        ('->th", target,', '->th", target * scales[:, None],', "x was scaled twice"),
        (
            "target = x * scales[:, None]",
            "x *= scales[:, None]\ntarget = x",
            "you changed x itself; work on a copy, x.clone",
        ),
        ("W_dec.norm(dim=-1).sum(1)", "W_dec.flatten(1).norm(dim=1)", "not one norm over all"),
        (" * W_dec.norm(dim=-1).sum(1)", "", "compare sizes, f_i u_i"),
        (".sum((1, 2)).mean()", ".sum()", "sum over tokens, too"),
        (".sum((1, 2)).mean()", ".sum(2).mean()", "and not their mean"),
    ],
    "shapley": [
        ("after - before", "before - after", "sign is turned"),
        ("credit[player] / n_orders", "credit[player]", "take the mean"),
    ],
    "integrated_gradients": [
        ("end = b_dec.expand_as(x).clone()", "end = torch.zeros_like(x)", "the line ends at 0"),
        ("end[0] = x[0]\n", "", "the first token moves along"),
        ("[1:].sum(0)", ".sum(0)", "first token is counted"),
        ("return -(f", "return (f", "sign is turned"),
    ],
}
CHANGED["own_task"] = [
    (
        '"right": f" {run}", "wrong": f" {runs}"',
        '"right": f" {runs}", "wrong": f" {run}"',
        "one half",
    ),
    ('"cat", "cats"', '"unicorn", "unicorns"', "get_vocab"),
    ('"right": f" {runs}"', '"right": runs', "blank before them"),
    ("return rows", "return rows[:8]", "pairs multiply"),
    ('usually"', 'usually "', "no blank ends a prefix"),
    ('f"The {one}', 'f"<|endoftext|>The {one}', "is no word"),
    ('f"The {one} usually', 'f"The {one}  usually', "one blank between two words"),
    ('f"The {one}', 'f"{one}', "not at the beginning of a sentence"),
    ("{one} usually", "{many} usually", "the same prefix has both answers right"),
]
for name, changes in CHANGED.items():
    solution = tool().solution(EXERCISES[name])
    for line, instead, told in changes:
        assert line in solution, line
        WRONG.setdefault(name, {})[solution.replace(line, instead)] = told


def with_lines(name: str, lines: str) -> str:
    """An exercise's cell with other lines in place of the solution."""

    def put(found: re.Match) -> str:
        return "".join(f"{found['indent']}{line}\n" for line in lines.splitlines())

    return tool().SOLUTION.sub(put, EXERCISES[name] + "\n")


def test_every_exercise_has_a_check_and_wrong_answers():
    assert len(EXERCISES) >= 30
    written = {
        name
        for name, member in inspect.getmembers(checks, inspect.isfunction)
        if not name.startswith("_") and member.__module__ == checks.__name__
    }
    assert written == set(EXERCISES) == set(WRONG)
    assert min(len(answers) for answers in WRONG.values()) >= 2


@pytest.mark.parametrize("name", EXERCISES)
def test_the_solution_passes(name, capsys):
    student = defined(tool().completed(EXERCISES[name]), name)
    for seed in (*SEEDS, None):
        check(name, student, seed)
    assert capsys.readouterr().out == f"passed: {name}\n" * (len(SEEDS) + 1)


@pytest.mark.parametrize("name", EXERCISES)
def test_the_stub_says_what_to_write(name, capsys):
    student = defined(tool().stubbed(EXERCISES[name]), name)
    told = tool().SOLUTION.search(EXERCISES[name] + "\n")["told"]
    with pytest.raises(NotImplementedError, match=re.escape(told)):
        check(name, student)
    assert "passed" not in capsys.readouterr().out
    assert len(told.split()) >= 5


@pytest.mark.parametrize(
    ("name", "lines", "told"),
    [(name, lines, told) for name, answers in WRONG.items() for lines, told in answers.items()],
)
def test_a_wrong_answer_is_named(name, lines, told, capsys):
    student = defined(with_lines(name, lines), name)
    for seed in SEEDS:
        with pytest.raises(checks.CheckFailed, match=told) as caught:
            check(name, student, seed)
        message = str(caught.value)
        assert "expected:" in message and "came:" in message and "likely:" in message
        assert f"seed={seed}" in message
        assert caught.value._render_traceback_() == message.splitlines()
    assert "passed" not in capsys.readouterr().out


@pytest.mark.parametrize("name", EXERCISES)
def test_nothing_and_nonsense_are_refused(name):
    """A function that ends without return, or gives a word; what is no function at all."""
    with pytest.raises(checks.CheckFailed, match=r"None|nothing"):
        check(name, lambda *arguments: None)
    with pytest.raises(checks.CheckFailed, match="expected:"):
        check(name, lambda *arguments: "seven")
    with pytest.raises(TypeError, match="takes the function itself"):
        check(name, 7)


def test_inputs_differ_from_call_to_call_and_come_back_with_the_seed():
    seen = []

    def encode(x, *weights):
        seen.append(x.flatten()[:3].tolist())
        raise RuntimeError("mine")

    for seed in (None, None, 5, 5):
        with pytest.raises(RuntimeError, match="mine") as caught:
            checks.encode(encode, seed)
        assert re.search(r"called it with Tensor of shape .* seed=\d+", caught.value.__notes__[0])
    assert seen[0] != seen[1] and seen[2] == seen[3]


NUMBERS_ALONE = ("neighbour_rule", "ce_recovered", "own_task")  # exercises without an array


def changed(value) -> bool:
    """Change an array in place, or one in a list or tuple; whether there is one."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "U":
        value[0] = "du"
    elif isinstance(value, np.ndarray | torch.Tensor):
        value += 1
    elif isinstance(value, list) and isinstance(value[0], int):
        value.reverse()
    elif isinstance(value, list | tuple):
        return changed(value[0])
    else:
        return False
    return True


@pytest.mark.parametrize("name", EXERCISES)
def test_a_function_that_changes_its_inputs_is_refused(name):
    """Each array that a check gives, changed once the right answer is there; weights may move."""
    student = defined(tool().completed(EXERCISES[name]), name)
    found = []
    for at, argument in enumerate(inspect.signature(student).parameters):

        def spoiling(*given, at=at, argument=argument):
            made = student(*given)
            made = made.clone() if isinstance(made, torch.Tensor) else made
            if (name, argument) != ("training_step", "weights") and changed(given[at]):
                found.append(argument)
            return made

        spoiling.__signature__ = inspect.signature(student)
        before = len(found)
        try:
            check(name, spoiling, seed=1)
        except checks.CheckFailed as error:
            told = "you changed (what is in )?" + argument + " itself; work on a copy"
            assert re.search(told, str(error))
            assert "expected:" in str(error) and "came:" in str(error)
            assert len(found) == before + 1  # the first call fails, whatever the answer
        else:
            assert len(found) == before
    assert bool(found) == (name not in NUMBERS_ALONE)


def test_an_argument_without_a_name_is_counted():
    def spoil(*given):
        given[2].zero_()

    with pytest.raises(checks.CheckFailed, match=r"you changed argument 3 itself"):
        checks.decode(spoil)


def test_changing_an_input_changes_nothing_in_the_check(monkeypatch):
    """What is drawn stays as it was, though the function sets all of it to 0."""
    asked = []
    as_it_was = checks._as_it_was

    def watched(value, before):
        asked.append((value.clone(), before.clone()))
        return as_it_was(value, before)

    def decode(f, scales, W_dec, b_dec):
        for given in (f, scales, W_dec, b_dec):
            given.zero_()

    monkeypatch.setattr(checks, "_as_it_was", watched)
    with pytest.raises(checks.CheckFailed, match=r"you changed f itself; work on a copy, f.clone"):
        checks.decode(decode)
    value, before = asked[0]
    assert not value.any() and before.any()


@pytest.mark.parametrize("name", EXERCISES)
def test_the_last_line_runs_as_printed(name):
    """Pasted into a notebook it gives the same message; model and tokenizer by these names."""
    lines, told = next(iter(WRONG[name].items()))
    student = defined(with_lines(name, lines), name)
    with pytest.raises(checks.CheckFailed, match=told) as caught:
        check(name, student)
    pasted = str(caught.value).splitlines()[-1].removeprefix("  The same numbers again: ")
    names = {"checks": checks, name: student}
    if name == "from_hidden_states":
        names["model"] = model()
    if name == "own_task":
        names["tokenizer"] = load_suite("tiny").tokenizer
    with pytest.raises(checks.CheckFailed, match=told) as again:
        exec(pasted, names)
    assert str(again.value) == str(caught.value)


def test_a_table_must_be_a_data_frame():
    """A bare array is refused where all its numbers are right; rows in another order are not."""
    right = defined(tool().completed(EXERCISES["two_by_two"]), "two_by_two")
    with pytest.raises(checks.CheckFailed, match="expected: a DataFrame with rows sg, pl"):
        checks.two_by_two(lambda *given: right(*given).to_numpy())
    with pytest.raises(checks.CheckFailed, match=r"came: .*rows \[0, 1\]"):
        checks.two_by_two(lambda *given: pd.DataFrame(right(*given).to_numpy()))
    checks.two_by_two(lambda *given: right(*given).loc[["pl", "sg"], ["pl", "sg"]])


def test_what_a_check_must_draw():
    """The cases that decide: each draw has them, whatever the seed."""
    seen = []

    def noting(name):
        student = defined(tool().completed(EXERCISES[name]), name)

        def noted(*given):
            seen.append(given)
            return student(*given)

        for seed in range(10):
            check(name, noted, seed)
        drawn, seen[:] = list(seen), []
        return drawn

    for lead, subject, attractor in noting("two_by_two"):
        cells = pd.Series(lead == 0).groupby([subject, attractor]).any()
        assert len(cells) == 4 and cells.all()
    for _, mask in noting("similarity_matrix"):
        assert mask[:, -1].any() and not mask.all()
    drawn = noting("onset")
    exact = [(accuracy.min(0) == 0.75).any() for (accuracy,) in drawn]
    assert sum(exact) >= len(drawn) / 3  # the others are those in which all or none are good
    for (null,) in noting("null_bar"):
        assert ((null == 0).any(0) & (null != 0).any(0)).any() and (null == 0).all(0).any()


def test_a_task_may_rank_more_than_two_words():
    """After one prefix a word may beat one and lose to another, but not in a circle."""
    tokenizer = load_suite("tiny").tokenizer
    verbs = ("laughs", "laugh", "arrives")

    def rows(prefix, pairs):
        return [{"prefix": prefix, "right": f" {a}", "wrong": f" {b}"} for a, b in pairs]

    up = [(verbs[0], verbs[1]), (verbs[1], verbs[2]), (verbs[0], verbs[2])]
    down = [(b, a) for a, b in up]
    nouns = ["The cat", "The frog"]
    ranked = [row for noun in nouns for row in rows(noun, up) + rows(f"{noun}s", down)]
    checks.own_task(lambda: ranked, tokenizer)
    circle = [*up[:2], down[2]]
    circles = [row for noun in nouns for row in rows(noun, circle) + rows(f"{noun}s", circle)]
    with pytest.raises(checks.CheckFailed, match="both answers right"):
        checks.own_task(lambda: circles, tokenizer)
