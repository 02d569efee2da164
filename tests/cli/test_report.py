"""What a run leaves to look at afterwards: a report that can be made again, a card with its recipe, live logs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cli.conftest import QUICK, Command
from tests.thinned import thinned

from loraprune.checkpoint.fingerprint import folder_fingerprint
from loraprune.cli.oneshot import ONESHOT_OPTIONS
from loraprune.cli.prune import PRUNE_OPTIONS
from loraprune.cli.training_options import training_fields
from loraprune.measure.evaluation.results import Entry, Results
from loraprune.record.report_data import ReportData


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "pruning.json").read_text())
    return found


def entry(model: Path, value: float) -> Entry:
    return Entry(
        model=str(model),
        fingerprint=folder_fingerprint(model),
        kind="perplexity",
        name="wikitext2",
        settings={"max_length": 32, "stride": None},
        values={"perplexity": value, "num_tokens": 320},
    )


def results(path: Path, *entries: Entry) -> Path:
    path.write_text(Results(entries).to_text())
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, data: Path) -> Path:
    """A run of six steps, the last logged one of which is the fifth."""
    from loraprune.cli.main import main

    out = tmp_path_factory.mktemp("finished") / "out"
    options = [*QUICK, "--max-steps=6", "--ratio=0.4", "--learning-rate=1e-3", "--cuts=2", "--keep-layers=-1", "-q"]
    assert main(["prune", str(checkpoint), "--data", str(data), "-o", str(out), *options]) == 0
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "out"))


class TestRecord:
    def test_the_record_holds_what_the_report_shows(self, finished: Path) -> None:
        metrics = record(finished)["metrics"]
        cuts, errors = metrics["pruning"]["cuts"], metrics["pruning"]["refit_errors"]
        assert [cut["stability"].keys() for cut in cuts] == [set(), {"heads", "channels"}]
        assert all(cut["seconds"] > 0.0 for cut in cuts)
        assert {error["step"] for error in errors} == {cut["step"] for cut in cuts}
        assert all(0.0 <= error["repaired"] <= error["cut"] for error in errors)
        assert list(metrics["phases"]) == [
            "loading",
            "measuring the dense model",
            "preparing to train",
            "training before the cuts",
            "cutting and repairing",
            "training between cuts",
            "training after the cuts",
            "merging",
            "measuring the result",
            "writing",
        ]
        assert 0.5 * metrics["seconds"] < sum(metrics["phases"].values()) < 1.1 * metrics["seconds"]

    def test_the_report_holds_the_same(self, finished: Path) -> None:
        data, metrics = ReportData.from_json(finished / "report.json"), record(finished)["metrics"]
        assert len(data.refit_errors) == len(metrics["pruning"]["refit_errors"])
        assert data.phases == metrics["phases"]
        assert [cut.stability for cut in data.cuts] == [cut["stability"] for cut in metrics["pruning"]["cuts"]]
        widths = {(item.kind, item.layer): item.kept for item in data.layers}
        for item in data.maps:
            assert item.groups_per_cell == 1
            assert sum(item.kept) == widths[item.kind, item.layer]

    def test_steps_after_the_last_log_count(self, finished: Path) -> None:
        data = ReportData.from_json(finished / "report.json")
        assert (data.history[-1].step, data.steps) == (5, 6)
        assert "over 6 training steps" in (finished / "report.html").read_text()


class TestReportAgain:
    def test_results_of_both_models_are_added(self, run: Command, out: Path, checkpoint: Path, tmp_path: Path) -> None:
        file = results(tmp_path / "r.json", entry(checkpoint, 5.25), entry(out, 6.5))
        done = run("report", out, "--evaluation", file)
        assert done.code == 0, done.err
        assert done.out.splitlines() == [
            f"dense:    {checkpoint} (wikitext2@32)",
            f"pruned:   {out} (wikitext2@32)",
            f"Report:   {out / 'report.html'}",
        ]
        row = ReportData.from_json(out / "report.json").rows[-1]
        assert (row.label, row.dense, row.pruned) == ("wikitext2@32", 5.25, 6.5)
        page = (out / "report.html").read_text()
        assert "wikitext2@32" in page
        again = run("report", out, "--evaluation", file)
        assert again.code == 0
        assert (out / "report.html").read_text() == page

    def test_without_results_the_report_is_the_same(self, run: Command, out: Path) -> None:
        before = (out / "report.html").read_text(), (out / "report.json").read_text()
        assert run("report", out).code == 0
        assert ((out / "report.html").read_text(), (out / "report.json").read_text()) == before

    def test_results_beside_the_run_are_picked_up(self, run: Command, out: Path) -> None:
        results(out / "evaluation.json", entry(out, 6.5))
        assert run("report", out).out.startswith(f"pruned:   {out} (wikitext2@32)\n")
        row = ReportData.from_json(out / "report.json").rows[-1]
        assert (row.dense, row.pruned) == (None, 6.5)

    def test_another_page_leaves_the_first_as_it_is(self, run: Command, out: Path, tmp_path: Path) -> None:
        results(out / "evaluation.json", entry(out, 6.5))
        before = (out / "report.html").read_text()
        page = tmp_path / "pages" / "again.html"
        assert run("report", out / "report.json", "-o", page).code == 0
        assert (out / "report.html").read_text() == before
        assert "wikitext2@32" in page.read_text()
        assert page.with_suffix(".json").is_file()

    def test_the_card_is_brought_up_to_date_on_request(self, run: Command, out: Path, checkpoint: Path) -> None:
        results(out / "evaluation.json", entry(out, 6.5), entry(checkpoint, 5.25))
        before = (out / "README.md").read_text()
        assert run("report", out).code == 0
        assert (out / "README.md").read_text() == before
        assert run("report", out, "--card").out.endswith(f"Card:     {out / 'README.md'}\n")
        line = "| wikitext2@32 (perplexity, 320 tokens) | 5.25 | 6.50 |\n"
        assert (out / "README.md").read_text().replace(line, "") == before

    def test_a_run_without_a_report_gets_one_from_its_record(self, run: Command, out: Path) -> None:
        before = ReportData.from_json(out / "report.json")
        (out / "report.json").unlink()
        assert run("report", out).code == 0
        after = ReportData.from_json(out / "report.json")
        for name in ("title", "headline", "rows", "steps", "cuts", "layers", "maps", "refit_errors", "phases"):
            assert getattr(after, name) == getattr(before, name), name
        assert after.importance == {}

    def test_a_report_of_a_version_that_knew_less_is_read(self, run: Command, out: Path) -> None:
        whole = ReportData.from_json(out / "report.json")
        values = json.loads((out / "report.json").read_text())
        for name in ("steps", "maps", "refit_errors", "scores", "phases"):
            del values[name]
        (out / "report.json").write_text(json.dumps(values))
        assert run("report", out).code == 0
        assert ReportData.from_json(out / "report.json").maps == whole.maps


class TestNoPicture:
    """A report that cannot be drawn: the run is worth more."""

    @pytest.mark.parametrize("command", thinned(["prune", "oneshot"]))
    def test_the_checkpoint_is_saved_and_the_report_can_be_made_later(
        self, run: Command, checkpoint: Path, data: Path, tmp_path: Path, command: str
    ) -> None:
        def fail(*arguments: Any, **named: Any) -> None:
            raise RuntimeError("no font\nat all")

        out = tmp_path / "out"
        quick = QUICK if command == "prune" else QUICK[1:2] + QUICK[3:]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("matplotlib.figure.Figure.savefig", fail)
            done = run(command, checkpoint, "--data", data, "-o", out, "--ratio=0.4", *quick, "-q")
        assert done.code == 0, done.err
        assert done.err.splitlines() == [
            "warning: the report could not be drawn (RuntimeError: no font). The result is complete; "
            f"try again: loraprune report {out}"
        ]
        assert "Report:" not in done.out
        assert {"config.json", "model.safetensors", "pruning.json", "README.md"} <= {p.name for p in out.iterdir()}
        assert not (out / "report.html").exists()
        assert run("report", out).code == 0
        assert "Importance of channels" in (out / "report.html").read_text()


class TestBadInput:
    def error(self, run: Command, *arguments: str | Path) -> str:
        done = run("report", *arguments)
        assert done.code == 2
        assert done.out == ""
        (line,) = done.err.splitlines()
        return line

    def test_a_folder_that_is_none(self, run: Command, tmp_path: Path) -> None:
        assert "There is no folder" in self.error(run, tmp_path / "nowhere")

    def test_a_folder_that_is_no_run(self, run: Command, tmp_path: Path, checkpoint: Path) -> None:
        assert "has neither report.json nor pruning.json" in self.error(run, checkpoint)

    def test_damaged_data(self, run: Command, out: Path) -> None:
        (out / "report.json").write_text('{"title": ')
        assert "report.json cannot be read as a report" in self.error(run, out)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[]", "an object with fields"),
            ('{"settings": {}}', "no measures"),
            ('{"metrics": 3}', "metrics should be an object"),
        ],
    )
    def test_a_damaged_record(self, run: Command, out: Path, text: str, message: str) -> None:
        (out / "report.json").unlink()
        (out / "pruning.json").write_text(text)
        assert message in self.error(run, out)

    def test_results_of_other_models(self, run: Command, out: Path, tmp_path: Path) -> None:
        other = Entry(model="maker/other", fingerprint="commit:1", kind="perplexity", name="ptb")
        before = (out / "report.html").read_text()
        assert "results are of maker/other" in self.error(run, out, "--evaluation", results(tmp_path / "r.json", other))
        assert (out / "report.html").read_text() == before

    def test_a_page_that_is_none(self, run: Command, out: Path) -> None:
        assert "does not end in .html" in self.error(run, out, "-o", out / "page.pdf")

    def test_a_card_that_is_missing_leaves_the_report_as_it_was(self, run: Command, out: Path) -> None:
        (out / "README.md").unlink()
        results(out / "evaluation.json", entry(out, 6.5))
        before = (out / "report.html").read_text()
        assert "cannot be updated" in self.error(run, out, "--card")
        assert (out / "report.html").read_text() == before


def recipe_of(folder: Path) -> str:
    (block,) = re.findall(r"```yaml\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return str(block)


class TestCard:
    def test_its_recipe_makes_the_same_settings(
        self, run: Command, finished: Path, checkpoint: Path, data: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "recipe.yaml").write_text(recipe_of(finished))
        again = tmp_path / "again"
        done = run("prune", checkpoint, "--data", data, "--config", tmp_path / "recipe.yaml", "-o", again, "-q")
        assert done.code == 0, done.err
        first, second = record(finished), record(again)
        assert second["settings"] == first["settings"]
        assert second["plan"] == first["plan"]
        assert second["recipe"] == first["recipe"]
        assert second["metrics"]["pruned"]["perplexity"] == first["metrics"]["pruned"]["perplexity"]

    @pytest.mark.parametrize(
        ("command", "options"),
        thinned([
            ("prune", ("--criterion=pst", "--ratio=0.5", "--pst-rank=4", "--cut-every=2", *QUICK)),
            (
                "prune",
                ("--criterion=compresso", "--compresso-warmup=0.25", "--pruning-prompt=Be: brief", "--lora-r=4",
                 "--lora-target-modules", "q_proj", "v_proj", "--allocation=global", "--weight-decay=0.1", *QUICK),
            ),
            ("recover", ("--optim=sgd", "--warmup-steps=1", "--answers-only", *QUICK[:3])),
            ("oneshot", ("--ratio=0.4", "--criterion=taylor", "--taylor-form=first", "--cuts=2", "--repair=none",
                         "--keep-layers=0", "--calibration-sequences=8", "--no-latency")),
            ("oneshot", ("--sparsity=2:4", "--criterion=wanda+obs", "--order=iterative", "--calibration-sequences=8")),
        ]),
        ids=["pst", "compresso", "recover", "oneshot, ratio", "oneshot, sparsity"],
    )  # fmt: skip
    def test_every_command_takes_the_recipe_that_it_wrote(
        self, run: Command, checkpoint: Path, data: Path, tmp_path: Path, command: str, options: tuple[str, ...]
    ) -> None:
        first, second = tmp_path / "first", tmp_path / "second"
        done = run(command, checkpoint, "--data", data, "-o", first, "-q", *options)
        assert done.code == 0, done.err
        (tmp_path / "recipe.yaml").write_text(recipe_of(first))
        assert (
            f"`loraprune {command} MODEL --data DATA --config recipe.yaml -o OUT`" in (first / "README.md").read_text()
        )
        done = run(command, checkpoint, "--data", data, "--config", tmp_path / "recipe.yaml", "-o", second, "-q")
        assert done.code == 0, done.err
        assert record(second)["settings"] == record(first)["settings"]
        known = {*ONESHOT_OPTIONS} if command == "oneshot" else {*PRUNE_OPTIONS, *training_fields(), "keep_zeros"}
        assert set(yaml.safe_load(recipe_of(first))) <= known


class TestLive:
    def test_tensorboard_gets_the_course_and_its_files_outlive_the_run(
        self, run: Command, checkpoint: Path, data: Path, tmp_path: Path
    ) -> None:
        pytest.importorskip("tensorboard", reason="needs the package tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        out = tmp_path / "out"
        options = [*QUICK, "--max-steps=6", "--cuts=2", "--logging-steps=1", "--save-strategy=no"]
        done = run("prune", checkpoint, "--data", data, "-o", out, *options, "--report-to", "tensorboard", "-q")
        assert done.code == 0, done.err
        assert not (tmp_path / "out.run").exists()
        (folder,) = (out / "runs").iterdir()
        events = EventAccumulator(str(folder))
        events.Reload()
        assert {
            "train/loss",
            "train/sparsity_ratio",
            "train/base_parameters",
            "train/importance/heads/q50",
            "train/importance/channels/q90",
            "train/stability/channels",
            "train/refit_error/channels/cut",
            "train/refit_error/channels/repaired",
            "train/seconds/cutting_and_repairing",
        } <= set(events.Tags()["scalars"])
        last = events.Scalars("train/sparsity_ratio")[-1]
        metrics = record(out)["metrics"]
        assert last.step == 6
        assert last.value == pytest.approx(metrics["pruning"]["ratio"])
        errors = events.Scalars("train/refit_error/channels/cut")
        assert [error.step for error in errors] == [cut["step"] for cut in metrics["pruning"]["cuts"]]

    @pytest.mark.parametrize(("name", "message"), [("tensorbord", "Did you mean 'tensorboard'"), ("mlfow", "mlflow")])
    def test_what_cannot_write_is_refused_before_any_work(
        self, run: Command, checkpoint: Path, data: Path, tmp_path: Path, name: str, message: str
    ) -> None:
        done = run("prune", checkpoint, "--data", data, "-o", tmp_path / "out", *QUICK, "--report-to", name)
        assert done.code == 2
        assert message in done.err.splitlines()[-1]
        assert list(tmp_path.iterdir()) == []
