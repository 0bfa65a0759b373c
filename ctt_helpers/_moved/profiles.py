"""Moved in version 0.2: see ctt_helpers.notebook.parameters."""

from ctt_helpers.notebook.parameters import *  # noqa: F403
