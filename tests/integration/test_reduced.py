"""int8 and bf16: what passes the gate, what does not, and how they run."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distrib.bench import bench_lines, run_bench
from distrib.bundle import REDUCED, Bundle, load_bundle
from distrib.checkpoint import Checkpoint, write_checkpoint
from distrib.data.manifest import FILE_NAME, DatasetRecord, load_manifest
from distrib.data.shards import ShardReader
from distrib.data.transform import EvalTransform
from distrib.durable import seal
from distrib.errors import BundleError, ConfigError, DataError, MissingPartError
from distrib.evaluate import run_evaluate
from distrib.export.run import run_export
from distrib.forward import torch_forward
from distrib.predict import run_predict
from distrib.rundir import RunDir
from distrib.trained import load_trained
from tests.integration.test_export_predict import MakeDataset, extract, make_run

FORMATS = ["onnx", *REDUCED]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reduced")


@pytest.fixture(scope="module")
def run(place: Path, dataset: Path) -> Path:
    """Random features, and a last layer that is fitted to the validation images."""
    root = make_run(place / "run", dataset)
    trained = load_trained(RunDir(root), print)
    samples = load_manifest(dataset).samples("val")
    transform, data = EvalTransform(trained.experiment.data.image_size), trained.experiment.data
    with ShardReader(dataset, samples) as reader:
        images_NHWC = np.stack([transform(reader.read(i), reader.kind(i)) for i in range(len(samples))])
    features: list[torch.Tensor] = []
    last = trained.model.get_submodule("fc")
    last.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].clone()))
    torch_forward(trained.model, data.mean, data.std)(images_NHWC)
    with torch.no_grad():
        wanted_NK = torch.nn.functional.one_hot(torch.from_numpy(samples.labels), 3).float() * 8
        last.get_parameter("weight").copy_(torch.linalg.lstsq(features[0], wanted_NK).solution.T)
        last.get_parameter("bias").zero_()
    progress = {"validation": {"score": 1.0, "classes": list(trained.classes)}}
    write_checkpoint(RunDir(root), Checkpoint(8, trained.model.state_dict(), {}, None, progress))
    return root


@pytest.fixture(scope="module")
def exported(place: Path, run: Path) -> dict[str, Any]:
    return run_export(run, out=place / "bundle", formats=FORMATS, num_samples=4, calibration=20, max_drop=0.2)


@pytest.fixture(scope="module")
def bundle(place: Path, exported: dict[str, Any]) -> Path:
    return place / "bundle"


def test_the_record_of_the_gate(exported: dict[str, Any], bundle: Path) -> None:
    assert (exported["formats"], exported["default_format"]) == (FORMATS, "onnx")
    gates = load_bundle(bundle).bundle.gates
    assert gates is not None
    assert exported["gates"] == gates.model_dump(mode="json")
    assert (gates.metric, gates.num_samples, gates.calibration_samples, gates.max_drop) == ("accuracy", 30, 20, 0.2)
    assert set(gates.formats) == set(REDUCED)
    exact = run_evaluate(bundle, split="val", bootstrap=0)
    assert gates.exact_value == exact["accuracy"]
    for name, gate in gates.formats.items():
        report = run_evaluate(bundle, split="val", bootstrap=0, runtime=name)
        assert report["runtime"] == name
        assert report["accuracy"] == gate.value == pytest.approx(gates.exact_value - gate.drop)
        assert report["loss"] != exact["loss"]  # these are other numbers
        assert gate.label_agreement == gate.labels_equal / 30 >= 0.8


def test_the_files_are_smaller_and_hold_no_path(bundle: Path, place: Path) -> None:
    size = {name: sum(path.stat().st_size for path in load_bundle(bundle).files(name) if path.suffix != ".xml")
            for name in load_bundle(bundle).bundle.files}
    assert size["openvino-int8"] < size["openvino-bf16"] < size["onnx"]
    assert not [path.name for path in bundle.iterdir() if path.name.startswith(".")]
    for path in set(bundle.iterdir()) - {bundle / "bundle.json"}:
        assert str(place.parent).encode() not in path.read_bytes(), path
        assert b"site-packages" not in path.read_bytes(), path


def test_predict_runs_them(bundle: Path, dataset: Path, tmp_path: Path) -> None:
    images = extract(dataset, tmp_path / "images")
    exact = run_predict(bundle, [images])
    for name in REDUCED:
        answers = run_predict(bundle, [images], runtime=name)
        assert answers == run_predict(bundle, [images], runtime=name)
        assert {entry["runtime"] for entry in answers} == {name}
        assert sum(one["label"] == other["label"] for one, other in zip(answers, exact, strict=True)) >= 24


def test_what_falls_too_far_is_not_written(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges taken from black images are wrong ones, and the gate finds it out."""
    from distrib.export import openvino_format

    honest = openvino_format.write_int8
    monkeypatch.setattr(openvino_format, "write_int8",
                        lambda source, folder, images_NHWC: honest(source, folder, images_NHWC * 0))
    with pytest.raises(BundleError, match=r"openvino-int8 changes accuracy on 30 validation samples from 1 to "
                                          r"0\.\d+, worse by 0\.\d+; the most accepted is 0\.01"):
        run_export(run, out=tmp_path / "bundle", formats=["onnx,openvino-int8"], num_samples=4, calibration=4,
                   max_drop=0.01)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_sent_and_nothing_written_on_stdout(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch,
                                                       capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was opened"))
    run_export(run, out=tmp_path / "bundle", formats=["onnx,openvino-int8"], num_samples=1, calibration=2, max_drop=1)
    assert capfd.readouterr().out == ""


def test_bad_wishes(tmp_path: Path, run: Path, make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--format openvino-int8 has no exact format"):
        run_export(run, out=tmp_path / "b", formats=["openvino-int8"])
    for wrong in ({"max_drop": -0.1}, {"max_drop": float("nan")}, {"calibration": 0}):
        with pytest.raises(ConfigError, match="check nothing"):
            run_export(run, out=tmp_path / "b", formats=FORMATS, **wrong)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "nncf", None)
        with pytest.raises(MissingPartError, match=r"pip install 'distrib\[int8\]'"):
            run_export(run, out=tmp_path / "b", formats=["onnx,openvino-int8"], num_samples=1)
    assert list(tmp_path.iterdir()) == []


def test_no_gate_no_format(bundle: Path, tmp_path: Path) -> None:
    body = load_bundle(bundle).bundle.model_dump(mode="json")
    del body["gates"]["formats"]["onnx-int8"]
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    (copy / "bundle.json").write_bytes(seal("distrib-bundle/1", body))
    with pytest.raises(BundleError, match="onnx-int8 passed no gate"):
        load_bundle(copy)


def test_without_reduced_formats_the_document_is_as_it_was(bundle: Path) -> None:
    body = load_bundle(bundle).bundle.model_dump(mode="json")
    for name in REDUCED:
        del body["files"][name]
    document = json.loads(Bundle.model_validate({**body, "gates": None}).to_bytes())
    assert "gates" not in document
    del body["gates"]
    assert Bundle.model_validate(body).gates is None


def test_bench(bundle: Path) -> None:
    report = run_bench(bundle, batches=[1, 3], seconds=0.05, threads=1)
    json.dumps(report, allow_nan=False)
    assert [(row["format"], row["batch"]) for row in report["rows"]] == [(n, b) for b in (1, 3) for n in FORMATS]
    assert report["labels_compared_on"] == "validation images"
    for row in report["rows"]:
        assert 0 < row["p50_ms"] <= row["p95_ms"]
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert row["label_agreement"] >= 0.8
    assert {row["ratio"] for row in report["rows"] if row["format"] == "onnx"} == {1.0}
    assert len(bench_lines(report)) == 10


def test_bench_without_the_dataset_and_with_bad_arguments(bundle: Path, tmp_path: Path) -> None:
    body = load_bundle(bundle).bundle.model_dump(mode="json")
    body["experiment"]["data"]["dataset"] = str(tmp_path / "gone")
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    (copy / "bundle.json").write_bytes(seal("distrib-bundle/1", body))
    notes: list[str] = []
    report = run_bench(copy, batches=[1], seconds=0.01, threads=1, tell=notes.append)
    assert report["labels_compared_on"] == "random images"
    assert "gone" in notes[0]
    mistakes: list[dict[str, Any]] = [{"batches": [0]}, {"batches": []}, {"seconds": float("nan")}, {"seconds": 0},
                                      {"threads": 0}]
    for mistake in mistakes:
        with pytest.raises(ConfigError, match="Nothing was measured"):
            run_bench(copy, **mistake)


def test_a_dataset_without_validation_split(tmp_path: Path, make_dataset: MakeDataset) -> None:
    dataset = make_dataset(train=9, val=3)
    run = make_run(tmp_path / "run", dataset)
    whole = load_manifest(dataset)
    (dataset / FILE_NAME).write_bytes(whole.model_copy(update={"shards": whole.shards[:1]}).to_bytes())
    record = DatasetRecord(classes=whole.classes, dataset_sha256=load_manifest(dataset).sha256)
    RunDir(run).dataset.write_bytes(record.to_bytes())
    with pytest.raises(DataError, match="has no validation split"):
        run_export(run, out=tmp_path / "bundle", formats=FORMATS)
    run_export(run, out=tmp_path / "bundle", formats=["onnx"])
