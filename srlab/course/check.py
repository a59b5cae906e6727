"""Exercises that check themselves, kindly: nothing a learner writes ends in a traceback here.

An exercise cell leaves a function or a value as ``...``; the cell below checks it::

    check.function("02-1", pixel_shuffle, F.pixel_shuffle, [(x, 2), (x, 4)],
                   hints=[(lambda got, expected: got.shape != expected.shape, "Which axes ...?")])
    check.value("02-2", my_answer, expected=256, hint="Count the channels before the shuffle.")

Untouched exercises say "not attempted yet", so a chapter runs from top to bottom without them.
"""

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from srlab.course.paths import read_json, runs_folder, write_json
from srlab.errors import SrlabError

Hint = str | tuple[Callable[[Any, Any], bool], str]


def function(
    number: str,
    attempt: Callable | None,
    reference: Callable,
    inputs: Sequence[Any],
    hints: Sequence[Hint] = (),
) -> None:
    """Compare a learner's function with the reference and print the verdict.

    Args:
        number: of the exercise, ``"<chapter>-<n>"``.
        attempt: the learner's function, or what the cell left in its place.
        reference: the function to be reproduced. Both are called on copies of the same inputs
            and from the same state of torch's random numbers.
        inputs: one call each: a tuple of arguments, or a single argument.
        hints: the first that fits is printed below a wrong result. A hint is a text, or a test
            of (got, expected) and a text.
    """
    if attempt is None or attempt is ...:
        return _report(number, "not attempted yet")
    for arguments in inputs:
        arguments = arguments if isinstance(arguments, tuple) else (arguments,)
        given = f"input:    {', '.join(map(_show, arguments))}"
        expected = _call(reference, arguments)
        try:
            got = _call(attempt, arguments)
        except Exception as error:
            # A half-filled template computes with `...`, and Python says so by that name.
            if isinstance(error, NotImplementedError) or "ellipsis" in str(error):
                return _report(number, "not attempted yet")
            return _report(number, "not yet", given, _raised(error, attempt))
        if got is ... or (got is None and expected is not None):
            return _report(number, "not attempted yet", "the function returns nothing so far")
        if difference := _difference(got, expected):
            hint = _first_hint(hints, got, expected)
            return _report(number, "not yet", given, *difference.split("\n"), hint)
    _report(number, "correct")


def value(number: str, answer: Any, expected: Any, tolerance: float = 0, hint: str = "") -> None:
    """Check a predicted value and print the verdict, which does not give the value away.

    Args:
        expected: a number, a text (compared without regard to case), a shape or a tensor.
        tolerance: largest accepted absolute difference of numbers.
    """
    if answer is None or answer is ...:
        return _report(number, "not attempted yet")
    if isinstance(expected, str):
        answer, expected = str(answer).strip().lower(), expected.lower()
    if _difference(answer, expected, tolerance):
        if isinstance(answer, str) and isinstance(expected, int | float):
            hint = "the answer is a number, so write it without quotes"
        return _report(number, "not yet", f"{_show(answer)} is not it", hint and f"hint: {hint}")
    _report(number, "correct")


def _call(function: Callable, arguments: tuple) -> Any:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return function(*copy.deepcopy(arguments))


def _difference(got: Any, expected: Any, tolerance: float = 0) -> str:
    """What tells ``got`` from ``expected``, one finding a line; empty if nothing does.

    Whole numbers must be equal; others may differ by ``tolerance``, or else by a rounding error.
    """
    import torch

    both = f"expected: {_show(expected)}\ngot:      {_show(got)}"
    relative, absolute = (0, tolerance) if tolerance else (1e-4, 1e-6)
    if isinstance(expected, (tuple, list)):
        if not isinstance(got, (tuple, list)) or len(got) != len(expected):
            return both
        pairs = zip(got, expected, strict=True)
        return next((found for pair in pairs if (found := _difference(*pair, tolerance))), "")
    try:
        if isinstance(expected, torch.Tensor):
            got, expected = (torch.as_tensor(x).detach().cpu().double() for x in (got, expected))
            if got.shape != expected.shape:
                return both
            if torch.allclose(got, expected, relative, absolute):
                return ""
            gap = (got - expected).abs()
            where = tuple(map(int, np.unravel_index(int(gap.argmax()), gap.shape)))
            return f"{both}\nlargest difference: {gap.max():.3g}, at index {where}"
        if isinstance(expected, float):
            same = math.isclose(got, expected, rel_tol=relative, abs_tol=absolute)
        elif isinstance(expected, int):
            same = abs(got - expected) <= tolerance
        else:
            same = got == expected
        return "" if same else both
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return both  # got is of a kind that cannot be compared


def _first_hint(hints: Sequence[Hint], got: Any, expected: Any) -> str:
    for hint in hints:
        fits, text = (None, hint) if isinstance(hint, str) else hint
        try:
            if fits is None or fits(got, expected):
                return f"hint: {text}"
        except Exception:  # a hint's test may trip over what the learner returned
            continue
    return ""


def _show(x: Any) -> str:
    import torch

    if isinstance(x, torch.Tensor):
        values = f": {[round(v, 4) for v in x.flatten().tolist()]}" if x.numel() <= 6 else ""
        return f"tensor of shape {tuple(x.shape)}{values}"
    text = f"{x:.6g}" if isinstance(x, float) else repr(x)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _raised(error: Exception, attempt: Callable) -> str:
    frame = error.__traceback__
    while frame and frame.tb_frame.f_code is not getattr(attempt, "__code__", None):
        frame = frame.tb_next
    line = f" in line {frame.tb_lineno} of its cell" if frame else ""
    return f"your code raised {type(error).__name__}{line}: {error}"


def _report(number: str, verdict: str, *details: str) -> None:
    print(f"exercise {number}: {verdict}")
    for line in filter(None, details):
        print(f"  {line}")
    if verdict != "not attempted yet":
        _record(number, verdict)


def _record(number: str, verdict: str) -> None:
    """Keep the verdict in ``runs/progress.json``; solved stays solved. A check never needs it."""
    with suppress(SrlabError, OSError):
        path = runs_folder() / "progress.json"
        progress = read_json(path)
        if progress.get(number) != "correct":
            write_json(path, {**progress, number: verdict})
