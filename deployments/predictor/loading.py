"""Read a version's folder and put it into memory, beside what is there.

In:   the verified folder of a version, the base model's folder for an adapter     Out: a `Loaded`
Bases are shared: all adapters on one base (by digest and number format) live in one engine, each
under the name of its version. A full fine-tune is an engine of its own. Only safetensors are
read; a folder with anything that could hold code is refused. Leaves nothing on disk.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import PreTrainedModel

from deployments.predictor.encoder import Encoder
from deployments.predictor.engine import Engine
from deployments.predictor.served import Order
from infra.errors import AnnealError, UserError, shown
from infra.files import MANIFEST, Manifest
from infra.models.base_folders import Checked, check
from infra.models.version_folder import BASE_FILE, SERVE_FILE, version_id
from infra.settings import Settings
from infra.spec import Precision
from tasks.distributed.adapters import check_adapter
from tasks.distributed.codec import Codec
from tasks.distributed.model import dtype_of, load_base, load_tokenizers, torch_device

T = TypeVar("T")
ADAPTER = "adapter_model.safetensors"
CODE_SUFFIXES = frozenset(
    {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".h5", ".py", ".pyc", ".so"})
PRECISIONS: dict[str, Precision] = {
    "fp32": "fp32", "float32": "fp32", "bf16": "bf16", "bfloat16": "bf16", "auto": "auto"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What base.json and serve.json of a version say."""

    method: Literal["lora", "full"]
    base_name: str
    base_digest: str
    precision: Precision
    kind: str
    """What it was trained on: prompt, text or messages."""
    prompt_template: str
    context_tokens: int
    stop_ids: frozenset[int]
    smoke_prompt: str
    templated: bool = False
    """Prompts spell special tokens, and mean them."""


@dataclass(slots=True, kw_only=True, eq=False)
class Loaded:
    """A version in memory."""

    id: str
    folder: str
    """Its name in the store."""
    card: Card
    engine: Engine
    adapter: str | None
    """PEFT's name of the adapter; None: full weights."""
    encoder: Encoder
    decoder: Codec
    """The engine's thread only."""
    in_flight: int = 0
    """Rows that have not ended; changed under the shelf's lock."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end an answer."""
        return self.card.stop_ids or self.encoder.stop_ids


def read_card(folder: Path, version: str) -> Card:
    """Check a version's files by name and read what they say. Raises UserError, naming the file."""
    where = f"version {version[:12]}"
    manifest = Manifest.from_json((folder / MANIFEST).read_bytes())
    by_id = {name: entry.sha256 for name, entry in manifest.files.items()}
    if version != manifest.digest and version != version_id(folder, by_id):  # the former: of an earlier release
        raise UserError(f"the folder holds version {manifest.digest[:12]}", where=where,
                        allowed="the files whose sha256 is the version's id", fix="Name the folder of this version.")
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.relative_to(folder).as_posix() not in {MANIFEST, *manifest.files}:
            raise UserError(f"{shown(path.name)} is in the folder, but not part of the version", where=where,
                            allowed="the files that its manifest lists", fix="Take the file away.")
        if path.suffix.lower() in CODE_SUFFIXES or path.is_symlink():
            raise UserError(f"{shown(path.name)} is in the folder", where=where,
                            allowed="safetensors, JSON and tokenizer files", fix="Register the version again.")
    base, serve = _read(folder / BASE_FILE, where), _read(folder / SERVE_FILE, where)
    try:
        card = Card(
            method=base["method"], base_name=str(base["name"]), base_digest=str(base["digest"]),
            precision=PRECISIONS[str(base.get("dtype", "auto")).removeprefix("torch.")],
            kind=str(serve.get("kind", "prompt")), prompt_template=str(serve["prompt_template"]),
            templated=serve.get("prompt_format") == "templated", context_tokens=int(serve["context_tokens"]),
            stop_ids=frozenset(map(int, serve.get("stop_ids", ()))), smoke_prompt=str(serve.get("smoke_prompt", "")))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"base.json or serve.json lacks or mistypes {error}", where=where,
                        fix="Register the version again.") from error
    if card.method not in ("lora", "full") or "{prompt}" not in card.prompt_template:
        raise UserError(
            f"method {shown(card.method)} with template {shown(card.prompt_template)}", where=where,
            allowed="method lora or full and a template with {prompt}", fix="Register the version again.")
    if not (folder / ADAPTER).exists() if card.method == "lora" else not any(folder.glob("*.safetensors")):
        raise UserError("it has no safetensors weights", where=where, fix="Register the version again.")
    return card


def check_base(settings: Settings, card: Card, order: Order) -> Checked | None:
    """Compare the base that an order names with the one that its version was trained on.

    None: the order names no folder, or the version needs none, being full weights. Raises UserError, Transient.
    """
    where = f"version {order.version[:12]}"
    if order.base_digest and order.base_digest != card.base_digest:
        raise UserError(
            f"it was trained on base {card.base_digest[:12]}, not on {order.base_digest[:12]}", where=where,
            fix="Name the base model that it was trained on.")
    if card.method == "full" or not order.base_path:
        return None
    return check(settings, order.base_path, card.base_digest, where)


def open_engine(card: Card, folder: Path, base: Checked | None, version: str) -> Engine:
    """Load a base with its first adapter, or full weights, and start their engine."""
    device = torch_device()
    dtype = dtype_of(card.precision, device)
    if card.method == "full":
        return Engine(_guarded(version, lambda: _own(load_base(folder, dtype=dtype, device=device))), version)
    if base is None:
        raise UserError("the base model's folder is not named", where=f"version {version[:12]}",
                        allowed="a folder on the predictor's machine", fix=f"Put {card.base_name} there and name it.")
    model = _guarded(version, lambda: _own(load_base(base.folder, dtype=dtype, device=device)))
    return Engine(_guarded(version, lambda: _first_adapter(model, folder, version, device)), card.base_digest)


def _own(model: PreTrainedModel) -> PreTrainedModel:
    """The model with weights in memory of its own.

    On a CPU, safetensors only maps the files: who writes into one later would change the answers of a loaded model,
    and who cuts it short would kill this process.
    """
    for weight in (*model.parameters(), *model.buffers()):
        if weight.device.type == "cpu":
            weight.data = weight.data.clone()
    return model


def add_adapter(engine: Engine, folder: Path, version: str) -> None:
    """Load one more adapter into an engine, between two steps of what it is answering."""
    engine.call(lambda: _guarded(version, lambda: _next_adapter(engine, folder, version))).result()


def drop_adapter(engine: Engine, version: str) -> None:
    """Unload an adapter that is not the last one, between two steps."""
    engine.call(lambda: _delete(engine.model, version))


def load_codecs(folder: Path, *, templated: bool = False) -> tuple[Encoder, Codec]:
    """Tokenizers for requests and one for the engine's thread."""
    short, long, decoder = (Codec(one, templated=templated) for one in load_tokenizers(folder, 3))
    return Encoder(short, long), decoder


def _first_adapter(base: PreTrainedModel, folder: Path, version: str, device: torch.device) -> PeftModel:
    check_adapter(folder, f"version {version[:12]}")
    model = PeftModel.from_pretrained(
        base, str(folder), adapter_name=version, local_files_only=True, torch_device=str(device))
    _check_complete(model, folder, version)
    return model.eval()


def _next_adapter(engine: Engine, folder: Path, version: str) -> None:
    model = engine.model
    assert isinstance(model, PeftModel), "an adapter goes onto a base with adapters"
    check_adapter(folder, f"version {version[:12]}")
    try:
        model.load_adapter(str(folder), version, local_files_only=True, torch_device=str(model.device))
        _check_complete(model, folder, version)
    except Exception:
        if version in model.peft_config:
            _delete(model, version)
        raise


def _delete(model: PreTrainedModel | PeftModel, version: str) -> None:
    assert isinstance(model, PeftModel)
    others = [name for name in model.peft_config if name != version]
    if version in model.active_adapters and others:
        # Rows name their adapters, so the active one answers nobody; PEFT only needs one that exists.
        model.set_adapter(others[0], inference_mode=True)
    model.delete_adapter(version)


def _check_complete(model: PeftModel, folder: Path, version: str) -> None:
    """PEFT only warns about weights that are missing or fit nowhere; such a version answers nonsense."""
    wanted = set(get_peft_model_state_dict(model, adapter_name=version, save_embedding_layers=False))
    with safe_open(str(folder / ADAPTER), framework="pt") as file:
        found = set(file.keys())
    if wanted != found:
        raise UserError(
            f"the adapter has {len(found - wanted)} weights that fit nowhere and lacks {len(wanted - found)}",
            where=f"version {version[:12]}", fix="Check that it was trained on this base model.")


def _guarded(version: str, load: Callable[[], T]) -> T:
    """Whatever the libraries raise for bad weights, as one sentence."""
    try:
        return load()
    except AnnealError:
        raise
    except Exception as error:  # the files came from elsewhere: there is no list of what they make fail
        text = " ".join(str(error).split())
        raise UserError(f"its weights cannot be loaded ({type(error).__name__}: {text[:200]})",
                        where=f"version {version[:12]}", fix="Check that it belongs to this base model.") from error


def _read(path: Path, where: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path.name} cannot be read ({error})", where=where,
                        fix="Register the version again.") from error
    if not isinstance(values, dict):
        raise UserError(f"{path.name} is not a JSON object", where=where, fix="Register the version again.")
    return values
