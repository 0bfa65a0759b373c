"""Make the embedded suite: pretrain a small GPT-NeoX on the grammar and keep its checkpoints.

python -m ctt_helpers.toy.pretrain --out data/tiny
"""

import argparse
import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ctt_helpers.runtime import atomic_path, progress, read_json, write_json
from ctt_helpers.toy import grammar
from ctt_helpers.toy.lexicon import END_OF_TEXT, UNKNOWN, lexicon
from ctt_helpers.toy.pairs import TASKS, make_pairs

STEPS = 3000
# log-spaced, as Pythia's are, and denser where agreement is learned
CHECKPOINTS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 320, 384, 512, 700, 850, 1000, 1400, 2000)
BATCH, LENGTH = 8, 64  # sequences a step, tokens a sequence
LEARNING_RATE, FINAL_SHARE, WARM_UP_SHARE = 3e-3, 0.1, 0.03
BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 0.1, 1.0
DEFAULT_LAYER = 2
DEFAULT_TRIPLET = (256, 512, STEPS)  # agreement half learned; the dip across attractors; the end
SAVE_EVERY = 250  # steps between two states to resume from


def model_config() -> Any:
    """The model's architecture: GPT-NeoX, as in Pythia, with four layers of width 64."""
    from transformers import GPTNeoXConfig

    end = lexicon().vocabulary[END_OF_TEXT]
    return GPTNeoXConfig(
        vocab_size=len(lexicon().vocabulary), hidden_size=64, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=256, max_position_embeddings=LENGTH, use_parallel_residual=True, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25},
        bos_token_id=end, eos_token_id=end, pad_token_id=end, use_cache=False, architectures=["GPTNeoXForCausalLM"],
    )  # fmt: skip


def make_tokenizer() -> Any:
    """The word tokenizer: one token a word, its leading space included, and every text comes back as it was."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # the byte-level alphabet writes a space as this letter
    vocabulary = {token.replace(" ", "Ġ"): i for token, i in lexicon().vocabulary.items()}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT,
        unk_token=UNKNOWN, model_max_length=LENGTH, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def pretrain(
    out: str | Path, seed: int = 0, steps: int = STEPS, threads: int = 1, pairs: int = 400, save_every: int = SAVE_EVERY
) -> Path:
    """Make the whole suite in a folder: tokenizer, checkpoints, minimal pairs, suite.json and checksums.

    An interrupted run goes on where it last saved its state, and ends in the same bytes.

    Args:
        out: the folder; it must not exist, be empty, or hold an unfinished run with the same settings.
        seed: of the initial weights, the text and the pairs.
        steps: of training, 512 tokens each.
        threads: CPU threads. Sums come in another order with another number, so the last bits of the weights differ.
        pairs: minimal pairs a task and split.
        save_every: steps between two saved states.

    Returns:
        The folder.

    Raises:
        ValueError: a size below one.
        FileExistsError: the folder holds a finished suite, or something else.
    """
    if min(steps, threads, pairs, save_every) < 1:
        raise ValueError(f"steps={steps}, threads={threads}, pairs={pairs}, save_every={save_every}: at least 1 each.")
    out = Path(out)
    settings = {"seed": seed, "steps": steps, "threads": threads, "pairs": pairs, "torch": torch.__version__}
    _claim(out, settings)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        _train(out, seed, steps, save_every)
    finally:
        torch.set_num_threads(before)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(out)
    model_config().save_pretrained(out)
    for task in TASKS:
        with atomic_path(out / "pairs" / f"{task.name}.jsonl") as temporary:
            lines = [json.dumps(row, ensure_ascii=False) for row in make_pairs(task, pairs, seed)]
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(out / "suite.json", _suite(seed, steps))
    _write_checksums(out)
    shutil.rmtree(out / ".resume")
    return out


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Take an empty folder, or go on with an unfinished run of the same settings; refuse everything else."""
    started = out / ".resume" / "settings.json"
    if started.is_file():
        if (found := read_json(started)) != settings:
            raise FileExistsError(
                f"{out} holds an unfinished run with {found}; this one has {settings}. Go on with the settings of "
                "that run, or choose another --out."
            )
        for leftover in out.glob(".*.tmp-*"):  # of a run that was killed while it wrote
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "a finished suite" if (out / "SHA256SUMS").is_file() else "something else"
        raise FileExistsError(f"{out} holds {what}. It is never overwritten: choose another --out, or move it away.")
    else:
        write_json(started, settings)


def saved_steps(steps: int) -> list[int]:
    """The steps at which a checkpoint is kept, the last one included."""
    return [step for step in CHECKPOINTS if step < steps] + [steps]


def learning_rate(step: int, steps: int) -> float:
    """Learning rate of step 1..steps: linear warm-up, then a cosine down to a tenth."""
    warm_up = max(1, round(WARM_UP_SHARE * steps))
    if step <= warm_up:
        return LEARNING_RATE * step / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return LEARNING_RATE * (FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * done)))


def _new_model(seed: int) -> Any:
    from transformers import GPTNeoXForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPTNeoXForCausalLM(model_config()).float().train()


def _train(out: Path, seed: int, steps: int, save_every: int) -> None:
    rows = torch.from_numpy(grammar.training_rows(seed, BATCH * steps, LENGTH))
    model = _new_model(seed)
    parameters = dict(model.named_parameters())
    matrices = [p for p in parameters.values() if p.ndim > 1]
    vectors = [p for p in parameters.values() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, fused=True)
    done = _load_state(out, parameters, optimizer)
    if not done:
        _save_checkpoint(out, 0, model)
    keep = set(saved_steps(steps))
    for step in progress(range(done + 1, steps + 1), "pretraining", total=steps, initial=done):
        batch = rows[BATCH * (step - 1) : BATCH * step]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        logits = model(input_ids=batch).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), CLIP)
        optimizer.step()
        if step in keep:
            _save_checkpoint(out, step, model)
        if step % save_every == 0 and step < steps:
            _save_state(out, step, parameters, optimizer)


def _save_checkpoint(out: Path, step: int, model: Any) -> None:
    halves = {name: p.detach().half() for name, p in model.named_parameters()}
    with atomic_path(out / f"step{step}") as folder:
        model.config.save_pretrained(folder)
        save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "model.safetensors").chmod(0o644)


def _save_state(out: Path, step: int, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Weights and Adam's moments; the text is a function of the seed, so there is no random state to keep."""
    state = {}
    for name, parameter in parameters.items():
        state |= {f"{key}/{name}": value for key, value in optimizer.state[parameter].items()}
        state[f"weight/{name}"] = parameter.detach()
    with atomic_path(out / ".resume" / "state.safetensors") as temporary:
        save_file(state, temporary, metadata={"step": str(step)})


def _load_state(out: Path, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> int:
    """Put the saved state back, if there is one; returns the steps that are done."""
    path = out / ".resume" / "state.safetensors"
    if not path.is_file():
        return 0
    with safe_open(path, framework="pt") as file, torch.no_grad():
        for key in file.keys():
            kind, name = key.split("/", 1)
            if kind == "weight":
                parameters[name].copy_(file.get_tensor(key))
            else:
                optimizer.state[parameters[name]][kind] = file.get_tensor(key)
        return int(file.metadata()["step"])


def _suite(seed: int, steps: int) -> dict[str, Any]:
    kept = saved_steps(steps)
    triplet = [step for step in DEFAULT_TRIPLET if step in kept]
    triplet = triplet if len(triplet) == len(DEFAULT_TRIPLET) else kept[-3:]
    return {
        "name": "tiny",
        "title": "A small GPT-NeoX pretrained on a grammar of English",
        "architecture": "GPTNeoXForCausalLM",
        "tokens_per_step": BATCH * LENGTH,
        "revisions": [{"revision": f"step{s}", "step": s, "tokens": s * BATCH * LENGTH} for s in kept],
        "default_layer": DEFAULT_LAYER,
        "default_triplet": [f"step{s}" for s in triplet],
        "context_length": LENGTH,
        "seed": seed,
        "tasks": [_describe(task, seed) for task in TASKS],
    }


def _describe(task: Any, seed: int) -> dict[str, str]:
    example = make_pairs(task, 2, seed)[0]
    return {
        "name": f"agreement/{task.name}",
        "file": f"pairs/{task.name}.jsonl",
        "title": task.title,
        "example": f"{example['prefix']}{example['right']}/*{example['wrong'].strip()}",
        "measures": task.measures,
    }


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_checksums(out: Path) -> None:
    paths = [path.relative_to(out) for path in out.rglob("*") if path.is_file()]
    files = sorted(path.as_posix() for path in paths if path.parts[0] not in (".resume", "SHA256SUMS"))
    with atomic_path(out / "SHA256SUMS") as temporary:
        lines = [f"{sha256(out / name)}  {name}\n" for name in files]
        temporary.write_text("".join(lines), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ctt_helpers.toy.pretrain", description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, type=Path, help="folder to make, for example data/tiny")
    parser.add_argument("--seed", type=int, default=0, help="of weights, text and pairs (default: 0)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps of training (default: {STEPS})")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1; a second gains little)")
    given = parser.parse_args(arguments)
    try:
        print(f"Made {pretrain(given.out, given.seed, given.steps, given.threads)}")
    except (FileExistsError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
