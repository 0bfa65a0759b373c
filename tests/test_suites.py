"""Suites: revisions, tokens seen, loading, fingerprints, and errors that say what to do."""

import json
import os
import shutil

import pytest
import torch
from models import random_model, random_suite, some_pairs, some_text, word_tokenizer
from safetensors.torch import load_file, save_file

import ctt_helpers as ctt
from ctt_helpers import hooks
from ctt_helpers.sources.checkpoints import Checkpoints
from ctt_helpers.sources.machine import count_parameters
from ctt_helpers.sources.presets import PRESETS
from ctt_helpers.sources.suites import load_suite


@pytest.fixture
def suite(tmp_path):
    return random_suite(tmp_path)


def test_a_local_folder_is_a_suite(suite):
    assert suite.revisions == ["step0", "step100", "step200"]
    assert [suite.tokens_seen(r) for r in suite.revisions] == [0, 1000, 2000]
    ckpts = suite.checkpoints(device="cpu")
    assert (
        len(ckpts) == 3
        and ckpts.labels == suite.revisions
        and ckpts.layer == 1
        and ckpts.d_model == 32
    )
    assert not ckpts[0].hf_model.training and not any(
        p.requires_grad for p in ckpts[0].hf_model.parameters()
    )
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
    for stage in (
        "step",
        "stage1",
        "stage2-ingredient1",
        "stage2-ingredient2",
        "stage2-ingredient3",
        "global",
    ):
        seen = [suite.tokens_seen(r) for r in suite.revisions if r.startswith(stage)]
        assert seen == sorted(seen)
        steps = [
            int(r.split("step")[1].split("-")[0]) for r in suite.revisions if r.startswith(stage)
        ]
        assert steps == sorted(set(steps))
    assert suite.check_revisions(suite.default_triplet) == suite.default_triplet


def test_tokens_of_presets():
    """Expected figures: the paper's captions, and the names of the checkpoints."""
    pythia = load_suite("pythia-1b")
    assert [pythia.tokens_seen(r) for r in pythia.default_triplet] == [
        1_073_741_824,
        4_194_304_000,
        299_892_736_000,
    ]
    for name, layer, billions in (("olmo-1b", 8, [4, 33, 3048]), ("bloom-1b1", 12, [5.5, 55, 341])):
        suite = load_suite(name)
        assert suite.default_layer == layer and suite.preset.from_paper and suite.preset.approximate
        assert [suite.tokens_seen(r) / 1e9 for r in suite.default_triplet] == billions
    seven = load_suite("olmo2-7b")
    assert (
        seven.tokens_seen("stage1-step928646-tokens3896B") == 3896e9
        and seven.tokens_seen("main") is None
    )
    assert (
        seven.tokens_seen("stage2-ingredient2-step11931-tokens50B") == 3946e9
    )  # after the whole of stage 1


def test_shapes_of_presets_have_the_published_sizes():
    """Pythia: parameters in all and without embeddings, from its model cards; BLOOM: from
    its card.
    """
    published = {
        "pythia-14m": 1_189_888, "pythia-31m": 4_739_072, "pythia-70m": 18_915_328,
        "pythia-160m": 85_056_000, "pythia-410m": 302_311_424, "pythia-1b": 805_736_448,
        "pythia-1.4b": 1_208_602_624,
        "pythia-2.8b": 2_517_652_480, "pythia-6.9b": 6_444_163_072, "pythia-12b": 11_327_027_200,
    }  # fmt: skip
    counted = {name: count_parameters(load_suite(name).config, 0)["all"] for name in PRESETS}
    for name, without_embeddings in published.items():
        config = PRESETS[name].config
        assert (
            counted[name] - 2 * config["vocab_size"] * config["hidden_size"] == without_embeddings
        )
    assert counted["pythia-160m"] == 162_322_944 and counted["bloom-1b1"] == 1_065_314_304
    for name in ("olmo-1b", "olmo2-1b", "olmo2-7b"):  # float32 files
        assert PRESETS[name].file_bytes == 4 * counted[name]


def test_a_preset_by_its_names_and_in_part():
    assert (
        load_suite("EleutherAI/pythia-1b").source
        == load_suite("pythia-1b").source
        == "EleutherAI/pythia-1b"
    )
    assert load_suite("allenai/OLMo-2-1124-7B").name == "olmo2-7b"
    some = ["step512", "step1000", "step3000", "step143000"]
    suite = load_suite("pythia-1b", revisions=some)
    assert suite.default_triplet == some[1:] and suite.preset and len(suite.describe()) == 4
    assert repr(load_suite("pythia-1b")) == (
        "Suite('pythia-1b': 154 checkpoints, step0, step1, step2, step4, ... step142000, "
        "step143000)"
    )
    for wrong, near in (
        ("step1500", "step2000"),
        ("step143001", "step143000"),
        ("main", None),
        ("step3", "step4"),
    ):
        with pytest.raises(
            ValueError,
            match=rf"no revision '{wrong}'\.{f' Did you mean {near!r}' if near else ' It'}",
        ):
            suite.tokens_seen(wrong) if near == "step143000" else load_suite(
                "pythia-1b"
            ).tokens_seen(wrong)


def test_describe(suite):
    table = suite.describe()
    columns = "revision step tokens approximate download_mb cached note".split()
    assert list(table.columns) == columns and not table.note.any()
    assert list(table.step) == [0, 100, 200] and list(table.tokens) == [0, 1000, 2000]
    assert (
        set(table.cached) == {"yes"} and not table.download_mb.any() and not table.approximate.any()
    )
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
    with pytest.raises(
        ValueError,
        match=r"No suite 'pythia-1bb'. Did you mean 'pythia-1b'\? Known: tiny, pythia-14m",
    ):
        load_suite("pythia-1bb")
    with pytest.raises(
        ValueError, match=r"no revision 'step10'. Did you mean 'step100'\? It has 3: step0, step100"
    ):
        suite.checkpoints(["step10"])
    with pytest.raises(ValueError, match=r"in the order of training: \['step0', 'step200'\]"):
        suite.checkpoints(["step200", "step0"])
    with pytest.raises(ValueError, match=r"give a list of texts or None, \['step0'\]"):
        suite.checkpoints("step0")
    with pytest.raises(
        ValueError, match=r"at least one revision, and each once; these are \['step0', 'step0'\]"
    ):
        suite.checkpoints(["step0", "step0"])
    with pytest.raises(ValueError, match=r"org/name.*give revisions="):
        load_suite("org/name")
    with pytest.raises(ValueError, match=r"There is no task 'blimpp/x'"):
        suite.pairs("blimpp/x")
    with pytest.raises(
        ConnectionError, match=r"cannot be read from nyu-mll/blimp: .* give path=: a folder"
    ):
        suite.pairs("blimp/anaphor_number_agreement")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        FileNotFoundError, match="holds no checkpoint: expected one subfolder a revision"
    ):
        load_suite(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"device='cudaa' is not known"):
        suite.checkpoints(device="cudaa")


def test_layer_out_of_range(suite):
    with pytest.raises(
        ValueError, match=r"layer=3 does not exist: this model has 3 blocks, 0 to 2"
    ):
        suite.checkpoints(layer=3, device="cpu")[0]


def test_missing_and_truncated_weights(suite):
    file = suite.source / "step100" / "model.safetensors"
    ckpts = suite.checkpoints(device="cpu")
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"at step100 cannot be read .* cut short or damaged"):
        ckpts[1]
    file.unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"at step100 are missing: no model.safetensors or pytorch_model.bin",
    ):
        ckpts[1]


def test_incomplete_weights_are_not_filled_up_at_random(suite):
    file = suite.source / "step0" / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("embed_out.weight")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"at step0 are incomplete; missing: (lm_head|embed_out).weight"
    ):
        suite.checkpoints(device="cpu")[0]


def test_a_class_is_checked_once_and_weights_each_time(suite, monkeypatch):
    checked, real = [], hooks.check
    monkeypatch.setattr(hooks, "check", lambda model: checked.append(model.label) or real(model))
    ckpts = suite.checkpoints(device="cpu")
    pairs = some_pairs(4)
    once = [ctt.logit_differences(model, pairs) for model in ckpts]
    assert checked == ckpts.labels[:1]
    for revision, expected in zip(ckpts.revisions, once, strict=True):
        (alone,) = suite.checkpoints([revision], device="cpu")
        assert torch.equal(ctt.logit_differences(alone, pairs), expected)
        assert alone.checked == ckpts[0].checked
    assert checked == [*ckpts.labels[:1], *ckpts.labels]
    # another layer is another thing to check
    suite.checkpoints(ckpts.revisions[:1], layer=0, device="cpu")[0]
    assert len(checked) == 2 + len(ckpts)

    file = suite.source / ckpts.revisions[-1] / "model.safetensors"
    weights = {name: tensor * float("nan") for name, tensor in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    ckpts.free()
    with pytest.raises(hooks.NotFinite, match=ckpts.labels[-1]):
        list(ckpts)


def test_a_wrong_tokenizer(suite):
    tokenizer = word_tokenizer()
    tokenizer.add_tokens([f"word{i}" for i in range(30)])
    tokenizer.save_pretrained(suite.source)
    with pytest.raises(ValueError, match=r"tokenizer of .* has \d+ tokens, the model only 40"):
        suite.checkpoints(device="cpu")[0]


def test_text_from_a_file(suite, tmp_path):
    file = tmp_path / "text.txt"
    lines = [
        f"the dog near the cats sees a cat that runs {'red ' * (i % 7)}{'old ' * (i // 7)}"
        for i in range(99)
    ]
    file.write_text("\n".join(lines))
    text = suite.text(200, path=file, length=16)
    assert text.shape == (13, 16) and (text[:, 0] == 0).all()
    other = suite.text(20, split="validation", path=file, length=16)
    assert not {tuple(r) for r in other.tolist()} & {tuple(r) for r in text.tolist()}
    with pytest.raises(ValueError, match=r"The text is too short: \d+ of 625 sequences"):
        suite.text(10_000, path=file, length=16)
    with pytest.raises(ValueError, match="take one of train, validation"):
        suite.text(10, split="test", path=file)


# ---- folders as they are written


def save_as_bin(hf_model, folder):
    """As older versions of transformers wrote a checkpoint: a pickle of tensors."""
    hf_model.save_pretrained(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def save_in_parts(hf_model, folder):
    hf_model.save_pretrained(folder, max_shard_size="20kB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1


def save_plain(hf_model, folder):
    hf_model.save_pretrained(folder)


LAYOUTS = {
    "trainer": ["checkpoint-500", "checkpoint-1500", "checkpoint-10000"],
    "megatron": ["iter_0000500", "iter_0001000", "iter_0010000"],
    "numbers": ["500", "2000", "10000"],
    "main last": ["step9", "step10", "main"],
    "olmo 2": ["stage1-step1000-tokens3B", "stage1-step9000-tokens19B",
               "stage2-ingredient1-step1000-tokens3B"],
}  # fmt: skip
TOKENS = {
    "trainer": [5000, 15000, 100_000],
    "megatron": [5000, 10_000, 100_000],
    "numbers": [5000, 20_000, 100_000],
    "main last": [90, 100, None],
    "olmo 2": [3 * 10**9, 19 * 10**9, None],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("save", [save_plain, save_as_bin, save_in_parts])
@pytest.mark.parametrize("tokenizer", ["on top", "inside"])
def test_folders_as_they_are_written(tmp_path, layout, save, tokenizer):
    names = LAYOUTS[layout]
    for i, name in enumerate(names):
        save(random_model(seed=i), tmp_path / name)
        if tokenizer == "inside":
            word_tokenizer().save_pretrained(tmp_path / name)
            (tmp_path / name / "trainer_state.json").write_text('{"num_input_tokens_seen": 0}')
    if tokenizer == "on top":
        word_tokenizer().save_pretrained(tmp_path)
    suite = load_suite(tmp_path, tokens_per_step=10)
    assert suite.revisions == names == suite.default_triplet
    assert [suite.tokens_seen(name) for name in names] == TOKENS[layout]
    for i, model in enumerate(suite.checkpoints(device="cpu")):
        for mine, plain in zip(
            model.hf_model.parameters(), random_model(seed=i).parameters(), strict=True
        ):
            assert torch.equal(mine, plain)


@pytest.mark.parametrize("save", [save_plain, save_as_bin, save_in_parts])
def test_config_and_tokenizer_on_top_and_only_weights_below(tmp_path, save):
    for i, name in enumerate(("step256", "step512")):
        save(random_model(seed=i), tmp_path / name)
        (tmp_path / name / "config.json").rename(tmp_path / "config.json")
    word_tokenizer().save_pretrained(tmp_path)
    suite = load_suite(tmp_path)
    for i, model in enumerate(suite.checkpoints(device="cpu")):
        expected = random_model(seed=i)(some_text()).logits
        assert torch.equal(model.hf_model(some_text()).logits, expected)
    assert sorted(p.name for p in (tmp_path / "step256").iterdir()) != []


def test_what_the_trainer_counted_is_known(tmp_path):
    for name, seen in (("checkpoint-1", 4096), ("checkpoint-2", 8192)):
        random_model().save_pretrained(tmp_path / name)
        state = {"num_input_tokens_seen": seen}
        (tmp_path / name / "trainer_state.json").write_text(json.dumps(state))
    word_tokenizer().save_pretrained(tmp_path)
    suite = load_suite(tmp_path)
    assert [suite.tokens_seen(r) for r in suite.revisions] == [4096, 8192]


def test_what_is_no_checkpoint_is_no_revision(suite, recwarn):
    ctt.Crosscoder(3, 32, 8, k=2).save(suite.source / "crosscoder")
    shutil.copytree(suite.source / "step0", suite.source / ".step512.tmp-1")
    (suite.source / "runs").mkdir()
    (suite.source / "notes.txt").write_text("x")
    assert load_suite(suite.source).revisions == ["step0", "step100", "step200"]
    assert not recwarn.list
    save_in_parts(random_model(), suite.source / "step300")
    next((suite.source / "step300").glob("model-00002*")).unlink()
    with pytest.warns(UserWarning, match=r"Incomplete checkpoints are left out: .*step300 lacks"):
        assert load_suite(suite.source).revisions == ["step0", "step100", "step200"]


def test_an_order_that_names_do_not_tell_is_refused(tmp_path):
    for name in ("runA-500", "runB-1000"):
        random_model().save_pretrained(tmp_path / name)
    word_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"look like checkpoints of two runs.*Give revisions="):
        load_suite(tmp_path)
    suite = load_suite(tmp_path, revisions=["runB-1000", "runA-500"])
    assert suite.revisions == ["runB-1000", "runA-500"]
    with pytest.raises(FileNotFoundError, match=r"has no revision 'runC': no model.safetensors"):
        load_suite(tmp_path, revisions=["runC"])


def test_a_bin_file_is_data_never_a_program(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "made by the file"),))

    save_as_bin(random_model(), tmp_path / "step1")
    word_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "step1" / "pytorch_model.bin"
    whole = file.read_bytes()
    torch.save({"weight": Evil()}, file)
    ckpts = load_suite(tmp_path).checkpoints(device="cpu")
    own_words = r"pytorch_model.bin; \w+\): the file is cut short or damaged.*weights_only=True"
    with pytest.raises(ValueError, match=own_words) as told:
        ckpts[0]
    assert "weights_only=False" not in str(told.value).replace("weights_only=True", "")
    assert not (tmp_path / "made by the file").exists()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=own_words):
        ckpts[0]


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pointer_of_git_lfs_is_named(tmp_path, name):
    random_model().save_pretrained(tmp_path / "step1")
    word_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "step1" / "model.safetensors").unlink()
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
    (tmp_path / "step1" / name).write_text(pointer)
    with pytest.raises(FileNotFoundError, match=rf"{name} is a pointer of git LFS.*git lfs pull"):
        load_suite(tmp_path).checkpoints(device="cpu")[0]


def test_the_users_home_is_written_out(suite, monkeypatch):
    monkeypatch.setenv("HOME", str(suite.source.parent))
    assert load_suite(f"~/{suite.source.name}").revisions == suite.revisions
    with pytest.raises(FileNotFoundError, match="There is no folder /no/such/folder"):
        load_suite("/no/such/folder")


def test_a_renamed_folder_is_the_same_suite(suite, tmp_path_factory):
    """Content decides: the fingerprints are the same, whatever folder and revisions are called."""
    crosscoder = ctt.Crosscoder(3, 32, 8, sparsity="l1")
    crosscoder.source = suite.checkpoints(device="cpu").source
    other = tmp_path_factory.mktemp("other")
    word_tokenizer().save_pretrained(other)
    for old, new in (("step0", "1"), ("step100", "2"), ("step200", "3")):
        shutil.copytree(suite.source / old, other / new)
    renamed = load_suite(other).checkpoints(device="cpu")
    ctt.indirect_effects(crosscoder, renamed, some_pairs(3))
    for new in ("1", "2"):  # and other weights under the same names are not
        shutil.rmtree(other / new)
        random_model(seed=7 + int(new)).save_pretrained(other / new)
    with pytest.raises(ValueError, match="belongs to other checkpoints"):
        ctt.indirect_effects(crosscoder, load_suite(other).checkpoints(device="cpu"), some_pairs(3))


def test_the_fingerprint_sees_every_bit_and_no_sign_of_zero():
    model = random_model()
    before = ctt.fingerprint(model)
    draw = torch.Generator().manual_seed(0)
    parameters = list(model.parameters())
    for _ in range(60):
        parameter = parameters[int(torch.randint(len(parameters), (1,), generator=draw))]
        flat = parameter.data.view(-1)
        at = int(torch.randint(len(flat), (1,), generator=draw))
        kept = flat[at].clone()
        flat[at] = torch.nextafter(kept, torch.tensor(torch.inf))
        assert ctt.fingerprint(model) != before
        flat[at] = kept
    assert ctt.fingerprint(model) == before
    bias = model.gpt_neox.layers[0].input_layernorm.bias.data
    bias[:] = -0.0
    negative = ctt.fingerprint(model)
    bias[:] = 0.0
    assert ctt.fingerprint(model) == negative
    assert ctt.fingerprint(model.half()) == ctt.fingerprint(model.half().float())


def test_a_slice_of_checkpoints_is_checkpoints(suite):
    ckpts = suite.checkpoints(device="cpu")
    first = ckpts[0]
    two = ckpts[:2]
    assert two.labels == ["step0", "step100"] and two[0] is first and two.layer == ckpts.layer
    assert [model.label for model in ckpts[::2]] == ["step0", "step200"]
    with pytest.raises(IndexError, match="none: give at least one"):
        ckpts[3:]


def test_float16_is_tried_on_sentences_and_falls_back(suite, tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    word_tokenizer().save_pretrained(folder)
    for i, size in enumerate((1.0, 1e5)):
        hf_model = random_model(seed=i)
        with torch.no_grad():
            hf_model.gpt_neox.layers[1].mlp.dense_4h_to_h.weight.mul_(size)
        hf_model.save_pretrained(folder / f"step{i}")
    options = {"layer": 1, "device": "cpu", "dtype": torch.float16, "half_on_trial": True}
    fine = Checkpoints(suite=suite, revisions=suite.revisions, **options)
    assert fine[0].dtype == torch.float16  # it holds
    large = load_suite(folder)
    ckpts = Checkpoints(suite=large, revisions=large.revisions, **options)
    assert ckpts[0].dtype == torch.float16
    with pytest.warns(
        UserWarning, match=r"float16 does not hold .* at step1.*read in float32 from"
    ):
        assert ckpts[1].dtype == torch.float32
    assert ckpts[0].dtype == ckpts.dtype == torch.float32 and ckpts.source["dtype"] == "float32"
    asked = Checkpoints(
        suite=large, revisions=large.revisions, **{**options, "half_on_trial": False}
    )
    with pytest.raises(ctt.hooks.NotFinite, match=r"'step1' .float16 on cpu. are not finite"):
        asked[1]


def test_auto_takes_float16_only_for_want_of_bfloat16(monkeypatch):
    from ctt_helpers.sources import suites

    tiny = load_suite("pythia-14m")
    monkeypatch.setattr(suites, "pick_device", lambda device: "cuda")
    for has_bfloat16 in (True, False):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, has=has_bfloat16: has
        )
        ckpts = tiny.checkpoints(["step512"])
        assert ckpts.half_on_trial != has_bfloat16
        assert ckpts.dtype == (torch.bfloat16 if has_bfloat16 else torch.float16)
        assert not tiny.checkpoints(["step512"], dtype="float16").half_on_trial
        assert load_suite("tiny").checkpoints(["step512"]).dtype == torch.float32


def test_reported_uploads_are_told_before_anything_is_downloaded():
    suite = load_suite("pythia-2.8b")
    table = suite.describe().set_index("revision")
    assert (table.note != "").sum() == 86 and "issues 195 and 205" in table.note["step512"]
    assert not table.note[suite.default_triplet].any()
    with pytest.warns(
        UserWarning, match="pythia-2.8b, step512: .*the same weights as the last one"
    ):
        suite.checkpoints(["step512", "step66000"], device="cpu")
    for name, preset in PRESETS.items():
        assert set(preset.reported) <= set(preset.tokens), name
        assert not set(preset.reported) & set(preset.triplet), name


def test_a_description_that_points_outside_its_folder_is_refused(tmp_path):
    tiny = load_suite("tiny")
    meta = json.loads((tiny.source / "suite.json").read_text())
    for wrong in ("../secret.jsonl", "/etc/passwd"):
        task = {**meta["tasks"][0], "file": wrong}
        (tmp_path / "suite.json").write_text(json.dumps({**meta, "tasks": [task]}))
        with pytest.raises(ValueError, match=r"suite.json points outside its folder"):
            load_suite(tmp_path)
    (tmp_path / "suite.json").write_text('{"name": "x"}')
    with pytest.raises(ValueError, match=r"suite.json is no description of a suite"):
        load_suite(tmp_path)


def test_code_that_comes_with_weights_is_not_run_unless_asked(suite, monkeypatch):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    asked = []
    for reader in (AutoConfig, AutoTokenizer, AutoModelForCausalLM):
        load = reader.from_pretrained

        def from_pretrained(*arguments, load=load, **options):
            asked.append(options.get("trust_remote_code"))
            return load(*arguments, **options)

        monkeypatch.setattr(reader, "from_pretrained", from_pretrained)
    for trust in (False, True):
        asked.clear()
        again = load_suite(suite.source, trust_remote_code=trust)
        _ = again.tokenizer, again.checkpoints(device="cpu")[0]
        assert set(asked) == {trust} and len(asked) >= 3
