"""The model graph: its ops, how it is built, passes over it, what it costs. Knows no checkpoint, device or request."""
