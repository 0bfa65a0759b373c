"""Crosscoding Through Time, hands-on: watch features appear, settle and fade during pretraining.

One picture: checkpoints -> activations -> crosscoder -> effects -> RelIE. The modules follow it in that order.
Everything public is reachable from here (``import ctt_helpers as ctt``) and loaded only when it is used.
"""

import importlib

__version__ = "0.1.0"

_EXPORTS = {
    "runtime": ["check_parameters", "pick_device"],
    "profiles": ["use_profile"],
    "hooks": ["HookedModel", "logits_above", "residual_stream", "spliced_logits"],
    "suites": ["Suite", "load_suite"],
    "checkpoints": ["Checkpoints", "fingerprint"],
    "tasks": ["MinimalPairs", "accuracy", "accuracy_curve", "logit_differences", "make_pairs"],
    "triplets": ["TripletChoice", "similarity_matrix", "suggest_triplet"],
    "activations": ["ActivationStream", "TensorStream"],
    "crosscoder": ["Crosscoder"],
    "training": ["TrainConfig", "TrainResult", "train"],
    "evaluation": ["Report", "evaluate", "promoted_tokens", "top_examples"],
    "paths": ["effects_from_gradient"],
    "effects": ["Effects", "ablate", "indirect_effects"],
    "metrics": [
        *("activation_similarity", "classify", "decoder_similarity", "match_features", "pairwise", "rel_dec"),
        *("rel_ie", "trajectory"),
    ],
    "uncertainty": ["classify_draws", "interval", "rel_ie_draws", "resample", "trajectory_draws", "twins"],
    "controls": ["control_groups", "random_directions"],
    "scaling": ["artefacts", "latent_scaling"],
}
_WHERE = {name: module for module, names in _EXPORTS.items() for name in names}
_SUBMODULES = {*_EXPORTS, "hub", "plots", "presets", "published", "text", "toy", "widgets"}

__all__ = ["__version__", *sorted(_WHERE), *sorted(_SUBMODULES)]


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"ctt_helpers has no {name!r}; dir(ctt_helpers) lists what it has")


def __dir__() -> list[str]:
    return __all__
