"""Selection of data and of tokens: which few stand for all."""

from gradkin.selection.max_min_diversity import farthest_first as farthest_first
from gradkin.selection.max_min_diversity import max_min_distance as max_min_distance
from gradkin.selection.token_pruning import prefill_flops as prefill_flops
from gradkin.selection.token_pruning import prune_sequence as prune_sequence

__all__ = ["farthest_first", "max_min_distance", "prefill_flops", "prune_sequence"]
