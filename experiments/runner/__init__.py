"""What an experiment needs from the runner: `Claim`, and `pure_loop` to trace `run` by itself."""

from experiments.runner.claims import Claim as Claim
from experiments.runner.loop import Loop as Loop
from experiments.runner.loop import pure_loop as pure_loop

__all__ = ["Claim", "Loop", "pure_loop"]
