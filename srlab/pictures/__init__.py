"""Pictures of any kind and size, enlarged: one in Python, or files, folders and streams."""
