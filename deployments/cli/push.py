"""Put a version into a repository of the Hugging Face hub: what `anneal push` does.

In:   a version, user/repository     Out: one commit there; a new repository is private unless `public`
The files are those of `anneal export`: an adapter for peft, or a whole model. No path of this machine goes with them.
Dies half-way: the same command goes on; what was uploaded is not uploaded again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from deployments.cli.merge import merge
from deployments.cli.shareable import copy_adapter, origin_of, where_of
from infra.errors import AnnealError, Transient, UserError, shown
from infra.models.registry import Registry
from infra.models.version_folder import name_base
from infra.records import Record, Version
from infra.settings import Settings
from infra.spec import Precision
from infra.storage.store import Store
from tasks.evaluate import work_folder

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Form = Literal["auto", "peft", "merged"]
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
LOGIN = "Run `hf auth login`, or set HF_TOKEN to a token that may write (https://huggingface.co/settings/tokens)."


@dataclass(frozen=True, kw_only=True)
class Pushed(Record):
    """A version in a repository of the hub."""

    url: str
    """Of the commit."""
    repository: str
    version: Version
    form: str
    """peft or merged."""
    private: bool
    base: str
    """What the adapter names as its base; empty for a whole model."""
    base_is_known: bool
    """Whether that is a name of the hub: others can load the adapter then."""

    def lines(self) -> dict[str, str]:
        """What the command prints."""
        found = {"version": f"{where_of(self.version)}, {self.version.id}", "commit": self.url,
                 "seen by": "those whom the repository lets" if self.private else "everybody",
                 "form": f"adapter on {self.base}" if self.base else "whole model"}
        if not self.base_is_known:
            found["note"] = (f"nobody else can load it without the folder {self.base}: name the same base by "
                             "--base-model owner/name if the hub has it, or push with --format merged")
        return found


def push(
    settings: Settings, target: str, repository: str, *, public: bool = False, form: Form = "auto",
    dtype: Precision = "auto", base_model: str = "",
) -> Pushed:
    """Upload the version of that name.

    Raises:
        UserError: no token, no such version or repository name, a public repository without `public`, or the hub
            refuses the token.
        Transient: the hub, the store or the registry does not answer.
    """
    from huggingface_hub import HfApi, get_token

    if not REPOSITORY.fullmatch(repository):
        raise UserError(f"the repository is {shown(repository)}", allowed="user/name or organisation/name of the hub")
    if not get_token():
        raise UserError("no token of the model hub is known on this machine", where="push", fix=LOGIN)
    version = Registry(settings).named(target)
    api = HfApi()
    with hub_errors(repository):
        exists = _refuse_public(api, repository, public=public)
    source = Store(settings).fetch(version.folder)
    with work_folder(settings) as work:
        folder = work / "push"
        whole = form == "merged" or (form == "auto" and origin_of(source)["method"] != "lora")
        base, known = "", True
        if whole:
            merge(settings, f"{version.destination}:{version.id}", folder, dtype=dtype, base_model=base_model)
        else:
            folder.mkdir()
            base, known = _adapter(settings, version, source, folder, base_model)
        with hub_errors(repository):
            if not exists:
                api.create_repo(repository, private=not public, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repository, folder_path=folder,
                commit_message=f"{version.destination} version {version.number} ({version.id[:12]})")
            private = bool(api.model_info(repository).private)
    return Pushed(url=str(commit.commit_url), repository=repository, version=version, private=private,
                  form="merged" if whole else "peft", base=base, base_is_known=known)


def _adapter(settings: Settings, version: Version, source: Path, folder: Path, base_model: str) -> tuple[str, bool]:
    """The adapter's files. A base that is not from the hub is named without the folder that it lies in here."""
    base = copy_adapter(settings, version, source, folder, base_model)
    if not Path(base).is_absolute():
        return base, True
    name = str(origin_of(source)["name"]).rstrip("/").rsplit("/", 1)[-1]
    name_base(folder, name, None)
    return name, False


def _refuse_public(api: HfApi, repository: str, *, public: bool) -> bool:
    """Whether the repository exists. Raises UserError where everybody would see what is pushed."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        found = api.model_info(repository)
    except RepositoryNotFoundError:
        return False
    if not found.private and not public:
        raise UserError("it exists and is public", where=f"repository {repository}",
                        allowed="a private one, or a new one",
                        fix="Add --public if everybody may have it, or name another one.")
    return True


@contextmanager
def hub_errors(repository: str) -> Iterator[None]:
    """Say what the hub's refusals and failures mean to the user."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    where = f"repository {repository} of the model hub"
    try:
        yield
    except AnnealError:
        raise
    except HFValidationError as error:
        raise UserError(f"the hub takes no such name ({error})", where=where, allowed="user/name") from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        if status in (401, 403):
            raise UserError(f"the hub refuses the token ({status})", where=where,
                            allowed="a token that may write there", fix=LOGIN) from error
        if status == 429 or status >= 500:
            raise Transient(f"the hub answers {status}", where=where, fix="Run the same command again.") from error
        raise UserError(f"the hub refuses it ({status}: {error.server_message or ''})", where=where) from error
    except (httpx2.TransportError, ConnectionError) as error:  # the latter: of hf_xet
        raise Transient(f"the hub does not answer ({type(error).__name__})", where=where,
                        fix="Look at the network, then run the same command again.") from error
