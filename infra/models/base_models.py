"""Find the base model and know it by its content.

In:   a folder, an s3:// prefix, or a hub name     Out: Base: a folder on this machine, its digest
A hub name is downloaded once into <home>/cache/hub, an s3:// prefix into <home>/cache/bases.
Only safetensors count as weights. infra/models/base_folders.py makes the digest; the folder is remembered by it:
versions name their base without saying where this machine keeps it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from infra.errors import BaseModelError, Transient, near_names, shown_path
from infra.files import MODEL_FILES, digest_of, seal, verify, write_atomic
from infra.models.base_fit import check_quantization, check_vocabulary
from infra.models.base_folders import digest_of_base
from infra.models.model_folder import CONFIG, check_objects, context_tokens_of
from infra.models.weight_headers import tensors_of
from infra.records import Base
from infra.settings import Settings
from infra.spec import Method
from infra.storage.store import filesystem, move_into_place, scratch_folder
from infra.storage.store_errors import translate_storage_errors

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
DEFAULT_CONTEXT_TOKENS = 2048
HUB_TIMEOUT_S = 10.0
PREFIX = "s3://"


def find_base(settings: Settings, name: str) -> Base:
    """Locate and check a base model.

    Raises:
        BaseModelError: it is neither a model folder nor a name the hub knows.
        Transient: the hub or the store does not answer.
    """
    revision = ""
    match _lies(name):
        case "s3":
            folder = _from_s3(settings, name)
        case "here":
            folder = Path(name).expanduser().resolve()
        case "hub":
            folder = _from_hub(settings, name)
            revision = folder.name  # of the hub's cache: <repository>/snapshots/<commit>
    config = _check(folder, name)
    context = context_tokens_of(config) or DEFAULT_CONTEXT_TOKENS
    digest = digest_of_base(settings, folder)
    place = _place(settings, digest)
    if not place.exists() or place.read_text(encoding="utf-8") != str(folder):
        write_atomic(place, str(folder))
    return Base(name=_shown_name(name), path=str(folder), digest=digest, context_tokens=context, revision=revision)


def look_for_base(settings: Settings, name: str, method: Method | None = None) -> None:
    """Refuse what is surely no base model, or none for this method, before anything that takes long; fetch nothing.

    Raises BaseModelError. What a disk, a store or the hub does not answer now is left to `find_base`.
    """
    with suppress(Transient, OSError):
        match _lies(name):
            case "s3":
                _listed(settings, name)
            case "here":
                _check(Path(name).expanduser().resolve(), name, method)
            case "hub":
                _ask_hub(name)


def _ask_hub(name: str) -> None:
    """Raises BaseModelError if the hub says that there is no such model for us."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    with suppress(httpx2.TransportError, HFValidationError), _refused_by_hub(name):
        HfApi().model_info(name, timeout=HUB_TIMEOUT_S)


@contextmanager
def _refused_by_hub(name: str) -> Iterator[None]:
    """Raises BaseModelError or Transient for what the hub answers."""
    from huggingface_hub.errors import HfHubHTTPError

    where = f"base model {shown_path(name)}"
    try:
        yield
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        if status == 429 or status >= 500:
            raise Transient(f"the model hub answers {status}", where=where) from error
        raise BaseModelError(
            f"the model hub answers {status}", where=where,
            fix="Check the name; a gated model needs its licence accepted and HF_TOKEN set.") from error


def _lies(name: str) -> Literal["s3", "here", "hub"]:
    """Where a base model of that name is. Raises BaseModelError."""
    if name.startswith(PREFIX):
        return "s3"
    if Path(name).expanduser().is_dir():
        return "here"
    if HUB_NAME.fullmatch(name) and not name.startswith("."):
        return "hub"
    raise BaseModelError(
        "there is no such folder", where=f"base model {shown_path(name)}",
        allowed="a folder in Hugging Face format, an s3:// prefix, or a hub name owner/name",
        fix=near_names(name).strip() or "Check the path.")


def find_same(settings: Settings, name: str, digest: str, where: str, given: str = "") -> Base:
    """The base with this digest: `given`, or the folder that was used here last, or by its hub name or address.

    Raises BaseModelError when it is not on this machine or another one, Transient.
    """
    place = _place(settings, digest)
    known = place.read_text(encoding="utf-8") if place.exists() else ""
    source = given or (known if known and Path(known).is_dir() else name)
    if source == name and not given and "/" not in name:  # the last part of a path, not a hub name or address
        raise BaseModelError(f"its base model {shown_path(name)} is not known on this machine", where=where,
                             allowed=f"a folder with digest {digest[:12]}", fix="Name the folder with --base-model.")
    base = find_base(settings, source)
    if base.digest != digest:
        raise BaseModelError(
            f"base model {shown_path(source)} has digest {base.digest[:12]}", where=where,
            allowed=f"{digest[:12]}, the one that it was trained on ({name})",
            fix="Name the folder of that model with --base-model.")
    return base


def _place(settings: Settings, digest: str) -> Path:
    """Where the folder of a base is written down."""
    return settings.home_path / "cache" / "places" / digest


def _check(folder: Path, name: str, method: Method | None = None) -> dict[str, Any]:
    """What config.json says, once everything has been judged that takes no weights and no library."""
    where = f"base model {shown_path(name)}"
    if not (folder / CONFIG).exists():
        raise BaseModelError(f"{CONFIG} is missing", where=where, allowed="a folder in Hugging Face format")
    if not list(folder.glob("*.safetensors")):
        raise BaseModelError("there are no safetensors weights", where=where,
                             fix="Convert them: model.save_pretrained(folder, safe_serialization=True).")
    if not list(folder.glob("tokenizer*")):
        raise BaseModelError("there is no tokenizer", where=where, fix="Copy the tokenizer's files into the folder.")
    if "adapter_config.json" in {p.name for p in folder.iterdir()}:
        raise BaseModelError("it is an adapter, not a whole model", where=where, fix="Merge it into its base first.")
    objects = check_objects(folder, where)
    check_quantization(objects[CONFIG], where, method)
    tensors = tensors_of(folder, where)
    check_vocabulary(objects, tensors, where)
    return objects[CONFIG]


def _from_hub(settings: Settings, name: str) -> Path:
    import httpx2
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    cache = settings.home_path / "cache" / "hub"
    where = f"base model {shown_path(name)}"
    try:
        with _refused_by_hub(name):
            return Path(snapshot_download(name, cache_dir=cache, allow_patterns=list(MODEL_FILES)))
    except HFValidationError as error:
        raise BaseModelError("there is no such folder, and it is no name of the hub", where=where,
                             fix="Check the path.") from error
    except LocalEntryNotFoundError as error:
        raise BaseModelError(
            "there is no such folder, and the model hub cannot be reached", where=where,
            fix=f"{near_names(name)}Check the path, or the network and HF_TOKEN if it is a hub name.") from error
    except httpx2.TransportError as error:
        raise Transient(f"the model hub does not answer ({type(error).__name__})", where=where) from error


def _listed(settings: Settings, address: str) -> dict[str, dict[str, Any]]:
    """The model files under an s3:// prefix. Raises BaseModelError if there are none, Transient."""
    with translate_storage_errors(address):
        listing = filesystem(address, settings).find(address.rstrip("/"), detail=True)
    found = {k: v for k, v in listing.items() if any(Path(k).match(p) for p in MODEL_FILES)}
    if not found:
        raise BaseModelError("there are no model files", where=f"base model {shown_path(address)}",
                             fix="Check bucket, prefix and ANNEAL_S3_ENDPOINT_URL.")
    return found


def _from_s3(settings: Settings, address: str) -> Path:
    """Copy an s3:// prefix, once for each content (ETags)."""
    remote, prefix, found = filesystem(address, settings), address.rstrip("/"), _listed(settings, address)
    key = digest_of({name: [entry["size"], entry.get("ETag")] for name, entry in found.items()})
    folder = settings.home_path / "cache" / "bases" / key[:32]
    if verify(folder) is None:
        start = len(prefix.removeprefix(PREFIX)) + 1
        with translate_storage_errors(address), scratch_folder(folder.parent) as draft:
            for name in found:
                target = draft / name[start:]
                target.parent.mkdir(parents=True, exist_ok=True)
                with remote.open(name, "rb") as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)
            seal(draft, {"address": address})
            move_into_place(draft, folder)
    return folder


def _shown_name(name: str) -> str:
    """A name that does not give away where this machine keeps its files."""
    is_address = name.startswith(PREFIX) or (HUB_NAME.fullmatch(name) and not Path(name).exists())
    return name if is_address else Path(name).resolve().name
