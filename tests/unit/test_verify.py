"""Sameness is claimed of what was compared alone, and a difference has a step, evidence and recorded causes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distrib.config import Experiment
from distrib.errors import CheckpointError
from distrib.verify.differences import environment_at, history, recorded_differences
from distrib.verify.judge import first_different_loss, judge, same_parts
from distrib.verify.reading import _losses, _result
from distrib.verify.record import Record, Result
from distrib.verify.replay import last_step_after, replayed_experiment
from distrib.verify.words import reasons, verdict_line

ENVIRONMENT = {"distrib": "1", "processor": "x", "instruction_sets": ["avx2"], "torch_capability": "AVX2", "threads": 1,
               "packages": {"torch": "2", "numpy": "2"}, "world_size": 1, "host": "h"}


def start(step: int = 0, **changes: Any) -> dict[str, Any]:
    return {"step": step, **ENVIRONMENT, **changes}


def record(name: str = "a", steps: int = 8, *, starts: tuple[dict[str, Any], ...] = (start(),),
           losses: dict[int, float] | None = None, checkpoints: tuple[int, ...] = (4, 8), result: Result | None = None,
           dataset: str = "d", **sections: Any) -> Record:
    document = {"data": {"dataset": "x"}, "model": {"name": "small_cnn"}, **sections}
    experiment = Experiment.model_validate(document).model_dump(mode="json")
    numbers = {step: 1 / step for step in range(1, steps + 1)} | (losses or {})
    return Record(name, experiment, dataset, starts, numbers, frozenset(checkpoints), result)


def same(_: int) -> dict[str, bool]:
    return {"model": True, "optimizer": True}


def other_from(step: int) -> Any:
    return lambda one: {"model": one < step, "optimizer": one < step}


def named(a: Record, b: Record, last_step: int = 8) -> list[tuple[str, int]]:
    return [(one["what"], one["from_step"]) for one in recorded_differences(a, b, last_step)]


def test_the_same() -> None:
    verdict = judge(record(), record("b"), same)
    assert (verdict["same"], verdict["evidence"], verdict["weights_step"]) == (True, "weights", 8)
    assert verdict["compared_parts"] == ["model", "optimizer"]
    assert verdict["first_different_step"] is verdict["explained"] is None
    assert verdict_line(verdict).startswith("same: a and b are the same model, bit for bit, after step 8")


def test_only_the_newest_is_read_if_it_is_the_same_and_an_older_one_if_it_is_damaged() -> None:
    asked: list[int] = []

    def damaged(step: int) -> dict[str, bool] | None:
        asked.append(step)
        return None if step == 8 else same(step)

    verdict = judge(record(), record("b"), damaged)
    assert (verdict["same"], verdict["weights_step"], asked) == (True, 4, [8, 4])
    asked.clear()
    judge(record(), record("b"), lambda step: asked.append(step) or same(step))  # type: ignore[func-returns-value]
    assert asked == [8]


def test_the_earliest_evidence_counts() -> None:
    by_loss = judge(record(), record("b", losses={6: 0.5, 7: 0.5}), other_from(5))
    assert (by_loss["same"], by_loss["first_different_step"], by_loss["evidence"]) == (False, 6, "loss")
    assert by_loss["last_same_weights_step"] == 4
    by_checkpoint = judge(record(), record("b", losses={6: 0.5}), other_from(4))
    assert (by_checkpoint["first_different_step"], by_checkpoint["evidence"]) == (4, "checkpoint")
    assert by_checkpoint["last_same_weights_step"] is None
    silent = judge(record(), record("b"), other_from(5))
    assert (silent["first_different_step"], silent["evidence"]) == (8, "checkpoint")
    assert "no recorded difference" in " ".join(reasons(silent))
    assert "--replay" in " ".join(reasons(silent))


def test_runs_of_different_length_are_compared_as_far_as_both_go() -> None:
    verdict = judge(record(), record("b", 6, checkpoints=(4, 6)), same)
    assert (verdict["same"], verdict["compared_step"], verdict["weights_step"]) == (True, 6, 4)
    assert "a ends at step 8, b at step 6: compared up to step 6" in list(reasons(verdict))
    alone = judge(record(), record("b", 6, checkpoints=(6,)), lambda _: pytest.fail("no common state"))
    assert (alone["same"], alone["evidence"], alone["weights_step"]) == (True, "losses", None)
    assert "weights were not compared" in verdict_line(alone)


def test_what_can_not_be_compared() -> None:
    with pytest.raises(CheckpointError, match="contradict"):
        judge(record(), record("b", losses={5: 0.5}), same)
    with pytest.raises(CheckpointError, match="damaged"):
        judge(record(), record("b"), lambda _: None)
    with pytest.raises(CheckpointError, match="no step in common"):
        judge(record(), record("b", 0, checkpoints=()), same)


def test_losses_are_compared_to_the_last_bit() -> None:
    assert first_different_loss({1: 0.1, 2: 0.3}, {1: 0.1, 2: 0.1 + 0.2}) == 2
    nan = float("nan")
    assert first_different_loss({1: nan, 2: 1.0}, {1: nan, 2: 1.0, 3: 2.0}) is None
    assert first_different_loss({1: nan}, {1: 1.0}) == 1
    json.dumps(judge(record(losses={8: nan}), record("b"), other_from(8)), allow_nan=False)


def test_a_moving_average_of_one_run_alone_is_a_difference() -> None:
    assert same_parts({"model": "1", "ema": None}, {"model": "1", "ema": "2", "optimizer": "3"}) == {
        "model": True, "ema": False}
    assert same_parts({"model": "1", "ema": None}, {"model": "1", "ema": None}) == {"model": True}


def test_keys_that_decide_bits_and_no_others() -> None:
    assert named(record(), record(seed=1, train={"lr": 0.2, "threads": 2}, dataset="e")) == [
        ("seed", 1), ("train.lr", 1), ("train.threads", 1), ("dataset_sha256", 1)]
    assert named(record(), record(
        data={"dataset": "elsewhere", "decode_threads": 4}, checkpoint={"every_steps": 3}, watch={"every_s": 0},
        comm={"backend": "gloo"}, evaluate={"metric": "auroc", "bootstrap": 0},
        train={"ledger": True, "early_stopping": {"patience": 3}})) == []
    assert named(record(), record(model={"name": "small_cnn", "weights": "w.safetensors"})) == [("model.weights", 1)]


def test_ranks_and_their_backend_matter_to_fast_sums_alone() -> None:
    ranks = (start(world_size=2), start(4, world_size=2))
    assert named(record(), record(starts=ranks)) == []
    fast = {"reduction": "fast"}
    assert named(record(train=fast), record(starts=ranks, comm={"backend": "gloo"}, train=fast)) == [
        ("comm.backend", 1), ("world_size", 1), ("started_after_step", 5)]


def test_environments_by_the_step_they_were_used_from() -> None:
    changed = (start(), start(3, threads=2, packages={"torch": "3", "numpy": "2"}), start(6))
    assert named(record(), record(starts=changed)) == [("packages.torch", 4), ("threads", 4)]
    assert named(record(), record(starts=changed), last_step=3) == []
    verdict = judge(record(), record("b", starts=changed, losses={2: 0.7}), other_from(4))
    assert verdict["explained"] is False  # what came later is no cause
    assert "no recorded difference by then" in " ".join(reasons(verdict))
    assert judge(record(), record("b", starts=changed, losses={4: 0.7}), other_from(4))["explained"] is True
    assert "is not recorded" in " ".join(reasons(judge(record(starts=()), record("b"), same)))


def test_a_start_from_an_earlier_step_replaces_the_later_ones() -> None:
    starts = [start(0, host="p"), start(5, host="q"), start(3, host="r"), start(8, host="s")]
    assert [one["step"] for one in history(starts)] == [0, 3, 8]
    hosts = [(environment_at(starts, step) or {})["host"] for step in (1, 3, 4, 8, 9)]
    assert hosts == ["p", "p", "r", "r", "s"]
    assert environment_at([start(4)], 4) is None


def test_records_are_read_and_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert _losses(path) == {}
    lines = ('{"event": "step", "step": 1, "loss": 0.1}\n{"event": "node", "step": 1}\n'
             '{"event": "diverged", "step": 2}\n')
    path.write_text(lines + '{"event": "step", "st')
    assert repr(_losses(path)) == "{1: 0.1, 2: nan}"
    for wrong in ("[]\n", "x\n", '{"event": "step", "step": "1", "loss": 1}\n'):
        path.write_text(lines + wrong)
        with pytest.raises(CheckpointError, match="line 4"):
            _losses(path)
        with pytest.raises(CheckpointError, match="damaged"):
            _result(path)


def test_a_replay_has_the_runs_own_bits_and_a_checkpoint_to_compare() -> None:
    run = record(checkpoint={"every_steps": 3}, seed=5, train={"lr": 1e-5})
    document = replayed_experiment(run, 7, Path("here"))
    assert document["checkpoint"]["every_steps"] == 4  # of 4 and 8, the newest that is reached
    replayed = Record("b", document, "d", run.starts, run.losses, run.checkpoints, None)
    assert named(run, replayed) == []
    assert document["data"]["dataset"] == "here"
    finished = record(result=Result(8, {"model": "1", "ema": None}), checkpoint={"every_steps": 3})
    assert replayed_experiment(finished, 8, None)["checkpoint"] == finished.experiment["checkpoint"]


def test_a_training_is_followed_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_step_after(path, 0, 0) == (0, 0)
    path.write_text('{"event": "step", "step": 1}\n{"event": "step", "step": 2}')
    place, done = last_step_after(path, 0, 0)
    assert done == 1
    path.write_text(path.read_text() + '\n{"event": "ranks", "step": 3}\n')
    assert last_step_after(path, place, done) == (path.stat().st_size, 2)
    assert last_step_after(path, path.stat().st_size, 2) == (path.stat().st_size, 2)
