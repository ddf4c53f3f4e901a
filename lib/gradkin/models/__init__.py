"""Models to study: Flax NNX modules, which need the extra ``gradkin[nn]``."""

from gradkin.models.decoder import Decoder as Decoder
from gradkin.models.decoder import add_lora as add_lora
from gradkin.models.rotary import rotary_embedding as rotary_embedding
from gradkin.models.token_loss import token_loss as token_loss

__all__ = ["Decoder", "add_lora", "rotary_embedding", "token_loss"]
