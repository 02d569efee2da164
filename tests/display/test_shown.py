from __future__ import annotations

import warnings

import pytest

from loraprune.display.shown import run_display


@pytest.mark.parametrize("verbosity", ["progress", "warnings"])
def test_deprecations_inside_other_libraries_are_not_shown(verbosity: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with run_display(verbosity):
            for module in ("transformers.training_args", "my_script"):
                warnings.warn_explicit("old", FutureWarning, "file.py", 1, module=module)
    assert len(caught) == 1  # that of the caller's own script
