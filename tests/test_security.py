"""What comes from elsewhere is data: it is not run, shows as text, and stays in its folder."""

import ast
import contextlib
import csv
import dataclasses
import importlib
import json
import os
import pickle
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import huggingface_hub
import ipywidgets
import mistune
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hub_cache import SmallHub
from hypothesis import given, settings
from hypothesis import strategies as st
from models import random_suite, some_pairs, some_text, word_tokenizer
from safetensors.torch import load_file
from test_project import README, ROOT, load_tool, tracked

import ctt_helpers as ctt
from ctt_helpers import files, messages
from ctt_helpers.crosscoder import FILES
from ctt_helpers.effects import Subsets
from ctt_helpers.files import plain_cell, read_rows, read_table, safe_cell, write_rows, write_table
from ctt_helpers.notebook import pages, widgets
from ctt_helpers.notebook.widgets import Annotation
from ctt_helpers.pairs import make_pairs
from ctt_helpers.sources import exchange, hub, published, text
from ctt_helpers.sources.suites import load_suite

# ---- the sources


FOLDERS = (
    "ctt_helpers", "tools", "notebooks/src", "benchmarks", "experiments", "docs", "workflow",
)  # fmt: skip
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
PICKLES = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "marshal", "shelve", "jsonpickle"}
RUNNERS = {"runpy", "imp", "code", "pty"}
RUNS = {"eval", "exec", "compile", "__import__", "input"}
SAFE_YAML = {"safe_load", "safe_load_all", "safe_dump", "dump", "YAMLError", "SafeLoader"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
WEB = {"requests", "httpx", "urlopen", "get_session()", "urllib3"}
# what a source may do all the same: (its file, what) -> why
ALLOWED = {
    ("ctt_helpers/__init__.py", "import_module of a name that is made"): (
        "names of its own table of modules"
    ),
    ("workflow/guard.py", "import of runpy"): "what its own command line names, as python -m does",
}


def complaints(source: str) -> set[str]:
    """What in a Python source would run data, or wait for a network without an end."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            names = [module] if module else [alias.name for alias in node.names]
            found |= {
                f"import of {name}" for name in names if name.split(".")[0] in PICKLES | RUNNERS
            }
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if name.startswith("yaml.") and node.attr not in SAFE_YAML:
                found.add(name)
        if isinstance(node, ast.Call):
            found |= set(_of_call(node))
    return found


def _of_call(node: ast.Call) -> Iterator[str]:
    called = ast.unparse(node.func)
    last = called.rpartition(".")[2]
    given_ = {word.arg: word.value for word in node.keywords}

    def is_true(name: str) -> bool:
        return name in given_ and getattr(given_[name], "value", None) is True

    if called in RUNS or called in SHELLS or last in ("read_pickle", "mktemp"):
        yield called
    if last == "import_module" and not isinstance(node.args[0], ast.Constant):
        yield "import_module of a name that is made"
    if last in ("spec_from_file_location", "SourceFileLoader"):
        yield called
    if called in ("torch.load", "jit.load", "torch.jit.load") and not is_true("weights_only"):
        yield "torch.load without weights_only=True"
    for name in ("shell", "allow_pickle", "trust_remote_code"):
        if is_true(name):
            yield f"{name}=True"
    if last in ("from_pretrained", "from_config") and not re.match(r"(ctt\.)?Crosscoder\.", called):
        if "trust_remote_code" not in given_:
            yield f"{last} without trust_remote_code"
    if last in ("extractall", "unpack_archive") and "filter" not in given_:
        yield f"{last} without filter"
    verbs = ("get", "post", "put", "head", "request", "urlopen")
    of_web = called.rpartition(".")[0] in WEB or last == "urlopen"
    if of_web and last in verbs and "timeout" not in given_:
        yield f"{called} without timeout"
    if (
        last in ("query", "eval")
        and called != "eval"
        and node.args
        and not isinstance(node.args[0], ast.Constant)
    ):
        yield f"{last} of a text that is made"  # pandas runs it


BAD = [
    "import pickle", "from joblib import load", "import marshal as m", "import os, dill",
    "torch.load(file)", "torch.load(file, weights_only=False)", "torch.load(f, weights_only=x)",
    "yaml.load(text)", "yaml.load(text, yaml.SafeLoader)", "yaml.unsafe_load(text)",
    "yaml.full_load(text)", "eval(text)", "exec(code)", "compile(code, 'x', 'exec')",
    "__import__(name)", "subprocess.run(line, shell=True)", "os.system(line)", "os.popen(line)",
    "np.load(file, allow_pickle=True)", "AutoConfig.from_pretrained(x, trust_remote_code=True)",
    "AutoConfig.from_pretrained(x)", "AutoModel.from_config(x)",
    "load_dataset(x, trust_remote_code=True)",
    "archive.extractall(folder)", "shutil.unpack_archive(file)", "urlopen(address)",
    "requests.get(address)", "get_session().head(address)", "httpx.post(address)",
    "importlib.import_module(name)", "importlib.util.spec_from_file_location('x', path)",
    "pd.read_pickle(file)", "table.eval(text)", "table.query(f'a == {x}')", "tempfile.mktemp()",
    "import runpy",
]  # fmt: skip
GOOD = [
    "model.eval()", "re.compile(x)", "yaml.safe_load(text)", "torch.load(f, weights_only=True)",
    "subprocess.run([a, b])", "np.load(file)", "Crosscoder.from_pretrained(x)",
    "reader.from_pretrained(x, trust_remote_code=self.trust_remote_code)", "d.get(name)",
    "archive.extractall(folder, filter='data')", "urlopen(address, timeout=2)",
    "importlib.import_module('a.b')", "table.query(\"a == 'b'\")", "queue.put(x)",
]  # fmt: skip


@pytest.mark.parametrize("source", BAD)
def test_the_reader_of_sources_sees_what_it_looks_for(source):
    assert complaints(source), source


def test_the_reader_of_sources_lets_the_rest_be():
    assert [(source, complaints(source)) for source in GOOD if complaints(source)] == []


def test_no_source_runs_what_is_data():
    assert len(SOURCES) > 80
    found = {
        (path.relative_to(ROOT).as_posix(), what)
        for path in SOURCES
        for what in complaints(path.read_text(encoding="utf-8"))
    }
    there = {path.relative_to(ROOT).as_posix() for path in SOURCES}
    assert found == {(name, what) for name, what in ALLOWED if name in there}


def test_the_tables_of_notebooks_are_written_and_shown_safely():
    """`write_table` in place of to_csv, and a Styler with everything escaped."""
    for path in [*(ROOT / "notebooks/src").glob("*.py"), *(ROOT / "workflow").glob("*.py")]:
        source = path.read_text(encoding="utf-8")
        assert ".to_csv(" not in source, path.name
        for shown in re.findall(r"(\w+) = .*\)\.style\b|(\w+)\.style\b", source):
            name = "".join(shown)
            if name in ("look", "plots"):
                continue
            use = rf'\b{name}(\.style)?\.format\(.*escape="html"\)\.format_index\(escape="html"\)'
            assert re.search(use, source), f"{path.name}: {name}"


# ---- files that would run something


class Marks:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "it ran"))


@pytest.fixture
def marker(tmp_path) -> Path:
    return tmp_path / "it ran"


@pytest.mark.parametrize("form", ["whole", "in parts", "beside a tensor"])
def test_weights_that_would_run_are_refused(tmp_path, marker, form):
    """A .bin as older versions of transformers wrote it, with a payload in a tensor's place."""
    suite = random_suite(tmp_path / "suite", 2)
    for revision in suite.revisions:
        folder = suite.source / revision
        state = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        evil = {next(iter(state)): Marks(marker)} if form == "whole" else {"x": Marks(marker)}
        name = "pytorch_model.bin"
        if form == "in parts":
            name = "pytorch_model-00001-of-00001.bin"
            index = {"metadata": {}, "weight_map": dict.fromkeys(state, name)}
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        torch.save({**state, **evil}, folder / name)
    ckpts = load_suite(suite.source).checkpoints(device="cpu")
    with pytest.raises(ValueError, match=r"weights_only=True: it may hold tensors and nothing"):
        ckpts[0]
    assert not marker.exists()
    torch.load(folder / name, weights_only=False)
    assert marker.exists()  # it would have


def test_pickles_under_every_name_of_ours_are_refused(tmp_path, marker):
    """A run folder whose files are pickles, for whatever reads them."""
    payload = pickle.dumps(Marks(marker))
    crosscoder = ctt.Crosscoder(3, 32, 20, k=4)
    crosscoder.save(tmp_path / "whole")
    ckpts = random_suite(tmp_path / "suite").checkpoints(device="cpu")
    effects = ctt.indirect_effects(crosscoder.eval(), ckpts, some_pairs())
    effects.save(tmp_path / "effects")
    ctt.ActivationCache.build(ckpts, some_text(), tmp_path / "cache")
    stream = ctt.TensorStream(torch.randn(64, 3, 32), batch_size=16)
    config = ctt.TrainConfig(steps=2)
    ctt.train(ctt.Crosscoder(3, 32, 20, k=4), stream, config, tmp_path / "run", device="cpu")
    readers: dict[str, Callable] = {
        "whole": ctt.Crosscoder.load,
        "effects": ctt.Effects.load,
        "cache": lambda folder: [ctt.ActivationCache.open(folder).read(c, 0) for c in range(3)],
        "run": lambda folder: ctt.train(
            ctt.Crosscoder(3, 32, 20, k=4), stream, config, folder, device="cpu"
        ),
    }
    tried = 0
    for name, read in readers.items():
        for path in sorted((tmp_path / name).rglob("*")):
            if path.is_file() and path.name != ".lock":
                whole = path.read_bytes()
                path.write_bytes(payload)
                print(path)  # if it is none of these errors
                with pytest.raises((ValueError, FileExistsError)):
                    read(tmp_path / name)
                path.write_bytes(whole)
                tried += 1
        read(tmp_path / name)
    assert tried >= 11 and not marker.exists()
    pickle.loads(payload)
    assert marker.exists()


CODE = """from pathlib import Path
Path({marker!r}).write_text("it ran")
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast
class OwnConfig(GPTNeoXConfig):
    model_type = "own"
class OwnModel(GPTNeoXForCausalLM):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.mark.parametrize("what", ["model", "tokenizer", "known model"])
def test_code_that_comes_with_weights_is_not_run(tmp_path, marker, monkeypatch, what):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    source = random_suite(tmp_path / "suite", 2).source
    for folder in (source, *source.glob("step*")):
        (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    changed = {"auto_map": names} | ({"model_type": "own"} if what == "model" else {})
    file = "config.json"
    if what == "tokenizer":
        file = "tokenizer_config.json"
        changed = {
            "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]},
            "tokenizer_class": "OwnTokenizer",
        }
    for path in source.rglob(file):
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    def read(trust: bool):
        suite = load_suite(source, trust_remote_code=trust)
        return suite.tokenizer, suite.checkpoints(device="cpu")[0]

    if what == "known model":  # transformers has it: its own code is taken
        read(trust=False)
    else:
        with pytest.raises(ValueError, match=r"needs Python code .* trust_remote_code=True"):
            read(trust=False)
    assert not marker.exists()
    with contextlib.suppress(ValueError):  # it is no good model
        read(trust=True)
    assert marker.exists()  # it would have


def test_a_kernel_that_a_configuration_names_is_not_taken(tmp_path):
    """transformers would fetch it, and run it."""
    source = random_suite(tmp_path, 2).source
    plain = load_suite(source).checkpoints(device="cpu")[0].hf_model.config._attn_implementation
    assert plain in ("sdpa", "eager")
    for named in ("org/kernel", "kernels-community/flash-attn2", "flash_attention_2", "eager"):
        for path in source.rglob("config.json"):
            told = json.loads(path.read_text()) | {"attn_implementation": named}
            path.write_text(json.dumps(told))
        taken = load_suite(source).checkpoints(device="cpu")[0].hf_model.config._attn_implementation
        assert taken == ("eager" if named == "eager" else plain)
    with pytest.raises(ImportError):  # it was asked for
        path.write_text(json.dumps(told | {"attn_implementation": "org/kernel"}))
        load_suite(source, trust_remote_code=True).checkpoints(device="cpu")[1]


def test_nothing_in_a_data_set_is_run(tmp_path, marker):
    payload = f"from pathlib import Path\nPath({str(marker)!r}).write_text('it ran')\n"
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "set.py").write_text(
        payload + "import datasets\nclass Set(datasets.ArrowBasedBuilder): pass\n"
    )
    for path in (folder, folder / "set.py"):
        with pytest.raises(ValueError, match=r"There is no text|give a \.txt"):
            next(text.documents(path, "train"))
        with pytest.raises((ValueError, FileNotFoundError)):
            published.file_rows(path)
        with pytest.raises(Exception, match=r"(?i)script|data files"):
            next(text._stream({"path": str(path)}, 0))
    (folder / "dataset_infos.json").write_text("{}")
    (folder / "data.jsonl").write_text('{"text": "one"}\n')
    assert not marker.exists()
    exec(compile(payload, "set.py", "exec"), {})
    assert marker.exists()


def test_a_pickled_type_in_a_parquet_file_is_not_read(tmp_path, marker):
    """pyarrow once made Python types of such files from pickles."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    marks = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(Marks(marker)),
    }
    sentences = [pa.array([f"the dog {verb}"] * 3) for verb in ("runs", "run")]
    fields = [pa.field("sentence_good", pa.string(), metadata=marks)]
    schema = pa.schema([*fields, pa.field("sentence_bad", pa.string())])
    pq.write_table(pa.Table.from_arrays(sentences, schema=schema), tmp_path / "pairs.parquet")
    rows = published.file_rows(tmp_path / "pairs.parquet")
    assert len(rows) == 3 and rows[0]["right"] == " runs" and not marker.exists()
    table = pa.Table.from_arrays(
        sentences[:1], schema=pa.schema([pa.field("text", pa.string(), metadata=marks)])
    )
    pq.write_table(table, tmp_path / "text.parquet")
    where = {"path": "parquet", "data_files": str(tmp_path / "text.parquet")}
    assert next(text._stream(where, 0)) == "the dog runs" and not marker.exists()


def test_settings_in_yaml_make_no_objects(tmp_path, marker):
    call = f"!!python/object/apply:os.mkdir [{str(marker)!r}]"
    (tmp_path / "run.yaml").write_text(f"out: {call}\n")
    with pytest.raises(ValueError, match=r"run\.yaml is no YAML"):
        ctt.runs.read_run(tmp_path / "run.yaml")
    assert not marker.exists()
    yaml.unsafe_load((tmp_path / "run.yaml").read_text())
    assert marker.exists()


# ---- what is shown

IMAGE = "<img src=x onerror=alert(1)>"  # without a slash, which takes the name of a task apart
HOSTILE = "\"><img src=x onerror=alert(1)><script>alert(1)</script>'&<"


class Outline(HTMLParser):
    """Tags and attributes, as a browser would read them."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text = set(), [], ""
        self.feed(document)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.text += data

    @property
    def dangers(self) -> list:
        bad = {"script", "img", "iframe", "object", "embed", "link", "form", "base", "meta"}
        links = ("javascript:", "data:", "vbscript:")
        return sorted(self.tags & bad) + [
            (name, value)
            for name, value in self.attributes
            if name.startswith("on")
            or (name in ("href", "src") and (value or "").strip().lower().startswith(links))
        ]


def is_safe(document: str, shown: str | None = "<script>alert(1)</script>") -> bool:
    """Nothing in a document does anything; and what was hostile is there, as text."""
    outline = Outline(document)
    assert outline.dangers == [], outline.dangers
    attributes = " ".join(str(value) for _, value in outline.attributes)
    return shown is None or shown in outline.text or shown in attributes


def test_the_reader_of_html_sees_what_it_looks_for():
    for bad in (HOSTILE, "<a href='javascript:alert(1)'>x</a>", "<b onclick=x>y</b>"):
        with pytest.raises(AssertionError):
            is_safe(f"<p>{bad}</p>", None)


def html_in(widget: ipywidgets.Widget) -> list[str]:
    """What the widgets in a widget show as HTML: values, and descriptions where these are HTML."""
    shown = []
    for child in getattr(widget, "children", ()):
        shown += html_in(child)
    if isinstance(widget, ipywidgets.HTML):
        shown.append(widget.value)
    if getattr(widget, "description_allow_html", False):
        shown.append(widget.description)
    return shown


NAMES = [f"step{i}{HOSTILE}" for i in range(3)]


def curve_and_similarity() -> tuple[pd.DataFrame, pd.DataFrame]:
    rows = [
        (name, 100 * i, f"task{HOSTILE}", (0.5, 0.7, 0.9)[i], 0.02, 30)
        for i, name in enumerate(NAMES)
    ]
    columns = ["revision", "tokens_seen", "task", "accuracy", "stderr", "n_pairs"]
    sim = pd.DataFrame([[1, 0.7, 0.3], [0.7, 1, 0.5], [0.3, 0.5, 1]], NAMES, NAMES)
    return pd.DataFrame(rows, columns=columns), sim


def hostile_pairs():
    rows = [
        {
            "prefix": f"the {noun} near the {near}",
            "right": f" {verb}",
            "wrong": f" {wrong}",
            "subject_level": f"{noun}{HOSTILE}",
            "attractor_level": f"{near}{HOSTILE}",
            f"{IMAGE}_level": noun,
        }
        for noun, verb, wrong in (("dog", "runs", "run"), ("dogs", "run", "runs"))
        for near in ("cat", "cats")
    ]
    pairs = make_pairs(rows, word_tokenizer(), name=IMAGE)
    return dataclasses.replace(pairs, text=[IMAGE] * len(pairs))


EXAMPLES = [{"tokens": [HOSTILE, "b"], "activations": [1.0, 0.5], "value": 1.0, "from": HOSTILE}]


def shown_by_widgets(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Every widget and table, made of hostile names, words, notes and paths."""
    curve, sim = curve_and_similarity()
    ie, rng = np.array([[1.0, -2], [0.5, 1], [0.2, 3]]), np.random.default_rng(0)
    shares = np.abs(ie) / np.abs(ie).sum(0)
    pairs = hostile_pairs()
    subsets = Subsets([1, 2], NAMES, rng.normal(size=(3, 4, len(pairs))))
    words = [[(HOSTILE, 1.0), (HOSTILE, -1.0)]] * 3
    yield "tokens", [widgets.tokens_html([HOSTILE], [1.0])]
    yield "examples", [widgets.examples_html(EXAMPLES)]
    yield "checkpoint", [widgets.checkpoint_table_html(curve, sim, NAMES[1])]
    card = widgets.feature_card_html(1, ie, shares, ie**2, NAMES, EXAMPLES, words, HOSTILE)
    yield "card", [card]
    yield "classes", [widgets.class_table_html({HOSTILE: shares}, NAMES)]
    yield "class slider", html_in(widgets.class_slider({HOSTILE: shares}, NAMES).widget)
    yield "two by two", [widgets.two_by_two_html(subsets, pairs, NAMES[0])]
    yield "two by two, live", html_in(widgets.two_by_two(subsets, pairs).widget)
    yield "board", [widgets.ablation_board_html(subsets, pairs)]
    yield "board, live", html_in(widgets.ablation_board(subsets, pairs).widget)
    slider = widgets.checkpoint_slider(curve, sim, into=list(NAMES), on_choice=lambda three: 1 / 0)
    slider.picker.pick()
    yield "checkpoint slider", html_in(slider.widget)
    slider.picker.menus[0].value = NAMES[2]
    yield "three out of order", html_in(slider.picker.widget)
    place = folder / "<img src=x onerror=alert(1)>"
    place.mkdir()
    notes = place / "notes.csv"
    more = {"labels": {1: HOSTILE}, "annotations_path": notes}
    explorer = widgets.feature_explorer(ie, shares, ie**2, NAMES, {1: EXAMPLES}, {1: words}, **more)
    explorer.note.value = HOSTILE
    explorer.keep()
    yield "explorer", html_in(explorer.widget)
    notes.write_text(f"{HOSTILE},b\n", encoding="utf-8")
    explorer.number.value = 0
    yield "explorer, a bad file", [*html_in(explorer.widget), card]
    for name in (f"one{IMAGE}.csv", f"two{IMAGE}.csv"):
        said = {1: Annotation(f"{HOSTILE}{name}", "sure", HOSTILE)}
        widgets.save_annotations(place / name, said)
    form = widgets.annotation_form(
        {1: "<p>card</p>"}, place / f"one{IMAGE}.csv", place / f"two{IMAGE}.csv"
    )
    form.show_agreement()
    yield "annotations", html_in(form.widget)
    form.other.value = HOSTILE
    yield "annotations, no file", html_in(form.widget)
    triangle = {"colors": {HOSTILE: [HOSTILE, "b"]}, "labels": {1: HOSTILE}, "pages": place}
    shown = widgets.share_triangle(shares, np.array([1.0, 2]), NAMES, **triangle)
    yield "triangle", html_in(shown.widget)
    links = {1: f"a.html?{HOSTILE}"}
    strength = np.array([1.0, 2])
    yield "links", [widgets.triangle_html(shares, strength, NAMES, [HOSTILE, ""], links)]
    tried = pd.DataFrame({"k": [4, 8], "penalty": 0.0, "l0": 5.0, "dead": 0.1, "specific": 3})
    tried = tried.assign(**{f"explained variance {name}": [0.8, 0.9] for name in NAMES})
    yield "playground", html_in(widgets.playground(tried).widget)


def test_widgets_show_names_and_words_as_text(tmp_path):
    seen = []
    for name, documents in shown_by_widgets(tmp_path):
        assert is_safe("\n".join(documents)), name
        seen.append(name)
    assert len(seen) == 19


@pytest.fixture(scope="module")
def hostile_suite(tmp_path_factory):
    """Checkpoints whose folders have names that are HTML."""
    source = random_suite(tmp_path_factory.mktemp("suite") / IMAGE).source
    names = []
    for old in ("step0", "step100", "step200"):
        names.append(f"{old}'\"><img src=x onerror=alert(1)>&")
        (source / old).rename(source / names[-1])
    return load_suite(source, revisions=names)


def test_feature_pages_show_names_and_words_as_text(hostile_suite, tmp_path, monkeypatch):
    ckpts = hostile_suite.checkpoints(device="cpu")
    decode = type(hostile_suite.tokenizer).decode
    monkeypatch.setattr(
        type(hostile_suite.tokenizer), "decode", lambda *a, **k: decode(*a, **k) + HOSTILE
    )
    crosscoder, pairs = ctt.Crosscoder(3, 32, 12, sparsity="l1", seed=1), hostile_pairs()
    effects = ctt.indirect_effects(crosscoder, ckpts, pairs)
    null = ctt.indirect_effects(ctt.random_directions(crosscoder), ckpts, pairs)
    effects.info.update(method=HOSTILE, unit=HOSTILE)  # as a file of a stranger may have it
    given_ = (crosscoder, ckpts, some_text(), {IMAGE: effects}, {IMAGE: pairs})
    more = {"notes": dict.fromkeys(range(12), HOSTILE), "null": {IMAGE: null}}
    written = pages.write(tmp_path / "site", *given_, **more)
    for path in written.pages.values():
        document = path.read_text(encoding="utf-8")
        inside = document.replace('<meta charset="utf-8">', "").replace(
            '<meta name="viewport"', "<b"
        )
        assert is_safe(inside)
    document = written.index.read_text(encoding="utf-8")
    scripts = re.findall(r"<script.*?</script>", document, re.DOTALL)
    assert len(scripts) == 2 and scripts[1] == f"<script>{pages.SCRIPT}</script>"
    assert (
        HOSTILE
        in json.loads(re.search(r"id=data>(.*?)</script>", scripts[0], re.DOTALL)[1])["rows"][0]
    )
    rest = re.sub(r"<script.*?</script>|<meta[^>]*>", "", document, flags=re.DOTALL)
    assert is_safe(rest, hostile_suite.revisions[0])


WILD = [
    HOSTILE, "[x](javascript:alert(1))", "![x](https://example.org/a.png)", "a\n# b\n\n<b>c</b>",
    "| a | b |", "`a`", "https://example.org/a", "www.example.org", "@everyone", "&lt;script&gt;",
    "a\\", "--- x", "1. y", "$$x$$", "~~a~~ **b** __c__", "<!-- z", "[a]: https://example.org",
    "```\n<script>", "hf_" + "A1b2" * 9, "https://me:secret@example.org/x",
]  # fmt: skip


@pytest.mark.parametrize("wild", WILD)
def test_a_model_card_holds_names_and_nothing_else(hostile_suite, wild):
    """Read as the hub reads it: tables, and addresses that become links by themselves."""
    read = mistune.create_markdown(escape=False, plugins=["table", "url", "strikethrough"])

    def as_html(source: dict) -> Outline:
        crosscoder = ctt.Crosscoder(3, 32, 20, k=4, source=source)
        card = exchange.card(crosscoder, "org/mine")
        front = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
        assert set(yaml.safe_load(front[1])) <= {"library_name", "tags", "base_model"}
        return card, Outline(read(card[front.end() :]))

    names = {
        "suite": wild,
        "revisions": [wild] * 3,
        "fingerprints": [wild] * 3,
        "text": wild,
        wild: wild,
    }
    card, found = as_html(names)
    _, plain = as_html(
        {"suite": "x", "revisions": ["x"] * 3, "fingerprints": ["x"] * 3, "text": "x", "y": "x"}
    )
    assert found.tags == plain.tags and found.dangers == []
    assert [v for n, v in found.attributes if n == "href"] == ["https://arxiv.org/abs/2509.05291"]
    assert card.count("\n") == exchange.card(
        ctt.Crosscoder(3, 32, 20, k=4, source={**names, "suite": "x"}), "org/mine"
    ).count("\n")
    assert "secret" not in card and "A1b2" not in card


# ---- tables that a spreadsheet opens

FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
cells = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8
) | st.sampled_from(
    ["=1+1", "+1", "-5", "-", "@a", "\t=1", "\r", " =1", "'=1", "''-1", "'tis", '"', '"=1', ",",
     "nan", "NA", "None", "1,=2", "\u2028=1", "=HYPERLINK(\"http://x\")", "-2+3+cmd|' /C calc'!A0"]
)  # fmt: skip


def is_plain(path: Path) -> bool:
    """Whether no cell of a CSV file, as a spreadsheet gets it, is a formula, numbers aside."""
    with open(path, newline="", encoding="utf-8") as file:
        found = [cell for row in csv.reader(file) for cell in row]
    return not [c for c in found if c.lstrip().startswith(FORMULAS) and not is_number(c)]


def is_number(cell: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", cell) is not None


@given(st.lists(st.lists(cells, min_size=2, max_size=2), max_size=4))
def test_rows_come_back_and_are_no_formulas(rows):
    path = Path(os.environ["CTT_TEST_FOLDER"]) / "rows.csv"
    header = ["=a", "b"]
    write_rows(path, header, rows)
    assert read_rows(path) == (header, rows)
    with open(path, newline="", encoding="utf-8") as file:
        for cell in (cell for row in csv.reader(file) for cell in row):
            assert not cell.startswith(FORMULAS) and not cell.lstrip(" ").startswith(FORMULAS)


@pytest.fixture(autouse=True)
def folder_for_hypothesis(tmp_path, monkeypatch):
    monkeypatch.setenv("CTT_TEST_FOLDER", str(tmp_path))


words = cells.filter(bool)
numbers = st.floats(allow_nan=False) | st.just(-0.5)


@given(
    st.lists(st.tuples(words, words, numbers, st.integers(-9, 9)), min_size=1, max_size=4),
    words.filter(lambda name: not is_number(name)),
)
@settings(max_examples=60)
def test_tables_come_back_and_are_no_formulas(rows, name):
    """Cells, an index and names of columns; a number is a number, negative or not."""
    path = Path(os.environ["CTT_TEST_FOLDER"]) / "table.csv"
    columns = ["index", f"{name}1", "value", "count"]
    table = pd.DataFrame(rows, columns=columns).set_index("index")
    write_table(path, table)
    back = read_table(path, index_col=0, dtype={f"{name}1": str, "index": str})
    pd.testing.assert_frame_equal(back, table, check_exact=True, check_index_type=False)
    with open(path, newline="", encoding="utf-8") as file:
        header, *lines = csv.reader(file)
    for index, word, value, count in [header, *lines]:
        for cell in (index, word):
            assert not cell.lstrip(" ").startswith(FORMULAS)
        assert lines == [] or value == "value" or float(value) in table["value"].tolist()
        assert count == "count" or int(count) in table["count"].tolist()


def test_tables_with_two_levels_and_missing_values_come_back(tmp_path):
    columns = pd.MultiIndex.from_tuples([("=a", "-b"), ("=a", "c")], names=["+x", None])
    index = pd.MultiIndex.from_tuples([("@i", 1), ("j", -2)], names=["=n", "m"])
    table = pd.DataFrame([[-1.5, np.nan], [0.1 + 0.2, -0.0]], index, columns)
    write_table(tmp_path / "a.csv", table)
    back = read_table(tmp_path / "a.csv", header=[0, 1], index_col=[0, 1])
    assert back.index.tolist() == index.tolist() and back.columns.tolist() == columns.tolist()
    np.testing.assert_array_equal(back.to_numpy(), table.to_numpy())
    assert is_plain(tmp_path / "a.csv") and table.index[0][0] == "@i"  # the table itself stays
    mixed = pd.DataFrame({"word": ["-x", None, "nan", "NA"], "any": [-1, "-1", 2.5, True]})
    write_table(tmp_path / "b.csv", mixed, index=False)
    back = read_table(tmp_path / "b.csv")
    assert back["word"].fillna("?").tolist() == ["-x", "?", "nan", "NA"]
    assert back["any"].tolist() == ["-1", "-1", "2.5", "True"]
    assert (tmp_path / "b.csv").read_text().splitlines()[1] == "'-x,-1"
    kinds = {
        "half": np.array([-0.1, 0.3], np.float32),
        "whole": pd.array([-1, None], "Int64"),
        "kind": pd.Categorical(["=a", "b"]),
        "text": pd.array(["-1", None], "string"),
    }
    write_table(tmp_path / "c.csv", pd.DataFrame(kinds), index=False)
    rows = ["half,whole,kind,text", "-0.1,-1,'=a,'-1", "0.3,,b,"]
    assert (tmp_path / "c.csv").read_text().splitlines() == rows
    assert read_table(tmp_path / "c.csv")["kind"].tolist() == ["=a", "b"]


def test_cells_that_need_nothing_stay_as_they_are():
    for cell in ("a=1", "'tis", "", "7", "a-b", "'", "x\t=1"):
        assert safe_cell(cell) == cell == plain_cell(cell)
    for value in (-1, -0.5, None, True, np.float64(-2)):
        assert safe_cell(value) is value


def test_questions_notes_and_grades_are_no_formulas(tmp_path, monkeypatch, capsys):
    said = ['=HYPERLINK("http://x","y").', "- a dash.", "@home."]
    test = ctt.naming.NamingTest(7, ["7-a", "7-b", "7-c"], said, np.ones(3, bool), np.ones(3))
    test.ask(tmp_path / "questions.csv")
    assert is_plain(tmp_path / "questions.csv")
    header, rows = read_rows(tmp_path / "questions.csv")
    assert [row[1] for row in rows] == said and header == list(ctt.naming.COLUMNS)
    text_ = (tmp_path / "questions.csv").read_text().replace(",\n", ",yes\n")
    (tmp_path / "answered.csv").write_text(text_)
    answered = ctt.naming.read_answers(tmp_path / "answered.csv")
    assert answered == {"7-a": True, "7-b": True, "7-c": True}
    grader = load_tool("grade")
    row = {"notebook": "=cmd|x.ipynb", "exercise": "a", "points": 0, "of": 1, "why": "@E: -1"}
    monkeypatch.setattr(grader, "grade", lambda path, seconds: [row])
    monkeypatch.setattr("sys.argv", ["grade.py", "x.ipynb", "--out", str(tmp_path / "g.csv")])
    assert grader.main() == 0 and is_plain(tmp_path / "g.csv")
    assert read_rows(tmp_path / "g.csv")[1] == [["=cmd|x.ipynb", "a", "0", "1", "@E: -1"]]


def test_a_collected_table_has_the_texts_of_the_runs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "workflow")
    collect = importlib.import_module("table").collect
    run = tmp_path / "run"
    for name in ("parameters.json", "versions.json"):
        note = {"notebook": "09_x.ipynb", "parameters": {"task": "=1+1"}}
        files.write_json(run / name, note)
    (run / "09_x").mkdir()
    write_table(run / "09_x/t.csv", pd.DataFrame({"word": ["-a", "=b"], "n": [-1, 2]}), index=False)
    table = collect([run])
    assert table["row"].tolist() == ["-a", "=b"] and table["value"].tolist() == [-1, 2]
    write_table(tmp_path / "collected.csv", table, index=False)
    assert is_plain(tmp_path / "collected.csv")
    assert read_table(tmp_path / "collected.csv")["task"].tolist() == ["=1+1"] * 2
    files.write_json(run / "parameters.json", {"notebook": "..", "parameters": {}})
    with pytest.raises(ValueError, match=r"parameters\.json points outside its folder"):
        collect([run])


def test_the_tables_of_this_project_hold_no_formulas():
    tables = [path for path in tracked() if path.suffix == ".csv"]
    assert len(tables) > 40
    bad = [path.relative_to(ROOT).as_posix() for path in tables if not is_plain(path)]
    assert bad == []


# ---- credentials

CREDENTIALS = {
    "HF_TOKEN": "hf_" + "FaKe" * 8 + "To",
    "HUGGING_FACE_HUB_TOKEN": "hf_" + "0lDn" * 8 + "Me",
    "WANDB_API_KEY": "fa4e" * 10,
    "NDIF_API_KEY": "ndif-fake-5e6d-4c1b",
    "MY_PASSWORD": "correct horse battery",
}
IN_A_PROXY = "n4me:pa55word-in-an-address"
SECRETS = [*CREDENTIALS.values(), IN_A_PROXY]


@pytest.fixture
def credentials(monkeypatch, tmp_path):
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HTTPS_PROXY", f"http://{IN_A_PROXY}@127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return CREDENTIALS


def leaks(*places: Path | str | bytes) -> list[str]:
    """Where a credential stands: files, those below folders, and texts."""
    found = []
    for place in places:
        paths = [place] if isinstance(place, Path) else []
        if isinstance(place, Path) and place.is_dir():
            paths = [path for path in place.rglob("*") if path.is_file()]
        contents = {str(path): path.read_bytes() for path in paths}
        if not isinstance(place, Path):
            contents = {"a text": place.encode() if isinstance(place, str) else place}
        for name, content in contents.items():
            parts = [IN_A_PROXY.split(":")[1], *CREDENTIALS.values()]
            found += [f"{name}: {part}" for part in parts if part.encode() in content]
    return found


def test_the_search_for_credentials_finds_one(tmp_path):
    (tmp_path / "a").mkdir()
    for secret in SECRETS:
        (tmp_path / "a" / "b.json").write_text(f'{{"x": "{secret}"}}')
        assert len(leaks(tmp_path)) == len(leaks(f"a{secret}b")) == 1


def test_training_saving_and_pushing_write_no_credentials(
    credentials, tmp_path, monkeypatch, capfd
):
    small_hub = SmallHub({}, token=credentials["HF_TOKEN"])
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", small_hub.url)
    template = small_hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    suite = random_suite(tmp_path / "suite")
    ckpts = suite.checkpoints(device="cpu")
    pairs = some_pairs()
    cache = ctt.ActivationCache.build(ckpts, some_text(40), tmp_path / "cache")
    crosscoder = ctt.Crosscoder(3, 32, 20, k=4)
    log = ctt.logs.to_csv(tmp_path / "run" / "log.csv")
    config = ctt.TrainConfig(steps=3)
    stream = cache.stream(batch_size=32, device="cpu")
    result = ctt.train(crosscoder, stream, config, tmp_path / "run", device="cpu", on_log=log)
    report = ctt.evaluate(result.crosscoder, ckpts, some_text())
    effects = ctt.indirect_effects(result.crosscoder, ckpts, pairs)
    effects.save(tmp_path / "effects")
    given_ = (result.crosscoder, ckpts, some_text(), {"x": effects}, {"x": pairs})
    pages.write(tmp_path / "pages", *given_)
    # by the variable, as `hf auth login` would give it
    url = result.crosscoder.push_to_hub("org/mine", report=report)
    ctt.Crosscoder.from_pretrained("org/mine")
    with pytest.raises(PermissionError) as refused:
        monkeypatch.setenv("HF_TOKEN", credentials["HUGGING_FACE_HUB_TOKEN"])
        result.crosscoder.push_to_hub("org/mine")
    small_hub.close()
    pushed = small_hub.repos["org/mine"]["main"]
    assert set(FILES) <= set(pushed) and len(list(tmp_path.rglob("*"))) > 40
    told = capfd.readouterr()
    assert leaks(tmp_path, *pushed.values(), url, str(refused.value), told.out, told.err) == []


NOTEBOOK = [
    'profile: str = "tiny"\nmodel: str | None = None\nseed: int = 0\nout: str | None = None',
    "from pathlib import Path\nimport ctt_helpers as ctt\nsuite = ctt.setup(globals(), '01')",
    "ctt.files.write_json(Path(out) / 'versions.json', ctt.files.versions())\nsuite.describe()",
]


def small_notebook(folder: Path) -> Path:
    cells = [nbformat.v4.new_code_cell(source) for source in NOTEBOOK]
    cells[0].metadata.tags = ["parameters"]
    metadata = load_tool("build_notebooks").METADATA
    path = folder / "notebooks" / "01_small.ipynb"
    path.parent.mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)
    return path


@pytest.mark.slow
def test_a_notebook_and_a_command_write_no_credentials(credentials, tmp_path, capfd):
    runner = load_tool("run_notebooks")
    out = tmp_path / "runs" / "01_small.ipynb"
    out.parent.mkdir()
    assert runner.run(small_notebook(tmp_path), out, 120, {"seed": 3}) is None
    assert (out.with_suffix("") / "versions.json").is_file() and b"Suite(" in out.read_bytes()
    config = tmp_path / "run.yaml"
    config.write_text(
        f"out: {tmp_path / 'trained'}\nn_tokens: 3000\nn_latents: 32\nk: 4\nbatch_size: 64\n"
        "device: cpu\nlog_to: [csv]\ntraining: {steps: 3}\n"
    )
    ctt.runs.main(["--config", str(config)])
    assert (tmp_path / "trained" / "log.csv").is_file()
    told = capfd.readouterr()
    assert leaks(tmp_path, told.out, told.err) == []


@pytest.mark.long
@pytest.mark.parametrize("number", ["00", "01", "02"])
def test_the_notebooks_write_no_credentials(credentials, tmp_path, number):
    (source,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    (tmp_path / "notebooks").mkdir()
    notebook = tmp_path / "notebooks" / source.name
    notebook.write_bytes(source.read_bytes())
    out = tmp_path / "runs" / source.name
    out.parent.mkdir()
    assert load_tool("run_notebooks").run(notebook, out, 900) is None
    assert leaks(tmp_path) == []


def test_a_parameter_that_is_a_credential_is_refused_and_not_repeated(credentials, tmp_path):
    for name, value in (
        ("model", credentials["HF_TOKEN"]),
        ("text_path", f"https://{IN_A_PROXY}@example.org/text.jsonl"),
        ("hub_token", "anything"),
        ("api_key", "anything"),
        ("revisions", ["step1", credentials["WANDB_API_KEY"]]),
    ):
        space = {"__annotations__": {"seed": int, "model": str | None}, "seed": 0, "model": None}
        with pytest.raises(ValueError, match=f"The parameter {name} holds a token") as told:
            ctt.check_parameters(space | {name: value})
        assert leaks(str(told.value)) == [] and "anything" not in str(told.value)
        with pytest.raises(ValueError, match="holds a token") as told:  # before anything is written
            load_tool("run_notebooks").run(
                tmp_path / "x.ipynb", tmp_path / "y.ipynb", 9, {name: value}
            )
        assert leaks(str(told.value)) == [] and list(tmp_path.iterdir()) == []
    (tmp_path / "run.yaml").write_text(f"out: x\nmodel: {credentials['HF_TOKEN']}\n")
    with pytest.raises(ValueError, match="The parameter model holds a token") as told:
        ctt.runs.read_run(tmp_path / "run.yaml")
    assert leaks(str(told.value)) == []
    plain = {"n_tokens": 3, "buffer_tokens": "many", "tokens": "a", "tokenizer": "x", "model": None}
    messages.check_no_secret("", plain)


def test_a_sweep_refuses_a_credential_before_it_writes(credentials, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "workflow")
    runs_of = importlib.import_module("plan").runs_of
    given = {"model": credentials["HF_TOKEN"], "seed": 0}
    notebook = str(small_notebook(tmp_path))
    for asked in ({"parameters": given}, {"axes": {"model": [given["model"]]}}):
        config = {"name": "x", "notebook": notebook, **asked}
        with pytest.raises(ValueError, match="The parameter model holds a token") as told:
            runs_of(config)
        assert leaks(str(told.value)) == []


def test_messages_repeat_no_credentials(credentials, tmp_path, monkeypatch):
    address = f"https://{IN_A_PROXY}@mirror.invalid"
    error = OSError(f"cannot reach {address}/x with {credentials['HF_TOKEN']}\nmore")
    assert messages.first_line(error) == "cannot reach https://***@mirror.invalid/x with ***."
    for told in ("hf_" + "Ab1" * 11, "ghp_" + "Ab1" * 12, "glpat-" + "Ab1" * 7):
        assert messages.without_secrets(f"x {told}.") == "x ***."
    for plain in ("hf_hub", "https://example.org/a@b", "me@example.org", "step512", "0" * 40):
        assert messages.without_secrets(plain) == plain
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://{IN_A_PROXY}@127.0.0.1:9")
    monkeypatch.setattr(hub, "SECONDS", 0.5)
    with pytest.raises(ConnectionError, match=r"http://\*\*\*@127\.0\.0\.1:9") as told:
        hub.require_hub("It", "Or not.")
    assert leaks(str(told.value)) == []
    with pytest.raises(ConnectionError) as told:
        hub.fetch("org/model", "main")
    assert leaks(str(told.value)) == []


def test_no_file_of_the_project_holds_a_credential():
    """Notebooks and their outputs, too."""
    found = []
    for path in tracked():
        if path.suffix in (".py", ".ipynb", ".md", ".json", ".csv", ".yml", ".toml", ".txt"):
            for match in messages.SECRET.finditer(path.read_text(encoding="utf-8")):
                found.append(f"{path.relative_to(ROOT)}: {match[0]}")
    assert found == []


def test_students_code_gets_no_credentials(credentials):
    kept = load_tool("grade")._without_credentials(os.environ)
    assert not set(CREDENTIALS) & set(kept) and kept["HF_TOKEN_PATH"] == os.devnull
    assert kept["PATH"] == os.environ["PATH"]


# ---- lists of files

OUTSIDE = [
    "../secret", "/etc/passwd", "a/../../secret", "..", "C:\\secret", "C:secret", "c:/secret",
    "..\\secret", "a\\..\\..\\secret", "\\\\host\\share", "//host/share", "a\0b", "", None, 7,
    ["a"],
]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE, ids=str)
def test_a_name_that_leads_out_of_its_folder_is_refused(tmp_path, name):
    """On every system what leads out on any, so that a folder is the same everywhere."""
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"list\.json points outside its folder"):
        files.inside(folder, name, "list.json")
    with pytest.raises(ValueError, match="points outside"):
        files.inside(folder, name, "list.json", links=True)


def test_names_that_stay_in_their_folder_are_taken(tmp_path):
    for name in ("a", "a/b.json", "step-5", "...", "a..b", "SV-#", "a b", "./a", ".hidden"):
        assert files.inside(tmp_path, name, "x") == tmp_path / name
    (tmp_path / "link").symlink_to(tmp_path.parent)
    (tmp_path / "own").symlink_to(tmp_path / "a")
    assert files.inside(tmp_path, "own", "x") == tmp_path / "own"
    with pytest.raises(ValueError, match="points outside"):
        files.inside(tmp_path, "link/x", "x")
    assert files.inside(tmp_path, "link/x", "x", links=True)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "..\\secret", "C:\\x", 7, "link"], ids=str
)
def test_a_suite_lists_nothing_outside_its_folder(tmp_path, name):
    tiny = load_suite("tiny")
    meta = json.loads((tiny.source / "suite.json").read_text())
    folder = tmp_path / "suite"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    for changed in (
        {"tasks": [{**meta["tasks"][0], "file": name}]},
        {"revisions": [{**meta["revisions"][0], "revision": name}]},
    ):
        (folder / "suite.json").write_text(json.dumps({**meta, **changed}))
        with pytest.raises(ValueError, match=r"suite\.json points outside its folder"):
            load_suite(folder)


def test_checksums_list_nothing_outside_their_folder(tmp_path):
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("../secret", str(tmp_path / "secret"), "..\\secret"):
        (folder / "SHA256SUMS").write_text(f"{'0' * 64}  {name}\n")
        with pytest.raises(ValueError, match="SHA256SUMS points outside its folder"):
            files.verified(folder, "x")


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "..\\x", 7])
def test_an_index_of_weights_lists_nothing_outside_its_folder(tmp_path, name):
    suite = random_suite(tmp_path / "suite", 2)
    folder = suite.source / "step0"
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(suite.source / "other.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(state, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"index\.json points outside its folder"):
        load_suite(suite.source).checkpoints(device="cpu")[0]


def test_a_cache_stays_in_its_folder(tmp_path):
    """Whatever its revisions are called, when it is written and when it is read."""
    about = {"source": {"revisions": ["..", ".", "a/../..", "/etc", "C:\\x", "step1"]}}
    cache = ctt.ActivationCache(tmp_path / "cache", about)
    places = [cache._path(c, 0) for c in range(6)]
    assert {place.parent.parent for place in places} == {tmp_path / "cache"}
    assert len({place.resolve() for place in places}) == 6
    for place in places:
        assert place.resolve().is_relative_to(tmp_path / "cache") and "\\" not in str(place)
        assert place.parent.resolve() != (tmp_path / "cache").resolve()
    assert places[-1] == tmp_path / "cache" / "step1" / "00000.safetensors"


def test_a_hub_that_lists_files_outside_writes_none_there(tmp_path, monkeypatch):
    """A list of files with names that lead out of the cache."""
    cache = tmp_path / "a" / "b" / "hub"
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    good = {"config.json": b"{}", "model.safetensors": b"x", "tokenizer.json": b"{}"}
    bad = [
        "../../../../../../evil.py",
        "/tmp/evil.py",
        "..\\..\\evil.py",
        "model-../../../x.safetensors",
    ]
    for name in bad:
        small_hub = SmallHub({"org/model": {"main": {**good, name: b"evil"}}})
        monkeypatch.setattr(constants, "ENDPOINT", small_hub.url)
        template = small_hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        with contextlib.suppress(ConnectionError, ValueError, OSError):
            hub.fetch("org/model", "main")
        small_hub.close()
        written = [path for path in tmp_path.rglob("*") if path.is_file()]
        outside = [path for path in written if not path.is_relative_to(cache)]
        assert outside == [] and not Path("/tmp/evil.py").exists()
        assert not [path for path in written if path.read_bytes() == b"evil"]


@pytest.mark.parametrize(
    "task", ["blimp/..", "clams/../x", "clams/en/..", "multiblimp/..", "blimp/..\\x"]
)
def test_a_task_does_not_lead_out_of_its_folder(tmp_path, task):
    (tmp_path / "data.tsv").write_text("sen\twrong_sen\na b\ta c\n")
    (tmp_path / "x.txt").write_text("True\ta b\nFalse\ta c\n")
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match="There is no published task"):
        published.published_rows(task, tmp_path / "in")


def test_a_lock_that_is_a_link_overwrites_nothing(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(FileExistsError, match="is a link"), files.locked(tmp_path / "run"):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


# ---- dependencies, and what is promised


def test_every_pin_is_looked_up_once_a_week():
    path = ROOT / ".github/workflows/advisories.yml"
    told = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert told["permissions"] == {"contents": "read"} and told[True]["schedule"]
    steps = told["jobs"]["audit"]["steps"]
    others = "".join(p.read_text() for p in path.parent.glob("*.yml") if p != path)
    assert all(step["uses"] in others for step in steps if "uses" in step)
    command = steps[-1]["run"]
    # without --strict, what could not be looked up counts as fine
    assert 'pip-audit --strict --no-deps --disable-pip --desc -r "$pins"' in command
    listing = shlex.split(re.search(r"\$\((git ls-files .*?)\)", command)[1])
    pins = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True).stdout.split()
    wanted = {"constraints.txt", "docs/constraints.txt"}
    wanted |= {f"tests/{name}/requirements.txt" for name in ("browser", "company")}
    assert wanted <= set(pins)
    for name in pins:  # nothing but exact versions: what is looked up is what is installed
        lines = (ROOT / name).read_text().splitlines()
        assert all(re.fullmatch(r"(#.*|[\w.-]+==[^\s;]+( *; .*)?)?", line) for line in lines), name


def test_the_page_on_security_is_there_and_linked():
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    for word in ("trust_remote_code", "weights_only", "/security/advisories", "tools/grade.py"):
        assert word in page, word
    assert (
        "(SECURITY.md)" in README and "../SECURITY.md" in (ROOT / "docs/reliability.md").read_text()
    )
    assert "- file: SECURITY\n" in (ROOT / "docs/toc.yml").read_text()
