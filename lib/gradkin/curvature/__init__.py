"""What is read off curvature: spectra, traces, solves; and the losses that it is made from."""

from gradkin.curvature.domain_penalties import coral_penalty as coral_penalty
from gradkin.curvature.domain_penalties import fishr_penalty as fishr_penalty
from gradkin.curvature.domain_penalties import iga_penalty as iga_penalty
from gradkin.curvature.domain_penalties import irm_penalty as irm_penalty
from gradkin.curvature.domain_penalties import vrex_penalty as vrex_penalty
from gradkin.curvature.head_moments import HeadHessian as HeadHessian
from gradkin.curvature.head_moments import HeadMoments as HeadMoments
from gradkin.curvature.head_moments import head_moments as head_moments
from gradkin.curvature.hessian_alignment import annealed_loss as annealed_loss
from gradkin.curvature.hessian_alignment import hgp_penalty as hgp_penalty
from gradkin.curvature.hessian_alignment import hutchinson_penalty as hutchinson_penalty
from gradkin.curvature.hessian_alignment import transfer_gap_bound as transfer_gap_bound
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
from gradkin.curvature.split_sgd import SplitSGDState as SplitSGDState
from gradkin.curvature.split_sgd import split_sgd as split_sgd
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
    "Eigenpairs",
    "Estimate",
    "GradientOpposition",
    "HeadHessian",
    "HeadMoments",
    "KroneckerMatrix",
    "OpposingGroups",
    "OpposingModel",
    "OpposingSample",
    "OutputLoss",
    "Solution",
    "SpectralDensity",
    "SplitSGDState",
    "annealed_loss",
    "antiphase",
    "binary_cross_entropy",
    "change_concentration",
    "coral_penalty",
    "cross_entropy",
    "diagonal",
    "ekfac",
    "fishr_penalty",
    "frobenius_norm",
    "gradient_opposition",
    "head_moments",
    "hgp_penalty",
    "hutchinson_penalty",
    "iga_penalty",
    "irm_penalty",
    "kfac",
    "log_determinant",
    "opposing_groups",
    "opposing_sample",
    "shared_feature",
    "solve",
    "spectral_density",
    "split_sgd",
    "squared_error",
    "top_eigenpairs",
    "trace",
    "transfer_gap_bound",
    "vrex_penalty",
]
