"""What processes of one run tell each other; with one process, all of it is nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from loraprune.cli.main import COMMANDS, IN_PARALLEL, main
from loraprune.processes import ranks

WORKER = """
import json, sys
import torch
from loraprune.calibration.features import FeatureStatistics
from loraprune.processes import ranks, shared_work

ranks.join()
import torch.distributed as dist
rank = dist.get_rank()
rows = torch.arange(12.0).view(6, 2)[rank :: 3]
statistics = FeatureStatistics(moment=False)
statistics.add(rows)
found = {
    "count": ranks.num_processes(),
    "main": ranks.is_main(),
    "summed": ranks.summed(torch.tensor([1.0, rank])).tolist(),
    "gradient": ranks.averaged_gradient(torch.tensor([float(rank)])).tolist(),
    "squares": ranks.mean_square(torch.tensor([9.0, 18.0]) * (rank + 1), rank + 1).tolist(),
    "any": [ranks.on_any(rank == 2), ranks.on_any(False)],
    "from main": ranks.from_main(lambda: f"made by {rank}"),
    "count so far": ranks.before_this(torch.tensor([1, 10 * rank])).tolist(),
    "total": ranks.total(2**24 + rank),
    "mean": statistics.over_processes_().mean.tolist(),
    "rows": statistics.rows,
}
with ranks.each_alone():
    found["alone"] = [ranks.num_processes(), ranks.own_part(5).stop, ranks.summed(torch.ones(1)).item()]
found["alone"].append(ranks.num_processes())
try:
    ranks.from_main(lambda: 1 / 0)
except (ZeroDivisionError, ranks.OtherProcessError) as error:
    found["error"] = type(error).__name__
told = []
found["each"] = [
    shared_work.made_of_each(
        count, lambda number: [number, rank], shared=shared, sizes=[2] * count, progress=lambda *step: told.append(step)
    )
    for count, shared in ((7, True), (2, True), (0, True), (2, False), (100, True))
]
found["told"] = told


def fail(number):
    if number == 4:
        raise KeyError("no such thing")
    return number


for name, work in (
    ("failed each", lambda: shared_work.made_of_each(200, fail, shared=True)),
    ("failed together", lambda: shared_work.together(lambda: [][rank] if rank == 2 else rank)),
    (
        "failed before sharing",
        lambda: shared_work.together(lambda: 1 / rank and shared_work.made_of_each(9, abs, shared=True)),
    ),
):
    try:
        work()
    except Exception as error:
        found[name] = [type(error).__name__, str(error), shared_work.is_told(error), shared_work.is_of_another(error)]
found["together"] = shared_work.together(lambda: rank)
ranks.wait()
ranks.leave()
print(json.dumps(found) + "\\n", end="", flush=True)
with open(f"{sys.argv[1]}.{rank}", "w") as file:
    json.dump(found, file)
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """What each of three processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "worker.py").write_text(WORKER, encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3"]
    done = subprocess.run([*launch, str(folder / "worker.py"), str(folder / "found")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(Path(f"{folder}/found.{rank}").read_text()) for rank in range(3)]


def test_all_three_meet_and_the_first_one_is_the_main_one(told: list[dict[str, object]]) -> None:
    assert [found["count"] for found in told] == [3, 3, 3]
    assert [found["main"] for found in told] == [True, False, False]


def test_sums_are_the_same_everywhere(told: list[dict[str, object]]) -> None:
    for found in told:
        assert found["summed"] == [3.0, 3.0]
        assert found["gradient"] == [1.0]
        # 54 over 6 sequences, of gradients that each process has three times too large.
        assert found["squares"] == pytest.approx([54 / 6 / 9, 108 / 6 / 9])
        assert found["any"] == [True, False]
        assert found["total"] == 3 * 2**24 + 3  # more than 32 bits count exactly
        assert found["from main"] == "made by 0"


def test_a_process_knows_what_those_before_it_count(told: list[dict[str, object]]) -> None:
    assert [found["count so far"] for found in told] == [[0, 0], [1, 0], [2, 10]]


def test_for_a_while_each_process_is_the_only_one(told: list[dict[str, object]]) -> None:
    assert [found["alone"] for found in told] == [[1, 5, 1.0, 3]] * 3


def test_statistics_are_those_of_all_rows(told: list[dict[str, object]]) -> None:
    for found in told:
        assert found["rows"] == 6
        assert found["mean"] == pytest.approx([5.0, 6.0])


def test_an_error_of_the_first_one_ends_the_others(told: list[dict[str, object]]) -> None:
    assert [found["error"] for found in told] == ["ZeroDivisionError", "OtherProcessError", "OtherProcessError"]


def test_work_is_dealt_out_in_turn_and_what_is_made_is_in_order(told: list[dict[str, object]]) -> None:
    for rank, found in enumerate(told):
        seven, two, none, alone, hundred = found["each"]  # type: ignore[misc]
        assert seven == [[number, number % 3] for number in range(7)]
        assert (two, none) == ([[0, 0], [1, 1]], [])
        assert alone == [[0, rank], [1, rank]]
        assert hundred == [[number, number % 3] for number in range(100)]
        assert found["together"] == rank
    assert told[0]["told"][:5] == [[6, 14], [12, 14], [14, 14], [4, 4], [2, 4]]  # type: ignore[index]


def test_an_error_of_one_process_is_raised_by_all_with_its_words(told: list[dict[str, object]]) -> None:
    words = "KeyError: 'no such thing'"
    assert [found["failed each"] for found in told] == [
        ["Exception", words, True, True],
        ["KeyError", "'no such thing'", True, False],
        ["Exception", words, True, True],
    ]
    assert [found["failed together"][:1] for found in told] == [["Exception"], ["Exception"], ["IndexError"]]  # type: ignore[index]
    zero, *others = (found["failed before sharing"] for found in told)
    assert zero == ["ZeroDivisionError", "division by zero", True, False]
    assert others == [["ArithmeticError", "division by zero", True, True]] * 2


@pytest.mark.parametrize(
    ("started", "own", "available", "message"),
    [("4", "0", 2, "4 processes were started on this machine, which has 2 GPUs"), (None, "3", 2, "4 processes were")],
)
def test_more_processes_than_gpus_are_refused(
    started: str | None, own: str, available: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", own)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if started is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", started)
    with pytest.raises(ValueError, match=message):
        ranks._take_gpu(available)


def test_each_process_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    ranks._take_gpu(2)
    assert taken == [1]


def test_one_process_is_a_group_of_one() -> None:
    values = torch.tensor([2.0, 3.0])
    assert ranks.num_processes() == ranks.launched() == 1
    assert ranks.is_main()
    assert ranks.summed(values) is values
    assert ranks.averaged_gradient(values) is values
    assert ranks.mean_square(values, 2).tolist() == [1.0, 1.5]
    assert ranks.on_any(True)
    assert not ranks.on_any(False)
    assert ranks.from_main(lambda: 7) == 7
    ranks.join()
    ranks.wait()
    ranks.leave()


def test_what_another_job_left_in_the_environment_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert ranks.launched() == 1
    assert ranks.is_main()


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in IN_PARALLEL])
def test_commands_that_cannot_share_their_work_say_so_once(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    for rank, said in (("0", f"error: loraprune {command} runs in one process, but 2 were started."), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        assert main([command, "x"]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert bool(error) == bool(said)
