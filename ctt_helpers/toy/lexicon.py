"""The words of the embedded suite: lemmas, their forms, and the vocabulary of the tokenizer.

It also says which lemmas never stand in one sentence of the text that the model is trained on.
"""

import zlib
from dataclasses import dataclass
from functools import cache, cached_property

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<|unknown|>"
HELD_OUT_SHARE = 0.03  # of all pairs of lemmas: noun and verb, or noun and noun

# ---- nouns and verbs

# Nouns by semantic class, the most frequent first.
# An entry is the singular, or "singular/plural" where the plural is spelt out.
NOUNS = {
    "person": """
        man/men woman/women author child/children teacher doctor guard student friend king lawyer
        wife/wives farmer soldier sister artist brother thief/thieves neighbour queen
        policeman/policemen pilot baker singer nurse judge writer fisherman/fishermen customer
        manager painter driver dancer senator poet sailor gentleman/gentlemen tailor waiter hunter
        elf/elves actor grandchild/grandchildren chef scientist mayor salesman/salesmen barber
        knight midwife/midwives princess merchant clerk dwarf/dwarves prisoner tourist
        nobleman/noblemen plumber monk fireman/firemen witch editor craftsman/craftsmen juggler
        alumnus/alumni heiress stranger
    """,
    "animal": """
        dog cat horse bird wolf/wolves cow mouse/mice lion rabbit goose/geese bear monkey chicken
        pig tiger elephant calf/calves frog spider goat ox/oxen snake donkey owl fox bee turtle
        eagle squirrel werewolf/werewolves camel beaver hamster crow louse/lice otter
    """,
    "artifact": """
        book car table box knife/knives letter lamp bottle picture chair clock key basket mirror
        shelf/shelves statue wagon candle drum violin bicycle hammer scarf/scarves ladder carpet
        blanket kettle puzzle necklace telescope bucket umbrella
    """,
    "place": """
        house school garden river bridge tower church castle forest village market mountain lake
        museum factory island library station wharf/wharves hospital temple harbour cottage
    """,
    "food": """
        apple cake egg pear loaf/loaves sandwich potato/potatoes cookie lemon pie tomato/tomatoes
        sausage onion pancake carrot cherry muffin melon biscuit
    """,
    "plant": """
        tree flower leaf/leaves bush rose oak cactus/cacti fern daisy fungus/fungi mushroom vine
        tulip thistle willow birch
    """,
    "idea": """
        story song plan game question idea crisis/crises rumour theory poem riddle lesson legend
        thesis/theses joke prophecy mystery melody
    """,
}
# nouns for which "himself" would be wrong
FEMALE = {"woman", "wife", "sister", "queen", "midwife", "princess", "witch", "heiress"}
# nouns for which "herself" would be wrong
MALE = {
    "man", "king", "brother", "policeman", "fisherman", "gentleman", "salesman", "nobleman",
    "monk", "fireman", "craftsman",
}  # fmt: skip

# Verbs by what they combine with, the most frequent first.
# An entry is the base form, or "base/past" where the past is spelt out.
VERBS = {
    # animate subject, no object
    "act": """
        laugh sleep/slept smile run/ran sing/sang wait work dance swim/swam arrive cry/cried
        listen sit/sat speak/spoke cough shout sneeze jump tremble yawn whisper wander stumble
        kneel/knelt climb hesitate groan return disappear snore complain
    """,
    # animate subject, animate object
    "meet": """
        like see/saw know/knew love help follow admire hear/heard call find/found visit praise
        fear trust chase notice teach/taught hate greet thank ignore respect remember protect hug
        warn annoy amuse blame avoid accuse envy/envied mock comfort
    """,
    # animate subject, an object that is no person
    "handle": """
        take/took bring/brought carry/carried buy/bought want sell/sold draw/drew lose/lost
        describe choose/chose examine hide/hid steal/stole wash mention prefer collect borrow
        discover deliver inspect criticize measure
    """,
    # animate subject, a clause
    "report": "say/said think/thought believe claim hope report suspect insist",
    # inanimate subject, no object
    "happen": """
        fall/fell change vanish shine/shone appear remain grow/grew rot burn sway fade decay
        shrink/shrank improve age gleam sparkle
    """,
}
REFLEXIVE_VERBS = """
    admire praise help trust protect blame mock hate ignore respect accuse comfort amuse annoy
    warn see hear love know like
""".split()

# ---- all other words

ADJECTIVES = {
    "animate": """
        old young happy tall clever sad brave kind famous hungry lazy angry polite quiet nervous
        proud curious honest gentle tired
    """.split(),
    "thing": """
        new small big beautiful strange red green heavy broken famous old cheap dusty rare dark
        simple lovely ugly
    """.split(),
}
FREQUENCY_ADVERBS = "often never always sometimes usually rarely still seldom".split()
MANNER_ADVERBS = "quickly slowly quietly happily loudly carefully badly suddenly".split()
PREPOSITIONS = "near behind with beside by above from under".split()
NAMES = """
    Mary John Anna Peter Clara Tom Alice David Emma Paul Nora Simon Laura Felix Ruth Oscar
""".split()
NEUTRAL_DETERMINERS = "the my our his her".split()  # with a singular and with a plural
SINGULAR_DETERMINERS = "a this that every".split()
PLURAL_DETERMINERS = "these those some many two".split()
DEMONSTRATIVES = (("this", "these"), ("that", "those"))  # (singular, plural)
PRONOUNS = (("he", "she", "it"), ("they", "we"))  # singular ones, plural ones
FUNCTION_WORDS = """
    is are was were does do did not and that an himself herself itself themselves
""".split()
# all words but names that a sentence can begin with
OPENERS = [
    *NEUTRAL_DETERMINERS,
    *SINGULAR_DETERMINERS,
    "an",
    *PLURAL_DETERMINERS,
    *PRONOUNS[0],
    *PRONOUNS[1],
]

# ---- lemmas and their forms


@dataclass(frozen=True)
class Noun:
    """A noun lemma.

    Attributes:
        singular: the form that also names the lemma.
        plural: the other form.
        kind: the semantic class, a key of `NOUNS`.
        irregular: whether the plural is more than the singular with -s or -es.
    """

    singular: str
    plural: str
    kind: str
    irregular: bool

    @property
    def animate(self) -> bool:
        """Whether it is a person or an animal."""
        return self.kind in ("person", "animal")

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
        kind: what the verb combines with, a key of `VERBS`.
    """

    base: str
    third: str
    past: str
    kind: str

    def form(self, plural: bool) -> str:
        """The present form for a plural subject, or for a singular one."""
        return self.base if plural else self.third


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


def _verb(entry: str, kind: str) -> Verb:
    base, _, past = entry.partition("/")
    return Verb(base=base, third=_with_s(base), past=past or _regular_past(base), kind=kind)


def _noun(entry: str, kind: str) -> Noun:
    singular, _, plural = entry.partition("/")
    # "potatoes" is spelt out, but it is a regular plural
    irregular = bool(plural) and plural != singular + "es"
    return Noun(
        singular=singular, plural=plural or _with_s(singular), kind=kind, irregular=irregular
    )


def reflexives(person: str) -> list[str]:
    """Those of "himself" and "herself" that the singular of a noun can take: one, or both."""
    fitting = []
    if person not in FEMALE:
        fitting.append("himself")
    if person not in MALE:
        fitting.append("herself")
    return fitting


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
        words += [*NAMES, *ADJECTIVES["animate"], *ADJECTIVES["thing"]]
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
    nouns = [_noun(entry, kind) for kind, entries in NOUNS.items() for entry in entries.split()]
    verbs = [_verb(entry, kind) for kind, entries in VERBS.items() for entry in entries.split()]
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
