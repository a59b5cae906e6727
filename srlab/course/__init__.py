"""What a chapter needs beside the package it teaches: settings, real source, checked exercises.

::

    from srlab import course

    settings = course.begin("02", globals())
    course.source(ResidualBlock)
    course.check.value("02-1", my_answer, expected=256)
"""

from srlab.course import check
from srlab.course.earlier import earlier_generator
from srlab.course.paths import chapter_run
from srlab.course.progress import progress
from srlab.course.run import run_course
from srlab.course.settings import begin, settings
from srlab.course.show import source

__all__ = [
    "begin",
    "chapter_run",
    "check",
    "earlier_generator",
    "progress",
    "run_course",
    "settings",
    "source",
]
