"""Convert a GGUF file to Q4_0, the format llama.cpp is fastest with: `.peers/bin/python requantize.py IN OUT`."""

import ctypes
import sys
from pathlib import Path

import llama_cpp


def main() -> None:
    """Convert the file given first into the one given second."""
    if len(sys.argv) != 3:
        sys.exit("usage: requantize.py IN.gguf OUT.gguf")
    source, target = map(Path, sys.argv[1:])
    if not source.is_file():
        sys.exit(f"{source} is not a file")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    params.allow_requantize = True  # from 4 bits to 4 bits: for timing, not for answers
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    if status != 0:
        sys.exit(f"llama_model_quantize returned {status}; the reason is above")


if __name__ == "__main__":
    main()
