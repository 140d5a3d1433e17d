"""What a model is made of: digests of weights, data and code, libraries, processors, and its experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from distrib.bundle import load_bundle
from distrib.data.manifest import Manifest
from distrib.evaluate import Scored
from distrib.report.history import History
from distrib.train.settle import differences

NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class Facts:
    rows: tuple[tuple[str, str], ...]
    """(what, value)."""
    experiment: dict[str, Any]
    experiment_text: str
    """As YAML."""
    has_learnt_split: bool
    """Whether members of an ensemble of folds were trained on the very split that it is judged on."""
    has_trained_on_this: bool
    """Whether the dataset that it is judged on is the one that it was trained on."""
    is_finished: bool
    """Whether a run has come to its end; bundles do not say."""


def read_facts(one: Scored, history: History | None) -> Facts:
    """Raises BundleError."""
    identity, experiment = one.subject.identity, one.subject.experiment.model_dump(mode="json")
    rows = [("kind", identity["kind"]), ("run with", identity["runtime"])]
    if identity["kind"] == "run":
        rows += [("checkpoint", identity["checkpoint"]), ("step", str(identity["step"])), *_of_starts(history)]
    else:
        bundle = load_bundle(one.target).bundle
        rows += [("bundle, SHA-256", identity["bundle_sha256"]), ("step", str(identity["step"])),
                 *_of_code(bundle.code), ("libraries", _listed(bundle.libraries))]
    rows += [("model", experiment["model"]["name"]), ("parameters", f"{identity['num_parameters']:,}"),
             ("weights, SHA-256", identity["weights_sha256"]),
             ("trained on dataset, SHA-256", identity["trained_on_sha256"] or NOT_RECORDED)]
    start = experiment["model"].get("start")
    if start is not None:
        rows.append(("started from weights, SHA-256", start["weights_sha256"]))
    return Facts(tuple((what, str(value)) for what, value in rows), experiment,
                 yaml.safe_dump(experiment, sort_keys=False, allow_unicode=True, width=100),
                 one.subject.learnt_val and one.samples.split == "val",
                 identity["trained_on_sha256"] == one.manifest.sha256, bool(identity.get("finished", True)))


def experiment_differences(experiments: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """(dotted key, value in each) of every key that is not the same in all."""
    names = sorted({name for other in experiments[1:] for name in differences(experiments[0], other)})
    return [(name, [_value(one, name) for one in experiments]) for name in names]


def leaks(manifest: Manifest, split: str) -> int:
    """Pairs of the same or nearly the same image, one of them in this split."""
    return sum(split in one.splits for one in manifest.duplicates)


def _of_starts(history: History | None) -> list[tuple[str, str]]:
    if history is None or not history.starts:
        return [("code, libraries, processor", NOT_RECORDED)]
    last = history.starts[-1]
    code = last.get("code")
    packages = last.get("packages")
    return [
        *_of_code(code if isinstance(code, dict) else {"distrib": last.get("distrib")}),
        ("libraries", _listed(packages if isinstance(packages, dict) else {})),
        ("Python", str(last.get("python", NOT_RECORDED))),
        ("processor of rank 0", str(last.get("processor", NOT_RECORDED))),
        ("threads a lane", str(last.get("threads", NOT_RECORDED))),
    ]


def _of_code(code: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [("code, version", code.get("distrib") or NOT_RECORDED), ("code, commit", code.get("git") or NOT_RECORDED),
            ("code, SHA-256", code.get("sha256") or NOT_RECORDED)]


def _listed(packages: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in packages.items() if version) or NOT_RECORDED


def _value(document: Mapping[str, Any], name: str) -> str:
    value: Any = document
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return "none" if value is None else str(value)
