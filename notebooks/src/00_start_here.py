# %% [markdown]
# # 00 · Start here
#
# A language model is not built; it grows. Step by step it goes from noise to grammar. *What* grows
# inside it, and *when*? This course lets you watch. You take a few **checkpoints** of one training run, learn a
# dictionary of **features** that they share, and measure what each feature does, at each checkpoint.
#
# It follows *Crosscoding Through Time* (Bayazit, Mueller, Bosselut; arXiv 2509.05291). By default it runs on a small
# model that this project pretrained itself. You need no GPU, no account, and no download.
#
# **In this notebook**
# - the map of the course;
# - the whole method once, in a minute;
# - a glossary to come back to.
#
# **Time:** 10 minutes to read, less than a minute to run.

# %% [markdown]
# ## The map
# Data flow in one direction only:
#
# > **checkpoints → activations → crosscoder → effects → RelIE**
#
# | notebook | question | minutes |
# |---|---|---|
# | **01 Hooking checkpoints** | How do I read and replace what flows through a model? | 10 |
# | **02 Picking a triplet** | Which three checkpoints are worth comparing, and why do curves dip? | 15 |
# | **03 The crosscoder** | How do I learn one dictionary for three models? Is it any good? | 20 |
# | **04 RelIE and RelDec** | Which features matter for a task, and when? | 25 |
# | **05 Does it hold?** | What happens if I switch them off? | 15 |
# | **06 Testing causes** | How far can these numbers be trusted? | 40 |
# | **08 Scaling up** | What of many checkpoints, other models, other languages? | 30 |
#
# Each notebook runs on its own. In each, the cell called *parameters* holds everything you may want to change.

# %% tags=["parameters"]
profile: str = "tiny"  # "tiny", "colab" or "paper": it sets what is None below
model: str | None = None  # a suite; "tiny" is embedded
revisions: list | None = None  # those of the crosscoder; None: the default triplet
layer: int | None = None
crosscoder: str | None = None  # its folder; None: the one shipped with the suite
tasks: list | None = None  # up to four tasks; None: agreement, plain and across attractors
n_pairs: int | None = None  # pairs a task
pairs_path: str | None = None  # folder of published pairs; None: from where they are published
text_path: str | None = None  # file of text, or a name such as "pile-10k"; None: the suite's own
n_features: int = 5  # features to show
seed: int = 0
device: str = "auto"
out: str | None = None  # where the table of effects goes; None: runs/00 of the project

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML, display

import ctt_helpers as ctt
from ctt_helpers.notebook import plots, widgets

ctt.use_profile(globals(), "00", n_pairs=lambda n: None if n >= 10 else "take at least 10 pairs")
suite = ctt.load_suite(model)
if suite.name == "tiny":
    torch.set_num_threads(1)  # a second thread slows small models down
ours = ["agreement/simple", "agreement/pp", "agreement/subj_rel"]  # plain agreement first
wanted = tasks or [t for t in ours if t in suite.task_names] or suite.task_names[:3]
short = ctt.pairs.short_names(wanted)
pairs = {short[t]: suite.pairs(t, split="find", n=n_pairs, path=pairs_path) for t in wanted}
plain, hard = next(iter(pairs)), list(pairs)[1]
print(f"{len(suite.revisions)} checkpoints of {suite.name!r}; tasks: {', '.join(pairs)}")

# %% [markdown]
# ## The whole method, once
# **1. Checkpoints and a task.** We ask the model to finish a sentence. Right is *laughs*, wrong is *laugh*.
#
# | task | sentence |
# |---|---|
# | *simple* | The author **laughs** |
# | *pp* (prepositional phrase) | The author near the guards **laughs** |
# | *subj_rel* (subject relative) | The author that likes the guards **laughs** |
#
# Accuracy is the share of sentences in which the right word gets the higher score. Over training:

# %%
looked_at = (
    suite.revisions if suite.is_local else revisions or suite.default_triplet
)  # the hub's are many and large
curve = ctt.accuracy_curve(suite, pairs, looked_at, device=device)
curve.pivot(index="task", columns="revision", values="accuracy").loc[list(pairs), looked_at].round(
    2
)

# %% [markdown]
# **Question.** Guessing would give 0.5. Find the checkpoint where the model is good on the first row and far *below* 0.5
# on the others. What might it be doing?

# %% [markdown]
# It is wrong on purpose: it agrees with the noun *next* to the verb. Notebook 02 tests this.
#
# **2. Activations and a crosscoder.** We take three checkpoints: as the dip begins, at its bottom, and at the end. A crosscoder that has learned to
# write their activations with one shared dictionary is shipped with the suite. (You train your own in notebook 03.)

# %%
ckpts = suite.checkpoints(revisions or suite.default_triplet, layer=layer, device=device)
dictionary = ctt.Crosscoder.load(crosscoder or suite.crosscoder_folder).to(ckpts[0].device)
ctt.evaluation.check_match(dictionary, ckpts)  # an error here: it was trained on other checkpoints
print(", ".join(ckpts.labels), "|", dictionary)

# %% [markdown]
# **3. Effects.** We switch a feature off and compare the score (**logit**) of the wrong word with that of the right word.
# If the wrong word gains when the feature is gone, the feature helped. How much it gains is the feature's **indirect
# effect** (IE). Above zero, the feature helps at that checkpoint; below zero, it hurts.
#
# **4. RelIE.** Each feature's effect is shared out among the checkpoints.

# %%
effects = {
    name: ctt.indirect_effects(dictionary, ckpts, p, "ablation")
    for name, p in pairs.items()
    if name in (plain, hard)
}
ie = effects[hard].mean
ratios = ctt.rel_ie(ie, inactive_below=1e-3)
middle = len(ckpts) // 2
hurts, helps = np.argsort(ie[middle])[:2].tolist(), np.argsort(-ie.max(0)).tolist()
features = hurts + [i for i in helps if i not in hurts][: n_features - 2]
shown = [f"#{i}" for i in features]
table = pd.DataFrame(
    {f"IE at {n}": ie[c, features] for c, n in enumerate(ckpts.labels)}, index=shown
)
for c, n in enumerate(ckpts.labels):
    table[f"RelIE {n}"] = ratios[c, features]
Path(out).mkdir(parents=True, exist_ok=True)
table.to_csv(Path(out) / "effects.csv", index_label="feature")
table.round(2)

# %% [markdown]
# A number is no name. On which words is each feature active in these sentences: on the subject or on the noun in
# between, in the singular or in the plural? Read along the rows, and name each feature yourself.

# %%
x = ctt.activations.stacked_activations(ckpts, pairs[hard].input_ids, pairs[hard].attention_mask)
f = dictionary.encode(x).detach().cpu().numpy()
active_on = {}
for k, row in pairs[hard].table.iterrows():
    for role, position in row.get("roles", {}).items():
        number = row["head_number" if role == "subject" else "attractor_number"]
        active_on.setdefault(f"{number} {role}", []).append(f[k, position][features])
on_words = pd.DataFrame(
    {word: np.mean(values, 0) for word, values in active_on.items()}, index=shown
)
on_words.round(2)

# %% [markdown]
# A feature that is active on both nouns of one number knows *a noun is plural*. One that is active on plural nouns in the
# middle only, after a singular subject, knows more: *the subject, further back, was singular*. And one that is active on
# nouns in the middle of either number? It seems to know that *a noun stands between*, whatever its number.

# %% tags=["figure-signature"]
low = curve[(curve["task"] == hard) & (curve["revision"] == ckpts.labels[middle])][
    "accuracy"
].item()
title = {t["name"].split("/")[-1]: t["title"] for t in suite.meta.get("tasks", [])}
left = f"Agreement {title.get(hard, hard)} dips to {low:.2f} while {title.get(plain, plain)} rises"
hurt, (then, late) = (
    (ie[middle, features] < -0.05).sum(),
    [(ie[c, features] > 0.05).sum() for c in (middle, -1)],
)
at_middle = f"{hurt} hurt and {then} {'helps' if then == 1 else 'help'} at {ckpts.labels[middle]}"
help_ = "helps" if late == 1 else "help"
right = f"Of {len(features)} features {at_middle}; {late} {help_} at {ckpts.labels[-1]}"
strong = on_words.gt(on_words.max(axis=1) / 2, axis=0)  # the words on which a feature is active
labels = [f"{i}\n" + ", ".join(strong.columns[strong.loc[i]]).replace(" ", "\n") for i in shown]
with plots.style():
    fig, (when, what) = plt.subplots(1, 2, figsize=(9.6, 3.8))
    plots.accuracy_curves(curve, highlight=ckpts.labels, ax=when, title=left)
    bars = pd.DataFrame(ie[:, features].T, columns=ckpts.labels)
    bars.plot.bar(ax=what, width=0.8, color=plots.checkpoint_colors(ckpts.labels))
    what.axhline(0, color="black", lw=0.8)
    what.set_xticks(range(len(features)), labels, rotation=0)
    what.set(ylabel="indirect effect (logits): > 0 helps, < 0 hurts")
    plots.set_title(what, right)

# %% [markdown]
# On the left, the behaviour. On the right, five features of the dictionary, and what each does for the hard task at the
# three checkpoints. The curve told us *when* something changed. The features tell us *what*.
#
# **5. Read them.** Where is each active? Darker is stronger.

# %%
text = suite.text(25_000, split="validation", seed=seed, path=text_path)
examples = ctt.top_examples(dictionary, ckpts, text, features, k=4)
norms = dictionary.decoder_norms().detach().cpu().numpy()
for i in features[:3]:
    display(HTML(widgets.feature_card_html(i, ie, ratios, norms, ckpts.labels, examples[i])))

# %% [markdown]
# Is it chance? Two quick controls. First: the same features on the *plain* task. Then: as many random features that are
# active on these sentences.

# %%
rng = np.random.default_rng(seed)
active = np.flatnonzero(ie.any(0))
others = rng.choice(np.setdiff1d(active, features), len(features), replace=False)
pd.DataFrame(
    {
        f"these features, {hard}": np.abs(ie[:, features]).mean(1),
        f"these features, {plain}": np.abs(effects[plain].mean[:, features]).mean(1),
        f"random features, {hard}": np.abs(ie[:, others]).mean(1),
    },
    index=pd.Index(ckpts.labels, name="mean |IE| (logits)"),
).round(3)

# %% [markdown]
# The features were picked *because* their effects were large on these very sentences, so beating random ones is no proof.
# Notebooks 04 and 05 measure on sentences that were not used for picking.

# %% [markdown]
# ## Limits
# - This is a small model of a small language. It shows the method and the kind of story, not the facts about large models.
# - The features are those of one crosscoder. Train another (notebook 03) and some come back, some do not.

# %% [markdown]
# ## Glossary
#
# | word | meaning |
# |---|---|
# | **ablation** | setting a feature to zero and running the rest of the model |
# | **accuracy** | share of minimal pairs whose right word has the higher logit; guessing gives 0.5 |
# | **attractor** | a noun of the other number that could mislead the verb, mostly between subject and verb |
# | **attribution patching (AtP)** | first-order estimate of all effects from one gradient |
# | **BatchTopK** | keep the k strongest features a token, on average over a batch |
# | **bootstrap** | drawing the sentences anew, with replacement, to see how much a number depends on them |
# | **checkpoint, revision** | a saved state of a model during training, and its name |
# | **code norm** | $u_i$, the sum of a feature's decoder norms; $f_i u_i$ is how much it writes |
# | **competence-corrected RelIE** | RelIE of effects divided by all that their checkpoint does for the task |
# | **completeness** | IG's effects and error term add up to what happens when everything is taken away |
# | **crosscoder** | a sparse dictionary shared by several models, with a decoder for each |
# | **cross-entropy (CE)** | mean surprise at the next token, in nats |
# | **CE recovered** | how much of the model's skill is left when it goes on from the rebuilt stream |
# | **dead feature** | one that is never active on held-out text |
# | **decoder norm** | length of a feature's decoder vector at one checkpoint: how strongly it is written there |
# | **explained variance** | 1 minus squared error over squared deviation from the mean |
# | **feature, latent** | one entry of the dictionary |
# | **find, test** | the two halves of the sentences: features are found on one and tested on the other |
# | **hook** | a function that runs when a part of the model has run |
# | **indirect effect (IE)** | change of the task's metric when a feature is taken away; positive: it helps |
# | **integrated gradients (IG)** | the gradient averaged along a path on which all features fade out together |
# | **inactive feature** | one with next to no effect on a task; it has no RelIE |
# | **interval** | the range that holds 95 % of the bootstrap draws |
# | **L0** | number of active features a token |
# | **latent scaling** | asking the activations how much of a feature is left at a checkpoint where it is hardly written |
# | **logit** | score of a possible next token, before softmax |
# | **m** | the task's metric, logit of the wrong word minus logit of the right one |
# | **minimal pair** | a prefix with a right and a wrong next word that differ in one point |
# | **onset** | first checkpoint with an accuracy of at least 0.75 |
# | **planted features** | made-up activations whose features and effects are known, to test a method on |
# | **pretraining** | learning to predict the next token of much text |
# | **RelDec** | a checkpoint's share of a feature's decoder norm |
# | **RelIE** | a checkpoint's share of a feature's absolute effect |
# | **residual stream** | the vector per token that runs through the model and to which every block adds |
# | **scale** | factor that brings a checkpoint's mean norm to the square root of d_model |
# | **specific, shared** | a feature with most of its effect at one checkpoint, or with enough of it at several |
# | **splice** | put another residual stream in place of the model's own |
# | **suite** | the checkpoints of one training run, with tokenizer and tasks |
# | **threshold** | size below which a BatchTopK feature is set to 0 after training |
# | **token** | a piece of text, here a word |
# | **triplet** | three checkpoints of one run |
# | **undecided** | a feature whose class the sentences do not settle |
#
# ## Next
# **01 · Hooking checkpoints.** Or jump to the one whose question you like best.
