"""What a set of checkpoints takes, told before it is taken: parameters, memory, download, time. And the dtype."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch

from ctt_helpers.hooks import ARCHITECTURES, check_layer
from ctt_helpers.runtime import choose

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
ROOM = 0.8  # share of the free memory that models may take together; the rest is for activations
DOWNLOAD_RATE = 40e6  # bytes a second: an assumption, and told as one
LOAD_RATE = 0.5e9  # bytes of a file a second, reading and converting them
NO_GPU = "no GPU here. On Colab: Runtime > Change runtime type > T4 GPU. Else take fewer tokens, steps or pairs"


@dataclass(frozen=True)
class Estimate:
    """What a set of checkpoints takes, and what is to be done with them; print it. Bytes and seconds.

    Attributes:
        title: what it is an estimate of.
        parameters: of one whole model, counted from its configuration.
        download: bytes still to fetch (about).
        file_bytes: size of the files of all checkpoints (about).
        one, together: bytes of the weights kept in memory, of one checkpoint and of all.
        free: bytes free on the device.
        work: seconds of each part of the work; empty where none was asked for.
        memory: bytes that the work takes at its peak beside the weights.
        device: where.
    """

    title: str
    parameters: int
    download: int
    file_bytes: int
    one: int
    together: int
    free: float
    work: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, float] = field(default_factory=dict)
    device: str = "cpu"

    @property
    def fits(self) -> bool:
        """Whether all fit into the free memory together, leaving a fifth of it for activations."""
        return self.together <= ROOM * self.free

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds to download (at 40 MB/s), to load the files, and of each part of the work."""
        return {"download": self.download / DOWNLOAD_RATE, "loading": self.file_bytes / LOAD_RATE, **self.work}

    @property
    def peak(self) -> float:
        """Bytes of weights and work at the peak."""
        return (self.together if self.fits else self.one) + sum(self.memory.values())

    def __str__(self) -> str:
        seconds = {what: show_time(value) for what, value in self.seconds.items()}
        how = "all at once" if self.fits else "one after another" if self.one <= self.free else "too large"
        fetch = f"about {show_size(self.download)}, {seconds['download']} at 40 MB/s" if self.download else "nothing"
        sizes = f"{show_size(self.one)} each, {show_size(self.together)} together, {show_size(self.free)} free: {how}"
        lines = [self.title, f"  model     {self.parameters:,} parameters", f"  download  {fetch}"]
        lines += [f"  memory    {sizes}", f"  loading   about {seconds['loading']}"]
        if self.work:
            more = ", ".join(f"{show_size(size)} {what}" for what, size in self.memory.items() if size)
            enough = "" if self.peak <= self.free else ": more than is free. Take smaller sizes or fewer checkpoints"
            lines += [f"  at peak   about {show_size(self.peak)}, of it {more}{enough}"]
            lines += [f"  work      {', '.join(f'{what} {seconds[what]}' for what in self.work)}"]
            lines += [f"  in all    about {show_time(sum(self.seconds.values()))}"]
            lines += [f"  device    {NO_GPU}"] if self.device == "cpu" else []
        return "\n".join(lines)


def pick_dtype(dtype: str | torch.dtype, device: str) -> torch.dtype:
    """The dtype to load in; "auto" is bfloat16 (float16 on a GPU too old for it) on CUDA, float32 elsewhere.

    Raises:
        ValueError: no such dtype.
    """
    if dtype == "auto":
        if not device.startswith("cuda"):
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    choose("dtype", name := str(dtype).removeprefix("torch."), ["auto", *DTYPES])
    return DTYPES[name]


def free_memory(device: str) -> float:
    """Bytes free for tensors on a device."""
    if device.startswith("cuda"):
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own, unused
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.startswith("mps"):
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return psutil.virtual_memory().available


def count_parameters(config: Any, layer: int) -> dict[str, int]:
    """Exact numbers of parameters of a model with this transformers configuration, without making one.

    Returns:
        all: of the whole model; blocks: of the blocks up to `layer`; below: of these and the embeddings.

    Raises:
        ValueError: the layer does not exist.
    """
    from transformers import AutoModelForCausalLM

    check_layer(layer, config.num_hidden_layers)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    blocks, norm = (model.get_submodule(name) for name in ARCHITECTURES[type(model).__name__])
    head = model.get_output_embeddings()
    tied = head.weight is model.get_input_embeddings().weight
    above = [*blocks[layer + 1 :], norm, *([] if tied else [head])]
    whole, read, left_out = (
        sum(parameter.numel() for module in modules for parameter in module.parameters())
        for modules in ([model], blocks[: layer + 1], above)
    )
    return {"all": whole, "blocks": read, "below": whole - left_out}


def remedies(part: str, dtype: torch.dtype) -> str:
    """What to do where memory is short."""
    below = "part='below' where only activations are read, " if part == "all" else ""
    half = "dtype='float16', " if dtype.itemsize > 2 else ""
    return f"Take {below}{half}a smaller model, or free memory (ckpts.free(), other notebooks)."


def show_size(n: float) -> str:
    """1.02 GB, 375 MB."""
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB" if n >= 1e6 else f"{n / 1e3:.0f} kB"


def show_time(seconds: float) -> str:
    """3.2 h, 14 min, 8 s."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(1, seconds):.0f} s"
