"""The published protocol: how an SR image becomes a number that can be compared.

Every choice that moves the number is a field of :class:`Protocol`; the defaults are those of the
super-resolution literature, under which bicubic x4 reads 28.42 dB / 0.8104 on Set5.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from srlab.data.degradation import crop_to_multiple, downsample, quantize, resize
from srlab.data.images import is_grey, luma, read_image
from srlab.errors import SrlabError
from srlab.evaluation.metrics import psnr, ssim
from srlab.evaluation.tiling import upscale


@dataclass(frozen=True)
class Protocol:
    """What is compared, and how.

    Attributes:
        channel: ``"y"``, the BT.601 luma of MATLAB's rgb2ycbcr, or ``"rgb"``, all three channels.
        shave: pixels cut from each side before comparing; 4 at x4.
        round_8bit: round the SR image to 8 bit first, as if it had gone through a file.
        round_luma: round the luma of both images to 8 bit too. MATLAB's rgb2ycbcr does so for 8-bit
            pictures, and the published figures come from it; many Python evaluations leave it out
            and read about 0.01 dB and 0.001 SSIM higher.
        grey: how a greyscale file such as Set14's ``bridge`` is scored when ``channel`` is
            ``"y"``: ``"luma"`` takes its values as the luma itself, as the published Set14
            figures do; ``"rgb"`` treats it as an RGB picture, which squeezes it into 16..235.
    """

    channel: str = "y"
    shave: int = 4
    round_8bit: bool = True
    round_luma: bool = True
    grey: str = "luma"

    def __post_init__(self):
        if self.channel not in ("y", "rgb"):
            raise ValueError(f"channel must be 'y' or 'rgb', got {self.channel!r}")
        if self.grey not in ("luma", "rgb"):
            raise ValueError(f"grey must be 'luma' or 'rgb', got {self.grey!r}")
        if self.shave < 0:
            raise ValueError(f"shave must not be negative, got {self.shave}")


PUBLISHED = Protocol()


@dataclass(frozen=True)
class Score:
    """One image's result: PSNR in dB and SSIM."""

    image: str
    psnr: float
    ssim: float


def compare(
    sr: Tensor, hr: Tensor, protocol: Protocol = PUBLISHED, grey: bool = False
) -> tuple[float, float]:
    """PSNR (dB) and SSIM of one SR image against its HR image.

    Args:
        sr, hr: (3, H, W) float RGB in [0, 1]; ``sr`` may overshoot.
        grey: the file holds one luminance channel (see :attr:`Protocol.grey`).

    Raises:
        SrlabError: ``sr`` is not finite.
    """
    if not sr.isfinite().all():
        raise SrlabError("the model's result is not finite: its training has diverged.")
    sr, hr = prepare(sr, hr, protocol, grey)
    return float(psnr(sr, hr)), float(ssim(sr, hr))


def prepare(sr: Tensor, hr: Tensor, protocol: Protocol, grey: bool) -> tuple[Tensor, Tensor]:
    """What the metrics see of :func:`compare`'s images: (1, C, h, w) each."""
    sr = quantize(sr) if protocol.round_8bit else sr.clamp(0, 1)
    if protocol.channel == "y":
        if grey and protocol.grey == "luma":
            weights = sr.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
            sr, hr = (sr * weights).sum(0, keepdim=True), hr[:1]
        else:
            sr, hr = luma(sr), luma(hr)
        if protocol.round_luma:
            sr, hr = quantize(sr), quantize(hr)
    s = protocol.shave
    sr, hr = (x[..., s : x.shape[-2] - s, s : x.shape[-1] - s][None] for x in (sr, hr))
    return sr, hr


def consistency(sr: Tensor, lr: Tensor) -> float:
    """How well an SR image, made small again, gives back the LR image it came from: PSNR in dB.

    No HR image is needed. The HR image itself reads about 59 dB, the rounding of LR to 8 bit, and
    nobody needs more; a low figure points to a colour shift or to invented objects.

    Args:
        sr: (3, H * scale, W * scale) float RGB; clamped, as a file would.
        lr: (3, H, W) float RGB in [0, 1].
    """
    small = resize(sr.clamp(0, 1), lr.shape[-1] / sr.shape[-1])
    return float(psnr(small[None], lr[None]))


def evaluate(
    model: nn.Module,
    files: Sequence[Path],
    protocol: Protocol = PUBLISHED,
    *,
    device: torch.device | str = "cpu",
    tile: int | None = 256,
    progress: bool = False,
) -> list[Score]:
    """Score a generator on HR image files.

    Each file is cut to a multiple of the scale, shrunk by MATLAB's bicubic, rounded to 8 bit,
    super-resolved and compared.

    Returns:
        One :class:`Score` a file, in the order of ``files``; see :func:`mean`.

    Raises:
        SrlabError: an image is smaller than SSIM's window (the message names it).
    """
    model = model.to(device)
    scores = []
    for file in tqdm(files, desc="evaluating", unit="image", disable=not progress):
        hr = crop_to_multiple(read_image(file), model.scale).to(device)
        require_size(file, hr, protocol)
        sr = upscale(model, downsample(hr, model.scale), tile)
        scores.append(Score(Path(file).stem, *compare(sr, hr, protocol, is_grey(file))))
    return scores


def require_size(file: Path, hr: Tensor, protocol: Protocol = PUBLISHED) -> None:
    """Raise SrlabError if an image is smaller than SSIM's window."""
    needed = 11 + 2 * protocol.shave
    if min(hr.shape[-2:]) < needed:
        raise SrlabError(
            f"{file} is too small to be scored: SSIM's window needs {needed} pixels a side, "
            "shaving included. Leave it out."
        )


def mean(scores: Sequence[Score]) -> Score:
    """The data set's figure: the mean of the images' dB (not the dB of their mean error)."""
    n = len(scores)
    return Score("mean", sum(s.psnr for s in scores) / n, sum(s.ssim for s in scores) / n)


@torch.no_grad()
def mean_psnr(model: nn.Module, files: Sequence[Path], device: torch.device | str = "cpu") -> float:
    """The set's PSNR in dB by the published protocol, as in :func:`evaluate`, without the SSIM.

    SSIM takes longer to compute than a small network; a training's log needs only PSNR.
    """
    model = model.to(device)
    total = 0.0
    for file in files:
        hr = crop_to_multiple(read_image(file), model.scale).to(device)
        sr = upscale(model, downsample(hr, model.scale))
        total += float(psnr(*prepare(sr, hr, PUBLISHED, is_grey(file))))
    return total / len(files)
