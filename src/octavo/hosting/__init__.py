"""Models that are no language models: tensors in, tensors out."""
