"""Two loops, the recipes that they follow, and what a run keeps."""
