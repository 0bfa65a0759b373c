"""Other architectures without their weights: the published shape, shrunk, with random weights.

Nothing is learnt in such a model. What can be checked is the path: read the stream, splice it back,
take effects.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import ctt_helpers as ctt
from ctt_helpers.messages import choose
from ctt_helpers.sources.presets import PRESETS

# what a configuration calls its sizes, by architecture -> the small ones
SMALL = {
    **dict.fromkeys(("hidden_size", "n_embd"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer"), 3),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head"), 4),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0),
    "intermediate_size": 128,
}


def shrunk_suite(preset: str, folder: str | Path, tokenizer: Any, seed: int = 0) -> ctt.Suite:
    """A suite of two checkpoints with random weights, of the architecture of a preset.

    Args:
        preset: a name in `presets.PRESETS`, such as "olmo-1b".
        folder: where it is written.
        tokenizer: of a suite whose pairs it shall read.
        seed: of the weights.

    Raises:
        ValueError: there is no such preset.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    choose("preset", preset, PRESETS)
    folder = Path(folder)
    facts = {key: SMALL.get(key, value) for key, value in PRESETS[preset].config.items()}
    facts["vocab_size"] = len(tokenizer)
    config = AutoConfig.for_model(facts.pop("model_type"), **facts)
    with torch.random.fork_rng():
        for step in (0, 1):
            torch.manual_seed(seed + step)
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
            model.save_pretrained(folder / f"step{step}")
    tokenizer.save_pretrained(folder)
    return ctt.load_suite(folder)


def check_path(
    suite: ctt.Suite, pairs: ctt.MinimalPairs, device: str = "auto", seed: int = 0
) -> dict[str, Any]:
    """Read the stream of a suite's last two checkpoints, splice it back, take effects.

    Args:
        suite: any.
        pairs: in its vocabulary.
        device: "auto", "cpu", "cuda" ...
        seed: of the crosscoder, which is not trained.

    Returns:
        class: of the model; largest change: of the difference of a pair's answer logits, when the
        stream is read and spliced back (rounding); AtP: rank: rank correlation of the effects by
        attribution patching with the exact ones.
    """
    two = suite.checkpoints(suite.revisions[-2:], device=device, dtype="float32")
    x = ctt.residual_stream(two[0], pairs.input_ids, pairs.attention_mask)
    with torch.no_grad():
        spliced = ctt.logits_above(
            two[0], x, pairs.attention_mask, pairs.answer_position, pairs.answers
        )
    change = (spliced[:, 0] - spliced[:, 1]).cpu() - ctt.logit_differences(two[0], pairs)
    code = ctt.Crosscoder(2, two.d_model, n_latents=64, k=8, seed=seed).to(x.device)
    exact, fast = (
        ctt.indirect_effects(code, two, pairs, method).mean.ravel()
        for method in ("ablation", "atp")
    )
    return {
        "class": type(two[0].hf_model).__name__,
        "largest change": float(change.abs().max()),
        "AtP: rank": float(ctt.rank_correlation(exact, fast)),
    }
