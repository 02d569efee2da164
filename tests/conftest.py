"""Settings that all tests share, and fixtures of small models."""

# ruff: noqa: E402

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

# What libraries of extras say on being imported, which peft does unasked, would come after pytest's own last line.
for _name in ("torchao", "bitsandbytes", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)

import pytest
import torch
from huggingface_hub import constants
from hypothesis import HealthCheck, settings
from tests.checkpoints import tiny_checkpoint, write_texts
from tests.finished_run import finished_run
from tests.hub_server import TOKEN, StandInHub, stand_in_hub
from tests.models import tiny_model
from transformers import PreTrainedModel

from loraprune import PruneResult
from loraprune.structure.describe import describe
from loraprune.structure.dimensions import Structure


@pytest.fixture
def enough_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """No repair is held back, however few tokens there are, so that it is the formula alone."""
    monkeypatch.setattr("loraprune.calibration.least_squares.TOKENS_A_FEATURE", 0)


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--full``, or ``LORAPRUNE_TESTS=full`` in the environment, runs what the default run leaves out."""
    parser.addoption("--full", action="store_true", help="also run the tests that are marked as `full`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave tests marked as ``full`` out, unless all tests, or all of the contract (``-m zoo``), were asked for."""
    if config.getoption("--full") or os.environ.get("LORAPRUNE_TESTS") == "full":
        return
    asked = config.getoption("-m") or ""
    left = [
        item
        for item in items
        if item.get_closest_marker("full") and not (item.get_closest_marker("zoo") and "zoo" in asked)
    ]
    if left and "full" not in asked:
        config.hook.pytest_deselected(items=left)
        out = set(left)
        items[:] = [item for item in items if item not in out]


# The same examples in every run; no limit on the time of one example, which a busy machine would break.
settings.register_profile(
    "loraprune", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("loraprune")


@pytest.fixture
def own_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    """The hub is a stand-in on this machine, and the login is its own."""
    with stand_in_hub() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


@pytest.fixture(autouse=True)
def _own_random_state() -> Iterator[None]:
    """Every test starts from the same random state and leaves none behind."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(autouse=True)
def _audible_logger() -> None:
    """A command that ran earlier in this process keeps our messages to its own console; tests want to hear them."""
    logger = logging.getLogger("loraprune")
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def answering_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub answers, for all that is known; nobody asks it."""
    monkeypatch.setattr("loraprune.data.hub.missing_hub", lambda: None)
    for user in ("data.sources", "metrics.texts", "metrics.tasks.scoring"):
        monkeypatch.setattr(f"loraprune.{user}.missing_hub", lambda: None)


@pytest.fixture
def model() -> PreTrainedModel:
    """A small Llama: see :func:`tests.models.tiny_model`."""
    return tiny_model("llama")


@pytest.fixture
def structure(model: PreTrainedModel) -> Structure:
    """What can be pruned in ``model``."""
    return describe(model)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small Llama with its tokenizer; no test changes it."""
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of short texts."""
    return write_texts(tmp_path_factory.mktemp("data") / "texts.jsonl", count=80)


@pytest.fixture(scope="session")
def finished(checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> PruneResult:
    """A run with everything that can be asked for; no test changes it."""
    return finished_run(checkpoint, data, tmp_path_factory.mktemp("finished") / "out")
