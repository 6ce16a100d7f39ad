"""Triton's model repositories: what their folders and configurations say, and how Octavo serves it."""

from typing import Any

Config = Any
"""A `ModelConfig`: its class is made when the process starts, so that types cannot name it."""
