"""Suites: revisions, tokens seen, loading, fingerprints, and errors that say what to do."""

import shutil

import pytest
import torch
from models import random_model, random_suite, some_pairs, some_text, word_tokenizer

import ctt_helpers as ctt
from ctt_helpers.estimates import count_parameters
from ctt_helpers.presets import PRESETS
from ctt_helpers.suites import load_suite


@pytest.fixture
def suite(tmp_path):
    return random_suite(tmp_path)


def test_a_local_folder_is_a_suite(suite):
    assert suite.revisions == ["step0", "step100", "step200"]
    assert [suite.tokens_seen(r) for r in suite.revisions] == [0, 1000, 2000]
    ckpts = suite.checkpoints(device="cpu")
    assert len(ckpts) == 3 and ckpts.labels == suite.revisions and ckpts.layer == 1 and ckpts.d_model == 32
    assert not ckpts[0].hf_model.training and not any(p.requires_grad for p in ckpts[0].hf_model.parameters())
    assert ckpts[1] is ckpts[1]
    ckpts.free()
    for mine, plain in zip(ckpts, (random_model(seed=i) for i in range(3)), strict=True):
        for a, b in zip(mine.hf_model.parameters(), plain.parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("architecture", ["olmo", "olmo2", "bloom"])
def test_other_architectures_by_the_same_code(tmp_path, architecture):
    suite = random_suite(tmp_path, 2, architecture)
    ckpts = suite.checkpoints(device="cpu")
    x = ctt.residual_stream(ckpts[0], some_text())
    assert x.shape == (12, 10, 32) and 0 <= ctt.accuracy(ckpts[1], some_pairs()) <= 1


def test_half_precision_files_load_as_asked(tmp_path):
    random_model().half().save_pretrained(tmp_path / "step1")
    word_tokenizer().save_pretrained(tmp_path)
    ckpts = load_suite(tmp_path).checkpoints(device="cpu")
    assert ckpts[0].dtype == torch.float32


def test_one_by_one_leaves_nothing_in_memory_but_what_was_there(suite):
    ckpts = suite.checkpoints(device="cpu")
    kept = ckpts[1]
    assert [m.label for m in ckpts.one_by_one()] == suite.revisions
    assert list(ckpts._loaded) == ["step100"] and ckpts[1] is kept


def test_fingerprints_tell_equal_weights(tmp_path):
    suite = random_suite(tmp_path)
    shutil.copytree(tmp_path / "step0", tmp_path / "step50")
    ckpts = load_suite(tmp_path).checkpoints(device="cpu")
    with pytest.warns(UserWarning, match="step0 and step50 hold the same weights"):
        prints = ckpts.source["fingerprints"]
    assert prints[0] == prints[1] and len(set(prints)) == 3
    model = random_model()
    before = ctt.fingerprint(model)
    with torch.no_grad():
        model.gpt_neox.layers[2].mlp.dense_h_to_4h.weight.mul_(1.001)
    assert ctt.fingerprint(model) != before
    assert suite.revisions == ["step0", "step100", "step200"]


LISTS = {  # preset -> file with the names that exist
    "pythia-1b": "checkpoints_EleutherAI_pythia-1b.txt",
    "olmo-1b": "checkpoints_allenai_OLMo-1B-0724-hf.txt",
    "olmo2-1b": "checkpoints_olmo2_1B_april.txt",
    "olmo2-7b": "checkpoints_allenai_OLMo-2-1124-7B.txt",
    "bloom-1b1": "checkpoints_bloom_1b1.txt",
}


@pytest.mark.parametrize("name", LISTS)
def test_presets_list_the_published_revisions(name, shared):
    published = (shared / "reference" / "revisions" / LISTS[name]).read_text().split()
    suite = load_suite(name)
    if name.startswith("pythia"):
        published.remove("main")  # it is step143000 once more
    assert len(suite.revisions) == len(published) and set(suite.revisions) == set(published)
    if name != "olmo2-7b":  # its file mixes the stages
        assert suite.revisions == published
    for stage in ("step", "stage1", "stage2-ingredient1", "stage2-ingredient2", "stage2-ingredient3", "global"):
        seen = [suite.tokens_seen(r) for r in suite.revisions if r.startswith(stage)]
        assert seen == sorted(seen)
        steps = [int(r.split("step")[1].split("-")[0]) for r in suite.revisions if r.startswith(stage)]
        assert steps == sorted(set(steps))
    assert suite.check_revisions(suite.default_triplet) == suite.default_triplet


def test_tokens_of_presets():
    """Expected figures: the paper's captions, and the names of the checkpoints."""
    pythia = load_suite("pythia-1b")
    assert [pythia.tokens_seen(r) for r in pythia.default_triplet] == [1_073_741_824, 4_194_304_000, 299_892_736_000]
    for name, layer, billions in (("olmo-1b", 8, [4, 33, 3048]), ("bloom-1b1", 12, [5.5, 55, 341])):
        suite = load_suite(name)
        assert suite.default_layer == layer and suite.preset.from_paper and suite.preset.approximate
        assert [suite.tokens_seen(r) / 1e9 for r in suite.default_triplet] == billions
    seven = load_suite("olmo2-7b")
    assert seven.tokens_seen("stage1-step928646-tokens3896B") == 3896e9 and seven.tokens_seen("main") is None
    assert seven.tokens_seen("stage2-ingredient2-step11931-tokens50B") == 3946e9  # after the whole of stage 1


def test_shapes_of_presets_have_the_published_sizes():
    """Pythia: parameters in all and without embeddings, from its model cards; BLOOM: from its card."""
    published = {
        "pythia-14m": 1_189_888, "pythia-31m": 4_739_072, "pythia-70m": 18_915_328, "pythia-160m": 85_056_000,
        "pythia-410m": 302_311_424, "pythia-1b": 805_736_448, "pythia-1.4b": 1_208_602_624,
        "pythia-2.8b": 2_517_652_480, "pythia-6.9b": 6_444_163_072, "pythia-12b": 11_327_027_200,
    }  # fmt: skip
    counted = {name: count_parameters(load_suite(name).config, 0)["all"] for name in PRESETS}
    for name, without_embeddings in published.items():
        config = PRESETS[name].config
        assert counted[name] - 2 * config["vocab_size"] * config["hidden_size"] == without_embeddings
    assert counted["pythia-160m"] == 162_322_944 and counted["bloom-1b1"] == 1_065_314_304
    for name in ("olmo-1b", "olmo2-1b", "olmo2-7b"):  # float32 files
        assert PRESETS[name].file_bytes == 4 * counted[name]


def test_a_preset_by_its_names_and_in_part():
    assert load_suite("EleutherAI/pythia-1b").source == load_suite("pythia-1b").source == "EleutherAI/pythia-1b"
    assert load_suite("allenai/OLMo-2-1124-7B").name == "olmo2-7b"
    some = ["step512", "step1000", "step3000", "step143000"]
    suite = load_suite("pythia-1b", revisions=some)
    assert suite.default_triplet == some[1:] and suite.preset and len(suite.describe()) == 4
    assert repr(load_suite("pythia-1b")) == (
        "Suite('pythia-1b': 154 checkpoints, step0, step1, step2, step4, ... step142000, step143000)"
    )
    for wrong, near in (("step1500", "step2000"), ("step143001", "step143000"), ("main", None), ("step3", "step4")):
        with pytest.raises(ValueError, match=rf"no revision '{wrong}'\.{f' Did you mean {near!r}' if near else ' It'}"):
            suite.tokens_seen(wrong) if near == "step143000" else load_suite("pythia-1b").tokens_seen(wrong)


def test_describe(suite):
    table = suite.describe()
    assert list(table.columns) == ["revision", "step", "tokens", "approximate", "download_mb", "cached"]
    assert list(table.step) == [0, 100, 200] and list(table.tokens) == [0, 1000, 2000]
    assert set(table.cached) == {"yes"} and not table.download_mb.any() and not table.approximate.any()
    bloom = load_suite("bloom-1b1").describe()
    assert bloom.approximate.all() and len(bloom) == 9 and bloom.step.isna().sum() == 1


def test_tokens_seen_from_names_that_say_it(tmp_path):
    for name in ("step1000-tokens2B", "step2000-tokens4B"):
        random_model().save_pretrained(tmp_path / name)
    word_tokenizer().save_pretrained(tmp_path)
    suite = load_suite(tmp_path)
    assert [suite.tokens_seen(r) for r in suite.revisions] == [2 * 10**9, 4 * 10**9]
    assert suite.describe().approximate.all()


def test_names_that_do_not_exist(suite, tmp_path):
    with pytest.raises(ValueError, match=r"No suite 'pythia-1bb'. Did you mean 'pythia-1b'\? Known: tiny, pythia-14m"):
        load_suite("pythia-1bb")
    with pytest.raises(ValueError, match=r"no revision 'step10'. Did you mean 'step100'\? It has 3: step0, step100"):
        suite.checkpoints(["step10"])
    with pytest.raises(ValueError, match=r"in the order of training: \['step0', 'step200'\]"):
        suite.checkpoints(["step200", "step0"])
    with pytest.raises(ValueError, match=r"give a list: \['step0'\]"):
        suite.checkpoints("step0")
    with pytest.raises(ValueError, match=r"at least one revision, and each once; these are \['step0', 'step0'\]"):
        suite.checkpoints(["step0", "step0"])
    with pytest.raises(ValueError, match=r"org/name.*give revisions="):
        load_suite("org/name")
    with pytest.raises(ValueError, match=r"There is no task 'blimpp/x'"):
        suite.pairs("blimpp/x")
    with pytest.raises(ConnectionError, match=r"cannot be read from nyu-mll/blimp: .* give path=: a folder"):
        suite.pairs("blimp/anaphor_number_agreement")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no checkpoint: expected one subfolder a revision"):
        load_suite(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"device='cudaa' is not known"):
        suite.checkpoints(device="cudaa")


def test_layer_out_of_range(suite):
    with pytest.raises(ValueError, match=r"layer=3 does not exist: this model has 3 blocks, 0 to 2"):
        suite.checkpoints(layer=3, device="cpu")[0]


def test_missing_and_truncated_weights(suite):
    file = suite.source / "step100" / "model.safetensors"
    ckpts = suite.checkpoints(device="cpu")
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"at step100 cannot be read .* cut short or damaged"):
        ckpts[1]
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"at step100 are missing: no .safetensors file in"):
        ckpts[1]


def test_incomplete_weights_are_not_filled_up_at_random(suite):
    from safetensors.torch import load_file, save_file

    file = suite.source / "step0" / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("embed_out.weight")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"at step0 are incomplete; missing: (lm_head|embed_out).weight"):
        suite.checkpoints(device="cpu")[0]


def test_a_wrong_tokenizer(suite):
    tokenizer = word_tokenizer()
    tokenizer.add_tokens([f"word{i}" for i in range(30)])
    tokenizer.save_pretrained(suite.source)
    with pytest.raises(ValueError, match=r"tokenizer of .* has \d+ tokens, the model only 40"):
        suite.checkpoints(device="cpu")[0]


def test_text_from_a_file(suite, tmp_path):
    file = tmp_path / "text.txt"
    lines = [f"the dog near the cats sees a cat that runs {'red ' * (i % 7)}{'old ' * (i // 7)}" for i in range(99)]
    file.write_text("\n".join(lines))
    text = suite.text(200, path=file, length=16)
    assert text.shape == (13, 16) and (text[:, 0] == 0).all()
    other = suite.text(20, split="validation", path=file, length=16)
    assert not {tuple(r) for r in other.tolist()} & {tuple(r) for r in text.tolist()}
    with pytest.raises(ValueError, match=r"The text is too short: \d+ of 625 sequences"):
        suite.text(10_000, path=file, length=16)
    with pytest.raises(ValueError, match="take one of train, validation"):
        suite.text(10, split="test", path=file)
