# %% [markdown]
# # 08 · Scaling up
#
# Three checkpoints of a small model were enough to learn the method. Now we let go of both limits: *many*
# checkpoints, and *large* models.
#
# **You will learn**
# - to train one crosscoder over a whole pretraining run, and to follow a feature through it: onset, end, centre of
#   mass;
# - to ask whether nineteen checkpoints tell the same story as three;
# - to read a triangle of RelIE;
# - what the real models cost, before you pay;
# - to run other architectures, other languages and whole sweeps with the code you know.
#
# **Time:** 30 minutes to read, about a minute to run. **You need:** notebooks 03 to 05. Cells marked **[hub]** need
# a model or data from the hub; without it they say what they would show, and the rest runs.

# %% tags=["parameters"]
profile: str = "tiny"  # "tiny", "colab" or "paper": it sets what is None below
model: str | None = None  # a suite
revisions: list | None = None  # the checkpoints to follow; None: all of the suite, or the profile's
layer: int | None = None
n_latents: int | None = None
k: int | None = None
steps: int | None = None
batch_size: int | None = None
n_tokens: int | None = None  # tokens of training text
n_eval_tokens: int | None = None
text_path: str | None = None  # file of text, or a name such as "pile-10k"; None: the suite's own
training: dict | None = None  # further settings of TrainConfig
task: str | None = None  # agreement across an attractor
n_pairs: int | None = None
method: str | None = None  # of the effects: "ablation" (exact), or "atp" where that takes too long
crosscoder: str | None = None  # the triplet's crosscoder; None: the one shipped with the suite
tasks: list | None = None  # whose features are compared: of several tasks, or languages
pairs_path: str | None = None  # folder of published pairs; None: from where they are published
other_models: list | None = None  # suites of the hub for the cell on architectures
n_features: int = 8  # how many to draw
n_draws: int = 500  # bootstrap draws
seed: int = 0
device: str = "auto"
out: str | None = None  # where effects and tables go; None: runs/08 of the project

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from IPython.display import display
from transformers import AutoConfig, AutoModelForCausalLM

import ctt_helpers as ctt
from ctt_helpers import uncertainty
from ctt_helpers.messages import show_size, show_time
from ctt_helpers.notebook import plots
from ctt_helpers.notebook.parameters import PROFILES
from ctt_helpers.sources.machine import count_parameters
from ctt_helpers.sources.presets import PRESETS

ctt.use_profile(
    globals(),
    "08",
    steps=lambda n: None if n >= 20 else "take at least 20 steps",
    n_pairs=lambda n: None if n >= 10 else "take at least 10 pairs",
    n_features=lambda n: None if 1 <= n <= 10 else "take 1 to 10, one colour each",
)
suite = ctt.load_suite(model)
if suite.name == "tiny":
    torch.set_num_threads(1)  # a second thread slows small models down
ckpts = suite.checkpoints(revisions, layer=layer, device=device)

# %% tags=["estimate"]
if suite.name != "tiny":  # what it takes on this machine, before anything is downloaded
    share = 1 + 3 / len(ckpts)  # the second crosscoder, over a triplet
    made = {"n_latents": n_latents, "k": k, "batch_size": batch_size, "buffer_tokens": 2**16}
    made |= {
        "steps": int(share * steps),
        "tokens": int(share * steps * batch_size),
        "evaluated": n_eval_tokens,
    }
    made["bf16"] = training.get("bf16", False)
    todo = {"atp": (1 + len(tasks)) * n_pairs, "accuracy": (1 + len(tasks)) * n_pairs}
    print(ctt.estimate(ckpts, pairs=todo | {method: todo.get(method, 0) + 2 * n_pairs}, **made))

# %%
names, tokens = ckpts.labels, ckpts.tokens_seen
pairs = suite.pairs(task, split="find", n=n_pairs, path=pairs_path)
short = task.split("/")[-1]
print(f"{len(ckpts)} checkpoints: {', '.join(names)}")

# %% [markdown]
# # Part 1 · From two checkpoints to many
# Nothing in the crosscoder asks for three. It has an encoder and a decoder per checkpoint and *one* code. So its size
# grows with the number of checkpoints, and so does what one feature must explain.
#
# **Question.** The code stays as small as before: $k$ features a token. Is that fair to nineteen checkpoints?

# %%
sizes = {n: 2 * n * ckpts.d_model * n_latents for n in sorted({2, 3, len(ckpts), 32})}
adam = 4 * 4  # bytes: a weight, its gradient, and Adam's two moments, in float32
pd.DataFrame(
    {"weights": sizes, "to train": {n: show_size(adam * w) for n, w in sizes.items()}}
).rename_axis("checkpoints")

# %% [markdown]
# It may be fair if the checkpoints have much in common. How alike are their streams, on the words of the task?

# %%
x = ctt.activations.stacked_activations(ckpts, pairs.input_ids, pairs.attention_mask)
words = torch.nn.functional.normalize(
    x[:, 1:][pairs.attention_mask[:, 1:].bool().to(x.device)], dim=-1
)
similar = (torch.einsum("tcd,ted->ce", words, words) / len(words)).cpu().numpy()
to_next = np.diag(similar, 1)
turns = int(to_next.argmin())
with plots.style():
    fig, ax = plt.subplots(figsize=(5.4, 4.6), layout="constrained")
    turn_from, turn_to = names[turns], names[turns + 1]
    title = f"The stream turns most from {turn_from} to {turn_to} (cosine {to_next[turns]:.2f})"
    above = np.triu(np.ones(similar.shape, dtype=bool), k=1)
    sns.heatmap(
        pd.DataFrame(similar, names, names),
        mask=above,
        ax=ax,
        cmap="mako_r",
        vmax=1,
        square=True,
        cbar_kws={"label": "mean cosine similarity"},
    )
    plots.set_title(ax, title)

# %% [markdown]
# Early checkpoints are published at powers of two. On a clock that counts tokens, these are many looks at the very
# beginning. Each checkpoint counts the same in the loss, and two that are alike count twice. So *which* checkpoints
# you take is a choice, and it weighs.

# %% [markdown]
# ## One dictionary for all of them
# The same three lines as in notebook 03.

# %%
text = suite.text(n_tokens, split="train", seed=seed, path=text_path)
stream = ctt.ActivationStream(ckpts, text, batch_size=batch_size, seed=seed, buffer_tokens=2**16)
many = ctt.Crosscoder(len(ckpts), ckpts.d_model, n_latents=n_latents, k=k, seed=seed)
config = ctt.TrainConfig(steps=steps, **training)
result = ctt.train(many, stream, config, out=Path(out), device=device)
result.history.tail(3).round(3)

# %%
held_out = suite.text(n_eval_tokens, split="validation", seed=seed, path=text_path)
report = ctt.evaluate(many, ckpts, held_out)
quality = report.to_frame().set_index("checkpoint")
print(
    f"L0 {report.l0:.1f}; {report.dead:.0%} of the features are silent over {report.dead_tokens:,} "
    "tokens"
)
quality.round(3)

# %% [markdown]
# **Question.** Under `ce_recovered` some numbers are missing, some above 1. Look at `ce_clean` and `ce_zero` at step 0.
# What would that ratio be made of?
#
# An untrained model predicts as badly with its stream as without. A ratio of two such nothings says nothing, so it is
# left out. Read `dce` there. And where `dce` is below zero, the rebuilt stream is *better* than the model's own: the code was read from all
# checkpoints, so the early ones borrow from the late ones (notebook 03).

# %%
with plots.style():
    fig, ax = plt.subplots(figsize=(5.6, 2.8), layout="constrained")
    worst = quality["explained_variance"].idxmin()
    plots.look.token_axis(ax, pd.Series(tokens))
    ax.plot(tokens, 1 - quality["explained_variance"], "o-", color="#0072B2")
    ax.set(ylabel="variance left unexplained", ylim=(0, None))
    left = 1 - quality["explained_variance"]
    ax.set_title(
        f"Most is left unexplained at {worst} ({left.max():.1%}), least at {left.idxmin()} "
        f"({left.min():.1%})"
    )

# %% [markdown]
# ## When is a feature written?
# RelDec is now a *curve*: a feature's share of decoder norm at each checkpoint. With so many checkpoints, bounds such
# as 0.7 and 0.3 make no sense: shared evenly among nineteen, each has 0.05. So we ask for three times:
#
# - **onset**: the first checkpoint with at least half of the feature's largest share;
# - **end**: the last one;
# - **centre of mass**: the mean checkpoint, weighted by the shares (counted from 0).

# %%
reldec = ctt.rel_dec(many.decoder_norms(), dead=report.dead_mask)
written = ctt.trajectory(reldec, names)
high = reldec >= 0.5 * np.nanmax(np.where(np.isnan(reldec), 0, reldec), 0)
counts = pd.DataFrame(
    {"begin": written["onset"].value_counts(), "end": written["end"].value_counts()}
)
counts = counts.reindex(names).fillna(0).astype(int)
with plots.style():
    fig, ax = plt.subplots(figsize=(6.4, 3), layout="constrained")
    ax.fill_between(
        range(len(names)),
        high.sum(1),
        color="0.85",
        step="mid",
        label="written (half of their most)",
    )
    ax.bar(np.arange(len(names)) - 0.2, counts["begin"], 0.4, color="#0072B2", label="begin")
    ax.bar(np.arange(len(names)) + 0.2, counts["end"], 0.4, color="#D55E00", label="end")
    plots.look.checkpoint_ticks(ax, names)
    ax.set(ylabel="features")
    ax.set_title(
        f"{counts['begin'].iloc[0]} of {counts['begin'].sum()} features are written from the first "
        f"checkpoint on, {counts['end'].iloc[-1]} until the last",
        wrap=True,
    )
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))

# %% [markdown]
# **Question.** The first checkpoint is an untrained model. How can most features be "written" there?
#
# Even random weights give each word its own vector. A feature that stands for a word has something to write from the
# first step on. It says nothing yet about what the model *does* with it. For that we need effects.

# %% [markdown]
# ## When does a feature matter?
# The effect of every feature, at every checkpoint. And how sure are we? The sentences are drawn anew, as in notebook
# 04.

# %%
effects = ctt.indirect_effects(many, ckpts, pairs, method)
twins = ctt.twins(pairs)  # mirrored pairs are drawn together
draws = uncertainty.resample(effects, n_draws, seed, clusters=twins)
low, high = uncertainty.interval(draws)
strength = np.abs(effects.mean).max(0)
top = np.argsort(-strength)[:n_features]
print(
    f"method {method!r}: {int((strength > 0.05).sum())} features reach 0.05 logits at some "
    "checkpoint"
)

# %%
accuracy = np.array([ctt.accuracy(checkpoint, pairs) for checkpoint in ckpts])
error = np.sqrt(accuracy * (1 - accuracy) / len(pairs))
curve = pd.DataFrame(
    {"revision": names, "tokens_seen": tokens, "accuracy": accuracy, "stderr": error}
)
curve = curve.assign(task=short, n_pairs=len(pairs))
with plots.style():
    fig, (above, below) = plt.subplots(
        2, 1, figsize=(6.4, 5.4), sharex=True, height_ratios=[1, 2], layout="constrained"
    )
    title = f"{short}: accuracy is lowest, {accuracy.min():.2f}, at {names[int(accuracy.argmin())]}"
    plots.accuracy_curves(curve, ax=above, title=title)
    above.set_xlabel("")
    peak = names[int(np.abs(effects.mean[:, top[0]]).argmax())]
    at_end = np.abs(effects.mean[-1, top[0]]) / strength[top[0]]
    title = f"The strongest feature peaks at {peak}; at the end {at_end:.0%} of that is left"
    plots.trajectories(effects.mean, tokens, top, names, low, high, ax=below, title=title)

# %% [markdown]
# Look at the log axis: most of it is silence. What the task hangs on comes within about the last decade of tokens.
#
# **Question.** In notebook 04 each strong feature of the triplet had its time, and its sign. Does that still hold?

# %%
helps, hurts = (low > 0) & (effects.mean > 0.05), (high < 0) & (effects.mean < -0.05)
strong = np.flatnonzero(strength > 0.05)
turn = [int(i) for i in strong if helps[:, i].any() and hurts[:, i].any()]
rows = []
for i in sorted(turn, key=lambda i: -strength[i])[:n_features]:
    best, worst = int(effects.mean[:, i].argmax()), int(effects.mean[:, i].argmin())
    W = torch.nn.functional.normalize(many.W_dec[i].detach(), dim=-1)
    rows.append(
        {
            "feature": f"#{i}",
            "helps most at": names[best],
            "IE": effects.mean[best, i],
            "hurts most at": names[worst],
            "IE ": effects.mean[worst, i],
            "cosine of the two decoders": float(W[best] @ W[worst]),
        }
    )
print(
    f"{len(turn)} of {len(strong)} strong features help at one checkpoint and hurt at another, by "
    "0.05 logits or more"
)
pd.DataFrame(rows).round(2)

# %% [markdown]
# A feature that turns from helper to hindrance is either a finding (the model kept a direction and changed what it
# does with it) or a seam: two features that the dictionary has sewn together. The last column is a hint. Where the
# decoders at the two checkpoints point in different directions, "the same feature" is the dictionary's word, not the
# model's. We come back to it below.

# %% [markdown]
# ## Onset, end, centre of mass: and how sure?
# RelIE, for as many checkpoints as there are. The probability is the share of bootstrap draws that give the same
# answer.

# %%
ratios = ctt.rel_ie(effects.mean)
when = ctt.trajectory(ratios, names).set_index("feature")
sure = uncertainty.trajectory_draws(uncertainty.rel_ie_draws(draws), names, point=ratios).set_index(
    "feature"
)
active = when["onset"].dropna().index
table = sure.loc[top, ["onset", "onset_probability", "end", "end_probability", "peak"]]
table.insert(0, "centre of mass", when.loc[top, "centre_of_mass"])
steady = int((sure.loc[active, "onset_probability"] >= 0.95).sum())
print(f"onset settled (95 % of the draws) for {steady} of {len(active)} active features")
table.round(2)

# %%
order = active[np.argsort(when.loc[active, "centre_of_mass"])]
order = order[np.isin(order, np.argsort(-strength)[:24])]  # no more rows than can be read
with plots.style():
    fig, ax = plt.subplots(figsize=(7.4, 1.6 + 0.2 * len(order)), layout="constrained")
    first = names[min(names.index(o) for o in when.loc[order, "onset"])]
    title = f"None of the {len(order)} strongest features has its onset before {first}"
    plots.feature_heatmap(ratios, list(order), names, center=None, ax=ax, title=title)

# %%
with plots.style():
    fig, axes = plt.subplots(1, 2, figsize=(9.4, 3), layout="constrained")
    centre = {"RelDec": written["centre_of_mass"], "RelIE": when["centre_of_mass"]}
    for ax, (label, shares) in zip(axes, (("RelDec", reldec), ("RelIE", ratios)), strict=True):
        mean = np.nanmean(centre[label][top[:4]])
        title = f"{label}: centre of mass at checkpoint {mean:.1f} on average"
        plots.trajectories(
            shares, tokens, top[:4], names, quantity=f"{label} (share)", ax=ax, title=title
        )

# %% [markdown]
# The same features twice: where they are **written** (left) and where they are **used** (right). Writing spreads over
# many checkpoints; use is bunched.

# %% [markdown]
# ### Do onsets explain the accuracy curve?
# If features make the skill, they should begin where the curve moves. We weigh each feature by its largest effect.


# %%
def weight_at(column):
    return strength[active] @ (when.loc[active, column].to_numpy()[:, None] == np.array(names))


moves = pd.DataFrame(
    {
        "accuracy": accuracy,
        "change": np.diff(accuracy, prepend=accuracy[0]),
        "begins": weight_at("onset"),
        "ends": weight_at("end"),
    },
    index=names,
)
alike = ctt.rank_correlation(moves["change"].abs(), moves["begins"])
print(
    f"rank correlation of |change of accuracy| with what begins there: {alike:.2f} ({len(names)} "
    "checkpoints)"
)
moves[(moves["begins"] > 0) | (moves["ends"] > 0)].round(2)

# %% [markdown]
# Few checkpoints, one task: this is a picture, not a test. Look at what *ends* while the accuracy stays perfect. Either
# others took over, or several now stand in for one another. Effects of single features cannot tell (notebook 05).
#
# ### Does the cheap way find the same onsets?
# For a large model we could afford only AtP (one backward pass), or RelDec (none).

# %%
cheap = {"AtP": ctt.rel_ie(ctt.indirect_effects(many, ckpts, pairs, "atp").mean), "RelDec": reldec}
rows = {}
for label, other in cheap.items():
    theirs = ctt.trajectory(other, names).set_index("feature").loc[active].dropna()
    ours = when.loc[theirs.index]
    apart = theirs["onset"].map(names.index) - ours["onset"].map(names.index)
    rows[label] = {
        "features": len(theirs),
        "same onset": (apart == 0).mean(),
        "at most one apart": (apart.abs() <= 1).mean(),
        "mean distance": apart.mean(),
        "rank correlation, centre of mass": ctt.rank_correlation(
            theirs["centre_of_mass"], ours["centre_of_mass"]
        ),
    }
pd.DataFrame(rows).T.round(2)

# %% [markdown]
# A negative distance means: earlier than the effect. Being written comes before being used, often by far. So an onset
# needs its definition beside it: *written* or *used*, and by which estimate.

# %% [markdown]
# ## The same story as the triplet's?
# Notebook 04 had three of these checkpoints and a dictionary of its own. We look for each of its strong features in
# the new one. Two features are alike if they **fire on the same tokens** (correlation of activations), or if they
# **write the same thing** at the shared checkpoints (cosine of decoders).
#
# **The control**: a second triplet crosscoder with another seed, trained as briefly as the large one. What it does
# not find again either is a matter of luck, not of the number of checkpoints.

# %%
three = at = None
try:
    triplet = ctt.Crosscoder.load(crosscoder or suite.crosscoder_folder).to(many.W_enc.device)
    if set(triplet.source["revisions"]) <= set(names) and triplet.source["layer"] == ckpts.layer:
        three = suite.checkpoints(triplet.source["revisions"], layer=ckpts.layer, device=device)
        at = [names.index(r) for r in three.labels]
except FileNotFoundError as error:
    print(error)
if three is None:
    print(
        "Left out here: the comparison with a triplet's crosscoder, and the triangle. It takes one "
        "that was trained\non three of these checkpoints and this layer: notebook 03 makes it, the "
        "parameter crosscoder= names it."
    )
else:
    own = ctt.indirect_effects(triplet, three, pairs, method)
    control = ctt.Crosscoder(3, ckpts.d_model, triplet.n_latents, k=triplet.k or k, seed=seed + 1)
    ctt.train(control, ctt.ActivationStream(three, text, batch_size, seed), config, device=device)
    again = ctt.indirect_effects(control, three, pairs, method)


# %%
def compare(other, stream, effects_there, decoders):
    """Best matches of the triplet's strong features, and what these do at the three checkpoints."""
    with torch.no_grad():
        fires = ctt.activation_similarity(triplet.encode(x[:, at]), other.encode(stream))
    found = ctt.match_features(fires).loc[strongest, ["match", "similarity"]].dropna()
    i, j = found.index.to_numpy(), found["match"].to_numpy(int)
    writes = ctt.decoder_similarity(triplet.W_dec, decoders)
    mine, theirs = own.mean[:, i], effects_there[:, j]
    large = np.abs(mine) > 0.05
    found = found.rename(columns={"similarity": "fire alike"}).assign(
        **{"write alike": writes[i, j]}
    )
    for c, name in enumerate(three.labels):
        found[f"IE at {name}"] = [
            f"{a:.2f} / {b:.2f}" for a, b in zip(mine[c], theirs[c], strict=True)
        ]
    same = (np.sign(mine) == np.sign(theirs))[large].mean()
    return found, {
        "strong features": len(i),
        "different matches": len(set(j)),
        "a match that fires alike (above 0.7)": (found["fire alike"] > 0.7).sum(),
        "fire alike (median)": found["fire alike"].median(),
        "write alike (median)": found["write alike"].median(),
        "same sign where |IE| > 0.05": same,
        "correlation of IE": np.corrcoef(mine.ravel(), theirs.ravel())[0, 1],
    }


if three is not None:
    x = ctt.activations.stacked_activations(ckpts, held_out)[:, 1:].flatten(0, 1)
    strongest = np.argsort(-np.abs(own.mean).max(0))[:12]
    matches, summary = compare(many, x, effects.mean[at], many.W_dec[:, at])
    _, luck = compare(control, x[:, at], again.mean, control.W_dec)
    display(pd.DataFrame({f"{len(names)}-way": summary, "triplet, other seed": luck}).round(2))

# %%
if three is not None:
    joined = matches["match"].value_counts()
    for feature in joined[joined > 1].index:
        parts = ", ".join(f"#{i}" for i in matches.index[matches["match"] == feature])
        print(f"#{feature} of the {len(names)}-way crosscoder is the best match of {parts}")
    print(f"IE: of the triplet's feature / of its match in the {len(names)}-way crosscoder")
    display(matches.round(2).rename_axis("feature"))

# %% [markdown]
# Read the first table from column to column. With another seed, a triplet finds nearly the same strong features
# again, each its own. With many checkpoints, some of them share *one* match: there the large dictionary joins what
# the small one kept apart. And some have no good match at all.
#
# A reason for joining: between far checkpoints, a feature that turns its direction looks like two. With all the steps
# between them it may look like *one that turns slowly*. Then "this feature changes its sign" and "one feature ends,
# another begins" are the same event, told by two dictionaries. Before you publish a trajectory, look whether it
# survives another choice of checkpoints, another seed, and longer training.

# %% [markdown]
# # Part 2 · A triangle for three
# Three ratios that add up to 1 are a point in a triangle. Corners: all at one checkpoint. Middle: shared by all
# three. The area of a dot is the size of its largest effect.
#
# **Question.** RelIE on the left, RelDec on the right, the same features. In which will more of them lie in a corner?

# %%
if three is not None:
    relie3, alive = ctt.rel_ie(own.mean), np.abs(own.mean).max(0)
    reldec3 = np.where(np.isnan(relie3), np.nan, ctt.rel_dec(triplet.decoder_norms()))
    with plots.style():
        fig, axes = plt.subplots(1, 2, figsize=(8.6, 3.9), layout="constrained")
        for ax, (label, shares) in zip(axes, (("RelIE", relie3), ("RelDec", reldec3)), strict=True):
            there = ~np.isnan(shares[0])
            corner = (shares[:, there] > 0.7).any(0)
            weight = alive[there][corner].sum() / alive[there].sum()
            title = (
                f"{label}: {corner.sum()} of {there.sum()} in a corner, "
                f"with {weight:.0%} of the effect"
            )
            plots.ternary(shares, alive, three.labels, ax=ax, title=title)

# %% [markdown]
# A feature can be written at two checkpoints and matter at one. That is what moves dots from an edge into a corner.

# %% [markdown]
# # Part 3 · The real models
# Which checkpoints does a published suite have? `describe()` knows, without a network: revision, step, tokens, what
# is still to be downloaded.

# %%
pythia = ctt.load_suite("pythia-1b")
about = pythia.describe()
print(
    f"{len(about)} checkpoints; the paper's triplet: {', '.join(pythia.default_triplet)}; layer "
    f"{pythia.default_layer}"
)
about[about["revision"].isin(["step0", *pythia.default_triplet])]

# %% [markdown]
# `estimate()` says what a set of checkpoints takes **before** anything is downloaded.

# %%
print(ctt.estimate(pythia.checkpoints(pythia.default_triplet, device="cpu", dtype="bfloat16")))

# %% [markdown]
# ## What does it cost?
# Three bills: the download, the memory, the arithmetic. For a triplet, with the settings of notebook 03 in each
# profile:
#
# - **models**: the weights of three checkpoints in half precision;
# - **crosscoder**: 16 bytes for each weight while it is trained;
# - **reading**: two operations for each weight of the blocks below, each token, each checkpoint;
# - **training**: twelve operations for each token and pair of a feature with a stream's number (encode and decode,
#   forwards once and backwards twice).
#
# Hours are for a T4 at a third of its peak: 65 teraflops in half precision for reading, 8.1 in single for training
# (NVIDIA's data sheet). A guess, good to a factor of two or so.


# %%
def cost(name, settings, read=65e12 / 3, train=8.1e12 / 3):
    """What a triplet takes with a profile's settings for notebook 03; nothing is loaded."""
    suite = ctt.load_suite(name)
    need = ctt.estimate(suite.checkpoints(suite.default_triplet, device="cpu", dtype="bfloat16"))
    blocks = count_parameters(suite.config, suite.default_layer)["blocks"]
    seen, h, d = (
        settings["steps"] * settings["batch_size"],
        settings["n_latents"],
        suite.config.hidden_size,
    )
    reading, training = 2 * blocks * seen * 3, 12 * seen * 3 * d * h
    return {
        "model": name,
        "tokens": f"{seen:,}",
        "download": show_size(need.download),
        "models": show_size(need.together),
        "crosscoder": show_size(16 * 2 * 3 * d * h),
        "reading": show_time(reading / read),
        "training": show_time(training / train),
    }


models = {"colab": ["pythia-160m", "pythia-410m"], "paper": ["pythia-1b", "olmo-1b", "bloom-1b1"]}
bills = [
    {"profile": p, **cost(name, PROFILES[p]["03"])}
    for p, wanted in models.items()
    for name in wanted
]
pd.DataFrame(bills).set_index(["profile", "model"])

# %% [markdown]
# The `colab` rows fit a free GPU and a lesson. The `paper` rows would fit its memory, but they would take days: they
# want a larger GPU. The effects come on top, and depend on the method (notebook 06).
#
# ## Other architectures, one code path
# Pythia is a GPT-NeoX; OLMo, OLMo 2 and BLOOM are built differently. Our code must not care. Without the hub we
# cannot have their weights, but we can have their **shape**: the published configuration, shrunk, with *random*
# weights. Nothing is learnt in them. What we check is the path: read the stream, splice it back, and the logits must
# not move.

# %%
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 128,
    "n_layer": 3,
    "n_head": 4,
    "eos_token_id": 0,
    "bos_token_id": 0,
    "pad_token_id": 0,
}


def shrunk(name, folder):
    """A suite of two checkpoints with random weights, of the architecture of a preset."""
    facts = {key: SMALL.get(key, value) for key, value in PRESETS[name].config.items()}
    config = AutoConfig.for_model(
        facts.pop("model_type"), **facts | {"vocab_size": suite.config.vocab_size}
    )
    for step in (0, 1):
        torch.manual_seed(seed + step)
        AutoModelForCausalLM.from_config(config).save_pretrained(Path(folder) / f"step{step}")
    suite.tokenizer.save_pretrained(folder)
    return ctt.load_suite(folder)


# %%
def same_path(other, some):
    """Read, splice back, take effects: the largest change of a logit, and how well AtP ranks."""
    two = other.checkpoints(other.revisions[-2:], device=device, dtype="float32")
    x = ctt.residual_stream(two[0], some.input_ids, some.attention_mask)
    spliced = ctt.logits_above(two[0], x, some.attention_mask, some.answer_position, some.answers)
    plain = ctt.logit_differences(two[0], some)
    change = (spliced[:, 0] - spliced[:, 1]).cpu() - torch.as_tensor(plain)
    code = ctt.Crosscoder(2, two.d_model, n_latents=64, k=8, seed=seed).to(x.device)
    exact, fast = (
        ctt.indirect_effects(code, two, some, m).mean.ravel() for m in ("ablation", "atp")
    )
    rank = ctt.rank_correlation(exact, fast)
    return {
        "class": type(two[0].hf_model).__name__,
        "largest change": float(change.abs().max()),
        "AtP: rank": float(rank),
    }


# %%
rows = {}
for name in ("pythia-1b", "olmo-1b", "olmo2-1b", "bloom-1b1"):
    with tempfile.TemporaryDirectory() as folder:
        other = shrunk(name, folder)
        rows[f"{name}, shrunk, random"] = same_path(other, suite.pairs(task, n=10, path=pairs_path))
paths = pd.DataFrame(rows).T
assert paths["largest change"].max() < 1e-3
paths

# %% [markdown]
# **[hub]** The same function on the real weights: name the suites in `other_models`, such as `["olmo-1b",
# "bloom-1b1"]`.

# %%
for name in other_models or []:
    try:
        other = ctt.load_suite(name)
        print(name, same_path(other, other.pairs(other.task_names[0], n=10, path=pairs_path)))
    except (
        OSError,
        MemoryError,
        ValueError,
    ) as error:  # no hub, no room, or no pair of one token in this vocabulary
        print(f"{name} is left out: {error}")
if not other_models:
    print(
        "Left out here: real weights. With other_models=['olmo-1b', 'bloom-1b1'] and a hub, this "
        "cell would show the\nclass of each model, that splicing its stream back leaves the logits "
        "alone, and how AtP ranks its effects."
    )

# %% [markdown]
# ## Shared and specific: tasks, or languages
# Do French and English agreement use the same features? Do two tasks? It is one question: take the features that
# count for each, and see how many are the same.
#
# A feature counts at a checkpoint if its |IE| is at least 1 % of the most that all features together ever reach on
# that task. The overlap of two sets is the share of their union that is in both.

# %%
groups, sets = {}, {}
for name in tasks:
    try:
        groups[name] = suite.pairs(name, split="find", n=n_pairs, path=pairs_path)
    except (OSError, ValueError) as error:
        print(f"{name} is left out: {error}")
for name, group in groups.items():  # one backward pass a pair: there are many tasks
    size = np.abs(ctt.indirect_effects(many, ckpts, group, "atp").mean)
    sets[name] = size >= 0.01 * size.sum(1).max()
dip, last = int(accuracy.argmin()), len(names) - 1
count = pd.DataFrame({"pairs": {name: len(group) for name, group in groups.items()}})
for c in (dip, last):
    count[f"accuracy at {names[c]}"] = [ctt.accuracy(ckpts[c], group) for group in groups.values()]
count.round(2)


# %%
def overlap(c):
    """Share of features in common, for each two tasks at checkpoint c; NaN: neither has any."""
    table = pd.DataFrame(index=list(sets), columns=list(sets), dtype=float)
    for a in sets:
        for b in sets:
            either = (sets[a][c] | sets[b][c]).sum()
            table.loc[a, b] = (sets[a][c] & sets[b][c]).sum() / either if either else np.nan
    return table


def between(c):
    return overlap(c).to_numpy()[np.triu_indices(len(sets), 1)]


# %%
if len(sets) > 1:
    with plots.style():
        fig, axes = plt.subplots(1, 2, figsize=(9.4, 3.9), layout="constrained")
        for ax, c in zip(axes, (dip, last), strict=True):
            table = overlap(c).rename(
                index=lambda t: t.split("/", 1)[1], columns=lambda t: t.split("/", 1)[1]
            )
            image = ax.imshow(table, vmin=0, vmax=1, cmap="mako_r")
            ax.set_xticks(
                range(len(table)), table.columns, rotation=35, ha="right", rotation_mode="anchor"
            )
            ax.set_yticks(
                range(len(table)),
                [f"{t} ({sets[n][c].sum()})" for t, n in zip(table, sets, strict=True)],
            )
            for (r, s), value in np.ndenumerate(table.to_numpy()):
                ax.text(
                    s,
                    r,
                    f"{value:.2f}",
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color="w" if value > 0.5 else "k",
                )
            shared = np.nanmean(between(c)) if np.isfinite(between(c)).any() else np.nan
            plots.set_title(
                ax, f"{names[c]}: two of them share {shared:.0%} of their features on average"
            )
        fig.colorbar(image, ax=axes, label="share in common", shrink=0.8)

# %% [markdown]
# In brackets: how many features count.
#
# **Question.** Look beyond the averages, and at the accuracies above. Who shares at the dip, and who joins by the end?
#
# In the embedded suite, the tasks that fall far below chance at the dip share most of their features there: they seem
# to fall for the same trick. `obj_rel`, near chance then, shares none with them, and some at the end. `det_noun` has
# nothing to do with subject and verb: it is the **control**, and shares next to nothing.
#
# How much would two sets of these sizes share by chance?

# %%
if len(sets) > 1:
    rng = np.random.default_rng(seed)
    pool = np.flatnonzero(
        np.any([s[last] for s in sets.values()], axis=0)
    )  # features that count for some task
    by_chance = []
    for _ in range(200):
        drawn = [
            set(rng.choice(pool, int(s[last].sum()), replace=False))
            for s in sets.values()
            if s[last].any()
        ]
        pairs_of = [(a, b) for i, a in enumerate(drawn) for b in drawn[i + 1 :]]
        by_chance.append(np.mean([len(a & b) / len(a | b) for a, b in pairs_of]))
    both, chance = np.nanmean(between(last)), np.mean(by_chance)
    print(
        f"{names[last]}: overlap {both:.2f}, by chance {chance:.2f} (sets of these sizes out of "
        f"{len(pool)} features)"
    )
    common = np.sum([s[last] for s in sets.values()], axis=0)
    print(
        pd.Series(common[pool])
        .value_counts()
        .sort_index()
        .rename("features")
        .rename_axis("count for tasks")
        .to_frame()
    )

# %% [markdown]
# **[hub]** For languages nothing changes but the names: `clams/<language>/<construction>` for five languages,
# `multiblimp/<language>` for a hundred.

# %%
languages = [t for t in sets if t.split("/")[0] in ("clams", "multiblimp")]
if len(languages) < 2:
    print(
        "Left out here: languages, for `tasks` names none. With a multilingual model, such as\n"
        "  papermill notebooks/08_scaling_up.ipynb runs/08.ipynb -p profile paper -p model bloom-1b1 \\\n"
        "    -y '{revisions: [global_step1000, global_step10000, global_step100000, main],\n"
        "         task: clams/en/prep_anim,\n"
        "         tasks: [clams/en/prep_anim, clams/fr/prep_anim, multiblimp/spa]}'\n"
        "the two pictures above would show, early and late in training, which features two "
        "languages share."
    )
else:
    alone = {
        t: sets[t][last] & ~np.any([sets[o][last] for o in languages if o != t], axis=0)
        for t in languages
    }
    shared = np.all([sets[t][last] for t in languages], axis=0)
    print(
        f"{names[last]}: {shared.sum()} features count in all {len(languages)} languages; in one "
        "alone:"
    )
    display(pd.Series({t: int(a.sum()) for t, a in alone.items()}, name="features").to_frame())

# %% [markdown]
# # Part 4 · Sweeps
# One run is an anecdote. Every notebook here takes parameters, so a sweep is a line in a shell. It makes all
# combinations, one folder each, goes on where it was cut off, and the second line makes one table of them all:
#
# ```
# .venv/bin/python tools/sweep.py notebooks/03_the_crosscoder.ipynb --name seeds -p seed 0 1 2
# .venv/bin/python tools/collect_runs.py runs/seeds
#
# .venv/bin/python tools/sweep.py notebooks/08_scaling_up.ipynb --name length -p steps 150 300 600 -p seed 0 1
# ```
#
# The last one is worth your while: which of the features that the large dictionary *joined* come apart when it is
# trained longer?
#
# A sweep multiplies. Count before you start.

# %%
sweeps = {"3 seeds": 3, "3 seeds x 4 layers": 12, "3 seeds x 4 layers x 5 triplets": 60}
print(
    f"training took {show_time(result.seconds)} here, for {steps} steps and {len(ckpts)} "
    "checkpoints"
)
pd.Series(
    {what: show_time(n * result.seconds) for what, n in sweeps.items()}, name="training alone"
).to_frame()

# %%
Path(out).mkdir(parents=True, exist_ok=True)
report.save(Path(out) / "report.json")
effects.save(Path(out) / "effects")
when.join(sure.drop(columns=["onset", "end", "peak"])).loc[active].to_csv(
    Path(out) / "trajectories.csv"
)
moves.to_csv(Path(out) / "onsets_and_accuracy.csv")
if three is not None:
    pd.Series(summary, name="value").rename_axis("what").to_csv(
        Path(out) / "against_the_triplet.csv"
    )
print(f"written: {out}")

# %% [markdown]
# ## Limits
# - The crosscoder here is trained briefly, on little text. More steps, more features or another seed may split what it
#   joined, and join what it split.
# - Onset and end hang on a convention (half of the largest share), on the list of checkpoints, and on the estimate.
# - All checkpoints weigh the same, and many of them lie where nothing happens yet on this task.
# - Shrunk models with random weights show that the code runs. They show nothing about OLMo or BLOOM.
# - Costs are arithmetic and rates. Networks, disks and other people's jobs are not in them.
#
# ## To read more
# Ge et al., on crosscoders over many snapshots of pretraining (2025); Bayazit et al., *Crosscoding Through Time*
# (2025), on Pythia, OLMo and BLOOM, English and French; Biderman et al., *Pythia* (2023); Groeneveld et al., *OLMo*
# (2024); Mueller et al., *Cross-Linguistic Syntactic Evaluation of Word Prediction Models* (CLAMS, 2020); Jumelet et
# al., *MultiBLiMP 1.0* (2025).
