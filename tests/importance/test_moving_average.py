from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loraprune.importance.moving_average import MovingAverage, averaged, selected, updated


def run(steps, decay):
    state = MovingAverage()
    for values in steps:
        state = updated(state, {"heads": torch.as_tensor(values, dtype=torch.float32)}, decay)
    return state


@given(
    steps=st.lists(st.lists(st.floats(0, 10, width=32), min_size=3, max_size=3), min_size=1, max_size=8),
    decay=st.floats(0, 0.99),
)
def test_the_average_is_that_of_a_plain_loop(steps, decay):
    loop = np.zeros(3)
    for values in steps:
        loop = decay * loop + (1 - decay) * np.array(values)
    state = run(steps, decay)
    np.testing.assert_allclose(averaged(state, decay, bias_correction=False)["heads"], loop, rtol=1e-5, atol=1e-5)
    corrected = loop / (1 - decay ** len(steps))
    np.testing.assert_allclose(averaged(state, decay)["heads"], corrected, rtol=1e-4, atol=1e-4)


def test_bias_correction_gives_back_a_constant():
    state = run([[2.0, 3.0]] * 4, 0.9)
    assert averaged(state, 0.9)["heads"].tolist() == pytest.approx([2.0, 3.0])
    assert averaged(state, 0.9, bias_correction=False)["heads"].tolist() == pytest.approx([0.6878, 1.0317], abs=1e-4)


def test_nothing_averaged_gives_no_scores():
    assert averaged(MovingAverage(), 0.9) == {}


def test_an_update_leaves_the_earlier_state_as_it_was():
    first = run([[1.0, 2.0]], 0.5)
    updated(first, {"heads": torch.tensor([9.0, 9.0])}, 0.5)
    assert first.values["heads"].tolist() == [0.5, 1.0]
    assert first.updates == 1


def test_after_a_cut_the_average_goes_on_for_the_groups_that_stay():
    steps = [[1.0, 5.0, 3.0], [2.0, 1.0, 4.0]]
    state = selected(run(steps, 0.8), {"heads": [0, 2]})
    state = updated(state, {"heads": torch.tensor([7.0, 8.0])}, 0.8)
    expected = run([[1.0, 3.0], [2.0, 4.0], [7.0, 8.0]], 0.8)
    assert torch.equal(state.values["heads"], expected.values["heads"])
    assert state.updates == 3


def test_dimensions_that_were_not_cut_keep_all_their_entries():
    state = MovingAverage({"heads": torch.tensor([1.0, 2.0]), "channels": torch.tensor([3.0, 4.0])}, 1)
    assert selected(state, {"heads": [1]}).values["channels"].tolist() == [3.0, 4.0]
    assert selected(state, {"heads": [1]}).values["heads"].tolist() == [2.0]
