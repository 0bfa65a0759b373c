"""Moved in version 0.2: see ctt_helpers.sources.published."""

from ctt_helpers.sources.published import *  # noqa: F403
