from __future__ import annotations

from dataclasses import replace

import pytest
from tests.models import FAMILIES, tiny_config

import loraprune.architectures as architectures
from loraprune.architectures import UnsupportedArchitectureError, register, spec_for, supported
from loraprune.architectures.llama import LLAMA


@pytest.fixture
def _registry(monkeypatch):
    monkeypatch.setattr(architectures, "_SPECS", dict(architectures._SPECS))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_is_found_by_its_config(family):
    assert spec_for(tiny_config(family)).model_type == family


def test_the_supported_families_are_listed_in_order():
    assert set(FAMILIES) < set(supported())
    assert list(supported()) == sorted(supported())


def test_only_a_llama_must_divide_its_hidden_size_by_its_heads():
    restricted = [family for family in FAMILIES if spec_for(tiny_config(family)).heads_divide_hidden]
    assert restricted == ["llama"]


@pytest.mark.usefixtures("_registry")
def test_a_family_can_be_registered_and_replaced():
    config = tiny_config()
    config.model_type = "llama-like"
    with pytest.raises(UnsupportedArchitectureError, match="'llama-like'"):
        spec_for(config)
    register(replace(LLAMA, model_type="llama-like"))
    register(replace(LLAMA, model_type="llama-like", decoder="other"))
    assert spec_for(config).decoder == "other"
    assert "llama-like" in supported()
