# %% [markdown] part="nulls first" reading=17
# # 06 · Testing causes
#
# Notebooks 04 and 05 found features, measured effects and put error bars on them. Now we test the tools: on nothing, on
# each other, and on another dictionary.
#
# **You will learn**
# - to ask what a method finds where there is *nothing*, and to count only what lies beyond;
# - that "the effect of a feature" has two meanings, one at a time or all together, and which estimator answers which;
# - what of a finding comes back when the crosscoder is trained again.
#
# **Time:** 45 minutes of work, a minute and a half to run. **You need:** notebooks 04 and 05.

# %% tags=["parameters"]
profile: str = "tiny"  # "tiny", "colab" or "paper": it sets what is None below
model: str | None = None  # a suite
revisions: list | None = None  # the checkpoints that the crosscoder was trained on
layer: int | None = None
crosscoder: str | None = None  # its folder; None: the one shipped with the suite
task: str | None = None  # agreement across a neighbour
n_pairs: int | None = None  # pairs to find with, and as many others to test on
pairs_path: str | None = None  # folder of published pairs; None: from where they are published
text_path: str | None = None  # file of text, or a name such as "pile-10k"; None: the suite's own
n_draws: int = 200  # of sentences, of label swaps and of chance
n_features: int = 8  # how many to show
other_crosscoder: str | None = None  # folder of one trained with another seed; None: train it here
steps: int | None = None  # of that training; 0: leave it out
n_tokens: int | None = None  # of text for it
seed: int = 0
device: str = "auto"
results: str | None = None  # tables of `python -m experiments`; None: the project's own
out: str | None = None  # where tables go; None: runs/06 of the project

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display

import ctt_helpers as ctt
from ctt_helpers.notebook import checks, plots
from ctt_helpers.notebook.parameters import top_folder

suite = ctt.setup(globals(), "06", n_pairs=lambda n: None if n >= 20 else "take at least 20 pairs")
ckpts = suite.checkpoints(revisions or suite.default_triplet, layer=layer, device=device)
dictionary = ctt.Crosscoder.load(crosscoder or suite.crosscoder_folder)

# %% tags=["estimate"]
if suite.name != "tiny":  # what it takes on this machine, before anything is downloaded
    todo = {"ablation": 7 * n_pairs, "ig": n_pairs, "shapley": 120, "ablation_curve": 4 * n_pairs}
    print(ctt.estimate(ckpts, pairs=todo, n_latents=dictionary.n_latents, k=dictionary.k or 64))

# %%
dictionary.to(ckpts[0].device)
ctt.evaluation.check_match(dictionary, ckpts)  # an error here: it was trained on other checkpoints
split = "far" if suite.name == "tiny" else "test"  # far: other words and another structure
names, colors = ckpts.labels, plots.checkpoint_colors(ckpts.labels)
find, far = (suite.pairs(task, half, pairs_path, n_pairs) for half in ("find", split))
has_cells = all(len(far.levels.get(factor, [])) == 2 for factor in ("subject", "attractor"))
print(f"{', '.join(names)}; {len(find)} pairs to find with, {len(far)} others to test on")

# %% [markdown]
# # 1 · Nulls first
# A method that always finds something tells us nothing. So give it nothing, and count.
#
# **Random directions.** Every feature fires as before and writes as much, in a random direction. How large do effects get?

# %%
real = ctt.indirect_effects(dictionary, ckpts, find)
turned = [ctt.random_directions(dictionary, seed + i) for i in range(3)]
noise = [ctt.indirect_effects(each, ckpts, find) for each in turned]
limit = ctt.null_threshold(noise)  # [checkpoints] 95 % of random directions are below
beyond = np.abs(real.mean) > limit[:, None]
with plots.style():
    fig, axes = plt.subplots(1, len(names), figsize=(8, 2.8), sharey=True)
    for c, (ax, name) in enumerate(zip(axes, names, strict=True)):
        for effects, color, told in ((noise[0], "0.6", "random"), (real, colors[name], "trained")):
            size = np.sort(np.abs(effects.mean[c]))[::-1][:60]
            ax.plot(1 + np.arange(len(size)), size, color=color, label=told)
        ax.axhline(limit[c], color="0.4", lw=1, ls=":")
        ax.set(yscale="log", xlabel="features, the largest effect first")
        ax.set_title(f"{name}: {beyond[c].sum()} beyond the null")
        ax.legend()
    axes[0].set_ylabel("|IE| (logits)")
plots.show(
    "A panel a checkpoint: the sizes of effects in falling order, of the trained dictionary and of "
    "random directions, with the 95th percentile of the latter as a dotted line."
)

# %% [markdown]
# The first rule: **an effect counts only above the dotted line**. (It rises as the model grows: logits get larger.)
#
# **Labels swapped.** In half of the groups of sentences, right and wrong change places. Now there is no task: what helps
# one half hurts the other. Only the sign of a pair's effect turns, so no run is needed.
#
# **Question.** RelIE is a ratio of sizes. How many features will look *specific* to a checkpoint (RelIE > 0.7) where there
# is no task at all? A few, half as many, more? Against it `ctt.decide` asks three things of a class: its effects are beyond
# the null; a t-test over groups of sentences shows that they are not 0; another, that the ratio really lies beyond its
# border. Hundreds are asked, so the **false discovery rate** is held at 5 %: of what is decided, one in twenty may be false.

# %%
twins = ctt.twins(find)  # pairs made of the same words: one piece of evidence
per_pair, rng = real.per_pair.to_dense().double().numpy(), np.random.default_rng(seed)


def counted(effects):
    """How many features are active, look specific, and have a class that is decided."""
    ratio = ctt.rel_ie(effects.mean(1), inactive_below=1e-3)
    label = ctt.decide(effects, twins, null=limit, names=names)["label"]
    counts = {"active": ~np.isnan(ratio[0]), "RelIE > 0.7": (ratio > 0.7).any(0)}
    counts["of these, decided"] = label.isin(["specific", "peak"])
    counts["any class, decided"] = ~label.isin(["inactive", "undecided"])
    return {what: which.sum() for what, which in counts.items()}


signs = [rng.choice([-1.0, 1.0], twins.max() + 1)[twins] for _ in range(n_draws)]
tosses = pd.DataFrame([counted(per_pair * sign[None, :, None]) for sign in signs])
false = (tosses["any class, decided"] > 0).mean()
print(f"with labels swapped, anything at all is decided in {false:.1%} of {n_draws} tosses")
of_noise = pd.DataFrame([counted(e.per_pair.to_dense().double().numpy()) for e in noise]).mean()
told = {"task": counted(per_pair), "labels swapped, mean": tosses.mean()}
pd.DataFrame(told | {"random directions, mean of 3": of_noise}).T.round(2)

# %% [markdown]
# More look specific without a task: a ratio of two noises likes to be extreme. None of these is decided. **But look at the
# last row.** Random directions have decided classes, nearly as many as the features: one in twenty lies beyond the line by
# construction, and the sentences settle the rest. So a *count* of classes says little for a dictionary. The size of
# effects does, and what 05 did. On the task a short list is decided (*q*: the false discovery rate at which it just would
# be):

# %%
decided = ctt.decide(real, twins, null=limit, names=names).set_index("feature")
decided = decided.join(pd.DataFrame(real.mean.T, columns=[f"IE at {name}" for name in names]))
sure = decided[~decided["label"].isin(["inactive", "undecided"])]
share = np.abs(real.mean[:, sure.index]).sum() / np.abs(real.mean).sum()
print(f"{len(sure)} features with a decided class have {share:.0%} of the summed |IE|")
sure[["label", "members", "q", *sure.columns[-len(names) :]]].head(12).round(3)

# %% [markdown]
# Mind what is *not* there: a strong feature whose RelIE lies near 0.7 (#283 on the embedded suite), and one about the
# neighbour, whose help and harm cancel over all pairs.

# %% [markdown]
# ### Exercise · How often by chance?
# *Difficulty 2 of 5 · importance 4 of 5 · 6 minutes*
#
# You have found `observed` features of some kind, and the same count in each of many worlds without a task: `null`. Write
# `chance_of(observed, null)`: how often a count so large or larger comes where there is nothing. Your own world might be
# such a one, too: count it among them, so that the answer is never 0.
#
# <details><summary>Hint 1</summary>
#
# `null >= observed` is True where chance did as well. Why not `>`?
#
# </details>
# <details><summary>Hint 2</summary>
#
# With your own world there is one more in the numerator, and one more in the denominator.
#
# </details>


# %% exercise="chance_of"
def chance_of(observed, null):
    """The p value of a count, against counts of worlds with nothing to find."""
    ### BEGIN SOLUTION give back a share between 0 and 1
    as_many = int((np.asarray(null) >= observed).sum())
    return (1 + as_many) / (1 + len(null))
    ### END SOLUTION


# %% check="chance_of"
checks.chance_of(chance_of)
looks_specific = chance_of(counted(per_pair)["RelIE > 0.7"], tosses["RelIE > 0.7"])
print(f"as many features that look specific: in {looks_specific:.0%} of worlds without a task")

# %% [markdown] part="two kinds of causes, and another seed" reading=28
# # 2 · Two kinds of causes
# From here on we take incongruent pairs alone, where help and harm do not cancel. "What does this feature do?" can mean two
# things.
#
# - **One at a time**: take it away, while all others stay. That is exact ablation; attribution patching (AtP) estimates it.
# - **All together**: take *everything* away, one after another, and share out what is lost. The **Shapley value** of a
#   feature is the mean of what is lost when *it* goes, over all orders in which they could go. Integrated gradients (IG)
#   let everything fade at once, and share out likewise.
#
# If features worked alone, the two would agree. Notebook 05 showed that they do not. Neither is *the* effect. So we set
# three exams, on other sentences (*far*): single ablation; Shapley values; and one that belongs to neither: remove the
# first 1, 2, 5, 10, 20, 50 features that an estimator says help most. **Question.** Who will win which?

# %%
hard = {"find": find, "far": far}
if has_cells:
    hard = {half: pairs[~pairs.congruent] for half, pairs in hard.items()}


def measure(half, method):
    """Effects on the hard pairs of a half; Shapley values, which are dear, on 60 of them."""
    pairs = hard[half].sample(60, seed) if method == "shapley" else hard[half]
    return ctt.indirect_effects(dictionary, ckpts, pairs, method, permutations=4, seed=seed), pairs


guess = {method: measure("find", method)[0] for method in ("ablation", "atp", "ig", "shapley")}
null = ctt.indirect_effects(ctt.random_directions(dictionary, seed), ckpts, hard["find"])
asked = np.abs(guess["ablation"].mean) > ctt.null_threshold(null)[:, None]


# %%
def agreement(one, other):
    """Rank correlation over the features beyond the null, mean over the checkpoints."""
    rows = zip(one, other, asked, strict=True)
    return np.mean([ctt.rank_correlation(a[on], b[on]) for a, b, on in rows])


ranks = []
for exam in ("ablation", "shapley"):
    truth, pairs = measure("far", exam)
    draws = ctt.resample(truth, n_draws, seed, ctt.twins(pairs))
    for method, found in guess.items():
        score = agreement(found.mean, truth.mean)
        error = 1.96 * np.std([agreement(found.mean, draw) for draw in draws])
        ranks.append({"exam": exam, "estimator": method, "score": score, "error": error})

# %%
sizes = [size for size in (1, 2, 5, 10, 20, 50) if size <= dictionary.n_latents]
losses = []
for method, found in guess.items():
    ranking = np.argsort(-found.mean, axis=1)[:, : sizes[-1]].tolist()
    curve = ctt.ablation_curve(dictionary, ckpts, hard["far"], ranking, sizes)
    lost = curve.groupby("checkpoint", sort=False)[["effect", "effect_stderr"]].mean()
    for name, row in lost.iterrows():
        error = 1.96 * row["effect_stderr"]  # the sizes share their sentences: no root of six
        losses.append({"exam": name, "estimator": method, "score": row["effect"], "error": error})
scores = pd.DataFrame(ranks + losses).set_index(["exam", "estimator"])
scores["score"].unstack("estimator").round(2)

# %%
with plots.style():
    fig, axes = plt.subplots(1, 2, figsize=(8, 2.9))
    hues = {"ablation": "#0072B2", "shapley": "#D55E00"} | colors
    for ax, exams in zip(axes, (["ablation", "shapley"], names), strict=True):
        for k, exam in enumerate(exams):
            row, y = scores.loc[exam], np.arange(len(guess)) + 0.2 * (k - (len(exams) - 1) / 2)
            ax.errorbar(row["score"], y, xerr=row["error"], fmt="o", color=hues[exam], label=exam)
        ax.set_yticks(range(len(guess)), list(guess))
        ax.invert_yaxis()
        best = ", ".join(scores.loc[exam, "score"].idxmax() for exam in exams)
        plots.set_title(ax, f"Ahead in turn: {best}")
        title = "exam" if exams != names else "removed at"
        ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title=title)
    axes[0].set_xlabel("rank correlation with the exam (bars: 95 %)")
    axes[1].set_xlabel("lead lost with 1 to 50 features gone (logits)")
plots.show(
    "Two panels of dots with error bars, a row for each estimator: left the rank correlation with "
    "single ablation and with Shapley values, right what is lost when the features it names are gone."
)

# %% [markdown]
# On the embedded suite ablation is ahead in its own exam, and Shapley in its own by less than the bars. (None is near 1:
# the words are others, sampled values noisy. And ablation chose who is asked about.) IG, of Shapley's kind, is last in
# both. Who names the best group differs between step600 and step3000 by more than the bars.
#
# Six tasks together, from `python -m experiments`. Two exams are new: groups of five features, or of half of all, removed,
# and predicted by the sum of their members. (Rows with *test*: other sentences of the same words; all others: *far*.)


# %%
def table_of(name):
    """A table that `python -m experiments` made, or an empty one with a sentence."""
    path = Path(results or top_folder() / "experiments/results") / f"{name}.csv"
    if path.is_file():
        return pd.read_csv(path)
    print(f"{path.name} is not there: in a checkout, `make experiments` makes it.")
    return pd.DataFrame()


targets = table_of("targets")
if len(targets):
    pooled = targets[(targets["task"] == "all tasks") & targets["estimator"].isin(list(guess))]
    ends = pooled[["rank", "rank low", "rank high"]].to_numpy()
    pooled = pooled.assign(told=["{:.2f} [{:.2f}, {:.2f}]".format(*row) for row in ends])
    display(pooled.pivot_table("told", "target", "estimator", "first", sort=False))
cost = {method: round(float(found.n_nodes.mean())) for method, found in guess.items()}
print("cost, in forward passes or gradients a pair:", cost)

# %% [markdown]
# **So what can be said?** Here is a table that someone with another favourite should be able to sign.
#
# | the question | take | where that is too dear |
# |---|---|---|
# | is this feature needed, all others there? | exact ablation | AtP for all, then ablate the first few hundred |
# | how is the whole shared out? | Shapley values | ablation, checked against them on few sentences |
# | which group carries the answer? | remove the group, show the curve | the curve of two rankings |
#
# For five features gone ablation leads clearly; for one it does on the same words, and on *far* AtP is as good within the
# intervals. With half of them gone, or all, nobody leads by more than the intervals: then take what is cheap, and say
# which. RelIE inherits the question of the effects that it is made of.
#
# # 3 · Another seed, another dictionary?
# A feature that only one training run finds is a property of that run. So train the same crosscoder from another seed, on
# other text, and **match** features: partners are each other's most similar ones (cosine of all decoder vectors, end to
# end), and at least 0.7 alike.
#
# **Question.** How many of the features beyond the null will have a partner? And of those, how many keep their *class*, and
# their *label* (subject, attractor ...), against chance?

# %% [markdown]
# ### Exercise · Alike by chance
# *Difficulty 3 of 5 · importance 4 of 5 · 8 minutes*
#
# If nine in ten features are *mixed*, two lists agree in most places whatever they say. Write `beyond_chance(before,
# after)` for two lists of labels: $(a - c) / (1 - c)$, where $a$ is the share of places that agree, and $c$ the share that
# would if the second list were shuffled. (Known as Cohen's kappa: 0 is chance, 1 is the same list.)
#
# <details><summary>Hint 1</summary>
#
# Shuffled, the two places know nothing of each other. How likely is "mixed" in the one *and* in the other?
#
# </details>
# <details><summary>Hint 2</summary>
#
# For each label: its share in the first list times its share in the second. Add them up.
#
# </details>


# %% exercise="beyond_chance"
def beyond_chance(before, after):
    """Agreement of two lists of labels: 0 where it is that of chance, 1 where they are the same."""
    ### BEGIN SOLUTION give back the agreement beyond chance, one number
    before, after = np.asarray(before), np.asarray(after)
    agree = np.mean(before == after)
    labels = set(before) | set(after)
    chance = sum(np.mean(before == label) * np.mean(after == label) for label in labels)
    return (agree - chance) / (1 - chance)
    ### END SOLUTION


# %% check="beyond_chance"
checks.beyond_chance(beyond_chance)

# %%
if other_crosscoder:
    other = ctt.Crosscoder.load(other_crosscoder)
elif steps:
    text = suite.text(n_tokens, seed=seed + 1, path=text_path)
    stream = ctt.ActivationStream(ckpts, text, seed=seed + 1)
    shape = {"k": dictionary.k, "decoder_norm": dictionary.decoder_norm, "seed": seed + 1}
    other = ctt.Crosscoder(len(ckpts), ckpts.d_model, dictionary.n_latents, **shape)
    ctt.train(other, stream, ctt.TrainConfig(steps=steps), device=str(ckpts[0].device))
else:
    other = None
    print("Left out here: train another crosscoder (notebook 03, seed=1), and give its folder.")


# %%
def told_of(effects, null):
    """Each feature's class, and its label at each checkpoint."""
    told = ctt.decide(effects, twins, null=null, names=names)
    whole = (told["candidate"] + " " + told["members"].str.join("+")).to_numpy()
    return whole, ctt.factorial_of(effects, find, null=null).label if has_cells else None


if other is not None:
    other.to(ckpts[0].device)
    new = ctt.indirect_effects(other, ckpts, find)
    new_noise = ctt.indirect_effects(ctt.random_directions(other, seed), ckpts, find)
    match = ctt.match_features(ctt.decoder_similarity(dictionary.W_dec, other.W_dec))
    old_class, old_label = told_of(real, noise[0])
    new_class, new_label = told_of(new, new_noise)
    counts, mutual = beyond.any(0), (match["mutual"] & (match["similarity"] >= 0.7)).to_numpy()
    mine, size = np.flatnonzero(counts & mutual), np.abs(real.mean)
    partner = match["match"].to_numpy()[mine].astype(int)
    kept = {"keeps its class": (old_class[mine], new_class[partner])}
    if has_cells:
        c = size[:, mine].argmax(0)  # the checkpoint where it does most
        kept["keeps its label there"] = (old_label[c, mine], new_label[c, partner])

# %%
if other is not None:
    rows = [{"feature": "has a partner", "share": mutual[counts].mean(), "of": counts.sum()}]
    for what, (before, after) in kept.items():
        chance = np.mean([np.mean(before == rng.permutation(after)) for _ in range(n_draws)])
        same = {"feature": what, "share": np.mean(before == after), "of": len(mine)}
        rows.append(same | {"by chance": chance})
    told = pd.DataFrame(rows).set_index("feature")
    told.insert(1, "± 95 %", 1.96 * np.sqrt(told["share"] * (1 - told["share"]) / told["of"]))
    part = size[:, mine].sum() / size[:, counts].sum()
    print(f"{counts.sum()} features beyond the null; those with a partner have {part:.0%} of |IE|")
    display(told.round(2))

# %%
if other is not None:
    stars, rows = np.argsort(-size.max(0))[:n_features], {}
    for i in stars:
        c, j = int(size[:, i].argmax()), match["match"][i]
        ie, its = (value.round(2) + 0 for value in (real.mean[c, i], new.mean[c, j]))
        rows[f"#{i}"] = row = {"at": names[c], "IE": ie, "most alike": f"#{j}"}
        row |= {"how": match["similarity"][i].round(2), "mutual": mutual[i], "its IE": its}
        if has_cells:
            row |= {"label": old_label[c, i], "its label": new_label[c, j]}
    display(pd.DataFrame(rows).T)

# %% [markdown]
# On the embedded suite about a third has a partner, but these carry most of the effect. The switch of notebook 05 (#398)
# comes back, with its size and its label; of the others some split, or have another size. With nine crosscoders, on three
# models (low, high: 95 %; compare *same class* with *by chance*):

# %%
seeds = table_of("seeds_classes")
if len(seeds):
    columns = ["partner", "their share of |IE|", "same class", "low", "high", "by chance"]
    seeds = seeds[seeds["task"] == task].set_index(["compared with", "ratio"])
    display(seeds[columns].round(2))
Path(out).mkdir(parents=True, exist_ok=True)
for name, table in {"exams": scores, "decided": decided}.items():
    ctt.files.write_table(Path(out) / f"{name}.csv", table)

# %% [markdown]
# ## What to remember
# - Nothing first: a finding counts beyond random directions, and beyond swapped labels, and with all questions counted.
# - "The effect" is two questions, one at a time or all together. Name yours before you choose an estimator.
# - A feature of one seed is a candidate. What comes back, with size and label, is a finding.
#
# **Try it**: `task="gender/pp"`; or `seed=1`: other random directions, orders, and crosscoder.
# **Next:** 08 · Scaling up: all checkpoints, other models and languages. · To read more: Sundararajan et al., *Axiomatic
# Attribution* (2017); Castro et al., on sampling Shapley values (2009); Syed et al., *Attribution Patching* (2023).

# %% [markdown]
# ## Check yourself
#
# 1. Twenty features look specific, with RelIE above 0.7. With labels swapped it is thirty, on average. What have you
# found?
#
# <details><summary>Answer</summary>
#
# Nothing that speaks for specific features: a ratio of two small noisy numbers likes to be extreme. Ask first which
# effects lie beyond random directions, then which classes are decided.
#
# </details>
#
# 2. A feature's single ablation has no effect, and its Shapley value is large. How can that be?
#
# <details><summary>Answer</summary>
#
# Another feature does the same work. Take away one, and the other steps in. Over all orders each gets its part of what
# both do.
#
# </details>
#
# 3. "IG ranks worse than ablation." What do you ask first?
#
# <details><summary>Answer</summary>
#
# Against which target? One feature at a time, or all together? Whoever asks for single ablation has chosen who wins.
#
# </details>
#
# 4. Half of the features find a partner in a dictionary with another seed. Is half of the finding gone?
#
# <details><summary>Answer</summary>
#
# Look at who they are: those with a partner may carry most of the effect. And then at whether effect and label come
# back, not only the feature.
#
# </details>
