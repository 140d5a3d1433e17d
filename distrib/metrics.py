"""How good predictions are: point values. Pure functions of logits, labels and the threshold.

A metric that is not defined (a class has no sample, say) is None, and ``undefined`` in the report says
why; no NaN leaves this module. Intervals are in `distrib.intervals`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk

from distrib.config import EvaluateConfig
from distrib.decision import (
    Threshold,
    choose_threshold,
    decide,
    decision_rule,
    log_softmax,
    positive_index,
    softmax,
)
from distrib.errors import DataError

CALIBRATION_BINS = 15
# A rate of k/n computed in floating point must still reach the bound k/n.
RATE_SLACK = 1e-12
LOWER_IS_BETTER = frozenset({"loss", "brier", "calibration_error"})

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


def measure(logits_NK: NDArray[np.floating[Any]], labels_N: Labels, classes: Sequence[str], config: EvaluateConfig,
            threshold: Threshold | None = None) -> dict[str, Any]:
    """Every metric, as plain values for JSON. Labels are those of `distrib.decision.decide`.

    accuracy, balanced_accuracy (mean recall), confusion_matrix (rows: truth) and precision, recall and f1
    in per_class follow the decided labels. auroc, average_precision and partial_auroc are of the
    positive class with two classes, else the unweighted mean of one class against the rest. loss is the
    mean negative log-likelihood (natural logarithm); brier is the mean squared error of the positive
    probability with two classes, else summed over the classes (0 to 2).

    sensitivity_at_specificity is the highest sensitivity of any threshold whose specificity is at least
    ``config.specificity``, on these samples (an operating point, no interpolation); the reverse likewise.
    """
    log_probabilities_NK, probabilities_NK = log_softmax(logits_NK), softmax(logits_NK)
    predicted_N = decide(probabilities_NK, classes, threshold)
    positive = positive_index(classes, config.positive_class)
    num_classes = len(classes)
    report: dict[str, Any] = {
        "num_samples": len(labels_N),
        "accuracy": float(sk.accuracy_score(labels_N, predicted_N)),
        "balanced_accuracy": None,
        "auroc": None,
        "average_precision": None,
        "partial_auroc": None,
        "partial_auroc_tpr_floor": config.tpr_floor,
        "loss": float(-log_probabilities_NK[np.arange(len(labels_N)), labels_N].mean()),
        "brier": float(brier_terms(probabilities_NK, labels_N, positive).mean()),
        "calibration_error": calibration_error(probabilities_NK, labels_N),
        "decision_rule": decision_rule(threshold),
        "classes": list(classes),
        "confusion_matrix": sk.confusion_matrix(labels_N, predicted_N, labels=range(num_classes)).tolist(),
    }
    undefined: dict[str, str] = {}
    absent = [name for number, name in enumerate(classes) if not (labels_N == number).any()]
    report["per_class"] = _per_class(probabilities_NK, labels_N, predicted_N, classes, config.tpr_floor, undefined)
    ranked = ("auroc", "average_precision", "partial_auroc")
    if absent:
        why = "no sample of " + ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        undefined.update(dict.fromkeys(("balanced_accuracy", *ranked), why))
    else:
        report["balanced_accuracy"] = float(sk.balanced_accuracy_score(labels_N, predicted_N))
        judged = classes if positive is None else [classes[positive]]
        for name in ranked:
            report[name] = float(np.mean([report["per_class"][one][name] for one in judged]))
    if positive is not None:
        report |= _detection(probabilities_NK[:, positive], labels_N == positive, predicted_N == positive, config,
                             undefined)
        report["positive_class"] = classes[positive]
    report["undefined"] = undefined
    return report


def validate(logits_NK: NDArray[np.floating[Any]], labels_N: Labels, classes: Sequence[str], config: EvaluateConfig,
             split: str = "val") -> dict[str, Any]:
    """`measure` without a threshold, and under "threshold" the one chosen here (None with several classes).

    The metrics follow the largest probability: a threshold would flatter the samples that it was chosen on.
    """
    report = measure(logits_NK, labels_N, classes, config)
    chosen = choose_threshold(softmax(logits_NK), labels_N, classes, config.positive_class, split)
    report["threshold"] = chosen.model_dump(mode="json") if chosen else None
    return report


def goodness(report: dict[str, Any], metric: str) -> float:
    """A metric of a report as a number of which more is better. Raises DataError if it is not defined."""
    value = report[metric]
    if value is None:
        raise DataError(f"{metric} is not defined on this split: {report['undefined'].get(metric, 'unknown reason')}",
                        "models can not be compared by it",
                        "choose another evaluate.metric, or a larger split")
    return -float(value) if metric in LOWER_IS_BETTER else float(value)


def partial_auroc(truth_N: NDArray[np.bool_], scores_N: Floats, tpr_floor: float) -> float:
    """Area between the ROC curve and the line TPR = floor, over all FPR; at most 1 - floor, not rescaled.

    The primary score of the ISIC 2024 challenge (with a floor of 0.8), computed as there: the partial area
    below FPR = 1 - floor after exchanging the classes, with McClish's scaling undone. Both classes must occur.
    """
    if tpr_floor == 0:
        return float(sk.roc_auc_score(truth_N, scores_N))
    max_fpr = 1 - tpr_floor
    scaled = float(sk.roc_auc_score(~truth_N, -scores_N, max_fpr=max_fpr))
    least = 0.5 * max_fpr**2
    return least + (max_fpr - least) / 0.5 * (scaled - 0.5)


def calibration_error(probabilities_NK: Floats, labels_N: Labels, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error: mean over samples of |accuracy - confidence| of the sample's bin.

    Bins of equal width over the largest probability, each open below and closed above (Guo et al., "On
    Calibration of Modern Neural Networks", 2017). Concerns the largest probability, whatever the threshold.
    """
    bin_N, surplus_N = calibration_terms(probabilities_NK, labels_N, bins)
    return float(np.abs(np.bincount(bin_N, surplus_N, bins)).sum() / len(labels_N))


def calibration_terms(probabilities_NK: Floats, labels_N: Labels,
                      bins: int = CALIBRATION_BINS) -> tuple[Labels, Floats]:
    """The bin of each sample, and its correctness minus its confidence."""
    confidence_N = probabilities_NK.max(axis=1)
    bin_N = np.clip(np.ceil(confidence_N * bins).astype(np.int64) - 1, 0, bins - 1)
    return bin_N, (probabilities_NK.argmax(axis=1) == labels_N) - confidence_N


def brier_terms(probabilities_NK: Floats, labels_N: Labels, positive: int | None) -> Floats:
    """Squared error of each sample: of the positive probability, or summed over several classes."""
    errors_NK = probabilities_NK.copy()
    errors_NK[np.arange(len(labels_N)), labels_N] -= 1
    result: Floats = (errors_NK**2).sum(axis=1) if positive is None else errors_NK[:, positive] ** 2
    return result


def _per_class(probabilities_NK: Floats, labels_N: Labels, predicted_N: Labels, classes: Sequence[str],
               tpr_floor: float, undefined: dict[str, str]) -> dict[str, dict[str, Any]]:
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        labels_N, predicted_N, labels=range(len(classes)), zero_division=np.nan
    )
    result: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(classes):
        truth_N, scores_N = labels_N == number, probabilities_NK[:, number]
        one: dict[str, Any] = {"support": int(support[number])}
        reason = {"precision": "never predicted", "recall": "no sample of it", "f1": "neither there nor predicted"}
        for metric, values in (("precision", precision), ("recall", recall), ("f1", f1)):
            one[metric] = None if np.isnan(values[number]) else float(values[number])
        both = bool(truth_N.any() and not truth_N.all())
        reason |= dict.fromkeys(("auroc", "average_precision", "partial_auroc"),
                                "only samples of it" if truth_N.any() else "no sample of it")
        one["auroc"] = float(sk.roc_auc_score(truth_N, scores_N)) if both else None
        one["average_precision"] = float(sk.average_precision_score(truth_N, scores_N)) if both else None
        one["partial_auroc"] = partial_auroc(truth_N, scores_N, tpr_floor) if both else None
        undefined.update({f"per_class.{name}.{metric}": reason[metric] for metric in one if one[metric] is None})
        result[name] = one
    return result


def _detection(scores_N: Floats, truth_N: NDArray[np.bool_], called_N: NDArray[np.bool_], config: EvaluateConfig,
               undefined: dict[str, str]) -> dict[str, Any]:
    """Sensitivity and specificity of the decided labels, and at the bounds that the experiment asks about."""
    bounds = {"sensitivity_bound": config.sensitivity, "specificity_bound": config.specificity}
    result: dict[str, Any] = {
        "sensitivity": float(called_N[truth_N].mean()) if truth_N.any() else None,
        "specificity": float((~called_N[~truth_N]).mean()) if not truth_N.all() else None,
    }
    if not truth_N.any() or truth_N.all():
        result |= dict.fromkeys(("sensitivity_at_specificity", "specificity_at_sensitivity"))
        undefined.update({name: "only one of the two classes has samples"
                          for name, value in result.items() if value is None})
        return result | bounds
    fpr, tpr, _ = sk.roc_curve(truth_N, scores_N, drop_intermediate=False)
    return result | {
        "sensitivity_at_specificity": float(tpr[1 - fpr >= config.specificity - RATE_SLACK].max()),
        "specificity_at_sensitivity": float((1 - fpr)[tpr >= config.sensitivity - RATE_SLACK].max()),
    } | bounds
