"""Tokens coloured by activation, as HTML that still reads where a page strips colours."""

import html
import math
from collections.abc import Mapping, Sequence

_LEFT = 'style="text-align:left"'


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
