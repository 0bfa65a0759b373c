"""Features as pages: one HTML file each, and an index that is searched and sorted in the browser.

Each file holds all that it needs, so it opens by a double click, without server or network. What
comes from a model, a data set or a person is escaped: in pages when they are written, in the index
because its script only ever sets text.

A large dictionary is gone through in shards: of the latents outside a shard nothing is held but one
bit a token, for the question which of them fire together.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, UInt8
from matplotlib.colors import to_hex
from torch import Tensor

from ctt_helpers.arguments import checked
from ctt_helpers.behaviour import logit_differences
from ctt_helpers.crosscoder import Crosscoder
from ctt_helpers.effects import Effects, indirect_effects
from ctt_helpers.evaluation import (
    BEFORE,
    NUMBERS_AT_ONCE,
    ActivePlaces,
    active_places,
    check_text,
    examples_by_band,
    promoted_tokens,
    streams,
)
from ctt_helpers.factorial import factorial_of
from ctt_helpers.files import atomic_path, expanded, locked
from ctt_helpers.messages import progress, show_size, whole_number
from ctt_helpers.metrics import check_features, decoder_similarity, rel_dec, rel_ie, share_right
from ctt_helpers.notebook.plots import look
from ctt_helpers.notebook.widgets import read_notes, tokens_html
from ctt_helpers.pairs import MinimalPairs, short_names, twins
from ctt_helpers.uncertainty import decide, interval, rel_ie_draws, resample

if TYPE_CHECKING:
    from ctt_helpers.sources.checkpoints import Checkpoints

LIMIT = 300_000  # bytes of a feature's page: what a browser shows at once, and a mail takes along
LONGEST_TOKEN = 60  # characters; a token of a web page may be a thousand hyphens
COUNTED = 2**14  # tokens on which it is counted which latents fire together
COLUMNS = 512  # latents whose bits are unpacked at once
N_NEIGHBOURS = 6
INDEX = "index.html"
BAND_NAMES = {
    "top": "The strongest",
    "middle": "Around the median",
    "bottom": "The weakest",
    "random": "Drawn at random",
}

# ---- what is asked for, and what was written


@dataclass(frozen=True)
class Pages:
    """What `write` wrote.

    Attributes:
        folder: where.
        index: the file to open.
        pages: feature -> its file, in the order of the index.
        sizes: feature -> bytes of its file.
    """

    folder: Path
    index: Path
    pages: dict[int, Path] = field(repr=False)
    sizes: dict[int, int] = field(repr=False)

    def __str__(self) -> str:
        total = sum(self.sizes.values()) + self.index.stat().st_size
        largest = max(self.sizes.values())
        return (
            f"written: {len(self.pages)} pages and {self.index} ({show_size(total)} in all, the "
            f"largest page {show_size(largest)})"
        )


@checked
def file_name(feature: int) -> str:
    """The file of a feature's page."""
    return f"feature_{feature:05d}.html"


@checked
def write(
    folder: str | Path,
    crosscoder: Crosscoder,
    ckpts: Checkpoints,
    text: Int[Tensor, "sequences length"],
    effects: Mapping[str, Effects] | None = None,
    pairs: Mapping[str, MinimalPairs] | None = None,
    *,
    null: Mapping[str, Effects] | None = None,
    features: Sequence[int] | None = None,
    notes: Mapping[int, str] | str | Path | None = None,
    ablation: bool = True,
    k: int = 5,
    n_draws: int = 300,
    shard: int = 512,
    seed: int = 0,
) -> Pages:
    """Write a page for each feature, and an index of them.

    A page shows examples from all over the range of the feature's activations; the tokens that it
    promotes and suppresses at each checkpoint; signed IE and RelIE with 95 % intervals on each
    task; effects by cell; what its ablation alone does to the accuracy; and its neighbours: those
    that write in a similar direction, and those that fire together with it.

    Args:
        folder: made where it is missing. Pages that this function wrote, and nobody has changed
            since, are replaced; nothing else is. Each file is whole or not there, and the index
            comes last.
        crosscoder, ckpts: which features, of which checkpoints.
        text: token ids to take examples from, and the frequency (first tokens left out).
        effects: task -> its effects. The first task is the one in the index.
        pairs: task -> the pairs that the effects were taken on.
        null: task -> effects of `random_directions` on the same pairs, the bar for classes and
            labels.
        features: which get a page. None: all, the strongest on the first task first.
        notes: feature -> what somebody calls it; or a CSV file of such notes (feature, note).
        ablation: where effects are estimates, take exact ones of these features beside them (a
            pass for each feature and pair); False: leave accuracy after ablation out.
        k: examples in each band.
        n_draws: of sentences, for the intervals.
        shard: features whose activations are held at once.
        seed: of the random examples and of the intervals.

    Returns:
        `Pages`; printed, it says what was written.

    Raises:
        FileExistsError: a file that would be replaced was not written by this, or was changed.
            Nothing is written then.
        ValueError: effects without pairs, what does not belong together, a feature that does not
            exist, or a page that would be larger than 300 kB.
    """
    check_text(crosscoder, ckpts, text, least=2)
    shard = whole_number("shard", shard)
    tasks = _tasks(crosscoder, ckpts, effects or {}, pairs or {}, null or {})
    chosen = _chosen(features, crosscoder.n_latents, tasks)
    notes = read_notes(notes) if isinstance(notes, str | Path) else dict(notes or {})
    folder = expanded(folder)
    _refuse_what_is_not_ours(folder, [INDEX, *map(file_name, chosen)])
    for task in tasks:
        task.label_features(chosen, seed)
    held = _Held(ckpts, text)
    together = _Together.count(crosscoder, held, shard)
    place = {feature: at for at, feature in enumerate(chosen)}
    shares = rel_dec(crosscoder.decoder_norms())
    sizes, rows = {}, {}
    with locked(folder):
        for start in progress(range(0, len(chosen), shard), "pages"):
            some = chosen[start : start + shard]
            part = _Shard.of(crosscoder, ckpts, text, held, tasks, together, some, ablation)
            examples = examples_by_band(part.places, ckpts, text, k, seed)
            drawn = {task.name: part.draws(task, n_draws, seed) for task in tasks}
            for feature in some:
                about = (crosscoder, ckpts, tasks, part, chosen, place, shares)
                page = _Page(*about, feature, notes)
                body = page.html(examples[feature], drawn)
                sizes[feature] = _write(folder / file_name(feature), body)
                rows[feature] = page.row()
        title = _title(crosscoder, ckpts, len(chosen))
        _write(folder / INDEX, _index(title, ckpts.labels, tasks, [rows[i] for i in chosen]))
    files = {feature: folder / file_name(feature) for feature in chosen}
    return Pages(folder=folder, index=folder / INDEX, pages=files, sizes=sizes)


def _title(crosscoder: Crosscoder, ckpts: Checkpoints, n_chosen: int) -> str:
    whole = f"{crosscoder.n_latents:,} features of {ckpts.source.get('suite', 'a model')}"
    some = "" if n_chosen == crosscoder.n_latents else f"{n_chosen:,} of "
    return f"{some}{whole}, layer {ckpts.layer}"


def _chosen(features: Sequence[int] | None, n_latents: int, tasks: Sequence[_Task]) -> list[int]:
    if features is None:
        if not tasks:
            return list(range(n_latents))
        strength = np.abs(tasks[0].effects.mean).max(0)
        return np.argsort(-strength, kind="stable").tolist()
    chosen = list(dict.fromkeys(check_features(list(features), n_latents)))
    if not chosen:
        raise ValueError("features is empty: name at least one, or give None for all.")
    return chosen


# ---- tasks


@dataclass
class _Task:
    """Effects on one task, and what follows from them for all latents."""

    name: str
    short: str
    effects: Effects
    pairs: MinimalPairs
    null: Effects | None
    ratios: Float[np.ndarray, "checkpoints latents"]
    decided: pd.DataFrame
    clean: Float[np.ndarray, "checkpoints pairs"]  # logit(right) - logit(wrong)
    clusters: np.ndarray  # [pairs] the same number for the same words
    cells: dict[str, np.ndarray]  # cell -> [pairs] whether a pair is in it
    labels: dict[int, list[str]] = field(default_factory=dict)
    no_labels: str = ""  # why there are none

    @property
    def exact(self) -> bool:
        """Whether the effects are those of taking one feature away."""
        info = self.effects.info
        told = (info.get("method"), info.get("baseline"), info.get("metric"))
        return told == ("ablation", "zero", "wrong_minus_right")

    def label_features(self, features: Sequence[int], seed: int) -> None:
        """The factorial's label of each feature at each checkpoint, where the pairs have cells."""
        if not {"subject", "attractor"} <= set(self.pairs.levels):
            self.no_labels = "These pairs do not cross two nouns."
            return
        some = [i for i in features if self.effects.mean[:, i].any()]
        try:
            found = factorial_of(self.effects, self.pairs, some, seed=seed, null=self.null)
        except ValueError as error:  # too few groups fill all cells, say
            self.no_labels = str(error)
            return
        none = ["none"] * len(self.effects.names)
        self.labels = dict.fromkeys(features, none)
        self.labels |= dict(zip(some, found.label.T.tolist(), strict=True))

    def whose(self, feature: int) -> str:
        """Its class by RelIE in words."""
        row = self.decided.iloc[feature]
        told = " ".join([row["candidate"], *row["members"]])
        return f"undecided ({told})" if row["label"] == "undecided" else told


def _tasks(
    crosscoder: Crosscoder,
    ckpts: Checkpoints,
    effects: Mapping[str, Effects],
    pairs: Mapping[str, MinimalPairs],
    null: Mapping[str, Effects],
) -> list[_Task]:
    """Raises ValueError where effects, pairs and crosscoder do not belong together."""
    if missing := [name for name in effects if name not in pairs]:
        raise ValueError(
            f"There are effects on {missing[0]!r} and no pairs: give the pairs that they were "
            f"taken on, pairs={{{missing[0]!r}: ...}}."
        )
    short, tasks = short_names(list(effects)), []
    for name, own in effects.items():
        shape = (len(ckpts), len(pairs[name]), crosscoder.n_latents)
        if tuple(own.per_pair.shape) != shape:
            raise ValueError(
                f"Effects on {name!r} are {tuple(own.per_pair.shape)}, [checkpoints, pairs, "
                f"latents]; with these checkpoints, pairs and this crosscoder they must be {shape}."
            )
        clusters, of_pairs = twins(pairs[name]), pairs[name].cells
        cells = {"all pairs": np.ones(len(of_pairs), bool)}
        cells |= {cell: of_pairs == cell for cell in sorted(set(of_pairs)) if cell}
        clean = np.stack([logit_differences(c, pairs[name]).cpu().numpy() for c in ckpts])
        tasks.append(
            _Task(
                name=name,
                short=short[name],
                effects=own,
                pairs=pairs[name],
                null=null.get(name),
                ratios=rel_ie(own.mean),
                decided=decide(own, clusters=clusters, null=null.get(name)),
                clean=clean.astype(np.float64),
                clusters=clusters,
                cells=cells,
            )
        )
    return tasks


# ---- activations, read once where they fit


class _Held:
    """The raw activations of the text, gone through as often as one likes.

    They are held where they are few; else the models are run again each time.
    """

    def __init__(self, ckpts: Checkpoints, text: Int[Tensor, "sequences length"]) -> None:
        self.ckpts, self.text = ckpts, text
        numbers = text.numel() * len(ckpts) * ckpts.d_model
        self.batches = list(streams(ckpts, text)) if numbers <= NUMBERS_AT_ONCE // 4 else None

    def __iter__(self) -> Iterator[Float[Tensor, "sequences length checkpoints d_model"]]:
        return iter(streams(self.ckpts, self.text) if self.batches is None else self.batches)


@dataclass(frozen=True)
class _Together:
    """On which tokens each latent is active, a bit each.

    Attributes:
        bits: [latents, bytes], eight tokens a byte.
        n_tokens: how many tokens, the first `COUNTED` of the text at most.
    """

    bits: UInt8[np.ndarray, "latents bytes"]
    n_tokens: int

    @classmethod
    @torch.no_grad()
    def count(cls, crosscoder: Crosscoder, held: _Held, shard: int) -> _Together:
        n_latents, rows, n_tokens = crosscoder.n_latents, [], 0
        starts = range(0, n_latents, shard)
        for x in held:
            inner, bits = x[:, 1:].flatten(0, 1)[: COUNTED - n_tokens], []
            for start in starts:  # made anew each time: all together are the crosscoder once more
                part = crosscoder.part(range(start, min(start + shard, n_latents)))
                bits.append(np.packbits((part.encode(inner) > 0).T.cpu().numpy(), 1))
            # a batch is padded to whole bytes, and a padded token is nobody's
            rows.append(np.concatenate(bits))
            n_tokens += len(inner)
            if n_tokens >= COUNTED:
                break
        return cls(bits=np.concatenate(rows, 1), n_tokens=n_tokens)

    def with_all(self, features: Sequence[int]) -> dict[str, Float[np.ndarray, "some latents"]]:
        """For some latents against all: the correlation of being active, and the share of the
        tokens of the first on which the second is active, too.
        """
        mine = np.unpackbits(self.bits[list(features)], 1).astype(np.float32)
        both, of_all = [], []
        for start in range(0, len(self.bits), COLUMNS):
            theirs = np.unpackbits(self.bits[start : start + COLUMNS], 1).astype(np.float32)
            both.append(mine @ theirs.T)
            of_all.append(theirs.sum(1))
        both, a, b = np.concatenate(both, 1), mine.sum(1)[:, None], np.concatenate(of_all)
        n = self.n_tokens
        spread = np.sqrt(a * (n - a) * b * (n - b))
        covariance = n * both - a * b
        return {
            "correlation": np.divide(covariance, spread, out=np.zeros_like(both), where=spread > 0),
            "share": np.divide(both, a, out=np.zeros_like(both), where=a > 0),
        }


# ---- a shard of features


@dataclass
class _Shard:
    """What is known of some features.

    Attributes:
        column: feature -> its place in the arrays.
        places: where they are active.
        per_pair: task -> [checkpoints, pairs, features] effects.
        exact: task -> the same of an exact ablation; missing where it was not asked for.
        similar, fired: feature -> its neighbours, (feature, size).
        share: feature -> neighbour that fires with it -> share of its tokens.
    """

    column: dict[int, int]
    places: ActivePlaces
    per_pair: dict[str, np.ndarray]
    exact: dict[str, np.ndarray]
    similar: dict[int, list[tuple[int, float]]]
    fired: dict[int, list[tuple[int, float, float]]]

    @classmethod
    def of(
        cls,
        crosscoder: Crosscoder,
        ckpts: Checkpoints,
        text: Tensor,
        held: _Held,
        tasks: Sequence[_Task],
        together: _Together,
        features: list[int],
        ablation: bool,
    ) -> _Shard:
        per_pair = {task.name: _some(task.effects, features) for task in tasks}
        exact = {}
        for task in tasks:
            if task.exact:
                exact[task.name] = per_pair[task.name]
            elif ablation:
                found = indirect_effects(
                    crosscoder, ckpts, task.pairs, "ablation", features=features
                )
                exact[task.name] = _some(found, features)
        cosine = _cosines(crosscoder.W_dec.detach().cpu().numpy(), features)
        firing = together.with_all(features)
        similar, fired = {}, {}
        for row, i in enumerate(features):
            similar[i] = _largest(cosine[row], i)
            fired[i] = [
                (j, c, firing["share"][row, j]) for j, c in _largest(firing["correlation"][row], i)
            ]
        return cls(
            column={feature: column for column, feature in enumerate(features)},
            places=active_places(crosscoder, ckpts, text, features, held),
            per_pair=per_pair,
            exact=exact,
            similar=similar,
            fired=fired,
        )

    def draws(self, task: _Task, n_draws: int, seed: int) -> dict[str, np.ndarray]:
        """Intervals over sentences: IE and RelIE, [ends, checkpoints, features]."""
        draws = resample(self.per_pair[task.name], n_draws, seed, clusters=task.clusters)
        # a latent without any effect has no share of it
        ratios = rel_ie_draws(draws, inactive_below=0)
        return {"ie": np.stack(interval(draws)), "ratio": np.stack(interval(ratios))}


def _some(effects: Effects, features: list[int]) -> Float[np.ndarray, "checkpoints pairs some"]:
    index = torch.tensor(features, device=effects.per_pair.device)
    return effects.per_pair.index_select(2, index).to_dense().cpu().double().numpy()


def _cosines(W_dec: np.ndarray, features: list[int]) -> Float[np.ndarray, "some latents"]:
    """Cosines of decoder vectors with those of all, in pieces."""
    mine = W_dec[features]
    pieces = [
        decoder_similarity(mine, W_dec[start : start + COLUMNS])
        for start in range(0, len(W_dec), COLUMNS)
    ]
    return np.concatenate(pieces, 1)


def _largest(values: Float[np.ndarray, " latents"], without: int) -> list[tuple[int, float]]:
    """The latents with the largest values above 0, the latent itself left out."""
    values = values.copy()
    values[without] = 0
    few = min(N_NEIGHBOURS, len(values))
    best = np.argpartition(-values, few - 1)[:few]
    best = best[np.argsort(-values[best], kind="stable")]
    return [(int(i), float(values[i])) for i in best if values[i] > 0]


# ---- a page


@dataclass
class _Page:
    crosscoder: Crosscoder
    ckpts: Checkpoints
    tasks: Sequence[_Task]
    part: _Shard
    chosen: list[int]
    place: Mapping[int, int]  # of each chosen feature
    shares: Float[np.ndarray, "checkpoints latents"]  # RelDec
    feature: int
    notes: Mapping[int, str]

    @property
    def column(self) -> int:
        return self.part.column[self.feature]

    @property
    def frequency(self) -> float:
        return float(self.part.places.frequency[self.column])

    @property
    def rel_dec(self) -> Float[np.ndarray, " checkpoints"]:
        return self.shares[:, self.feature]

    def row(self) -> list[Any]:
        """Its row in the index, in the order of `KEYS`."""
        missing = [None] * len(self.ckpts)
        row = [self.feature, missing, missing, _rounded(self.rel_dec), "", missing]
        if self.tasks:
            task = self.tasks[0]
            row[1] = _rounded(task.effects.mean[:, self.feature])
            row[2] = _rounded(task.ratios[:, self.feature])
            row[4] = task.whose(self.feature)
            row[5] = task.labels.get(self.feature, missing)
        return [*row, float(f"{self.frequency:.3g}"), self.notes.get(self.feature, "")]

    def html(
        self,
        examples: Mapping[str, Sequence[Mapping]],
        drawn: Mapping[str, Mapping[str, np.ndarray]],
    ) -> str:
        feature, at = self.feature, self.place[self.feature]
        ways = [f'<a href="{INDEX}">all features</a>']
        for name, step in (("previous", -1), ("next", 1)):
            if 0 <= at + step < len(self.chosen):
                ways.append(f'<a href="{file_name(self.chosen[at + step])}">{name}</a>')
        note = html.escape(self.notes.get(feature, "")) or "nobody has named it yet"
        active = len(self.part.places.value[self.column])
        told = [
            f"<nav>{' · '.join(ways)}</nav><h1>Feature #{feature}</h1>",
            f'<p class="note">{note}</p>',
            f"<p>Active on {active:,} of {self.part.places.n_tokens:,} tokens "
            f"({self.frequency:.2%}). Its share of the decoder norm (RelDec): "
            + ", ".join(
                f"{html.escape(name)} {share:.2f}"
                for name, share in zip(self.ckpts.labels, self.rel_dec, strict=True)
            )
            + ".</p>",
            self._examples(examples),
            self._promoted(),
            *(self._task(task, drawn[task.name]) for task in self.tasks),
            self._neighbours(),
        ]
        page = _document(f"Feature #{feature}", "\n".join(told))
        size = len(page.encode())
        if size > LIMIT:
            raise ValueError(
                f"The page of feature {feature} has {show_size(size)}, and {show_size(LIMIT)} is "
                "the limit: take fewer examples (k), fewer tasks or fewer checkpoints."
            )
        return page

    def _examples(self, examples: Mapping[str, Sequence[Mapping]]) -> str:
        peaks = self.part.places.value[self.column]
        if not len(peaks):
            return "<h2>Examples</h2><p>It is active nowhere in this text.</p>"
        told = [
            "<h2>Examples</h2><p>Shaded by activation, on one scale. The underlined token is the "
        ]
        told.append(
            "one that was chosen; hover over any for its number. The code is shared by all "
        )
        told.append("checkpoints.</p>")
        for band, name in BAND_NAMES.items():
            told.append(f"<h3>{name}</h3>")
            lines = [_example_cells(example, float(peaks.max())) for example in examples[band]]
            none = "<p>No further places.</p>"
            told.append(_table(("activation", "text", "where"), lines) if lines else none)
        return "".join(told)

    def _promoted(self) -> str:
        table = promoted_tokens(self.crosscoder, self.ckpts, self.feature)
        rows = []
        for name, own in table.groupby("checkpoint", sort=False):
            cells = [f"<th scope=row>{html.escape(name)}</th>"]
            for kind in ("promoted", "suppressed"):
                mine = own[own["kind"] == kind]
                words = zip(mine["token"], mine["score"], strict=True)
                told = [f"<code>{_token(token)}</code> {score:+.2f}" for token, score in words]
                cells.append(f"<td>{', '.join(told)}</td>")
            rows.append("".join(cells))
        head = ("checkpoint", "makes likelier", "makes less likely")
        about = "Straight through the unembedding; the layers above are left out."
        return f"<h2>Tokens</h2><p>{about}</p>{_table(head, rows)}"

    def _task(self, task: _Task, drawn: Mapping[str, np.ndarray]) -> str:
        i, j = self.feature, self.column
        unit = html.escape(task.effects.info.get("unit", "logits"))
        labels = task.labels.get(i)
        ie, ratio = task.effects.mean[:, i], task.ratios[:, i]
        rows = []
        for c, name in enumerate(self.ckpts.labels):
            cells = [
                f"<th scope=row>{html.escape(name)}</th>",
                f"<td>{_with_ends(ie[c], drawn['ie'][:, c, j], '+.3f')}</td>",
                f"<td>{_with_ends(ratio[c], drawn['ratio'][:, c, j], '.2f')}</td>",
            ]
            if labels:
                cells.append(f"<td>{html.escape(labels[c])}</td>")
            rows.append("".join(cells))
        head = ["checkpoint", f"IE ({unit})", "RelIE", *(["it is about"] if labels else [])]
        method = html.escape(str(task.effects.info.get("method", "?")))
        return "".join(
            [
                f"<h2>{html.escape(task.short)}</h2>",
                f"<p>{html.escape(task.pairs.text[0])}<br>{len(task.pairs)} pairs, method "
                f"{method}. Class by RelIE: {html.escape(task.whose(i))}. In brackets: 95 % "
                "intervals over sentences.</p>",
                _drawing(self.ckpts.labels, ie, drawn["ie"][:, :, j], unit),
                _table(head, rows),
                f"<p class=small>{html.escape(task.no_labels)}</p>" if task.no_labels else "",
                self._cells(task),
            ]
        )

    def _cells(self, task: _Task) -> str:
        """Effects by cell, and the accuracy with and without the feature."""
        values = self.part.per_pair[task.name][:, :, self.column]
        exact = self.part.exact.get(task.name)
        rows = []
        for cell, inside in task.cells.items():
            told = [f"<th scope=row>{html.escape(cell)}</th>"]
            for c in range(len(self.ckpts)):
                told.append(f"<td>{values[c, inside].mean() + 0.0:+.3f}</td>")
                if exact is not None:
                    clean = task.clean[c, inside]
                    after = clean - exact[c, inside, self.column]
                    told.append(f"<td>{share_right(clean):.2f} → {share_right(after):.2f}</td>")
            rows.append("".join(told))
        head = ["cell"]
        for name in self.ckpts.labels:
            head += [f"IE {name}", *([] if exact is None else ["accuracy"])]
        about = f"A cell is the level of {html.escape(', '.join(task.pairs.levels) or 'nothing')}"
        if exact is not None:
            about += ". Accuracy: of the model as it is → with this feature alone taken away"
        return f"<h3>By cell</h3><p>{about}.</p>{_table(head, rows)}"

    def _neighbours(self) -> str:
        similar = [
            f"<td>{self._link(j)}</td><td>{cosine:.2f}</td><td>{self._note(j)}</td>"
            for j, cosine in self.part.similar[self.feature]
        ]
        fired = [
            f"<td>{self._link(j)}</td><td>{c:.2f}</td><td>{share:.0%}</td><td>{self._note(j)}</td>"
            for j, c, share in self.part.fired[self.feature]
        ]
        none = "<p>None.</p>"
        first = _table(("feature", "cosine", ""), similar) if similar else none
        head = ("feature", "correlation", "active on so many of its tokens", "")
        second = _table(head, fired) if fired else none
        return (
            f"<h2>Neighbours</h2><h3>They write in a similar direction</h3>{first}"
            f"<h3>They fire together</h3>{second}"
        )

    def _link(self, other: int) -> str:
        if other in self.place:
            return f'<a href="{file_name(other)}">#{other}</a>'
        return f"#{other}"

    def _note(self, other: int) -> str:
        return html.escape(self.notes.get(other, ""))


def _rounded(values: Float[np.ndarray, " n"]) -> list[float | None]:
    """Four digits of each; JSON has no NaN."""
    return [float(f"{value + 0.0:.4g}") if np.isfinite(value) else None for value in values]


def _with_ends(value: float, ends: Float[np.ndarray, " ends"], spec: str) -> str:
    if not np.isfinite(value):
        return "inactive"
    low, high = ends + 0.0
    return f"{value + 0.0:{spec}} <span class=small>[{low:{spec}}, {high:{spec}}]</span>"


def _token(token: str) -> str:
    """A token as it is told apart from others: blanks and line breaks to be seen, and short."""
    shown = repr(token)[1:-1].replace("\\'", "'")
    if len(shown) > LONGEST_TOKEN:
        shown = shown[: LONGEST_TOKEN - 1] + "…"
    return html.escape(shown).replace(" ", "␣")


def _example_cells(example: Mapping, full: float) -> str:
    """An example as cells of a row; `full` is the activation of the full shade."""
    tokens = [
        t if len(t) <= LONGEST_TOKEN else t[: LONGEST_TOKEN - 1] + "…" for t in example["tokens"]
    ]
    at = min(example["position"], BEFORE)
    text = tokens_html(tokens, example["activations"], full, marked=at)
    where = f"{example['sequence']}:{example['position']}"
    return f"<td>{example['value']:.2f}</td><td>{text}</td><td class=small>{where}</td>"


def _scroll(inside: str) -> str:
    """What is too wide is moved by itself, and the page stays as it is."""
    return f'<div class=scroll tabindex=0 role=group aria-label="table">{inside}</div>'


def _table(head: Sequence[str], rows: Sequence[str]) -> str:
    """A table of rows that are cells already."""
    names = "".join(f"<th scope=col>{html.escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return _scroll(f"<table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>")


def _drawing(
    names: Sequence[str],
    ie: Float[np.ndarray, " checkpoints"],
    ends: Float[np.ndarray, "2 checkpoints"],
    unit: str,
) -> str:
    """IE with its interval at each checkpoint, one line each, around 0."""
    reach = max(float(np.abs([*ie, *ends[0], *ends[1]]).max()), 1e-9)
    left, width, step = 110, 420, 22
    height = step * len(names) + 20

    def across(value: float) -> float:
        return left + width / 2 * (1 + value / reach)

    colors = look.checkpoint_colors(list(names))
    told = []
    parts = [f'<line class=axis x1={across(0)} y1=0 x2={across(0)} y2="{height - 18}" />']
    for c, name in enumerate(names):
        y, color = step * c + 12, to_hex(colors[name])
        low, high = across(ends[0, c]), across(ends[1, c])
        safe = html.escape(name)
        parts.append(
            f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{safe}</text>'
            f'<line x1="{low:.1f}" y1="{y}" x2="{high:.1f}" y2="{y}" stroke="currentColor" '
            f'stroke-width="3" /><circle cx="{across(ie[c]):.1f}" cy="{y}" r="5" '
            f'stroke="currentColor" fill="{color}" />'
        )
        told.append(f"{safe} {ie[c] + 0.0:+.2f}, from {ends[0, c]:+.2f} to {ends[1, c]:+.2f}")
    for value in (-reach, 0, reach):
        where = across(value)
        parts.append(
            f'<text class=small x="{where:.0f}" y="{height - 2}" text-anchor="middle">'
            f"{value + 0.0:+.2g}</text>"
        )
    alt = f"Dots with intervals: indirect effect in {unit} at each checkpoint. {'; '.join(told)}."
    return (
        f'<svg role=img viewBox="0 0 {left + width + 40} {height}" aria-label="{alt}">'
        f"<title>{alt}</title>{''.join(parts)}</svg>"
    )


# ---- the index

KEYS = ("feature", "ie", "relie", "reldec", "class", "label", "active", "note")
HEADS = {
    "feature": "feature",
    "ie": "IE",
    "relie": "RelIE",
    "reldec": "RelDec",
    "class": "class",
    "label": "about",
    "active": "active",
    "note": "annotation",
}


def _index(
    title: str, names: Sequence[str], tasks: Sequence[_Task], rows: Sequence[list[Any]]
) -> str:
    data = {
        "keys": KEYS,
        "by_checkpoint": ["ie", "relie", "reldec", "label"],
        "names": list(names),
        "rows": list(rows),
    }
    # inside a script element nothing but "<" could end it; the others are for old readers
    safe = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        safe = safe.replace(character, f"\\u{ord(character):04x}")
    about = "No effects were given."
    if tasks:
        task = tasks[0]
        about = f"Effects, RelIE, classes and labels: {html.escape(task.short)}, "
        about += f"“{html.escape(task.pairs.text[0])}”."
    heads = "".join(
        f'<th scope=col data-key="{key}"><button type=button>{HEADS[key]}</button></th>'
        for key in KEYS
    )
    options = "".join(
        f'<option value="{c}"{" selected" if c == len(names) - 1 else ""}>{html.escape(n)}</option>'
        for c, n in enumerate(names)
    )
    links = " ".join(f'<a href="{file_name(row[0])}">#{row[0]}</a>' for row in rows)
    body = f"""<h1>{html.escape(title)}</h1>
<p>{about} Press a heading to sort by it, once more to turn the order round.</p>
<p class=tools><label>search <input type=search id=query placeholder="number, class, label, words">
</label> <label>checkpoint <select id=checkpoint>{options}</select></label>
<span id=status role=status></span></p>
<div class=scroll><table id=features><thead><tr>{heads}</tr></thead><tbody></tbody></table></div>
<p><button type=button id=more>show more</button></p>
<noscript><p>Searching and sorting need JavaScript. The pages: {links}</p></noscript>
<script type="application/json" id=data>{safe}</script>
<script>{SCRIPT}</script>"""
    return _document(title, body)


SCRIPT = """"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = Object.fromEntries(data.keys.map((key, i) => [key, i]));
  const many = new Set(data.by_checkpoint);
  const query = document.getElementById("query");
  const checkpoint = document.getElementById("checkpoint");
  const status = document.getElementById("status");
  const more = document.getElementById("more");
  const body = document.querySelector("#features tbody");
  const heads = [...document.querySelectorAll("#features th")];
  const STEP = 200;
  let sorted = null, falling = true, shown = STEP;

  function value(row, key) {
    const own = row[at[key]];
    return many.has(key) ? own[Number(checkpoint.value)] : own;
  }
  function text(row, key) {
    const own = value(row, key);
    if (own === null) return "\\u2013";
    if (key === "feature") return "#" + own;
    if (key === "ie") return (own > 0 ? "+" : "") + own.toFixed(3);
    if (key === "active") return (100 * own).toPrecision(3) + "\\u00a0%";
    return typeof own === "number" ? own.toFixed(2) : own;
  }
  function wanted(row, words) {
    const line = data.keys.filter((key) => !["ie", "relie", "reldec", "active"].includes(key))
      .map((key) => text(row, key)).join(" ").toLowerCase();
    const parts = line.split(/\\W+/);
    return words.every((word) => /^#\\d+$/.test(word) ? line.split(" ")[0] === word
      : /^\\d+$/.test(word) ? parts.includes(word) : line.includes(word));
  }
  function before(a, b) {
    const x = value(a, sorted), y = value(b, sorted);
    const none = (v) => v === null || v === "";
    if (none(x) || none(y)) return none(x) - none(y);  // always last
    const order = typeof x === "number" ? x - y : x.localeCompare(y);
    return falling ? -order : order;
  }
  function draw() {
    const words = query.value.toLowerCase().split(/\\s+/).filter(Boolean);
    const rows = data.rows.filter((row) => wanted(row, words));
    if (sorted !== null) rows.sort(before);
    const lines = rows.slice(0, shown).map((row) => {
      const line = document.createElement("tr");
      for (const key of data.keys) {
        const cell = document.createElement(key === "feature" ? "th" : "td");
        if (key === "feature") {
          const link = document.createElement("a");
          link.href = "feature_" + String(row[at.feature]).padStart(5, "0") + ".html";
          link.textContent = text(row, key);
          cell.scope = "row";
          cell.append(link);
        } else {
          cell.textContent = text(row, key);
          if (key === "note") cell.className = "words";
        }
        line.append(cell);
      }
      return line;
    });
    body.replaceChildren(...lines);
    more.hidden = rows.length <= shown;
    status.textContent = rows.length + " of " + data.rows.length + " features";
  }
  for (const head of heads) {
    head.querySelector("button").addEventListener("click", () => {
      const key = head.dataset.key;
      const first = !["feature", "class", "label", "note"].includes(key);
      falling = sorted === key ? !falling : first;
      sorted = key;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      draw();
    });
  }
  query.addEventListener("input", () => { shown = STEP; draw(); });
  checkpoint.addEventListener("change", draw);
  more.addEventListener("click", () => { shown += STEP; draw(); });
  draw();
})();
"""

# ---- a document, and its file

STYLE = """
:root { color-scheme: light dark; --line: #8888; --quiet: #5a5a5a; --link: #0b57a4; }
@media (prefers-color-scheme: dark) { :root { --quiet: #b0b0b0; --link: #8ab8f0; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 780px; margin: 1em auto; padding: 0 10px; }
a { color: var(--link); }
h2 { margin: 1.6em 0 .2em; border-top: 1px solid var(--line); padding-top: .5em; }
h3 { margin: 1em 0 .2em; }
table { border-collapse: collapse; font-size: 14px; }
th, td { padding: 2px 8px; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
th button { font: inherit; font-weight: bold; border: 0; background: none; color: inherit;
  padding: 2px 0; text-align: left; cursor: pointer; text-decoration: underline; }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 1px; }
.scroll { overflow-x: auto; max-width: 100%; }
.small { color: var(--quiet); font-size: 13px; }
.note { font-size: 18px; }
.words { overflow-wrap: anywhere; min-width: 9em; }
svg { width: 100%; max-width: 570px; font-size: 13px; }
svg text { fill: currentColor; }
svg .axis { stroke: var(--quiet); }
code { font-size: 13px; }
"""


def _document(title: str, body: str) -> str:
    return (
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>\n{body}\n"
        "</body></html>\n"
    )


OURS = re.compile(rb"<!DOCTYPE html>\n<!-- ctt_helpers\.pages ([0-9a-f]{64}) -->\n")


def _write(path: Path, document: str) -> int:
    """Write a document with a checksum at its head; returns its size in bytes."""
    rest = document.encode()
    digest = hashlib.sha256(rest).hexdigest()
    content = f"<!DOCTYPE html>\n<!-- ctt_helpers.pages {digest} -->\n".encode() + rest
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return len(content)


@checked
def is_ours(path: str | Path) -> bool:
    """Whether a file is a page as `write` wrote it, unchanged; one that is not there is none."""
    if not Path(path).is_file():
        return False
    content = Path(path).read_bytes()
    found = OURS.match(content)
    if not found:
        return False
    return hashlib.sha256(content[found.end() :]).hexdigest().encode() == found[1]


def _refuse_what_is_not_ours(folder: Path, names: Sequence[str]) -> None:
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file, and is left as it is. Give a folder for pages.")
    for name in names:
        path = folder / name
        if path.exists() and not (path.is_file() and is_ours(path)):
            raise FileExistsError(
                f"{path} was not written by pages.write, or was changed since, and would be lost. "
                "Nothing was written: give another folder, or move that file away."
            )
