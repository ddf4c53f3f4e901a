"""Measures of similarity: Tversky's, of images, and against human judgments."""

from gradkin.similarity.human import Agreement as Agreement
from gradkin.similarity.human import MantelTest as MantelTest
from gradkin.similarity.human import mantel_test as mantel_test
from gradkin.similarity.human import noise_ceiling as noise_ceiling
from gradkin.similarity.human import similarity_correlation as similarity_correlation
from gradkin.similarity.human import split_half_reliability as split_half_reliability
from gradkin.similarity.human import two_alternative_agreement as two_alternative_agreement
from gradkin.similarity.reweighting import CrossValidation as CrossValidation
from gradkin.similarity.reweighting import Reweighting as Reweighting
from gradkin.similarity.reweighting import cross_validate_reweighting as cross_validate_reweighting
from gradkin.similarity.reweighting import fit_reweighting as fit_reweighting
from gradkin.similarity.reweighting import reweighted_similarity as reweighted_similarity
from gradkin.similarity.reweighting import stack_features as stack_features
from gradkin.similarity.ssim import MS_SSIM_WEIGHTS as MS_SSIM_WEIGHTS
from gradkin.similarity.ssim import first_scales as first_scales
from gradkin.similarity.ssim import local_contrast as local_contrast
from gradkin.similarity.ssim import ms_ssim as ms_ssim
from gradkin.similarity.ssim import ssim as ssim
from gradkin.similarity.tags import tag_similarity as tag_similarity
from gradkin.similarity.tversky import TverskyParams as TverskyParams
from gradkin.similarity.tversky import feature_sets as feature_sets
from gradkin.similarity.tversky import init_tversky as init_tversky
from gradkin.similarity.tversky import nnx_tversky_projection as nnx_tversky_projection
from gradkin.similarity.tversky import salience as salience
from gradkin.similarity.tversky import tversky_projection as tversky_projection
from gradkin.similarity.tversky import tversky_similarity as tversky_similarity

__all__ = [
    "MS_SSIM_WEIGHTS",
    "Agreement",
    "CrossValidation",
    "MantelTest",
    "Reweighting",
    "TverskyParams",
    "cross_validate_reweighting",
    "feature_sets",
    "first_scales",
    "fit_reweighting",
    "init_tversky",
    "local_contrast",
    "mantel_test",
    "ms_ssim",
    "nnx_tversky_projection",
    "noise_ceiling",
    "reweighted_similarity",
    "salience",
    "similarity_correlation",
    "split_half_reliability",
    "ssim",
    "stack_features",
    "tag_similarity",
    "tversky_projection",
    "tversky_similarity",
    "two_alternative_agreement",
]
