"""Moved in version 0.2: see ctt_helpers.sources.hub."""

from ctt_helpers.sources.hub import *  # noqa: F403
