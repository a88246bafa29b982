"""The GGUF reader against gguf's own writer and reader, and against damage."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from kcode_backend.errors import ModelFileError
from kcode_backend.weights.gguf import TENSOR_TYPES, GGUFFile

WriteTiny = Callable[..., Path]


@pytest.fixture
def small_file(tmp_path: Path) -> Path:
    """All metadata types and three tensors in a header of a few hundred bytes."""
    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_uint8("u8", 255)
    writer.add_int8("i8", -128)
    writer.add_uint16("u16", 65535)
    writer.add_int16("i16", -32768)
    writer.add_uint32("u32", 2**32 - 1)
    writer.add_int32("i32", -(2**31))
    writer.add_uint64("u64", 2**64 - 1)
    writer.add_int64("i64", -(2**63))
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_string("text", "Grüße\n")
    writer.add_array("numbers", [1, 2, 3])
    writer.add_array("words", ["a", "", "çé"])
    writer.add_tensor("a", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("b", np.arange(4, dtype=np.float16))
    writer.add_tensor(
        "c",
        gguf.quants.quantize(np.ones((2, 64), np.float32), gguf.GGMLQuantizationType.Q8_0),
        raw_dtype=gguf.GGMLQuantizationType.Q8_0,
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_reads_what_the_reference_writer_wrote(small_file: Path) -> None:
    file = GGUFFile(small_file)
    assert file.metadata.values == {
        "general.architecture": "qwen2",
        "u8": 255,
        "i8": -128,
        "u16": 65535,
        "i16": -32768,
        "u32": 2**32 - 1,
        "i32": -(2**31),
        "u64": 2**64 - 1,
        "i64": -(2**63),
        "f32": 0.5,
        "f64": 0.1,
        "yes": True,
        "text": "Grüße\n",
        "numbers": (1, 2, 3),
        "words": ("a", "", "çé"),
    }
    assert {name: (info.shape, info.type.name) for name, info in file.tensors.items()} == {
        "a": ((2, 3), "F32"),
        "b": ((4,), "F16"),
        "c": ((2, 64), "Q8_0"),
    }
    assert file.data("a").view(np.float32).tolist() == [0, 1, 2, 3, 4, 5]
    assert file.data("b").view(np.float16).tolist() == [0, 1, 2, 3]


def test_tensor_types_are_those_of_the_reference() -> None:
    sizes = {kind.value: (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType}
    ours = {number: (kind.name, kind.block, kind.block_bytes) for number, kind in TENSOR_TYPES.items()}
    assert ours.items() <= sizes.items()


def test_any_flipped_header_byte_loads_or_is_refused(small_file: Path) -> None:
    good = small_file.read_bytes()
    header = GGUFFile(small_file).data_start
    damaged = small_file.with_name("damaged.gguf")
    messages: list[str] = []
    for position in range(header):
        for flip in (0x01, 0x80, 0xFF):
            damaged.write_bytes(good[:position] + bytes([good[position] ^ flip]) + good[position + 1 :])
            try:
                GGUFFile(damaged)
            except ModelFileError as error:
                messages.append(str(error))
    assert len(messages) > header
    assert [message for message in messages if "\n" in message or not message.startswith(f"{damaged}: ")] == []


def test_any_cut_file_is_refused(small_file: Path) -> None:
    good = small_file.read_bytes()
    cut = small_file.with_name("cut.gguf")
    for size in range(len(good)):
        cut.write_bytes(good[:size])
        if size >= GGUFFile(small_file).tensors["c"].start + GGUFFile(small_file).tensors["c"].size:
            continue
        with pytest.raises(ModelFileError, match=r"cut\.gguf: "):
            GGUFFile(cut)


def header(version: int = 3, tensors: int = 0, keys: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + rest


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def tensor(name: str, dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


PAD = bytes(4096)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"GGML" + PAD, "starts with b'GGML', not b'GGUF'"),
        (b"GG", "the file ends after 2 bytes: the magic needs 4, 2 are left"),
        (header(version=1) + PAD, "GGUF version 1 is not supported; supported: 2, 3"),
        (header(tensors=2**63) + PAD, "says 9223372036854775808 tensors; at most 128"),
        (header(keys=70000) + bytes(2_000_000), "says 70000 metadata keys; at most 65536"),
        (header(keys=1, rest=struct.pack("<Q", 2**40)) + PAD, "a metadata key is 1099511627776 bytes long, at most 256"),
        (header(keys=1, rest=text("k") + struct.pack("<IQ", 8, 2**62)) + PAD, "the value of k needs 4611686018427387904"),
        (header(keys=1, rest=text("k") + struct.pack("<I", 13)) + PAD, "metadata key k has the unknown type 13"),
        (header(keys=1, rest=text("k") + struct.pack("<IB", 7, 2)) + PAD, "metadata key k is a boolean with the value 2"),
        (header(keys=1, rest=text("k") + struct.pack("<IIQ", 9, 4, 2**33)) + PAD, "says 8589934592 items of k"),
        (header(keys=1, rest=text("k") + struct.pack("<IIQ", 9, 9, 1)) + PAD, "metadata key k is an array of arrays"),
        (header(keys=2, rest=(text("k") + struct.pack("<II", 4, 1)) * 2) + PAD, "metadata key k appears twice"),
        (header(keys=1, rest=struct.pack("<Q", 2) + b"\xff\xff") + PAD, r"a metadata key is not UTF-8: b'\xff\xff'"),
        (header(keys=1, rest=text("general.alignment") + struct.pack("<II", 4, 33)) + PAD, "general.alignment is 33"),
        (header(tensors=1, rest=tensor("t", [4], kind=99)) + PAD, "tensor t has the unknown type 99"),
        (header(tensors=1, rest=tensor("t", [])) + PAD, "tensor t has 0 dimensions, not 1 to 4"),
        (header(tensors=1, rest=tensor("t", [4, 0])) + PAD, "tensor t has the shape [0, 4] with an empty dimension"),
        (header(tensors=1, rest=tensor("t", [33], kind=8)) + PAD, "tensor t has rows of 33, not a multiple of Q8_0's 32"),
        (
            header(tensors=1, rest=tensor("t", [2**40])) + PAD,
            "the file is cut off: it has 4153 bytes, tensor t ends at 4398046511168",
        ),
        (header(tensors=1, rest=tensor("t", [4], offset=5)) + PAD, "tensor t is at offset 5, not a multiple of 32"),
        (header(tensors=2, rest=tensor("t", [4]) + tensor("t", [4], offset=32)) + PAD, "tensor t appears twice"),
        (header(tensors=2, rest=tensor("t", [16]) + tensor("u", [4], offset=32)) + PAD, "tensors t and u overlap at byte 128"),
    ],
    ids=lambda value: value.replace(" ", "-")[:40] if isinstance(value, str) else "",
)
def test_damage_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError) as caught:
        GGUFFile(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot be opened: No such file"):
        GGUFFile(tmp_path / "none.gguf")
    with pytest.raises(ModelFileError, match="cannot be opened: Is a directory"):
        GGUFFile(tmp_path)


@pytest.mark.model
def test_agrees_with_the_reference_reader_on_the_real_model(real_model: Path) -> None:
    ours, reference = GGUFFile(real_model), gguf.GGUFReader(real_model)
    theirs = {name: field.contents() for name, field in reference.fields.items() if not name.startswith("GGUF.")}
    assert {name: list(value) if isinstance(value, tuple) else value for name, value in ours.metadata.values.items()} == theirs
    assert list(ours.tensors) == [tensor.name for tensor in reference.tensors]
    for tensor in reference.tensors:
        info = ours.tensors[tensor.name]
        assert (info.shape, info.type.name) == (tuple(reversed(tensor.shape.tolist())), tensor.tensor_type.name)
        assert (info.start, info.size) == (tensor.data_offset, tensor.n_bytes)
