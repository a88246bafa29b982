"""What the operations on a GPU ask of their tensors; ValueErrors that name the numbers."""

from __future__ import annotations

import torch


def contiguous(name: str, tensor: torch.Tensor) -> None:
    if tensor.dtype is not torch.bfloat16 or not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous bfloat16, got {tensor.dtype} {tuple(tensor.shape)}")


def matrix(name: str, tensor: torch.Tensor) -> None:
    contiguous(name, tensor)
    if tensor.dim() != 2:
        raise ValueError(f"{name} must be a matrix, got {tuple(tensor.shape)}")


def token_heads(name: str, tensor: torch.Tensor) -> None:
    if tensor.dtype is not torch.bfloat16 or tensor.dim() != 3 or tensor.stride()[1:] != (tensor.shape[2], 1):
        raise ValueError(f"{name} must be bfloat16 [n, heads, d], heads side by side, got {tensor.dtype} {tuple(tensor.shape)}")


def vector(name: str, tensor: torch.Tensor, size: int) -> None:
    contiguous(name, tensor)
    if tensor.shape != (size,):
        raise ValueError(f"{name} must have shape ({size},), got {tuple(tensor.shape)}")


def same_device(*tensors: torch.Tensor) -> None:
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        raise ValueError(f"the tensors are on several devices: {', '.join(sorted(str(device) for device in devices))}")


def table(name: str, tensor: torch.Tensor, dtype: torch.dtype, rows: int, columns: int | None = None) -> None:
    """[rows, columns], contiguous; any number of columns where None."""
    if (
        tensor.dtype is not dtype
        or tensor.dim() != 2
        or tensor.shape[0] != rows
        or columns not in {None, tensor.shape[1]}
        or not tensor.is_contiguous()
    ):
        wanted = f"{str(dtype).removeprefix('torch.')} [{rows}, {'any' if columns is None else columns}]"
        raise ValueError(f"{name} must be contiguous {wanted}, got {tensor.dtype} {tuple(tensor.shape)}")
