"""Write a model as a float32 folder, for systems that do not read GGUF: `python export_float.py IN.gguf FOLDER`.

Run it with the Python that Octavo is installed in, with its test extra (for safetensors).
"""

import json
import sys
from pathlib import Path

from safetensors.numpy import save_file

from octavo.errors import OctavoError
from octavo.weights.checkpoint import open_checkpoint


def main() -> None:
    """Convert the model given first into the folder given second."""
    if len(sys.argv) != 3:
        sys.exit("usage: export_float.py IN.gguf FOLDER")
    source, folder = map(Path, sys.argv[1:])
    try:
        checkpoint = open_checkpoint(source)
        weights = {name: tensor.to_float32() for name, tensor in checkpoint.tensors.items()}
    except OctavoError as error:
        sys.exit(str(error))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(checkpoint.config, indent=2) + "\n")


if __name__ == "__main__":
    main()
