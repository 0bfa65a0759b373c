"""The words of the embedded suite: lemmas, their forms, and the vocabulary of the tokenizer.

It also says which lemmas never stand in one sentence of the text that the model is trained on.
"""

import zlib
from dataclasses import dataclass
from functools import cache, cached_property

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<|unknown|>"
HELD_OUT_SHARE = 0.05  # of all pairs of lemmas: noun and verb, or noun and noun

# ---- topics

# Every noun, every adjective and almost every verb belongs to one topic. Verbs and adjectives
# prefer nouns of their own topic, and a document has a topic: so words predict words.
TOPICS = ("home", "school", "court", "law", "sea", "farm", "stage", "trade")

# ---- nouns and verbs

# Nouns by semantic class and topic.
# An entry is the singular, or "singular/plural" where the plural is spelt out.
# Persons before the bar are "he", persons after it are "she": the grammar decides, not the world.
NOUNS = {
    "person": {
        "home": """
            man/men brother neighbour grandchild/grandchildren
            | woman/women sister wife/wives child/children
        """,
        "school": "teacher writer scientist alumnus/alumni | student author editor tourist",
        "court": "king knight nobleman/noblemen juggler | queen princess witch heiress",
        "law": "policeman/policemen thief/thieves judge prisoner | lawyer senator mayor clerk",
        "sea": "sailor fisherman/fishermen pilot stranger | captain doctor swimmer pirate",
        "farm": """
            farmer hunter dwarf/dwarves gentleman/gentlemen
            | friend midwife/midwives chef nurse
        """,
        "stage": "actor painter poet monk | singer dancer artist elf/elves",
        "trade": """
            tailor salesman/salesmen craftsman/craftsmen fireman/firemen
            | manager waiter customer baker
        """,
    },
    "animal": {
        "home": "dog cat mouse/mice hamster louse/lice",
        "school": "owl rabbit crow fox bee",
        "court": "horse lion eagle swan peacock",
        "law": "wolf/wolves snake spider werewolf/werewolves lizard",
        "sea": "goose/geese turtle frog otter beaver",
        "farm": "cow pig calf/calves goat ox/oxen",
        "stage": "bird monkey bear elephant tiger",
        "trade": "donkey camel chicken squirrel parrot",
    },
    "artifact": {
        "home": "table chair lamp blanket",
        "school": "book clock picture puzzle",
        "court": "mirror key necklace statue",
        "law": "letter box knife/knives telescope",
        "sea": "bottle bucket ladder basket",
        "farm": "wagon kettle hammer umbrella",
        "stage": "drum violin candle scarf/scarves",
        "trade": "car bicycle carpet shelf/shelves",
    },
    "place": {
        "home": "house garden cottage",
        "school": "school library museum",
        "court": "castle tower temple",
        "law": "station hospital bridge",
        "sea": "lake island harbour",
        "farm": "village forest river",
        "stage": "church theatre mountain",
        "trade": "market factory wharf/wharves",
    },
    "food": {
        "home": "cake apple",
        "school": "egg sandwich",
        "court": "pear pie",
        "law": "onion potato/potatoes",
        "sea": "lemon melon",
        "farm": "carrot tomato/tomatoes",
        "stage": "cherry muffin",
        "trade": "loaf/loaves sausage",
    },
    "plant": {
        "home": "tree daisy",
        "school": "leaf/leaves fern",
        "court": "rose tulip",
        "law": "oak cactus/cacti",
        "sea": "vine willow",
        "farm": "bush thistle",
        "stage": "flower mushroom",
        "trade": "birch fungus/fungi",
    },
    "idea": {
        "home": "question joke",
        "school": "theory thesis/theses",
        "court": "legend prophecy",
        "law": "crisis/crises mystery",
        "sea": "story riddle",
        "farm": "game rumour",
        "stage": "song melody",
        "trade": "plan idea",
    },
}

# Verbs by what they combine with, and by the topic of the subjects that they prefer.
# An entry is the base form, or "base/past" where the past is spelt out.
VERBS = {
    # animate subject, no object
    "act": {
        "home": "sleep/slept cry/cried yawn snore",
        "school": "listen speak/spoke hesitate cough",
        "court": "smile kneel/knelt groan wave",
        "law": "run/ran shout tremble disappear",
        "sea": "swim/swam arrive return wander",
        "farm": "work climb sit/sat jump",
        "stage": "sing/sang dance laugh whisper",
        "trade": "wait complain stumble sneeze",
    },
    # animate subject, animate object
    "meet": {
        "home": "like love hug comfort",
        "school": "know/knew teach/taught notice remember",
        "court": "admire praise greet ignore envy/envied",
        "law": "find/found chase accuse blame",
        "sea": "see/saw follow call protect",
        "farm": "help trust fear visit hate",
        "stage": "hear/heard amuse mock annoy",
        "trade": "thank respect avoid warn",
    },
    # animate subject, an object that is no person
    "handle": {
        "home": "wash hide/hid clean",
        "school": "describe draw/drew examine",
        "court": "choose/chose want prefer",
        "law": "steal/stole lose/lost discover",
        "sea": "take/took carry/carried collect",
        "farm": "bring/brought borrow measure",
        "stage": "mention criticize inspect",
        "trade": "buy/bought sell/sold deliver",
    },
    # inanimate subject, no object
    "happen": {
        "home": "burn shine/shone",
        "school": "change improve",
        "court": "gleam sparkle",
        "law": "vanish appear",
        "sea": "fall/fell sway",
        "farm": "grow/grew rot",
        "stage": "fade remain",
        "trade": "age decay",
    },
}
# animate subject, a clause; of no topic
REPORT_VERBS = "say/said think/thought believe claim hope report suspect insist"
# classes of objects that verbs of the kind "handle" prefer
OBJECT_KINDS = ("artifact", "food", "plant", "idea", "artifact")
REFLEXIVE_VERBS = """
    admire praise help trust protect blame mock hate ignore respect accuse comfort amuse annoy
    warn see hear love know like
""".split()

# ---- all other words

ADJECTIVES = {  # by topic of the nouns that they prefer
    "animate": {
        "home": "old kind tired",
        "school": "young clever curious",
        "court": "proud gentle",
        "law": "honest nervous angry",
        "sea": "brave quiet",
        "farm": "hungry lazy",
        "stage": "famous happy sad",
        "trade": "polite tall",
    },
    "thing": {
        "home": "small lovely",
        "school": "new simple",
        "court": "beautiful rare",
        "law": "broken strange",
        "sea": "big green",
        "farm": "heavy dark",
        "stage": "red ugly",
        "trade": "cheap dusty",
    },
}
FREQUENCY_ADVERBS = "often never always sometimes usually rarely still seldom".split()
MANNER_ADVERBS = "quickly slowly quietly happily loudly carefully badly suddenly".split()
PREPOSITIONS = "near behind with beside by above from under".split()
NAMES = """
    Mary John Anna Peter Clara Tom Alice David Emma Paul Nora Simon Laura Felix Ruth Oscar
""".split()
NEUTRAL_DETERMINERS = "the my our".split()  # with a singular and with a plural
POSSESSIVES = {"he": "his", "she": "her"}  # of a person's pronoun; before an object
SINGULAR_DETERMINERS = "a this that every".split()
PLURAL_DETERMINERS = "these those some many two".split()
NEGATIVE_DETERMINERS = "no few".split()  # "no" with both numbers, "few" with a plural
DEMONSTRATIVES = (("this", "these"), ("that", "those"))  # (singular, plural)
PRONOUNS = (("he", "she", "it"), ("they", "we"))  # singular ones, plural ones
# a time adverb, with which a sentence can begin, and the tense of its verb
TIMES = {"yesterday": "past", "now": "present", "today": "present", "tomorrow": "future"}
FUNCTION_WORDS = """
    is are was were does do did not and that an himself herself itself themselves
    any ever will his her
""".split()
# all words but names that a sentence can begin with
OPENERS = [
    *NEUTRAL_DETERMINERS,
    *SINGULAR_DETERMINERS,
    "an",
    *PLURAL_DETERMINERS,
    *NEGATIVE_DETERMINERS,
    *PRONOUNS[0],
    *PRONOUNS[1],
    *TIMES,
]

# ---- lemmas and their forms


@dataclass(frozen=True)
class Noun:
    """A noun lemma.

    Attributes:
        singular: the form that also names the lemma.
        plural: the other form.
        kind: the semantic class, a key of `NOUNS`.
        topic: one of `TOPICS`.
        pronoun: "he" or "she" for a person, else "it".
        irregular: whether the plural is more than the singular with -s or -es.
        far: kept for the minimal pairs of the split "far".
    """

    singular: str
    plural: str
    kind: str
    topic: str
    pronoun: str
    irregular: bool
    far: bool

    @property
    def animate(self) -> bool:
        """Whether it is a person or an animal."""
        return self.kind in ("person", "animal")

    @property
    def possessive(self) -> str | None:
        """The possessive determiner of a person in the singular."""
        return POSSESSIVES.get(self.pronoun)

    @property
    def reflexive(self) -> str:
        """The reflexive pronoun of the singular."""
        return {"he": "himself", "she": "herself", "it": "itself"}[self.pronoun]

    def form(self, plural: bool) -> str:
        """The plural, or the singular."""
        return self.plural if plural else self.singular


@dataclass(frozen=True)
class Verb:
    """A verb lemma.

    Attributes:
        base: the form that also names the lemma; it is the plural present too.
        third: third person singular present.
        past: the past tense, for both numbers.
        kind: what the verb combines with, a key of `VERBS`, or "report".
        topic: of the subjects that it prefers; None for a verb that reports.
        object_topic: of the objects that it prefers, drawn by lot.
        object_kind: the class of objects that a verb of the kind "handle" prefers, drawn by lot.
        far: kept for the minimal pairs of the split "far".
    """

    base: str
    third: str
    past: str
    kind: str
    topic: str | None
    object_topic: str
    object_kind: str
    far: bool

    def form(self, plural: bool) -> str:
        """The present form for a plural subject, or for a singular one."""
        return self.base if plural else self.third


def _lot(purpose: str, word: str) -> int:
    """A number that depends on nothing but its arguments."""
    return zlib.crc32(f"{purpose}|{word}".encode())


def is_far(lemma: str) -> bool:
    """Whether a noun or a verb is kept for the minimal pairs of the split "far"; a third are.

    The model is trained on all of them alike: only what one finds is held out, not what it learns.
    """
    return _lot("far", lemma) % 3 == 0


def _with_s(word: str) -> str:
    """The word with a regular -s: of the plural, or of the third person."""
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    return word + "s"


def _regular_past(base: str) -> str:
    if base in ("prefer", "hug", "rot"):
        return base + base[-1] + "ed"
    if base.endswith("e"):
        return base + "d"
    return base + "ed"


def _verb(entry: str, kind: str, topic: str | None) -> Verb:
    base, _, past = entry.partition("/")
    return Verb(
        base=base,
        third=_with_s(base),
        past=past or _regular_past(base),
        kind=kind,
        topic=topic,
        object_topic=TOPICS[_lot("object", base) % len(TOPICS)],
        object_kind=OBJECT_KINDS[_lot("object kind", base) % len(OBJECT_KINDS)],
        far=is_far(base),
    )


def _noun(entry: str, kind: str, topic: str, pronoun: str) -> Noun:
    singular, _, plural = entry.partition("/")
    # "potatoes" is spelt out, but it is a regular plural
    irregular = bool(plural) and plural != singular + "es"
    return Noun(
        singular=singular,
        plural=plural or _with_s(singular),
        kind=kind,
        topic=topic,
        pronoun=pronoun,
        irregular=irregular,
        far=is_far(singular),
    )


def _by_rank(by_topic: dict[str, list]) -> list:
    """The entries of all topics, the most frequent first.

    The first of each topic come first, then the second of each, and so on. Each round begins with
    another topic, so that no topic is much more frequent than another.
    """
    out = []
    for rank in range(max(map(len, by_topic.values()))):
        for i in range(len(TOPICS)):
            entries = by_topic[TOPICS[(i + rank) % len(TOPICS)]]
            if rank < len(entries):
                out.append(entries[rank])
    return out


def _nouns(kind: str) -> list[Noun]:
    """The nouns of a class, the most frequent first."""
    by_topic = {}
    for place, (topic, text) in enumerate(NOUNS[kind].items()):
        if kind != "person":
            by_topic[topic] = [_noun(entry, kind, topic, "it") for entry in text.split()]
            continue
        he, she = (part.split() for part in text.split("|"))
        couples = [
            (_noun(a, kind, topic, "he"), _noun(b, kind, topic, "she"))
            for a, b in zip(he, she, strict=True)
        ]
        # in every other topic "she" comes first, so that neither is more frequent
        by_topic[topic] = [noun for couple in couples for noun in couple[:: 1 - 2 * (place % 2)]]
    return _by_rank(by_topic)


def _verbs(kind: str) -> list[Verb]:
    """The verbs of a kind, the most frequent first."""
    if kind == "report":
        return [_verb(entry, kind, None) for entry in REPORT_VERBS.split()]
    return _by_rank(
        {
            topic: [_verb(entry, kind, topic) for entry in text.split()]
            for topic, text in VERBS[kind].items()
        }
    )


def adjectives(kind: str) -> list[tuple[str, str]]:
    """(adjective, topic) for "animate" or "thing", the most frequent first."""
    return _by_rank(
        {topic: [(word, topic) for word in t.split()] for topic, t in ADJECTIVES[kind].items()}
    )


# ---- the lexicon


@dataclass(frozen=True)
class Lexicon:
    """Every lemma, and the vocabulary that their forms make.

    Attributes:
        nouns: lemma (the singular) -> noun.
        verbs: lemma (the base form) -> verb.
    """

    nouns: dict[str, Noun]
    verbs: dict[str, Verb]

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Token text -> id.

        A leading space belongs to the word, as in the tokenizers of GPT-2 and Pythia. The first
        word of a document has none.
        """
        words = [*FUNCTION_WORDS, *OPENERS, *PREPOSITIONS, *FREQUENCY_ADVERBS, *MANNER_ADVERBS]
        words += NAMES
        words += [word for kind in ADJECTIVES for word, _ in adjectives(kind)]
        for noun in self.nouns.values():
            words += [noun.singular, noun.plural]
        for verb in self.verbs.values():
            words += [verb.base, verb.third, verb.past]
        capital = [word.capitalize() for word in OPENERS]
        tokens = [END_OF_TEXT, UNKNOWN, "."]
        tokens += [*capital, *NAMES]
        tokens += [f" {word}" for word in [*capital, *words]]
        # some words are in two lists ("that", "old"); the first place counts
        distinct = dict.fromkeys(tokens)
        return {token: i for i, token in enumerate(distinct)}

    def nouns_of(self, *kinds: str) -> list[Noun]:
        """The nouns of some classes, in the order of the lexicon."""
        return [noun for noun in self.nouns.values() if noun.kind in kinds]

    def verbs_of(self, *kinds: str) -> list[Verb]:
        """The verbs of some classes, in the order of the lexicon."""
        return [verb for verb in self.verbs.values() if verb.kind in kinds]


@cache
def lexicon() -> Lexicon:
    """The lexicon; made once."""
    nouns = [noun for kind in NOUNS for noun in _nouns(kind)]
    verbs = [verb for kind in [*VERBS, "report"] for verb in _verbs(kind)]
    return Lexicon(
        nouns={noun.singular: noun for noun in nouns}, verbs={verb.base: verb for verb in verbs}
    )


def held_out(lemma: str, other: str) -> bool:
    """Whether two lemmas, two nouns or a noun and a verb, never meet in a sentence of running text.

    A hash of the two decides, the same for every seed. So the lexicon alone tells what the minimal
    pairs test that the model has not seen.
    """
    if lemma == other:
        return False
    key = "+".join(sorted((lemma, other)))
    return zlib.crc32(key.encode()) % 1000 < HELD_OUT_SHARE * 1000
