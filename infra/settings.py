"""Process settings, read from the environment (`ANNEAL_*`) once.

Where a service runs and which secrets it needs is a setting; what a training does is a
parameter (infra/spec.py). While `anneal up` runs, its services' addresses stand in
`<home>/stack.json` and fill the addresses that the environment leaves empty.
"""

from __future__ import annotations

import json
import os
import re
from functools import cached_property
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from infra.errors import UserError, shown
from infra.private import closed
from infra.secret import USER, secret_of

UNFIT = re.compile(r"[?\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""In the home's path: SQLAlchemy, and so MLflow and Prefect, end a database's path at a question mark, however it is
escaped; control characters, and bytes that are not UTF-8, do not come whole through logs and JSON."""
OF_TRAINING = "workflowType=machine_learning"
"""In an address of MLflow's pages: the half about training models. Without it they open in the one about agents."""


class Settings(BaseSettings):
    """All settings. The table in docs/settings.md is made from these descriptions."""

    model_config = SettingsConfigDict(env_prefix="ANNEAL_", extra="ignore", frozen=True)

    home: Path = Field(
        Path(".anneal"), description="Folder for everything Anneal keeps; shared by machines that train together. One "
        "that all users may read is closed to them, and to its group unless that may write there.")
    store: str = Field("", description="Object store: a folder or s3://bucket/prefix; empty: <home>/store.")
    s3_endpoint_url: str = Field(
        "", description="S3 endpoint, for servers other than Amazon's. Keys come from the AWS_* variables.")
    mlflow_uri: str = Field("", description="MLflow server; empty: the running stack's, else <home>/mlflow.db.")
    predictor_url: str = Field("", description="Predictor; empty: the running stack's, else versions stay undeployed.")
    prefect_url: str = Field("", description="Prefect API; empty: PREFECT_API_URL, else the running stack's.")
    host: str = Field("127.0.0.1", description="Address on which the services of `anneal up` listen.")
    host_names: str = Field(
        "", description="Names under which these services are called beside localhost and this machine's own, such "
        "as that of a tunnel or proxy: gpu.example.com, gpu.example.com:8443, separated by commas. Others are refused.")
    require_secret: bool = Field(
        True, description="Prefect, MLflow and the predictor of `anneal up` ask for the secret in <home>/secret; "
        "false: everybody who reaches their ports may use them.")
    prefect_port: int = Field(4200, description="Port of the Prefect server.", ge=1, le=65535)
    mlflow_port: int = Field(5000, description="Port of the MLflow server.", ge=1, le=65535)
    predictor_port: int = Field(5001, description="Port of the predictor.", ge=1, le=65535)
    gateway_port: int = Field(5002, description="Port of the gateway, which speaks Replicate's API.", ge=1, le=65535)
    gateway_database: str = Field(
        "", description="The gateway's database, such as postgresql://user:password@host/gateway; empty: "
        "<home>/gateway.db. Gateways that share it are one service.")
    gateway_fixtures: bool = Field(
        False, description="For tests of clients: `anneal gateway seed` may put rows with given ids into the gateway's "
        "database, and versions of them answer with fixed outputs.")
    max_upload_bytes: int = Field(
        2_000_000_000, description="Largest file that a client of the gateway may upload, in bytes.", ge=1)
    public_url: str = Field(
        "", description="The gateway's address as its clients know it, such as https://gpu.example.com; empty: the one "
        "that each request names.")
    account: str = Field(
        "anneal", description="Whose models and trainings those are that are started with the home's secret or "
        "ANNEAL_API_KEY.")
    bases: str = Field(
        "", description="Base models that clients of the gateway may train, separated by line breaks or commas: "
        "meta/llama-2-7b=/models/llama-2-7b, with a folder, s3:// prefix or hub name after the =. A version id that "
        "clients' scripts name goes behind a colon: meta/llama-2-7b:4841472f...=/models/llama-2-7b.")
    api_key: str = Field(
        "", description="Bearer key that the predictor asks for; empty: the home's secret, where it is required.")
    allow_private_hosts: bool = Field(
        False, description="Let data come from any private address and any port, and over http://.")
    allowed_hosts: str = Field(
        "", description="Hosts that data may come from although they are private, on another port than 443 or "
        "http://: data.lan, data.lan:8443 or 10.1.0.0/16, separated by commas.")
    max_data_bytes: int = Field(20_000_000_000, description="Largest training file after unpacking, in bytes.", ge=1)
    stall_timeout_s: float = Field(
        900, description="A training that tells nothing for this long at its start, or in its first validations and "
        "checkpoints, is stopped.", gt=0)
    step_timeout_s: float = Field(
        120, description="The same later on, or ten times what a step, validation or checkpoint usually takes, if "
        "that is more.", gt=0)
    stop_grace_s: float = Field(
        25, description="Time a stopped training has to end its step, or validation, and save a checkpoint; a "
        "cancelled one has at most 5.", gt=0)
    gpu_limit: str = Field(
        "", description="Concurrency limit in Prefect for this machine's GPUs; empty: gpu-<host name>; none: no limit.")
    gpu_locks: str = Field(
        "", description="Folder of a lock for each GPU, one's own or root's; empty: /run/anneal/gpus, which root makes "
        "where several users share GPUs (infra/systemd/anneal.tmpfiles.conf), else /tmp/anneal-gpus-<user id>, which "
        "keeps only the trainings of one user apart.")
    base_folders: str = Field(
        "", description="Folders below which the predictor may load base models, separated by colons; those that "
        "trainings with the same ANNEAL_HOME were deployed from need not be named.")
    llama_cpp: str = Field(
        "", description="Folder of llama.cpp's sources, whose convert_hf_to_gguf.py `anneal export --format gguf` "
        "runs; empty: the one on PATH.")
    webhook_url: str = Field("", description="Where to POST how a run ended, signed and repeated; empty: nowhere.")
    webhook_secret: str = Field(
        "", description="Secret of these signatures (Standard Webhooks): whsec_ and the base64 of 24 to 64 bytes.")
    secrets_block: str = Field(
        "", description="Prefect block with S3 keys and other secrets of runs whose variables are not set, as "
        "type/name: secret/anneal-run, aws-credentials/NAME; empty: none.")
    nodes: int = Field(
        1, description="Machines that train together: this one, and those that join it.", ge=1)
    node_deployment: str = Field(
        "", description="Deployment whose runs are the other machines, join/machine; empty: `anneal join` runs there.")
    rendezvous: str = Field(
        "", description="host:port of this machine, at which it waits for the others' ranks; empty, with "
                        "ANNEAL_NODE_DEPLOYMENT: its address on the way to the Prefect server, and a free port.")
    join_timeout_s: float = Field(600, description="Time that the other machines have to join a training.", gt=0)
    threads: int = Field(0, description="CPU threads of each process; 0: the cores shared out evenly.", ge=0)

    @classmethod
    def of_environment(cls) -> Self:
        """The settings of this process. Raises UserError, naming the variable, for a wrong one."""
        try:
            return cls()
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(
                f"{first['msg']} (found {shown(first['input'])})", where="ANNEAL_" + str(first["loc"][0]).upper(),
                fix="Correct this environment variable, or unset it.") from error

    @property
    def variables(self) -> dict[str, str]:
        """The variables that give another process those of these settings that are not left to their defaults."""
        return {f"ANNEAL_{name.upper()}": str(getattr(self, name)) for name in self.model_fields_set}

    @cached_property
    def home_path(self) -> Path:
        """The home folder, made if need be, and closed to other users. Raises UserError when it cannot be."""
        path = self.home.expanduser().absolute()
        if odd := UNFIT.search(str(path)):
            raise UserError(
                f"ANNEAL_HOME is {shown(str(path))}, which contains {shown(odd.group())}",
                allowed="no question mark and no control character: a database's address cannot carry them",
                fix="Set ANNEAL_HOME to another folder.")
        try:
            return closed(path)
        except OSError as error:
            raise UserError(
                f"ANNEAL_HOME is {shown(str(path))}, which cannot be made ({error.strerror})",
                allowed="a folder that can be written", fix="Set ANNEAL_HOME to one.") from error

    @property
    def store_root(self) -> str:
        """Absolute folder or s3:// address of the store."""
        if self.store.startswith("s3://"):
            return self.store.rstrip("/")
        return str(Path(self.store).expanduser().absolute() if self.store else self.home_path / "store")

    @property
    def tracking_uri(self) -> str:
        """MLflow's tracking and registry address."""
        return self.mlflow_uri or self._stack("mlflow") or self.mlflow_database

    @property
    def mlflow_database(self) -> str:
        """Where the home's MLflow server keeps its tables, and trainings that have no server."""
        return f"sqlite:///{self.home_path / 'mlflow.db'}"

    @property
    def mlflow_lock(self) -> Path:
        """Held by whoever opens that database: its tables are made then, and two that do so at once fail."""
        return self.home_path / "mlflow.lock"

    @property
    def predictor(self) -> str:
        """The predictor's address, or an empty string."""
        return self.predictor_url or self._stack("predictor")

    @property
    def gateway(self) -> str:
        """The running stack's gateway, or an empty string."""
        return self._stack("gateway")

    @property
    def secret(self) -> str:
        """What the services of `anneal up` ask for, made at first use; empty: nothing. Raises UserError."""
        return secret_of(self.home_path) if self.require_secret else ""

    @property
    def predictor_key(self) -> str:
        """What the predictor that runs with these settings asks for; empty: nothing."""
        return self.api_key or self.secret

    @property
    def predictor_headers(self) -> dict[str, str]:
        """What the predictor wants to see of its key. The home's secret goes to the home's own predictor alone."""
        key = self.api_key or (self.secret if self.is_own("predictor", self.predictor) else "")
        return {"Authorization": f"Bearer {key}"} if key else {}

    @property
    def prefect_auth(self) -> str:
        """User and password for Prefect's server at `prefect_api`; empty: none."""
        given = os.environ.get("PREFECT_API_AUTH_STRING", "")
        return given or (self.own_prefect_auth if self.is_own("prefect", self.prefect_api) else "")

    @property
    def own_prefect_auth(self) -> str:
        """User and password that the home's own Prefect server asks for; empty: none."""
        secret = os.environ.get("PREFECT_SERVER_API_AUTH_STRING", "") or self.secret
        return secret if ":" in secret or not secret else f"{USER}:{secret}"

    @property
    def prefect_api(self) -> str:
        """The Prefect API's address, or an empty string: Prefect then starts a private server."""
        return self.prefect_url or os.environ.get("PREFECT_API_URL", "") or self._stack("prefect")

    @property
    def trusted_bases(self) -> list[Path]:
        """The folders of ANNEAL_BASE_FOLDERS, without symbolic links in their paths."""
        return [Path(one).expanduser().resolve() for one in self.base_folders.split(os.pathsep) if one.strip()]

    def threads_for(self, processes: int) -> int:
        """CPU threads for each of `processes`; two threads on one busy core are far slower than one."""
        return self.threads or max(1, len(os.sched_getaffinity(0)) // max(1, processes))

    def is_own(self, service: str, url: str) -> bool:
        """Whether that address is the service of the home's running stack: no other one may see the home's secret."""
        return bool(url) and url.rstrip("/") == self._stack(service)

    def _stack(self, service: str) -> str:
        try:
            state = json.loads((self.home_path / "stack.json").read_text(encoding="utf-8"))
            return str(state["services"][service]["url"])
        except (OSError, ValueError, KeyError):
            return ""
