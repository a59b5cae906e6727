"""Super-resolve an image of any size in tiles, with the same result as in one piece."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from srlab.errors import SrlabError
from srlab.models.generators import polyphase

SMALLEST = 16  # pixels a side that are worth a call of the network, however little it sees


@torch.no_grad()
def upscale(
    model: nn.Module,
    lr: Tensor,
    tile: int | None = 256,
    on_tile: Callable[[float], object] | None = None,
) -> Tensor:
    """Run a generator in evaluation mode over an image.

    A tile is cut out together with a border as wide as the network sees
    (``model.receptive_radius``), and the border's output is thrown away. What is left has seen
    everything that it would have seen in the whole image, so the tiled result equals the untiled
    one up to float rounding, and memory depends on the tile instead of on the image. SRResNet and
    WDRN run with a polyphase tail and channels last, which takes little more than half the time.

    Args:
        model: a generator with ``scale`` and ``receptive_radius``.
        lr: (N, 3, H, W) or (3, H, W) float RGB in [0, 1].
        tile: side of a tile in LR pixels, without its border; None takes the image whole.
        on_tile: called after each tile with the share of the image that is done; an exception
            that it raises ends the work.

    Returns:
        SR image, (N, 3, H * scale, W * scale) or without the N as the input was; not clamped.

    Raises:
        SrlabError: ``tile`` is not positive.
    """
    check_tile(tile)
    if lr.ndim == 3:
        return upscale(model, lr[None], tile, on_tile)[0]
    training = [module for module in model.modules() if module.training]
    model.eval()
    model, own = polyphase(model), model
    if model is not own:  # other people's networks may count on the usual layout
        lr = lr.contiguous(memory_format=torch.channels_last)
    try:
        if tile is None or max(lr.shape[-2:]) <= tile:
            return model(lr).contiguous()
        n, c, height, width = lr.shape
        sr, done = lr.new_empty(n, c, height * model.scale, width * model.scale), 0
        for top, left, part in tiles(model, lr, tile):
            sr[..., top : top + part.shape[-2], left : left + part.shape[-1]] = part
            done += part[0, 0].numel()
            if on_tile:
                on_tile(done / sr[0, 0].numel())
        return sr
    finally:
        for module in training:  # some may have been frozen in evaluation mode
            module.training = True


def check_tile(tile: int | None) -> None:
    """Raise SrlabError unless ``tile`` is None or positive."""
    if tile is not None and tile < 1:
        raise SrlabError(f"tile must be at least 1 pixel, got {tile}: 256 suits most machines.")


def check_cost(tile: int, model: nn.Module) -> None:
    """Raise SrlabError for a tile so small that its border is most of the work.

    The result would be right, too, but take minutes in place of seconds. A tile as wide as its
    border costs nine times its own pixels.
    """
    check_tile(tile)
    least = max(model.receptive_radius, SMALLEST)
    if tile < least:
        raise SrlabError(
            f"tile must be at least {least} pixels with this model, got {tile}: smaller ones take "
            f"many times as long, for each is worked on with {model.receptive_radius} more pixels "
            "on every side."
        )


def tiles(model: nn.Module, lr: Tensor, tile: int) -> Iterator[tuple[int, int, Tensor]]:
    """The parts of :func:`upscale`'s result, row by row of tiles, one at a time.

    Args:
        model: a generator in evaluation mode.
        lr: (N, 3, H, W).

    Yields:
        ``(top, left, part)``: a part (N, 3, h, w) of the SR image and where it belongs there.
    """
    height, width = lr.shape[-2:]
    scale, border = model.scale, model.receptive_radius
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            bottom, right = min(top + tile, height), min(left + tile, width)
            y, x = max(top - border, 0), max(left - border, 0)
            out = model(lr[..., y : bottom + border, x : right + border])
            rows = slice((top - y) * scale, (bottom - y) * scale)
            columns = slice((left - x) * scale, (right - x) * scale)
            yield top * scale, left * scale, out[..., rows, columns]
