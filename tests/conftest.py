"""What every test relies on: the interpreter for kernels, no network, one seed, signals."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

# Both are read when the libraries are imported, hence before any of the imports below.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

if TYPE_CHECKING:
    from saccade_testing.chat_models import ChatFolder

pytest.register_assert_rewrite("saccade_testing")

if not torch.cuda.is_available():
    # Read when a kernel is decorated, that is when its module is first imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")


# A run under `nohup`, or as a shell's background job, inherits signals that are ignored, and so
# does every server that a test starts.
for ignored in (signal.SIGHUP, signal.SIGINT):
    if signal.getsignal(ignored) is signal.SIG_IGN:
        default = signal.default_int_handler if ignored is signal.SIGINT else signal.SIG_DFL
        signal.signal(ignored, default)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--record-goldens", action="store_true", help="write what test_goldens.py compares with"
    )
    parser.addoption("--seeds", help="which random workloads test_workloads.py runs: FIRST:LAST")


@pytest.fixture(autouse=True)
def seed() -> None:
    """Make every test start from the same random state, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> ChatFolder:
    """``chat_folder(style, *first)``: a tiny chat model of saccade_testing.chat_models."""
    from saccade_testing import chat_models  # assertions of this package are rewritten first

    return chat_models.folders(tmp_path_factory.mktemp("chat"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
