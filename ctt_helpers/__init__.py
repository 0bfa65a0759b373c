"""Crosscoding Through Time, hands-on: watch features appear, settle and fade during pretraining.

One picture: checkpoints -> activations -> crosscoder -> effects -> RelIE. The modules of this
folder follow it; `sources` is where checkpoints, pairs and text come from, `notebook` what only
notebooks use, `toy` where the embedded suite comes from. Everything public is reachable from here
(``import ctt_helpers as ctt``) and loaded only when it is used.
"""

import importlib
from pathlib import Path

__version__ = "0.3.0"

# module -> what of it is public
_EXPORTS = {
    "hooks": ["HookedModel", "logits_above", "pick_device", "residual_stream", "spliced_logits"],
    "pairs": ["MinimalPairs", "make_pairs", "twins"],
    "behaviour": [
        "TripletChoice", "accuracy", "accuracy_curve", "logit_differences", "similarity_matrix",
        "suggest_triplet",
    ],
    "activations": ["ActivationStream", "TensorStream"],
    "cache": ["ActivationCache"],
    "crosscoder": ["Crosscoder"],
    "dictionary": ["Dictionary"],
    "training": ["TrainConfig", "TrainResult", "train"],
    "evaluation": [
        "Report", "active_places", "evaluate", "examples_by_band", "pca_baseline",
        "promoted_tokens", "top_examples",
    ],
    "attribution": ["effects_from_gradient"],
    "effects": [
        "Effects", "Metric", "Subsets", "ablate", "ablate_subsets", "ablation_curve",
        "indirect_effects", "readout_of",
    ],
    "metrics": [
        "activation_similarity", "classify", "decoder_similarity", "match_features", "pairwise",
        "rank_correlation", "rel_dec", "rel_ie", "trajectory",
    ],
    "uncertainty": [
        "classify_draws", "decide", "interval", "null_threshold", "rel_ie_draws", "resample",
        "trajectory_draws",
    ],
    "factorial": ["Factorial", "behaviour_factorial", "factorial_of", "shares_of_effect"],
    "controls": [
        "artefacts", "control_groups", "latent_scaling", "predict_others", "random_directions",
    ],
    "sources.suites": ["Suite", "load_suite"],
    "sources.checkpoints": ["Checkpoints", "fingerprint"],
    "sources.harness": ["harness_curve"],
    "notebook.parameters": ["check_parameters", "setup", "use_profile"],
    "notebook.forecast": ["Forecast", "estimate"],
}  # fmt: skip
# name -> where the module is
_MODULES = {name.rpartition(".")[2]: name for name in _EXPORTS} | {
    "checks": "notebook.checks",
    "exchange": "sources.exchange",
    "files": "files",
    "formats": "sources.formats",
    "hub": "sources.hub",
    "logs": "logs",
    "messages": "messages",
    "notebook": "notebook",
    "naming": "notebook.naming",
    "pages": "notebook.pages",
    "planted": "planted",
    "plots": "notebook.plots",
    "presets": "sources.presets",
    "processes": "processes",
    "published": "sources.published",
    "runs": "runs",
    "sources": "sources",
    "text": "sources.text",
    "toy": "toy",
    "widgets": "notebook.widgets",
}
_WHERE = {name: module for module, names in _EXPORTS.items() for name in names}

# Modules of version 0.1 that have moved: `from ctt_helpers.tasks import make_pairs` still works.
__path__.append(str(Path(__file__).parent / "_moved"))

__all__ = ["__version__", *sorted(_WHERE), *sorted(_MODULES)]


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{_MODULES[name]}")
    raise AttributeError(f"ctt_helpers has no {name!r}; dir(ctt_helpers) lists what it has")


def __dir__() -> list[str]:
    return __all__
