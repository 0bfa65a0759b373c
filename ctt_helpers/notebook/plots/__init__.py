"""Figures: functions of arrays or tables.

Each returns its Axes, or its Figure where it has several panels. What holds for all of them:

- `ax` is where to draw; None makes a new figure.
- `title` should say the finding.
- Arrays about features are [checkpoints, latents], in the order of training.
- A checkpoint has one colour in all figures (`checkpoint_colors`).
- An array whose shape does not fit `names`, or a feature that is not among the latents, raises
  ValueError.
"""

# ruff: noqa: F401 (reached as plots.interval_plot ...)
from ctt_helpers.notebook.plots.effects import (
    feature_heatmap,
    interval_plot,
    label_bars,
    rank_curves,
    share_scatter,
)
from ctt_helpers.notebook.plots.look import (
    CELL_COLORS,
    LABEL_COLORS,
    checkpoint_colors,
    format_tokens,
    set_title,
    show,
    style,
    task_colors,
    use_colors_of,
)
from ctt_helpers.notebook.plots.shares import factor_paths, share_curves, who_leads
from ctt_helpers.notebook.plots.time import (
    accuracy_curves,
    cell_bars,
    cell_curves,
    cell_panels,
    factorial_curves,
    onset_dots,
    ternary,
    trajectories,
)
