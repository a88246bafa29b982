"""Which compressed-tensors checkpoints the engine reads: `pack-quantized` INT4 in symmetric groups of 32, as Kimi K2 ships."""

from __future__ import annotations

from kcode_backend.errors import ModelFileError
from kcode_backend.weights.metadata import Metadata

_SECTION = "quantization_config"
_WANTED = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}


def check_quantization(config: Metadata) -> None:
    """`config`: config.json with dots between nested keys. ModelFileError names the value that is not read.

    Which modules are quantised is not asked: a weight that is has the tensors of one (see safetensors.py), whatever the
    list of ignored modules says.
    """
    if not any(key.startswith(f"{_SECTION}.") for key in config.values):
        return
    for key, wanted in (("quant_method", "compressed-tensors"), ("format", "pack-quantized")):
        value = config.optional_text(f"{_SECTION}.{key}")
        if value != wanted:
            raise ModelFileError(f"{_SECTION}.{key} is {value!r}; only {wanted!r} is supported")
    prefix = f"{_SECTION}.config_groups."
    groups = sorted({key.removeprefix(prefix).partition(".")[0] for key in config.values if key.startswith(prefix)})
    if not groups:
        raise ModelFileError(f"{_SECTION} has no config_groups")
    for group in groups:
        for name, wanted in _WANTED.items():
            value = config.values.get(f"{prefix}{group}.weights.{name}")
            if value != wanted:
                raise ModelFileError(f"{prefix}{group}.weights.{name} is {value!r}; only {wanted!r} is supported")
        for name in ("weights.actorder", "input_activations.num_bits"):
            value = config.values.get(f"{prefix}{group}.{name}")
            if value is not None and value is not False:
                raise ModelFileError(f"{prefix}{group}.{name} is {value!r}, which is not supported")
