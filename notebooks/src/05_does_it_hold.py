# %% [markdown] part="predict, then remove" reading=22
# # 05 · Does it hold?
#
# Notebook 04 gave features effects, and names: this one is about the *subject*, that one about its *neighbour*. A name is a
# prediction. Here we switch features off, on sentences with other words and another structure, and look at what the model
# *does*.
#
# **You will learn**
# - to predict, cell by cell, what an ablation will do, and to let it fail;
# - to choose controls that could prove you wrong;
# - why the sum of the parts is not the whole;
# - to ask how much no feature holds.
#
# **Time:** 40 minutes of work, a minute to run. **You need:** notebook 04.

# %% tags=["parameters"]
profile: str = "tiny"  # "tiny", "colab" or "paper": it sets what is None below
model: str | None = None  # a suite
revisions: list | None = None  # the checkpoints that the crosscoder was trained on
layer: int | None = None
crosscoder: str | None = None  # its folder; None: the one shipped with the suite
task: str | None = None  # agreement across a neighbour (an "attractor")
plain_task: str | None = None  # the same without one
other_task: str | None = None  # something else: are the features special to agreement?
top_k: int = 10  # features a group, at most
n_random: int = 5  # random groups to compare with
n_pairs: int | None = None  # pairs to find with, and as many others to test on
pairs_path: str | None = None  # folder of published pairs; None: from where they are published
seed: int = 0
device: str = "auto"
out: str | None = None  # where tables go; None: runs/05 of the project

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML, display

import ctt_helpers as ctt
from ctt_helpers.notebook import checks, plots, widgets

suite = ctt.setup(
    globals(),
    "05",
    top_k=lambda n: None if n >= 1 else "take at least 1 feature",
    n_pairs=lambda n: None if n >= 10 else "take at least 10 pairs",
    n_random=lambda n: None if n >= 1 else "take at least 1 random group",
)
ckpts = suite.checkpoints(revisions or suite.default_triplet, layer=layer, device=device)
dictionary = ctt.Crosscoder.load(crosscoder or suite.crosscoder_folder)

# %% tags=["estimate"]
if suite.name != "tiny":  # what it takes on this machine, before anything is downloaded
    todo = {"ablation": 4 * n_pairs, "ablate": (15 + 6 * n_random + 2**6) * n_pairs}
    print(ctt.estimate(ckpts, pairs=todo, n_latents=dictionary.n_latents, k=dictionary.k or 64))

# %%
dictionary.to(ckpts[0].device)
ctt.evaluation.check_match(dictionary, ckpts)  # an error here: it was trained on other checkpoints
split = "far" if suite.name == "tiny" else "test"  # far: other words and another structure
names, find = ckpts.labels, suite.pairs(task, "find", pairs_path, n_pairs)
far = suite.pairs(task, split, pairs_path, n_pairs)
has_cells = all(len(far.levels.get(factor, [])) == 2 for factor in ("subject", "attractor"))
cells = sorted(set(far.cells), key=lambda cell: (len(set(cell.split("-"))), cell))
print(f"{len(find)} pairs to find with: {find.text[0]}\n{len(far)} to test on: {far.text[0]}")
if not has_cells:
    print("These pairs have no design cells: what follows is about all of them together.")

# %% [markdown]
# A **cell** combines levels: "sg-pl" has a singular subject and a plural neighbour. Where the two agree a cell is
# **congruent**, else **incongruent**. The **lead** of the right answer is logit(right) - logit(wrong).
#
# ## Choosing, once
# All choices use the *find* half only. The rules stand here before we look:
#
# 1. An effect counts only if it is larger than that of 95 % of **random directions**: features that are active just as
#    the real ones are, and write somewhere else.
# 2. A feature's **label** comes from the four cells (`ctt.factorial_of`): *subject* or *attractor* (its neighbour) if
#    what it pushes for follows that noun, *both* or *mixed* if it depends on the two.
# 3. A **group** holds the strongest features of a label at a checkpoint, at most `top_k`.

# %%
effects = ctt.indirect_effects(dictionary, ckpts, find)
turned = ctt.random_directions(dictionary, seed)
noise = ctt.indirect_effects(turned, ckpts, find)
if has_cells:
    about = ctt.factorial_of(effects, find, null=noise, seed=seed)
    label, strength = about.label, about.strength
    kinds = {"attractor": ["attractor"], "subject": ["subject"], "both, mixed": ["both", "mixed"]}
else:  # without cells: those that hurt, and those that help
    label, strength = np.where(effects.mean > 0, "helps", "hurts"), np.abs(effects.mean)
    label[strength <= ctt.uncertainty.null_threshold(noise)[:, None]] = "none"
    kinds = {"hurts": ["hurts"], "helps": ["helps"]}
order = np.argsort(-strength, axis=1)  # at each checkpoint, the strongest first
groups = {
    kind: [[int(i) for i in order[c] if label[c, i] in of][:top_k] for c in range(len(names))]
    for kind, of in kinds.items()
}
listed = {k: [" ".join(f"#{i}" for i in group) for group in own] for k, own in groups.items()}
shown = pd.DataFrame(listed, index=names).style  # no cell is cut
shown.format(escape="html").format_index(escape="html")

# %% [markdown]
# Do the labels come back where no word is the same? Label all features anew, on the other sentences.

# %%
again = ctt.indirect_effects(dictionary, ckpts, far)
if has_cells:
    far_noise = ctt.indirect_effects(turned, ckpts, far)
    anew = ctt.factorial_of(again, far, null=far_noise, seed=seed)
    old, new, size = label.ravel(), anew.label.ravel(), anew.strength.ravel()
    labelled = old != "none"
    fate = np.where(new == old, "comes back", np.where(new == "none", "falls to none", "changes"))
    for what in ("comes back", "falls to none", "changes"):
        told = size[labelled & (fate == what)].sum() / size[labelled].sum()
        print(f"{(labelled & (fate == what)).sum()} labels: {what} ({told:.0%} of the strength)")

# %% [markdown]
# A label that falls to *none* is a weak one; a label that *changes* is the worse news. (On the embedded suite most of that
# share is one feature: #398 turns from *mixed* to *subject* at the end.)
#
# ## Predict, then remove
# At one checkpoint the model is worst in the incongruent cells: call it the **dip**.
#
# **Question.** At the dip, remove the features about the *neighbour*. In which of the four cells will the model get better,
# in which worse? And at the end of training, without those about the *subject*? Write down eight signs.
#
# **What would prove us wrong?** If *any* features did the same. So the groups in question have **controls**: random groups
# of other features, each of which writes about as much on these sentences as the member that it stands for. (They may hold
# features of another label: a hard test.) And beside them stands **the error**: what the dictionary misses of the stream.
# Every ablation keeps it, so it goes on carrying what it knows.

# %%
x = ctt.activations.stacked_activations(ckpts, find.input_ids, find.attention_mask)
counted = ctt.effects.touched(find).to(x.device)[..., None]  # all words but the first
f = (dictionary.encode(x).detach() * counted).sum(1).mean(0).cpu().numpy()
written = (f + 1e-6) * dictionary.decoder_norms().detach().cpu().numpy()  # [checkpoints, latents]


def controls_of(own):
    """Random groups in place of the group of each checkpoint: `n_random` such lists."""
    pool = np.flatnonzero(f)
    at_each = [
        ctt.control_groups(group, pool, n_random, seed, written[c]) if group else [[]] * n_random
        for c, group in enumerate(own)
    ]
    return [list(drawn) for drawn in zip(*at_each, strict=True)]


# %%
def in_cells(own=None, **kept):
    """Remove the features `own`; or all latents (keep_only=True); or the error (keep_error=False)."""
    tables = {}
    for cell in cells:
        given = (dictionary, ckpts, far[far.cells == cell])
        nothing = own is None
        tables[cell] = (
            ctt.ablation_curve(*given, [0], [0], **kept) if nothing else ctt.ablate(*given, own)
        )
    table = pd.concat(tables, names=["cell"]).reset_index("cell")
    return table.set_index(["checkpoint", "cell"])


after = {kind: in_cells(own) for kind, own in groups.items()}
after["the error"], all_off = in_cells(keep_error=False), in_cells(keep_only=True)
drawn = {kind: [in_cells(own) for own in controls_of(groups[kind])] for kind in list(kinds)[:2]}

# %%
hard = find[~find.congruent] if has_cells else find
dip = int(np.argmin([ctt.accuracy(checkpoint, hard) for checkpoint in ckpts]))
looks = dict(zip((names[dip], names[-1]), kinds, strict=False))  # what to look at where
agree = [cell for cell in cells if len(set(cell.split("-"))) == 1]
colors = plots.LABEL_COLORS | {"both, mixed": plots.LABEL_COLORS["both"], "the error": "black"}
found = {}
for at, kind in looks.items():
    lead = -after[kind].loc[at]["effect"]
    told = f"congruent {lead[agree].mean():+.1f}, incongruent {lead.drop(agree).mean():+.1f}"
    told = told if has_cells else f"{lead.mean():+.1f}"
    found[at] = f"{at} without its {kind} features: {told}"
    print(found[at])

# %%
with plots.style():
    fig, axes = plt.subplots(1, len(looks), figsize=(8, 3.5), sharey=True, squeeze=False)
    for ax, at in zip(axes[0], looks, strict=True):
        for k, (one, table) in enumerate(after.items()):
            if one in groups and not groups[one][names.index(at)]:
                continue  # no feature has this label here
            here, where = table.loc[at].loc[cells], np.arange(len(cells)) + 0.18 * (k - 1.5)
            others = np.array([-d.loc[at].loc[cells, "effect"] for d in drawn.get(one, [])])
            if len(others):
                ends, grey = (others.min(0), others.max(0)), {"color": "0.8", "lw": 6}
                ax.vlines(where, *ends, **grey, label=f"controls of {one}")
            bar, color = 1.96 * here["effect_stderr"], colors.get(one, f"C{k}")
            ax.errorbar(where, -here["effect"], bar, fmt="o", ms=4, color=color, label=one)
        ax.axhline(0, color="0.5", lw=0.8)
        ax.set_xticks(range(len(cells)), cells)
        plots.set_title(ax, found[at])
    axes[0, 0].set(ylabel="change of the lead (logits)", xlabel="cell")
    axes[0, -1].set_xlabel("cell (bars: 95 %; controls: range)")
    marks = [ax.get_legend_handles_labels() for ax in axes[0]]
    told = {label: mark for two in marks for mark, label in zip(*two, strict=True)}
    fig.legend(told.values(), told, loc="outside lower center", ncols=3)
plots.show(
    "Dots with error bars, by cell: how the lead changes without a group, beside its controls."
)

# %%
rows = {}
for at, kind in looks.items():
    controls = pd.concat(drawn[kind]).groupby(["checkpoint", "cell"])["accuracy_after"].mean()
    rows[f"{at}: untouched"] = after[kind].loc[at]["accuracy_before"]
    rows[f"{at}: without its {kind} features"] = after[kind].loc[at]["accuracy_after"]
    rows[f"{at}: without controls, mean"] = controls[at]
    rows[f"{at}: without the error"] = after["the error"].loc[at]["accuracy_after"]
    rows[f"{at}: without any latent, the error kept"] = all_off.loc[at]["accuracy_after"]
print("accuracy in each cell")
pd.DataFrame(rows).T[cells].round(2)

# %% [markdown]
# **What we saw** on the embedded suite. At the dip all four signs are as predicted: incongruent cells gain, congruent ones
# lose. In accuracy only the cells with a plural neighbour turn: without these features the model says "singular", whatever
# comes. At the end, removing the subject's features costs the singular cells everything, and the plural ones little: now it
# says "plural". Taking a source away does not leave a wiser model, but one with a *prejudice*. Taking the error away alone
# changes nothing. Left alone, it has a prejudice of its own: at the dip it says "plural". And at the end some controls do
# harm, too: they may hold strong features of other labels, and one such feature is met below.
#
# ### Switch them off yourself
# Groups hide who does it. Here are the strongest few features of all checkpoints, on *find*, and each subset of them has
# been taken away (`ctt.ablate_subsets`): a tick only looks up.
#
# **Question.** At step600 the embedded suite is right in 40 % of the pl-sg pairs (a plural subject, a singular
# neighbour). *Which single feature must go* so that pl-sg comes right? And which cells pay for it? (Without a mouse: Tab goes
# from control to control, arrows move the slider, the space bar ticks. Without a kernel: the table has all of them on.)

# %%
strongest = order[:, :4].T.ravel().tolist()  # the first of each checkpoint, then the second ...
few = list(dict.fromkeys(strongest))[:6]
subsets = ctt.ablate_subsets(dictionary, ckpts, far, few)
middle = names[len(names) // 2]
if has_cells:
    display(HTML(widgets.two_by_two_html(subsets, far, middle)))
    display(widgets.two_by_two(subsets, far, middle).widget)

# %% [markdown]
# <details><summary>What we found</summary>
#
# #283. Without it pl-sg goes from 0.40 to 0.95, and both singular subjects lose: sg-sg from 1.00 to 0.30, sg-pl from 0.57 to
# 0.07. It tells of the singular. Nothing became wiser, and the model now says "plural".
#
# </details>
#
# How sure are such means? Here the bars rest on a formula. There is a way that needs none: draw the sentences anew, with
# replacement, many times, and see where the means lie. Pairs of the same words say nearly the same thing, so they are drawn
# *together*.
#
# ### Exercise · A bootstrap interval
# *Difficulty 4 of 5 · importance 4 of 5 · 10 minutes*
#
# Write `bootstrap_interval(values, groups, rng)`. `values` are effects, one a pair; `groups` a number for each pair, the same
# for pairs of the same words; `rng` numpy's generator. In each of 10,000 draws take as many groups as there are, with
# replacement, and the mean of all their values. Give the two ends between which 95 % of these means lie.
#
# <details><summary>Hint 1</summary>
#
# Sums are enough: for each group the sum of its values, and how many they are.
#
# </details>
# <details><summary>Hint 2</summary>
#
# `rng.integers(n, size=(10_000, n))` picks groups. The mean of a draw is the sum of its sums over the sum of its counts.
#
# </details>


# %% exercise="bootstrap_interval"
def bootstrap_interval(values, groups, rng):
    """Low and high end of the 95 % interval of the mean."""
    ### BEGIN SOLUTION give back the low and the high end of the interval
    names, of = np.unique(groups, return_inverse=True)
    total, count = np.bincount(of, weights=values), np.bincount(of)
    picked = rng.integers(len(names), size=(10_000, len(names)))
    means = total[picked].sum(1) / count[picked].sum(1)
    return np.quantile(means, [0.025, 0.975])
    ### END SOLUTION


# %% check="bootstrap_interval" points=2
checks.bootstrap_interval(bootstrap_interval)

# %% [markdown] part="groups, and a switch" reading=18
# ## More and more of them
# Rank all features by strength on *find*, whatever their label, and remove the first 1, 2, 5 ... Beside it: the effects of
# the same features one by one, added up.
#
# **Question.** If a group does *more* than the sum of its parts, what does that say about the features? If it does less?

# %% [markdown]
# ### Exercise · More than its parts
# *Difficulty 3 of 5 · importance 4 of 5 · 8 minutes*
#
# Write `beyond_the_parts(m, x, f, W_dec, group)`, with `m` and the rest as in notebook 04: the effect of taking all features
# of the list `group` away *together*, minus the sum of their effects one by one. The first token stays as it is.
#
# <details><summary>Hint 1</summary>
#
# Write a small function inside: m without a list of features, minus m of the clean stream.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Call it once with the whole list, and once for each member, as a list of one.
#
# </details>


# %% exercise="beyond_the_parts"
def beyond_the_parts(m, x, f, W_dec, group):
    """The effect of a group, minus the summed effects of its members."""

    ### BEGIN SOLUTION give back how much more the group does than its parts
    def effect(features):
        without = x.clone()
        without[1:] -= f[1:, features] @ W_dec[features]
        return float(m(without) - m(x))

    return effect(group) - sum(effect([i]) for i in group)
    ### END SOLUTION


# %% check="beyond_the_parts"
checks.beyond_the_parts(beyond_the_parts)

# %%
per_pair = again.per_pair.to_dense().double().numpy()
sizes = [size for size in (1, 2, 5, 10, 20, 50) if size <= dictionary.n_latents]
ranked = order[:, : sizes[-1]].tolist()
parts = {"congruent": far.congruent, "incongruent": ~far.congruent} if has_cells else {}
parts = parts or {"all": np.ones(len(far), bool)}
together, all_gone = {}, {}
for part, inside in parts.items():
    curve = ctt.ablation_curve(dictionary, ckpts, far[inside], ranked, sizes)
    together[part] = curve.set_index("checkpoint")
    off = ctt.ablation_curve(dictionary, ckpts, far[inside], [0], [0], keep_only=True)
    all_gone[part] = off.set_index("checkpoint")["effect"]

# %%
with plots.style():
    fig, axes = plt.subplots(1, len(names), figsize=(8, 3), sharey=True)
    for part, inside in parts.items():
        color = plots.CELL_COLORS.get(part, "C0")
        for c, (ax, name) in enumerate(zip(axes, names, strict=True)):
            here, alone = together[part].loc[name], per_pair[c, inside].mean(0)
            added = np.array([alone[ranked[c][:size]].sum() for size in sizes])
            bar = 1.96 * here["effect_stderr"]
            ax.errorbar(sizes, -here["effect"], bar, fmt="o-", ms=3, color=color, label=part)
            ax.plot(sizes, -added, "--", color=color, lw=1)
            ax.axhline(-all_gone[part][name], color=color, lw=1, ls=":")
            ax.set(xscale="log", title=name)
            ax.set_xticks(sizes, sizes)
            ax.xaxis.set_minor_locator(plt.NullLocator())
    axes[0].set_ylabel("change of the lead (logits)")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    fig.supxlabel("features removed (dashed: added up one by one; dotted: all latents off)", size=9)
    first, last = -here["effect"].iloc[[0, -1]]
    told = f"{first:+.1f} for the first, {last:+.1f} for {sizes[-1]} together, {-added[-1]:+.1f} added up"
    fig.suptitle(f"{name}, {part} pairs: {told}", fontweight="bold", fontsize=9.5)
plots.show(
    "A panel a checkpoint: change of the lead over the number of features removed, together (solid, "
    "with error bars) and added up one by one (dashed)."
)

# %% [markdown]
# **What we saw** on the embedded suite. A handful of features does it; then the curves are flat, near what is left with all
# latents off. At the dip a group does more than its parts, up to twice as much. But at the end *one* feature does more harm
# in incongruent pairs than fifty do, or all.
#
# **Question.** How can one missing feature be worse than none at all? What might it have told the layers above?
#
# Look for it on a board of all checkpoints and cells. **To find out**: at the end of training one tick breaks both
# incongruent cells. Which? Leave it there. Which second tick mends pl-sg again, and which one sg-pl? Taken alone neither
# does much good there. What would the sum of two effects have said? (*right*: the accuracy; *was*: with all features on;
# *added up*: the lead, if the effects of single features simply added up.)

# %%
display(HTML(widgets.ablation_board_html(subsets, far, few[:1])))
widgets.ablation_board(subsets, far)

# %% [markdown]
# <details><summary>What we found</summary>
#
# At step3000 without #398 accuracy is 0.00 in pl-sg and 0.02 in sg-pl. With #283 off as well, pl-sg is back at 0.97 and its
# lead at +2.7; added up, the two effects would give −1.3. With #437 in its place, sg-pl comes back to 0.72. So #398 keeps
# the neighbour's number from being heard, and these two tell it. What a feature does depends on what else is there.
#
# </details>
#
# ## A switch
# Take the feature whose effect at the end differs most between incongruent and congruent pairs, on *find*.

# %%
on_find = effects.per_pair[-1].to_dense().double().numpy()
sign = np.where(find.congruent, -1, 1) if has_cells else np.ones(len(find))
switch = int((sign @ on_find).argmax())
x = ctt.activations.stacked_activations(ckpts, far.input_ids, far.attention_mask)
f = dictionary.encode(x)[range(len(far)), far.answer_position, switch].detach().cpu().numpy()
alone = in_cells([switch])
rows = {
    f"{names[dip]}: accuracy, untouched": alone.loc[names[dip]]["accuracy_before"],
    f"{names[-1]}: accuracy, untouched": alone.loc[names[-1]]["accuracy_before"],
    f"{names[-1]}: accuracy, without #{switch} alone": alone.loc[names[-1]]["accuracy_after"],
    f"how active #{switch} is at the last word": {c: f[far.cells == c].mean() for c in cells},
}
pd.DataFrame(rows).T[cells].astype(float).round(2)

# %% [markdown]
# On the embedded suite, without this one feature the grown model is back in the dip: it agrees with the neighbour. And look
# at the last row: the feature is equally active in all four cells. It carries no number at all! It works as if it said
# "this noun is not the one that you look for". So a label by *effects* tells what the answer hangs on, and not what a
# feature carries.
#
# And it belongs to *this* model. By the same rule a second crosscoder of it has such a switch too, a third one half of it.
# In two models pretrained from other seeds the feature that the rule finds does less: without it, they are still right in
# half of these pairs, or in nearly all (`seeds_switch` in `experiments/results`). The dip is in all three.
#
# If that is right, it should matter wherever such a noun is the last word before the answer, whatever is asked; and nowhere
# else. A prediction again. **Question.** In which tasks does that hold? (`suite.pairs(name).text[:4]` shows them.)

# %%
rows = {}
for name in dict.fromkeys([plain_task, other_task or plain_task, *suite.task_names * has_cells]):
    pairs = suite.pairs(name, split, pairs_path, 120)
    inside = {"all pairs": np.ones(len(pairs), bool)}
    if {"subject", "attractor"} <= set(pairs.levels):
        inside = {"congruent": pairs.congruent, "incongruent": ~pairs.congruent}
    for part, mask in inside.items():
        done = ctt.ablate(dictionary, ckpts, pairs[mask], [switch]).iloc[-1]
        told = f"{done['accuracy_before']:.2f} to {done['accuracy_after']:.2f}"
        rows.setdefault(name, {})[part] = told
elsewhere = pd.DataFrame(rows).T.fillna("")
print(f"accuracy at {names[-1]}, untouched and without #{switch}")
elsewhere

# %% [markdown]
# On the embedded suite it holds for *pp*, *nested_pp*, *subj_rel* and *selection/subject_pp*, which asks for meaning and
# not for number; and for *tense/simple*, which nobody had in mind: on *far* it reads "Yesterday the fox from the brothers
# swam". In *polarity/pp* it is weak.
#
# One more thing before you believe a number: "off" was *zero* everywhere here. A feature can also be set to its mean, or to
# its value in another cell. What that changes stands in the appendix (09, H). Say which of them you took.

# %%
Path(out).mkdir(parents=True, exist_ok=True)
ctt.files.write_table(Path(out) / "by_cell.csv", pd.concat(after, names=["removed"]))
ctt.files.write_table(Path(out) / "elsewhere.csv", elsewhere)
print(f"written: {out}")

# %% [markdown]
# ## What to remember
# - A name is a prediction. Cells make it one that can fail, and *other words* make it worth something.
# - Judge an ablation beside its controls, beside the error, and beside the *sum* of its parts.
# - Not all that matters is a message. A feature can be the switch that decides whose message is heard.
#
# **Try it**: `task="gender/pp"`, where the neighbour wins to the end. Which of your eight signs change?
#
# ## Next
# **06 · Testing causes**: what would noise look like, which effect is *the* effect, and what does another seed find? · To
# read more: Makelov et al. (2023) on what ablations can fool you into; McGrath et al., *The Hydra Effect* (2023).

# %% [markdown]
# ## Check yourself
#
# 1. You remove ten features, and the model gets worse. What is missing before this says anything about *these* ten?
#
# <details><summary>Answer</summary>
#
# Controls: other groups that write as much, removed in the same way, on the same sentences.
#
# </details>
#
# 2. A group does twice as much as the sum of its parts. What does that say about its members?
#
# <details><summary>Answer</summary>
#
# They stand in for each other. One alone is hardly missed, for the others do its work.
#
# </details>
#
# 3. Why are pairs of the same words drawn together in a bootstrap?
#
# <details><summary>Answer</summary>
#
# They say nearly the same thing. Drawn one by one they would count as so many pieces of evidence, and the interval would be
# too narrow.
#
# </details>
#
# 4. A feature is equally active in all four cells. Can an answer depend on it by cell?
#
# <details><summary>Answer</summary>
#
# Yes. It can decide *whose* message is heard, and carry none itself: the switch of this notebook.
#
# </details>
