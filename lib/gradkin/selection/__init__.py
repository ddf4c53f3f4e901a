"""Selection of data and of tokens: which few stand for all."""

from gradkin.selection.iterative_refinement import Refinement as Refinement
from gradkin.selection.iterative_refinement import iterative_refinement as iterative_refinement
from gradkin.selection.iterative_refinement import update_weights as update_weights
from gradkin.selection.k_means_quality import Clusters as Clusters
from gradkin.selection.k_means_quality import allocate as allocate
from gradkin.selection.k_means_quality import k_means as k_means
from gradkin.selection.k_means_quality import k_means_quality as k_means_quality
from gradkin.selection.k_means_quality import sample_clusters as sample_clusters
from gradkin.selection.less import Less as Less
from gradkin.selection.less import less as less
from gradkin.selection.less import less_features as less_features
from gradkin.selection.less import less_queries as less_queries
from gradkin.selection.less import less_scores as less_scores
from gradkin.selection.less import select_top_fraction as select_top_fraction
from gradkin.selection.max_min_diversity import farthest_first as farthest_first
from gradkin.selection.max_min_diversity import max_min_distance as max_min_distance
from gradkin.selection.token_pruning import prefill_flops as prefill_flops
from gradkin.selection.token_pruning import prune_sequence as prune_sequence
from gradkin.selection.utility_diversity import BatchSelection as BatchSelection
from gradkin.selection.utility_diversity import BilinearProjection as BilinearProjection
from gradkin.selection.utility_diversity import Memory as Memory
from gradkin.selection.utility_diversity import init_bilinear_projection as init_bilinear_projection
from gradkin.selection.utility_diversity import init_memory as init_memory
from gradkin.selection.utility_diversity import mean_distance as mean_distance
from gradkin.selection.utility_diversity import nuclear_norm as nuclear_norm
from gradkin.selection.utility_diversity import project_logits as project_logits
from gradkin.selection.utility_diversity import push as push
from gradkin.selection.utility_diversity import utility_diversity_select as utility_diversity_select
from gradkin.selection.warm_up import Checkpoints as Checkpoints
from gradkin.selection.warm_up import warm_up as warm_up

__all__ = [
    "BatchSelection",
    "BilinearProjection",
    "Checkpoints",
    "Clusters",
    "Less",
    "Memory",
    "Refinement",
    "allocate",
    "farthest_first",
    "init_bilinear_projection",
    "init_memory",
    "iterative_refinement",
    "k_means",
    "k_means_quality",
    "less",
    "less_features",
    "less_queries",
    "less_scores",
    "max_min_distance",
    "mean_distance",
    "nuclear_norm",
    "prefill_flops",
    "project_logits",
    "prune_sequence",
    "push",
    "sample_clusters",
    "select_top_fraction",
    "update_weights",
    "utility_diversity_select",
    "warm_up",
]
