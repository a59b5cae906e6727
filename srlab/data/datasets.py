"""Named image sets: where they come from, under which licence, and how they are fetched.

``photos`` needs no download; any folder of your own works as well as a named set.
"""

import difflib
import importlib.util
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from srlab.data.download import DownloadError, download, require_space
from srlab.data.images import is_picture, list_images
from srlab.data.reading import ImageError
from srlab.errors import SrlabError
from srlab.files import only_here


class DatasetError(SrlabError):
    """An image set is unknown, missing or incomplete, or could not be fetched."""


@dataclass(frozen=True)
class ImageSet:
    """A named set of HR images: with ``files`` it comes with scikit-image, with a ``url``
    :func:`fetch` gets it, with neither you get it by hand from its ``homepage``."""

    name: str
    title: str
    count: int  # images in the published set
    licence: str
    homepage: str
    folders: tuple[str, ...] = ()  # names under which people keep it; fetch() uses the first
    files: tuple[str, ...] = ()  # in scikit-image's data folder
    url: str = ""
    size: str = ""  # of the download
    checksum: str = ""  # of the download: "md5:..." or "sha256:..."
    member: str = ""  # the folder in the archive that holds the HR images
    left_out: str = ""  # stem of a picture in the folder that does not belong to the set

    @property
    def needed(self) -> int:
        """With fewer images the set is incomplete. Sets got by hand, often pruned, need 1."""
        return self.count if self.url or self.files else 1


_DIV2K = "https://data.vision.ee.ethz.ch/cvl/DIV2K/"
# The archive of the EDSR paper (Lim et al. 2017) holds the four usual test sets.
_EDSR: dict[str, Any] = {
    "url": "https://cv.snu.ac.kr/research/EDSR/benchmark.tar",
    "size": "250 MB",
    "checksum": "md5:4ace41d33c2384b97e6b320cd0afd6ba",
}
_SKIMAGE = "https://scikit-image.org/docs/stable/api/skimage.data.html"
_SET5 = "https://people.rennes.inria.fr/Aline.Roumy/results/SR_BMVC12.html"
_SET14 = "https://sites.google.com/site/romanzeyde/research-interests"
_URBAN100 = "https://github.com/jbhuang0604/SelfExSR"
_T91 = "https://github.com/jiny2001/dcscn-super-resolution"  # its data/yang91
_BSDS = "https://github.com/BIDS/BSDS500"

_FREE = "public domain or CC0; motorcycle_left (Middlebury 2014) states none"
_RESEARCH = "academic research only"
_STUDY = "non-commercial research and education"
_MIXED = "CC0, CC-BY, CC-BY-SA, GPL and others: data/wallpapers.csv"
_WALLPAPERS = "data/wallpapers.csv"
_NONE = "none stated; research benchmark"


def _photos(name: str, use: str, licence: str, *files: str) -> ImageSet:
    title = f"Photographs in scikit-image, {use}"
    return ImageSet(name, title, len(files), licence, _SKIMAGE, files=files)


def _div2k(part: str, count: int, size: str, checksum: str) -> ImageSet:
    title, folder = f"DIV2K {part} (Agustsson and Timofte 2017)", f"DIV2K_{part}_HR"
    where: dict[str, Any] = {"url": f"{_DIV2K}{folder}.zip", "member": folder, "folders": (folder,)}
    where |= {"size": size, "checksum": checksum}
    return ImageSet(f"div2k-{part}", title, count, _RESEARCH, _DIV2K, **where)


def _benchmark(title: str, count: int, licence: str, homepage: str, *folders: str) -> ImageSet:
    name, member = title.split()[0].lower(), f"benchmark/{folders[-1]}/HR"
    return ImageSet(name, title, count, licence, homepage, folders, member=member, **_EDSR)


# scikit-image's retina is left out: it would be half of all pixels, and nearly all are smooth.
_TRAIN = ("astronaut.png", "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png", "rocket.jpg")
DATASETS: dict[str, ImageSet] = {
    image_set.name: image_set
    for image_set in (
        _photos("photos", "for training", _FREE, *_TRAIN),
        _photos("photos-valid", "held out", "CC0", "chelsea.png", "coffee.png"),
        _div2k("train", 800, "3.5 GB", "md5:bdc2d9338d4e574fe81bf7d158758658"),
        _div2k("valid", 100, "450 MB", "md5:9fcdda83005c5e5997799b69f955ff88"),
        _benchmark("Set5 (Bevilacqua et al. 2012)", 5, _NONE, _SET5, "Set5"),
        _benchmark("Set14 (Zeyde et al. 2010)", 14, _NONE, _SET14, "Set14"),
        _benchmark("BSD100 (Martin et al. 2001)", 100, _STUDY, _BSDS, "BSD100", "BSDS100", "B100"),
        _benchmark("Urban100 (Huang et al. 2015)", 100, _NONE, _URBAN100, "Urban100"),
        # Picture 302003 is Set5's `woman`: a network must not train on what it is tested on.
        ImageSet(
            "bsds400", "BSDS500 but BSD100", 399, _STUDY, _BSDS, ("BSDS400",), left_out="302003"
        ),
        ImageSet("wallpapers", "Openly licensed photographs", 63, _MIXED, _WALLPAPERS, ("photos",)),
        ImageSet("t91", "T91 (Yang et al. 2010)", 91, _NONE, _T91, ("T91",)),
    )
}


def data_folders() -> list[Path]:
    """Where :func:`find` looks, in order; :func:`fetch` writes to the first.

    The folders in the environment variable ``SRLAB_DATA`` (separated like those in ``PATH``), then
    ``data/`` of the clone that srlab runs from, or the user's cache where there is no clone.
    """
    named = os.environ.get("SRLAB_DATA", "").split(os.pathsep)
    folders = [Path(os.path.expanduser(folder)) for folder in named if folder]
    clone = Path(__file__).resolve().parents[2]
    if (clone / "pyproject.toml").is_file():
        return [*folders, clone / "data"]
    import pooch

    return [*folders, Path(pooch.os_cache("srlab"))]


def find(name: str | Path) -> list[Path]:
    """The image files of a named set or of a folder, sorted; a single image file is its own set.

    A named set may lie in any of :func:`data_folders` or up to two levels down, in upper or lower
    case, its images in an ``HR`` subfolder or not: ``benchmarks/Set5``, ``DIV2K/DIV2K_train_HR``.

    Raises:
        DatasetError: no such set or folder, a folder without images, or a set that is not on this
            machine or incomplete.
    """
    if image_set := DATASETS.get(str(name)):
        folder, images = _locate(image_set, data_folders())
        if len(images) < image_set.needed:
            raise _absent(image_set, folder, len(images))
        return images
    path = Path(os.path.expanduser(name))
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise _unknown(name)
    if not (images := _images(path)):
        raise DatasetError(f"{path} holds no images: put some there or name another folder.")
    return images


def training_files(names: Sequence[str]) -> tuple[list[Path], list[int]]:
    """Files of several sets or folders, and for each by how much it is shrunk first.

    Args:
        names: as for :func:`find`; ``NAME@2`` halves the pictures of a set before they are used.

    Raises:
        DatasetError: as :func:`find`, or what follows @ is not a whole number.
    """
    files, shrink = [], []
    for name in names:
        base, at, factor = str(name).rpartition("@")
        if not at:
            base, factor = str(name), "1"
        if not factor.isdecimal() or int(factor) == 0:
            raise DatasetError(f"{name}: write a whole number after @, such as @2.")
        found = find(base)
        files += found
        shrink += [int(factor)] * len(found)
    return files, shrink


def status(name: str) -> tuple[Path | None, int]:
    """(folder of a named set or None, number of its images there); never raises."""
    if name not in DATASETS:
        return None, 0
    folder, images = _locate(DATASETS[name], data_folders())
    return folder, len(images)


def _locate(image_set: ImageSet, roots: Sequence[Path]) -> tuple[Path | None, list[Path]]:
    """The first complete copy of a set, else the fullest one, else (None, [])."""
    if image_set.files:
        package = importlib.util.find_spec("skimage")  # does not import it, which takes a while
        folder = Path(package.origin).parent / "data" if package and package.origin else Path()
        images = [folder / file for file in image_set.files if (folder / file).is_file()]
        return (folder if images else None), images
    best: tuple[Path | None, list[Path]] = (None, [])
    for folder in _folders_called(image_set.folders, roots):
        images = [image for image in _images(folder) if image.stem != image_set.left_out]
        if len(images) >= image_set.needed:
            return folder, images
        best = max(best, (folder, images), key=lambda found: len(found[1]))
    return best


def _folders_called(names: Sequence[str], roots: Sequence[Path]) -> Iterator[Path]:
    wanted = {name.lower() for name in names}
    for root in roots:
        level = [root]  # SRLAB_DATA may name the set's folder itself
        for depth in range(4):
            if depth:
                level = [sub for folder in level for sub in _subfolders(folder)]
            yield from (folder for folder in level if folder.name.lower() in wanted)


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError:  # missing, or not ours to read
        return []
    return [folder / name for name in names]


def _images(folder: Path) -> list[Path]:
    for place in (folder, folder / "HR"):
        with suppress(ImageError, OSError):
            return list_images(place)
    return []


def _unknown(name: str | Path) -> DatasetError:
    return DatasetError(
        f"{str(name)!r} is neither an image set nor a folder{_close(name, DATASETS)}: "
        f"name one of {', '.join(DATASETS)}, or the path of your own folder of images."
    )


def cannot_fetch(name: str, known: Collection[str] = DATASETS) -> DatasetError:
    """The error for a name that is not among those known: it lists them and names the closest."""
    names = ", ".join(known)
    return DatasetError(f"{name!r} cannot be fetched{_close(name, known)}: name one of {names}.")


def _close(name: str | Path, known: Collection[str]) -> str:
    close = difflib.get_close_matches(str(name).lower(), known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _absent(image_set: ImageSet, folder: Path | None, found: int) -> DatasetError:
    name, what, again = image_set.name, "is not on this machine", ""
    if found:
        what, again = f"in {folder} has only {found} of {image_set.count} images", " again"
    if image_set.files:
        return DatasetError(f"{name} {what}: reinstall scikit-image, which contains it.")
    here = image_set.folders[0]
    todo = f"run `srlab fetch {name}`{again} ({image_set.size})"
    if not image_set.url:
        todo = f"get it from {image_set.homepage} and put it into {data_folders()[0] / here}"
    return DatasetError(f"{name} {what}: {todo} or point SRLAB_DATA at a folder that holds {here}.")


_MOST_BYTES = 50 * 10**9  # several times what the largest set unpacks to


def fetch(name: str, into: str | Path | None = None, progress: bool = True) -> list[Path]:
    """Download a named set, check it, unpack it. Returns at once, without network, if it is there.

    A download goes on where it was cut (``.part``); an archive that already lies in the folder,
    say from a browser, is used. It is unpacked beside its final place, so that no folder of the
    final name is ever half filled, and then deleted. Set5, Set14, BSD100 and Urban100 share one
    archive: fetching one of them unpacks all four.

    Args:
        into: where to put it, by default the first of :func:`data_folders`. For :func:`find` to
            see another folder, name it in ``SRLAB_DATA``.
        progress: show bars.

    Raises:
        DatasetError: unknown set, no connection, no space, no permission, or an archive that is
            not the published one or not safe to unpack.
    """
    if (image_set := DATASETS.get(name)) is None:
        raise cannot_fetch(name)
    roots = data_folders() if into is None else [Path(os.path.expanduser(into))]
    folder, images = _locate(image_set, roots)
    if len(images) >= image_set.needed:
        return images
    if not image_set.url:
        raise _absent(image_set, folder, len(images))
    root, shared = roots[0], [s for s in DATASETS.values() if s.url == image_set.url]
    try:
        with only_here(root, "a download"):
            archive = root / PurePosixPath(image_set.url).name
            download(image_set.url, archive, image_set.checksum, progress)
            wanted = [s for s in shared if len(_locate(s, [root])[1]) < s.needed]
            _unpack(archive, wanted, progress)
            archive.unlink()
    except DownloadError as error:
        raise DatasetError(str(error)) from error
    except OSError as error:
        why = error.strerror or error
        raise DatasetError(f"Cannot write to {root} ({why}): name another folder.") from error
    return _locate(image_set, [root])[1]


class _Member(NamedTuple):
    path: PurePosixPath
    nbytes: int
    plain: bool  # neither a link nor a device
    open: Callable[[], Any]  # a binary file to read


@contextmanager
def _opened(archive: Path) -> Iterator[list[_Member]]:
    """All files in a zip or tar, ready to be read."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as file:
            infos = [i for i in file.infolist() if not i.is_dir()]
            links = [stat.S_ISLNK(i.external_attr >> 16) for i in infos]
            yield [
                _Member(PurePosixPath(i.filename), i.file_size, not link, partial(file.open, i))
                for i, link in zip(infos, links, strict=True)
            ]
    else:
        with tarfile.open(archive) as tar:
            yield [
                _Member(PurePosixPath(m.name), m.size, m.isreg(), partial(tar.extractfile, m))
                for m in tar
                if not m.isdir()
            ]


def _unpack(archive: Path, sets: Sequence[ImageSet], progress: bool) -> None:
    """Unpack the HR images of each set into a folder beside the archive, all of them or none."""
    scratch = archive.with_name(f".{archive.name}.unpacking")
    shutil.rmtree(scratch, ignore_errors=True)  # left behind by an attempt that was killed
    try:
        with _opened(archive) as members:
            _require_safe(archive, members)
            for image_set in sets:
                folder = scratch / image_set.folders[0]
                folder.mkdir(parents=True)
                member = PurePosixPath(image_set.member)
                inside = [m for m in members if m.path.parent == member]
                wanted = [m for m in inside if is_picture(m.path)]
                for m in tqdm(wanted, desc=f"unpacking {image_set.name}", disable=not progress):
                    with m.open() as source, (folder / m.path.name).open("wb") as target:
                        shutil.copyfileobj(source, target, 1 << 20)
                if (found := len(_images(folder))) != image_set.count:
                    raise DatasetError(
                        f"{archive} holds {found} of the {image_set.count} images of "
                        f"{image_set.name} in {image_set.member}: delete it and fetch again."
                    )
                final = archive.parent / folder.name
                if final.exists():  # incomplete: fill it up, take nothing away
                    for file in folder.iterdir():
                        file.replace(final / file.name)
                else:
                    folder.replace(final)
    except (zipfile.BadZipFile, tarfile.TarError) as error:
        raise DatasetError(f"{archive} cannot be unpacked ({error}): delete it.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _require_safe(archive: Path, members: Sequence[_Member]) -> None:
    """Refuse links, names that lead out of the folder, and more bytes than there can be."""
    for m in members:
        # Backslashes and colons lead out on Windows.
        if not m.plain or m.path.is_absolute() or ".." in m.path.parts or {*"\\:"} & {*str(m.path)}:
            raise DatasetError(
                f"{archive} is not safe and was not unpacked: its member {m.path} is a link or "
                "leads out of the folder; delete the archive."
            )
    nbytes = sum(m.nbytes for m in members)
    if nbytes > _MOST_BYTES:
        raise DatasetError(
            f"{archive} is not safe and was not unpacked: {nbytes / 1e9:.0f} GB would come out of "
            "it, more than any set here has; delete the archive."
        )
    require_space(archive.parent, nbytes)
