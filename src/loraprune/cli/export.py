"""``loraprune export``: a finished checkpoint as a file that another runtime loads."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loraprune.cli.console import open_console, quiet_libraries, report_errors, results_console

if TYPE_CHECKING:
    from loraprune.runtimes.gguf.file import GgufResult
    from loraprune.runtimes.onnx import OnnxResult

FORMATS = ("gguf", "onnx")


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="loraprune export",
        description="Write a checkpoint as a file that another runtime loads: GGUF for llama.cpp and the programs "
        "built on it, ONNX for onnxruntime.",
    )
    parser.add_argument("checkpoint", type=Path, help="folder that `loraprune prune` or save_pretrained wrote")
    parser.add_argument("--format", required=True, metavar="{gguf,onnx}", help="of the file")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=None,
        metavar="FILE",
        help="file to write (default: model-OUTTYPE.gguf or model.onnx in the checkpoint's folder)",
    )
    parser.add_argument(
        "--outtype", default=None, metavar="{f16,f32,q8_0}", help="GGUF: numbers of the matrices (default: f16)"
    )
    parser.add_argument(
        "--pre-tokenizer",
        default=None,
        metavar="NAME",
        help="GGUF: llama.cpp's way to cut text, for a byte-level tokenizer that equals none of them",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file if there is one")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parser().parse_args(arguments)
    console = open_console()
    return report_errors(console, lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    _check(options)
    from loraprune.runtimes.gguf.file import write_gguf
    from loraprune.runtimes.onnx import write_onnx

    quiet_libraries()
    folder: Path = options.checkpoint
    if options.format == "gguf":
        outtype = options.outtype or "f16"
        gguf_result = write_gguf(
            folder,
            options.output or folder / f"model-{outtype}.gguf",
            outtype=outtype,
            pre_tokenizer=options.pre_tokenizer,
            overwrite=options.overwrite,
        )
        _show(_gguf_lines(gguf_result), gguf_result.notes)
    else:
        onnx_result = write_onnx(folder, options.output or folder / "model.onnx", overwrite=options.overwrite)
        _show(_onnx_lines(onnx_result), ())
    return 0


def _check(options: argparse.Namespace) -> None:
    if options.format not in FORMATS:
        raise ValueError(f"There is no format {options.format!r}; choose {' or '.join(FORMATS)}.")
    if not options.checkpoint.is_dir():
        raise ValueError(f"{options.checkpoint} is no folder. Name one that `loraprune prune` wrote.")
    if options.format != "gguf":
        for name in ("outtype", "pre_tokenizer"):
            if getattr(options, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} is for --format gguf; leave it out.")


def _show(lines: Sequence[str], notes: Sequence[str]) -> None:
    console = results_console()
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for note in notes:
        console.print(f"Note: {note}.", style="yellow", highlight=False, markup=False, soft_wrap=True)


def _gguf_lines(result: GgufResult) -> list[str]:
    kind, cut = result.tokenizer
    return [
        f"{result.file}: {result.size / 1e6:.1f} MB, GGUF of the architecture {result.architecture}, tokenizer {kind} "
        f"({cut})",
        f"Run it: llama-cli -m {result.file}",
    ]


def _onnx_lines(result: OnnxResult) -> list[str]:
    shapes = ", ".join(f"{name} ({', '.join(map(str, shape))})" for name, shape in result.inputs.items())
    checked = (
        "Not checked: onnxruntime is not installed (pip install onnxruntime)."
        if result.difference is None
        else f"Checked in onnxruntime: its logits differ from torch's by up to {result.difference:.1g}."
    )
    return [
        f"{result.file}: {result.size / 1e6:.1f} MB, ONNX of {result.model_class}",
        checked,
        f"Run it: onnxruntime.InferenceSession({str(result.file)!r}).run(['logits'], {{…}}) with {shapes}",
    ]
