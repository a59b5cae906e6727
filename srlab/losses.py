"""Losses of both players. Every loss is a scalar tensor, the mean over its input.

Images are (N, 3, H, W) RGB in [0, 1]; scores are a critic's raw output, one a picture or one a
patch, of any shape. For BCE and the relativistic loss a score is a logit; for Wasserstein it is
just a number.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srlab.models.vgg import calibrate


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


class Perceptual(nn.Module):
    """Content loss in feature space: pictures should look alike to a trained network.

    sum over taps of weight * mean (phi(SR) - phi(HR))^2 / scale^2, where the scale is the features'
    root mean square on photographs (:func:`srlab.models.vgg.calibrate`). Feature values have no
    unit, and torchvision's are not those of the network for which SRGAN's factor 1/12.75 was found;
    divided by their own size, a term of 1 means "as wrong as no features at all", for every tap of
    every network. Johnson et al. 2016, arXiv:1603.08155; Ledig et al. 2017, equation 5.

    Args:
        features: a frozen extractor, such as :func:`srlab.models.vgg.load` gives.
        weights: of its taps.
        images: (N, 3, H, W) RGB in [0, 1], HR crops to calibrate ``features`` on first; a dozen
            is enough. ``vgg19-slim`` comes calibrated.
        texture: weight of a second term in each tap, beside the first one's 1: the same distance
            between the features' *local standard deviations* (:func:`local_std`). A generator that
            cannot know where each hair lies serves the first term best by a blur; the second asks
            for as much texture as HR has, wherever it lies within a window. DISTS (Ding et al.
            2022, arXiv:2004.07728) compares such statistics of whole pictures.
        shift: both pictures are seen through a window that is this many pixels smaller (at most
            half the picture) and placed anew in every call. VGG pools in steps of 2, 4 and 8
            pixels, a generator writes in steps of its scale; where the two grids always meet in the
            same way, a generator pleases the features with a faint regular pattern. 0 shows all.

    Raises:
        ValueError: a weight for a tap that ``features`` does not have.
    """

    def __init__(
        self,
        features: nn.Module,
        weights: Mapping[str, float],
        images: Tensor | None = None,
        shift: int = 0,
        texture: float = 0.0,
    ):
        super().__init__()
        if missing := [tap for tap in weights if tap not in features.taps]:
            raise ValueError(f"features has no tap {missing[0]}: it has {', '.join(features.taps)}")
        self.features = features
        self.weights = dict(weights)
        self.shift = shift
        self.texture = texture
        if images is not None:
            calibrate(features, images)

    @property
    def settings(self) -> dict[str, Any]:
        """What a run keeps of this loss, to go on with no other: its network and texture."""
        kept = {name: getattr(self.features, name, None) for name in ("net", "width", "pool")}
        return {f"perceptual_{name}": value for name, value in kept.items()} | {
            "perceptual_texture": self.texture
        }

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        if shift := min(self.shift, *(side // 2 for side in sr.shape[-2:])):
            y, x = torch.randint(shift, (2,)).tolist()
            height, width = (side - shift for side in sr.shape[-2:])
            sr, hr = (p[..., y : y + height, x : x + width] for p in (sr, hr))
        found = self.features(sr)
        with torch.no_grad():
            wanted = self.features(hr)
        terms = []
        for tap, weight in self.weights.items():
            a, b = (x[tap].to(hr.dtype) / self.features.scales[tap] for x in (found, wanted))
            term = F.mse_loss(a, b)
            if self.texture:
                term = term + self.texture * F.mse_loss(local_std(a), local_std(b))
            terms.append(weight * term)
        return torch.stack(terms).sum()


def local_std(x: Tensor, window: int = 4) -> Tensor:
    """Standard deviation of each channel in windows that overlap by half.

    Shape: (N, C, H, W) -> (N, C, h, w), with h = H // (window // 2) - 1 for an even H. Maps smaller
    than a window are one window.
    """
    window = max(1, min(window, *x.shape[-2:]))
    step = max(1, window // 2)
    mean = F.avg_pool2d(x, window, step)
    variance = F.avg_pool2d(x.square(), window, step) - mean.square()
    return variance.clamp_min(1e-6).sqrt()  # a root has no slope at 0


def grid(sr: Tensor, hr: Tensor, scale: int = 4, window: int = 6) -> Tensor:
    """What a generator stamps alike into all LR pixels of a neighbourhood, and HR does not hold.

    Where LR is flat, a generator sees the same input everywhere and can only repeat one block of
    ``scale`` x ``scale`` pixels. A loss that asks for texture is pleased with that; the eye sees a
    grid. So the error is sorted by its place in the block (pixel unshuffle), what all places share
    is taken off, and the rest is averaged over windows: real texture differs from block to block
    and averages out, a grid stays. Mean absolute value, 0 without a grid.

    Args:
        sr, hr: (N, C, H, W), H and W multiples of ``scale``.
        scale: period of the grid in pixels, the generator's scale.
        window: side of the neighbourhood in LR pixels, of which each overlaps the next by half; at
            most the picture's.
    """
    places = F.pixel_unshuffle(sr - hr, scale).unflatten(1, (-1, scale**2))
    places = (places - places.mean(2, keepdim=True)).flatten(1, 2)
    window = min(window, *places.shape[-2:])
    return F.avg_pool2d(places, window, max(1, window // 2)).abs().mean()


def bce_critic(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss: -log D(real) - log(1 - D(fake)) with D = sigmoid(score).

    Goodfellow et al. 2014, arXiv:1406.2661. A critic that knows nothing scores 2 log 2 = 1.386.
    """
    return -(F.logsigmoid(real).mean() + F.logsigmoid(-fake).mean())


def bce_generator(fake: Tensor) -> Tensor:
    """The generator's non-saturating adversarial loss: -log D(fake), as in SRGAN's equation 5."""
    return -F.logsigmoid(fake).mean()


def relativistic_critic(real: Tensor, fake: Tensor) -> Tensor:
    """Relativistic average: a real picture should look more real than the average fake does.

    Binary cross-entropy on score differences, :func:`bce_critic` of real - E[fake] and fake -
    E[real]. Jolicoeur-Martineau 2018, arXiv:1807.00734; ESRGAN (Wang et al. 2018) halves it.
    """
    return bce_critic(real - fake.mean(), fake - real.mean())


def relativistic_generator(real: Tensor, fake: Tensor) -> Tensor:
    """The generator's side of the relativistic average loss: the same with the roles exchanged."""
    return bce_critic(fake - real.mean(), real - fake.mean())


def wasserstein_critic(real: Tensor, fake: Tensor) -> Tensor:
    """E[D(fake)] - E[D(real)]: minus the critic's estimate of the distance, up to its slope.

    For a critic of slope at most 1, its negative is a lower bound of the Wasserstein distance W1
    between real and fake pictures, and a critic of slope at most K stretches it by K. It has no
    bound of its own: more negative means that the two are easier to tell apart. Arjovsky et al.
    2017, arXiv:1701.07875.
    """
    return fake.mean() - real.mean()


def wasserstein_generator(fake: Tensor) -> Tensor:
    """-E[D(fake)]."""
    return -fake.mean()


def gradient_norms(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    """Slope of the critic at a random place between each real picture and its fake.

    The norm is that of the *whole* gradient of one picture, over channels, rows and columns
    together; a norm per pixel (taken over the channels only) is a common mistake and bounds
    something else. Computed in 32 bits (or more), also under autocast: the second derivative of a
    half-precision gradient is mostly noise.

    Args:
        critic: any function of an image batch; a patch critic's scores are averaged per picture.
        real, fake: (N, 3, H, W) in [0, 1]. Neither gets a gradient from this.

    Returns:
        (N,), differentiable with respect to the critic's parameters.
    """
    mix = torch.rand(real.shape[0], 1, 1, 1, device=real.device, dtype=real.dtype)
    between = torch.lerp(fake.detach().to(real.dtype), real.detach(), mix).requires_grad_()
    with torch.autocast(real.device.type, enabled=False), torch.enable_grad():
        scores = critic(between).reshape(len(between), -1).mean(dim=1)
        (gradient,) = torch.autograd.grad(scores.sum(), between, create_graph=True)
    return gradient.flatten(1).norm(2, dim=1)


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    """E[(norm of the gradient - 1)^2], to be weighted with lambda = 10.

    Gulrajani et al. 2017, arXiv:1704.00028, equation 3. The critic must not hold batch norm: with
    it a picture's score depends on the rest of the batch, and there is no gradient of one picture.
    See :func:`gradient_norms`.
    """
    return (gradient_norms(critic, real, fake) - 1).square().mean()
