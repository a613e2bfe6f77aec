"""The files that make a version a model for MLflow: `MLmodel`, requirements, and infra/models/pyfunc_model.py as code.

Nothing is pickled and no weights are loaded. Full weights stay where they are, in the store: `MLmodel` says where.
The predictor reads versions from the store, where none of this lies.
"""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.models.version_folder import SERVE_FILE

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

CODE = Path(__file__).with_name("pyfunc_model.py")
REQUIRED = ("mlflow", "torch", "transformers", "peft", "sentencepiece")
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
MAX_NEW_TOKENS = 128
EXAMPLES: tuple[Any, Any] = (["Once upon a time"], {"messages": [{"role": "user", "content": "Hello"}]})
"""Of a prompt, and of a conversation."""


def write_model(
    folder: Path, files: Path, config: dict[str, Any], *, model_id: str, run: str, without: tuple[str, ...] = (),
) -> None:
    """Fill `folder` with a version's files, and with what MLflow needs to load them. `config`: where its base lies, or
    its whole weights, which then are left out."""
    from mlflow.models import Model
    from mlflow.pyfunc import FLAVOR_NAME, save_model

    kind = json.loads((files / SERVE_FILE).read_text(encoding="utf-8"))["kind"]
    made = Model(run_id=run, model_id=model_id)
    save_model(  # which fills `made`: Model.load would take a # or % in the folder's path for an address's
        path=str(folder), python_model=str(CODE), model_config=config, signature=signature_of(kind),
        input_example=EXAMPLES[kind == "messages"], mlflow_model=made,
        pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in REQUIRED])
    made.flavors[FLAVOR_NAME]["model_code_path"] = CODE.name  # MLflow writes this machine's path, and reads the name
    made.save(str(folder / "MLmodel"))
    left_out = (*without, *(WEIGHTS if "weights" in config else ()))
    shutil.copytree(files, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*left_out))


def signature_of(kind: str) -> ModelSignature:
    """What a version takes and gives: a prompt, or for one trained on messages a conversation."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array, Object, Property

    turn = Object([Property("role", DataType.string), Property("content", DataType.string)])
    asked = ColSpec(Array(turn), "messages") if kind == "messages" else ColSpec(DataType.string)
    return ModelSignature(
        inputs=Schema([asked]), outputs=Schema([ColSpec(DataType.string)]),
        params=ParamSchema([ParamSpec("max_new_tokens", DataType.long, MAX_NEW_TOKENS),
                            ParamSpec("temperature", DataType.double, 0.0)]))
