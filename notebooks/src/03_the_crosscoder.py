# %% [markdown] part="a crosscoder from nothing" reading=6
# # 03 · The crosscoder
#
# A residual stream may hold more ideas than it has numbers. The model writes them on top of each other, as directions that
# overlap. A **sparse dictionary** takes such a vector apart into a few **features** (also called **latents**) out of many.
# A **crosscoder** does so for several checkpoints at once, *with one shared dictionary*: feature 17 of the early model and
# feature 17 of the late one are the same feature, with a decoder for each.
#
# **You will learn**
# - what goes in and what comes out, shape by shape, and to write and train one yourself in a dozen lines;
# - to say whether it is any good, next to something simpler, and what the part that it misses can do;
# - where a feature is *written*, and how one setting of the training can make that up.
#
# **Time:** 30 minutes to read, about a minute to run. **You need:** notebooks 01 and 02.

# %% tags=["parameters"]
profile: str = "tiny"  # "tiny", "colab" or "paper": it sets what is None below
model: str | None = None  # a suite
revisions: list | None = None  # the checkpoints to compare; None: the suite's default triplet
layer: int | None = None  # the block whose output we read
n_latents: int | None = None  # size of the dictionary
k: int | None = None  # features kept a token, on average
decoder_norm: float | None = None  # of each decoder vector before the first step
steps: int | None = None  # optimiser steps
batch_size: int | None = None  # tokens a step
n_tokens: int | None = None  # tokens of training text
n_eval_tokens: int | None = None  # tokens of held-out text
text_path: str | None = None  # file of text, or a name such as "pile-10k"; None: the suite's own
cache_folder: str | None = None  # where activations are kept, each read once; None: nowhere
training: dict | None = None  # further settings of TrainConfig, such as {"lr": 1e-3}
train: bool = True  # False: load the crosscoder that is shipped with the suite
penalty: float | None = None  # of a second crosscoder, for the last experiment; None: leave it out
tasks: list | None = None  # to see what the features carry; None: a few of the suite's
n_pairs: int = 160  # pairs a task
pairs_path: str | None = None  # folder of published pairs; None: from where they are published
seed: int = 0
device: str = "auto"
out: str | None = None  # where the crosscoder goes; None: runs/03 of the project

# %%
from itertools import islice
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML, display

import ctt_helpers as ctt
from ctt_helpers.notebook import checks, plots, widgets
from ctt_helpers.notebook.parameters import top_folder

suite = ctt.setup(globals(), "03", steps=lambda n: None if n >= 20 else "take at least 20 steps")
ckpts = suite.checkpoints(revisions or suite.default_triplet, layer=layer, device=device)
print(f"{suite.name} at {', '.join(ckpts.labels)}, layer {ckpts.layer}")

# %% [markdown]
# Training is the slow part. With a real model, look at what it will take on *this* machine before you start it.

# %% tags=["estimate"]
if suite.name != "tiny":
    made = {"n_latents": n_latents, "k": k, "steps": steps, "batch_size": batch_size}
    made["bf16"] = training.get("bf16", False)
    print(
        ctt.estimate(
            ckpts, tokens=steps * batch_size + n_eval_tokens, evaluated=n_eval_tokens, **made
        )
    )

# %% [markdown]
# ## What goes in
# We read the same text with every checkpoint and stack what we find: `[tokens, checkpoints, d_model]`. One row is *one
# token in one context*, seen by several states of the same model. `ActivationStream` serves such rows in shuffled batches,
# without end. The first token of each sequence is left out.
#
# The checkpoints' vectors differ in length. We bring each to the same mean norm, the square root of `d_model`, so that no
# checkpoint dominates. Those factors are the **scales** $s_c$.

# %% [markdown]
# ### Exercise · The scales
# *Difficulty 2 of 5 · importance 3 of 5 · 4 minutes*
#
# Write `scales_of(x)` for activations `[tokens, checkpoints, d_model]`: the factors that bring the *mean norm* of each
# checkpoint to $\sqrt{d_{model}}$.
#
# <details><summary>Hint 1</summary>
#
# `x.norm(dim=-1)` is the length of every vector, `[tokens, checkpoints]`.
#
# </details>
# <details><summary>Hint 2</summary>
#
# A mean of norms is not the norm of a mean. And scale times mean norm is to be $\sqrt{d_{model}}$.
#
# </details>


# %% exercise="scales_of"
def scales_of(x):
    """The factor of each checkpoint, [checkpoints]."""
    ### BEGIN SOLUTION give back one factor for each checkpoint
    return x.shape[-1] ** 0.5 / x.norm(dim=-1).mean(0)
    ### END SOLUTION


# %% check="scales_of"
checks.scales_of(scales_of)

# %%
text = suite.text(n_tokens, split="train", seed=seed, path=text_path)
stream = ctt.ActivationStream(ckpts, text, batch_size=batch_size, seed=seed)
if cache_folder:  # for much text, or checkpoints that do not fit into memory together
    stream = ctt.ActivationCache.build(ckpts, text, cache_folder).stream(batch_size, seed)
x = next(stream.batches())
scales = stream.scales().to(x.device)
norm = x.norm(dim=-1).mean(0)
print("x", tuple(x.shape))
table = {"mean norm": norm.cpu(), "scale": scales.cpu(), "scaled": (norm * scales).cpu()}
pd.DataFrame(table, index=ckpts.labels).round(2)

# %% [markdown]
# ## The model, and a loop to train it
# Let $\tilde x_c = s_c x_c$. The crosscoder reads all checkpoints into one code $f$, and writes it back to each:
#
# $$f = \mathrm{ReLU}\Big(\sum_c \tilde x_c W_{enc}^c + b_{enc}\Big), \qquad \hat x_c = f\, W_{dec}^c + b_{dec}^c .$$
#
# **Question.** Of $\tilde x$, $f$ and $\hat x$, which has no index $c$? Why is that the whole point?
#
# <details><summary>Answer</summary>
#
# It is $f$. One code for all checkpoints: that is why one feature can be followed from checkpoint to checkpoint.
#
# </details>

# %% [markdown]
# ### Exercise · Encode
# *Difficulty 2 of 5 · importance 5 of 5 · 7 minutes*
#
# Write `encode(x, scales, W_enc, b_enc)`: from raw activations `[tokens, checkpoints, d_model]` to the code `[tokens,
# latents]`. `scales` is `[checkpoints]`, `W_enc` is `[checkpoints, d_model, latents]`. BatchTopK comes later.
#
# <details><summary>Hint 1</summary>
#
# The formula begins with $\tilde x$, not with $x$. `scales[:, None]` has a shape that fits.
#
# </details>
# <details><summary>Hint 2</summary>
#
# `torch.einsum("tcd,cdh->th", ...)` adds up over checkpoints and dimensions in one go.
#
# </details>


# %% exercise="encode"
def encode(x, scales, W_enc, b_enc):
    """The code f, [tokens, latents], of raw activations."""
    ### BEGIN SOLUTION give back the code f, [tokens, latents]
    return torch.relu(torch.einsum("tcd,cdh->th", x * scales[:, None], W_enc) + b_enc)
    ### END SOLUTION


# %% check="encode"
checks.encode(encode)

# %% [markdown]
# ### Exercise · Decode
# *Difficulty 2 of 5 · importance 4 of 5 · 5 minutes*
#
# Write `decode(f, scales, W_dec, b_dec)`: from the code back to **raw** activations `[tokens, checkpoints, d_model]`. (The
# $\hat x$ of the formula is scaled; the function undoes that.) `W_dec` is `[latents, checkpoints, d_model]`, `b_dec` is `[checkpoints, d_model]`.
#
# <details><summary>Hint 1</summary>
#
# The formula gives the rebuilt $\tilde x$. How do you come back to $x$?
#
# </details>
# <details><summary>Hint 2</summary>
#
# The bias lives in scaled space, too.
#
# </details>


# %% exercise="decode"
def decode(f, scales, W_dec, b_dec):
    """Raw activations, [tokens, checkpoints, d_model], from a code."""
    ### BEGIN SOLUTION give back raw activations, [tokens, checkpoints, d_model]
    return (torch.einsum("th,hcd->tcd", f, W_dec) + b_dec) / scales[:, None]
    ### END SOLUTION


# %% check="decode"
checks.decode(decode)

# %% [markdown]
# A dictionary larger than the space could copy its input and explain nothing. We want *few* active features. The size of
# feature $i$ on a token is $f_i u_i$, where $u_i = \sum_c \lVert W_{dec,i}^c \rVert$ is the length of all that it writes.
# **BatchTopK** keeps, in a batch of $B$ tokens, the $kB$ largest sizes and sets the rest to 0.

# %% [markdown]
# ### Exercise · BatchTopK
# *Difficulty 3 of 5 · importance 4 of 5 · 8 minutes*
#
# Write `batch_topk(f, norms, k)`. `f` is `[tokens, latents]`, `norms` are the $u_i$, `[latents]`. Give back `f` with all but
# the largest *sizes* set to 0. (Here no two sizes are equal.)
#
# <details><summary>Hint 1</summary>
#
# A quiet token may keep none, and a loud one many: all sizes of the batch stand in one line.
#
# </details>
# <details><summary>Hint 2</summary>
#
# `.flatten().topk(n).values[-1]` is the smallest of the n largest. Which of `f`, sizes or a mask do you give back?
#
# </details>


# %% exercise="batch_topk"
def batch_topk(f, norms, k):
    """f with only the k * tokens largest sizes f_i u_i left, [tokens, latents]."""
    ### BEGIN SOLUTION give back f with all but the largest sizes set to 0
    sizes = f * norms
    smallest = sizes.flatten().topk(k * len(f)).values[-1]
    return f * (sizes >= smallest)
    ### END SOLUTION


# %% check="batch_topk"
checks.batch_topk(batch_topk)

# %% [markdown]
# Now a loop: encode, keep the largest, decode, compare, move the weights. That is all; it is a crosscoder, from nothing.
#
# ### Exercise · A step of training
# *Difficulty 4 of 5 · importance 5 of 5 · 15 minutes*
#
# Write `training_step(x, scales, weights, k, optimiser)`, with raw activations `x`. The **loss** is the squared difference of
# $\tilde x$ and $\hat x$, both in scaled space: summed over checkpoints and dimensions, its mean over tokens. The optimiser
# holds the weights already. (It takes what you wrote above: code, sizes, decoder. Where you left one out, copy its solution.)
# Your check also runs your loop on the model's activations: watch it learn.
#
# <details><summary>Hint 1</summary>
#
# In scaled space nothing has to be divided: compare `x * scales[:, None]` with what the decoder gives before the way back.
#
# </details>
# <details><summary>Hint 2</summary>
#
# The last three lines are always the same: `optimiser.zero_grad()`, `loss.backward()`, `optimiser.step()`.
#
# </details>


# %% exercise="training_step"
def training_step(x, scales, weights, k, optimiser):
    """One step on raw activations [tokens, checkpoints, d_model]; the loss, a number."""
    W_enc, b_enc, W_dec, b_dec = weights
    ### BEGIN SOLUTION take one step, and give back the loss, a number
    target = x * scales[:, None]
    f = torch.relu(torch.einsum("tcd,cdh->th", target, W_enc) + b_enc)  # encode
    sizes = f * W_dec.norm(dim=-1).sum(1)  # BatchTopK: the k largest a token, on average
    f = f * (sizes >= sizes.flatten().topk(k * len(x)).values[-1])
    rebuilt = torch.einsum("th,hcd->tcd", f, W_dec) + b_dec  # decode
    loss = (target - rebuilt).pow(2).sum((1, 2)).mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.item()
    ### END SOLUTION


# %% check="training_step" points=2
checks.training_step(training_step)
draw = torch.Generator().manual_seed(seed)
W_dec = torch.randn(n_latents, len(ckpts), ckpts.d_model, generator=draw).to(x.device)
W_dec *= decoder_norm / W_dec.norm(dim=-1, keepdim=True)
W_enc, b_enc = W_dec.permute(1, 2, 0).clone(), torch.zeros(n_latents, device=x.device)
weights = [W_enc, b_enc, W_dec, torch.zeros_like(x[0])]  # the last one is b_dec
adam = torch.optim.Adam([w.requires_grad_() for w in weights], lr=2e-3)

for step, batch in enumerate(islice(stream.batches(), 61)):
    loss = training_step(batch, scales, weights, k, adam)
    if step % 20 == 0:
        scaled = batch * scales[:, None]
        spread = (scaled - scaled.mean(0)).pow(2).sum((1, 2)).mean().item()
        print(f"step {step:2}: {1 - loss / spread:.3f} of the variance explained")

# %% [markdown]
# **Try it.** Change one line of the step and run the loop again: keep the $k$ largest of *each* token (`topk` along dimension 1), or leave
# BatchTopK out and add `0.1 * sizes.sum(1).mean()` to the loss, the older **L1** (`sizes` are all $f_i u_i$, before any cut). What happens to the share explained? And
# what does L1 want from $u_i$?

# %% [markdown] part="is it any good?" reading=11
# ## Training in earnest
# `ctt.train` does the same as our loop for longer, with four things that are worth having:
#
# - $k$ starts large and falls to its value over the first half of training;
# - features that have gone silent get a small loss of their own (**AuxK**): they learn to rebuild what the others miss;
# - the learning rate falls to 0 in the end;
# - a **threshold** is learnt, the running mean of the smallest size that was kept. In training, a feature's fate depends
#   on its batch. Afterwards whatever exceeds the threshold counts, and one token's code depends on that token alone.

# %% [markdown]
# ### Exercise · The threshold
# *Difficulty 1 of 5 · importance 4 of 5 · 3 minutes*
#
# Write `above_threshold(f, norms, threshold)`, which takes the place of `batch_topk` after training. What is compared with the
# threshold: a feature's activation, or its size?
#
# <details><summary>Hint 1</summary>
#
# The threshold was learnt from the smallest *size* that was kept.
#
# </details>
# <details><summary>Hint 2</summary>
#
# A comparison gives a mask. `f` times a mask is `f`, or 0.
#
# </details>


# %% exercise="above_threshold"
def above_threshold(f, norms, threshold):
    """f where its size f_i u_i is above the threshold, else 0; [tokens, latents]."""
    ### BEGIN SOLUTION give back what is left of f, [tokens, latents]
    return f * (f * norms > threshold)
    ### END SOLUTION


# %% check="above_threshold"
checks.above_threshold(above_threshold)

# %% [markdown]
# `ctt.Crosscoder` is the package's version. Does it do what your formulas do? We compare before the first step.

# %%
size = {"n_checkpoints": len(ckpts), "d_model": ckpts.d_model, "n_latents": n_latents, "k": k}
start = {"decoder_norm": decoder_norm, "seed": seed}
crosscoder = ctt.Crosscoder(**size, **start, scales=scales.cpu()).to(x.device)
with torch.no_grad():
    target = x * scales[:, None]
    f = torch.relu(torch.einsum("tcd,cdh->th", target, crosscoder.W_enc) + crosscoder.b_enc)
    crosscoder.eval()  # its threshold is still 0: nothing is cut off yet
    assert torch.allclose(f, crosscoder.encode(x), atol=1e-3)
    rebuilt = torch.einsum("th,hcd->tcd", f, crosscoder.W_dec) / scales[:, None]
    assert torch.allclose(rebuilt, crosscoder.decode(f), rtol=1e-4, atol=1e-3)

# %%
config = ctt.TrainConfig(steps=steps, **training)
if train:
    result = ctt.train(crosscoder, stream, config, out=Path(out), device=str(x.device))
    folder, history = Path(out) / "crosscoder", result.history
else:
    folder, history = suite.crosscoder_folder, None
crosscoder = ctt.Crosscoder.load(folder).to(x.device)
print(crosscoder)

# %%
if history is not None:
    shown = {"explained_variance": "variance explained", "l0": "active a token", "dead": "dead"}
    with plots.style():
        fig, axes = plt.subplots(1, 3, figsize=(8, 2.4))
        for ax, (column, label) in zip(axes, shown.items(), strict=True):
            ax.plot(history["tokens"] / 1e6, history[column])
            ax.set(xlabel="million tokens", ylabel=label)
        axes[0].set_ylim(max(0.5, history["explained_variance"].min()), 1)
        last = history.iloc[-1]
        fig.suptitle(
            f"With {last['l0']:.0f} features a token, {last['explained_variance']:.1%} is explained; "
            f"{last['dead']:.0f} of {n_latents} are dead"
        )
    plots.show("Three line charts over training: explained variance, active features, dead ones.")

# %% [markdown]
# ## Is it any good?
# Low loss is not the aim. We ask four things, on text that it has not seen, with the threshold:
#
# | figure | asks | best |
# |---|---|---|
# | **L0** | how many features are active per token? | small |
# | **explained variance** | how much of the stream is rebuilt, per checkpoint? | 1 |
# | **dead** | what share of features is never active? | 0 |
# | **CE recovered** | if the model goes on from the *rebuilt* stream, how much of its skill is left? | 1 |
#
# CE is the cross-entropy, the model's mean surprise at the next token, and CE recovered is (CE with zeros − CE rebuilt) /
# (CE with zeros − CE clean). Explained variance can be high while the model is lost, for the part left out may be the one
# that matters.

# %% [markdown]
# ### Exercise · Explained variance
# *Difficulty 3 of 5 · importance 5 of 5 · 8 minutes*
#
# Write `explained_variance(x, rebuilt)`, both `[tokens, checkpoints, d_model]`. For each checkpoint it is 1 minus the summed
# squared error over the summed squared deviation from the mean. *Which* mean, and what do you add up before you divide?
#
# <details><summary>Hint 1</summary>
#
# The mean is the one vector that one would guess without looking at the token: `x.mean(0)`.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Both sums go over tokens and dimensions, `.sum((0, 2))`. A loud token counts for more than a quiet one.
#
# </details>


# %% exercise="explained_variance"
def explained_variance(x, rebuilt):
    """Share of the variance that is rebuilt, [checkpoints]."""
    ### BEGIN SOLUTION give back the explained variance of each checkpoint
    error = (x - rebuilt).pow(2).sum((0, 2))
    deviation = (x - x.mean(0)).pow(2).sum((0, 2))
    return 1 - error / deviation
    ### END SOLUTION


# %% check="explained_variance"
checks.explained_variance(explained_variance)

# %% [markdown]
# ### Exercise · CE recovered
# *Difficulty 1 of 5 · importance 3 of 5 · 3 minutes*
#
# Write `ce_recovered(clean, rebuilt, zeros)`, three cross-entropies: of the model as it is, with the rebuilt stream, and with
# zeros in its place. 1 means that nothing is lost, 0 that all is.
#
# <details><summary>Hint 1</summary>
#
# All that there is to lose is `zeros - clean`.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Put in `rebuilt = clean`, then `rebuilt = zeros`. Are they 1 and 0?
#
# </details>


# %% exercise="ce_recovered"
def ce_recovered(clean, rebuilt, zeros):
    """The share of the model's skill that is left."""
    ### BEGIN SOLUTION give back the share that is left, one number
    return (zeros - rebuilt) / (zeros - clean)
    ### END SOLUTION


# %% check="ce_recovered"
checks.ce_recovered(ce_recovered)

# %% [markdown]
# All four, from the package, on held-out text. (`dce` is CE rebuilt − CE clean, in nats.)

# %%
held_out = suite.text(n_eval_tokens, split="validation", seed=seed + 1, path=text_path)
report = ctt.evaluate(crosscoder, ckpts, held_out)
print(
    f"L0 {report.l0:.1f}; dead {report.dead:.1%} of {crosscoder.n_latents}, silent over "
    f"{report.dead_tokens:,} tokens"
)
report.to_frame().round(3)

# %% [markdown]
# **Question.** At an early checkpoint CE recovered can come out a little *above* 1: the model predicts better from the
# rebuilt stream than from its own. How can a copy be better than the original? (Think of what the code was read from. The
# answer stands near the end, under *Limits*.)
#
# ### Compared with what?
# A number needs a neighbour. **PCA** is the best that *fixed* directions can do: the same for every token, where the
# crosscoder chooses anew. It gets as many numbers a token as our L0. A **joint** PCA reads all checkpoints end to end, as
# the crosscoder does. A **separate** PCA has a checkpoint, and as many numbers, to itself.
#
# **Question.** Which of the three should win, if the stream is a sum of a few things out of many? And if it is not?

# %% [markdown]
# ### Exercise · What PCA explains
# *Difficulty 4 of 5 · importance 3 of 5 · 13 minutes*
#
# Write `pca_explained(seen, probe, rank)`, for one checkpoint: both are `[tokens, d_model]`. Fit the mean and the first `rank`
# directions on `seen`, by `torch.linalg.svd`. Project `probe` onto them, and give its explained variance, one number (the
# deviation is from probe's own mean, as before).
#
# <details><summary>Hint 1</summary>
#
# `torch.linalg.svd(seen - mean, full_matrices=False)` gives U, S, Vh. The rows of `Vh` are the directions, the strongest
# first.
#
# </details>
# <details><summary>Hint 2</summary>
#
# `Vh[:rank]` is `[rank, d_model]`. A projection goes there and back: `(probe - mean) @ V.T @ V + mean`.
#
# </details>


# %% exercise="pca_explained"
def pca_explained(seen, probe, rank):
    """Explained variance of probe by the first principal components of seen."""
    ### BEGIN SOLUTION give back the explained variance of probe, one number
    mean = seen.mean(0)
    V = torch.linalg.svd(seen - mean, full_matrices=False)[2][:rank]
    rebuilt = (probe - mean) @ V.T @ V + mean
    error = (probe - rebuilt).pow(2).sum()
    return 1 - error / (probe - probe.mean(0)).pow(2).sum()
    ### END SOLUTION


# %% check="pca_explained" points=2
checks.pca_explained(pca_explained)

# %%
sequences = max(1, 25_600 // text.shape[1])
seen, probe = (
    ctt.activations.stacked_activations(ckpts, t[:sequences])[:, 1:].flatten(0, 1)
    for t in (text, held_out)
)
rank = max(1, round(report.l0))
pca = ctt.pca_baseline(seen, probe, rank, scales)
explained = {"crosscoder": report.explained_variance}
explained |= {f"joint PCA, {rank}": pca["joint"], f"separate PCA, {rank}": pca["separate"]}
explained = pd.DataFrame(explained, index=ckpts.labels)
explained.round(3)

# %%
with plots.style():
    fig, ax = plt.subplots(figsize=(5.6, 2.8))
    (1 - explained).plot.bar(ax=ax, rot=0, width=0.8, color=["#0072B2", "0.45", "0.75"])
    times = (1 - explained.iloc[:, 1]) / (1 - explained["crosscoder"])
    ax.set(ylabel="variance left unexplained", xlabel="checkpoint")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    plots.set_title(
        ax, f"A joint PCA leaves {times.min():.1f} to {times.max():.1f} times as much unexplained"
    )
plots.show("Bar chart of the variance left unexplained at each checkpoint, for each of the three.")

# %% [markdown]
# On the embedded suite a PCA of its own does as well as the crosscoder at the first checkpoint: a young model has few
# ideas, and a dozen directions nearly hold them. At the last one no dozen will do. An explained variance of .98 says little
# at the one, and something at the other.
#
# ## What does the error carry?
# The crosscoder splits each activation into what the features say and an **error**, what they miss:
#
# $$\tilde x_c = f\,W_{dec}^c + b_{dec}^c + e_c .$$
#
# From the next notebook on we switch features off and keep the error. So the error must not be able to do the task by
# itself. Two tests, on tasks with a right and a wrong next word, where guessing gives 0.5:
#
# - **latents off**: all features to 0, the error stays. If accuracy survives, the dictionary missed what matters.
# - **error off**: the features alone. If accuracy drops, they lack something.
#
# **Question.** Suppose 98.5 % of the variance is explained. Which accuracy do you expect from the other 1.5 %?

# %%
ours = ("agreement/simple", "agreement/pp", "gender/simple", "polarity/simple", "tense/simple")
wanted = tasks or [t for t in ours if t in suite.task_names] or suite.task_names[:2]
rows = {}
for t in wanted:
    pairs = suite.pairs(t, split="test", n=n_pairs, path=pairs_path)
    no_latents = ctt.ablation_curve(crosscoder, ckpts, pairs, [], [0], keep_only=True)
    no_error = ctt.ablation_curve(crosscoder, ckpts, pairs, [], [0], keep_error=False)
    rows[t] = {}
    for c, name in enumerate(ckpts.labels):
        rows[t][name, "whole"] = no_error["accuracy_before"][c]
        rows[t][name, "latents off"] = no_latents["accuracy_after"][c]
        rows[t][name, "error off"] = no_error["accuracy_after"][c]
carried = pd.DataFrame(rows).T
print(
    f"largest accuracy without latents: {carried.xs('latents off', axis=1, level=1).max().max():.2f}"
)
carried.round(2)

# %% [markdown]
# On the embedded suite the error alone is right about half the time (05 looks closer: it is a prejudice, not a coin), and
# the features alone do what the model does. So effects of features will say something about these tasks. It need not be so:
# a small error can hold a large part of a task. Look at this table before you believe an effect.
#
# ## Reading a feature
# What is a feature *about*? Start with the tokens on which it is most active. Here are three, drawn at random from those
# that fire on between 0.5 % and 5 % of tokens. Darker means more active; hover for the number.

# %%
frequent = np.flatnonzero((report.frequency > 0.005) & (report.frequency < 0.05))
chosen = np.random.default_rng(seed).choice(frequent, min(3, len(frequent)), replace=False)
examples = ctt.top_examples(crosscoder, ckpts, held_out[:600], chosen, k=4)
for feature in chosen:
    display(HTML(f"<b>feature {feature}</b>" + widgets.examples_html(examples[int(feature)])))

# %% [markdown] part="where is a feature written?" reading=13
# ## Where is a feature written? RelDec
# Each feature has one decoder vector per checkpoint. Its **norm** says how strongly the feature is written there. The share
# of one checkpoint,
#
# $$\mathrm{RelDec}_c = \frac{\lVert W_{dec}^c \rVert}{\sum_j \lVert W_{dec}^j \rVert},$$
#
# is a first answer to "when does it exist?", and needs no task. It is taken in scaled space, or the loudest checkpoint
# would win. Where it is above 0.7 we call the feature **specific** to that checkpoint, as the paper does.
#
# **Question.** Between an early and a late checkpoint the model learns a great deal. How many of its features do you expect
# to be specific?

# %% [markdown]
# ### Exercise · RelDec
# *Difficulty 2 of 5 · importance 4 of 5 · 5 minutes*
#
# Write `rel_dec(W_dec)`: `W_dec` is `[latents, checkpoints, d_model]`, and what comes is `[checkpoints, latents]`.
#
# <details><summary>Hint 1</summary>
#
# `.norm(dim=-1)` takes lengths along the last axis.
#
# </details>
# <details><summary>Hint 2</summary>
#
# A *feature's* shares add up to 1. So which axis is summed?
#
# </details>


# %% exercise="rel_dec"
def rel_dec(W_dec):
    """Each checkpoint's share of a latent's decoder norm, [checkpoints, latents]."""
    ### BEGIN SOLUTION give back the shares, [checkpoints, latents]
    norms = W_dec.norm(dim=-1).T
    return norms / norms.sum(0)
    ### END SOLUTION


# %% check="rel_dec"
checks.rel_dec(rel_dec)

# %%
reldec = ctt.rel_dec(crosscoder.decoder_norms(), dead=report.dead_mask)
with plots.style():
    fig, ax = plt.subplots(figsize=(5.6, 2.8))
    for row, (label, color) in zip(
        reldec, plots.checkpoint_colors(ckpts.labels).items(), strict=True
    ):
        bins = np.linspace(0, 1, 41)
        ax.hist(row[~np.isnan(row)], bins, histtype="step", color=color, label=label, lw=1.6)
    for line in (1 / len(ckpts), 0.7):
        ax.axvline(line, color="0.6", lw=1, ls=":")
    ax.set(xlabel="RelDec (dotted: an equal share, and the bound of 0.7)", ylabel="features")
    n_specific, n_alive = int((reldec > 0.7).sum()), int((~report.dead_mask).sum())
    ax.set_title(f"{n_specific} of {n_alive} living features are specific by their norms")
    ax.legend(title="checkpoint")
plots.show("Histograms of RelDec, one for each checkpoint.")

# %% [markdown]
# A decoder norm tells where a feature is *written*. It does not tell whether anything *reads* it. For that we need its
# effect on a task: the next notebook. First, though: can we trust that count?
#
# ## An experiment: a setting that makes "specific" features
# Dead features are a nuisance, and one remedy against them is a **decoder-norm penalty**: add $\lambda \sum_i f_i u_i$ to
# the loss (the L1 term again). It charges for everything that is written. We train the same crosscoder once more, with it.
#
# **Question.** A feature is strong at one checkpoint and weak at two. What will it do to save on the penalty? And how would
# you find out whether it is *really* absent from the two?
#
# We ask the activations (**latent scaling**, Minder et al.): how much of the feature's own direction is left at the
# checkpoints to which it is said not to belong? The verdict is the first of these that holds:
# 1. **written elsewhere**: it is written there after all;
# 2. **shrinkage**: the error there still holds it, so the decoder is too short;
# 3. **decoupled**: other features write the same there;
# 4. **genuine**: none of the three.

# %%
compared = {config.decoder_norm_penalty: crosscoder}
if penalty and penalty not in compared:
    settings = {**training, "decoder_norm_penalty": penalty}
    again = ctt.Crosscoder(**size, **start)
    ctt.train(again, stream, ctt.TrainConfig(steps=steps, **settings), device=str(x.device))
    compared[penalty] = again
else:
    print("Left out here: with penalty=0.5, say, a second crosscoder would be trained.")
rows, ratios, verdicts = {}, {}, ("written elsewhere", "shrinkage", "decoupled", "genuine")
for weight, one in compared.items():
    with torch.no_grad():
        code = one.eval().encode(probe)
        missed = (probe - one.decode(code)).pow(2).sum((0, 2))
        part = missed / (probe - probe.mean(0)).pow(2).sum((0, 2))
    silent = (code > 0).sum(0).cpu() == 0
    ratios[weight] = ctt.rel_dec(one.decoder_norms(), dead=silent)
    scaling = ctt.latent_scaling(one, probe.split(4096))
    found = ctt.artefacts(ratios[weight], scaling, ckpts.labels)
    rows[weight] = {"explained": 1 - float(part.mean()), "dead": float(silent.double().mean())}
    rows[weight] |= {"specific": len(found)} | {v: (found["verdict"] == v).sum() for v in verdicts}
counts = pd.DataFrame(rows).T.rename_axis("penalty")
counts.astype({v: int for v in ("specific", *verdicts)}).round(3)

# %%
with plots.style():
    fig, ax = plt.subplots(figsize=(5.6, 2.6))
    for (weight, values), color in zip(ratios.items(), ("#0072B2", "#D55E00"), strict=False):
        largest = values.max(0)
        largest = largest[~np.isnan(largest)]
        bins = np.linspace(0.3, 1, 36)
        ax.hist(largest, bins, histtype="step", lw=1.6, color=color, label=f"penalty {weight:g}")
    ax.axvline(0.7, color="0.6", lw=1, ls=":")
    ax.set(xlabel="largest RelDec of a feature (dotted: specific above 0.7)", ylabel="features")
    ax.legend()
    numbers = " and ".join(f"{row.specific:.0f} (penalty {w:g})" for w, row in counts.iterrows())
    ax.set_title(f"Specific features: {numbers}")
plots.show("Histogram of each living feature's largest RelDec, with the penalty and without.")

# %% [markdown]
# Same model, same text, same seed, hardly another explained variance, and hardly fewer dead. But on the embedded suite
# about ten times as many features are "specific" with the penalty, and most of these are *decoupled* or *shrinkage*: what
# they stand for is at the other checkpoints too, written by another feature or left to the error. It saves to write a
# feature only where it is strong. **The penalty made most of them; the training of the language model did not.** Whoever
# counts specific features by their norms counts this choice as well. (How many are "dead" depends on how much text one
# looks at: the fewer tokens, the more features stay silent. So the counts in this notebook differ.)
#
# So this course trains without it, as the paper does, and few features are specific by their norms. Living features come
# from elsewhere: longer decoder vectors at the start (`decoder_norm`), and AuxK. (`experiments`, table *penalty*, has this
# over sizes, $k$ and seeds.)

# %% [markdown]
# ### Choose a setting
# Does it hold for another $k$, and another seed? Here are crosscoders of the embedded suite that were trained before.
#
# **Question.** Which setting has the most features that are specific to one checkpoint? Does it explain more for it? And is
# there a penalty that costs nothing?

# %%
tables = top_folder() / "experiments/results"
if (tables / "dictionary.csv").is_file():
    tried = widgets.read_settings(tables)  # a row a crosscoder: k, penalty, seed, and what came out
    missed = 100 * (1 - tried.filter(like="explained").mean(axis=1))
    measures = {"variance unexplained, %": missed, "dead, %": 100 * tried["dead"]}
    measures["specific by RelDec"] = tried["specific"]
    with plots.style():
        fig, axes = plt.subplots(1, 3, figsize=(8, 2.6))
        for ax, (what, values) in zip(axes, measures.items(), strict=True):
            kinds = zip(sorted(tried["penalty"].unique()), "os^", plots.look.HUES, strict=False)
            for own, marker, color in kinds:
                at = tried["penalty"] == own
                given = {"color": color, "alpha": 0.7, "ms": 5, "label": f"{own:g}"}
                ax.plot(tried["l0"][at], values[at], marker, **given)
            ax.set(xlabel="active a token (L0)", ylabel=what, ylim=(0, None))
        axes[0].legend(title="penalty")
        most = tried.groupby("penalty")["specific"].max()
        told = f"{most.iloc[0]:.0f} without a penalty, {most.iloc[-1]:.0f} with {most.index[-1]:g}"
        fig.suptitle(f"At most so many specific features: {told} (a dot is a crosscoder)")
    plots.show("Three scatter plots against L0: unexplained variance, dead, specific features.")
    display(widgets.playground(tried))
else:
    print("Left out here: in a checkout of the project there are tables of other settings.")

# %% [markdown]
# <details><summary>Answer</summary>
#
# The penalty of 0.5 with $k = 16$: 71 and 72 specific features, where there are 5 and 7 without it. It explains less, not
# more, at every $k$. With $k = 12$ the small penalty (0.05) even explains a little more than none, and yet makes two to three
# times as many features specific: a better score does not tell that a setting is harmless.
#
# </details>

# %% [markdown]
# Other tools know no scales. For them we can move the scales into the weights, once and for all.
#
# ### Exercise · Fold the scales
# *Difficulty 3 of 5 · importance 3 of 5 · 7 minutes*
#
# Write `fold(W_enc, W_dec, b_dec, scales)`: three new weights such that the plain formulas, without any scale, read *raw*
# activations and write raw ones. (`b_enc` stays as it is. Why?)
#
# <details><summary>Hint 1</summary>
#
# What reads must do to $x$ what the scales did. What writes must undo it.
#
# </details>
# <details><summary>Hint 2</summary>
#
# `W_enc` is `[checkpoints, d_model, latents]`: here the scales need two more axes behind.
#
# </details>


# %% exercise="fold"
def fold(W_enc, W_dec, b_dec, scales):
    """W_enc, W_dec and b_dec for raw activations."""
    ### BEGIN SOLUTION give back three weights: W_enc, W_dec and b_dec
    return W_enc * scales[:, None, None], W_dec / scales[:, None], b_dec / scales[:, None]
    ### END SOLUTION


# %% check="fold"
checks.fold(fold)

# %%
report.save(Path(out) / "report.json")
with torch.no_grad():  # for tools that know no scales: they move into the weights
    assert torch.equal(crosscoder.folded().encode(x) > 0, crosscoder.encode(x) > 0)
print(f"written: {out}")

# %% [markdown]
# ## Limits
# - A feature is what this dictionary, this sparsity and this seed make of the stream. Another seed gives other features;
#   notebook 06 counts which of them come back.
# - The code is read from *all* checkpoints. So the early decoder is fed with what a late model has worked out: that is
#   one way in which a copy can be better than the original. 04 checks for its own features whether this matters.
# - High explained variance does not mean that features are meaningful.
#
# ## What to remember
# 1. **A crosscoder is a dozen lines**: encode all checkpoints into one sparse code, decode it to each, compare.
# 2. **A number needs a neighbour.** Beside explained variance put PCA of the same rank; beside ablation, what the error
#    can do alone.
# 3. **A decoder norm is a choice of the training, too.** One penalty, and features look specific that are not.
#
# ## Next
# **04 · RelIE and RelDec**: what each feature does for a task, at each checkpoint. · To read more: *Sparse Crosscoders for
# Cross-Layer Features and Model Diffing* (Anthropic, 2024); Bussmann et al., *BatchTopK Sparse Autoencoders* (2024); Minder
# et al., on sparsity artefacts in crosscoders (2025).

# %% [markdown]
# ## Check yourself
#
# 1. Why has the code $f$ no index for the checkpoint?
#
# <details><summary>Answer</summary>
#
# One code is read from all checkpoints and written to each. So feature 17 is the same feature everywhere, and can be
# followed.
#
# </details>
#
# 2. BatchTopK with k = 16: does every token have 16 active features?
#
# <details><summary>Answer</summary>
#
# No, on average. A rich token may have 30, a plain one 5. After training a threshold decides, so a token's code no longer
# depends on its batch.
#
# </details>
#
# 3. Explained variance is 0.985. Is the dictionary good?
#
# <details><summary>Answer</summary>
#
# Compared with what? A PCA of as many numbers may do as well at an early checkpoint. And the rest may hold a whole task:
# look at CE recovered, and at what the error can do alone.
#
# </details>
#
# 4. You find 60 features that are specific to one checkpoint by their decoder norms. What do you ask first?
#
# <details><summary>Answer</summary>
#
# Whether a penalty on decoder norms was part of the loss: it saves to write a feature only where it is strong. Then, by the
# activations, whether the feature is really absent elsewhere.
#
# </details>
