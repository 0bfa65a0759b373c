# %% [markdown]
# # 04 · RelIE and RelDec
#
# We have a dictionary of features that three checkpoints share. Which of them *matter* for a task, and when? In this
# notebook we switch features off and see what happens to the answer.
#
# **You will learn**
# - the **indirect effect** (IE) of a feature, by hand and then for all of them;
# - three ways to get it (exact ablation, attribution patching, integrated gradients), and when they disagree;
# - **RelIE**: how a feature's effect is shared out among checkpoints;
# - why the *sign* of an effect tells more than its share.
#
# **Time:** 25 minutes to read, about a minute to run. **You need:** notebooks 02 and 03.

# %% tags=["parameters"]
profile: str = "tiny"  # "tiny", "colab" or "paper": it sets what is None below
model: str | None = None  # a suite
revisions: list | None = None  # the checkpoints that the crosscoder was trained on
layer: int | None = None
crosscoder: str | None = None  # its folder; None: the one shipped with the suite
task: str | None = None  # agreement across an attractor: "The author near the guards laughs"
plain_task: str | None = None  # the same without one: "The author laughs"
n_pairs: int | None = None  # pairs to find features with, and as many others to test them on
pairs_path: str | None = None  # folder of published pairs; None: from where they are published
text_path: str | None = None  # file of text, or a name such as "pile-10k"; None: the suite's own
n_tokens: int = 40_000  # tokens of text to look for examples in
n_features: int = 12  # how many to show
method: str | None = None  # effects for RelIE: "ablation", "atp", "ig", "ig_near", "ig_own"
seed: int = 0
device: str = "auto"
out: str | None = None  # where effects and tables go; None: runs/04 of the project

# %%
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML, display

import ctt_helpers as ctt
from ctt_helpers import uncertainty
from ctt_helpers.attribution import METHODS
from ctt_helpers.notebook import plots, widgets

ctt.use_profile(
    globals(),
    "04",
    method=lambda m: None if m in METHODS else f"take one of {', '.join(METHODS)}",
    n_pairs=lambda n: None if n >= 10 else "take at least 10 pairs",
)
suite = ctt.load_suite(model)
if suite.name == "tiny":
    torch.set_num_threads(1)  # a second thread slows small models down
ckpts = suite.checkpoints(revisions or suite.default_triplet, layer=layer, device=device)
dictionary = ctt.Crosscoder.load(crosscoder or suite.crosscoder_folder)

# %% tags=["estimate"]
if suite.name != "tiny":  # what it takes on this machine, before anything is downloaded
    # 41 points of the path on 60 pairs, and effects by three methods
    todo = {"ablation": 3 * n_pairs, "ig": 2 * n_pairs, "atp": 2 * n_pairs, "accuracy": 41 * 60}
    print(
        ctt.estimate(
            ckpts, tokens=n_tokens, pairs=todo, n_latents=dictionary.n_latents, k=dictionary.k or 64
        )
    )

# %%
dictionary.to(ckpts[0].device)
ctt.evaluation.check_match(dictionary, ckpts)  # an error here: it was trained on other checkpoints
names, colors = ckpts.labels, plots.checkpoint_colors(ckpts.labels)
find = {t: suite.pairs(t, split="find", n=n_pairs, path=pairs_path) for t in (task, plain_task)}
test = {t: suite.pairs(t, split="test", n=n_pairs, path=pairs_path) for t in (task, plain_task)}
short = ctt.pairs.short_names([task, plain_task])
print(dictionary)
print(
    f"{', '.join(names)}; {len(find[task])} pairs to find, {len(test[task])} others to test: "
    f"{find[task].text[0]}"
)
for t, half in find.items():
    for reason, count in half.left_out.items():
        print(f"{short[t]}: {count:,} of the task's pairs are left out: {reason}")

# %% [markdown]
# We look for features on one half of the sentences (**find**) and check them on the other (**test**). The words are partly
# the same; no sentence is in both. Otherwise we would be admiring noise.

# %% [markdown]
# ## One feature, by hand
# The task's metric for a pair is $m = \mathrm{logit(wrong)} - \mathrm{logit(right)}$ after the prefix. Below zero, the
# model is right.
#
# The residual stream of a checkpoint can be written as $x_c = f\,W_{dec}^c + b_{dec}^c + e_c$: what the features say, a
# constant, and the **error** $e_c$ that they miss. We keep the error, so that nothing changes unless we change it.
#
# Take one pair, and the features active on its tokens.

# %%
pair = find[task][:1]
x = ctt.activations.stacked_activations(ckpts, pair.input_ids)  # [1, tokens, checkpoints, d_model]
with torch.no_grad():
    f = dictionary.encode(x)  # [1, tokens, latents]
    f[:, 0] = 0  # the first token is left out
    W_dec = dictionary.raw_decoder()[0]  # [latents, checkpoints, d_model]
tokens = [suite.tokenizer.decode([i]) for i in pair.input_ids[0].tolist()]
# k is an average: some tokens get more features than others
strongest = pd.DataFrame(
    [
        {"token": t, "active features": int((a > 0).sum()), "strongest": int(a.argmax())}
        for t, a in zip(tokens, f[0], strict=False)
    ][1:]
)
print(pair.text[0])
strongest

# %% [markdown]
# Now remove *one* feature, at all tokens, at one checkpoint: subtract $f_i W_{dec,i}$. Run the layers above. Read $m$
# again. We do it for the strongest feature of each token.
#
# **Question.** If $m$ *rises* when the feature is gone, did the feature help or hurt? And will the most *active* feature
# have the largest effect?


# %%
def metric(checkpoint, stream):
    """logit(wrong) - logit(right) of the pair, from a residual stream."""
    at = (pair.attention_mask, pair.answer_position, pair.answers)
    right, wrong = ctt.logits_above(checkpoint, stream, *at)[0].tolist()
    return wrong - right


rows = []
for feature in strongest["strongest"].unique():
    for c, checkpoint in enumerate(ckpts):
        without = x[:, :, c] - f[..., [feature]] * W_dec[feature, c]
        effect = metric(checkpoint, without) - metric(checkpoint, x[:, :, c])
        rows.append({"feature": feature, "checkpoint": names[c], "IE": effect})
by_hand = pd.DataFrame(rows).pivot(index="feature", columns="checkpoint", values="IE")[names]
by_hand.insert(0, "largest activation", [float(f[..., i].max()) for i in by_hand.index])
by_hand.round(3)

# %% [markdown]
# Each number is the feature's **indirect effect** on this pair, exactly. Positive means that the feature helps: without it,
# $m$ rises towards the wrong answer. And activation is not effect: compare the first column with the others.
#
# Over a task, we take the mean over pairs. `method="ablation"` does this for every active feature, in batches.

# %%
exact = {
    t: ctt.indirect_effects(dictionary, ckpts, find[t], "ablation") for t in (task, plain_task)
}
check = ctt.indirect_effects(dictionary, ckpts, pair, "ablation", features=list(by_hand.index))
assert np.allclose(check.mean[:, by_hand.index].T, by_hand[names], atol=1e-3)
print(
    f"{int((exact[task].mean != 0).any(0).sum())} of {dictionary.n_latents} features have an "
    f"effect on {short[task]}"
)

# %% [markdown]
# ## Two shortcuts, and what they answer
# Exact ablation needs a run per feature and pair. In a model with a hundred thousand features that hurts. Two estimates
# need only gradients.
#
# - **Attribution patching (AtP)**: how $m$ changes to first order, $-f_i\,(W_{dec,i}\cdot \nabla_x m)$, at the clean point.
#   One backward pass for all features. Good as long as the change is small.
# - **Integrated gradients (IG)**: the gradient *averaged* along a path on which *all* features and the error fade out
#   together, $(1-a)(f, e)$ from $a=0$ to $1$. Its effects add up exactly to what happens when everything is gone
#   (**completeness**). The paper uses IG.
#
# What does $m$ do along that path? Look before you trust an average.

# %%
steps = torch.linspace(0, 1, 41)
with plots.style():
    fig, ax = plt.subplots(figsize=(5.4, 3), layout="constrained")
    for c, checkpoint in enumerate(ckpts):
        sample = find[task][:60]
        stream = ctt.residual_stream(checkpoint, sample.input_ids, sample.attention_mask)
        bias = dictionary.raw_decoder()[1][c].detach()
        readout = ctt.readout_of(checkpoint, sample, stream, bias)  # m as a function of the stream
        ax.plot(steps, readout.along(steps).mean(1).cpu(), color=colors[names[c]], label=names[c])
    ax.axhline(0, color="0.6", lw=0.8)
    ax.set(xlabel="a: share of features and error taken away", ylabel="m (below 0: right)")
    ax.set_title(f"m bends along IG's path; {len(sample)} pairs of {short[task]}")
    ax.legend(frameon=False)

# %% [markdown]
# Where the curve is bent, its slope at $a=0$ (AtP) and its mean slope (IG) differ. Neither needs to be the effect of one
# feature alone.
#
# IG integrates numerically. Five nodes may be far off, so our helper halves a piece until it meets $m$ at both ends. The
# **completeness gap** says how well it worked, as a share of the total change. AtP was never meant to add up, and does
# not.

# %%
ig = {t: ctt.indirect_effects(dictionary, ckpts, find[t], "ig") for t in (task, plain_task)}
atp = {t: ctt.indirect_effects(dictionary, ckpts, find[t], "atp") for t in (task, plain_task)}
pd.DataFrame(
    {
        "m(all gone) - m(clean)": ig[task].total,
        "sum of IG effects": ig[task].mean.sum(1),
        "IG error term": ig[task].error,
        "IG gap": ig[task].gap,
        "IG gradients a pair": ig[task].n_nodes,
        "AtP gap": atp[task].gap,
    },
    index=names,
).round(3)

# %% [markdown]
# ### Which estimate predicts the exact effect?
# We have the truth, so we can ask. Most features have next to no effect, and their order is noise. So we count the features
# with an exact effect above 0.001 logits, and look at two things: do the estimates *rank* them right, and find the ten
# strongest?


# %%
rows = []
for t in (task, plain_task):
    for c, name in enumerate(names):
        truth = exact[t].mean[c]
        large, best = np.abs(truth) > 1e-3, set(np.argsort(-np.abs(truth))[:10])
        row = {"task": short[t], "checkpoint": name, "features": large.sum()}
        for label, e in (("AtP", atp), ("IG", ig)):
            row[f"{label}: rank correlation"] = ctt.rank_correlation(
                e[t].mean[c, large], truth[large]
            )
            row[f"{label}: of the top 10"] = len(best & set(np.argsort(-np.abs(e[t].mean[c]))[:10]))
        rows.append(row)
pd.DataFrame(rows).round(2)

# %%
truth = exact[task].mean[-1]
large = np.abs(truth) > 1e-3
with plots.style():
    fig, axes = plt.subplots(1, 2, figsize=(8.6, 3.4), layout="constrained")
    for ax, (label, e) in zip(axes, (("AtP", atp), ("IG", ig)), strict=True):
        found, top_one = e[task].mean[-1], np.abs(truth).argmax()
        ax.axline((0, 0), slope=1, color="0.5", lw=1, ls=":")
        ax.scatter(truth[large], found[large], 14, alpha=0.6)
        ax.set(
            xlabel=f"exact ablation (logits), {large.sum()} features", ylabel=f"{label} (logits)"
        )
        times = found[top_one] / truth[top_one]
        plots.set_title(
            ax,
            f"{label} at {names[-1]}: the strongest feature gets {times:.1f} times its exact "
            "effect",
        )

# %% [markdown]
# Two lessons. **Ranking**: over the features that count, AtP is closer to the exact order than IG, or as close, and most of all late
# in training. **Size**: at the last checkpoint neither is right. Look at the curve of $m$ again: it is flat at $a=0$, so a
# gradient there sees too little; and IG takes everything away at once, so it credits a feature with what happens only
# when all else is fading too. IG is *complete* and still not the effect of a single feature.
#
# In a large model we would let AtP find candidates and confirm them by exact ablation. Here we can afford the exact effect
# of every feature. That is what the parameter `method` says. Notebook 06 asks *why* the estimates differ, and measures
# what each costs.

# %% [markdown]
# ## RelIE: whose effect is it?
# For each feature, take the size of its effect at each checkpoint, and share it out:
#
# $$\mathrm{RelIE}_c = \frac{|\mathrm{IE}_c|}{\sum_j |\mathrm{IE}_j|}.$$
#
# Above 0.7, the paper calls the feature **specific** to that checkpoint. Checkpoints with at least 0.3 **share** it. A
# feature with next to no effect anywhere (here: less than 0.1 % of all effects together) has no RelIE: it is **inactive**,
# not "shared by all".

# %%
there = {"ablation": exact, "atp": atp, "ig": ig}
effects = there.get(method) or {
    t: ctt.indirect_effects(dictionary, ckpts, find[t], method) for t in find
}
ratios = ctt.rel_ie(effects[task].mean, inactive_below=1e-3)
classes = ctt.classify(ratios, names) if len(ckpts) <= 3 else ctt.trajectory(ratios, names)
if len(ckpts) <= 3:
    classes = classes.groupby(["label", "members"]).size().rename("features").reset_index()
classes.head(12)

# %% [markdown]
# How many of these classes would survive another sample of sentences? Draw the sentences anew, with replacement, a thousand
# times (the **bootstrap**), and form RelIE each time. Where less than 95 % of the draws agree on the class, the feature is
# **undecided**.

# %%
twins = ctt.twins(find[task])  # pairs of the same words are drawn together
draws = uncertainty.resample(effects[task], 1000, seed, clusters=twins)
low, high = uncertainty.interval(draws)
ratio_draws = uncertainty.rel_ie_draws(draws, inactive_below=1e-3)
if len(ckpts) <= 3:
    settled = uncertainty.classify_draws(ratio_draws, names, point=ratios)
    display(pd.crosstab(settled["candidate"], settled["label"]))
    size, open_ = np.abs(effects[task].mean).max(0), (settled["label"] == "undecided").to_numpy()
    done = ~settled["label"].isin(["undecided", "inactive"]).to_numpy()
    print(
        f"median of the largest |IE|: {np.median(size[done]):.4f} settled, "
        f"{np.median(size[open_]):.4f} undecided"
    )
    display(
        settled.loc[np.argsort(-size)[:n_features], ["feature", "label", "members", "probability"]]
    )
else:
    display(uncertainty.trajectory_draws(ratio_draws, names, point=ratios).dropna().head(12))

# %% [markdown]
# Rows: what the plain count says. Columns: what the sentences settle. What moves to *undecided* are weak features: compare the
# medians. The second table has the strongest ones, with the **probability** of their class: the share of draws that
# agree.

# %% [markdown]
# ## The sign is the story
# RelIE drops the sign. Look at the strongest features with it, on the task with an attractor and on the plain one.
#
# **Question.** In the middle, the model does worse than chance across attractors. Must all its strong features hurt?

# %%
strength = np.abs(effects[task].mean).max(0)
top = np.argsort(-strength)[:n_features]
with plots.style():
    fig, axes = plt.subplots(1, 2, figsize=(9, 0.32 * n_features + 1.4), layout="constrained")
    for ax, t in zip(axes, (task, plain_task), strict=True):
        plots.feature_heatmap(
            effects[t].mean, top, names, ax=ax, title=f"IE on {short[t]}", quantity="IE (logits)"
        )

# %% [markdown]
# Blue helps, red hurts. (Each picture has its own scale.) How sure are these numbers? Here is the left picture again, with
# 95 % intervals.

# %%
with plots.style():
    clear = ((low > 0) | (high < 0))[:, top].any(0)
    title = (
        f"{clear.sum()} of {len(top)}: an effect that is clear of zero at some checkpoint "
        f"({len(find[task])} pairs)"
    )
    ax = plots.interval_plot(effects[task].mean, low, high, top, names, title=title)

# %% [markdown]
# **What we saw** on the embedded suite: at the middle checkpoint
# the strongest feature *helps*, and two others hurt. On plain sentences it is the other way round: those two help. At the
# last checkpoint two new features carry the task, a third new one hurts (#394), and the old ones do next to nothing. No
# strong effect turns into its opposite: each feature has its time. (That is a finding about *these three* checkpoints. With nineteen, in notebook 08, some change sign.)
#
# ### One more cut: singular and plural subjects
# A mean over all sentences can hide a division of labour. Split the effects by the subject's number.

# %%
if "head_number" in find[task].table:
    number = find[task].table["head_number"].to_numpy()
    rows = []
    for i in top[:6]:
        c = int(np.abs(effects[task].mean[:, i]).argmax())
        per_pair = effects[task].per_pair[c].to_dense()[:, i].numpy()
        split = {f"{n} subject": per_pair[number == n].mean() for n in sorted(set(number))}
        rows.append({"feature": f"#{i}", "at": names[c], "all": per_pair.mean(), **split})
    display(pd.DataFrame(rows).round(2))

# %% [markdown]
# Where one column is near zero, the feature does its work in one half of the sentences: it stands for *one* number.

# %% [markdown]
# ## Three hunts
# We look for three kinds of feature, by rules fixed before looking, on the *find* half:
#
# 1. **nearest noun**: at the middle checkpoint it helps plain agreement and hurts across the attractor.
# 2. **late helper**: RelIE of the last checkpoint above 0.7, and it helps there.
# 3. **kept**: on *plain* agreement, which the model learns first and never loses, it helps at every checkpoint after the
#    first, with a RelIE of at least 0.2 at each of these.
#
# Each must also have at least 2 % of the summed effect of all features there (the first kind on both tasks).

# %%
ie, plain = effects[task].mean, effects[plain_task].mean
share, plain_share = (np.abs(v) / np.abs(v).sum(1, keepdims=True) for v in (ie, plain))
plain_ratios = ctt.rel_ie(plain, inactive_below=1e-3)
middle, last = len(ckpts) // 2, len(ckpts) - 1
hunts = {
    "nearest noun": (ie[middle] < 0)
    & (plain[middle] > 0)
    & (np.minimum(share, plain_share)[middle] > 0.02),
    "late helper": (ratios[last] > 0.7) & (ie[last] > 0) & (share[last] > 0.02),
    "kept": (plain[1:] > 0).all(0)
    & (plain_ratios[1:] > 0.2).all(0)
    & (plain_share[1:] > 0.02).all(0),
}
where = {"nearest noun": (task, middle), "late helper": (task, last), "kept": (plain_task, last)}
caught = {}
for name, hit in hunts.items():
    size = np.abs(effects[where[name][0]].mean[where[name][1]])
    caught[name] = [int(i) for i in np.argsort(-size) if hit[i]][:5]
candidates = sorted({i for group in caught.values() for i in group})
caught

# %% [markdown]
# Now measure the same effects again, exactly, on the *test* half.

# %%
tested = {
    t: ctt.indirect_effects(dictionary, ckpts, test[t], "ablation", features=candidates)
    for t in test
}

# standard errors; pairs of the same words are drawn together
error = {
    t: uncertainty.resample(tested[t], 1000, seed, clusters=ctt.twins(test[t])).std(0) for t in test
}

rows = []
for name, group in caught.items():
    t, c = where[name]
    for i in group:
        row = {
            "hunt": name,
            "feature": i,
            "on": short[t],
            "at": names[c],
            "IE on find": effects[t].mean[c, i],
        }
        for u in (task, plain_task):
            row[f"test, {short[u]}"] = f"{tested[u].mean[c, i]:+.3f} ± {error[u][c, i]:.3f}"
        again = tested[t].mean[c, i]
        row["holds"] = again * effects[t].mean[c, i] > 0 and abs(again) > 2 * error[t][c, i]
        own = ratios if t == task else plain_ratios
        rows.append(row | {f"RelIE {n}": own[k, i] for k, n in enumerate(names)})
hunted = pd.DataFrame(rows)
hunted.round(2)

# %% [markdown]
# Does each effect hold on sentences that were not used to find it: the same sign, and more than two standard errors from
# zero? Count. A hunt may also come home with nothing: that is a result too. (Look at the size as well. The *kept* features
# hold, and are small: at the last checkpoint no single feature carries plain agreement.)

# %%
verdict = (
    hunted.groupby("hunt")["holds"].agg(["sum", "size"])
    if rows
    else pd.DataFrame(columns=["sum", "size"])
)
verdict.reindex(hunts).fillna(0).astype(int).rename(
    columns={"sum": "holds on test", "size": "found"}
)

# %% [markdown]
# ### A control: does the task matter at all?
# Perhaps these features move *any* pair of words. So we keep the prefixes and put two random verbs in place of right and
# wrong, both of the number that fits. What is left has nothing to do with agreement. (We take |IE| per pair, before the
# mean: a mean of random signs would be near zero by construction.)

# %%
table = test[task].table
if "head_number" in table and len(candidates):
    generator, number = np.random.default_rng(seed), table["head_number"].to_numpy()
    verbs = {n: np.unique(test[task].right[np.flatnonzero(number == n)]) for n in set(number)}
    drawn = torch.tensor(np.array([generator.choice(verbs[n], 2, replace=False) for n in number]))
    nonsense = replace(
        test[task], right=drawn[:, 0], wrong=drawn[:, 1], name="two random verbs of one number"
    )
    control = ctt.indirect_effects(dictionary, ckpts, nonsense, "ablation", features=candidates)
    sizes = {
        label: [
            float(e.per_pair[c].to_dense()[:, candidates].abs().mean()) for c in range(len(ckpts))
        ]
        for label, e in (("mean |IE| on the task", tested[task]), ("on two random verbs", control))
    }
    display(
        pd.DataFrame(sizes, index=names)
        .assign(ratio=lambda d: d.iloc[:, 0] / d.iloc[:, 1])
        .round(4)
    )

# %% [markdown]
# ## What are they about?
# Read before you name. Here are the first two features of each hunt: their effects on the task of the hunt, RelIE and
# decoder norms, and the tokens on which they are most active.

# %%
text = suite.text(n_tokens, split="validation", seed=seed + 2, path=text_path)
examples = ctt.top_examples(dictionary, ckpts, text, [int(i) for i in {*top, *candidates}], k=5)
norms = dictionary.decoder_norms().detach().cpu().numpy()
for name, group in caught.items():
    on_task = (ie, ratios) if where[name][0] == task else (plain, plain_ratios)
    for i in group[:2]:
        display(HTML(widgets.feature_card_html(i, *on_task, norms, names, examples[i], label=name)))

# %% [markdown]
# ### Your turn
# Pick a feature, read its examples, and write down what you think it is. Your notes go into a CSV file in `out`.

# %%
Path(out).mkdir(parents=True, exist_ok=True)
labels = {i: name for name, group in caught.items() for i in group}
promoted = {i: ctt.promoted_tokens(dictionary, ckpts, i, k=5) for i in candidates}
widgets.feature_explorer(
    ie,
    ratios,
    norms,
    names,
    examples,
    promoted,
    labels=labels,
    annotations_path=Path(out) / "notes.csv",
)

# %% [markdown]
# ## RelIE against RelDec
# RelDec asks only *where a feature is written*. Does it tell us where the feature *matters*? Each dot is a feature with
# an effect, its area the size of that; dots on the diagonal would mean that the two agree.

# %%
reldec = ctt.rel_dec(norms)
with plots.style():
    more = np.nanmean(np.where(np.isnan(ratios[last]), np.nan, ratios[last] > reldec[last]))
    fig, ax = plt.subplots(figsize=(4.2, 3.8))
    across, up, size = reldec[last], ratios[last], np.abs(ie[last])
    ax.scatter(
        across, up, 4 + 160 * size / size.max(), color=colors[names[last]], alpha=0.55, linewidths=0
    )
    for i in np.argsort(-size)[:6]:
        ax.annotate(f"#{i}", (across[i], up[i]), (4, 4), textcoords="offset points", fontsize=7.5)
    ax.axline((0, 0), slope=1, color="0.5", lw=1, ls=":")
    ax.set(
        xlabel=f"RelDec at {names[last]} (share of decoder norm)",
        ylabel=f"RelIE at {names[last]} (share of |IE|)",
    )
    plots.set_title(
        ax, f"{more:.0%} of active features matter more at {names[last]} than their norm says"
    )

# %% [markdown]
# Which of the two predicts effects on *new* sentences? We take the exact effects on the test half, form their shares, and
# correlate, over the features that have an effect on both halves. A shuffled RelIE is the control.

# %%
fresh = ctt.rel_ie(
    ctt.indirect_effects(dictionary, ckpts, test[task], "ablation").mean, inactive_below=1e-3
)
usable = ~np.isnan(fresh).any(0) & ~np.isnan(ratios).any(0) & ~np.isnan(reldec).any(0)
shuffled = np.random.default_rng(seed).permutation(ratios[:, usable].T).T
predicts = pd.DataFrame(
    {
        "RelIE (find)": [
            ctt.rank_correlation(ratios[c, usable], fresh[c, usable]) for c in range(len(ckpts))
        ],
        "RelDec": [
            ctt.rank_correlation(reldec[c, usable], fresh[c, usable]) for c in range(len(ckpts))
        ],
        "RelIE shuffled": [
            ctt.rank_correlation(shuffled[c], fresh[c, usable]) for c in range(len(ckpts))
        ],
    },
    index=names,
)
print(f"{usable.sum()} features")
predicts.round(2)

# %% [markdown]
# Read this with care. The first column is the *reliability* of RelIE: the same measurement on other sentences. RelDec never
# looked at the task, and still comes close. It is a cheap first guess, and no more than that.

# %%
for t in effects:
    effects[t].save(Path(out) / f"effects_{short[t]}")
hunted.to_csv(Path(out) / "hunted.csv", index=False)
print(f"written: {out}")

# %% [markdown]
# ## Limits
# - A single ablation leaves all other features in place. Two features that do the same work each look idle: remove one,
#   and the other steps in. Notebook 05 removes them together.
# - RelIE compares checkpoints, not features. A feature can be "specific" and tiny.
# - A feature's effect is on *this* metric at *one* position.
#
# ## Next
# **05 · Does it hold?** Switch the features off, singly and together. · To read more: Marks et al., *Sparse Feature
# Circuits* (2024); Sundararajan et al., *Axiomatic Attribution* (2017); Nanda, on attribution patching (2023).
