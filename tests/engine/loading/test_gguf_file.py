"""A GGUF file's header: damage of any kind is a ModelError."""

import random
import struct

import pytest

from engine.errors import ModelError
from engine.loading.gguf_file import GGUFFile
from engine.loading.resolve import resolve_model


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"GG", "is not a GGUF file"),
        (b"PK\x03\x04 a zip", "is not a GGUF file"),
        (b"GGUF", "damaged or cut short"),
        (b"GGUF\x01\0\0\0" + bytes(16), "version 1; versions 2 and 3"),
        (b"GGUF\0\0\0\x03" + bytes(16), "version 50331648"),
        (b"GGUF\x03\0\0\0" + bytes(8) + b"\xff" * 8, "damaged or cut short"),
        (b"GGUF\x03\0\0\0" + b"\xff" * 8 + bytes(8), "damaged or cut short"),
    ],
    ids=["empty", "two bytes", "zip", "magic only", "version 1", "big-endian", "endless keys", "endless tensors"],
)
def test_a_file_that_is_no_gguf_is_refused(tmp_path, content, message):
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        resolve_model(str(tmp_path / "model.gguf")).read_config()


def test_a_header_cut_short_anywhere_is_refused(tiny_gguf, tmp_path):
    whole, cut = tiny_gguf.read_bytes(), tmp_path / "cut.gguf"
    end = max(whole.rfind(name.encode()) for name in ("output.weight", "model.norm", "blk.2.ffn_up.weight"))
    places = sorted({*range(4, 400), *range(400, end, 61), *range(end - 100, end)})
    for place in places:
        cut.write_bytes(whole[:place])
        with pytest.raises(ModelError, match="damaged or cut short"):
            GGUFFile(cut)


def test_flipped_bytes_in_the_header_raise_nothing_but_model_errors(tiny_gguf, tmp_path):
    rng, whole = random.Random(0), tiny_gguf.read_bytes()
    size, refused = min(tensor.offset for tensor in GGUFFile(tiny_gguf).tensors.values()), 0
    for round_ in range(600):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            # half of the flips hit the keys before the vocabulary, which is most of the header
            damaged[rng.randrange(4, 700 if round_ % 2 else size)] = rng.choice([0, 1, 7, 9, 255, rng.randrange(256)])
        path = tmp_path / "damaged.gguf"
        path.write_bytes(damaged)
        try:
            resolve_model(str(path)).read_config()
        except ModelError:
            refused += 1
    assert refused > 100


def test_arrays_nested_without_end_are_refused(tmp_path):
    nested = b"".join([(9).to_bytes(4, "little"), (1).to_bytes(8, "little")] * 5000)
    key = (1).to_bytes(8, "little") + b"k"
    header = b"GGUF\x03\0\0\0" + bytes(8) + (1).to_bytes(8, "little")
    (tmp_path / "model.gguf").write_bytes(header + key + (9).to_bytes(4, "little") + nested)
    with pytest.raises(ModelError, match="damaged"):
        GGUFFile(tmp_path / "model.gguf")


def text(value):
    return struct.pack("<Q", len(value)) + value


def entry(name, shape=(32,), offset=0):
    """A directory's entry of an F32 tensor."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, offset)


def header(*entries, keys=()):
    return b"GGUF" + struct.pack("<IQQ", 3, len(entries), len(keys)) + b"".join(keys) + b"".join(entries)


FLOAT_ALIGNMENT = text(b"general.alignment") + struct.pack("<If", 6, float("nan"))
INT_ALIGNMENT = text(b"general.alignment") + struct.pack("<I", 5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(keys=[FLOAT_ALIGNMENT]), "alignment is nan, expected a power of two"),
        (header(keys=[INT_ALIGNMENT + struct.pack("<i", -32)]), "alignment is -32"),
        (header(keys=[INT_ALIGNMENT + struct.pack("<i", 1)]), "alignment is 1,"),
        (header(keys=[INT_ALIGNMENT + struct.pack("<i", 48)]), "alignment is 48"),
        (header(keys=[INT_ALIGNMENT + struct.pack("<i", 64)] * 2), "key 'general.alignment' is there twice"),
        (header(entry(b"a"), entry(b"a", offset=128)), "tensor a is there twice"),
        (header(entry(b"")), "a tensor has no name"),
        (header(entry(b"x" * 256)), "a text of 256 bytes"),
        (header(entry(b"a", offset=33)), "a lies at 33"),
        (header(entry(b"a", (1 << 63, 0))), "for which the file is too short"),
        (header(entry(b"a", (1,) * 5)), "a tensor of 5 dimensions"),
        (header(text(b"a") + b"\xff" * 4), "a tensor of 4294967295 dimensions"),
        (header(keys=[struct.pack("<Q", 1 << 36)]), f"a text of {1 << 36} bytes"),
        (header(keys=[struct.pack("<Q", 1 << 29)]), f"a text of {1 << 29} bytes"),
        (header(keys=[text(b"a") + struct.pack("<IIQ", 9, 9, 1 << 20)]), "an array of type 9"),
        (header(keys=[text(b"%d" % n) + struct.pack("<IIQ", 9, 0, 3 << 20) + bytes(3 << 20) for n in (1, 2)]), "count"),
    ],
    ids=[
        "alignment nan", "alignment -32", "alignment 1", "alignment 48", "key twice", "tensor twice", "no name",
        "long name", "unaligned", "huge and empty", "5 dimensions", "endless dimensions", "text beyond the file",
        "text beyond the header", "arrays of arrays", "many elements in sum",
    ],
)  # fmt: skip
def test_a_header_that_lies_is_refused_at_once_even_in_a_sparse_file(tmp_path, content, message):
    with (tmp_path / "model.gguf").open("wb") as file:
        file.write(content)
        file.truncate(1 << 33)
    with pytest.raises(ModelError, match=f"damaged or cut short.*{message}"):
        GGUFFile(tmp_path / "model.gguf")


def test_a_text_behind_the_end_is_refused(tmp_path):
    (tmp_path / "model.gguf").write_bytes(header(keys=[struct.pack("<Q", 10) + b"short"]))
    with pytest.raises(ModelError, match="a text of 10 bytes"):
        GGUFFile(tmp_path / "model.gguf")
