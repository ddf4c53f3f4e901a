"""Optimizer helpers: optax does the work."""

from gradkin.optim.update import update as update

__all__ = ["update"]
