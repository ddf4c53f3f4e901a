"""A progress bar, where one is wanted."""

from collections.abc import Iterable
from typing import Any


def shown(items: Iterable[Any], wanted: bool, what: str, *, total: int | None = None) -> Any:
    """The items, with a progress bar if wanted.

    Raises:
      ImportError: tqdm is not there.
    """
    if not wanted:
        return items
    try:
        import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install 'gradkin[store]'") from error
    return tqdm.tqdm(items, desc=what, unit="shard", total=total)
