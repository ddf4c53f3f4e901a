"""The measured side of a benchmark: one variant, alone in its process, timed when told to.

Only the standard library is imported here, so that a peer's environment can run it too.
"""

import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any


def serve(build: Callable[[], tuple[Callable[[], Any], dict[str, Any]]]) -> None:
    """Build a step, say that it is ready, then time blocks of calls until the input ends.

    The protocol is one JSON object per line on the standard output: first what ``build`` reports
    (or ``{"skipped": why}``), then for each input line ``calls warm_up_calls`` the wall seconds of
    every timed call and the processor seconds of the whole block.

    Args:
      build: returns the step, which blocks until its result is there, and a report.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints goes to the standard error

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")

    try:
        step, report = build()
    except ImportError as error:
        answer({"skipped": f"{error}"})
        return
    except Exception as error:
        answer({"skipped": f"{type(error).__name__}: {str(error).strip()[:300]}"})
        raise
    answer(report)
    for line in sys.stdin:
        calls, warm_up_calls = map(int, line.split())
        answer(block(step, calls, warm_up_calls))


def block(step: Callable[[], Any], calls: int, warm_up_calls: int) -> dict[str, Any]:
    """Wall seconds of each timed call, processor seconds of all calls, peak memory so far."""
    processor = time.process_time()
    for _ in range(warm_up_calls):
        step()
    gc.collect()
    gc.disable()
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    gc.enable()
    return {
        "seconds": seconds,
        "processor": time.process_time() - processor,
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
