"""From a run to a bundle to labels: the gate, the formats, and that every road gives an image one answer."""

from __future__ import annotations

import csv
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from distrib.bundle import load_bundle
from distrib.checkpoint import Checkpoint, write_checkpoint
from distrib.cli import app
from distrib.config import Experiment
from distrib.data.manifest import FILE_NAME, DatasetRecord, load_manifest
from distrib.data.shards import ShardReader
from distrib.data.transform import EvalTransform
from distrib.decision import Threshold
from distrib.documents import validate
from distrib.entry import run_app
from distrib.errors import BundleError, CheckpointError, ConfigError, DataError
from distrib.evaluate import run_evaluate
from distrib.export.run import run_export
from distrib.forward import PixelModel, torch_forward
from distrib.models.small import SmallCNN
from distrib.models.table import build_model
from distrib.predict import failure, run_predict
from distrib.rundir import RunDir
from distrib.runtimes.archive import check_archive
from distrib.trained import load_trained
from distrib.world import World

FORMATS = ("openvino", "onnx", "torch")
MakeDataset = Callable[..., Path]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def make_run(root: Path, dataset: Path, *, model: str = "small_cnn", ema: bool = False, **validation: Any) -> Path:
    """A run with one checkpoint of random weights, made such that its labels vary."""
    classes = load_manifest(dataset).classes
    document = {"data": {"dataset": str(dataset), "image_size": 16}, "model": {"name": model},
                "evaluate": {"bootstrap": 20, "batch": 7}}
    run = RunDir(root)
    run.root.mkdir()
    run.experiment.write_bytes(validate(Experiment, document, "the test").to_bytes())
    record = DatasetRecord(classes=classes, dataset_sha256=load_manifest(dataset).sha256)
    run.dataset.write_bytes(record.to_bytes())
    run.result.write_text(json.dumps({"finished": True}))
    torch.set_num_threads(1)  # fixtures of wider scope come before the automatic one
    torch.manual_seed(1)
    network = build_model(model, len(classes))
    samples = load_manifest(dataset).samples("val")
    with ShardReader(dataset, samples) as reader:
        transform = EvalTransform(16)
        images_NHWC = np.stack([transform(reader.read(i), reader.kind(i)) for i in range(len(samples))])
    with torch.no_grad():
        pixel_model = PixelModel(network, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        if model == "small_cnn":
            for _ in range(20):
                pixel_model(torch.from_numpy(images_NHWC))  # statistics of the images themselves
            pixel_model.eval()
            network.get_parameter("fc.weight").mul_(8)
            network.get_parameter("fc.bias").sub_(pixel_model(torch.from_numpy(images_NHWC)).mean(dim=0))
    state = network.state_dict()
    other = build_model(model, len(classes)).state_dict()
    progress = {"validation": {"score": 0.5, "classes": list(classes), "accuracy": 0.25, **validation}}
    write_checkpoint(run, Checkpoint(7, other if ema else state, {}, state if ema else None, progress))
    return root


def extract(dataset: Path, folder: Path, split: str = "test") -> Path:
    """The raw image files of a split."""
    folder.mkdir()
    for shard in load_manifest(dataset).shards:
        if shard.split == split:
            with tarfile.open(dataset / shard.name) as tar:
                for member in tar:
                    content = tar.extractfile(member)
                    if member.name.endswith((".png", ".jpg")) and content is not None:
                        (folder / member.name).write_bytes(content.read())
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def run(place: Path, dataset: Path) -> Path:
    return make_run(place / "run", dataset)


@pytest.fixture(scope="module")
def exported(place: Path, run: Path) -> dict[str, Any]:
    return run_export(run, out=place / "bundle", num_samples=20)


@pytest.fixture(scope="module")
def bundle(place: Path, exported: dict[str, Any]) -> Path:
    return place / "bundle"


@pytest.fixture(scope="module")
def images(place: Path, dataset: Path) -> Path:
    return extract(dataset, place / "images")


def test_the_record_of_the_bundle(exported: dict[str, Any], bundle: Path, dataset: Path) -> None:
    json.dumps(exported, allow_nan=False)
    assert exported["formats"] == ["torch", "onnx", "openvino"]
    assert exported["default_format"] == "openvino"
    for record in exported["parity"]["formats"].values():
        assert record["max_probability_difference"] < 1e-5
        assert record["labels_equal"] == 20
    loaded = load_bundle(bundle).bundle
    assert loaded.dataset_sha256 == load_manifest(dataset).sha256
    assert loaded.metrics["val"] == {"score": 0.5, "accuracy": 0.25}
    assert loaded.parity.batch_sizes == (1, 8)
    assert loaded.weights.kind == "model"
    assert loaded.code["git"] is None or len(loaded.code["git"]) == 40
    assert sorted(path.name for path in bundle.iterdir()) == ["bundle.json", "model.bin", "model.onnx", "model.pt2",
                                                              "model.xml"]
    assert [path for path in bundle.parent.iterdir() if path.name.startswith(".")] == []


def test_no_path_of_this_machine_is_in_the_model_files(bundle: Path) -> None:
    source = str(Path(__file__).resolve().parents[2]).encode()
    for name in ("model.pt2", "model.onnx", "model.xml"):
        content = (bundle / name).read_bytes()
        assert source not in content
        assert b"site-packages" not in content


@pytest.mark.parametrize("runtime", FORMATS)
def test_predict_answers_as_evaluate_does_to_the_last_bit(bundle: Path, images: Path, tmp_path: Path,
                                                          runtime: str) -> None:
    table = tmp_path / "predictions.csv"
    report = run_evaluate(bundle, runtime=runtime, predictions=table)
    with table.open() as file:
        rows = {row["key"]: row for row in csv.DictReader(file)}
    predictions = run_predict(bundle, [images], runtime=runtime)
    assert len(predictions) == len(rows) == report["num_samples"] == 30
    assert len({entry["label"] for entry in predictions}) > 1
    for entry in predictions:
        row = rows[Path(entry["image"]).stem]
        assert entry["label"] == row["label"]
        assert entry["probabilities"] == {name: float(row[f"p_{name}"]) for name in report["classes"]}
        assert (entry["runtime"], entry["tta"]) == (runtime, "none")
    correct = np.mean([row["label"] == row["class"] for row in rows.values()])
    assert report["accuracy"] == pytest.approx(correct)


def test_one_image_alone_and_among_many_gives_the_same_bits(bundle: Path, images: Path) -> None:
    paths = sorted(images.iterdir())[:7]
    for runtime in FORMATS:
        together = run_predict(bundle, paths, runtime=runtime)
        assert [entry["image"] for entry in together] == [str(path) for path in paths]
        for path, entry in zip(paths, together, strict=True):
            assert run_predict(bundle, [path], runtime=runtime) == [entry]


def test_threads_do_not_change_a_bit(bundle: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = []
    for threads in ("1", "2"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        answers.append([run_predict(bundle, [images], runtime=runtime) for runtime in FORMATS])
    assert answers[0] == answers[1]


def test_a_run_and_its_bundle_are_judged_alike(run: Path, bundle: Path, dataset: Path) -> None:
    of_run, of_bundle = run_evaluate(run), run_evaluate(bundle)
    json.dumps([of_run, of_bundle], allow_nan=False)
    assert (of_run["kind"], of_bundle["kind"], of_bundle["runtime"]) == ("run", "bundle", "openvino")
    assert of_run["confusion_matrix"] == of_bundle["confusion_matrix"]
    assert of_run["auroc"] == pytest.approx(of_bundle["auroc"], abs=1e-6)
    assert of_run["weights_sha256"] == of_bundle["weights_sha256"]
    assert of_run["dataset_sha256"] == of_bundle["dataset_sha256"] == load_manifest(dataset).sha256
    assert of_run["intervals"]["resamples"] == 20
    assert run_evaluate(bundle, split="val", bootstrap=0)["intervals"] is None


def test_evaluate_gives_the_same_report_at_any_world_size(run: Path) -> None:
    expected = run_evaluate(run, bootstrap=0)
    barrier, arrays = threading.Barrier(2, timeout=60), [np.zeros(0, np.float32)] * 2
    reports: list[dict[str, Any]] = [{}, {}]

    def rank(number: int) -> None:
        def sum_over_ranks(values: NDArray[np.float32]) -> NDArray[np.float32]:
            arrays[number] = values
            barrier.wait()
            return arrays[0] + arrays[1]

        reports[number] = run_evaluate(run, bootstrap=0, world=World(number, 2), sum_over_ranks=sum_over_ranks)

    ranks = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join(timeout=120)
    assert reports[0] == expected
    assert reports[1] == {name: value for name, value in expected.items() if name != "intervals"}


def test_the_recorded_threshold_decides_everywhere(tmp_path: Path, make_dataset: MakeDataset,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    dataset = make_dataset(classes=2, train=8, val=20, test=20, kind="jpg")
    images = extract(dataset, tmp_path / "images")
    plain = make_run(tmp_path / "plain", dataset)
    table = tmp_path / "p.csv"
    run_evaluate(plain, predictions=table)
    with table.open() as file:
        probabilities = sorted(float(row["p_angle1"]) for row in csv.DictReader(file))
    value = (probabilities[14] + probabilities[15]) / 2  # five of twenty are positive
    threshold = Threshold(value=value, positive_class="angle1", sensitivity=0.9, specificity=0.8, num_samples=20)
    run = make_run(tmp_path / "run", dataset, threshold=threshold.model_dump(mode="json"))
    exported = run_export(run, out=tmp_path / "bundle", formats=["onnx"])
    assert exported["threshold"] == threshold.model_dump(mode="json")
    predictions = run_predict(tmp_path / "bundle", [images])
    assert sum(entry["label"] == "angle1" for entry in predictions) == 5
    for entry in predictions:
        assert entry["threshold"] == value
        assert (entry["label"] == "angle1") == (entry["probabilities"]["angle1"] >= value)
    against = sum(entry["probabilities"][entry["label"]] < 0.5 for entry in predictions)
    assert against > 0
    assert run_app(app, "distrib", ["predict", str(tmp_path / "bundle"), str(images)]) == 0
    assert capsys.readouterr().out.count(f"; decided by the threshold {value:.4f})") == against
    for target in (run, tmp_path / "bundle"):
        report = run_evaluate(target, predictions=table)
        assert report["threshold"]["value"] == value
        assert report["threshold"]["split"] == "val"
        with table.open() as file:
            rows = {row["key"]: row["label"] for row in csv.DictReader(file)}
        assert rows == {Path(entry["image"]).stem: entry["label"] for entry in predictions}
        truth = {key: int(key[-5:]) % 2 for key in rows}
        assert report["sensitivity"] == np.mean([rows[key] == "angle1" for key in rows if truth[key] == 1])
        assert report["by_largest_probability"]["accuracy"] is not None
    notes: list[str] = []
    assert run_evaluate(plain, tell=notes.append)["threshold"] is None
    assert "no decision threshold was recorded" in notes[0]


def test_a_moving_average_is_what_is_exported(tmp_path: Path, dataset: Path, exported: dict[str, Any]) -> None:
    run = make_run(tmp_path / "run", dataset, ema=True)
    again = run_export(run, out=tmp_path / "bundle", formats=["onnx"], num_samples=3)
    assert again["weights_sha256"] == exported["weights_sha256"]
    assert load_bundle(tmp_path / "bundle").bundle.weights.kind == "ema"


def test_people_see_the_scores_of_a_run(run: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "distrib", "evaluate", run, "--split", "val", "--bootstrap", "0"],
                          capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "balanced accuracy" in done.stderr


def test_the_gate_refuses_what_differs_and_leaves_nothing(tmp_path: Path, run: Path) -> None:
    with pytest.raises(BundleError, match=r"differs from the trained model by .* the tolerance is 1e-15"):
        run_export(run, out=tmp_path / "bundle", formats=["onnx"], tolerance=1e-15, num_samples=4)
    assert list(tmp_path.iterdir()) == []


def test_the_gate_reads_the_files_back(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A converter that spoils one weight is caught, since the gate runs what was written."""
    from distrib.export import onnx_format

    honest = onnx_format.write

    def write(program: Any, folder: Path) -> list[Path]:
        (path,) = honest(program, folder)
        model = onnx.load(path)
        bias = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("fc.bias"))
        bias.raw_data = np.array([0, 9, 0], dtype=np.float32).tobytes()
        path.write_bytes(model.SerializeToString())
        return [path]

    monkeypatch.setattr(onnx_format, "write", write)
    with pytest.raises(BundleError, match="onnx differs from the trained model"):
        run_export(run, out=tmp_path / "bundle", formats=["onnx"], num_samples=4)
    assert list(tmp_path.iterdir()) == []


class Untraceable(SmallCNN):
    """Looks at its input's values, which no graph can hold."""

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        return super().forward(images_NCHW if float(images_NCHW.sum()) > 0 else -images_NCHW)


def untraceable(num_classes: int, dropout: float) -> Untraceable:
    return Untraceable(num_classes, dropout)


def test_a_model_that_can_not_be_traced(tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "own_models", sys.modules[__name__])
    run = make_run(tmp_path / "run", dataset, model="own_models:untraceable")
    with pytest.raises(BundleError, match="the model can not be traced"):
        run_export(run, out=tmp_path / "bundle", formats=["onnx"])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_is_there_is_never_overwritten(tmp_path: Path, run: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "precious").write_text("x")
    for out in (tmp_path / "bundle", tmp_path / "bundle" / "precious"):
        with pytest.raises(BundleError, match="exists already"):
            run_export(run, out=out)
    assert (tmp_path / "bundle" / "precious").read_text() == "x"


def test_bad_arguments(tmp_path: Path, run: Path, bundle: Path, images: Path) -> None:
    with pytest.raises(ConfigError, match="'tflite' is unknown"):
        run_export(run, out=tmp_path / "b", formats=["onnx,tflite"])
    with pytest.raises(ConfigError, match="tolerance"):
        run_export(run, out=tmp_path / "b", tolerance=0)
    with pytest.raises(CheckpointError, match="is no run"):
        run_export(tmp_path, out=tmp_path / "b")
    with pytest.raises(ConfigError, match="'holdout' is unknown"):
        run_evaluate(run, split="holdout")
    with pytest.raises(ConfigError, match="neither a run nor a bundle"):
        run_evaluate(tmp_path)
    with pytest.raises(ConfigError, match="--runtime onnx is for bundles"):
        run_evaluate(run, runtime="onnx")
    with pytest.raises(ConfigError, match="--tta 'spin' is unknown"):
        run_predict(bundle, [images], tta="spin")
    with pytest.raises(ConfigError, match="no image is given"):
        run_predict(bundle, [])
    with pytest.raises(BundleError, match="is no bundle"):
        run_predict(tmp_path, [images])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image below"):
        run_predict(bundle, [tmp_path / "empty"])
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_other_classes_are_refused(run: Path, bundle: Path, make_dataset: MakeDataset) -> None:
    other = make_dataset(classes=2, test=10)
    for target in (run, bundle):
        with pytest.raises(DataError, match="classes are angle0, angle1, those of"):
            run_evaluate(target, data=other)


def test_another_dataset_is_judged_with_a_note_but_not_exported_from(tmp_path: Path, run: Path,
                                                                     make_dataset: MakeDataset) -> None:
    other = make_dataset(seed=5, test=10)
    notes: list[str] = []
    assert run_evaluate(run, data=other, tell=notes.append)["num_samples"] == 10
    assert "another dataset than the one trained on" in notes[0]
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    document = validate(Experiment, {"data": {"dataset": str(other), "image_size": 16},
                                     "model": {"name": "small_cnn"}}, "the test")
    RunDir(moved).experiment.write_bytes(document.to_bytes())
    with pytest.raises(DataError, match=r"is not the one that .* was trained on"):
        run_export(moved, out=tmp_path / "bundle")


def test_bad_images_are_told_apart_and_the_others_predicted(bundle: Path, images: Path, tmp_path: Path) -> None:
    good = sorted(images.iterdir())[:2]
    cut = tmp_path / "cut.png"
    cut.write_bytes(good[0].read_bytes()[:100])
    text = tmp_path / "text.jpg"
    text.write_text("not an image")
    os.mkfifo(tmp_path / "pipe.png")
    paths = [good[0], cut, tmp_path / "nowhere.png", text, tmp_path / "pipe.png", good[1]]
    predictions = run_predict(bundle, paths)
    assert [entry["image"] for entry in predictions] == [str(path) for path in paths]
    assert [entry["label"] is None for entry in predictions] == [False, True, True, True, True, False]
    for entry in predictions[1:5]:
        assert entry["image"] in entry["error"]
        assert entry["probabilities"] is None
    error = failure(predictions)
    assert isinstance(error, DataError)
    assert "2 of 6 images were predicted" in str(error)
    assert "cut.png" in str(error)
    assert failure(run_predict(bundle, good)) is None


@pytest.mark.parametrize(("tta", "views"), [("hflip", 2), ("flips", 4)])
def test_augmentation_at_test_time_is_the_mean_over_views(bundle: Path, images: Path, tmp_path: Path, tta: str,
                                                          views: int) -> None:
    import cv2

    path = sorted(images.iterdir())[0]
    pixels = cv2.imread(str(path))
    assert pixels is not None
    turned = [pixels, cv2.flip(pixels, 1), cv2.flip(pixels, 0), cv2.flip(pixels, -1)][:views]
    paths = [tmp_path / f"{number}.png" for number in range(views)]
    for one, content in zip(paths, turned, strict=True):
        cv2.imwrite(str(one), content)
    (entry,) = run_predict(bundle, [path], tta=tta)
    alone = [list(one["probabilities"].values()) for one in run_predict(bundle, paths)]
    assert entry["tta"] == tta
    # Resampling mirrored pixels rounds differently in the last place of a pixel.
    assert list(entry["probabilities"].values()) == pytest.approx(np.mean(alone, axis=0), abs=5e-3)
    assert entry["probabilities"] != run_predict(bundle, [path])[0]["probabilities"]


@pytest.mark.parametrize("runtime", ["openvino", "onnx"])
def test_predict_loads_neither_torch_nor_training(bundle: Path, images: Path, runtime: str) -> None:
    code = """if True:
        import json, sys
        from pathlib import Path
        from distrib.predict import run_predict
        predictions = run_predict(Path(sys.argv[1]), [Path(sys.argv[2])], runtime=sys.argv[3])
        unwanted = ("torch", "sklearn", "distrib.train", "distrib.checkpoint", "distrib.evaluate", "distrib.models")
        print(json.dumps([len(predictions), [name for name in unwanted if name in sys.modules]]))
        """
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, bundle, images, runtime], capture_output=True,
                          text=True, timeout=120, check=False, cwd=Path(__file__).resolve().parents[2])
    assert done.stderr == ""
    assert json.loads(done.stdout) == [30, []]


def rewrite(source: Path, target: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """A copy of an archive with its records changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


FORGERIES: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "pickle": ("sample_inputs/model.pt", lambda _: pickle.dumps([1]), "pickled sample inputs"),
    "pickled weights": ("model_weights_config.json",
                        lambda raw: raw.replace(b'"use_pickle": false', b'"use_pickle": true', 1), "pickled weights"),
    "expression": ("models/model.json",
                   lambda raw: raw.replace(b"Symbol('", b"__import__('os').system('true') + Symbol('", 1), "expr_str"),
    "operator": ("models/model.json",
                 lambda raw: raw.replace(b"torch.ops.aten.relu_.default", b"torch.hub.load", 1), "torch.hub.load"),
    "guard": ("models/model.json",
              lambda raw: json.dumps({**json.loads(raw), "guards_code": ["print(1)"]}).encode(), "guards"),
    "name": ("models/model.json",
             lambda raw: raw.replace(b'"name": "images_nhwc"', b'"name": "x; print(1)"', 1), "print"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_an_archive_that_could_run_code_is_not_loaded(bundle: Path, tmp_path: Path, forgery: str) -> None:
    place, forge, message = FORGERIES[forgery]
    changed = []

    def change(name: str, content: bytes) -> bytes:
        if not name.endswith(place):
            return content
        changed.append(forge(content) != content)
        return forge(content)

    honest = rewrite(bundle / "model.pt2", tmp_path / "honest.pt2", lambda _, content: content)
    check_archive(honest)
    forged = rewrite(bundle / "model.pt2", tmp_path / "forged.pt2", change)
    assert changed == [True]
    with pytest.raises(BundleError, match=message):
        check_archive(forged)


def test_an_archive_with_a_strange_record_or_none_at_all(bundle: Path, tmp_path: Path) -> None:
    strange = tmp_path / "strange.pt2"
    shutil.copy(bundle / "model.pt2", strange)
    with zipfile.ZipFile(strange, "a") as archive:
        archive.writestr("model/data/weights/model.pt", b"legacy")
    with pytest.raises(BundleError, match=r"has the record 'model/data/weights/model\.pt'"):
        check_archive(strange)
    strange.write_bytes(b"no archive")
    with pytest.raises(BundleError, match="not an archive"):
        check_archive(strange)


def test_a_damaged_bundle_predicts_nothing(bundle: Path, images: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    content = bytearray((copy / "model.bin").read_bytes())
    content[1000] ^= 1
    (copy / "model.bin").write_bytes(content)
    for call in (lambda: run_predict(copy, [images]), lambda: run_evaluate(copy)):
        with pytest.raises(BundleError, match=r"model\.bin does not match its digest"):
            call()


def test_a_missing_runtime_is_named(bundle: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distrib.errors import MissingPartError

    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingPartError, match="needs the package openvino"):
        run_predict(bundle, [images])


def test_a_recorded_threshold_that_is_none_is_refused(tmp_path: Path, dataset: Path) -> None:
    run = make_run(tmp_path / "run", dataset, threshold={"value": 7})
    with pytest.raises(CheckpointError, match="records a decision threshold that is none"):
        run_evaluate(run)


def test_a_logit_that_is_no_number_in_evaluate(tmp_path: Path, dataset: Path) -> None:
    from distrib.errors import DivergedError

    run = make_run(tmp_path / "run", dataset)
    state = build_model("small_cnn", 3).state_dict()
    state["fc.bias"][1] = float("nan")
    write_checkpoint(RunDir(run), Checkpoint(9, state, {}, None, {"validation": {"score": 0.9, "classes": [
        "angle0", "angle1", "angle2"]}}))
    with pytest.raises(DivergedError, match="not a finite number"):
        run_evaluate(run)
    with pytest.raises(BundleError, match="gives no finite logits"):
        run_export(run, out=tmp_path / "bundle", formats=["onnx"])


def test_the_dataset_is_found_by_evaluate_where_data_says(tmp_path: Path, bundle: Path, dataset: Path) -> None:
    shutil.copytree(dataset, tmp_path / "elsewhere")
    report = run_evaluate(bundle, data=tmp_path / "elsewhere")
    assert report["dataset"] == str(tmp_path / "elsewhere")
    assert report["dataset_sha256"] == json.loads((dataset / FILE_NAME).read_text())["sha256"]


def test_the_torch_forward_gives_float32_whatever_it_computes_in(run: Path) -> None:
    trained = load_trained(RunDir(run), print)
    data = trained.experiment.data
    images_NHWC = np.zeros((2, 16, 16, 3), np.uint8)
    logits = {precision: torch_forward(trained.model, data.mean, data.std, precision)(images_NHWC)
              for precision in ("fp32", "bf16")}
    for one in logits.values():
        assert one.dtype == np.float32
        assert one.shape == (2, 3)
    assert not np.array_equal(logits["fp32"], logits["bf16"])
    np.testing.assert_allclose(logits["fp32"], logits["bf16"], atol=0.5)
