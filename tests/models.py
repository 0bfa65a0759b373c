"""Small random models of every architecture, laid out as the real ones are, for tests."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from ctt_helpers.pairs import MinimalPairs, make_pairs
from ctt_helpers.sources.suites import Suite, load_suite

WORDS = [
    "the", "a", "dog", "dogs", "cat", "cats", "near", "that", "sees", "see", "runs", "run", "often",
    "old", "red",
]  # fmt: skip
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
PLAIN = {
    "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64, **SPECIAL,
}  # fmt: skip
GEMMA = {**PLAIN, "head_dim": 8, "query_pre_attn_scalar": 8}
GPT2 = {"vocab_size": 40, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, **SPECIAL}
# model type -> its configuration; scaled and capped logits where the class knows them
CONFIGS = {
    "bloom": {"vocab_size": 40, "hidden_size": 32, "n_layer": 3, "n_head": 4, **SPECIAL},
    "cohere": {**PLAIN, "logit_scale": 0.25},
    "cohere2": {**PLAIN, "logit_scale": 0.25},
    "gemma2": {**GEMMA, "final_logit_softcapping": 5.0},
    "gemma3_text": {**GEMMA, "final_logit_softcapping": 5.0},
    "gpt2": GPT2,
    "gpt_neo": {
        "vocab_size": 40, "hidden_size": 32, "num_layers": 3, "num_heads": 4,
        "attention_types": [[["global", "local"], 1], [["global"], 1]],
        "max_position_embeddings": 64, "intermediate_size": 48, **SPECIAL,
    },
    "gpt_neox": {key: PLAIN[key] for key in PLAIN if key != "num_key_value_heads"},
    "granite": {**PLAIN, "logits_scaling": 3.0},
    "llama": PLAIN,
    "mistral": PLAIN,
    "olmo": PLAIN,
    "olmo2": PLAIN,
    "olmo3": PLAIN,
    "opt": {
        "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": 32, **SPECIAL,
    },
    "phi": PLAIN,
    "qwen2": PLAIN,
    "qwen3": {**PLAIN, "head_dim": 8},
    "smollm3": PLAIN,
}  # fmt: skip
# decoders without a row of their own, whose parts have to be found
WITHOUT_A_ROW = {
    "falcon": {**PLAIN, "multi_query": True},
    "gemma": {**PLAIN, "head_dim": 8},
    "gptj": {**GPT2, "rotary_dim": 4},
    "stablelm": PLAIN,
}
EAGER_ONLY = ("bloom", "gemma2", "gpt_neo", "gptj")


def random_model(
    architecture: str = "gpt_neox",
    seed: int = 0,
    attention: str | None = None,
    gain: float = 6.0,
    **settings,
) -> torch.nn.Module:
    """A random model whose activations are far from trivial (weights larger than at a usual
    start).
    """
    torch.manual_seed(seed)
    facts = {**(CONFIGS | WITHOUT_A_ROW)[architecture], **settings}
    config = AutoConfig.for_model(architecture, **facts)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(gain)
    return model


def word_tokenizer(bos: str | None = "<|endoftext|>") -> PreTrainedTokenizerFast:
    words = ["<|endoftext|>", "<|unk|>", *WORDS, *("Ġ" + word for word in WORDS)]
    vocabulary = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<|unk|>"))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = {"eos_token": "<|endoftext|>", "unk_token": "<|unk|>"}
    special |= {"bos_token": bos} if bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def random_suite(folder: Path, n: int = 3, architecture: str = "gpt_neox") -> Suite:
    """A folder of random checkpoints step0, step100 ..., and the suite made of it."""
    for i in range(n):
        random_model(architecture, seed=i).save_pretrained(folder / f"step{100 * i}")
    word_tokenizer().save_pretrained(folder)
    return load_suite(folder, tokens_per_step=10)


def some_pairs(n: int = 9) -> MinimalPairs:
    """Pairs with prefixes of different lengths."""
    prefixes = [
        "the dog",
        "the dog near the cats",
        "a cat that the dogs see",
        "the old red dog often",
        "cats",
    ]
    answers = [("runs", "run"), ("sees", "see"), ("dog", "dogs")]
    rows = []
    for i in range(n):
        right, wrong = answers[i % len(answers)]
        prefix = prefixes[i % len(prefixes)]
        rows.append({"prefix": prefix, "right": f" {right}", "wrong": f" {wrong}"})
    return make_pairs(rows, word_tokenizer())


def some_text(rows: int = 12, length: int = 10, seed: int = 0) -> torch.Tensor:
    text = torch.randint(2, 32, (rows, length), generator=torch.Generator().manual_seed(seed))
    text[:, 0] = 0
    return text
