"""Triton's Python backend: a `model.py` with a `TritonPythonModel` runs as it is.

Names, arguments, values and messages of what models import are those of Triton's `triton_python_backend_utils`.
"""
