from __future__ import annotations

import pytest
from torch import nn

from loraprune.layers.unwrap import eval_mode


@pytest.fixture
def network():
    """A model in training mode with a frozen part that stays in evaluation mode."""
    network = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Linear(2, 2))).train()
    network[1].eval()
    network[1][1].train()
    return network


def modes(network):
    return [module.training for module in network.modules()]


def test_every_module_is_in_evaluation_mode_inside_and_in_its_own_mode_after(network):
    before = modes(network)
    assert before == [True, True, False, False, True]
    with eval_mode(network):
        assert modes(network) == [False] * 5
    assert modes(network) == before


def test_the_modes_come_back_when_the_block_raises(network):
    before = modes(network)
    with pytest.raises(KeyError), eval_mode(network):
        raise KeyError
    assert modes(network) == before
