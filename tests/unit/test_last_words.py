"""What `distrib train` says in the end."""

from __future__ import annotations

from typing import Any

from distrib.verbs.train import last_words

RESULT: dict[str, Any] = {"run": "runs/a", "finished": True, "step": 8, "weights_sha256": "ab" * 32}


def test_a_finished_run_says_so_and_what_comes_next() -> None:
    assert last_words(RESULT, before=True) == (
        "runs/a was finished already, after step 8. Next: `distrib evaluate runs/a`, or train into "
        "another --run folder, with --from runs/a to start with its weights")


def test_a_run_that_ended_now_says_how() -> None:
    assert last_words(RESULT, before=False) == "finished after step 8; weights abababababababab; run runs/a"
    assert last_words({**RESULT, "finished": False}, before=True).startswith("stopped, to go on later, after step 8")
