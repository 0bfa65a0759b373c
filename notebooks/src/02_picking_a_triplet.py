# %% [markdown]
# # 02 · Picking a triplet
#
# A training run leaves many checkpoints. To compare all of them at once is costly and hard to read. So we pick three:
# early, in the middle of a change, and late. But which?
#
# **You will learn**
# - to draw accuracy over training, and to read a curve that goes *below* chance;
# - to find out what a model does while it is wrong;
# - to compare checkpoints from the inside, by the similarity of their activations, and what that number hides;
# - to choose three checkpoints for reasons that you can say aloud.
#
# **Time:** 15 minutes to read, half a minute to run. **You need:** notebook 01.

# %% tags=["parameters"]
profile: str = "tiny"  # "tiny", "colab" or "paper": it sets what is None below
model: str | None = None  # a suite
tasks: list | None = None  # names of tasks; None: all that the suite has
revisions: list | None = None  # checkpoints to look at; None: all
layer: int | None = None  # for the similarity
split: str = "find"  # "find" to choose on; "test" stays untouched until notebook 04
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
from ctt_helpers.notebook import plots

ctt.use_profile(globals(), "02", n_pairs=lambda n: None if n >= 2 else "take at least 2 pairs")
suite = ctt.load_suite(model)
if suite.name == "tiny":
    torch.set_num_threads(1)  # a second thread slows small models down
short = ctt.pairs.short_names(tasks or suite.task_names)
pairs = {short[t]: suite.pairs(t, split=split, n=n_pairs, path=pairs_path) for t in short}
print(f"{suite.name}: {len(revisions or suite.revisions)} checkpoints, {len(pairs)} tasks")

# %% tags=["estimate"]
if suite.name != "tiny":  # what it takes on this machine, before anything large is downloaded
    ckpts = suite.checkpoints(revisions, layer=layer, device=device)
    print(ctt.estimate(ckpts, pairs={"accuracy": (len(pairs) + 1) * n_pairs, "reading": 200}))

# %% [markdown]
# ## The tasks
# Each task is a set of minimal pairs that differ in one construction. In all of them the model must keep track of a
# number: singular or plural. What differs is what stands between the word that sets it and the word that shows it.

# %%
for name, p in pairs.items():
    for reason, count in p.left_out.items():
        print(f"{name}: {count:,} of the task's pairs are left out: {reason}")
pd.DataFrame({name: {"example": p.text[0], "pairs": len(p)} for name, p in pairs.items()}).T

# %% [markdown]
# ## Accuracy over training
# **Accuracy** is the share of pairs where the right word gets the higher logit. Guessing gives 0.5. The sentences are
# held out: their noun and verb (and noun and noun) never met in one training sentence.
#
# **Question.** A model that has learned nothing is at 0.5. It ends near 1. So the curve goes up. Does it go up all the
# way?

# %%
curve = ctt.accuracy_curve(suite, pairs, revisions, device=device)
wide = curve.pivot(index="task", columns="revision", values="accuracy").loc[
    list(pairs), list(curve["revision"].unique())
]
wide.round(2)

# %%
simple = next(iter(pairs))
some = [t for t in (simple, "pp", "obj_rel", "sent_comp", "center_embed") if t in pairs]
shown = some if len(some) > 2 else list(pairs)
learned = [name for name in wide.index if wide.loc[name].iloc[-1] >= 0.75] or list(
    wide.index
)  # or all, if none is
lowest = curve.loc[curve[curve["task"].isin(({*learned} & {*shown}) or shown)]["accuracy"].idxmin()]
there = wide.loc[simple, lowest["revision"]]
with plots.style():
    ax = plots.accuracy_curves(
        curve,
        tasks=shown,
        title=f"{lowest['task']} is at {lowest['accuracy']:.2f} at {lowest['revision']}, "
        f"where {simple} is at {there:.2f}",
    )

# %% [markdown]
# ## What is a model doing below chance?
# A model that guesses is right half of the time. One that is right a quarter of the time is *not* guessing: it knows
# something, and uses it for the wrong purpose.
#
# In some tasks an **attractor** stands between the subject and its verb: a noun of the *other* number, as in *the author
# near the guards laughs*. If a model agrees with the **nearest noun**, it is right on simple sentences and wrong on these.
#
# We can test that. Here is the share of verbs that agree with the noun in between. In these pairs it is one minus
# accuracy.


# %%
def attractor_between(p):
    """Whether every pair has an attractor, and it comes after the subject."""
    roles = p.table["roles"] if "roles" in p.table else []
    return len(roles) > 0 and all(r.get("attractor", -1) > r.get("subject", 99) for r in roles)


with_attractor = [name for name, p in pairs.items() if attractor_between(p)]
nearest = curve[curve["task"].isin(with_attractor)].assign(nearest=lambda t: 1 - t["accuracy"])
if with_attractor:
    display(
        nearest.pivot(index="task", columns="revision", values="nearest")
        .loc[:, list(wide.columns)]
        .round(2)
    )
else:
    print(
        "Left out here: these tasks do not say where their nouns are. (Those of the embedded suite "
        "do.)"
    )

# %% [markdown]
# Where is the gap between plain agreement and the worst task widest? (We leave out tasks that this model never learns.)

# %%
low = wide.loc[learned].min()
dip = (wide.loc[simple] - low).idxmax()
pd.Series(
    {
        "widest gap at": dip,
        f"{simple} there": wide.loc[simple, dip],
        "its accuracy": low[dip],
        "lowest task there": wide.loc[learned, dip].idxmin(),
    }
).to_frame("")

# %% [markdown]
# ### Is it the attractor? Two controls
# If the nearest noun decides, the dip must hit singular subjects with plural attractors *and* the reverse. If only one half
# dips, the model may just like one verb form.
#
# And there is a task in which the other noun comes *before* the subject: *the singers believe that the cow hesitates*
# (`sent_comp`). There the nearest noun is the right one. If our idea is true, that task does not dip.

# %%
rows = []
model_at_dip = suite.checkpoints([dip], device=device)[0]
for name in [simple, *(t for t in with_attractor if t in learned), *({"sent_comp"} & set(pairs))]:
    right = ctt.logit_differences(model_at_dip, pairs[name]).numpy() > 0
    if "head_number" in pairs[name].table:
        number = pairs[name].table["head_number"].to_numpy()
        rows.append(
            {
                "task": name,
                **{f"{n} subject": right[number == n].mean() for n in sorted(set(number))},
            }
        )
pd.DataFrame(rows).set_index("task").round(
    2
) if rows else "Left out here: no task says the number of its subjects."

# %% [markdown]
# **What we saw.** Where the attractor is the last word before the verb (`pp`, `nested_pp`, `subj_rel`), the rise and the dip
# are one event: one rule, *agree with the nearest noun*, is right on simple sentences and wrong on these. Both halves
# dip. `sent_comp` does not. Where *another verb* comes last (the object relatives), there is no clear dip
# here: plural subjects do better and singular ones worse. (`obj_rel_pp` dips later: look at step 1000.) There our rule
# does not explain enough.
#
# ## When does each task come?
# The **onset** is the first checkpoint with an accuracy of at least 0.75. A task that never gets there is just as
# interesting: it shows what this model, with this much text, does not learn. If it ends *below* chance, something was
# learned there, and it is the wrong thing. Which noun might it follow? Look at the table of the nearest noun again.

# %%
onset = {
    name: next((r for r in wide.columns if wide.loc[name, r] >= 0.75), "never")
    for name in wide.index
}
pd.Series(onset, name="onset").to_frame().T

# %% [markdown]
# ## Looking inside: similarity of activations
# Accuracy tells *when* behaviour changes. To see when the *inside* changes, we run two checkpoints on the same
# sentences and take the cosine of their residual streams, token by token. The mean is their **similarity**: 1 for the
# same directions, 0 for unrelated ones.

# %%
sim = ctt.similarity_matrix(
    suite, pairs[simple][:100], layer=layer, revisions=revisions, device=device
)
steps = {a: 1 - sim.loc[a, b] for a, b in zip(sim.index[:-1], sim.index[1:], strict=True)}
biggest = max(steps, key=steps.get)
with plots.style():
    fig, ax = plt.subplots(figsize=(5, 4))
    above = np.triu(
        np.ones(sim.shape, dtype=bool), k=1
    )  # it says nothing that is not below the diagonal
    sns.heatmap(
        sim,
        mask=above,
        ax=ax,
        cmap="mako_r",
        vmax=1,
        square=True,
        cbar_kws={"label": "cosine similarity"},
    )
    ax.set(xlabel="checkpoint", ylabel="checkpoint")
    plots.set_title(ax, f"Activations turn most right after {biggest}")

# %% [markdown]
# A pale square means that the two checkpoints have little in common inside. Activations change long before a single
# answer does.
#
# ### How much of it is mere habit? A control
# Two streams could look alike because every token of a model shares a large common direction. So we shuffle: the cosine
# between *different* tokens of the same checkpoint. Where it is high, the similarity above says less than it seems to.

# %%
rng, rows = np.random.default_rng(seed), {}
for checkpoint in suite.checkpoints(revisions, layer=layer, device=device).one_by_one():
    sample = pairs[simple][:100]
    x = ctt.residual_stream(checkpoint, sample.input_ids, sample.attention_mask)[:, 1:]
    x = x[sample.attention_mask[:, 1:].bool().to(x.device)].cpu().numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    rows[checkpoint.label] = float((x * x[rng.permutation(len(x))]).sum(1).mean())
pd.Series(rows, name="cosine of unrelated tokens").to_frame().T.round(2)

# %% [markdown]
# ## Choosing
# `ctt.suggest_triplet` follows a rule that you can say in two sentences. The last checkpoint is always one. For the
# other two, it takes those for which the *smaller* of the two changes (first to middle, middle to last) is largest,
# counting both accuracy and activations. And the first must already do something, right or wrong, or there would be
# nothing to explain.

# %%
choice = ctt.suggest_triplet(curve, sim)
for reason in choice.reasons:
    print("-", reason)
choice.table.head(6).round(2)

# %% [markdown]
# (Look at the control before you trust the picture: where unrelated tokens have a high cosine, early in training, most of
# the similarity is one shared direction that comes and goes.)
#
# It is a suggestion, not a law. Look at the runners-up: their scores are often close. The suite's own default triplet
# was chosen by eye, with the story of the dip in mind.

# %%
picked = {"suggested": choice.revisions, "default of the suite": suite.default_triplet}
told = (
    "The default triplet: as the dip begins, at its bottom, at the end"
    if model == "tiny"
    else "The default triplet"
)
looked_at = set(suite.default_triplet) <= set(wide.columns)
with plots.style():
    ax = plots.accuracy_curves(
        curve,
        tasks=[simple, *with_attractor[:3], *({"sent_comp"} & set(pairs))]
        if with_attractor
        else list(pairs)[:5],
        highlight=suite.default_triplet if looked_at else choice.revisions,
        title=told
        if looked_at
        else "The suggested triplet (the default one is not among these revisions)",
    )
pd.DataFrame(picked)

# %% [markdown]
# ### Try it
# Move the slider: each checkpoint shows its accuracies and how similar it is to the others. Where would *you* put the
# middle one? (Without a running kernel you see the table of one checkpoint.)

# %%
from ctt_helpers.notebook import widgets

display(HTML(widgets.checkpoint_table_html(curve, sim, dip)))
widgets.checkpoint_slider(curve, sim)

# %%
folder = Path(out)
folder.mkdir(parents=True, exist_ok=True)
curve.to_csv(folder / "accuracy.csv", index=False)
sim.to_csv(folder / "similarity.csv")
about = {**picked, "reasons": choice.reasons, "versions": files.versions()}
files.write_json(folder / "triplet.json", about)
print(f"written: {folder}/accuracy.csv, similarity.csv, triplet.json")

# %% [markdown]
# ## The same in large models
# Is the dip a quirk of our small model? The paper finds it in Pythia-1B, a model about 3,000 times as large. These are
# its figures (Bayazit et al., the BLiMP curves of their triplet section; tokens as they round them). Up to 64 million
# tokens all curves are flat, near 0.5.

# %%
paper = {
    "plain agreement": {"1B tokens": 0.78, "4B tokens": "0.94 (irregular nouns 0.90)"},
    "a relational noun between": {"1B tokens": 0.24, "4B tokens": 0.87},
    "a relative clause between": {"1B tokens": 0.17, "4B tokens": 0.68},
}
pd.DataFrame(paper).T.rename_axis("Pythia-1B")

# %% [markdown]
# The same order of events: plain agreement rises, the tasks with a distractor fall far below chance *at the same
# time*, and rise later. Our small model does it with a few hundred thousand tokens.
#
# And then? EleutherAI has published BLiMP accuracies of eight sizes of Pythia, and they come with this project.
#
# **Question.** The largest of them has about 170 times the parameters of the smallest. On which of the four tasks will
# that show most at the end of training?

# %%
from ctt_helpers.sources import published

kinds = {
    "regular_plural_subject_verb_agreement_1": "regular nouns",
    "irregular_plural_subject_verb_agreement_1": "irregular nouns",
    "distractor_agreement_relational_noun": "relational noun between",
    "distractor_agreement_relative_clause": "relative clause between",
}
real = published.pythia_blimp()
real = real[real["task"].isin(kinds)].assign(
    kind=lambda t: t["task"].map(kinds), size=lambda t: t["model"].str[7:]
)

# %%
with plots.style():
    fig, axes = plt.subplots(1, 4, figsize=(9.5, 2.8), sharey=True)
    for ax, kind in zip(axes, kinds.values(), strict=True):
        part = real[real["kind"] == kind]
        sns.lineplot(
            part, x="tokens_seen", y="accuracy", hue="size", palette="viridis_r", marker="o", ax=ax
        )
        ax.axhline(0.5, color="black", ls=":")
        ax.set(xscale="log", ylim=(0.4, 1), title=kind, xlabel="tokens seen (log scale)")
        ax.set_xticks([1e10, 1e11], ["10B", "100B"])
        ax.get_legend().remove()
    axes[-1].legend(title="parameters", loc="center left", bbox_to_anchor=(1, 0.5))
    fig.suptitle(
        "Size decides how soon, and much less how far (1,000 pairs a task; dotted: chance)"
    )

# %%
ends = real.groupby(["size", "kind"], sort=False)["accuracy"].agg(["first", "last"])
ends = ends.rename(columns={"first": "at 6.3B tokens", "last": "at 300B tokens"}).unstack("kind")
ends.swaplevel(axis=1)[list(kinds.values())].round(2)

# %% [markdown]
# After 6.3 billion tokens size shows: the smallest model is the worst on all four tasks, and with a relative clause
# between it is still at chance. After 300 billion it has caught up with most of that where a noun or a clause stands
# between, and with less of it on the plain sentences. With a relative clause, the model
# with 12 billion parameters ends at 0.73 and the one with 160 million at 0.75 (standard error 0.014 each): a large
# model learns to skip a distractor *sooner*, but here not better and better with size.
#
# **Three cautions before you put these curves beside ours.**
# - They score the *whole sentence*: which of the two is more probable? We compare two next tokens. (To score as they do:
#   `ctt.make_pairs(..., continuation="whole")` and `ctt.accuracy(..., whole=True)`.)
# - They begin after 6.3 billion tokens. By then the dip is over: you cannot see it here.
# - They are of Pythia's *first* suite (v0). The models that you load today were trained anew. Three of its sizes took
#   four million tokens a step, the others two: so we draw tokens, not steps.
#
# ## Limits
# - Accuracy at one position says nothing about other uses of the same knowledge.
# - Cosines compare directions. A rotation that changes nothing for the layers above lowers them; a small vector that
#   decides everything hardly moves them.
# - A curve over 300 pairs has a standard error of up to 0.03. Do not read smaller wiggles.
#
# ## Next
# **03 · The crosscoder**: one dictionary for three checkpoints. · To read more: Linzen et al., *Assessing the Ability of
# LSTMs to Learn Syntax-Sensitive Dependencies* (2016); Warstadt et al., *BLiMP* (2020).
