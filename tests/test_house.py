"""The plan of the house: what stands where, how long files are, and that each name is given once."""

from __future__ import annotations

import ast
import re
import statistics
from collections import defaultdict
from pathlib import Path

import pytest

import loraprune

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "loraprune"
FILES = sorted(PACKAGE.rglob("*.py"))
PACKAGES = sorted(path.parent for path in FILES if path.name == "__init__.py" and path.parent != PACKAGE)

MAX_LINES = 400
MIN_LINES = 30
SHORT = {
    "__main__.py": "hands over to the command line",
    "_version.py": "a constant",
    "architectures/convnext.py": "a page of constants",
    "calibration/progress.py": "a protocol",
    "data/front_matter.py": "the reader of one format",
    "importance/wanda.py": "one formula",
    "options/precision.py": "names of number formats",
    "display/terminal.py": "what is taken out of a text",
}
"""Files with fewer lines, and what they are."""

FIRST_API = {
    "BenchConfig",
    "BenchResult",
    "ComparisonConfig",
    "CriteriaComparison",
    "Estimate",
    "EstimateConfig",
    "EvaluationConfig",
    "OneshotConfig",
    "OneshotResult",
    "Plan",
    "PruneResult",
    "PruningCallback",
    "PruningConfig",
    "PstCallback",
    "RunOptions",
    "RunsComparison",
    "Structure",
    "__version__",
    "bench",
    "compare_criteria",
    "compare_runs",
    "describe",
    "estimate",
    "evaluate",
    "keep_zeros_",
    "load_semi_structured",
    "oneshot",
    "prune",
    "read_bench",
    "recover",
    "save_pruned",
}
"""What was importable from the package before its modules moved."""


def lines(path: Path) -> int:
    return path.read_text(encoding="utf-8").count("\n")


def short(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def test_the_root_holds_packages_and_nothing_else() -> None:
    assert {path.name for path in PACKAGE.iterdir() if path.is_file()} == {
        "__init__.py",
        "__main__.py",
        "_version.py",
        "py.typed",
    }


@pytest.mark.parametrize("package", PACKAGES, ids=short)
def test_every_package_says_in_one_line_what_lives_there(package: Path) -> None:
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8")))
    assert text
    assert text.splitlines()[0].endswith(".")


def test_the_readme_shows_every_package_of_the_root() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").partition("```\nsrc/loraprune/\n")[2].partition("```")[0]
    shown = {line.split("── ")[1].split("/")[0] for line in tree.splitlines() if line.startswith(("├──", "└──"))}
    assert shown == {package.name for package in PACKAGES if package.parent == PACKAGE}


def test_files_can_be_held_in_the_head() -> None:
    assert {short(path): lines(path) for path in FILES if lines(path) > MAX_LINES} == {}
    small = {short(path) for path in FILES if lines(path) < MIN_LINES and path.name != "__init__.py"}
    assert small == set(SHORT)
    own = [lines(path) for path in FILES if path.name != "__init__.py"]
    assert 100 <= statistics.median(own) <= 200


def test_the_lowest_versions_are_those_that_the_project_allows() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("dependencies = [")[2]
    bounds = dict(re.findall(r'"([\w-]+)>=([\d.]+)', project.partition("dev = [")[0]))
    lowest = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "constraints-lowest.txt").read_text(), re.MULTILINE))
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert f"torch=={lowest['torch']}\n" in pinned  # the bound of torch alone is not tested
    assert lowest == {**bounds, "torch": lowest["torch"]}
    assert set(re.findall(r"^([\w-]+)==", pinned, re.MULTILINE)) == set(bounds)


def test_no_public_name_is_defined_twice() -> None:
    places: defaultdict[str, list[str]] = defaultdict(list)
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [target.id for target in targets if isinstance(target, ast.Name)]
            else:
                continue
            for name in names:
                if not name.startswith("_") and name != "logger":
                    places[name].append(short(path))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_everything_that_was_importable_still_is() -> None:
    assert set(loraprune.__all__) >= FIRST_API
    for name in loraprune.__all__:
        assert getattr(loraprune, name) is not None
