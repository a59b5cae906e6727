"""PatchBank: every training image decoded once and kept where the training runs.

Decoding PNG or JPEG files is what slows super-resolution training down: a loader opens a 2K
picture, inflates it, and throws 99.9% of it away for one crop. The bank inflates every picture
once. All of them lie on one tall canvas (the *atlas*) and a batch of crops is one indexed copy
out of it. A pixel is one 32-bit word (red, green, blue and a spare byte), so that copying and
turning a crop move whole pixels; on two CPU cores that is several times faster than three bytes.

A bank can be saved and opened again without decoding anything: its pixels then lie in files that
are mapped into memory, so a set may be larger than memory. A picture's rows lie one below the other
there, so a crop of 96 x 96 that is not in memory yet takes about 0.8 MB of reading, from a picture
2040 pixels wide.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from srlab.data import stored
from srlab.data.degradation import crop_to_multiple, downsample, resize
from srlab.data.images import picture_size, read_image_u8, to_float, to_uint8
from srlab.data.stored import BankError
from srlab.errors import SrlabError

Layout = dict[str, tuple[tuple[int, ...], np.dtype]]  # shape and type of each array
CELL = 8  # side, in LR pixels, of the squares whose detail is measured


class PatchBank:
    """Aligned LR/HR crops from a set of images that stays in memory as 8-bit pixels.

    Args:
        images: HR images, (3, H, W) uint8 RGB. Sides are cut to a multiple of ``scale``; the LR
            side is made by :func:`srlab.data.degradation.downsample`, from the whole image, so that
            its borders are those of the published protocol.
        scale: HR size / LR size.
        device: where the crops are wanted. On a GPU the pixels move there if they fit into half
            of its free memory, else they stay in host memory and crops are copied.
        seed: of the bank's own random generator. It lives on the CPU, so the same seed gives the
            same crops on every device.
        names: what error messages call the images.
        detail: 0 draws every position of every image equally often. With a positive exponent a
            crop's centre of interest, a pixel somewhere in it, is drawn with a probability
            proportional to error**detail, where the error is the mean squared one that bicubic
            interpolation makes in the 8x8 LR pixels around it: crops of the sky, which teach
            nothing, become rare.

    Raises:
        SrlabError: no images.

    Portrait images are stored turned by 90 degrees: training turns crops anyway, and pictures of
    one width leave no gaps in the atlas.
    """

    def __init__(
        self,
        images: Iterable[Tensor],
        scale: int = 4,
        device: torch.device | str = "cpu",
        seed: int = 0,
        names: Sequence[str] | None = None,
        detail: float = 0.0,
    ):
        hrs = [landscape(image, scale) for image in images]
        names = list(names) if names else [f"image {i}" for i in range(len(hrs))]
        sizes = [(hr.shape[1] // scale, hr.shape[2] // scale) for hr in hrs]
        self._describe(names, sizes, scale, device, seed, detail)
        self._map(_zeros(self._layout()[1]))
        for i in range(len(hrs)):
            hr, hrs[i] = hrs[i], None  # each picture is freed as soon as it has its place
            self._paint(i, hr)
        self._finish()

    @classmethod
    def from_files(
        cls,
        files: Sequence[Path | str],
        scale: int = 4,
        device: torch.device | str = "cpu",
        seed: int = 0,
        shrink: int | Sequence[int] = 1,
        progress: bool = False,
        detail: float = 0.0,
        folder: Path | str | None = None,
    ) -> "PatchBank":
        """Decode image files, several at a time, and keep them.

        Args:
            files: paths of HR images, for instance from :func:`srlab.data.datasets.find`.
            shrink: down-scale each picture by this factor first (one for all, or one a file). 2
                removes the JPEG blocks and the demosaicing blur of large camera pictures.
            progress: show a bar while decoding.
            folder: decode into the files of this folder, as :meth:`save` would write them, and
                open it: for sets larger than memory.

        Raises:
            SrlabError: no files; one cannot be read; ``folder`` cannot be written to.
        """
        factors = [shrink] * len(files) if isinstance(shrink, int) else shrink
        if len(factors) != len(files):
            raise ValueError(f"shrink has {len(factors)} factors for {len(files)} files")
        bank = cls.__new__(cls)
        measured = bool(detail or folder)
        errors = [torch.empty(0)] * len(files)

        def place(i: int) -> None:
            hr = landscape(decode(files[i], factors[i]), scale)
            if (hr.shape[1] // scale, hr.shape[2] // scale) != sizes[i]:
                raise BankError(f"{files[i]} does not have the size that its header states.")
            bank._paint(i, hr)
            if measured:
                errors[i] = bank._measure(i)

        # Pillow and torch release the interpreter lock while they work, and each thread holds one
        # picture.
        with ThreadPoolExecutor() as pool:
            sizes = [*pool.map(lambda f, shrink: _lr_size(f, shrink, scale), files, factors)]
            bank._describe([str(f) for f in files], sizes, scale, device, seed, detail)
            facts, arrays = bank._layout()
            room = stored.create(folder, facts, arrays) if folder else nullcontext(_zeros(arrays))
            with room as places:
                bank._map(places)
                placed = pool.map(place, range(len(files)))
                bar = {"total": len(files), "desc": "decoding", "unit": "image"}
                for _ in tqdm(placed, disable=not progress, **bar):
                    pass
                places["errors"][:] = torch.cat(errors) if measured else 0
                if folder:
                    bank.lr_atlas = bank.hr_atlas = None  # the files are about to be renamed
        if folder:
            return cls.open(folder, device, seed, detail)
        bank.errors = torch.from_numpy(places["errors"]) if measured else None
        bank._finish()
        return bank

    @classmethod
    def open(
        cls,
        folder: Path | str,
        device: torch.device | str = "cpu",
        seed: int = 0,
        detail: float = 0.0,
    ) -> "PatchBank":
        """A bank that was saved: the same seed gives the same crops as before.

        Nothing is decoded, and pixels come from the files only when crops need them, unless a GPU
        has room for all of them. The arguments are those of the class.

        Raises:
            BankError: no bank is there, or it is truncated, damaged or of another version.
        """
        index, arrays = stored.read(folder)
        bank = cls.__new__(cls)
        try:
            sizes = [(int(h), int(w)) for h, w in index["sizes"]]
            names = [str(name) for name in index["names"]]
            if len(names) != len(sizes) or min(map(min, sizes)) < 0 or index["scale"] < 1:
                raise ValueError("sizes")
            bank._describe(names, sizes, int(index["scale"]), device, seed, detail)
            for name, (shape, kind) in bank._layout()[1].items():
                if (arrays[name].shape, arrays[name].dtype) != (shape, kind):
                    raise ValueError(name)
        except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise stored.damaged(Path(folder) / stored.INDEX, error) from error
        bank._map(arrays)
        bank.errors = torch.from_numpy(arrays["errors"])
        bank._finish()
        return bank

    def save(self, folder: Path | str) -> None:
        """Write the pixels, and where detail lies in them, into a folder for :meth:`open`.

        They are there as a whole or not at all. (The random state is not: see
        :meth:`state_dict`.)

        Raises:
            BankError: the folder holds something else or cannot be written to, or has no room.
        """
        with stored.create(folder, *self._layout()) as arrays:
            arrays["lr"][:] = self.lr_atlas.cpu()
            arrays["hr"][:] = self.hr_atlas.cpu()
            arrays["errors"][:] = self._all_errors()

    def _describe(
        self,
        names: list[str],
        sizes: list[tuple[int, int]],
        scale: int,
        device: torch.device | str,
        seed: int,
        detail: float,
    ) -> None:
        """All that a bank knows, except the pixels; ``sizes`` are those of the LR pictures."""
        if detail < 0:
            raise SrlabError(f"detail must be 0 or a positive exponent, got {detail}.")
        if not sizes:
            raise SrlabError("PatchBank got no images: name at least one picture to train on.")
        self.names = names
        self.scale = scale
        self.detail = detail
        self.device = torch.device(device)
        self.generator = torch.Generator().manual_seed(seed)
        # (count, 4): top, left, height and width of each image in the LR atlas.
        self.boxes = _shelves(sizes)
        self.errors: Tensor | None = None

    def _layout(self) -> tuple[dict[str, Any], Layout]:
        """What a folder says about a bank, and the shapes and types of its arrays."""
        height, width = (int(n) for n in (self.boxes[:, :2] + self.boxes[:, 2:]).amax(dim=0))
        cells = int(self.boxes[:, 2:].add(CELL - 1).div(CELL, rounding_mode="floor").prod(1).sum())
        facts = {"scale": self.scale, "names": self.names, "sizes": self.boxes[:, 2:].tolist()}
        return facts, {
            "lr": ((height, width), np.dtype("<i4")),
            "hr": ((height * self.scale, width * self.scale), np.dtype("<i4")),
            "errors": ((cells,), np.dtype("<f4")),
        }

    def _map(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.lr_atlas, self.hr_atlas = (torch.from_numpy(arrays[name]) for name in ("lr", "hr"))

    def _views(self, i: int) -> tuple[Tensor, Tensor]:
        """The words of a picture in both atlases, (h, w) and (h * scale, w * scale)."""
        (top, left, h, w), s = self.boxes[i].tolist(), self.scale
        return (
            self.lr_atlas[top : top + h, left : left + w],
            self.hr_atlas[top * s : (top + h) * s, left * s : (left + w) * s],
        )

    def _paint(self, i: int, hr: Tensor) -> None:
        """Give a picture, (3, H, W) uint8, its place."""
        if hr.numel():
            lr_place, hr_place = self._views(i)
            lr_place.copy_(pack_pixels(to_uint8(downsample(to_float(hr), self.scale))))
            hr_place.copy_(pack_pixels(hr))

    def _finish(self) -> None:
        self.cells: Any = self._weigh_cells() if self.detail else None
        free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else 0
        if self.nbytes < free / 2:
            self.lr_atlas = self.lr_atlas.to(self.device)
            self.hr_atlas = self.hr_atlas.to(self.device)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.boxes)

    @property
    def nbytes(self) -> int:
        """Bytes held by the pixels, LR and HR together."""
        return self.lr_atlas.nbytes + self.hr_atlas.nbytes

    @property
    def seed(self) -> int:
        """Of the crops, as it was last set."""
        return self.generator.initial_seed()

    @property
    def contents(self) -> str:
        """How many pictures, the first, the last, and a checksum of names and sizes.

        The names are those of the files without their folder: a set may lie elsewhere tomorrow.
        """
        names = [re.split(r"[/\\]", name)[-1] for name in self.names]
        listed = json.dumps([names, self.boxes[:, 2:].tolist(), self.scale])
        digest = hashlib.sha256(listed.encode(errors="replace")).hexdigest()[:12]
        drawn = f", by detail {self.detail:g}" if self.detail else ""
        return f"{len(names)} pictures, {names[0]} to {names[-1]} ({digest}){drawn}"

    def batch(
        self, batch_size: int, patch_size: int = 24, augment: bool = True
    ) -> tuple[Tensor, Tensor]:
        """A random batch of aligned crops.

        Args:
            batch_size: number of crops, N.
            patch_size: side of the LR crop, P; the HR crop has side P * scale.
            augment: turn and mirror each crop by one of the eight symmetries of the square.

        Returns:
            ``lr`` (N, 3, P, P) and ``hr`` (N, 3, P * scale, P * scale), float32 in [0, 1], on
            the bank's device.

        Raises:
            SrlabError: an image is smaller than the crop (the message names it).
        """
        lr, hr = self._cut(*self._positions(batch_size, patch_size), patch_size)
        if augment:
            # The crops are independent draws, so their order is free: sorting the symmetries
            # leaves the distribution of the batch as it is and makes each of them one slice.
            turns = torch.randint(8, (batch_size,), generator=self.generator)
            ends = turns.bincount(minlength=8).cumsum(0).tolist()
            for k, (start, stop) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
                if k and stop > start:
                    for crops in (lr, hr):
                        crops[start:stop] = dihedral(crops[start:stop], k).clone()
        return self._deliver(lr), self._deliver(hr)

    def state_dict(self) -> dict[str, Tensor]:
        """The random state, so that a resumed run draws the crops an unbroken one would have."""
        return {"random": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.generator.set_state(state["random"])

    def _cut(self, image: Tensor, y: Tensor, x: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Words of LR and HR crops, (N, size, size) and (N, size * scale, size * scale)."""
        top, left = self.boxes[image, :2].unbind(1)
        y, x, s = top + y, left + x, self.scale
        return _crops(self.lr_atlas, y, x, size), _crops(self.hr_atlas, y * s, x * s, size * s)

    def _positions(self, n: int, patch_size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images, rows and columns of the LR corners of n random crops."""
        height, width = self.boxes[:, 2:].unbind(1)
        rows, columns = height - patch_size + 1, width - patch_size + 1
        too_small = ((rows < 1) | (columns < 1)).nonzero()
        if len(too_small):
            i = int(too_small[0])
            raise SrlabError(
                f"{self.names[i]} is too small: {width[i] * self.scale} x "
                f"{height[i] * self.scale} pixels (after cutting to a multiple of {self.scale}) "
                f"cannot hold a {patch_size * self.scale} x {patch_size * self.scale} crop. "
                "Remove the picture or lower patch_size."
            )
        if self.detail:
            image, y, x = self._interesting_pixels(n)
            corner = torch.stack([y, x]) - torch.randint(
                patch_size, (2, n), generator=self.generator
            )
            limits = torch.stack([rows[image], columns[image]]) - 1
            return image, *corner.clamp(min=0).minimum(limits)
        ends = (rows * columns).cumsum(0)
        draw = torch.randint(int(ends[-1]), (n,), generator=self.generator)
        image = torch.searchsorted(ends, draw, right=True)
        offset = draw - (ends - rows * columns)[image]
        return image, offset // columns[image], offset % columns[image]

    def _measure(self, i: int) -> Tensor:
        """The error of bicubic interpolation in each cell of a picture, row by row: (cells,)."""
        lr, hr = (unpack_pixels(x.cpu()[None]).float().div_(255) for x in self._views(i))
        if not hr.numel():
            return torch.empty(0)
        error = (resize(lr, self.scale) - hr).square_().mean(dim=1, keepdim=True)
        # The last row and column of cells may be cut by the border.
        return F.avg_pool2d(error, CELL * self.scale, ceil_mode=True).flatten()

    def _all_errors(self) -> Tensor:
        if self.errors is None:
            self.errors = torch.cat([self._measure(i) for i in range(len(self))])
        return self.errors

    def _weigh_cells(self) -> tuple[Tensor, Tensor]:
        """The table of cells: summed weights (count,), and where each lies (count, 3)."""
        places, areas = [], []
        for i, (h, w) in enumerate(self.boxes[:, 2:].tolist()):
            if not h or not w:
                continue
            y, x = torch.arange(0, h, CELL), torch.arange(0, w, CELL)
            areas.append(torch.outer((h - y).clamp(max=CELL), (w - x).clamp(max=CELL)).flatten())
            place = torch.cartesian_prod(y, x)
            places.append(torch.cat([torch.full_like(place[:, :1], i), place], dim=1))
        weights = self._all_errors().double() ** self.detail * torch.cat(areas)
        return weights.cumsum(0), torch.cat(places).int()

    def _interesting_pixels(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images, rows and columns of n LR pixels, drawn by detail."""
        ends, places = self.cells
        draw = torch.rand(n, generator=self.generator, dtype=torch.float64) * ends[-1]
        cell = torch.searchsorted(ends, draw, right=True).clamp(max=len(ends) - 1)
        image, y, x = places[cell].long().unbind(1)
        height, width = self.boxes[image, 2:].unbind(1)
        dy, dx = torch.rand(2, n, generator=self.generator)
        # Any pixel of the cell, as far as the picture reaches.
        y = y + (dy * (height - y).clamp(max=CELL)).long()
        x = x + (dx * (width - x).clamp(max=CELL)).long()
        return image, y, x

    def _deliver(self, crops: Tensor) -> Tensor:
        """(N, P, P) words -> (N, 3, P, P) float in [0, 1] on the bank's device."""
        if self.device.type == "cuda" and crops.device.type == "cpu":
            crops = crops.pin_memory()  # else the copy would hold up the host
        crops = crops.to(self.device, non_blocking=True)
        return unpack_pixels(crops).to(torch.float32).div_(255)


def dihedral(x: Tensor, k: int) -> Tensor:
    """The k-th of the eight symmetries of the square: k % 4 quarter turns, mirrored if k >= 4."""
    x = torch.rot90(x, k % 4, (-2, -1))
    return x.flip(-1) if k >= 4 else x


def pack_pixels(image: Tensor) -> Tensor:
    """(3, H, W) uint8 -> (H, W) int32, one word a pixel."""
    spare = torch.zeros_like(image[:1])
    return torch.cat([image, spare]).permute(1, 2, 0).contiguous().view(torch.int32).squeeze(-1)


def unpack_pixels(words: Tensor) -> Tensor:
    """(N, H, W) int32 -> (N, 3, H, W) uint8, a view: the inverse of :func:`pack_pixels`.

    A word holds a pixel's channels side by side, and so does what is computed from the view: it
    is in channels_last layout, as fast convolutions want it.
    """
    return words.unsqueeze(-1).view(torch.uint8).permute(0, 3, 1, 2)[:, :3]


def decode(path: Path | str, shrink: int = 1) -> Tensor:
    """An image file as (3, H, W) uint8, down-scaled by a whole factor."""
    image = crop_to_multiple(read_image_u8(path), shrink)
    if shrink > 1 and image.numel():  # nothing may be left of a tiny one: batch() names it
        image = to_uint8(downsample(to_float(image), shrink))
    return image


def _zeros(arrays: Layout) -> dict[str, np.ndarray]:
    return {name: np.zeros(shape, kind) for name, (shape, kind) in arrays.items()}


def _lr_size(path: Path | str, shrink: int, scale: int) -> tuple[int, int]:
    """Height and width that the LR side of a file will have, by its header."""
    height, width = sorted(side // shrink // scale for side in picture_size(path))
    return height, width


def landscape(image: Tensor, scale: int) -> Tensor:
    """Cut to a multiple of ``scale``, and turned if it is higher than wide."""
    image = crop_to_multiple(image, scale)
    return dihedral(image, 1) if image.shape[-2] > image.shape[-1] else image


def _shelves(sizes: list[tuple[int, int]]) -> Tensor:
    """Places for (height, width) rectangles on one canvas, as wide as the widest of them.

    The tallest come first and lie side by side until a shelf is full, so that small pictures fill
    the width beside each other ("next-fit decreasing height", Coffman et al. 1980).

    Returns:
        (count, 4) int64: top, left, height, width.
    """
    canvas = max(width for _, width in sizes)
    boxes = torch.empty(len(sizes), 4, dtype=torch.int64)
    top = left = shelf = 0
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i][0]):
        height, width = sizes[i]
        if left + width > canvas:
            top, left, shelf = top + shelf, 0, 0
        boxes[i] = torch.tensor([top, left, height, width])
        left, shelf = left + width, max(shelf, height)
    return boxes


def _crops(atlas: Tensor, y: Tensor, x: Tensor, size: int) -> Tensor:
    """Copy N square crops out of the (H, W) atlas: (N, size, size).

    The strided view holds every window of the atlas without copying a pixel; indexing it copies
    just the wanted ones.
    """
    height, width = atlas.shape
    windows = atlas.as_strided(
        (height - size + 1, width - size + 1, size, size), (width, 1, width, 1)
    )
    return windows[y.to(atlas.device, non_blocking=True), x.to(atlas.device, non_blocking=True)]
