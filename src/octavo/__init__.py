"""Octavo serves AI models at scale from one small, readable code base."""

__version__ = "0.1.0"
