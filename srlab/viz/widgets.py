"""Widgets: pictures that a reader can move. Each holds a still picture for where no kernel runs."""

import base64
import io
from html import escape

import ipywidgets
import numpy as np
from PIL import Image
from torch import Tensor

from srlab.viz.figures import picture


class BeforeAfter(ipywidgets.VBox):
    """Two pictures of the same scene with a dividing line that a slider moves.

    On GitHub and in exported pages, where no kernel answers, the still picture is shown with the
    line in the middle.
    """

    def __init__(self, left: np.ndarray, right: np.ndarray, labels: tuple[str, str]):
        self.pair = left, right
        self.alt = f"{labels[0]} on the left of a dividing line, {labels[1]} on its right"
        self.slider = ipywidgets.IntSlider(
            value=50,
            min=0,
            max=100,
            description="line at",
            readout_format="d",
            layout=ipywidgets.Layout(width="420px"),
        )
        # ipywidgets.Image knows no alternative text; an <img> of our own does.
        self.view = ipywidgets.HTML(self.html())
        self.slider.observe(self._move, "value")
        caption = ipywidgets.Label(f"left: {labels[0]}   right: {labels[1]}")
        super().__init__([self.slider, caption, self.view])

    def png(self) -> bytes:
        """The picture as the slider stands."""
        left, right = self.pair
        at = round(left.shape[1] * self.slider.value / 100)
        joined = np.concatenate([left[:, :at], right[:, at:]], axis=1)
        joined[:, max(at - 1, 0) : at + 1] = 255
        buffer = io.BytesIO()
        Image.fromarray(joined).save(buffer, format="png", compress_level=1)
        return buffer.getvalue()

    def html(self) -> str:
        """The same picture as an ``<img>`` that holds its own data."""
        data = base64.b64encode(self.png()).decode()
        width = min(self.pair[0].shape[1], 900)
        return (
            f'<img src="data:image/png;base64,{data}" alt="{escape(self.alt)}" '
            f'style="width: {width}px; max-width: 100%">'
        )

    def _move(self, change: dict) -> None:
        self.view.value = self.html()

    def _repr_mimebundle_(self, **kwargs) -> dict[str, object]:
        live = super()._repr_mimebundle_(**kwargs)
        still = {"image/png": base64.b64encode(self.png()).decode(), "text/plain": self.alt}
        return live | still


def before_after(
    a: Tensor, b: Tensor, labels: tuple[str, str] = ("before", "after")
) -> BeforeAfter:
    """A slider that moves the line between two pictures of the same size.

    Args:
        a, b: (3, H, W) float in [0, 1] or uint8: shown left and right of the line.
        labels: what they are.

    Raises:
        ValueError: their sizes differ.
    """
    left, right = picture(a), picture(b)
    if left.shape != right.shape:
        raise ValueError(
            f"before_after needs two pictures of one size, got {tuple(a.shape)} and "
            f"{tuple(b.shape)}."
        )
    return BeforeAfter(left, right, labels)
