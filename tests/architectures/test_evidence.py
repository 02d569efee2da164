"""What pruning looks at is read off right in every architecture, whatever its blocks hand each other."""

from __future__ import annotations

import pytest
import torch
from tests.zoo import ROWS, Row
from tests.zoo.layouts import by_layout
from tests.zoo.row import logits

from loraprune.architectures import spec_for
from loraprune.calibration.block_by_block import LayerwisePass, WholeModelPass
from loraprune.importance.evidence.gates import GateProbes
from loraprune.structure.describe import describe

# Of what is inside experts, see the tests of `evidence` and `experts`.
KINDS = ("heads", "query_heads", "channels", "shared_channels")


LAYERWISE = [row for row in ROWS if spec_for(row.config()).decoder is not None]


def cases(rows: list[Row]) -> list[tuple[Row, str]]:
    return [(row, kind) for row in rows for kind in (*row.kinds, *row.others) if kind in KINDS]


def explicit_gates(model, structure, inputs):
    """Gradients of gates that are really there, for one sequence."""
    gates = {d.name: torch.ones(d.num_groups, requires_grad=True) for d in structure}
    handles = []
    for dimension in structure:

        def multiply(module, args, dimension=dimension):
            features = args[0].shape[-1]
            owners = torch.empty(features, dtype=torch.long)
            for group in range(dimension.num_groups):
                owners[dimension.consumer.positions(torch.tensor([group]), dimension.num_groups, features)] = group
            return (args[0] * gates[dimension.name][owners], *args[1:])

        handles.append(model.get_submodule(dimension.consumer.module).register_forward_pre_hook(multiply))
    gradients = torch.autograd.grad(logits(model, inputs).square().mean(), list(gates.values()))
    for handle in handles:
        handle.remove()
    return dict(zip(gates, gradients, strict=True))


@pytest.mark.parametrize(
    ("row", "kind"), by_layout(cases(ROWS), lambda value: value[0]), ids=lambda value: getattr(value, "name", value)
)
def test_the_importance_of_a_group_is_the_mean_square_of_its_gate_gradient_over_the_sequences(row, kind):
    model = row.model().requires_grad_(False)
    structure = describe(model, (kind,))
    inputs = row.inputs()
    single = [{name: value[index : index + 1] for name, value in inputs.items()} for index in range(3)]
    separate = [explicit_gates(model, structure, one) for one in single]
    probes = GateProbes(model, structure)
    (logits(model, inputs).flatten(1).square().mean(1)).sum().backward()
    found = probes.take()
    probes.remove()
    assert set(found) == {dimension.name for dimension in structure}
    for name, squares in found.items():
        expected = torch.stack([gradients[name] for gradients in separate]).square().mean(0)
        torch.testing.assert_close(squares, expected, rtol=1e-3, atol=1e-5 * expected.max().item())


@pytest.mark.parametrize(
    ("row", "kind"),
    by_layout(cases(LAYERWISE), lambda value: value[0]),
    ids=lambda value: getattr(value, "name", value),
)
def test_second_moments_gathered_block_by_block_are_those_of_whole_runs(row, kind):
    model = row.model()
    structure = describe(model, (kind,))
    sequences = list(row.inputs()["input_ids"])
    layerwise, whole = LayerwisePass(model, structure, sequences), WholeModelPass(model, sequences)
    for layer in range(len(structure.blocks)):
        for dimension in structure.of_layer(layer):
            expected = whole.features(dimension.consumer.module, moment=True).moment
            actual = layerwise.features(dimension.consumer.module, moment=True).moment
            torch.testing.assert_close(actual, expected, rtol=0.0, atol=1e-5 * expected.abs().max().item())
        layerwise.advance()
