"""As `asks`, of which there is one instance."""

import importlib.util
import pathlib

_file = pathlib.Path(__file__).parents[2] / "asks" / "1" / "model.py"
_spec = importlib.util.spec_from_file_location("asks", _file)
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
TritonPythonModel = _module.TritonPythonModel
