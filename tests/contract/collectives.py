"""One rank of the contract suite: `python collectives.py BACKEND PART` in the environment of a world.

It joins the world as training does, runs the part's checks, and prints one line of JSON: check -> what went wrong, or
null. What a check compares with is computed here, from all ranks' inputs, without communication.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distrib.comm.group import Group
from distrib.errors import WorldError
from distrib.world import World

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int32,
          torch.int64, torch.bool)
SIZES = (0, 1, 3, 1023, 65537)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 5e-2}
OPERATIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN,
              "product": dist.ReduceOp.PRODUCT, "avg": dist.ReduceOp.AVG}
Results = dict[str, str | None]


def values(rank: int, size: int, dtype: torch.dtype) -> Tensor:
    """What a rank holds: small numbers that no other rank holds."""
    generator = torch.Generator().manual_seed(1000 * size + rank)
    if dtype == torch.bool:
        return torch.rand(size, generator=generator) > 0.5
    if dtype.is_floating_point:
        return (torch.rand(size, generator=generator, dtype=torch.float64) + 0.5).to(dtype)
    return torch.randint(0, 5, (size,), generator=generator).to(dtype)


def reduced(operation: str, parts: list[Tensor]) -> Tensor:
    """The reduction in a wide type; of booleans, sum is `or` and product is `and`."""
    stack = torch.stack([part.double() if part.dtype.is_floating_point else part.long() for part in parts])
    if parts[0].dtype == torch.bool:
        return stack.amax(0) if operation in ("sum", "max") else stack.amin(0)
    named: dict[str, Callable[[Tensor], Tensor]] = {
        "sum": lambda t: t.sum(0), "max": lambda t: t.amax(0), "min": lambda t: t.amin(0),
        "product": lambda t: t.prod(0), "avg": lambda t: t.double().mean(0),
    }
    return named[operation](stack)


def same(result: Tensor, expected: Tensor) -> None:
    """Fail unless equal: exactly for whole numbers, which wrap, and to the type's precision otherwise."""
    tolerance = TOLERANCE.get(result.dtype)
    if tolerance is None:
        assert torch.equal(result, expected.to(result.dtype)), f"{result} is not {expected}"
    else:
        torch.testing.assert_close(result.double(), expected.double(), rtol=tolerance, atol=tolerance)


def all_same(results: list[Tensor], expected: list[Tensor]) -> None:
    for result, wanted in zip(results, expected, strict=True):
        same(result, wanted)


class Checks:
    """What every backend must do, on one group."""

    def __init__(self, group: Group, refused: set[str]) -> None:
        self.group, self.rank, self.size, self.refused = group, group.rank, group.size, refused
        self.results: Results = {}
        self.begun: list[tuple[dist.Work, Callable[[], None]]] = []

    def run(self, name: str, check: Callable[[], None], *tags: str) -> None:
        """Note how a check went. What the table says is refused must raise, on every rank, and not be wrong."""
        if self.refused & {name, *tags}:
            try:
                check()
                self.results[name] = "declared as refused, but it works"
            except (RuntimeError, ValueError):
                self.results[name], self.begun = None, []
            return
        try:
            check()
            self.results[name] = None
        except Exception:
            self.begun = []
            self.results[name] = traceback.format_exc()[-1500:]

    def every(self, size: int, dtype: torch.dtype) -> list[Tensor]:
        return [values(rank, size, dtype) for rank in range(self.size)]

    def all(self) -> None:
        for dtype in DTYPES:
            kind = str(dtype).removeprefix("torch.")
            for operation in OPERATIONS:
                if operation == "avg" and not dtype.is_floating_point:
                    continue
                self.run(f"all_reduce {operation} {kind}", partial(self.all_reduce, operation, dtype), operation,
                         f"reduce {kind}")
            for name in ("broadcast", "all_gather", "all_gather_into_tensor", "gather", "scatter", "all_to_all"):
                self.run(f"{name} {kind}", partial(getattr(self, name), dtype), name, f"move {kind}")
            for name in ("reduce", "reduce_scatter", "reduce_scatter_tensor"):
                self.run(f"{name} {kind}", partial(getattr(self, name), dtype), name, f"reduce {kind}")
        for name in ("not_contiguous", "barrier", "objects", "send_and_receive", "uneven", "in_flight", "futures",
                     "subgroups", "sharded_subgroups", "ddp", "ddp_with_a_hook", "requires_grad", "rows"):
            self.run(name, getattr(self, name), name)

    def settle(self) -> None:
        """Wait for what was started, then compare; several sizes are under way at once, which saves time."""
        begun, self.begun = self.begun, []
        for work, _ in begun:
            work.wait()
        for _, compare in begun:
            compare()

    def all_reduce(self, operation: str, dtype: torch.dtype) -> None:
        for size in SIZES:
            parts = self.every(size, dtype)
            tensor = parts[self.rank].clone()
            self.begun.append((dist.all_reduce(tensor, op=OPERATIONS[operation], async_op=True),
                               partial(same, tensor, reduced(operation, parts))))
        self.settle()

    def broadcast(self, dtype: torch.dtype) -> None:
        for root in {0, self.size - 1}:
            for size in SIZES:
                tensor = values(self.rank, size, dtype)
                self.begun.append((dist.broadcast(tensor, src=root, async_op=True),
                                   partial(same, tensor, values(root, size, dtype))))
        self.settle()

    def all_gather(self, dtype: torch.dtype) -> None:
        for size in SIZES:
            parts = self.every(size, dtype)
            outputs = [torch.zeros_like(part) for part in parts]
            self.begun.append((dist.all_gather(outputs, parts[self.rank], async_op=True),
                               partial(all_same, outputs, parts)))
        self.settle()

    def all_gather_into_tensor(self, dtype: torch.dtype) -> None:
        for size in SIZES:
            parts = self.every(size, dtype)
            output = torch.zeros(size * self.size, dtype=dtype)
            self.begun.append((dist.all_gather_into_tensor(output, parts[self.rank], async_op=True),
                               partial(same, output, torch.cat(parts))))
        self.settle()

    def reduce(self, dtype: torch.dtype) -> None:
        for size in SIZES:
            parts = self.every(size, dtype)
            tensor = parts[self.rank].clone()
            work = dist.reduce(tensor, dst=self.size - 1, async_op=True)
            receives = self.rank == self.size - 1
            self.begun.append((work, partial(same, tensor, reduced("sum", parts) if receives else tensor)))
        self.settle()

    def reduce_scatter(self, dtype: torch.dtype) -> None:
        for size in SIZES:
            parts = self.every(size * self.size, dtype)
            output = torch.zeros(size, dtype=dtype)
            work = dist.reduce_scatter(output, list(parts[self.rank].view(self.size, size)), async_op=True)
            self.begun.append((work, partial(same, output, reduced("sum", parts).view(self.size, size)[self.rank])))
        self.settle()

    def reduce_scatter_tensor(self, dtype: torch.dtype) -> None:
        for size in SIZES:
            parts = self.every(size * self.size, dtype)
            output = torch.zeros(size, dtype=dtype)
            work = dist.reduce_scatter_tensor(output, parts[self.rank], async_op=True)
            self.begun.append((work, partial(same, output, reduced("sum", parts).view(self.size, size)[self.rank])))
        self.settle()

    def gather(self, dtype: torch.dtype) -> None:
        for size in SIZES:
            parts = self.every(size, dtype)
            outputs = [torch.zeros_like(part) for part in parts] if self.rank == 0 else None
            self.begun.append((dist.gather(parts[self.rank], outputs, dst=0, async_op=True),
                               partial(all_same, outputs or [], parts if self.rank == 0 else [])))
        self.settle()

    def scatter(self, dtype: torch.dtype) -> None:
        for size in SIZES:
            parts, root = self.every(size, dtype), self.size - 1
            output = torch.zeros(size, dtype=dtype)
            work = dist.scatter(output, parts if self.rank == root else None, src=root, async_op=True)
            self.begun.append((work, partial(same, output, parts[self.rank])))
        self.settle()

    def all_to_all(self, dtype: torch.dtype) -> None:
        for size in SIZES:
            parts = self.every(size * self.size, dtype)
            output = torch.zeros(size * self.size, dtype=dtype)
            expected = torch.cat([part.view(self.size, size)[self.rank] for part in parts])
            self.begun.append((dist.all_to_all_single(output, parts[self.rank], async_op=True),
                               partial(same, output, expected)))
        self.settle()

    def not_contiguous(self) -> None:
        """The right answer, or an error; never a wrong answer."""
        def strided(rank: int) -> Tensor:
            return values(rank, 60, torch.float32).view(6, 10).t()

        tensor = strided(self.rank)
        with contextlib.suppress(RuntimeError, ValueError):
            dist.all_reduce(tensor)
            same(tensor, reduced("sum", [strided(rank) for rank in range(self.size)]))
        tensor = strided(self.rank)
        with contextlib.suppress(RuntimeError, ValueError):
            dist.broadcast(tensor, src=0)
            same(tensor, strided(0))

    def barrier(self) -> None:
        for _ in range(5):
            dist.barrier()
        begun = time.monotonic()
        if self.rank == self.size - 1:
            time.sleep(0.3)
        dist.barrier()
        assert time.monotonic() - begun >= 0.29

    def objects(self) -> None:
        mine = {"rank": self.rank, "text": "x" * (10 + 1000 * self.rank)}
        outputs: list[Any] = [None] * self.size
        dist.all_gather_object(outputs, mine)
        assert [output["rank"] for output in outputs] == list(range(self.size))
        assert [len(output["text"]) for output in outputs] == [10 + 1000 * rank for rank in range(self.size)]
        listed = [mine, "second"] if self.rank == 0 else [None, None]
        dist.broadcast_object_list(listed, src=0)
        assert listed[0]["rank"] == 0  # type: ignore[index]
        assert listed[1] == "second"

    def send_and_receive(self) -> None:
        tensor = values(self.rank, 1023, torch.float32)
        if self.size == 1:
            if "send_and_receive" in self.refused:
                raise RuntimeError("nobody to send to")
            return
        if self.rank == 0:
            dist.send(tensor, dst=1)
        elif self.rank == 1:
            dist.recv(tensor, src=0)
            same(tensor, values(0, 1023, torch.float32))
        elif "send_and_receive" in self.refused:
            raise RuntimeError("not concerned")

    def uneven(self) -> None:
        """Each rank sends everybody else as many numbers as its own rank says: rank 0 brings nothing."""
        from_each = [0 if rank == self.rank else rank for rank in range(self.size)]
        to_each = [0 if rank == self.rank else self.rank for rank in range(self.size)]
        for _ in range(3):
            output = torch.zeros(sum(from_each))
            dist.all_to_all_single(output, values(self.rank, sum(to_each), torch.float32), from_each, to_each)
            parts = [values(rank, rank * (self.size - 1), torch.float32) for rank in range(self.size)]
            places = [self.rank - (self.rank > rank) for rank in range(self.size)]
            expected = [part[place * rank:(place + 1) * rank] for rank, (part, place)
                        in enumerate(zip(parts, places, strict=True)) if rank != self.rank]
            same(output, torch.cat(expected) if expected else torch.zeros(0))

    def in_flight(self) -> None:
        tensors = [values(self.rank, 1 + number, torch.int32) for number in range(200)]
        works = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
        for work in reversed(works):
            work.wait()
        for number, tensor in enumerate(tensors):
            same(tensor, reduced("sum", self.every(1 + number, torch.int32)))

    def futures(self) -> None:
        tensors = [values(self.rank, 1023, torch.float32) for _ in range(10)]
        works = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
        follow = [work.get_future().then(lambda done: done.value()[0].double().sum()) for work in works]
        expected = reduced("sum", self.every(1023, torch.float32)).sum()
        for future in follow:
            torch.testing.assert_close(future.wait(), expected, rtol=1e-5, atol=0)
        for work in works:
            work.wait()
            assert work.is_completed()

    def rows(self) -> None:
        odd = [math.nan, math.inf, -math.inf, 5e-324, 0.1]
        rows = np.array([[1 / (rank + 3), *odd[rank % 5:], *odd[:rank % 5]] for rank in range(self.size)])
        np.testing.assert_array_equal(self.group.rows_of_all(rows[self.rank]), rows)

    def subgroups(self) -> None:
        """All but the first, all but the last, and everybody, at once in use."""
        members = [list(range(1, self.size)), list(range(self.size - 1)), list(range(self.size))]
        groups = [(ranks, dist.new_group(ranks)) for ranks in members if ranks]
        for _ in range(3):
            for ranks, group in groups:
                if self.rank not in ranks:
                    continue
                tensor = values(self.rank, 1023, torch.int64)
                dist.all_reduce(tensor, group=group)
                same(tensor, reduced("sum", [values(rank, 1023, torch.int64) for rank in ranks]))
                tensor = values(self.rank, 1023, torch.int64)
                dist.broadcast(tensor, src=ranks[-1], group=group)
                same(tensor, values(ranks[-1], 1023, torch.int64))

    def sharded_subgroups(self) -> None:
        """Gathering and scattering count ranks within the subgroup."""
        ranks = list(range(1, self.size)) or [0]
        group = dist.new_group(ranks)
        if self.rank in ranks:
            parts = [values(rank, 3, torch.float32) for rank in ranks]
            output = torch.zeros(3 * len(ranks))
            dist.all_gather_into_tensor(output, values(self.rank, 3, torch.float32), group=group)
            same(output, torch.cat(parts))
            dist.destroy_process_group(group)

    def ddp(self) -> None:
        self._ddp(hook=False)

    def ddp_with_a_hook(self) -> None:
        self._ddp(hook=True)

    def _ddp(self, hook: bool) -> None:
        torch.manual_seed(self.rank)  # DDP itself must bring all to rank 0's weights
        model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 3))
        ddp = DistributedDataParallel(model, bucket_cap_mb=0.01)
        if hook:
            # DDP inspects a hook's annotations, which would be strings here.
            ddp.register_comm_hook(None, lambda _, bucket: dist.all_reduce(
                bucket.buffer().div_(self.size), async_op=True).get_future().then(lambda done: done.value()[0]))
        torch.manual_seed(0)
        alone = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 3))
        batches = [values(rank, 64 * 8, torch.float32).view(8, 64) for rank in range(self.size)]
        for _ in range(2):
            ddp(batches[self.rank]).square().sum().backward()
        for _ in range(2):
            for batch in batches:
                (alone(batch).square().sum() / self.size).backward()
        for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-3)

    def requires_grad(self) -> None:
        parameter = nn.Parameter(values(self.rank, 10, torch.float32))
        dist.broadcast(parameter.data, src=0)
        same(parameter.data, values(0, 10, torch.float32))


def lateness(group: Group) -> Results:
    """A rank that does not come in time is an error for the others, not a hang."""
    group.all_reduce(torch.zeros(1))
    if group.rank == group.size - 1:
        time.sleep(8)
        return {}
    begun = time.monotonic()
    try:
        group.all_reduce(torch.zeros(1))
    except WorldError:
        took = time.monotonic() - begun
        return {"timeout": None if 1.5 < took < 6 else f"the error came after {took:.1f} s"}
    return {"timeout": "the sum was made without one rank"}


def death(group: Group, when: str, victim: int, subgroups: bool) -> Results:
    """A peer is killed with -9; the time until the others have an exception."""
    group.all_reduce(torch.zeros(1))
    if subgroups:
        subgroup = dist.new_group([0, group.size - 1])
        if group.rank in (0, group.size - 1):
            dist.all_reduce(torch.zeros(1), group=subgroup)
    tensor = torch.ones(1 if when != "during" else 4_000_000)
    if group.rank == victim:
        if when == "during":
            group.start_all_reduce(tensor)
            time.sleep(0.002)
        elif when == "after":
            group.all_reduce(tensor)
        os.kill(os.getpid(), signal.SIGKILL)
    if when == "after":
        group.all_reduce(tensor)
        same(tensor, torch.full((1,), group.size))
    begun = time.monotonic()
    try:
        for _ in range(1000):
            group.all_reduce(tensor)
    except WorldError:
        took = time.monotonic() - begun
        return {"death": None if took < 5 else f"the error came after {took:.1f} s"}
    return {"death": "a thousand sums without one rank"}


def again(worlds: list[World], backend: str) -> Results:
    """Destroy and make anew in one process, each time with another subgroup; at last without the last rank."""
    results: Results = {}
    for number, world in enumerate(worlds):
        if world.rank >= world.size:
            break
        with Group(world, backend, 20) as group:
            tensor = torch.tensor([group.rank + 1])
            group.all_reduce(tensor)
            assert int(tensor) == group.size * (group.size + 1) // 2
            ranks = [rank for rank in range(group.size) if rank != number % group.size] or [0]
            subgroup = dist.new_group(ranks)
            if group.rank in ranks:
                tensor = torch.tensor([1])
                dist.all_reduce(tensor, group=subgroup)
                assert int(tensor) == len(ranks)
            group.all_reduce(torch.zeros(1))
        results[f"time {number}"] = None
    return results


def main() -> None:
    backend, part = sys.argv[1:3]
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    ports = [int(port) for port in os.environ["PORTS"].split(",")]
    worlds = [World(rank, size, rank, size, "127.0.0.1", port, launcher="the test") for port in ports]
    if part == "again":
        smaller = World(rank, size - 1, rank, size - 1, "127.0.0.1", ports[-1], launcher="the test")
        print(json.dumps(again([*worlds[:-1], smaller], backend)), flush=True)
        return
    with Group(worlds[0], backend, 2 if part == "lateness" else 20) as group:
        if part == "all":
            checks = Checks(group, set(json.loads(os.environ["REFUSED"])))
            checks.all()
            results = checks.results
        elif part == "lateness":
            results = lateness(group)
        else:
            _, when, victim, *subgroups = part.split(":")
            results = death(group, when, int(victim), bool(subgroups))
        print(json.dumps(results), flush=True)


if __name__ == "__main__":
    main()
