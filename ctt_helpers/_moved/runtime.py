"""Moved in version 0.2: see ctt_helpers.files, .messages, .hooks and .notebook.parameters."""

from ctt_helpers.files import *  # noqa: F403
from ctt_helpers.hooks import *  # noqa: F403
from ctt_helpers.messages import *  # noqa: F403
from ctt_helpers.notebook.parameters import *  # noqa: F403
