"""What it takes, before it is taken: parameters, memory, download, time. And the dtype that a device is given."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ctt_helpers.hooks import ARCHITECTURES, check_layer
from ctt_helpers.runtime import closest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
ROOM = 0.8  # share of the free memory that models may take together; the rest is for activations
DOWNLOAD_RATE = 40e6  # bytes a second: an assumption, and told as one
LOAD_RATE = 0.5e9  # bytes of a file a second, reading and converting them
EFFICIENCY = 0.6  # of a model's pass, against its matrix products alone


@dataclass(frozen=True)
class Estimate:
    """What a set of checkpoints takes; print it. Bytes and seconds; times are rough.

    Attributes:
        title: what it is an estimate of.
        parameters: of one whole model, counted from its configuration.
        download: bytes still to fetch (about).
        file_bytes: size of the files of all checkpoints (about).
        one, together: bytes of the weights kept in memory, of one checkpoint and of all.
        free: bytes free on the device.
        tokens: how many tokens are to be read at each checkpoint.
        seconds_reading: time for that; 0 where none are.
    """

    title: str
    parameters: int
    download: int
    file_bytes: int
    one: int
    together: int
    free: float
    tokens: int = 0
    seconds_reading: float = 0.0

    @property
    def fits(self) -> bool:
        """Whether all fit into the free memory together, leaving a fifth of it for activations."""
        return self.together <= ROOM * self.free

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds to download (at 40 MB/s), to load the files, and to read activations."""
        loading = self.file_bytes / LOAD_RATE
        return {"download": self.download / DOWNLOAD_RATE, "loading": loading, "reading": self.seconds_reading}

    def __str__(self) -> str:
        seconds = {what: show_time(value) for what, value in self.seconds.items()}
        how = "all at once" if self.fits else "one after another" if self.one <= self.free else "too large"
        fetch = f"about {show_size(self.download)}, {seconds['download']} at 40 MB/s" if self.download else "nothing"
        sizes = f"{show_size(self.one)} each, {show_size(self.together)} together, {show_size(self.free)} free: {how}"
        lines = [self.title, f"  model     {self.parameters:,} parameters", f"  download  {fetch}"]
        lines += [f"  memory    {sizes}", f"  loading   about {seconds['loading']}"]
        lines += [f"  reading   {self.tokens:,} tokens at each: about {seconds['reading']}"] if self.tokens else []
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
    found = DTYPES.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise ValueError(f"dtype={str(dtype)!r} is not known.{closest(dtype, DTYPES)} Use auto, {', '.join(DTYPES)}.")
    return found


def free_memory(device: str) -> float:
    """Bytes free for tensors on a device; infinite where the system does not tell."""
    if device.startswith("cuda"):
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own, unused
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.startswith("mps"):
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    meminfo = Path("/proc/meminfo")
    rows = dict(line.split(":") for line in meminfo.read_text().splitlines()) if meminfo.is_file() else {}
    return int(rows["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in rows else float("inf")


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


def reading_speed(device: str, dtype: torch.dtype, d_model: int) -> float:
    """Operations a second of a pass through a model, guessed from matrix products of its width (under a second)."""
    rows = 8192 if device.startswith("cuda") else 512
    x = torch.randn(rows, d_model, device=device, dtype=dtype)
    w = torch.randn(d_model, 4 * d_model, device=device, dtype=dtype)
    float((x @ w)[0, 0])
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < 0.2:
        float((x @ w)[0, 0])  # reading a value waits for the device
        done += 1
    return EFFICIENCY * done * 2 * rows * w.numel() / (time.perf_counter() - start)


def remedies(part: str, dtype: torch.dtype) -> str:
    """What to do where memory is short."""
    ways = ["part='below' where only activations are read"] if part == "all" else []
    ways += ["dtype='float16'"] if dtype.itemsize > 2 else []
    return f"Take {', '.join([*ways, 'a smaller model'])}, or free memory (ckpts.free(), other notebooks)."


def show_size(n: float) -> str:
    """1.02 GB, 375 MB."""
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB" if n >= 1e6 else f"{n / 1e3:.0f} kB"


def show_time(seconds: float) -> str:
    """3.2 h, 14 min, 8 s."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(1, seconds):.0f} s"
