"""Moved in version 0.2: see ctt_helpers.behaviour."""

from ctt_helpers.behaviour import *  # noqa: F403
