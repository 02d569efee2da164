"""``loraprune export``: conversion of a checkpoint to the format of another runtime."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loraprune.checkpoint.names import DEMO, check_no_preset, expanded
from loraprune.cli.console import begin, open_console, report_errors, results_console
from loraprune.cli.parsing import Parser, help_shown, parsed
from loraprune.cli.push import add_target, push_now, target_of
from loraprune.display.console import print_line
from loraprune.options.near import did_you_mean

if TYPE_CHECKING:
    from loraprune.checkpoint.exports.gguf.file import GgufResult
    from loraprune.checkpoint.exports.onnx import OnnxResult
    from loraprune.checkpoint.exports.sparse_checkpoint import SparseFolderResult

_FORMATS = ("safetensors", "gguf", "onnx", "semi-structured", "compressed-tensors")


def export_parser() -> Parser:
    """Make the parser of the command."""
    parser = Parser(
        "loraprune export",
        usage="loraprune export CHECKPOINT --format FORMAT [-o PATH] [options]",
        description="Write a checkpoint in the format of another runtime: GGUF for llama.cpp, ONNX for onnxruntime, "
        "or for 2:4 weights, semi-structured (torch) or compressed-tensors (vLLM). Or write a quantized checkpoint or "
        "a GGUF file as safetensors in 16 bits.",
        epilog="examples:\n  loraprune export pruned --format gguf --outtype q8_0\n",
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="folder that loraprune or save_pretrained wrote"
    )
    most = parser.add_argument_group("most used")
    most.add_argument("--format", required=True, metavar=f"{{{','.join(_FORMATS)}}}", help="format of the result")
    most.add_argument("-o", "--output", type=Path, metavar="PATH", help="file or folder to write (default: a file in "
                      "CHECKPOINT; CHECKPOINT-FORMAT for 2:4 formats; ./CHECKPOINT-16bit for safetensors)")  # fmt: skip
    most.add_argument("--outtype", metavar="{f16,f32,q8_0}", help="GGUF: data type of the matrices (default: f16)")
    most.add_argument("--overwrite", action="store_true", help="replace an existing file or folder")
    hub = parser.add_argument_group("hub")
    hub.add_argument("--push-to-hub", metavar="NAME", help="push the result to this name on the Hub")
    add_target(hub)
    rare = parser.add_argument_group("details of GGUF")
    rare.add_argument("--pre-tokenizer", metavar="NAME", help="pre-tokenizer of llama.cpp, for a byte-level tokenizer "
                      "that is not recognized")  # fmt: skip
    parser.rare = {"details of GGUF"}
    return parser


def export_command(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = export_parser()
    shown = help_shown(parser, arguments)
    if shown is not None:
        return shown
    console = open_console()
    return report_errors(console, lambda: _run(parsed(parser, arguments)))


def _run(options: argparse.Namespace) -> int:
    check_no_preset(options.checkpoint)
    named, options.checkpoint = options.checkpoint, Path(expanded(options.checkpoint))
    _check(options)
    if str(named) == DEMO and options.checkpoint != named and options.output is None:
        raise ValueError("The folder of the bundled model is part of this package. Name the output with -o PATH.")
    begin("export", named)
    target = None if options.push_to_hub is None else target_of(options)
    folder: Path = options.checkpoint
    if options.format == "safetensors":
        written = _plain(options, folder)
    elif options.format == "gguf":
        written = _gguf(options, folder)
    elif options.format == "onnx":
        from loraprune.checkpoint.exports.onnx import write_onnx

        onnx_result = write_onnx(folder, options.output or folder / "model.onnx", overwrite=options.overwrite)
        _show(_onnx_lines(onnx_result), ())
        written = onnx_result.file
    else:
        written = options.output or sparse_folder(folder, options.format)
        export_sparse(folder, options.format, written, overwrite=options.overwrite)
    if target is not None:
        push_now(target, written, card=folder / "README.md")
    return 0


def _plain(options: argparse.Namespace, source: Path) -> Path:
    from loraprune.checkpoint.exports.plain_copy import write_plain_copy

    output: Path = options.output or Path(f"{source.resolve().stem}-16bit")
    result = write_plain_copy(source, output, overwrite=options.overwrite)
    _show(
        [
            f"{result.folder}: {result.size / 1e6:.1f} MB of weights in {result.dtype}, converted from {result.kind}",
            f"Prune it: loraprune oneshot {result.folder} --data DATA --ratio 0.5 -o OUT",
        ],
        ["the copy computes the same as the quantized model, so the quantization error stays"],
    )
    return result.folder


def _gguf(options: argparse.Namespace, folder: Path) -> Path:
    from loraprune.checkpoint.exports.gguf.file import OUTTYPES, write_gguf

    outtype = options.outtype or "f16"
    outtype = outtype.lower() if outtype.lower() in OUTTYPES else outtype
    result = write_gguf(
        folder,
        options.output or folder / f"model-{outtype}.gguf",
        outtype=outtype,
        pre_tokenizer=options.pre_tokenizer,
        overwrite=options.overwrite,
    )
    _show(_gguf_lines(result), result.notes)
    return result.file


def sparse_folder(folder: Path, form: str) -> Path:
    """Return the default folder for a 2:4 checkpoint in another format, beside the checkpoint."""
    beside = folder.resolve()
    return beside.with_name(f"{beside.name}-{form}")


def export_sparse(folder: Path, form: str, output: Path | None = None, *, overwrite: bool = False) -> None:
    """Write a 2:4 checkpoint in a format for 2:4 weights, and print the result.

    Raises:
        ValueError: the checkpoint is not 2:4, or this machine or the installed packages do not support the format.
    """
    output = output or sparse_folder(folder, form)
    if form == "semi-structured":
        from loraprune.checkpoint.exports.semi_structured import write_semi_structured

        result = write_semi_structured(folder, output, overwrite=overwrite)
        how = f"Load it: loraprune.load_semi_structured({str(output)!r}), on a GPU of compute capability 8.0 or higher"
    else:
        from loraprune.checkpoint.exports.compressed_tensors import export_compressed_tensors

        result = export_compressed_tensors(folder, output, overwrite=overwrite)
        how = (
            f"Run it: vllm serve {output}, with a vLLM from before pull request 36799 (2026), which removed 2:4 support"
        )
    _show([_sparse_line(result), how], _sparse_notes(result))


def _check(options: argparse.Namespace) -> None:
    if options.format not in _FORMATS:
        near = did_you_mean(options.format, _FORMATS)
        raise ValueError(
            f"There is no format {options.format!r}; choose {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}.{near}"
        )
    source: Path = options.checkpoint
    is_gguf = options.format == "safetensors" and source.suffix.lower() == ".gguf" and source.is_file()
    if not is_gguf and not source.is_dir():
        if options.format != "safetensors" and source.suffix.lower() == ".gguf" and source.is_file():
            raise ValueError(
                f"{source} is a GGUF file already, and export reads it for --format safetensors only. Name the folder "
                "of the checkpoint."
            )
        raise ValueError(f"{source} is not a folder. Name one that loraprune or save_pretrained wrote.")
    if options.push_to_hub is None and (options.private is not None or options.hub_revision is not None):
        raise ValueError("--private and --hub-revision need --push-to-hub NAME. Add it, or leave them out.")
    if options.format != "gguf":
        for name in ("outtype", "pre_tokenizer"):
            if getattr(options, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} is for --format gguf; leave it out.")


def _show(lines: Sequence[str], notes: Sequence[str]) -> None:
    console = results_console()
    for line in lines:
        print_line(console, line)
    for note in notes:
        print_line(console, f"Note: {note}.", "yellow")


def _gguf_lines(result: GgufResult) -> list[str]:
    kind, cut = result.tokenizer
    chat = ", with the chat template" if result.has_chat_template else ""
    return [
        f"{result.file}: {result.size / 1e6:.1f} MB, GGUF of the architecture {result.architecture}, tokenizer {kind} "
        f"({cut}){chat}",
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


def _sparse_line(result: SparseFolderResult) -> str:
    return (
        f"{result.folder}: {result.size / 1e6:.1f} MB of weights ({result.size_before / 1e6:.1f} MB before), "
        f"{result.sparse} layers stored as 2:4"
    )


def _sparse_notes(result: SparseFolderResult) -> list[str]:
    if not result.dense:
        return []
    named = ", ".join(result.dense[:3]) + (", …" if len(result.dense) > 3 else "")
    verbs = "is not 2:4 and stays as it is" if len(result.dense) == 1 else "are not 2:4 and stay as they are"
    return [f"{len(result.dense)} of the linear layers {verbs}: {named}"]
