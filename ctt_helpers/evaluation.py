"""Is the crosscoder any good? And what does a latent react to, and write?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ctt_helpers import hooks
from ctt_helpers.activations import describe_text
from ctt_helpers.arguments import checked
from ctt_helpers.dictionary import Dictionary, codes, prepare, some_of
from ctt_helpers.files import versions, write_json
from ctt_helpers.memory import chunk, smaller_chunks_once
from ctt_helpers.messages import progress, whole_number
from ctt_helpers.metrics import check_features
from ctt_helpers.pairs import MinimalPairs, check_tokenizer

if TYPE_CHECKING:
    from ctt_helpers.sources.checkpoints import Checkpoints

TOKENS_AT_ONCE = 2**14  # the codes of more fill a GPU's memory
# Of so many tokens and words of the vocabulary a CPU takes logits at once. They stay in its cache:
# for their softmax they are gone through three times, which takes twice as long from memory.
TOKENS_ON_CPU, WORDS_ON_CPU = 2**9, 2**10
LOGITS_ON_GPU = 2**24  # all words of so many tokens, for it has one kernel for all of the softmax
# Activations that are held where the models do not fit into memory together, and each is loaded
# once for so many numbers.
NUMBERS_AT_ONCE = 2**28
# Below this many nats a token between the model and the model without the layer, there is nothing
# to recover, and a share of it means nothing.
CE_FLOOR = 0.05
WIDE = 4096  # dimensions above which principal components are found by random projections
# what to set where memory runs out
LESS = "Give shorter sequences (text[:, :64]), or take checkpoints with a smaller dtype."
BEFORE = 14  # tokens of an example before its place


@dataclass
class Report:
    """Figures of a crosscoder over an evaluation text, in evaluation mode, first tokens left out.

    Attributes:
        names: labels of the checkpoints.
        l0: mean number of active latents a token.
        explained_variance: [n] 1 - sum of squared errors / sum of squared deviations from the set's
            mean.
        dead: share of latents silent over all `dead_tokens` tokens.
        dead_tokens: how many tokens the shares are taken over.
        ce_clean, ce_zero: [n] cross-entropy (nats a token) of the model, and with zeros in place of
            the layer's output.
        dce: [n] rise of the cross-entropy with the reconstruction in place of the layer's output.
        ce_recovered: [n] 1 - dce / (ce_zero - ce_clean); NaN where the two differ by less than
            0.05 nats, for there is nothing to recover then.
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
        figures = {column: getattr(self, column) for column in columns}
        return pd.DataFrame({"checkpoint": self.names, **figures})

    @checked
    def save(self, path: str | Path) -> None:
        """Write the report as JSON."""
        about = {**asdict(self), "frequency": self.frequency.tolist(), "versions": versions()}
        write_json(path, about)


def check_match(
    crosscoder: Dictionary, ckpts: Checkpoints, pairs: MinimalPairs | None = None
) -> None:
    """Raise ValueError where crosscoder, checkpoints and pairs do not belong together."""
    here = {**ckpts.source, "d_model": ckpts.d_model}
    if pairs is not None:
        check_tokenizer(pairs, ckpts.tokenizer, ckpts.labels[0])
        here["begins_with"] = pairs.begins_with
    prepare(crosscoder, here)


def check_text(
    crosscoder: Dictionary, ckpts: Checkpoints, text: Int[Tensor, "sequences length"], least: int
) -> None:
    """Raise ValueError where a text is too short, or belongs to other checkpoints."""
    if text.ndim != 2 or text.shape[1] < least or not len(text):
        raise ValueError(
            f"text must be [sequences, length >= {least}] token ids; it is {tuple(text.shape)}."
        )
    first = text[:, 0].unique()
    begins_with = int(first) if len(first) == 1 else None
    here = {**ckpts.source, "d_model": ckpts.d_model, "begins_with": begins_with}
    prepare(crosscoder, here)


def _groups(
    ckpts: Checkpoints, text: Int[Tensor, "sequences length"]
) -> Iterator[list[Int[Tensor, "sequences length"]]]:
    """The text in batches, and these in groups: each checkpoint is gone through once a group."""
    length = text.shape[1]
    batches = text.split(chunk(min(64, TOKENS_AT_ONCE // length)))
    numbers = batches[0].numel() * len(ckpts) * ckpts.d_model
    at_once = 1 if ckpts.together else chunk(NUMBERS_AT_ONCE // numbers)
    for start in range(0, len(batches), at_once):
        yield list(batches[start : start + at_once])


def _read(
    ckpts: Checkpoints, group: list[Int[Tensor, "sequences length"]]
) -> list[Float[Tensor, "sequences length checkpoints d_model"]]:
    return hooks.stacked_batches(ckpts, [(ids, None) for ids in group])


# ---- the figures


@checked
@smaller_chunks_once("in evaluate", LESS)
@torch.no_grad()
def evaluate(
    crosscoder: Dictionary, ckpts: Checkpoints, text: Int[Tensor, "sequences length"]
) -> Report:
    """Sparsity, reconstruction, and what splicing the reconstruction in costs (the paper, sec. 3).

    Args:
        crosscoder: trained on these checkpoints and layer; evaluated with its threshold.
        ckpts: the checkpoints.
        text: held-out token ids; at least 100,000 tokens for an honest share of dead latents.

    Raises:
        ValueError: the crosscoder comes from other checkpoints or from text that begins
            differently, sequences are shorter than three tokens or longer than the context.
        hooks.NotFinite: a logit is NaN or infinite.
        memory.TooLittleMemory: memory ran out twice, the second time with half as much at once.
    """
    check_text(crosscoder, ckpts, text, least=3)
    n = len(ckpts)
    sums = None
    losses = {what: [[] for _ in range(n)] for what in ("clean", "spliced", "zero")}
    groups = list(_groups(ckpts, text))
    for group in progress(groups, "evaluate"):
        read = _read(ckpts, group)
        spliced = []
        for x in read:
            inner = x[:, 1:].flatten(0, 1)
            f = codes(crosscoder, inner)
            rebuilt = crosscoder.decode(f)
            sums = sums or _Sums.around(inner, crosscoder.n_latents)
            sums.add(inner, rebuilt, f)
            spliced.append(torch.cat([x[:, :1], rebuilt.view_as(x[:, 1:])], dim=1))
        for c, model in enumerate(ckpts):
            for what, streams in {"clean": read, "spliced": spliced}.items():
                for ids, x in zip(group, streams, strict=True):
                    losses[what][c].append(_cross_entropy(model, x[:, :, c], ids))
            first = torch.cat([x[:, 0, c] for x in read])
            losses["zero"][c].append(_cross_entropy_of_zero(model, first, torch.cat(group)))
    # the device is waited for here, not once a batch
    ce = {
        what: torch.stack([torch.stack(parts).sum() for parts in found]).cpu().double()
        for what, found in losses.items()
    }
    for c, summed in enumerate(torch.stack(list(ce.values())).T):
        if not summed.isfinite().all():
            hooks.check_finite(summed, ckpts[c])
    n_predicted = text.shape[0] * (text.shape[1] - 2)
    ce = {what: summed / n_predicted for what, summed in ce.items()}
    tokens = text.shape[0] * (text.shape[1] - 1)
    active = sums.active.cpu().double()
    explained = 1 - (sums.missed / sums.deviation(tokens)).cpu().double()
    dce, at_stake = ce["spliced"] - ce["clean"], ce["zero"] - ce["clean"]
    recovered = torch.where(at_stake >= CE_FLOOR, 1 - dce / at_stake, torch.nan)
    return Report(
        names=ckpts.labels,
        l0=float(active.sum() / tokens),
        explained_variance=explained.tolist(),
        dead=float((active == 0).double().mean()),
        dead_tokens=tokens,
        ce_clean=ce["clean"].tolist(),
        ce_zero=ce["zero"].tolist(),
        dce=dce.tolist(),
        ce_recovered=recovered.tolist(),
        frequency=(active / tokens).numpy(),
    )


@dataclass
class _Sums:
    """Sums over tokens, kept where the activations are, in float64 where that device has it.

    Deviations are taken from the mean of the first batch, so that few digits are lost.

    Attributes:
        near: [n, d_model] that mean.
        active: [latents] tokens on which each is active.
        missed: [n] squared errors.
        square, total: [n] and [n, d_model] squared deviations, and deviations.
    """

    near: Float[Tensor, "n d_model"]
    active: Int[Tensor, " latents"]
    missed: Float[Tensor, " n"]
    square: Float[Tensor, " n"]
    total: Float[Tensor, "n d_model"]

    @classmethod
    def around(cls, x: Float[Tensor, "tokens n d_model"], n_latents: int) -> _Sums:
        exact, near = _exact(x.device), x.mean(0)
        return cls(
            near=near,
            active=torch.zeros(n_latents, dtype=torch.long, device=x.device),
            missed=near.new_zeros(len(near), dtype=exact),
            square=near.new_zeros(len(near), dtype=exact),
            total=torch.zeros_like(near, dtype=exact),
        )

    def add(
        self,
        x: Float[Tensor, "tokens n d_model"],
        rebuilt: Float[Tensor, "tokens n d_model"],
        f: Float[Tensor, "tokens latents"],
    ) -> None:
        """Some more tokens."""
        self.active += (f > 0).sum(0)
        self.missed += (x - rebuilt).square().sum((0, 2))
        away = x - self.near
        self.square += away.square().sum((0, 2))
        self.total += away.sum(0)

    def deviation(self, tokens: int) -> Float[Tensor, " n"]:
        """Sum of squared deviations from the mean of all tokens."""
        return self.square - self.total.square().sum(1) / tokens


def _exact(device: torch.device) -> torch.dtype:
    """In which sums are kept: some devices have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _cross_entropy(
    model: hooks.HookedModel,
    x: Float[Tensor, "sequences length d_model"],
    ids: Int[Tensor, "sequences length"],
) -> Float[Tensor, ""]:
    """Summed cross-entropy (nats) of the third and later tokens, from the residual stream."""
    hidden = hooks.hidden_above(model, x[:, :-1])[:, 1:].flatten(0, 1)
    return _summed_loss(model, hidden, ids[:, 2:].reshape(-1, 1))


def _cross_entropy_of_zero(
    model: hooks.HookedModel,
    first: Float[Tensor, "sequences d_model"],
    ids: Int[Tensor, "sequences length"],
) -> Float[Tensor, ""]:
    """The same with zeros from the second position on: sequences that begin alike are alike."""
    summed = []
    for token in ids[:, 0].unique():
        alike = ids[:, 0] == token
        x = torch.zeros(1, ids.shape[1] - 1, first.shape[1], device=first.device, dtype=first.dtype)
        x[0, 0] = first[int(alike.byte().argmax())]
        hidden = hooks.hidden_above(model, x)[0, 1:]
        summed.append(_summed_loss(model, hidden, ids[alike, 2:].T))
    return torch.stack(summed).sum()


def _summed_loss(
    model: hooks.HookedModel,
    hidden: Float[Tensor, "tokens d_model"],
    targets: Int[Tensor, "tokens targets"],
) -> Float[Tensor, ""]:
    """Cross-entropy of each target of each token, added up."""
    targets = targets.to(hidden.device, non_blocking=True)
    tokens, words = logits_at_once(hidden.device, model.config.vocab_size)
    summed = []
    for part, after in zip(hidden.split(tokens), targets.split(tokens), strict=True):
        if hidden.device.type == "cpu":
            losses = losses_by_words(hooks.logits_by_words(model, part, words), after)
        else:
            logits = hooks.at_least_float32(hooks.unembed(model, part[None])[0])
            losses = -logits.log_softmax(1).gather(1, after)
        summed.append(losses.sum())
    return torch.stack(summed).sum(dtype=_exact(hidden.device))


def logits_at_once(device: torch.device, vocabulary: int) -> tuple[int, int]:
    """Of how many tokens, and how many words of the vocabulary, `evaluate` takes logits at once."""
    if device.type == "cpu":
        return chunk(TOKENS_ON_CPU), min(WORDS_ON_CPU, vocabulary)
    return chunk(LOGITS_ON_GPU // vocabulary), vocabulary


def losses_by_words(
    parts: Iterable[Float[Tensor, "tokens words"]], targets: Int[Tensor, "tokens targets"]
) -> Float[Tensor, "tokens targets"]:
    """-log softmax at the targets, of logits that come some words at a time.

    The softmax's sum is kept in units of its largest term so far.
    """
    own = torch.zeros(targets.shape, device=targets.device)
    total = torch.zeros(len(targets), 1, device=targets.device)
    largest = torch.full_like(total, torch.finfo(total.dtype).min)
    first = 0
    for part in parts:
        logits = hooks.at_least_float32(part)
        n_words = logits.shape[1]
        place = targets - first
        here = (place >= 0) & (place < n_words)
        own = torch.where(here, logits.gather(1, place.clamp(0, n_words - 1)), own)
        before, largest = largest, torch.maximum(largest, logits.amax(1, keepdim=True))
        # in place: these logits are nobody else's
        total = total * (before - largest).exp()
        total = total + logits.sub_(largest).exp_().sum(1, keepdim=True)
        first += n_words
    return total.log() + largest - own


@checked
@torch.no_grad()
def pca_baseline(
    fitted: Float[Tensor, "tokens checkpoints d_model"],
    held_out: Float[Tensor, "more_tokens checkpoints d_model"],
    rank: int,
    scales: Float[Tensor, " checkpoints"] | None = None,
) -> dict[str, Float[np.ndarray, " checkpoints"]]:
    """What fixed directions explain: the neighbour of every explained variance.

    A crosscoder writes a token with k features out of hundreds, others for each token. Principal
    components are the best that `rank` numbers can do where the directions stay the same.

    Args:
        fitted: raw activations, which the directions are fitted on.
        held_out: other raw activations, of which the shares are.
        rank: directions; take k.
        scales: `Crosscoder.scales`, which weigh the checkpoints against each other; None: all 1.

    Returns:
        Explained variance at each checkpoint, as `Report.explained_variance`: "joint", of one PCA
        over all checkpoints end to end, `rank` numbers for all of them, as in a crosscoder;
        "separate", of a PCA for each, `rank` numbers for each.

    Raises:
        ValueError: activations of other shapes, or more directions than there are dimensions.
    """
    if fitted.ndim != 3 or held_out.ndim != 3 or held_out.shape[1:] != fitted.shape[1:]:
        raise ValueError(
            f"Activations of shapes {tuple(fitted.shape)} and {tuple(held_out.shape)}: give "
            "[tokens, checkpoints, d_model] twice, of the same checkpoints."
        )
    n, d_model = fitted.shape[1:]
    if not (fitted.isfinite().all() and held_out.isfinite().all()) or not (
        len(fitted) and len(held_out)
    ):
        raise ValueError("The activations are none, or NaN or infinite.")
    if scales is not None and not (scales.shape == (n,) and (scales > 0).all()):
        raise ValueError(f"scales={scales}: give {n} numbers above 0, one a checkpoint.")
    if whole_number("rank", rank) > d_model:
        raise ValueError(f"rank={rank}: there are {d_model} directions.")
    scale = torch.ones(n) if scales is None else scales
    mean = fitted.mean(0)
    fitted = (fitted - mean) * scale.to(fitted)[:, None]
    seen = (held_out - mean) * scale.to(fitted)[:, None]
    joint = _onto_principal(fitted.flatten(1), seen.flatten(1), rank).unflatten(1, (n, d_model))
    each = [_onto_principal(fitted[:, c], seen[:, c], rank) for c in range(n)]
    deviation = (seen - seen.mean(0)).double().pow(2).sum((0, 2))
    if not (deviation > 0).all():
        raise ValueError("The held-out activations do not vary: there is nothing to explain.")

    def explained(rebuilt: Float[Tensor, "tokens n d_model"]) -> Float[np.ndarray, " n"]:
        missed = (seen - rebuilt).double().pow(2).sum((0, 2))
        return (1 - missed / deviation).cpu().numpy()

    return {"joint": explained(joint), "separate": explained(torch.stack(each, dim=1))}


def _onto_principal(
    fitted: Float[Tensor, "tokens size"], x: Float[Tensor, "more_tokens size"], rank: int
) -> Float[Tensor, "more_tokens size"]:
    """Centred rows projected onto the first principal components of others."""
    directions = _principal(fitted, rank).to(x)
    return x @ directions @ directions.T


def _principal(fitted: Float[Tensor, "tokens size"], rank: int) -> Float[Tensor, "size rank"]:
    """First principal directions of centred rows: exact, or by random projections where wide."""
    if fitted.shape[1] <= WIDE:
        covariance = (fitted.T @ fitted).cpu().double()
        if not covariance.isfinite().all():
            raise ValueError("The squares of the scaled activations are too large for floats.")
        return torch.linalg.eigh(covariance).eigenvectors[:, -rank:]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        spare = min(rank + 16, *fitted.shape)
        return torch.svd_lowrank(fitted.float(), q=spare, niter=6)[2][:, :rank]


# ---- reading a latent


@checked
@smaller_chunks_once("in top_examples", LESS)
@torch.no_grad()
def top_examples(
    crosscoder: Dictionary,
    ckpts: Checkpoints,
    text: Int[Tensor, "sequences length"],
    features: int | Sequence[int],
    k: int = 6,
) -> dict[int, list[dict[str, Any]]]:
    """The sequences on which latents are most active, one place a sequence, with the tokens around.

    Returns:
        latent -> up to `k` examples, strongest first: {"tokens": [...], "activations": [...],
        "value", "sequence", "position"}. A latent's activation is shared by all checkpoints. A
        latent that is never active has none.

    Raises:
        ValueError: a feature that does not exist, or a crosscoder or text that does not belong
            here.
    """
    check_text(crosscoder, ckpts, text, least=2)
    k = whole_number("k", k)
    features = check_features(np.atleast_1d(features).tolist(), crosscoder.n_latents)
    some = some_of(crosscoder, features)  # of the others nothing is computed
    peaks, places = [], []
    for x in streams(ckpts, text):
        peak, place = some.encode(x[:, 1:]).max(1)
        peaks.append(peak)
        places.append(place + 1)
    value, where = torch.cat(peaks).cpu(), torch.cat(places).cpu()
    best = value.topk(min(k, len(value)), dim=0).indices  # [k, features]
    found: dict[int, list[dict[str, Any]]] = {}
    for column, feature in enumerate(features):
        rows = [row for row in best[:, column].tolist() if value[row, column] > 0]
        found[feature] = examples = []
        if not rows:
            continue
        (x,) = _read(ckpts, [text[rows]])
        activations = torch.zeros(len(rows), text.shape[1])
        activations[:, 1:] = some.encode(x[:, 1:])[..., column].cpu()
        for row, shown in zip(rows, activations, strict=True):
            position = int(where[row, column])
            example = _example(ckpts, text[row], shown, row, position)
            examples.append({**example, "value": float(value[row, column])})
    return found


def _example(
    ckpts: Checkpoints,
    ids: Int[Tensor, " length"],
    activations: Float[Tensor, " length"],
    sequence: int,
    position: int,
) -> dict[str, Any]:
    """A place in the text with the tokens around it, as `top_examples` gives it."""
    window = slice(max(0, position - BEFORE), position + 4)
    return {
        "tokens": [ckpts.tokenizer.decode([i]) for i in ids[window].tolist()],
        "activations": activations[window].tolist(),
        "value": float(activations[position]),
        "sequence": sequence,
        "position": position,
    }


def streams(
    ckpts: Checkpoints, text: Int[Tensor, "sequences length"]
) -> Iterator[Float[Tensor, "sequences length checkpoints d_model"]]:
    """The raw activations of a text at all checkpoints, in batches, in its order.

    Raises:
        hooks.NotFinite: after the last batch, where a norm is not finite: so a host waits once for
            the device.
    """
    wrong = []
    for group in progress(list(_groups(ckpts, text)), "reading"):
        for x in _read(ckpts, group):
            wrong.append(hooks.norms_not_finite(x))
            yield x
    for label, of_one in zip(ckpts.labels, torch.cat(wrong).unbind(-1), strict=True):
        hooks.check_norms(of_one, label)


@dataclass(frozen=True)
class ActivePlaces:
    """Where some latents are active in a text, and how strongly; see `active_places`.

    Attributes:
        features: which latents.
        sequence, position: where, one list a latent, in the order of the text.
        value: the activations there, above 0.
        n_tokens: how many tokens were read, first tokens left out.
        text: a short fingerprint of the text.
    """

    features: list[int]
    sequence: list[Int[np.ndarray, " places"]] = field(repr=False)
    position: list[Int[np.ndarray, " places"]] = field(repr=False)
    value: list[Float[np.ndarray, " places"]] = field(repr=False)
    n_tokens: int
    text: str

    @property
    def frequency(self) -> Float[np.ndarray, " features"]:
        """Share of tokens on which each latent is active."""
        return np.array([len(value) for value in self.value]) / self.n_tokens


@checked
@smaller_chunks_once("in active_places", LESS)
@torch.no_grad()
def active_places(
    crosscoder: Dictionary,
    ckpts: Checkpoints,
    text: Int[Tensor, "sequences length"],
    features: Sequence[int],
    stream: Iterable[Float[Tensor, "sequences length checkpoints d_model"]] | None = None,
) -> ActivePlaces:
    """Every place where latents are active; of the others nothing is computed or kept.

    So a large dictionary can be gone through in parts. It takes 12 bytes a place.

    Args:
        stream: the raw activations of the text, in batches (`streams`), where they are at hand;
            None: the models are run.

    Raises:
        ValueError: a feature that does not exist, or a crosscoder or text that does not belong
            here.
    """
    check_text(crosscoder, ckpts, text, least=2)
    features = check_features(list(features), crosscoder.n_latents)
    some = some_of(crosscoder, features)
    rows, places, values, columns = [], [], [], []
    done = 0
    for x in streams(ckpts, text) if stream is None else stream:
        f = some.encode(x[:, 1:]).cpu()
        row, place, column = f.nonzero().T.int()
        values.append(f[row, place, column].numpy())
        rows.append((row + done).numpy())
        places.append((place + 1).numpy())
        columns.append(column.numpy())
        done += len(x)
    column = np.concatenate(columns)
    order = np.argsort(column, kind="stable")
    ends = np.searchsorted(column[order], np.arange(1, len(features)))

    def by_feature(parts: list[np.ndarray]) -> list[np.ndarray]:
        return np.split(np.concatenate(parts)[order], ends)

    return ActivePlaces(
        features=features,
        sequence=by_feature(rows),
        position=by_feature(places),
        value=by_feature(values),
        n_tokens=text.shape[0] * (text.shape[1] - 1),
        text=describe_text(text)["text"],
    )


BANDS = ("top", "middle", "bottom", "random")


@checked
def examples_by_band(
    places: ActivePlaces,
    ckpts: Checkpoints,
    text: Int[Tensor, "sequences length"],
    k: int = 5,
    seed: int = 0,
) -> dict[int, dict[str, list[dict[str, Any]]]]:
    """Examples from all over the range of a latent's activations, not the strongest alone.

    Of all places where the latent is active: "top" has the strongest (those of `top_examples`),
    "middle" those around the median, "bottom" the weakest, "random" some that are drawn. One place
    a sequence in each; a place that one of the first three shows is not shown again by them.

    Args:
        places: from `active_places`, of the same text.
        k: examples a band, at most.
        seed: of the draw; with it a latent has the same random examples whichever others there are.

    Returns:
        latent -> band -> examples as those of `top_examples`.
    """
    k = whole_number("k", k)
    read = text.shape[0] * (text.shape[1] - 1) if text.ndim == 2 else 0
    if read != places.n_tokens:
        raise ValueError(
            f"The places are those of a text of {places.n_tokens} tokens (first ones left out), "
            f"and this text is {tuple(text.shape)}: give the text that active_places was given."
        )
    if describe_text(text)["text"] != places.text:
        raise ValueError(
            "The places are those of another text of the same size: give the text that "
            "active_places was given."
        )
    found = {}
    for column, feature in enumerate(places.features):
        row, position = places.sequence[column], places.position[column]
        value = places.value[column]
        # equal values in the order of the text
        order = np.argsort(-value, kind="stable")
        from_median = np.argsort(np.abs(np.arange(len(order)) - len(order) // 2), kind="stable")
        drawn = np.random.default_rng([seed, feature]).permutation(len(order))
        orders = (order, order[from_median], order[::-1], drawn)
        taken: set[int] = set()
        found[feature] = bands = {}
        for band, of_band in zip(BANDS, orders, strict=True):
            left_out = set() if band == "random" else taken
            chosen = _one_a_sequence(of_band, row, left_out, k)
            taken |= set(chosen)
            bands[band] = []
            for place in chosen:
                shown = torch.zeros(text.shape[1])
                here = row == row[place]
                shown[position[here]] = torch.from_numpy(value[here])
                at = (int(row[place]), int(position[place]))
                bands[band].append(_example(ckpts, text[at[0]], shown, *at))
    return found


def _one_a_sequence(
    order: Int[np.ndarray, " places"], row: Int[np.ndarray, " places"], left_out: set[int], k: int
) -> list[int]:
    """The first k places of an order, one a sequence."""
    chosen: list[int] = []
    rows: set[int] = set()
    for place in order.tolist():
        if len(chosen) == k:
            break
        if place not in left_out and row[place] not in rows:
            rows.add(row[place])
            chosen.append(place)
    return chosen


@checked
@torch.no_grad()
def promoted_tokens(
    crosscoder: Dictionary, ckpts: Checkpoints, feature: int, k: int = 8
) -> pd.DataFrame:
    """Tokens whose logits a latent pushes up and down most, straight through the unembedding.

    This leaves out the layers above, so it is a hint of what is written, not an effect. Scores are
    the raw decoder vector (its mean over d_model taken away where the final norm does so) times the
    final norm's gain times the unembedding, minus their mean over the vocabulary.

    Returns:
        Table: checkpoint, kind ("promoted" or "suppressed"), rank, token, score.

    Raises:
        ValueError: a feature that does not exist, a crosscoder that does not belong here, or `k`
            outside 1 to the size of the vocabulary.
    """
    check_match(crosscoder, ckpts)
    (feature,) = check_features([feature], crosscoder.n_latents)
    written, rows = some_of(crosscoder, [feature]).raw_decoder()[0][0], []
    for c, model in enumerate(ckpts):
        direction = written[c].to(model.device)
        if model.norm_centres:
            direction = direction - direction.mean()
        scores = model.unembedding.weight.to(direction) @ (direction * model.norm_gain)
        scores = scores - scores.mean()
        if whole_number("k", k) > len(scores):
            raise ValueError(f"k={k}: there are {len(scores)} tokens.")
        for kind, largest in (("promoted", True), ("suppressed", False)):
            top = scores.topk(k, largest=largest)
            found = zip(top.values.tolist(), top.indices.tolist(), strict=True)
            for rank, (score, token) in enumerate(found, 1):
                rows.append(
                    {
                        "checkpoint": model.label,
                        "kind": kind,
                        "rank": rank,
                        "token": model.tokenizer.decode([token]),
                        "score": score,
                    }
                )
    return pd.DataFrame(rows, columns=["checkpoint", "kind", "rank", "token", "score"])
