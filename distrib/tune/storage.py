"""Where a study's trials are recorded: a journal file in a shared folder, or a database. No password is ever shown."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from distrib.errors import ConfigError, DistribError, MissingPartError, StorageError, storage_errors

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from sqlalchemy import URL

JOURNAL = "journal"
_KEPT = "what was trained is in the trials' folders; start the study again to go on"


def require_optuna() -> None:
    """Raises MissingPartError."""
    try:
        import optuna
    except ImportError as error:
        raise MissingPartError("the package optuna is not installed", "nothing was started",
                               "install it: pip install 'distrib[tune]'") from error
    optuna.logging.disable_default_handler()  # what is to be told, `distrib tune` tells
    logging.getLogger("optuna").addHandler(logging.NullHandler())
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def describe(storage: str) -> str:
    """A storage without user and password, as messages and files name it. Raises ConfigError."""
    if storage == JOURNAL:
        return JOURNAL
    url = _url(storage)
    host = url.host or url.query.get("host") or ""
    where = f" on {host}{f':{url.port}' if url.port else ''}" if host else ""
    return f"{url.get_backend_name()} database {url.database or ''}{where}"


def open_storage(storage: str, journal: Path) -> BaseStorage:
    """Raises ConfigError, MissingPartError, StorageError."""
    with storage_trouble(storage, journal):
        if storage == JOURNAL:
            return _open_journal(journal.absolute())
        return _open_database(_url(storage))


@contextmanager
def storage_trouble(storage: str, journal: Path) -> Iterator[None]:
    """Turns what a storage raises into an error that names it without user and password."""
    import sqlalchemy.exc
    from optuna.exceptions import StorageInternalError

    try:
        with storage_errors(f"the storage {journal if storage == JOURNAL else describe(storage)} does not work", _KEPT):
            yield
    except DistribError:
        raise
    except (StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
        while error.__cause__ is not None and isinstance(error, StorageInternalError):
            error = error.__cause__  # type: ignore[assignment]
        reason = getattr(error, "orig", None) or error
        raise StorageError(f"the {describe(storage)} does not work: {_without_secrets(storage, reason)}", _KEPT,
                           "check that it runs, and that user and password are right") from None


def _url(storage: str) -> URL:
    import sqlalchemy.exc
    from sqlalchemy import make_url

    try:
        return make_url(storage)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise ConfigError("the study's storage is neither journal nor the URL of a database", "nothing was started",
                          "write it as sqlite:///PATH or postgresql+psycopg://USER@HOST/DATABASE") from None


def _without_secrets(storage: str, reason: object) -> str:
    """The first line of a database's own words, without the password should they hold it."""
    url = _url(storage)
    line = next(iter(str(reason).strip().splitlines()), type(reason).__name__)
    for secret in (url.password, url.query.get("password"), url.query.get("passfile")):
        if secret:
            line = line.replace(str(secret), "***")
    return line


def _open_database(url: URL) -> BaseStorage:
    import sqlalchemy.exc
    from optuna.storages import RDBStorage

    options = {"connect_args": {"timeout": 60}} if url.get_backend_name() == "sqlite" else {"pool_pre_ping": True}
    text = url.render_as_string(hide_password=False)
    try:
        return RDBStorage(text, engine_kwargs=options)
    except (ImportError, sqlalchemy.exc.NoSuchModuleError) as error:
        told = f"{error.name} for it" if isinstance(error, ImportError) and error.name else "a driver for it"
        raise MissingPartError(f"the storage is a {url.get_backend_name()} database, and {told} is not installed",
                               "nothing was started",
                               "install its driver, such as psycopg[binary], and name it in the URL: "
                               "postgresql+psycopg://USER@HOST/DATABASE") from None


def _open_journal(path: Path) -> BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    class MendingLock(JournalFileSymlinkLock):
        """A lock that whoever gets it first drops a record which a killed writer left unfinished: the next would be
        joined to it, and both lost."""

        def acquire(self) -> bool:
            got = super().acquire()
            mend(path)
            return got

    class CheckedJournal(JournalStorage):
        """A journal of which a record that can not be read is told as damage, whatever optuna trips over."""

        def _sync_with_backend(self) -> None:
            try:
                super()._sync_with_backend()
            except (ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
                raise StorageError(f"the journal {path} is damaged: a record of it can not be read "
                                   f"({type(error).__name__}: {error})", "the study was not continued",
                                   "restore it from a backup, or begin a study in another folder") from error

    # The path is absolute: the lock is a symbolic link to it, and its age is that of what it leads to.
    return CheckedJournal(JournalFileBackend(str(path), lock_obj=MendingLock(str(path))))


def mend(path: Path) -> None:
    """Cut what follows the last line break of a file off it. Raises OSError."""
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        tail = b""
        while end and b"\n" not in tail:
            start = max(0, end - 4096)
            file.seek(start)
            tail, end = file.read(end - start) + tail, start
        keep = end + tail.rfind(b"\n") + 1
        if keep < end + len(tail):
            file.truncate(keep)
