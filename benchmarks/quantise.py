"""What exact sums cost: seconds of quantising and writing back ResNet-50's gradients over those of a lane's compute.

    python benchmarks/quantise.py [--rounds 6]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from timing import one_core, paired_rounds, ratio, show

from distrib.data.keyed import key_of
from distrib.models.resnet import resnet50
from distrib.train.fixed_point import FixedPoint
from distrib.train.processor import resolve_precision
from distrib.train.reductions import WORDS

BATCH, SIDE = 32, 224


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    core = one_core()
    torch.set_num_threads(1)
    model = resnet50(1000).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images_NCHW = torch.randn(BATCH, 3, SIDE, SIDE).to(memory_format=torch.channels_last)
    labels_N = torch.randint(0, 1000, (BATCH,))
    bf16 = resolve_precision("auto") == "bf16"
    sizes = [parameter.numel() for parameter in model.parameters()]
    gradients = [torch.randn(size) * 1e-3 for size in sizes]
    kinds: dict[str, FixedPoint] = {name: words(1) for name, words in WORDS.items()}

    def compute() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits_NK = model(images_NCHW)
        F.cross_entropy(logits_NK.float(), labels_N).backward()

    def quantise(words: FixedPoint) -> Callable[[], None]:
        totals = [torch.zeros(words.num_words(size), dtype=torch.int32) for size in sizes]

        def work() -> None:
            for number, (gradient, total) in enumerate(zip(gradients, totals, strict=True)):
                words.add(gradient, 2.0**10, total, key_of(number))
            for gradient, total in zip(gradients, totals, strict=True):
                words.read(total, 2.0**-10, gradient)

        return work

    works = {name: quantise(words) for name, words in kinds.items()}
    taken = paired_rounds({"compute": compute, **works}, options.rounds)
    show(f"ResNet-50, {sum(sizes) / 1e6:.1f} million gradients, a lane of {BATCH} images at {SIDE} px, "
         f"{'bf16' if bf16 else 'fp32'}, core {core}: quantising, adding and writing back takes")
    for name in kinds:
        middle, least, most = ratio(taken[name], taken["compute"])
        show(f"{name:8} {100 * middle:.2f}% ({100 * least:.2f} to {100 * most:.2f}) of a lane's compute")


if __name__ == "__main__":
    main()
