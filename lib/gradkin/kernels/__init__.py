"""What is read off kernel matrices, and the kernels."""

from gradkin.kernels.bandwidth import BandwidthSearch as BandwidthSearch
from gradkin.kernels.bandwidth import cross_validated_bandwidth as cross_validated_bandwidth
from gradkin.kernels.bandwidth import leave_one_out_log_likelihood as leave_one_out_log_likelihood
from gradkin.kernels.bandwidth import scott_bandwidth as scott_bandwidth
from gradkin.kernels.bandwidth import silverman_bandwidth as silverman_bandwidth
from gradkin.kernels.cka import HSICStats as HSICStats
from gradkin.kernels.cka import cka as cka
from gradkin.kernels.cka import hsic_stats as hsic_stats
from gradkin.kernels.cka import linear_cka as linear_cka
from gradkin.kernels.decorrelation import Decorrelation as Decorrelation
from gradkin.kernels.decorrelation import Memory as Memory
from gradkin.kernels.decorrelation import cosine_features as cosine_features
from gradkin.kernels.decorrelation import decorrelating_weights as decorrelating_weights
from gradkin.kernels.decorrelation import empty_memory as empty_memory
from gradkin.kernels.decorrelation import weighted_dependence as weighted_dependence
from gradkin.kernels.density import DensityEstimate as DensityEstimate
from gradkin.kernels.density import log_density as log_density
from gradkin.kernels.density import log_normalizer as log_normalizer
from gradkin.kernels.density_features import feature_density as feature_density
from gradkin.kernels.density_grid import GridDensity as GridDensity
from gradkin.kernels.density_grid import grid_density as grid_density
from gradkin.kernels.density_sampling import neighbor_density as neighbor_density
from gradkin.kernels.density_sampling import sampled_density as sampled_density
from gradkin.kernels.distance_covariance import independence_p_value as independence_p_value
from gradkin.kernels.distance_covariance import (
    squared_distance_correlation as squared_distance_correlation,
)
from gradkin.kernels.distance_covariance import (
    squared_distance_covariance as squared_distance_covariance,
)
from gradkin.kernels.energy import Energy as Energy
from gradkin.kernels.energy import energy_distance as energy_distance
from gradkin.kernels.exponential_sums import ExponentialSum as ExponentialSum
from gradkin.kernels.exponential_sums import exponential_sum as exponential_sum
from gradkin.kernels.features import random_features as random_features
from gradkin.kernels.forests import BoostingSmoother as BoostingSmoother
from gradkin.kernels.forests import SharedLeaves as SharedLeaves
from gradkin.kernels.forests import boosting_smoother as boosting_smoother
from gradkin.kernels.forests import bootstrap_counts as bootstrap_counts
from gradkin.kernels.forests import forest_kernel as forest_kernel
from gradkin.kernels.forests import forest_smoother as forest_smoother
from gradkin.kernels.functions import Cauchy as Cauchy
from gradkin.kernels.functions import Cosine as Cosine
from gradkin.kernels.functions import Euclidean as Euclidean
from gradkin.kernels.functions import Exponential as Exponential
from gradkin.kernels.functions import Gaussian as Gaussian
from gradkin.kernels.functions import Laplacian as Laplacian
from gradkin.kernels.functions import Linear as Linear
from gradkin.kernels.functions import Manhattan as Manhattan
from gradkin.kernels.functions import Polynomial as Polynomial
from gradkin.kernels.functions import SquaredEuclidean as SquaredEuclidean
from gradkin.kernels.functions import Tanimoto as Tanimoto
from gradkin.kernels.functions import Tversky as Tversky
from gradkin.kernels.group_divergence import explained_by_groups as explained_by_groups
from gradkin.kernels.group_divergence import group_divergence as group_divergence
from gradkin.kernels.group_divergence import group_means as group_means
from gradkin.kernels.hsic import hsic as hsic
from gradkin.kernels.inductive_bias import InterpolantLoss as InterpolantLoss
from gradkin.kernels.inductive_bias import interpolant_loss as interpolant_loss
from gradkin.kernels.inductive_bias import required_inductive_bias as required_inductive_bias
from gradkin.kernels.joint import (
    concatenated_distance_covariance as concatenated_distance_covariance,
)
from gradkin.kernels.joint import joint_distance_covariance as joint_distance_covariance
from gradkin.kernels.mean_shift import kernel_mean_shift as kernel_mean_shift
from gradkin.kernels.mean_shift import mean_shift as mean_shift
from gradkin.kernels.mean_shift import mean_shift_outlier_scores as mean_shift_outlier_scores
from gradkin.kernels.mean_shift import probabilistic_error as probabilistic_error
from gradkin.kernels.mean_shift import reconstruction_error as reconstruction_error
from gradkin.kernels.median import median_distance as median_distance
from gradkin.kernels.mmd import MeanEstimate as MeanEstimate
from gradkin.kernels.mmd import block_squared_mmd as block_squared_mmd
from gradkin.kernels.mmd import linear_squared_mmd as linear_squared_mmd
from gradkin.kernels.mmd import squared_mmd as squared_mmd
from gradkin.kernels.neighbor_index import InvertedFile as InvertedFile
from gradkin.kernels.neighbor_index import inverted_file as inverted_file
from gradkin.kernels.noncentral_chi_square import (
    ScaledNoncentralChiSquare as ScaledNoncentralChiSquare,
)
from gradkin.kernels.noncentral_chi_square import (
    fit_noncentral_chi_square as fit_noncentral_chi_square,
)
from gradkin.kernels.nystrom import nystrom as nystrom
from gradkin.kernels.permutation import PermutationTest as PermutationTest
from gradkin.kernels.permutation import independence_test as independence_test
from gradkin.kernels.permutation import two_sample_test as two_sample_test
from gradkin.kernels.private_budget import PrivacyBudget as PrivacyBudget
from gradkin.kernels.private_budget import privacy_spent as privacy_spent
from gradkin.kernels.private_distances import PrivateDistances as PrivateDistances
from gradkin.kernels.private_distances import private_l1_distances as private_l1_distances
from gradkin.kernels.private_distances import private_l2_distances as private_l2_distances
from gradkin.kernels.private_features import PrivateKernelSums as PrivateKernelSums
from gradkin.kernels.private_features import private_kernel_sums as private_kernel_sums
from gradkin.kernels.private_features import (
    private_smooth_kernel_sums as private_smooth_kernel_sums,
)
from gradkin.kernels.private_means import PrivateMoments as PrivateMoments
from gradkin.kernels.private_means import private_moments as private_moments
from gradkin.kernels.smoothers import RefitErrors as RefitErrors
from gradkin.kernels.smoothers import covariance_degrees_of_freedom as covariance_degrees_of_freedom
from gradkin.kernels.smoothers import effective_parameters as effective_parameters
from gradkin.kernels.smoothers import kernel_smoother as kernel_smoother
from gradkin.kernels.smoothers import linear_smoother as linear_smoother
from gradkin.kernels.smoothers import neighbor_smoother as neighbor_smoother
from gradkin.kernels.smoothers import refit_errors as refit_errors
from gradkin.kernels.vendi import internal_diversity as internal_diversity
from gradkin.kernels.vendi import renyi_entropy as renyi_entropy
from gradkin.kernels.vendi import vendi_score as vendi_score
from gradkin.kernels.vendi_estimates import NystromVendi as NystromVendi
from gradkin.kernels.vendi_estimates import SubsampledScore as SubsampledScore
from gradkin.kernels.vendi_estimates import VendiEstimate as VendiEstimate
from gradkin.kernels.vendi_estimates import subsampled_score as subsampled_score
from gradkin.kernels.vendi_estimates import vendi_score_nystrom as vendi_score_nystrom
from gradkin.kernels.vendi_estimates import vendi_score_slq as vendi_score_slq
from gradkin.kernels.vendi_features import SecondMoment as SecondMoment
from gradkin.kernels.vendi_features import second_moment as second_moment
from gradkin.kernels.vendi_features import vendi_score_features as vendi_score_features

__all__ = [
    "BandwidthSearch",
    "BoostingSmoother",
    "Cauchy",
    "Cosine",
    "Decorrelation",
    "DensityEstimate",
    "Energy",
    "Euclidean",
    "Exponential",
    "ExponentialSum",
    "Gaussian",
    "GridDensity",
    "HSICStats",
    "InterpolantLoss",
    "InvertedFile",
    "Laplacian",
    "Linear",
    "Manhattan",
    "MeanEstimate",
    "Memory",
    "NystromVendi",
    "PermutationTest",
    "Polynomial",
    "PrivacyBudget",
    "PrivateDistances",
    "PrivateKernelSums",
    "PrivateMoments",
    "RefitErrors",
    "ScaledNoncentralChiSquare",
    "SecondMoment",
    "SharedLeaves",
    "SquaredEuclidean",
    "SubsampledScore",
    "Tanimoto",
    "Tversky",
    "VendiEstimate",
    "block_squared_mmd",
    "boosting_smoother",
    "bootstrap_counts",
    "cka",
    "concatenated_distance_covariance",
    "cosine_features",
    "covariance_degrees_of_freedom",
    "cross_validated_bandwidth",
    "decorrelating_weights",
    "effective_parameters",
    "empty_memory",
    "energy_distance",
    "explained_by_groups",
    "exponential_sum",
    "feature_density",
    "fit_noncentral_chi_square",
    "forest_kernel",
    "forest_smoother",
    "grid_density",
    "group_divergence",
    "group_means",
    "hsic",
    "hsic_stats",
    "independence_p_value",
    "independence_test",
    "internal_diversity",
    "interpolant_loss",
    "inverted_file",
    "joint_distance_covariance",
    "kernel_mean_shift",
    "kernel_smoother",
    "leave_one_out_log_likelihood",
    "linear_cka",
    "linear_smoother",
    "linear_squared_mmd",
    "log_density",
    "log_normalizer",
    "mean_shift",
    "mean_shift_outlier_scores",
    "median_distance",
    "neighbor_density",
    "neighbor_smoother",
    "nystrom",
    "privacy_spent",
    "private_kernel_sums",
    "private_l1_distances",
    "private_l2_distances",
    "private_moments",
    "private_smooth_kernel_sums",
    "probabilistic_error",
    "random_features",
    "reconstruction_error",
    "refit_errors",
    "renyi_entropy",
    "required_inductive_bias",
    "sampled_density",
    "scott_bandwidth",
    "second_moment",
    "silverman_bandwidth",
    "squared_distance_correlation",
    "squared_distance_covariance",
    "squared_mmd",
    "subsampled_score",
    "two_sample_test",
    "vendi_score",
    "vendi_score_features",
    "vendi_score_nystrom",
    "vendi_score_slq",
    "weighted_dependence",
]
