"""What all tests share: no network, one thread, no windows, and the optional folder of large
reference data.
"""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

import hypothesis
import matplotlib
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

# not through the environment, which the kernels of notebook tests would inherit
matplotlib.use("Agg")
# a busy machine is no fault of the code
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes begins first, so that no worker is left alone with it at the end."""
    items.sort(key=lambda item: item.path.name != "test_real_path.py")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """One thread: on models this small a second one gains nothing, and on a busy machine it costs a
    lot.
    """
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data that is not in the repository: $CTT_SHARED, or `shared` beside
    the checkout.
    """
    folder = Path(os.environ.get("CTT_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"reference data is not here ({folder}); set CTT_SHARED to its folder")
    return folder
