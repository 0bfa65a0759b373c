# %% [markdown]
# # 00 · Start here
#
# A language model is not built; it grows. Step by step it goes from noise to grammar. *What* grows inside it, and *when*?
# This course lets you watch. You take a few **checkpoints** (saved states) of one training run, learn a dictionary of
# **features** that they share, and measure what each feature does at each checkpoint.
#
# It follows *Crosscoding Through Time* (Bayazit, Mueller, Bosselut; arXiv 2509.05291). By default it runs on a small model
# that this project pretrained itself. You need no GPU, no account, and no download.
#
# In this notebook you meet the story of the whole course: a model that is wrong by rule, and what changes inside it until
# it is right. **Time:** 20 minutes to read, a minute to run.
#
# | notebook | question | minutes to read |
# |---|---|---|
# | **01 Hooking checkpoints** | How do I read and replace what flows through a model? | 15 |
# | **02 Picking a triplet** | Which three checkpoints are worth comparing, and why do curves dip? | 24 |
# | **03 The crosscoder** | How do I learn one dictionary for three models? Is it any good? | 30 |
# | **04 RelIE and RelDec** | Which features matter for a task, and when? | 45 |
# | **05 Does it hold?** | What happens if I switch them off? | 40 |
# | **06 Testing causes** | How far can these numbers be trusted? | 45 |
# | **07 Reading features** | What is a feature about, and how good is its name? | 40 |
# | **08 Scaling up** | What of many checkpoints, other models, other languages? | 45 |
#
# Each notebook runs on its own. In each, the cell called *parameters* holds everything you may want to change. Do you want
# to *do* something, and be told whether it is right? The same notebooks lie in the folder `exercises`, in parts of at most
# 45 minutes. (09 is an appendix, for those who want to know more.)

# %% tags=["parameters"]
profile: str = "tiny"  # "tiny", "colab" or "paper": it sets what is None below
model: str | None = None  # a suite; "tiny" is embedded
revisions: list | None = None  # those of the crosscoder; None: the default triplet
layer: int | None = None
crosscoder: str | None = None  # its folder; None: the one shipped with the suite
tasks: list | None = None  # a plain one and a hard one; None: agreement, without and with neighbour
n_pairs: int | None = None  # pairs a task
pairs_path: str | None = None  # folder of published pairs; None: from where they are published
text_path: str | None = None  # file of text, or a name such as "pile-10k"; None: the suite's own
n_features: int = 3  # features to look at
seed: int = 0  # for the sample of text and the random directions
device: str = "auto"
out: str | None = None  # where the table of effects goes; None: runs/00 of the project

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML, display

import ctt_helpers as ctt
from ctt_helpers.notebook import checks, plots, widgets
from ctt_helpers.notebook.parameters import top_folder

suite = ctt.setup(globals(), "00", n_pairs=lambda n: None if n >= 16 else "take at least 16 pairs")

# %% [markdown]
# ## A model that is wrong by rule
# We give a model the beginning of a sentence and two words that could follow. One is right, one is wrong, and they differ
# in one point only: that is a **minimal pair**. The right word depends on the **subject**. The noun right before the verb
# is its **neighbour**, also called the **attractor**, for it may attract the verb. Each of the two is singular (**sg**) or
# plural (**pl**). That makes four **cells**, with the subject named first:

# %%
ours = [t for t in ("agreement/simple", "agreement/pp") if t in suite.task_names]
wanted = tasks or ours or suite.task_names[:2]
short = ctt.pairs.short_names(wanted)
pairs = {short[t]: suite.pairs(t, split="find", n=n_pairs, path=pairs_path) for t in wanted}
plain, hard = short[wanted[0]], short[wanted[-1]]
crossed = {"subject", "attractor"} <= set(pairs[hard].levels)
if not crossed:
    print(f"{hard} does not say in which cell a pair is. What is shown by cell is left out.")
cells = pd.Series(pairs[hard].text, index=pd.Index(pairs[hard].cells, name="cell"))
cells.groupby(level=0, sort=False).first().to_frame("a pair of it, right/*wrong")

# %% [markdown]
# Where both have the same number, nothing misleads: the cell is **congruent**. The other two are **incongruent**.
#
# **Question.** A model is trained from nothing. At an early, a middle and the last checkpoint, how often is it right in
# each cell? Guessing gives 0.5. Write your guesses down, before you read on; they will be compared.

# %%
# three numbers from 0 to 1 in each bracket: early, middle, last
my_guess = {"sg-sg": [], "sg-pl": [], "pl-sg": [], "pl-pl": []}

# %% [markdown]
# ### Exercise · A model with one rule
# *Difficulty 1 of 5 · importance 4 of 5 · 3 minutes*
#
# Such models are often right or wrong by a rule. Play one that knows a single rule: *the verb agrees with its neighbour*. Write
# `neighbour_rule(subject, attractor)`: how often such a model is right, in the cell with these two numbers ("sg" or "pl").
#
# <details><summary>Hint 1</summary>
#
# The right verb has the subject's number. Which one does this model choose?
#
# </details>
# <details><summary>Hint 2</summary>
#
# It never guesses. So what comes is 1 or 0.
#
# </details>


# %% exercise="neighbour_rule"
def neighbour_rule(subject, attractor):
    """The share right in a cell, of a model whose verb agrees with the neighbour."""
    ### BEGIN SOLUTION give back the share that is right in this cell
    return float(subject == attractor)
    ### END SOLUTION


# %% check="neighbour_rule"
checks.neighbour_rule(neighbour_rule)

# %%
triplet = revisions or suite.default_triplet
looked_at = suite.revisions if suite.is_local else triplet  # the hub's are many and large
curve = ctt.accuracy_curve(suite, pairs, looked_at, device=device, cells=True)
truth = curve[curve["task"] == hard].pivot(index="cell", columns="revision", values="accuracy")
truth = truth.loc[[*cells.index.unique(), "all"] if crossed else ["all"], triplet]
for cell, guess in my_guess.items():
    if len(guess) == len(triplet) and cell in truth.index:
        print(f"{cell}: off by {np.abs(truth.loc[cell] - guess).mean():.2f} on average")
truth.round(2)

# %%
if crossed:
    first = curve[curve["congruent"].notna() & (curve["revision"] == triplet[0])]
    same, other = (first[first["congruent"] == c]["accuracy"].mean() for c in (True, False))
    found = f"{triplet[0]}: {same:.2f} right in congruent cells, {other:.2f} in the others"
    plots.cell_curves(curve, hard, plain=plain, highlight=triplet, title=found)
else:
    plots.accuracy_curves(curve, highlight=triplet, title=f"{plain} and {hard} over training")
plots.show("Accuracy over tokens seen, a line for each cell (green: congruent) and the plain task.")

# %% [markdown]
# Look at the row *all* of the table. On the embedded suite it begins at one half: without the cells you would say that the
# model guesses. It does not. Which simple rule is right in both congruent cells, and wrong in the two others? *The verb
# agrees with its neighbour.* And which is right in all four? *The verb agrees with its subject.*
#
# ## From neighbour to subject
# We can weigh the two rules. The model gives every possible next word a score, its **logit**. Take the logit of the plural
# verb minus that of the singular verb. In the four cells it can change with the subject ($s$: −1 for sg, +1 for pl), with
# the neighbour ($t$, likewise), or with both together:
#
# $$v(s,t) = \text{mean} + \text{subject} \cdot s + \text{attractor} \cdot t + \text{both} \cdot s\,t$$
#
# A model that follows the subject has *subject* alone, one that follows the neighbour *attractor* alone.

# %% [markdown]
# ### Exercise · Weigh two rules
# *Difficulty 3 of 5 · importance 4 of 5 · 8 minutes*
#
# Write `rule_weights(v)`. `v` is a numpy array `[2, 2]`: the mean of that difference in each cell, the subject's number down (sg, pl), the
# neighbour's across. Give back *subject*, *attractor* and *both*. Four numbers, four unknowns, and no system to solve.
#
# <details><summary>Hint 1</summary>
#
# Let only the subject change. How far apart are the two rows, on average? And $s$ goes from −1 to +1: that is two steps.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Each number is the mean over the four cells of $v$ times a sign: $s$ for the subject, $t$ for the attractor, $s\,t$ for both.
#
# </details>


# %% exercise="rule_weights"
def rule_weights(v):
    """(subject, attractor, both) of the means in four cells, [2, 2]."""
    ### BEGIN SOLUTION give back three numbers: subject, attractor and both
    s, t = np.array([[-1], [1]]), np.array([[-1, 1]])
    return (v * s).mean(), (v * t).mean(), (v * s * t).mean()
    ### END SOLUTION


# %% check="rule_weights"
checks.rule_weights(rule_weights)

# %%
if crossed:
    models = suite.checkpoints(looked_at, device=device).one_by_one()
    differences = [ctt.logit_differences(checkpoint, pairs[hard]) for checkpoint in models]
    weights = ctt.behaviour_factorial(differences, pairs[hard], names=looked_at)
    # the checkpoint after the last one at which the neighbour weighs more
    start = np.flatnonzero(weights["subject"] <= weights["attractor"]).max(initial=-1) + 1
    they_cross = f": they cross before {looked_at[start]}" if 0 < start < len(weights) else ""
    tokens = [suite.tokens_seen(revision) for revision in looked_at]
    found = f"From neighbour to subject{they_cross}"
    plots.factorial_curves(weights, tokens, highlight=triplet, title=found)
    plots.show("What subject, neighbour and both add to the choice of the verb, over tokens seen.")

# %% [markdown]
# This is the picture of the project, in its first form. It shows what the model *does*, and needs no dictionary. The rest
# of the course asks what happens *inside* while the lines cross.
#
# ## Inside: features
# Between two layers, the model holds a vector for each word: its **activation**. All that it has made of the sentence so
# far is in there, and a single number of it means nothing to us. A **crosscoder** writes the vector as a sum of a few
# **features** out of hundreds. All three checkpoints share one dictionary, so that feature #7 is the same in all of them.
# One is shipped with the suite; you train your own in notebook 03.
#
# What is a feature good for? We switch it off and let the model go on. How much the wrong word then gains on the right one,
# in logits, is the feature's **indirect effect** (IE). Above 0 the feature helped, below 0 it did harm.
#
# **The rule, before we look.** At each checkpoint in turn we take the feature whose effect differs most between the four
# cells. (Its *strength*: how far the cells lie from their mean. Without cells: the largest effect.) We choose on some
# sentences (the split *find*) and show the features on others (*far*: other nouns, other verbs, another structure).

# %%
ckpts = suite.checkpoints(triplet, layer=layer, device=device)
dictionary = ctt.Crosscoder.load(crosscoder or suite.crosscoder_folder).to(ckpts[0].device)
ctt.evaluation.check_match(dictionary, ckpts)  # an error here: it was trained on other checkpoints
effects = ctt.indirect_effects(dictionary, ckpts, pairs[hard], "ablation")
size = ctt.factorial_of(effects, pairs[hard]).strength if crossed else np.abs(effects.mean)
features: list[int] = []
for turn in range(n_features):
    strongest = np.argsort(-size[turn % len(ckpts)]).tolist()
    features.append(next(i for i in strongest if i not in features))
other_split = "far" if suite.name == "tiny" else "test"  # published pairs have no "far"
far = suite.pairs(wanted[-1], split=other_split, n=n_pairs, path=pairs_path)
print(f"features {features}; shown on sentences such as: {far.text[0]}")

# %% [markdown]
# Where is each of them active: on the subject, on the last word before the verb? (That one is the neighbour, or ends its
# phrase.) What it **follows** is computed. Put the feature's activation on the last word into the formula above, in place of
# the logits: which part varies most, subject, attractor or both? ("none": it is the same in all cells.)

# %%
x = ctt.activations.stacked_activations(ckpts, far.input_ids, far.attention_mask)
f = dictionary.encode(x).detach().cpu().numpy()  # [pairs, words, features]
last = pd.DataFrame(f[far.positions("answer").numpy()][:, features])
if crossed:
    cell = (far.table["subject_level"] + "-" + far.table["attractor_level"]).to_numpy()
    subject = pd.DataFrame(f[far.positions("subject").numpy()][:, features])
    on_subject = subject.groupby(far.table["subject_level"], sort=False).mean().T
    on_last = last.groupby(cell, sort=False).mean().T
    active = pd.concat({"on the subject": on_subject, "on the last word": on_last}, axis=1)
    active["", "follows"] = ctt.factorial_of(last, far, kind="activations").label[0]
else:
    active = last.mean().to_frame("on the last word")
active.index = [f"#{i}" for i in features]
active.round(1)

# %% [markdown]
# **Question.** Think of a feature that is active on plural nouns, wherever they stand. Switch it off in a model that
# follows the neighbour. In which cells does the model lose by it, and in which does it *gain*? And in one that follows the
# subject?
#
# Under each checkpoint the figure says what the effect there is about, its **label**, by the same formula: *subject*,
# *attractor*, *both* (it compares the two), *mixed* (the two add), or *none* (no more than random directions do). The
# formula is about plural minus singular, and the bars about right minus wrong. So a feature that helps in all four cells is
# about the *subject*, and one that helps in the congruent cells and harms in the others about the *attractor*.

# %%
shown = ctt.indirect_effects(dictionary, ckpts, far, "ablation")
if crossed:
    chance = ctt.indirect_effects(ctt.random_directions(dictionary, seed), ckpts, far, "ablation")
    about = ctt.factorial_of(shown, far, features, null=chance).label  # beyond chance, or "none"
    per_pair = shown.per_pair.to_dense()[:, :, features].numpy()  # [checkpoints, pairs, features]
    with plots.style():
        fig, axes = plt.subplots(1, n_features, figsize=(2.7 * n_features, 2.9), sharey=True)
    for k, ax in enumerate(np.atleast_1d(axes)):
        means = pd.DataFrame(per_pair[:, :, k].T).groupby(cell, sort=False).mean().T
        congruent = {name: len({*name.split("-")}) == 1 for name in means}
        labels, found = about[:, k].tolist(), f"#{features[k]}: {about[0, k]}, then {about[-1, k]}"
        unit = plots.look.IE_LABEL if k == 0 else ""
        plots.cell_bars(means.set_index([ckpts.labels]), congruent, labels, unit, ax, found)
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    plots.show("Bars: each feature's effect in the four cells, by checkpoint, with its label.")

# %% [markdown]
# On the embedded suite, two of the three stand for a noun's number, one for singular and one for plural, on the subject as
# on the neighbour. (A feature has one activation for all checkpoints together, so the table has no checkpoints in it.) What
# changes is what the model *does* with it. At first the neighbour decides: "plural" helps in pl-pl and does harm in sg-pl,
# and where the neighbour is singular nothing happens. In the end the subject decides: it helps in pl-sg and pl-pl. The
# third is active on the noun in between, of either number, and not on the subject: *this noun is not the one*. At first
# next to nothing depends on it: read no story into a label of bars so small. In the end it helps in all four cells, and
# that is the pattern of *subject*; that it helps more where the two nouns differ is the smaller part.
#
# So a name such as "the plural feature" says too little: what a feature is *about* depends on who reads it, and when.
#
# ## When does it matter? RelIE
# To compare checkpoints, the paper shares each feature's effect out among them:
#
# $$\text{RelIE}_c = \frac{|\text{IE}_c|}{\sum_{c'} |\text{IE}_{c'}|}$$
#
# It says *when* a feature matters, whatever its size: near 1 for one checkpoint alone, near 1/3 each if it always matters.

# %%
ratios = ctt.rel_ie(shown.mean, inactive_below=1e-3)
both = {"IE (logits)": shown.mean[:, features].T, "RelIE": ratios[:, features].T}
both = {name: pd.DataFrame(v, active.index, ckpts.labels) for name, v in both.items()}
Path(out).mkdir(parents=True, exist_ok=True)
ctt.files.write_table(Path(out) / "effects.csv", pd.concat(both, axis=1))
pd.concat(both, axis=1).round(2) + 0.0  # no "-0.00"

# %% [markdown]
# Compare the first checkpoint with its bars above. Over four cells, help and harm cancel, and the mean calls a strong
# feature absent. That is why this course shows effects by cell.
#
# Now read them: where is each most active in running text? Darker is stronger. (The third fires on objects of verbs, too.
# What do they have in common with the noun in between?)

# %%
text = suite.text(25_000, split="validation", seed=seed, path=text_path)
examples = ctt.top_examples(dictionary, ckpts, text, features, k=3)
for i in features:
    display(HTML(f"<b>Feature #{i}</b>{widgets.examples_html(examples[i])}"))

# %% [markdown]
# ## How much of this will last?
# The two curves need no dictionary: nothing about the crosscoder can change them. The features can. With another seed, #7 is
# another feature. So we trained three crosscoders on each of three models (pretrained from other seeds), and asked each one
# by a rule: which feature does most harm at first, in the cells where the neighbour misleads? What is it about at the first
# checkpoint, and at the last?
#
# **Question.** In how many of the nine will it be about the attractor first? And about the subject in the end?

# %%
stars = top_folder() / "experiments/results/seeds_stars.csv"  # `make experiments` makes it anew
if suite.name == "tiny" and stars.is_file():
    stars = pd.read_csv(stars)
    stars = stars[stars["story"].str.startswith("hurts most")].set_index(["model", "crosscoder"])
    stars = stars.rename(columns={"latent": "feature"})
    display(stars[["feature", *(f"about {name}" for name in suite.default_triplet)]])
else:
    print("Left out here: the table of nine crosscoders belongs to the embedded suite's checkout.")

# %% [markdown]
# The first half of the story comes back every time. But look at the rule: whoever does most harm *where the neighbour
# misleads* is nearly bound to be about the neighbour. The second half is not built in, and comes back more often than not.
# That is what "a finding" means in this course: what other seeds find, too, and what the rule has not put there. **08** shows what remains of such features among thirteen checkpoints in place of three,
# **06** how often single classes come back (seldom).
#
# And three features are not the model: **04** and **08** add up all of them. It is a small model of a small language, too. It
# shows a method and a kind of story, no facts about large models.
#
# ## What to remember
# 1. **Look at the cells.** A model that follows a simple rule can look like a model that guesses.
# 2. **Help and harm are relative.** A feature does harm while the neighbour decides, and helps once the subject does.
# 3. **Name by rule, on other sentences.** We chose before we looked, and showed elsewhere than we chose.
#
# **Next:** 01 · Hooking checkpoints. Or jump to the one whose question you like best. All words are in the
# [glossary](GLOSSARY.md), beside this notebook.

# %% [markdown]
# ## Check yourself
#
# 1. A model is right in 52 % of the pairs. Name two quite different models that would be.
#
# <details><summary>Answer</summary>
#
# One that guesses, in every cell. And one that follows the neighbour: always right in the congruent cells, always wrong
# in the others. The cells tell them apart.
#
# </details>
#
# 2. A feature helps in pl-pl and does as much harm in sg-pl. Whose feature is it, and what is its mean effect?
#
# <details><summary>Answer</summary>
#
# The neighbour's: it pushes for plural where the neighbour is plural, whatever the subject is. The mean is nothing, for
# help and harm cancel.
#
# </details>
#
# 3. RelIE of a feature is 0.9 at the last checkpoint. What does that not tell you?
#
# <details><summary>Answer</summary>
#
# How large the effect is, whether it helps or harms, and in which cells. It only says when the feature matters most,
# compared with itself.
#
# </details>
#
# 4. Why did we choose features on some sentences and show them on others?
#
# <details><summary>Answer</summary>
#
# The strongest of hundreds are strong by luck, too, and what holds for these words may hang on these words alone.
#
# </details>
