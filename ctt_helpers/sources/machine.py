"""What this machine has room for: dtypes, free memory, and how many parameters a model has."""

from typing import Any

import psutil
import torch

from ctt_helpers.hooks import architecture_of, check_layer
from ctt_helpers.messages import choose

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
ROOM = 0.8  # share of the free memory that models may take together; the rest is for activations


def pick_dtype(dtype: str | torch.dtype, device: str) -> torch.dtype:
    """The dtype to load in; "auto" is bfloat16 on CUDA (float16 if too old for it), else float32.

    float16 can overflow: `Checkpoints` tries it on ten sentences first.

    Raises:
        ValueError: no such dtype.
    """
    if dtype == "auto":
        if not device.startswith("cuda"):
            return torch.float32
        new_enough = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if new_enough else torch.float16
    name = str(dtype).removeprefix("torch.")
    choose("dtype", name, ["auto", *DTYPES])
    return DTYPES[name]


def free_memory(device: str) -> float:
    """Bytes free for tensors on a device."""
    if device.startswith("cuda"):
        # torch's own, unused
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.startswith("mps"):
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return psutil.virtual_memory().available


def count_parameters(config: Any, layer: int, trust_remote_code: bool = False) -> dict[str, int]:
    """Exact numbers of parameters of a model with this transformers configuration.

    No model is made for it.

    Returns:
        all: of the whole model; blocks: of the blocks up to `layer`; below: of these and the
        embeddings.

    Raises:
        ValueError: the layer does not exist, or the model's parts are not found.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    parts = architecture_of(model)
    blocks, norm = model.get_submodule(parts.blocks), model.get_submodule(parts.norm)
    check_layer(layer, len(blocks))
    head = model.get_output_embeddings()
    tied = head.weight is model.get_input_embeddings().weight
    above = [*blocks[layer + 1 :], norm, *([] if tied else [head])]

    def count(modules) -> int:
        return sum(p.numel() for module in modules for p in module.parameters())

    whole = count([model])
    return {"all": whole, "blocks": count(blocks[: layer + 1]), "below": whole - count(above)}


def remedies(part: str, dtype: torch.dtype) -> str:
    """What to do where memory is short."""
    below = "part='below' where only activations are read, " if part == "all" else ""
    half = "dtype='float16', " if dtype.itemsize > 2 else ""
    return f"Take {below}{half}a smaller model, or free memory (ckpts.free(), other notebooks)."
