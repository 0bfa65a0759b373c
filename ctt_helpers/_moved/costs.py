"""Moved in version 0.2: see ctt_helpers.notebook.forecast."""

from ctt_helpers.notebook.forecast import *  # noqa: F403
