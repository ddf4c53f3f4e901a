"""Orbax checkpoints of one loop: its state, its history so far and its position."""

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils


class Checkpoints:
    """The checkpoints of one loop in one folder; each write is atomic and replaces the last.

    Leaves are saved as flat lists, PRNG keys as their data, so that any pytree can be restored into
    a state of the same structure. Arrays without elements are not written: the state has them.
    """

    def __init__(self, folder: Path | None, save_seconds: float):
        self.manager = None
        self.save_seconds = save_seconds
        self.saved_at = time.monotonic()
        if folder is None:
            return
        import orbax.checkpoint as ocp  # an extra, and only needed here

        self.args = ocp.args
        self.manager = ocp.CheckpointManager(
            folder.resolve(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=1, create=True, enable_async_checkpointing=False
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        if self.manager is not None:
            self.manager.close()

    def save(self, position: int, state: Any, history: list, *, last: bool) -> None:
        """Save, unless the last time was less than `save_seconds` ago and the loop goes on."""
        if self.manager is None:
            return
        if not last and not agreed(time.monotonic() - self.saved_at >= self.save_seconds):
            return
        columns = [np.stack(leaves) for leaves in zip(*history)]
        tree = {
            "state": by_number([np.asarray(without_key(leaf)) for leaf in jax.tree.leaves(state)]),
            "history": by_number(columns),
            "position": np.asarray(position),
        }
        self.manager.save(position, args=self.args.StandardSave(tree))
        self.saved_at = time.monotonic()

    def restore(self, state: Any, measured: Any) -> tuple[int, Any, list] | None:
        """Return position, state and history of the newest checkpoint, or None.

        Args:
          state: what to restore into; leaves that have no elements are taken from it.
          measured: the shapes and dtypes of one evaluation.
        """
        position = None if self.manager is None else self.manager.latest_step()
        if position is None or self.manager is None:
            return None
        tree = self.manager.restore(position, args=self.args.StandardRestore())
        leaves, treedef = jax.tree.flatten(state)
        leaves = [like(leaf, tree["state"].get(str(i))) for i, leaf in enumerate(leaves)]
        columns = []
        for i, leaf in enumerate(jax.tree.leaves(measured)):
            whole = np.zeros((position + 1, *leaf.shape), leaf.dtype)
            columns.append(like(whole, tree["history"].get(str(i))))
        history = [[column[row] for column in columns] for row in range(position + 1)]
        return position, treedef.unflatten(leaves), history


def agreed(due: bool) -> bool:
    """What process 0 says, for the processes save together."""
    if jax.process_count() == 1:
        return due
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(due)))


def by_number(leaves: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The leaves that have elements (Orbax takes no others), under their numbers."""
    return {str(i): leaf for i, leaf in enumerate(leaves) if leaf.size}


def without_key(leaf: Any) -> Any:
    """The data of a PRNG key, any other leaf as it is."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def like(leaf: Any, saved: np.ndarray | None) -> Any:
    """What was saved, as a leaf of the kind given."""
    if saved is None:
        return leaf
    if is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(saved), impl=jax.random.key_impl(leaf))
    if saved.shape != leaf.shape or saved.dtype != leaf.dtype:
        raise ValueError(
            f"Expected a checkpoint of {leaf.shape} {leaf.dtype}, got {saved.shape} {saved.dtype}: "
            "the code has changed since the run was started; start it without --resume."
        )
    return saved


def is_key(leaf: Any) -> bool:
    """Whether the leaf is an array of PRNG keys."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
