"""The bundle document: what it accepts, and that any damage is found."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from distrib.bundle import FILE_NAME, FORMAT, Bundle, describe_file, load_bundle
from distrib.durable import seal
from distrib.errors import BundleError

DIGEST = "0" * 63 + "1"


def document(folder: Path, **changes: Any) -> dict[str, Any]:
    """A valid bundle's body, whose model files are written to the folder."""
    folder.mkdir(exist_ok=True)
    files = {}
    for format_name, names in (("onnx", ["model.onnx"]), ("openvino", ["model.xml", "model.bin"])):
        for name in names:
            (folder / name).write_bytes(f"the {name}".encode() * 50)
        files[format_name] = [describe_file(folder / name).model_dump() for name in names]
    parity = {"max_probability_difference": 1e-7, "max_logit_difference": 1e-6, "labels_equal": 5, "ties": 0}
    return {
        "files": files, "default_format": "openvino",
        "preprocessing": {"ingest": {}, "image_size": 8, "eval_crop": 1.0, "mean": [0.5] * 3, "std": [0.2] * 3},
        "classes": ["benign", "melanoma"], "positive_class": "melanoma",
        "threshold": {"value": 0.25, "positive_class": "melanoma", "chosen_by": "youden_j", "split": "val",
                      "sensitivity": 1.0, "specificity": 0.5, "num_samples": 5},
        "metrics": {}, "dataset_sha256": DIGEST,
        "weights": {"sha256": DIGEST, "step": 3, "kind": "ema", "num_parameters": 10},
        "code": {"distrib": "0.1.0", "git": None}, "libraries": {"torch": "2.13.0"}, "experiment": {},
        "parity": {"split": "val", "num_samples": 5, "batch_sizes": [1, 5], "tolerance": 1e-3,
                   "formats": {"onnx": parity, "openvino": parity}},
        **changes,
    }


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    (folder / FILE_NAME).write_bytes(Bundle.model_validate(document(folder)).to_bytes())
    return folder


def test_a_whole_bundle_loads(bundle: Path) -> None:
    loaded = load_bundle(bundle)
    assert loaded.bundle.classes == ("benign", "melanoma")
    assert loaded.choose(None) == "openvino"
    assert loaded.choose("onnx") == "onnx"
    assert [path.name for path in loaded.files("openvino")] == ["model.xml", "model.bin"]
    assert loaded.sha256 in (bundle / FILE_NAME).read_text()
    with pytest.raises(BundleError, match="has no format 'torch' \\(it has onnx, openvino\\)"):
        loaded.choose("torch")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_is_found(bundle: Path, data: st.DataObject) -> None:
    path = bundle / data.draw(st.sampled_from([FILE_NAME, "model.onnx", "model.xml", "model.bin"]))
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    broken = bytearray(whole)
    broken[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(broken)
    try:
        with pytest.raises(BundleError):
            load_bundle(bundle)
    finally:
        path.write_bytes(whole)
    load_bundle(bundle)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_file_cut_off_is_found(bundle: Path, data: st.DataObject) -> None:
    path = bundle / data.draw(st.sampled_from([FILE_NAME, "model.onnx", "model.bin"]))
    whole = path.read_bytes()
    path.write_bytes(whole[:data.draw(st.integers(0, len(whole) - 1))])
    try:
        with pytest.raises(BundleError):
            load_bundle(bundle)
    finally:
        path.write_bytes(whole)


def test_missing_files_are_named(bundle: Path, tmp_path: Path) -> None:
    (bundle / "model.bin").unlink()
    with pytest.raises(BundleError, match=r"model\.bin is missing"):
        load_bundle(bundle)
    with pytest.raises(BundleError, match=r"is no bundle: bundle\.json is missing"):
        load_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="is no bundle"):
        load_bundle(bundle / "model.onnx")


def test_a_folder_in_place_of_a_file(bundle: Path) -> None:
    (bundle / FILE_NAME).unlink()
    (bundle / FILE_NAME).mkdir()
    with pytest.raises(BundleError, match="can not be read"):
        load_bundle(bundle)


def test_another_version_is_refused(bundle: Path) -> None:
    (bundle / FILE_NAME).write_bytes(seal("distrib-bundle/2", document(bundle)))
    with pytest.raises(BundleError, match="its format is 'distrib-bundle/2', expected 'distrib-bundle/1'"):
        load_bundle(bundle)


@pytest.mark.parametrize(("changes", "message"), [
    ({"default_format": "torch"}, "default_format is 'torch'"),
    ({"classes": ["a", "a"], "positive_class": None, "threshold": None}, "a class stands twice"),
    ({"classes": ["a"]}, "classes"),
    ({"positive_class": "mole"}, "positive_class 'mole' is no class"),
    ({"positive_class": "benign"}, "the threshold does not belong"),
    ({"surprise": 1}, "surprise"),
])
def test_contradictions_are_refused_even_under_a_valid_seal(bundle: Path, changes: dict[str, Any],
                                                            message: str) -> None:
    (bundle / FILE_NAME).write_bytes(seal(FORMAT, document(bundle, **changes)))
    with pytest.raises(BundleError, match=message):
        load_bundle(bundle)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", ".hidden", ""])
def test_file_names_can_not_lead_out_of_the_bundle(bundle: Path, name: str) -> None:
    body = document(bundle)
    body["files"]["onnx"] = [{"name": name, "bytes": 1, "sha256": DIGEST}]
    with pytest.raises(ValidationError, match="no plain file name"):
        Bundle.model_validate(body)


def test_the_document_is_plain_sealed_json(bundle: Path) -> None:
    raw = (bundle / FILE_NAME).read_bytes()
    parsed = json.loads(raw)
    assert parsed["format"] == FORMAT
    zeroed = raw.replace(parsed["sha256"].encode(), b"0" * 64, 1)
    assert hashlib.sha256(zeroed).hexdigest() == parsed["sha256"]
