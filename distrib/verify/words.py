"""A verdict in words."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from distrib.errors import counted, printable

Verdict = Mapping[str, Any]

_PARTS = {"model": "weights", "optimizer": "optimizer state", "ema": "moving average"}


def verdict_line(verdict: Verdict) -> str:
    """Same or different, in one line."""
    runs = f"{verdict['a']['run']} and {verdict['b']['run']}"
    if not verdict["same"]:
        return f"different: {runs} are not the same model from step {verdict['first_different_step']} on"
    if verdict["evidence"] == "weights":
        return f"same: {runs} are the same model, bit for bit, after step {verdict['weights_step']}"
    return (f"same as far as was recorded: the losses of {runs} are the same, bit for bit, up to step "
            f"{verdict['compared_step']}; their weights were not compared, as no step has a checkpoint of both")


def reasons(verdict: Verdict) -> Iterator[str]:
    """What the verdict rests on, how far it goes, and what explains it, a sentence each."""
    yield from _evidence(verdict)
    if verdict["a"]["last_step"] != verdict["b"]["last_step"]:
        yield (f"{verdict['a']['run']} ends at step {verdict['a']['last_step']}, {verdict['b']['run']} at step "
               f"{verdict['b']['last_step']}: compared up to step {verdict['compared_step']}")
    unrecorded = [run["run"] for run in (verdict["a"], verdict["b"]) if not run["starts"]]
    if unrecorded:
        yield f"the environment of {' and '.join(unrecorded)} is not recorded, so it was not compared"
    if verdict["same"]:
        if verdict["differences"]:
            yield "their records do differ, which changed nothing up to there"
    elif verdict["explained"]:
        yield "the likely cause is among what differs by then"
    else:
        yield from _unexplained(verdict)


def show_verdict(verdict: Verdict, put: Callable[[str], None]) -> None:
    """The verdict for people: a line, its reasons, and a table of what differs in the records."""
    put(printable(verdict_line(verdict)))
    for reason in reasons(verdict):
        put(printable(f"  {reason}"))
    if verdict["differences"]:
        console = Console(file=io.StringIO(), width=max(Console().width, 80))
        with console.capture() as captured:
            console.print(differences_table(verdict))
        put(captured.get().rstrip("\n"))


def differences_table(verdict: Verdict) -> Table:
    """A row for each recorded difference."""
    table = Table("differs", verdict["a"]["run"], verdict["b"]["run"], "from step")
    for one in verdict["differences"]:
        table.add_row(*(Text(printable(cell)) for cell in (one["what"], *_short(one["a"], one["b"]),
                                                          str(one["from_step"]))))
    return table


def _evidence(verdict: Verdict) -> Iterator[str]:
    if verdict["same"]:
        if verdict["compared_parts"]:
            yield f"compared by digest: {_parts(verdict['compared_parts'])}"
        if verdict["losses_compared"]:
            yield f"compared exactly: the losses of {counted(verdict['losses_compared'], 'step')}"
        return
    loss, checkpoint = verdict["first_different_loss"], verdict["first_different_checkpoint"]
    words = [(checkpoint["step"], f"the checkpoints of step {checkpoint['step']} differ: "
              f"{_parts(checkpoint['parts'])}")] if checkpoint else []
    words += [(loss["step"], f"the losses of step {loss['step']} differ: {loss['a']} and {loss['b']}")] if loss else []
    yield from (sentence for _, sentence in sorted(words))
    if verdict["last_same_weights_step"] is not None:
        yield f"the weights after step {verdict['last_same_weights_step']} are still the same"


def _parts(names: Sequence[str]) -> str:
    return ", ".join(_PARTS[name] for name in names)


def _unexplained(verdict: Verdict) -> Iterator[str]:
    later = " by then (what differs later is no cause)" if verdict["differences"] else ""
    yield (f"no recorded difference{later}: experiment, dataset, distrib, processor, libraries and threads are the "
           "same. The cause is in none of them: silent corruption (memory, processor, disk, network), or an operation "
           "that is not deterministic")
    yield ("not recorded are the contents of model.weights, a model's own code, and the processors and libraries of "
           "ranks other than 0")
    hosts = [run["host"] for run in (verdict["a"], verdict["b"])]
    if None not in hosts and hosts[0] != hosts[1]:
        yield f"rank 0 ran on {hosts[0]} and {hosts[1]}"
    yield ("to try: `distrib verify RUN --replay` for each run, on several hosts; one that differs from its replays is "
           "the wrong one")


def _short(a: Any, b: Any) -> tuple[str, str]:
    """Two values for a table; of two lists, what only the one has."""
    if isinstance(a, list) and isinstance(b, list) and all(isinstance(one, str) for one in (*a, *b)):
        a, b = [one for one in a if one not in b], [one for one in b if one not in a]
        return ", ".join(a) or "-", ", ".join(b) or "-"
    return str(a), str(b)
