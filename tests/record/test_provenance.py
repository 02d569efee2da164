from __future__ import annotations

import importlib.metadata

import numpy as np
import pytest
import torch
import yaml

import loraprune
from loraprune.record.codec import encode
from loraprune.record.provenance import machine_description, versions


def test_our_own_version_is_known_where_the_package_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    found = versions()
    assert found["loraprune"] == loraprune.__version__
    assert set(found) == {"python", "loraprune"}


def test_the_machine_is_described_by_what_speed_depends_on() -> None:
    found = machine_description()
    assert found["threads"] == torch.get_num_threads()
    assert found["cpus"] >= 1
    assert ("accelerator" in found) is torch.cuda.is_available()


def test_values_can_be_written_whatever_numbers_the_options_were() -> None:
    value = {"a": np.float64(0.25), "b": (np.int64(3), [np.bool_(True)]), "c": float("nan"), "d": np.float32("inf")}
    found = encode(value)
    assert found == {"a": 0.25, "b": [3, [True]], "c": None, "d": None}
    assert yaml.safe_load(yaml.safe_dump(found)) == found
