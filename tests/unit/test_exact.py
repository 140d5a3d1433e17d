from __future__ import annotations

import math

import torch

from distrib.train.exact import ExactVector, Exponents, power_of_two

LANES = 5


def test_exponents_rise_at_once_and_fall_slowly() -> None:
    exponents = Exponents.unknown(2)
    peaks = torch.tensor([0.75, 3.0])
    assert not exponents.hold(peaks)
    exponents.follow(peaks)
    assert exponents.values == [0, 2]
    assert exponents.hold(torch.tensor([4.0, 16.0]))  # two bits of margin
    assert not exponents.hold(torch.tensor([4.1, 1.0]))
    exponents.follow(torch.tensor([1e-6, 100.0]))
    assert exponents.values == [-1, 7]  # far below: down by one
    exponents.follow(torch.tensor([0.2, 25.0]))
    assert exponents.values == [-1, 7]  # within the slack: unchanged
    for _ in range(300):
        exponents.follow(torch.zeros(2))
    assert all(math.isfinite(power_of_two(e, 30)) for e in exponents.values)
    assert torch.tensor(power_of_two(exponents.values[0], 30)).isfinite()


def test_statistics_sum_exactly_and_finely() -> None:
    generator = torch.Generator().manual_seed(0)
    lanes = [[torch.randn(50, generator=generator), torch.rand(7, generator=generator) * 1e-9, torch.tensor(2.5)]
             for _ in range(LANES)]
    results = []
    for order in (lanes, lanes[::-1]):
        vector = ExactVector([50, 7, 1], LANES)
        vector.exponents.follow(torch.tensor([8.0, 1e-9, 4.0]))
        vector.clear()
        for lane in order:
            vector.add(lane)
        results.append(vector.mean(LANES))
        assert vector.exponents.hold(vector.peaks)
    for first, second, parts in zip(results[0], results[1], zip(*lanes, strict=True), strict=True):
        assert torch.equal(first, second)
        true = torch.stack([part.double().reshape(-1) for part in parts]).mean(0)
        torch.testing.assert_close(first, true, rtol=1e-12, atol=1e-16)
