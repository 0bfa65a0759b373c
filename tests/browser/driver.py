"""JupyterLab in Chromium, for tests: a server over a copy of the notebooks, and an open notebook.

What a notebook says is read from Lab's own model, since a page shows only a part of it.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("in_page.js")
SIZES = ((1280, 900), (800, 900))  # of the window, in pixels
VIEWER = ".jp-HTMLViewer iframe"  # where Lab shows a page

# What a console may say without anything being wrong, and why.
HARMLESS = {}


def find_chromium() -> str | None:
    """Chromium as Debian or another system installs it."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for path in map(shutil.which, names) if path), None)


# ---- what a page must not do


@dataclass
class Watch:
    """What a page said on its console, and what it asked for outside this machine."""

    said: list[str] = field(default_factory=list)

    def attach(self, page: Any) -> None:
        page.on("console", lambda message: message.type == "error" and self._say(message.text))
        page.on("pageerror", lambda error: self._say(str(error)))
        page.on("request", lambda request: self._asked(request.url))

    def _say(self, text: str) -> None:
        if not any(re.search(pattern, text) for pattern in HARMLESS):
            self.said.append(text)

    def _asked(self, url: str) -> None:
        if not re.match(
            r"(data|blob|file|about|chrome-error):|(https?|wss?)://127\.0\.0\.1[:/]", url
        ):
            self.said.append(f"asked for {url}")


# ---- a server


class Lab:
    """A JupyterLab server over a folder.

    Settings, workspaces and kernels' connection files are kept apart from the user's own.
    """

    def __init__(self, folder: Path, work: Path) -> None:
        """Start one.

        Args:
            folder: what it shows.
            work: an empty folder for its settings and its log.
        """
        self.folder = folder
        tracker = work / "settings" / "@jupyterlab" / "notebook-extension"
        tracker.mkdir(parents=True)
        # all cells are in the page, and not only those in sight
        (tracker / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
        news = work / "settings" / "@jupyterlab" / "apputils-extension"
        news.mkdir()
        quiet = '{"fetchNews": "false", "checkForUpdates": false}'
        (news / "notification.jupyterlab-settings").write_text(quiet)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.token = secrets.token_hex(16)
        command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", f"--port={port}"]
        command += ["--ip=127.0.0.1", "--ServerApp.port_retries=0", "--expose-app-in-browser"]
        command += [f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={folder}"]
        if os.getuid() == 0:
            command.append("--allow-root")
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),  # this checkout's package, wherever the notebooks are
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "JUPYTERLAB_SETTINGS_DIR": str(work / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(work / "workspaces"),
            "JUPYTER_CONFIG_DIR": str(work / "config"),
            "JUPYTER_RUNTIME_DIR": str(work / "runtime"),
            "JUPYTER_DATA_DIR": str(work / "data"),
        }
        self.log = work / "lab.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        self._wait()

    def _wait(self, seconds: float = 90) -> None:
        until = time.monotonic() + seconds
        address = f"{self.url}/api/status?token={self.token}"
        while time.monotonic() < until and self.process.poll() is None:
            try:
                with urllib.request.urlopen(address, timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        self.close()
        raise RuntimeError(f"JupyterLab did not start:\n{self.log.read_text()[-3000:]}")

    def close(self) -> None:
        """End the server, and with it its kernels."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def copy_notebook(source: Path, target: Path, **parameters: Any) -> None:
    """Copy a notebook without its outputs, with other values of its parameters."""
    notebook = nbformat.read(source, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += "".join(f"\n{name} = {value!r}" for name, value in parameters.items())
            parameters = {}
    assert not parameters, f"{source.name} has no cell of parameters"
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)


# ---- a notebook in a tab


class Notebook:
    """A notebook that is open in Lab."""

    def __init__(self, lab: Lab, browser: Any, path: str) -> None:
        """Open it.

        Args:
            path: of the notebook, in the folder of the server.
        """
        self.watch = Watch()
        self.path = path
        width, height = SIZES[0]
        self.page = browser.new_page(viewport={"width": width, "height": height})
        self.watch.attach(self.page)
        self.page.goto(f"{lab.url}/lab/tree/{path}?reset&token={lab.token}")
        self.page.wait_for_function("window.jupyterapp?.shell?.currentWidget?.content?.widgets")
        self.page.add_script_tag(path=SCRIPT)
        self.page.evaluate("ctt.ready()")

    def close(self) -> None:
        """Close it, and end its kernel."""
        self.page.evaluate("ctt.shutDown()")
        self.page.close()

    def run_all(self, seconds: float = 480) -> None:
        """Run every cell, as Run > Run All Cells does."""
        until = time.monotonic() + seconds
        left = None
        while left != []:
            # Lab may leave some out right after a kernel's start: they are run after the others
            self.page.evaluate("first => void ctt.runFrom(first)", left[0] if left else 0)
            running = True
            while running:
                if time.monotonic() > until:
                    raise TimeoutError(f"{self.path}: cells {left} did not run in {seconds:.0f} s")
                self.page.wait_for_timeout(300)
                running, left = self.page.evaluate("ctt.running()")

    def cells(self) -> list[dict[str, Any]]:
        """Each cell's `kind`, `source`, `tags`, `count` and `error` (None where it has none)."""
        return self.page.evaluate("ctt.cells()")

    def errors(self) -> list[str]:
        """Errors of the cells that are not meant to raise one."""
        return [
            f"cell {i}: {cell['error']}"
            for i, cell in enumerate(self.cells())
            if cell["error"] and "raises-exception" not in cell["tags"]
        ]

    def find(self, text: str) -> int:
        """Index of the only code cell with this text."""
        found = [
            i
            for i, cell in enumerate(self.cells())
            if cell["kind"] == "code" and text in cell["source"]
        ]
        assert len(found) == 1, f"{len(found)} code cells of {self.path} have {text!r} in them"
        return found[0]

    def value(self, expression: str) -> str:
        """What an expression is in the notebook's kernel, as text."""
        return self.page.evaluate("expression => ctt.value(expression)", expression)

    def resize(self, width: int, height: int) -> None:
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.wait_for_timeout(400)  # Lab lays out again

    def photograph(self, cell: int, to: Path, width: int) -> None:
        """A picture of all that stands under a cell, in a window of this width."""
        to.parent.mkdir(parents=True, exist_ok=True)
        self.resize(width, 900)
        # Chromium does not take what is scrolled out of sight: a window as high as it needs to be
        high = self.page.evaluate("i => ctt.output(i).getBoundingClientRect().height", cell)
        self.resize(width, min(int(high) + 300, 8000))
        self.page.mouse.move(0, 0)
        self.page.evaluate("i => ctt.output(i).scrollIntoView()", cell)
        self.page.wait_for_timeout(200)
        box = self.page.evaluate("i => ctt.output(i).getBoundingClientRect().toJSON()", cell)
        clip = {side: box[side] for side in ("x", "y", "width", "height")}
        self.page.screenshot(path=to, clip=clip)
        self.resize(*SIZES[0])

    def follow(self, cell: int, seconds: float = 15) -> str:
        """Click the first link under a cell.

        Returns:
            the heading of the page that opens, in another tab of the browser or of Lab.
        """
        output = self.page.evaluate_handle("i => ctt.output(i)", cell).as_element()
        link = output.query_selector("a[href]")
        assert link, f"there is no link under cell {cell} of {self.path}"
        before = len(self.page.context.pages)
        link.click()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.page.wait_for_timeout(100)
            if len(self.page.context.pages) > before:
                tab = self.page.context.pages[-1]
                # a link of a widget opens a second Lab, which shows the page
                tab.locator(f"h1, {VIEWER}").first.wait_for()
                shown = tab.frame_locator(VIEWER) if tab.locator(VIEWER).count() else tab
                heading = shown.locator("h1").first.inner_text()
                tab.close()
                return heading
            if self.page.evaluate("ctt.isAway()"):
                heading = self.page.frame_locator(VIEWER).locator("h1").first.inner_text()
                self.page.evaluate("ctt.comeBack()")
                return heading
        raise TimeoutError(f"the first link under cell {cell} of {self.path} opens nothing")

    def complaints(self) -> list[str]:
        """Errors and warnings of callbacks, which Lab shows nowhere on the page."""
        return self.page.evaluate("ctt.complaints")

    def too_wide(self, cells: Sequence[int] | None = None, widgets_only: bool = False) -> list[str]:
        """Outputs that are wider than the place that they have, and the window, if that is."""
        return self.page.evaluate("([c, only]) => ctt.tooWide(c, only)", [cells, widgets_only])
