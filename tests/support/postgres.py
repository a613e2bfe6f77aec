"""A real Postgres of a test's own, in a folder of its own: two seconds to make, and it can be crashed.

Skips where Postgres is not installed; with CI=true, where .ci/run installs it, that is a failure.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import free_port, needed

SERVERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
PATH = os.pathsep.join([os.environ["PATH"], *map(str, SERVERS)])
"""Debian leaves the server's programs off the PATH."""


@dataclass(frozen=True)
class Postgres:
    """A server that runs."""

    data: Path
    user: str
    password: str
    port: int

    def start(self) -> None:
        """Start it, also after a crash."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.data}"
        self._run("pg_ctl", "start", "--pgdata", self.data, "--wait", "--log", self.data / "log", "-o", options)

    def crash(self) -> None:
        """Stop it as a loss of power would: no checkpoint, no good-bye to clients."""
        self._run("pg_ctl", "stop", "--pgdata", self.data, "--wait", "--mode", "immediate")

    def make(self) -> None:
        """The cluster's files, with the user and its password."""
        word = self.data.parent / "password"
        word.write_text(self.password)
        word.chmod(0o644)
        self._run("initdb", "--pgdata", self.data, "--username", self.user, "--pwfile", word,
                  "--auth", "scram-sha-256", "--no-sync")

    def psql(self, *arguments: str) -> None:
        """Run psql as the user."""
        command = [needed("psql", "postgresql", PATH), "--host", "127.0.0.1", "--port", str(self.port), "--username",
                   self.user, "--dbname", "postgres", "--set", "ON_ERROR_STOP=1", *arguments]
        subprocess.run(command, check=True, env={**os.environ, "PGPASSWORD": self.password}, capture_output=True)

    def _run(self, program: str, *arguments: object) -> None:
        """As another user than root, whom Postgres refuses."""
        other: dict[str, Any] = {"user": "postgres"} if os.geteuid() == 0 else {}
        command = [needed(program, "postgresql", PATH), *map(str, arguments)]
        subprocess.run(command, cwd="/", check=True, stdout=subprocess.DEVNULL, **other)


@contextmanager
def running(user: str, password: str, *, port: int = 0) -> Iterator[Postgres]:
    """A new cluster, gone afterwards."""
    needed("initdb", "postgresql", PATH)
    place = Path(tempfile.mkdtemp(prefix="anneal-postgres-"))  # pytest's own folders are closed to other users
    place.chmod(0o755)
    server = Postgres(place / "data", user, password, port or free_port())
    server.data.mkdir()
    if os.geteuid() == 0:
        shutil.chown(server.data, "postgres")
    try:
        server.make()
        server.start()
        try:
            yield server
        finally:
            server.crash()
    finally:
        shutil.rmtree(place)
