"""What a drawn lesion is like, before any pixel: skin, ABCD traits and structures, from keyed random numbers.

Melanoma and benign lesions differ by degree only. One hidden number, the *suspicion*, is drawn from two
overlapping normal distributions two standard deviations apart, and every trait of the ABCD rule
(Nachbar et al., "The ABCD rule of dermatoscopy", 1994) follows it with noise of its own. No classifier can
tell the two better than the suspicion itself would: its AUROC is Phi(2 / sqrt 2) = 0.92.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

import numpy as np

SEPARATION = 2.0
"""Distance between the suspicion of melanoma and that of benign lesions, in standard deviations."""

DIAGNOSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")


@dataclass(frozen=True)
class Skin:
    """A patient's skin and the device that looks at it."""

    melanin: float
    """Optical density; 0.1 is fair, 0.6 dark."""
    blood: float
    hairs: int
    hair_shade: float
    mottling: float
    light: tuple[float, float, float]
    """Gain of the red, green and blue channel."""
    vignette: float
    """How dark the corners are, 0 to 1."""


@dataclass(frozen=True)
class Lesion:
    """Traits of a lesion; amounts are optical densities or shares between 0 and 1 unless said otherwise."""

    seed: int
    """Of the noise that shapes this lesion, the same in every view."""
    suspicion: float
    radius: float
    """Mean radius as part of the picture's height."""
    elongation: float
    asymmetry: float
    irregularity: float
    """Of the border."""
    softness: float
    """Width of the border as part of the radius."""
    melanin: float
    blood: float
    center: float
    """How much darker the middle is than the rim; negative: a lighter middle."""
    network: float
    dots: float
    mottling: float
    dark: float
    """Share of blotches of dark brown to black."""
    blue: float
    """Share of the blue-grey veil or of blue-grey nests."""
    white: float
    """Share of white: regression or scale."""
    scar: float
    """White in the middle."""
    vessels: float
    lacunae: float
    cysts: float


@dataclass(frozen=True)
class View:
    """One photograph of a lesion."""

    seed: int
    angle: float
    mirrored: bool
    scale: float
    """Radius in this picture over the lesion's usual one."""
    shift: tuple[float, float]
    """Place of the lesion off the middle, as part of the picture's height."""
    exposure: float
    tilt: tuple[float, float]
    """Slope of the light over the picture's height."""


def random_state(*key: int) -> np.random.Generator:
    """Random numbers that depend on the key alone."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def draw_skin(key: Sequence[int]) -> Skin:
    rng = random_state(*key, 1)
    fair = rng.beta(1.6, 5.0)
    hairy = rng.random()
    return Skin(
        melanin=0.06 + 0.4 * fair,
        blood=0.16 + 0.16 * rng.random(),
        hairs=0 if hairy < 0.5 else int(rng.integers(2, 9)) if hairy < 0.87 else int(rng.integers(9, 34)),
        hair_shade=float(rng.uniform(0.5, 1.6)),
        mottling=float(rng.uniform(0.3, 1.0)),
        light=(1.0, float(rng.uniform(0.93, 1.03)), float(rng.uniform(0.88, 1.08))),
        vignette=float(rng.uniform(0.5, 1.0)) if rng.random() < 0.3 else float(rng.uniform(0.0, 0.3)),
    )


def draw_view(key: Sequence[int], view: int) -> View:
    rng = random_state(*key, 2, view)
    return View(
        seed=int(rng.integers(1 << 31)),
        angle=float(rng.uniform(0, 2 * np.pi)),
        mirrored=bool(rng.random() < 0.5),
        scale=float(np.exp(rng.normal(0, 0.08))),
        shift=(float(rng.normal(0, 0.045)), float(rng.normal(0, 0.035))),
        exposure=float(np.exp(rng.normal(0, 0.07))),
        tilt=(float(rng.normal(0, 0.10)), float(rng.normal(0, 0.10))),
    )


def draw_lesion_traits(key: Sequence[int], diagnosis: str) -> Lesion:
    """The traits of one lesion. ``diagnosis`` is one of DIAGNOSES; another raises KeyError."""
    rng = random_state(*key, 3)
    return _DRAWN[diagnosis](rng)


def suspicion_of(rng: np.random.Generator, melanoma: bool) -> float:
    return float(rng.normal(SEPARATION / 2 if melanoma else -SEPARATION / 2, 1.0))


def _melanocytic(rng: np.random.Generator, melanoma: bool) -> Lesion:
    """A nevus or a melanoma: the same function of the suspicion."""
    suspicion = suspicion_of(rng, melanoma)

    def degree(noise: float = 0.9) -> float:
        """A trait between 0 and 1 that follows the suspicion."""
        return 1 / (1 + exp(-1.15 * (suspicion + noise * rng.normal())))

    asymmetry, border, colors, size = degree(), degree(), degree(0.6), degree()
    structure = degree()
    reticular = rng.random()
    return Lesion(
        seed=int(rng.integers(1 << 31)), suspicion=suspicion,
        radius=0.15 + 0.17 * size + 0.05 * rng.random(),
        elongation=float(rng.uniform(1.0, 1.35)),
        asymmetry=asymmetry, irregularity=border,
        softness=float(np.clip(0.34 - 0.22 * border + rng.normal(0, 0.06), 0.07, 0.45)),
        melanin=float(np.clip(rng.normal(0.62, 0.2) + 0.18 * colors, 0.25, 1.2)),
        blood=float(np.clip(rng.normal(0.05, 0.06), 0, 0.25)),
        center=float(rng.normal(0.15, 0.28)),
        network=float(np.clip((reticular - 0.25) * 1.2, 0, 1)) * (0.55 + 0.45 * structure),
        dots=structure * float(rng.random()) if reticular < 0.6 else 0.25 * float(rng.random()),
        mottling=0.25 + 0.75 * colors,
        dark=max(0.0, 1.15 * colors - 0.35 + 0.12 * float(rng.normal())),
        blue=max(0.0, 1.2 * colors * degree(0.5) - 0.42),
        white=max(0.0, 1.0 * colors * degree(0.5) - 0.45),
        vessels=0.25 * max(0.0, colors - 0.6) * float(rng.random()), lacunae=0.0,
        scar=0.0, cysts=0.0,
    )


def _nevus(rng: np.random.Generator) -> Lesion:
    return _melanocytic(rng, melanoma=False)


def _melanoma(rng: np.random.Generator) -> Lesion:
    return _melanocytic(rng, melanoma=True)


def _plain(rng: np.random.Generator, **traits: float) -> Lesion:
    """A lesion of other origin: common defaults, changed by ``traits``."""
    values: dict[str, float] = {
        "suspicion": 0.0, "radius": float(rng.uniform(0.16, 0.36)), "elongation": float(rng.uniform(1.0, 1.45)),
        "asymmetry": float(rng.uniform(0.1, 0.6)), "irregularity": float(rng.uniform(0.15, 0.7)),
        "softness": float(rng.uniform(0.12, 0.35)), "melanin": 0.1, "blood": 0.1, "center": float(rng.normal(0, 0.2)),
        "network": 0.0, "dots": 0.0, "mottling": float(rng.uniform(0.4, 0.9)), "dark": 0.0, "blue": 0.0, "white": 0.0,
        "scar": 0.0, "vessels": 0.0, "lacunae": 0.0, "cysts": 0.0,
    }
    return Lesion(seed=int(rng.integers(1 << 31)), **{**values, **traits})


def _keratosis(rng: np.random.Generator) -> Lesion:
    """Benign keratosis: a sharp border as if stuck on, waxy brown, milia-like cysts and dark openings."""
    return _plain(rng, softness=float(rng.uniform(0.05, 0.2)), melanin=float(rng.uniform(0.25, 0.85)),
                  irregularity=float(rng.uniform(0.2, 0.85)), mottling=float(rng.uniform(0.6, 1.2)),
                  cysts=float(rng.beta(2, 2)), dots=0.5 * float(rng.random()), dark=0.3 * float(rng.random()),
                  network=0.3 * float(rng.random()) ** 2)


def _basalioma(rng: np.random.Generator) -> Lesion:
    """Basal cell carcinoma: pink and shiny, branching vessels, blue-grey nests, sometimes an ulcer."""
    return _plain(rng, melanin=float(rng.uniform(0.0, 0.15)), blood=float(rng.uniform(0.12, 0.34)),
                  vessels=float(rng.beta(3, 1.5)), blue=float(rng.beta(1.5, 2.5)) * 0.7,
                  white=0.4 * float(rng.random()), radius=float(rng.uniform(0.2, 0.4)))


def _actinic(rng: np.random.Generator) -> Lesion:
    """Actinic keratosis: a red, ill-defined scaly patch."""
    return _plain(rng, melanin=float(rng.uniform(0.0, 0.25)), blood=float(rng.uniform(0.2, 0.45)),
                  softness=float(rng.uniform(0.3, 0.6)), white=float(rng.uniform(0.15, 0.6)),
                  cysts=0.5 * float(rng.random()), irregularity=float(rng.uniform(0.4, 0.9)),
                  mottling=float(rng.uniform(0.7, 1.3)), radius=float(rng.uniform(0.22, 0.42)))


def _vascular(rng: np.random.Generator) -> Lesion:
    """Vascular lesion: red to purple lacunae, sharply bordered."""
    return _plain(rng, melanin=0.03, blood=float(rng.uniform(0.45, 0.95)), lacunae=float(rng.uniform(0.5, 1.0)),
                  softness=float(rng.uniform(0.08, 0.25)), asymmetry=float(rng.uniform(0.0, 0.4)),
                  blue=0.35 * float(rng.random()), radius=float(rng.uniform(0.12, 0.3)))


def _fibroma(rng: np.random.Generator) -> Lesion:
    """Dermatofibroma: a white scar in the middle of a faint network, symmetric."""
    return _plain(rng, melanin=float(rng.uniform(0.15, 0.4)), blood=float(rng.uniform(0.05, 0.2)),
                  center=float(rng.uniform(-1.2, -0.6)), scar=float(rng.uniform(0.35, 0.75)),
                  network=float(rng.uniform(0.15, 0.5)), softness=float(rng.uniform(0.35, 0.6)),
                  asymmetry=float(rng.uniform(0.0, 0.3)), irregularity=float(rng.uniform(0.05, 0.3)),
                  radius=float(rng.uniform(0.15, 0.28)))


_DRAWN = {"akiec": _actinic, "bcc": _basalioma, "bkl": _keratosis, "df": _fibroma, "mel": _melanoma, "nv": _nevus,
          "vasc": _vascular}
