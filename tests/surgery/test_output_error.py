from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.models import tiny_model, token_ids
from tests.zoo import ROWS

from loraprune.structure.describe import describe
from loraprune.structure.dimensions import Structure
from loraprune.structure.plan import Plan
from loraprune.surgery.output_error import ConsumerError, OutputError, output_error, relative, target_error
from loraprune.surgery.refit import CutHooks, cut_and_repair_
from loraprune.surgery.repairs import repair_of

SEQUENCES = [token_ids(1, length, seed=length)[0] for length in (40, 33, 50)]
KEPT = [0, 2, 3, 7]


def layer(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, a weight, and other columns for those that stay; in 64 bits."""
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(200, 9)) @ random.normal(size=(9, 9))
    weight = random.normal(size=(5, 9))
    return inputs, weight, weight[:, KEPT] + 0.3 * random.normal(size=(5, 4))


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.as_tensor(array, dtype=torch.float64) for array in arrays]


def test_errors_from_the_second_moment_are_those_of_the_outputs() -> None:
    inputs, weight, after = layer()
    full, moment, repaired = tensors(weight, inputs.T @ inputs / len(inputs), after)
    found = output_error(full, moment, torch.tensor(KEPT), repaired)
    wanted = inputs @ weight.T
    whole = np.linalg.norm(wanted)
    cut, left = relative(found) or (0.0, 0.0)
    assert cut == pytest.approx(np.linalg.norm(wanted - inputs[:, KEPT] @ weight[:, KEPT].T) / whole, rel=1e-9)
    assert left == pytest.approx(np.linalg.norm(wanted - inputs[:, KEPT] @ after.T) / whole, rel=1e-9)


def test_without_a_repair_there_is_the_error_of_the_cut_alone() -> None:
    inputs, weight, _ = layer()
    full, moment = tensors(weight, inputs.T @ inputs / len(inputs))
    found = output_error(full, moment, torch.tensor(KEPT), None)
    assert found.repaired is None
    assert relative(found) == (pytest.approx(math.sqrt(found.cut / found.wanted)), None)


def test_a_cut_of_nothing_has_no_error() -> None:
    inputs, weight, _ = layer()
    full, moment = tensors(weight, inputs.T @ inputs)
    assert relative(output_error(full, moment, torch.arange(9), full)) == (0.0, 0.0)


def test_errors_against_another_target_are_those_of_the_outputs() -> None:
    inputs, weight, after = layer()
    target = np.random.default_rng(3).normal(size=(200, 5)) + inputs @ weight.T
    count = len(inputs)
    full, moment, repaired, cross = tensors(weight, inputs.T @ inputs / count, after, target.T @ inputs / count)
    found = target_error(full, moment, torch.tensor(KEPT), repaired, cross, float((target**2).sum()) / count)
    whole = np.linalg.norm(target)
    cut, left = relative(found) or (0.0, 0.0)
    assert cut == pytest.approx(np.linalg.norm(target - inputs[:, KEPT] @ weight[:, KEPT].T) / whole, rel=1e-9)
    assert left == pytest.approx(np.linalg.norm(target - inputs[:, KEPT] @ after.T) / whole, rel=1e-9)


def test_layers_add_up_and_one_without_a_repair_stays_at_its_cut() -> None:
    first, second = OutputError(wanted=4.0, cut=2.0, repaired=1.0), OutputError(wanted=6.0, cut=3.0)
    assert first + second == OutputError(wanted=10.0, cut=5.0, repaired=4.0)
    assert (second + second).repaired is None
    assert first.times(3) == OutputError(wanted=12.0, cut=6.0, repaired=3.0)


@pytest.mark.parametrize(
    "error",
    [OutputError(wanted=0.0, cut=0.0), OutputError(wanted=math.nan, cut=1.0), OutputError(wanted=1.0, cut=math.inf)],
    ids=["nothing was wanted", "NaN", "Inf"],
)
def test_what_is_no_share_is_none(error: OutputError) -> None:
    assert relative(error) is None


def watched(model: Any, names: list[str], ids: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and outputs of modules on one sequence, in 64 bits."""
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def hook(name: str) -> Any:
        def keep(module: Any, args: Any, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            seen[name] = args[0].flatten(0, -2).double(), output.flatten(0, -2).double()

        return keep

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    with torch.no_grad():
        model(input_ids=ids[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


BLOCK, OUT, DOWN = "model.layers.0", "model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj"


def share(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Of differences from what was wanted, over all sequences."""
    wanted = sum(float(target.square().sum()) for target, _ in pairs)
    return math.sqrt(sum(float((target - found).detach().square().sum()) for target, found in pairs) / wanted)


@pytest.mark.parametrize("repair", ["refit", "stream"])
def test_a_cut_tells_the_errors_of_the_outputs_of_its_consumers(repair: str) -> None:
    """Golden, on the first block: from what hooks see in the uncut model and in the cut one."""
    dense = tiny_model("llama").eval()
    model, structure = copy.deepcopy(dense), describe(dense)
    before = Plan.full(structure)
    after = Plan({d.name: tuple(range(0, d.num_groups, 2)) for d in structure})
    noted: list[ConsumerError] = []
    cut_and_repair_(
        model,
        structure,
        before,
        after,
        calibration=SEQUENCES,
        repair=repair_of(repair),
        hooks=CutHooks(noted=noted.append),
    )
    assert [(error.kind, error.layer) for error in noted] == [
        (d.kind, d.layer) for layer in (0, 1) for d in structure.of_layer(layer)
    ]
    attention, ffn = noted[:2]
    heads, down = (columns(structure, after, f"layers.0.{kind}") for kind in ("heads", "channels"))
    plain_o, fixed_o, plain_d, fixed_d = [], [], [], []
    for ids in SEQUENCES:
        was, now = watched(dense, [BLOCK, OUT, DOWN], ids), watched(model, [BLOCK, OUT, DOWN], ids)
        x, wanted = was[OUT]
        plain_o.append((wanted, x[:, heads] @ dense.get_submodule(OUT).weight.double()[:, heads].T))
        fixed_o.append((wanted, now[OUT][1]))
        y = now[DOWN][0]
        # The channels as they were on the attention as it is now: what enters the layer before its own cut.
        whole = y_before_cut(dense, model, ids)
        weight = dense.get_submodule(DOWN).weight.double()
        target = whole @ weight.T
        if repair == "stream":
            target = was[BLOCK][1] - (now[BLOCK][0] + now[OUT][1])
        plain_d.append((target, y @ weight[:, down].T))
        fixed_d.append((target, now[DOWN][1]))
    assert attention.cut == pytest.approx(share(plain_o), rel=1e-3)
    assert attention.repaired == pytest.approx(share(fixed_o), rel=1e-3)
    assert ffn.cut == pytest.approx(share(plain_d), rel=1e-3)
    assert ffn.repaired == pytest.approx(share(fixed_d), rel=1e-3)
    assert attention.repaired < attention.cut
    assert ffn.repaired < ffn.cut


def columns(structure: Structure, plan: Plan, name: str) -> torch.Tensor:
    """Columns of a consumer that stay."""
    dimension = next(dimension for dimension in structure if dimension.name == name)
    consumer, groups = dimension.consumer, dimension.num_groups
    return consumer.positions(torch.as_tensor(plan.kept[name]), groups, groups * consumer.group_size)


def y_before_cut(dense: Any, model: Any, ids: torch.Tensor) -> torch.Tensor:
    """What enters the uncut FFN's down projection behind the attention of the cut model."""
    hybrid = copy.deepcopy(dense)
    hybrid.model.layers[0].self_attn = copy.deepcopy(model.model.layers[0].self_attn)
    return watched(hybrid, [DOWN], ids)[DOWN][0]


@pytest.mark.parametrize("repair", ["bias", "none"])
def test_repairs_without_a_second_moment_tell_nothing(repair: str) -> None:
    model = tiny_model("llama", attention_bias=True, mlp_bias=True)
    structure = describe(model)
    noted: list[ConsumerError] = []
    after = Plan({d.name: tuple(range(0, d.num_groups, 2)) for d in structure})
    cut_and_repair_(
        model,
        structure,
        Plan.full(structure),
        after,
        calibration=SEQUENCES,
        repair=repair_of(repair),
        hooks=CutHooks(noted=noted.append),
    )
    assert noted == []


def test_experts_count_as_one_layer() -> None:
    model = next(row for row in ROWS if row.name == "mixtral").model()
    structure = describe(model)
    noted: list[ConsumerError] = []
    after = Plan(
        {
            d.name: tuple(g for g in range(d.num_groups) if g % 2 == 0) if d.kind == "expert_channels" else kept
            for d, kept in ((d, tuple(range(d.num_groups))) for d in structure)
        }
    )
    cut_and_repair_(
        model, structure, Plan.full(structure), after, calibration=SEQUENCES, hooks=CutHooks(noted=noted.append)
    )
    assert [error.kind for error in noted] == ["expert_channels"] * 2
    assert all(0.0 < error.repaired < error.cut < 1.0 for error in noted if error.repaired is not None)
