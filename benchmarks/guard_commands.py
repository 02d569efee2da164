"""Figures of commands for ``benchmarks/guard.py``, each in its own process: the way to the first step, start-up."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from guard_record import Figures, Measured

from loraprune.measure.benchmark.timing import Times

COMMAND = (sys.executable, "-m", "loraprune")
CLEAN = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def cpu_seconds(command: list[str], *, status: int = 0) -> float:
    """CPU time of a process and of those that it waited for.

    Raises:
        RuntimeError: it ended with another status.
    """
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, **CLEAN}
    ) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        _, ended, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(ended)
    if process.returncode != status:
        raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}: {said}")
    return usage.ru_utime + usage.ru_stime


def until_first_line(command: list[str]) -> float:
    """CPU time that a process has taken when it prints its first line on standard error; it is then ended."""
    tick = os.sysconf("SC_CLK_TCK")
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, **CLEAN}
    ) as process:
        assert process.stderr is not None
        process.stderr.readline()
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        process.kill()
    return (int(fields[11]) + int(fields[12])) / tick  # utime and stime, the 14th and 15th fields of all


def start(options: argparse.Namespace, folder: Path) -> Figures:
    """CPU seconds of a wrong option, to the first line of a run, and of a plan for a 7B."""
    if not Path("/proc/self/stat").exists():
        return {}
    prune = [*COMMAND, "prune", "demo", "--data", "demo", "-o", str(folder / "start")]
    calls: dict[str, Callable[[], float]] = {
        "option-error": lambda: cpu_seconds([*prune, "--ratio", "2"], status=2),
        "first-line": lambda: until_first_line(prune),
        "plan-7b": lambda: cpu_seconds([*COMMAND, "plan", "llama-2-7b"]),
    }
    return {name: Measured(value=statistics.median(call() for _ in range(3))) for name, call in calls.items()}


def first_step(options: argparse.Namespace, folder: Path) -> Figures:
    """CPU time of ``loraprune prune`` up to its first step, beside loading with transformers and an SFTTrainer."""
    from guard_training import prepare_run

    model, rows = prepare_run(folder / "first", options)
    seconds: dict[str, list[float]] = {"prune": [], "bare": []}
    for turn in range(options.rounds + 1):
        for name, found in seconds.items():
            output = folder / f"first-{name}-{turn}"
            taken = cpu_seconds([sys.executable, __file__, name, str(model), str(rows), str(output)])
            if turn:  # the first turn reads the files of the libraries from disk
                found.append(taken)
    return {"first-step": Measured.ratio(Times(tuple(seconds["prune"])), Times(tuple(seconds["bare"])))}


def _ending_callback() -> Any:
    """A Trainer callback that ends the process when the first step begins."""
    from transformers import TrainerCallback

    class EndAtStep(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            os._exit(0)

    return EndAtStep


def _prune(model: str, rows: str, output: str) -> None:
    """The command, with nothing measured before training, up to its first step."""
    from loraprune.cli.main import main as command
    from loraprune.pruning.callback import PruningCallback

    PruningCallback.on_step_begin = _ending_callback().on_step_begin  # type: ignore[method-assign]
    options = ["--eval-sequences", "0", "--no-latency", "--repair", "none", "--max-steps", "20"]
    command(["prune", model, "--data", rows, "-o", output, *options])


def _bare(model: str, rows: str, output: str) -> None:
    """Load the same model and rows with transformers and datasets, and train with trl up to its first step."""
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    settings = SFTConfig(
        output_dir=output, max_steps=20, per_device_train_batch_size=8, max_length=1024, report_to="none", use_cpu=True
    )
    SFTTrainer(
        AutoModelForCausalLM.from_pretrained(model),
        args=settings,
        train_dataset=load_dataset("json", data_files=rows, split="train", cache_dir=output),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=LoraConfig(r=64, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[_ending_callback()()],
    ).train()


if __name__ == "__main__":
    {"prune": _prune, "bare": _bare}[sys.argv[1]](*sys.argv[2:])
