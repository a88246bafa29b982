"""Which experts serve a token, chosen on the GPU, so that nothing waits for the router's scores."""

from __future__ import annotations

from ctypes import c_float, c_int32

import torch

from kcode_backend.config import MoEConfig
from kcode_backend.cuda.checks import same_device, table
from kcode_backend.cuda.launching import MAX_SHARED_BYTES, Shape, launcher_for


def choose(logits: torch.Tensor, moe: MoEConfig, correction: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """As `layers.moe.Router.choose`: logits float32 [n, experts] -> ids int32 and shares float32, both [n, used], best first.

    correction: float32 [experts]. Of equal experts the first is taken. Experts in groups have no kernel.
    """
    table("logits", logits, torch.float32, logits.shape[0], moe.experts)
    if moe.groups > 1:
        raise ValueError(f"experts in {moe.groups} groups have no CUDA kernel")
    if not 1 <= moe.used <= moe.experts or moe.experts * 8 > MAX_SHARED_BYTES:
        raise ValueError(f"{moe.used} of {moe.experts} experts: at most {MAX_SHARED_BYTES // 8} can be chosen from")
    if correction is not None:
        table("correction", correction.view(1, -1), torch.float32, 1, moe.experts)
        same_device(logits, correction)
    n = logits.shape[0]
    ids, shares = logits.new_empty(n, moe.used, dtype=torch.int32), logits.new_empty(n, moe.used)
    if n:
        arguments = (
            logits, correction, c_int32(moe.experts), c_int32(moe.used), c_int32(moe.scoring == "softmax"),
            c_int32(moe.normalise), c_float(moe.scale), ids, shares,
        )  # fmt: skip
        launcher_for(logits.device).launch("route", Shape((n, 1), 32, moe.experts * 8), arguments)
    return ids, shares
