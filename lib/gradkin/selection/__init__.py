"""Selection of data and of tokens: which few stand for all."""

from gradkin.selection.axis_selection import AxisSelection as AxisSelection
from gradkin.selection.axis_selection import overlap_matrix as overlap_matrix
from gradkin.selection.axis_selection import select_by_axes as select_by_axes
from gradkin.selection.chips import ChipsScores as ChipsScores
from gradkin.selection.chips import PairFeatures as PairFeatures
from gradkin.selection.chips import chips as chips
from gradkin.selection.chips import newton_alignment as newton_alignment
from gradkin.selection.chips import pair_features as pair_features
from gradkin.selection.decorrelated_scores import ScoreAxes as ScoreAxes
from gradkin.selection.decorrelated_scores import decorrelate_scores as decorrelate_scores
from gradkin.selection.decorrelated_scores import project_scores as project_scores
from gradkin.selection.expected_copies import draw_copies as draw_copies
from gradkin.selection.expected_copies import expected_mixture as expected_mixture
from gradkin.selection.expected_copies import scale_to_budget as scale_to_budget
from gradkin.selection.info_nce import EndpointHeads as EndpointHeads
from gradkin.selection.info_nce import SplitGradients as SplitGradients
from gradkin.selection.info_nce import endpoint_embeddings as endpoint_embeddings
from gradkin.selection.info_nce import info_nce as info_nce
from gradkin.selection.info_nce import info_nce_gradients as info_nce_gradients
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
from gradkin.selection.less_scores import less_queries as less_queries
from gradkin.selection.less_scores import less_scores as less_scores
from gradkin.selection.less_scores import select_top_fraction as select_top_fraction
from gradkin.selection.max_min_diversity import farthest_first as farthest_first
from gradkin.selection.max_min_diversity import max_min_distance as max_min_distance
from gradkin.selection.quality_diversity_mix import MixParams as MixParams
from gradkin.selection.quality_diversity_mix import domain_rank as domain_rank
from gradkin.selection.quality_diversity_mix import merge_quality as merge_quality
from gradkin.selection.quality_diversity_mix import mixture_params as mixture_params
from gradkin.selection.quality_diversity_mix import normalize_scores as normalize_scores
from gradkin.selection.quality_diversity_mix import quality_filter_params as quality_filter_params
from gradkin.selection.quality_diversity_mix import sample_mix_params as sample_mix_params
from gradkin.selection.quality_diversity_mix import sampling_value as sampling_value
from gradkin.selection.regression_search import RegressionSearch as RegressionSearch
from gradkin.selection.regression_search import regression_search as regression_search
from gradkin.selection.score_regression import Scorers as Scorers
from gradkin.selection.score_regression import fit_scorers as fit_scorers
from gradkin.selection.score_regression import predict_scores as predict_scores
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
    "AxisSelection",
    "BatchSelection",
    "BilinearProjection",
    "Checkpoints",
    "ChipsScores",
    "Clusters",
    "EndpointHeads",
    "Less",
    "Memory",
    "MixParams",
    "PairFeatures",
    "Refinement",
    "RegressionSearch",
    "ScoreAxes",
    "Scorers",
    "SplitGradients",
    "allocate",
    "chips",
    "decorrelate_scores",
    "domain_rank",
    "draw_copies",
    "endpoint_embeddings",
    "expected_mixture",
    "farthest_first",
    "fit_scorers",
    "info_nce",
    "info_nce_gradients",
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
    "merge_quality",
    "mixture_params",
    "newton_alignment",
    "normalize_scores",
    "nuclear_norm",
    "overlap_matrix",
    "pair_features",
    "predict_scores",
    "prefill_flops",
    "project_logits",
    "project_scores",
    "prune_sequence",
    "push",
    "quality_filter_params",
    "regression_search",
    "sample_clusters",
    "sample_mix_params",
    "sampling_value",
    "scale_to_budget",
    "select_by_axes",
    "select_top_fraction",
    "update_weights",
    "utility_diversity_select",
    "warm_up",
]
