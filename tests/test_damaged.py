"""Damaged files: cut anywhere, or with any bit flipped."""

import json
import os
import shutil
import warnings
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from faults import counted, tries
from hub_cache import commit_of, published_files, put, shrunk
from models import random_suite, some_text, word_tokenizer
from test_files import small_effects, small_run

import ctt_helpers as ctt
from ctt_helpers import files, formats, logs, runs
from ctt_helpers.activations import TensorStream
from ctt_helpers.cache import ActivationCache
from ctt_helpers.crosscoder import Crosscoder
from ctt_helpers.effects import Effects
from ctt_helpers.notebook import naming, widgets
from ctt_helpers.sources.presets import PRESETS
from ctt_helpers.sources.text import documents
from ctt_helpers.toy import pretrain
from ctt_helpers.toy.pretrain import RESUME
from ctt_helpers.training import TrainConfig, train

# ---- kinds whose checksum is known


class Stopped(Exception):
    pass


def stopped_run(out):
    """A training that was cut off, with its state on disk."""
    x = torch.randn(512, 3, 8, generator=torch.Generator().manual_seed(0))

    class Breaking(TensorStream):
        def batches(self, start=0):
            for number, batch in enumerate(super().batches(start), start):
                if number == 12:
                    raise Stopped
                yield batch

    with pytest.raises(Stopped):
        config = TrainConfig(steps=20, checkpoint_every=5)
        train(Crosscoder(3, 8, 16, k=2), Breaking(x, 64), config, out=out)


def embedded_copy(folder):
    """The embedded suite with three of its checkpoints, made small and listed in its SHA256SUMS."""
    source = ctt.load_suite("tiny").source
    folder.mkdir()
    meta = json.loads((source / "suite.json").read_text())
    kept = ["step256", "step512", "step3000"]
    meta["revisions"] = [row for row in meta["revisions"] if row["revision"] in kept]
    meta["tasks"] = meta["tasks"][:1]
    (folder / "suite.json").write_text(json.dumps(meta, indent=2))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder / name)
    for revision in kept:
        shutil.copytree(source / revision, folder / revision)
    (folder / "pairs").mkdir()
    shutil.copy(source / meta["tasks"][0]["file"], folder / meta["tasks"][0]["file"])
    files.write_sums(folder)
    return folder


def use_suite(folder):
    suite = ctt.load_suite(folder)
    pairs = suite.pairs(suite.task_names[0], split="find", n=4)
    return ctt.accuracy(suite.checkpoints(["step512"], device="cpu")[0], pairs)


def use_model(folder):
    return ctt.load_suite(folder).checkpoints(["step512"], device="cpu")[0]


def small_cache(folder):
    suite = random_suite(folder, n=2)
    ActivationCache.build(suite.checkpoints(device="cpu"), some_text(8, 10), folder / "cache")


def read_cache(folder):
    cache = ActivationCache.open(folder / "cache")
    return [cache.read(c, g) for c in range(cache.n_checkpoints) for g in range(cache.n_groups)]


def optimiser():
    parameters = {"a": torch.nn.Parameter(torch.ones(3, 4)), "b": torch.nn.Parameter(torch.ones(5))}
    adam = torch.optim.AdamW(parameters.values())
    return parameters, adam


def pretraining(folder):
    """What a pretraining leaves that was cut off."""
    parameters, adam = optimiser()
    sum(p.square().sum() for p in parameters.values()).backward()
    adam.step()
    with pretrain._claimed(folder, {"kind": "pretraining", "seed": 0}):
        pretrain._save_state(folder, 2, parameters, adam)


def resumed(folder):
    with pretrain._claimed(folder, {"kind": "pretraining", "seed": 0}):
        assert pretrain._load_state(folder, *optimiser()) == 2


TINY = shrunk(PRESETS["pythia-70m"].config, layers=1, width=8, vocabulary=40)
BLOOM = shrunk(PRESETS["bloom-1b1"].config, layers=1, width=8, vocabulary=40)
SNAPSHOT = f"models--org--name/snapshots/{commit_of('org/name', 'main')}"
PART = "model-00001-of-00002.safetensors"


def hub_files(folder, model):
    word_tokenizer().save_pretrained(folder / "tokenizer")
    names = ("tokenizer.json", "tokenizer_config.json")
    return model | {name: (folder / "tokenizer" / name).read_bytes() for name in names}


def hub_model(folder):
    put(folder, "org/name", "main", hub_files(folder, published_files(TINY)))


def hub_parts(folder):
    put(folder, "org/name", "main", hub_files(folder, published_files(TINY, shards=2)))


def hub_pickle(folder):
    put(folder, "org/name", "main", hub_files(folder, published_files(BLOOM)))


def hub_crosscoder(folder):
    Crosscoder(3, 8, 16, k=2).save(folder / "made")
    made = {path.name: path.read_bytes() for path in (folder / "made").iterdir()}
    put(folder, "org/name", "main", made)


def use_hub_model(folder):
    suite = ctt.load_suite("org/name", revisions=["main"])
    return suite.checkpoints(device="cpu")[0]


def pulled(folder):
    return Crosscoder.from_pretrained("org/name")


# what is written, the file to be damaged, and how it is read
KINDS = {
    "crosscoder": (
        lambda d: Crosscoder(3, 8, 16, k=2).save(d), "crosscoder.safetensors", Crosscoder.load,
    ),
    "crosscoder config": (
        lambda d: Crosscoder(3, 8, 16, k=2).save(d), "config.json", Crosscoder.load,
    ),
    "effects": (lambda d: small_effects().save(d), "effects.safetensors", Effects.load),
    "effects info": (lambda d: small_effects().save(d), "effects.json", Effects.load),
    "history": (small_run, "history.csv", small_run),
    "run settings": (small_run, "train_config.json", small_run),
    "training state": (stopped_run, "checkpoint/state.safetensors", small_run),
    "training counters": (stopped_run, "checkpoint/state.json", small_run),
    "suite": (embedded_copy, "suite.json", use_suite),
    "model": (embedded_copy, "step512/model.safetensors", use_model),
    "config": (embedded_copy, "config.json", use_suite),
    "tokenizer": (embedded_copy, "tokenizer.json", use_suite),
    "tokenizer config": (embedded_copy, "tokenizer_config.json", use_suite),
    "pairs": (embedded_copy, "pairs/agreement_simple.jsonl", use_suite),
    "checksums": (embedded_copy, "SHA256SUMS", use_suite),
    "cache": (small_cache, "cache/cache.json", read_cache),
    "shard of a cache": (small_cache, "cache/step0/00000.safetensors", read_cache),
    "pretraining state": (pretraining, f"{RESUME}/state.safetensors", resumed),
    "pretraining step": (pretraining, f"{RESUME}/state.json", resumed),
    "pretraining settings": (pretraining, f"{RESUME}/settings.json", resumed),
    "weights of the hub": (hub_model, f"{SNAPSHOT}/model.safetensors", use_hub_model),
    "config of the hub": (hub_model, f"{SNAPSHOT}/config.json", use_hub_model),
    "tokenizer of the hub": (hub_model, f"{SNAPSHOT}/tokenizer.json", use_hub_model),
    "a part of weights": (hub_parts, f"{SNAPSHOT}/{PART}", use_hub_model),
    "the list of parts": (hub_parts, f"{SNAPSHOT}/model.safetensors.index.json", use_hub_model),
    "a pickle of the hub": (hub_pickle, f"{SNAPSHOT}/pytorch_model.bin", use_hub_model),
    "crosscoder of the hub": (hub_crosscoder, f"{SNAPSHOT}/crosscoder.safetensors", pulled),
    "its config": (hub_crosscoder, f"{SNAPSHOT}/config.json", pulled),
}  # fmt: skip


def damaged(path: Path, tries: int):
    """Write a file with one bit flipped, or cut short, again and again; whole in the end."""
    whole, state = path.read_bytes(), path.stat()
    draw = np.random.default_rng(0)
    for index in range(2 * tries):
        changed = bytearray(whole)
        if index < tries:
            at = int(draw.integers(8 * len(whole)))
            changed[at // 8] ^= 1 << at % 8
        else:
            at = int(draw.integers(len(whole)))
            del changed[at:]
        path.write_bytes(changed)
        # a file system's clock may be coarser than this loop
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1 + index))
        yield ("flip" if index < tries else "cut"), at
    path.write_bytes(whole)


@pytest.mark.slow
@tries(8, 200)
@pytest.mark.parametrize("kind", KINDS)
def test_no_flipped_bit_and_no_cut_is_silent(tmp_path, monkeypatch, kind, tries, capsys):
    """Flips of one bit and cuts of each kind of file: every one is an error that names it."""
    write, name, read = KINDS[kind]
    folder = tmp_path / "folder"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    write(folder)
    silent = []
    promise = "an error that names the file"
    fault = f"one bit flipped, and cut short: {kind}"
    with counted(fault, 2 * tries, promise) as count, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for damage in damaged(folder / name, tries):
            try:
                read(folder)
                silent.append(damage)
                count(False)
            except (ValueError, FileNotFoundError) as error:
                assert Path(name).name in str(error), error
                count(True)
        assert silent == []
    read(folder)  # and whole it is read


# ---- formats of others, and tables that people write: nothing says what they should hold


def plain_folder(folder):
    random_suite(folder, n=2)


def use_plain_folder(folder):
    return ctt.load_suite(folder, tokens_per_step=10).checkpoints(device="cpu")[0].hf_model


def theirs(folder):
    formats.to_dictionary_learning(Crosscoder(3, 8, 16, k=2), folder)


def pickled(folder):
    folder.mkdir()
    theirs(folder / "x")
    torch.save(files.load_tensors(folder / "x" / "model.safetensors"), folder / "ae.pt")


def saelens(folder):
    formats.to_saelens(Crosscoder(3, 8, 16, k=2), folder)


def harness(folder):
    suite = ctt.load_suite("tiny")
    content = {
        "results": {"blimp": {"acc,none": 0.5, "acc_stderr,none": 0.01}},
        "config": {"model_args": f"pretrained={suite.source},revision=step320"},
        "n-samples": {"blimp": {"effective": 100}},
    }
    folder.mkdir()
    files.write_json(folder / "results_1.json", content)


def lines(*rows):
    def write(folder):
        folder.mkdir()
        (folder / "file").write_text("\n".join(rows) + "\n", encoding="utf-8")

    return write


def some_pairs(ending):
    def read(folder):
        shutil.copy(folder / "file", folder / f"pairs.{ending}")
        return ctt.load_suite("tiny").pairs("file", "find", path=folder / f"pairs.{ending}").table

    return read


def some_documents(folder):
    shutil.copy(folder / "file", folder / "text.jsonl")
    return list(documents(folder / "text.jsonl", "train"))


def a_log(folder):
    write = logs.to_csv(folder / "file")
    write({"step": 60, "tokens": 60, "loss": 0.5})


def read_as(ending, reader):
    def read(folder):
        shutil.copy(folder / "file", folder / f"file.{ending}")
        return reader(folder / f"file.{ending}")

    return read


SENTENCES = [
    ("The author near the guards laughs", "The author near the guards laugh"),
    ("The guards laugh", "The guards laughs"),
    ("The king that the poets like sleeps", "The king that the poets like sleep"),
    ("The poets sleep", "The poets sleeps"),
]
JSONL = [json.dumps({"sentence_good": a, "sentence_bad": b}) for a, b in SENTENCES]
CSV = ["sentence_good,sentence_bad", *(f"{a},{b}" for a, b in SENTENCES)]
UNCHECKED = {
    "weights in a folder": (plain_folder, "step0/model.safetensors", use_plain_folder),
    "a config in a folder": (plain_folder, "step0/config.json", use_plain_folder),
    "a crosscoder of dictionary_learning": (
        theirs, "model.safetensors", formats.from_dictionary_learning),
    "settings of dictionary_learning": (theirs, "config.json", formats.from_dictionary_learning),
    "a pickle of dictionary_learning": (pickled, "ae.pt", formats.from_dictionary_learning),
    "an autoencoder of SAELens": (saelens, "sae_weights.safetensors", formats.from_saelens),
    "settings of SAELens": (saelens, "cfg.json", formats.from_saelens),
    "results of the harness": (
        harness, "results_1.json", lambda d: ctt.harness_curve(d, "tiny")),
    "pairs in JSON lines": (lines(*JSONL), "file", some_pairs("jsonl")),
    "pairs in a table": (lines(*CSV), "file", some_pairs("csv")),
    "text": (lines(*(json.dumps({"text": a}) for a, _ in SENTENCES)), "file", some_documents),
    "a log in CSV": (
        lines("step,tokens,loss", "20,20,1.5", "40,40,0.75"), "file", a_log),
    "notes": (lines("feature,note", "3,a plural", "17,?"), "file",
        lambda d: widgets.notes.read_notes(d / "file")),
    "names of features": (
        lines('{"names": [{"feature": 3, "name": "x", "first": "y", "rule": "a|b"}]}'), "file",
        read_as("json", naming.read_names)),
    "answers": (
        lines("item,answer", "1a,yes", "2b,no", "3c,0.5"), "file",
        read_as("csv", naming.read_answers)),
    "settings of a run": (
        lines("out: x", "n_latents: 64", "training: {steps: 3, lr: 0.001}"), "file",
        lambda d: runs.read_run(d / "file")),
}  # fmt: skip


WITHOUT = "an error that names the file, where it does not parse or fit; else it is read as it is"


def is_sound(thing) -> bool:
    """Whether tensors are finite; of anything else nobody can know more than that it was read."""
    if isinstance(thing, torch.nn.Module):
        return all(bool(t.isfinite().all()) for t in thing.state_dict().values())
    return True


@pytest.mark.slow
@tries(8, 200)
@pytest.mark.parametrize("kind", UNCHECKED)
def test_what_carries_no_checksum_is_named_where_it_does_not_fit(tmp_path, kind, tries, capsys):
    """What does not parse or fit is an error that names the file; the rest is read as it is."""
    write, name, read = UNCHECKED[kind]
    folder = tmp_path / "folder"
    write(folder)
    told = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in damaged(folder / name, tries):
            try:
                told.append("read" if is_sound(read(folder)) else "not finite")
            except (ValueError, FileNotFoundError, FileExistsError) as error:
                named = Path(name).name in str(error) or f"{folder}" in str(error)
                told.append("named" if named else f"{error}")
            else:
                continue
    assert set(told) <= {"named", "read"}, told
    found = told.count("named")
    fault = f"one bit flipped, and cut short, in a file without a checksum: {kind}"
    with counted(fault, 2 * tries, WITHOUT, all_must=False) as count:
        for one in told:
            count(one == "named")
    assert found or kind in ("text", "notes")
