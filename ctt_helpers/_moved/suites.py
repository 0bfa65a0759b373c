"""Moved in version 0.2: see ctt_helpers.sources.suites."""

from ctt_helpers.sources.suites import *  # noqa: F403
