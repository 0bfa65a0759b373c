"""Moved in version 0.2: see ctt_helpers.notebook.widgets."""

from ctt_helpers.notebook.widgets import *  # noqa: F403
