"""Write a version into a folder of one's own, in a form that other programs load: what `anneal export` does.

In:   a version     Out: <folder>, new, with one of
    peft     the adapter, for peft
    merged   a whole model, for transformers (deployments/cli/merge.py)
    gguf     one file, for llama.cpp, Ollama and others; made by llama.cpp's convert_hf_to_gguf.py
Dies half-way: there is no <folder>; the same command removes what was left behind and starts anew.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deployments.cli.merge import Merged, check_free, finish, merge, part_of, writing
from deployments.cli.shareable import copy_adapter, where_of
from infra.errors import UserError, shown_path
from infra.models.registry import Registry
from infra.records import Record, Version
from infra.redaction import is_secret
from infra.settings import Settings
from infra.spec import Precision
from infra.storage.store import Store
from tasks.evaluate import work_folder

Form = Literal["peft", "merged", "gguf"]
CONVERTER = "convert_hf_to_gguf.py"
OUT_TYPES = {"fp32": "f32", "bf16": "bf16"}
GET = ("Get it by `git clone https://github.com/ggml-org/llama.cpp`, `pip install gguf`, and set ANNEAL_LLAMA_CPP to "
       "that folder; or export with --format merged.")


@dataclass(frozen=True, kw_only=True)
class Exported(Record):
    """A version in a folder of the user's own."""

    folder: str
    version: Version
    form: str
    """peft, merged or gguf."""
    bytes: int
    """Of all files."""
    base: str = ""
    """What an adapter names as its base: a name of the hub, or a folder."""
    merged: Merged | None = None
    """How the merge was compared, for the other two forms."""

    def lines(self) -> dict[str, object]:
        """What the command prints."""
        found: dict[str, object] = {
            "folder": self.folder, "version": f"{where_of(self.version)}, {self.version.id}", "bytes": self.bytes}
        if self.base:
            found["base"] = self.base
        if self.merged is not None:
            done = self.merged
            found |= {
                "dtype": done.dtype, "compared on": f"{done.probe_tokens} tokens of {done.probe}",
                "adapter": f"changes the base's logits by up to {done.effect:.2g} of the largest",
                "merged": _logits(done.merged, "adapter on base"), "reloaded": _logits(done.reloaded, "merged, fp32")}
        return found


def export(
    settings: Settings, target: str, folder: Path, form: Form, *, dtype: Precision = "auto", base_model: str = "",
) -> Exported:
    """Write the version of that name.

    Raises:
        UserError: no such version, another base, no converter, a form that the version does not have, or a folder that
            is in use.
        Broken: the merged model does not answer as the adapter does; nothing was written.
        Transient: the store or the registry does not answer, or a child was killed.
    """
    folder = folder.expanduser().absolute()
    if form == "merged":
        merged = merge(settings, target, folder, dtype=dtype, base_model=base_model)
        return Exported(folder=merged.folder, version=merged.version, form=form, bytes=merged.bytes, merged=merged)
    converter = converter_of(settings) if form == "gguf" else None
    with writing(folder):
        check_free(folder)
    version = Registry(settings).named(target)
    with writing(folder), part_of(folder) as part:
        if converter is None:
            source = Store(settings).fetch(version.folder)
            base = copy_adapter(settings, version, source, part, base_model)
            return Exported(folder=str(folder), version=version, form=form, bytes=finish(part, folder), base=base)
        with work_folder(settings) as work:
            merged = merge(settings, f"{version.destination}:{version.id}", work / "model", dtype=dtype,
                           base_model=base_model)
            name = f"{version.destination.rsplit('/', 1)[1]}-{version.number}-{merged.dtype}.gguf"
            convert(converter, work / "model", part / name, merged.dtype)
        return Exported(folder=str(folder), version=version, form=form, bytes=finish(part, folder), merged=merged)


def converter_of(settings: Settings) -> Path:
    """llama.cpp's converter: in ANNEAL_LLAMA_CPP, else on PATH. Raises UserError."""
    if settings.llama_cpp:
        path = Path(settings.llama_cpp).expanduser() / CONVERTER
        if not path.is_file():
            raise UserError(f"{CONVERTER} is not there", where=f"ANNEAL_LLAMA_CPP {shown_path(settings.llama_cpp)}",
                            allowed="the folder of llama.cpp's sources", fix=GET)
        return path.absolute()
    found = shutil.which(CONVERTER)
    if found is None:
        raise UserError(f"llama.cpp's {CONVERTER} is not installed", where="--format gguf",
                        allowed="that program on PATH, or in the folder ANNEAL_LLAMA_CPP", fix=GET)
    return Path(found)


def convert(converter: Path, model: Path, target: Path, dtype: str) -> None:
    """Run the converter by our own Python, which has torch and transformers. Raises UserError with its last line."""
    command = [sys.executable, str(converter), str(model), "--outfile", str(target), "--outtype", OUT_TYPES[dtype]]
    environment = {name: value for name, value in os.environ.items() if not is_secret(name, value)}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=environment)
    if done.returncode or not target.is_file():
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise UserError(f"it does not convert this model ({said[-1] if said else f'exit code {done.returncode}'})",
                        where=str(converter), fix="Look whether llama.cpp knows this kind of model, and whether the "
                        "packages of its requirements are installed; --format merged works without it.")


def _logits(found: dict[str, float], beside: str) -> str:
    return (f"off by {found['max_absolute']:.2g} ({found['max_relative']:.2g} of the largest logit, allowed "
            f"{found['bound']:.2g}), likeliest token the same at {found['same_argmax']:.2%} ({beside})")
