from __future__ import annotations

from collections import OrderedDict

import torch
from transformers import BatchEncoding, DynamicCache

from loraprune.calibration.block_by_block import placed

META, CPU = torch.device("meta"), torch.device("cpu")


def test_tensors_move_however_deep_they_are_and_everything_else_stays():
    value = ((torch.ones(2), [torch.ones(3), None]), {"mask": torch.ones(4), "deep": ({"flag": True},)}, "text", 7)
    (first, (second, nothing)), mapping, text, number = placed(value, META)
    assert {tensor.device for tensor in (first, second, mapping["mask"])} == {META}
    assert [tensor.shape for tensor in (first, second, mapping["mask"])] == [(2,), (3,), (4,)]
    assert (nothing, mapping["deep"], text, number) == (None, ({"flag": True},), "text", 7)


def test_tuples_stay_tuples_and_lists_lists():
    assert placed((1, [2, (3,)]), META) == (1, [2, (3,)])
    assert placed((), META) == ()


def test_any_mapping_is_one():
    for mapping in (OrderedDict(a=torch.ones(1)), BatchEncoding({"a": torch.ones(1)})):
        moved = placed(mapping, META)
        assert dict(moved).keys() == {"a"}
        assert moved["a"].device == META


def test_what_is_there_already_is_not_copied():
    tensor = torch.ones(2)
    assert placed([tensor], CPU)[0] is tensor


def test_the_value_itself_is_left_as_it_is():
    inner = [torch.ones(2)]
    value = {"a": inner}
    placed(value, META)
    assert value["a"] is inner
    assert inner[0].device == CPU


def test_an_object_of_another_kind_is_passed_on():
    cache = DynamicCache()
    assert placed({"cache": cache}, META)["cache"] is cache
