"""The parts of a study that need no training: its file, its space, what becomes of a trial's process, its claims."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import Trial

from distrib.children.claims import Claims
from distrib.children.cores import divide
from distrib.children.training import num_ranks
from distrib.config import Experiment, load_experiment
from distrib.documents import read_yaml, validate
from distrib.elastic.lease import Lease
from distrib.errors import ConfigError, DistribError, StorageError
from distrib.rundir import RunDir
from distrib.tune.draw import SeededByTrial, as_drawn, as_stored, draw
from distrib.tune.folder import StudyDir, settle_study
from distrib.tune.report import describe_study, describe_trial, experiment_text, report_lines
from distrib.tune.run import open_study
from distrib.tune.space import Axis, base_values, corners, in_order, is_active, number_type
from distrib.tune.storage import describe, mend, open_storage
from distrib.tune.study import Plan, Study, load_plan
from distrib.tune.training import Metrics, check_begun, judge, result_score, total_epochs

KEYS = """\
keys:
  train.lr: {low: 1e-3, high: 0.1, log: true}
  train.momentum: {low: 0.5, high: 0.9, when: {train.optimizer: sgd}}
  train.betas: {choices: [[0.9, 0.999], [0.8, 0.99]], when: {train.optimizer: [adamw]}}
  train.optimizer: {choices: [sgd, adamw]}
  train.epochs: {low: 2, high: 6, step: 2}
"""
Load = Callable[..., Plan]


@pytest.fixture
def load(experiment: Path, tmp_path: Path) -> Load:
    def make(keys: str = KEYS, *overrides: str) -> Plan:
        path = tmp_path / "my-study.yaml"
        path.write_text(f"experiment: {experiment}\n{keys}")
        return load_plan(path, overrides)

    return make


def test_a_study_is_its_base_and_its_keys(load: Load) -> None:
    plan = load()
    assert plan.name == "my-study"
    assert plan.folder == Path("studies/my-study")
    assert plan.base_values == {"train.lr": 0.05, "train.momentum": 0.9, "train.optimizer": "sgd", "train.epochs": 2}
    assert plan.experiment({"train.betas": [0.8, 0.99]}).train.betas == (0.8, 0.99)
    # A base value outside its axis is left out, and so is what depends on it.
    assert load("keys: {train.lr: {low: 0.06, high: 0.1}, seed: {choices: [3, 4]}}\n").base_values == {"seed": 3}


@pytest.mark.parametrize(("keys", "told"), [
    ("keys: {train.lrr: {low: 0.1, high: 1.0}}", "did you mean 'lr'"),
    ("keys: {train.lr: {low: 0.0, high: 1.0}}", "train.lr = 0.0"),
    ("keys: {train.lr: {low: 1, high: 1}}", "must be less than high"),
    ("keys: {train.lr: {low: true, high: 1}}", "is no number"),
    ("keys: {train.lr: {low: 0, high: 1, log: true}}", "above 0"),
    ("keys: {train.lr: {low: 0.1, high: 1.0, step: 0.4}}", "a number of steps"),
    ("keys: {train.lr: {low: 0.1, high: 1.0, choices: [1]}}", "either low and high, or choices"),
    ("keys: {train.lr: {choices: [0.1, 0.1]}}", "stands twice"),
    ("keys: {train.lr: {choices: [2020-01-01]}}", "choices are texts"),
    ("keys: {train.epochs: {low: 1.5, high: 3}}", "train.epochs = 1.5"),
    ("keys: {train.epochs: {low: 2, high: 3, step: 0.5}}", "whole numbers"),
    ("keys: {data.augment.hflip: {low: 0, high: 1}}", "takes no numbers"),
    ("keys: {train.optimizer: {low: 0, high: 1}}", "train.optimizer = 0"),
    ("keys: {evaluate.metric: {choices: [loss]}}", "judged in the same way"),
    ("keys: {data.dataset: {choices: [a, b]}}", "same data"),
    ("keys: {comm.backend: {choices: [gloo]}}", "changes nothing"),
    ("keys: {train: {choices: [{}]}, train.lr: {choices: [1]}}", "train holds train.lr"),
    ("keys: {train.lanes: {choices: [8, 3]}}", "a trial with train.lanes=3: train"),
    ("keys: {train.lanes: {choices: [4, 8]}, train.global_batch: {choices: [8, 12]}}",
     "train.lanes=8, train.global_batch=12"),
    ("keys: {train.lr: {choices: [1], when: {seed: 1}}}", "does not vary"),
    ("keys: {train.lr: {choices: [1], when: {seed: 5}}, seed: {choices: [1, 2]}}", "no choice of 'seed'"),
    ("keys: {train.lr: {choices: [1], when: {seed: 1}}, seed: {low: 1, high: 2}}", "it must have choices"),
    ("keys: {seed: {choices: [1], when: {train.lr: 1}}, train.lr: {choices: [1], when: {seed: 1}}}", "to itself"),
    ("keys: {}", "keys = {}"),
    ("keys: {train.lr: {choices: [1]}}\npruning: {reduction: 1}", "pruning.reduction"),
    ("keys: {train.lr: {choices: [1]}}\nname: a/b", "name"),
])
def test_what_can_be_known_is_refused_before_anything_starts(load: Load, keys: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(keys)
    assert told in caught.value.one_line()


def test_the_example_is_a_study() -> None:
    root = Path(__file__).resolve().parents[2]
    study = validate(Study, read_yaml(root / "examples/digits/study.yaml", "study"), "the example")
    document = read_yaml(root / study.experiment, "experiment")
    assert study.trials == 20
    assert base_values(study.keys, document).keys() == study.keys.keys()  # the default lies within


def test_conditions_tell_zero_from_false() -> None:
    axis = Axis(choices=[1], when={"a": [0]})
    assert is_active(axis, {"a": 0})
    assert not is_active(axis, {"a": False})
    assert not is_active(axis, {})


def test_corners_are_combinations_or_of_many_axes_each_alone() -> None:
    few = {"a": Axis(choices=[0, 1]), "b": Axis(low=1, high=2, when={"a": 1})}
    assert list(corners(few)) == [{"a": 0}, {"a": 1, "b": 1}, {"a": 1, "b": 2}]
    many = {**{f"k{number}": Axis(low=0, high=1) for number in range(20)}, **few}
    assert {"a": 1, "b": 2} in list(corners(many))
    assert len(list(corners(many))) == 44


def test_ranges_are_of_the_keys_own_numbers() -> None:
    assert number_type("train.lr") is float
    assert number_type("train.ema_decay") is float
    assert number_type("train.early_stopping.patience") is int
    assert number_type("train.optimizer") is None
    assert number_type("data.augment.hflip") is None
    assert number_type("no.such") is None


def drawn(plan: Plan, count: int, history: dict[int, float], half: bool = False) -> list[dict[str, Any]]:
    """What trials draw whose predecessors had these scores. ``half``: by a process that goes on where one died."""
    study = optuna.create_study(direction="maximize", sampler=SeededByTrial(plan.study))
    values = []
    for number in range(count):
        trial = study.ask()
        if half:
            name = in_order(plan.study.keys)[0]
            draw(trial, {name: plan.study.keys[name]})
            trial = Trial(study, trial._trial_id)
        values.append(draw(trial, plan.study.keys))
        if number in history:
            study.tell(number, history[number])
    return values


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_draws_follow_from_seed_number_and_history(load: Load, sampler: str) -> None:
    plan = load(f"{KEYS}sampler: {sampler}\nstartup: 4\n")
    history = {number: float(number % 3) for number in range(10)}
    first = drawn(plan, 12, history)
    assert drawn(plan, 12, history) == first
    again = drawn(plan, 12, history, half=True)
    assert [row["train.lr"] for row in again[:4]] == [row["train.lr"] for row in first[:4]]
    assert len({row["train.lr"] for row in first}) == 12
    assert drawn(load(f"{KEYS}seed: 1\n"), 1, {})[0] != first[0]
    for values in first:
        assert ("train.momentum" in values) == (values["train.optimizer"] == "sgd")
        assert ("train.betas" in values) == (values["train.optimizer"] == "adamw")
        assert values["train.epochs"] in (2, 4, 6)
        plan.experiment(values)
        assert as_drawn(plan.study.keys, as_stored(plan.study.keys, values)) == values


@given(st.floats(1e-12, 1e12), st.sampled_from([None, True, "no", "1e-3", [0.9, 0.99]]))
def test_an_experiment_as_yaml_reads_back_the_same(value: float, other: object) -> None:
    plan = Plan(Study(experiment=Path("e"), keys={"train.lr": Axis(choices=[1])}), "n", Path("f"),
                {"data": {"dataset": "d"}, "model": {"name": "m"}}, None, None)  # type: ignore[arg-type]
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        Path(file.name).write_bytes(experiment_text(plan, {"train.weight_decay": value, "model.name": str(other)}))
        read = load_experiment(Path(file.name))
    assert (read.train.weight_decay, read.model.name) == (value, str(other))


def test_another_study_is_not_continued(load: Load, tmp_path: Path) -> None:
    folder = StudyDir(tmp_path / "study")
    folder.root.mkdir()
    identity = settle_study(folder, load(), "journal")
    assert settle_study(folder, load(f"{KEYS}trials: 50\nat_once: 3\n"), "journal") == identity
    assert settle_study(folder, load(KEYS, "comm.timeout_s=9"), "journal") == identity
    for plan, storage, told in (
        (load(f"{KEYS}seed: 1\n"), "journal", "another seed"),
        (load(KEYS.replace("0.1,", "0.2,")), "journal", "another keys.train.lr.high"),
        (load(KEYS, "train.lanes=4"), "journal", "another experiment.train.lanes"),
        (load(), "sqlite database x", "another storage"),
    ):
        with pytest.raises(ConfigError, match=told):
            settle_study(folder, plan, storage)
    folder.document.write_bytes(folder.document.read_bytes().replace(b"my-study", b"my-other"))
    with pytest.raises(ConfigError, match="damaged"):
        settle_study(folder, load(), "journal")


def test_what_becomes_of_a_process() -> None:
    def how(code: int, score: float | None = None, further: bool = False, starts: int = 1) -> str:
        return judge(code, score, "told", further, starts).how

    assert how(0, 0.5) == "complete"
    assert how(143, 0.5) == "complete"  # it was done when it was asked to stop
    assert how(3) == "diverged"
    assert how(2) == how(1) == "failed"
    assert how(0) == "failed"
    assert how(137) == how(-9) == how(143) == "again"
    assert how(137, starts=3) == "failed"
    assert how(137, starts=3, further=True) == "again"
    assert judge(2, None, "told", False, 1).message == "told"


def test_validations_are_read_once_also_from_a_file_written_anew(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    base = Experiment.model_validate({"data": {"dataset": "d"}, "model": {"name": "m"}, "train": {"global_batch": 16,
                                                                                                 "epochs": 3}})
    metrics = Metrics(run, base, num_samples=40)

    def lines(*steps: int, torn: bool = False) -> bytes:
        texts = [json.dumps({"event": "validation", "step": step, "validation": {"score": step / 10}})
                 for step in steps]
        return ("\n".join(["{}", *texts]) + ("" if torn else "\n")).encode()

    assert list(metrics.read()) == []
    run.metrics.write_bytes(lines(3, 5, torn=True))
    assert [seen.epochs for seen in metrics.read()] == [1]
    run.metrics.write_bytes(lines(3, 5))
    assert [seen.score for seen in metrics.read()] == [0.5]
    other = tmp_path / "other"
    other.write_bytes(lines(3, 5, 8))
    os.replace(other, run.metrics)  # as a run does that goes on
    assert [seen.epochs for seen in metrics.read()] == [3]
    assert total_epochs(base, 40) == 3
    assert [num_ranks(base, cores) for cores in (1, 2, 64)] == [1, 2, 8]


@pytest.mark.parametrize("line", [b'{"event": "validation"', b'{"event": "validation", "step": 3}',
                                  b'["validation"]', b'{"event": "validation", "step": "x", "validation": {}}',
                                  b'{"event": "validation", "step": 3, "validation": {"score": NaN}}',
                                  b'{"event": "validation", "\xff": 0}'])
def test_damaged_records_of_a_trial_are_named(tmp_path: Path, line: bytes) -> None:
    run = RunDir(tmp_path)
    base = Experiment.model_validate({"data": {"dataset": "d"}, "model": {"name": "m"}})
    run.metrics.write_bytes(line + b"\n")
    with pytest.raises(StorageError, match=r"metrics\.jsonl is damaged"):
        list(Metrics(run, base, 40).read())
    run.result.write_text('{"best_score": NaN}')
    with pytest.raises(ValueError, match="nan"):
        result_score(run)


def test_a_trial_that_was_begun_with_other_values_is_not_gone_on_with(load: Load, tmp_path: Path) -> None:
    run, plan = RunDir(tmp_path / "run"), load(KEYS, "train.precision=auto")
    run.root.mkdir()
    begun = plan.experiment({"train.lr": 0.02, "train.precision": "bf16", "comm.timeout_s": 9})
    run.experiment.write_bytes(begun.to_bytes())
    check_begun(run, plan.experiment({"train.lr": 0.02}))
    with pytest.raises(ConfigError, match=r"begun with another train\.lr than"):
        check_begun(run, plan.experiment({"train.lr": 0.03}))


@pytest.mark.parametrize(("old", "new"), [(b"op_code", b"op_c\xffde"), (b'"op_code":4', b'"op_code":99'),
                                          (b'{"op_code":4', b'[{"op_code":4}]\n{"op_code":4'), (b":4,", b":4,,"),
                                          (b'"study_id":0', b'"study_id":' + b"9" * 5000)])
def test_a_damaged_journal_is_named(load: Load, tmp_path: Path, old: bytes, new: bytes) -> None:
    journal = tmp_path / "journal.jsonl"
    open_study(load(), open_storage("journal", journal), "id", "journal")
    assert old in journal.read_bytes()
    journal.write_bytes(journal.read_bytes().replace(old, new, 1))
    with pytest.raises(StorageError, match=r"the journal .*journal\.jsonl is damaged"):
        open_storage("journal", journal)


def test_a_study_whose_records_are_lost_or_wrong_is_not_gone_on_with(load: Load, tmp_path: Path) -> None:
    plan, storage = replace(load(), folder=tmp_path / "study"), open_storage("journal", tmp_path / "journal.jsonl")
    with pytest.raises(ConfigError, match="has no trials yet"):
        open_study(plan, storage, "id", "journal", reads=True)
    StudyDir(plan.folder).run(0).root.mkdir(parents=True)
    with pytest.raises(StorageError, match=r"holds no study named my-study, and .* has trials of it"):
        open_study(plan, storage, "id", "journal")
    StudyDir(plan.folder).run(0).root.rmdir()
    study = open_study(plan, storage, "id", "journal")
    trial = study.ask()
    trial.report(float("nan"), 1)
    with pytest.raises(StorageError, match="trial 0 has a score that is no finite number"):
        describe_study(study, plan, StudyDir(plan.folder), Claims("a", 5.0))


def test_cores_are_divided_evenly() -> None:
    cores = [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert divide(cores, 2) == [[0, 4, 1, 5], [2, 6, 3, 7]]
    assert divide(cores, 3) == [[0, 4], [1, 5], [2, 6, 3, 7]]
    assert divide(cores[:2], 3) == [[0, 4], [1, 5], [0, 4]]


def test_one_living_process_has_a_claim(tmp_path: Path) -> None:
    place = RunDir(tmp_path / "claim")
    first, second = Claims("a", 5.0), Claims("b", 5.0)
    lease = first.claim(place)
    assert lease is not None
    assert second.claim(place) is None
    assert second.lives(place)
    lease.release()
    taken = second.claim(place)
    assert taken is not None
    assert not lease.is_ours()
    taken.release()


def test_a_holder_elsewhere_lives_by_its_signs(tmp_path: Path) -> None:
    place = RunDir(tmp_path / "claim")
    place.lease.mkdir(parents=True)

    def sign(number: int) -> None:
        content = {"host": "far", "sign": number, "process": {"boot": "other"}}
        (place.lease / "000000004.json").write_text(json.dumps(content))

    patient, hasty = Claims("a", 1000.0), Claims("a", 0.0)
    sign(1)
    assert patient.claim(place) is None
    assert not patient.lives(place)  # no sign since this looked first
    sign(2)
    assert patient.lives(place)
    taken = hasty.claim(place)
    assert isinstance(taken, Lease)
    assert taken.token == 5
    taken.release()


def test_a_trial_that_nobody_sees_to_is_stopped(load: Load, tmp_path: Path) -> None:
    folder, claims = StudyDir(tmp_path / "study"), Claims("here", 0.3)
    trial = optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING)
    trial.number = 2

    def state() -> str:
        claims.make_sure([folder.claim(2)])
        return str(describe_trial(trial, load(), folder, claims)["state"])

    lease = Claims("here", 5.0).claim(folder.claim(2))
    assert lease is not None
    assert state() == "running"
    lease.release()
    assert state() == "stopped"
    far = folder.claim(2).lease / "000000009.json"  # on another machine, and with no further sign
    far.write_text(json.dumps({"host": "far", "sign": 1, "process": {"boot": "other"}}))
    assert state() == "stopped"


@pytest.mark.parametrize(("content", "kept"), [(b"", b""), (b"a\nb", b"a\n"), (b"a\nb\n", b"a\nb\n"), (b"torn", b""),
                                               (b"a\n" + b"x" * 9000, b"a\n")])
def test_a_torn_record_is_cut_off(tmp_path: Path, content: bytes, kept: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(content)
    mend(path)
    assert path.read_bytes() == kept


@pytest.mark.parametrize("storage", ["postgresql+psycopg://me:s3cret@db.site:5433/studies",
                                     "postgresql+psycopg://me@/studies?host=/nowhere&password=s3cret"])
def test_a_storage_is_named_without_who_and_how(storage: str, tmp_path: Path) -> None:
    named = describe(storage)
    assert "studies" in named
    assert "s3cret" not in named
    assert "me" not in named.split()
    with pytest.raises(DistribError) as caught:  # no such driver, or no such server
        open_storage(storage.replace("db.site:5433", "127.0.0.1:1"), tmp_path / "journal")
    assert "s3cret" not in caught.value.one_line()
    with pytest.raises(ConfigError, match="neither journal nor"):
        describe("no url s3cret")


def test_who_is_told_the_best_of_several_is_told_that_it_was_partly_lucky() -> None:
    def row(number: int) -> dict[str, Any]:
        return {"number": number, "state": "complete", "score": 0.5 + number / 10, "best_seen": 0.5, "epochs": 1,
                "values": {}, "message": None}

    for count in (1, 2):
        report = {"metric": "auroc", "base_score": 0.5, "importances": {}, "best_experiment": "best.yaml",
                  "trials": [row(number) for number in range(count)], "best": row(count - 1)}
        assert any("partly lucky" in line for line in report_lines(report)) is (count > 1)
