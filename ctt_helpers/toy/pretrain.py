"""Make the embedded suite: pretrain a small GPT-NeoX on the grammar and keep its checkpoints.

python -m ctt_helpers.toy.pretrain --out data/tiny
"""

import argparse
import json
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ctt_helpers.files import (
    SUMS,
    InUse,
    atomic_path,
    expanded,
    load_folder,
    locked,
    read_json,
    save_folder,
    write_json,
    write_sums,
)
from ctt_helpers.messages import progress, told_when_stopped
from ctt_helpers.toy import grammar
from ctt_helpers.toy.lexicon import END_OF_TEXT, UNKNOWN, lexicon
from ctt_helpers.toy.pairs import LEVELS, TASKS, Task, check_number, make_pairs

STEPS = 3000
# log-spaced, as Pythia's are, and denser where agreement is learned
CHECKPOINTS = (0, 16, 64, 128, 192, 256, 320, 384, 512, 600, 700, 850, 1000, 1400, 2000)
BATCH = 8  # sequences per step
LENGTH = 64  # tokens per sequence
LEARNING_RATE = 3e-3  # the largest
FINAL_SHARE = 0.1  # the last learning rate, over the largest
WARM_UP_SHARE = 0.03  # of the steps
BETAS = (0.9, 0.95)  # Adam's decay rates
WEIGHT_DECAY = 0.1  # of matrices only
CLIP = 1.0  # largest norm of the gradient over all parameters
DEFAULT_LAYER = 1
DEFAULT_TRIPLET = (320, 600, STEPS)  # what `suggest_triplet` says: the dip, half way, the end
SAVE_EVERY = 250  # steps between two states to resume from
RESUME = ".resume"  # folder of an unfinished run: its settings and its last state
SETTINGS, STATE = "settings.json", ("state.safetensors", "state.json")

# ---- the model and its tokenizer


def model_config() -> Any:
    """The model's architecture: GPT-NeoX, as in Pythia, with four layers of width 96."""
    from transformers import GPTNeoXConfig

    vocabulary = lexicon().vocabulary
    end = vocabulary[END_OF_TEXT]
    return GPTNeoXConfig(
        vocab_size=len(vocabulary),
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=384,
        max_position_embeddings=LENGTH,
        use_parallel_residual=True,
        tie_word_embeddings=False,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 0.25,
        },
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        use_cache=False,
        architectures=["GPTNeoXForCausalLM"],
    )


def make_tokenizer() -> Any:
    """The tokenizer: one token per word, which includes the leading space.

    Decoding gives back every text that it has encoded.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # the byte-level alphabet writes a space as this letter
    vocabulary = {token.replace(" ", "Ġ"): i for token, i in lexicon().vocabulary.items()}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        unk_token=UNKNOWN,
        model_max_length=LENGTH,
        clean_up_tokenization_spaces=False,
    )


# ---- the whole suite


def pretrain(
    out: str | Path,
    seed: int = 0,
    steps: int = STEPS,
    threads: int = 1,
    pairs: int = 240,
    save_every: int = SAVE_EVERY,
) -> Path:
    """Make the whole suite in a folder.

    It consists of the tokenizer, the checkpoints, the minimal pairs, suite.json and checksums. A
    run that was interrupted goes on from its last saved state, and ends in the same bytes.

    Args:
        out: the folder. It must not exist, or be empty, or hold an unfinished run with the same
            settings.
        seed: of the initial weights, the text and the pairs.
        steps: training steps, of 512 tokens each.
        threads: CPU threads. Another number changes the order of sums, and so the last bits of the
            weights.
        pairs: minimal pairs per task and split; a multiple of 8.
        save_every: steps between two saved states.

    Returns:
        The folder.

    Raises:
        ValueError: a size below one, or a number of pairs that groups of 8 cannot make.
        FileExistsError: the folder holds a finished suite, or something else.
        files.InUse: another process is at work on this folder.
    """
    check_number(pairs)
    if min(steps, threads, pairs, save_every) < 1:
        raise ValueError(
            f"steps={steps}, threads={threads}, pairs={pairs}, save_every={save_every}: "
            "at least 1 each."
        )
    out = expanded(out)
    settings = {
        "seed": seed,
        "steps": steps,
        "kind": "pretraining",
        "threads": threads,
        "pairs": pairs,
        "torch": torch.__version__,
    }
    with told_when_stopped(lambda: _kept(out, steps)), _claimed(out, settings):
        _remove_leftovers(out)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            _train(out, seed, steps, save_every)
        finally:
            torch.set_num_threads(before)
        _save_tokenizer_and_config(out)
        for task in TASKS:
            _write_pairs(out / task.file, task, pairs, seed)
        write_json(out / "suite.json", _suite(seed, steps))
        write_sums(out, leave_out=lambda name: name.startswith(f"{RESUME}/"))
        # from here on the suite counts as finished
        _finish(out / RESUME)
    return out


@contextmanager
def _claimed(out: Path, settings: dict[str, Any]) -> Iterator[None]:
    """Hold an empty folder, or that of an unfinished run of the same settings.

    Raises:
        FileExistsError: the folder holds anything else, or a run with other settings.
        files.InUse: another process is at work on it.
    """
    _check_folder(out, settings)
    resume = out / RESUME
    try:
        with locked(resume):
            _check_folder(out, settings)  # another process may just have finished
            if not (resume / SETTINGS).is_file():
                write_json(resume / SETTINGS, settings, checksum=True)
            yield
    finally:
        if resume.is_dir() and not any(resume.iterdir()):
            resume.rmdir()


def _check_folder(out: Path, settings: dict[str, Any]) -> None:
    """Raise FileExistsError unless this run may begin in a folder, or go on there."""
    if (out / RESUME / SETTINGS).is_file():
        found = read_json(out / RESUME / SETTINGS)
        if found != settings:
            raise FileExistsError(
                f"{out} holds an unfinished run with {found}; this one has {settings}. Go on with "
                "the settings of that run, or choose another --out."
            )
    elif out.exists() and not (out.is_dir() and _is_bare(out)):
        what = "a finished suite" if (out / SUMS).is_file() else "something else"
        raise FileExistsError(
            f"{out} holds {what}. It is never overwritten: choose another --out, or move it away."
        )


def _is_bare(out: Path) -> bool:
    """Whether a folder is empty, or was only just taken when its process was killed."""
    if any(path.name != RESUME for path in out.iterdir()):
        return False
    there = [path.name for path in (out / RESUME).glob("*")]
    return all(name == ".lock" or f".{SETTINGS}.tmp-" in name for name in there)


def _finish(resume: Path) -> None:
    """Remove what a run is taken up from; its settings, by which it is known, go last."""
    for path in sorted(resume.iterdir(), key=lambda path: path.name == SETTINGS):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != ".lock":
            path.unlink()


def _kept(out: Path, steps: int) -> tuple[str, str]:
    """What a person who stopped the pretraining needs to know."""
    if (out / SUMS).is_file():
        return f"The suite is finished, in {out}.", "There is nothing left to do."
    state = out / RESUME / STATE[1]
    if not state.is_file():
        return f"No step is kept in {out} yet.", "The same command begins anew."
    done = read_json(state)["step"]
    return f"Step {done} of {steps} is kept in {out}.", "The same command goes on from there."


def _remove_leftovers(out: Path) -> None:
    """Remove what a run left behind that was killed while it wrote.

    Only the process that holds the lock may do this: to another one they are no leftovers.
    """
    for leftover in out.glob(".*.tmp-*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def _save_tokenizer_and_config(out: Path) -> None:
    """Write what Hugging Face writes file by file; each comes into the folder when it is whole."""
    room = out / RESUME / "rest"
    make_tokenizer().save_pretrained(room)
    model_config().save_pretrained(room)
    for path in room.iterdir():
        path.replace(out / path.name)


def _write_pairs(path: Path, task: Task, n: int, seed: int) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in make_pairs(task, n, seed)]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


# ---- training


def saved_steps(steps: int) -> list[int]:
    """The steps at which a checkpoint is kept, the last one included."""
    return [step for step in CHECKPOINTS if step < steps] + [steps]


def learning_rate(step: int, steps: int) -> float:
    """The learning rate: a linear warm-up, then a cosine down to a tenth of the largest.

    Args:
        step: counted from 1.
        steps: of the whole training.
    """
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


def _new_optimizer(parameters: dict[str, Tensor]) -> torch.optim.Optimizer:
    """AdamW, with weight decay for matrices but not for biases and norms."""
    matrices = [p for p in parameters.values() if p.ndim > 1]
    vectors = [p for p in parameters.values() if p.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, fused=True)


def _train(out: Path, seed: int, steps: int, save_every: int) -> None:
    """Train from the last saved state, or from the start, and write the checkpoints."""
    rows = torch.from_numpy(grammar.training_rows(seed, BATCH * steps, LENGTH))
    model = _new_model(seed)
    parameters = dict(model.named_parameters())
    optimizer = _new_optimizer(parameters)
    done = _load_state(out, parameters, optimizer)
    if done == 0:
        _save_checkpoint(out, 0, model)
    keep = set(saved_steps(steps))
    for step in progress(range(done + 1, steps + 1), "pretraining", total=steps, initial=done):
        batch = rows[BATCH * (step - 1) : BATCH * step]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        logits = model(input_ids=batch).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten()
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), CLIP)
        optimizer.step()
        if step in keep:
            _save_checkpoint(out, step, model)
        if step % save_every == 0 and step < steps:
            _save_state(out, step, parameters, optimizer)


# ---- checkpoints, and states to resume from


def _save_checkpoint(out: Path, step: int, model: Any) -> None:
    path = out / f"step{step}"
    if path.exists():
        # It was renamed into place before the run was interrupted. So it is whole, and has the
        # bytes that would be written now.
        return
    halves = {name: p.detach().half() for name, p in model.named_parameters()}
    with atomic_path(path) as folder:
        model.config.save_pretrained(folder)
        save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})
        # safetensors makes files that only their owner can read
        (folder / "model.safetensors").chmod(0o644)


def _save_state(
    out: Path, step: int, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> None:
    """Save the weights and Adam's moments.

    The text is a function of the seed, so there is no random state to keep.
    """
    state = {}
    for name, parameter in parameters.items():
        for kind, value in optimizer.state[parameter].items():
            state[f"{kind}/{name}"] = value
        state[f"weight/{name}"] = parameter.detach()
    save_folder(out / RESUME, "pretraining state", state, {"step": step}, STATE)


def _load_state(out: Path, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> int:
    """Put the saved state back, where there is one; returns how many steps are done."""
    if not (out / RESUME / STATE[1]).is_file():
        return 0
    settings, state = load_folder(out / RESUME, "pretraining state", STATE)
    with torch.no_grad():
        for key, value in state.items():
            kind, name = key.split("/", 1)
            parameter = parameters[name]
            if kind == "weight":
                parameter.copy_(value)
            else:
                optimizer.state[parameter][kind] = value
    return settings["step"]


# ---- suite.json


def _suite(seed: int, steps: int) -> dict[str, Any]:
    kept = saved_steps(steps)
    triplet = [step for step in DEFAULT_TRIPLET if step in kept]
    if len(triplet) < len(DEFAULT_TRIPLET):  # a short run, which never comes to these steps
        triplet = kept[-3:]
    revisions = [
        {"revision": f"step{step}", "step": step, "tokens": step * BATCH * LENGTH} for step in kept
    ]
    return {
        "name": "tiny",
        "title": "A small GPT-NeoX pretrained on a grammar of English",
        "architecture": "GPTNeoXForCausalLM",
        "tokens_per_step": BATCH * LENGTH,
        "revisions": revisions,
        "default_layer": DEFAULT_LAYER,
        "default_triplet": [f"step{step}" for step in triplet],
        "context_length": LENGTH,
        "seed": seed,
        "tasks": [_describe(task, seed) for task in TASKS],
    }


def _describe(task: Task, seed: int) -> dict[str, Any]:
    example = make_pairs(task, 8, seed)[0]
    factors = {"subject": list(LEVELS[task.factor])}
    carried = {}
    if task.attractor:
        factors["attractor"] = list(LEVELS[task.factor])
        carried["attractor"] = task.attractor
    if task.others:
        factors["other"] = list(LEVELS[task.factor])
        carried["other"] = task.others
    return {
        "name": task.name,
        "file": task.file,
        "title": task.title,
        "example": f"{example['prefix']}{example['right']}/*{example['wrong'].strip()}",
        "measures": task.measures,
        "crosses": task.factor,
        "factors": factors,
        "carried_by": carried,
    }


# ---- the command line


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line.

    Args:
        arguments: what follows the command's name; None: what the process was started with.
    """
    parser = argparse.ArgumentParser(
        prog="python -m ctt_helpers.toy.pretrain", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--out", required=True, type=Path, help="folder to make, for example data/tiny"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of weights, text and pairs (default: 0)"
    )
    parser.add_argument(
        "--steps", type=int, default=STEPS, help=f"steps of training (default: {STEPS})"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads (default: 1; a second gains little)"
    )
    given = parser.parse_args(arguments)
    try:
        made = pretrain(given.out, seed=given.seed, steps=given.steps, threads=given.threads)
    except (OSError, ValueError, InUse) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        sys.exit(130)  # what is kept has been said
    print(f"Made {made}")


if __name__ == "__main__":
    main()
