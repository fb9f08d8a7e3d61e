"""Metrics, one file for images, captions, alignment and truth. All take plain arrays and lists, and use no GPU."""
