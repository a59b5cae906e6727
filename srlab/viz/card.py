"""What all widgets share: a still picture for where no kernel runs, a fixed size, a clean end."""

import base64
import io
from html import escape
from typing import ClassVar

import ipywidgets
import numpy as np
from PIL import Image

from srlab.viz.figures import Figure

WIDE = {"width": "380px"}  # the layout of a control with a long line or long names


class Card(ipywidgets.VBox):
    """Controls above a picture, for a subclass to fill.

    In a page without a kernel (GitHub, exported HTML) the picture of the moment when the cell ran
    is shown in its place. Running a cell again closes the widgets that the cell made before, so
    that hours of work leave no more behind than the last run. By keyboard: Tab goes from control
    to control, arrows move a slider, Space opens a list.
    """

    alt = ""  # the picture in words
    sharpness = 1  # pixels of printed()'s file to one of the page; more makes letters crisp
    _made: ClassVar[dict[str, tuple[int, list["Card"]]]] = {}  # cell -> execution, its widgets

    def __init__(self, *children: ipywidgets.Widget):
        super().__init__(children)
        if (now := _execution()) is None:
            return
        cell, count = now
        before, cards = self._made.get(cell, (count, []))
        if before != count:
            for card in cards:
                card.close()
            cards = []
        self._made[cell] = count, [*cards, self]

    def still(self) -> bytes:
        """The picture as it stands, as a PNG file."""
        raise NotImplementedError

    def printed(self) -> bytes:
        """What a page without a kernel shows, a PNG file; by default the picture as it stands."""
        return self.still()

    def close(self) -> None:
        """Let go of everything: a widget's own ``close`` leaves its children's comms open."""
        for widget in _family(self):
            if widget is not self:
                widget.close()
        super().close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.alt}>"

    def _repr_mimebundle_(self, **kwargs) -> tuple[dict, dict]:
        live, file = super()._repr_mimebundle_(**kwargs), self.printed()
        still = {"image/png": base64.b64encode(file).decode(), "text/plain": self.alt}
        width, height = (n // self.sharpness for n in Image.open(io.BytesIO(file)).size)
        return live | still, {"image/png": {"alt": self.alt, "width": width, "height": height}}


def controls(*widgets: ipywidgets.Widget) -> ipywidgets.Box:
    """Controls in a row that wraps where the page is narrow."""
    return ipywidgets.Box(widgets, layout={"flex_flow": "row wrap"})


def slider(description: str, value: int, low: int, high: int, tooltip: str) -> ipywidgets.IntSlider:
    """A slider for mouse and arrow keys."""
    words = {"description": description, "tooltip": tooltip}
    return ipywidgets.IntSlider(value, low, high, layout=WIDE, **words)


def choice(
    description: str, options: list, value: object, tooltip: str, width: str = "280px"
) -> ipywidgets.Dropdown:
    """A drop-down list; options are values, or pairs (label, value)."""
    words = {"description": description, "tooltip": tooltip}
    return ipywidgets.Dropdown(options=options, value=value, layout={"width": width}, **words)


def png(pixels: np.ndarray, compress_level: int = 1) -> bytes:
    """(H, W, 3) uint8 as a PNG file, written fast rather than small."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png", compress_level=compress_level)
    return buffer.getvalue()


def data_uri(file: bytes) -> str:
    """A PNG file as the address of an image that holds its own data (RFC 2397)."""
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


def img(file: bytes, alt: str, width: int, height: int) -> str:
    """An ``<img>`` that holds its own data, a PNG file.

    (ipywidgets.Image knows no alternative text.) Its place is kept while it loads, so nothing
    jumps. An enlarged picture shows its pixels as squares.
    """
    style = f"width: {width}px; max-width: 100%; aspect-ratio: {width} / {height}"
    if Image.open(io.BytesIO(file)).width < width:
        style += "; image-rendering: pixelated"
    return f'<img src="{data_uri(file)}" alt="{escape(alt)}" style="{style}">'


def tile(file: bytes, caption: str, width: int, height: int, alt: str = "") -> str:
    """A picture with a line of text beneath; tiles stand side by side."""
    return (
        '<figure style="display: inline-block; vertical-align: top; margin: 0 8px 8px 0; '
        f'width: {width}px; max-width: 100%">{img(file, alt or caption, width, height)}'
        f'<figcaption style="line-height: 1.3">{escape(caption)}</figcaption></figure>'
    )


def note(text: str, alt: str) -> Figure:
    """A figure with a sentence on it, for where there is no picture yet."""
    figure = Figure(600, 340, alt)
    figure.text(0.5, 0.5, text, ha="center", va="center", color="#666666")
    return figure


def beside(*files: bytes, gap: int = 12) -> bytes:
    """PNG files side by side on white."""
    pictures = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
    width, height = sum(p.width + gap for p in pictures) - gap, max(p.height for p in pictures)
    joined, x = Image.new("RGB", (width, height), "white"), 0
    for picture in pictures:
        joined.paste(picture, (x, 0))
        x += picture.width + gap
    return png(np.asarray(joined), compress_level=9)


def _family(widget: ipywidgets.Widget) -> list[ipywidgets.Widget]:
    """A widget, its layout and style, and the same for all widgets inside it."""
    parts = [getattr(widget, name, None) for name in ("layout", "style")]
    family = [widget, *(part for part in parts if isinstance(part, ipywidgets.Widget))]
    for child in getattr(widget, "children", ()):
        family += _family(child)
    return family


def _execution() -> tuple[str, int] | None:
    """The notebook cell that is running and its number; None outside a notebook."""
    from IPython import get_ipython

    shell = get_ipython()
    try:
        return shell.get_parent()["metadata"]["cellId"], shell.execution_count
    except (AttributeError, KeyError, TypeError):
        return None
