"""Codes of levels as bytes: exact, close to their entropy, and refused where they are damaged.

Those of bits are in ``test_compression.py``.
"""

from __future__ import annotations

import math
import struct
import time
import tracemalloc
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bae_lens.entropy.stored_codes import CodeIndices, CodeLevels, read_codes
from tests.entropy.test_compression import indices_of, skewed_rates


def levels_of(levels: Tensor, n_levels: int, majority: Tensor | None = None) -> CodeLevels:
    """Codes ``[..., d_sae]`` of no SAE in particular."""
    if majority is None:
        majority = torch.zeros(levels.shape[-1], dtype=torch.uint8)
    rows = levels.reshape(-1, levels.shape[-1]).byte()
    differs = rows != majority
    return CodeLevels(
        tuple(levels.shape[:-1]),
        majority,
        differs.sum(1, dtype=torch.int32),
        differs.nonzero()[:, 1].int(),
        rows[differs],
        n_levels,
    )


def random_levels(*shape: int, n_levels: int, rate: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    on = torch.rand(*shape, generator=generator) < rate
    return on * torch.randint(1, n_levels + 1, shape, generator=generator)


def trained_levels(rates: Tensor, n: int, n_levels: int, seed: int = 0) -> Tensor:
    """As of a trained code: each latent with rates of firing and shares of levels of its own."""
    generator = torch.Generator().manual_seed(seed)
    on = torch.rand(n, len(rates), generator=generator) < rates
    # The level falls off from a first one, which most latents are at most often, at a rate of their own.
    stay = 0.2 + 0.6 * torch.rand(len(rates), generator=generator)
    further = torch.rand(n, len(rates), generator=generator).log() / stay.log()
    return on * (1 + further.floor()).clamp(max=n_levels)


def assert_same(one: CodeLevels, other: CodeLevels) -> None:
    assert (one.shape, one.n_levels) == (other.shape, other.n_levels)
    for name in ("majority", "lengths", "indices", "levels"):
        expected, actual = getattr(one, name), getattr(other, name)
        assert torch.equal(expected, actual), name
        assert expected.dtype == actual.dtype, name


# Bytes


@settings(max_examples=300, deadline=None)
@given(
    data=st.data(),
    seed=st.integers(0, 2**32 - 1),
    rate=st.sampled_from([0, 0.01, 0.2, 0.5, 1]),
    n_levels=st.sampled_from([1, 2, 3, 7, 255]),
)
def test_any_code_comes_back_from_its_bytes(data, seed, rate, n_levels):
    shape = data.draw(st.lists(st.integers(0, 12), max_size=3))
    d_sae = data.draw(st.integers(1, 40))
    levels = random_levels(*shape, d_sae, n_levels=n_levels, rate=rate, seed=seed)
    highest = data.draw(st.sampled_from([0, 1, n_levels]))
    generator = torch.Generator().manual_seed(seed)
    majority = torch.randint(0, highest + 1, (d_sae,), generator=generator).byte()
    codes = levels_of(levels, n_levels, majority)

    read = CodeLevels.from_bytes(codes.to_bytes())

    assert_same(read, codes)
    assert torch.equal(read.dense(), levels.byte())
    assert torch.equal(read.bits(), levels > 0)


def test_the_format_does_not_change_unnoticed():
    levels = torch.tensor([[0, 3, 1], [2, 3, 0], [1, 0, 0]])
    codes = levels_of(levels, 3, torch.tensor([0, 3, 0], dtype=torch.uint8))

    assert codes.to_bytes().hex() == FORMAT_2
    assert_same(CodeLevels.from_bytes(bytes.fromhex(FORMAT_2)), codes)


FORMAT_2 = "424145430203c1519b0301030000000400000000000000030000000000000001000000000000008c01000000000000002a01000000000000006c000100000000000000700100000000000000800100000000000000800000000000000000"


def example() -> bytes:
    return levels_of(random_levels(40, 30, n_levels=3, rate=0.3), 3).to_bytes()


def test_either_version_is_read_by_its_own_class_and_by_one_function():
    bits = indices_of(torch.tensor([[True, False], [True, True]])).to_bytes()

    assert isinstance(read_codes(bits), CodeIndices)
    assert isinstance(read_codes(example()), CodeLevels)
    with pytest.raises(ValueError, match=r"not bits: .*BAEC\\x02.*read_codes takes both"):
        CodeIndices.from_bytes(example())
    with pytest.raises(ValueError, match=r"not levels: .*BAEC\\x01.*read_codes takes both"):
        CodeLevels.from_bytes(bits)


@pytest.mark.parametrize("data", [b"", b"BAE", b"\x80\x04\x95 a pickle", b"BAEC\x03 a later one"])
def test_foreign_data_are_refused(data):
    for read in (CodeLevels.from_bytes, read_codes):
        with pytest.raises(ValueError, match=rf"Not codes of a BAE.*: {len(data)} bytes"):
            read(data)


def test_every_damaged_byte_and_every_cut_is_noticed():
    data = example()

    for i in range(len(data)):
        damaged = bytearray(data)
        damaged[i] ^= 1 << i % 8
        for bad in (bytes(damaged), data[:i]):
            with pytest.raises(ValueError, match=r"Not codes|cut short or damaged"):
                CodeLevels.from_bytes(bad)
    with pytest.raises(ValueError, match="cut short or damaged"):
        CodeLevels.from_bytes(data + b"\0")


def sealed(payload: bytes) -> bytes:
    """With its magic and a right checksum."""
    return b"BAEC\x02" + struct.pack("<I", zlib.crc32(payload)) + payload


def test_wrong_content_under_a_right_checksum_is_refused_or_is_another_code():
    payload = example()[9:]
    wrong = [payload[:end] for end in range(len(payload))] + [payload + b"\0"]
    # Behind the sizes and the shape, which may say anything.
    for i in range(22, len(payload)):
        wrong += [payload[:i] + bytes([payload[i] ^ 1 << b]) + payload[i + 1 :] for b in range(8)]

    messages = []
    for content in wrong:
        try:
            read = CodeLevels.from_bytes(sealed(content))
        except ValueError as error:
            messages.append(str(error))
        else:
            assert len(content) == len(payload)
            assert read.dense().shape == (40, 30)
            assert read.dense().max() <= 3
    assert len(messages) > len(wrong) / 2
    assert all("contradict themselves" in message for message in messages)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_content_under_a_right_checksum_is_refused_or_is_codes(data):
    payload = bytearray(data.draw(st.sampled_from([example()[9:], bytes.fromhex(FORMAT_2)[9:]])))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(payload) - 1)))
        end = data.draw(st.integers(at, min(len(payload), at + 12)))
        payload[at:end] = data.draw(st.binary(max_size=12))
    try:
        codes = CodeLevels.from_bytes(sealed(bytes(payload)))
    except ValueError:
        return
    assert len(codes.lengths) <= 2**22 + 64 * (len(payload) + 9)


@pytest.mark.parametrize(
    ("n_levels", "n_dims", "d_sae", "n_indices", "shape"),
    [
        (3, 1, 3, 0, (2**40,)),
        (3, 1, 3, 2**60, (2**20,)),
        (3, 1, 2**32 - 1, 0, (4,)),
        (255, 1, 2**32 - 1, 2**32, (2**22,)),
        (0, 1, 3, 0, (4,)),
        (3, 2, 3, 0, (2**63, 2)),
        (3, 255, 3, 0, (1,)),
    ],
)
def test_sizes_are_claims(n_levels, n_dims, d_sae, n_indices, shape):
    """Refused before anything is allocated for them."""
    payload = bytes([n_levels]) + struct.pack("<BIQ", n_dims, d_sae, n_indices)
    payload += struct.pack(f"<{len(shape)}Q", *shape) + example()[31:]
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"contradict themselves|max_vectors"):
            CodeLevels.from_bytes(sealed(payload))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


# How much there is to store


def entropy_of(levels: Tensor, n_levels: int) -> float:
    """Bits a vector, if each latent's level were told by itself: marginal of the support plus levels."""
    total = 0.0
    for level in range(n_levels + 1):
        share = (levels == level).double().mean(0)
        total -= torch.xlogy(share, share).sum().item() / math.log(2)
    return total


@pytest.mark.parametrize(
    ("n_levels", "n", "most"), [(3, 4096, 1.04), (7, 4096, 1.05), (7, 16_384, 1.03)]
)
def test_levels_of_a_trained_code_take_about_their_entropy(n_levels, n, most):
    levels = trained_levels(skewed_rates(30, 600), n, n_levels)
    codes = levels_of(levels, n_levels)

    ratio = codes.bits_per_vector / entropy_of(levels, n_levels)

    assert_same(CodeLevels.from_bytes(codes.to_bytes()), codes)
    assert 1 <= ratio <= most


def test_levels_that_are_mostly_the_highest_take_about_their_entropy():
    # Counted from the majority, a latent that is mostly on is no dearer than one that is mostly off.
    levels = 7 - trained_levels(skewed_rates(30, 600), 4096, 7)
    codes = levels_of(levels, 7, torch.full((600,), 7, dtype=torch.uint8))

    assert codes.bits_per_vector <= 1.06 * entropy_of(levels, 7)


def test_a_hundred_thousand_vectors_are_a_matter_of_seconds():
    n, rng = 100_000, torch.Generator().manual_seed(0)
    lengths = torch.full((n,), 60, dtype=torch.int32)
    indices = (torch.arange(60) * 19 + torch.randint(0, 19, (n, 60), generator=rng)).int().flatten()
    levels = torch.randint(1, 8, (n * 60,), generator=rng).byte()
    codes = CodeLevels((n,), torch.zeros(1140, dtype=torch.uint8), lengths, indices, levels, 7)
    started = time.process_time()

    read = CodeLevels.from_bytes(codes.to_bytes())

    assert time.process_time() - started < 30
    assert_same(read, codes)


# Errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_levels": 0}, "n_levels"),
        ({"n_levels": 256}, "n_levels"),
        ({"n_levels": 2}, "from 0 to 2; got a higher one"),
        ({"majority": torch.tensor([4, 0], dtype=torch.uint8)}, "from 0 to 3; got a higher one"),
        ({"majority": torch.zeros(2)}, "uint8"),
        ({"levels": torch.tensor([1, 3])}, "uint8"),
        ({"levels": torch.tensor([1], dtype=torch.uint8)}, "for each of 2 indices"),
        ({"levels": torch.tensor([0, 3], dtype=torch.uint8)}, "differ from the majority"),
        ({"indices": torch.tensor([1, 0], dtype=torch.int32)}, "ascend"),
        ({"shape": (2,)}, "For 2 vectors"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(changes, message):
    parts = {
        "shape": (1,),
        "majority": torch.zeros(2, dtype=torch.uint8),
        "lengths": torch.tensor([2], dtype=torch.int32),
        "indices": torch.tensor([0, 1], dtype=torch.int32),
        "levels": torch.tensor([1, 3], dtype=torch.uint8),
        "n_levels": 3,
    }
    CodeLevels(**parts)  # pyright: ignore[reportArgumentType]

    with pytest.raises(ValueError, match=message):
        CodeLevels(**parts | changes)  # pyright: ignore[reportArgumentType]
