"""Right calls of the modules that `ctt` offers (`ctt.plots`, `ctt.files` ...), for test_fuzz.py.

`CALLS`, `EXEMPT`, `RIGHT`, `MAY_BE_NAN` and `PASS_ON` are as there.
"""

import csv
import hashlib
import inspect
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

import ctt_helpers as ctt
from ctt_helpers import checks, processes

RESULTS = Path(ctt.__file__).parents[1] / "experiments" / "results"
SECRET = "hf_" + 20 * "a"


def more(w: SimpleNamespace) -> SimpleNamespace:
    """What these calls need beside the world of test_fuzz.py; made once."""
    if not hasattr(w, "more"):
        w.more = _more(w)
    return w.more


def _more(w: SimpleNamespace) -> SimpleNamespace:
    planted = ctt.planted.plant(
        d_model=8, counts={"emerge": 3, "persist": 3, "decodable": 2}, saturation=4.0
    )
    x, f = planted.sample(200)
    crosscoder = ctt.Crosscoder(3, 8, 8, k=2)
    with torch.no_grad():  # one that has found all of them
        crosscoder.W_dec.copy_(planted.directions)
    said = {0: ctt.widgets.Annotation("subject", "sure", "=1"), 1: ctt.widgets.Annotation("none")}
    other = {0: ctt.widgets.Annotation("both", "sure"), 1: ctt.widgets.Annotation("none")}
    sentences = ctt.naming.sentences_of(w.full, w.ckpts, w.long_text, w.busy[:4])
    column = int((sentences.peak > 0).sum(0).argmax())
    test = ctt.naming.naming_test(sentences, sentences.features[column], n=3)
    answers = test.answer(lambda sentence: len(sentence) % 2 == 0)
    subsets = ctt.ablate_subsets(w.crosscoder, w.ckpts, w.pairs, [0, 1])
    shares = ctt.shares_of_effect(w.factorial, n_draws=20)
    curve = ctt.accuracy_curve(
        w.suite, {"agreement/pp": w.many}, w.ckpts.labels, device="cpu", cells=True
    )
    examples = ctt.top_examples(w.crosscoder, w.ckpts, w.text, [0, 1], k=2)
    promoted = ctt.promoted_tokens(w.crosscoder, w.ckpts, 0, k=2)
    low, high = ctt.interval(w.draws)
    norms = w.crosscoder.decoder_norms().detach().numpy()
    report = ctt.evaluate(w.crosscoder, w.ckpts, w.text)
    settings = ctt.widgets.read_settings(RESULTS)
    ctt.formats.to_saelens(w.small, "small_sae")
    autoencoder = ctt.formats.from_saelens("small_sae", n_checkpoints=3)
    return SimpleNamespace(**locals())


def write_files(w: SimpleNamespace) -> None:
    """What some calls read, in the folder where one is."""
    m = more(w)
    answers = [[item, str(answer)] for item, answer in m.answers.items()]
    ctt.files.write_rows("answers.csv", ["item", "answer"], answers)
    name = {"feature": 1, "name": "plural", "first": "s", "rule": r"\b{many}\b"}
    ctt.files.write_json("names.json", {"names": [name], "words": {"many": "we they"}})
    ctt.files.write_rows("notes.csv", ["feature", "note"], [[1, "a"], [2, "=b"]])
    ctt.widgets.save_annotations("said.csv", m.said)
    ctt.widgets.save_annotations("other.csv", m.other)
    ctt.files.write_table("table.csv", pd.DataFrame({"a": [1.5, 2], "b": ["=x", "y"]}), index=False)
    ctt.files.write_json("some.json", {"a": [1, 2]}, checksum=True)
    Path("text.txt").write_text("".join(f"The dog {i} sees them.\n" for i in range(60)))
    Path("run.yaml").write_text("out: runs/mine\ntraining: {steps: 3}\n")
    rows = [["a dog sees .", "a dog see ."], ["the cats see .", "the cats sees ."]]
    ctt.files.write_rows("pairs.csv", ["sentence_good", "sentence_bad"], rows)
    Path("listed").mkdir()
    shutil.copy("pairs.csv", "listed")
    ctt.files.write_sums("listed")
    w.small.save("removed")


def tables(w):
    return {"pp": more(w).shares}


def drawn(w):
    return {"names": w.ckpts.labels, "features": [0, 1]}


# function -> arguments with which it is right; a method's object is `self`
CALLS = {
    "planted.plant": lambda w: {"n_checkpoints": 3, "d_model": 8, "seed": 1, "together": 0.5,
                                "counts": {"emerge": 2, "fade": 1, "decodable": 1}},
    "planted.recovery": lambda w: {"crosscoder": more(w).crosscoder, "planted": more(w).planted},
    "planted.measures": lambda w: {"crosscoder": more(w).crosscoder, "planted": more(w).planted,
                                   "x": more(w).x, "inactive_below": 1e-3},
    "planted.score": lambda w: {
        "ratios": ctt.rel_dec(more(w).crosscoder.decoder_norms()), "specific": 0.7,
        "table": ctt.planted.recovery(more(w).crosscoder, more(w).planted)},
    "planted.auroc": lambda w: {"score": np.array([0.1, 0.5, 0.5, 0.9]),
                                "positive": np.array([False, True, False, True])},
    "planted.Planted.sample": lambda w: {"self": more(w).planted, "n_tokens": 10, "seed": 0},
    "planted.Planted.projection": lambda w: {"self": more(w).planted, "checkpoint": 1,
                                             "x": more(w).x[:, 1]},
    "planted.Planted.metric": lambda w: {"self": more(w).planted, "p": more(w).x[:, 0, 0]},
    "planted.Planted.readout": lambda w: {"self": more(w).planted, "checkpoint": 1,
                                          "x": more(w).x[:, None, 1], "metric": None},
    "planted.Planted.exact_effects": lambda w: {"self": more(w).planted, "x": more(w).x,
                                                "f": more(w).f, "method": "atp"},
    "naming.sentences_of": lambda w: {"crosscoder": w.crosscoder, "ckpts": w.ckpts,
                                      "text": w.long_text, "features": [0, 1], "shown": w.text},
    "naming.naming_test": lambda w: {"sentences": more(w).sentences, "n": 2, "seed": 0,
                                     "feature": more(w).test.feature, "least": 0.0},
    "naming.NamingTest.ask": lambda w: {"self": more(w).test, "path": f"asked{next(COUNT)}.csv"},
    "naming.NamingTest.answer": lambda w: {"self": more(w).test, "reader": str.istitle},
    "naming.read_answers": lambda w: {"path": "answers.csv"},
    "naming.words_in": lambda w: {"tokenizer": w.suite.tokenizer, "sentence": "the dogs see"},
    "naming.word_shares": lambda w: {"places": w.places, "tokenizer": w.suite.tokenizer,
                                     "text": w.text},
    "naming.read_names": lambda w: {"path": "names.json"},
    "naming.score": lambda w: {"test": more(w).test, "answers": more(w).answers, "seed": 0},
    "naming.wilson": lambda w: {"share": 0.5, "n": 10},
    "pages.file_name": lambda w: {"feature": 3},
    "pages.is_ours": lambda w: {"path": "text.txt"},
    "pages.write": lambda w: {"folder": "pages", "crosscoder": w.crosscoder, "ckpts": w.ckpts,
                              "text": w.text, "features": [0], "notes": {0: "a"}, "k": 2,
                              "n_draws": 20, "seed": 0, "shard": 8, "ablation": False,
                              "effects": {"a": w.effects}, "pairs": {"a": w.pairs}},
    "logs.to_csv": lambda w: {"path": f"log{next(COUNT)}.csv"},
    "logs.evaluating": lambda w: {"crosscoder": w.crosscoder, "ckpts": w.ckpts, "text": w.text,
                                  "every": 1},
    "files.expanded": lambda w: {"path": "a"},
    "files.atomic_path": lambda w: {"path": "atomic"},
    "files.inside": lambda w: {"folder": ".", "name": "a", "told_by": "list"},
    "files.sha256": lambda w: {"path": "text.txt"},
    "files.read_text": lambda w: {"path": "text.txt"},
    "files.write_json": lambda w: {"path": "new.json", "obj": {"a": [1, "b"]}, "checksum": True},
    "files.read_json": lambda w: {"path": "some.json"},
    "files.safe_cell": lambda w: {"value": "=1"},
    "files.plain_cell": lambda w: {"value": "'=1"},
    "files.write_rows": lambda w: {"path": "new.csv", "header": ["a", "b"],
                                   "rows": [[1, "=x"], [2, "y"]]},
    "files.read_rows": lambda w: {"path": "notes.csv"},
    "files.write_table": lambda w: {"path": "new.csv", "table": w.curve},
    "files.read_table": lambda w: {"path": "table.csv"},
    "files.save_folder": lambda w: {"folder": "kept", "kind": "thing", "tensors": {"a": w.x},
                                    "settings": {"b": 1}, "names": ("a.safetensors", "a.json")},
    "files.load_folder": lambda w: {"folder": "effects", "kind": "effects",
                                    "names": ("effects.safetensors", "effects.json")},
    "files.remove_saved": lambda w: {"folder": "removed",
                                     "names": ("crosscoder.safetensors", "config.json")},
    "files.load_tensors": lambda w: {"path": "effects/effects.safetensors"},
    "files.verified": lambda w: {"folder": "listed", "name": "pairs.csv"},
    "files.write_sums": lambda w: {"folder": "listed"},
    "files.locked": lambda w: {"folder": "held"},
    "messages.abridged": lambda w: {"names": ["a", "b"] * 10, "shown": 5},
    "messages.first_line": lambda w: {"error": ValueError(f"a {SECRET}\nb")},
    "messages.without_secrets": lambda w: {"text": f"see https://me:pass@host and {SECRET}"},
    "messages.check_no_secret": lambda w: {"name": "path", "value": {"a": ["b"]}},
    "messages.told_when_stopped": lambda w: {"kept": lambda: ("a", "b")},
    "messages.show_size": lambda w: {"n": 2e9},
    "messages.show_time": lambda w: {"seconds": 100.0},
    "messages.progress": lambda w: {"iterable": [1, 2], "desc": "a", "total": 2},
    "processes.among": lambda w: {"shard_latents": False, "device": "cpu"},
    "runs.read_run": lambda w: {"path": "run.yaml"},
    "plots.feature_heatmap": lambda w: {"values": w.effects.mean, **drawn(w), "center": 0.0,
                                        "quantity": "effect", "title": "a"},
    "plots.interval_plot": lambda w: {"values": w.effects.mean, "low": more(w).low, **drawn(w),
                                      "high": more(w).high, "undecided": [1], "level": 0.9},
    "plots.label_bars": lambda w: {"shares": tables(w), "faint": 0.1},
    "plots.rank_curves": lambda w: {"values": w.effects.mean, "null": w.effects.mean / 10,
                                    "bar": [0.1, 0.2, 0.3], "names": w.ckpts.labels},
    "plots.share_scatter": lambda w: {"across": [0.1, 0.5], "up": [0.2, 0.4], "features": [3, 4],
                                      "kinds": ["subject", "none"], "marked": [3]},
    "plots.checkpoint_colors": lambda w: {"names": w.ckpts.labels},
    "plots.task_colors": lambda w: {"names": ["a", "b"]},
    "plots.format_tokens": lambda w: {"n": 131072},
    "plots.set_title": lambda w: {"ax": new_axes(), "title": "a b"},
    "plots.show": lambda w: {"alt": "a line", "figure": new_axes().figure},
    "plots.use_colors_of": lambda w: {"checkpoints": w.ckpts.labels, "tasks": ["a"]},
    "plots.factor_paths": lambda w: {"found": w.factorial,
                                     "features": w.factorial.features[:2].tolist()},
    "plots.share_curves": lambda w: {"found": tables(w), "truth": tables(w)},
    "plots.who_leads": lambda w: {"found": more(w).shares},
    "plots.accuracy_curves": lambda w: {"curve": w.curve, "tasks": ["a"],
                                        "highlight": w.ckpts.labels[:1]},
    "plots.cell_bars": lambda w: {
        "means": pd.DataFrame({"x": [1.0, 2], "y": [0.5, 1]}, index=["c", "d"]),
        "congruent": {"x": True, "y": False}, "labels": ["e", "f"]},
    "plots.cell_curves": lambda w: {"curve": more(w).curve, "task": "agreement/pp",
                                    "plain": "agreement/pp", "halves": True,
                                    "highlight": w.ckpts.labels[:1]},
    "plots.cell_panels": lambda w: {"curve": more(w).curve, "tasks": ["agreement/pp"],
                                    "plain": {"agreement/pp": None}, "columns": 2},
    "plots.factorial_curves": lambda w: {"found": more(w).shares, "tokens": [0, 1000, 20000],
                                         "highlight": w.ckpts.labels[:1]},
    "plots.onset_dots": lambda w: {"onset": pd.Series({"a/x": 0, "a/y": 2}),
                                   "revisions": ["c", "d"], "marked": ["a/x"]},
    "plots.ternary": lambda w: {"ratios": w.ratios, "size": np.abs(w.effects.mean).max(0),
                                "names": w.ckpts.labels, "n_labels": 2, "specific": 0.7},
    "plots.trajectories": lambda w: {"values": w.effects.mean, "tokens": [0, 1000, 20000],
                                     **drawn(w), "low": more(w).low, "high": more(w).high},
    "widgets.ablation_board": lambda w: {"subsets": more(w).subsets, "pairs": w.pairs},
    "widgets.ablation_board_html": lambda w: {"subsets": more(w).subsets, "pairs": w.pairs,
                                              "off": [0]},
    "widgets.two_by_two": lambda w: {"subsets": more(w).subsets, "pairs": w.pairs,
                                     "checkpoint": w.ckpts.labels[1]},
    "widgets.two_by_two_html": lambda w: {"subsets": more(w).subsets, "pairs": w.pairs,
                                          "checkpoint": w.ckpts.labels[1], "off": [1]},
    "widgets.annotation_form": lambda w: {"cards": {0: "<p>", 1: "b"}, "path": "said.csv",
                                          "other": "other.csv"},
    "widgets.checkpoint_table_html": lambda w: {"curve": w.curve, "sim": w.sim,
                                                "revision": w.ckpts.labels[0]},
    "widgets.examples_html": lambda w: {"examples": more(w).examples[0]},
    "widgets.feature_card_html": lambda w: {
        "feature": 0, "ie_mean": w.effects.mean, "rel_ie": w.ratios, "label": "a",
        "decoder_norms": more(w).norms, "names": w.ckpts.labels,
        "examples": more(w).examples[0], "promoted": more(w).promoted},
    "widgets.tokens_html": lambda w: {"tokens": ["a", " b"], "activations": [0.0, 2.0],
                                      "max_activation": 3.0, "marked": 1},
    "widgets.checkpoint_slider": lambda w: {"curve": w.curve, "sim": w.sim, "into": [],
                                            "on_choice": print},
    "widgets.class_counts": lambda w: {"shares": {"RelIE": w.ratios}, "names": w.ckpts.labels,
                                       "specific": 0.7, "shared": 0.3},
    "widgets.class_slider": lambda w: {"shares": {"RelIE": w.ratios}, "names": w.ckpts.labels},
    "widgets.class_table_html": lambda w: {"shares": {"RelIE": w.ratios},
                                           "names": w.ckpts.labels},
    "widgets.feature_explorer": lambda w: {
        "ie_mean": w.effects.mean, "rel_ie": w.ratios, "decoder_norms": more(w).norms,
        "names": w.ckpts.labels, "examples": more(w).examples, "labels": {0: "a"},
        "promoted": {0: more(w).promoted}, "annotations_path": "notes.csv"},
    "widgets.listed_features": lambda w: {"ie_mean": w.effects.mean},
    "widgets.agreement": lambda w: {"first": more(w).said, "second": more(w).other,
                                    "field": "label"},
    "widgets.merged": lambda w: {"people": {"a": more(w).said, "b": more(w).other}},
    "widgets.read_annotations": lambda w: {"path": "said.csv"},
    "widgets.read_notes": lambda w: {"path": "notes.csv"},
    "widgets.save_annotation": lambda w: {"path": "new_said.csv", "feature": 1,
                                          "annotation": more(w).said[0]},
    "widgets.save_annotations": lambda w: {"path": "new_said.csv", "annotations": more(w).said},
    "widgets.save_merged": lambda w: {"path": "merged.csv",
                                      "people": {"a": more(w).said, "b": more(w).other}},
    "widgets.save_note": lambda w: {"path": "new_notes.csv", "feature": 1, "note": "=a"},
    "widgets.playground": lambda w: {"rows": more(w).settings},
    "widgets.read_settings": lambda w: {"folder": RESULTS, "n_latents": 512},
    "widgets.share_triangle": lambda w: {
        "shares": w.ratios, "strength": np.abs(w.effects.mean).max(0), "names": w.ckpts.labels,
        "colors": {"kind": ["a"] * 24}, "pages": "pages", "labels": {0: "a"}},
    "widgets.triangle_html": lambda w: {
        "shares": w.ratios, "strength": np.abs(w.effects.mean).max(0), "names": w.ckpts.labels,
        "groups": ["a"] * 24, "links": {0: "x.html"}, "labels": {0: "a"}, "at_least": 0.0},
    "published.published_rows": lambda w: {"task": "file", "path": "pairs.csv",
                                           "good": "sentence_good", "bad": "sentence_bad"},
    "published.file_rows": lambda w: {"file": Path("pairs.csv"), "good": "sentence_good",
                                      "bad": "sentence_bad", "group": "sentence_bad"},
    "published.read_records": lambda w: {"file": Path("pairs.csv")},
    "published.pair_rows": lambda w: {"records": ctt.published.read_records(Path("pairs.csv")),
                                      "good": "sentence_good", "bad": "sentence_bad"},
    "published.from_sentences": lambda w: {"right": "a dog sees .", "wrong": "a dog see ."},
    "published.data_folder": lambda w: {"name": "pythia_blimp"},
    "text.default_source": lambda w: {"model_type": "bloom"},
    "text.documents": lambda w: {"source": "text.txt", "split": "train", "seed": 0},
    "text.find_text": lambda w: {"source": "text.txt"},
    "text.pack": lambda w: {"source": ["the dog sees"] * 20, "tokenizer": w.suite.tokenizer,
                            "n_rows": 2, "length": 6},
    "exchange.card": lambda w: {"crosscoder": w.crosscoder, "repo_id": "some/one",
                                "report": more(w).report},
    "formats.SparseAutoencoder.encode": lambda w: {"self": more(w).autoencoder, "x": w.x},
    "formats.SparseAutoencoder.forward": lambda w: {"self": more(w).autoencoder, "x": w.x},
    "formats.SparseAutoencoder.decode": lambda w: {"self": more(w).autoencoder,
                                                   "f": more(w).autoencoder.encode(w.x)},
}  # fmt: skip

COUNT = iter(range(10**9))  # for names of files that are not there yet


def new_axes():
    import matplotlib.pyplot as plt

    return plt.subplots()[1]


def takes(kind: type) -> list[str]:
    """The public methods of a class that take something."""
    named = {name: f for name, f in vars(kind).items() if inspect.isfunction(f) and name[0] != "_"}
    return [name for name, f in named.items() if len(inspect.signature(f).parameters) > 1]


# what is public and is not fuzzed, and why
EXEMPT = {
    "files.InUse": "an error",
    "checks.CheckFailed": "an error",
    "logs.to_tensorboard": "needs TensorBoard, which is optional; tests/test_logs.py",
    "logs.to_wandb": "needs an account, or a run of Weights & Biases; tests/test_logs.py",
    "files.sweep": "takes folders that are held; any number of them, none too many",
    "files.remove_leftovers": "as sweep, for one file",
    "files.make_readable": "takes a file that has just been written",
    "runs.Run": "made by read_run",
    "runs.train_run": "takes what read_run gives",
    "runs.device_of_process": "takes the device of a Run",
    "published.Layout": "a row of a table",
    "presets.Preset": "a row of a table",
    "hub.fetch": "asks a network, with names that a Suite has checked; tests/test_hub.py",
    "hub.require_hub": "asks a network, with words for an error",
    **{f"hub.{name}": "asked by Suite and Crosscoder, with names and folders that they have checked"
       for name in ("snapshot", "find", "cached", "weight_files", "what_is_missing", "verified")},
    "exchange.push": "see Crosscoder.push_to_hub",
    "exchange.pull": "see Crosscoder.from_pretrained",
    "exchange.folder_of": "see Crosscoder.from_pretrained and formats.from_saelens",
    "formats.SparseAutoencoder": "made by from_saelens",
    "planted.Planted": "made by plant",
    "naming.Sentences": "a result", "naming.NamingTest": "a result", "naming.Name": "a result",
    "naming.Score": "a result", "pages.Pages": "a result",
    "widgets.Annotation": "three texts",
    **{f"checks.{name}": "takes a student's function: tests/test_checks.py gives wrong ones"
       for name, check in vars(checks).items()
       if getattr(check, "__module__", "") == checks.__name__
       and not name.startswith("_") and name != "CheckFailed"},
    **{f"processes.{name}": "made and called by train, with the tensors of its processes"
       for kind in (processes.Alone, processes.Together, processes.Sharded)
       for name in (kind.__name__, *(f"{kind.__name__}.{method}" for method in takes(kind)))},
}  # fmt: skip

# ---- what is right

MAY_BE_NAN = {
    "planted.plant",
    "planted.Planted.metric",
    "planted.Planted.exact_effects",
    "planted.measures",
    "planted.score",
    "planted.auroc",
    "widgets.agreement",
    "naming.score",
    "files.read_table",
}
PASS_ON = {
    "planted.Planted.readout",
    "planted.Planted.projection",
    "formats.SparseAutoencoder.encode",
    "formats.SparseAutoencoder.forward",
    "formats.SparseAutoencoder.decode",
}


def array(values) -> np.ndarray:
    return np.asarray(values.detach() if isinstance(values, torch.Tensor) else values, float)


def check_auroc(found, score, positive):
    score, positive = array(score), np.asarray(positive, bool)
    pairs = [(a > b) + 0.5 * (a == b) for a in score[positive] for b in score[~positive]]
    assert np.isclose(found, np.mean(pairs)) if pairs else math.isnan(found)


def check_wilson(found, share, n, z=1.96):
    for end in found:  # where the normal approximation at the end itself just reaches the share
        assert abs(abs(share - end) - z * math.sqrt(max(end * (1 - end), 0) / n)) < 1e-6


def check_projection(found, self, checkpoint, x):
    if x.abs().max() > 1e15:
        return
    expected = (x * self.read_out[checkpoint].to(x)).sum(-1) + self.bias[checkpoint].to(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, equal_nan=True)


def check_sample(found, self, n_tokens, seed=0):
    x, g = found
    rest = x - self.offset - torch.einsum("tf,fcd->tcd", g, self.directions)
    noise = rest / self.scale[:, None]
    assert len(x) == len(g) == n_tokens and (noise.abs() < 6 * self.noise).all()
    assert (g >= 0).all()


def check_recovery(found, crosscoder, planted):
    assert len(found) == len(planted.kinds) and (found["cosine"].abs() < 1 + 1e-6).all()


def check_naming_test(found, sentences, feature, n=20, seed=0, least=0.0):
    column = sentences.features.index(feature)
    peak = dict(zip(sentences.text, sentences.peak[:, column], strict=True))
    assert len(found.sentences) == 2 * n and sum(found.active) == n
    assert [peak[one] > 0 for one in found.sentences] == found.active.tolist()


def check_asked(found, self, path):
    with open(Path(path).expanduser(), newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["item"] for row in rows] == self.items and not any(row["answer"] for row in rows)


def check_name_score(found, test, answers, kind=None, seed=0):
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.n_active + found.n_inactive == len(test.items)


def check_shares_of_words(found, places, tokenizer, text):
    for share in found.values():
        assert (share > 0).all() and (share <= 1).all()


def check_pages(found, features=None, **_):
    assert found.index.is_file() and all(page.is_file() for page in found.pages.values())
    assert features is None or set(found.pages) == set(map(int, features))


def check_json(found, path, obj, checksum=False):
    written = json.loads(Path(path).read_text(encoding="utf-8"))
    if checksum:
        del written["checksum"]
    assert written == json.loads(json.dumps(obj))


def check_rows(found, path, header, rows):
    assert ctt.files.read_rows(path)[0] == list(map(str, header))


def check_text_of(found, path):
    assert found == Path(path).read_bytes().decode("utf-8-sig")


def check_sha(found, path):
    assert found == hashlib.sha256(Path(path).read_bytes()).hexdigest()


def check_cell(found, value):
    if isinstance(value, str):
        assert not found.lstrip().startswith(("=", "+", "-", "@"))
        assert ctt.files.plain_cell(found) == value


def check_abridged(found, names, shown=12):
    if not any(", " in str(name) for name in names):
        assert len(found.split(", ")) <= max(shown + 1, 3)


def check_hidden(found, **_):
    assert SECRET not in found and "me:pass" not in found


def check_time(found, seconds):
    number, unit = found.split()
    told = float(number) * {"h": 3600, "min": 60, "s": 1}[unit]
    off = {"h": 181, "min": 31, "s": 1}[unit]
    assert seconds < 0 or abs(told - seconds) <= off + 1e-9 * seconds


def check_size(found, n):
    number, unit = found.split()
    told = float(number) * {"GB": 1e9, "MB": 1e6, "kB": 1e3}[unit]
    assert abs(told - n) <= 0.006 * abs(n) + 500_000 * (unit == "MB") + 500 * (unit == "kB")


def check_tokens(found, n):
    unit = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}.get(found[-1], 1)
    assert abs(float(found.rstrip("kMBT")) * unit - n) <= 0.006 * abs(n)


def check_colors(found, names):
    assert set(found) == set(names)


def check_counts(found, shares, names, specific=0.7, shared=0.3):
    for what, ratios in shares.items():
        assert found[what].sum() == (~np.isnan(array(ratios)).any(0)).sum()


def check_listed(found, ie_mean):
    strength = np.nansum(np.abs(array(ie_mean)), 0)
    assert len(found) == min(200, len(strength)) and (np.diff(strength[found]) <= 0).all()


def check_agreement(found, first, second, field="label"):
    said = [{i for i, own in one.items() if getattr(own, field)} for one in (first, second)]
    assert found.both == len(said[0] & said[1]) and 0 <= found.same <= found.both


def check_merged(found, people):
    assert set(found.index) == {i for own in people.values() for i in own}


def check_note(found, path, feature, note):
    assert ctt.widgets.read_notes(path)[int(feature)] == note


def check_annotation(found, path, feature, annotation):
    kept = ctt.widgets.read_annotations(path).get(int(feature), ctt.widgets.Annotation())
    assert kept == annotation


def check_from_sentences(found, right, wrong):
    assert found["sentence"] == right and found["wrong_sentence"] == wrong
    before = found["prefix"].split()
    assert right.split()[: len(before)] == wrong.split()[: len(before)] or found.get("cut")


def check_packed(found, source, tokenizer, n_rows, length):
    assert tuple(found.shape) == (n_rows, length)


def check_autoencoder(found, self, f):
    W_dec = self.W_dec.flatten(1)
    expected = (f @ W_dec).unflatten(-1, self.W_dec.shape[1:]) + self.b_dec
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4, equal_nan=True)


RIGHT = {
    "planted.auroc": check_auroc, "planted.Planted.sample": check_sample,
    "planted.Planted.projection": check_projection, "planted.recovery": check_recovery,
    "naming.naming_test": check_naming_test, "naming.NamingTest.ask": check_asked,
    "naming.score": check_name_score, "naming.word_shares": check_shares_of_words,
    "naming.wilson": check_wilson, "pages.write": check_pages, "files.write_json": check_json,
    "files.write_rows": check_rows, "files.read_text": check_text_of, "files.sha256": check_sha,
    "files.safe_cell": check_cell, "messages.abridged": check_abridged,
    "messages.without_secrets": check_hidden, "messages.first_line": check_hidden,
    "messages.show_time": check_time, "messages.show_size": check_size,
    "plots.format_tokens": check_tokens, "plots.checkpoint_colors": check_colors,
    "plots.task_colors": check_colors, "widgets.class_counts": check_counts,
    "widgets.listed_features": check_listed, "widgets.agreement": check_agreement,
    "widgets.merged": check_merged, "widgets.save_note": check_note,
    "widgets.save_annotation": check_annotation,
    "published.from_sentences": check_from_sentences, "text.pack": check_packed,
    "formats.SparseAutoencoder.decode": check_autoencoder,
}  # fmt: skip
