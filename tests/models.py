"""Small random models, laid out as the real ones are, for tests."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
    PreTrainedTokenizerFast,
)

from ctt_helpers.suites import Suite, load_suite
from ctt_helpers.tasks import MinimalPairs, make_pairs

WORDS = ["the", "a", "dog", "dogs", "cat", "cats", "near", "that", "sees", "see", "runs", "run", "often", "old", "red"]
BIG = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
ARCHITECTURES = {
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**BIG, eos_token_id=0, bos_token_id=0)),
    "olmo": lambda: OlmoForCausalLM(OlmoConfig(**BIG, eos_token_id=0, pad_token_id=1)),
    "olmo2": lambda: Olmo2ForCausalLM(Olmo2Config(**BIG, eos_token_id=0, pad_token_id=1)),
    "bloom": lambda: BloomForCausalLM(
        BloomConfig(vocab_size=40, hidden_size=32, n_layer=3, n_head=4, eos_token_id=0, bos_token_id=0)
    ),
}


def random_model(architecture: str = "gpt_neox", seed: int = 0) -> torch.nn.Module:
    """A random model whose activations are far from trivial (weights larger than at a usual start)."""
    torch.manual_seed(seed)
    model = ARCHITECTURES[architecture]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0)
    return model


def word_tokenizer() -> PreTrainedTokenizerFast:
    words = ["<|endoftext|>", "<|unk|>", *WORDS, *("Ġ" + w for w in WORDS)]
    backend = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="<|unk|>"))
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|unk|>"
    )


def random_suite(folder: Path, n: int = 3, architecture: str = "gpt_neox") -> Suite:
    """A folder of random checkpoints step0, step100 ..., and the suite made of it."""
    for i in range(n):
        random_model(architecture, seed=i).save_pretrained(folder / f"step{100 * i}")
    word_tokenizer().save_pretrained(folder)
    return load_suite(folder, tokens_per_step=10)


def some_pairs(n: int = 9) -> MinimalPairs:
    """Pairs with prefixes of different lengths."""
    prefixes = ["the dog", "the dog near the cats", "a cat that the dogs see", "the old red dog often", "cats"]
    rows = [
        {"prefix": prefixes[i % len(prefixes)], "right": f" {a}", "wrong": f" {b}"}
        for i, (a, b) in zip(range(n), [("runs", "run"), ("sees", "see"), ("dog", "dogs")] * n, strict=False)
    ]
    return make_pairs(rows, word_tokenizer())


def some_text(rows: int = 12, length: int = 10, seed: int = 0) -> torch.Tensor:
    text = torch.randint(2, 32, (rows, length), generator=torch.Generator().manual_seed(seed))
    text[:, 0] = 0
    return text
