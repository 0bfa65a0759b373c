"""Is a name of a feature any good? A name is a prediction: in which sentences is it active?

Sentences are drawn that nobody has seen, half of them with the feature active. A reader who is
given the name, and nothing else, says of each whether the feature is active. The reader may be a
person, a rule such as a list of words, or a language model that answers a file. A good name tells
them apart; a name that is too broad says yes too often, one that is too narrow no too often.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ctt_helpers.arguments import checked
from ctt_helpers.evaluation import ActivePlaces, active_places
from ctt_helpers.files import expanded, read_json, read_text, write_rows
from ctt_helpers.messages import abridged, choose, whole_number
from ctt_helpers.pairs import start_token
from ctt_helpers.planted import auroc

if TYPE_CHECKING:
    from ctt_helpers.crosscoder import Crosscoder
    from ctt_helpers.sources.checkpoints import Checkpoints

ENDS = (".", "!", "?")  # of a sentence
FEWEST, MOST = 3, 60  # tokens of a sentence
YES = {"yes", "y", "true", "1", "active", "on"}
NO = {"no", "n", "false", "0", "inactive", "off"}
COLUMNS = ("item", "sentence", "answer")
GUESSES = 2000  # random orders, for what guessing reaches
SELDOM = 0.95
Z = 1.96  # of a 95 % interval
KINDS = ("balanced accuracy", "AUROC")

Answers = Mapping[str, bool | float]

# ---- the questions


@dataclass(frozen=True)
class Sentences:
    """Sentences of a text, and how active some features are in each.

    Attributes:
        features: which.
        text: [sentences] as they are read.
        peak: [sentences, features] the largest activation of each feature in each sentence.
    """

    features: list[int]
    text: list[str]
    peak: Float[np.ndarray, "sentences features"] = field(repr=False)


@checked
def sentences_of(
    crosscoder: Crosscoder,
    ckpts: Checkpoints,
    text: Int[Tensor, "sequences length"],
    features: Sequence[int],
    shown: Int[Tensor, "more length"] | None = None,
) -> Sentences:
    """The whole sentences of a text, each once, with the activations of some features.

    A sentence ends with a full stop, an exclamation or a question mark, or where a document ends;
    what is cut off by a row's end is left out, and so are sentences of fewer than 3 or more than 60
    tokens.

    Args:
        text: other text than names were made from.
        shown: the text that names were made from: sentences that stand there, letter for letter,
            are left out.

    Raises:
        ValueError: as `active_places`; or no sentence is left.
    """
    places = active_places(crosscoder, ckpts, text, features)
    seen = {said for _, _, _, said in _cut(ckpts.tokenizer, shown)} if shown is not None else set()
    spans = []
    for row, start, end, said in _cut(ckpts.tokenizer, text):
        if said not in seen:
            seen.add(said)
            spans.append((row, start, end, said))
    if not spans:
        raise ValueError(
            "No whole sentence is left: give more text, other text than was shown, or longer rows."
        )
    number = np.full(tuple(text.shape), -1)
    for i, (row, start, end, _) in enumerate(spans):
        number[row, start:end] = i
    peak = np.zeros((len(spans), len(places.features)), np.float32)
    for column in range(len(places.features)):
        inside = number[places.sequence[column], places.position[column]]
        counted = inside >= 0
        np.maximum.at(peak[:, column], inside[counted], places.value[column][counted])
    return Sentences(places.features, [said for *_, said in spans], peak)


def _cut(tokenizer: Any, text: Int[Tensor, "sequences length"]) -> list[tuple[int, int, int, str]]:
    """(row, start, end, sentence) of all whole sentences; the first token is no part of any."""
    special = set(tokenizer.all_special_ids)
    words = {i: tokenizer.decode([i]) for i in torch.unique(text).tolist()}
    ends = {i for i, word in words.items() if word.strip().endswith(ENDS)}
    found = []
    for row, ids in enumerate(text.tolist()):
        # a row begins with the start token, and may begin amid a sentence
        start = 1 if words[ids[1]].strip()[:1].isupper() else None
        for at in range(1, len(ids)):
            if ids[at] not in special and ids[at] not in ends:
                continue
            end = at if ids[at] in special else at + 1
            if start is not None and FEWEST <= end - start <= MOST:
                said = tokenizer.decode(ids[start:end]).strip()
                found.append((row, start, end, said))
            start = at + 1
    return found


@dataclass(frozen=True)
class NamingTest:
    """Sentences to be asked about, in random order, and the truth.

    Attributes:
        feature: which.
        items: a short mark of each, made of feature and sentence.
        sentences: what is read.
        active: [sentences] whether the feature is active in it.
        peak: [sentences] its largest activation there.
    """

    feature: int
    items: list[str]
    sentences: list[str]
    active: Bool[np.ndarray, " sentences"] = field(repr=False)
    peak: Float[np.ndarray, " sentences"] = field(repr=False)

    @checked
    def ask(self, path: str | Path) -> Path:
        """Write the questions as CSV: item, sentence, and an empty column for the answer.

        The truth is not in the file. Tell the reader the name, and this: "Is the feature active
        somewhere in the sentence? Answer yes or no, or with a probability from 0 to 1."

        Raises:
            FileExistsError: there is a file already, which may hold answers.
        """
        path = expanded(path)
        if path.exists():
            raise FileExistsError(
                f"{path} is there already, and may hold answers: it is left as it is. Give another "
                "name, or move it away."
            )
        write_rows(
            path, COLUMNS, zip(self.items, self.sentences, [""] * len(self.items), strict=True)
        )
        return path

    @checked
    def answer(self, reader: Callable[[str], bool | float]) -> dict[str, bool | float]:
        """The answers of a function of a sentence, such as a rule."""
        return {item: reader(said) for item, said in zip(self.items, self.sentences, strict=True)}


@checked
def naming_test(
    sentences: Sentences, feature: int, n: int = 20, seed: int = 0, least: float = 0.0
) -> NamingTest:
    """Draw `n` sentences in which a feature is active, and `n` in which it is not at all.

    Args:
        sentences: from `sentences_of`, of text that names were not made from.
        feature: one of theirs.
        n: of each kind.
        seed: of the draw and the order.
        least: active means a peak above this share of the feature's largest: 0 takes all in, also
            the weakest, which names seldom cover; those between are then left out.

    Raises:
        ValueError: no such feature there, or too few sentences of a kind.
    """
    n = whole_number("n", n)
    if feature not in sentences.features:
        raise ValueError(
            f"Feature {feature} was not asked for in sentences_of(...), which has "
            f"{abridged(sentences.features)}."
        )
    if not 0 <= least < 1:
        raise ValueError(f"least={least} is a share of the largest activation: 0 <= least < 1.")
    peak = sentences.peak[:, sentences.features.index(feature)]
    kinds = {"active": peak > least * peak.max(initial=0), "inactive": peak == 0}
    draw = np.random.default_rng([seed, feature])
    chosen = []
    for kind, inside in kinds.items():
        there = np.flatnonzero(inside)
        if len(there) < n:
            raise ValueError(
                f"Feature {feature} is {kind} in {len(there)} of {len(peak)} sentences, and n={n} "
                "are wanted: give more text, or a smaller n."
            )
        chosen += draw.choice(there, n, replace=False).tolist()
    chosen = draw.permutation(chosen)
    return NamingTest(
        feature=feature,
        items=[_mark(feature, sentences.text[i]) for i in chosen],
        sentences=[sentences.text[i] for i in chosen],
        active=peak[chosen] > 0,
        peak=peak[chosen],
    )


def _mark(feature: int, sentence: str) -> str:
    digest = hashlib.sha256(f"{feature}/{sentence}".encode()).hexdigest()
    return f"{feature}-{digest[:8]}"


# ---- the answers


@checked
def read_answers(path: str | Path) -> dict[str, bool | float]:
    """Answers from a file: of a person, or of a language model.

    CSV with the columns item and answer (others are let be), as `NamingTest.ask` writes them; or
    JSON, a list of {"item": ..., "answer": ...} or one object {item: answer}. An answer is yes or
    no (also true, false, active, inactive), or a probability from 0 to 1.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another kind of file, no such columns, an item that comes twice, or an answer
            that is none; the message names item or line.
    """
    path = expanded(path)
    if path.suffix == ".json":
        given = _from_json(path)
    elif path.suffix == ".csv":
        given = _from_csv(path)
    else:
        raise ValueError(f"{path}: answers come as .csv or .json.")
    answers: dict[str, bool | float] = {}
    for item, answer, where in given:
        if item in answers:
            raise ValueError(f"{path}, {where}: {item} is answered a second time.")
        answers[item] = _as_answer(answer, f"{path}, {where} ({item})")
    if not answers:
        raise ValueError(f"{path} holds no answers.")
    return answers


def _from_csv(path: Path) -> list[tuple[str, Any, str]]:
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""), restval="")
    if not {"item", "answer"} <= set(rows.fieldnames or ()):
        raise ValueError(
            f"{path} has the columns {abridged(rows.fieldnames or ['none'])}; it needs item and "
            "answer, as NamingTest.ask(path) writes them."
        )
    return [(row["item"], row["answer"], f"line {rows.line_num}") for row in rows]


def _from_json(path: Path) -> list[tuple[str, Any, str]]:
    given = read_json(path)
    if isinstance(given, dict):
        return [(item, answer, "key") for item, answer in given.items()]
    if isinstance(given, list) and all(
        isinstance(one, dict) and {"item", "answer"} <= set(one) for one in given
    ):
        return [(str(o["item"]), o["answer"], f"entry {i}") for i, o in enumerate(given, 1)]
    raise ValueError(
        f'{path}: give a list of {{"item": ..., "answer": ...}}, or one object {{item: answer}}.'
    )


def _as_answer(answer: Any, where: str) -> bool | float:
    if isinstance(answer, bool):
        return answer
    said = str(answer).strip().strip(".").lower()
    if said in YES | NO:
        return said in YES
    try:
        number = float(said)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        shown = "nothing" if not said else repr(answer)
        raise ValueError(
            f"{where}: the answer is {shown}; write yes or no, or a probability from 0 to 1."
        )
    return number


# ---- words


@checked
def words_in(tokenizer: Any, sentence: str) -> set[str]:
    """The tokens of a sentence, without blanks and capitals."""
    start_token(tokenizer)
    return {_word(tokenizer, i) for i in tokenizer(sentence, add_special_tokens=False)["input_ids"]}


def _word(tokenizer: Any, token: int) -> str:
    return tokenizer.decode([token]).strip().lower()


@checked
def word_shares(
    places: ActivePlaces, tokenizer: Any, text: Int[Tensor, "sequences length"]
) -> dict[int, pd.Series]:
    """On which words a feature is active: for each, the share of its occurrences in a text.

    A token with and without a blank or a capital is one word. First tokens of a row do not count.

    Args:
        places: `active_places` of this text.

    Returns:
        feature -> word -> share, of words on which it is active at all, the largest first.

    Raises:
        ValueError: another text than the places are of, or no tokenizer.
    """
    start_token(tokenizer)
    ids = text.cpu().numpy()
    if ids.ndim != 2 or ids[:, 1:].size != places.n_tokens:
        raise ValueError(
            f"text has shape {ids.shape}, and the places are of {places.n_tokens} tokens (first "
            "ones left out): give the text of active_places(...)."
        )
    if not 0 <= ids.min() <= ids.max() < len(tokenizer):
        raise ValueError(f"text holds ids outside of the tokenizer's, 0 to {len(tokenizer) - 1}.")
    token, seen = np.unique(ids[:, 1:], return_counts=True)
    words = [_word(tokenizer, i) for i in token.tolist()]
    found = {}
    for column, feature in enumerate(places.features):
        active = ids[places.sequence[column], places.position[column]]
        fired = np.zeros(len(token), int)
        np.add.at(fired, np.searchsorted(token, active), 1)
        counts = pd.DataFrame({"fired": fired, "seen": seen}, index=words).groupby(level=0).sum()
        share = counts["fired"] / counts["seen"]
        found[feature] = share[share > 0].sort_values(ascending=False, kind="stable")
    return found


# ---- names that imply a rule


@dataclass(frozen=True)
class Name:
    """What somebody calls a feature, and what follows for a sentence.

    Attributes:
        feature: which.
        name: in words, after all of its page was read.
        first: what it was called after the strongest examples alone.
        rule: a regular expression; the feature should be active where it is found, in either case.
    """

    feature: int
    name: str
    first: str
    rule: str

    def __call__(self, sentence: str) -> bool:
        """Whether the name says that the feature is active somewhere in this sentence."""
        return re.search(self.rule, sentence, re.IGNORECASE) is not None


@checked
def read_names(path: str | Path) -> dict[int, Name]:
    """Names of features, from a JSON file.

    It holds "names", a list of {"feature", "name", "first", "rule"}, and may hold "words": name of
    a list -> words with blanks between, which {name} in a rule stands for.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, a feature comes twice, or a rule is no regular expression.
    """
    given = read_json(expanded(path))
    keys = {"feature", "name", "first", "rule"}
    rows = given.get("names") if isinstance(given, dict) else None
    if not isinstance(rows, list) or not all(isinstance(r, dict) and keys <= set(r) for r in rows):
        raise ValueError(
            f'{path} must hold {{"names": [{{"feature": ..., "name": ..., "first": ..., "rule": '
            "...}, ...]}."
        )
    lists = {name: "|".join(words.split()) for name, words in given.get("words", {}).items()}
    found: dict[int, Name] = {}
    for row in rows:
        feature, rule = row["feature"], row["rule"]
        if feature in found:
            raise ValueError(f"{path} names feature {feature} twice.")
        for name, words in lists.items():
            rule = rule.replace(f"{{{name}}}", f"(?:{words})")
        try:
            re.compile(rule)
        except re.error as error:
            raise ValueError(
                f"{path}: the rule of feature {feature}, {row['rule']!r}, is no regular expression "
                f"({error})."
            ) from error
        found[feature] = Name(feature, row["name"], row["first"], rule)
    return found


# ---- the score


@dataclass(frozen=True)
class Score:
    """How well a name tells active from inactive sentences.

    Attributes:
        kind: "balanced accuracy", or "AUROC" of graded answers.
        value: 0 to 1; guessing gives 0.5 on average.
        low, high: a 95 % interval.
        guessing: what 95 % of guessers stay below: the same answers in random order.
        said_active: share of the active sentences with a yes (an answer above 0.5): low for a name
            that is too narrow.
        said_inactive: share of the inactive ones with a no: low for a name that is too broad.
        n_active, n_inactive: sentences.
    """

    kind: str
    value: float
    low: float
    high: float
    guessing: float
    said_active: float
    said_inactive: float
    n_active: int
    n_inactive: int

    def __str__(self) -> str:
        return (
            f"{self.kind} {self.value:.2f} [{self.low:.2f}, {self.high:.2f}] (chance 0.5, guessing "
            f"seldom above {self.guessing:.2f}); yes in {self.said_active:.0%} of "
            f"{self.n_active} active, no in {self.said_inactive:.0%} of {self.n_inactive} inactive"
        )


@checked
def score(test: NamingTest, answers: Answers, kind: str | None = None, seed: int = 0) -> Score:
    """Score the answers to a test.

    Balanced accuracy is the mean of the two shares that are right, of active and of inactive
    sentences; an answer of exactly 0.5 counts half. AUROC is the chance that an active sentence has
    a higher answer than an inactive one, ties counting half.

    The interval of the balanced accuracy puts together the Wilson intervals of the two shares
    (Newcombe 1998, "square and add"), so that a perfect score of few sentences is no certainty.
    That of AUROC is Wilson's for as many sentences as the smaller kind has, which is wide enough,
    for the variance of an AUROC A is at most A (1 - A) / min(active, inactive) (Van Dantzig 1951).

    Args:
        test: from `naming_test`.
        answers: item -> yes or no, or a probability: of `read_answers` or `NamingTest.answer`.
        kind: one of `KINDS`. None: AUROC if any answer is neither 0 nor 1.
        seed: of the guessers.

    Raises:
        ValueError: an item without an answer, answers to another test, or an unknown kind.
    """
    missing = [item for item in test.items if item not in answers]
    if missing:
        other = "" if len(missing) < len(test.items) else " These are answers to another test."
        raise ValueError(
            f"{len(missing)} of {len(test.items)} items have no answer, such as {missing[0]}."
            f"{other} Answer all, or draw the test again with the same text, feature, n and seed."
        )
    if unknown := [item for item in answers if item not in set(test.items)]:
        raise ValueError(
            f"{unknown[0]} is no item of this test: give the answers to this one alone."
        )
    said = np.array([float(_as_answer(answers[item], item)) for item in test.items])
    graded = bool(((said != 0) & (said != 1)).any())
    kind = kind or KINDS[graded]
    choose("kind", kind, KINDS)
    of = _balanced if kind == KINDS[0] else auroc
    value = of(said, test.active)
    draw = np.random.default_rng(seed)
    guesses = [of(said, draw.permutation(test.active)) for _ in range(GUESSES)]
    n = int(test.active.sum()), int((~test.active).sum())
    shares = _right(said[test.active]), _right(1 - said[~test.active])
    if kind == KINDS[0]:
        ends = [wilson(share, size) for share, size in zip(shares, n, strict=True)]
        below = math.hypot(*(share - end[0] for share, end in zip(shares, ends, strict=True)))
        above = math.hypot(*(end[1] - share for share, end in zip(shares, ends, strict=True)))
        low, high = value - below / 2, value + above / 2
    else:
        low, high = wilson(value, min(n))
    return Score(
        kind=kind,
        value=value,
        low=max(0.0, low),
        high=min(1.0, high),
        guessing=float(np.quantile(guesses, SELDOM)),
        said_active=shares[0],
        said_inactive=shares[1],
        n_active=n[0],
        n_inactive=n[1],
    )


def _right(towards: Float[np.ndarray, " sentences"]) -> float:
    return float(((towards > 0.5) + 0.5 * (towards == 0.5)).mean())


def _balanced(said: Float[np.ndarray, " n"], active: Bool[np.ndarray, " n"]) -> float:
    return (_right(said[active]) + _right(1 - said[~active])) / 2


@checked
def wilson(share: float, n: int, z: float = Z) -> tuple[float, float]:
    """Wilson's interval of a share of n.

    Raises:
        ValueError: a share outside 0 to 1, n below 1, or z below 0.
    """
    if not 0 <= share <= 1 or n < 1 or not 0 <= z < math.inf:
        raise ValueError(f"share={share}, n={n}, z={z}: take 0 <= share <= 1, n >= 1, z >= 0.")
    middle = share + z**2 / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)
