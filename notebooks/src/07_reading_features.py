# %% [markdown]
# # 07 · Reading features
#
# So far a feature had a number, effects, and a label by rule. What is it *about*? People look at a few examples and say what
# they see. Here you do that, and then you find out whether you are right.
#
# **You will learn**
# - to read a feature where it is strong, where it is weak, and where chance leads you;
# - that a name is a **prediction**: given the name alone, in which new sentences is the feature active?
# - to score a name, your own or a language model's, and to see whether it is too broad or too narrow.
#
# **Time:** 40 minutes of work, half a minute to run. **You need:** notebook 04.

# %% tags=["parameters"]
profile: str = "tiny"  # "tiny", "colab" or "paper": it sets what is None below
model: str | None = None  # a suite
revisions: list | None = None  # the checkpoints that the crosscoder was trained on
layer: int | None = None
crosscoder: str | None = None  # its folder; None: the one shipped with the suite
task: str | None = None  # agreement across a neighbour (an "attractor")
plain_task: str | None = None  # the same without one
method: str | None = None  # "ablation": exact effects; or an estimate of them, such as "atp"
n_pairs: int | None = None
pairs_path: str | None = None  # folder of published pairs; None: from where they are published
text_path: str | None = None  # file of text, or a name such as "pile-10k"; None: the suite's own
n_tokens: int = 30_000  # tokens to read, and as many others to be asked about
n_features: int = 24  # how many get a page, the strongest of the task
n_sentences: int = 40  # to be asked about: so many with the feature active, so many without
names: str | None = None  # a JSON file of names; None: the one beside the crosscoder, if any
answers: str | None = None  # a file of answers to the questions below, .csv or .json
seed: int = 0
device: str = "auto"
out: str | None = None  # where pages and questions go; None: runs/07 of the project

# %%
import os
from pathlib import Path
from urllib.parse import quote

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML

import ctt_helpers as ctt
from ctt_helpers.attribution import METHODS
from ctt_helpers.notebook import naming, plots, widgets

suite = ctt.setup(
    globals(),
    "07",
    method=lambda m: None if m in METHODS else f"take one of {', '.join(METHODS)}",
    n_sentences=lambda n: None if n >= 5 else "take at least 5 sentences",
)
ckpts = suite.checkpoints(revisions or suite.default_triplet, layer=layer, device=device)
dictionary = ctt.Crosscoder.load(crosscoder or suite.crosscoder_folder)

# %% tags=["estimate"]
if suite.name != "tiny":  # what it takes on this machine, before anything is downloaded
    size = {"n_latents": dictionary.n_latents, "k": dictionary.k or 64}
    print(ctt.estimate(ckpts, tokens=2 * n_tokens, pairs={method: 4 * n_pairs}, **size))

# %% [markdown]
# ## A page for each feature
# The strongest features of a task, and those that somebody has named, get a page each: examples, tokens that they make
# likelier, effects with intervals, cell by cell, the accuracy without them, and their neighbours.

# %%
dictionary.to(ckpts[0].device)
ctt.evaluation.check_match(dictionary, ckpts)  # an error here: it was trained on other checkpoints
turned, pairs, effects, null = ctt.random_directions(dictionary, seed), {}, {}, {}
for t in dict.fromkeys((task, plain_task)):
    pairs[t] = suite.pairs(t, split="find", n=n_pairs, path=pairs_path)
    effects[t] = ctt.indirect_effects(dictionary, ckpts, pairs[t], method)
    null[t] = ctt.indirect_effects(turned, ckpts, pairs[t], method)
beside = Path(crosscoder or suite.crosscoder_folder) / "names.json"
named = naming.read_names(names or beside) if names or beside.exists() else {}
strongest = np.argsort(-np.abs(effects[task].mean).max(0))[:n_features].tolist()
chosen = list(dict.fromkeys([*strongest, *named]))
text = suite.text(n_tokens, split="validation", seed=seed + 2, path=text_path)
given = (dictionary, ckpts, text, effects, pairs)
more = {"null": null, "notes": {i: name.name for i, name in named.items()}, "seed": seed}
written = ctt.pages.write(Path(out) / "pages", *given, features=chosen, **more)
print(f"{', '.join(ckpts.labels)}; {written}")
link = quote(Path(os.path.relpath(written.index)).as_posix())
HTML(f'<a href="{link}" target="_blank">Open the index of all pages</a> (once you have run this)')

# %% [markdown]
# It opens from disk: search, press a heading to sort, choose a checkpoint. (On a remote machine, download the folder first.)
#
# ## Read one
# We take one that is neither rare nor everywhere, by a rule: the strongest on the task that is active in 5 to 25 % of *new*
# sentences. "New" is other text, and no sentence of it stands in the text of the pages. Here are its strongest examples.
# **Question.** What is it about? Write your name down before you go on. Would you bet on it?

# %%
new_text = suite.text(n_tokens, split="validation", seed=seed + 3, path=text_path)
sentences = naming.sentences_of(dictionary, ckpts, new_text, chosen, shown=text)
often = pd.Series((sentences.peak > 0).mean(0), sentences.features)
count = len(sentences.text)
asked = [i for i in chosen if n_sentences <= often[i] * count <= count - n_sentences]
assert asked, (
    f"of {count} new sentences no feature is active in {n_sentences} and silent in {n_sentences}: give more text"
)
mine = next((i for i in asked if 0.05 <= often[i] <= 0.25), asked[0])
places = ctt.active_places(dictionary, ckpts, text, asked)
bands = ctt.examples_by_band(places, ckpts, text, k=5, seed=seed)
print(f"{count:,} new sentences; feature #{mine} is active in {often[mine]:.0%} of them")
HTML(widgets.examples_html(bands[mine]["top"]))

# %% [markdown]
# Everybody looks at the strongest examples, and they mislead: they show one corner of what a feature does. Here is a random
# sample of *all* places where it is active. Does your name cover them?

# %%
HTML(widgets.examples_html(bands[mine]["random"]))

# %% [markdown]
# ### Write down what you see
# Now others, a few at least. Whatever you type is saved at once, and is there again when you come back. Choose a label: is
# the feature about the **subject** of its sentence, about a noun beside it (the **attractor**), **both** compared, **mixed**,
# or **none** of these?
#
# **Question.** Notebook 04 has a rule for that. It looks at *effects*; you look at examples, so at *activity*. How often
# will you agree with it? Guess first, then press Compare. (**Cohen's kappa** is 1 for full agreement, and 0 for as much as
# two get who choose without looking.) The other file may as well be a friend's.

# %%
by_rule = Path(out) / "by_rule.csv"
if {"subject", "attractor"} <= set(pairs[task].levels):
    said = ctt.factorial_of(effects[task], pairs[task], asked, seed=seed, null=null[task]).label[-1]
    rule = {i: widgets.Annotation(str(word)) for i, word in zip(asked, said, strict=True)}
    widgets.save_annotations(by_rule, rule)
cards, rows = {}, {}
for i in asked:
    some = [*bands[i]["top"][:3], *bands[i]["random"]]
    bare = [{"tokens": e["tokens"], "activations": e["activations"]} for e in some]
    cards[i] = widgets.examples_html(bare)
    at = [text[e["sequence"], e["position"]].item() for e in bands[i]["random"]]
    words = ", ".join(dict.fromkeys(ckpts.tokenizer.decode([token]).strip() for token in at))
    rows[f"#{i}"] = {"active in": f"{often[i]:.0%}", "for example on": words}
pd.DataFrame.from_dict(rows, orient="index")

# %%
other = by_rule if by_rule.exists() else None
widgets.annotation_form(cards, Path(out) / "annotations.csv", other)

# %% [markdown]
# ## A name is a prediction
# A name is good if somebody who knows only the name can tell sentences in which the feature is active from others. So we
# draw new sentences, half of them active, in random order. **Your turn:** a "y" for each in which you expect the feature to
# be active, an "n" for the others.

# %%
trial = naming.naming_test(sentences, mine, n=5, seed=seed + 1)
for number, sentence in enumerate(trial.sentences, 1):
    print(f"{number:2}  {sentence}")

# %%
my_answers = ""  # ten letters, such as "ynnyynynny"
my_words = []  # and your name as words: the feature is active where one of them stands
test = naming.naming_test(sentences, mine, n=n_sentences, seed=seed)
if len(my_answers) == len(trial.items):
    said = {i: letter == "y" for i, letter in zip(trial.items, my_answers.lower(), strict=True)}
    print("your ten answers:", naming.score(trial, said))
    print("truth:", "".join("ny"[int(active)] for active in trial.active))
if my_words:
    by_words = test.answer(lambda sentence: any(word in sentence for word in my_words))
    print("your words:", naming.score(test, by_words))

# %% [markdown]
# **Balanced accuracy** is the mean of two shares: *yes* among the active sentences, *no* among the others. Who always says
# yes gets 0.5, and so does who flips a coin. The interval says how far a score from so few sentences can be trusted.
#
# ## Too broad, too narrow
# We make bad names by rule, so that no taste is in it. A "name" is a list of words, and says yes where one of them stands.
# **Narrow** lists hold the words on which a feature fires in its five strongest examples; **broad** ones all words on which it
# ever fired, however weakly; **half** those on which it fires at least every second time.
#
# **Question.** Which of the two shares will be low for the narrow ones? For the broad ones?

# %%
share = naming.word_shares(places, ckpts.tokenizer, text)
lists = {}
for i in asked:
    at = [text[e["sequence"], e["position"]].item() for e in bands[i]["top"]]
    narrow = {ckpts.tokenizer.decode([token]).strip().lower() for token in at}
    half, broad = set(share[i].index[share[i] >= 0.5]), set(share[i].index)
    lists[i] = {"narrow": narrow, "half": half, "broad": broad}
for name, words in lists[mine].items():
    print(f"{name:7}{len(words):4} words: {', '.join(sorted(words)[:8])}")

# %%
tokens = {said: naming.words_in(ckpts.tokenizer, said) for said in sentences.text}
scores = {}
for i in asked:
    one = naming.naming_test(sentences, i, n=n_sentences, seed=seed)
    for name, words in lists[i].items():
        says = {sentence: bool(words & tokens[sentence]) for sentence in one.sentences}
        scores[i, name] = naming.score(one, one.answer(says.get))
means = {name: np.mean([scores[i, name].value for i in asked]) for name in lists[mine]}
best = max(means, key=means.get)
with plots.style():
    fig, ax = plt.subplots(figsize=(5.2, 3.2))
    for name, marker in zip(lists[mine], "v^o", strict=True):
        own = [scores[i, name] for i in asked]
        across, up = [s.said_inactive for s in own], [s.said_active for s in own]
        ax.plot(across, up, marker, ms=6, alpha=0.7, label=f"{name} ({means[name]:.2f})")
    ax.plot([0, 1], [1, 0], ":", color="0.5", lw=1, label="guessing (0.50)")
    ax.set(xlabel="inactive sentences with a no", ylabel="active sentences with a yes")
    ax.legend(title="mean balanced accuracy", loc="center left", bbox_to_anchor=(1.01, 0.5))
    plots.set_title(ax, f"The {best} lists name best: {means[best]:.2f} on average")
plots.show("Scatter plot of word lists: right answers in inactive and in active sentences.")
unlisted = [f"#{i}" for i in asked if scores[i, "half"].said_active < 0.3]
print("hardly any word makes them fire every second time:", ", ".join(unlisted) or "none")

# %% [markdown]
# A narrow name misses most of the active sentences, a broad one claims the inactive ones, too: the two shares say how to
# mend it. And of some features no list of words is a name. What they are about is the *place* of a word.
#
# ## Names by people
# We have read pages of the embedded suite's dictionary and named some features; what we would have said after the strongest
# examples alone stands beside. Each name implies a rule, written before anything was scored. It is asked about sentences in
# which the feature is active *at all*, and *strongly* (above half of its largest activation).

# %%
rows = {}
for i, name in named.items():
    rows[f"#{i}"] = row = {"at first sight": name.first, "after reading": name.name}
    for kind, least in (("at all", 0.0), ("strongly", 0.5)):
        strong = sentences.peak[:, sentences.features.index(i)]
        if i not in asked or (strong > least * strong.max()).sum() < n_sentences:
            continue  # too few such sentences
        one = naming.naming_test(sentences, i, n_sentences, seed, least)
        s = naming.score(one, one.answer(name))
        row[kind] = f"{s.value:.2f} [{s.low:.2f}, {s.high:.2f}]"
        row |= {f"yes, {kind}": s.said_active, f"no, {kind}": s.said_inactive}
people = pd.DataFrame.from_dict(rows, orient="index")
for column in people.filter(like="yes"):
    print(f"{column}: {(people[column] >= 0.75).sum()} of {len(people)} names in 3 of 4 sentences")
people.style.format(precision=2, na_rep="", escape="html").format_index(escape="html")

# %% [markdown]
# On the embedded suite most names find strong activity, and half of them miss much of the weak. Where they fail they say no
# too often: people name the peak. The worst is #432: its strongest places are nouns in relative clauses, but it is active in
# most sentences, and even strongly in others every second time.
#
# ## A language model as reader
# `ask` writes the questions without the truth; give a model the name and the file, and let it fill in the last column with
# yes, no, or a probability; the parameter `answers` takes it back. Probabilities are scored by **AUROC**: how often an active
# sentence gets a higher one than an inactive one. A stand-in answers here: how often did a sentence's likeliest word fire it?

# %%
questions, stand_in = Path(out) / f"questions_{mine}.csv", Path(out) / f"answers_{mine}.json"
if not questions.exists():  # one that is there may hold answers
    test.ask(questions)
print("\n".join(questions.read_text(encoding="utf-8").splitlines()[:4]))
likely = test.answer(lambda said: float(max(share[mine].get(word, 0) for word in tokens[said])))
ctt.files.write_json(stand_in, likely)
print(naming.score(test, naming.read_answers(answers or stand_in)))
table = pd.DataFrame({key: vars(s) for key, s in scores.items()}).T
ctt.files.write_table(Path(out) / "scores.csv", table.rename_axis(["feature", "name"]))

# %% [markdown]
# ## Limits
# - A name says where a feature is *active*, not what it *does* (#398 in notebook 05): look at a page's effects by cell.
# - Held-out sentences come from the same source as those that were read. Elsewhere a name may fail.
#
# ## What to remember
# 1. **Read weak and random examples, too.** The strongest show one corner.
# 2. **A name is a prediction.** Ask it about sentences that nobody has read, and put guessing beside it.
# 3. **Look at both shares.** Yes too often is too broad, no too often too narrow.
#
# **Next:** 08 · Scaling up. · To read more: Bills et al., *Language models can explain neurons in language models* (2023).

# %% [markdown]
# ## Check yourself
#
# 1. Why as many inactive as active sentences?
#
# <details><summary>Answer</summary>
#
# Of a rare feature "never" would be right nearly always. With both kinds alike, it is right half of the time.
#
# </details>
#
# 2. A name scores 1.00 on 5 + 5 sentences. How sure are you?
#
# <details><summary>Answer</summary>
#
# Not very: the interval goes down to about 0.7. With 40 + 40 it goes to 0.94.
#
# </details>
#
# 3. A name is right in 55 % of the active sentences and in all others. What would you change?
#
# <details><summary>Answer</summary>
#
# It is too narrow: read the middle and the weak examples, and widen it.
#
# </details>
