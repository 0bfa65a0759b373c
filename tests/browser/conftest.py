"""A browser for tests, where there is one, and a folder for what it shows."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from driver import ROOT, find_chromium

SHOTS = ROOT / "runs" / "browser"  # pictures, times, and what is too wide; not in git


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, by Playwright. It ends with the module: other tests start event loops."""
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("Playwright is not here: `make test-browser` installs it beside the rest")
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("there is no Chromium here: install it (apt install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        flags = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        started = play.chromium.launch(executable_path=chromium, args=flags)
        yield started
        started.close()


@pytest.fixture(scope="module")
def shots(request: pytest.FixtureRequest) -> Path:
    """The folder for the pictures of a module."""
    folder = SHOTS / request.path.stem.removeprefix("test_")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
