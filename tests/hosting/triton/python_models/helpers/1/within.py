import torch


def twice(tensor):
    x = torch.from_dlpack(tensor.to_dlpack())
    assert x.dtype is torch.bfloat16
    return x * 2
