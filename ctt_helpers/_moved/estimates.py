"""Moved in version 0.2: see ctt_helpers.notebook.forecast and ctt_helpers.sources.machine."""

from ctt_helpers.notebook.forecast import *  # noqa: F403
from ctt_helpers.sources.machine import *  # noqa: F403
