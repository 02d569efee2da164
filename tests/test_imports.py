"""What ``import loraprune`` costs, and what it gives."""

from __future__ import annotations

import itertools
import subprocess
import sys
from inspect import isclass
from pathlib import Path

import pytest
from tests.thinned import thinned

import loraprune

TIMED = """
import sys, time
started = time.perf_counter()
import loraprune
taken = time.perf_counter() - started
print(taken, *(name for name in ("torch", "transformers", "peft", "trl") if name in sys.modules))
"""


def test_the_import_is_instant_and_loads_none_of_the_large_libraries() -> None:
    for last in (False, False, True):
        seconds, *loaded = subprocess.run(
            [sys.executable, "-c", TIMED], capture_output=True, text=True, check=True
        ).stdout.split()
        assert loaded == []
        if float(seconds) < 0.2:
            break
        assert not last, f"{seconds} s in the third try, too"


REFUSED = """
import sys, time
from loraprune.cli.main import main
code = main(sys.argv[1:])
taken = time.process_time()  # other work on the machine does not count
print(code, taken, *(name for name in ("torch", "transformers", "peft", "trl") if name in sys.modules))
"""


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("prune model --data rows.jsonl -o out --ratio much", "--ratio: 'much' is not a number"),
        ("prune model --data rows.jsonl -o out --apply glue", "--apply: 'glue' is not one of"),
        ("prune model --data rows.jsonl -o out --ratio 3", "ratio is 3.0; it must lie in [0, 1)"),
        ("prune model --data rows.jsonl -o out --lora-alpha -5", "lora_alpha is -5; it must lie in [1, 1000000]"),
        (
            "prune model --data rows.jsonl -o out --taylor-form mix",
            "taylor_form is an option of the criterion 'taylor'",
        ),
        ("oneshot model --data rows.jsonl -o out --ratio nan", "ratio is nan; it must lie between 0 and 1"),
        ("oneshot model -o out --sparsity 2:1", "N must be at least 1 and less than M"),
        (
            "prune model --data rows.jsonl --max-steps 5",
            "The output is missing. Name the folder of the result with -o.",
        ),
        ("bench model --profile trainin", "Did you mean 'training'?"),
        ("eval model --dtype float8", "dtype is 'float8'; choose one of"),
        ("plan llama-2-7b --strategy ddp", "You passed strategy, and there is one GPU"),
        ("compare-criteria model --data rows.jsonl --criteria lora", "needs at least two criteria"),
        ("prune llama-2-7b --data rows.jsonl -o out", "llama-2-7b is a preset"),
        ("recover model -o out", "The data is missing. Name the training data with --data."),
    ],
)
def test_mistakes_in_options_of_ours_are_told_of_at_once(command: str, message: str) -> None:
    for last in (False, True):
        done = subprocess.run([sys.executable, "-c", REFUSED, *command.split()], capture_output=True, text=True)
        assert message in done.stderr
        code, seconds, *loaded = done.stdout.split()
        assert (code, loaded) == ("2", [])
        if float(seconds) < 0.5:
            break
        assert not last, f"{seconds} s in the second try, too"


LOADED = """
import os, sys
from loraprune.cli.main import main
before = dict(os.environ)
code = main(sys.argv[1:])
loaded = sorted({"datasets", "peft", "torch._inductor.compile_fx", "trl"} & set(sys.modules))
print(code, *loaded, *({"TORCHDYNAMO_DISABLE"} & set(os.environ) - set(before)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("command", "needed"),
    thinned([("inspect llama-2-7b", ""), ("plan llama-3.2-1b", "peft"), ("verify demo", "")]),
)
def test_a_command_imports_no_large_library_that_it_does_not_need(command: str, needed: str) -> None:
    done = subprocess.run([sys.executable, "-c", LOADED, *command.split()], capture_output=True, text=True)
    first, *_, last = done.stderr.splitlines()
    assert first == f"loraprune {loraprune.__version__} · {command}"
    assert last.split() == ["0", *needed.split()]


UNTIL_IMPORTS = """
import sys
sys.modules["transformers"] = None
from loraprune.cli.main import main
try:
    main(sys.argv[1:])
except ModuleNotFoundError:
    print("torch" in sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize(
    "command",
    thinned(
        [
            "prune model --data demo -o out",
            "eval model",
            "plan model",
            "oneshot model --data demo --ratio 0.5 -o out",
            "bench model",
            "recover model --data demo -o out",
            "compare-criteria model --data demo",
            "inspect model",
            "demo",
            "verify model",
            "report model",
        ],
        3,
    ),
)
def test_a_command_says_that_it_begins_before_torch_is_imported(command: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNTIL_IMPORTS, *command.split()], capture_output=True, text=True, cwd=tmp_path
    )
    words = " ".join(itertools.takewhile(lambda word: not word.startswith("-"), command.split()))
    assert done.stderr.splitlines() == [f"loraprune {loraprune.__version__} · {words}", "False"]


@pytest.mark.parametrize("name", sorted(loraprune._HOMES))
def test_every_public_name_is_found_where_it_is_said_to_be(name: str) -> None:
    found = getattr(loraprune, name)
    if isclass(found) or callable(found):
        assert found.__name__ == name
        assert found.__doc__


def test_the_list_of_public_names_is_complete() -> None:
    assert set(loraprune.__all__) == {*loraprune._HOMES, "__version__"}
    assert {name for name in loraprune.__all__ if name.endswith("Error")} >= {
        "CheckpointError",
        "InterruptedRunError",
        "OutputExistsError",
        "RuntimeFormatError",
        "TrainingDivergedError",
        "UnsupportedArchitectureError",
    }
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = loraprune.nothing
