"""`distrib serve`: a bundle behind HTTP, until a signal."""

from __future__ import annotations

import contextlib
import importlib
import ipaddress
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from distrib.bundle import load_bundle
from distrib.errors import ConfigError, MissingPartError
from distrib.predict import Predictor, ingest_options
from distrib.runtimes.table import Runtime
from distrib.serve.figures import Figures
from distrib.serve.limits import Limits
from distrib.serve.workers import Workers

_STOP_S = 30
"""How long a stop waits for answers that are under way."""
_OWN_NAMES = ("localhost", "127.0.0.1", "[::1]")


def run_serve(bundle: Path, limits: Limits, *, host: str = "127.0.0.1", port: int = 8000, runtime: str | None = None,
              allow_hosts: Sequence[str] = (), ready: Callable[[dict[str, Any]], None],
              tell: Callable[[str], None] = lambda _: None) -> None:
    """Serve until SIGTERM or SIGINT, which is raised again after what was taken in has been answered.

    ``ready`` hears {"url", "bundle", "sha256", "runtime", "threads"} when requests are taken. Raises BundleError,
    ConfigError, MissingPartError.
    """
    for package, name in (("fastapi", "fastapi"), ("uvicorn", "uvicorn"), ("python_multipart", "python-multipart")):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingPartError(f"serving needs the package {name}, which can not be imported ({error})",
                                   "nothing was started", "pip install 'distrib[serve]'") from error
    from distrib.serve.answers import Answers, describe
    from distrib.serve.app import PATHS, build_app
    from distrib.serve.guard import Guard, log_line
    from distrib.serve.page import read_page
    from distrib.serve.server import serve_app

    loaded = load_bundle(bundle)
    options = ingest_options(loaded)
    figures = Figures()
    with ExitStack() as stack:
        listener = stack.enter_context(_listen(host, port))
        address, bound = listener.getsockname()[:2]
        url = f"http://{f'[{address}]' if ':' in address else address}:{bound}"
        private = ipaddress.ip_address(address.partition("%")[0]).is_loopback
        if not private:
            tell(f"note: {url} can be reached from other machines, and has neither passwords nor encryption: put a "
                 "proxy before it that has both")
        model = stack.enter_context(Runtime(loaded, runtime))
        explainer = ThreadPoolExecutor(1, thread_name_prefix="explain")
        stack.callback(explainer.shutdown, cancel_futures=True)
        workers = Workers(model.threads, limits.queue, figures.batch)
        stack.callback(workers.close)
        answers = Answers(loaded, Predictor(loaded.bundle, options, model, max_pixels=limits.pixels), model, workers)
        page, policy = read_page()
        app = build_app(page, describe(loaded, model.name, limits), answers, workers, explainer, limits, figures)
        log = _quietly(tell)

        def invalid() -> None:
            figures.request("other", 400, 0.0)
            log(log_line(400, 0.0))

        guard = Guard(app, hosts=allowed_hosts(host, private, allow_hosts), policy=policy, paths=PATHS, limits=limits,
                      figures=figures, log=log)
        serve_app(guard, listener, limits, _STOP_S, invalid, lambda: ready(
            {"url": url, "bundle": str(bundle), "sha256": loaded.sha256, "runtime": model.name,
             "threads": model.threads}))


def allowed_hosts(host: str, private: bool, more: Sequence[str]) -> frozenset[str] | None:
    """The names in Host headers that are answered; None for any.

    A service for this machine alone answers to this machine's names only: else any web page could have its own name
    lead here, and read the answers (DNS rebinding).
    """
    if not private and not more:
        return None
    return frozenset(name.lower() for name in (*_OWN_NAMES, f"[{host}]" if ":" in host else host, *more))


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises ConfigError."""
    listener = None
    try:
        if not 0 <= port <= 65535:
            raise ConfigError(f"--port {port} is not from 0 to 65535", "nothing was started", "choose another")
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM,
                                                                flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        return listener
    except (OSError, UnicodeError) as error:
        if listener is not None:
            listener.close()
        there = isinstance(error, OSError) and not isinstance(error, socket.gaierror)
        reason = str(getattr(error, "strerror", error)) if there else "there is no such host"
        raise ConfigError(f"--host {host} --port {port} can not be listened on: {reason}", "nothing was started",
                          "choose another port or host, or end what holds it") from error


def _quietly(tell: Callable[[str], None]) -> Callable[[str], None]:
    """A log that nobody reads any more is no reason to stop."""

    def log(line: str) -> None:
        with contextlib.suppress(OSError):
            tell(line)

    return log
