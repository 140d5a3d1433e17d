"""The registry's folder: what is current, and all that ever was.

::

    entries/0003.json    sealed: `distrib.registry.entry.Entry`
    bundles/0003/        the bundle that the entry made current
    current              a symbolic link to bundles/0003
    lock                 held while something changes; the highest number that ever was current, once it is

The link is the only truth of what is current, and is replaced by one rename, last of all. So a crash at any point
before leaves the old one current; what it wrote bears the number after the current one's, and the next change removes
it. Entries up to the current one's number are the history, and never change. A link that is gone, or that somebody
turned back by hand, is told from a crash by the number in the lock: then nothing is changed or removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distrib.bundle import FILE_NAME as BUNDLE_NAME
from distrib.bundle import LoadedBundle, load_bundle
from distrib.durable import copy_durable, fsync_dir, publish_dir, replace_file
from distrib.errors import BundleError, ConfigError, storage_errors
from distrib.registry.entry import Entry, read_entry

_UNCHANGED = "the registry is as it was"
_TARGET = re.compile(r"bundles/(\d{4,})")
_UNFINISHED = re.compile(r"\.\d{4,}(\.json\.\d+\.tmp|\.partial)")


@dataclass(frozen=True)
class Registry:
    """Paths, and what is read from them. Methods raise BundleError, StorageError."""

    root: Path

    def entry_path(self, number: int) -> Path:
        return self.root / "entries" / f"{number:04d}.json"

    def bundle_path(self, number: int) -> Path:
        return self.root / "bundles" / f"{number:04d}"

    @property
    def current_path(self) -> Path:
        return self.root / "current"

    def current_number(self) -> int | None:
        """The number of the entry that is current; None in a registry without one."""
        try:
            target = os.readlink(self.current_path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BundleError(f"{self.current_path} is no link to a bundle: {error.strerror}", _UNCHANGED,
                              "name the folder of a registry, or restore it") from error
        match = _TARGET.fullmatch(target)
        if match is None:
            raise BundleError(f"{self.current_path} leads to {target}, which is no bundle of the registry", _UNCHANGED,
                              "restore the link")
        return int(match[1])

    def current(self) -> Entry | None:
        """The entry that is current. Raises BundleError where the link does not lead to the newest."""
        with storage_errors(f"the registry {self.root} can not be read", _UNCHANGED):
            newest = self._newest()
        number = self.current_number()  # after that, since another process may promote just now
        if newest > (number or 0):
            where = f"leads to entry {number}" if number is not None else "is gone"
            raise BundleError(f"{self.current_path} {where}, and entry {newest} was current", _UNCHANGED,
                              f"put the link back with `ln -sfn bundles/{newest:04d} {self.current_path}`; the way "
                              "back is `distrib promote --rollback`")
        return None if number is None else self.entry(number)

    def _newest(self) -> int:
        """The highest number that certainly was current: by the lock, or since another entry was begun after it."""
        try:
            recorded = (self.root / "lock").read_bytes()[:20].strip()
        except FileNotFoundError:
            return 0
        begun = [int(path.stem) for path in (self.root / "entries").glob("*.json") if path.stem.isdecimal()]
        return max(int(recorded) if recorded.isdigit() else 0, max(begun, default=1) - 1)

    def entry(self, number: int) -> Entry:
        entry = read_entry(self.entry_path(number))
        if entry.number != number:
            raise BundleError(f"{self.entry_path(number)} is that of {entry.number}", _UNCHANGED,
                              "restore it from a backup")
        return entry

    def history(self) -> list[Entry]:
        """All entries that were ever current, the oldest first."""
        return [self.entry(number) for number in range(1, (self.current_number() or 0) + 1)]

    def load(self, entry: Entry) -> LoadedBundle:
        """An entry's bundle, verified."""
        loaded = load_bundle(self.bundle_path(entry.number))
        if loaded.sha256 != entry.bundle_sha256:
            raise BundleError(f"{loaded.path} is not the bundle that entry {entry.number} names", _UNCHANGED,
                              "restore it from a backup")
        return loaded


def open_registry(root: Path, *, new: bool = False) -> Registry:
    """The registry in a folder, which with ``new`` may be empty or missing. Writes nothing. Raises ConfigError."""
    with storage_errors(f"the registry {root} can not be read", "nothing was done"):
        if not (root / "lock").exists():
            if not new:
                raise ConfigError(f"{root} is no registry", "nothing was done",
                                  "name a folder that `distrib promote` wrote")
            if root.exists() and (not root.is_dir() or any(root.iterdir())):
                raise ConfigError(f"{root} is no registry, and no empty folder", "nothing was written",
                                  "name a registry, or a folder that does not exist yet")
    return Registry(root)


@contextlib.contextmanager
def _changing(registry: Registry, parent: int | None) -> Iterator[None]:
    """Hold the registry's lock. What a crash left is removed.

    Raises ConfigError if it is held, or something else than entry ``parent`` is current; StorageError.
    """
    root = registry.root
    with storage_errors(f"the registry {root} can not be written", _UNCHANGED):
        for folder in (root, root / "entries", root / "bundles"):
            folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                with storage_errors(f"the registry {root} can not be locked", _UNCHANGED):
                    raise
            raise ConfigError(f"another promotion into {root} is under way", _UNCHANGED,
                              "wait for its end, then compare with what is current then") from error
        before = registry.current()
        if (None if before is None else before.number) != parent:
            raise ConfigError(f"another promotion into {root} came in between", _UNCHANGED,
                              "compare with what is current now: promote again")
        with storage_errors(f"the registry {root} can not be written", _UNCHANGED):
            _remove_unfinished(registry)
            yield
            with contextlib.suppress(OSError):  # of a full disk: the change is made
                os.pwrite(lock, f"{registry.current_number():04d}\n".encode(), 0)
    finally:
        os.close(lock)  # and so unlocks


def append(registry: Registry, entry: Entry, bundle: Path, *, link: bool = False) -> None:
    """Make an entry and its bundle current, in place of its parent. ``link``: hard links where there may be some.

    Raises BundleError if the copy is not the bundle that the entry names, ConfigError if others change the registry;
    StorageError.
    """
    final, staging = registry.bundle_path(entry.number), registry.root / "bundles" / f".{entry.number:04d}.partial"
    with _changing(registry, entry.parent):
        staging.mkdir()
        loaded = load_bundle(bundle)
        for name in (BUNDLE_NAME, *(file.name for files in loaded.bundle.files.values() for file in files)):
            _put(bundle / name, staging / name, link)
        if load_bundle(staging).sha256 != entry.bundle_sha256:
            raise BundleError(f"{bundle} changed while it was promoted", _UNCHANGED, "promote it again")
        publish_dir(staging, final)
        replace_file(registry.entry_path(entry.number), entry.to_bytes())
        _switch(registry, entry.number)


def _switch(registry: Registry, number: int) -> None:
    """The one step after which another bundle is current. Raises OSError."""
    temporary = registry.root / ".current.tmp"
    temporary.unlink(missing_ok=True)
    os.symlink(f"bundles/{number:04d}", temporary)
    os.replace(temporary, registry.current_path)
    fsync_dir(registry.root)


def _put(source: Path, target: Path, link: bool) -> None:
    if link:
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    copy_durable(source, target)


def _remove_unfinished(registry: Registry) -> None:
    """What bears the number after the current one's, and what a write left beside; nothing of anybody else's."""
    doomed = (registry.current_number() or 0) + 1
    for folder in ("entries", "bundles"):
        for path in (registry.root / folder).iterdir():
            if _UNFINISHED.fullmatch(path.name) or (path.stem.isdecimal() and int(path.stem) == doomed):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
