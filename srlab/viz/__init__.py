"""What a chapter shows: ``figures`` (matplotlib) and ``widgets`` (ipywidgets)."""
