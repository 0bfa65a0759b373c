"""Moved in version 0.2: see ctt_helpers.attribution."""

from ctt_helpers.attribution import *  # noqa: F403
