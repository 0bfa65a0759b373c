"""Look through a built site: does every link lead somewhere, and does no page ask a network?

    check_site.py build/site

Links inside the site are followed, to the anchor. Nothing that a page loads by itself (pictures,
scripts, styles, fonts) may come from outside; links that a reader clicks are listed. Every picture
says in words what it shows. Only the standard library. Exit status 1: something is wrong.
"""

import argparse
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGEST_PAGE = 2_000_000  # bytes
LOADED = {"img", "script", "iframe", "source", "video", "audio", "embed", "object", "input"}
FROM_STYLE = re.compile(r"url\(\s*[\"']?([^\"')]+)|@import\s+[\"']([^\"']+)")


class Page(HTMLParser):
    """What a page loads, where it leads, which anchors it has, and pictures without words."""

    def __init__(self, text: str):
        super().__init__()
        self.loads: list[str] = []
        self.leads: list[str] = []
        self.anchors: set[str] = set()
        self.wordless: list[str] = []
        self.style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        has = {name: value or "" for name, value in attributes}
        self.anchors |= {has[name] for name in ("id", "name") if name in has}
        self.style = tag == "style"
        if tag == "link" and has.get("rel") not in ("canonical", "index", "search", "next", "prev"):
            self.loads.append(has.get("href", ""))
        elif "href" in has and tag != "use":
            self.leads.append(has["href"])
        if tag in LOADED:
            self.loads += [has[name] for name in ("src", "data", "poster") if has.get(name)]
        self.loads += [part.split()[0] for part in has.get("srcset", "").split(",") if part.strip()]
        self.loads += from_style(has.get("style", ""))
        refresh = re.search(r"url=(.+)", has.get("content", "")) if tag == "meta" else None
        if refresh and has.get("http-equiv", "").lower() == "refresh":
            self.leads.append(refresh[1])
        if tag == "img":
            alt, name = has.get("alt", ""), has.get("src", "").rpartition("/")[2]
            if not alt.strip() or (name and alt.endswith(name)):
                self.wordless.append(has.get("src", "")[:80])

    def handle_data(self, data: str) -> None:
        if self.style:
            self.loads += from_style(data)


def from_style(text: str) -> list[str]:
    """What a style sheet loads."""
    return [one or other for one, other in FROM_STYLE.findall(text)]


def is_outside(link: str) -> bool:
    """Whether a link names another machine, or the program of another kind (mailto)."""
    parts = urlsplit(link)
    return bool(parts.netloc) or parts.scheme not in ("", "data", "javascript")


def problems(site: Path) -> tuple[list[str], set[str]]:
    """What is wrong with the site, a line each, and the outside links that a reader may click."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    if not pages:
        return [f"{site} holds no page: build it with `make site`"], set()
    wrong, outside = [], set()
    for path, page in pages.items():
        name = path.relative_to(site).as_posix()
        if path.stat().st_size > LARGEST_PAGE:
            wrong.append(f"{name}: {path.stat().st_size} bytes; at most {LARGEST_PAGE}")
        wrong += [f"{name}: a picture without words: {src}" for src in page.wordless]
        wrong += [f"{name}: loads from outside: {link}" for link in page.loads if is_outside(link)]
        outside |= {link for link in page.leads if is_outside(link)}
        for link in page.loads + page.leads:
            told = dead(link, path, site, pages)
            wrong += [f"{name}: {told}: {link}"] if told else []
    for path in sorted(site.rglob("*.css")):
        for link in from_style(path.read_text(encoding="utf-8")):
            told = "loads from outside" if is_outside(link) else dead(link, path, site, pages)
            wrong += [f"{path.relative_to(site).as_posix()}: {told}: {link[:80]}"] if told else []
    return wrong, outside


def dead(link: str, page: Path, site: Path, pages: dict[Path, Page]) -> str | None:
    """Why a link inside the site leads nowhere, or None."""
    parts = urlsplit(link)
    if is_outside(link) or parts.scheme:
        return None
    target = page
    if parts.path:
        target = site if parts.path.startswith("/") else page.parent
        target = (target / unquote(parts.path).lstrip("/")).resolve()
    if not target.is_relative_to(site):
        return "leads out of the site"
    if not target.is_file():
        return "leads to no file"
    anchor = unquote(parts.fragment)
    if anchor and anchor != "top" and target in pages and anchor not in pages[target].anchors:
        return "leads to no anchor"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", type=Path)
    site = parser.parse_args().site.resolve()
    wrong, outside = problems(site)
    for line in dict.fromkeys(wrong):
        print(line, file=sys.stderr)
    size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) / 1e6
    count = len(list(site.rglob("*.html")))
    print(f"{site}: {count} pages, {size:.1f} MB, {len(set(wrong))} problems.")
    print(f"Links that lead outside, for a reader to click: {', '.join(sorted(outside)) or 'none'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
