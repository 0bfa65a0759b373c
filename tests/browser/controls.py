"""Every control of a widget, moved by the pointer and then by the keyboard alone.

Whatever the widget is: sliders, menus, lists, ticks, numbers, texts, choices and buttons are found
under its cell. Of each one it is asked whether anything beside it changed, and how long it took.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from driver import Notebook

PATIENCE = 10_000  # milliseconds until a control counts as one that changes nothing
TABS = 60  # presses of Tab until a control counts as out of reach


@dataclass(frozen=True)
class Move:
    """What came of one move of one control.

    Attributes:
        control: its kind and name.
        by: "pointer" or "keyboard".
        changed: whether anything beside it was another in the end.
        ms: until the last change; NaN where nothing changed.
    """

    control: str
    by: str
    changed: bool
    ms: float


def move_all(notebook: Notebook, cell: int, silent: Sequence[str] = ()) -> list[Move]:
    """Move each control under a cell, from top to bottom, twice: by pointer, and by keyboard.

    Args:
        silent: names of controls that change nothing by themselves, such as a field whose text is
            taken by a button: they are moved, and not waited for.
    """
    count = len(_controls(notebook, cell))
    notebook.page.evaluate("i => ctt.enter(i)", cell)
    moves = []
    for by, way in (("pointer", _by_pointer), ("keyboard", _by_keyboard)):
        for i in range(count):
            told = _controls(notebook, cell)
            assert len(told) == count, f"{count} controls became {len(told)}: {told}"
            name = f"{told[i]['kind']} “{told[i]['name']}”"
            assert not told[i]["disabled"], f"{name} is disabled when its turn comes"
            if by == "keyboard":
                _tab_to(notebook, cell, i, name)
            control = notebook.page.evaluate_handle(
                "([cell, i]) => ctt.controls(cell)[i]", [cell, i]
            ).as_element()
            control.scroll_into_view_if_needed()
            notebook.page.evaluate("([cell, i]) => ctt.watch(cell, i)", [cell, i])
            way(notebook.page, control, told[i]["kind"])
            patience = 300 if told[i]["name"] in silent else PATIENCE
            answer = notebook.page.evaluate("patience => ctt.answer(patience)", patience)
            if by == "keyboard":
                now = notebook.page.evaluate("cell => ctt.focused(cell)", cell)
                assert now == i, f"{name} lost the focus: Lab took the key for itself"
            ms = float("nan") if answer["ms"] is None else answer["ms"]
            moves.append(Move(name, by, answer["changed"], ms))
    return moves


def _controls(notebook: Notebook, cell: int) -> list[dict[str, Any]]:
    return notebook.page.evaluate("cell => ctt.controls(cell).map(ctt.told)", cell)


def _tab_to(notebook: Notebook, cell: int, i: int, name: str) -> None:
    """Press Tab until a control has the focus. The first one begins at the cell itself."""
    if i == 0:
        notebook.page.evaluate("i => ctt.enter(i)", cell)
    for _ in range(TABS):
        notebook.page.keyboard.press("Tab")
        if notebook.page.evaluate("cell => ctt.focused(cell)", cell) == i:
            return
    raise AssertionError(f"{name} is not reached by Tab from what stands before it")


def _by_pointer(page: Any, control: Any, kind: str) -> None:
    if kind == "slider":
        _drag(page, control)
    elif kind in ("menu", "list"):
        # the list that drops down is a window of the system's, which no script can click in
        control.select_option(index=control.evaluate(NEXT_OPTION))
    elif kind == "tick":
        control.click()
    elif kind == "number":
        up = control.evaluate(IS_UP_FREE)
        control.click(click_count=3)
        page.keyboard.type(str(control.evaluate(ONE_STEP, up)))
        page.keyboard.press("Enter")
    elif kind == "text":
        control.click()
        page.keyboard.type(" by hand")
    elif kind == "choice":
        control.query_selector(UNCHOSEN).click()
    else:
        control.click()


def _by_keyboard(page: Any, control: Any, kind: str) -> None:
    """The control has the focus."""
    press = page.keyboard.press
    if kind == "slider":
        press("ArrowRight" if control.evaluate(IS_RIGHT_FREE) else "ArrowLeft")
    elif kind == "menu":
        last = control.evaluate("node => node.selectedIndex === node.options.length - 1")
        # of a closed menu Lab takes the arrow for itself, and goes to the next cell
        for key in ("Space", "ArrowUp" if last else "ArrowDown", "Enter"):
            press(key)
            page.wait_for_timeout(100)  # what drops down takes keys when it is drawn
    elif kind == "list":
        press("ArrowDown")
    elif kind == "tick":
        press("Space")
    elif kind == "number":
        press("ArrowUp" if control.evaluate(IS_UP_FREE) else "ArrowDown")
    elif kind == "text":
        press("End")
        page.keyboard.type(" by keys")
    elif kind == "choice" and control.query_selector("input[type=radio]"):
        press("ArrowDown")
    elif kind == "choice":
        for _ in range(2):  # from the chosen button to the next one
            if control.evaluate("node => !!node.querySelector(':focus:not(.mod-active)')"):
                break
            press("Tab")
        press("Enter")
    else:
        press("Enter")


def _drag(page: Any, handle: Any) -> None:
    """Take a slider's handle to the further end of its way."""
    box = handle.bounding_box()
    way = handle.evaluate("node => node.closest('.noUi-base').getBoundingClientRect().toJSON()")
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    right = x > way["x"] + way["width"] / 2
    to = way["x"] + way["width"] * (0.1 if right else 0.9)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(to, y, steps=4)
    page.mouse.up()


NEXT_OPTION = "node => (node.selectedIndex + 1) % node.options.length"
IS_RIGHT_FREE = "node => Number(node.ariaValueNow) < Number(node.ariaValueMax)"
IS_UP_FREE = "node => node.max === '' || Number(node.value) + (Number(node.step) || 1) <= node.max"
ONE_STEP = "(node, up) => Number(node.value) + (up ? 1 : -1) * (Number(node.step) || 1)"
UNCHOSEN = "button:not(.mod-active), input[type=radio]:not(:checked)"
