# %% [markdown] part="from neighbour to subject" reading=24
# # 08 · Scaling up
#
# Three checkpoints were enough to learn the method. Now we take the whole run, and see this course in one picture: how a
# model that agrees with the **neighbour** of its verb learns to agree with the **subject**. Then we leave the small model.
#
# **You will learn**
# - to draw what features are about as a curve over training, and to check it against the model's own behaviour;
# - what remains of a triplet's features among many checkpoints;
# - to run other architectures and languages with the code you know, and to count the cost before you pay.
#
# **Time:** 45 minutes of work, a minute and a half to run. **You need:** notebooks 02 to 05. The hub is not needed.

# %% tags=["parameters"]
profile: str = "tiny"  # "tiny", "colab" or "paper": it sets what is None below
model: str | None = None  # a suite
revisions: list | None = None  # the checkpoints to follow
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
other_task: str | None = None  # another phenomenon across an attractor
n_pairs: int | None = None
method: str | None = None  # of the effects: "ablation" (exact), or "atp" where that takes too long
crosscoder: str | None = None  # the triplet's crosscoder; None: the one shipped with the suite
tasks: list | None = None  # whose features are compared: of several tasks, or languages
pairs_path: str | None = None  # folder of published pairs; None: from where they are published
other_models: list | None = None  # suites of the hub for the cell on architectures
n_features: int = 5  # how many to follow
n_draws: int = 1000  # bootstrap draws
seed: int = 0
device: str = "auto"
out: str | None = None  # where tables go; None: runs/08 of the project

# %%
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from IPython.display import display

import ctt_helpers as ctt
from ctt_helpers.notebook import checks, plots
from ctt_helpers.notebook.shapes import check_path, shrunk_suite

suite = ctt.setup(globals(), "08", n_features=lambda n: None if 1 <= n <= 6 else "take 1 to 6")
ckpts = suite.checkpoints(revisions, layer=layer, device=device)
names = ckpts.labels

# %% tags=["estimate"]
if suite.name != "tiny":  # what it takes on this machine, before anything is downloaded
    share = 1 + 3 / len(ckpts)  # the second crosscoder, over a triplet
    made = {"steps": int(share * steps), "tokens": int(share * steps * batch_size)}
    made |= {"n_latents": n_latents, "k": k, "batch_size": batch_size, "buffer_tokens": 2**16}
    todo = {"atp": (2 + len(tasks)) * n_pairs, "accuracy": 2 * n_pairs}
    todo[method] = todo.get(method, 0) + 5 * n_pairs
    print(ctt.estimate(ckpts, pairs=todo, bf16=training.get("bf16", False), **made))

# %% [markdown]
# # Part 1 · One dictionary for the whole run
# Nothing in the crosscoder asks for three: it has an encoder and a decoder for each checkpoint, and *one* code. Only
# `ckpts` is longer. **Question.** The code stays as small as before, $k$ features a token. What of the explained variance?

# %%
config = ctt.TrainConfig(steps=steps, **training)
text = suite.text(n_tokens, split="train", seed=seed, path=text_path)
stream = ctt.ActivationStream(ckpts, text, batch_size=batch_size, seed=seed, buffer_tokens=2**16)
many = ctt.Crosscoder(len(ckpts), ckpts.d_model, n_latents=n_latents, k=k, seed=seed)
ctt.train(many, stream, config, out=Path(out), device=device)
held_out = suite.text(n_eval_tokens, split="validation", seed=seed, path=text_path)
seen, x = (
    ctt.activations.stacked_activations(ckpts, rows)[:, 1:].flatten(0, 1).float()
    for rows in (text[: len(held_out)], held_out)
)
with torch.no_grad():
    f, spread = many.encode(x), (x - x.mean(0)).square().sum((0, 2))
    explained = {"crosscoder": 1 - (x - many.decode(f)).square().sum((0, 2)).cpu() / spread.cpu()}
pca = ctt.pca_baseline(seen, x, k, many.scales)  # the best that k fixed directions can do
explained |= {f"{kind} PCA, {k}": share for kind, share in pca.items()}
print(f"{(f > 0).sum(1).float().mean():.1f} features a token; explained variance, held out:")
pd.DataFrame(explained, names).round(3)

# %% [markdown]
# Less than a triplet's (notebook 03): the same $k$ features do for more checkpoints. (It was trained far less, too.)
#
# # Part 2 · From neighbour to subject
# In notebook 00 you saw four cells. Here they are in three numbers. Let $s$ and $t$ be the number of the subject and of its
# neighbour, the noun in between: −1 singular, +1 plural. Whatever we measure in the cells is
#
# $$v(s, t) = \text{mean} + S\,s + N\,t + B\,s\,t .$$
#
# $S$ follows the **subject**, $N$ the **neighbour** (`attractor` in tables), $B$ needs **both**: it compares them.
# - For the *model*, $v$ is logit(plural verb) − logit(singular verb). It needs no dictionary: this is the **truth**.
# - For a *feature*, $v$ is its effect on that difference. Over features, we add up $|S|$, $|N|$ and $|B|$.
#
# The **share** of the subject is its part of the three. (`shares_of_effect` lets each half of the sentences give the other
# its signs, so that noise does not add up.) With gender, he and she take the places of singular and plural.
#
# **Question.** Draw two curves before you look: the share of the subject and that of the neighbour, from the first
# checkpoint to the last. Where do they cross? Will the features say the same as the model? And gender?

# %% [markdown]
# ### Exercise · The share of the subject
# *Difficulty 2 of 5 · importance 4 of 5 · 6 minutes*
#
# Write `subject_share(S, N, B)` for one checkpoint: three rows, a number for each feature. How much of all that depends on the
# two nouns depends on the subject? Features may work against each other: what one adds and another takes away is not nothing.
#
# <details><summary>Hint 1</summary>
#
# Two features with $S = +1$ and $S = -1$: their sum is 0. Should their share be, too?
#
# </details>
# <details><summary>Hint 2</summary>
#
# First sizes, then sums, then one division. A mean of ratios would give a weak feature as much say as a strong one.
#
# </details>


# %% exercise="subject_share"
def subject_share(S, N, B):
    """The subject's part of all that depends on subject, neighbour or both; from 0 to 1."""
    ### BEGIN SOLUTION give back the subject's share, one number
    subject, neighbour, both = np.abs(S).sum(), np.abs(N).sum(), np.abs(B).sum()
    return subject / (subject + neighbour + both)
    ### END SOLUTION


# %% check="subject_share"
checks.subject_share(subject_share)


# %%
def ask(name):
    """The pairs of a task; None, and why, where there are none."""
    try:
        return suite.pairs(name, split="find", n=n_pairs, path=pairs_path)
    except (OSError, ValueError) as error:
        print(f"{name} is left out: {error}")


pairs, told = ask(task), {}
effects = ctt.indirect_effects(many, ckpts, pairs, method)
for name in dict.fromkeys([task, other_task or task]):
    some = pairs if name == task else ask(name)
    if some is None or not {"subject", "attractor"} <= set(some.levels):
        print(f"Left out here: {name} by cell. Its pairs do not tell subject and neighbour apart.")
        continue
    theirs = effects if name == task else ctt.indirect_effects(many, ckpts, some, method)
    own = torch.stack([ctt.logit_differences(checkpoint, some) for checkpoint in ckpts])[..., None]
    found = ctt.factorial_of(theirs, some, n_draws=n_draws)
    truth = ctt.factorial_of(own, some, kind="effects", names=names, n_draws=n_draws)
    told[name] = [found, *(ctt.shares_of_effect(each, n_draws=n_draws) for each in (found, truth))]
    print(f"{name}: {len(some)} pairs, {found.n_groups} groups of cells, method {method!r}")

# %% tags=["figure-signature"]
if told:
    found, shares, truth = ({name: three[i] for name, three in told.items()} for i in range(3))
    plots.share_curves(shares, truth)
    about = "shares of the features' effect that follow neighbour, subject and both, with bands"
    plots.show(f"Lines over the checkpoints: {about}; dashed, the same for the model itself.")

# %% [markdown]
# This is the project in one picture. Solid: what the features say, with an interval over sentences. Dashed: the truth.
# Where the two nouns differ, the right verb has $S - N$ behind it: the dip of notebook 02 ends where dashed lines cross.
#
# On the embedded suite, **agreement** begins with the neighbour and goes over to the subject, and the features say so as
# the model does. On the way they *compare* the two nouns more than the model seems to. **Gender** goes the other way: as
# soon as there is anything to see it follows the subject, and then the neighbour. More training is not always more grammar.
# (Gender is drawn only where there is enough of it, and its first point rests on little. At the end the features show the
# neighbour more weakly than the model does for gender, and more strongly for agreement: a dictionary is not a mirror.)
#
# **Question.** At the end the model hardly hears the neighbour any more, yet a good part of the features' effect still
# follows it. How can both be true?

# %%
if task in told:
    numbers = found[task].attractor  # N of every feature at every checkpoint
    sums = {"sum of |N|": np.abs(numbers).sum(1), "sum of N": numbers.sum(1)}
    turned = ctt.indirect_effects(ctt.random_directions(many, seed), ckpts, pairs, method)
    chance = ctt.shares_of_effect(ctt.factorial_of(turned, pairs, n_draws=n_draws))
    for name, each in {"features": shares[task], "random": chance}.items():
        sums[f"share of S, {name}"] = each["subject_share"].to_numpy()
        sums[f"logits, {name}"] = each["strength"].to_numpy()
    display(pd.DataFrame(sums, index=names).round(2))

# %% [markdown]
# Features work *against* each other: where the sum of N is below zero, most of that effect holds the neighbour back. **The
# control:** random directions that fire as the features do tell the same story, with a fraction of the logits. So the curve
# is no merit of these directions. It lies in what fires where, and in what the model makes of any push there. What the
# trained directions add is size.
#
# ## Through which features?
# A **label** says what a feature is about at a checkpoint: `subject` or `attractor` where one of them makes up more than
# two thirds of what differs between the cells, `both` where it compares, else `mixed`. The first table gives the share of
# the effect that goes through the features of each label. Then the strongest are drawn as paths, N across and S upwards,
# from the dark first checkpoint to the light last. The last table says on which nouns they *fire*: mean activations.
#
# **Question.** Can a feature that fires on plural nouns be about the neighbour first, and later about the subject?

# %%
if task in told:
    through = shares[task].set_index("checkpoint").filter(regex="^through_[a-z]+$")
    display(through.rename(columns=lambda name: name.removeprefix("through_")).round(2))
    strongest = np.argsort(-found[task].strength.max(0))[:n_features]
    S, N = (getattr(found[task], name)[-1, strongest] for name in ("subject", "attractor"))
    title = f"At {names[-1]} {(S > np.abs(N)).sum()} of {len(S)} follow the subject most"
    plots.factor_paths(found[task], strongest, title=title)
    plots.show(f"The paths of {len(S)} features in a plane: neighbour across, subject upwards.")
    stack = ctt.activations.stacked_activations(ckpts, pairs.input_ids, pairs.attention_mask)
    fires = {}
    for role in ("subject", "attractor"):
        with torch.no_grad():
            f = many.encode(stack[pairs.positions(role).to(stack.device)]).cpu().numpy()
        for level in pairs.levels[role]:
            there = (pairs.table[f"{role}_level"] == level).to_numpy()
            fires[f"fires: {role} {level}"] = f[there][:, strongest].mean(0)
    table = pd.DataFrame(fires, index=[f"#{i}" for i in strongest]).round(1)
    when = ctt.trajectory(ctt.rel_ie(found[task].strength), names).loc[strongest]
    display(table.assign(onset=when["onset"].to_numpy(), label=found[task].label[-1, strongest]))

# %% [markdown]
# On the embedded suite two kinds stand out. Some fire on nouns of **one number**, wherever they stand. Their path bends
# from the right upwards: the feature fires as before (one code serves all checkpoints), and the *use* of it moves, from the
# last noun to the subject. Others fire on **the noun in between, of either number**. They know no number, and their path
# goes up to the left: they hold the neighbour back. So a label is about what a feature *does*, not about what it fires on.
# (`onset`: the first checkpoint with half of its largest share; for so many checkpoints it says more than a class.)

# %% [markdown] part="a triplet's features, other models, and costs" reading=21
# # Part 3 · What becomes of a triplet's features?
# Notebook 04 had three of these checkpoints and a dictionary of their own. Are its strong features still there? The rule,
# before we look: of each label take the four strongest features, at the checkpoint where they are strongest, if that is
# 0.1 logits or more. In the other dictionary take the one that fires most like it on running text. Does it fire alike
# (correlation above 0.7), has it the same label there, and the same class? (The class is one of *strengths*, root mean
# squares over the cells: the mean effect of a neighbour feature is nothing, for it helps in two cells and hurts in two.)
#
# **The control**: another crosscoder of the triplet, with another seed and as little training as the large one.

# %% [markdown]
# ### Exercise · Who fires alike?
# *Difficulty 3 of 5 · importance 4 of 5 · 9 minutes*
#
# Write `most_alike(f, g)`: `f` and `g` are the codes of two dictionaries on the same text, `[tokens, latents]`, each with a
# size of its own. For each latent of `f` give back the index of the one in `g` whose activations correlate most with it.
#
# <details><summary>Hint 1</summary>
#
# A correlation is a cosine of what is left when each latent's mean is gone. So: take off the mean, divide by the length.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Means and lengths are over tokens, axis 0. Then `f.T @ g` has all correlations at once. Which axis do you look along?
#
# </details>


# %% exercise="most_alike"
def most_alike(f, g):
    """For each latent of f the index of the latent of g that correlates most with it."""
    ### BEGIN SOLUTION give back an index of g for each latent of f
    f, g = f - f.mean(0), g - g.mean(0)
    f, g = f / np.linalg.norm(f, axis=0), g / np.linalg.norm(g, axis=0)
    return (f.T @ g).argmax(1)
    ### END SOLUTION


# %% check="most_alike"
checks.most_alike(most_alike)

# %%
try:
    triplet = ctt.Crosscoder.load(crosscoder or suite.crosscoder_folder).to(many.W_enc.device)
    three = suite.checkpoints(triplet.source["revisions"], layer=ckpts.layer, device=device)
    at = [names.index(name) for name in three.labels]
    own = ctt.indirect_effects(triplet, three, pairs, method)
except (FileNotFoundError, ValueError) as error:
    triplet = None
    print(f"Left out here: a triplet's features, which need its crosscoder (notebook 03). {error}")
if triplet is not None:
    sizes = {"n_latents": triplet.n_latents, "k": triplet.k or k}
    control = ctt.Crosscoder(len(three), ckpts.d_model, **sizes, seed=seed + 1)
    ctt.train(control, ctt.ActivationStream(three, text, batch_size, seed), config, device=device)
    again = ctt.indirect_effects(control, three, pairs, method)


# %%
def read(effects, rows=slice(None)):  # of each feature: its strength, label, class of strength
    strength, about = np.abs(effects.mean), np.where(effects.mean > 0, "helps", "hurts")
    if task in told:
        each = ctt.factorial_of(effects, pairs, n_draws=n_draws)
        strength, about = each.strength, each.label
    of = ctt.classify(ctt.rel_ie(strength[rows]), three.labels)
    kinds = [" ".join([a, *b]).replace("step", "") for a, b in of[["label", "members"]].to_numpy()]
    return {"strength": strength[rows], "label": about[rows], "class": np.array([kinds] * len(at))}


def compare(other, stream, theirs):
    """Each star of the triplet beside its best match in another crosscoder; how many keep what."""
    with torch.no_grad():
        alike = ctt.activation_similarity(triplet.encode(x[:, at]), other.encode(stream))[stars]
    c, j, near = peak[stars], alike.argmax(1), alike.max(1).round(2)
    about = {"feature": stars, "at": np.array(three.labels)[c], "match": j, "fires alike": near}
    table, keeps = pd.DataFrame(about), {"fires alike": int((near > 0.7).sum())}
    for what, form in {"strength": "%.2f", "label": "%s", "class": "%s"}.items():
        here, there = mine[what][c, stars], theirs[what][c, j]
        table[what] = [f"{form} → {form}" % each for each in zip(here, there, strict=True)]
        keeps[f"same {what}"] = int((here == there).sum())
    return table, keeps


# %%
if triplet is not None:
    mine = read(own)
    peak, most = mine["strength"].argmax(0), mine["strength"].max(0)
    about = pd.Series(mine["label"][peak, range(len(peak))])[np.argsort(-most)]
    about = about[most[about.index] >= 0.1]
    stars = np.sort(about.groupby(about).head(4).index.to_numpy(int))
    matches, among = compare(many, x, read(effects, at))
    _, luck = compare(control, x[:, at], read(again))
    kept = pd.DataFrame({f"among {len(names)} checkpoints": among, "another seed": luck}).T
    kept = kept.drop(columns="same strength").assign(features=len(stars))
    ctt.files.write_table(Path(out) / "against_the_triplet.csv", kept)
    display(kept, matches)

# %% [markdown]
# Read the first table from row to row: what another seed loses as well is not lost to the number of checkpoints. On the
# embedded suite these features fire again among all checkpoints, and most keep their label. Their *class* seldom stays.
#
# # Part 4 · Other architectures, other languages
# Pythia is a GPT-NeoX; OLMo, OLMo 2 and BLOOM are built differently, and our code must not care. Without the hub we have
# their **shape**: the published configuration, shrunk, with random weights. Nothing is learnt in them. What we check is the
# path: read the stream, splice it back, and the logits must not move. (*AtP: rank*: of the quick estimate, with ablation.)

# %%
rows = {}
for name in ("pythia-1b", "olmo-1b", "olmo2-1b", "bloom-1b1"):
    with tempfile.TemporaryDirectory() as folder:
        random = shrunk_suite(name, folder, suite.tokenizer, seed)
        rows[f"{name}, shrunk, random"] = check_path(random, pairs[:10], device, seed)
paths = pd.DataFrame(rows).T
assert paths["largest change"].max() < 1e-3
display(paths)
for name in other_models or []:  # [hub] the same on the real weights
    try:
        real = ctt.load_suite(name)
        print(name, check_path(real, real.pairs(real.task_names[0], n=10, path=pairs_path), device))
    except (OSError, MemoryError, ValueError) as error:  # no hub, no room, or no pair of one token
        print(f"{name} is left out: {error}")
if not other_models:
    print("Left out here: real weights. With other_models=['olmo-1b', 'bloom-1b1'] and a hub,")
    print("this cell would show the same for them.")

# %% [markdown]
# **Do two languages, or two tasks, use the same features?** It is one question. A feature counts for a task if its |IE| at
# the last checkpoint is at least 1 % of what all have together; the **overlap** is the share of two tasks' features that
# both have. Which will share most: agreement across a phrase, a relative clause, of determiner and noun; gender; tense?

# %%
sets = {}
for name in tasks:
    some = ask(name)
    if some is not None:  # one backward pass a pair, for there are many tasks
        each = np.abs(ctt.indirect_effects(many, ckpts, some.sample(60, seed), "atp").mean[-1])
        sets[name] = {*np.flatnonzero(each >= 0.01 * each.sum())}
table = {a: {b: len(sets[a] & sets[b]) / len(sets[a] | sets[b]) for b in sets} for a in sets}
table = pd.DataFrame(table).rename(columns=ctt.pairs.short_names(list(sets)))
display(table.round(2).assign(features=[len(each) for each in sets.values()]))
languages = [name for name in sets if name.split("/")[0] in ("clams", "multiblimp")]
if len(languages) > 1:
    both = set.intersection(*(sets[name] for name in languages))
    print(f"{len(both)} features count in all {len(languages)} languages; in one alone:")
    print({a: len(sets[a].difference(*(sets[b] for b in languages if b != a))) for a in languages})
else:
    print("Left out here: languages, for `tasks` names none. With a multilingual model (bloom-1b1)")
    print("and tasks=['clams/en/prep_anim', 'clams/fr/prep_anim'] the table is about languages.")

# %% [markdown]
# On the embedded suite agreement across a phrase, across a relative clause, and tense across one share most. Are these
# features about number, then, or do they say that a *verb* is due? How would you find out? Gender shares less. And the
# agreement of determiner and noun, which waits for no verb, shares nothing: it is the control.
#
# # Part 5 · What does it cost?
# `estimate()` says it **before** anything is downloaded: files, memory, and the time on *this* machine.
#
# **Question.** Six times the parameters: what grows sixfold? And what do exact effects of 300 pairs cost beside quick ones?

# %%
for name, asked in {"pythia-160m": {"atp": 300, "ablation": 300}, "pythia-1b": None}.items():
    real = ctt.load_suite(name)
    real = real.checkpoints(real.default_triplet, device="cpu", dtype="bfloat16")
    work = {"pairs": asked, "n_latents": 8192, "k": 64} if asked else {}
    print(ctt.estimate(real, **work), end="\n\n")

# %% [markdown]
# Weights do. Exact ablation takes a pass for each pair and active feature, attribution patching one there and back for a pair.
#
# ## What to remember
# 1. **From neighbour to subject.** Over all checkpoints the features tell the model's own story, and how it is done: which
#    nouns are plural is known early, and what moves is which noun is listened to. Not every phenomenon goes that way.
# 2. **A label is said of effects, at one checkpoint.** The same feature may serve the neighbour first and the subject later.
# 3. **Features last longer than their classes.** Before you publish a trajectory, see whether it survives another seed,
#    other checkpoints and longer training.
#
# **Limits.** The large crosscoder was trained briefly, with one seed. What it leaves out is in no share, and bands are over
# sentences only (other seeds: `factorial_shares` in `experiments/`). Random weights say nothing of OLMo or BLOOM.

# %% [markdown]
# ## Check yourself
#
# 1. The features' curve goes from neighbour to subject. Random directions that fire alike show nearly the same curve.
# What is then the merit of the trained ones?
#
# <details><summary>Answer</summary>
#
# Size: few of them carry much of the effect. The curve itself lies in what fires where, and in what the model makes of
# any push.
#
# </details>
#
# 2. The sum of |N| over features is large, and the sum of N is near zero. What do the features do?
#
# <details><summary>Answer</summary>
#
# They work against each other: some push for what the neighbour wants, others hold it back.
#
# </details>
#
# 3. A feature of the triplet has no partner among thirteen checkpoints. What do you compare with before you say that it
# is gone?
#
# <details><summary>Answer</summary>
#
# With another seed of the triplet's own crosscoder, trained as briefly. What that loses, too, is not lost to the number
# of checkpoints.
#
# </details>
#
# 4. The paths of OLMo and BLOOM pass the check with random weights. What do you know of these models?
#
# <details><summary>Answer</summary>
#
# That our code reads and replaces the right place in them. Of what they have learned: nothing.
#
# </details>
