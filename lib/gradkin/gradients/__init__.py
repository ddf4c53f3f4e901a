"""What is read off per-example gradients."""

from gradkin.gradients.accounting import GaussianMechanism as GaussianMechanism
from gradkin.gradients.accounting import epsilon as epsilon
from gradkin.gradients.accounting import noise_multiplier as noise_multiplier
from gradkin.gradients.accounting import steps as steps
from gradkin.gradients.adam_direction import AdamMoments as AdamMoments
from gradkin.gradients.adam_direction import adam_direction as adam_direction
from gradkin.gradients.adam_direction import adam_moments as adam_moments
from gradkin.gradients.adaptive_clipping import QuantileClipping as QuantileClipping
from gradkin.gradients.attribution_metrics import brittleness as brittleness
from gradkin.gradients.attribution_metrics import (
    linear_datamodeling_score as linear_datamodeling_score,
)
from gradkin.gradients.attribution_metrics import random_subsets as random_subsets
from gradkin.gradients.clipping import ClippedSum as ClippedSum
from gradkin.gradients.clipping import clipped_sum as clipped_sum
from gradkin.gradients.coherence import CoherenceStats as CoherenceStats
from gradkin.gradients.coherence import coherence_from_means as coherence_from_means
from gradkin.gradients.coherence import coherence_of_means as coherence_of_means
from gradkin.gradients.coherence import coherence_stats as coherence_stats
from gradkin.gradients.coherence import example_alignment as example_alignment
from gradkin.gradients.count_sketches import CountSketch as CountSketch
from gradkin.gradients.count_sketches import TensorSketch as TensorSketch
from gradkin.gradients.dicesgd import ErrorFeedbackState as ErrorFeedbackState
from gradkin.gradients.dicesgd import clipping_bias as clipping_bias
from gradkin.gradients.dicesgd import dicesgd as dicesgd
from gradkin.gradients.dicesgd import dicesgd_mechanism as dicesgd_mechanism
from gradkin.gradients.dicesgd import dicesgd_noise_std as dicesgd_noise_std
from gradkin.gradients.difficulty import el2n as el2n
from gradkin.gradients.difficulty import grand as grand
from gradkin.gradients.gradient_features import gradient_features as gradient_features
from gradkin.gradients.influence_functions import Influence as Influence
from gradkin.gradients.influence_functions import influence as influence
from gradkin.gradients.influence_functions import lissa as lissa
from gradkin.gradients.influence_functions import spectral_influence as spectral_influence
from gradkin.gradients.kronecker_sketch import KroneckerSketch as KroneckerSketch
from gradkin.gradients.leave_one_out import leave_one_out as leave_one_out
from gradkin.gradients.leave_one_out import retrain as retrain
from gradkin.gradients.noise import NoisedGradient as NoisedGradient
from gradkin.gradients.noise import add_noise as add_noise
from gradkin.gradients.pixelwise import clip_cotangent as clip_cotangent
from gradkin.gradients.pixelwise import pixelwise_clip as pixelwise_clip
from gradkin.gradients.private import PrivateGradient as PrivateGradient
from gradkin.gradients.private import private_gradient as private_gradient
from gradkin.gradients.private_aggregate import PrivateAggregateState as PrivateAggregateState
from gradkin.gradients.private_aggregate import private_aggregate as private_aggregate
from gradkin.gradients.rdp_filter import RdpFilter as RdpFilter
from gradkin.gradients.rdp_filter import sampled_gaussian_rdp as sampled_gaussian_rdp
from gradkin.gradients.rldp import RldpController as RldpController
from gradkin.gradients.rldp import joint_noise as joint_noise
from gradkin.gradients.rldp import noised_statistics as noised_statistics
from gradkin.gradients.rldp import rldp_reward as rldp_reward
from gradkin.gradients.rldp_sac import SacAgent as SacAgent
from gradkin.gradients.rldp_sac import Transitions as Transitions
from gradkin.gradients.rldp_sac import sac_act as sac_act
from gradkin.gradients.rldp_sac import sac_init as sac_init
from gradkin.gradients.rldp_sac import sac_update as sac_update
from gradkin.gradients.robust_means import median_of_means as median_of_means
from gradkin.gradients.robust_means import median_of_means_aggregate as median_of_means_aggregate
from gradkin.gradients.robust_means import winsorized_aggregate as winsorized_aggregate
from gradkin.gradients.robust_means import winsorized_mean as winsorized_mean
from gradkin.gradients.rolling_median import RollingMedianState as RollingMedianState
from gradkin.gradients.rolling_median import rolling_median as rolling_median
from gradkin.gradients.sampling import Batch as Batch
from gradkin.gradients.sampling import FixedSizeSampling as FixedSizeSampling
from gradkin.gradients.sampling import FullBatch as FullBatch
from gradkin.gradients.sampling import PoissonSampling as PoissonSampling
from gradkin.gradients.sketches import GaussianSketch as GaussianSketch
from gradkin.gradients.sketches import HadamardSketch as HadamardSketch
from gradkin.gradients.sketches import RademacherSketch as RademacherSketch
from gradkin.gradients.sketches import project_rows as project_rows
from gradkin.gradients.spectra import SpectralStats as SpectralStats
from gradkin.gradients.spectra import gradient_cosines as gradient_cosines
from gradkin.gradients.spectra import gradient_spectra as gradient_spectra
from gradkin.gradients.spectra import spectral_stats as spectral_stats
from gradkin.gradients.tracin import tracin as tracin
from gradkin.gradients.trak import correct_class_margin as correct_class_margin
from gradkin.gradients.trak import trak as trak
from gradkin.gradients.trak import trak_scores as trak_scores

__all__ = [
    "AdamMoments",
    "Batch",
    "ClippedSum",
    "CoherenceStats",
    "CountSketch",
    "ErrorFeedbackState",
    "FixedSizeSampling",
    "FullBatch",
    "GaussianMechanism",
    "GaussianSketch",
    "HadamardSketch",
    "Influence",
    "KroneckerSketch",
    "NoisedGradient",
    "PoissonSampling",
    "PrivateAggregateState",
    "PrivateGradient",
    "QuantileClipping",
    "RademacherSketch",
    "RdpFilter",
    "RldpController",
    "RollingMedianState",
    "SacAgent",
    "SpectralStats",
    "TensorSketch",
    "Transitions",
    "adam_direction",
    "adam_moments",
    "add_noise",
    "brittleness",
    "clip_cotangent",
    "clipped_sum",
    "clipping_bias",
    "coherence_from_means",
    "coherence_of_means",
    "coherence_stats",
    "correct_class_margin",
    "dicesgd",
    "dicesgd_mechanism",
    "dicesgd_noise_std",
    "el2n",
    "epsilon",
    "example_alignment",
    "gradient_cosines",
    "gradient_features",
    "gradient_spectra",
    "grand",
    "influence",
    "joint_noise",
    "leave_one_out",
    "linear_datamodeling_score",
    "lissa",
    "median_of_means",
    "median_of_means_aggregate",
    "noise_multiplier",
    "noised_statistics",
    "pixelwise_clip",
    "private_aggregate",
    "private_gradient",
    "project_rows",
    "random_subsets",
    "retrain",
    "rldp_reward",
    "rolling_median",
    "sac_act",
    "sac_init",
    "sac_update",
    "sampled_gaussian_rdp",
    "spectral_influence",
    "spectral_stats",
    "steps",
    "tracin",
    "trak",
    "trak_scores",
    "winsorized_aggregate",
    "winsorized_mean",
]
