"""Benchmarks: `python -m experiments.benchmarks.NAME`; results are in `results/`."""
