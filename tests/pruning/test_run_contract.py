"""What every pruning run keeps to: runs that cut groups, runs that make weights zero, criteria of a test's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.pruning.runs import LENGTH, adapted_model, pruning_config

from loraprune import Plan, PruningConfig
from loraprune.layers.unwrap import base_model
from loraprune.pruning.resume import new_run
from loraprune.pruning.run import PruningRun

STEPS = 8


class LastGroups:
    """A criterion of a test's own: the last groups stay."""

    comparable = True
    every_step = True

    def attach(self, model: Any, structure: Any) -> None:
        self.structure = structure

    def scores(self, plan: Plan) -> dict[str, torch.Tensor]:
        return {d.name: torch.arange(1.0, plan.count(d.name) + 1) for d in self.structure}

    def detach(self) -> None:
        self.structure = None


CONFIGS = {
    "groups": {},
    "groups by weights alone": {"criterion": "magnitude"},
    "a criterion of one's own": {"criterion": LastGroups()},
    "gates": {"criterion": "compresso"},
    "masks": {"repair": "none", "apply": "mask"},
    "zeros": {"criterion": "pst", "repair": "none"},
}
EVERY_RUN = pytest.mark.parametrize("config", [pruning_config(**values) for values in CONFIGS.values()], ids=CONFIGS)


def calibration() -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    return [torch.randint(0, 50, (LENGTH,), generator=source) for _ in range(6)]


def begun(config: PruningConfig, run: PruningRun | None = None, model: Any = None) -> tuple[PruningRun, Any, Any]:
    model = adapted_model() if model is None else model
    run = new_run(model, config) if run is None else run
    run.micro_batches = 1
    run.begin(model, STEPS, calibration())
    return run, model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


def step(run: PruningRun, model: Any, optimizer: Any, number: int) -> Any:
    ids = torch.randint(0, 50, (2, LENGTH), generator=torch.Generator().manual_seed(number))
    model.train()
    model(input_ids=ids, labels=ids).loss.backward()
    run.observe(True, optimizer)
    optimizer.step()
    optimizer.zero_grad()
    return run.cut_if_due(number, optimizer)


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in base_model(model).state_dict().items()}


@EVERY_RUN
def test_a_run_reaches_its_ratio_by_cuts_that_only_shrink(config: PruningConfig) -> None:
    run, model, optimizer = begun(config)
    assert (run.ratio, run.records, run.total_steps) == (0.0, [], STEPS)
    assert len(run.pending) == len(run.schedule) > 0
    ratios = [0.0]
    for number in range(1, STEPS + 1):
        record = step(run, model, optimizer, number)
        if record is not None:
            assert (record.step, record.ratio) == (number, run.ratio)
        assert run.ratio >= ratios[-1]
        ratios.append(run.ratio)
    assert not run.pending
    assert run.ratio == pytest.approx(config.target.ratio, abs=0.03)
    assert step(run, model, optimizer, STEPS + 1) is None
    run.end()
    run.end()  # a second time does nothing
    assert not any(module._forward_pre_hooks or module._backward_hooks for module in model.modules())
    assert run.summary()
    assert model(input_ids=calibration()[0][None]).logits.isfinite().all()


@EVERY_RUN
def test_a_step_that_is_not_usable_teaches_nothing(config: PruningConfig) -> None:
    run, model, optimizer = begun(config)
    before = {name: value.clone() for name, value in run.tensors(model).items()}
    ids = calibration()[0][None]
    model(input_ids=ids, labels=ids).loss.backward()
    run.observe(False, optimizer)
    after = run.tensors(model)
    assert before.keys() == after.keys()
    # Gates count steps, so that a resumed run draws the same samples.
    assert all(torch.equal(after[name], value) for name, value in before.items() if not name.endswith("step"))
    run.end()


@EVERY_RUN
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_run_that_stopped_goes_on_bitwise(config: PruningConfig, stop: int) -> None:
    whole, model, optimizer = begun(config)
    first, stopped, running = begun(config)
    for number in range(1, stop + 1):
        step(whole, model, optimizer, number)
        step(first, stopped, running, number)
    values = first.values() | {
        "total_steps": first.total_steps,
        "cuts": [{**vars(record), "errors": [vars(error) for error in record.errors]} for record in first.records],
    }
    tensors = first.tensors(stopped)
    adapter = {name: p.detach().clone() for name, p in stopped.named_parameters() if p.requires_grad}
    memory = running.state_dict()
    again = adapted_model()
    run = type(first).restored(again, config, values, tensors)
    for name, parameter in again.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(adapter[name])
    run, again, optimizer_again = begun(config, run, again)
    optimizer_again.load_state_dict(memory)
    assert run.plan == first.plan
    assert run.records == first.records
    for number in range(stop + 1, STEPS + 1):
        step(whole, model, optimizer, number)
        step(run, again, optimizer_again, number)
    assert run.records == whole.records
    for key, value in state(model).items():
        assert torch.equal(state(again)[key], value), key
    first.end(), run.end(), whole.end()


@EVERY_RUN
def test_another_number_of_steps_is_refused(config: PruningConfig) -> None:
    run, model, _ = begun(config)
    with pytest.raises(ValueError, match="The run was started with 8 steps and would now have 9"):
        run.begin(model, 9, calibration())
    run.end()
