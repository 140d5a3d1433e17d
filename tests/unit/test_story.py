"""The melanoma story: what it plants in the labels file is what it says."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "melanoma"))

from story import by_patient, with_a_torn_patient

ROWS = [{"image_name": f"{patient}-{number}", "patient_id": f"p{patient}", "target": "0"}
        for patient in range(40) for number in range(1 + patient % 4)]


def test_rows_are_parted_by_patient() -> None:
    first, later = by_patient(ROWS, 0.75)
    patients = {row["patient_id"] for row in first}
    assert len(patients) == 30
    assert patients.isdisjoint(row["patient_id"] for row in later)
    assert sorted(map(str, first + later)) == sorted(map(str, ROWS))


def test_one_picture_of_one_patient_is_planted_in_another_split() -> None:
    splits = defaultdict(list)
    for row in with_a_torn_patient(ROWS):
        splits[row["patient_id"]].append(row["split"])
    torn = [found for found in splits.values() if len(set(found)) > 1]
    assert len(torn) == 1
    assert sorted(set(torn[0])) == ["test", "train"]
    assert torn[0].count("train") == 1
    assert {split for found in splits.values() for split in found} == {"train", "val", "test"}
    assert sum(map(len, splits.values())) == len(ROWS)
