"""Training objectives."""

from gradkin.losses.expected_loss_vae import ExpectedLossVAE as ExpectedLossVAE
from gradkin.losses.expected_loss_vae import expected_loss_vae as expected_loss_vae

__all__ = ["ExpectedLossVAE", "expected_loss_vae"]
