"""A claim of a paper: a predicate on the metrics, and the verdict over the seeds."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from experiments.runner import encoding

Rule = Literal["mean", "median", "every"]
Verdict = Literal["reproduced", "not reproduced", "inconclusive"]


@dataclasses.dataclass(frozen=True)
class Claim:
    """One sentence of a paper that a run can contradict.

    Args:
      text: the sentence.
      paper: the paper's slug, one of the experiment's ``PAPERS``.
      reported: the paper's own number in words, or "qualitative".
      measure: maps the metrics (arrays with a leading seed axis S) to one number per seed, ``[S]``.
      holds: whether the claim holds for a number.
      rule: what `holds` sees: the "mean" or "median" over seeds, or "every" seed's number.
      threshold: what `holds` says, as it is shown: ">= 3".
      verdict: the committed verdict; a run that finds another one exits with status 1.
    """

    text: str
    paper: str
    reported: str
    measure: Callable[[dict[str, np.ndarray]], Any]
    holds: Callable[[float], bool]
    rule: Rule
    threshold: str
    verdict: Verdict

    def __post_init__(self):
        for name, value, options in (
            ("rule", self.rule, get_args(Rule)),
            ("verdict", self.verdict, get_args(Verdict)),
        ):
            if value not in options:
                raise ValueError(f"Expected {name} to be one of {options}, got {name}={value!r}.")


def evaluate(claim: Claim, metrics: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the claim as evidence: what was measured on each seed, whether it holds, the verdict.

    A measure that is not finite on some seed gives ``holds=None`` and the verdict "inconclusive".
    """
    seeds = len(next(iter(metrics.values())))
    measured = np.asarray(claim.measure(dict(metrics)), np.float64)
    if measured.shape != (seeds,):
        raise ValueError(
            f"Expected measure to give one number per seed, shape ({seeds},), got shape "
            f"{measured.shape} for the claim {claim.text!r}."
        )
    holds = judge(claim, measured.tolist())
    return {
        "text": claim.text,
        "paper": claim.paper,
        "reported": claim.reported,
        "measured": encoding.nested(measured),
        "threshold": claim.threshold,
        "rule": claim.rule,
        "holds": holds,
        "verdict": {True: "reproduced", False: "not reproduced", None: "inconclusive"}[holds],
    }


def judge(claim: Claim, measured: Sequence[float]) -> bool | None:
    """Whether the claim holds for the numbers of the seeds; None when one is not finite."""
    if not np.all(np.isfinite(measured)):
        return None
    match claim.rule:
        case "mean":
            return bool(claim.holds(float(np.mean(measured))))
        case "median":
            return bool(claim.holds(float(np.median(measured))))
        case "every":
            return all(bool(claim.holds(value)) for value in measured)
