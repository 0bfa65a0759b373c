"""Moved in version 0.2: see ctt_helpers.controls."""

from ctt_helpers.controls import *  # noqa: F403
