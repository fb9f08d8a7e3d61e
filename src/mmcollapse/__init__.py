"""A compendium on multi-modal model collapse: generators and captioners trained on their own outputs."""

__version__ = "0.1.0"
