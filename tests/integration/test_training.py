"""Training with real processes: the model must not depend on the world size, nor on being interrupted."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distrib.train.loop import Trainer
from distrib.train.reduction import Stop
from distrib.train.run import run_train
from distrib.train.settle import settle
from distrib.world import World
from launch.local import free_port

Start = Callable[..., "subprocess.Popen[str]"]
LIMIT_S = 240


def start_world(start: Start, size: int, *arguments: str | Path) -> list[subprocess.Popen[str]]:
    """`distrib train` as ranks of a world, as any launcher would start them."""
    port = free_port()
    command = [sys.executable, "-m", "distrib", "train", *arguments, "--json"]
    return [
        start(*command, RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size),
              MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        for rank in range(size)
    ]


def train(start: Start, size: int, *arguments: str | Path, code: int = 0) -> dict[str, Any]:
    """Run a world to its end; rank 0's JSON."""
    ranks = start_world(start, size, *arguments)
    outputs = [rank.communicate(timeout=LIMIT_S) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [code] * size, "\n".join(err for _, err in outputs)
    result: dict[str, Any] = json.loads(outputs[0][0])
    assert all(not out for out, _ in outputs[1:])  # only rank 0 speaks on stdout
    return result


def ledger(run: Path) -> list[tuple[int, int, tuple[str, ...]]]:
    """(step, lane, keys) of a run, sorted."""
    lines = [json.loads(line) for path in run.glob("ledger/*.jsonl") for line in path.read_text().splitlines()]
    return sorted((line["step"], line["lane"], tuple(line["keys"])) for line in lines)


def test_collections_pass_over_what_was_imported_while_it_trains(experiment: Path, tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """Survivors of a lost rank wait for one."""
    looked_at = []
    one_period = Trainer.one_period

    def noted(trainer: Trainer) -> Stop:
        looked_at.append(len(gc.get_objects()))
        return one_period(trainer)

    monkeypatch.setattr(Trainer, "one_period", noted)
    before = gc.get_freeze_count()
    run_train(settle(experiment, ("train.steps=2", "evaluate.every_epochs=10"), tmp_path / "run", World()), World(),
              lambda _: None)
    assert len(looked_at) == 2
    assert max(looked_at) < len(gc.get_objects()) / 2
    assert gc.get_freeze_count() <= before


HUNDRED = ("--set", "train.steps=100", "--set", "evaluate.every_epochs=10", "--set", "train.ledger=true",
           "--set", "train.lr=0.01", "--set", "train.ema_decay=0.9")


@pytest.mark.parametrize(("optimizer", "precision", "sampling", "reduction"),
                         [("sgd", "fp32", "shuffle", "exact"), ("adamw", "bf16", "balanced", "exact10"),
                          pytest.param("adamw", "bf16", "balanced", "exact", marks=pytest.mark.soak),
                          pytest.param("adamw", "fp32", "shuffle", "exact10", marks=pytest.mark.soak),
                          pytest.param("adamw", "fp32", "shuffle", "exact16", marks=pytest.mark.soak),
                          pytest.param("adamw", "fp32", "balanced", "exact", marks=pytest.mark.soak),
                          pytest.param("sgd", "bf16", "shuffle", "exact16", marks=pytest.mark.soak)])
def test_every_world_size_trains_the_same_model(start: Start, experiment: Path, tmp_path: Path, optimizer: str,
                                                precision: str, sampling: str, reduction: str) -> None:
    results, ledgers = {}, {}
    for size in (1, 3):  # each word has its unit tests, and the soak all sizes
        results[size] = train(start, size, experiment, *HUNDRED, "--set", f"train.optimizer={optimizer}",
                              "--set", f"train.precision={precision}", "--set", f"data.sampling={sampling}",
                              "--set", f"train.reduction={reduction}", "--set", "train.clip_norm=1.0", "--run",
                              tmp_path / str(size))
        ledgers[size] = ledger(tmp_path / str(size))
    assert {result["step"] for result in results.values()} == {100}
    assert len({result["weights_sha256"] for result in results.values()}) == 1
    assert len({result["ema_sha256"] for result in results.values()}) == 1
    assert len({result["best_score"] for result in results.values()}) == 1
    assert all(ledgers[size] == ledgers[1] for size in ledgers)
    assert len(ledgers[1]) == 100 * 8


LOCAL = ("--set", "train.local_steps=7", "--set", "train.optimizer=adamw", "--set", "checkpoint.every_steps=10",
         "--set", "train.clip_norm=1.0", "--set", "train.lr=0.003")


@pytest.mark.parametrize("reduction", ["exact", pytest.param("exact10", marks=pytest.mark.soak)])
def test_every_world_size_trains_the_same_model_in_local_steps(start: Start, experiment: Path, tmp_path: Path,
                                                              reduction: str) -> None:
    results = {size: train(start, size, experiment, *HUNDRED, *LOCAL, "--set", f"train.reduction={reduction}",
                           "--run", tmp_path / str(size)) for size in (1, 3)}
    for name in ("weights_sha256", "ema_sha256", "best_score", "step"):
        assert len({result[name] for result in results.values()}) == 1, name
    assert ledger(tmp_path / "1") == ledger(tmp_path / "3")
    losses = []
    for size in results:
        lines = [json.loads(line) for line in (tmp_path / str(size) / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if line["event"] == "step"]
        assert [line["step"] for line in steps] == list(range(1, 101))
        losses.append([(line["loss"], line["accuracy"], line["lr"]) for line in steps])
    assert losses[0] == losses[1]


@pytest.mark.soak
def test_local_steps_stopped_and_resumed_at_other_world_sizes(start: Start, experiment: Path, tmp_path: Path) -> None:
    arguments = (experiment, *HUNDRED, *LOCAL, "--set", "checkpoint.keep_last=100")
    whole = train(start, 2, *arguments, "--run", tmp_path / "whole")
    ends = [int(path.name.removeprefix("step-")) for path in (tmp_path / "whole" / "checkpoints").iterdir()]
    # Each is the end of the first round that ends at a multiple of ten, or after it; 57 is also an epoch's.
    assert sorted(ends) == [14, 21, 35, 42, 56, 63, 70, 84, 91, 100]
    run = tmp_path / "torn"
    for size, stop in ((3, signal.SIGTERM), (1, signal.SIGKILL)):
        ranks = start_world(start, size, *arguments, "--run", run)
        begun = len(ledger(run))
        deadline = time.monotonic() + LIMIT_S
        while len(ledger(run)) < begun + 24 * 8 and ranks[0].poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for rank in ranks if stop == signal.SIGKILL else ranks[-1:]:
            os.kill(rank.pid, stop)
        outputs = [rank.communicate(timeout=LIMIT_S) for rank in ranks]
        if stop == signal.SIGTERM:
            assert all(rank.returncode > 128 for rank in ranks), outputs
            assert json.loads(outputs[0][0])["step"] % 7 == 0
    resumed = train(start, 2, *arguments, "--run", run)
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert resumed["ema_sha256"] == whole["ema_sha256"]
    assert ledger(run) == ledger(tmp_path / "whole")


@pytest.mark.soak
@pytest.mark.parametrize("compress", ["bf16", "powersgd"])
def test_compressed_sums_train_on_several_ranks(start: Start, experiment: Path, tmp_path: Path, compress: str) -> None:
    # ResNet-18 has several buckets, whose messages must not get into each other's way.
    for size, steps in ((1, 4), (2, 8)):  # resumed at another world size
        result = train(start, size, experiment, "--set", "model.name=resnet18", "--set", "train.steps=8", "--set",
                       "train.reduction=fast", "--set", f"train.compress={compress}", "--set",
                       "train.powersgd_start=3", "--set", "checkpoint.every_steps=4", "--run",
                       tmp_path / f"{size}-{steps}")
        assert result["finished"]


@pytest.mark.soak
def test_every_world_size_up_to_the_number_of_lanes(start: Start, experiment: Path, tmp_path: Path) -> None:
    digests = {train(start, size, experiment, *HUNDRED, "--run", tmp_path / str(size))["weights_sha256"]
               for size in range(1, 9)}
    assert len(digests) == 1


@pytest.mark.soak
def test_ordinary_sums_would_not_pass(start: Start, experiment: Path, tmp_path: Path) -> None:
    # Shows that the equality above is the reduction's doing: ordinary sums do depend on the ranks.
    digests = {train(start, size, experiment, *HUNDRED, "--set", "train.reduction=fast", "--run",
                     tmp_path / str(size))["weights_sha256"] for size in (1, 2)}
    assert len(digests) == 2


def test_stopped_and_resumed_at_other_world_sizes(start: Start, experiment: Path, tmp_path: Path) -> None:
    arguments = (experiment, *HUNDRED, "--set", "train.optimizer=adamw", "--set", "checkpoint.every_steps=7")
    whole = train(start, 1, *arguments, "--run", tmp_path / "whole")
    run = tmp_path / "torn"
    for size, stop in ((2, signal.SIGTERM), (1, signal.SIGINT), (3, signal.SIGKILL)):
        ranks = start_world(start, size, *arguments, "--run", run)
        begun = len(ledger(run))
        deadline = time.monotonic() + LIMIT_S
        while len(ledger(run)) < begun + 20 * 8 and ranks[0].poll() is None:  # at an arbitrary step
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for rank in ranks if stop == signal.SIGKILL else ranks[-1:]:
            os.kill(rank.pid, stop)
        outputs = [rank.communicate(timeout=LIMIT_S) for rank in ranks]
        if stop == signal.SIGKILL:
            assert [rank.returncode for rank in ranks] == [-9] * size
        else:  # one rank was asked, all stop after the same step
            assert all(rank.returncode > 128 for rank in ranks), outputs
            stopped = json.loads(outputs[0][0])
            assert not stopped["finished"]
            assert stopped["step"] < 100
    resumed = train(start, 2, *arguments, "--run", run)
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert resumed["ema_sha256"] == whole["ema_sha256"]
    assert ledger(run) == ledger(tmp_path / "whole")
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    numbers = [line["step"] for line in steps if line["event"] == "step"]
    assert numbers == list(range(1, 101))


def test_an_epoch_reads_every_sample_once(start: Start, experiment: Path, tmp_path: Path) -> None:
    # 90 samples in batches of 18: two epochs are exactly ten steps.
    result = train(start, 2, experiment, "--set", "train.global_batch=18", "--set", "train.lanes=6",
                   "--set", "train.ledger=true", "--run", tmp_path / "run")
    assert result["step"] == 10
    keys = Counter(key for step, _, batch in ledger(tmp_path / "run") for key in batch)
    assert len(keys) == 90
    assert set(keys.values()) == {2}
    first = Counter(key for step, _, batch in ledger(tmp_path / "run") if step <= 5 for key in batch)
    assert set(first.values()) == {1}
    assert len(first) == 90


def test_torchrun_trains_the_same_model(start: Start, experiment: Path, tmp_path: Path) -> None:
    ours = train(start, 1, experiment, "--run", tmp_path / "ours")
    torchrun = Path(sys.executable).with_name("torchrun")
    # `--` keeps torchrun from reading --run as one of its own options.
    process = start(torchrun, "--nproc-per-node", "2", "--master-port", str(free_port()), "-m", "--", "distrib",
                    "train", experiment, "--run", tmp_path / "theirs", "--json")
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err
    assert json.loads(out)["weights_sha256"] == ours["weights_sha256"]


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(start: Start, experiment: Path,
                                                                 tmp_path: Path) -> None:
    arguments = (experiment, "--set", "checkpoint.every_steps=4", "--set", "checkpoint.keep_last=3", "--run",
                 tmp_path / "run")
    whole = train(start, 1, *arguments)
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    weights = newest / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    ranks = start_world(start, 1, *arguments)
    out, err = ranks[0].communicate(timeout=LIMIT_S)
    assert ranks[0].returncode == 0, err
    assert str(newest) in err
    assert "goes on from the checkpoint of step 8" in err
    assert json.loads(out)["weights_sha256"] == whole["weights_sha256"]


def test_a_loss_that_is_not_finite_stops_and_names_the_last_checkpoint(start: Start, experiment: Path,
                                                                      tmp_path: Path) -> None:
    ranks = start_world(start, 2, experiment, "--set", "train.lr=1e30", "--set", "checkpoint.every_steps=1",
                        "--run", tmp_path / "run")
    outputs = [rank.communicate(timeout=LIMIT_S) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [3, 3], outputs
    assert "not a finite number" in outputs[0][1]
    assert "the last good checkpoint is that of step" in outputs[0][1]


def test_early_stopping_ends_the_run(start: Start, experiment: Path, tmp_path: Path) -> None:
    result = train(start, 2, experiment, "--set", "train.epochs=50", "--set", "train.lr=1e-9",
                   "--set", "train.early_stopping={patience: 2}", "--run", tmp_path / "run")
    assert result["finished"]
    assert result["stopped_early"]
    assert result["step"] < 50
    again = train(start, 1, "--run", tmp_path / "run")  # a finished run stays finished
    assert again["weights_sha256"] == result["weights_sha256"]
    assert again["step"] == result["step"]


def test_transfer_starts_from_weights_with_a_new_head_and_frozen_layers(start: Start, experiment: Path,
                                                                       tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    train(start, 1, experiment, "--run", tmp_path / "first")
    newest = sorted((tmp_path / "first" / "checkpoints").iterdir())[-1]
    weights = load_file(newest / "model.safetensors")
    weights["fc.weight"], weights["fc.bias"] = weights["fc.weight"][:2].clone(), weights["fc.bias"][:2].clone()
    save_file(weights, tmp_path / "pretrained.safetensors")
    train(start, 2, experiment, "--set", f"model.weights={tmp_path / 'pretrained.safetensors'}",
          "--set", "model.freeze=[stem.*, layer1.*]", "--run", tmp_path / "second")
    after = load_file(sorted((tmp_path / "second" / "checkpoints").iterdir())[-1] / "model.safetensors")
    for name, tensor in after.items():
        same = tensor.shape == weights[name].shape and bool((tensor == weights[name]).all())
        assert same == name.startswith(("stem.", "layer1.")), name  # also the frozen layers' statistics


def test_a_broken_image_stops_the_run_naming_it(start: Start, experiment: Path, dataset: Path,
                                               tmp_path: Path) -> None:
    from distrib.data.manifest import load_manifest

    broken = tmp_path / "broken"
    shutil.copytree(dataset, broken)
    shard = next(s for s in load_manifest(broken).shards if s.split == "train")
    content = bytearray((broken / shard.name).read_bytes())
    content[shard.index.offset[3] + 40] ^= 0x10
    (broken / shard.name).write_bytes(content)
    ranks = start_world(start, 1, experiment, "--set", f"data.dataset={broken}", "--run", tmp_path / "run")
    _, err = ranks[0].communicate(timeout=LIMIT_S)
    assert ranks[0].returncode == 2
    message = next(line for line in err.splitlines() if line.startswith("error: "))
    assert shard.index.key[3] in message
    assert shard.name in message
    assert str(shard.index.offset[3]) in message
    assert "Traceback" not in err


def test_ranks_that_were_given_different_experiments_train_nothing(start: Start, experiment: Path,
                                                                 tmp_path: Path) -> None:
    port = free_port()
    ranks = [start(sys.executable, "-m", "distrib", "train", experiment, "--run", tmp_path / "run", "--set",
                   f"train.lr=0.{rank + 1}", RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank),
                   LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)) for rank in range(2)]
    for rank in ranks:
        _, err = rank.communicate(timeout=LIMIT_S)
        assert rank.returncode == 2
        assert "error: rank 1 on " in err
        assert "has another train.lr than rank 0" in err
    assert not (tmp_path / "run").exists()


def test_two_trainings_do_not_share_a_folder(start: Start, experiment: Path, tmp_path: Path) -> None:
    arguments = (experiment, "--set", "train.epochs=300", "--set", "train.ledger=true", "--run", tmp_path / "run")
    first = start_world(start, 1, *arguments)[0]
    while not ledger(tmp_path / "run") and first.poll() is None:
        time.sleep(0.05)
    second = start_world(start, 1, *arguments)[0]
    _, err = second.communicate(timeout=LIMIT_S)
    assert second.returncode == 2
    assert "another training is writing" in err
    first.terminate()
    first.communicate(timeout=LIMIT_S)
    assert first.returncode == 143
