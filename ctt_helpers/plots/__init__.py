"""Figures: each is a function of arrays or tables that returns its Axes (or its Figure, if it has several panels).

Everywhere: `ax` draws into Axes of yours, `title` should say the finding, per-feature arrays are
[checkpoints, latents] in the order of training, and a checkpoint keeps its one colour (`checkpoint_colors`).
An array whose shape does not fit `names`, or a feature that is not among the latents, is a ValueError.
"""

# ruff: noqa: F401 (reached as plots.interval_plot ...)
from ctt_helpers.plots.effects import ablation_bars, effect_scatter, feature_heatmap, interval_plot, relie_vs_reldec
from ctt_helpers.plots.look import checkpoint_colors, format_tokens, style, task_colors
from ctt_helpers.plots.runs import accuracy_curves, signature_figure, similarity_heatmap, training_curves
from ctt_helpers.plots.text import examples_html, tokens_html
from ctt_helpers.plots.time import ternary, trajectories
