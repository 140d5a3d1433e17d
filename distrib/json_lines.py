"""Reading files of one JSON object a line, which others may still be writing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrib.errors import CheckpointError


@dataclass(frozen=True)
class RunFile:
    """One file of a run's folder, and what can not be done without it."""

    path: Path
    consequence: str

    def lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Objects by line number, none if there is no such file; a last line that is still being written is left out.
        Raises CheckpointError."""
        for number, line in enumerate(self._content().splitlines(keepends=True), 1):
            if line.endswith(b"\n"):
                yield number, self._object(line, f"line {number}")

    def document(self) -> dict[str, Any] | None:
        """The file as one object; None if there is none. Raises CheckpointError."""
        content = self._content()
        return self._object(content, "it") if content else None

    def damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is damaged: {what}", self.consequence,
                               "restore it from a backup, or train again")

    def _content(self) -> bytes:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise CheckpointError(f"{self.path} can not be read: {error.strerror}", self.consequence,
                                  "check the path and its permissions") from error

    def _object(self, text: bytes, which: str) -> dict[str, Any]:
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise self.damaged(f"{which} is no JSON object")
        return document
