"""IPEX (intel-extension-for-pytorch), where a site has it and an experiment asks for it; see docs/ipex.md.

To import it is to change torch's kernels in this process, so nothing else does.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

import torch
from torch import nn

from distrib.comm.group import Group
from distrib.errors import MissingPartError
from distrib.runtimes.quiet import quiet
from distrib.stdout import quiet_stdout
from distrib.train.agree import first_word

PACKAGE = "intel-extension-for-pytorch"


def optimize(model: nn.Module, optimizer: torch.optim.Optimizer, group: Group) -> None:
    """Let IPEX work on a model and its optimiser, in place; parameters keep their names, shapes and dtypes.

    Collective. Raises the same MissingPartError on every rank unless all of them can import it.
    """
    ipex, why_not = _imported()
    word = first_word(group, f"on rank {group.rank} of {group.world.host} {why_not}" if why_not else "")
    if word is not None:
        raise MissingPartError(f"train.ipex = true, but {word}", "nothing was started",
                               f"on every node: pip install 'torch==2.8.*' {PACKAGE}==2.8.0; or leave train.ipex out")
    assert ipex is not None
    with quiet():
        # Packed weights have other shapes, and bfloat16 ones other dtypes (and gradients): neither could be summed
        # exactly, averaged and saved by name. autocast is ours. What else there is to gain: docs/ipex.md.
        ipex.optimize(model, dtype=torch.float32, optimizer=optimizer, inplace=True, weights_prepack=False,
                      split_master_weight_for_bf16=False, fuse_update_step=False)


def _imported() -> tuple[Any, str]:
    """(the module, "") or (None, why it can not be used)."""
    try:
        version = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None, f"{PACKAGE} is not installed"
    if version.split(".")[:2] != torch.__version__.split(".")[:2]:
        # Beside another torch it writes to stdout when imported, and then fails by a mistake of its own.
        return None, f"{PACKAGE} {version} does not fit torch {torch.__version__}"
    try:
        with quiet(), quiet_stdout():  # it writes there which rank it guesses to be
            return importlib.import_module("intel_extension_for_pytorch"), ""
    except (Exception, SystemExit) as error:  # without AVX2 it would end the program
        return None, f"{PACKAGE} {version} can not be imported ({' '.join(str(error).split())})"
