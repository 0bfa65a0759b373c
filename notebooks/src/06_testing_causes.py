# %% [markdown]
# # 06 · Testing causes
#
# RelIE is a ratio of effects. It is only as good as the effects under it, and each number so far came without an error
# bar. In this notebook we test the tools themselves.
#
# **You will learn**
# - to test a method where the truth is known;
# - to compare estimators of an effect, and to say *why* they differ;
# - to ask *where in the sentence* a feature works;
# - to measure how often a method finds something where there is nothing;
# - to put an interval on an effect, a ratio and a class, and to say "undecided".
#
# **Time:** 40 minutes to read, about a minute and a half to run. **You need:** notebooks 04 and 05.

# %% tags=["parameters"]
profile: str = "tiny"  # "tiny", "colab" or "paper": it sets what is None below
model: str | None = None  # a suite
revisions: list | None = None  # the checkpoints that the crosscoder was trained on
layer: int | None = None
crosscoder: str | None = None  # its folder; None: the one shipped with the suite
task: str | None = None  # agreement across an attractor
other_task: str | None = None  # a task whose subject, attractor and answer are different words
n_pairs: int | None = None  # pairs to find with, and as many others to test on
pairs_path: str | None = None  # folder of published pairs; None: from where they are published
text_path: str | None = None  # file of text, or a name such as "pile-10k"; None: the suite's own
n_draws: int = 1000  # bootstrap draws
n_features: int = 10  # how many to show
seed: int = 0
device: str = "auto"
results: str | None = None  # tables of `python -m experiments`; None: the project's own
out: str | None = None  # where tables go; None: runs/06 of the project

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import display

import ctt_helpers as ctt
from ctt_helpers import controls, uncertainty
from ctt_helpers.attribution import effects_from_gradient
from ctt_helpers.controls import artefacts, latent_scaling
from ctt_helpers.effects import touched
from ctt_helpers.notebook import plots
from ctt_helpers.notebook.parameters import top_folder
from ctt_helpers.planted import COUNTS, measures, plant, recovery, score

ctt.use_profile(
    globals(),
    "06",
    n_pairs=lambda n: None if n >= 20 else "take at least 20 pairs",
    n_draws=lambda n: None if n >= 100 else "take at least 100 draws",
)
suite = ctt.load_suite(model)
if suite.name == "tiny":
    torch.set_num_threads(1)  # a second thread slows small models down
ckpts = suite.checkpoints(revisions or suite.default_triplet, layer=layer, device=device)
dictionary = ctt.Crosscoder.load(crosscoder or suite.crosscoder_folder)

# %% tags=["estimate"]
if suite.name != "tiny":  # what it takes on this machine, before anything is downloaded
    # six sets of exact effects; the side-by-side table takes 420 pairs more
    todo = {
        "ablation": 6 * n_pairs,
        "ig": n_pairs + 420,
        "ig_near": n_pairs,
        "ig_own": 60,
        "atp": n_pairs + 420,
    }
    print(
        ctt.estimate(
            ckpts, tokens=40_000, pairs=todo, n_latents=dictionary.n_latents, k=dictionary.k or 64
        )
    )

# %%
dictionary.to(ckpts[0].device)
ctt.evaluation.check_match(dictionary, ckpts)  # an error here: it was trained on other checkpoints
names, colors = ckpts.labels, plots.checkpoint_colors(ckpts.labels)
find = {t: suite.pairs(t, split="find", n=n_pairs, path=pairs_path) for t in (task, other_task)}
test = {t: suite.pairs(t, split="test", n=n_pairs, path=pairs_path) for t in (task, other_task)}
short = ctt.pairs.short_names(list(find))
print(f"{', '.join(names)}; {len(find[task])} pairs to find, {len(test[task])} others to test")

# %% [markdown]
# # Part 1 · Where the truth is known
# Which of our measures can be trusted? On a language model nobody knows the answer. So go back to the planted features of
# notebook 03, in a harder world: 96 features in 32 dimensions, as many latents, three times the noise. Every effect has a
# closed form, so the effects below are *exact*; what can go wrong is the crosscoder, and the question.
#
# Four measures, each as the last checkpoint's share against the first: **RelIE**, **RelDec**, and the two of **latent
# scaling** (`nu_error`, `nu_reconstruction`), which ask the activations whether a latent is really absent.
#
# **Question.** Two kinds are traps. *Scale* is written four times larger in the end, with the same effect. *Decodable*
# appears late, and nothing reads it. Which measure will call which of them "specific to the last checkpoint"?

# %%
crowded = plant(counts={kind: 2 * n for kind, n in COUNTS.items()}, noise=0.1, seed=seed)
student = ctt.Crosscoder(3, 32, n_latents=96, k=7, seed=seed)
seen = ctt.TensorStream(crowded.sample(20_000, seed)[0].float(), 1024, seed)
ctt.train(student, seen, ctt.TrainConfig(steps=400), device="cpu")
known = recovery(student, crowded)
test_x = crowded.sample(8_000, seed + 1)[0]
scores = pd.DataFrame(
    {name: score(ratios, known) for name, ratios in measures(student, crowded, test_x).items()}
).T
print(f"found: {known['found'].sum()} of {len(known)} planted features; the scores are about these")
display(known.groupby("kind", sort=False)["found"].agg(["sum", "size"]).T)
scores.round(2)

# %% [markdown]
# AUROC: does the measure put features that emerge (fade) above those that persist? Accuracy: over these three kinds, with
# the paper's bounds. The last three columns are false rates: the share called specific, though the task's use of the
# feature does not change, or is nil.
#
# Read it plainly. To tell *emerge*, *persist* and *fade* apart, the norms do as well as the effects, and they are free.
# (They cannot fail here: we planted emerging *as* writing.)
# RelIE earns its price where writing and reading part company: it leaves *scale* alone. Latent scaling compares with
# *one* direction, so a feature that *rotates* looks absent to it. And nobody is right about *decodable*, RelIE included.
# Why? Its effects are not zero: the decoder is a little off, and what is off gets read. RelIE is a *ratio* of such
# nothings, and a ratio does not tell how small its parts are. Only the threshold of inactivity does.

# %%
causal = (known["kind"] != "decodable")[known["found"]].to_numpy()
shares = np.sort([*np.geomspace(1e-5, 3e-2, 15), 1e-3])  # with the default
false, lost = [], []
for share in shares:
    ratios = measures(student, crowded, test_x, inactive_below=share)["RelIE"]
    false.append(score(ratios, known)["specific_decodable"])
    lost.append(np.isnan(ratios[0, known["latent"][known["found"]]])[causal].mean())
with plots.style():
    fig, ax = plt.subplots(figsize=(5.6, 2.8), layout="constrained")
    ax.plot(shares, false, "o-", color="#D55E00", label="read by nothing, yet called specific")
    ax.plot(shares, lost, "s-", color="#0072B2", label="has an effect, yet called inactive")
    ax.axvline(1e-3, color="0.6", lw=1, ls=":")
    ax.set(
        xscale="log",
        xlabel="inactive below this share of all |IE| (dotted: the default)",
        ylabel="share of features",
    )
    at_default = scores.loc["RelIE", "specific_decodable"]
    ax.set_title(
        f"At the default, {at_default:.0%} of the {(~causal).sum()} unread features are 'specific'"
    )
    ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.25))

# %% [markdown]
# No bound brings both to zero. A little to the right of the default both are small, and only because we planted the
# truth do we know where. (The default loses no feature that has an effect. It lets some through that have none.)
#
# **Question.** Would a bootstrap over the test tokens reveal these false features? Or more training? Guess first.

# %%
code = student.encode(test_x.float()).detach().double()
unread = torch.tensor(known[known["found"] & (known["kind"] == "decodable")]["latent"].tolist())
draw, wide = np.random.default_rng(seed), []
for _ in range(50):
    rows = draw.integers(len(test_x), size=len(test_x))
    ie = crowded.exact_effects(
        test_x[rows], code[rows][:, unread], student.raw_decoder()[0][unread]
    )
    wide.append(ctt.pairwise(ie)[0, -1])
low, high = np.percentile(wide, [2.5, 97.5], axis=0)
print(
    f"widest 95 % interval of the late share: {np.max(high - low):.2g}; wholly above 0.7: "
    f"{np.mean(low > 0.7):.0%}"
)

# %% [markdown]
# More test tokens: no. The task is linear, so the same share comes out of *every* draw: the error sits in the decoder, not
# in the sample. An interval over sentences says how sure we are about *this dictionary*. It says nothing about the
# dictionary. For that, train another one (seeds, below), or train this one longer:

# %%
longer = ctt.Crosscoder(3, 32, n_latents=96, k=7, seed=seed)
ctt.train(longer, seen, ctt.TrainConfig(steps=1600), device="cpu")
known_longer = recovery(longer, crowded)
rows = [
    (
        label,
        table["found"].sum(),
        score(measures(one, crowded, test_x)["RelIE"], table)["specific_decodable"],
    )
    for label, one, table in (("400 steps", student, known), ("1600 steps", longer, known_longer))
]
pd.DataFrame(
    rows, columns=["training", "found, of 96", "unread features called specific"]
).set_index("training").round(2)

# %% [markdown]
# More training on the same tokens finds more features, and makes fewer false ones. A better dictionary is the best control.
#
# ### The other failure: a task that saturates
# Ten features persist, written and read alike throughout; forty emerge. The task's read-out levels off at S. No
# crosscoder here, and no error at all: what do the exact effects say about the ten?

# %%
rows = []
for limit in (np.inf, 4.0, 2.0, 1.0):
    world = plant(counts={"emerge": 40, "persist": 10}, hurts=0.0, saturation=limit, seed=seed)
    planted_x, sizes = world.sample(8_000, seed)
    ie = world.exact_effects(planted_x, sizes)
    late = ctt.pairwise(ie)[0, -1, world.kinds == "persist"]
    rows.append(
        {
            "S": limit,
            "late share of what persists": late.mean(),
            "called 'fades'": (late < 0.3).mean(),
        }
    )
pd.DataFrame(rows).round(2)

# %% [markdown]
# The effects are right, and the word "fades" is wrong. What came later does part of the job, so each old feature is less
# *needed*, although it is read as before. RelIE measures need, not use. Whenever a late checkpoint is very sure of itself,
# expect early features to seem to fade.

# %% [markdown]
# # Part 2 · Three estimators, side by side
# (**Completeness**: the effects of all features and of the error add up to what happens when everything is taken away. A
# **node** is a point of the path where the gradient is taken. The **clean point** is the model left alone.)
#
# Back to the real model. There the truth is expensive, but it can be had: **exact ablation** removes one feature and runs
# the layers above. The others are estimates.
#
# | method | what it does | cost for a pair |
# |---|---|---|
# | `ablation` | removes each active feature alone | a forward pass a feature |
# | `atp` | gradient at the clean point | one gradient |
# | `ig` | gradient averaged until *everything* is gone | as many as completeness needs |
# | `ig_near` | the same over the first half of that path | a few |
# | `ig_own` | averaged along *one feature's own* path | five a feature |
#
# **Question.** IG is complete: its effects add up to the whole. AtP's do not. Which of the two is closer to exact ablation?

# %%
effects = {
    m: ctt.indirect_effects(dictionary, ckpts, find[task], m)
    for m in ("ablation", "atp", "ig", "ig_near")
}
few = find[task][:40]
own = {m: ctt.indirect_effects(dictionary, ckpts, few, m) for m in ("ablation", "ig_own")}
rows = []
for method, c in [(m, c) for m in ("atp", "ig_near", "ig", "ig_own") for c in range(len(ckpts))]:
    estimate, truth = (
        (own["ig_own"], own["ablation"])
        if method == "ig_own"
        else (effects[method], effects["ablation"])
    )
    e, t = estimate.mean[c], truth.mean[c]
    large, active, strong = np.abs(t) > 1e-3, t != 0, np.argsort(-np.abs(t))[:20]
    rows.append(
        {
            "method": method,
            "checkpoint": names[c],
            "rank, large effects": ctt.rank_correlation(e[large], t[large]),
            "rank, all active": ctt.rank_correlation(e[active], t[active]),
            "same sign": np.mean(e[large] * t[large] > 0),
            "size (1: right)": (e[strong] @ t[strong]) / (t[strong] @ t[strong]),
            "gap": estimate.gap[c],
            "gradients a pair": estimate.n_nodes[c],
        }
    )
compared = pd.DataFrame(rows).set_index(["method", "checkpoint"])
compared.round(3)

# %%
truth = effects["ablation"].mean[-1]
large = np.abs(truth) > 1e-3
with plots.style():
    fig, axes = plt.subplots(1, 3, figsize=(11, 3.5), layout="constrained")
    for ax, method in zip(axes, ("atp", "ig_near", "ig"), strict=True):
        size = compared.loc[(method, names[-1]), "size (1: right)"]
        ax.axline((0, 0), slope=1, color="0.5", lw=1, ls=":")
        ax.scatter(truth[large], effects[method].mean[-1, large], 14, alpha=0.6)
        ax.set(
            xlabel=f"exact ablation (logits), {large.sum()} features", ylabel=f"{method} (logits)"
        )
        ax.set_title(f"{method} at {names[-1]}: {size:.1f} times the exact size")

# %% [markdown]
# Read the table from left to right. *Order*: AtP ranks features nearly as exact ablation does, everywhere. IG's order
# is worse, and worst at the last checkpoint, most of all when weak features count. *Size*: AtP sees too little, IG too much.
# *Completeness*: IG's gap is tiny, and that says nothing about its order. Adding up to the right total and giving each
# feature its due are two things.
#
# The last rows are a check. One feature's own path ends where the ablation ends, so its integral *must* be the exact
# effect, and it is.
#
# ## Why?
# We can look along IG's path. At each point $a$ take the gradient there, form the effects from it alone, and ask: how well
# do *they* rank the features? And what is $m$ there?

# %%
points, sample = torch.linspace(0, 1, 21)[:-1], find[task][:60]
exact = ctt.indirect_effects(dictionary, ckpts, sample, "ablation").mean
bias, W_dec = dictionary.raw_decoder()[1].detach(), dictionary.raw_decoder()[0].detach()
x = ctt.activations.stacked_activations(ckpts, sample.input_ids, sample.attention_mask)
keep = touched(sample).to(x.device)
f = dictionary.encode(x).detach() * keep[..., None]
along, m_along, m_frozen = np.zeros((3, len(ckpts), len(points)))


def with_frozen_norm(checkpoint, readout, points):
    """m along the path if the final norm went on dividing as it does at the clean point."""
    caught, norm = [], checkpoint.final_norm
    handle = norm.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0].detach()))
    readout.along(points)
    handle.remove()
    if checkpoint.norm_centres:  # a layer norm takes the mean away first
        caught = [h - h.mean(-1, keepdim=True) for h in caught]
    size = caught[0].pow(2).mean(-1, keepdim=True).sqrt()
    right, wrong = checkpoint.unembedding.weight[sample.answers.to(size.device)].unbind(1)
    read = (wrong - right) * checkpoint.norm_gain
    return [float((h / size * read).sum(-1).mean()) for h in caught]


for c, checkpoint in enumerate(ckpts):
    readout = ctt.readout_of(checkpoint, sample, x[:, :, c], bias[c])
    m_along[c] = readout.along(points).mean(1).cpu()
    m_frozen[c] = with_frozen_norm(checkpoint, readout, points)
    for k, a in enumerate(points):
        gradient = readout.gradient(readout.at(a.expand(len(sample))))
        there = effects_from_gradient(f, W_dec[:, c], gradient).sum(1).mean(0).cpu()
        along[c, k] = ctt.rank_correlation(there[exact[c] != 0], exact[c][exact[c] != 0])

# %%
with plots.style():
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for c, name in enumerate(names):
        axes[0].plot(points, m_along[c], color=colors[name], label=name)
        axes[0].plot(points, m_frozen[c], color=colors[name], ls="--", lw=1)
        axes[1].plot(points, along[c], color=colors[name])
    moved = np.abs(m_along[-1] - m_along[-1, 0]) > 0.05 * np.abs(m_along[-1, 0])
    until = points[int(moved.argmax())] if moved.any() else 1.0
    axes[0].set(
        ylabel="m (below 0: right)", title=f"{names[-1]}: m hardly moves until a = {until:.2f}"
    )
    below = points[int(np.argmax(along[-1] < 0.5))] if (along[-1] < 0.5).any() else 1.0
    axes[1].set(ylabel="rank correlation with exact", ylim=(min(-0.05, np.nanmin(along)), 1.05))
    axes[1].set_title(f"{names[-1]}: from a = {below:.2f} on, the gradient ranks other things")
    for ax in axes:
        ax.axhline(0, color="0.6", lw=0.8)
        ax.set_xlabel("a: share of features and error taken away")
    axes[0].legend(
        frameon=False, title="dashed: the final\nnorm's divisor frozen", title_fontsize=8
    )

# %% [markdown]
# There it is. Near the clean point the gradient ranks the features rightly. Far along the path the stream is something
# the model never sees, and *there* the gradients are steepest: just where $m$ goes to 0. IG adds these up. Two things work
# together:
#
# - **The final norm.** It divides by the stream's size. While everything shrinks together, the divisor shrinks along, and $m$
#   hardly moves. Only when the constant $b_{dec}$ is what is left does it move, all at once. So the slope at the clean
#   point is too small (AtP), and most of IG's sum comes from far away. The dashed lines show it: with the divisor frozen,
#   $m$ moves from the start.
# - **A joint path.** IG removes feature A while B, C and D are going too. Ablation removes A while they are there.
#
# How much of IG's trouble is the norm's? `python -m experiments` freezes the divisor, in the estimate and in the exact
# effect alike, and compares again. (Tables that take minutes come from there.)


# %%
def table_of(name):
    """A table that `python -m experiments` made, or None with a sentence."""
    path = Path(results or top_folder() / "experiments/results") / f"{name}.csv"
    if path.is_file():
        return pd.read_csv(path)
    print(
        f"{path} is not there, so this table is not shown: in a checkout, `make experiments` makes "
        "it."
    )


frozen = table_of("frozen_norm")
if frozen is not None:
    figures = {
        "size": "size (1: right)",
        "rank_large": "rank, large effects",
        "rank_all": "rank, all active",
    }
    by = (
        frozen.groupby(["method", "checkpoint", "norm"], sort=False)[list(figures)]
        .mean()
        .rename(columns=figures)
    )
    display(by.unstack("norm").round(2))

# %% [markdown]
# With the divisor frozen, both estimates come close to the exact size, and IG to the order of the large effects. What is
# left, the order of the weak ones at the last checkpoint, is the path.
#
# **So which one should RelIE be made of?** Shares need sizes that are comparable across checkpoints, and an order that
# holds on other sentences. Here is the error of the shares, and what a given number of passes buys.

# %%
estimators, budget = table_of("estimators"), table_of("budget")
if estimators is not None:
    off = estimators.groupby(["method", "checkpoint"], sort=False)[["relie_error", "passes"]].mean()
    wide = (
        off["relie_error"]
        .unstack("checkpoint")
        .loc[off.index.unique("method"), off.index.unique("checkpoint")]
    )
    wide = wide.assign(passes=off["passes"].groupby("method").mean())
    display(wide.dropna().rename_axis("RelIE off by, with effects from").round(3))
if budget is not None:
    rank = (
        budget.groupby(["way", "checkpoint"], sort=False)["rank_large"].mean().unstack("checkpoint")
    )
    rank = rank.loc[budget["way"].unique(), budget["checkpoint"].unique()]
    rank["passes a pair"] = budget.groupby("way")["passes"].mean().round(0)
    display(rank.rename_axis("rank correlation with exact effects on other sentences").round(2))

# %% [markdown]
# That settles our default. In a model of this size exact ablation costs about as much as a careful IG, and there is
# nothing left to argue about: `method="ablation"`. In a large model, let **AtP** rank all features on all sentences, then
# confirm the first few hundred by exact ablation (`features=[...]`). Spending AtP's passes on exact ablation of a few
# sentences is worse: few sentences, noisy means. **IG** is for one question only: how the *whole* is shared out.
#
# ## Is IG complete everywhere?

# %%
gaps = [
    {"task": t.split("/")[-1], "checkpoint": name, "gap": found.gap[c]}
    for t in suite.task_names[:14]
    for found in [
        ctt.indirect_effects(
            dictionary, ckpts, suite.pairs(t, split="test", n=30, path=pairs_path), "ig"
        )
    ]
    for c, name in enumerate(names)
]
gap_table = pd.DataFrame(gaps).pivot(index="task", columns="checkpoint", values="gap")[names]
print(f"largest gap: {gap_table.to_numpy().max():.2%} of |m(all gone) - m(clean)|, 30 pairs a task")
assert gap_table.to_numpy().max() < 0.01
gap_table.map("{:.2%}".format)

# %% [markdown]
# ## Where in the sentence?
# A feature can be active on several words. Where does it do its work? We ablate it *at one word only*, on a task where
# subject, attractor and the place of the answer are different words. `pairs.positions("subject")` says where a role stands.
#
# **Question.** The verb must agree with the *subject*. At this depth, will the strongest features work at the subject?

# %%
pairs = find[other_task]
whole = ctt.indirect_effects(dictionary, ckpts, pairs, "ablation")
top = np.argsort(-np.abs(whole.mean).max(0))[:n_features]
best = np.abs(whole.mean).argmax(0)  # the checkpoint where each does most
roles = [r for r in ("subject", "attractor", "answer") if r == "answer" or "roles" in pairs.table]
at_role = {
    r: ctt.indirect_effects(
        dictionary, ckpts, pairs, "ablation", features=top, positions=pairs.positions(r)
    ).mean
    for r in roles
}
by_role = pd.DataFrame(
    {r: [v[best[i], i] for i in top] for r, v in at_role.items()}, index=[f"#{i}" for i in top]
)
by_role.insert(0, "at", [names[best[i]] for i in top])
by_role["everywhere at once"] = [whole.mean[best[i], i] for i in top]
by_role.round(2)

# %% [markdown]
# Where a row's roles do not add up to the last column, the feature works at a word that has no name here. So look at every
# word, counted from the end.

# %%
length = int(pairs.attention_mask.sum(1).min())
at = np.zeros((length, len(ckpts), dictionary.n_latents))
for t in range(1, length):
    mask = torch.zeros_like(pairs.attention_mask, dtype=torch.bool)
    mask[torch.arange(len(pairs)), pairs.answer_position - (length - 1 - t)] = True
    at[t] = ctt.indirect_effects(
        dictionary, ckpts, pairs, "ablation", features=top, positions=mask
    ).mean
values = np.array([[at[t, best[i], i] for t in range(1, length)] for i in top])
shortest = int(pairs.answer_position.argmin())
words = [suite.tokenizer.decode([i]) for i in pairs.input_ids[shortest, 1:length].tolist()]
at_answer = np.mean([abs(at[-1, best[i], i]) > 0.5 * abs(whole.mean[best[i], i]) for i in top])
with plots.style():
    fig, ax = plt.subplots(figsize=(0.9 * length + 1.5, 0.3 * len(top) + 1.2), layout="constrained")
    reach = np.abs(values).max()
    image = ax.imshow(values, cmap="RdBu", vmin=-reach, vmax=reach, aspect="auto")
    ax.set_xticks(range(length - 1), words, rotation=30, ha="right")
    ax.set_yticks(range(len(top)), [f"#{i} at {names[best[i]]}" for i in top])
    fig.colorbar(image, label="effect of that word alone (logits)")
    ax.set_title(f"{at_answer:.0%} of the strongest features work where the answer is read")
    ax.set_xlabel("word, counted from the end (an example)")

# %% [markdown]
# By this layer the model has already *carried* the subject's number to where it is needed, so most features work at the
# last word. The exceptions are the interesting ones: what is written at another word must still be *moved*, by the
# attention of the layers above.
#
# # Part 3 · Does it find something where there is nothing?
# A method that always finds "specific" features tells us nothing. So we give it nothing, in four ways, and count.
#
# **1. Labels swapped.** In a random half of the pairs, right and wrong change places. The task is gone: what helps one
# half hurts the other. Swapping turns the sign of a pair's effect and changes nothing else, so no run is needed.

# %%
rng = np.random.default_rng(seed)
real = effects["ablation"]
sign = torch.tensor(rng.permutation(np.resize([1.0, -1.0], len(find[task]))))
dense = real.per_pair.to_dense().double()
swapped = (dense * sign[None, :, None]).mean(1).numpy()
twins = ctt.twins(find[task])  # pairs of the same words are one piece of evidence
print(
    f"summed |IE|: {np.abs(real.mean).sum():.1f} on the task, {np.abs(swapped).sum():.1f} with "
    "half the labels swapped"
)
for label, ie in (("task", real.mean), ("swapped", swapped)):
    if len(ckpts) <= 3:
        counts = (
            ctt.classify(ctt.rel_ie(ie, inactive_below=1e-3), names)["label"]
            .value_counts()
            .to_dict()
        )
        print(f"{label}: {counts}")

# %% [markdown]
# Look at the second line of counts. There is *no task*, and still there are "specific" features: a ratio of two noises is
# a number too. The ratio alone cannot tell. An interval can.
#
# ## Intervals: the bootstrap
# Draw as many sentences as there were, *with replacement*; take every mean again; and again. The spread of these means is
# what another sample of sentences might have given. (Mirrored singular and plural pairs share their words, so we draw them
# together.)

# %%
swapped_effects = ctt.Effects(
    **{**vars(real), "mean": swapped, "per_pair": (dense * sign[None, :, None]).to_sparse()}
)
draws = {
    label: uncertainty.resample(e, n_draws, seed, clusters=twins)
    for label, e in (("task", real), ("swapped", swapped_effects))
}
low, high = uncertainty.interval(draws["task"])
strongest = np.argsort(-np.abs(real.mean).max(0))[:n_features]
sure = int(((low > 0) | (high < 0))[:, strongest].any(0).sum())
with plots.style():
    ax = plots.interval_plot(
        real.mean,
        low,
        high,
        strongest,
        names,
        title=f"{sure} of the {len(strongest)} strongest effects are clear of zero somewhere, "
        f"{len(find[task])} pairs",
    )

# %% [markdown]
# Now the ratio and the class. In each draw we form RelIE and the class. A class is **decided** if 95 % of the draws agree on
# it; otherwise it is **undecided**.


# %%
def decided(label, ie):
    """Classes by the point estimate, and what is left of them when 95 % of the draws must agree."""
    ratio_draws = uncertainty.rel_ie_draws(draws[label], inactive_below=1e-3)
    point = ctt.rel_ie(ie, inactive_below=1e-3)
    return uncertainty.classify_draws(ratio_draws, names, point=point), point


if len(ckpts) <= 3:
    tables = {
        label: decided(label, ie) for label, ie in (("task", real.mean), ("swapped", swapped))
    }
    counts = {}
    for label, (table, _) in tables.items():
        counts[f"{label}: point"] = table["candidate"].value_counts()
        counts[f"{label}: decided"] = table["label"].value_counts()
    display(pd.DataFrame(counts).fillna(0).astype(int))
else:
    ratio_draws = uncertainty.rel_ie_draws(draws["task"])
    display(
        uncertainty.trajectory_draws(ratio_draws, names, point=ctt.rel_ie(real.mean))
        .dropna()
        .head(12)
    )

# %%
if len(ckpts) <= 3:
    table, point = tables["task"]
    shown = [i for i in strongest if not np.isnan(point[:, i]).any()]
    low_r, high_r = (np.stack([table[f"{end}_{n}"] for n in names]) for end in ("low", "high"))
    open_ = table["feature"][table["label"] == "undecided"].tolist()
    with plots.style():
        ax = plots.interval_plot(
            point,
            low_r,
            high_r,
            shown,
            names,
            undecided=open_,
            ratios=True,
            title=f"{sum(i in open_ for i in shown)} of the {len(shown)} strongest features "
            "have no settled class",
        )

# %% [markdown]
# On the task most of the "specific" features are settled, and nearly all the strong ones. With swapped labels, few are. The
# other classes suffer more: *shared* and *other* have a border on every side. Report what is not settled as *undecided*.
#
# **2. Random features.** Keep every feature's activations and the length of its decoder vectors, but let it write in a
# *random direction*.

# %%
noise = controls.random_directions(dictionary, seed)
random_ie = ctt.indirect_effects(noise, ckpts, find[task], "ablation").mean
ranked = {
    "dictionary": np.sort(np.abs(real.mean), 1)[:, ::-1],
    "random": np.sort(np.abs(random_ie), 1)[:, ::-1],
}
columns = {f"{k}: summed |IE|": v.sum(1) for k, v in ranked.items()}
columns |= {f"{k}: largest": v[:, 0] for k, v in ranked.items()}
for k, ie in (("dictionary", real.mean), ("random", random_ie)):
    columns[f"{k}: RelIE > 0.7"] = (ctt.rel_ie(ie) > 0.7).sum(1)
pd.DataFrame(columns, index=names).round(3)

# %% [markdown]
# Directions without meaning have effects too, and *they are "specific" as well*, most of all to the last checkpoint. Why? A
# late checkpoint has larger logits and reads finer differences, so *any* push does more there. "Specific to the end" is
# partly a word for "sensitive at the end". What random directions lack on this task are the large effects: compare the
# columns *largest*. A finding should be far above what a random direction of the same size does. (At the first checkpoint
# even that fails, on plain agreement and across an object relative clause: see the table of `experiments`.)
#
# **3. The same checkpoint twice** and **4. a random-init checkpoint** need crosscoders of their own. They are trained by
# `python -m experiments`; here is what came out.

# %%
twins_table, start = table_of("null_twins"), table_of("null_start")
if twins_table is not None:
    print(
        "the same checkpoint under two names; P: the second one's share of the two, which should "
        "be 0.5"
    )
    columns = [
        "crosscoder",
        "task",
        "ratio",
        "active latents",
        "specific to one twin",
        "P mean",
        "P sd",
    ]
    display(twins_table[columns].round(3))
if start is not None:
    print("a random-init checkpoint in the first place: how many features are specific to which?")
    specific = [c for c in start if c.startswith("specific")]
    display(start.set_index(["task", "ratio"])[["latents", *specific]])

# %% [markdown]
# The first table checks the machinery: equal checkpoints must come out equal, and do. (How often *noise* makes a class is what
# the swapped labels measure.)
#
# The second: among the features that are active on the task, both ratios find next to nothing at the random-init
# checkpoint, as they should: a model that knows nothing can do nothing. Over the *whole* dictionary RelDec finds hundreds:
# it asks where something is written, and random activations have to be written too.
#
# How often did the swapped labels fool us, over several tosses and tasks? From "specific" on, each column asks for more
# than the one before: a class that 95 % of the draws agree on ("decided"), and an effect whose own interval leaves out
# zero as well. (They are shares of the active features.)

# %%
labels = table_of("null_labels")
if labels is not None:
    columns = ["sum of |IE|", "specific", "specific, decided", "specific, decided, IE not 0"]
    display(labels.set_index(["task", "labels"])[columns].round(3))

# %% [markdown]
# So a *decided* class is not enough: a ratio of two noises can be steady within one sample of sentences. A feature should
# have an effect that is clear of zero first, and a class second.

# %% [markdown]
# # Part 4 · Two choices that hide in a ratio
# **Competence.** A late checkpoint has larger logits, so everything is larger there. Raw RelIE asks: *where does this
# feature do most, in logits?* Divide each checkpoint's effects by the sum of all |IE| at that checkpoint, and RelIE asks:
# *where is it the larger part of what the checkpoint does at all?* Both are fair questions. They are not the same.
#
# **Absolute value: before or after the mean?** After (the paper): a feature that helps half of the sentences and hurts the
# other half counts as idle. Before: it counts as busy.

# %%
total = np.abs(real.mean).sum(1)
ways = {
    "raw, |mean|": ctt.rel_ie(real.mean, inactive_below=1e-3),
    "competence-corrected": ctt.rel_ie(real.mean, inactive_below=1e-3, total=total),
    "mean of |.|": ctt.rel_ie(real.abs_mean, inactive_below=1e-3),
}
print("summed |IE|:", {n: round(float(t), 2) for n, t in zip(names, total, strict=True)})
if len(ckpts) <= 3:
    classes = {k: ctt.classify(v, names) for k, v in ways.items()}
    key = {k: v["label"] + ": " + v["members"].str.join(", ") for k, v in classes.items()}
    active = classes["raw, |mean|"]["label"] != "inactive"
    for k in list(ways)[1:]:
        print(
            f"{k}: {(key[k] != key['raw, |mean|'])[active].mean():.0%} of {active.sum()} active "
            "features change class"
        )
rows = {
    f"#{i}": {f"{k} at {n}": v[c, i] for k, v in ways.items() for c, n in enumerate(names)}
    for i in strongest
}
pd.DataFrame(rows).T.round(2)

# %% [markdown]
# The rows at the top hardly move; those with a share at several checkpoints do, and so do many weak ones. When a class
# depends on the choice, report both.
#
# # Part 5 · Is "exclusive" really exclusive?
# A decoder norm near zero says that the crosscoder does not write a feature at a checkpoint. Two artefacts can do that.
# **Shrinkage**: it is there, but the penalty made it too short. **Decoupling**: a second feature does the same job there.
# **Latent scaling** asks the activations. How much of the feature is left in the error ($\nu_{error}$), and how much do all
# features together write in its direction ($\nu_{rec}$)?

# %%
text = suite.text(40_000, split="validation", seed=seed + 3, path=text_path)
batches = (
    ctt.activations.stacked_activations(ckpts, ids)[:, 1:].flatten(0, 1) for ids in text.split(64)
)
scaling = latent_scaling(dictionary, batches)
reldec = ctt.rel_dec(dictionary.decoder_norms(), dead=np.isnan(scaling.beta_error[0]))
verdicts = {
    "RelDec": artefacts(reldec, scaling, names),
    "RelIE": artefacts(ways["raw, |mean|"], scaling, names),
}
pd.DataFrame({k: v.groupby(["checkpoint", "verdict"]).size() for k, v in verdicts.items()}).fillna(
    0
).astype(int)

# %%
with plots.style():
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for ax, (k, v) in zip(axes, verdicts.items(), strict=True):
        for name in names:
            part = v[v["checkpoint"] == name]
            ax.scatter(
                part["nu_error"],
                part["nu_reconstruction"],
                12,
                color=colors[name],
                label=name,
                alpha=0.7,
            )
        ax.axvline(0.2, color="0.6", lw=0.8, ls=":")
        ax.axhline(0.5, color="0.6", lw=0.8, ls=":")
        ax.set(
            xlabel="largest nu_error elsewhere",
            ylabel="largest nu_rec elsewhere",
            xlim=(-0.5, 1.5),
            ylim=(-1, 2),
        )
        below = (v["verdict"] == "genuine").sum()
        plots.set_title(ax, f"{k}: {below} of {len(v)} 'specific' features are below both bounds")
    axes[0].legend(frameon=False)

# %% [markdown]
# Lower left: truly exclusive. A feature that is specific by RelIE is *used* at one checkpoint; it may well be *written* at
# the others. That is no artefact: it is the difference between a thing that is there and a thing that is read.
#
# **Now test the test.** Measure the same along the direction of *another* feature, drawn at random. If that gives high
# values too, a high value proves nothing.

# %%
null = table_of("scaling_null")
if null is not None:
    display(
        null[null["verdict"] == "all"]
        .drop(columns="verdict")
        .T.rename(columns={0: "specific by RelDec"})
        .round(2)
    )

# %% [markdown]
# It is a hard lesson. With many more features than dimensions, *everything else* writes along any direction, so
# $\nu_{rec}$ is high for a random direction too: here it is no evidence of a twin. What was **missed** ($\nu_{error}$
# without what the feature itself writes there) carries a little: its median is above that of a random direction. But
# above the bound of 0.2 there are as many random directions. Trust the number, not the verdict.
#
# What matters for RelIE: does it change when what was missed is removed along with the feature?

# %%
causal = table_of("scaling_causal")
if causal is not None:
    display(causal.set_index(["task", "verdict"]).round(2))

# %% [markdown]
# Most stay specific. Of those called "shrinkage" on the plain task most do not: there the verdict was right.
#
# # Part 6 · Does RelIE predict causes better than RelDec?
# The exact shares on the *test* half are the truth: other sentences, of mostly the same words. RelDec knows no task. RelIE from AtP and from IG are cheap. RelIE from
# exact ablation on the *find* half shows how far one could get at all.

# %%
fresh = ctt.indirect_effects(dictionary, ckpts, test[task], "ablation")
guesses = {
    "RelDec": reldec,
    **{f"RelIE, {m}": ctt.rel_ie(effects[m].mean, 1e-3) for m in ("ig", "atp", "ablation")},
}
target = ctt.rel_ie(fresh.mean, inactive_below=1e-3)
usable = ~np.isnan(target).any(0) & np.all([~np.isnan(g).any(0) for g in guesses.values()], 0)
drawn = uncertainty.resample(fresh, 200, seed, clusters=twins)[:, :, usable]


def fit(guess, effect):
    """Mean over checkpoints of the rank correlation with the shares of features with an effect."""
    there = np.abs(effect).sum(0) > 0
    truth = ctt.rel_ie(effect[:, there], inactive_below=0)
    return np.mean([ctt.rank_correlation(guess[c, there], truth[c]) for c in range(len(ckpts))])


# %%
rows = []
for label, guess in guesses.items():
    value = fit(guess[:, usable], fresh.mean[:, usable])
    spread = np.std([fit(guess[:, usable], d) for d in drawn])
    rows.append(
        {
            "guess": label,
            "rank correlation": value,
            "low": value - 1.96 * spread,
            "high": min(1, value + 1.96 * spread),
            "mean |error| of the share": np.abs(guess - target)[:, usable].mean(),
        }
    )
predicted = pd.DataFrame(rows)
print(
    f"{usable.sum()} features; mean over the checkpoints; interval: 1.96 standard deviations over "
    "test sentences"
)
predicted.round(3)

# %%
with plots.style():
    fig, ax = plt.subplots(figsize=(5.6, 2.4), layout="constrained")
    y = np.arange(len(predicted))[::-1]
    ax.hlines(y, predicted["low"], predicted["high"], color="0.4", lw=1.5)
    ax.scatter(predicted["rank correlation"], y, 24, color="#0072B2", zorder=3)
    ax.set_yticks(y, predicted["guess"])
    by = predicted.set_index("guess")["rank correlation"]
    best = by.drop("RelIE, ablation").idxmax()
    ax.set(xlabel="rank correlation with the exact shares on other sentences")
    ax.set_title(f"Of the cheap guesses, {best} comes closest: {by[best]:.2f}")

# %% [markdown]
# All tasks together, and the paper's ablation table, take longer:

# %%
prediction, removed = table_of("prediction"), table_of("ablation_groups")
if prediction is not None:
    column = "rank correlation"
    ends = [
        f"{column} {end}, latents" for end in ("low", "high")
    ]  # features drawn anew: wider than over sentences
    ends = ends if ends[0] in prediction else [f"{column} low", f"{column} high"]
    numbers = prediction[[column, *ends]].clip(upper=1).to_numpy()
    shown = [f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, low, high in numbers]
    display(prediction.assign(shown=shown).pivot(index="task", columns="predictor", values="shown"))
if removed is not None:
    print(
        "change when the top k helpers of a checkpoint are removed there, and with as many random "
        "features"
    )
    columns = ["accuracy"] + [
        c for c in removed if c.split(": ")[-1] in ("top", "random", "matched", "all")
    ]
    display(removed.set_index(["task", "k", "checkpoint"])[columns].round(2))

# %% [markdown]
# Two readings. RelIE predicts causes better than RelDec, *if it is made of good effects*: from AtP nearly as well as from
# exact ablation, from IG only a little better than RelDec, and on some tasks not surely so. And RelDec, which never saw a
# task, is not bad at all.
#
# In the second table, look at the logits of the last checkpoint: ten features do nearly all that a hundred do. In
# accuracy they do less of it. Mind the floor, too: with *every* feature gone many answers stay right, since what the dictionary misses (the error,
# which we keep) knows something of the answer.

# %% [markdown]
# # Part 7 · Another seed, another dictionary?
# A feature that only one training run finds is a property of that run. `python -m experiments` trains the same
# crosscoder with five seeds, and one on a second *model* of another seed, and matches features: by decoder similarity, and
# between models by their activations on the same text.

# %%
seeds, stable = table_of("seeds"), table_of("seeds_stable")
if seeds is not None:
    display(seeds.set_index(["what", "task"]).T.round(2))
if stable is not None:
    display(stable.set_index(["task", "latent"]).round(2).head(14))

# %% [markdown]
# **Stable**: the mutual best match at every other seed is at least 0.7 alike. How many of the active features are stable?
# How much of the effect do they carry? Does a stable feature keep its *class*, compared with chance? And compare with
# RelDec: on plain agreement its classes come back *more* often than those of RelIE, although RelIE predicts causes better.
# (Across the attractor the difference is within its interval.) What is reproducible need not be what matters.
#
# Most of the strongest features come back with the same story; not all: look in the second table for #247, the second
# strongest of notebook 04. It is not there. And their *sizes* do not come back: a standard deviation of half the mean is
# common, since one seed splits what another keeps together. To compare a second *model* with a second crosscoder, look at
# rows that match in the same way, by activations and with one partner. That is the honest limit of a statement like
# "feature 278 appears at the end".

# %%
which = table_of("seeds_classes")
if which is not None:
    display(which.round(2))

# %%
stories = table_of("seeds_stories")
if stories is not None:
    display(stories.set_index(["story", "crosscoder"]).round(2))

# %%
Path(out).mkdir(parents=True, exist_ok=True)
compared.to_csv(Path(out) / "estimators.csv")
predicted.to_csv(Path(out) / "relie_and_reldec.csv", index=False)
spread_by_word = pd.DataFrame(values, index=[f"#{i}" for i in top], columns=words)
spread_by_word.to_csv(Path(out) / "by_word.csv")
print(f"written: {out}")

# %% [markdown]
# ## What you may now say, and what not
# - Say which estimator an effect comes from, on how many sentences, with which interval.
# - Say how often your method finds something where there is nothing.
# - A class without an interval is a guess. Weak features are where classes go wrong.
# - A feature of one seed is a candidate. A feature of five seeds is a finding, about *this* model.
# - All of this tests effects on *one metric*. What a feature is *about* is still for you to read.
#
# ## Next
# **08 · Scaling up**: many checkpoints, other models, other languages, sweeps.
#
# ## To read more
# Sundararajan et al., *Axiomatic Attribution for Deep Networks* (2017); Nanda, *Attribution Patching* (2023); Syed et al.,
# *Attribution Patching Outperforms Automated Circuit Discovery* (2023); Minder et al., on sparsity artefacts in crosscoders
# (2025); Efron and Tibshirani, *An Introduction to the Bootstrap* (1993).
