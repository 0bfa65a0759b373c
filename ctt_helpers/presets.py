"""Facts about published suites: where they are, which checkpoints exist, how many tokens each has seen.

Nothing here needs a network. Shapes are those of the published config.json files, so parameters can be counted exactly
(`tests/test_suites.py` compares them with the published counts). Lists of revisions are written as runs of steps; the
gaps between runs are checkpoints that were not published. Sources:

Pythia: Biderman et al. 2023 (arXiv 2304.01373), table 1 and EleutherAI's model cards; 14m and 31m came later.
OLMo-1B-0724: Groeneveld et al. 2024 (arXiv 2402.00838) and the model card. OLMo 2: OLMo Team 2025 (arXiv 2501.00656).
BLOOM-1b1: BigScience 2022 (arXiv 2211.05100) and the card of bloom-1b1-intermediate.
Default layers and triplets: Crosscoding Through Time (arXiv 2509.05291), where it studies the model.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ctt_helpers.runtime import closest

PYTHIA_TOKENS_PER_STEP = 1024 * 2048
# 154 checkpoints: step 0, the powers of two to 512, then every thousand. "main" is step143000 once more.
PYTHIA_REVISIONS = [f"step{s}" for s in (0, *(2**i for i in range(10)), *range(1000, 143_001, 1000))]
# size -> layers, d_model, heads, vocabulary (padded to a multiple of what the GPUs were split by)
PYTHIA_SHAPES = {
    "14m": (6, 128, 4, 50304), "31m": (6, 256, 8, 50304), "70m": (6, 512, 8, 50304), "160m": (12, 768, 12, 50304),
    "410m": (24, 1024, 16, 50304), "1b": (16, 2048, 8, 50304), "1.4b": (24, 2048, 16, 50304),
    "2.8b": (32, 2560, 32, 50304), "6.9b": (32, 4096, 32, 50432), "12b": (36, 5120, 40, 50688),
}  # fmt: skip
OLMO_1B = {
    "model_type": "olmo", "vocab_size": 50304, "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16,
    "num_key_value_heads": 16, "intermediate_size": 8192, "hidden_act": "silu", "rope_theta": 10000.0,
    "max_position_embeddings": 4096, "attention_bias": False, "clip_qkv": None, "tie_word_embeddings": False,
    "bos_token_id": None, "eos_token_id": 50279, "pad_token_id": 1,
}  # fmt: skip
OLMO2 = {
    "model_type": "olmo2", "vocab_size": 100352, "hidden_act": "silu", "rope_theta": 500000, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096, "attention_bias": False, "tie_word_embeddings": False, "bos_token_id": None,
    "eos_token_id": 100257, "pad_token_id": 100277,
}  # fmt: skip
BLOOM_1B1 = {
    "model_type": "bloom", "vocab_size": 250880, "hidden_size": 1536, "n_layer": 24, "n_head": 16,
    "layer_norm_epsilon": 1e-5, "apply_residual_connection_post_layernorm": False, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 3, "unk_token_id": 0,
}  # fmt: skip


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
    triplet: tuple[str, str, str]
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


def _steps(*runs: tuple[int, ...]) -> list[int]:
    """(first, last, distance) or (only,) for each run of evenly spaced steps."""
    return [s for run in runs for s in range(run[0], run[min(1, len(run) - 1)] + 1, run[2] if len(run) == 3 else 1)]


def _pythia(size: str) -> Preset:
    layers, d, heads, vocabulary = PYTHIA_SHAPES[size]
    config = {
        "model_type": "gpt_neox", "vocab_size": vocabulary, "hidden_size": d, "num_hidden_layers": layers,
        "num_attention_heads": heads, "intermediate_size": 4 * d, "hidden_act": "gelu", "rotary_pct": 0.25,
        "rotary_emb_base": 10000, "max_position_embeddings": 2048, "layer_norm_eps": 1e-5,
        "use_parallel_residual": True, "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    parameters = 2 * vocabulary * d + layers * (12 * d * d + 13 * d) + 2 * d
    return Preset(
        name=f"pythia-{size}",
        repo=f"EleutherAI/pythia-{size}",
        config=config,
        tokens={r: tokens_of(r, PYTHIA_TOKENS_PER_STEP) for r in PYTHIA_REVISIONS},
        layer=layers // 2,
        triplet=("step512", "step2000", "step143000"),
        file_bytes=2 * parameters + layers * 2048**2,  # float16, and a mask of a byte an entry in each layer
        from_paper=size == "1b",
    )


def _olmo2(name: str, repo: str, d: int, layers: int, inner: int, names: list[str], **rest: Any) -> Preset:
    shape = {"hidden_size": d, "num_hidden_layers": layers, "intermediate_size": inner}
    config = {**OLMO2, **shape, "num_attention_heads": d // 128, "num_key_value_heads": d // 128}
    # the three annealings of stage 2 each start from the end of stage 1, and their names count from there;
    # main is the mean of the three, so no count is its own
    before = tokens_of([n for n in names if n.startswith("stage1")][-1])
    tokens = {n: tokens_of(n) + before * n.startswith("stage2") for n in names}
    rounding = "the names give whole billions, rounded up"
    return Preset(name, repo, config, {**tokens, "main": None}, approximate=rounding, **rest)


def _olmo2_names(tokens_per_step: int, stage1: Iterable[int], stage2: Iterable[int]) -> list[str]:
    named = [("stage1", s) for s in stage1] + [(f"stage2-ingredient{i}", s) for i in (1, 2, 3) for s in stage2]
    return [f"{stage}-step{s}-tokens{-(-s * tokens_per_step // 10**9)}B" for stage, s in named]


def _all() -> Iterable[Preset]:
    yield from map(_pythia, PYTHIA_SHAPES)
    runs = [(0, 4000, 1000), (4500,), (5000, 91000, 1000), (94000, 222000, 1000), (222100,), (223000,), (223550,)]
    runs += [(224000, 817000, 1000), (817847,), (818000, 918000, 1000), (922000, 924000, 1000), (933000, 1454000, 1000)]
    # 2,096,437 tokens a step, rounded down, reproduce all the names; the batch was 1024 x 2048 tokens
    names = [f"step{s}-tokens{s * 2_096_437 // 10**9}B" for s in _steps(*runs)]
    yield Preset(
        name="olmo-1b",
        repo="allenai/OLMo-1B-0724-hf",
        config=OLMO_1B,
        tokens={**{n: tokens_of(n) for n in names}, "main": None},
        layer=8,
        triplet=("step2000-tokens4B", "step16000-tokens33B", "step1454000-tokens3048B"),
        file_bytes=4 * 1_279_787_008,
        approximate="the names give whole billions, rounded down",
        from_paper=True,
    )
    runs = [(0,), (300,), (10000,), (20000,), (23100,), (30000, 60000, 10000), (66200,), (70000, 1900000, 10000)]
    yield _olmo2(
        "olmo2-1b",
        "allenai/OLMo-2-0425-1B",
        *(2048, 16, 8192),
        _olmo2_names(512 * 4096, _steps(*runs, (1907359,)), _steps((1000, 23000, 1000), (23852,))),
        layer=8,
        triplet=("stage1-step300-tokens1B", "stage1-step10000-tokens21B", "stage1-step1907359-tokens4001B"),
        file_bytes=4 * 1_484_916_736,
    )
    runs = [(150,), (600,), (700,), (850,), (900,), (1000,), (2000,), (2150,), (3000, 99000, 1000)]
    runs += [(a, b, 1000) for a, b in [(101000, 173000), (175000, 316000), (318000, 535000), (537000, 604000)]]
    runs += [(606000, 631000, 1000), (633000, 671000, 1000), (673000, 928000, 1000), (928646,)]
    names = _olmo2_names(1024 * 4096, _steps(*runs), _steps((1000, 11000, 1000), (11931,)))
    yield _olmo2(
        "olmo2-7b",
        "allenai/OLMo-2-1124-7B",
        *(4096, 32, 11008),
        [n.replace("step11931-tokens51B", "step11931-tokens50B") for n in names],  # the one that is rounded down
        layer=16,
        triplet=("stage1-step900-tokens4B", "stage1-step8000-tokens34B", "stage1-step928646-tokens3896B"),
        file_bytes=4 * 7_298_617_344,
    )
    steps = _steps((1000,), (10000,), (100000, 600000, 100000))
    yield Preset(
        name="bloom-1b1",
        repo="bigscience/bloom-1b1-intermediate",
        config=BLOOM_1B1,
        tokens={**{f"global_step{s}": s * 550_000 for s in steps}, "main": 341 * 10**9},
        layer=12,
        triplet=("global_step10000", "global_step100000", "main"),
        file_bytes=2 * 1_065_314_304,
        approximate="counted as about 550,000 tokens a step, and 341 billion for main, as in the paper",
        from_paper=True,
    )


PRESETS = {preset.name: preset for preset in _all()}
