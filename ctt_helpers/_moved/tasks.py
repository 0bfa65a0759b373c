"""Moved in version 0.2: see ctt_helpers.pairs and ctt_helpers.behaviour."""

from ctt_helpers.behaviour import *  # noqa: F403
from ctt_helpers.pairs import *  # noqa: F403
