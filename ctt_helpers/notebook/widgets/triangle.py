"""Shares of three checkpoints in a triangle: hover over a feature, or go to it by Tab; open it.

Every feature is an ordinary link, or a focusable dot where it has no page: nothing has to run for
that. The menu and the slider above choose colours and features.
"""

import html
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import ipywidgets
import numpy as np
from jaxtyping import Float
from matplotlib.colors import to_hex

from ctt_helpers.arguments import checked
from ctt_helpers.notebook.plots import look
from ctt_helpers.notebook.plots.look import Effects
from ctt_helpers.notebook.widgets.shown import Shown

MOST = 400  # dots drawn, the strongest: thousands could not be told apart, and would be slow
WIDTH, HEIGHT = 480, 400  # pixels
CORNERS = np.array([[50, 362], [240, 362 - 380 * 0.75**0.5], [430, 362]])  # x, y in pixels
BOUND = 0.7  # above this share a feature is specific
STYLE = """<style>
.ctt-triangle { position: relative; width: 100%; max-width: 480px; aspect-ratio: 6 / 5; }
.ctt-triangle svg { position: absolute; left: 0; top: 0; width: 100%; height: 100%; }
.ctt-triangle a, .ctt-triangle span.ctt-dot { position: absolute; border-radius: 50%;
  opacity: 0.75; transform: translate(-50%, -50%); box-sizing: border-box;
  border: 1px solid #ffffff; }
.ctt-triangle span.ctt-dot { border: 1px dashed #000000; }
.ctt-triangle a:hover, .ctt-triangle a:focus, .ctt-triangle .ctt-dot:hover,
.ctt-triangle .ctt-dot:focus { opacity: 1; z-index: 2; outline: 3px solid #000000;
  box-shadow: 0 0 0 5px #ffffff; }
.ctt-triangle .ctt-tip { display: none; position: absolute; left: 50%; bottom: 120%;
  transform: translateX(-50%); width: 190px; padding: 4px 6px; background: #ffffff;
  color: #000000; border: 1px solid #767676; font: 12px/1.35 sans-serif; text-align: left;
  pointer-events: none; }
.ctt-triangle .ctt-left .ctt-tip { left: 0; transform: none; }
.ctt-triangle .ctt-right .ctt-tip { left: auto; right: 0; transform: none; }
.ctt-triangle .ctt-high .ctt-tip { bottom: auto; top: 120%; }
.ctt-triangle :hover > .ctt-tip, .ctt-triangle :focus > .ctt-tip { display: block; }
</style>"""


@checked
def triangle_html(
    shares: Effects,
    strength: Float[np.ndarray, " latents"],
    names: Sequence[str],
    groups: Sequence[str] | None = None,
    links: Mapping[int, str] | None = None,
    labels: Mapping[int, str] | None = None,
    at_least: float = 0.0,
) -> str:
    """Features in a triangle, as HTML that works without a kernel.

    A feature of one checkpoint alone lies in its corner, one of all three in the middle. Number,
    label, shares and strength are shown on hovering and on focus; a click or Enter opens the page.

    Args:
        shares: [3, latents] RelIE or RelDec; features with NaN are left out.
        strength: [latents] what the size of a dot stands for, such as the largest |IE|.
        names: labels of the three checkpoints, in the order of training.
        groups: [latents] a word for each, by which it is coloured; None: one colour.
        links: feature -> address of its page; features without one are dots without a link.
        labels: feature -> a few words about it.
        at_least: features of less strength are left out.

    Raises:
        ValueError: other than three checkpoints, or a shape that does not fit.
    """
    shares, strength, groups = _checked(shares, strength, names, groups)
    links, labels = links or {}, labels or {}
    active = np.flatnonzero(np.isfinite(shares).all(0) & (strength >= at_least))
    active = active[np.argsort(-strength[active], kind="stable")]
    drawn = active[:MOST].tolist()  # the largest below, so that they hide no small one
    colors = _group_colors(groups[active].tolist(), names)
    largest = max(strength[active].max(initial=0), 1e-30)
    dots = []
    for i in drawn:
        x, y = CORNERS.T @ shares[:, i]
        size = 9 + 17 * (strength[i] / largest) ** 0.5
        told = [f"#{i} {labels.get(i, '')}".rstrip(), *([str(groups[i])] if groups[i] else [])]
        told += [f"{n} {share:.0%}" for n, share in zip(names, shares[:, i], strict=True)]
        told.append(f"strength {strength[i]:.2g}")
        dots.append(_dot(i, x, y, size, colors[groups[i]], told, links.get(i)))
    hidden = len(active) - len(drawn)
    more = f"; the weakest {hidden:,} of them are not drawn" if hidden else ""
    legend = _legend(groups[active].tolist(), colors)
    count = "1 feature" if len(active) == 1 else f"{len(active):,} features"
    return (
        f'{STYLE}<p>{count}{more}. {legend}</p><div class="ctt-triangle" '
        f'role="group" aria-label="Triangle of features">{_frame(names)}{"".join(dots)}</div>'
    )


def _checked(
    shares: Effects, strength: np.ndarray, names: Sequence[str], groups: Sequence[str] | None
) -> tuple[Effects, np.ndarray, np.ndarray]:
    shares = look.as_matrix(shares, names)
    if len(names) != 3:
        raise ValueError(
            f"A triangle shows three checkpoints, and here are {len(names)}: use trajectories."
        )
    strength = np.abs(np.asarray(strength, float))
    n_latents = shares.shape[1]
    groups = np.full(n_latents, "") if groups is None else np.asarray(groups).astype(str)
    for what, values in (("strength", strength), ("groups", groups)):
        if values.shape != (n_latents,):
            raise ValueError(
                f"{what} has shape {values.shape}, and there are {n_latents} latents: give one "
                "value for each."
            )
    return shares, strength, groups


def _group_colors(groups: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """The colour of each group: labels and checkpoints have theirs everywhere."""
    known = {name: to_hex(color) for name, color in look.checkpoint_colors(names).items()}
    known |= look.LABEL_COLORS | {"": look.HUES[0], "other": look.GREY, "shared": look.HUES[5]}
    rest = [group for group in dict.fromkeys(groups) if group not in known]
    known |= {group: look.HUES[i % len(look.HUES)] for i, group in enumerate(sorted(rest))}
    return {group: known[group] for group in dict.fromkeys(groups)}


def _dot(
    feature: int, x: float, y: float, size: float, color: str, told: list[str], link: str | None
) -> str:
    safe = [html.escape(part) for part in told]
    # what is told opens towards the middle, so that a narrow page does not cut it off
    sides = ["ctt-dot", "ctt-left" if x < 190 else "ctt-right" if x > WIDTH - 190 else ""]
    sides.append("ctt-high" if y < 160 else "")
    common = (
        f'class="{" ".join(filter(None, sides))}" data-feature="{feature}" '
        f'aria-label="{", ".join(safe)}" style="left:{100 * x / WIDTH:.2f}%;'
        f"top:{100 * y / HEIGHT:.2f}%;width:{size:.1f}px;height:{size:.1f}px;"
        f'background-color:{color}"'
    )
    tip = f'<span class="ctt-tip" aria-hidden="true"><b>{safe[0]}</b><br>{"<br>".join(safe[1:])}'
    if link is None:
        return f'<span {common} tabindex="0" role="img">{tip}</span></span>'
    tip += "<br><u>open its page</u></span>"
    address = html.escape(link, quote=True)
    return f'<a {common} href="{address}" target="_blank" rel="noopener">{tip}</a>'


def _frame(names: Sequence[str]) -> str:
    """The sides, the corners' names, and the lines that cut off what is specific."""
    sides = " ".join(f"{x:.1f},{y:.1f}" for x, y in CORNERS)
    parts = [f'<polygon points="{sides}" fill="none" stroke="#767676" stroke-width="1.5"/>']
    for c, (name, color) in enumerate(look.checkpoint_colors(names).items()):
        (x1, y1), (x2, y2) = BOUND * CORNERS[c] + (1 - BOUND) * np.delete(CORNERS, c, axis=0)
        x, y = CORNERS[c][0], CORNERS[c][1] + (-12 if c == 1 else 24)
        parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#767676" '
            f'stroke-dasharray="2 3"/><rect x="{x - 6 - 4 * len(name):.0f}" y="{y - 10:.0f}" '
            f'width="9" height="9" fill="{to_hex(color)}"/><text x="{x + 8:.0f}" y="{y:.0f}" '
            f'text-anchor="middle" font-size="14" fill="currentColor">{html.escape(name)}</text>'
        )
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" aria-hidden="true">{"".join(parts)}</svg>'


def _legend(groups: Sequence[str], colors: Mapping[str, str]) -> str:
    """A square, the word and how many, for each group."""
    return " ".join(
        f'<span style="white-space:nowrap"><span style="color:{color}">&#9632;</span> '
        f"{html.escape(group)} ({groups.count(group)})</span>"
        for group, color in colors.items()
        if group
    )


class ShareTriangle(Shown):
    """See `share_triangle`."""

    def __init__(
        self,
        shares: Effects,
        strength: np.ndarray,
        names: Sequence[str],
        colors: Mapping[str, Sequence[str]],
        links: Mapping[int, str],
        labels: Mapping[int, str] | None,
        told: str,
    ) -> None:
        self.given = (shares, strength, names)
        self.colors, self.links, self.labels = colors, links, labels
        self.color = ipywidgets.Dropdown(options=list(colors), description="colour by")
        active = strength[np.isfinite(shares).all(0) & (strength > 0)]
        self.lowest = float(active.min()) if len(active) else 1.0
        largest = float(active.max()) if len(active) else 1.0
        low, high = np.log10([self.lowest, max(largest, 1.01 * self.lowest)])
        # most effects are small: equal steps would drop half of the features at the first
        self.at_least = ipywidgets.FloatLogSlider(
            value=self.lowest,
            min=low,
            max=high,
            step=(high - low) / 40,
            description="at least",
            readout_format=".2g",
            layout=ipywidgets.Layout(width="auto", max_width="420px"),
        )
        self.html = ipywidgets.HTML()
        for control in (self.color, self.at_least):
            control.observe(self.show, names="value")
        self.show()
        note = ipywidgets.HTML(f'<p style="line-height:1.5">{told}</p>')
        controls = [self.color] if colors else []
        self.widget = ipywidgets.VBox([*controls, self.at_least, self.html, note])

    def show(self, _change: Any = None) -> None:
        """Draw the features that are strong enough, in the colours chosen."""
        groups = self.colors[self.color.value] if self.color.value else None
        # at its left end nothing is left out, whatever was lost in rounding
        at_least = self.at_least.value if self.at_least.value > 1.001 * self.lowest else 0
        self.html.value = triangle_html(
            *self.given, groups=groups, links=self.links, labels=self.labels, at_least=at_least
        )


def page_links(folder: str | Path, features: Sequence[int]) -> dict[int, str]:
    """Addresses of those pages that are there, as seen from the notebook's folder.

    Args:
        folder: where `pages.write` wrote.
        features: of interest.

    Returns:
        Feature -> relative address. Nothing on Colab, where a notebook cannot link to a file.
    """
    from ctt_helpers.notebook.pages import file_name

    if "google.colab" in sys.modules:
        return {}
    folder = Path(folder).expanduser()
    found = [(int(i), folder / file_name(int(i))) for i in features]
    try:
        here = [(i, Path(os.path.relpath(path))) for i, path in found if path.is_file()]
    except ValueError:  # another drive, on Windows
        return {}
    return {i: quote(path.as_posix()) for i, path in here}


@checked
def share_triangle(
    shares: Effects,
    strength: Float[np.ndarray, " latents"],
    names: Sequence[str],
    colors: Mapping[str, Sequence[str]] | None = None,
    pages: str | Path | None = None,
    labels: Mapping[int, str] | None = None,
) -> ShareTriangle:
    """RelIE (or RelDec) of three checkpoints in a triangle, whose dots open the features' pages.

    Args:
        shares: [3, latents] shares that add up to 1; NaN where a latent is inactive.
        strength: [latents] the size of a dot, such as the largest |IE| in logits.
        names: labels of the three checkpoints, in the order of training.
        colors: what one can colour by -> [latents] a word for each.
        pages: the folder that `pages.write` wrote to. A feature is a link only where its page is
            there; None: none is.
        labels: feature -> a few words about it.

    Returns:
        An object that displays in a notebook; `.color`, `.at_least` and `.html` are its parts.

    Raises:
        ValueError: other than three checkpoints, or a shape that does not fit.
    """
    colors = dict(colors or {})
    for groups in colors.values():
        _checked(shares, strength, names, groups)
    shares, strength, _ = _checked(shares, strength, names, None)
    active = np.flatnonzero(np.isfinite(shares).all(0)).tolist()
    links = page_links(pages, active) if pages is not None else {}
    told = "Tab goes from feature to feature, the strongest first."
    where = html.escape(str(pages))
    if links:
        told += (
            f" {len(links)} of them have a page: click, or Enter, opens it. Jupyter follows no "
            f"link from page to page; for that, open {where}/index.html from your disk."
        )
    elif pages is not None:
        told += f" Their pages, if there are any, are in {where}."
    return ShareTriangle(shares, strength, names, colors, links, labels, told)
