"""Claims: the rule over seeds, the verdict, what is refused."""

import dataclasses
import math

import numpy as np
import pytest

from experiments.runner import Claim
from experiments.runner.claims import evaluate

CLAIM = Claim(
    "It is large", "slug", "5", lambda m: m["x"], lambda v: v >= 3, "mean", ">= 3", "reproduced"
)


@pytest.mark.parametrize(
    ("rule", "values", "verdict"),
    [
        ("mean", [1, 2, 9], "reproduced"),
        ("median", [1, 2, 9], "not reproduced"),
        ("median", [1, 3, 9], "reproduced"),
        ("every", [3, 4, 9], "reproduced"),
        ("every", [2, 4, 9], "not reproduced"),
        ("mean", [1, math.nan, 9], "inconclusive"),
        ("every", [math.inf, 4, 9], "inconclusive"),
    ],
)
def test_rule_over_seeds(rule, values, verdict):
    claim = dataclasses.replace(CLAIM, rule=rule)
    found = evaluate(claim, {"x": np.array(values, np.float32)})
    assert found["verdict"] == verdict
    assert found["holds"] == {"reproduced": True, "not reproduced": False}.get(verdict)


def test_evidence_of_a_claim_is_json():
    found = evaluate(CLAIM, {"x": np.array([3.1, np.nan], np.float32)})
    assert found == {
        "text": "It is large",
        "paper": "slug",
        "reported": "5",
        "measured": [3.1, "NaN"],
        "threshold": ">= 3",
        "rule": "mean",
        "holds": None,
        "verdict": "inconclusive",
    }


def test_one_number_per_seed():
    claim = dataclasses.replace(CLAIM, measure=lambda m: m["x"].mean())
    with pytest.raises(ValueError, match=r"one number per seed, shape \(2,\), got shape \(\)"):
        evaluate(claim, {"x": np.ones(2)})


@pytest.mark.parametrize(("field", "value"), [("rule", "max"), ("verdict", "maybe")])
def test_bad_field(field, value):
    with pytest.raises(ValueError, match=f"Expected {field} to be one of .* got {field}='{value}'"):
        dataclasses.replace(CLAIM, **{field: value})
