"""A real PostgreSQL on a Unix socket of its own, in a temporary folder."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

from tests.rig.fixture import Fixture, end, new_folder

READY_S = 30.0
OWNER = "postgres"
"""Who the server runs as, where this process is root."""
TOOLS = ("initdb", "postgres", "psql")


def why_not() -> str | None:
    """Why there can be no server here; None if there can."""
    missing = [name for name in TOOLS if _tool(name) is None]
    if missing:
        return f"{', '.join(missing)} missing (apt-get install postgresql)"
    if os.geteuid() == 0 and OWNER not in [entry.pw_name for entry in pwd.getpwall()]:
        return f"PostgreSQL does not run as root, and there is no user {OWNER}"
    return None


def _tool(name: str) -> str | None:
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((str(folder / name) for folder in folders if (folder / name).exists()), shutil.which(name))


class Postgres(Fixture):
    """One server, with a user `tuner` and a database `studies` of theirs. A context manager."""

    def __init__(self, password: str) -> None:
        self._password = password
        self.folder = Path()

    def url(self, password: str) -> str:
        """Of the database, for SQLAlchemy with the driver psycopg."""
        return f"postgresql+psycopg://tuner:{password}@/studies?host={self.folder}"

    def _make(self, undo: ExitStack) -> None:
        self.folder = new_folder(undo, "pg-")  # short, as a socket's path must be
        self.folder.chmod(0o755)
        data, secret = self.folder / "data", self.folder / "secret"
        secret.write_text(self._password)
        data.mkdir()
        if os.geteuid() == 0:
            owner = pwd.getpwnam(OWNER).pw_uid
            for path in (self.folder, data, secret):
                os.chown(path, owner, -1)
        self._run("initdb", "-D", str(data), "--username=tuner", f"--pwfile={secret}", "--auth=scram-sha-256",
                  "--no-sync", "--locale=C", "--encoding=UTF8")
        words = self._words("postgres", "-D", str(data), "-k", str(self.folder), "-h", "", "-c", "fsync=off",
                            "-c", "max_connections=20")
        with (self.folder / "log").open("wb") as log:
            server = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
                                      start_new_session=True)
        undo.callback(end, [server], 10.0)
        deadline = time.monotonic() + READY_S
        while not self._sql("CREATE DATABASE studies"):
            assert server.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.1)

    def _words(self, name: str, *arguments: str) -> list[str]:
        tool = _tool(name)
        assert tool is not None
        change = ["setpriv", f"--reuid={OWNER}", f"--regid={OWNER}", "--clear-groups", "--"]
        change = change if os.geteuid() == 0 else []
        return [*change, tool, *arguments]

    def _run(self, name: str, *arguments: str) -> None:
        done = subprocess.run(self._words(name, *arguments), capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr

    def _sql(self, command: str) -> bool:
        done = subprocess.run([_tool("psql") or "psql", "-h", str(self.folder), "-U", "tuner", "-d", "postgres", "-c",
                               command], capture_output=True, timeout=60, check=False,
                              env={**os.environ, "PGPASSWORD": self._password})
        return done.returncode == 0
