"""Write a model as a float32 folder, for systems that do not read GGUF: `python export_float.py MODEL FOLDER`.

MODEL is a short name, a Hugging Face repository id, a folder or a .gguf file. The folder has its weights, its
configuration and its tokenizer: transformers loads it, and `octavo serve` serves it.

Run it with the Python that Octavo is installed in, with its test extra (for safetensors).
"""

import json
import sys
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from octavo.errors import OctavoError
from octavo.text.folder_tokenizer import read_folder_tokenizer
from octavo.text.gguf_tokenizer import read_gguf_tokenizer
from octavo.text.spec import TokenizerSpec
from octavo.weights.checkpoint import Checkpoint, open_checkpoint
from octavo.weights.hub import resolve


def main() -> None:
    """Convert the model given first into the folder given second."""
    if len(sys.argv) != 3:
        sys.exit("usage: export_float.py MODEL FOLDER")
    model, folder = sys.argv[1], Path(sys.argv[2])
    try:
        checkpoint = open_checkpoint(resolve(model))
        weights = {name: tensor.to_float32() for name, tensor in checkpoint.tensors.items()}
        tokenizer = tokenizer_of(checkpoint)
    except OctavoError as error:
        sys.exit(str(error))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", checkpoint.config)
    write_json(folder / "tokenizer_config.json", tokenizer_config(tokenizer))
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    for name, template in tokenizer.chat_templates.items():
        file = "chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja"
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(template, encoding="utf-8")


def tokenizer_of(checkpoint: Checkpoint) -> TokenizerSpec:
    """The tokenizer of a folder or of a GGUF file."""
    if checkpoint.gguf_metadata is None:
        return read_folder_tokenizer(checkpoint.path)
    return read_gguf_tokenizer(checkpoint.gguf_metadata)


def tokenizer_config(tokenizer: TokenizerSpec) -> dict[str, Any]:
    """What tokenizer.json does not say."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **tokenizer.special_tokens,
        "add_bos_token": bool(tokenizer.prefix_ids),
        "add_eos_token": bool(tokenizer.suffix_ids),
    }


def write_json(path: Path, value: object) -> None:
    """Write one of the small files."""
    path.write_text(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    main()
