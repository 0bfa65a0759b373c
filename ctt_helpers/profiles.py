"""Profiles: one word that sets a notebook's parameters for a machine. "tiny" needs nothing; "colab" a GPU of 16 GB;
"paper" has the settings of Crosscoding Through Time. A parameter that is given explicitly overrides its profile."""

from collections.abc import Callable
from typing import Any

from ctt_helpers.runtime import check_parameters, closest

# four BLiMP sets with one prefix: across an attractor (two), plain, and something else than subject and verb
BLIMP = {
    "task": "blimp/distractor_agreement_relational_noun", "plain_task": "blimp/regular_plural_subject_verb_agreement_1",
    "other_task": "blimp/determiner_noun_agreement_1",
}  # fmt: skip
# profile -> notebook ("*": every one that knows the parameter) -> parameter -> value
PROFILES: dict[str, dict[str, dict[str, Any]]] = {
    "tiny": {
        "*": {"model": "tiny", "task": "agreement/pp", "plain_task": "agreement/simple"},
        "00": {"n_pairs": 150},
        "01": {"n_pairs": 200},
        "02": {"n_pairs": 300},
        "03": {"n_latents": 512, "k": 16, "steps": 600, "batch_size": 1024, "n_tokens": 140_000,
               "n_eval_tokens": 110_000, "training": {}},
        "04": {"n_pairs": 300, "method": "ablation"},
        "05": {"n_pairs": 400, "other_task": "agreement/det_noun"},
        "06": {"n_pairs": 200, "other_task": "agreement/obj_rel"},
    },
    "colab": {
        "*": {"model": "pythia-160m", **BLIMP},
        "00": {"n_pairs": 100},
        "01": {"n_pairs": 200},
        "02": {"n_pairs": 300, "revisions": ["step0", *(f"step{2**i}" for i in range(5, 10)), "step1000", "step2000",
                                             "step4000", "step16000", "step64000", "step143000"]},
        "03": {"n_latents": 8192, "k": 64, "steps": 4000, "batch_size": 2048, "n_tokens": 8_000_000,
               "n_eval_tokens": 200_000, "training": {"lr": 5e-4, "dead_after_tokens": 500_000}},
        "04": {"n_pairs": 300, "method": "atp"},
        "05": {"n_pairs": 300},
        "06": {"n_pairs": 100, "other_task": "blimp/distractor_agreement_relative_clause"},
    },
    # OLMo and BLOOM likewise: profile="paper" with model="olmo-1b" or "bloom-1b1", which bring their layer and triplet
    "paper": {
        "*": {"model": "pythia-1b", **BLIMP},
        "00": {"n_pairs": 300},
        "01": {"n_pairs": 200},
        "02": {"n_pairs": 1000},
        "03": {"n_latents": 16_384, "k": 200, "steps": 400_000_000 // 4096, "batch_size": 4096, "n_tokens": 400_000_000,
               "n_eval_tokens": 1_000_000,
               "training": {"lr": 5e-5, "k_start": 1000, "k_anneal": 5000 / (400_000_000 // 4096), "aux_weight": 1 / 32,
                            "decoder_norm_penalty": 0.0, "penalty_warmup": 0.05, "dead_after_tokens": 10_000_000}},
        "04": {"n_pairs": 1000, "method": "ig"},
        "05": {"n_pairs": 1000},
        "06": {"n_pairs": 300, "other_task": "blimp/distractor_agreement_relative_clause"},
    },
}  # fmt: skip


def use_profile(namespace: dict[str, Any], notebook: str, **checks: Callable[[Any], str | None]) -> dict[str, Any]:
    """Check a notebook's parameters, and fill those that are None from its profile; say which value is whose.

    Args:
        namespace: the notebook's `globals()`, in the cell after the parameters cell, with a parameter `profile`.
        notebook: its number, "00" to "08".
        **checks: as for `check_parameters`; they see the values in force.

    Returns:
        The values in force.

    Raises:
        ValueError: no such profile, or whatever `check_parameters` refuses.
    """
    given = check_parameters(namespace)
    if given["profile"] not in PROFILES:
        known = ", ".join(PROFILES)
        raise ValueError(
            f"There is no profile {given['profile']!r}.{closest(given['profile'], PROFILES)} There are: {known}."
        )
    chosen = PROFILES[given["profile"]]
    offered = chosen["*"] | chosen.get(notebook, {})
    filled = {name: offered[name] for name, value in given.items() if value is None and name in offered}
    namespace |= filled
    own = {name: given[name] for name in offered if given.get(name) is not None}
    print(f"profile {given['profile']!r} sets: {_listed(filled)}" + (f"; set by hand: {_listed(own)}" if own else ""))
    return check_parameters(namespace, **checks)


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items()) or "nothing"
