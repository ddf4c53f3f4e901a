"""What is read off curvature: spectra, traces, solves; and the losses that it is made from."""

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
    "KroneckerMatrix",
    "OutputLoss",
    "Solution",
    "SpectralDensity",
    "binary_cross_entropy",
    "cross_entropy",
    "diagonal",
    "ekfac",
    "frobenius_norm",
    "kfac",
    "log_determinant",
    "solve",
    "spectral_density",
    "squared_error",
    "top_eigenpairs",
    "trace",
]
