"""The page on reliability says what the long tests found."""

import importlib.util
import re

import pandas as pd


def fault_table(root):
    path = root / "tools" / "fault_table.py"
    spec = importlib.util.spec_from_file_location("fault_table", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_the_table(root):
    tool = fault_table(root)
    page = (root / "docs" / "reliability.md").read_text()
    assert page == tool.with_table(page, tool.known())


def test_every_fault_has_its_test(root):
    for row in fault_table(root).known().itertuples():
        path, name = row.test.split("::")
        assert re.search(rf"^def {name}\(", (root / path).read_text(), re.MULTILINE), row.test


def test_new_figures_take_the_place_of_old_ones(root, tmp_path):
    tool = fault_table(root)
    known = pd.DataFrame(
        [["a", "", 20, 19, "t.py::x"], ["b", "", 20, 20, "t.py::y"]], columns=tool.COLUMNS
    )
    for name, tries, survived in (("short", 2, 2), ("long", 30, 29)):
        row = pd.Series(["a", "", tries, survived, "t.py::x"], index=tool.COLUMNS)
        row.to_json(tmp_path / f"{name}.json")
    table = tool.gather(tmp_path, known)
    found = table[["fault", "tries", "survived"]].to_numpy().tolist()
    assert found == [["a", 30, 29], ["b", 20, 20]]
