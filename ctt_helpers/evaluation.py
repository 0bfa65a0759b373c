"""Is the crosscoder any good? And what does a latent react to, and write?"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ctt_helpers import hooks
from ctt_helpers.activations import stacked_activations
from ctt_helpers.checkpoints import Checkpoints
from ctt_helpers.crosscoder import Crosscoder
from ctt_helpers.metrics import check_features
from ctt_helpers.runtime import progress, versions, write_json
from ctt_helpers.tasks import MinimalPairs, check_tokenizer

TOKENS_AT_ONCE = 2**14  # the codes of more fill a GPU's memory


@dataclass
class Report:
    """Figures of a crosscoder over an evaluation text, in evaluation mode. The first token of a sequence is left out.

    Attributes:
        names: labels of the checkpoints.
        l0: mean number of active latents a token.
        explained_variance: [n] 1 - sum of squared errors / sum of squared deviations from the set's mean.
        dead: share of latents silent over all `dead_tokens` tokens.
        dead_tokens: how many tokens the shares are taken over.
        ce_clean, ce_zero: [n] cross-entropy (nats a token) of the model, and with zeros in place of the layer's output.
        dce: [n] rise of the cross-entropy with the reconstruction in place of the layer's output.
        ce_recovered: [n] 1 - dce / (ce_zero - ce_clean).
        frequency: [latents] share of tokens on which each latent is active.
    """

    names: list[str]
    l0: float
    explained_variance: list[float]
    dead: float
    dead_tokens: int
    ce_clean: list[float]
    ce_zero: list[float]
    dce: list[float]
    ce_recovered: list[float]
    frequency: Float[np.ndarray, " latents"] = field(repr=False)

    @property
    def dead_mask(self) -> Bool[np.ndarray, " latents"]:
        return self.frequency == 0

    def to_frame(self) -> pd.DataFrame:
        """One row a checkpoint."""
        columns = ("explained_variance", "ce_clean", "ce_zero", "dce", "ce_recovered")
        return pd.DataFrame({"checkpoint": self.names, **{c: getattr(self, c) for c in columns}})

    def save(self, path: str | Path) -> None:
        """Write the report as JSON."""
        write_json(path, {**asdict(self), "frequency": self.frequency.tolist(), "versions": versions()})


def check_match(crosscoder: Crosscoder, ckpts: Checkpoints, pairs: MinimalPairs | None = None) -> None:
    """Raise ValueError where crosscoder, checkpoints and pairs do not belong together."""
    crosscoder.check_source(ckpts.suite.name, ckpts.revisions, ckpts.layer)
    trained_on = crosscoder.source.get("fingerprints")
    if trained_on and trained_on != ckpts.source["fingerprints"]:
        raise ValueError(
            f"This crosscoder was trained on other weights than those of {ckpts.suite.name!r} at "
            f"{', '.join(ckpts.labels)}: same names, different fingerprints. Was the suite made anew? Train again."
        )
    if pairs is not None:
        check_tokenizer(ckpts[0], pairs)


def _batches(ckpts: Checkpoints, text: Tensor, desc: str) -> Iterator[tuple[Tensor, Tensor]]:
    sequences = max(1, min(64, TOKENS_AT_ONCE // text.shape[1]))
    for ids in progress(text.split(sequences), desc):
        yield ids, stacked_activations(ckpts, ids)


@torch.no_grad()
def evaluate(crosscoder: Crosscoder, ckpts: Checkpoints, text: Int[Tensor, "sequences length"]) -> Report:
    """Sparsity, reconstruction, and what splicing the reconstruction in costs (Crosscoding Through Time, sec. 3).

    Args:
        crosscoder: trained on these checkpoints and layer; evaluated with its threshold.
        ckpts: the checkpoints.
        text: held-out token ids; at least 100,000 tokens for an honest share of dead latents.

    Raises:
        ValueError: the crosscoder comes from other checkpoints, or sequences are shorter than three tokens.
    """
    check_match(crosscoder, ckpts)
    if text.ndim != 2 or text.shape[1] < 3:
        raise ValueError(f"text must be [sequences, length >= 3] token ids; it is {tuple(text.shape)}.")
    crosscoder.eval()
    n, d = len(ckpts), ckpts.d_model
    tokens, active = 0, torch.zeros(crosscoder.n_latents, dtype=torch.float64)
    squared_error, square = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    total = torch.zeros(n, d, dtype=torch.float64)
    ce = torch.zeros(3, n, dtype=torch.float64)  # clean, spliced, zero
    few = max(1, 2**26 // (text.shape[1] * ckpts.suite.config.vocab_size))  # sequences whose logits fit into memory
    for ids, x in _batches(ckpts, text, "evaluate"):
        inner = x[:, 1:]
        f = crosscoder.encode(inner)
        rebuilt = crosscoder.decode(f)
        tokens += inner.shape[0] * inner.shape[1]
        active += (f > 0).sum((0, 1)).cpu().double()
        seen, missed = inner.cpu().double(), (inner - rebuilt).cpu().double()  # some devices have no float64
        squared_error += missed.pow(2).sum((0, 1, 3))
        square += seen.pow(2).sum((0, 1, 3))
        total += seen.sum((0, 1))
        targets = ids[:, 2:]
        for c, model in enumerate(ckpts):
            for row, replaced in enumerate((inner, rebuilt, torch.zeros_like(inner))):
                spliced = torch.cat([x[:, :1, c], replaced[:, :, c]], dim=1)
                for part, after in zip(spliced.split(few), targets.split(few), strict=True):
                    logits = hooks.logits_above(model, part)[:, 1:-1].flatten(0, 1).float()
                    after = after.flatten().to(logits.device)
                    ce[row, c] += torch.nn.functional.cross_entropy(logits, after, reduction="sum").cpu()
    deviation = square - (total**2).sum(1) / tokens
    ce /= text.shape[0] * (text.shape[1] - 2)
    fidelity = (ce[0], ce[2], ce[1] - ce[0], 1 - (ce[1] - ce[0]) / (ce[2] - ce[0]))
    explained, dead = 1 - squared_error / deviation, float((active == 0).double().mean())
    first = (ckpts.labels, float(active.sum() / tokens), explained.tolist(), dead, tokens)
    return Report(*first, *(values.tolist() for values in fidelity), frequency=(active / tokens).numpy())


@torch.no_grad()
def top_examples(
    crosscoder: Crosscoder,
    ckpts: Checkpoints,
    text: Int[Tensor, "sequences length"],
    features: int | Sequence[int],
    k: int = 6,
) -> dict[int, list[dict[str, Any]]]:
    """The sequences on which latents are most active, one place a sequence, with the tokens around it.

    Returns:
        latent -> up to `k` examples, strongest first: {"tokens": [...], "activations": [...], "value", "sequence",
        "position"}. A latent's activation is shared by all checkpoints. A latent that is never active has none.
    """
    check_match(crosscoder, ckpts)
    crosscoder.eval()
    features = np.atleast_1d(features).tolist()
    check_features(features, crosscoder.n_latents)
    peaks, places = [], []
    for _, x in _batches(ckpts, text, "examples"):
        peak, place = crosscoder.encode(x[:, 1:])[..., features].max(1)
        peaks.append(peak.cpu())
        places.append(place.cpu() + 1)
    value, where = torch.cat(peaks), torch.cat(places)
    best = value.topk(min(k, len(value)), dim=0).indices  # [k, features]
    found = {}
    for column, feature in enumerate(features):
        found[feature] = examples = []
        rows = [r for r in best[:, column].tolist() if value[r, column] > 0]
        activations = torch.zeros(len(rows), text.shape[1])
        if rows:
            activations[:, 1:] = crosscoder.encode(stacked_activations(ckpts, text[rows])[:, 1:])[..., feature].cpu()
        for r, shown in zip(rows, activations, strict=True):
            position = int(where[r, column])
            window = slice(max(0, position - 14), position + 4)
            tokens = [ckpts.tokenizer.decode([i]) for i in text[r, window].tolist()]
            example = {"tokens": tokens, "activations": shown[window].tolist(), "value": float(value[r, column])}
            examples.append(example | {"sequence": r, "position": position})
    return found


@torch.no_grad()
def promoted_tokens(crosscoder: Crosscoder, ckpts: Checkpoints, feature: int, k: int = 8) -> pd.DataFrame:
    """Tokens whose logits a latent pushes up and down most, straight through the unembedding, at each checkpoint.

    This leaves out the layers above, so it is a hint of what is written, not an effect. Scores are the raw decoder
    vector times the final norm's weight times the unembedding, minus their mean over the vocabulary.

    Returns:
        Table: checkpoint, kind ("promoted" or "suppressed"), rank, token, score.
    """
    check_match(crosscoder, ckpts)
    check_features([feature], crosscoder.n_latents)
    W_dec, rows = crosscoder.raw_decoder()[0], []
    for c, model in enumerate(ckpts):
        direction = W_dec[feature, c].to(model.device)
        weight = getattr(model.final_norm, "weight", 1.0)  # OLMo's norm has none
        scores = model.unembedding.weight.to(direction) @ (direction * weight)
        scores = scores - scores.mean()
        for kind, largest in (("promoted", True), ("suppressed", False)):
            top = scores.topk(k, largest=largest)
            for rank, (score, token) in enumerate(zip(top.values.tolist(), top.indices.tolist(), strict=True), 1):
                rows.append((model.label, kind, rank, model.tokenizer.decode([token]), score))
    return pd.DataFrame(rows, columns=["checkpoint", "kind", "rank", "token", "score"])
