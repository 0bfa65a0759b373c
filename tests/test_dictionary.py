"""A dictionary of one's own: the page that tells how, run as it stands, and what is refused."""

import re

import numpy as np
import pytest
import torch
from models import random_suite, some_pairs, some_text

import ctt_helpers as ctt
from ctt_helpers.crosscoder import Crosscoder
from ctt_helpers.dictionary import OFFERS, Dictionary


@pytest.fixture(scope="module")
def page(root):
    """What the page's code leaves behind, run from its first line to its last."""
    text = (root / "docs" / "dictionary.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    names: dict = {}
    for block in blocks:
        exec(compile(block, "docs/dictionary.md", "exec"), names)
    return names


def test_the_pages_dictionary_gives_what_the_crosscoder_gives(page):
    """Its thresholds are those of the crosscoder, so every figure is, too."""
    original, mine, ckpts = page["original"], page["mine"], page["ckpts"]
    assert isinstance(mine, Dictionary) and not isinstance(mine, Crosscoder)
    expected = ctt.evaluate(original, ckpts, page["text"])
    found = page["report"]
    np.testing.assert_allclose(found.l0, expected.l0, rtol=1e-3)
    for name in ("explained_variance", "dce", "ce_recovered"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=2e-4)
    effects = ctt.indirect_effects(original, ckpts, page["pairs"], "ablation")
    assert np.abs(effects.mean).max() > 0.1
    np.testing.assert_allclose(page["effects"].mean, effects.mean, atol=2e-4)
    np.testing.assert_allclose(
        page["dec"], ctt.rel_dec(original.decoder_norms(), expected.dead_mask), atol=1e-5
    )
    feature = page["feature"]
    tokens = [ctt.promoted_tokens(one, ckpts, feature).token.tolist() for one in (mine, original)]
    assert tokens[0] == tokens[1]
    one, other = (ctt.top_examples(d, ckpts, page["text"], [feature, 3]) for d in (mine, original))
    assert one.keys() == other.keys()
    assert [e["sequence"] for e in one[feature]] == [e["sequence"] for e in other[feature]]
    places = [ctt.active_places(d, ckpts, page["text"], [feature]) for d in (mine, original)]
    np.testing.assert_allclose(places[0].frequency, places[1].frequency, atol=1e-3)
    assert len(page["found"]) and np.abs(page["random"].mean).max() > 0


def test_every_method_takes_it(page):
    ckpts, pairs = page["ckpts"], page["pairs"][:8]
    for method in ("atp", "ig"):
        one = ctt.indirect_effects(page["mine"], ckpts, pairs, method)
        other = ctt.indirect_effects(page["original"], ckpts, pairs, method)
        np.testing.assert_allclose(one.mean, other.mean, atol=2e-3)
    features = np.abs(page["effects"].mean).sum(0).argsort()[-3:].tolist()
    for ablation in (ctt.ablate, ctt.ablate_subsets):
        one = ablation(page["mine"], ckpts, pairs, features)
        other = ablation(page["original"], ckpts, pairs, features)
        if ablation is ctt.ablate_subsets:
            np.testing.assert_allclose(one.lead, other.lead, atol=2e-3)
        else:
            figures = one.select_dtypes("number").columns
            np.testing.assert_allclose(one[figures], other[figures], atol=2e-2)


class Own:
    """No module, one line a method: the least that will do."""

    n_checkpoints, n_latents, source = 3, 5, {}

    def __init__(self, **parts):
        draw = torch.Generator().manual_seed(0)
        self.W = torch.randn(5, 3, 32, generator=draw)
        self.b = torch.randn(3, 32, generator=draw)
        for name, value in parts.items():
            setattr(self, name, value)

    def encode(self, x):
        return torch.einsum("...cd,hcd->...h", x, self.W).relu()

    def decode(self, f):
        return torch.einsum("...h,hcd->...cd", f, self.W) + self.b

    def raw_decoder(self):
        return self.W, self.b

    def decoder_norms(self):
        return self.W.norm(dim=-1).T


@pytest.fixture(scope="module")
def ckpts(tmp_path_factory):
    return random_suite(tmp_path_factory.mktemp("suite")).checkpoints(device="cpu")


def test_the_least_that_will_do(ckpts):
    assert isinstance(Own(), Dictionary) and isinstance(Crosscoder(2, 4, 4, k=1), Dictionary)
    report = ctt.evaluate(Own(), ckpts, some_text())
    effects = ctt.indirect_effects(Own(), ckpts, some_pairs(), "ablation")
    assert report.l0 > 0 and effects.mean.shape == (3, 5) and effects.info["source"] == {}
    # the same by a crosscoder of these weights
    crosscoder = Crosscoder(3, 32, 5, "l1").eval()
    with torch.no_grad():
        crosscoder.W_enc.copy_(Own().W.permute(1, 2, 0))
        crosscoder.W_dec.copy_(Own().W)
        crosscoder.b_dec.copy_(Own().b)
    other = ctt.indirect_effects(crosscoder, ckpts, some_pairs(), "ablation")
    np.testing.assert_allclose(effects.mean, other.mean, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        report.dce, ctt.evaluate(crosscoder, ckpts, some_text()).dce, atol=1e-4
    )


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"decode": lambda f: 2 * Own().decode(f)}, "not f W_dec.*differ by .* scaled, or centred"),
        ({"decode": lambda f: Own().decode(f.relu().sqrt() * 3)}, "not f W_dec"),
        ({"decode": lambda f: Own().decode(f) * torch.nan}, "not f W_dec"),
        ({"decode": lambda f: Own().decode(f)[:, :2]}, r"decode .* gives \(2, 2, 32\)"),
        ({"b": torch.zeros(32)}, r"b_dec of this Own is \(32,\).* it is \(3, 32\)"),
        ({"n_latents": 6}, r"W_dec of this Own is \(5, 3, 32\).*n_latents=6 it is \(6, 3, 32\)"),
        ({"decoder_norms": lambda: torch.ones(5, 3)}, r"decoder_norms\(\) .* is \(5, 3\)"),
        ({"encode": lambda x: Own().encode(x) / 0}, "codes are finite, above 0"),
        ({"encode": lambda x: Own().encode(x)[..., :4]}, r"encode .* it gives \(.*, 5\)"),
        ({"n_checkpoints": 2}, "reads 2 checkpoints, and here are"),
        ({"source": {"layer": 7}}, "belongs to other checkpoints"),
    ],
)
def test_what_would_give_wrong_numbers_is_refused(ckpts, parts, told):
    for use in (
        lambda own: ctt.evaluate(own, ckpts, some_text()),
        lambda own: ctt.indirect_effects(own, ckpts, some_pairs(), "atp"),
    ):
        with pytest.raises(ValueError, match=rf"(?s){told}"):
            use(Own(**parts))


def test_codes_below_0_are_for_effects_alone(ckpts):
    signed = Own(encode=lambda x: Own().encode(x) - 1)
    with pytest.raises(ValueError, match="codes are finite, above 0"):
        ctt.evaluate(signed, ckpts, some_text())
    effects = ctt.indirect_effects(signed, ckpts, some_pairs(), "ablation")
    assert np.isfinite(effects.mean).all() and (effects.mean != 0).any()


@pytest.mark.parametrize("name", OFFERS)
def test_what_is_missing_is_named(ckpts, name):
    class Without:
        def __init__(self):
            for other in OFFERS:
                if other != name:
                    setattr(self, other, getattr(Own(), other))

    assert not isinstance(Without(), Dictionary)
    with pytest.raises(TypeError, match=rf"Without lacks {name}: a dictionary offers"):
        ctt.evaluate(Without(), ckpts, some_text())


def test_the_list_is_that_of_the_protocol(root):
    members = {name for name in vars(Dictionary) if not name.startswith("_")}
    assert set(OFFERS) == members | set(Dictionary.__annotations__)
    text = (root / "docs" / "dictionary.md").read_text(encoding="utf-8")
    for name in OFFERS:
        assert f"`{name}" in text


def test_a_module_is_put_into_evaluation_mode(ckpts):
    class Module(Own, torch.nn.Module):
        def __init__(self):
            torch.nn.Module.__init__(self)
            Own.__init__(self)

    own = Module().train()
    ctt.evaluate(own, ckpts, some_text())
    assert not own.training
