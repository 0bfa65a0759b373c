# %% [markdown]
# # 01 · Hooking checkpoints
#
# A language model is a stack of blocks. Between two blocks runs the **residual stream**: one vector per token, which every
# block reads and adds to. Everything in this course happens there.
#
# **You will learn**
# - what a checkpoint is, and how to load several of one training run;
# - how to read the residual stream after one block, and how to stop the model there;
# - how to put another residual stream in its place, and how to check that you did it right;
# - why we always leave out the first token.
#
# **Time:** 15 minutes to read, half a minute to run. **You need:** some PyTorch. No interpretability.

# %% [markdown]
# ## Parameters
# These are the only numbers you may want to change. `None` means: what the suite says. A rerun with other values is one
# line in a terminal: `papermill 01_hooking_checkpoints.ipynb ../runs/01.ipynb -p layer 1`.

# %% tags=["parameters"]
profile: str = "tiny"  # "tiny", "colab" or "paper": it sets what is None below
model: str | None = None  # a suite: "tiny" is embedded; "pythia-160m" ... from the hub
revisions: list | None = None  # three checkpoints, in the order of training
layer: int | None = None  # the block whose output we read, counted from 0
task: str | None = None  # which minimal pairs to read
n_pairs: int | None = None  # how many of them
pairs_path: str | None = None  # folder of published pairs; None: from where they are published
text_path: str | None = None  # file of text, or a name such as "pile-10k"; None: the suite's own
seed: int = 0  # for the sample of text
device: str = "auto"  # "cpu", "cuda" ...
out: str | None = None  # where the table of norms goes; None: runs/01 of the project

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch

import ctt_helpers as ctt
from ctt_helpers.notebook import checks, plots

suite = ctt.setup(globals(), "01", n_pairs=lambda n: None if n >= 2 else "take at least 2 pairs")
ckpts = suite.checkpoints(revisions or suite.default_triplet, layer=layer, device=device)
print(f"here: {', '.join(ckpts.labels)}; layer {ckpts.layer}")

# %% [markdown]
# ## One training run, many checkpoints
# While a model is pretrained, its weights are saved now and then. Each saved state is a **checkpoint**; on the hub it is
# called a **revision**. All checkpoints of a run share one architecture and one tokenizer. Only the weights differ.
#
# The suite knows how many tokens of text each checkpoint has seen. They do not lie evenly. On the embedded suite they are
# close at first, and further apart once the model's answers change little (notebook 00 showed when).

# %%
seen = {revision: suite.tokens_seen(revision) for revision in suite.revisions}
pd.Series(seen, name="tokens seen").rename_axis("revision").to_frame()

# %% [markdown]
# **Question.** The file sizes of two checkpoints are equal. What else could you compare to make sure that they are not the
# same checkpoint under two names? (It has happened in published suites.) The next cell shows our answer, a **fingerprint**: a
# few characters computed from all the weights, other ones if a single weight is another.

# %%
ckpts.source["fingerprints"]

# %% [markdown]
# ## Inside the model
# `ckpts[i]` loads a checkpoint the first time you use it. The Hugging Face model is under `.hf_model`. Its weights are
# frozen: we look at the model, we never train it.

# %%
late = ckpts[len(ckpts) - 1]
config = late.hf_model.config
print(
    f"{late.architecture}, {late.n_layers} blocks, {config.num_attention_heads} heads, d_model = "
    f"{late.d_model}"
)
print(
    f"{sum(p.numel() for p in late.hf_model.parameters()):,} weights; vocabulary of "
    f"{config.vocab_size} tokens"
)

# %% [markdown]
# ## Minimal pairs
# To ask a model about grammar, we give it a **prefix** and two words that could follow. One is right, one is wrong, and
# they differ in nothing but the point in question. That is a **minimal pair**. On the embedded suite they come in groups:
# all cells of notebook 00, and no other word changed.

# %%
pairs = suite.pairs(task, split="test", n=n_pairs, path=pairs_path)
pairs.text[:5]

# %% [markdown]
# Inside, each prefix is a row of token ids. It begins with the end-of-text token. Shorter rows are filled up **on the
# right**, and a mask says which tokens are real. The **answer position** is the last real token: what the model predicts
# there is the next word.

# %%
row = pairs[:1]
print("tokens        ", [suite.tokenizer.decode([i]) for i in row.input_ids[0].tolist()])
print("answer position", int(row.answer_position[0]))
print("right, wrong  ", [suite.tokenizer.decode([int(i)]) for i in row.answers[0]])

# %% [markdown]
# ## Reading the residual stream
# PyTorch can call a function of ours whenever a block has run: a **hook**. The library *nnsight* makes this readable.
# Inside its `trace`, the model's parts are there to be read, as if the pass were standing still. `.save()` keeps a value;
# `.stop()` ends the pass, so that the blocks above never run.

# %%
on_device = pairs.to(late.device)
with (
    torch.no_grad(),
    late.lm.trace(input_ids=on_device.input_ids, attention_mask=on_device.attention_mask) as tracer,
):
    x = late.blocks[ckpts.layer].output.save()
    tracer.stop()
x.shape  # [pairs, tokens, d_model]

# %% [markdown]
# These lines are right for some models and wrong for others: not every block gives the stream alone. Some give a tuple, the
# stream first and behind it what the next call may want to keep.

# %% [markdown]
# ### Exercise · Unwrap a block's output
# *Difficulty 1 of 5 · importance 4 of 5 · 3 minutes*
#
# Write `unwrap(output)`. It takes what a block gives, a tensor or a tuple, and gives back the residual stream. This is a
# famous bug: where it is wrong nothing fails, and every number after it is.
#
# <details><summary>Hint 1</summary>
#
# `output[0]` of a tuple is its first entry. What is `output[0]` of a tensor `[batch, tokens, d_model]`?
#
# </details>
# <details><summary>Hint 2</summary>
#
# Ask first what you have: `isinstance(output, tuple)`.
#
# </details>


# %% exercise="unwrap"
def unwrap(output):
    """The residual stream [batch, tokens, d_model] in what a block gives."""
    ### BEGIN SOLUTION give back the residual stream, a tensor [batch, tokens, d_model]
    return output[0] if isinstance(output, tuple) else output
    ### END SOLUTION


# %% check="unwrap"
checks.unwrap(unwrap)

# %% [markdown]
# ### Exercise · The same from `hidden_states`
# *Difficulty 2 of 5 · importance 3 of 5 · 5 minutes*
#
# The helper `ctt.residual_stream` is the lines above, with the unwrapping, for every architecture we support. Is it right?
# Compare it with something that knows nothing of hooks. A Hugging Face model called with `output_hidden_states=True` gives
# back `.hidden_states`, a tuple of streams. Write `from_hidden_states(...)`: the output of block `layer`, taken from there.
# (Not for the last block: its entry is taken after the final norm.)
#
# <details><summary>Hint 1</summary>
#
# For a model of four blocks the tuple has five entries. Which one is too many?
#
# </details>
# <details><summary>Hint 2</summary>
#
# The first entry is the embeddings, what goes *into* block 0.
#
# </details>


# %% exercise="from_hidden_states"
def from_hidden_states(hf_model, input_ids, attention_mask, layer):
    """The output of block `layer`, [batch, tokens, d_model]."""
    ### BEGIN SOLUTION give back the output of block `layer`, [batch, tokens, d_model]
    out = hf_model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
    return out.hidden_states[layer + 1]  # entry 0 is the embeddings
    ### END SOLUTION


# %% check="from_hidden_states"
checks.from_hidden_states(from_hidden_states, late)

# %%
helper = ctt.residual_stream(late, pairs.input_ids, pairs.attention_mask)
assert torch.equal(helper, x)  # what the trace gave, to the last bit
helper.shape

# %% [markdown]
# ## Splicing: put something else in its place
# Reading is half of the craft. The other half is **splicing**: replace the residual stream after our layer, and let the
# blocks above go on from there. It is how we will ask what a feature does.
#
# **Question.** What should come out if we splice in exactly what was there? And if we splice in the residual stream of
# *another* checkpoint? Guess before you run the cell.
#
# To see how much harm is done we need a number: the mean surprise at the next token.

# %% [markdown]
# ### Exercise · The loss
# *Difficulty 3 of 5 · importance 4 of 5 · 8 minutes*
#
# Write `next_token_loss(logits, ids)`, from logits `[rows, tokens, vocabulary]` and token ids `[rows, tokens]`: the mean over all
# predictions of −log P(the token that follows), in nats. At position t the model predicts token t + 1. The prediction made *at*
# the first position is left out (see below), and behind the last position nothing follows.
#
# <details><summary>Hint 1</summary>
#
# `logits.log_softmax(-1)` gives log P of every token. Which positions count, and which tokens stand one further?
#
# </details>
# <details><summary>Hint 2</summary>
#
# Positions 1 to the last but one, tokens from 2 on: `[:, 1:-1]` and `[:, 2:]`. Then `.gather(-1, tokens[..., None])`.
#
# </details>


# %% exercise="next_token_loss"
def next_token_loss(logits, ids):
    """Cross-entropy (nats a token) of the next token, without what the first position predicts."""
    ### BEGIN SOLUTION give back the mean surprise, one number in nats
    log_p = logits[:, 1:-1].log_softmax(-1)
    return -log_p.gather(-1, ids[:, 2:, None]).mean().item()
    ### END SOLUTION


# %% check="next_token_loss"
checks.next_token_loss(next_token_loss)

# %%
early = ckpts[0]
text = suite.text(4000, split="validation", seed=seed, path=text_path)


def loss_of(logits):
    """Cross-entropy (nats a token) of the next token, the first position left out."""
    return float(
        torch.nn.functional.cross_entropy(
            logits[:, 1:-1].flatten(0, 1).cpu(), text[:, 2:].flatten()
        )
    )


# %%
own = ctt.residual_stream(late, text)
other = ctt.residual_stream(early, text)
other_layer_input = torch.cat([own[:, :1], other[:, 1:]], dim=1)
zeros = torch.cat([own[:, :1], torch.zeros_like(own[:, 1:])], dim=1)
losses = {
    "the model as it is": loss_of(late.hf_model(text.to(late.device)).logits),
    # None: no padding here
    "its own stream spliced in": loss_of(ctt.spliced_logits(late, text, None, own)),
    f"the stream of {early.label}": loss_of(
        ctt.spliced_logits(late, text, None, other_layer_input)
    ),
    "zeros": loss_of(ctt.spliced_logits(late, text, None, zeros)),
}
pd.Series(losses, name="loss (nats a token)").to_frame().round(3)

# %% [markdown]
# The first two rows must be equal: if splicing the same thing changes anything, the hook is wrong. Always run this check
# first. The other rows are our yardsticks: how bad does it get when the layer says something foreign, or nothing?

# %%
assert losses["its own stream spliced in"] == losses["the model as it is"]
assert losses["zeros"] > losses["the model as it is"]

# %% [markdown]
# ## Only the layers above
# To try a thousand changes at layer `L`, there is no need to run the blocks below a thousand times. `ctt.logits_above`
# starts from a residual stream and runs only what is above. Without more it gives back every logit. From these we can tell
# how often the model takes the right word: its **accuracy** on the minimal pairs.

# %% [markdown]
# ### Exercise · Accuracy on minimal pairs
# *Difficulty 2 of 5 · importance 5 of 5 · 8 minutes*
#
# Write `pair_accuracy(logits, position, answers)`: the share of pairs whose right word has the higher logit *at the answer
# position*. A tie counts as half. `answers[:, 0]` is the id of the right word, `answers[:, 1]` of the wrong one.
#
# <details><summary>Hint 1</summary>
#
# The last column will not do: rows are filled up on the right. `logits[torch.arange(len(logits)), position]` takes from each
# row its own position.
#
# </details>
# <details><summary>Hint 2</summary>
#
# `scores.gather(1, answers)` picks two scores from each row. Then a pair is worth 1, 0.5 or 0.
#
# </details>


# %% exercise="pair_accuracy"
def pair_accuracy(logits, position, answers):
    """Share of pairs that are right, 0 to 1, from logits [pairs, tokens, vocabulary]."""
    ### BEGIN SOLUTION give back the share of pairs that are right, one number
    at_answer = logits[torch.arange(len(logits)), position]
    right, wrong = at_answer.gather(1, answers).T
    return ((right > wrong) + 0.5 * (right == wrong)).double().mean().item()
    ### END SOLUTION


# %% check="pair_accuracy"
checks.pair_accuracy(pair_accuracy)
few = pairs[:20]  # of every pair and place, all logits: that takes room
logits = ctt.logits_above(late, helper[:20], few.attention_mask)  # [pairs, tokens, vocabulary]
share = pair_accuracy(logits.cpu(), few.answer_position, few.answers)
print(f"{late.label} takes the right word in {share:.0%} of the first {len(few)} pairs")

# %% [markdown]
# `ctt.logits_above` can also compute the logits of the two answers alone, which is much less work. `ctt.accuracy` does it
# all.

# %%
answers = ctt.logits_above(
    late, helper, pairs.attention_mask, pairs.answer_position, pairs.answers
)  # [pairs, 2]
right_wins = (answers[:, 0] > answers[:, 1]).double().cpu().mean()
assert abs(float(right_wins) - ctt.accuracy(late, pairs)) < 1e-9
print(f"{late.label} takes the right word in {right_wins:.1%} of {len(pairs)} pairs ({task})")

# %% [markdown]
# ## Two facts about the stream that will matter
# **One: its size changes during training.** We plot the length (norm) of the vectors at each checkpoint. A crosscoder that
# saw them raw would care most for the checkpoint that shouts loudest. So we will scale each checkpoint.
#
# **Two: the first token is special.** It is the end-of-text token in every row, and nothing stands before it. So its vector
# cannot have to do with the text. And attention heads use it as a place to rest.
#
# **Question.** By how much do the vectors of a position differ from row to row? What must come out for the first one?

# %%
streams = {checkpoint.label: ctt.residual_stream(checkpoint, text) for checkpoint in ckpts}
norms = {label: x.norm(dim=-1).mean(0).cpu().numpy() for label, x in streams.items()}
sizes = pd.Series({label: norm[1:].mean() for label, norm in norms.items()})
with plots.style():
    fig, ax = plt.subplots(figsize=(5.6, 3), layout="constrained")
    for label, color in plots.checkpoint_colors(ckpts.labels).items():
        ax.plot(norms[label][:32], color=color, label=label, marker=".", lw=1)
    ax.set(xlabel="position in the sequence", ylabel="mean norm of the residual stream")
    times = sizes.max() / sizes.min()
    found = f"On average largest at {sizes.idxmax()}: {times:.1f} times {sizes.idxmin()}"
    plots.set_title(ax, found)
    ax.legend(title="checkpoint", frameon=False)
plots.show(
    "Mean norm of the residual stream at the first 32 positions, a line for each checkpoint."
)

# %%
table = pd.DataFrame(index=ckpts.labels)
for name, position in (("first token", 0), ("others", slice(1, None))):
    means = {label: norm[position].mean() for label, norm in norms.items()}
    apart = {label: x[:, position].std(0).norm(dim=-1).mean() for label, x in streams.items()}
    table[f"mean norm, {name}"] = pd.Series(means, dtype=float)
    table[f"spread over rows, {name}"] = pd.Series(apart).astype(float)
Path(out).mkdir(parents=True, exist_ok=True)
ctt.files.write_table(Path(out) / "norms.csv", table, index_label="checkpoint")
table.round(1)

# %% [markdown]
# The first token's vector is the same in every row: it spreads by nothing. Statistics that mix it with the others would
# mislead. (In large models it can also have a norm many times that of the others: Xiao et al. 2023 call it an attention
# sink. On the embedded suite its norm is nothing special.) That is why the first token is left out **everywhere** in this
# course: not trained on, not spliced, not ablated, not counted. Prefixes begin with the end-of-text token, so that no word
# of ours falls on that place.
#
# (The second position can be large too: it is always the first word of a sentence. We keep it, because it is a word.)

# %% [markdown]
# ## Padding must not matter
# A last check, for a common bug. We add four empty places on the right. The real tokens must not notice. (With padding on
# the left and a default position, they often do. A difference near 1e-5 is rounding.)

# %%
few = pairs[:3]
longer = torch.nn.functional.pad(few.input_ids, (0, 4), value=suite.tokenizer.eos_token_id)
mask = torch.nn.functional.pad(few.attention_mask, (0, 4), value=0)
before = ctt.residual_stream(late, few.input_ids, few.attention_mask)
after = ctt.residual_stream(late, longer, mask)[:, : before.shape[1]]
print("largest difference:", float((before - after).abs().max()))
assert torch.allclose(before, after, atol=1e-4)

# %% [markdown]
# ## Limits
# - One layer tells a part of the story. What happens in the blocks above is only seen through its effect.
# - A vector can be large and yet unread. Size is not importance: for that we need effects (notebook 04).
#
# ## What to remember
# 1. **Read, replace, go on.** Every effect in this course is a residual stream put in place of the model's own.
# 2. **Splice in what was there, first.** If that changes anything, the hook is wrong, and so is all that follows.
# 3. **The first token is no word.** It is left out everywhere.
#
# **Next:** 02 · Picking a triplet: which checkpoints are worth comparing? · All words are in the [glossary](GLOSSARY.md). ·
# To read more: the documentation of nnsight; Elhage et al., *A Mathematical Framework for Transformer Circuits* (2021), on
# the residual stream.

# %% [markdown]
# ## Check yourself
#
# 1. A hook is wrong, but all shapes fit and nothing fails. Which single test finds most such mistakes?
#
# <details><summary>Answer</summary>
#
# Splice in exactly what was read. If any logit changes, reading or replacing is wrong.
#
# </details>
#
# 2. Why is `output[0]` of a block a dangerous line?
#
# <details><summary>Answer</summary>
#
# Of a tuple it is the stream. Of a tensor it is the first sequence of the batch alone, with one axis less; much of what
# follows runs with that, too.
#
# </details>
#
# 3. Rows are filled up on the right. Why is `logits[:, -1]` the wrong place to look for the next word?
#
# <details><summary>Answer</summary>
#
# In shorter rows the last column is padding. The next word is predicted at the last *real* token, the answer position.
#
# </details>
#
# 4. The first token's vector is large in many models. Why not simply scale it down and keep it?
#
# <details><summary>Answer</summary>
#
# It is the same in every row, so it can say nothing about the text; and other tokens rest their attention on it, so
# changing it changes everything at once.
#
# </details>
