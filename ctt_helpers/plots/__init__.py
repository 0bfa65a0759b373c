"""Figures: each is a function of arrays or tables that returns its Axes (or its Figure, if it has several panels).

Everywhere: `ax` draws into Axes of yours, `title` should say the finding, per-feature arrays are
[checkpoints, latents] in the order of training, and a checkpoint keeps its one colour (`checkpoint_colors`).
An array whose shape does not fit `names`, or a feature that is not among the latents, is a ValueError.
"""

# ruff: noqa: F401 (reached as plots.interval_plot ...)
from ctt_helpers.plots.effects import feature_heatmap, interval_plot
from ctt_helpers.plots.look import checkpoint_colors, format_tokens, set_title, style, task_colors
from ctt_helpers.plots.time import accuracy_curves, ternary, trajectories
