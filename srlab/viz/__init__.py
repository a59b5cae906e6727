"""What a chapter shows: ``figures`` (matplotlib) and ``widgets`` (ipywidgets)."""

from srlab.errors import require

require("course", "matplotlib", "ipywidgets")
