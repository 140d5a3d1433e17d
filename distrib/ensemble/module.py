"""An ensemble as one module from pixels to logits: members, views, combination and temperature, all inside."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from distrib.ensemble.combine import LEAST_VOTE, Ranks
from distrib.views import VIEWS


def views_of(images_NHWC: Tensor, tta: str) -> list[Tensor]:
    """Every view of all images."""
    return [torch.flip(images_NHWC, axes) if axes else images_NHWC for axes in VIEWS[tta]]


def area_weights(large: int, small: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """weights [small, large]: each small pixel is the mean over the part of the line that it covers."""
    edges = np.arange(small + 1) * large / small
    pixels = np.arange(large)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    result: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = np.maximum(overlap, 0) * small / large
    return result


class Shrink(nn.Module):
    """images_NHWC [N, large, large, 3] to float32 [N, small, small, 3], by area. Products of matrices, which every
    format computes alike."""

    weights_SL: Tensor

    def __init__(self, large: int, small: int) -> None:
        super().__init__()
        self.register_buffer("weights_SL", torch.from_numpy(area_weights(large, small)).float())

    def forward(self, images_NHWC: Tensor) -> Tensor:
        planes_NCHW = images_NHWC.permute(0, 3, 1, 2).to(torch.float32)
        return (self.weights_SL @ planes_NCHW @ self.weights_SL.T).permute(0, 2, 3, 1)


class Ranking(nn.Module):
    """Logits of two classes to (rank, 1 - rank) votes; see `distrib.ensemble.combine.Ranks`."""

    begins_J: Tensor
    widths_J: Tensor
    rises_J: Tensor
    lowest: Tensor
    sign_K: Tensor
    base_K: Tensor

    def __init__(self, ranks: Ranks, positive: int) -> None:
        super().__init__()
        self.positive = positive
        sign_K, base_K = torch.full((2,), -1.0), torch.ones(2)
        sign_K[positive], base_K[positive] = 1, 0
        self.register_buffer("sign_K", sign_K)
        self.register_buffer("base_K", base_K)
        for name, values in (("begins_J", ranks.knots_J[:-1]), ("widths_J", np.diff(ranks.knots_J)),
                             ("rises_J", np.diff(ranks.levels_J)), ("lowest", ranks.levels_J[:1])):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32))

    def forward(self, logits_NK: Tensor) -> Tensor:
        log_odds_N = logits_NK[:, self.positive] - logits_NK[:, 1 - self.positive]
        inside_NJ = ((log_odds_N[:, None] - self.begins_J) / self.widths_J).clamp(0, 1)
        rank_N1 = self.lowest + (inside_NJ * self.rises_J).sum(dim=1, keepdim=True)
        return self.base_K + self.sign_K * rank_N1


class EnsembleModel(nn.Module):
    """uint8 images_NHWC (RGB) to float32 logits_NK, which are log-probabilities.

    ``members``: pixels to logits, each at its own size. ``rankings``: of a rank mean, one a member. ``member_t``
    divides the members' logits, ``temperature`` the combination's; ``offset`` is added to the class ``positive``.
    """

    weights_M1: Tensor
    offset_K: Tensor

    def __init__(self, members: Sequence[nn.Module], weights_M: Sequence[float], tta: str, *, num_classes: int,
                 rankings: Sequence[nn.Module] | None = None, member_t: float = 1.0, temperature: float = 1.0,
                 offset: float = 0.0, positive: int | None = None) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.rankings = nn.ModuleList(rankings) if rankings is not None else None
        self.tta, self.member_t, self.temperature = tta, member_t, temperature
        offset_K = torch.zeros(num_classes)
        if positive is not None:
            offset_K[positive] = offset
        self.register_buffer("weights_M1", torch.tensor(weights_M, dtype=torch.float32).view(-1, 1))
        self.register_buffer("offset_K", offset_K)

    def forward(self, images_NHWC: Tensor) -> Tensor:
        views = views_of(images_NHWC, self.tta)
        # Stacked behind the batch, whose size is not known when this is traced: so no stride depends on it.
        votes = [torch.stack([self._vote(number, view) for view in views], dim=1).mean(dim=1)
                 for number in range(len(self.members))]
        mean_NK = (torch.stack(votes, dim=1) * self.weights_M1).sum(dim=1)
        logits_NK = torch.log(mean_NK.clamp_min(LEAST_VOTE))
        return torch.log_softmax(logits_NK / self.temperature + self.offset_K, dim=1)

    def _vote(self, number: int, images_NHWC: Tensor) -> Tensor:
        logits_NK = self.members[number](images_NHWC)
        if self.rankings is not None:
            vote_NK: Tensor = self.rankings[number](logits_NK)
            return vote_NK
        return torch.softmax(logits_NK / self.member_t, dim=1)
