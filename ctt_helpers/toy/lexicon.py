"""The words of the embedded suite: lemmas and their forms, the vocabulary, and which lemmas never meet in training."""

import zlib
from dataclasses import dataclass
from functools import cache, cached_property

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<|unknown|>"
HELD_OUT_SHARE = 0.03  # of (noun, verb) and of (noun, noun) lemma pairs

# Nouns by semantic class, most frequent first; "singular/plural" where the plural is not regular.
NOUNS = {
    "person": """man/men woman/women author child/children teacher doctor guard student friend king lawyer wife/wives
        farmer soldier sister artist brother thief/thieves neighbour queen policeman/policemen pilot baker singer
        nurse judge writer fisherman/fishermen customer manager painter driver dancer senator poet sailor
        gentleman/gentlemen tailor waiter hunter elf/elves actor grandchild/grandchildren chef scientist mayor
        salesman/salesmen barber knight midwife/midwives princess merchant clerk dwarf/dwarves prisoner tourist
        nobleman/noblemen plumber monk fireman/firemen witch editor craftsman/craftsmen juggler alumnus/alumni
        heiress stranger""",
    "animal": """dog cat horse bird wolf/wolves cow mouse/mice lion rabbit goose/geese bear monkey chicken pig tiger
        elephant calf/calves frog spider goat ox/oxen snake donkey owl fox bee turtle eagle squirrel
        werewolf/werewolves camel beaver hamster crow louse/lice otter""",
    "artifact": """book car table box knife/knives letter lamp bottle picture chair clock key basket mirror
        shelf/shelves statue wagon candle drum violin bicycle hammer scarf/scarves ladder carpet blanket kettle
        puzzle necklace telescope bucket umbrella""",
    "place": """house school garden river bridge tower church castle forest village market mountain lake museum
        factory island library station wharf/wharves hospital temple harbour cottage""",
    "food": """apple cake egg pear loaf/loaves sandwich potato/potatoes cookie lemon pie tomato/tomatoes sausage
        onion pancake carrot cherry muffin melon biscuit""",
    "plant": """tree flower leaf/leaves bush rose oak cactus/cacti fern daisy fungus/fungi mushroom vine tulip
        thistle willow birch""",
    "idea": """story song plan game question idea crisis/crises rumour theory poem riddle lesson legend
        thesis/theses joke prophecy mystery melody""",
}
FEMALE = {"woman", "wife", "sister", "queen", "midwife", "princess", "witch", "heiress"}
MALE = {"man", "king", "brother", "policeman", "fisherman", "gentleman", "salesman", "nobleman", "monk", "fireman",
        "craftsman"}  # fmt: skip

# Verbs by what they combine with; "base/past" where the past is not regular.
VERBS = {
    "act": """laugh sleep/slept smile run/ran sing/sang wait work dance swim/swam arrive cry/cried listen sit/sat
        speak/spoke cough shout sneeze jump tremble yawn whisper wander stumble kneel/knelt climb hesitate groan
        return disappear snore complain""",  # animate subject, no object
    "meet": """like see/saw know/knew love help follow admire hear/heard call find/found visit praise fear trust
        chase notice teach/taught hate greet thank ignore respect remember protect hug warn annoy amuse blame avoid
        accuse envy/envied mock comfort""",  # animate subject, animate object
    "handle": """take/took bring/brought carry/carried buy/bought want sell/sold draw/drew lose/lost describe
        choose/chose examine hide/hid steal/stole wash mention prefer collect borrow discover deliver inspect criticize
        measure""",  # animate subject, an object that is no person
    "report": "say/said think/thought believe claim hope report suspect insist",  # animate subject, a clause
    "happen": """fall/fell change vanish shine/shone appear remain grow/grew rot burn sway fade decay shrink/shrank
        improve age gleam sparkle""",  # an inanimate subject, no object
}
SUBJECTS = {"act": "animate", "meet": "animate", "handle": "animate", "report": "animate", "happen": "thing"}
REFLEXIVE_VERBS = """admire praise help trust protect blame mock hate ignore respect accuse comfort amuse annoy warn
    see hear love know like""".split()

ADJECTIVES = {
    "animate": """old young happy tall clever sad brave kind famous hungry lazy angry polite quiet nervous proud
        curious honest gentle tired""".split(),
    "thing": """new small big beautiful strange red green heavy broken famous old cheap dusty rare dark simple
        lovely ugly""".split(),
}
FREQUENCY_ADVERBS = "often never always sometimes usually rarely still seldom".split()
MANNER_ADVERBS = "quickly slowly quietly happily loudly carefully badly suddenly".split()
PREPOSITIONS = "near behind with beside by above from under".split()
NAMES = """Mary John Anna Peter Clara Tom Alice David Emma Paul Nora Simon Laura Felix Ruth Oscar""".split()
NEUTRAL_DETERMINERS = "the my our his her".split()
SINGULAR_DETERMINERS = "a this that every".split()
PLURAL_DETERMINERS = "these those some many two".split()
DEMONSTRATIVES = (("this", "these"), ("that", "those"))  # (singular, plural)
PRONOUNS = (("he", "she", "it"), ("they", "we"))
FUNCTION_WORDS = """is are was were does do did not and that an himself herself itself themselves""".split()


@dataclass(frozen=True)
class Noun:
    """A noun lemma: its class, and its two forms."""

    singular: str
    plural: str
    kind: str
    irregular: bool

    @property
    def animate(self) -> bool:
        return self.kind in ("person", "animal")

    def form(self, plural: bool) -> str:
        return self.plural if plural else self.singular


@dataclass(frozen=True)
class Verb:
    """A verb lemma: its class, base form (also the plural present), third person singular, and past."""

    base: str
    third: str
    past: str
    kind: str

    def form(self, plural: bool) -> str:
        return self.base if plural else self.third


def _with_s(word: str) -> str:
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "z", "ch", "sh")) else "s")


def _regular_past(base: str) -> str:
    return base + "d" if base.endswith("e") else base + "ed"


def _doubled(base: str) -> str:
    return base + base[-1] + "ed"


def _verb(entry: str, kind: str) -> Verb:
    base, _, past = entry.partition("/")
    past = past or (_doubled(base) if base in ("prefer", "hug", "rot") else _regular_past(base))
    return Verb(base, _with_s(base), past, kind)


def _noun(entry: str, kind: str) -> Noun:
    singular, _, plural = entry.partition("/")
    regular = _with_s(singular)
    # "potatoes" is spelt out, but it is a regular plural
    return Noun(singular, plural or regular, kind, bool(plural) and plural != singular + "es")


@dataclass(frozen=True)
class Lexicon:
    """Every lemma, and the vocabulary that their forms make.

    Attributes:
        nouns: by lemma (the singular form).
        verbs: by lemma (the base form).
    """

    nouns: dict[str, Noun]
    verbs: dict[str, Verb]

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Token text -> id. A leading space belongs to the word, as in the tokenizers of GPT-2 and Pythia."""
        openers = [*NEUTRAL_DETERMINERS, *SINGULAR_DETERMINERS, "an", *PLURAL_DETERMINERS, *sum(PRONOUNS, ())]
        words = [*FUNCTION_WORDS, *openers, *PREPOSITIONS, *FREQUENCY_ADVERBS, *MANNER_ADVERBS]
        words += [*NAMES, *ADJECTIVES["animate"], *ADJECTIVES["thing"]]
        words += [form for noun in self.nouns.values() for form in (noun.singular, noun.plural)]
        words += [form for verb in self.verbs.values() for form in (verb.base, verb.third, verb.past)]
        capital = [word.capitalize() for word in openers]
        tokens = [END_OF_TEXT, UNKNOWN, ".", *capital, *NAMES, *(f" {w}" for w in [*capital, *words])]
        return {token: i for i, token in enumerate(dict.fromkeys(tokens))}

    def nouns_of(self, *kinds: str) -> list[Noun]:
        return [noun for noun in self.nouns.values() if noun.kind in kinds]

    def verbs_of(self, *kinds: str) -> list[Verb]:
        return [verb for verb in self.verbs.values() if verb.kind in kinds]


@cache
def lexicon() -> Lexicon:
    """The lexicon; made once."""
    nouns = [_noun(entry, kind) for kind, entries in NOUNS.items() for entry in entries.split()]
    verbs = [_verb(entry, kind) for kind, entries in VERBS.items() for entry in entries.split()]
    return Lexicon({n.singular: n for n in nouns}, {v.base: v for v in verbs})


def held_out(lemma: str, other: str) -> bool:
    """Whether two lemmas (two nouns, or a noun and a verb) never stand in one sentence of any running text.

    A fixed choice by a hash of the two, the same for every seed, so that what the minimal pairs test can be told
    from the lexicon alone.
    """
    if lemma == other:
        return False
    key = "+".join(sorted((lemma, other)))
    return zlib.crc32(key.encode()) % 1000 < HELD_OUT_SHARE * 1000
