"""What a user is told about where a result runs agrees with what the exporters take."""

from __future__ import annotations

import pytest
from tests.models import tiny_model
from tests.quantized_models import plain_folder, quantized

from loraprune.checkpoint.exports.overview import runtimes_of
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


@pytest.mark.parametrize(
    ("family", "kept", "expected"),
    [
        ("llama", half, ["transformers (as it is)", "vLLM", "llama.cpp .* architecture llama", "onnxruntime"]),
        ("qwen3", half, ["transformers (as it is)", "vLLM", "llama.cpp .* architecture qwen3", "onnxruntime"]),
        ("qwen2", half, ["transformers (as it is)", "llama.cpp .* architecture llama", "onnxruntime"]),
        ("qwen2", only_channels, ["transformers (as it is)", "vLLM", "llama.cpp .* qwen2", "onnxruntime"]),
        ("mistral", ragged, ["transformers (after `import loraprune`", "llama.cpp .* deci", "onnxruntime"]),
        ("qwen3", ragged, ["transformers (after `import loraprune`", "onnxruntime"]),
    ],
)
def test_the_runtimes_of_a_result_are_named(family, kept, expected):
    found = runtimes_of(result(family, kept))
    assert len(found) == len(expected)
    for text, pattern in zip(found, expected, strict=True):
        assert all(part in text for part in pattern.split(" .* ")), (text, pattern)


@pytest.mark.parametrize(
    ("kind", "channels", "expected"),
    [
        ("bnb-8bit", 48, "transformers (as it is; it needs bitsandbytes)"),
        ("torchao-int8", 48, "transformers (as it is; it needs torchao)"),
        ("bnb-4bit", 128, "transformers (as it is; it needs bitsandbytes)"),
        ("bnb-4bit", 96, "it needs bitsandbytes; not on a CPU: .* 2 layers of these widths"),  # two down_proj
        ("bnb-4bit", 48, "it needs bitsandbytes; not on a CPU: .* 6 layers of these widths"),  # the whole FFNs
    ],
)
def test_a_quantized_result_runs_in_transformers_alone(kind, channels, expected, tmp_path):
    (found,) = runtimes_of(quantized(plain_folder(tmp_path, intermediate_size=channels), kind))
    assert all(part in found for part in expected.split(" .* "))
    assert ("not on a CPU" in found) == ("not on a CPU" in expected)
