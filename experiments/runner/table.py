"""The claims of a run as plain text."""

import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.runner.encoding import numbers

MARKS = {"reproduced": "✓", "not reproduced": "✗", "inconclusive": "?"}


def render(evidence: Mapping[str, Any], *, width: int = 100) -> str:
    """Return the table that ends a run."""
    seeds = len(evidence["seeds"])
    title = f"{evidence['experiment']} · {evidence['preset']} · {seeds} seeds"
    lines = [f"{title} · {evidence['seconds']:.0f} s · {evidence['peak_rss_mb']} MB", "━" * width]
    for claim in evidence["claims"]:
        mark = f"{MARKS[claim['verdict']]} {claim['verdict']}"
        text = textwrap.wrap(claim["text"], width - 20)
        lines += [f"{mark:<18}  {text[0]}", *(" " * 20 + line for line in text[1:])]
        lines += textwrap.wrap(
            f"{summary(claim['measured'])} · {needed(claim)} · "
            f"{claim['paper']}: {claim['reported']}",
            width,
            initial_indent=" " * 20,
            subsequent_indent=" " * 20,
        )
        lines.append("─" * width)
    if not evidence["claims"]:
        lines.append("no claim is evaluated at this preset")
    return "\n".join(lines)


def summary(measured: list) -> str:
    """Mean and standard deviation over the seeds."""
    values = np.asarray(numbers(measured), np.float64)
    if not np.all(np.isfinite(values)):
        return "not finite"
    if len(values) == 1:
        return f"{values[0]:.4g}"
    return f"{np.mean(values):.4g} ± {np.std(values, ddof=1):.2g}"


def needed(claim: Mapping[str, Any]) -> str:
    """What the rule over the seeds holds the measure against."""
    threshold = claim["threshold"].replace("<=", "≤").replace(">=", "≥")
    return f"{claim['rule']} {threshold}"
