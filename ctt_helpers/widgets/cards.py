"""Results as HTML, that still reads where a page strips colours: a checkpoint, a feature, tokens by activation."""

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.colors import to_hex

from ctt_helpers.plots import look
from ctt_helpers.plots.look import Effects, as_matrix

Promoted = pd.DataFrame | Sequence[Sequence[tuple[str, float]]]
_LEFT = 'style="text-align:left"'


def _bar(value: float, reach: float, color: str, signed: bool = False) -> str:
    """A table cell with a bar; signed bars grow left or right from the middle."""
    if not np.isfinite(value):
        return f"<td {_LEFT}>inactive</td>"
    width = 140 / (2 if signed else 1)
    length = width * min(abs(value) / reach, 1) if reach > 0 else 0
    start = (width - length if value < 0 else width) if signed else 0
    return (
        f'<td><div style="width:140px;background-color:rgba(128,128,128,0.15)"><div style="width:{length:.0f}px;'
        f'margin-left:{start:.0f}px;height:11px;background-color:{color}"></div></div></td>'
    )


def _table(header: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f"<th {_LEFT}>{cell}</th>" for cell in header)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def checkpoint_table_html(curve: pd.DataFrame, sim: pd.DataFrame, revision: str) -> str:
    """One checkpoint as HTML: its accuracy on each task and its similarity to every other checkpoint.

    Args:
        curve: what `accuracy_curve` gives: revision, tokens_seen, task, accuracy, stderr, n_pairs.
        sim: what `similarity_matrix` gives, revisions x revisions.
        revision: the checkpoint.

    Raises:
        ValueError: a column is missing, or the revision is not in the curve.
    """
    look.require_columns(curve, "revision", "tokens_seen", "task", "accuracy", "stderr", "n_pairs")
    look.require_names("checkpoint", [revision], curve["revision"].unique())
    here, colors = curve[curve["revision"] == revision], look.task_colors(list(curve["task"]))
    tasks = [
        f"<td {_LEFT}>{html.escape(str(r.task))}</td>{_bar(r.accuracy, 1, colors[r.task])}"
        f"<td>{r.accuracy:.2f} &plusmn; {r.stderr:.2f}</td><td>{r.n_pairs:,}</td>"
        for r in here.itertuples()
    ]
    text = f"<b>{html.escape(revision)}</b>: {int(here['tokens_seen'].iloc[0]):,} tokens seen"
    text += _table(("task", "accuracy (chance is 0.5)", "&plusmn; standard error", "pairs"), tasks)
    if revision not in sim.index:
        return text + "<p>No similarity was computed for this checkpoint.</p>"
    row = sim.loc[revision].combine_first(sim[revision]).reindex(sim.index)  # one triangle is enough
    others = [
        f"<td {_LEFT}>{html.escape(str(name))}</td>{_bar(value, 1, '#767676')}<td>{value:.3f}</td>"
        for name, value in row.items()
        if name != revision
    ]
    return text + _table(("checkpoint", "mean cosine similarity", ""), others)


def _scored_tokens(promoted: Promoted, i: int, name: str, most: int = 5) -> str:
    """The tokens with the highest scores on one line, those with the lowest (below 0) on the next."""
    if isinstance(promoted, pd.DataFrame):
        rows = promoted[promoted["checkpoint"] == name]
        scored = list(zip(rows["token"], rows["score"], strict=True))
    else:
        scored = list(promoted[i])
    up = sorted((p for p in scored if p[1] >= 0), key=lambda p: -p[1])[:most]
    down = sorted((p for p in scored if p[1] < 0), key=lambda p: p[1])[:most]
    lines = [", ".join(f"{html.escape(repr(t)[1:-1])} ({s:+.2f})" for t, s in side) for side in (up, down)]
    return "<br>".join(line for line in lines if line)


def feature_card_html(
    feature: int,
    ie_mean: Effects,
    rel_ie: Effects,
    decoder_norms: Effects,
    names: Sequence[str],
    examples: Sequence[Mapping] | None = None,
    promoted: Promoted | None = None,
    label: str = "",
) -> str:
    """One feature as HTML: effects, RelIE and decoder norms per checkpoint, promoted tokens, top examples.

    Args:
        feature: index of the latent.
        ie_mean, rel_ie, decoder_norms: [checkpoints, latents]; effects in logits, norms in scaled space.
        names: labels of the checkpoints.
        examples: this feature's top examples, mappings with `tokens` and `activations`.
        promoted: what `promoted_tokens` gives, or per checkpoint a list of (token, score).
        label: a few words about the feature.

    Raises:
        ValueError: a shape does not fit `names`, or the feature is not among the latents.
    """
    ie, rel, norms = (as_matrix(v, names, [feature])[:, feature] for v in (ie_mean, rel_ie, decoder_norms))
    reach, rows = np.nanmax(np.abs(ie), initial=0), []
    for i, (name, color) in enumerate(look.checkpoint_colors(names).items()):
        shade = to_hex(color)
        numbers = [f"<td>{v:{spec}}</td>" if np.isfinite(v) else "<td>&ndash;</td>"
                   for v, spec in ((ie[i], "+.3f"), (rel[i], ".2f"), (norms[i], ".3f"))]  # fmt: skip
        row = f"<td {_LEFT}><b>{html.escape(name)}</b></td>"
        row += _bar(ie[i], reach, shade, signed=True) + numbers[0] + _bar(rel[i], 1, shade) + numbers[1]
        row += _bar(norms[i], np.nanmax(norms, initial=0), shade) + numbers[2]
        if promoted is not None:
            row += f"<td {_LEFT}>{_scored_tokens(promoted, i, name)}</td>"
        rows.append(row)
    header = ["checkpoint", "indirect effect", "logits", "RelIE", "share", "decoder norm", "scaled space"]
    header += [] if promoted is None else ["tokens made likelier, and less likely (score)"]
    text = f"<h4>Feature #{feature}{': ' + html.escape(label) if label else ''}</h4>{_table(header, rows)}"
    if not examples:
        return text + "<p>No examples were collected for this feature: top_examples finds them.</p>"
    return text + "<p>Top examples, shaded by activation:</p>" + examples_html(examples)


def tokens_html(tokens: Sequence[str], activations: Sequence[float], max_activation: float | None = None) -> str:
    """Tokens in a row, shaded by activation; the strong ones are bold too, and each title gives the number.

    Args:
        tokens: decoded tokens, spaces included.
        activations: one number a token, >= 0.
        max_activation: the value of the full shade (default: the largest here).

    Raises:
        ValueError: the two differ in length.
    """
    values = [float(a) for a in activations]
    if len(tokens) != len(values):
        raise ValueError(f"There are {len(tokens)} tokens and {len(values)} activations: give one for each token.")
    top = max((v for v in values if math.isfinite(v)), default=0.0) if max_activation is None else max_activation
    spans = []
    for token, value in zip(tokens, values, strict=True):
        share = min(max(value / top, 0.0), 1.0) if top > 0 and math.isfinite(value) else 0.0
        word = html.escape(token.replace("\n", "\u21b5"))
        word = f"<b>{word}</b>" if share >= 0.5 else word
        shade = f"background-color:rgba(213,94,0,{0.75 * share:.2f})"
        spans.append(f'<span title="{value:.3f}" style="{shade}">{word}</span>')
    return f'<span style="white-space:pre-wrap;line-height:1.7">{"".join(spans)}</span>'


def examples_html(examples: Sequence[Mapping]) -> str:
    """Examples of one feature, one a row on one shade scale, each with its largest activation.

    Args:
        examples: what `top_examples` gives for a feature: mappings with `tokens` and `activations`; whatever else
            they hold is written at the row's end.
    """
    if not examples:
        return "<p>No examples.</p>"
    peaks = [max((float(a) for a in e["activations"]), default=0.0) for e in examples]
    rows = []
    for example, peak in zip(examples, peaks, strict=True):
        rest = [f"{k}: {v:.3g}" if isinstance(v, float) else f"{k}: {v}" for k, v in example.items()
                if k not in ("tokens", "activations", "value")]  # fmt: skip
        rows.append(
            f'<tr><td style="text-align:right;vertical-align:top">{peak:.2f}</td>'
            f"<td {_LEFT}>{tokens_html(example['tokens'], example['activations'], max(peaks))}</td>"
            f'<td style="text-align:left;opacity:0.7">{html.escape(", ".join(rest))}</td></tr>'
        )
    return f"<table><tr><th>max</th><th {_LEFT}>text</th><th></th></tr>{''.join(rows)}</table>"
