"""The real path, end to end with papermill: published BLiMP and CLAMS files, the 50k tokenizer, a
Pythia-14m shape.

The weights are *briefly trained* (300 small steps on right sentences of the *find* halves), not
those of Pythia: what they know is not what Pythia knows, and "step1000" is only a name. But
accuracies move off chance, and fall below it on the way.
"""

import ast
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import nbformat
import numpy as np
import pandas as pd
import pytest
from hub_cache import briefly_trained, published_files, put, shrunk
from transformers import PreTrainedTokenizerFast

import ctt_helpers as ctt
from ctt_helpers.pairs import in_split, short_names
from ctt_helpers.sources import published
from ctt_helpers.sources.presets import PRESETS
from ctt_helpers.sources.text import pack

ROOT = Path(__file__).resolve().parents[1]
STEPS = {
    "step0": 0,
    "step512": 150,
    "step1000": 200,
    "step143000": 300,
}  # revision -> steps of training here
TRIPLET = ["step512", "step1000", "step143000"]
RELATIONAL = "blimp/distractor_agreement_relational_noun"
REGULAR = "blimp/regular_plural_subject_verb_agreement_1"
LEARNT = [
    *(RELATIONAL, REGULAR, "blimp/irregular_plural_subject_verb_agreement_1"),
    *("blimp/distractor_agreement_relative_clause", "blimp/determiner_noun_agreement_1"),
    *(
        f"clams/{language}/{c}"
        for language in ("en", "fr")
        for c in ("simple_agrmt", "prep_anim", "subj_rel")
    ),
]
MULTIBLIMP = {  # rows as published, with made-up sentences
    "eng": [
        ("The authors near the guard laugh .", "The authors near the guard laughs ."),
        ("The author near the guards laughs .", "The author near the guards laugh ."),
    ],
    "fra": [
        ("les auteurs devant le garde sont vieux .", "les auteurs devant le garde est vieux ."),
        ("le auteur devant les gardes est vieux .", "le auteur devant les gardes sont vieux ."),
    ],
}


def right_sentences(task: str, shared: Path, most: int) -> list[str]:
    rows = [
        r for r in published.published_rows(task, shared / "data") if in_split(r["prefix"], "find")
    ]
    return [r["sentence"] for r in random.Random(0).sample(rows, min(most, len(rows)))]


def lay_out(folder: Path, shared: Path) -> SimpleNamespace:
    """A cache with a briefly trained Pythia-14m, a file of text, published pairs, and the notebooks
    of the sources.
    """
    spec = importlib.util.spec_from_file_location(
        "build_notebooks", ROOT / "tools" / "build_notebooks.py"
    )
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    (folder / "notebooks").mkdir()
    for source in tool.sources():
        nbformat.write(tool.build(source), folder / "notebooks" / f"{source.stem}.ipynb")
    file, end = str(shared / "data" / "gpt-neox-tokenizer" / "tokenizer.json"), "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=file, bos_token=end, eos_token=end)
    tokenizer.save_pretrained(folder / "neox")
    names = {
        n: (folder / "neox" / n).read_bytes() for n in ("tokenizer.json", "tokenizer_config.json")
    }
    sentences = [s for task in LEARNT for s in right_sentences(task, shared, 1000)]
    random.Random(0).shuffle(sentences)
    models = briefly_trained(
        PRESETS["pythia-14m"].config, pack(sentences, tokenizer, 2000, 32), [*STEPS.values()]
    )
    for revision, model in zip(STEPS, models, strict=True):
        files = published_files(PRESETS["pythia-14m"].config, model=model)
        put(folder / "hub", PRESETS["pythia-14m"].repo, revision, files | names)
    for name in (
        "olmo-1b",
        "bloom-1b1",
    ):  # shrunk, with random weights: only the last two checkpoints
        preset = PRESETS[name]
        for seed, revision in enumerate(list(preset.tokens)[-2:]):
            files = published_files(shrunk(preset.config, preset.layer + 2), seed)
            put(folder / "hub", preset.repo, revision, files | names)
    text = [s for task in LEARNT for s in right_sentences(task, shared, 8000)]
    (folder / "text.txt").write_text("\n".join(text), encoding="utf-8")
    pairs = folder / "pairs"
    for language, rows in MULTIBLIMP.items():
        (pairs / "multiblimp" / language).mkdir(parents=True)
        table = pd.DataFrame(rows, columns=["sen", "wrong_sen"]).assign(
            phenomenon="SV-#", lang=language, wo="SV"
        )
        table.to_csv(pairs / "multiblimp" / language / "data.tsv", sep="\t", index=False)
    for kind in ("blimp", "clams"):
        (pairs / kind).symlink_to(shared / "data" / kind)
    return SimpleNamespace(
        folder=folder, cache=folder / "hub", pairs=pairs, text=folder / "text.txt"
    )


@pytest.fixture(scope="module")
def real(shared):
    with (
        tempfile.TemporaryDirectory() as folder,
        pytest.MonkeyPatch.context() as patch,
    ):  # 300 MB: not to be kept
        made = lay_out(Path(folder), shared)
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(made.cache))
        made.suite = ctt.load_suite("pythia-14m")
        yield made


def papermill(real: SimpleNamespace, number: str, out: Path, **parameters) -> str:
    """Run a notebook on the real path; what it printed and showed."""
    (notebook,) = (real.folder / "notebooks").glob(f"{number}_*.ipynb")
    known = notebook.read_text(encoding="utf-8")
    paths = {"pairs_path": str(real.pairs), "text_path": str(real.text)}
    parameters |= {n: v for n, v in paths.items() if f"{n}:" in known}
    parameters |= {"model": "pythia-14m", "out": str(out), "device": "cpu"}
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(notebook),
        f"{out}.ipynb",
        "-k",
        "python3",
        "--no-progress-bar",
    ]
    run = subprocess.run(
        [*command, "--cwd", str(notebook.parent), "-y", json.dumps(parameters)],
        capture_output=True,
        text=True,
        timeout=400,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(real.cache)},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return shown(Path(f"{out}.ipynb"))


def shown(notebook: Path) -> str:
    outputs = [o for c in nbformat.read(notebook, as_version=4).cells for o in c.get("outputs", [])]
    return "\n".join(o.get("text", "") + o.get("data", {}).get("text/plain", "") for o in outputs)


def check_left_out(text: str, name: str, pairs: ctt.MinimalPairs) -> None:
    for reason, count in pairs.left_out.items():
        assert any(
            name in line and reason in line and f"{count:,}" in line for line in text.splitlines()
        ), name


@pytest.mark.slow
def test_a_study_of_published_models_and_pairs(real, tmp_path):
    """Notebooks 02, 03 and 04, the last one on what 03 wrote."""
    check_02_on_blimp_and_clams(real, tmp_path)
    crosscoder = train_with_03(real)
    check_04_on_a_crosscoder_that_03_trained(real, crosscoder, tmp_path)


@pytest.mark.long
def test_other_languages_and_architectures(real, trained, tmp_path):
    """Notebook 08 on what 03 wrote."""
    check_08_languages_and_other_architectures(real, trained, tmp_path)


# what the others are given beside model, crosscoder, task and revisions
OTHERS = {
    "00": {"n_pairs": 24, "tasks": ["clams/en/simple_agrmt", "clams/en/prep_anim"]},
    "01": {"n_pairs": 24},
    "05": {"n_pairs": 24},
    "06": {"n_pairs": 24, "n_draws": 20, "steps": 20, "n_tokens": 8000},
    "07": {"n_pairs": 24, "method": "atp", "n_tokens": 2000, "n_sentences": 5},
    "09": {"n_pairs": 24, "n_tokens": 4000},
}


@pytest.fixture(scope="module")
def trained(real):
    return train_with_03(real)


@pytest.mark.long
@pytest.mark.parametrize("task", ["clams/en/prep_anim", RELATIONAL], ids=["clams", "blimp"])
@pytest.mark.parametrize("number", OTHERS)
def test_every_other_notebook_takes_a_published_model(real, trained, tmp_path, number, task):
    given = {"revisions": TRIPLET, "task": task, "plain_task": "clams/en/simple_agrmt"}
    given |= {"crosscoder": str(trained)} | OTHERS[number]
    (notebook,) = (real.folder / "notebooks").glob(f"{number}_*.ipynb")
    known = notebook.read_text(encoding="utf-8")
    given = {name: value for name, value in given.items() if f"{name}:" in known}
    text = papermill(real, number, tmp_path / number, **given)
    assert "pythia-14m" in text and list((tmp_path / number).iterdir())


def check_02_on_blimp_and_clams(real, tmp_path):
    looked_at = {
        "regular_plural_subject_verb_agreement_1": REGULAR,
        "distractor_agreement_relational_noun": RELATIONAL,
        "simple_agrmt": "clams/en/simple_agrmt",
        "en_prep_anim": "clams/en/prep_anim",
        "fr_prep_anim": "clams/fr/prep_anim",
    }
    out = tmp_path / "02"
    text = papermill(
        real,
        "02",
        out,
        tasks=list(looked_at.values()),
        revisions=list(STEPS),
        split="test",
        n_pairs=60,
    )
    table = pd.read_csv(out / "accuracy.csv").pivot(
        index="task", columns="revision", values="accuracy"
    )
    assert set(table.index) == set(looked_at) and set(table.columns) == set(STEPS)
    pairs = {
        name: real.suite.pairs(t, split="test", path=real.pairs, n=60)
        for name, t in looked_at.items()
    }
    for checkpoint in real.suite.checkpoints(list(STEPS), device="cpu").one_by_one():
        for name, p in pairs.items():
            assert table.loc[name, checkpoint.label] == pytest.approx(ctt.accuracy(checkpoint, p))
    assert pairs["distractor_agreement_relational_noun"].left_out
    for name, p in pairs.items():
        check_left_out(text, name, p)
    # brief training on other sentences is enough to learn
    assert table["step143000"][["simple_agrmt", "en_prep_anim", "fr_prep_anim"]].min() > 0.75
    assert "Left out here: these tasks do not say where their nouns are." in text
    similarity = pd.read_csv(out / "similarity.csv", index_col=0)
    assert np.allclose(np.diag(similarity), 1, atol=1e-4) and list(similarity) == list(STEPS)
    chosen = json.loads((out / "triplet.json").read_text())["suggested"]
    assert set(chosen) <= set(STEPS) and chosen[-1] == "step143000"


def train_with_03(real) -> Path:
    """A crosscoder trained by notebook 03 on the file of text."""
    sizes = {
        "n_latents": 256,
        "k": 16,
        "steps": 120,
        "batch_size": 512,
        "n_tokens": 20_000,
        "n_eval_tokens": 1024,
    }
    out = real.folder / "03"
    papermill(real, "03", out, revisions=TRIPLET, **sizes)
    report = json.loads((out / "report.json").read_text())
    assert min(report["explained_variance"]) > 0.8
    return out / "crosscoder"


def check_04_on_a_crosscoder_that_03_trained(real, crosscoder, tmp_path):
    """A task of BLiMP, and one of CLAMS in another language."""
    task, plain_task = RELATIONAL, "clams/fr/prep_anim"
    where = {"revisions": TRIPLET, "crosscoder": str(crosscoder), "n_tokens": 2048, "method": "atp"}
    text = papermill(
        real, "04", tmp_path / "04", task=task, plain_task=plain_task, n_pairs=12, **where
    )
    ckpts, code = real.suite.checkpoints(TRIPLET, device="cpu"), ctt.Crosscoder.load(crosscoder)
    for name, short in short_names([task, plain_task]).items():
        pairs = real.suite.pairs(name, split="find", path=real.pairs, n=12)
        check_left_out(text, short, pairs)
        saved = ctt.Effects.load(tmp_path / "04" / f"effects_{short}")
        again = ctt.indirect_effects(code, ckpts, pairs, "atp")
        assert np.allclose(saved.mean, again.mean, atol=1e-5) and np.abs(saved.mean).max() > 0.005
        ratios = ctt.rel_ie(saved.mean, inactive_below=1e-3)
        active = ~np.isnan(ratios[0])
        assert active.sum() > 5 and np.allclose(ratios[:, active].sum(0), 1)
    assert (
        f"{len(real.suite.pairs(task, split='find', path=real.pairs, n=12))} pairs to find" in text
    )
    hunted = pd.read_csv(tmp_path / "04" / "hunted.csv")
    shares = hunted[[c for c in hunted if c.startswith("RelIE")]]
    assert len(shares.columns) == 3 and np.allclose(shares.sum(axis=1), 1)


def check_08_languages_and_other_architectures(real, crosscoder, tmp_path):
    languages = ["clams/en/prep_anim", "clams/fr/prep_anim", "multiblimp/eng", "multiblimp/fra"]
    sizes = {
        "n_latents": 256,
        "k": 16,
        "steps": 40,
        "n_tokens": 20_000,
        "n_eval_tokens": 1024,
        "n_draws": 20,
    }
    text = papermill(
        real,
        "08",
        tmp_path / "08",
        revisions=TRIPLET,
        crosscoder=str(crosscoder),
        task=languages[0],
        n_pairs=12,
        tasks=[*languages, "clams/de/prep_anim"],
        other_models=["olmo-1b", "bloom-1b1", "olmo2-1b"],
        **sizes,
    )
    assert "features count in all 4 languages; in one alone:" in text
    assert "clams/de/prep_anim is left out: 'clams/de/prep_anim': no file " in text
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    for name, kind in (("olmo-1b", "OlmoForCausalLM"), ("bloom-1b1", "BloomForCausalLM")):
        found = ast.literal_eval(lines[name].removeprefix(name).strip())
        assert (
            found["class"] == kind and found["largest change"] < 1e-3 and found["AtP: rank"] > 0.9
        )
    assert "olmo2-1b is left out: " in text and "HF_HUB_OFFLINE forbids the network" in text
    assert (tmp_path / "08" / "against_the_triplet.csv").is_file()


def test_08_without_a_hub_says_what_it_would_show():
    text = shown(ROOT / "notebooks" / "08_scaling_up.ipynb")
    for told in (
        "real weights. With other_models=",
        "languages, for `tasks` names none. With a multilingual model",
    ):
        assert f"Left out here: {told}" in text


def test_names_that_tell_languages_apart():
    short = short_names(["clams/en/prep_anim", "clams/fr/prep_anim", REGULAR, REGULAR])
    assert list(short.values()) == [
        "en_prep_anim",
        "fr_prep_anim",
        "regular_plural_subject_verb_agreement_1",
    ]


@pytest.mark.parametrize(
    ("folder", "expected"), [("notebooks", "../runs/04"), ("elsewhere", "runs/04")]
)
def test_where_results_go(folder, expected, tmp_path, monkeypatch):
    (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / folder)
    namespace = {
        "__annotations__": {"profile": str, "out": str | None},
        "profile": "tiny",
        "out": None,
    }
    assert ctt.use_profile(namespace, "04")["out"] == namespace["out"] == expected
    namespace["out"] = "/mine"
    assert ctt.use_profile(namespace, "04")["out"] == "/mine"
