"""A run goes on with the same rows in the same order, in whatever form its data was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoints import write_texts
from tests.finished_run import CONFIG, QUICK
from tests.thinned import thinned
from transformers import TrainerCallback

from loraprune import PruneResult, RunOptions, prune

pytestmark = pytest.mark.filterwarnings("ignore:Training ended")


class _Stop(TrainerCallback):
    """Kills a run."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            raise RuntimeError("killed")


@pytest.mark.parametrize("streaming", thinned([True, False], keep=1))
def test_a_mixture_is_gone_on_with_as_if_nothing_had_happened(
    checkpoint: Path, tmp_path: Path, streaming: bool
) -> None:
    first, second = write_texts(tmp_path / "a.jsonl", 400), write_texts(tmp_path / "b.jsonl", 100)
    mixture = [f"{first}:0.7", f"{second}:0.3"]

    def run(output: Path | None, data: list[str], **given: Any) -> PruneResult:
        callbacks = given.pop("callbacks", ())
        options = RunOptions(output=output, latency=False, report=False, streaming=streaming, verify=False, **given)
        training = {**QUICK, "max_steps": 8, "save_steps": 2}
        return prune(str(checkpoint), data=data, config=CONFIG, training=training, options=options, callbacks=callbacks)

    output = tmp_path / "out"
    with pytest.raises(RuntimeError, match="killed"):
        run(output, mixture, callbacks=[_Stop()])
    with pytest.raises(ValueError, match=r"started differently .*data: "):
        run(output, [f"{first}:0.3", f"{second}:0.7"], resume=True)
    resumed, whole = run(output, mixture, resume=True), run(None, mixture)
    assert resumed.metrics["data"] == whole.metrics["data"]
    assert [fact["weight"] for fact in whole.metrics["data"]["sources"]] == [0.7, 0.3]
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
