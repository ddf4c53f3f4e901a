"""Selection of data and of tokens: which few stand for all."""

from gradkin.selection.iterative_refinement import Refinement as Refinement
from gradkin.selection.iterative_refinement import iterative_refinement as iterative_refinement
from gradkin.selection.iterative_refinement import update_weights as update_weights
from gradkin.selection.k_means_quality import Clusters as Clusters
from gradkin.selection.k_means_quality import allocate as allocate
from gradkin.selection.k_means_quality import k_means as k_means
from gradkin.selection.k_means_quality import k_means_quality as k_means_quality
from gradkin.selection.k_means_quality import sample_clusters as sample_clusters
from gradkin.selection.max_min_diversity import farthest_first as farthest_first
from gradkin.selection.max_min_diversity import max_min_distance as max_min_distance
from gradkin.selection.token_pruning import prefill_flops as prefill_flops
from gradkin.selection.token_pruning import prune_sequence as prune_sequence

__all__ = [
    "Clusters",
    "Refinement",
    "allocate",
    "farthest_first",
    "iterative_refinement",
    "k_means",
    "k_means_quality",
    "max_min_distance",
    "prefill_flops",
    "prune_sequence",
    "sample_clusters",
    "update_weights",
]
