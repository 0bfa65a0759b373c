"""Facts about published suites: where they are, which checkpoints exist, how many tokens each has seen.

They stand in presets.json, with their sources. Nothing here needs a network. Shapes are those of the published
config.json files, so parameters can be counted exactly (`tests/test_suites.py` compares with the published counts).
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctt_helpers.runtime import closest, read_json


@dataclass(frozen=True)
class Preset:
    """What is known of one published suite.

    Attributes:
        name: its name here.
        repo: its repository on the hub.
        config: keys of its config.json that decide the architecture.
        tokens: revision, in the order of training -> tokens of pretraining behind it; None where unknown.
        layer: the layer read unless another is asked for.
        triplet: the three revisions studied unless others are asked for.
        file_bytes: about how many bytes the weights of a revision take on the hub (from the parameters and the
            dtype of the published files; the hub is asked for the true size before a download).
        approximate: why the token counts are not exact; "" where they are.
        from_paper: layer and triplet are those of Crosscoding Through Time; otherwise chosen in its likeness.
    """

    name: str
    repo: str
    config: dict[str, Any]
    tokens: dict[str, int | None]
    layer: int
    triplet: list[str]
    file_bytes: int
    approximate: str = ""
    from_paper: bool = False


def step_of(revision: str) -> int | None:
    """The step that a revision's name tells, "step512" -> 512; None where it tells none."""
    match = re.search(r"step(\d+)", revision)
    return int(match.group(1)) if match else None


def tokens_of(revision: str, tokens_per_step: int | None = None) -> int | None:
    """Tokens seen: from the name where it says so ("...tokens2B"), else steps times tokens a step."""
    if match := re.search(r"tokens(\d+)B", revision):
        return int(match.group(1)) * 10**9
    step = step_of(revision)
    return step * tokens_per_step if step is not None and tokens_per_step else None


def nearest(revision: str, known: Sequence[str]) -> str:
    """' Did you mean ...?' with the revision nearest by step (on a log scale), or by spelling."""
    step, prefix = step_of(revision), revision.split("step")[0]
    others = {r: step_of(r) for r in known if r.split("step")[0] == prefix and step_of(r) is not None}
    if step is None or not others:
        return closest(revision, known)
    best = min(others, key=lambda r: abs(math.log((others[r] + 1) / (step + 1))))
    return f" Did you mean {best!r}?"


def _published(parts: Sequence[dict[str, Any]]) -> dict[str, int | None]:
    """Revision -> tokens, from presets.json: a part lists them, or has a pattern of names and runs of steps."""
    tokens = {}
    for part in parts:
        if "names" not in part:
            tokens |= part
            continue
        per_step, up = part["tokens_per_step"], 10**9 - 1 if part.get("rounded_up") else 0
        for step in (step for run in part["runs"] for step in range(*run)):
            revision = part["names"].format(step, (step * per_step + up) // 10**9)
            tokens[revision] = part.get("before", 0) + tokens_of(revision, per_step)
    return tokens


DATA = read_json(Path(__file__).with_name("presets.json"))
TOKENS = {series: _published(parts) for series, parts in DATA["revisions"].items()}
PRESETS = {n: Preset(n, tokens=TOKENS[p.pop("revisions")], **p) for n, p in DATA["presets"].items()}
BLIMP_AGREEMENT: list[str] = DATA["blimp_agreement"]  # the paper's four sets of subject-verb agreement
