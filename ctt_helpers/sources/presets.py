"""Facts about published suites: where they are, which checkpoints exist, how many tokens each saw.

They stand in presets.json, with their sources. Nothing here needs a network. Shapes are those of
the published config.json files, so parameters can be counted exactly (`tests/test_suites.py`
compares with the published counts).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctt_helpers.files import read_json


@dataclass(frozen=True)
class Preset:
    """What is known of one published suite.

    Attributes:
        name: its name here.
        repo: its repository on the hub.
        config: keys of its config.json that decide the architecture.
        tokens: revision, in the order of training -> tokens of pretraining behind it; None where
            unknown.
        layer: the layer read unless another is asked for.
        triplet: the three revisions studied unless others are asked for.
        file_bytes: about how many bytes the weights of a revision take on the hub (from the
            parameters and the dtype of the published files; the hub is asked for the true size
            before a download).
        approximate: why the token counts are not exact; "" where they are.
        from_paper: layer and triplet are those of Crosscoding Through Time; otherwise chosen in its
            likeness.
        reported: revision -> what others have reported to be wrong with it, and where. The hub was
            not asked here.
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
    reported: dict[str, str] = field(default_factory=dict, repr=False)


def _listed(part: Mapping[str, Any]) -> dict[str, int]:
    """Revision -> step, of a pattern of names and runs of steps (first, end, stride)."""
    steps = [step for run in part["runs"] for step in range(*run)]
    per_step = part.get("tokens_per_step", 0)
    up = 10**9 - 1 if part.get("rounded_up") else 0
    return {part["names"].format(step, (step * per_step + up) // 10**9): step for step in steps}


def _published(parts: Sequence[Mapping[str, Any]]) -> dict[str, int | None]:
    """Revision -> tokens: a part lists them, or has a pattern of names."""
    tokens: dict[str, int | None] = {}
    for part in parts:
        if "names" not in part:
            tokens |= part
            continue
        per_step, before = part["tokens_per_step"], part.get("before", 0)
        for revision, step in _listed(part).items():
            seen = step * per_step
            if "tokens" in part["names"]:  # the name's own count, in whole billions
                seen = int(revision.rpartition("tokens")[2].removesuffix("B")) * 10**9
            tokens[revision] = before + seen
    return tokens


def _reported(name: str, reports: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Revision -> what is reported of it, for one preset."""
    found = {}
    for report in reports:
        if name in report["presets"]:
            for revision in report.get("revisions") or _listed(report):
                found[revision] = f"{report['note']} ({report['see']})"
    return found


def _presets(data: Mapping[str, Any]) -> dict[str, Preset]:
    tokens = {series: _published(parts) for series, parts in data["revisions"].items()}
    presets = {}
    for name, facts in data["presets"].items():
        facts = dict(facts)
        series = facts.pop("revisions")
        reported = _reported(name, data["reported"])
        presets[name] = Preset(name=name, tokens=tokens[series], reported=reported, **facts)
    return presets


DATA = read_json(Path(__file__).with_name("presets.json"))
PRESETS = _presets(DATA)
BLIMP_AGREEMENT: list[str] = DATA["blimp_agreement"]  # the paper's four sets on agreement
