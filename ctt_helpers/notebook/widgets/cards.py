"""Results as HTML: a checkpoint, a feature, tokens shaded by activation.

It can still be read where a page strips colours.
"""

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.colors import to_hex

from ctt_helpers.arguments import checked
from ctt_helpers.notebook.plots import look
from ctt_helpers.notebook.plots.look import Effects, as_matrix

Promoted = pd.DataFrame | Sequence[Sequence[tuple[str, float]]]
BAR_WIDTH = 140  # pixels of a table cell with a bar
_LEFT = 'style="text-align:left"'

# ---- tables


def strip(
    value: float, reach: float, color: str, signed: bool = False, width: int = BAR_WIDTH
) -> str:
    """A bar.

    Args:
        value: the length of the bar.
        reach: the value of the longest bar.
        color: of the bar.
        signed: bars grow left or right from the middle; else to the right from the left edge.
        width: of the longest bar in pixels; of a signed one twice its length.
    """
    longest = width / 2 if signed else width
    length = longest * min(abs(value) / reach, 1) if reach > 0 else 0
    if not signed:
        start = 0
    elif value < 0:
        start = longest - length
    else:
        start = longest
    return (
        f'<div style="width:{width}px;background-color:rgba(128,128,128,0.15)">'
        f'<div style="width:{length:.0f}px;margin-left:{start:.0f}px;height:11px;'
        f'background-color:{color}"></div></div>'
    )


def bar(
    value: float, reach: float, color: str, signed: bool = False, width: int = BAR_WIDTH
) -> str:
    """A table cell with a `strip`; NaN says "inactive"."""
    if not np.isfinite(value):
        return f"<td {_LEFT}>inactive</td>"
    return f"<td>{strip(value, reach, color, signed, width)}</td>"


def table(header: Sequence[str], rows: Sequence[str]) -> str:
    """A table of rows that are already cells."""
    head = "".join(f"<th {_LEFT}>{cell}</th>" for cell in header)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    # widgets have no style for tables: columns would run together, and lines stand far apart
    return f'<table cellpadding="4" style="line-height:1.4"><tr>{head}</tr>{body}</table>'


# ---- a checkpoint


@checked
def checkpoint_table_html(curve: pd.DataFrame, sim: pd.DataFrame, revision: str) -> str:
    """One checkpoint as HTML: its accuracy on each task, its similarity to each other checkpoint.

    Args:
        curve: what `accuracy_curve` returns: revision, tokens_seen, task, accuracy, stderr,
            n_pairs. Of a curve in cells, the whole of each task.
        sim: what `similarity_matrix` returns, revisions x revisions; one triangle is enough.
        revision: the checkpoint.

    Raises:
        ValueError: a column is missing, or the revision is not in the curve.
    """
    look.require_columns(curve, "revision", "tokens_seen", "task", "accuracy", "stderr", "n_pairs")
    look.require_similarity(sim)
    look.require_names("checkpoint", [revision], curve["revision"].unique())
    if "cell" in curve:
        curve = curve[curve["cell"] == "all"]
    here = curve[curve["revision"] == revision]
    colors = look.task_colors(list(curve["task"]))
    tasks = [
        f"<td {_LEFT}>{html.escape(str(row.task))}</td>"
        f"{bar(row.accuracy, 1, colors[row.task])}"
        f"<td>{row.accuracy:.2f} &plusmn; {row.stderr:.2f}</td>"
        f"<td>{row.n_pairs:,}</td>"
        for row in here.itertuples()
    ]
    text = f"<b>{html.escape(revision)}</b>: {int(here['tokens_seen'].iloc[0]):,} tokens seen"
    left = table(("task", "accuracy (chance is 0.5)", "&plusmn; standard error", "pairs"), tasks)
    right = "<p>No similarity was computed for this checkpoint.</p>"
    if revision in sim.index:
        right = _similarity_table(sim, revision)
    # beside each other where the page is wide enough
    sides = "".join(f"<div>{side}</div>" for side in (left, right))
    return f'{text}<div style="display:flex;flex-wrap:wrap;gap:0 24px">{sides}</div>'


def _similarity_table(sim: pd.DataFrame, revision: str) -> str:
    # what one triangle lacks is in the column of the same name
    similar = sim.loc[revision].combine_first(sim[revision]).reindex(sim.index)
    others = {name: value for name, value in similar.items() if name != revision}
    # bars from the middle only where there is something to show on its left
    signed = any(value < 0 for value in others.values())
    rows = [
        f"<td {_LEFT}>{html.escape(str(name))}</td>"
        f"{bar(value, 1, look.GREY, signed=signed)}"
        f"<td>{value:.3f}</td>"
        for name, value in others.items()
    ]
    return table(("checkpoint", "mean cosine similarity", ""), rows)


# ---- a feature


CARD_BAR = 90  # pixels: a card with three bars fits a page of 800


def _scored_tokens(promoted: Promoted, i: int, name: str, most: int = 5) -> list[str]:
    """Two table cells: the tokens with the highest scores, and those with the lowest, below 0.

    Args:
        promoted: see `feature_card_html`.
        i: index of the checkpoint.
        name: label of the checkpoint.
        most: tokens in a cell.
    """
    if isinstance(promoted, pd.DataFrame):
        rows = promoted[promoted["checkpoint"] == name]
        scored = list(zip(rows["token"], rows["score"], strict=True))
    else:
        scored = list(promoted[i])
    likelier = [(token, score) for token, score in scored if score >= 0]
    less_likely = [(token, score) for token, score in scored if score < 0]
    likelier.sort(key=lambda pair: -pair[1])
    less_likely.sort(key=lambda pair: pair[1])
    cells = []
    for side in (likelier[:most], less_likely[:most]):
        # repr without its quotes: a line break in a token is written as \n
        words = [f"{html.escape(repr(token)[1:-1])} ({score:+.2f})" for token, score in side]
        cells.append(f"<td {_LEFT}>{', '.join(words)}</td>")
    return cells


def _number(value: float, spec: str) -> str:
    """A table cell with a number; a dash where there is none."""
    return f"<td>{value:{spec}}</td>" if np.isfinite(value) else "<td>&ndash;</td>"


@checked
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
    """One feature as HTML.

    The card has the effect, RelIE, decoder norm and promoted tokens at each checkpoint, and the top
    examples.

    Args:
        feature: index of the latent.
        ie_mean: [checkpoints, latents] indirect effects in logits.
        rel_ie: [checkpoints, latents] shares; NaN where the latent is inactive.
        decoder_norms: [checkpoints, latents] norms in scaled space.
        names: labels of the checkpoints.
        examples: this feature's top examples, mappings with `tokens` and `activations`; empty: it
            is never active on the text; None: nobody looked.
        promoted: what `promoted_tokens` returns, or for each checkpoint a list of (token, score);
            None: no such table.
        label: a few words about the feature.

    Raises:
        ValueError: a shape does not fit `names`, or the feature is not among the latents.
    """

    def of_feature(values: Effects) -> np.ndarray:
        return as_matrix(values, names, [feature])[:, feature]

    if isinstance(promoted, pd.DataFrame):
        told = {"checkpoint", "token"}
        look.require_columns(promoted, "checkpoint", "token", "score", words=told)
    elif promoted is not None:
        look.require_alike(names=names, promoted=promoted)
    ie = of_feature(ie_mean)
    rel = of_feature(rel_ie)
    norms = of_feature(decoder_norms)
    largest_ie = np.nanmax(np.abs(ie), initial=0)
    largest_norm = np.nanmax(norms, initial=0)
    rows = []
    for i, (name, color) in enumerate(look.checkpoint_colors(names).items()):
        shade = to_hex(color)
        cells = [
            f"<td {_LEFT}><b>{html.escape(name)}</b></td>",
            bar(ie[i], largest_ie, shade, signed=True, width=CARD_BAR),
            _number(ie[i], "+.3f"),
            bar(rel[i], 1, shade, width=CARD_BAR),
            _number(rel[i], ".2f"),
            bar(norms[i], largest_norm, shade, width=CARD_BAR),
            _number(norms[i], ".3f"),
        ]
        rows.append("".join(cells))
    header = [
        "checkpoint",
        "indirect effect",
        "logits",
        "RelIE",
        "share",
        "decoder norm",
        "scaled space",
    ]
    heading = f"Feature #{feature}"
    if label:
        heading += f": {html.escape(label)}"
    text = f"<h4>{heading}</h4>{table(header, rows)}"
    if promoted is not None:
        tokens = [
            "".join(
                [f"<td {_LEFT}><b>{html.escape(name)}</b></td>", *_scored_tokens(promoted, i, name)]
            )
            for i, name in enumerate(names)
        ]
        text += table(["checkpoint", "makes likelier (score)", "less likely"], tokens)
    if examples is None:
        return text + "<p>No examples were collected for this feature: top_examples finds them.</p>"
    if not examples:
        return text + "<p>No examples: it is active nowhere in the text that was read.</p>"
    return text + "<p>Top examples, shaded by activation:</p>" + examples_html(examples)


# ---- tokens and examples


@checked
def tokens_html(
    tokens: Sequence[str],
    activations: Sequence,
    max_activation: float | None = None,
    marked: int | None = None,
) -> str:
    """Tokens in a row, shaded by activation.

    Strong ones are bold too, and the title of each, which a browser shows on hovering, gives the
    number.

    Args:
        tokens: decoded tokens, spaces included.
        activations: [tokens] numbers of at least 0.
        max_activation: the value of the full shade; None: the largest here.
        marked: which token to underline; None: none.

    Raises:
        ValueError: the two differ in length, or an activation is no number.
    """
    try:
        values = [float(activation) for activation in activations]
    except (TypeError, ValueError) as error:
        raise ValueError(f"activations must be numbers, one a token ({error}).") from error
    if len(tokens) != len(values):
        raise ValueError(
            f"There are {len(tokens)} tokens and {len(values)} activations: give one for each "
            "token."
        )
    if max_activation is None:
        max_activation = max((value for value in values if math.isfinite(value)), default=0.0)
    spans = []
    for i, (token, value) in enumerate(zip(tokens, values, strict=True)):
        share = 0.0
        if max_activation > 0 and math.isfinite(value):
            share = min(max(value / max_activation, 0.0), 1.0)
        word = html.escape(token.replace("\n", "\u21b5"))
        if share >= 0.5:
            word = f"<b>{word}</b>"
        if i == marked:
            word = f"<u>{word}</u>"
        shade = f"background-color:rgba(213,94,0,{0.75 * share:.2f})"
        spans.append(f'<span title="{value:.3f}" style="{shade}">{word}</span>')
    return f'<span style="white-space:pre-wrap;line-height:1.7">{"".join(spans)}</span>'


@checked
def examples_html(examples: Sequence[Mapping]) -> str:
    """Examples of one feature, one per row, each with its largest activation.

    All share one scale of shades.

    Args:
        examples: what `top_examples` returns for a feature: mappings with `tokens` and
            `activations`. Whatever else they hold, but `value`, stands at the end of the row.

    Raises:
        ValueError: tokens and activations of an example differ in length.
    """
    if not examples:
        return "<p>No examples.</p>"
    line = "vertical-align:baseline"  # number and text on one line, however high the text is
    peaks = []
    for example in examples:
        peaks.append(max((float(a) for a in example["activations"]), default=0.0))
    rows = []
    for example, peak in zip(examples, peaks, strict=True):
        rest = []
        for key, value in example.items():
            if key not in ("tokens", "activations", "value"):
                shown = f"{value:.3g}" if isinstance(value, float) else f"{value}"
                rest.append(f"{key}: {shown}")
        text = tokens_html(example["tokens"], example["activations"], max(peaks))
        rows.append(
            f'<td style="text-align:right;{line}">{peak:.2f}</td>'
            f'<td style="text-align:left;{line}">{text}</td>'
            f'<td style="text-align:left;{line};opacity:0.7">{html.escape(", ".join(rest))}</td>'
        )
    return table(["max", "text", ""], rows)
