"""Losses of both players. Every function returns a scalar tensor, the mean over its input.

Images are (N, 3, H, W) RGB in [0, 1]; scores are a critic's raw output (logits), any shape.
"""

from torch import Tensor
from torch.nn import functional as F


def pixel(sr: Tensor, hr: Tensor, kind: str = "l1") -> Tensor:
    """Pixel-wise content loss: mean absolute (``"l1"``) or mean squared (``"mse"``) error.

    MSE is what PSNR measures, and what Ledig et al. (2017) train SRResNet with; L1 usually ends
    at a higher PSNR all the same (Lim et al. 2017, EDSR).
    """
    if kind == "l1":
        return F.l1_loss(sr, hr)
    if kind == "mse":
        return F.mse_loss(sr, hr)
    raise ValueError(f"unknown pixel loss {kind!r}: choose 'l1' or 'mse'")


def bce_critic(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss: -log D(real) - log(1 - D(fake)) with D = sigmoid(score).

    Goodfellow et al. 2014, arXiv:1406.2661. A critic that knows nothing scores 2 log 2 = 1.386.
    """
    return -(F.logsigmoid(real).mean() + F.logsigmoid(-fake).mean())


def bce_generator(fake: Tensor) -> Tensor:
    """The generator's non-saturating adversarial loss: -log D(fake), as in SRGAN's equation 5."""
    return -F.logsigmoid(fake).mean()
