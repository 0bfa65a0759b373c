"""The README's table block, made from the results: `python -m benchmarks.readme` writes it, a test compares it."""

from pathlib import Path

import pandas as pd

from benchmarks.report import MACHINE, markdown
from benchmarks.science import causes
from ctt_helpers.runtime import atomic_path, read_json

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
TASKS = ("simple", "irregular", "pp", "nested_pp", "subj_rel", "obj_rel", "center_embed")
STEPS = ("step0", "step256", "step320", "step512", "step850", "step1400", "step3000")
SETTINGS = ("shipped default", "no k annealing", "no AuxK", "no decoder-norm penalty", "L1, weight 2")


def block(results: Path = ROOT / "benchmarks" / "results") -> str:
    """The Markdown between the markers."""
    machine = read_json(results / MACHINE)
    story = pd.read_csv(results / "story.csv")
    story["task"] = story["task"].str.split("/").str[-1]
    curve = story.pivot(index="task", columns="revision", values="accuracy").loc[list(TASKS), list(STEPS)].reset_index()
    settings = pd.read_csv(results / "settings.csv")
    settings = settings[settings["setting"].isin(SETTINGS) & (settings["seed"] == 0)]
    settings = settings.drop(columns=["seed", "dead_tokens", "seconds"])
    settings.columns = [c.replace("_", " ") for c in settings]
    speed = pd.read_csv(results / "speed.csv")[["what", "against", "on", "ratio"]]
    n_pairs, tokens = story["n_pairs"].max(), pd.read_csv(results / "settings.csv")["dead_tokens"].max()
    about, measured = machine["speed"], machine["estimates"]
    estimates = pd.read_csv(results / "estimates.csv")
    models = estimates["model"].unique()
    ratios = estimates.pivot(index="what", columns="model", values="ratio").loc[estimates["what"].unique(), models]
    digits = {c: 3 for c in settings if c.startswith(("dead", "explained", "ce "))} | {"l0": 1}
    return "\n\n".join(
        [
            f"Accuracy on {n_pairs} held-out test pairs a task (chance is 0.50):",
            markdown(curve),
            f"Crosscoders on the default triplet, over {tokens:,} held-out tokens (dead: silent on all of them). "
            "Letting k fall slowly is the paper's way; here it costs a few dead features. The decoder-norm penalty and "
            "AuxK are what keep features alive:",
            markdown(settings, digits),
            "What the shortcuts save (how many times longer the other way takes, measured in turns in one process):",
            markdown(speed, {"ratio": 1}),
            "Ratios from one half of the sentences against exact effects on the other, by rank correlation (more on "
            "[one page](benchmarks/results/science/FOUND.md)).",
            causes.brief({"prediction": pd.read_csv(results / "science" / "prediction.csv")}),
            "What `ckpts.estimate(...)` says of the time before a slow cell, divided by what it then takes (three "
            f"models of random weights; `{measured['command']}`, {measured['cpu']}, {measured['cores']} cores):",
            markdown(ratios.reset_index()),
            f"Otherwise measured by `make bench` and `make science` on {about['cpu']}, {about['cores']} cores, "
            f"{about['threads']} torch thread, torch {about['torch']}. All rows: "
            "[benchmarks/results/RESULTS.md](benchmarks/results/RESULTS.md).",
        ]
    )


def with_block(text: str, new: str) -> str:
    """The README's text with `new` between the markers."""
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n\n{new}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    with atomic_path(readme) as temporary:
        temporary.write_text(with_block(readme.read_text(encoding="utf-8"), block()), encoding="utf-8")
