"""The experiments: one command writes results and a picture, goes on where it stopped, and runs what it says."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "experiments"
NAMES = ("methods", "joint", "frequency", "average", "end_of_pruning", "calibration")


@pytest.fixture(autouse=True)
def as_scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Scripts find each other in their own folder."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if Path(str(getattr(sys.modules[name], "__file__", None) or "/")).parent == FOLDER:
            del sys.modules[name]


class FakeRuns:
    """Stands for runs that take minutes: counts them, and gives a perplexity that depends on seed and ratio."""

    def __init__(self) -> None:
        self.made: list[tuple[str, int]] = []

    def __call__(self, subject: Any, run: Any, steps: int, seed: int) -> dict[str, Any]:
        self.made.append((run.name, seed))
        value = 10.0 + seed + 10 * run.values.get("ratio", 0.5)
        return {"removed": 0.5, "parameters": 100, "perplexity": {"in-domain": value}}


def start(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    """Run a script as from the command line."""
    given = ("--models", "demo", "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache.jsonl"), *options)
    # No shared folder: the bundled model needs none.
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--shared", str(tmp_path / "none"), *given])
    importlib.import_module(name).main()


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_writes_rows_and_a_picture(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeRuns()
    monkeypatch.setattr(importlib.import_module("laboratory"), "pruned_and_measured", fake)
    start(name, tmp_path, monkeypatch, "--seeds", "1", "2")
    results = json.loads((tmp_path / "out" / f"{name}.json").read_text())
    assert {row["seed"] for row in results["rows"]} == {1, 2}
    assert results["command"].startswith(f"python experiments/{name}.py")
    assert "<svg" in (tmp_path / "out" / f"{name}.svg").read_text()
    # Mean and sample deviation of the seeds, 16 and 17 at half.
    assert "16.50 ± 0.71" in capsys.readouterr().out


def test_finished_runs_are_not_run_again_and_more_seeds_are_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeRuns()
    monkeypatch.setattr(importlib.import_module("laboratory"), "pruned_and_measured", fake)
    start("joint", tmp_path, monkeypatch, "--seeds", "1")
    first = list(fake.made)
    start("joint", tmp_path, monkeypatch, "--seeds", "1", "2")
    assert fake.made[: len(first)] == first
    assert {seed for _, seed in fake.made[len(first) :]} == {2}
    # The cache is a convenience: results that are there are enough.
    (tmp_path / "cache.jsonl").unlink()
    start("joint", tmp_path, monkeypatch, "--seeds", "1", "2")
    assert len(fake.made) == 2 * len(first)


def test_experiments_share_the_runs_that_they_have_in_common(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRuns()
    monkeypatch.setattr(importlib.import_module("laboratory"), "pruned_and_measured", fake)
    start("average", tmp_path, monkeypatch, "--seeds", "1")
    before = len(fake.made)
    start("frequency", tmp_path, monkeypatch, "--seeds", "1")
    # λ = 0.9 every 10 steps is the paper's recipe in both.
    assert len(fake.made) == before + 7


def test_a_missing_folder_of_checkpoints_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"no folder .*none.*--models demo"):
        start("joint", tmp_path, monkeypatch, "--models", "stories260K")


@pytest.mark.full
@pytest.mark.slow
def test_every_kind_of_run_really_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laboratory = importlib.import_module("laboratory")
    monkeypatch.setattr(laboratory, "SEGMENTS", 2)
    options = laboratory.parser(None).parse_args(
        ["--models", "demo", "--shared", str(tmp_path / "none"), "--cache", str(tmp_path / "cache.jsonl")]
    )
    (subject,) = laboratory.subjects(options)
    shot = {"criterion": "magnitude", "repair": "none", "calibration_sequences": 2}
    small = {"calibration_sequences": 2, "cuts": 1}
    dense, joint, one_shot, separate = (
        laboratory.pruned_and_measured(subject, laboratory.Run(name="", how=how, values=values), steps, 1)
        for how, values, steps in (
            ("dense", {}, 0),
            ("joint", small, 2),
            ("one shot", shot, 0),
            ("separate", shot, 1),
        )
    )
    assert dense["removed"] == 0.0
    assert joint["removed"] == pytest.approx(0.5, abs=0.02)
    assert separate["removed"] == one_shot["removed"] == pytest.approx(0.5, abs=0.02)
    assert separate["parameters"] == one_shot["parameters"] < dense["parameters"]
    assert dense["perplexity"]["in-domain"] < joint["perplexity"]["in-domain"] < one_shot["perplexity"]["in-domain"]
    assert separate["perplexity"]["in-domain"] < one_shot["perplexity"]["in-domain"]


def test_tables_are_made_of_what_is_known_without_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeRuns()
    monkeypatch.setattr(importlib.import_module("laboratory"), "pruned_and_measured", fake)
    start("joint", tmp_path, monkeypatch, "--seeds", "1")
    made = len(fake.made)
    capsys.readouterr()
    start("joint", tmp_path, monkeypatch, "--seeds", "1", "2", "--known")
    assert len(fake.made) == made
    assert "| prune, then tune | 16.00 |" in capsys.readouterr().out
    start("frequency", tmp_path, monkeypatch, "--seeds", "1", "--known")
    assert len(fake.made) == made
    assert "| demo | LoRAPrune (paper) | – |" in capsys.readouterr().out


def test_agreement_leaves_out_ratios_at_which_no_group_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = importlib.import_module("agreement")

    def compared(subject: Any, seed: int) -> dict[str, Any]:
        rows = [
            {
                "first": pair[0],
                "second": pair[1],
                "kind": "heads",
                "ratio": ratio,
                "shared": None if ratio == 0.1 else 0.7 + 0.1 * seed,
                "by_chance": None if ratio == 0.1 else 0.25,
            }
            for pair in script.PAIRS
            for ratio in script.RATIOS
        ]
        return {"agreement": rows}

    monkeypatch.setattr(script, "agreement", compared)
    start("agreement", tmp_path, monkeypatch, "--seeds", "1", "2")
    shown = capsys.readouterr().out
    assert "| demo | heads | lora with taylor | – | 0.85 ± 0.07 |" in shown
    assert "| demo | heads | by chance | – | 0.25 ± 0.00 |" in shown
    assert "<svg" in (tmp_path / "out" / "agreement.svg").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_published_rows_are_found_by_the_runs_that_made_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys hold options by name: a renamed option must not make results unknown."""
    shared = FOLDER.parents[1] / "shared" / "data"
    if not shared.is_dir():
        pytest.skip("needs the checkpoints and texts of ../shared/data")
    published = json.loads((FOLDER.parent / "docs" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    asked: set[str] = set()
    laboratory = importlib.import_module("laboratory")
    measure = laboratory.Laboratory.measure

    def noted(self: Any, key: Any, made: Any) -> Any:
        asked.add(json.dumps(key, sort_keys=True))
        return measure(self, key, made)

    monkeypatch.setattr(laboratory.Laboratory, "measure", noted)
    (tmp_path / f"{name}.json").write_text(json.dumps(published), encoding="utf-8")
    words = [*published["command"].split()[2:], "--known", "--shared", str(shared), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words, "--cache", str(tmp_path / "cache.jsonl")])
    importlib.import_module(name).main()
    assert {row["key"] for row in published["rows"]} <= asked


@pytest.mark.full
@pytest.mark.slow
def test_the_standard_work_cuts_tunes_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    standard = importlib.import_module("standard")
    monkeypatch.setattr(standard, "SMALL", standard.Budget(steps=1, batch=2, length=16, calibration=16))
    monkeypatch.setattr(standard, "MEASURED", 512)
    monkeypatch.setattr(standard, "SEGMENT", 128)
    given = ("--seeds", "1", "--ratios", "0.5", "--rates", "0.001", "--ranks", "4", "8", "--methods", "Wanda")
    start("standard", tmp_path, monkeypatch, *given)
    rows = json.loads((tmp_path / "out" / "standard.json").read_text())["rows"]
    assert [(row["how"], row.get("rank")) for row in rows] == [
        ("dense", None),
        ("cut", None),
        ("tuned", 4),
        ("tuned", 8),
    ]
    dense, cut, *tuned = (row["perplexity"]["in-domain"] for row in rows)
    assert cut > dense
    best = min(tuned)
    printed = capsys.readouterr().out
    assert f"| Wanda | 50% | {in_words(cut)} | {in_words(best)} |" in printed

    monkeypatch.setattr(standard.loraprune, "oneshot", None)
    monkeypatch.setattr(standard.loraprune, "recover", None)
    start("standard", tmp_path, monkeypatch, *given)  # all is known
    assert json.loads((tmp_path / "out" / "standard.json").read_text())["rows"] == rows


def in_words(value: float) -> str:
    return importlib.import_module("laboratory").in_words([value])  # type: ignore[no-any-return]


def test_rows_of_another_experiment_keep_the_names_of_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("laboratory"), "pruned_and_measured", FakeRuns())
    start("methods", tmp_path, monkeypatch, "--seeds", "1")
    path = tmp_path / "out" / "methods.json"
    path.write_text(path.read_text().replace("loraprune (default)", "an older name"))
    (tmp_path / "out" / "smollm2.json").write_text('{"rows": [{"method": "a row without a key"}]}')
    start("methods", tmp_path, monkeypatch, "--seeds", "1", "--known")
    assert {row["name"] for row in json.loads(path.read_text())["rows"]} >= {"loraprune (default)", "dense"}


@pytest.mark.parametrize("name", [*NAMES, "iterations", "agreement", "smollm2"])
def test_a_picture_of_the_repository_has_a_dark_twin(name: str) -> None:
    folder, pictures = FOLDER.parent / "docs" / "results", importlib.import_module("pictures")
    light, dark = ((folder / f"{name}{end}.svg").read_text() for end in ("", "-dark"))
    assert pictures.INK in light  # text says its color, or it would be black on a dark page
    for color, changed in pictures.DARK.items():
        assert color not in dark
        assert light.count(color) == dark.count(changed)
    assert re.findall(r">([^<>]+)</text>", light) == re.findall(r">([^<>]+)</text>", dark)
    assert f'srcset="{name}-dark.svg"' in (folder / "README.md").read_text()


def test_the_picture_of_methods_has_the_dense_line_and_the_figures_of_its_table() -> None:
    folder = FOLDER.parent / "docs" / "results"
    shown = re.findall(r">([^<>]+)</text>", (folder / "methods.svg").read_text())
    assert shown.count("dense") == 1
    assert {"loraprune (default)", "LoRAPrune (paper)"} <= set(shown)
    assert len({name.lower() for name in shown}) == len(set(shown))
    assert {"16.3", "3.48", "27.5"} <= set(shown)  # loraprune (default) at 50 % of each model


def test_the_error_bars_of_agreement_are_inside_of_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    agreement = importlib.import_module("agreement")
    rows = json.loads((FOLDER.parent / "docs" / "results" / "agreement.json").read_text())["rows"]
    found = []
    monkeypatch.setattr(importlib.import_module("pictures"), "save", lambda figure, path: found.append(figure))
    agreement.draw(rows, ["babyllama105"], Path("unused.svg"))
    (axes,) = found[0].axes
    low, high = axes.get_ylim()
    ends = [y for bars in axes.collections for segment in bars.get_segments() for _, y in segment]
    assert ends
    assert low <= min(ends) <= max(ends) <= high


def test_smollm2_is_drawn_from_all_rows_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = json.loads((FOLDER.parent / "docs" / "results" / "smollm2.json").read_text())
    results["rows"].append({"method": "a new peer", "steps": 60, "parameters": 90_000_000, "perplexity": 141.5})
    (tmp_path / "smollm2.json").write_text(json.dumps(results))
    monkeypatch.setattr(sys, "argv", ["smollm2.py", "--out", str(tmp_path)])
    importlib.import_module("smollm2").main()
    drawn = (tmp_path / "smollm2.svg").read_text()
    assert "a new peer 141.5" in drawn
    ours = [row["perplexity"] for row in results["rows"] if row["method"] == "loraprune" and row["steps"]]
    assert f"loraprune {max(ours):.1f}" in drawn
    assert "dense 20.9" in drawn
    assert (tmp_path / "smollm2-dark.svg").is_file()


def test_labels_of_smollm2_do_not_lie_on_each_other() -> None:
    smollm2 = importlib.import_module("smollm2")
    assert smollm2.apart([10.0, 11.0, 100.0]) == [10.0, 10.0 * smollm2.ROOM, 100.0]


def test_the_pictures_in_the_repository_are_those_of_its_rows(tmp_path: Path) -> None:
    results = FOLDER.parent / "docs" / "results"
    (tmp_path / "smollm2.json").write_text((results / "smollm2.json").read_text())
    smollm2 = importlib.import_module("smollm2")
    figure = smollm2.draw(json.loads((tmp_path / "smollm2.json").read_text()))
    importlib.import_module("pictures").save(figure, tmp_path / "smollm2.svg")
    shown = [re.findall(r">([^<>]+)</text>", (folder / "smollm2.svg").read_text()) for folder in (tmp_path, results)]
    assert shown[0] == shown[1]
