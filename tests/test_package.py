"""The package as it is distributed: one version, and a wheel and a source distribution that hold all they need."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from loraprune import __version__

ROOT = Path(__file__).parents[1]
LEFT_BEHIND = shutil.ignore_patterns(
    ".git", ".venv", "__pycache__", "*.egg-info", "build", "dist", "site", "runs", "loraprune-demo", ".*_cache"
)


def test_the_version_stands_in_one_place() -> None:
    places = [path.name for path in ROOT.glob("src/**/*.py") if re.search(r"^__version__ = ", path.read_text(), re.M)]
    assert places == ["_version.py"]
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == __version__


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A copy of the tree, the wheel made from the source distribution that was made from it, and that one."""
    tree = tmp_path_factory.mktemp("package") / "tree"
    shutil.copytree(ROOT, tree, ignore=LEFT_BEHIND)
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", tree / "dist", tree], check=True)
    (wheel,), (source,) = tree.glob("dist/*.whl"), tree.glob("dist/*.tar.gz")
    return tree, wheel, source


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.full
def test_the_wheel_holds_the_package_and_nothing_else(distributions: tuple[Path, Path, Path]) -> None:
    tree, wheel, _ = distributions
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
        metadata = opened.read(f"loraprune-{__version__}.dist-info/METADATA").decode()
    package = {f"loraprune/{name}" for name in files_of(tree / "src/loraprune")}
    assert {name for name in names if ".dist-info/" not in name} == package
    assert {"loraprune/py.typed", "loraprune/data/demo-llama/model.safetensors"} <= package
    assert {"loraprune/recipes/published/flap.yaml", "loraprune/report/page.html.j2"} <= package
    assert f"loraprune-{__version__}.dist-info/licenses/LICENSE" in names
    assert f"\nVersion: {__version__}\n" in metadata
    assert "\nProject-URL: Issues, https://" in metadata


@pytest.mark.full
def test_the_source_distribution_holds_what_the_repository_holds(distributions: tuple[Path, Path, Path]) -> None:
    tree, _, source = distributions
    with tarfile.open(source) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    made = ("dist/", "src/loraprune.egg-info/")
    here = {name for name in files_of(tree) if not name.startswith(made)}
    links = {name for name in here if name.startswith("recipes/")}  # to the recipes of the package
    assert {name for name in here - links - names if not name.startswith(".")} == set()


@pytest.mark.full
def test_the_wheel_runs_where_its_dependencies_are(distributions: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, wheel, _ = distributions
    home = tmp_path / "home"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", home, wheel],
        check=True,
    )

    def run(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(home)}
        done = subprocess.run(
            [sys.executable, "-m", "loraprune", *arguments],
            cwd=tmp_path, env=environment, check=True, capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout

    assert run("--version") == f"loraprune {__version__}\n"
    assert "llama, 6 layers" in run("inspect", str(home / "loraprune/data/demo-llama"))
    where = "import loraprune; print(loraprune.__file__)"
    found = subprocess.run([sys.executable, "-c", where], env={**os.environ, "PYTHONPATH": str(home)},
                           cwd=tmp_path, check=True, capture_output=True, text=True)  # fmt: skip
    assert Path(found.stdout.strip()).is_relative_to(home)
    run("demo", "--help")
