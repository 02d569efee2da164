"""What is cut together, compared with torch-pruning, which finds it by tracing the graph of a backward pass.

Only where that library is right: channels of an FFN with layers of its own, and heads with separate q, k and v, all
of them as many. It does not follow grouped queries and fused projections.
"""

from __future__ import annotations

import copy

import pytest
import torch
from tests.zoo import ROWS
from tests.zoo.cases import cut_
from tests.zoo.plans import ragged_plan
from tests.zoo.row import logits

from loraprune.structure.describe import describe

torch_pruning = pytest.importorskip("torch_pruning", reason="needs torch-pruning, of the extra 'test'")

CHANNELS = (
    "llama with as many KV heads",
    "opt",
    "gpt_neo",
    "gptj",
    "gpt_neox",
    "falcon with all KV heads",
    "bloom",
    "mpt",
    "bert",
    "vit",
)
HEADS = ("llama with as many KV heads", "opt", "gpt_neo", "gptj", "bert", "vit")


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "channels") for name in CHANNELS), *((name, "heads") for name in HEADS)]
)
def test_the_same_rows_and_columns_stay(name, kind):
    (row,) = (row for row in ROWS if row.name == name)
    ours = row.model()
    structure = describe(ours, (kind,))
    plan = ragged_plan(structure)

    theirs = copy.deepcopy(ours)
    graph = torch_pruning.DependencyGraph().build_dependency(
        theirs, example_inputs=row.inputs(), forward_fn=logits, verbose=False
    )
    for dimension in structure:
        member = dimension.members[0]
        gone = sorted(set(range(dimension.num_groups)) - set(plan.kept[dimension.name]))
        rows = [group * member.group_size + offset for group in gone for offset in range(member.group_size)]
        layer = theirs.get_submodule(member.module)
        graph.get_pruning_group(layer, torch_pruning.prune_linear_out_channels, idxs=rows).prune()

    before = {parameter_name: parameter.shape for parameter_name, parameter in ours.named_parameters()}
    cut_(ours, structure, plan)
    expected = dict(theirs.named_parameters())
    assert set(expected) == set(before)
    for parameter_name, parameter in ours.named_parameters():
        assert torch.equal(parameter, expected[parameter_name]), parameter_name
    shrunk = {name for name, parameter in ours.named_parameters() if parameter.shape != before[name]}
    assert {f"{member.module}.weight" for d in structure for member in d.all_members} <= shrunk
