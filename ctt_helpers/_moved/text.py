"""Moved in version 0.2: see ctt_helpers.sources.text."""

from ctt_helpers.sources.text import *  # noqa: F403
