"""GLUE's metrics as local `evaluate.Metric` classes on scikit-learn and scipy; `evaluate.load` would need the network.

All are fractions or coefficients in [-1, 1]; a metric that is undefined for its input (a constant prediction) is 0.
"""

import warnings
from collections.abc import Callable

import datasets
import evaluate
import numpy as np
from scipy import stats
from sklearn import metrics as sk


class _Metric(evaluate.Metric):
    """`score(references, predictions)` as an `evaluate.Metric` that keeps everything in memory."""

    dtype = "int64"
    score: Callable[[np.ndarray, np.ndarray], float]

    def __init__(self) -> None:
        super().__init__(keep_in_memory=True)

    def _build_data_dir(self) -> str:
        return ""  # evaluate makes a folder for the files of metrics that are not kept in memory

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({name: datasets.Value(self.dtype) for name in ("predictions", "references")})
        return evaluate.MetricInfo(description=type(self).__doc__, citation="", features=features)

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # constant predictions: undefined, scored 0 below
            value = float(type(self).score(np.asarray(references), np.asarray(predictions)))
        return {type(self).__name__.lower(): value if np.isfinite(value) else 0.0}


class Accuracy(_Metric):
    """The share of rows whose predicted class is right."""

    score = staticmethod(sk.accuracy_score)


class F1(_Metric):
    """F1 of class 1."""

    score = staticmethod(sk.f1_score)


class Matthews(_Metric):
    """The Matthews correlation coefficient."""

    score = staticmethod(sk.matthews_corrcoef)


class Pearson(_Metric):
    """The Pearson correlation coefficient."""

    dtype = "float64"
    score = staticmethod(lambda references, predictions: stats.pearsonr(references, predictions).statistic)


class Spearman(_Metric):
    """Spearman's rank correlation coefficient."""

    dtype = "float64"
    score = staticmethod(lambda references, predictions: stats.spearmanr(references, predictions).statistic)


METRICS = {cls.__name__.lower(): cls for cls in (Accuracy, F1, Matthews, Pearson, Spearman)}


def check(names: list[str]) -> None:
    """Raises ValueError for a name that is not one of METRICS."""
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise ValueError(f"metric {unknown[0]!r} is unknown: use one of {', '.join(METRICS)}")


def compute(names: list[str], predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """{name: value} for each metric."""
    check(names)
    return {name: METRICS[name]().compute(predictions=predictions, references=references)[name] for name in names}
