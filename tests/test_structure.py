"""The arrows of the architecture, and the size of its files."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.smoke import SMOKE

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("flows", "tasks", "deployments", "infra")
STEPS = ("ingest", "validate", "pack", "train", "evaluate", "register", "deploy", "predict")
ORDER = (
    ("deployments",), ("flows",), tuple(f"tasks.{step}" for step in STEPS), ("tasks.ui",), ("tasks.launcher",),
    ("tasks.runs", "tasks.scoring", "tasks.data"), ("tasks.distributed",), ("infra.stack",), ("infra.models",),
    ("infra.storage",), ("infra.security",), ("infra",))
"""Rooms of the house; a module imports from its own room and from those to its right."""
RANKS_MAY_IMPORT = {
    "infra.spec", "infra.errors", "infra.files", "infra.records", "infra.parent_death", "infra.crashpoints",
    "infra.models.base_fit", "infra.models.model_folder", "infra.models.weight_headers", "tasks.distributed"}
PREDICTOR_MAY_IMPORT = {
    "deployments.predictor", "tasks.distributed", "tasks.data.chat", "infra"}  # messages are judged as in training
MAY_IMPORT_PREFECT = {
    "flows", "deployments", "tasks.runs", "tasks.ui", "tasks.launcher.gpu_slots", *(f"tasks.{step}" for step in STEPS)}
TWICE = {"main"}
WITHOUT_TORCH = ("tasks.data", "tasks.scoring", "tasks.launcher")
FORBIDDEN_FOR_RANKS = ("prefect", "mlflow", "s3fs", "fastapi", "pydantic", "httpx", "matplotlib",
                       "fsspec.implementations.http")
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


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> int | None:
    """Its place in ORDER; None for a package that only holds rooms."""
    found = [place for place, rooms in enumerate(ORDER) for room in rooms if within(module, room)]
    return found[0] if found and module != "tasks" else None


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def modules_of(path: Path) -> set[str]:
    """Our own modules that a file imports."""
    return {name for name in imports_of(path) if name in MODULES and "." in name}


MODULES = {module_of(path): path for path in SOURCES}


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_order(module: str) -> None:
    path, room = MODULES[module], room_of(module)
    imported = modules_of(path)
    if room is not None:
        assert not {name for name in imported if (other := room_of(name)) is not None and other < room}
    if module.startswith("tasks.distributed"):
        assert not {name for name in imported if not any(within(name, one) for one in RANKS_MAY_IMPORT)}
    if module.startswith("deployments.predictor"):
        assert not {name for name in imported if not any(within(name, one) for one in PREDICTOR_MAY_IMPORT)}
    if not any(within(module, one) for one in MAY_IMPORT_PREFECT):
        assert not re.search(r"(?m)^ *(import|from) prefect\b", path.read_text(encoding="utf-8"))


def test_no_step_imports_a_step_and_every_room_is_in_the_order() -> None:
    steps = {f"tasks.{step}" for step in STEPS}
    assert {module for module in MODULES if module.startswith("tasks.") and module.count(".") == 1
            and MODULES[module].name != "__init__.py"} == steps
    assert not {(step, name) for step in steps for name in modules_of(MODULES[step]) if name in steps - {step}}
    assert [module for module in MODULES if room_of(module) is None] == ["tasks"]


def test_no_two_public_classes_or_functions_have_one_name() -> None:
    found: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        if within(module, "tasks") or within(module, "infra"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                    found.setdefault(node.name, []).append(module)
    assert {name: modules for name, modules in found.items() if len(modules) > 1 and name not in TWICE} == {}


def test_ranks_load_no_service_libraries() -> None:
    modules = ", ".join(f"tasks.distributed.{name}" for name in ("train", "generate", "encode", "merge"))
    code = (f"import sys, {modules}\n"
            f"print([name for name in {FORBIDDEN_FOR_RANKS!r} if name in sys.modules])")
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip().splitlines()[-1] == "[]"


def test_services_that_stay_load_nothing_heavy() -> None:
    """What each of them loads is memory of the idle stack: 20 to 60 MiB for each of these packages."""
    heavy = ("torch", "transformers", "mlflow", "pandas", "pyarrow", "scipy", "sklearn", "matplotlib", "botocore",
             "prefect.server", "docker", "kubernetes_asyncio")
    services = (("infra.stack.supervisor", (*heavy, "prefect", "numpy")), ("deployments.reconcile", (*heavy, "numpy")),
                ("deployments.gateway.app", heavy))
    code = "import sys\n" + "\n".join(
        f"import {service}\nprint([n for n in {without!r} if n in sys.modules])" for service, without in services)
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, text=True, capture_output=True).stdout
    assert found.split("\n") == ["[]", "[]", "[]", ""]


def test_flow_and_data_load_no_torch() -> None:
    modules = [module for module in MODULES if any(within(module, room) for room in WITHOUT_TORCH)]
    code = (f"import sys, flows.finetune, deployments.cli.merge, {', '.join(modules)}\n"
            "print([n for n in ('torch', 'transformers', 'mlflow', 'matplotlib') if n in sys.modules])")
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip().splitlines()[-1] == "[]"


def test_no_file_is_longer_than_300_lines() -> None:
    paths = [*SOURCES, *(ROOT / "tests").rglob("*.py")]
    assert not [(str(p), n) for p in paths if (n := len(p.read_text(encoding="utf-8").splitlines())) > 300]


def test_every_module_of_steps_and_infra_has_a_test_file_of_its_path_or_is_named_by_the_one_that_tests_it() -> None:
    files = (ROOT / "tests").rglob("test_*.py")
    named = " ".join(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "" for path in files)
    modules = [path.relative_to(ROOT) for path in SOURCES if path.name != "__init__.py"]
    assert not [str(path) for path in modules if path.parts[0] in ("tasks", "infra") and str(path) not in named
                and not (ROOT / "tests" / path.parent / f"test_{path.name}").exists()]


def test_no_flow_module_shadows_the_standard_library() -> None:
    assert not {path.stem for path in (ROOT / "flows").glob("*.py")} & sys.stdlib_module_names


def test_what_make_test_runs_of_the_slow_tests_is_there() -> None:
    for name in SMOKE:
        path, function = name.split("::")
        assert f"\ndef {function.split('[')[0]}(" in (ROOT / path).read_text(encoding="utf-8"), name
