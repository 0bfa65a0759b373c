"""Feature pages: what stands on them by another way, nothing runs that comes from data, bounds
hold, and a browser searches and sorts the index.
"""

import dataclasses
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from models import random_suite, some_pairs, some_text

import ctt_helpers as ctt
from ctt_helpers.notebook import pages

FEATURES = [283, 437, 398, 0, 239]


class Outline(HTMLParser):
    """Tags, links, and the cells of every table row, as a browser would read them."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags, self.links, self.rows, self.text = set(), [], [], []
        self.feed(document)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.links += [value for name, value in attributes if name == "href"]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        self.text.append(data)
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


@dataclasses.dataclass
class Made:
    ckpts: object
    crosscoder: ctt.Crosscoder
    text: torch.Tensor
    pairs: dict
    effects: dict
    written: pages.Pages
    f: np.ndarray  # [sequences, tokens, latents], encoded all at once

    def page(self, feature: int) -> str:
        return self.written.pages[feature].read_text(encoding="utf-8")

    def section(self, feature: int, start: str, end: str) -> Outline:
        return Outline(self.page(feature).split(start, 1)[1].split(end, 1)[0])

    def index(self) -> dict:
        document = self.written.index.read_text(encoding="utf-8")
        return json.loads(re.search(r"id=data>(.*?)</script>", document, re.S)[1])


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    suite = ctt.load_suite("tiny")
    ckpts = suite.checkpoints(suite.default_triplet, device="cpu")
    crosscoder = ctt.Crosscoder.load(suite.crosscoder_folder)
    text = suite.text(6_000, split="validation", seed=7)
    names = ("agreement/pp", "agreement/simple")
    pairs = {name: suite.pairs(name, split="find", n=48) for name in names}
    effects = {name: ctt.indirect_effects(crosscoder, ckpts, pairs[name]) for name in names}
    turned = ctt.random_directions(crosscoder)
    null = {"agreement/pp": ctt.indirect_effects(turned, ckpts, pairs["agreement/pp"])}
    written = pages.write(
        tmp_path_factory.mktemp("pages") / "site",
        crosscoder,
        ckpts,
        text,
        effects,
        pairs,
        null=null,
        features=FEATURES,
        notes={283: "one thing", 437: "several things", 0: "as 283, but rare"},
        k=3,
        shard=2,  # three shards
    )
    x = ctt.activations.stacked_activations(ckpts, text)
    f = crosscoder.encode(x).detach().numpy()
    f[:, 0] = 0
    return Made(ckpts, crosscoder, text, pairs, effects, written, f)


# ---- what stands on a page


def test_the_strongest_example_is_the_largest_activation(made):
    for feature in FEATURES:
        rows = made.section(feature, "<h3>The strongest</h3>", "<h3>").rows[1:]
        own = made.f[..., feature]
        peaks = np.sort(own.max(1))[::-1]
        peaks = peaks[:3][peaks[:3] > 0]
        assert [row[0] for row in rows] == [f"{peak:.2f}" for peak in peaks]
        row, position = np.unravel_index(own.argmax(), own.shape)
        ids = made.text[row, max(0, position - 14) : position + 4].tolist()
        assert rows[0][1] == "".join(made.ckpts.tokenizer.decode([i]) for i in ids)
        assert rows[0][2] == f"{row}:{position}"


def test_the_other_bands_are_from_where_they_say(made):
    own = made.f[..., 437]
    active = np.sort(own[own > 0])
    weakest = made.section(437, "<h3>The weakest</h3>", "<h3>").rows[1:]
    assert weakest[0][0] == f"{active[0]:.2f}"
    around = [row[0] for row in made.section(437, "<h3>Around the median</h3>", "<h3>").rows[1:]]
    assert len(around) == 3
    assert all(abs(float(value) - np.median(active)) < 0.15 * np.ptp(active) for value in around)
    drawn = made.section(437, "<h3>Drawn at random</h3>", "<h2>").rows[1:]
    assert {row[0] for row in drawn} != {row[0] for row in weakest}
    for value, _, where in drawn:
        row, position = map(int, where.split(":"))
        assert value == f"{own[row, position]:.2f}" and own[row, position] > 0


def test_bands_agree_with_top_examples_and_do_not_hang_on_the_others(made):
    alone = ctt.active_places(made.crosscoder, made.ckpts, made.text, [398])
    found = ctt.examples_by_band(alone, made.ckpts, made.text, k=4)[398]
    top = ctt.top_examples(made.crosscoder, made.ckpts, made.text, 398, k=4)[398]
    for mine, theirs in zip(found["top"], top, strict=True):
        assert mine["tokens"] == theirs["tokens"] and mine["position"] == theirs["position"]
        assert np.allclose(mine["activations"], theirs["activations"], atol=1e-4)
    with_others = ctt.active_places(made.crosscoder, made.ckpts, made.text, [437, 398, 0])
    again = ctt.examples_by_band(with_others, made.ckpts, made.text, k=4)[398]
    assert [e["position"] for e in again["random"]] == [e["position"] for e in found["random"]]
    with pytest.raises(ValueError, match="another text of the same size"):
        ctt.examples_by_band(alone, made.ckpts, made.text.flip(0), k=4)
    another = ctt.examples_by_band(alone, made.ckpts, made.text, k=4, seed=1)[398]
    assert another["random"] != found["random"] and another["top"] == found["top"]
    shown = [(e["sequence"], e["position"]) for b in ("top", "middle", "bottom") for e in found[b]]
    assert len(set(shown)) == len(shown) == 12
    assert all(len({e["sequence"] for e in found[band]}) == 4 for band in found)


def test_counts_and_shares(made):
    n_tokens = made.text[:, 1:].numel()
    norms = np.linalg.norm(made.crosscoder.W_dec.detach().numpy(), axis=2)  # [latents, checkpoints]
    for feature in FEATURES:
        active = int((made.f[..., feature] > 0).sum())
        assert f"Active on {active:,} of {n_tokens:,} tokens" in made.page(feature)
        share = norms[feature] / norms[feature].sum()
        for name, part in zip(made.ckpts.labels, share, strict=True):
            assert f"{name} {part:.2f}" in made.page(feature)


def test_effects_are_those_of_an_ablation(made):
    """Against `ablate`, which removes the feature and runs the rest, cell by cell."""
    own = made.pairs["agreement/pp"]
    cells = {"all pairs": np.ones(len(own), bool), "sg-pl": own.cells == "sg-pl"}
    page = made.section(283, "<h2>pp</h2>", "<h2>simple</h2>")
    rows = {row[0]: row[1:] for row in page.rows if row}
    for cell, inside in cells.items():
        done = ctt.ablate(made.crosscoder, made.ckpts, own[inside], [283])
        assert cell in rows and len(rows[cell]) == 6
        for c, expected in enumerate(done.itertuples()):
            ie, accuracy = rows[cell][2 * c : 2 * c + 2]
            assert float(ie) == pytest.approx(expected.effect, abs=2e-3)
            told = f"{expected.accuracy_before:.2f} → {expected.accuracy_after:.2f}"
            assert accuracy == told
    assert {"pl-pl", "pl-sg", "sg-sg"} <= set(rows)


def test_relie_and_intervals(made):
    effects = made.effects["agreement/pp"]
    own = effects.mean[:, 283]
    rows = made.section(283, "<h2>pp</h2>", "<h3>").rows[1:]
    values = effects.per_pair.to_dense()[:, :, 283].double().numpy()
    for c, (name, ie, ratio, label) in enumerate(rows):
        assert name == made.ckpts.labels[c] and label in ctt.factorial.LABELS
        value, low, high = map(float, re.findall(r"[-+]\d+\.\d+", ie))
        assert value == pytest.approx(own[c], abs=1e-3)
        # half an interval is about 1.96 standard errors, which the formula gives
        error = ctt.effects.clustered_stderr(values[c], ctt.twins(made.pairs["agreement/pp"]))
        assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.35, abs=2e-3)
        share = abs(own[c]) / np.abs(own).sum()
        assert float(ratio.split()[0]) == pytest.approx(share, abs=0.01)
    assert 'aria-label="Dots with intervals' in made.page(283)


def test_neighbours_by_another_way(made):
    flat = made.crosscoder.W_dec.detach().flatten(1).double()
    flat = flat / flat.norm(dim=1, keepdim=True)
    cosine = flat @ flat[283]
    cosine[283] = -1
    rows = made.section(283, "They write in a similar direction", "<h3>").rows[1:]
    assert rows[0][0] == f"#{int(cosine.argmax())}"
    assert float(rows[0][1]) == pytest.approx(float(cosine.max()), abs=0.01)
    on = (made.f[:, 1:] > 0).reshape(-1, made.f.shape[2])
    with np.errstate(invalid="ignore"):
        together = np.nan_to_num(np.corrcoef(on.T[283], on.T)[0, 1:])
    together[283] = -1
    best = int(together.argmax())
    rows = made.section(283, "They fire together", "</body>").rows[1:]
    assert rows[0][0] == f"#{best}"
    assert float(rows[0][1]) == pytest.approx(together[best], abs=0.01)
    share = (on[:, 283] & on[:, best]).sum() / on[:, 283].sum()
    assert rows[0][2] == f"{share:.0%}"


def test_estimates_have_exact_ablations_beside_them(made, tmp_path):
    own = made.pairs["agreement/simple"]
    name, atp = own.name, ctt.indirect_effects(made.crosscoder, made.ckpts, own, "atp")
    given = (made.crosscoder, made.ckpts, made.text, {name: atp}, {name: own})
    written = pages.write(tmp_path / "a", *given, features=[283])
    done = ctt.ablate(made.crosscoder, made.ckpts, own, [283]).iloc[-1]
    told = f"{done.accuracy_before:.2f} → {done.accuracy_after:.2f}"
    assert told in written.pages[283].read_text(encoding="utf-8")
    without = pages.write(tmp_path / "b", *given, features=[283], ablation=False)
    assert "→" not in without.pages[283].read_text(encoding="utf-8")


# ---- the index


def test_the_index_has_every_feature_and_what_it_is_sorted_by(made):
    data = made.index()
    at = {key: i for i, key in enumerate(data["keys"])}
    assert [row[0] for row in data["rows"]] == FEATURES
    assert data["names"] == made.ckpts.labels
    own = made.effects["agreement/pp"].mean
    for row in data["rows"]:
        feature = row[0]
        assert np.allclose(row[at["ie"]], own[:, feature], atol=1e-3)
        assert len(row[at["relie"]]) == len(row[at["reldec"]]) == len(row[at["label"]]) == 3
        active = (made.f[:, 1:, feature] > 0).mean()
        assert row[at["active"]] == pytest.approx(active, rel=0.01)
        assert row[at["class"]]
    assert data["rows"][0][at["note"]] == "one thing"
    sortable = re.findall(r'data-key="(\w+)"><button', made.written.index.read_text("utf-8"))
    assert set(sortable) == {"feature", *pages.KEYS}


def test_all_features_come_strongest_first(tmp_path):
    ckpts, crosscoder, effects, pairs = small(tmp_path)
    given = (crosscoder, ckpts, some_text(), {"t": effects}, {"t": pairs})
    written = pages.write(tmp_path / "site", *given)
    strength = np.abs(effects.mean).max(0)
    assert list(written.pages) == np.argsort(-strength, kind="stable").tolist()
    assert len(list((tmp_path / "site").glob("feature_*.html"))) == crosscoder.n_latents
    assert f"written: {crosscoder.n_latents} pages" in str(written)


def test_links_resolve_and_nothing_comes_from_elsewhere(made):
    for path in [made.written.index, *made.written.pages.values()]:
        document = path.read_text(encoding="utf-8")
        outline = Outline(document)
        assert outline.links, path
        assert all((path.parent / link).is_file() for link in outline.links)
        assert not re.search(r"https?:|src=|@import|url\(", document)
    first = made.page(FEATURES[0])
    assert f'<a href="{pages.file_name(FEATURES[1])}">next</a>' in first and "previous" not in first


@pytest.mark.parametrize("n", [2, 5])
def test_other_numbers_of_checkpoints(tmp_path, n):
    ckpts = random_suite(tmp_path / "models", n).checkpoints(device="cpu")
    crosscoder = ctt.Crosscoder(n, 32, 24, k=4, seed=1)
    pairs = some_pairs()
    effects = ctt.indirect_effects(crosscoder, ckpts, pairs)
    given = (crosscoder, ckpts, some_text(), {"t": effects}, {"t": pairs})
    written = pages.write(tmp_path / "site", *given)
    strongest = next(iter(written.pages))
    outline = Outline(written.pages[strongest].read_text(encoding="utf-8"))
    assert [row[0] for row in outline.rows if row[0].startswith("step")] == ckpts.labels * 2
    document = written.index.read_text(encoding="utf-8")
    rows = json.loads(re.search(r"id=data>(.*?)</script>", document, re.S)[1])["rows"]
    assert all(len(row[1]) == len(row[2]) == n for row in rows)
    if n > 3:  # classes of more than three: where it is largest
        peak = ckpts.labels[int(np.abs(effects.mean[:, strongest]).argmax())]
        assert f"peak {peak}" in rows[0][4]


def test_without_effects_there_are_examples_tokens_and_neighbours(made, tmp_path):
    given = (made.crosscoder, made.ckpts, made.text)
    written = pages.write(tmp_path / "site", *given, features=[283])
    text = written.pages[283].read_text(encoding="utf-8")
    assert "The strongest" in text and "fire together" in text and "RelIE" not in text
    assert "No effects were given" in written.index.read_text(encoding="utf-8")


# ---- what comes from data does nothing

HOSTILE = "<script>alert(1)</script>\"'&\u2028"


def small(folder: Path, n_latents: int = 24):
    ckpts = random_suite(folder / "models").checkpoints(device="cpu")
    crosscoder = ctt.Crosscoder(3, 32, n_latents, sparsity="l1", seed=1)
    pairs = some_pairs()
    return ckpts, crosscoder, ctt.indirect_effects(crosscoder, ckpts, pairs), pairs


def test_tokens_names_and_notes_are_escaped(tmp_path, monkeypatch):
    ckpts, crosscoder, effects, pairs = small(tmp_path)
    tokenizer = type(ckpts[0].tokenizer)
    monkeypatch.setattr(tokenizer, "decode", lambda self, ids: f"{HOSTILE}{ids[0]}")
    pairs = dataclasses.replace(pairs, text=[HOSTILE] * len(pairs), name=HOSTILE)
    notes = dict.fromkeys(range(24), f"</script>{HOSTILE}")
    given = (crosscoder, ckpts, some_text(), {HOSTILE: effects}, {HOSTILE: pairs})
    written = pages.write(tmp_path / "site", *given, notes=notes)
    for path in written.pages.values():
        document = path.read_text(encoding="utf-8")
        outline = Outline(document)
        assert "script" not in outline.tags and "<script" not in document.lower()
        assert HOSTILE.strip() in "".join(outline.text)  # it is there, as text
        assert "alert(1)" in document
    document = written.index.read_text(encoding="utf-8")
    assert document.count("<script") == 2 and document.count("</script>") == 2
    assert "\u2028" not in re.search(r"id=data>(.*?)</script>", document, re.S)[1]
    data = json.loads(re.search(r"id=data>(.*?)</script>", document, re.S)[1])
    assert data["rows"][0][-1] == notes[0]
    assert "innerHTML" not in document and "document.write" not in document


def test_a_very_long_token_is_cut_and_a_page_that_is_too_large_refused(tmp_path, monkeypatch):
    ckpts, crosscoder, effects, pairs = small(tmp_path)
    tokenizer = type(ckpts[0].tokenizer)
    monkeypatch.setattr(tokenizer, "decode", lambda self, ids: "-" * 5_000)
    given = (crosscoder, ckpts, some_text(), {"t": effects}, {"t": pairs})
    written = pages.write(tmp_path / "site", *given)
    assert 0 < max(written.sizes.values()) < pages.LIMIT
    for feature, path in written.pages.items():
        assert path.stat().st_size == written.sizes[feature]
    monkeypatch.setattr(pages, "LONGEST_TOKEN", 10_000)
    with pytest.raises(ValueError, match="take fewer examples"):
        pages.write(tmp_path / "large", *given)


# ---- files


def test_what_others_wrote_is_left_alone(made, tmp_path):
    given = (made.crosscoder, made.ckpts, made.text[:20])
    folder = tmp_path / "site"
    pages.write(folder, *given, features=[1, 2])
    before = (folder / "feature_00001.html").read_bytes()
    pages.write(folder, *given, features=[1, 2])  # its own are replaced
    assert (folder / "feature_00001.html").read_bytes() == before  # and equal what they were
    (folder / "mine.txt").write_text("mine")
    (folder / "feature_00002.html").write_bytes(before + b"<!-- my remark -->")
    with pytest.raises(FileExistsError, match="was changed since"):
        pages.write(folder, *given, features=[1, 2, 3])
    assert not (folder / "feature_00003.html").exists()
    assert (folder / "feature_00002.html").read_bytes().endswith(b"remark -->")
    assert {p.name for p in folder.iterdir()} == {
        "index.html", "feature_00001.html", "feature_00002.html", "mine.txt",
    }  # fmt: skip
    with pytest.raises(FileExistsError, match="is a file"):
        pages.write(folder / "mine.txt", *given, features=[1])


def test_bad_input_is_told(made, tmp_path):
    given = (tmp_path / "site", made.crosscoder, made.ckpts, made.text)
    with pytest.raises(ValueError, match="no feature 512"):
        pages.write(*given, features=[512])
    with pytest.raises(ValueError, match="features is empty"):
        pages.write(*given, features=[])
    with pytest.raises(ValueError, match="effects on 'agreement/pp' and no pairs"):
        pages.write(*given, made.effects, {}, features=[1])
    fewer = {**made.pairs, "agreement/pp": made.pairs["agreement/pp"][:10]}
    with pytest.raises(ValueError, match="they must be"):
        pages.write(*given, made.effects, fewer, features=[1])
    assert not (tmp_path / "site").exists()


def test_notes_come_from_the_file_of_the_explorer(made, tmp_path):
    ctt.widgets.save_note(tmp_path / "notes.csv", 437, "plural nouns")
    given = (made.crosscoder, made.ckpts, made.text[:20])
    written = pages.write(tmp_path / "site", *given, features=[437], notes=tmp_path / "notes.csv")
    assert "plural nouns" in written.pages[437].read_text(encoding="utf-8")


def test_a_part_of_a_crosscoder_encodes_as_the_whole(made):
    x = torch.randn(50, 3, made.crosscoder.d_model, generator=torch.Generator().manual_seed(0)) * 3
    whole = made.crosscoder.encode(x)
    for crosscoder in (made.crosscoder, made.crosscoder.folded()):
        part = crosscoder.part([5, 283, 7])
        assert torch.allclose(part.encode(x), whole[:, [5, 283, 7]], atol=1e-4)
        # of one latent encoder and decoder once shared their memory
        assert torch.allclose(crosscoder.part([283]).encode(x), whole[:, [283]], atol=1e-4)
        assert torch.equal(part.decoder_norms(), made.crosscoder.decoder_norms()[:, [5, 283, 7]])


# ---- 16,384 latents

LARGE = """
import sys, torch
sys.path.insert(0, {tests!r})
from pathlib import Path
from models import random_suite, some_text
import ctt_helpers as ctt

def peak():  # in kB; ru_maxrss would begin with that of the process that started this one
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

torch.set_num_threads(1)
folder = Path({folder!r})
ckpts = random_suite(folder / "models").checkpoints(device="cpu")
crosscoder = ctt.Crosscoder(3, 32, 16384, k=64, seed=1)
text = some_text(rows=128, length=48)
x = ctt.activations.stacked_activations(ckpts, text)[:, 1:].flatten(0, 1)
sizes = crosscoder.pre_activations(x[:200]) * crosscoder.code_norms()
crosscoder.threshold.fill_(float(sizes.flatten()[:1_000_000].quantile(0.9)))
ctt.pages.write(folder / "warm", crosscoder, ckpts, text[:20], features=[0])
before = peak()
chosen = {features}
written = ctt.pages.write(folder / "site", crosscoder, ckpts, text, features=chosen, shard={shard})
after = peak()
print("MB", (after - before) / 1024, len(written.pages), max(written.sizes.values()))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_large_dictionary_is_not_held_in_memory(tmp_path):
    """The codes of 6,000 tokens are 394 MB: in shards a fraction of it is held."""

    def megabytes(shard: int) -> float:
        code = LARGE.format(
            tests=str(Path(__file__).parent),
            folder=str(tmp_path / str(shard)),
            features="list(range(0, 16384, 128))",
            shard=shard,
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-2000:]
        _, grown, n_pages, largest = re.search(r"(MB) (\S+) (\d+) (\d+)", run.stdout).groups()
        assert int(n_pages) == 128 and 0 < int(largest) < pages.LIMIT
        return float(grown)

    few = megabytes(64)
    assert few < 150, few
    whole = megabytes(16384)

    assert whole > 300  # the bound can fail


# ---- in a browser


@pytest.mark.browser
def test_a_browser_searches_and_sorts_from_disk(made):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None or importlib.util.find_spec("playwright") is None:
        pytest.skip("no Chromium with playwright here: the script of the index was not run")
    from playwright.sync_api import sync_playwright

    wrong = []
    with sync_playwright() as play:
        flags = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        browser = play.chromium.launch(executable_path=chromium, args=flags)
        tab = browser.new_page(viewport={"width": 800, "height": 900})
        tab.on("console", lambda message: wrong.append(message.text))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("request", lambda r: r.url.startswith("file:") or wrong.append(r.url))
        tab.goto(made.written.index.as_uri())

        def shown() -> list[str]:
            return tab.locator("#features tbody th").all_inner_texts()

        assert shown() == [f"#{i}" for i in FEATURES]
        own = made.effects["agreement/pp"].mean
        for c in (0, 2):
            tab.select_option("#checkpoint", str(c))
            by_ie = sorted(FEATURES, key=lambda i: -own[c, i])
            tab.focus("th[data-key=ie] button")
            tab.keyboard.press("Enter")
            if tab.get_attribute("th[data-key=ie]", "aria-sort") != "descending":
                tab.keyboard.press("Space")
            assert tab.get_attribute("th[data-key=ie]", "aria-sort") == "descending"
            assert shown() == [f"#{i}" for i in by_ie]
        tab.keyboard.press("Space")
        assert tab.get_attribute("th[data-key=ie]", "aria-sort") == "ascending"
        assert shown() == [f"#{i}" for i in reversed(by_ie)]
        tab.keyboard.press("Tab")  # the next heading
        tab.keyboard.press("Enter")
        assert tab.get_attribute("th[data-key=relie]", "aria-sort")
        assert tab.get_attribute("th[data-key=ie]", "aria-sort") is None
        tab.focus("#query")
        tab.keyboard.type("several")
        assert shown() == ["#437"] and "1 of 5" in tab.inner_text("#status")
        for asked, found in {
            "#283": ["#283"],
            "283": ["#283", "#0"],
            "28": [],
            "thing one": ["#283"],
        }.items():
            tab.fill("#query", asked)
            assert shown() == found
        tab.fill("#query", "#283")
        tab.keyboard.press("Tab")
        tab.click("#features tbody a")
        assert tab.inner_text("h1") == "Feature #283"
        for scheme in ("light", "dark"):
            tab.emulate_media(color_scheme=scheme)
            assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
            colors = tab.evaluate(
                "[getComputedStyle(document.documentElement).colorScheme, matchMedia("
                "'(prefers-color-scheme: dark)').matches]"
            )
            assert colors == ["light dark", scheme == "dark"]
        browser.close()
    assert wrong == []
