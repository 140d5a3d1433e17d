"""Silent corruption: a bit that flips in one rank's memory spoils the sums of all, and nothing else would tell.

Sums are exact, so all ranks hold the same state to the last bit. Every so many steps, and before every checkpoint,
they compare its digest. If all agree, each keeps a copy of that state; if not, all go back to the last copy that all
agreed on and do the steps since again. So no checkpoint holds what was not agreed on.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distrib.comm.group import Group
from distrib.errors import WorldError
from distrib.models.weights import weights_sha256
from distrib.train.agree import first_word

MOST_FAULTS = 3
"""So often a rank may differ before it has to go: its memory or its processor is at fault."""

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Snapshot:
    """A state that all ranks agreed on."""

    tensors: Tensors
    exponents: dict[str, Any]
    progress: Any
    sha256: str

    @property
    def is_whole(self) -> bool:
        """Whether it is still what was agreed on."""
        return weights_sha256(self.tensors) == self.sha256


class Guard:
    """One rank's comparisons, over all views of a run. ``every_steps`` lie between them; 0: there are none."""

    def __init__(self, every_steps: int, tell: Callable[[str], None]) -> None:
        self._every_steps, self._tell = every_steps, tell
        self.kept: Snapshot | None = None
        self._faults: Counter[int] = Counter()

    @property
    def compares(self) -> bool:
        """Whether all ranks are known to hold the same before a checkpoint is written."""
        return self._every_steps > 0

    def is_due(self, before: int, step: int) -> bool:
        """Whether one is due within the steps from ``before`` to ``step``, besides those before checkpoints."""
        return self.compares and step // self._every_steps > before // self._every_steps

    def agree(self, group: Group, tensors: Mapping[str, Tensor], exponents: dict[str, Any], progress: Any) -> bool:
        """Collective: whether all ranks hold the same; if so it is kept. Raises WorldError on a rank that differs
        again and again."""
        if not self.compares or group.size == 1:
            return True
        digest = weights_sha256(tensors)
        row = np.frombuffer(bytes.fromhex(digest), dtype=np.uint32).astype(np.float64)
        digests = [tuple(other) for other in group.rows_of_all(row).tolist()]
        if len(set(digests)) == 1:
            self.kept = Snapshot({name: tensor.detach().clone() for name, tensor in tensors.items()},
                                 copy.deepcopy(exponents), copy.deepcopy(progress), digest)
            return True
        self._name(group, digests, progress.step)
        return False

    def _name(self, group: Group, digests: list[tuple[float, ...]], step: int) -> None:
        """Tell who differs, and end a rank that does so too often."""
        common, votes = Counter(digests).most_common(1)[0]
        by_majority = 2 * votes > len(digests)
        odd = [rank for rank, digest in enumerate(digests) if digest != common] if by_majority else []
        who = first_word(group, f"rank {group.rank} on {group.world.host}" if group.rank in odd else "")
        back = "no step" if self.kept is None else f"step {self.kept.progress.step}"
        self._tell(f"warning: at step {step} {who or 'the ranks'} held other numbers than the others: a bit flipped in "
                   f"memory or in the processor; all go back to {back} and do the rest again")
        for rank in odd or range(group.size):
            self._faults[rank] += 1
            if self._faults[rank] >= MOST_FAULTS and (not by_majority or rank == group.rank):
                raise WorldError(f"rank {group.rank} on {group.world.host} held other numbers than the others "
                                 f"{MOST_FAULTS} times", "this rank was ended",
                                 "test the host's memory and processor before it trains again")


def whole_source(group: Group, is_whole: bool) -> tuple[int, bool]:
    """Collective: (lowest rank whose copy is whole, whether every rank's is). Raises WorldError if none is."""
    whole = group.rows_of_all(np.array([float(is_whole)]))[:, 0] > 0
    if not whole.any():
        raise WorldError("no rank has a copy of the last state that all agreed on", "the run was ended",
                         "start again to go on from the newest checkpoint")
    return int(torch.from_numpy(whole).to(torch.uint8).argmax()), bool(whole.all())
