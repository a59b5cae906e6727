"""Training sets larger than memory: decoded once onto disk, crops read from there.

:func:`pack` writes what :class:`~srlab.data.bank.PatchBank` keeps in memory, LR and HR pixels in
32-bit words, into files of some hundred megabytes (*shards*); :class:`ShardBank` maps them into
memory and cuts crops out of them. The system keeps in memory what fits, and reads the rest when it
is wanted. What it reads are pages of 4 KB: each holds a tile of 32 x 32 pixels here, so that a crop
of 96 x 96 touches 16 pages and not the 100 that it would in a picture stored row by row.

What a large set needs, for 24 x 24 -> 96 x 96 crops: (1 + 95/32)^2 + (1 + 23/32)^2 = 18.7 pages or
77 KB a crop on average, so 1.1 GB/s for 15,000 crops/s on one GPU and 9.2 GB/s for eight, as long
as nothing comes from memory. 85,000 pictures of 2040 x 1404 pixels (LSDIR, taken to be as large as
DIV2K's on average) are 4 * (1 + 1/16) bytes a pixel, 1.03 TB.
"""

import json
import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from srlab.data.bank import PatchBank, decode, landscape, pack_pixels
from srlab.data.degradation import downsample
from srlab.data.download import sha256
from srlab.data.images import to_float, to_uint8
from srlab.errors import SrlabError
from srlab.files import whole, write_text

INDEX = "index.json"
SHARD_BYTES = 256 << 20
TILE = 32  # 32 x 32 words of 4 bytes are a page of memory
PAGE = 4 * TILE * TILE


class ShardError(SrlabError):
    """Shards cannot be written, are damaged, or belong to another set."""


def pack(
    files: Sequence[Path | str],
    out: Path | str,
    scale: int = 4,
    shrink: int | Sequence[int] = 1,
    shard_bytes: int = SHARD_BYTES,
    progress: bool = False,
) -> int:
    """Decode image files into shards. If it is interrupted, the same call goes on.

    Shards that are there already are checked; the first bad one and what follows is made again.

    Args:
        files: paths of HR images.
        out: folder, empty or of an earlier call.
        scale: HR size / LR size.
        shrink: as for :meth:`srlab.data.bank.PatchBank.from_files`.
        shard_bytes: a shard ends with the picture that passes this.

    Returns:
        Bytes of all shards.

    Raises:
        ShardError: the folder holds another set or something else, or cannot be written to.
    """
    out = Path(out)
    factors = [shrink] * len(files) if isinstance(shrink, int) else list(shrink)
    wanted = {
        "scale": scale,
        "shard_bytes": shard_bytes,
        "sources": [[str(f), s] for f, s in zip(files, factors, strict=True)],
    }
    if not files:
        raise ShardError("there are no pictures to pack: name a set or a folder of pictures.")
    index = _begin(out, wanted)
    done = sum(len(shard["images"]) for shard in index["shards"])
    bar = tqdm(total=len(files), initial=done, unit="image", desc="packing", disable=not progress)
    try:
        with bar, ThreadPoolExecutor() as pool:
            # A few pictures ahead, not all: they are not to lie in memory.
            waiting = _Shard()
            for start in range(done, len(files), 32):
                part = slice(start, start + 32)
                pictures = pool.map(
                    lambda file, factor: _words(decode(file, factor), scale),
                    files[part], factors[part],
                )  # fmt: skip
                for name, words in zip(files[part], pictures, strict=True):
                    waiting.add(str(name), *words)
                    if waiting.nbytes >= shard_bytes:
                        waiting.write(out, index)
                        waiting = _Shard()
                    bar.update()
            if waiting.images:
                waiting.write(out, index)
    except OSError as error:
        raise ShardError(
            f"cannot write {out} ({error}): make room or name another folder; the same command "
            "goes on from where it stopped."
        ) from error
    return sum(shard["bytes"] for shard in index["shards"])


def is_pack(folder: Path | str) -> bool:
    """Whether a folder was made by :func:`pack`."""
    return (Path(folder) / INDEX).is_file()


class ShardBank(PatchBank):
    """A :class:`~srlab.data.bank.PatchBank` whose pixels lie in the shards of a folder.

    With the same pictures and the same seed it gives the same crops.

    Args:
        folder: that :func:`pack` filled.
        device, seed: as for :class:`~srlab.data.bank.PatchBank`.
        verify: read all shards once and compare their checksums; without it only their sizes.
        progress: show a bar meanwhile.

    Raises:
        ShardError: unfinished, truncated or damaged; names the file.
    """

    def __init__(
        self,
        folder: Path | str,
        device: torch.device | str = "cpu",
        seed: int = 0,
        verify: bool = True,
        progress: bool = False,
    ):
        folder = Path(folder)
        index = _read_index(folder)
        shards = index["shards"]
        images = [image | {"shard": i} for i, s in enumerate(shards) for image in s["images"]]
        if len(images) < len(index["sources"]):
            raise ShardError(
                f"{folder} holds {len(images)} of {len(index['sources'])} pictures: run `srlab "
                "pack` again, it goes on from there."
            )
        with ThreadPoolExecutor() as pool:
            problems = pool.map(lambda shard: _problem(folder, shard, verify), shards)
            for problem in tqdm(problems, "checking", len(shards), disable=not progress):
                if problem:
                    raise ShardError(f"{problem} Run `srlab pack` again, it mends the folder.")
        self.scale = index["scale"]
        self.device = torch.device(device)
        self.generator = torch.Generator().manual_seed(seed)
        self.names = [image["name"] for image in images]
        self.boxes = torch.tensor([[0, 0, *image["size"]] for image in images])
        self.places = torch.tensor([[i["shard"], i["lr"], i["hr"]] for i in images])
        self.detail = 0.0
        self.maps = [_Map(folder / shard["file"]) for shard in shards]

    @property
    def nbytes(self) -> int:
        """Bytes of all shards on disk."""
        return sum(m.words.nbytes for m in self.maps)

    def _cut(self, image: Tensor, y: Tensor, x: Tensor, size: int) -> tuple[Tensor, Tensor]:
        shard, lr, hr = self.places[image].unbind(1)
        width, s = self.boxes[image, 3], self.scale
        wanted = [
            (_tiles(lr, y, x, width, size), size),
            (_tiles(hr, y * s, x * s, width * s, size * s), size * s),
        ]
        cuts = [torch.empty(len(image), n, n, dtype=torch.int32) for _, n in wanted]
        groups = [(self.maps[i], (shard == i).nonzero()[:, 0]) for i in shard.unique().tolist()]
        for mapped, crops in groups:  # first tell the system all, so that it reads at once
            for indices, _ in wanted:
                mapped.will_need(indices[crops])
        for mapped, crops in groups:
            for cut, (indices, _) in zip(cuts, wanted, strict=True):
                of_crops = indices[crops]
                words = mapped.words.index_select(0, of_crops.flatten())
                cut[crops] = words.view_as(of_crops)
        return cuts[0], cuts[1]


class _Shard:
    """Pictures that wait to be written."""

    def __init__(self):
        self.images: list[dict[str, Any]] = []
        self.parts: list[Tensor] = []
        self.length = 0

    @property
    def nbytes(self) -> int:
        return 4 * self.length

    def add(self, name: str, size: tuple[int, int], lr: Tensor, hr: Tensor) -> None:
        places = {"lr": self.length, "hr": self.length + len(lr)}
        self.images.append({"name": name, "size": size} | places)
        self.parts += [lr, hr]
        self.length += len(lr) + len(hr)

    def write(self, out: Path, index: dict[str, Any]) -> None:
        """The file first, then its line in the index: what is listed is whole."""
        path = out / f"{len(index['shards']):05}.shard"
        words = torch.cat([*self.parts, torch.zeros(PAGE // 4, dtype=torch.int32)])  # never empty
        with whole(path) as part:
            words.numpy().tofile(part)
            entry = {"file": path.name, "bytes": words.nbytes, "sha256": sha256(part)}
        index["shards"].append(entry | {"images": self.images})
        _write_index(out, index)


class _Map:
    """A shard as a vector of int32 words that are read when they are asked for."""

    def __init__(self, path: Path):
        with open(path, "rb") as file:
            # A private copy: torch wants memory that it could write to.
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        if hasattr(self.map, "madvise"):
            self.map.madvise(mmap.MADV_RANDOM)
        self.words = torch.frombuffer(self.map, dtype=torch.int32)

    def will_need(self, indices: Tensor) -> None:
        """Let the system read the pages of these words, (N, S, S), all at the same time."""
        if not hasattr(self.map, "madvise"):
            return
        size = indices.shape[1]
        rows = indices[:, [*range(0, size, TILE), size - 1]] * 4 // PAGE  # one of each row of tiles
        for a, b in rows[:, :, [0, -1]].flatten(0, 1).tolist():
            self.map.madvise(mmap.MADV_WILLNEED, a * PAGE, (b - a + 1) * PAGE)


def _tiles(start: Tensor, y: Tensor, x: Tensor, width: Tensor, size: int) -> Tensor:
    """Where the words of square crops lie in a shard of tiled pictures: (N, size, size)."""
    rows, columns = (corner[:, None] + torch.arange(size) for corner in (y, x))
    a_row_of_tiles = -(-width // TILE) * TILE * TILE
    rows = rows // TILE * a_row_of_tiles[:, None] + rows % TILE * TILE
    columns = columns // TILE * TILE * TILE + columns % TILE
    return start[:, None, None] + rows[:, :, None] + columns[:, None, :]


def _tiled(words: Tensor) -> Tensor:
    """(H, W) -> one vector, tile after tile, padded to whole tiles."""
    height, width = words.shape
    padded = F.pad(words, (0, -width % TILE, 0, -height % TILE))
    tiles = padded.unflatten(0, (-1, TILE)).unflatten(2, (-1, TILE))
    return tiles.permute(0, 2, 1, 3).reshape(-1)


def _words(picture: Tensor, scale: int) -> tuple[tuple[int, int], Tensor, Tensor]:
    """LR size, LR and HR words of a picture, as PatchBank would keep them."""
    hr = landscape(picture, scale)
    size = hr.shape[1] // scale, hr.shape[2] // scale
    if not all(size):
        return size, torch.empty(0, dtype=torch.int32), torch.empty(0, dtype=torch.int32)
    lr = to_uint8(downsample(to_float(hr), scale))
    return size, _tiled(pack_pixels(lr)), _tiled(pack_pixels(hr))


def _begin(out: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """The index to go on from, with the shards that are good."""
    if not is_pack(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ShardError(f"{out} holds something else: name an empty folder.")
        try:
            out.mkdir(parents=True, exist_ok=True)
            index = wanted | {"shards": []}
            _write_index(out, index)
        except OSError as error:
            raise ShardError(f"cannot write {out} ({error}): name another folder.") from error
        return index
    index = _read_index(out)
    if {key: index[key] for key in wanted} != wanted:
        raise ShardError(
            f"{out} holds the shards of other pictures or settings: name another folder."
        )
    good = []
    for shard in index["shards"]:
        if _problem(out, shard, verify=True):
            break
        good.append(shard)
    return index | {"shards": good}


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        index = json.loads((folder / INDEX).read_text())
        return {key: index[key] for key in ("scale", "shard_bytes", "sources", "shards")}
    except FileNotFoundError as error:
        raise ShardError(f"{folder} has no {INDEX}: make it by `srlab pack`.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ShardError(
            f"{folder / INDEX} is damaged ({type(error).__name__}): delete the folder and run "
            "`srlab pack` again."
        ) from error


def _write_index(out: Path, index: dict[str, Any]) -> None:
    write_text(out / INDEX, json.dumps(index))


def _problem(folder: Path, shard: dict[str, Any], verify: bool) -> str:
    """What is wrong with a shard; empty if nothing is."""
    path = folder / shard["file"]
    size = path.stat().st_size if path.is_file() else 0
    if size != shard["bytes"]:
        return f"{path} has {size:,} bytes instead of {shard['bytes']:,}."
    if verify and sha256(path) != shard["sha256"]:
        return f"{path} is damaged: its SHA-256 is not the one in {INDEX}."
    return ""
