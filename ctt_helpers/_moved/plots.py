"""Moved in version 0.2: see ctt_helpers.notebook.plots."""

from ctt_helpers.notebook.plots import *  # noqa: F403
