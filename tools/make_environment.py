"""Write environment.yml from pyproject.toml: a test holds that the two do not differ."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAD = """\
# Made from pyproject.toml: change that, then run `python tools/make_environment.py`.
# Use: conda env create -f environment.yml
name: ctt
channels:
  - conda-forge
dependencies:
"""


def environment(pyproject: dict) -> str:
    """The text of environment.yml for a parsed pyproject.toml."""
    project = pyproject["project"]
    extras = project["optional-dependencies"]
    packages = [*project["dependencies"], *extras["lab"], *extras["test"]]
    packages = sorted(p for p in packages if not p.startswith(f"{project['name']}["))
    lines = [f"  - python {project['requires-python']}", "  - pip", "  - pip:"]
    lines += [f"      - {line}" for line in ["-c constraints.txt", *packages, "-e .[lab,test]"]]
    return HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    parsed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (ROOT / "environment.yml").write_text(environment(parsed), encoding="utf-8")
    print("Wrote environment.yml.")
