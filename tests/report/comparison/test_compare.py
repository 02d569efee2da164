"""A comparison takes figures from records and files, and compares what compares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.run_folders import DENSE, FACTS, MACHINE, created, entry, with_weights, write_bench, write_results, write_run

from loraprune.checkpoint.fingerprint import folder_fingerprint
from loraprune.report.comparison.compare import compare_runs
from loraprune.report.comparison.result import ComparedModel, RunGroup, RunsComparison

GPU = {"platform": "Linux-5", "processor": "x86_64", "cpus": 64, "threads": 32, "accelerator": "H100"}


def by_name(group: RunGroup) -> dict[str, ComparedModel]:
    return {model.name: model for model in group.models}


def only_group(comparison: RunsComparison) -> RunGroup:
    (group,) = comparison.groups
    return group


def notes_of(comparison: RunsComparison) -> str:
    return "\n".join((*comparison.notes, *(note for group in comparison.groups for note in group.notes)))


class TestRecords:
    def test_a_run_that_measured_nothing_compares_by_an_evaluation(self, tmp_path: Path) -> None:
        measured, plain = write_run(tmp_path / "a"), write_run(tmp_path / "b")
        record = json.loads((plain / "pruning.json").read_text())
        saved = {"base_model": record["base_model"], "pruning": {"parameters": 500}, "versions": {"torch": "2"}}
        (plain / "pruning.json").write_text(json.dumps(saved))
        with pytest.raises(ValueError, match=r"holds no measures, like all records of save_pruned.*--eval"):
            compare_runs([measured, plain])
        results = write_results(tmp_path / "r.json", entry(measured), entry(plain))
        group = only_group(compare_runs([measured, plain], evaluation=[results], quality="wiki"))
        assert set(by_name(group)) >= {"a", "b"}

    def test_one_run_stands_beside_the_dense_model(self, tmp_path: Path) -> None:
        group = only_group(compare_runs([write_run(tmp_path / "a")]))
        dense, run = group.models
        assert (dense.name, dense.what, dense.number, dense.quality) == ("tiny", "dense", None, 4.0)
        assert (run.name, run.what, run.number, run.quality) == (
            "a",
            "50 % of the prunable parameters removed by fisher",
            1,
            8.0,
        )
        assert dense.costs == {"parameters": 1000.0, "latency": 10.0}
        assert run.costs == {"parameters": 500.0, "latency": 6.0, "seconds": 60.0}
        assert (run.bytes, run.relative_latency) == (2000, 0.6)
        assert group.quality.detail == "64-token segments, 640 tokens"

    def test_fronts_are_marked_in_each_cost(self, tmp_path: Path) -> None:
        small = write_run(tmp_path / "small", parameters=400, perplexity=9.0, latency_ms=5.0, seconds=90.0)
        large = write_run(tmp_path / "large", parameters=600, perplexity=6.0, latency_ms=7.0, seconds=60.0)
        worse = write_run(tmp_path / "worse", parameters=600, perplexity=7.0, latency_ms=4.0, seconds=60.0)
        models = by_name(only_group(compare_runs([small, large, worse])))
        assert models["tiny"].best_for == ("parameters", "latency")
        assert models["small"].best_for == ("parameters",)
        assert models["large"].best_for == ("parameters", "latency", "seconds")
        assert models["worse"].best_for == ("latency",)

    def test_the_dense_model_took_no_time_and_is_not_on_the_front_of_time(self, tmp_path: Path) -> None:
        models = by_name(only_group(compare_runs([write_run(tmp_path / "a"), write_run(tmp_path / "b", seconds=30.0)])))
        assert "seconds" not in models["tiny"].costs
        assert models["b"].best_for == ("parameters", "latency", "seconds")

    def test_of_a_latency_of_the_dense_model_that_each_run_timed_the_median_counts(self, tmp_path: Path) -> None:
        runs = [
            write_run(tmp_path / name, dense={**DENSE, "latency_ms": value})
            for name, value in (("a", 10.0), ("b", 10.4), ("c", 10.9))
        ]
        assert by_name(only_group(compare_runs(runs)))["tiny"].costs["latency"] == 10.4

    def test_if_the_dense_model_was_not_equally_fast_shares_of_it_are_ranked(self, tmp_path: Path) -> None:
        calm = write_run(tmp_path / "calm", latency_ms=6.0)
        busy = write_run(tmp_path / "busy", latency_ms=10.0, dense={**DENSE, "latency_ms": 20.0}, perplexity=8.5)
        comparison = compare_runs([calm, busy])
        models = by_name(only_group(comparison))
        assert {name: model.costs["latency"] for name, model in models.items()} == {
            "tiny": 1.0,
            "calm": 0.6,
            "busy": 0.5,
        }
        assert "latency" in models["busy"].best_for
        assert "The dense model took between 10.0 ms and 20.0 ms" in notes_of(comparison)

    def test_training_time_is_that_of_training_where_all_records_know_it(self, tmp_path: Path) -> None:
        phases = {"loading": 5.0, "measuring the dense model": 7.0, "training": 30.0, "cutting and repairing": 2.0}
        known = write_run(tmp_path / "known", metrics={"phases": phases})
        old = write_run(tmp_path / "old")
        group = only_group(compare_runs([known]))
        assert by_name(group)["known"].costs["seconds"] == 32.0
        assert group.costs[-1].detail == "tuning, cuts and repairs"
        group = only_group(compare_runs([known, old]))
        assert by_name(group)["known"].costs["seconds"] == 60.0

    def test_measuring_the_model_before_a_recovery_is_no_training(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "a", metrics={"phases": {"measuring the model before": 7.0, "training": 30.0}})
        assert by_name(only_group(compare_runs([run])))["a"].costs["seconds"] == 30.0

    def test_of_sparse_runs_weights_that_are_not_zero_count(self, tmp_path: Path) -> None:
        sparse = write_run(tmp_path / "sparse", parameters=1000, nonzero=520, dense={**DENSE, "nonzero": 999})
        comparison = compare_runs([sparse])
        dense, run = only_group(comparison).models
        assert (run.sparse, run.costs["parameters"], run.stored_parameters) == (True, 520.0, 1000)
        assert (dense.sparse, dense.costs["parameters"]) == (False, 1000.0)
        assert "Parameters of sparse: only nonzero ones" in notes_of(comparison)

    def test_accuracy_is_better_if_it_is_higher(self, tmp_path: Path) -> None:
        facts = {"num_examples": 200}
        dense = {"parameters": 1000, "accuracy": 0.9}
        runs = [
            write_run(
                tmp_path / name, facts=facts, dense=dense, task="image-classification", accuracy=value, perplexity=None
            )
            for name, value in (("good", 0.85), ("bad", 0.7))
        ]
        group = only_group(compare_runs(runs))
        assert group.quality.higher_is_better
        assert group.quality.detail == "200 examples"
        assert "parameters" in by_name(group)["good"].best_for
        assert "parameters" not in by_name(group)["bad"].best_for

    def test_a_quality_that_is_not_finite_is_shown_without_a_star(self, tmp_path: Path) -> None:
        broken = write_run(tmp_path / "broken", perplexity=None, parameters=1)
        models = by_name(only_group(compare_runs([broken, write_run(tmp_path / "a")])))
        assert models["broken"].best_for == ()
        text = compare_runs([broken]).to_text()
        assert json.loads(text)["groups"][0]["models"][1]["quality"] is None

    def test_runs_of_one_name_are_told_apart_by_their_folders(self, tmp_path: Path) -> None:
        runs = [write_run(tmp_path / "x" / "out"), write_run(tmp_path / "y" / "out")]
        assert {"x/out", "y/out"} < set(by_name(only_group(compare_runs(runs))))

    def test_a_run_may_be_called_like_the_dense_model(self, tmp_path: Path) -> None:
        dense, run = only_group(compare_runs([write_run(tmp_path / "tiny")])).models
        assert (dense.name, run.name) == ("tiny", "tiny")
        assert (dense.costs["parameters"], run.costs["parameters"]) == (1000.0, 500.0)
        assert (dense.costs["latency"], run.costs["latency"]) == (10.0, 6.0)


class TestChains:
    SPARSE: ClassVar[dict[str, Any]] = {
        "settings": {"oneshot": {"method": "wanda"}},
        "metrics": {"pruning": {}, "sparsity": {"pattern": "2:4"}},
    }

    def chain(self, folder: Path, **changes: Any) -> tuple[Path, Path]:
        """A sparse run and its recovery."""
        base = write_run(folder / "sparse", **self.SPARSE, latency_ms=8.0)
        history = {"base_model": "models/tiny", "created": created(base), "pattern": "2:4", "method": "wanda"}
        before = {"parameters": 500, "perplexity": 8.0, "latency_ms": 8.2}
        recovered = write_run(
            folder / "recovered",
            base_model="elsewhere/sparse",
            base_pruning=history,
            dense=before | changes,
            settings={"recovery": {"keep_zeros": True}},
            metrics={"pruning": {}, "sparsity": {"after": {"share": 0.5, "zeros": 250, "weights": 500}}},
            perplexity=6.0,
            latency_ms=4.1,
            seconds=100.0,
        )
        return base, recovered

    def test_a_recovery_is_compared_with_the_dense_model_and_takes_the_time_of_both_runs(self, tmp_path: Path) -> None:
        base, recovered = self.chain(tmp_path)
        for folders in ([base, recovered], [recovered]):
            group = only_group(compare_runs(folders))
            assert group.models[0].name == "tiny"
            model = by_name(group)["recovered"]
            assert model.what == "2:4 sparse by wanda, recovered"
            assert model.costs["seconds"] == 160.0
            assert model.relative_latency == pytest.approx(0.8 * 0.5)

    def test_without_the_record_of_its_base_it_stands_beside_that_alone(self, tmp_path: Path) -> None:
        base, recovered = self.chain(tmp_path)
        (base / "pruning.json").unlink()
        other = write_run(tmp_path / "other")
        comparison = compare_runs([other, recovered])
        first, second = comparison.groups
        assert [model.name for model in first.models] == ["tiny", "other"]
        assert [model.name for model in second.models] == ["sparse", "recovered"]
        assert second.models[0].what == "2:4 sparse by wanda"
        assert second.costs[-1].why_no_front
        assert "it is unknown whether both were measured on the same data" in notes_of(comparison)
        assert "Time of recovered: without earlier runs" in notes_of(comparison)

    def test_a_recovery_that_was_measured_on_other_data_is_kept_apart(self, tmp_path: Path) -> None:
        base, recovered = self.chain(tmp_path, perplexity=8.5)
        assert len(compare_runs([base, recovered]).groups) == 2

    def test_another_run_that_ended_in_the_same_second_is_not_its_base(self, tmp_path: Path) -> None:
        base, recovered = self.chain(tmp_path)
        other = write_run(tmp_path / "other", created=created(base))
        for same in (other, write_run(tmp_path / "twin", created=created(base), **self.SPARSE)):
            group = only_group(compare_runs([same, base, recovered]))
            assert by_name(group)["recovered"].what == "2:4 sparse by wanda, recovered"
            assert by_name(group)["recovered"].relative_latency == pytest.approx(0.8 * 0.5)

    def test_a_folder_of_the_same_name_that_was_made_anew_is_not_its_base(self, tmp_path: Path) -> None:
        _, recovered = self.chain(tmp_path)
        write_run(tmp_path / "sparse", created="later")
        assert only_group(compare_runs([recovered])).models[0].name == "sparse"


class TestFingerprints:
    """Records that know what they were measured on compare if that is the same, and only then."""

    ONE: ClassVar[dict[str, Any]] = {**FACTS, "data_fingerprint": "sha256:1"}
    TWO: ClassVar[dict[str, Any]] = {**FACTS, "data_fingerprint": "sha256:2"}

    def test_on_other_data_runs_are_apart_even_if_the_dense_model_has_the_same_figure(self, tmp_path: Path) -> None:
        runs = [write_run(tmp_path / "a", facts=self.ONE), write_run(tmp_path / "b", facts=self.TWO)]
        comparison = compare_runs(runs)
        assert [[model.name for model in group.models] for group in comparison.groups] == [["tiny", "a"], ["tiny", "b"]]
        assert "b and a: measured on other data, or with other settings." in notes_of(comparison)

    def test_on_the_same_data_runs_of_different_models_stand_side_by_side(self, tmp_path: Path) -> None:
        a = write_run(tmp_path / "a", facts=self.ONE)
        b = write_run(tmp_path / "b", facts=self.ONE, base_model="models/other", dense={**DENSE, "perplexity": 3.0})
        group = only_group(compare_runs([a, b]))
        assert {name: model.quality for name, model in by_name(group).items()} == {
            "tiny": 4.0, "other": 3.0, "a": 8.0, "b": 8.0
        }  # fmt: skip
        assert by_name(group)["b"].relative_latency == 0.6

    def test_another_figure_of_the_dense_model_on_the_same_data_is_noted(self, tmp_path: Path) -> None:
        runs = [
            write_run(tmp_path / name, facts=self.ONE, dense={**DENSE, "perplexity": value})
            for name, value in (("a", 4.0), ("b", 4.1))
        ]
        comparison = compare_runs(runs)
        assert [model.name for model in only_group(comparison).models] == ["tiny", "a", "b"]
        assert "the records give tiny between 4.00 and 4.10" in notes_of(comparison)

    @pytest.mark.parametrize(("anchor", "groups"), [(4.0, 1), (4.1, 2)])
    def test_with_a_record_that_is_older_the_figure_of_the_dense_model_tells(
        self, tmp_path: Path, anchor: float, groups: int
    ) -> None:
        old = write_run(tmp_path / "old", dense={**DENSE, "perplexity": anchor})
        assert len(compare_runs([old, write_run(tmp_path / "new", facts=self.ONE)]).groups) == groups

    def test_a_result_that_was_measured_on_other_data_than_its_base_has_no_dense_model(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "a", facts=self.ONE, data_fingerprint="sha256:2")
        record = json.loads((run / "pruning.json").read_text())
        record["metrics"]["pruned"]["data_fingerprint"] = "sha256:2"
        (run / "pruning.json").write_text(json.dumps(record))
        other = write_run(tmp_path / "b", facts=self.TWO)
        group = only_group(compare_runs([run, other]))
        assert [model.name for model in group.models] == ["tiny", "a", "b"]

    def test_a_recovery_on_the_same_data_is_compared_with_the_dense_model(self, tmp_path: Path) -> None:
        chain = TestChains()
        for facts, names in ((self.ONE, ["tiny", "sparse", "recovered"]), (self.TWO, None)):
            base, recovered = chain.chain(tmp_path / str(facts["data_fingerprint"])[-1])
            for folder, known in ((base, self.ONE), (recovered, facts)):
                record = json.loads((folder / "pruning.json").read_text())
                for side in ("dense", "pruned"):
                    record["metrics"][side] |= known
                (folder / "pruning.json").write_text(json.dumps(record))
            groups = compare_runs([base, recovered]).groups
            assert len(groups) == (1 if names else 2)
            assert [model.name for model in groups[0].models] == (names or ["tiny", "sparse"])


class TestWhatDoesNotCompare:
    def test_segment_lengths_are_kept_apart_each_with_a_front(self, tmp_path: Path) -> None:
        runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", facts={"num_tokens": 640, "segment_length": 32})]
        comparison = compare_runs(runs)
        assert [[model.name for model in group.models] for group in comparison.groups] == [["tiny", "a"], ["tiny", "b"]]
        assert "b and a: measured on 32-token segments, 640 tokens, and on 64-token segments" in notes_of(comparison)
        assert "loraprune eval" in notes_of(comparison)
        assert all("parameters" in model.best_for for group in comparison.groups for model in group.models)

    @pytest.mark.parametrize(("anchor", "groups"), [(4.0039, 1), (4.0041, 2)])
    def test_the_dense_figure_tells_whether_the_data_was_the_same(
        self, tmp_path: Path, anchor: float, groups: int
    ) -> None:
        runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", dense={**DENSE, "perplexity": anchor})]
        comparison = compare_runs(runs)
        assert len(comparison.groups) == groups
        assert ("data, seed or precision" in notes_of(comparison)) == (groups == 2)

    def test_records_of_different_models_are_kept_apart(self, tmp_path: Path) -> None:
        runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", base_model="models/other")]
        comparison = compare_runs(runs)
        assert [group.base for group in comparison.groups] == ["tiny", "other"]

    def test_latencies_of_different_machines_are_shown_as_shares_without_a_front(self, tmp_path: Path) -> None:
        runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", machine=GPU, latency_ms=1.0)]
        comparison = compare_runs(runs)
        group = only_group(comparison)
        latency = next(cost for cost in group.costs if cost.name == "latency")
        assert latency.relative
        assert by_name(group)["tiny"].costs["latency"] == 1.0
        assert by_name(group)["b"].costs["latency"] == 0.1
        assert by_name(group)["b"].latency_ms == 1.0
        assert not any({"latency", "seconds"} & set(model.best_for) for model in group.models)
        notes = notes_of(comparison)
        assert "Latencies were not measured in the same way" in notes
        assert "b (1 × 64 tokens; H100, x86_64, 32 of 64 CPU threads)" in notes
        assert "Times come from different machines" in notes

    def test_machines_that_differ_in_the_platform_alone_are_named_in_full(self, tmp_path: Path) -> None:
        other = {**MACHINE, "platform": "Linux-7"}
        comparison = compare_runs([write_run(tmp_path / "a"), write_run(tmp_path / "b", machine=other)])
        assert "Linux-6" in notes_of(comparison)
        assert "Linux-7" in notes_of(comparison)

    def test_latencies_of_different_inputs_are_shown_as_shares(self, tmp_path: Path) -> None:
        facts = {"num_tokens": 640, "segment_length": 64, "latency_tokens": 128}
        group = only_group(compare_runs([write_run(tmp_path / "a"), write_run(tmp_path / "b", facts=facts)]))
        assert next(cost for cost in group.costs if cost.name == "latency").relative

    def test_a_run_without_a_latency_is_named(self, tmp_path: Path) -> None:
        comparison = compare_runs([write_run(tmp_path / "a"), write_run(tmp_path / "b", latency_ms=None)])
        assert "The latency of b is unknown." in notes_of(comparison)
        assert "latency" not in by_name(only_group(comparison))["b"].costs


class TestEvaluations:
    def test_results_name_runs_and_the_dense_model_as_they_were_given(self, tmp_path: Path) -> None:
        a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", base_model="models/other")
        file = write_results(
            tmp_path / "results.json",
            entry("tiny", values={"perplexity": 3.0}, parameters=1000),
            entry(a, values={"perplexity": 5.0}),
            entry("b", values={"perplexity": 6.0}),
            entry("stranger"),
        )
        group = only_group(compare_runs([a, b], evaluation=[file], quality="wiki"))
        assert {name: model.quality for name, model in by_name(group).items()} == {"tiny": 3.0, "a": 5.0, "b": 6.0}
        assert by_name(group)["tiny"].costs == {"parameters": 1000.0, "latency": 10.0}
        assert group.quality.name == "wiki@64"
        assert group.quality.detail == "630 tokens"

    def test_a_model_that_loraprune_did_not_make_is_compared_by_what_was_evaluated(self, tmp_path: Path) -> None:
        (tmp_path / "small").mkdir()
        a = write_run(tmp_path / "a")
        file = write_results(tmp_path / "r.json", entry(a), entry(tmp_path / "small", parameters=300))
        group = only_group(compare_runs([a, tmp_path / "small"], evaluation=[file]))
        assert by_name(group)["small"].number == 2
        assert by_name(group)["small"].costs == {"parameters": 300.0}

    def test_the_dense_model_among_the_runs_is_the_one_that_they_began_with(self, tmp_path: Path) -> None:
        (tmp_path / "tiny").mkdir()
        a = write_run(tmp_path / "a")
        file = write_results(tmp_path / "r.json", entry(a), entry(tmp_path / "tiny", values={"perplexity": 3.0}))
        dense, run = only_group(compare_runs([tmp_path / "tiny", a], evaluation=[file], quality="wiki")).models
        assert (dense.name, dense.number, dense.quality) == ("tiny", None, 3.0)
        assert (run.name, run.number) == ("a", 1)

    def test_results_in_the_folder_of_a_run_are_read_unasked(self, tmp_path: Path) -> None:
        a = write_run(tmp_path / "a")
        write_results(a / "evaluation.json", entry("somewhere/a"))
        assert "wiki@64" in compare_runs([a]).other_qualities

    def test_a_file_in_a_folder_that_cannot_be_read_is_left_out_with_a_warning(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        a = write_run(tmp_path / "a")
        (a / "evaluation.json").write_text("{")
        assert compare_runs([a]).other_qualities == ()
        assert "evaluation.json is left out" in caplog.text

    def test_the_measure_of_most_runs_is_taken(self, tmp_path: Path) -> None:
        runs = [write_run(tmp_path / name) for name in "abc"]
        file = write_results(tmp_path / "r.json", entry(runs[0]), entry(runs[1]))
        assert only_group(compare_runs(runs, evaluation=[file])).quality.name == "perplexity"
        file = write_results(tmp_path / "r.json", entry("tiny"), *map(entry, runs))
        assert only_group(compare_runs(runs, evaluation=[file])).quality.name == "wiki@64"

    @pytest.mark.parametrize(
        "change",
        [
            {"data": {"source": "wiki.txt", "sha256": "other"}},
            {"settings": {"limit_of_something": 3}},
            {"values": {"num_tokens": 77}},
        ],
    )
    def test_other_data_settings_or_tokens_are_kept_apart(self, tmp_path: Path, change: dict[str, Any]) -> None:
        runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b")]
        file = write_results(tmp_path / "r.json", entry(runs[0]), entry(runs[1], **change))
        assert len(compare_runs(runs, evaluation=[file], quality="wiki").groups) == 2

    @pytest.mark.parametrize(
        "change",
        [{"data": {"source": "a copy", "sha256": "wiki"}}, {"settings": {"device": "cuda", "batch_size": 3}}],
    )
    def test_place_device_and_batch_size_do_not_matter(self, tmp_path: Path, change: dict[str, Any]) -> None:
        runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b")]
        file = write_results(tmp_path / "r.json", entry(runs[0]), entry(runs[1], **change))
        assert len(compare_runs(runs, evaluation=[file], quality="wiki").groups) == 1

    def test_bits_per_byte_compare_across_tokenizers(self, tmp_path: Path) -> None:
        runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b")]
        file = write_results(tmp_path / "r.json", entry(runs[0]), entry(runs[1], values={"num_tokens": 77}))
        assert len(compare_runs(runs, evaluation=[file], quality="wiki:bits_per_byte").groups) == 1

    def test_several_dtypes_are_noted(self, tmp_path: Path) -> None:
        runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b")]
        file = write_results(tmp_path / "r.json", entry(runs[0]), entry(runs[1], settings={"dtype": "bfloat16"}))
        assert "a float32, b bfloat16" in notes_of(compare_runs(runs, evaluation=[file], quality="wiki"))

    def test_tasks_have_both_accuracies_and_an_average(self, tmp_path: Path) -> None:
        runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b")]
        tasks = [entry(run, name, "task") for run in runs for name in ("piqa", "boolq")]
        file = write_results(tmp_path / "r.json", *tasks)
        normalized = only_group(compare_runs(runs, evaluation=[file], quality="piqa:acc_norm"))
        assert [model.quality for model in normalized.models] == [0.6, 0.6]
        assert normalized.quality.detail == "0-shot, 200 items"
        average = only_group(compare_runs(runs, evaluation=[file], quality="average of 2"))
        assert [model.quality for model in average.models] == [0.5, 0.5]


class TestWhoseFiguresTheyAre:
    """A folder with weights is known by the hash of its files, and not by its name alone."""

    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        return with_weights(write_run(tmp_path / "a"), "pruned")

    def test_a_run_that_was_moved_is_known_by_its_files(self, tmp_path: Path, run: Path) -> None:
        file = write_results(tmp_path / "r.json", entry("gone/before", fingerprint=folder_fingerprint(run)))
        assert only_group(compare_runs([run], evaluation=[file], quality="wiki")).models[-1].quality == 9.0

    def test_a_model_of_the_same_name_that_is_another_one_is_not_the_run(self, tmp_path: Path, run: Path) -> None:
        file = write_results(tmp_path / "r.json", entry("elsewhere/a"))
        comparison = compare_runs([run], evaluation=[file])
        assert comparison.other_qualities == ()
        assert notes_of(comparison) == ""

    def test_figures_of_what_the_run_was_before_it_was_made_anew_are_left_out(self, tmp_path: Path, run: Path) -> None:
        old = folder_fingerprint(run)
        results = write_results(tmp_path / "r.json", entry(run, fingerprint=old))
        bench = write_bench(tmp_path / "b.json", {str(run): 3.0}, fingerprints={str(run): old})
        assert by_name(only_group(compare_runs([run], bench=[bench])))["a"].costs["latency"] == pytest.approx(3.0)
        with_weights(run, "pruned anew")
        comparison = compare_runs([run], evaluation=[results], bench=[bench])
        assert comparison.other_qualities == ()
        assert by_name(only_group(comparison))["a"].costs["latency"] == 6.0
        for file in (results, bench):
            assert f"Figures of {run} in {file} are left out: these models have changed since" in notes_of(comparison)

    def test_a_dense_folder_that_is_named_is_known_by_its_files(self, tmp_path: Path, run: Path) -> None:
        (tmp_path / "tiny").mkdir()
        dense = with_weights(tmp_path / "tiny", "dense")
        found = entry("copy/of-it", fingerprint=folder_fingerprint(dense), values={"perplexity": 3.0})
        file = write_results(tmp_path / "r.json", entry(run, fingerprint=folder_fingerprint(run)), found, entry("tiny"))
        group = only_group(compare_runs([dense, run], evaluation=[file], quality="wiki"))
        assert [model.quality for model in group.models] == [3.0, 9.0]

    def test_of_two_figures_the_newer_one_counts_wherever_it_is(self, tmp_path: Path) -> None:
        a = write_run(tmp_path / "a")
        write_results(a / "evaluation.json", entry(a, created="2026-01-01", values={"perplexity": 1.0}))
        file = write_results(tmp_path / "r.json", entry(a, created="2026-01-02", values={"perplexity": 2.0}))
        group = only_group(compare_runs([a], evaluation=[file], quality="wiki"))
        assert group.models[-1].quality == 2.0


class TestBenchmarks:
    def test_it_comes_before_records_that_know_the_dense_model_too(self, tmp_path: Path) -> None:
        a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
        file = write_bench(tmp_path / "bench.json", {str(a): 10.0, str(b): 5.0})
        group = only_group(compare_runs([a, b], bench=[file]))
        assert by_name(group)["b"].costs["latency"] == pytest.approx(5.0)

    def test_shares_are_those_of_the_dense_model_and_not_of_what_was_benched_first(self, tmp_path: Path) -> None:
        a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
        file = write_bench(tmp_path / "bench.json", {str(a): 10.0, str(b): 5.0, "models/tiny": 20.0})
        models = by_name(only_group(compare_runs([a, b], bench=[file])))
        assert [models[name].relative_latency for name in "ab"] == pytest.approx([0.5, 0.25])
        file = write_bench(tmp_path / "bench.json", {str(a): 10.0, str(b): 5.0})
        models = by_name(only_group(compare_runs([a, b], bench=[file])))
        assert [models[name].relative_latency for name in "ab"] == [None, None]

    def test_no_share_is_that_of_the_dense_model_of_another_run(self, tmp_path: Path) -> None:
        a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", base_model="models/other")
        file = write_bench(tmp_path / "bench.json", {"models/tiny": 20.0, str(a): 10.0, str(b): 5.0})
        first, second = compare_runs([a, b], bench=[file]).groups
        assert by_name(first)["a"].relative_latency == pytest.approx(0.5)
        assert by_name(second)["b"].relative_latency is None

    def test_a_benchmark_stands_in_for_the_records(self, tmp_path: Path) -> None:
        a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", machine=GPU)
        file = write_bench(tmp_path / "bench.json", {"models/tiny": 20.0, str(a): 10.0, "b": 5.0})
        group = only_group(compare_runs([a, b], bench=[file]))
        latency = next(cost for cost in group.costs if cost.name == "latency")
        assert (latency.label, latency.relative) == ("Prefill", False)
        assert "bench.json" in latency.detail
        assert {name: model.costs["latency"] for name, model in by_name(group).items()} == {
            "tiny": pytest.approx(20.0),
            "a": pytest.approx(10.0),
            "b": pytest.approx(5.0),
        }
        assert by_name(group)["b"].best_for[:2] == ("parameters", "latency")

    def test_one_that_knows_fewer_runs_does_not_unless_it_is_asked_for(self, tmp_path: Path) -> None:
        a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
        file = write_bench(tmp_path / "bench.json", {str(a): 10.0}, measure="decoding", batch=8)
        assert by_name(only_group(compare_runs([a, b], bench=[file])))["a"].costs["latency"] == 6.0
        asked = compare_runs([a, b], bench=[file], latency="decoding@8")
        assert by_name(only_group(asked))["a"].costs["latency"] == pytest.approx(10.0)
        assert "The latency of b is unknown." in notes_of(asked)


class TestRefusals:
    @pytest.fixture
    def two(self, tmp_path: Path) -> list[Path]:
        return [write_run(tmp_path / "a"), write_run(tmp_path / "b")]

    def test_a_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="There is no folder"):
            compare_runs([tmp_path / "nothing"])

    def test_a_file_among_the_folders(self, tmp_path: Path, two: list[Path]) -> None:
        (tmp_path / "page.html").touch()
        with pytest.raises(ValueError, match=r"page\.html is a file.*ends in /"):
            compare_runs([*two, tmp_path / "page.html"])

    def test_a_folder_that_is_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"is not a run: it holds no pruning\.json.*--evaluation"):
            compare_runs([tmp_path])

    def test_a_folder_of_runs(self, tmp_path: Path, two: list[Path]) -> None:
        with pytest.raises(ValueError, match=r"It holds runs: name them, such as .*a, or"):
            compare_runs([tmp_path])

    def test_the_state_of_an_unfinished_run(self, tmp_path: Path) -> None:
        (tmp_path / "out.run").mkdir()
        with pytest.raises(ValueError, match=r"unfinished run.*--resume"):
            compare_runs([tmp_path / "out.run"])

    @pytest.mark.parametrize("content", ["{", "[]", "{}", '{"metrics": {"dense": {"parameters": 1}}}', "\xff"])
    def test_a_damaged_record(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "pruning.json").write_bytes(content.encode("latin-1"))
        with pytest.raises(ValueError, match=r"pruning\.json is damaged.*Leave this run out"):
            compare_runs([tmp_path])

    def test_a_run_named_twice(self, two: list[Path]) -> None:
        with pytest.raises(ValueError, match="is named twice"):
            compare_runs([two[0], two[0] / "." / "pruning.json"])

    def test_no_run(self) -> None:
        with pytest.raises(ValueError, match="at least one folder"):
            compare_runs([])

    def test_names_that_do_not_go_with_the_runs(self, two: list[Path]) -> None:
        with pytest.raises(ValueError, match="2 runs and 1 names"):
            compare_runs(two, names=["x"])
        with pytest.raises(ValueError, match="'x' is given twice"):
            compare_runs(two, names=["x", "x"])

    def test_a_measure_that_no_run_has(self, two: list[Path]) -> None:
        with pytest.raises(ValueError, match=r"'perplexitty'\. Did you mean 'perplexity'"):
            compare_runs(two, quality="perplexitty")

    def test_a_beginning_of_several_measures(self, tmp_path: Path, two: list[Path]) -> None:
        file = write_results(tmp_path / "r.json", entry(two[0], "wiki"), entry(two[0], "wikitext"))
        with pytest.raises(ValueError, match="Did you mean 'wiki@64' or 'wikitext@64'"):
            compare_runs(two, evaluation=[file], quality="wik")

    def test_runs_with_nothing_in_common(self, tmp_path: Path) -> None:
        text = write_run(tmp_path / "text")
        images = write_run(tmp_path / "images", dense={"parameters": 1, "accuracy": 1.0}, accuracy=0.5)
        with pytest.raises(ValueError, match=r"measure in common\. text has perplexity\. images has accuracy\."):
            compare_runs([text, images])

    def test_a_run_without_any_quality(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="The quality of bare is unknown"):
            compare_runs([write_run(tmp_path / "bare", dense={"parameters": 1})])

    def test_a_latency_that_nothing_has(self, tmp_path: Path, two: list[Path]) -> None:
        file = write_bench(tmp_path / "bench.json", {str(two[0]): 10.0})
        with pytest.raises(ValueError, match=r"'prefil': there are prefill, recorded\. Did you mean 'prefill'"):
            compare_runs(two, bench=[file], latency="prefil")

    def test_files_of_another_kind_or_version(self, tmp_path: Path, two: list[Path]) -> None:
        bench = write_bench(tmp_path / "bench.json", {"a": 1.0})
        results = write_results(tmp_path / "r.json", entry("a"))
        with pytest.raises(ValueError, match="not written by loraprune eval"):
            compare_runs(two, evaluation=[bench])
        with pytest.raises(ValueError, match="not written by loraprune bench"):
            compare_runs(two, bench=[results])
        results.write_text(results.read_text().replace('"version": 1', '"version": 9'))
        with pytest.raises(ValueError, match="version 9"):
            compare_runs(two, evaluation=[results])


def test_the_json_is_strict_and_says_what_it_is(tmp_path: Path) -> None:
    values = json.loads(compare_runs([write_run(tmp_path / "a", perplexity=None)]).to_text())
    assert (values["format"], values["version"]) == ("loraprune-comparison", 1)
    assert values["groups"][0]["models"][0]["costs"]["parameters"] == 1000.0
