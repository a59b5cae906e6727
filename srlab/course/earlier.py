"""What an earlier chapter would have produced: from its own run, or a released model instead."""

from typing import TYPE_CHECKING

from srlab.course.paths import CourseError, chapter_run

if TYPE_CHECKING:
    from torch import nn


def earlier_generator(
    chapter: int | str, name: str, profile: str, prefer: str = "own", instead: str = "srresnet"
) -> "tuple[nn.Module, str]":
    """A pre-trained generator for a chapter to start from, and a sentence that says which it is.

    Args:
        chapter: the chapter that saves ``<name>.safetensors``.
        profile: of the run to look in.
        prefer: ``"own"`` takes the chapter's run if there is one, ``"released"`` the released
            model of that name if there is one; either falls back to the other.
        instead: the released model to take if there is none of that name.

    Raises:
        CourseError: ``prefer`` is something else.
    """
    from srlab.models import zoo

    if prefer not in ("own", "released"):
        raise CourseError(f"adversarial_start must be 'own' or 'released', got {prefer!r}.")
    file = chapter_run(chapter, profile) / f"{name}.safetensors"
    released = name if name in zoo.released() else instead
    if file.is_file() and (prefer == "own" or name not in zoo.released()):
        return zoo.load(file), f"{name} from this computer's run of chapter {chapter}"
    if prefer == "own":
        return zoo.load(released), f"released {released}, as chapter {chapter} has not run here"
    return zoo.load(released), f"released {released}"
