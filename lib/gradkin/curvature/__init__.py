"""What is read off curvature: spectra, traces, solves; and the losses that it is made from."""

from gradkin.curvature.activation_matching import activation_matching as activation_matching
from gradkin.curvature.apgd import Maximum as Maximum
from gradkin.curvature.apgd import auto_pgd as auto_pgd
from gradkin.curvature.assignment import linear_assignment as linear_assignment
from gradkin.curvature.bezier import BezierFit as BezierFit
from gradkin.curvature.bezier import Connectivity as Connectivity
from gradkin.curvature.bezier import bezier_connectivity as bezier_connectivity
from gradkin.curvature.bezier import bezier_point as bezier_point
from gradkin.curvature.bezier import fit_bezier as fit_bezier
from gradkin.curvature.convergent_learning import ActivationMoments as ActivationMoments
from gradkin.curvature.convergent_learning import Correlations as Correlations
from gradkin.curvature.convergent_learning import UnitMatch as UnitMatch
from gradkin.curvature.convergent_learning import activation_moments as activation_moments
from gradkin.curvature.convergent_learning import bipartite_match as bipartite_match
from gradkin.curvature.convergent_learning import mutual_information as mutual_information
from gradkin.curvature.convergent_learning import semi_match as semi_match
from gradkin.curvature.diagonal_networks import (
    diagonal_network_average_sharpness as diagonal_network_average_sharpness,
)
from gradkin.curvature.diagonal_networks import (
    diagonal_network_worst_case_sharpness as diagonal_network_worst_case_sharpness,
)
from gradkin.curvature.domain_penalties import coral_penalty as coral_penalty
from gradkin.curvature.domain_penalties import fishr_penalty as fishr_penalty
from gradkin.curvature.domain_penalties import iga_penalty as iga_penalty
from gradkin.curvature.domain_penalties import irm_penalty as irm_penalty
from gradkin.curvature.domain_penalties import vrex_penalty as vrex_penalty
from gradkin.curvature.eigenspectrum import count_outliers as count_outliers
from gradkin.curvature.eigenspectrum import full_spectrum as full_spectrum
from gradkin.curvature.eigenspectrum import near_zero_share as near_zero_share
from gradkin.curvature.eigenspectrum import subspace_overlap as subspace_overlap
from gradkin.curvature.eigenspectrum import top_share as top_share
from gradkin.curvature.expansions import first_order_sharpness as first_order_sharpness
from gradkin.curvature.expansions import second_order_sharpness as second_order_sharpness
from gradkin.curvature.generalization_criteria import HessianCriteria as HessianCriteria
from gradkin.curvature.generalization_criteria import hessian_criteria as hessian_criteria
from gradkin.curvature.gradient_normalized_smoothness import GNSResult as GNSResult
from gradkin.curvature.gradient_normalized_smoothness import GNSState as GNSState
from gradkin.curvature.gradient_normalized_smoothness import RankOne as RankOne
from gradkin.curvature.gradient_normalized_smoothness import gns as gns
from gradkin.curvature.gradient_normalized_smoothness import minimize_gns as minimize_gns
from gradkin.curvature.head_moments import HeadHessian as HeadHessian
from gradkin.curvature.head_moments import HeadMoments as HeadMoments
from gradkin.curvature.head_moments import head_moments as head_moments
from gradkin.curvature.hessian_alignment import annealed_loss as annealed_loss
from gradkin.curvature.hessian_alignment import hgp_penalty as hgp_penalty
from gradkin.curvature.hessian_alignment import hutchinson_penalty as hutchinson_penalty
from gradkin.curvature.hessian_alignment import transfer_gap_bound as transfer_gap_bound
from gradkin.curvature.inferred_permutations import infer_permutations as infer_permutations
from gradkin.curvature.interpolation import interpolate as interpolate
from gradkin.curvature.interpolation import layer_barriers as layer_barriers
from gradkin.curvature.interpolation import layer_names as layer_names
from gradkin.curvature.landscape import adam_directions as adam_directions
from gradkin.curvature.landscape import hessian_directions as hessian_directions
from gradkin.curvature.landscape import loss_curve as loss_curve
from gradkin.curvature.landscape import loss_surface as loss_surface
from gradkin.curvature.landscape import normalize_direction as normalize_direction
from gradkin.curvature.landscape import random_direction as random_direction
from gradkin.curvature.mode_connectivity import LossPath as LossPath
from gradkin.curvature.mode_connectivity import distance_reduction as distance_reduction
from gradkin.curvature.mode_connectivity import loss_path as loss_path
from gradkin.curvature.mode_connectivity import taylor_barrier as taylor_barrier
from gradkin.curvature.opposing_model import OpposingModel as OpposingModel
from gradkin.curvature.opposing_model import OpposingSample as OpposingSample
from gradkin.curvature.opposing_model import opposing_sample as opposing_sample
from gradkin.curvature.opposing_signals import GradientOpposition as GradientOpposition
from gradkin.curvature.opposing_signals import OpposingGroups as OpposingGroups
from gradkin.curvature.opposing_signals import antiphase as antiphase
from gradkin.curvature.opposing_signals import change_concentration as change_concentration
from gradkin.curvature.opposing_signals import gradient_opposition as gradient_opposition
from gradkin.curvature.opposing_signals import opposing_groups as opposing_groups
from gradkin.curvature.opposing_signals import shared_feature as shared_feature
from gradkin.curvature.permutations import PermutationSpec as PermutationSpec
from gradkin.curvature.permutations import apply_permutation as apply_permutation
from gradkin.curvature.permutations import permutation_spec as permutation_spec
from gradkin.curvature.perturbations import adaptive_scale as adaptive_scale
from gradkin.curvature.perturbations import project_ball as project_ball
from gradkin.curvature.perturbations import project_ellipsoid as project_ellipsoid
from gradkin.curvature.perturbations import sam_perturbation as sam_perturbation
from gradkin.curvature.phases import PHASES as PHASES
from gradkin.curvature.phases import classify_phase as classify_phase
from gradkin.curvature.rank_correlation import kendall_tau as kendall_tau
from gradkin.curvature.residual import residual_curvature as residual_curvature
from gradkin.curvature.sharpness import WorstCaseSharpness as WorstCaseSharpness
from gradkin.curvature.sharpness import average_sharpness as average_sharpness
from gradkin.curvature.sharpness import sam_sharpness as sam_sharpness
from gradkin.curvature.sharpness import worst_case_sharpness as worst_case_sharpness
from gradkin.curvature.singular_alignment import SingularAlignment as SingularAlignment
from gradkin.curvature.singular_alignment import singular_alignment as singular_alignment
from gradkin.curvature.smoothness_radius import smoothness_radius as smoothness_radius
from gradkin.curvature.sparse_mapping import SparseMapping as SparseMapping
from gradkin.curvature.sparse_mapping import sparse_mapping as sparse_mapping
from gradkin.curvature.split_sgd import SplitSGDState as SplitSGDState
from gradkin.curvature.split_sgd import split_sgd as split_sgd
from gradkin.curvature.ste_matching import StraightThrough as StraightThrough
from gradkin.curvature.ste_matching import ste_matching as ste_matching
from gradkin.curvature.straggler_layers import layerwise_sharpness as layerwise_sharpness
from gradkin.curvature.straggler_layers import sparsify_layers as sparsify_layers
from gradkin.curvature.straggler_layers import straggler_layers as straggler_layers
from gradkin.curvature.unit_clusters import cluster_composition as cluster_composition
from gradkin.curvature.unit_clusters import joint_affinity as joint_affinity
from gradkin.curvature.unit_clusters import linkage_clusters as linkage_clusters
from gradkin.curvature.unit_clusters import spectral_clusters as spectral_clusters
from gradkin.curvature.weight_matching import Matching as Matching
from gradkin.curvature.weight_matching import weight_matching as weight_matching
from gradkin.matrices.estimates import Estimate as Estimate
from gradkin.matrices.estimates import diagonal as diagonal
from gradkin.matrices.estimates import frobenius_norm as frobenius_norm
from gradkin.matrices.estimates import trace as trace
from gradkin.matrices.kronecker import KroneckerMatrix as KroneckerMatrix
from gradkin.matrices.kronecker import ekfac as ekfac
from gradkin.matrices.kronecker import kfac as kfac
from gradkin.matrices.lanczos import Eigenpairs as Eigenpairs
from gradkin.matrices.lanczos import SpectralDensity as SpectralDensity
from gradkin.matrices.lanczos import log_determinant as log_determinant
from gradkin.matrices.lanczos import spectral_density as spectral_density
from gradkin.matrices.lanczos import top_eigenpairs as top_eigenpairs
from gradkin.matrices.output_losses import OutputLoss as OutputLoss
from gradkin.matrices.output_losses import binary_cross_entropy as binary_cross_entropy
from gradkin.matrices.output_losses import cross_entropy as cross_entropy
from gradkin.matrices.output_losses import squared_error as squared_error
from gradkin.matrices.solves import Solution as Solution
from gradkin.matrices.solves import solve as solve

__all__ = [
    "ActivationMoments",
    "BezierFit",
    "Connectivity",
    "Correlations",
    "Eigenpairs",
    "Estimate",
    "GNSResult",
    "GNSState",
    "GradientOpposition",
    "HeadHessian",
    "HeadMoments",
    "HessianCriteria",
    "KroneckerMatrix",
    "LossPath",
    "Matching",
    "Maximum",
    "OpposingGroups",
    "OpposingModel",
    "OpposingSample",
    "OutputLoss",
    "PHASES",
    "PermutationSpec",
    "RankOne",
    "SingularAlignment",
    "Solution",
    "SparseMapping",
    "SpectralDensity",
    "SplitSGDState",
    "StraightThrough",
    "UnitMatch",
    "WorstCaseSharpness",
    "activation_matching",
    "activation_moments",
    "adam_directions",
    "adaptive_scale",
    "annealed_loss",
    "antiphase",
    "apply_permutation",
    "auto_pgd",
    "average_sharpness",
    "bezier_connectivity",
    "bezier_point",
    "binary_cross_entropy",
    "bipartite_match",
    "change_concentration",
    "classify_phase",
    "cluster_composition",
    "coral_penalty",
    "count_outliers",
    "cross_entropy",
    "diagonal",
    "diagonal_network_average_sharpness",
    "diagonal_network_worst_case_sharpness",
    "distance_reduction",
    "ekfac",
    "first_order_sharpness",
    "fishr_penalty",
    "fit_bezier",
    "frobenius_norm",
    "full_spectrum",
    "gns",
    "gradient_opposition",
    "head_moments",
    "hessian_criteria",
    "hessian_directions",
    "hgp_penalty",
    "hutchinson_penalty",
    "iga_penalty",
    "infer_permutations",
    "interpolate",
    "irm_penalty",
    "joint_affinity",
    "kendall_tau",
    "kfac",
    "layer_barriers",
    "layer_names",
    "layerwise_sharpness",
    "linear_assignment",
    "linkage_clusters",
    "log_determinant",
    "loss_curve",
    "loss_path",
    "loss_surface",
    "minimize_gns",
    "mutual_information",
    "near_zero_share",
    "normalize_direction",
    "opposing_groups",
    "opposing_sample",
    "permutation_spec",
    "project_ball",
    "project_ellipsoid",
    "random_direction",
    "residual_curvature",
    "sam_perturbation",
    "sam_sharpness",
    "second_order_sharpness",
    "semi_match",
    "shared_feature",
    "singular_alignment",
    "smoothness_radius",
    "solve",
    "sparse_mapping",
    "sparsify_layers",
    "spectral_clusters",
    "spectral_density",
    "split_sgd",
    "squared_error",
    "ste_matching",
    "straggler_layers",
    "subspace_overlap",
    "taylor_barrier",
    "top_eigenpairs",
    "top_share",
    "trace",
    "transfer_gap_bound",
    "vrex_penalty",
    "weight_matching",
    "worst_case_sharpness",
]
