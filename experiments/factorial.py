"""Subject or neighbour: what the model, its features and their labels are about, over training.

The two-way model of `ctt.factorial`, on pairs whose subject and attractor (its neighbour) are
crossed: for the model's own behaviour, for the effects of a triplet's crosscoder, and for those of
one crosscoder over nearly all checkpoints of the run.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

import ctt_helpers as ctt
from ctt_helpers.factorial import FACTORS, LABELS, Factorial
from experiments.context import Context

# of the embedded suite: what is asked of behaviour; of another suite, the tasks that were asked for
TASKS = (
    "agreement/pp",
    "agreement/subj_rel",
    "agreement/obj_rel",
    "agreement/reflexive_pp",
    "gender/pp",
    "polarity/pp",
    "tense/subj_rel",
    "selection/subject_pp",
)
N_FAR = 160  # pairs of the far split for effects: 40 groups of cells
SEEDS = (0, 1, 2)  # of crosscoders over many checkpoints
MANY_STEPS, MANY_BATCH, MANY_TOKENS = 300, 320, 40_000  # of their training, as in notebook 08
BEGINS = 0.02  # of the largest strength of behaviour: from there on checkpoints are among the many
DRAWN = 0.1  # of a task's largest effect: what the shares of a checkpoint with less are worth
MODEL, TRIPLET, MANY = "the model itself", "triplet", "many"

_FACTORS = (
    "subject, attractor (the neighbour) and both (the interaction): half of what changes with "
    "each factor, from its minus level to its plus level, on logit(plus form) - logit(minus form)"
)
_SHARE = "<factor>_share: its size, of the sum of the three sizes"
_FAR = "far: other nouns, verbs and another structure than find"
TABLES = {
    "factorial_behaviour": (
        f"One row for each task and checkpoint: the model's own behaviour, on the far split ({_FAR}"
        f"). No dictionary is needed. {_FACTORS}, in logits, with 95 % intervals over groups of "
        f"sentences; {_SHARE}."
    ),
    "factorial_cells": (
        "One row for each task, split and cell of the design (the subject's level first, then the "
        "attractor's, then that of a further one): share of pairs whose right form has the higher "
        "logit, at each checkpoint. congruent: all levels are the same."
    ),
    "factorial_shares": (
        "One row for each task, crosscoder and checkpoint: exact effects of all latents on the far "
        f"split ({N_FAR} pairs), or on find where it says so. crosscoder: that of the triplet; one "
        "over many checkpoints, those from which on the model's behaviour on the task with an "
        f"attractor has {BEGINS:.0%} of its largest strength ({MANY_STEPS} steps of {MANY_BATCH} "
        f"tokens, seeds {', '.join(map(str, SEEDS))}); {MODEL}: the same split of its behaviour, "
        "on the same pairs. strength: sum of the strengths of all latents, in logits. subject, "
        "attractor, both: the share of each in the sum over latents of |coefficient| (no labels; "
        "cross-fitted), with 95 % intervals over groups of sentences. net subject, net attractor: "
        "the sum of the coefficients with their signs, in logits. through <label>: share of the "
        "strength that goes through latents of that label, labelled on find with random "
        f"directions as the null. drawn: at least {DRAWN:.0%} of the task's largest strength; "
        "shares of less are shares of next to nothing."
    ),
    "factorial_labels": (
        "One row for each task, checkpoint and kind of directions, the triplet's crosscoder: how "
        "many latents have which label on find (a strength above the 95th percentile of one set of "
        "random directions, see `ctt.factorial_of`); labelled: all but none; strength: sum of "
        "theirs. kept: of the labelled, how many have the same label on far; of strength: the "
        "share of the labelled strength (find) that these have. random: a second set of random "
        "directions in the place of the trained ones, with their activations: these know numbers, "
        "too, so that a label of a random direction is true, but weak: compare strength. "
        "turned: latents that "
        "are about the attractor here and about the subject at the last checkpoint."
    ),
}


def run(context: Context) -> dict[str, pd.DataFrame]:
    asked = [task for task in TASKS if task in context.suite.task_names] or context.tasks
    tasks = [task for task in asked if in_cells(context.pairs(task, "find"))]
    if not tasks:
        print("  no task has design cells (subject x attractor): nothing is asked", flush=True)
        return {}
    print(f"  behaviour on {len(tasks)} tasks", flush=True)
    behaviour, cells = by_behaviour(context, tasks)
    own = [task for task in tasks if task in context.tasks]
    main, other = two_phenomena(own or tasks)
    print(f"  effects of the triplet's crosscoder on {len(own)} tasks", flush=True)
    nulls = {task: context.random_effects(task, "find") for task in dict.fromkeys([main, other])}
    far = {task: far_effects(context, context.crosscoder, task) for task in {*own, *nulls}}
    rows = [row for task in own for row in triplet_shares(context, task, far[task], nulls)]
    ckpts = many_checkpoints(context, behaviour, main)
    for seed in SEEDS:
        print(f"  a crosscoder over {len(ckpts)} checkpoints, seed {seed}", flush=True)
        crosscoder = train_many(context, ckpts, seed)
        for task in dict.fromkeys([main, other] if seed == SEEDS[0] else [main]):
            rows += many_shares(context, crosscoder, ckpts, task, seed)
    return {
        "factorial_behaviour": behaviour,
        "factorial_cells": cells,
        "factorial_shares": pd.DataFrame(rows),
        "factorial_labels": pd.concat([labels(context, t, far[t], nulls[t]) for t in nulls]),
    }


# ---- what is asked


def in_cells(pairs: ctt.MinimalPairs) -> bool:
    """Whether subject and attractor are crossed."""
    return {"subject", "attractor"} <= set(pairs.levels)


def two_phenomena(tasks: Sequence[str]) -> tuple[str, str]:
    """The first task, and the first of another phenomenon (or the last)."""
    first = tasks[0]
    others = [task for task in tasks if task.split("/")[0] != first.split("/")[0]]
    return first, (others or [tasks[-1]])[0]


# ---- the model's own behaviour


def by_behaviour(context: Context, tasks: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables factorial_behaviour and factorial_cells, each checkpoint read once."""
    suite = context.suite
    revisions = suite.revisions if suite.is_local else context.names
    asked = {(task, split): pairs for task in tasks for split, pairs in splits(context, task)}
    ckpts = suite.checkpoints(revisions, layer=context.ckpts.layer, device=context.ckpts.device)
    found: dict[tuple[str, str], list[torch.Tensor]] = {key: [] for key in asked}
    for model in ckpts.one_by_one():
        for key, pairs in asked.items():
            found[key].append(ctt.logit_differences(model, pairs))
    behaviour, cells = [], []
    for (task, split), each in found.items():
        pairs, differences = asked[task, split], torch.stack(each)
        cells += accuracy_by_cell(differences, pairs, ckpts.labels, task, split)
        if split == "far":
            table = own_shares(context, differences, pairs, ckpts.labels)
            behaviour.append(table.assign(task=task))
    table = pd.concat(behaviour, ignore_index=True)
    shares = [f"{name}_share" for name in FACTORS]
    columns = ["task", "checkpoint", *_with_ends(FACTORS), *_with_ends(shares)]
    return table[columns], pd.DataFrame(cells)


def splits(context: Context, task: str) -> list[tuple[str, ctt.MinimalPairs]]:
    return [("find", context.pairs(task, "find")), ("far", context.far(task))]


def accuracy_by_cell(
    differences: Float[torch.Tensor, "checkpoints pairs"],
    pairs: ctt.MinimalPairs,
    names: Sequence[str],
    task: str,
    split: str,
) -> list[dict]:
    right = (differences > 0).double() + (differences == 0).double() / 2
    rows = []
    for cell in sorted(set(pairs.cells)):
        inside = torch.from_numpy(pairs.cells == cell)
        row = {"task": task, "split": split, "cell": cell}
        row["congruent"] = "yes" if pairs.congruent[inside.numpy()].all() else "no"
        row["pairs"] = int(inside.sum())
        rows.append(row | dict(zip(names, right[:, inside].mean(1).tolist(), strict=True)))
    return rows


def own_shares(
    context: Context,
    differences: Float[torch.Tensor, "checkpoints pairs"],
    pairs: ctt.MinimalPairs,
    names: Sequence[str],
) -> pd.DataFrame:
    """The model's behaviour as if it were one feature: coefficients in logits, and their shares."""
    draws = {"n_draws": context.n_draws, "seed": context.seed}
    found = ctt.factorial_of(differences[..., None], pairs, kind="effects", names=names, **draws)
    shares = ctt.shares_of_effect(found, **draws)
    signed = ctt.behaviour_factorial(differences, pairs, names=names, **draws)
    columns = _with_ends(FACTORS)
    return shares.drop(columns=columns).assign(**{name: signed[name] for name in columns})


def _with_ends(names: Sequence[str]) -> list[str]:
    return [f"{name}{end}" for name in names for end in ("", "_low", "_high")]


# ---- effects


def share_rows(
    context: Context, found: Factorial, label: np.ndarray | None, about: dict
) -> list[dict]:
    """Rows of factorial_shares: of one task and crosscoder, or of behaviour (no label)."""
    labelled = np.full(found.label.shape, "none", object) if label is None else label
    table = ctt.shares_of_effect(found, labelled, n_draws=context.n_draws, seed=context.seed)
    rows = []
    for c, row in table.iterrows():
        new = {**about, "checkpoint": row["checkpoint"], "strength": row["strength"]}
        for name in FACTORS:
            new[name] = row[f"{name}_share"]
            new |= {f"{name} {end}": row[f"{name}_share_{end}"] for end in ("low", "high")}
        for name in FACTORS[:2]:
            new[f"net {name}"] = getattr(found, name)[c].sum()
        for name in LABELS:
            new[f"through {name}"] = np.nan if label is None else row[f"through_{name}"]
        new["drawn"] = "yes" if row["strength"] >= DRAWN * table["strength"].max() else "no"
        rows.append(new)
    return rows


def far_effects(
    context: Context, crosscoder: ctt.Crosscoder, task: str, ckpts: ctt.Checkpoints | None = None
) -> ctt.Effects:
    """On the far split, at the context's checkpoints or others."""
    return ctt.indirect_effects(crosscoder, ckpts or context.ckpts, context.far(task, N_FAR))


def shares(
    context: Context, effects: ctt.Effects, ckpts: ctt.Checkpoints, label: np.ndarray, about: dict
) -> list[dict]:
    """On the far split, beside the model's own behaviour there."""
    far = context.far(about["task"], N_FAR)
    draws = {"n_draws": context.n_draws, "seed": context.seed}
    about = about | {"split": "far"}
    rows = share_rows(context, ctt.factorial_of(effects, far, **draws), label, about)
    own = torch.stack([ctt.logit_differences(model, far) for model in ckpts])[..., None]
    own = ctt.factorial_of(own, far, kind="effects", names=ckpts.labels, **draws)
    of_model = about | {"crosscoder": f"{MODEL} ({about['crosscoder']})"}
    return rows + share_rows(context, own, None, of_model)


def triplet_shares(
    context: Context, task: str, far: ctt.Effects, nulls: dict[str, list[ctt.Effects]]
) -> list[dict]:
    null = nulls[task][0] if task in nulls else None
    about = {"task": task, "split": "far", "crosscoder": TRIPLET}
    return shares(context, far, context.ckpts, labelled(context, task, null).label, about)


def labelled(context: Context, task: str, null: ctt.Effects | None) -> Factorial:
    """The triplet's latents with their labels on find."""
    effects, pairs = context.effects(task, "find"), context.pairs(task, "find")
    return ctt.factorial_of(effects, pairs, null=null, n_draws=context.n_draws, seed=context.seed)


# ---- many checkpoints


def many_checkpoints(context: Context, behaviour: pd.DataFrame, task: str) -> ctt.Checkpoints:
    """From the first one on at which the model does something about the task."""
    own = behaviour[behaviour["task"] == task]
    strength = np.sqrt((own[list(FACTORS)] ** 2).sum(axis=1))
    first = int((strength >= BEGINS * strength.max()).to_numpy().argmax())
    revisions = own["checkpoint"].tolist()[first:]
    return context.suite.checkpoints(
        revisions, layer=context.ckpts.layer, device=context.ckpts.device
    )


def train_many(context: Context, ckpts: ctt.Checkpoints, seed: int) -> ctt.Crosscoder:
    """A crosscoder of the triplet's sizes over many checkpoints, kept in the context's folder."""
    like = context.crosscoder
    sizes = {"n_latents": like.n_latents, "decoder_norm": like.decoder_norm}
    sizes |= {"sparsity": like.sparsity} | ({"k": like.k} if like.k else {})
    crosscoder = ctt.Crosscoder(len(ckpts), ckpts.d_model, seed=seed, **sizes)
    n_tokens = min(context.train_tokens, MANY_TOKENS)
    text = context.suite.text(n_tokens, seed=seed, path=context.text)
    stream = ctt.ActivationStream(ckpts, text, batch_size=MANY_BATCH, seed=seed)
    out = context.work / f"many-{len(ckpts)}-{seed}"
    finished = (out / "train_config.json").is_file()
    context.trainings["reused" if finished else "anew"] += 1
    steps = min(context.train_config.steps, MANY_STEPS)
    ctt.train(crosscoder, stream, ctt.TrainConfig(steps=steps), out=out, device=ckpts.device)
    return crosscoder


def many_shares(
    context: Context, crosscoder: ctt.Crosscoder, ckpts: ctt.Checkpoints, task: str, seed: int
) -> list[dict]:
    """Labels and shares on find; for the first seed on far, too, with the labels of find."""
    pairs = context.pairs(task, "find")
    effects = ctt.indirect_effects(crosscoder, ckpts, pairs)
    # random directions by attribution patching: for a threshold that is near enough
    random = ctt.random_directions(crosscoder, seed)
    null = ctt.indirect_effects(random, ckpts, pairs, "atp")
    draws = {"n_draws": context.n_draws, "seed": context.seed}
    found = ctt.factorial_of(effects, pairs, null=null, **draws)
    about = {"task": task, "split": "find", "crosscoder": f"{MANY}, seed {seed}"}
    rows = share_rows(context, found, found.label, about)
    if seed == SEEDS[0]:
        far = far_effects(context, crosscoder, task, ckpts)
        rows += shares(context, far, ckpts, found.label, about | {"task": task})
    return rows


# ---- labels


def labels(
    context: Context, task: str, trained: ctt.Effects, nulls: list[ctt.Effects]
) -> pd.DataFrame:
    """The table factorial_labels of one task."""
    far = context.far(task, N_FAR)
    pairs = context.pairs(task, "find")
    draws = {"n_draws": context.n_draws, "seed": context.seed}
    limit, tested = nulls
    # the same random directions on far
    others = [ctt.random_directions(context.crosscoder, context.seed + s) for s in (0, 1)]
    far_limit, far_tested = (ctt.indirect_effects(other, context.ckpts, far) for other in others)
    rows = []
    for kind, here, there in (
        ("trained", context.effects(task, "find"), trained),
        ("random", tested, far_tested),
    ):
        one = ctt.factorial_of(here, pairs, null=limit, **draws)
        two = ctt.factorial_of(there, far, null=far_limit, **draws)
        rows += [
            {"task": task, "checkpoint": name, "directions": kind, **counted(one, two, c)}
            for c, name in enumerate(one.names)
        ]
    return pd.DataFrame(rows)


def counted(find: Factorial, far: Factorial, c: int) -> dict[str, float]:
    """How many latents have which label at checkpoint c, and how many keep it on far."""
    label, strength = find.label[c], find.strength[c]
    told = label != "none"
    kept = told & (label == far.label[c])
    turned = (label == "attractor") & (find.label[-1] == "subject")
    row = {name: int((label == name).sum()) for name in LABELS}
    row |= {"labelled": int(told.sum()), "strength": strength[told].sum()}
    row |= {"kept": int(kept.sum())}
    total = strength[told].sum()
    row["of strength"] = strength[kept].sum() / total if total > 0 else np.nan
    return row | {"turned": int(turned.sum())}
