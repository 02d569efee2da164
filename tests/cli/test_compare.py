from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import QUICK, Command
from tests.run_folders import entry, write_bench, write_results, write_run

from loraprune.cli.compare import compare_parser


@pytest.mark.slow
def test_real_runs_are_compared_with_each_other_and_with_the_dense_model(
    run: Command, checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two prunings, a sparse model and its recovery, in a table, on a page, in a picture and as JSON."""
    monkeypatch.chdir(tmp_path)
    for ratio in ("0.2", "0.4"):
        finished = run("prune", checkpoint, "--data", data, "-o", f"r{ratio}", "--ratio", ratio, *QUICK, "-q")
        assert finished.code == 0, finished.err
    oneshot = ["--criterion=wanda", "--sparsity=2:4", "--calibration-sequences=8", "--max-length=32", "--no-latency"]
    assert run("oneshot", checkpoint, "--data", data, "-o", "sparse", *oneshot, "-q").code == 0
    training = [option for option in QUICK if "calibration" not in option and "latency" not in option]
    assert run("recover", "sparse", "--data", data, "-o", "recovered", *training, "-q").code == 0

    finished = run(
        *("compare", "r0.2", "r0.4", "sparse", "recovered", "-o", "out/page.html"),
        *("--picture", "picture.svg", "--json", "out.json"),
    )
    assert finished.code == 0, finished.err
    assert finished.err == ""
    saved = json.loads(Path("out.json").read_text())
    (group,) = saved["groups"]
    records = {name: json.loads(Path(name, "pruning.json").read_text()) for name in ("r0.2", "r0.4", "recovered")}
    models = {model["name"]: model for model in group["models"]}
    assert list(models) == ["tiny-llama", "r0.2", "r0.4", "sparse", "recovered"]
    for name, record in records.items():
        assert models[name]["quality"] == record["metrics"]["pruned"]["perplexity"]
    assert models["tiny-llama"]["quality"] == pytest.approx(records["r0.2"]["metrics"]["dense"]["perplexity"])
    assert models["r0.4"]["costs"]["parameters"] == records["r0.4"]["metrics"]["pruned"]["parameters"]
    assert models["recovered"]["costs"]["seconds"] > models["sparse"]["costs"]["seconds"]
    assert models["recovered"]["what"] == "2:4 sparse by wanda, recovered"
    assert re.search(r"1 +r0\.2 +\d", finished.out)
    assert "\N{BLACK STAR} on the Pareto front" in finished.out
    assert Path("out/page.html").read_text().count("<figure") == 1
    assert Path("picture.svg").read_text().startswith("<?xml")


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    return [write_run(tmp_path / "a"), write_run(tmp_path / "b", parameters=300, perplexity=9.5)]


def test_the_table_fits_into_80_columns(run: Command, two: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    finished = run("compare", *two)
    assert max(len(line) for line in finished.out.splitlines() if line.startswith(" ")) <= 80
    for figure in ("4.00", "8.00", "9.50", "500", "300", "6.00 ms", "1 min 00 s", "prunable"):
        assert figure in finished.out
    assert "64-token segments" in finished.out


def test_nothing_is_written_unless_it_is_asked_for(run: Command, two: list[Path], tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    finished = run("compare", *two)
    assert finished.code == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert "add -o comparison.html" in finished.out
    assert "comparison.html" not in run("compare", *two, "-q").out


def test_options_reach_what_they_set(run: Command, two: list[Path], tmp_path: Path) -> None:
    results = write_results(tmp_path / "r.json", *map(entry, two))
    bench = write_bench(tmp_path / "bench.json", {str(path): 3.0 for path in two}, measure="decoding", batch=8)
    out = tmp_path / "c.json"
    finished = run(
        *("compare", *two, "--evaluation", results, "--bench", bench, "--quality", "wiki:bits_per_byte"),
        *("--latency", "decoding@8", "--names", "one", "two", "--json", out),
    )
    assert finished.code == 0, finished.err
    (group,) = json.loads(out.read_text())["groups"]
    assert group["quality"]["name"] == "wiki@64:bits_per_byte"
    assert [model["name"] for model in group["models"]] == ["one", "two"]
    assert [model["costs"]["latency"] for model in group["models"]] == pytest.approx([3.0, 3.0])
    assert "Other measures (--quality): wiki@64; perplexity" in " ".join(finished.out.split())


def test_groups_and_the_reason_for_them_are_printed(run: Command, tmp_path: Path) -> None:
    facts = {"num_tokens": 320, "segment_length": 32}
    finished = run("compare", write_run(tmp_path / "a"), write_run(tmp_path / "b", facts=facts))
    assert finished.code == 0
    assert "Group 1: " in finished.out
    assert "Group 2: " in finished.out
    assert "measured on 32-token segments" in finished.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "page.htm"], "does not end in .html"),
        (["--picture", "picture.gif"], "must end in one of .svg, .png, .pdf"),
        (["-o", "."], "is a folder"),
        (["--json", "a/pruning.json"], "would replace a file that is read"),
        (["-o", "x.html", "--json", "x.html"], "Two outputs have the same name"),
        (["--quality", "perplexty"], "Did you mean 'perplexity'"),
        (["--evaluation", "missing.json"], "cannot be read as results"),
        (["--bench", "missing.json"], "cannot be read as a benchmark"),
        (["missing"], "There is no folder missing"),
        (["--qualty", "perplexity"], "did you mean --quality?"),
        (["--quality"], "needs a value"),
    ],
)
def test_wrong_options_are_one_line_and_nothing_is_written(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a")
    before = sorted(tmp_path.rglob("*"))
    finished = run("compare", "a", *options)
    assert finished.code == 2
    assert finished.out == ""
    (line,) = finished.err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert sorted(tmp_path.rglob("*")) == before


def test_without_a_run_the_usage_is_shown(run: Command) -> None:
    finished = run("compare")
    assert finished.code == 2
    assert "usage: loraprune compare RUN" in finished.err


def test_runs_after_an_option_that_takes_them_are_told_apart(run: Command, two: list[Path]) -> None:
    finished = run("compare", "--evaluation", *two)
    assert finished.code == 2
    assert "Name runs before the options" in finished.err


def test_every_option_is_told_in_the_documentation() -> None:
    page = Path(__file__).parents[2].joinpath("docs/comparing-runs.md").read_text(encoding="utf-8")
    options = [
        option for action in compare_parser()._actions for option in action.option_strings if option.startswith("--")
    ]
    assert {option for option in options if option not in page} == {"--help", "--help-all", "--output", "--quiet"}


def test_records_alone_are_compared_without_torch(two: list[Path]) -> None:
    code = (
        "import sys; from loraprune.cli.main import main; "
        f"assert main(['compare', {str(two[0])!r}, {str(two[1])!r}]) == 0; "
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
