"""Blocks, generators, critics, VGG features, and the files that hold their weights."""
