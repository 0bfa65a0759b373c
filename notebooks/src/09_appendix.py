# %% [markdown] part="planted truth, and the path" reading=18
# # Appendix: further tests
#
# This notebook is no part of the course. It holds what goes further than notebook 06, in pieces that do not need each
# other:
#
# - **A** where the truth is known: planted features, and which measure finds them;
# - **B** a task that saturates: old features *seem* to fade;
# - **C** along the path of integrated gradients, and whether they are complete;
# - **D** where in the sentence a feature works;
# - **E** two choices that hide in a ratio, and two other metrics;
# - **F** is a feature of one checkpoint really absent elsewhere (latent scaling)?
# - **G** does what a late checkpoint knows leak into an early effect?
# - **H** what is "off"? Zero, the mean, or another cell's value.
#
# **Time:** 47 minutes to read, in pieces; a minute and a half to run. **You need:** notebooks 04 to 06.

# %% tags=["parameters"]
profile: str = "tiny"  # "tiny", "colab" or "paper": it sets what is None below
model: str | None = None  # a suite
revisions: list | None = None  # the checkpoints that the crosscoder was trained on
layer: int | None = None
crosscoder: str | None = None  # its folder; None: the one shipped with the suite
task: str | None = None  # agreement across a neighbour
n_pairs: int | None = None  # pairs of the task
pairs_path: str | None = None  # folder of published pairs; None: from where they are published
text_path: str | None = None  # file of text, or a name such as "pile-10k"; None: the suite's own
n_tokens: int = 40_000  # of text, for latent scaling and for predicting one checkpoint from another
n_features: int = 8  # how many to show
seed: int = 0
device: str = "auto"
out: str | None = None  # where tables go; None: runs/09 of the project

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import display

import ctt_helpers as ctt
from ctt_helpers.notebook import checks, plots
from ctt_helpers.planted import COUNTS, measures, plant, recovery, score

suite = ctt.setup(globals(), "09", n_pairs=lambda n: None if n >= 20 else "take at least 20 pairs")
ckpts = suite.checkpoints(revisions or suite.default_triplet, layer=layer, device=device)
dictionary = ctt.Crosscoder.load(crosscoder or suite.crosscoder_folder)

# %% tags=["estimate"]
if suite.name != "tiny":  # what it takes on this machine, before anything is downloaded
    todo = {"ablation": 6 * n_pairs, "atp": 20 * 60, "ig": 16 * 4}  # four tasks
    given = {"tokens": 2 * n_tokens, "n_latents": dictionary.n_latents, "k": dictionary.k or 64}
    print(ctt.estimate(ckpts, pairs=todo, **given))

# %%
dictionary.to(ckpts[0].device)
ctt.evaluation.check_match(dictionary, ckpts)  # an error here: it was trained on other checkpoints
names, colors = ckpts.labels, plots.checkpoint_colors(ckpts.labels)
find = suite.pairs(task, "find", pairs_path, n_pairs)
has_cells = all(len(find.levels.get(factor, [])) == 2 for factor in ("subject", "attractor"))
hard = find[~find.congruent] if has_cells else find  # where subject and neighbour pull apart
print(f"{', '.join(names)}; {len(find)} pairs, {len(hard)} of them hard: {hard.text[0]}")

# %% [markdown]
# # A · Where the truth is known
# Which measure can be trusted? Make a world in which everything is known: 96 features in 32 dimensions at three
# checkpoints, and a task that reads one projection. Some features **emerge**, **persist** or **fade**. Three kinds are
# traps: what **rotates** persists, in another direction at each checkpoint; what is called **scale** is written four times
# larger in the end, with the same effect; what is **decodable** emerges, and nothing reads it. A crosscoder is trained on
# the activations. Effects have a closed form.
#
# Four measures of the last checkpoint's share against the first: **RelIE**; **RelDec**; and two of **latent scaling**,
# which ask the activations how much of a feature is there: in what the crosscoder missed (`nu_error`), and in what all
# features together write (`nu_reconstruction`).
#
# **Question.** Which measure will call which trap "specific to the last checkpoint"?

# %%
world = plant(counts={kind: 2 * n for kind, n in COUNTS.items()}, noise=0.1, seed=seed)
seen = ctt.TensorStream(world.sample(20_000, seed)[0].float(), 1024, seed)
test_x = world.sample(8_000, seed + 1)[0]
scores, found = {}, {}
for steps in (400, 1600):
    student = ctt.Crosscoder(3, 32, n_latents=96, k=7, seed=seed)
    ctt.train(student, seen, ctt.TrainConfig(steps=steps), device="cpu")
    known = recovery(student, world)
    found[f"{steps} steps"] = known.groupby("kind", sort=False)["found"].sum()
    for name, ratios in measures(student, world, test_x).items():
        scores[f"{steps} steps", name] = score(ratios, known)
print("found, of how many planted features of each kind:")
display(pd.DataFrame(found | {"planted": known.groupby("kind", sort=False).size()}).T)
pd.DataFrame(scores).T.round(2)

# %% [markdown]
# **AUROC**: the chance that a feature which emerges (fades) gets a larger (smaller) share than one that persists; .5 is
# guessing. **Accuracy** is over these three kinds. The last three columns are shares of a trap that are called specific.
#
# First look at what was *found*: all scores are about these alone. After 400 steps that is a minority of the features that
# emerge, the very kind that the method is for. A score on the few that were easy to find says little of the others. (Which
# is why the second training is there: a better dictionary is the best control.)
#
# To tell *emerge*, *persist* and *fade* apart, the norms do as well as the effects, or better. (They cannot fail: we
# planted emerging *as* writing.) RelIE earns its price where writing and reading part company: at *scale*, and at
# *decodable*, where the threshold below which a latent is *inactive* is high enough (table *planted_threshold*). Latent
# scaling compares with *one* direction, so what *rotates* looks absent to it.
#
# # B · A task that saturates
# Ten features persist, written and read alike throughout; forty emerge. The read-out levels off at S. No crosscoder, and no
# error at all: what do the exact effects say about the ten?

# %%
rows = []
for limit in (np.inf, 4.0, 2.0, 1.0):
    level = plant(counts={"emerge": 40, "persist": 10}, hurts=0.0, saturation=limit, seed=seed)
    effects = level.exact_effects(*level.sample(8_000, seed))
    late = ctt.pairwise(effects)[0, -1, level.kinds == "persist"]
    row = {"S": limit, "late share of what persists": late.mean()}
    rows.append(row | {"of the ten called 'fades'": (late < 0.3).sum()})
pd.DataFrame(rows).round(2)

# %% [markdown]
# The effects are right, and the word "fades" is wrong. What came later does part of the job, so each old feature is less
# *needed*, although it is read as before. RelIE measures need, not use. Where a late checkpoint is very sure of itself,
# expect early features to seem to fade.
#
# # C · Along the path of integrated gradients
# IG lets all latents and the error fade together, from a = 0 (the model as it is, the **clean point**) to a = 1 (nothing
# but the decoder's bias). At each point take the gradient, form the effects from it alone, and compare their order with
# that of exact ablation. And what is m = logit(wrong) - logit(right) there?

# %% [markdown]
# ### Exercise · Integrated gradients
# *Difficulty 4 of 5 · importance 3 of 5 · 12 minutes*
#
# Write `integrated_gradients(m, x, f, W_dec, b_dec)` for one sentence at one checkpoint, all in raw space. The gradient of $m$
# is averaged along the line from `x` to `b_dec`, on which all tokens move but the first. Then the effects come from it as in
# attribution patching (04). What comes is `[latents]`.
#
# <details><summary>Hint 1</summary>
#
# The points of the line are `x + a * (end - x)`, where `end` is `b_dec` at all tokens, and `x` at the first.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Fifty points are enough if they lie in the *middle* of fifty pieces: a = 0.01, 0.03 ... 0.99.
#
# </details>


# %% exercise="integrated_gradients"
def integrated_gradients(m, x, f, W_dec, b_dec):
    """Effects of all features from the gradient averaged along the line, [latents]."""
    ### BEGIN SOLUTION give back the effect of each latent, [latents]
    end = b_dec.expand_as(x).clone()
    end[0] = x[0]
    gradients = []
    for a in (torch.arange(50) + 0.5) / 50:
        stream = (x + a * (end - x)).requires_grad_()
        gradients.append(torch.autograd.grad(m(stream), stream)[0])
    gradient = torch.stack(gradients).mean(0)
    return -(f * (gradient @ W_dec.T))[1:].sum(0)
    ### END SOLUTION


# %% check="integrated_gradients" points=2
checks.integrated_gradients(integrated_gradients)

# %% [markdown]
# ### Exercise · What the error adds
# *Difficulty 3 of 5 · importance 3 of 5 · 8 minutes*
#
# On that line the features do not go alone: the error goes with them. Write `error_effect(gradient, x, f, W_dec, b_dec)`: its
# effect, one number, from the same averaged gradient `[tokens, d_model]`. Your check adds up: effects of all features, and of
# the error, must be m(all gone) − m(clean). That is **completeness**.
#
# <details><summary>Hint 1</summary>
#
# The error is what is left of `x` without the bias and without what the features write.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Taking it away moves the stream by *minus* the error. Multiply, leave the first token out, add up.
#
# </details>


# %% exercise="error_effect"
def error_effect(gradient, x, f, W_dec, b_dec):
    """The effect of the reconstruction error, from the averaged gradient."""
    ### BEGIN SOLUTION give back the part of the error, one number
    error = x - b_dec - f @ W_dec
    return -(error * gradient)[1:].sum()
    ### END SOLUTION


# %% check="error_effect"
checks.error_effect(error_effect)

# %%
points, sample = torch.linspace(0, 1, 21)[:-1], hard[:60]
exact = ctt.indirect_effects(dictionary, ckpts, sample).mean
W_dec, b_dec = (weights.detach() for weights in dictionary.raw_decoder())
x = ctt.activations.stacked_activations(ckpts, sample.input_ids, sample.attention_mask)
f = dictionary.encode(x).detach() * ctt.effects.touched(sample).to(x.device)[..., None]
m, order = np.zeros((2, len(ckpts), len(points)))
for c, checkpoint in enumerate(ckpts):
    readout = ctt.readout_of(checkpoint, sample, x[:, :, c], b_dec[c])
    m[c] = readout.along(points).mean(1).cpu()
    for k, a in enumerate(points):
        gradient = readout.gradient(readout.at(a.expand(len(sample))))
        there = ctt.effects_from_gradient(f, W_dec[:, c], gradient).sum(1).mean(0).cpu().numpy()
        order[c, k] = ctt.rank_correlation(there[exact[c] != 0], exact[c][exact[c] != 0])

# %%
with plots.style():
    fig, axes = plt.subplots(1, 2, figsize=(8, 3))
    for ax, values, what in zip(
        axes, (m, order), ("m (below 0: right)", "rank correlation with ablation"), strict=True
    ):
        for name, line in zip(names, values, strict=True):
            ax.plot(points, line, color=colors[name], label=name)
        ax.axhline(0, color="0.6", lw=0.8)
        ax.set(xlabel="a: share of features and error taken away", ylabel=what)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names))
    moved = m[-1].round(1) + 0
    plots.set_title(axes[0], f"{names[-1]}: m goes from {moved[0]} to {moved[-1]}")
    half, end = order[-1, len(points) // 2], order[-1, -1]
    told = (
        f"the order agrees by {order[-1, 0]:.2f} at a = 0, {half:.2f} halfway, {end:.2f} at the end"
    )
    plots.set_title(axes[1], f"{names[-1]}: {told}")
plots.show(
    "Two panels over a, a line a checkpoint: the metric m, and the rank correlation of effects from "
    "the gradient at that point with exact ablation."
)

# %% [markdown]
# Far along the path the stream is something that the model never sees, and the gradients there rank other things. IG adds
# them all up: that is what it answers, and why its order is not that of single ablation.
#
# **Is it complete?** Effects of all features and of the error must add up to m(all gone) - m(clean). The **gap** is what is
# missing, as a share of it. Tasks with the largest gaps:

# %%
gaps = {}
for name in suite.task_names[:24]:
    pairs = suite.pairs(name, "test", pairs_path, 16)
    gaps[name] = ctt.indirect_effects(dictionary, ckpts, pairs, "ig").gap
table = pd.DataFrame(gaps, index=names).T
assert table.max(axis=None) < 0.01
print(f"{len(table)} tasks, 16 pairs each; largest gap {table.max(axis=None):.2%}")
table.loc[table.max(axis=1).nlargest(4).index].map("{:.2%}".format)

# %% [markdown] part="orders, places, and what is off" reading=29
# ### Exercise · Shapley values, by sampling
# *Difficulty 4 of 5 · importance 3 of 5 · 12 minutes*
#
# IG lets all fade at once. Shapley values (06) take one after another away, in many orders, and credit each with the change of
# m when *it* goes. Write `shapley(m_without, players, n_orders, rng)`. `m_without(gone)` gives m when the players of the list
# `gone` are away. Go through `n_orders` random orders (`rng.permutation(players)`), and give the mean credit of each player,
# in the order of `players`.
#
# <details><summary>Hint 1</summary>
#
# In one order: m with none gone, with the first gone, the first two ... Each difference belongs to the player that went.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Keep the credits in a dict by player. In the end, `[credit[i] / n_orders for i in players]`.
#
# </details>


# %% exercise="shapley"
def shapley(m_without, players, n_orders, rng):
    """Mean change of m when each player goes, over random orders; in the order of players."""
    ### BEGIN SOLUTION give back the mean credit of each player
    credit = dict.fromkeys(players, 0.0)
    for _ in range(n_orders):
        gone, before = [], m_without([])
        for player in rng.permutation(players).tolist():
            gone.append(player)
            after = m_without(gone)
            credit[player] += after - before
            before = after
    return np.array([credit[player] / n_orders for player in players])
    ### END SOLUTION


# %% check="shapley" points=2
checks.shapley(shapley)

# %% [markdown]
# # D · Where in the sentence?
# A feature can be active on several words. Where does it do its work? Remove it *at one word only*
# (`positions=pairs.positions("subject")` for a role; here for each word, counted from the end).
#
# **Question.** The verb must agree with the *subject*. At this depth, will the strongest features work at the subject?

# %%
whole = ctt.indirect_effects(dictionary, ckpts, hard).mean
top, best = np.argsort(-np.abs(whole).max(0))[:n_features], np.abs(whole).argmax(0)
length = int(hard.attention_mask.sum(1).min())
at = np.zeros((len(top), length - 1))
for t in range(1, length):
    mask = torch.zeros_like(hard.attention_mask, dtype=torch.bool)
    mask[torch.arange(len(hard)), hard.answer_position - (length - 1 - t)] = True
    here = ctt.indirect_effects(dictionary, ckpts, hard, features=top, positions=mask).mean
    at[:, t - 1] = here[best[top], top]
shortest = int(hard.answer_position.argmin())
words = [suite.tokenizer.decode([i]) for i in hard.input_ids[shortest, 1:length].tolist()]
part = np.abs(at[:, -1]) / np.abs(at).sum(1)
with plots.style():
    fig, ax = plt.subplots(figsize=(0.9 * length + 2, 0.3 * len(top) + 1.2))
    reach = np.abs(at).max()
    image = ax.imshow(at, cmap="RdBu", vmin=-reach, vmax=reach, aspect="auto")
    ax.set_xticks(range(length - 1), words, rotation=30, ha="right")
    ax.set_yticks(range(len(top)), [f"#{i} at {names[best[i]]}" for i in top])
    fig.colorbar(image, label="effect of that word alone (logits)")
    ax.set_xlabel("word, counted from the end (an example)")
    told = f"{(part > 0.5).sum()} of {len(top)} features do most of their work at the last word"
    plots.set_title(ax, told)
plots.show("A heat map: features by words, the effect of removing the feature at that word alone.")

# %% [markdown]
# On the embedded suite mostly not. But #283, the strongest of those about the subject, does: it works at its subject, and the
# layers above carry that to the verb.
#
# # E · Two choices in a ratio, and two other metrics
# **Competence.** A late checkpoint has larger logits, so everything is larger there. Divide each checkpoint's effects by
# the sum of all |IE| at that checkpoint, and RelIE asks: *where is this feature the larger part of what the checkpoint does
# at all?*
#
# **Absolute value: before or after the mean?** After (the paper): a feature that helps half of the sentences and hurts the
# other half counts as idle. Before: as busy. With design cells that is no small matter: think of a feature about the
# *neighbour*.
#
# **Metrics.** Instead of the difference of two logits: the log-probability of the right answer, or how far the whole
# prediction moves (KL).

# %%
real = ctt.indirect_effects(dictionary, ckpts, find)
total = np.abs(real.mean).sum(1)
surprise = ctt.indirect_effects(dictionary, ckpts, find, metric="log_probability").mean
ways = {
    "as it is": ctt.rel_ie(real.mean),
    "divided by the checkpoint's total": ctt.rel_ie(real.mean, total=total),
    "|.| before the mean": ctt.rel_ie(real.abs_mean),
    "log-probability": ctt.rel_ie(surprise),
    "KL": ctt.rel_ie(ctt.indirect_effects(dictionary, ckpts, find, metric="kl").mean),
}
rows, sure = {}, ctt.decide(real, ctt.twins(find))["label"]
sure = ~sure.isin(["inactive", "undecided"]).to_numpy()
for way, ratio in ways.items():
    both = ~np.isnan(ratio[0]) & ~np.isnan(ways["as it is"][0])
    moved = np.abs(ratio - ways["as it is"]).max(0)[both]
    rows[way] = row = {
        "active": (~np.isnan(ratio[0])).sum(),
        "share moves by, median": np.median(moved),
    }
    if len(names) <= 3:
        before, after = (ctt.classify(r, names) for r in (ways["as it is"], ratio))
        same = (before["label"] == after["label"]) & (before["members"] == after["members"])
        row["same class, of those active in both"] = same[both].mean()
        row[f"of the {sure.sum()} that are decided"] = same[sure].mean()
pd.DataFrame(rows).T.round(2)

# %% [markdown]
# The last columns are no detail. On the embedded suite most classes change with the choice: the early checkpoint's effects
# are small, so what they are divided by decides what counts as early. "Specific to step3000" means little without "in
# logits, mean over all cells". Report what you chose, and whether the class survives the other choice.
#
# # F · Is it really absent elsewhere?
# A decoder norm near zero says that the crosscoder does not write a feature at a checkpoint. Two artefacts can do that.
# **Shrinkage**: it is there, but training made the vector too short. **Decoupling**: a second feature does the same job
# there. **Latent scaling** (Minder et al. 2025) asks the activations. A feature's $\nu_{error}$ at a checkpoint is how much
# of it is found in what the others leave over there, its $\nu_{rec}$ how much *all* features write along its direction,
# both against the checkpoint where it is written most.

# %%
text = suite.text(n_tokens, split="validation", seed=seed + 3, path=text_path)
batches = (
    ctt.activations.stacked_activations(ckpts, ids)[:, 1:].flatten(0, 1) for ids in text.split(64)
)
scaling = ctt.latent_scaling(dictionary, batches)
reldec = ctt.rel_dec(dictionary.decoder_norms(), dead=np.isnan(scaling.beta_error[0]))
verdicts = {
    "RelDec": ctt.artefacts(reldec, scaling, names),
    "RelIE": ctt.artefacts(ways["as it is"], scaling, names),
}
counts = {k: v.groupby(["checkpoint", "verdict"]).size() for k, v in verdicts.items()}
pd.DataFrame(counts).fillna(0).astype(int)

# %% [markdown]
# These are numbers of features whose ratio is above 0.7. *Written elsewhere*: the feature is written at another checkpoint
# too. For RelIE that is no artefact: a thing may be there and not be read. Without a penalty on decoder norms few features
# are specific by RelDec at all.
#
# Mind the test itself. With many more features than dimensions *everything else* writes along any direction, so $\nu_{rec}$
# is high for a random direction too (`experiments`, scaling). A high value proves nothing alone.
#
# # G · Does a late checkpoint leak into an early effect?
# The crosscoder reads f from *all* checkpoints at once. So a latent may be active because the late model sees something,
# and be "removed" from an early one that does not know it. The test: read f from one checkpoint alone, with the others
# *predicted* from it by linear regression on running text.

# %%
predicted = ctt.predict_others(ckpts, suite.text(n_tokens, seed=seed + 4, path=text_path))
alone = ctt.indirect_effects(dictionary, ckpts, hard, read_from=predicted)
rows = {}
for c, name in enumerate(names):
    strong = np.argsort(-np.abs(whole[c]))[:n_features]
    before, after = whole[c, strong], alone.mean[c, strong]
    rows[name] = {
        "active latents that stay": alone.info["read_from"][c]["kept"],
        "correlation of f": alone.info["read_from"][c]["correlation"],
        "sum of |IE|, from all": np.abs(whole[c]).sum(),
        "from this one alone": np.abs(alone.mean[c]).sum(),
        "rank of the strongest": ctt.rank_correlation(before, after),
        "largest change": f"#{strong[np.abs(after - before).argmax()]}",
    }
leak = pd.DataFrame(rows).T
Path(out).mkdir(parents=True, exist_ok=True)
ctt.files.write_table(Path(out) / "leak.csv", leak)
leak.map(lambda value: value if isinstance(value, str) else round(float(value), 2))

# %% [markdown]
# At the end of training nothing changes. Early, part of the effect goes (about a quarter at the first checkpoint of the
# embedded suite), with the order mostly kept. Part of that may be the late model's knowledge; part is that predictions are
# too small, so that a latent misses its threshold: *active latents that stay* counts both. So the early effects are there,
# and perhaps too large. `python -m experiments` (leak) looks closer.
#
# # H · What is "off"?
# Zero is a choice. A feature can also be set to its mean over the sentences; or to its value in *another cell*: the same
# words, but the other neighbour, or the other subject. We take the ten strongest features about the *neighbour* at the
# first checkpoint, and about the *subject* at the last.
#
# **Question.** At first, tell the neighbour's features of the *other* neighbour. Will that do more than zero, or less?

# %%
rows = []
if has_cells:
    labelled = ctt.factorial_of(ctt.indirect_effects(dictionary, ckpts, find), find)
    far = suite.pairs(task, "far" if suite.name == "tiny" else "test", pairs_path, n_pairs)
    for c, factor in ((0, "attractor"), (-1, "subject")):
        ranked = np.argsort(-labelled.strength[c])
        group = [int(i) for i in ranked if labelled.label[c, i] == factor][:10]
        for part, inside in {"congruent": far.congruent, "incongruent": ~far.congruent}.items():
            swap = {"partner": np.where(inside, far.partners(factor), -1), "baseline": "resample"}
            ways = {"zero": (far[inside], {}), "the mean": (far[inside], {"baseline": "mean"})}
            ways[f"the other {factor}'s"] = (far, swap | {"seed": seed})
            for way, (pairs, given) in ways.items():
                done = ctt.ablate(dictionary, ckpts, pairs, group, **given).iloc[c]
                told = f"{round(-done['effect'], 1) + 0:+.1f} ± {1.96 * done['effect_stderr']:.1f}"
                told += f", accuracy {done['accuracy_after']:.2f}"
                rows.append(
                    {"at": names[c], "set to": f"{factor}: {way}", "part": part, "told": told}
                )
    print("change of the lead of the right answer in logits, ± 95 %, and accuracy after it")
    display(pd.DataFrame(rows).pivot_table("told", ["at", "set to"], "part", "first", sort=False))

# %% [markdown]
# On the embedded suite the *other cell* does about twice what zero does, and turns the answers round: at first from
# neighbour to subject, at the end from right to wrong. Nothing is taken away, only the message is exchanged, and each
# feature keeps to values that it takes anyway. It is the sharpest of the three tests.
