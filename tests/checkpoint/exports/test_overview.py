"""What a user is told about where a result runs agrees with what the exporters take."""

from __future__ import annotations

import copy

import pytest
from tests.models import tiny_model
from tests.quantized_models import plain_folder, quantized
from tests.zoo.cases import CASES
from transformers import OlmoConfig

from loraprune.checkpoint.exports.overview import runtimes_of
from loraprune.checkpoint.load import meta_model
from loraprune.checkpoint.older_reader import missing_in_4
from loraprune.checkpoint.save import finish
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.surgery.slicing import slice_


def result(family, kept, **changes):
    model = tiny_model(family, **changes)
    structure = describe(model)
    full = Plan.full(structure)
    plan = full.keep({d.name: range(kept(d)) for d in structure})
    slice_(model, structure, full, plan)
    return finish(model, structure, plan)


def half(dimension):
    return dimension.num_groups // 2


def only_channels(dimension):
    return dimension.num_groups // 2 if dimension.kind == "channels" else dimension.num_groups


def ragged(dimension):
    return dimension.num_groups if dimension.layer else 1


AS_IT_IS = "transformers >= 4.57 (as it is)"
OURS = "transformers >= 4.57 (with trust_remote_code=True, or, from 5.20, after `import loraprune`)"
ONNX = "onnxruntime (loraprune export --format onnx)"


@pytest.mark.parametrize(
    ("family", "kept", "expected"),
    [
        ("llama", half, [AS_IT_IS, "vLLM (as it is)", "llama.cpp (.* architecture llama", ONNX]),
        ("qwen3", half, [AS_IT_IS, "vLLM (as it is)", "llama.cpp (.* architecture qwen3", ONNX]),
        ("qwen2", half, [AS_IT_IS, "vLLM: no, its Qwen2 .* `--dimensions channels`", "architecture llama", ONNX]),
        ("qwen2", only_channels, [AS_IT_IS, "vLLM (as it is)", "llama.cpp (.* architecture qwen2", ONNX]),
        ("mistral", ragged, [OURS, "vLLM: no, .* `--allocation balanced`", "llama.cpp (.* deci", ONNX]),
        ("qwen3", ragged, [OURS, "vLLM: no, ", "llama.cpp: no. .* deci", ONNX]),
    ],
)
def test_the_runtimes_of_a_result_are_named_and_why_others_are_none(family, kept, expected):
    found = runtimes_of(result(family, kept))
    assert len(found) == len(expected)
    for text, pattern in zip(found, expected, strict=True):
        assert all(part.strip() in text for part in pattern.split(".*")), (text, pattern)


def case_named(row, kinds=None):
    (found,) = (case for case in CASES if case.row.name == row and case.kinds == kinds)
    return found


@pytest.mark.parametrize(
    ("row", "plan", "expected"),
    [
        (
            "gemma2",
            "uniform",
            [
                "5.20 (as it is; 4.57 ignores attn_logit_softcapping in",
                "vLLM: not compared for gemma2",
                "llama.cpp: no export of gemma2",
                ONNX,
            ],
        ),
        ("gpt2", "uniform", [AS_IT_IS, "vLLM: not compared for gpt2", "llama.cpp: no", ONNX]),
        ("vit", "uniform", ["transformers >= 5.20 (as it is; the vit of 4.57 takes no head_dim)", ONNX]),
        ("vit", "ragged", ["5.20 (with trust_remote_code=True, or after .*; modules have other names in 4.57)", ONNX]),
        ("ministral3", "uniform", ["5.20 (as it is; 4.57 has no ministral3)", "vLLM: not", "llama.cpp: no", ONNX]),
        (
            "qwen2_moe",
            "uniform",
            ["qwen2_moe of 4.57 takes no head_dim", "vLLM: not", "llama.cpp", "onnxruntime: no"],
        ),
        ("mixtral", "ragged", ["4.57 does not stack experts", "vLLM: no", "llama.cpp: no", "onnxruntime: no, torch"]),
        ("phi3 with long rope", "uniform", ["the phi3 of 4.57 takes no factor", "vLLM", "llama.cpp", ONNX]),
        ("gpt2, untied", "uniform", ["ignores scale_attn_by_inverse_layer_idx in", "vLLM", "llama.cpp", ONNX]),
        ("t5, gated and untied", "uniform", ["4.57 scales the output of a head that is the embedding"]),
    ],
)
def test_what_older_versions_lack_is_named(row, plan, expected):
    case = case_named(row)
    found = runtimes_of(finish(copy.deepcopy(case.sliced(plan)), case.structure, case.plan(plan)))
    assert len(found) == len(expected)
    for text, pattern in zip(found, expected, strict=True):
        assert all(part.strip() in text for part in pattern.split(".*")), (text, pattern)


@pytest.mark.parametrize(
    ("family", "rope", "expected"),
    [
        ("olmo2", "yarn", "the olmo2 of 4.57 has no rotary embedding of type yarn"),
        ("nemotron", "linear", "the nemotron of 4.57 has no rotary embedding of type linear"),
        ("llama", "yarn", AS_IT_IS),
    ],
)
def test_rotary_embeddings_that_older_versions_lack_are_named(family, rope, expected):
    config = case_named(family).row.config()
    config.rope_parameters |= {"rope_type": rope, "factor": 2.0, "original_max_position_embeddings": 16}
    assert expected in runtimes_of(meta_model(config))[0]


def test_models_of_families_that_were_not_tried_are_not_promised():
    assert missing_in_4(meta_model(OlmoConfig(num_hidden_layers=1))) == "4.57 was not tried with olmo"


@pytest.mark.parametrize(
    ("kind", "channels", "expected"),
    [
        ("bnb-8bit", 48, "transformers >= 5.20 (as it is; it needs bitsandbytes)"),
        ("torchao-int8", 48, "transformers >= 5.20 (as it is; it needs torchao)"),
        ("bnb-4bit", 128, "transformers >= 5.20 (as it is; it needs bitsandbytes)"),
        ("bnb-4bit", 96, "it needs bitsandbytes; not on a CPU: .* 2 layers of these widths"),  # two down_proj
        ("bnb-4bit", 48, "it needs bitsandbytes; not on a CPU: .* 6 layers of these widths"),  # the whole FFNs
    ],
)
def test_a_quantized_result_runs_in_transformers_alone(kind, channels, expected, tmp_path):
    (found,) = runtimes_of(quantized(plain_folder(tmp_path, intermediate_size=channels), kind))
    assert all(part in found for part in expected.split(" .* "))
    assert ("not on a CPU" in found) == ("not on a CPU" in expected)
