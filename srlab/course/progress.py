"""How far a learner has come: the checks' record against the exercises that the chapters hold."""

import html
import re
from dataclasses import dataclass
from pathlib import Path

from srlab.course.paths import notebooks, read_json, runs_folder
from srlab.errors import SrlabError

EMPTY = "nothing attempted yet"
MARKS = {"correct": ("✓", "solved"), "not yet": ("~", "tried"), None: ("·", "not attempted")}


@dataclass(frozen=True)
class Progress:
    """Shown as a table; as text where there is no HTML.

    Attributes:
        record: number of each exercise that was tried -> ``"correct"`` or ``"not yet"``.
        chapters: title of each chapter -> the numbers of its exercises.
    """

    record: dict[str, str]
    chapters: dict[str, list[str]]

    def __repr__(self) -> str:
        if not self.record:
            return EMPTY
        rows = [(title, *self._marks(numbers)) for title, numbers in self.chapters.items()]
        rows.append(("✓ solved  ~ tried", "", self._total()))
        wide, marked = (max(len(row[i]) for row in rows) for i in (0, 1))
        return "\n".join(f"{title:{wide}}  {m:{marked}}  {count}" for title, m, count in rows)

    def _repr_html_(self) -> str:
        if not self.record:
            return f"<p>{EMPTY}</p>"
        rows = []
        for title, numbers in self.chapters.items():
            cells = []
            for number in numbers:
                mark, meaning = MARKS[self.record.get(number)]
                cells.append(f'<span title="{number}: {meaning}">{mark} {number}</span>')
            rows.append(
                f'<tr><td style="text-align: left">{html.escape(title)}'
                f'<td style="text-align: left">{" &nbsp; ".join(cells)}'
                f"<td>{self._marks(numbers)[1]}"
            )
        head = '<th style="text-align: left">'
        return (
            f"<table><tr>{head}Chapter{head}Exercises: ✓ solved, ~ tried{head}Solved"
            f"{''.join(rows)}<tr><td><td><td>{self._total()}</table>"
        )

    def _marks(self, numbers: list[str]) -> tuple[str, str]:
        verdicts = [self.record.get(number) for number in numbers]
        marks = "".join(MARKS[verdict][0] for verdict in verdicts)
        return marks, f"{verdicts.count('correct')} of {len(numbers)}"

    def _total(self) -> str:
        return self._marks([n for numbers in self.chapters.values() for n in numbers])[1]


def progress() -> Progress:
    """What was solved and tried on this computer so far, chapter by chapter.

    The checks keep their record in ``progress.json`` in the runs folder; a damaged one counts as
    empty, and so does what in it belongs to no exercise.
    """
    try:
        chapters = dict(_exercises(path) for path in notebooks())
        record = read_json(runs_folder() / "progress.json")
    except SrlabError:  # no course here: srlab is used without its notebooks
        return Progress({}, {})
    known = {number for numbers in chapters.values() for number in numbers}
    sound = {n: v for n, v in record.items() if n in known and v in ("correct", "not yet")}
    return Progress(sound, chapters)


def _exercises(notebook: Path) -> tuple[str, list[str]]:
    """A chapter's title, and the numbers that its cells hand to :mod:`srlab.course.check`."""
    cells = read_json(notebook).get("cells", [])
    text, code = (
        "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == kind)
        for kind in ("markdown", "code")
    )
    title = re.search(r"^# (.+)", text, re.MULTILINE)
    calls = set(re.findall(r'\bcheck\.\w+\(\s*"(\d\d-\d+)"', code))
    in_order = sorted(calls, key=lambda number: int(number.split("-")[1]))
    return title[1].strip() if title else notebook.stem, in_order
