"""Sliders and menus over results that are already computed.

A callback only looks up arrays and sets `.value`: nothing runs a model. What is shown is made by
the cards of `cards.py`, which a page without widgets calls itself. Works with ipywidgets 7 and 8.
"""

# ruff: noqa: F401 (reached as widgets.feature_explorer ...)
from ctt_helpers.notebook.widgets.ablations import (
    ablation_board,
    ablation_board_html,
    two_by_two,
    two_by_two_html,
)
from ctt_helpers.notebook.widgets.annotating import annotation_form
from ctt_helpers.notebook.widgets.cards import (
    checkpoint_table_html,
    examples_html,
    feature_card_html,
    tokens_html,
)
from ctt_helpers.notebook.widgets.checkpoints import checkpoint_slider
from ctt_helpers.notebook.widgets.classes import class_counts, class_slider, class_table_html
from ctt_helpers.notebook.widgets.explorer import feature_explorer, listed_features
from ctt_helpers.notebook.widgets.notes import (
    Annotation,
    agreement,
    merged,
    read_annotations,
    read_notes,
    save_annotation,
    save_annotations,
    save_merged,
    save_note,
)
from ctt_helpers.notebook.widgets.playground import playground, read_settings
from ctt_helpers.notebook.widgets.triangle import share_triangle, triangle_html
