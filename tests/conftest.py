"""What all tests share: no network, one thread, no windows, and the optional folder of large
reference data.
"""

import os
import signal
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

import hypothesis
import matplotlib
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

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
def not_deaf() -> None:
    """Ctrl-C and a terminal's end are heard: `nohup make test-long &` begins deaf to both, and so
    would be every process that a test starts and interrupts.
    """
    heard = {"SIGINT": signal.default_int_handler, "SIGHUP": signal.SIG_DFL}
    for name, handler in heard.items():
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


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


class Waiting(TorchDispatchMode):
    """Counts where a host would wait for a device: a number, or a size, that depends on values.

    Whole numbers are not counted: indices are made on the CPU.
    """

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if name == "aten::nonzero" or (
            name == "aten::_local_scalar_dense" and args[0].dtype in (torch.bool, torch.float64)
        ):
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def waits(monkeypatch):
    """A function: how often a call would wait for a device, copies to the CPU included."""

    def count(call):
        copied = []
        real = torch.Tensor.cpu

        def cpu(tensor):
            copied.extend([tensor] if tensor.is_floating_point() else [])
            return real(tensor)

        monkeypatch.setattr(torch.Tensor, "cpu", cpu)
        with Waiting() as mode:
            call()
        monkeypatch.setattr(torch.Tensor, "cpu", real)
        return mode.count + len(copied)

    assert count(lambda: torch.ones(1).double().cpu()) == 1
    assert count(lambda: float(torch.ones(1).double())) == 1
    assert count(lambda: torch.ones(3).nonzero()) == 1
    return count
