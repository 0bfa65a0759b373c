# %% [markdown]
# # 05 · Does it hold?
#
# Notebook 04 gave each feature a number. Now we put the numbers to the test: switch features off, on sentences that
# were never used to choose them, and look at what the model *does*.
#
# **You will learn**
# - to ablate features singly and together, and why the sum of the parts is not the whole;
# - to choose controls that could prove you wrong;
# - to read an ablation table: which features matter at which checkpoint;
# - to *improve* a checkpoint by taking something away.
#
# **Time:** 15 minutes to read, less than a minute to run. **You need:** notebook 04.

# %% tags=["parameters"]
profile: str = "tiny"  # "tiny", "colab" or "paper": it sets what is None below
model: str | None = None  # a suite
revisions: list | None = None  # the checkpoints that the crosscoder was trained on
layer: int | None = None
crosscoder: str | None = None  # its folder; None: the one shipped with the suite
task: str | None = None  # agreement across an attractor
plain_task: str | None = None  # the same without one
other_task: str | None = None  # something else: are the features special to agreement?
top_k: int = 10  # features a group
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
import torch

import ctt_helpers as ctt
from ctt_helpers import controls
from ctt_helpers.notebook import plots

ctt.use_profile(
    globals(),
    "05",
    top_k=lambda n: None if n >= 1 else "take at least 1 feature",
    n_pairs=lambda n: None if n >= 10 else "take at least 10 pairs",
    n_random=lambda n: None if n >= 1 else "take at least 1 random group",
)
suite = ctt.load_suite(model)
if suite.name == "tiny":
    torch.set_num_threads(1)  # a second thread slows small models down
ckpts = suite.checkpoints(revisions or suite.default_triplet, layer=layer, device=device)
dictionary = ctt.Crosscoder.load(crosscoder or suite.crosscoder_folder)

# %% tags=["estimate"]
if suite.name != "tiny":  # what it takes on this machine, before anything is downloaded
    # 12 ablations of groups, and 11 for each random group
    todo = {"ablation": n_pairs, "ablate": (12 + 11 * n_random) * n_pairs, "accuracy": n_pairs}
    print(ctt.estimate(ckpts, pairs=todo, n_latents=dictionary.n_latents, k=dictionary.k or 64))

# %%
dictionary.to(ckpts[0].device)
ctt.evaluation.check_match(dictionary, ckpts)  # an error here: it was trained on other checkpoints
names, colors = ckpts.labels, plots.checkpoint_colors(ckpts.labels)
tasks = [task, plain_task, other_task]
short = ctt.pairs.short_names(tasks)
find = {t: suite.pairs(t, split="find", n=n_pairs, path=pairs_path) for t in tasks}
test = {t: suite.pairs(t, split="test", n=n_pairs, path=pairs_path) for t in tasks}
assert not {*find[task].text} & {*test[task].text}
print(
    f"{', '.join(names)}; {len(find[task])} pairs of {task} to find with, {len(test[task])} others "
    "to test on"
)

# %% [markdown]
# ## Choosing, once
# All choices in this notebook use the *find* half only; the *test* half is for measuring. We take the exact single effects
# of every feature, and from them the `top_k` features that **help** most at each checkpoint.

# %%
effects = ctt.indirect_effects(dictionary, ckpts, find[task], "ablation")
ie = effects.mean
ratios = ctt.rel_ie(ie, inactive_below=1e-3)
helpers = [np.argsort(-ie[c])[:top_k].tolist() for c in range(len(ckpts))]
pd.DataFrame({names[c]: [f"#{i} ({ie[c, i]:+.2f})" for i in helpers[c]] for c in range(len(ckpts))})

# %% [markdown]
# ## Together
# Remove the helpers of each checkpoint there, and count right answers.
#
# **Question.** What would prove that this number means nothing? If *any* ten features did the same. So we take random groups
# of two kinds: *any* features that are active on these sentences, and *matched* ones: for each helper, another feature that
# writes about as much at the place where the answer is read.

# %%
x = ctt.activations.stacked_activations(ckpts, find[task].input_ids, find[task].attention_mask)
f = (
    dictionary.encode(x).detach()[range(len(x)), find[task].answer_position].cpu().numpy()
)  # at the answer position
norms = dictionary.decoder_norms().detach().cpu().numpy()
written = (
    f.mean(0) * norms + 1e-6
)  # [checkpoints, latents]: activation times decoder norm, mean over pairs


def matched(group, c, n):
    """n groups of others, each member one of the five that write most like one of the group's."""
    return controls.control_groups(group, np.flatnonzero(f.max(0) > 0), n, seed, size=written[c])


match = [matched(g, c, n_random) for c, g in enumerate(helpers)]  # [checkpoints, groups, features]
sizes = {"top": helpers, "matched": [groups[0] for groups in match]}
pd.DataFrame(
    {
        f"written at the answer, {k}": [written[c][g].mean() for c, g in enumerate(v)]
        for k, v in sizes.items()
    },
    index=names,
).round(3)

# %% [markdown]
# The match is as good as the dictionary allows. Where the first column stays above the second, hardly any other feature
# writes that much at the place of the answer; at the first checkpoint the matched ones write *more*. And mind what is left
# when the helpers are gone: many features that *hurt*. So expect matched groups to do a little good when removed.

# %%
active = np.flatnonzero(ie.any(0))  # with some effect on the task, anywhere in the sentence
anyone = [controls.control_groups(g, active, n_random, seed + 1) for g in helpers]
kinds = {f"random {top_k}, matched": match, f"random {top_k}, any": anyone}
tables, draws = (
    [ctt.ablate(dictionary, ckpts, test[task], helpers).assign(group=f"top {top_k}")],
    {},
)
for kind, groups in kinds.items():
    draws[kind] = pd.concat(
        [ctt.ablate(dictionary, ckpts, test[task], [g[k] for g in groups]) for k in range(n_random)]
    )
    averaged = (
        draws[kind].groupby("checkpoint", sort=False).mean().reset_index().astype({"n_pairs": int})
    )
    tables.append(averaged.assign(group=kind))
together = pd.concat(tables, ignore_index=True)
columns = [
    "group",
    "checkpoint",
    "accuracy_before",
    "accuracy_after",
    "logit_difference_before",
    "logit_difference_after",
    "effect",
    "effect_stderr",
]
together[columns].round(3)

# %%
drop = together["accuracy_before"] - together["accuracy_after"]
is_top, is_matched = (together["group"] == g for g in (f"top {top_k}", f"random {top_k}, matched"))
with plots.style():
    fig, ax = plt.subplots(figsize=(7, 3))
    after = together.pivot(index="checkpoint", columns="group", values="accuracy_after")
    after = after.loc[names, [f"top {top_k}", *kinds]]
    after.insert(0, "untouched", together[is_top].set_index("checkpoint")["accuracy_before"])
    error = (after * (1 - after) / len(test[task])) ** 0.5
    after.plot.bar(
        ax=ax,
        yerr=error,
        color=["0.85", "#0072B2", "0.4", "0.6"],
        width=0.8,
        rot=0,
        error_kw={"lw": 1},
    )
    ax.axhline(0.5, color="0.4", lw=0.8, ls="--")
    ax.set(
        ylabel="accuracy (lines: ± 1 standard error)",
        xlabel=f"{len(test[task])} pairs",
        ylim=(0, 1.05),
    )
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    fall, control = drop[is_top].iloc[-1], drop[is_matched].iloc[-1]
    title = (
        f"Without its top {top_k}, {names[-1]} falls by {fall:.2f}; "
        f"without {top_k} matched ones by {control:.2f}"
    )
    plots.set_title(ax, title)

# %% [markdown]
# How much do the random groups vary? If one of them came close to the top group, the claim would be weak. (A negative
# effect means that a group held features that hurt.)

# %%
spread = {f"top {top_k}": together[is_top].set_index("checkpoint")["effect"]}
for kind, drawn in draws.items():
    by = drawn.groupby("checkpoint", sort=False)["effect"].agg(["min", "max"])
    spread |= {f"{kind}: {end}": by[end] for end in by}
pd.DataFrame(spread).round(3)

# %% [markdown]
# ## Singly and together
# Add up the effects of the single features of a group. Then remove them together. If the features were independent, the
# two would agree.
#
# **Question.** If the group does *more* than the sum of its parts, what does that say about the features?

# %%
sizes = sorted({1, 2, 5, top_k, 2 * top_k})
ranked = [np.argsort(-ie[c])[: sizes[-1]].tolist() for c in range(len(ckpts))]
single = ctt.indirect_effects(
    dictionary,
    ckpts,
    test[task],
    "ablation",
    features=sorted({i for group in ranked for i in group}),
)
rows = []
for size in sizes:
    table = ctt.ablate(dictionary, ckpts, test[task], [group[:size] for group in ranked])
    for c, done in table.iterrows():
        added = single.mean[c, ranked[c][:size]].sum()
        rows.append(
            (names[c], size, added, done["effect"], done["effect_stderr"], done["accuracy_after"])
        )
columns = [
    "checkpoint",
    "features",
    "sum of single effects",
    "effect together",
    "stderr",
    "accuracy",
]
parts = pd.DataFrame(rows, columns=columns)
parts.round(3)

# %%
with plots.style():
    fig, ax = plt.subplots(figsize=(6.6, 3.2), layout="constrained")
    for name, part in parts.groupby("checkpoint", sort=False):
        ax.plot(
            part["features"],
            part["effect together"],
            "o-",
            color=colors[name],
            label=f"{name}, together",
        )
        ax.plot(
            part["features"],
            part["sum of single effects"],
            "o--",
            color=colors[name],
            mfc="none",
            alpha=0.7,
        )
    at_end = parts[(parts["checkpoint"] == names[-1]) & (parts["features"] == top_k)].iloc[0]
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set(xlabel="features removed (the strongest helpers first)", ylabel="effect on m (logits)")
    ax.set_title(
        f"{names[-1]}: {top_k} features do {at_end['effect together']:.1f} together, "
        f"{at_end['sum of single effects']:.1f} added up one by one"
    )
    ax.legend(
        title="dashed: single effects\nadded up",
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
    )

# %% [markdown]
# Where the solid line runs above the dashed one, features can stand in for each other: remove one and little happens;
# remove all and the answer goes. A single effect then *understates* what a feature carries. Where it runs below, they need
# each other: losing one is already enough.
#
# Careful: $m$ is flat at first and then goes steeply to 0 (the curve in notebook 04). That alone can make a group do more than its
# parts.

# %% [markdown]
# ## Do features of a time matter in their time?
# RelIE says that some features belong to a checkpoint. For each checkpoint take the features that help there and have
# more than half of their effect there (RelIE above 0.5, on the find half; the classes of notebook 04 ask for 0.7). Remove them at *every* checkpoint. If RelIE
# means what it says, the diagonal of this table stands out.
#
# **The control**: groups of the same size, drawn at random from the features that have an effect on the task at all.

# %%
strength = np.abs(ie).sum(0)
worth = np.flatnonzero(strength > 0.002 * strength.sum())
own = {}
for c, name in enumerate(names):
    fits = [i for i in worth[np.argsort(-strength[worth])] if ie[c, i] > 0 and ratios[c, i] > 0.5]
    if fits:
        own[name] = [int(i) for i in fits[:top_k]]
    else:
        print(f"no feature helps mostly at {name}: nothing to remove")
measured = pd.DataFrame(
    {k: ctt.ablate(dictionary, ckpts, test[task], g)["effect"].to_numpy() for k, g in own.items()}
).T
measured.columns = names
measured.round(3)

# %%
rng = np.random.default_rng(seed)
away = {
    name: [
        ctt.ablate(dictionary, ckpts, test[task], rng.choice(worth, len(group), replace=False))[
            "effect"
        ].to_numpy()
        for _ in range(2 * n_random)
    ]
    for name, group in own.items()
}
rows = []
for name in own:
    c, drawn = names.index(name), np.array(away[name])
    rows.append(
        {
            "group": f"{name}'s own",
            "features": len(own[name]),
            "effect at home": measured.loc[name, name],
            "random groups: mean": drawn[:, c].mean(),
            "largest": drawn[:, c].max(),
            "largest effect away": measured.loc[name].drop(name).abs().max(),
            "random: away": np.abs(np.delete(drawn, c, 1)).mean(),
        }
    )
pd.DataFrame(rows).set_index("group").round(3)

# %% [markdown]
# Two things to look for. *At home* a checkpoint's own features should do more than random ones. *Away* they should do next to
# nothing: that is what "of its time" means. (A random group may hold one of the strong features by luck: see *largest*.)

# %%
with plots.style():
    fig, ax = plt.subplots(figsize=(5.4, 1.3 + 0.6 * len(own)), layout="constrained")
    reach = float(measured.abs().to_numpy().max())
    ax.imshow(measured, cmap="RdBu", vmin=-reach, vmax=reach, aspect="auto")
    for (r, c), value in np.ndenumerate(measured.to_numpy()):
        ax.text(
            c,
            r,
            f"{value:.2f}",
            ha="center",
            va="center",
            color="white" if abs(value) > 0.7 * reach else "black",
        )
    ax.set_xticks(range(len(names)), names)
    ax.set_yticks(range(len(own)), [f"{name}'s own ({len(g)})" for name, g in own.items()])
    at_home = sum(measured.loc[name].idxmax() == name for name in own)
    ax.set(
        xlabel="removed at",
        title=f"{at_home} of {len(own)} groups do most at their own checkpoint (effect in logits)",
    )

# %% [markdown]
# ## Better by taking away
# At one checkpoint the model is *worse than chance* across attractors. If it agrees with the nearest noun by certain
# features, then removing those should make it **better** there, and *worse* on plain sentences, where the nearest noun is
# the subject.
#
# The features are those with the most negative effect at that checkpoint, on the find half. That is a prediction that can
# fail in two ways.

# %%
at_each = [ctt.accuracy(checkpoint, find[task]) for checkpoint in ckpts]
middle = int(np.argmin(at_each))  # where the model is worst
print(
    f"worst at {names[middle]}: {at_each[middle]:.2f}"
    + ("" if at_each[middle] < 0.5 else ", not below chance")
)
hurting = np.argsort(ie[middle])[:top_k].tolist()
rows = []
for t in tasks:
    for label, group in (
        (f"the {top_k} that hurt most", hurting),
        *((f"random {top_k}, matched", group) for group in matched(hurting, middle, n_random)),
    ):
        row = ctt.ablate(dictionary, ckpts, test[t], group).iloc[middle]
        rows.append(
            {
                "task": short[t],
                "group": label,
                "before": row["accuracy_before"],
                "after": row["accuracy_after"],
                "effect on m": row["effect"],
            }
        )
better = pd.DataFrame(rows).groupby(["task", "group"], sort=False).mean()
print(f"accuracy at {names[middle]}")
better.round(3)

# %%
with plots.style():
    fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
    wide = better["after"].unstack("group").loc[[short[t] for t in tasks]]
    wide = wide[list(dict.fromkeys(better.index.get_level_values("group")))]
    wide.insert(0, "untouched", better["before"].groupby("task").first())
    wide.plot.bar(ax=ax, color=["0.75", colors[names[middle]], "0.5"], width=0.75, rot=0)
    ax.axhline(0.5, color="0.4", lw=0.8, ls="--")
    ax.set(ylabel="accuracy", xlabel="", ylim=(0, 1.05))
    change = better.loc[(short[task], f"the {top_k} that hurt most")]
    ax.set_title(
        f"{names[middle]}: {short[task]} goes from {change['before']:.2f} to {change['after']:.2f} "
        f"when {top_k} features are removed"
    )
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))

# %% [markdown]
# **What we saw** on the embedded suite. The first prediction holds: without these features the middle checkpoint gets
# better across attractors, though not good. The second holds only in logits: plain agreement loses some of its margin
# (the effect on $m$ is positive), but the answers hardly change. The margin was wide.
#
# Does the effect sit in one feature, or in many? And is it the same features at the end of training?

# %%
lone = ctt.indirect_effects(dictionary, ckpts, test[task], "ablation", features=hurting)
pd.DataFrame(
    {
        "feature": hurting,
        **{f"IE at {n}": lone.mean[c, hurting] for c, n in enumerate(names)},
        "RelIE": [np.round(ratios[:, i], 2).tolist() for i in hurting],
    }
).round(3)

# %%
Path(out).mkdir(parents=True, exist_ok=True)
together.to_csv(Path(out) / "together.csv", index=False)
parts.to_csv(Path(out) / "singly_and_together.csv", index=False)
measured.to_csv(Path(out) / "cross_table.csv")
better.to_csv(Path(out) / "better.csv")
print(f"written: {out}")

# %% [markdown]
# ## What you may conclude, and what not
# - Effects found on one half of the sentences hold on the other half, or they do not: the tables say which.
# - Ablating a feature takes the stream to a place where the model may never be. A large effect shows that something was
#   *used*; a small one does not show that it was not.
# - The features are those of one crosscoder. Train another (notebook 03, `seed`) and run this notebook with it
#   (`crosscoder`): what comes back is a finding, what does not is a warning.
#
# ## Next
# **06 · Testing causes**: how far can the effects, the ratios and the classes themselves be trusted? · To read more:
# Makelov et al., *Is This the Subspace You Are Looking For?* (2023), on what ablations can fool you into; McGrath et
# al., *The Hydra Effect* (2023), on parts that stand in for each other; Bayazit et al., *Crosscoding Through Time*, the
# ablation tables.
