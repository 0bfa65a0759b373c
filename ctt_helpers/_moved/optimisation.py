"""Moved in version 0.2: see ctt_helpers.training."""

from ctt_helpers.training import *  # noqa: F403
