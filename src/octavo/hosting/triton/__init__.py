"""Triton's model repositories: what their folders and configurations say, and how Octavo serves it."""
