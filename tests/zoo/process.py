"""Loading checkpoints in a process of its own that has never heard of this package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

PROGRAM = """
import sys

sys.path[:0] = sys.argv[3:]

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "loraprune":
            raise ImportError("loraprune is blocked here")

sys.meta_path.insert(0, Blocker())
try:
    import loraprune
except ImportError:
    pass
else:
    raise SystemExit("loraprune could be imported")

import json
import torch
import transformers
from pathlib import Path
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()
jobs = Path(sys.argv[1])
found = {}
for job in json.loads(jobs.read_text()):
    folder = job["folder"]
    kwargs = {} if job["stock"] else {"trust_remote_code": True}
    if job["attention"] is not None:
        kwargs["attn_implementation"] = job["attention"]
    model = getattr(transformers, job["auto"]).from_pretrained(folder, dtype="auto", use_safetensors=True, **kwargs)
    origin = type(model).__module__.partition(".")[0]
    assert origin == ("transformers" if job["stock"] else "transformers_modules"), (folder, type(model))
    inputs = load_file(f"{folder}/inputs.safetensors")
    with torch.no_grad():
        found[folder] = model.eval()(**inputs).logits.contiguous()
assert not any(name.partition(".")[0] == "loraprune" for name in sys.modules)
save_file(found, sys.argv[2])
"""


@dataclass(frozen=True)
class Checkpoint:
    """A folder to load.

    Attributes:
        folder: of the checkpoint.
        auto: name of the auto class that loads it.
        stock: whether a class of transformers has to do; otherwise the process trusts the folder's modeling file.
        inputs: what the model is called with.
        attention: implementation to ask for; None leaves the choice to transformers.
    """

    folder: Path
    auto: str
    stock: bool
    inputs: Mapping[str, torch.Tensor]
    attention: str | None = None


def load_elsewhere(
    checkpoints: Sequence[Checkpoint], work: Path, packages: Path | None = None
) -> dict[Path, torch.Tensor]:
    """Logits that models give when plain transformers loads them.

    Args:
        checkpoints: to load.
        work: for what the processes exchange.
        packages: folder whose packages go before those of this environment.
    """
    jobs = []
    for checkpoint in checkpoints:
        save_file(dict(checkpoint.inputs), checkpoint.folder / "inputs.safetensors")
        named = {name: getattr(checkpoint, name) for name in ("auto", "stock", "attention")}
        jobs.append({"folder": str(checkpoint.folder), **named})
    (work / "jobs.json").write_text(json.dumps(jobs))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    process = subprocess.run(
        [
            *(sys.executable, "-I", "-c", PROGRAM, work / "jobs.json", work / "found.safetensors"),
            *([] if packages is None else [packages]),
        ],
        env={
            **environment,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": str(work / "modules"),
            "TRANSFORMERS_VERBOSITY": "error",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return {Path(name): value for name, value in load_file(work / "found.safetensors").items()}
