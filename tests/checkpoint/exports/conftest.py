"""Real checkpoints, where a checkout has them."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED_MODELS = Path(__file__).parents[3] / ".." / "shared" / "data" / "models"


@pytest.fixture
def shared_models() -> Path:
    if not SHARED_MODELS.is_dir():
        pytest.skip("needs ../shared/data/models")
    return SHARED_MODELS
