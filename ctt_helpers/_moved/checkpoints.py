"""Moved in version 0.2: see ctt_helpers.sources.checkpoints."""

from ctt_helpers.sources.checkpoints import *  # noqa: F403
