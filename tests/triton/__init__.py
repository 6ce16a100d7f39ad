"""Octavo beside the real Triton: one repository, the same requests, the answers compared. `make triton` runs it."""
