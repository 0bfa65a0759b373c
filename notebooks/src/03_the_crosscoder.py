# %% [markdown]
# # 03 · The crosscoder
#
# A residual stream may hold more ideas than it has numbers. The model writes them on top of each other, as directions
# that overlap. A **sparse dictionary** takes such a vector apart into a few **features** (also called
# **latents**) out of many. A **crosscoder** does so for several checkpoints at once, *with one shared dictionary*: feature
# 17 of the early model and feature 17 of the late one are the same feature, with a decoder for each.
#
# **You will learn**
# - what goes in and what comes out, shape by shape, and to write it yourself in six lines;
# - the loss, and why sparsity has a price;
# - to train one, in seconds on a laptop;
# - to say whether it is any good, with numbers that can be bad.
#
# **Time:** 20 minutes to read, about a minute to run. **You need:** notebooks 01 and 02.

# %% tags=["parameters"]
profile: str = "tiny"  # "tiny", "colab" or "paper": it sets what is None below
model: str | None = None  # a suite
revisions: list | None = None  # the checkpoints to compare; None: the suite's default triplet
layer: int | None = None  # the block whose output we read
n_latents: int | None = None  # size of the dictionary
k: int | None = None  # features kept a token, on average
steps: int | None = None  # optimiser steps
batch_size: int | None = None  # tokens a step
n_tokens: int | None = None  # tokens of training text
n_eval_tokens: int | None = None  # tokens of held-out text
text_path: str | None = None  # file of text, or a name such as "pile-10k"; None: the suite's own
training: dict | None = None  # further settings of TrainConfig, such as {"lr": 1e-3}
train: bool = True  # False: load the crosscoder that is shipped with the suite
seed: int = 0
device: str = "auto"
out: str | None = None  # where the crosscoder goes; None: runs/03 of the project

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML, display

import ctt_helpers as ctt
from ctt_helpers.notebook import plots, widgets

ctt.use_profile(globals(), "03", steps=lambda n: None if n >= 20 else "take at least 20 steps")
suite = ctt.load_suite(model)
if suite.name == "tiny":
    torch.set_num_threads(1)  # a second thread slows small models down
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
# token in one context*, seen by three states of the same model.
#
# `ActivationStream` serves such rows in shuffled batches, without end. The first token of each sequence is left out.

# %%
text = suite.text(n_tokens, split="train", seed=seed, path=text_path)
stream = ctt.ActivationStream(ckpts, text, batch_size=batch_size, seed=seed)
x = next(stream.batches())
x.shape

# %% [markdown]
# ### One scale each
# The checkpoints' vectors differ in length. We bring each to the same mean norm, the square root of `d_model`, so that no
# checkpoint dominates the loss. The factors $s_c$ are measured on the tokens that training sees.

# %%
scales = stream.scales()
norm = x.norm(dim=-1).mean(0).cpu()
pd.DataFrame(
    {"mean norm": norm, "scale s": scales, "after scaling": norm * scales}, index=ckpts.labels
).round(2)

# %% [markdown]
# ## The model in six lines
# Let $\tilde x_c = s_c x_c$. The crosscoder reads all checkpoints into one code, and writes it back to each:
#
# $$f = \mathrm{ReLU}\Big(\sum_c \tilde x_c W_{enc}^c + b_{enc}\Big), \qquad \hat x_c = f\, W_{dec}^c + b_{dec}^c .$$
#
# **Question.** Look at $\tilde x$, $f$ and $\hat x$. Which one has no index $c$, and why is that the whole point?
#
# It is $f$: one code for all checkpoints. That is why one feature can be followed from checkpoint to checkpoint. Now
# write it down, and compare with the class.

# %%
crosscoder = ctt.Crosscoder(
    n_checkpoints=len(ckpts),
    d_model=ckpts.d_model,
    n_latents=n_latents,
    sparsity="batch_topk",
    k=k,
    seed=seed,
).to(x.device)
crosscoder.scales.copy_(scales)


def by_hand(x):
    scaled = x * crosscoder.scales[:, None]
    pre = torch.einsum("tcd,cdh->th", scaled, crosscoder.W_enc) + crosscoder.b_enc
    f = torch.relu(pre)  # the code: one for all checkpoints
    rebuilt = torch.einsum("th,hcd->tcd", f, crosscoder.W_dec) + crosscoder.b_dec
    return f, rebuilt / crosscoder.scales[:, None]


with torch.no_grad():
    f, rebuilt = by_hand(x)
    crosscoder.eval()  # its threshold is still 0: nothing is cut off yet
    assert torch.allclose(f, crosscoder.encode(x), atol=1e-4)
    assert torch.allclose(rebuilt, crosscoder.decode(f), atol=1e-3)
print("f", tuple(f.shape), "  rebuilt", tuple(rebuilt.shape))

# %% [markdown]
# ## The loss, and the price of sparsity
# A dictionary larger than the space could copy its input and explain nothing. We want *few* active features per token.
# There are two common ways.
#
# - **L1**: pay for each active feature, $\lambda \sum_i f_i u_i$, where $u_i = \sum_c \lVert W_{dec,i}^c \rVert$. Simple;
#   but it also pays for making real features *smaller* (shrinkage).
# - **BatchTopK**: in a batch of $B$ tokens keep the $kB$ largest $f_i u_i$, and set the rest to 0. No shrinkage; $k$ is
#   what you get.
#
# We use BatchTopK with a light penalty of the L1 form. As in the paper, $k$ starts large and falls to its value (here over
# the first half of training), and features that have gone silent get a small loss of their own (**AuxK**): they learn to
# rebuild what the others leave out. What each of these is worth is measured in `benchmarks/README.md`.
#
# At training time a feature's fate depends on its batch. Afterwards we want one token's code to depend on that token
# alone. So training keeps a **threshold**: the running mean of the smallest size that was kept.

# %% [markdown]
# ## First where the answer is known
# A crosscoder always returns *some* features. Are they the right ones? In a language model nobody can say. So let us plant
# them: 48 directions in 32 dimensions, three checkpoints, each direction active on 6 % of the tokens, and a little noise.
# There is a task, too: it *reads* a direction with a certain gain. We know what is written, and what is read, and when.
#
# | kind | written | read |
# |---|---|---|
# | emerge | from a later checkpoint on | as long as it is written |
# | persist | always | always |
# | fade | until a checkpoint | as long as it is written |
# | rotate | always, each time in another direction | always |
# | scale | always, four times larger in the end | always, with the same effect |
# | decodable | from a later checkpoint on | never |
#
# **Question.** 48 directions do not fit into 32 dimensions at right angles. How can they be told apart at all? And which
# kind would you expect to be lost: think of *rotate*, which is a different direction each time.

# %%
from ctt_helpers.planted import plant, recovery

planted = plant(n_checkpoints=3, d_model=32, seed=seed)
planted_x, sizes = planted.sample(20_000, seed=seed)
student = ctt.Crosscoder(3, 32, n_latents=96, k=4, seed=seed)
before = recovery(student, planted)  # the control: its random directions
ctt.train(
    student,
    ctt.TensorStream(planted_x.float(), seed=seed),
    ctt.TrainConfig(steps=400),
    device="cpu",
)
after = recovery(student, planted)
after.groupby("kind", sort=False).agg(
    features=("found", "size"), found=("found", "mean"), cosine=("cosine", "mean")
)

# %%
with plots.style():
    fig, ax = plt.subplots(figsize=(5.6, 2.8), layout="constrained")
    places = pd.factorize(after["kind"])[0] + np.random.default_rng(0).uniform(
        -0.25, 0.25, len(after)
    )
    for found_by, color, label in ((before, "0.65", "untrained"), (after, "#0072B2", "trained")):
        ax.scatter(places, found_by["cosine"], color=color, label=label, s=14)
    ax.axhline(0.9, color="0.6", lw=1, ls=":")
    ax.set_xticks(range(after["kind"].nunique()), after["kind"].unique())
    ax.set(
        ylabel="cosine with the closest latent", xlabel="kind of planted feature", ylim=(0, 1.03)
    )
    ax.set_title(
        f"{after['found'].sum()} of {len(after)} planted features are found; untrained, "
        f"{before['found'].sum()}"
    )
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))

# %% [markdown]
# Few are active at a time, and that is enough. *Rotate* is not lost: the cosine is taken over all three checkpoints
# together, and one latent has a decoder for each. (Harder worlds, with other settings and seeds, are in
# `experiments`: there, some are lost.)
#
# ### What does the decoder norm say?
# **RelDec** is the share of one checkpoint in a feature's decoder norms. Below, the last checkpoint against the first.
#
# **Question.** Before you look: for which kinds will "specific to the last checkpoint" (above 0.7) be *wrong*, if the
# question is what the task uses?

# %%
ends = ctt.pairwise(ctt.rel_dec(student.decoder_norms()))[0, -1, after["latent"]]
used = ctt.pairwise(ctt.rel_ie(planted.exact_effects(planted_x, sizes)))[0, -1]
table = after.assign(reldec=ends, used=used)[after["found"]]
table["called specific"], table["truly specific"] = table["reldec"] > 0.7, table["used"] > 0.7
table.groupby("kind", sort=False)[
    ["reldec", "used", "called specific", "truly specific"]
].mean().round(2)

# %% [markdown]
# `used` is the same share of the planted effects (missing where there is none). RelDec tells *emerge*, *persist* and
# *fade* apart. But a feature that is only written larger looks as if it had appeared, and so does one that nothing reads.
# That is not a mistake of the crosscoder: norms cannot know what is used. Notebook 04 asks for effects, and 06 comes back
# to these features to see where effects go wrong.
#
# ## Now on the real activations

# %%
if train:
    result = ctt.train(
        crosscoder,
        stream,
        ctt.TrainConfig(steps=steps, **training),
        out=Path(out),
        device=str(x.device),
    )
    history = result.history
    folder = Path(out) / "crosscoder"
else:
    folder = suite.crosscoder_folder
    history = None
crosscoder = ctt.Crosscoder.load(folder).to(x.device)
print(f"crosscoder from {folder}: {crosscoder}")

# %%
if history is not None:
    last = history.iloc[-1]
    with plots.style():
        fig, axes = plt.subplots(1, 3, figsize=(9, 2.6))
        labels = {
            "explained_variance": "share of variance explained",
            "l0": "L0",
            "dead": "dead latents",
        }
        for ax, (column, label) in zip(axes, labels.items(), strict=True):
            ax.plot(history["tokens"] / 1e6, history[column])
            ax.set(xlabel="million tokens trained on", ylabel=label)
        axes[0].set_ylim(
            max(0, history["explained_variance"].min()), 1
        )  # the first steps may be far below zero
        fig.suptitle(
            f"k falls, and some features fall silent; at the end {last['dead']:.0f} are dead"
        )

# %% [markdown]
# Look at the third panel. When few features may be active, some fall silent. The small extra loss brings most of them
# back.
#
# ## Is it any good?
# Low loss is not the aim. We ask five things, on text it has not seen, with the threshold:
#
# | figure | asks | best |
# |---|---|---|
# | **L0** | how many features are active per token? | small |
# | **explained variance** | how much of the stream is rebuilt, per checkpoint? | 1 |
# | **CE recovered** | if the model goes on from the *rebuilt* stream, how much of its skill is left? (CE with zeros minus CE rebuilt, over CE with zeros minus CE clean) | 1 |
# | **dead** | what share of features is never active? | 0 |
# | **dCE** | the same skill in nats per token: what the splice costs | 0 |
#
# Explained variance can be high while the model is lost: the part left out may be the one that matters. That is why
# cross-entropy (CE) is asked too.

# %%
held_out = suite.text(n_eval_tokens, split="validation", seed=seed + 1, path=text_path)
report = ctt.evaluate(crosscoder, ckpts, held_out)
print(
    f"L0 {report.l0:.1f}; dead {report.dead:.1%} of {crosscoder.n_latents}, silent over "
    f"{report.dead_tokens:,} tokens"
)
report.to_frame().round(3)

# %% [markdown]
# **Question.** CE recovered can come out a little *above* 1 at the early checkpoints: the model predicts *better* from the
# rebuilt stream than from its own. How can a copy be better than the original? (Think of what the code was read from.
# We come back to it at the end.)

# %% [markdown]
# ### Compared with what? Two baselines
# A number needs a neighbour. **Untrained**: the crosscoder before its first step, with the same $k$. **PCA**: the best
# that *fixed* directions can do, with as many numbers per token as our L0. If the crosscoder did not beat PCA, sparsity
# would buy us nothing.

# %%
fresh = (
    ctt.Crosscoder(len(ckpts), ckpts.d_model, n_latents, k=k, seed=seed, scales=scales)
    .to(x.device)
    .train()
)
fresh.b_dec.data = (x.mean(0) * fresh.scales[:, None]).detach()
few = 25_600 // text.shape[1]  # sequences
sample, probe = (
    ctt.activations.stacked_activations(ckpts, t[:few])[:, 1:].flatten(0, 1)
    for t in (text, held_out)
)


def explained(target, rebuilt):
    return (
        1 - (target - rebuilt).pow(2).sum((0, 2)) / (target - target.mean(0)).pow(2).sum((0, 2))
    ).tolist()


with torch.no_grad():
    untrained = explained(probe, fresh(probe))

# %%
flat = (sample * scales.to(x.device)[:, None]).flatten(1)
mean = flat.mean(0)
_, _, directions = torch.linalg.svd(flat - mean, full_matrices=False)
axes = directions[: max(1, round(report.l0))]
scaled = (probe * scales.to(x.device)[:, None]).flatten(1)
pca = explained(
    scaled.view(probe.shape), ((scaled - mean) @ axes.T @ axes + mean).view(probe.shape)
)
table = pd.DataFrame(
    {
        "crosscoder": report.explained_variance,
        f"PCA, {len(axes)} directions": pca,
        "untrained": untrained,
    },
    index=ckpts.labels,
)
table.round(3)

# %%
with plots.style():
    fig, ax = plt.subplots(figsize=(5.6, 2.8), layout="constrained")
    (1 - table).plot.bar(ax=ax, rot=0, width=0.8, color=["#0072B2", "#8C6D00", "0.75"], logy=True)
    better = ((1 - table.iloc[:, 1]) / (1 - table["crosscoder"])).mean()
    ax.set(ylabel="variance left unexplained (log)", xlabel="checkpoint")
    ax.set_title(f"The crosscoder leaves {better:.1f} times less unexplained than PCA")
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))

# %% [markdown]
# PCA is already good here: the sentences are simple, and the three streams are much alike. So the gain is real, and do not
# expect wonders from it.

# %% [markdown]
# ## Dead features
# Some features never fire on held-out text. They cost memory and explain nothing. We count them over more than a hundred
# thousand tokens, and their ratios will be undefined, not 0.5.
#
# **Question.** Where might the living ones be? Look at how often each feature fires.

# %%
alive = report.frequency[report.frequency > 0]
with plots.style():
    fig, ax = plt.subplots(figsize=(5.2, 2.8), layout="constrained")
    ax.hist(np.log10(alive), bins=40, color="0.35")
    ax.set(xlabel="log10 of the share of tokens on which a feature is active", ylabel="features")
    ax.set_title(
        f"{len(alive)} features live; the median fires on {np.median(alive):.2%} of tokens"
    )

# %% [markdown]
# ## Reading a feature
# What is a feature *about*? Start with the tokens on which it is most active. Here are three, drawn at random from those
# that fire on between 0.5 % and 5 % of tokens. Darker means more active; hover for the number.

# %%
frequent = np.flatnonzero((report.frequency > 0.005) & (report.frequency < 0.05))
chosen = np.random.default_rng(seed).choice(frequent, min(3, len(frequent)), replace=False)
examples = ctt.top_examples(crosscoder, ckpts, held_out[:600], chosen, k=4)
for feature in chosen:
    display(HTML(f"<b>feature {feature}</b>" + widgets.examples_html(examples[int(feature)])))

# %% [markdown]
# ## Where is a feature written? RelDec
# Each feature has one decoder vector per checkpoint. Its **norm** says how strongly the feature is written there. The
# share of one checkpoint, $\mathrm{RelDec}_c = \lVert W_{dec}^c \rVert / \sum_j \lVert W_{dec}^j \rVert$, is a first
# answer to "when does it exist?". It needs no task. It is taken in scaled space, or the loudest checkpoint would win.

# %%
ratios = ctt.rel_dec(crosscoder.decoder_norms(), dead=report.dead_mask)
with plots.style():
    fig, ax = plt.subplots(figsize=(5.6, 3), layout="constrained")
    for row, (label, color) in zip(
        ratios, plots.checkpoint_colors(ckpts.labels).items(), strict=True
    ):
        ax.hist(
            row[~np.isnan(row)],
            bins=np.linspace(0, 1, 41),
            histtype="step",
            color=color,
            label=label,
            lw=1.6,
        )
    third = 1 / len(ckpts)
    ax.axvline(third, color="0.6", lw=1, ls=":")
    ax.set(xlabel="RelDec: share of the decoder norm", ylabel="features")
    gone = float(np.mean(ratios[-1, ~report.dead_mask] < 0.025))
    ax.set_title(
        f"{gone:.0%} of the living features are hardly written any more at {ckpts.labels[-1]}"
    )
    ax.legend(title="checkpoint", frameon=False)

# %%
if len(ckpts) <= 3:
    display(
        ctt.classify(ratios, ckpts.labels)
        .groupby(["label", "members"])
        .size()
        .rename("features")
        .reset_index()
    )

# %% [markdown]
# A decoder norm tells where a feature is *written*. It does not tell whether anything *reads* it. For that we need its
# effect on a task: the next notebook.

# %% [markdown]
# ## Where did the extra skill come from?
# Back to the question above. The code is read from *all* checkpoints, so the early decoder is fed with what only the
# later ones have worked out. We can test this: read the code once more, but replace the later checkpoints' activations
# by what can be *guessed from the first one* (by linear regression, fitted on other text). Then the code has nothing to
# borrow.

# %%
train_x, test_x = (ctt.activations.stacked_activations(ckpts, t[:few]) for t in (text, held_out))
targets = held_out[:few, 2:].to(test_x.device)


def with_one(x):
    return torch.cat([x, torch.ones_like(x[..., :1])], -1)


first, later = train_x[:, 1:, 0].flatten(0, 1), train_x[:, 1:, 1:].flatten(0, 1)
guess = torch.linalg.lstsq(with_one(first), later.flatten(1)).solution
inner = test_x[:, 1:]
guessed = (with_one(inner[:, :, 0]) @ guess).view(inner[:, :, 1:].shape)
reads = {
    "all checkpoints": inner,
    f"{ckpts.labels[0]} alone, the rest guessed": torch.cat([inner[:, :, :1], guessed], 2),
}
losses = {}
with torch.no_grad():
    streams = {"(the model's own stream)": inner[:, :, 0]}
    streams |= {
        label: crosscoder.decode(crosscoder.encode(read))[:, :, 0] for label, read in reads.items()
    }
    for label, stream_c in streams.items():
        whole, total = torch.cat([test_x[:, :1, 0], stream_c], 1), 0.0
        few_rows = len(whole) // 20 + 1  # at a time: whole vocabularies take room
        for part, target in zip(whole.split(few_rows), targets.split(few_rows), strict=True):
            logits = ctt.logits_above(ckpts[0], part)[:, 1:-1].flatten(0, 1).float()
            total += float(
                torch.nn.functional.cross_entropy(logits, target.flatten(), reduction="sum")
            )
        losses[label] = total / targets.numel()
pd.Series(losses, name=f"loss of {ckpts.labels[0]} (nats a token)").rename_axis(
    "code read from"
).to_frame().round(3)

# %% [markdown]
# If the last row is close to the first, the extra skill was borrowed: the joint code told the early decoder things that
# the early model did not know. Keep this in mind whenever a crosscoder looks *too* good at an early checkpoint.

# %% [markdown]
# ## For other tools: folding
# Other people's code knows no scales. `folded()` moves them into the weights. The code and the reconstruction must not
# change; we check. (RelDec and the threshold go on using the norms in scaled space.)

# %%
with torch.no_grad():
    plain = crosscoder.folded()
    assert torch.equal(plain.encode(x) > 0, crosscoder.encode(x) > 0)
    assert torch.allclose(
        plain.decode(plain.encode(x)), crosscoder.decode(crosscoder.encode(x)), atol=1e-3
    )
report.save(Path(out) / "report.json")
print(f"written: {out}")

# %% [markdown]
# ## Limits
# - A feature is what this dictionary, this sparsity and this seed make of the stream. Another seed gives other features;
#   some come back, some do not.
# - BatchTopK with a fixed $k$ gives a hard sentence as few features as an easy one, on average over the batch.
# - High explained variance does not mean that features are meaningful.
#
# ## Next
# **04 · RelIE and RelDec**: what each feature does for a task, at each checkpoint. · To read more: *Sparse Crosscoders
# for Cross-Layer Features and Model Diffing* (Anthropic, 2024); Bussmann et al., *BatchTopK Sparse Autoencoders* (2024);
# Minder et al., on sparsity artefacts in crosscoders (2025).
