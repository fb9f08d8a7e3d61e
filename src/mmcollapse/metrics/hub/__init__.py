"""The caption metrics as modules of `evaluate`, one folder each. They load by path and need no network:

>>> import evaluate
>>> from mmcollapse.metrics import hub
>>> metrics = evaluate.combine([hub.path(name) for name in ("bleu4", "cider", "rouge_l", "distinct")])
>>> scores = metrics.compute(
...     predictions=["a red circle on a gray wall", "two small blue stars"],
...     references=[["a red circle on a dark wall", "a circle in red"], ["two small blue stars", "stars in blue"]],
... )
>>> {name: round(value, 3) for name, value in scores.items()}
{'bleu4': 0.742, 'cider': 4.914, 'rouge_l': 0.929, 'distinct_1': 0.909, 'distinct_2': 1.0}

Values, ranges, and what each of them needs, are those of `mmcollapse.metrics.captions`, whose functions they call.
"""

from __future__ import annotations

from pathlib import Path

import evaluate
from datasets import Features, List, Value

from mmcollapse.errors import MMCollapseError
from mmcollapse.metrics.captions import check

NAMES = ("bleu4", "cider", "distinct", "rouge_l", "self_bleu", "vocabulary")


def path(name: str) -> str:
    """The folder of a metric, for `evaluate.load` and `evaluate.combine`, wherever this package is installed."""
    if name not in NAMES:
        raise MMCollapseError(f'no caption metric "{name}"; there are {", ".join(NAMES)}')
    return str(Path(__file__).parent / name)


# `evaluate` takes the first metric class that it finds among the names of a module: the modules must not import these
# two by their names, only this package. It also adds to the docstrings of `add_batch`, so these must be there.


class OfTheSet(evaluate.Metric):
    """A metric of `predictions` alone: strings. References given are ignored, so that it combines with others."""

    inputs = {"predictions": Value("string")}

    def _info(self):
        return evaluate.MetricInfo(
            description=self.__doc__, citation="", inputs_description=OfTheSet.__doc__, features=Features(self.inputs)
        )

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Adds captions."""
        check(predictions)  # evaluate would turn numbers into strings, and stumble over None without saying why
        super().add_batch(predictions=predictions, **kwargs)


class AgainstReferences(OfTheSet):
    """A metric of `predictions`, strings, and `references`, a list of strings for each prediction."""

    inputs = {"predictions": Value("string"), "references": List(Value("string"))}

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Adds captions with their references."""
        check(predictions, [] if references is None else references)
        evaluate.Metric.add_batch(self, predictions=predictions, references=references, **kwargs)
