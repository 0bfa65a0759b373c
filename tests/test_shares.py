"""Figures of the factorial over many checkpoints, and other architectures by their shape alone."""

from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

import ctt_helpers as ctt
from ctt_helpers.factorial import FACTORS
from ctt_helpers.notebook import plots, shapes
from ctt_helpers.notebook.plots.shares import WORDS, drawn_shares

NAMES = ["step128", "step512", "step3000"]


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def table(strength, subject, attractor) -> pd.DataFrame:
    """As `shares_of_effect` gives it, with intervals of a tenth."""
    subject, attractor = np.array(subject, float), np.array(attractor, float)
    shares = {"subject": subject, "attractor": attractor, "both": 1 - subject - attractor}
    columns = {"checkpoint": NAMES, "strength": strength}
    for name, share in shares.items():
        columns[f"{name}_share"] = share
        columns |= {f"{name}_share_low": share - 0.1, f"{name}_share_high": share + 0.1}
    return pd.DataFrame(columns)


def test_shares_of_next_to_nothing_are_not_drawn():
    drawn = drawn_shares(table([0.9, 5, 10], [0.1, 0.3, 0.8], [0.8, 0.6, 0.1]))
    assert drawn["subject"].isna().tolist() == [True, False, False]
    assert drawn["attractor_low"].tolist()[1:] == pytest.approx([0.5, 0.0])
    assert drawn["checkpoint"].tolist() == NAMES


def test_the_title_says_who_leads_first_and_last():
    assert (
        plots.who_leads(table([1, 5, 10], [0.1, 0.3, 0.8], [0.8, 0.6, 0.1]))
        == "first the neighbour (80%), in the end the subject (80%)"
    )
    # the first checkpoint has too little, and does not count
    assert plots.who_leads(table([0.9, 5, 10], [0.9, 0.3, 0.2], [0, 0.6, 0.7])) == (
        "first the neighbour (60%), in the end the neighbour (70%)"
    )
    nothing = [np.nan] * 3
    assert plots.who_leads(table([0, 0, 0], nothing, nothing)) == "nothing to share anywhere"


def test_share_curves_have_the_colours_of_the_labels_and_the_truth_beside():
    found = {
        "pp": table([1, 5, 10], [0.1, 0.3, 0.8], [0.8, 0.6, 0.1]),
        "other": table([1, 5, 10], [0.7, 0.3, 0.2], [0.2, 0.6, 0.7]),
    }
    truth = {task: table([1, 5, 10], [0, 0.5, 1], [1, 0.5, 0]) for task in found}
    figure = plots.share_curves(found, truth)
    first, second = figure.axes
    solid = [line for line in first.lines if line.get_linestyle() == "-"]
    dashed = [line for line in first.lines if line.get_linestyle() == "--"]
    for name, line, other in zip(WORDS, solid, dashed, strict=False):
        color = to_rgba(plots.LABEL_COLORS[name])
        assert to_rgba(line.get_color()) == to_rgba(other.get_color()) == color
        np.testing.assert_allclose(line.get_ydata(), found["pp"][f"{name}_share"])
        np.testing.assert_allclose(other.get_ydata(), truth["pp"][f"{name}_share"])
    assert first.get_title(loc="left").startswith("pp: first the neighbour")
    assert second.get_title(loc="left").startswith("other: first the subject")
    assert [label.get_text() for label in second.get_xticklabels()] == NAMES
    assert len(plots.share_curves(found).axes[0].lines) == len(FACTORS)
    found["other"]["checkpoint"] = ["a", "b", "c"]
    with pytest.raises(ValueError, match="'other' has other checkpoints than 'pp'"):
        plots.share_curves(found)
    with pytest.raises(ValueError, match="lacks"):
        plots.share_curves({"pp": found["pp"].drop(columns="both_share_low")})


def test_a_path_leads_from_neighbour_to_subject():
    found = SimpleNamespace(
        names=NAMES,
        features=np.array([7, 2]),
        attractor=np.array([[0, 1], [0, 0.5], [0, 0.0]]),
        subject=np.array([[0, 0], [0, 0.5], [0, 1.0]]),
    )
    figure = plots.factor_paths(found, [2], title="It turns")
    (ax,) = figure.axes
    np.testing.assert_allclose(ax.collections[0].get_offsets(), [[1, 0], [0.5, 0.5], [0, 1]])
    expected = list(plots.checkpoint_colors(NAMES).values())
    np.testing.assert_allclose(ax.collections[0].get_facecolors(), expected)
    assert ax.get_title(loc="left") == "#2"
    (arrow,) = ax.texts
    assert arrow.xy == (0, 1)
    assert matplotlib.colors.to_rgb(arrow.arrow_patch.get_edgecolor()) != (1, 1, 1)  # to be seen
    with pytest.raises(ValueError, match="no feature 3 here"):
        plots.factor_paths(found, [3])


@pytest.mark.parametrize("preset", ["pythia-1b", "bloom-1b1"])
def test_the_path_of_a_shape_without_its_weights(preset, tmp_path):
    tiny = ctt.load_suite("tiny")
    suite = shapes.shrunk_suite(preset, tmp_path, tiny.tokenizer)
    found = shapes.check_path(suite, tiny.pairs("agreement/simple", n=6), device="cpu")
    assert found["class"] == {"pythia-1b": "GPTNeoX", "bloom-1b1": "Bloom"}[preset] + "ForCausalLM"
    assert found["largest change"] < 1e-4
    assert 0.5 < found["AtP: rank"] <= 1
    with pytest.raises(ValueError, match="preset"):
        shapes.shrunk_suite("pythia-2b", tmp_path, tiny.tokenizer)
