"""Four folders, one import name: what is listed is what is there, and imports run one way only."""

import ast
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import neurocoder

ROOT = Path(__file__).parents[1]
ROOMS = ("agents", "envs", "policies", "runs")
# Who may import whom. The top-level package holds the version and the errors, for all.
ALLOWED = {
    "policies": {"policies"},
    "envs": {"envs"},
    "agents": {"agents", "envs", "policies"},
    "runs": {"runs", "agents", "envs", "policies"},
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imported_modules(source: str) -> set[str]:
    """Return the dotted names that `source` imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def forbidden(room: str, source: str) -> set[str]:
    """Return the rooms that `source`, a file of `room`, imports and must not."""
    rooms = {name.split(".")[1] for name in imported_modules(source) if name.startswith("neurocoder.")}
    bare = {name.split(".")[0] for name in imported_modules(source)} & set(ROOMS)
    return ((rooms & set(ROOMS)) - ALLOWED[room]) | bare


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    assert not forbidden(path.relative_to(ROOT).parts[0], path.read_text("utf-8"))


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("policies", "from neurocoder.envs import make_vec"),
        ("envs", "import neurocoder.policies.heads"),
        ("agents", "from neurocoder import runs"),
        ("runs", "import agents.a3c"),
    ],
)
def test_the_import_test_sees_what_it_should(room, line):
    assert forbidden(room, line)


def test_every_package_folder_is_listed_in_pyproject():
    there = {
        f"neurocoder.{'.'.join(p.parent.relative_to(ROOT).parts)}" for p in SOURCES if p.name == "__init__.py"
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == there | {"neurocoder"}


def test_versions_agree():
    assert PROJECT["project"]["version"] == neurocoder.__version__ == metadata.version("neurocoder")
    assert f"## {neurocoder.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_readme_names_both_requirement_files_and_ci_runs_the_readme():
    readme = (ROOT / "README.md").read_text("utf-8")
    assert "pip install -r requirements.txt" in readme
    assert "pip install -r requirements-dev.txt" in readme
    assert "README.md" in (ROOT / ".ci" / "run").read_text("utf-8")


def test_pins_lie_within_the_declared_ranges():
    from packaging.requirements import Requirement

    pins = {}
    for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines():
        if "==" in line and not line.startswith("#"):
            name, version = line.split("==")
            pins[name.strip().lower()] = version.strip()
    assert pins["torch"] == "2.13.0"
    for text in PROJECT["project"]["dependencies"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[requirement.name.lower()]), requirement
