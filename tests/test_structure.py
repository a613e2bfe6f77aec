"""The arrows of the architecture, and the size of its files."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("flows", "tasks", "deployments", "infra")
MAY_IMPORT = {
    "infra": {"infra"},
    "tasks": {"tasks", "infra"},
    "flows": {"flows", "tasks", "infra"},
    "deployments": {"deployments", "flows", "tasks", "infra"},
}
RANKS_MAY_IMPORT = {
    "infra.spec", "infra.errors", "infra.files", "infra.records", "infra.parent_death", "infra.crashpoints",
    "infra.models.model_folder", "infra.models.weight_headers",
    "tasks.distributed"}
PREDICTOR_MAY_IMPORT = {"deployments.predictor", "tasks.distributed", "infra"}
FORBIDDEN_FOR_RANKS = ("prefect", "mlflow", "s3fs", "fastapi", "pydantic", "httpx", "fsspec.implementations.http")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def imports_of(path: Path) -> set[str]:
    """Our own modules that a file imports, wherever the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in found if name.split(".")[0] in FOLDERS}


def within(name: str, allowed: set[str]) -> bool:
    return any(name == item or name.startswith(f"{item}.") or item.startswith(f"{name}.") for item in allowed)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    allowed = MAY_IMPORT[folder]
    if path.is_relative_to(ROOT / "tasks" / "distributed"):
        allowed = RANKS_MAY_IMPORT
    if path.is_relative_to(ROOT / "deployments" / "predictor"):
        allowed = PREDICTOR_MAY_IMPORT
    assert not {name for name in imports_of(path) if not within(name, allowed)}


def test_ranks_load_no_service_libraries() -> None:
    modules = ", ".join(f"tasks.distributed.{name}" for name in ("train", "generate", "encode", "merge"))
    code = (f"import sys, {modules}\n"
            f"print([name for name in {FORBIDDEN_FOR_RANKS!r} if name in sys.modules])")
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip().splitlines()[-1] == "[]"


def test_the_flow_loads_no_torch() -> None:
    code = ("import sys, flows.finetune, deployments.cli.merge\n"
            "print([n for n in ('torch', 'transformers', 'mlflow') if n in sys.modules])")
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip().splitlines()[-1] == "[]"


def test_no_file_is_longer_than_300_lines() -> None:
    paths = [*SOURCES, *(ROOT / "tests").rglob("*.py")]
    assert not [(str(p), n) for p in paths if (n := len(p.read_text(encoding="utf-8").splitlines())) > 300]


def test_no_flow_module_shadows_the_standard_library() -> None:
    assert not {path.stem for path in (ROOT / "flows").glob("*.py")} & sys.stdlib_module_names
