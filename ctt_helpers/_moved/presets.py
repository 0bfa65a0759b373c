"""Moved in version 0.2: see ctt_helpers.sources.presets and ctt_helpers.sources.revisions."""

from ctt_helpers.sources.presets import *  # noqa: F403
from ctt_helpers.sources.revisions import *  # noqa: F403
