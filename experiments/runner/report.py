"""Write REPLICATIONS.md and the HTML page from the committed evidence, and check them."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from experiments.runner import claims, discover, encoding, evidence, page, replications


def write_report(
    out: Path,
    *,
    reassess: bool = False,
    results: Path = evidence.RESULTS,
    markdown: Path = replications.FILE,
    root: Path = discover.ROOT,
) -> int:
    """Write both; return 1 where evidence disagrees with the claims in the code, else 0."""
    collected = replications.collect(results)
    items: list[page.Item] = []
    status = 0
    for name, found in collected.items():
        module = discover.load(found["experiment"], root)
        if reassess:
            found = collected[name] = {**found, "claims": evaluated(module, found)}
            evidence.write(results / f"{name}.json", found)
        for trouble in disagreements(module, found):
            print(f"{name}: {trouble}")
            status = 1
        items.append((name, found, module))
    encoding.write_atomically(markdown, replications.render(collected))
    pictures = [page.draw(module, found) for _, found, module in items]
    encoding.write_atomically(out, page.render(items, pictures, title="gradkin: replications"))
    print(f"{replications.tally(collected)}\ntable:  {markdown}\nreport: {out}")
    return status


def evaluated(module: ModuleType, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The claims in the code, on the stored metrics."""
    metrics = encoding.decode(found["metrics"])
    return [claims.evaluate(claim, metrics) for claim in module.CLAIMS]


def disagreements(module: ModuleType, found: Mapping[str, Any]) -> list[str]:
    """What is wrong with committed evidence: its claims are not those of the code, or do not hold.

    The verdict in the code is that of the preset's own data; for other data the file has it.
    """
    again = evaluated(module, found)
    if [c["text"] for c in again] != [c["text"] for c in found["claims"]]:
        return ["the claims in the code have changed; run it again, or report --reassess"]
    own = found["config"].get("data") == getattr(module.PRESETS[found["preset"]], "data", None)
    wrong = []
    for claim, now, stored in zip(module.CLAIMS, again, found["claims"]):
        old, new = (np.asarray(encoding.numbers(c["measured"]), float) for c in (stored, now))
        if not np.allclose(old, new, rtol=1e-4, atol=1e-7, equal_nan=True):
            wrong.append(f"{claim.text!r} measured {old.tolist()}, now {new.tolist()}")
        for field in ("paper", "reported", "threshold", "rule", "holds", "verdict"):
            if now[field] != stored[field]:
                wrong.append(f"{claim.text!r} has {field} {stored[field]!r}, now {now[field]!r}")
        if own and claim.verdict != now["verdict"]:
            wrong.append(f"{claim.text!r} is {now['verdict']}, committed as {claim.verdict}")
    return wrong
