"""Rotary position embedding: the table of angles, with the known ways to stretch it to longer contexts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kcode_backend.config import RopeConfig


def rope_table(rope: RopeConfig, positions: int, factors: Tensor | None = None) -> Tensor:
    """float32 [positions, dims]: cosines in the first half of a row, sines in the second.

    factors: float32 [dims / 2]; each frequency is divided by its factor (Llama 3.1's scaling, given by the file).
    """
    # float64: at position 100,000 a float32 angle is off by 1 % of a radian.
    frequencies = _frequencies(rope)
    if factors is not None:
        frequencies = frequencies / factors.double()
    angles = torch.outer(torch.arange(positions, dtype=torch.float64), frequencies)
    magnitude = _magnitude(rope)
    return torch.cat((angles.cos() * magnitude, angles.sin() * magnitude), dim=-1).float()


def _frequencies(rope: RopeConfig) -> Tensor:
    """float64 [dims / 2]: radians per position."""
    exponents = torch.arange(0, rope.dims, 2, dtype=torch.float64) / rope.dims
    plain = rope.theta**-exponents
    if rope.scaling == "none":
        return plain
    stretched = plain / rope.factor
    if rope.scaling == "linear":
        return stretched
    # YaRN (arXiv 2309.00071): dimensions that turn often within the trained context stay, those that turn less than once are
    # stretched, with a ramp between.
    low, high = _yarn_range(rope)
    ramp = ((torch.arange(rope.dims // 2, dtype=torch.float64) - low) / max(high - low, 0.001)).clamp(0, 1)
    return plain * (1 - ramp) + stretched * ramp


def _yarn_range(rope: RopeConfig) -> tuple[int, int]:
    """First and last dimension of the ramp."""
    if rope.original_context is None:
        raise ValueError("yarn needs the original context length")
    context = rope.original_context

    def dimension(turns: float) -> float:
        return rope.dims * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    return max(math.floor(dimension(rope.beta_fast)), 0), min(math.ceil(dimension(rope.beta_slow)), rope.dims - 1)


def _magnitude(rope: RopeConfig) -> float:
    if rope.scaling != "yarn":
        return 1.0
    return rope.attention_factor * (1.0 + 0.1 * math.log(rope.factor))
