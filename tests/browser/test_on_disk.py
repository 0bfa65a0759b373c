"""What is opened from disk: feature pages by a double click, and the site's search."""

import functools
import http.server
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from driver import ROOT, SIZES, Watch

import ctt_helpers as ctt

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SITE = Path(os.environ.get("CTT_SITE", ROOT / "build" / "site"))  # where `make site` writes it
PHONE = (400, 800)
FITS = "document.documentElement.scrollWidth <= innerWidth"


@pytest.fixture
def tab(browser) -> Iterator:
    """A tab that complains of errors on its console, and of whatever comes from elsewhere."""
    page = browser.new_page(viewport={"width": SIZES[0][0], "height": SIZES[0][1]})
    watch = Watch()
    watch.attach(page)
    yield page
    page.close()
    assert watch.said == []


# ---- feature pages


@pytest.fixture(scope="module")
def written(browser, tmp_path_factory) -> ctt.pages.Pages:
    suite = ctt.load_suite("tiny")
    ckpts = suite.checkpoints(suite.default_triplet, device="cpu")
    crosscoder = ctt.Crosscoder.load(suite.crosscoder_folder)
    text = suite.text(6_000, split="validation", seed=7)
    pairs = {"agreement/pp": suite.pairs("agreement/pp", split="find", n=24)}
    effects = {t: ctt.indirect_effects(crosscoder, ckpts, p, "atp") for t, p in pairs.items()}
    folder = tmp_path_factory.mktemp("pages")
    notes = {283: "one <b>thing</b>", 437: "Several things", 0: "another thing"}
    chosen = [283, 437, 398, 0, 239, 432, 8, 12]
    return ctt.pages.write(
        folder, crosscoder, ckpts, text, effects, pairs, features=chosen, notes=notes, k=3
    )


def rows_of(written: ctt.pages.Pages) -> tuple[list[str], dict[int, dict]]:
    """The data of the index as they stand in the file: keys, and feature -> key -> last value."""
    document = written.index.read_text(encoding="utf-8")
    data = json.loads(re.search(r"id=data>(.*?)</script>", document, re.S)[1])
    rows = {}
    for row in data["rows"]:
        values = dict(zip(data["keys"], row, strict=True))
        for key in data["by_checkpoint"]:
            values[key] = values[key][-1]
        rows[values["feature"]] = values
    return data["keys"], rows


def shown(tab) -> list[int]:
    return [int(text[1:]) for text in tab.locator("#features tbody th").all_inner_texts()]


@pytest.mark.parametrize("by", ["pointer", "keyboard"])
def test_the_index_sorts_by_each_column(written, tab, by):
    tab.goto(written.index.as_uri())
    keys, rows = rows_of(written)
    for key in keys:
        button = tab.locator(f"th[data-key={key}] button")
        for time in range(2):
            if by == "pointer":
                button.click()
            elif time == 0:
                tab_to(tab, f"th[data-key={key}] button")
                tab.keyboard.press("Enter")
            else:
                tab.keyboard.press("Space")
            found = [rows[i][key] for i in shown(tab)]
            there = [value for value in found if value not in (None, "")]
            assert len(found) == len(rows) and found[: len(there)] == there, key  # none: last
            texts = isinstance(there[0], str)
            own = [value.casefold() for value in there] if texts else there
            falling = tab.get_attribute(f"th[data-key={key}]", "aria-sort") == "descending"
            assert falling == (time == (1 if key in ("feature", "class", "label", "note") else 0))
            assert own == sorted(own, reverse=falling), key


def tab_to(tab, selector: str, most: int = 40) -> None:
    """Press Tab until the element has the focus, with a ring around it to be seen."""
    for _ in range(most):
        tab.keyboard.press("Tab")
        if tab.evaluate("s => document.activeElement.matches(s)", selector):
            style = "getComputedStyle(document.activeElement).outlineStyle"
            assert tab.evaluate(style) != "none", f"nobody sees that {selector} has the focus"
            return
    raise AssertionError(f"{selector} is not reached by Tab")


def test_search_and_a_page_by_keyboard_alone(written, tab, shots):
    tab.goto(written.index.as_uri())
    tab_to(tab, "#query")
    tab.keyboard.type("thing")
    assert sorted(shown(tab)) == [0, 283, 437]
    tab.keyboard.type("s")
    assert shown(tab) == [437] and "1 of 8" in tab.inner_text("#status")
    tab_to(tab, "#features tbody a")
    tab.keyboard.press("Enter")
    tab.wait_for_url(written.pages[437].as_uri())
    assert tab.inner_text("h1") == "Feature #437"
    tab.go_back()
    tab.fill("#query", "")
    assert "one <b>thing</b>" in tab.inner_text("#features")  # a note is text, and no mark-up


def test_pages_fit_a_screen_a_narrow_window_and_a_phone(written, tab, shots):
    for name, path in {"index": written.index, "feature": written.pages[437]}.items():
        tab.goto(path.as_uri())
        for width, height in (*SIZES, PHONE):
            tab.set_viewport_size({"width": width, "height": height})
            tab.screenshot(path=shots / f"{name}_{width}.png", full_page=True)
            assert tab.evaluate(FITS), (name, width)


# ---- the site


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The address of the built site, served from this machine."""
    if not (SITE / "index.html").is_file():
        pytest.skip(f"the site is not built ({SITE}): `make site`, or set CTT_SITE to its folder")

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_args) -> None:
            pass

    handler = functools.partial(Silent, directory=SITE)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("served", [True, False], ids=["served", "from_disk"])
def test_the_search_of_the_site_finds_relie(browser, tab, request, shots, served):
    address = request.getfixturevalue("site")
    tab.goto(f"{address}/index.html" if served else (SITE / "index.html").as_uri())
    field = tab.locator("input[type=search], input[name=q]").first
    field.fill("RelIE")
    field.press("Enter")
    links = tab.locator("#search-results a")
    links.first.wait_for()
    found = links.all_inner_texts()
    assert any("RelIE" in text or "rel_ie" in text for text in found), found
    for width, height in (*SIZES, PHONE):
        tab.set_viewport_size({"width": width, "height": height})
        tab.screenshot(path=shots / f"search_{width}.png")
        assert tab.evaluate(FITS), width
    links.first.click()
    tab.wait_for_load_state()
    assert "relie" in tab.inner_text("body").lower().replace("_", "")
