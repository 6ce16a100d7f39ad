"""Octavo inside a Python program: `LLM` for text, `create_app` for a server within one's own. See `octavo`."""
