from __future__ import annotations

from typing import Any

import pytest
from tests.pruning.criteria import STRUCTURED_METHODS

from loraprune import OneshotConfig
from loraprune.importance.configs import Taylor
from loraprune.pruning.oneshot_config import _ONLY_GROUPS, _ONLY_ZEROS, SparseConfig
from loraprune.sparsity.configs import ZEROING_METHODS

METHODS = tuple(ZEROING_METHODS)
BOTH = sorted({*METHODS} & {*STRUCTURED_METHODS})


class TestKind:
    def test_a_ratio_is_structured_and_a_sparsity_is_not(self) -> None:
        assert type(OneshotConfig(ratio=0.5)) is OneshotConfig
        assert OneshotConfig(sparsity=0.5) == SparseConfig(sparsity=0.5)
        assert OneshotConfig(sparsity="2:4") == SparseConfig(sparsity="2:4")

    @pytest.mark.parametrize("method", [*METHODS, *STRUCTURED_METHODS])
    def test_a_method_alone_says_the_kind_if_only_one_has_it(self, method: str) -> None:
        if method in BOTH:
            with pytest.raises(ValueError, match=f"Pass a ratio .* {method} can do both"):
                OneshotConfig(criterion=method)
            return
        config = OneshotConfig(criterion=method)
        assert type(config) is (OneshotConfig if method in STRUCTURED_METHODS else SparseConfig)
        assert (config.ratio if method in STRUCTURED_METHODS else config.sparsity) == 0.5

    @pytest.mark.parametrize("method", BOTH)
    def test_methods_of_both_kinds_go_with_either_amount(self, method: str) -> None:
        assert OneshotConfig(criterion=method, ratio=0.5).name == method
        assert OneshotConfig(criterion=method, sparsity=0.5).name == method

    @pytest.mark.parametrize("method", sorted({*METHODS} - {*STRUCTURED_METHODS}))
    def test_a_ratio_is_refused_by_methods_that_make_zeros(self, method: str) -> None:
        with pytest.raises(ValueError, match=r"You passed a ratio.* weights become zero\. Pass a sparsity instead"):
            OneshotConfig(criterion=method, ratio=0.5)

    @pytest.mark.parametrize("method", sorted({*STRUCTURED_METHODS} - {*METHODS}))
    def test_a_sparsity_is_refused_by_methods_that_cut_groups(self, method: str) -> None:
        with pytest.raises(
            ValueError, match=r"You passed a sparsity.* heads and channels are removed\. Pass a ratio instead"
        ):
            OneshotConfig(criterion=method, sparsity=0.5)

    def test_an_unknown_method_is_refused_with_all_that_there_are(self) -> None:
        with pytest.raises(ValueError, match="There is no criterion 'wnada'") as refused:
            OneshotConfig(criterion="wnada", ratio=0.5)
        assert all(method in str(refused.value) for method in STRUCTURED_METHODS)
        with pytest.raises(ValueError, match="There is no criterion 'wnada'") as refused:
            OneshotConfig(criterion="wnada")
        assert all(method in str(refused.value) for method in (*METHODS, *STRUCTURED_METHODS))

    @pytest.mark.parametrize("ratio", [0, 1, -0.1, 1.5, float("nan")])
    def test_a_ratio_lies_between_0_and_1(self, ratio: float) -> None:
        with pytest.raises(ValueError, match=f"ratio is {ratio:g}; it must lie between 0 and 1"):
            OneshotConfig(ratio=ratio)

    def test_one_amount_is_given(self) -> None:
        with pytest.raises(ValueError, match="Pass one of them"):
            OneshotConfig(ratio=0.5, sparsity="2:4")
        with pytest.raises(ValueError, match="Pass a ratio"):
            OneshotConfig()


class TestOptionsOfOneKind:
    VALUES: dict[str, Any] = {  # noqa: RUF012
        "repair": "bias",
        "allocation": "uniform",
        "dimensions": ("heads",),
        "cuts": 1,
        "norm_steps": 1,
        "channel_multiple": 1,
        "widths": "heads=1",
        "head_counts": "config",
        "taylor_form": "squared",
        "group_reduction": "sum",
        "offload_grads": False,
        "within": "row",
        "variant": False,
        "order": "sequential",
        "block_size": 128,
    }

    def test_all_of_them_are_tried_here(self) -> None:
        assert self.VALUES.keys() | {"target", "ratio", "sparsity"} == _ONLY_GROUPS | _ONLY_ZEROS

    @pytest.mark.parametrize("name", VALUES)
    def test_they_are_refused_by_the_other_kind_even_with_the_value_of_the_default(self, name: str) -> None:
        other: dict[str, Any] = {"sparsity": 0.5} if name in _ONLY_GROUPS else {"ratio": 0.5}
        with pytest.raises(ValueError, match=f"{name} is an option for .* Leave it out"):
            OneshotConfig(**other, **{name: self.VALUES[name]})

    def test_a_default_is_in_force_where_nothing_is_given(self) -> None:
        config = OneshotConfig(ratio=0.5, cuts=3)
        assert config.cuts == 3
        assert (config.repair.name, config.target.allocation) == ("stream", "measured")

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"criterion": "sparsegpt", "variant": True}, "variant is an option of the criterion 'wanda'"),
            ({"criterion": "wanda", "sparsity": "2:4", "variant": True}, "variant is an option of wanda"),
            (
                {"criterion": "sparsegpt", "order": "iterative"},
                "order is an option of the criterion 'wanda.obs' or 'magnitude.obs'",
            ),
            ({"criterion": "sparsegpt", "within": "row"}, "within is an option of the criterion 'wanda', "),
            (
                {"criterion": "magnitude", "sparsity": 0.5, "block_size": 64},
                "block_size is an option of the criterion 'sparsegpt'",
            ),
            ({"criterion": "wanda", "sparsity": 0.5, "block_size": 64}, "but the criterion is 'wanda'"),
        ],
        ids=str,
    )
    def test_an_option_of_another_method_is_refused(self, values: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            OneshotConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cuts": 0}, r"cuts is 0; it must lie in \[1, 1000000\]"),
        ({"channel_multiple": -8}, "channel_multiple is -8"),
        ({"calibration_sequences": 0}, "calibration_sequences is 0"),
        ({"damping": -0.1}, r"damping is -0.1; it must be at least 0"),
        ({"damping": float("nan")}, "damping is nan"),
        ({"damping": float("inf")}, "damping is inf; it must be a finite number"),
        ({"repair": "mend"}, "There is no repair 'mend'; choose one of "),
        ({"allocation": "fair"}, "allocation is 'fair'; choose one of "),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_with_its_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OneshotConfig(ratio=0.5, **values)


class TestData:
    @pytest.mark.parametrize("method", METHODS)
    def test_only_magnitude_makes_zeros_without_data(self, method: str) -> None:
        assert OneshotConfig(criterion=method, sparsity=0.5).needs_data == (method != "magnitude")

    @pytest.mark.parametrize("method", STRUCTURED_METHODS)
    def test_groups_are_cut_without_data_if_neither_score_nor_repair_looks_at_any(self, method: str) -> None:
        config = OneshotConfig(criterion=method, ratio=0.5, repair="none")
        assert config.needs_data == config.criterion.reads_data == (method not in ("magnitude", "random", "position"))
        assert OneshotConfig(criterion=method, ratio=0.5).needs_data


class TestSettings:
    def test_they_hold_defaults_and_nothing_of_the_other_kind(self) -> None:
        structured = OneshotConfig(ratio=0.5, keep_layers=(0, -1)).settings()
        assert (structured["method"], structured["repair"]) == ("osscar", "stream")
        assert structured["keep_layers"] == (0, -1)
        assert not structured.keys() & _ONLY_ZEROS
        sparse = OneshotConfig(sparsity="2:4").settings()
        assert (sparse["method"], sparse["sparsity"], sparse["block_size"]) == ("sparsegpt", "2:4", 128)
        assert not sparse.keys() & _ONLY_GROUPS

    def test_the_unstructured_methods_hear_of_all_that_is_theirs(self) -> None:
        values: dict[str, Any] = {"order": "iterative", "damping": 0.2, "block_size": 7}
        config: Any = OneshotConfig(sparsity="4:8", criterion="wanda+obs", **values)
        assert config.criterion.name == "wanda+obs"
        assert {name: getattr(config.criterion, name) for name in values} == values
        assert (config.pattern.n, config.pattern.m) == (4, 8)
        assert OneshotConfig(criterion="wanda", sparsity=0.5, variant=True).criterion.variant

    def test_lists_are_accepted_where_tuples_are_meant(self) -> None:
        config = OneshotConfig(ratio=0.5, keep_layers=[0], dimensions=["heads"])
        assert (config.keep_layers, config.dimensions) == ((0,), ("heads",))


class TestOptionsOfScores:
    def test_forms_and_reductions_reach_the_scores(self) -> None:
        config = OneshotConfig(
            ratio=0.5, criterion="taylor", taylor_form="mix", group_reduction="max", offload_grads=True
        )
        assert config.criterion == Taylor("mix", "max", offload=True)
        assert config.settings()["taylor_form"] == "mix"

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"taylor_form": "third", "criterion": "taylor"}, "taylor_form is 'third'; choose one of squared, first"),
            ({"group_reduction": "median", "criterion": "taylor"}, "group_reduction is 'median'; choose one of sum"),
            (
                {"taylor_form": "first", "criterion": "fisher"},
                "taylor_form is an option of the criterion 'taylor', but the",
            ),
            (
                {"group_reduction": "max", "criterion": "osscar"},
                "group_reduction is an option of the criterion",
            ),
        ],
    )
    def test_what_has_no_effect_or_no_meaning_is_refused(self, values: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            OneshotConfig(ratio=0.5, **values)
