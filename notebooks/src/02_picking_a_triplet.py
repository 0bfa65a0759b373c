# %% [markdown] part="what is learned, and when" reading=12
# # 02 · Picking a triplet
#
# A training run leaves many checkpoints. To compare all of them at once is costly and hard to read. So we pick three:
# early, in the middle of a change, and late. But which?
#
# **You will learn** to read a curve that goes *below* chance; that things are learned at different times, and some never;
# to compare checkpoints from the inside, by the similarity of their activations; and to choose three of them by a rule that
# you can say aloud. **Time:** 24 minutes to read, a minute to run. **You need:** notebooks 00 and 01.

# %% tags=["parameters"]
profile: str = "tiny"  # "tiny", "colab" or "paper": it sets what is None below
model: str | None = None  # a suite
tasks: list | None = None  # names of tasks; None: all that the suite has
revisions: list | None = None  # checkpoints to look at; None: all
layer: int | None = None  # for the similarity
split: str = "find"  # where we choose; "test" and "far" are for what is to be shown later
n_pairs: int | None = None  # pairs a task, at most
pairs_path: str | None = None  # folder of published pairs; None: from where they are published
seed: int = 0  # for the shuffled control
device: str = "auto"
out: str | None = None  # where tables go; None: runs/02 of the project

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from IPython.display import HTML, display

import ctt_helpers as ctt
from ctt_helpers import files
from ctt_helpers.notebook import checks, plots, widgets
from ctt_helpers.sources import published

suite = ctt.setup(globals(), "02", n_pairs=lambda n: None if n >= 2 else "take at least 2 pairs")
own = {listed["name"] for listed in suite.meta.get("tasks", [])}  # short as they are
names = ctt.pairs.short_names(tasks or suite.task_names)
names = {task: task if task in own else short for task, short in names.items()}
pairs = {n: suite.pairs(t, split=split, n=n_pairs, path=pairs_path) for t, n in names.items()}

# %% tags=["estimate"]
if suite.name != "tiny":  # what it takes on this machine, before anything large is downloaded
    ckpts = suite.checkpoints(revisions, layer=layer, device=device)
    print(ctt.estimate(ckpts, pairs={"accuracy": (len(pairs) + 1) * n_pairs, "reading": 200}))

# %% [markdown]
# ## The tasks
# Each is a set of minimal pairs, named *phenomenon/structure*. The embedded suite has five phenomena, things to keep track
# of:
#
# | phenomenon | what decides | example |
# |---|---|---|
# | **agreement** | the number of the subject | The *editor* laughs / *laugh |
# | **gender** | the gender of the subject | The *queen* sees herself / *himself |
# | **polarity** | a negative word at the subject | *No* king ever sleeps / *The king ever sleeps |
# | **tense** | a word of time | *Yesterday* the king slept / *sleeps |
# | **selection** | which verbs a noun likes | The *poet* whispers / *groans |

# %%
for name, p in pairs.items():
    for reason, count in p.left_out.items():
        print(f"{name}: {count:,} of the task's pairs are left out: {reason}")
about = {n: {"example": p.text[1], "cells": len({*p.cells})} for n, p in pairs.items()}
with pd.option_context("display.max_colwidth", 80):
    display(pd.DataFrame(about).T)

# %% [markdown]
# ## Below chance
# In notebook 00 a model was wrong wherever the neighbour's number was not the subject's. It agreed with the neighbour,
# across a prepositional phrase (*pp*). **Question.** In which of these should the same happen, if the neighbour decides?
# - *subj_rel*: The author that likes the **guards** laughs
# - *obj_rel*: The author that the **guards** like laughs
# - *sent_comp*: The **guards** think that the author laughs

# %% [markdown]
# ### Exercise · The 2 x 2
# *Difficulty 2 of 5 · importance 5 of 5 · 6 minutes*
#
# Write `two_by_two(lead, subject, attractor)`: a table of accuracies with the subject's level in the rows (sg, pl) and the
# attractor's in the columns. `lead` is logit(right) − logit(wrong) of each pair, a numpy array; `subject` and `attractor` hold
# the words "sg" or "pl". Before you run the check: at an early checkpoint, which of the four will be near 1, and which near 0?
#
# <details><summary>Hint 1</summary>
#
# A pair is right where its lead is above 0. The mean of True and False is a share.
#
# </details>
# <details><summary>Hint 2</summary>
#
# A `pd.Series` can be grouped by two lists at once: `.groupby([subject, attractor])`. Then `.unstack()` makes a table.
#
# </details>


# %% exercise="two_by_two"
def two_by_two(lead, subject, attractor):
    """Accuracy in each cell: a DataFrame, rows: subject sg, pl; columns: attractor sg, pl."""
    ### BEGIN SOLUTION give back a DataFrame with the accuracy in each of the four cells
    right = pd.Series(np.asarray(lead) > 0)
    table = right.groupby([subject, attractor]).mean().unstack()
    return table.loc[["sg", "pl"], ["sg", "pl"]]
    ### END SOLUTION


# %% check="two_by_two"
checks.two_by_two(two_by_two)
hard = pairs.get(names.get("agreement/pp"))
if suite.name == "tiny" and hard is not None:  # at the first checkpoint of the suite's triplet
    checkpoint = suite.checkpoints(suite.default_triplet[:1], device=device)[0]
    levels = [hard.table[f"{noun}_level"].to_numpy() for noun in ("subject", "attractor")]
    display(two_by_two(ctt.logit_differences(checkpoint, hard).numpy(), *levels).round(2))

# %% [markdown]
# Now all tasks at all checkpoints, from `ctt.accuracy_curve`.

# %%
curve = ctt.accuracy_curve(suite, pairs, revisions, device=device, cells=True)
looked_at = list(curve["revision"].unique())
in_cells = curve[curve["congruent"].notna()]  # tasks in which something is crossed with the subject
halves = in_cells.groupby(["task", "congruent", "revision"], sort=False)["accuracy"].mean()
halves = halves.unstack("revision")
crossed = list(in_cells["task"].unique())
kind = {task: task.split("/")[0] for task in pairs}
plain = {kind[task]: task for task in reversed(pairs) if task not in crossed}  # the first of a kind
plain = {task: plain.get(kind[task]) for task in crossed}
simple = next(iter(pairs))
first = [task for task in crossed if kind[task] == kind[simple]]
if first:
    lowest = halves.xs(False, level="congruent").loc[first].min(axis=1)
    below = ", ".join(task.split("/")[-1] for task in lowest[lowest <= 0.35].index) or "none"
    found = f"The incongruent half falls to 0.35 or less in: {below}"
    plots.cell_panels(curve, first, plain, title=found)
    plots.show("Small line charts over tokens seen, one a structure; grey: the plain task.")
if not crossed:
    plots.accuracy_curves(curve, title="Accuracy over training, each task as a whole")
    plots.show("Line chart of accuracy over tokens seen, one line for each task.")
    told = "(Those of the embedded suite do.) What is shown by cell is left out, too."
    print(f"Left out here: these tasks do not say where their nouns are. {told}")

# %% [markdown]
# Green: cells where nothing misleads. Orange: where something does. A model that guesses is at 0.5 in both. One that is far
# *below* in orange knows something, and uses it for the wrong purpose.
#
# On the embedded suite, the neighbour decides across a phrase and across a subject relative. Orange falls while grey rises,
# for it is one event: one rule, *agree with the neighbour*, is right on simple sentences and wrong on these. (With two
# nouns between, *nested_pp*, the neighbour agrees in a third of the incongruent pairs. So orange stops near 1/3.) Where what
# decides stands nearest (*sent_comp*: the subject; *det_noun*: the word before), nothing falls; behind an *and* (*vp_coord*)
# orange falls a little, for a short time. Where the word before the answer is a verb (*obj_rel*), orange and green both wait
# near 0.5. And *center_embed* is never learned: at the end its orange line is still below one half.
#
# ## Other things to track
# **Question.** *The queen near the king saw herself.* Will gender dip as number does? And is there a phenomenon of which
# you would expect that the model never gets all cells right?

# %%
others = [task for task in crossed if task not in first]
if others:
    end = in_cells[in_cells["task"].isin(others) & (in_cells["revision"] == looked_at[-1])]
    by_task = halves.loc[others, looked_at[-1]].xs(False, level="congruent")
    found = f"In the end {by_task.idxmin()} is right in {by_task.min():.2f} of incongruent pairs"
    plots.cell_panels(curve, others, plain, title=found)
    plots.show("Small line charts over tokens seen, one a task; grey: the phenomenon's plain task.")
    each = end.assign(told=end["cell"] + " " + end["accuracy"].map("{:.2f}".format))
    by_half = each.groupby(["task", "congruent"], sort=False)["told"].agg(", ".join).unstack()
    by_half.columns = ["congruent" if c else "incongruent" for c in by_half.columns]
    display(by_half.rename_axis(f"each cell at {looked_at[-1]}"))

# %% [markdown]
# On the embedded suite each tells another story. The cells of the table say which.
# - **Gender ends with the neighbour.** Plain sentences are right; across a phrase the noun in between decides. It had been
#   better before, so learning can go the wrong way. (And *himself* or *themselves*? Its *number* is *reflexive_pp* above: that
#   one is learned.)
# - **Polarity** stays with a simpler rule: any negative word before it allows *ever*. The cell with *no* at the neighbour
#   alone (pos-neg) is wrong to the end.
# - **Tense** has no dip. What tense the verb in between has hardly matters; it is only late.
# - **Selection** dips late and deep across a phrase (*subject_pp*), and comes back slowly. With an *object* there is no dip.
#   (Nouns come in two kinds here, *one* and *other*, by the verbs that they like.)
#
# ## When is each learned?
# We call **onset** the first checkpoint from which on accuracy is at least 0.75 *in the worst cell*. Why the worst? A model
# that says *herself* to everybody is right in half of all pairs. Tasks that never get there tell as much.

# %% [markdown]
# ### Exercise · Onset
# *Difficulty 3 of 5 · importance 3 of 5 · 8 minutes*
#
# Write `onset(accuracy)` for one task: `accuracy` is `[cells, checkpoints]`, and what comes is the index of its onset. Where
# there is none, it is the number of checkpoints. Mind the words *from which on*.
#
# <details><summary>Hint 1</summary>
#
# First the worst cell at each checkpoint, then whether it is good. What is left is a row of True and False.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Go from the end. How many in a row are good? `np.cumprod` of a turned row is 1 as long as all were.
#
# </details>


# %% exercise="onset"
def onset(accuracy):
    """Index of the first checkpoint from which on the worst cell has at least 0.75."""
    ### BEGIN SOLUTION give back the index of the onset, a whole number
    good = accuracy.min(0) >= 0.75
    good_to_the_end = good[::-1].cumprod().sum()
    return len(good) - int(good_to_the_end)
    ### END SOLUTION


# %% check="onset"
checks.onset(onset)

# %% [markdown]
# The same for all tasks at once:

# %%
has_cells = curve["task"].isin(curve.loc[curve["cell"] != "all", "task"])
parts = curve[(curve["cell"] != "all") | ~has_cells]
worst = parts.pivot_table(index="task", columns="revision", values="accuracy", aggfunc="min")
good = (worst.loc[list(pairs), looked_at] >= 0.75).to_numpy()
good_from_there = good[:, ::-1].cumprod(axis=1)  # counted from the end: good, and ever after
onsets = pd.Series(len(looked_at) - good_from_there.sum(axis=1), index=list(pairs))
never = (onsets == len(looked_at)).sum()
found = f"{never} of {len(onsets)} tasks are never right in every cell (open)"
plots.onset_dots(onsets, looked_at, marked=crossed, title=found)
plots.show("Dot chart of onsets by task. Circles: nothing misleads there; diamonds: something may.")

# %% [markdown] part="a task of your own" reading=2
# ### Exercise · A task of your own
# *Difficulty 5 of 5 · importance 4 of 5 · 35 minutes*
#
# What else might a model learn, and when? Write `own_task()`: a list of at least 12 dicts, each with the texts `prefix`, `right`
# and `wrong`. Mind three things. Right and wrong begin with a blank. The model must know your words (`suite.tokenizer
# .get_vocab()`, where `Ġ` is the blank; `suite.pairs(name).text` shows sentences, for a name of `suite.task_names`). And every word is right as often as it is wrong: who always says the
# same then gets one half. Before you look at the curve, write down where it will rise, and whether it will dip.
#
# Then five sentences: what you asked; what you expected and why; what came; what speaks against your reading; what you would do
# next.
#
# <details><summary>Hint 1</summary>
#
# Take a task that is there and change one thing: another word in between, another place, another phenomenon.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Two loops, over nouns and over verbs, and two rows in each round: one singular, one plural.
#
# </details>
# <details><summary>How to judge the five sentences</summary>
#
# A point for each: the question can be answered by a curve; the expectation was there first, with a reason; what came is told
# in numbers, with a checkpoint; another explanation is named that the same curve would fit; the next step could tell the two
# apart.
#
# </details>


# %% exercise="own_task"
def own_task():
    """Rows of a task of my own: dicts with prefix, right and wrong."""
    ### BEGIN SOLUTION give back a list of at least 12 rows, in which each word is right as often as wrong
    nouns = [("cat", "cats"), ("sailor", "sailors"), ("frog", "frogs"), ("lawyer", "lawyers")]
    rows = []
    for one, many in nouns:
        for runs, run in (("laughs", "laugh"), ("arrives", "arrive")):
            rows.append({"prefix": f"The {one} usually", "right": f" {runs}", "wrong": f" {run}"})
            rows.append({"prefix": f"The {many} usually", "right": f" {run}", "wrong": f" {runs}"})
    return rows
    ### END SOLUTION


# %% check="own_task" points=5
checks.own_task(own_task, suite.tokenizer)
mine = ctt.make_pairs(own_task(), suite.tokenizer, name="mine")
own_curve = ctt.accuracy_curve(suite, {"mine": mine}, revisions, device=device)
plots.accuracy_curves(own_curve, title=f"{mine.text[0]} and {len(mine) - 1} others")
plots.show("Line chart of the accuracy over tokens seen on the task that was made here.")

# %% [markdown]
# (Our solution puts *usually* before the verb, and is learned early. Put *slowly* there instead: the same model ends at one half.
# In the text that it was trained on, *slowly* never stands before a verb. What does it do with a word in a new place?)

# %% [markdown] part="a look inside, and three checkpoints" reading=10
# ## Looking inside: similarity of activations
# Accuracy tells *when* behaviour changes. To see when the *inside* changes, we run two checkpoints on the same sentences
# and take the cosine of their activations, token by token. The mean is their **similarity**: 1 for the same directions, 0
# for unrelated ones.

# %% [markdown]
# ### Exercise · The similarity matrix
# *Difficulty 3 of 5 · importance 4 of 5 · 10 minutes*
#
# Write `similarity_matrix(x, mask)`. The streams `x` are `[checkpoints, pairs, tokens, d_model]`, and `mask`, `[pairs,
# tokens]`, is 1 at real tokens. Give back `[checkpoints, checkpoints]`: the mean over tokens of the cosine of the two
# checkpoints' vectors. Padding does not count, and neither does the first token.
#
# <details><summary>Hint 1</summary>
#
# Begin with a mask that is True where a token counts. `x[:, keep]` is then `[checkpoints, tokens that count, d_model]`.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Bring each vector to length 1 (`torch.nn.functional.normalize`). A cosine is then a plain product of two vectors, and
# `torch.einsum("atd,btd->ab", ...)` adds all of them up. By how many do you divide?
#
# </details>


# %% exercise="similarity_matrix"
def similarity_matrix(x, mask):
    """Mean cosine similarity, [checkpoints, checkpoints]."""
    ### BEGIN SOLUTION give back the mean cosines, [checkpoints, checkpoints]
    keep = mask.bool()
    keep[:, 0] = False
    unit = torch.nn.functional.normalize(x[:, keep], dim=-1)  # [checkpoints, tokens, d_model]
    return torch.einsum("atd,btd->ab", unit, unit) / unit.shape[1]
    ### END SOLUTION


# %% check="similarity_matrix"
checks.similarity_matrix(similarity_matrix)

# %%
sample = pairs.get(names.get("agreement/pp"), pairs[simple])
sim = ctt.similarity_matrix(suite, sample, layer=layer, revisions=revisions, device=device)
step = {a: sim.loc[a, b] for a, b in zip(sim.index[:-1], sim.index[1:], strict=True)}
above = np.triu(np.ones(sim.shape, dtype=bool), k=1)  # it says nothing that is not below
with plots.style():
    fig, ax = plt.subplots(figsize=(5.6, 4.4))
    bar = {"label": "cosine similarity"}
    sns.heatmap(sim, mask=above, ax=ax, cmap="mako_r", vmax=1, square=True, cbar_kws=bar)
    ax.set(xlabel="checkpoint", ylabel="checkpoint")
    plots.set_title(ax, f"Activations change most between {min(step, key=step.get)} and the next")
plots.show("Heat map of the mean cosine similarity between every two checkpoints; dark: alike.")

# %% [markdown]
# A pale square means that the two have little in common inside. The largest changes come first, while the accuracies above
# are still near one half.
#
# **How much of it is mere habit?** All tokens of a model could share one large direction. So we shuffle: the cosine between
# *different* tokens of the same checkpoint. Where it is high, the similarity says less than it seems to.

# %%
rng, habit = np.random.default_rng(seed), {}
for checkpoint in suite.checkpoints(revisions, layer=layer, device=device).one_by_one():
    x = ctt.residual_stream(checkpoint, sample.input_ids, sample.attention_mask)[:, 1:]
    x = x[sample.attention_mask[:, 1:].bool().to(x.device)].float().cpu().numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    habit[checkpoint.label] = (x * x[rng.permutation(len(x))]).sum(1).mean()
control = {"similarity to the next checkpoint": step, "of unrelated tokens": habit}
pd.DataFrame(control).loc[looked_at].round(2)

# %% [markdown]
# On the embedded suite step16 stands out: there even unrelated tokens are alike, so its similarities say little.
#
# ## Choosing
# **The rule, before its result** (`ctt.suggest_triplet`). The last checkpoint is always one. How much changes between two
# checkpoints? The mean over tasks of |difference of accuracy|, plus one minus their similarity. A triplet is as good as the
# *smaller* of its two changes, first to middle and middle to last. And at the first, tasks must be at least 0.1 from chance
# on average, up or down: where the model does nothing yet, there is nothing to explain.

# %%
choice = ctt.suggest_triplet(curve, sim)
for reason in choice.reasons:
    print("-", reason)
choice.table.head(4).round(2)

# %%
by_default = (model, tasks, revisions, layer, split) == ("tiny", None, None, None, "find")
if by_default and n_pairs >= 240:
    assert choice.revisions == suite.default_triplet, (
        f"The rule says {choice.revisions}, the suite {suite.default_triplet}: with these weights "
        "or pairs the default is no longer what the rule says. Choose again, and train again (03)."
    )
half = in_cells.assign(task=in_cells["task"] + in_cells["congruent"].map({True: " +", False: " -"}))
half = half.groupby(["task", "revision"], as_index=False)["accuracy"].mean()
whole = curve[~curve["task"].isin(crossed) & (curve["cell"] == "all")]
in_halves = ctt.suggest_triplet(pd.concat([whole[list(half)], half]), sim)
best = choice.table[["first", "middle", "last"]].head(2).to_numpy().tolist()
picked = dict(zip(("the rule says", "the runner-up"), best, strict=False))
picked |= {"if each half counts as a task": in_halves.revisions, "default": suite.default_triplet}
pd.DataFrame(picked, index=["first", "middle", "last"]).T

# %% [markdown]
# The rule counts whole tasks, in which the two halves of a dip cancel. Count each half as a task of its own, and (on the
# embedded suite) it prefers earlier checkpoints, on the way into the dip. Both have the dip and the end in them. A choice
# like this is a suggestion: what you find later should not hang on it. The runner-up is compared in the appendix of 04.
#
# **Try it.** Move the slider: each checkpoint shows its accuracies and how similar it is to the others. The menus hold a
# triplet (the space bar opens one), and a line says what the rule makes of it. **Question.** The rule *begins* in the dip.
# Put the dip in the *middle*, and something earlier first. What does the rule say, and do you agree? (Without a running
# kernel you see the table of one checkpoint; the rule's best four are above.)

# %%
triplet = list(choice.revisions)  # the menus write your choice into this list
display(HTML(widgets.checkpoint_table_html(curve, sim, choice.revisions[1])))
widgets.checkpoint_slider(curve, sim, into=triplet)

# %%
print("your triplet:", ", ".join(triplet))  # run this cell again after choosing
picked["yours"] = triplet
folder = Path(out)
folder.mkdir(parents=True, exist_ok=True)
is_whole = curve["cell"] == "all"
ctt.files.write_table(folder / "accuracy.csv", curve[is_whole], index=False)
ctt.files.write_table(folder / "accuracy_by_cell.csv", curve[~is_whole], index=False)
ctt.files.write_table(folder / "similarity.csv", sim)
told = {"suggested": choice.revisions, "reasons": choice.reasons, "versions": files.versions()}
files.write_json(folder / "triplet.json", picked | told)

# %% [markdown]
# ## The same in large models
# Is the dip a quirk of our small model? The paper finds it in Pythia-1B, more than a thousand times as large (Bayazit et
# al.; tokens as they round them; up to 64 million tokens all curves are near 0.5):
#
# | Pythia-1B | 1B tokens | 4B tokens |
# |---|---|---|
# | plain agreement | 0.78 | 0.94 (irregular nouns 0.90) |
# | a relational noun between | 0.24 | 0.87 |
# | a relative clause between | 0.17 | 0.68 |
#
# The same order of events. And then? **BLiMP** is a collection of 67 sets of minimal pairs of English, and EleutherAI has
# published how eight sizes of Pythia do on it. **Question.** The
# largest has about 170 times the parameters of the smallest. Where will that show most: early or late, on plain sentences
# or across a distractor? And can a model get *worse* with more training?

# %%
kinds = {
    "regular_plural_subject_verb_agreement_1": "plain",
    "distractor_agreement_relational_noun": "relational noun between",
    "distractor_agreement_relative_clause": "relative clause between",
}
real = published.pythia_blimp()
real = real[real["task"].isin(kinds)]
real = real.assign(kind=real["task"].map(kinds), size=real["model"].str[7:])
real = real.assign(billions=(real["tokens_seen"] / 1e9).round().astype(int))
at = real[real["billions"].isin([6, 27, 300])]
table = at.pivot_table("accuracy", "size", ["kind", "billions"], sort=False)[list(kinds.values())]
clause = table["relative clause between"]
worse = (clause[300] < clause[27] - 0.03).sum()
table.round(2)

# %%
with plots.style():
    fig, axes = plt.subplots(1, 3, figsize=(8.6, 2.6), sharey=True)
    for ax, name in zip(axes, kinds.values(), strict=True):
        ax.set_prop_cycle(color=plt.get_cmap("viridis_r")(np.linspace(0, 1, len(table))))
        for size, line in real[real["kind"] == name].groupby("size", sort=False):
            ax.plot(line["billions"], line["accuracy"], marker=".", label=size)
        ax.axhline(0.5, color="black", ls=":", lw=0.9)
        ax.set(xscale="log", ylim=(0.4, 1), xlabel="billions of tokens (log scale)")
        plots.set_title(ax, name)
    axes[0].set_ylabel("accuracy (BLiMP)")
    plots.look.side_legend(axes[-1])
    found = (
        f"Across a relative clause, {worse} of 8 sizes end more than 0.03 lower than at 27B tokens"
    )
    fig.suptitle(found, fontsize=9.5, fontweight="bold", x=0.01, ha="left")
plots.show(
    "Line charts: published BLiMP accuracy over tokens seen, a line for each size of Pythia."
)

# %% [markdown]
# What the table shows, and no more. (Columns: billions of tokens. 1,000 pairs a task: standard errors up to 0.016.) After 6
# billion tokens, larger is better up to about 1b; beyond that, size says little. After 300 billion, the smallest has caught
# up with most of it across a clause, and with little of it on plain sentences. And many get *worse* on the way: across a
# relative clause, 1.4b falls from 0.78 to 0.66. More training does not always mean more syntax.
#
# **Three cautions before you put these curves beside ours.** They compare *whole sentences*, we two next tokens
# (`ctt.accuracy(..., whole=True)` does as they do). They begin after 6 billion tokens: by then the dip is over. They are of
# Pythia's *first* suite (v0); the models that you load today were trained anew.
#
# **Limits.** Accuracy at one position says nothing about other uses of the same knowledge. Cosines compare directions: a
# rotation that changes nothing for the layers above lowers them, and a small vector that decides everything hardly moves
# them.
#
# ## What to remember
# 1. **Below chance is knowledge.** Look at cells, and at the worst one: a mean over cells hides a rule, and a habit too.
# 2. **Things come at different times, and some in the wrong form.** Gender and polarity end with a simpler rule here.
# 3. **Choose by a rule, say it first, and name the runner-up.**
#
# **Next:** 03 · The crosscoder: one dictionary for three checkpoints. · To read more: Linzen et al., *Assessing the Ability
# of LSTMs to Learn Syntax-Sensitive Dependencies* (2016); Warstadt et al., *BLiMP* (2020).

# %% [markdown]
# ## Check yourself
#
# 1. A model is right in 50 % of all pairs. Name two models that are very different and both do this.
#
# <details><summary>Answer</summary>
#
# One that guesses in every cell; and one that always agrees with the neighbour: right in both congruent cells, wrong in the
# two others.
#
# </details>
#
# 2. Why does onset ask for the *worst* cell, and for *from which on*?
#
# <details><summary>Answer</summary>
#
# A habit such as always saying *herself* is right in half of the cells, and a curve may be good by chance once and fall
# again.
#
# </details>
#
# 3. Two checkpoints have a similarity of 0.4, and their unrelated tokens 0.38. What have you learned?
#
# <details><summary>Answer</summary>
#
# Next to nothing: tokens that have nothing to do with each other are nearly as alike. All share one direction.
#
# </details>
#
# 4. A similarity near 0 between two checkpoints: have they different knowledge?
#
# <details><summary>Answer</summary>
#
# Not necessarily. A rotation that the layers above undo gives the same number.
#
# </details>
