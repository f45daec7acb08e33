"""Codes stored as bytes come back exactly, take about their entropy, and refuse what is not theirs."""

from __future__ import annotations

import json
import math
import struct
import tracemalloc
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from sae_lens import SAE, TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata
from torch import Tensor

from bae_lens import BAE
from bae_lens.entropy.compression import (
    CodeIndices,
    CodeLevels,
    CompressionReport,
    compression_report,
    decode_from_indices,
    encode_to_indices,
    read_codes,
)
from bae_lens.nn import level_indices, marginal_entropy
from tests.helpers import (
    D_IN,
    D_SAE,
    make_activations,
    make_bae,
    make_training_bae,
    record_firing_rates,
)


def indices_of(bits: Tensor, majority: Tensor | None = None) -> CodeIndices:
    """Codes ``[..., d_sae]`` of no SAE in particular, built by a plain loop."""
    majority = torch.zeros(bits.shape[-1], dtype=torch.bool) if majority is None else majority
    rows = [
        [j for j, bit in enumerate(row) if bit != majority[j]]
        for row in bits.reshape(-1, bits.shape[-1]).tolist()
    ]
    return CodeIndices(
        tuple(bits.shape[:-1]),
        majority,
        torch.tensor([len(row) for row in rows], dtype=torch.int32),
        torch.tensor([j for row in rows for j in row], dtype=torch.int32),
    )


def independent_bits(rates: Tensor, n: int, seed: int = 0) -> CodeIndices:
    generator = torch.Generator().manual_seed(seed)
    bits = torch.rand(n, len(rates), generator=generator) < rates
    return CodeIndices(
        (n,),
        torch.zeros(len(rates), dtype=torch.bool),
        bits.sum(1, dtype=torch.int32),
        bits.nonzero()[:, 1].int(),
    )


def assert_same(one: CodeIndices | CodeLevels, other: CodeIndices | CodeLevels) -> None:
    assert type(one) is type(other)
    assert one.shape == other.shape
    for name in ("majority", "lengths", "indices"):
        expected, actual = getattr(one, name), getattr(other, name)
        assert torch.equal(expected, actual), name
        assert expected.dtype == actual.dtype, name


def bits_and_recons(sae, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        acts = sae.encode(x)
        return acts != 0, sae.decode(acts)


# A SAE's codes


@pytest.mark.parametrize("make", [make_bae, make_training_bae])
@pytest.mark.parametrize("shape", [(), (1,), (60,), (3, 20), (2, 3, 10)])
def test_bits_and_reconstruction_are_those_of_the_sae(make, shape):
    sae = make()
    x = make_activations(60)[: math.prod(shape)].reshape(*shape, D_IN)
    bits, recons = bits_and_recons(sae, x)

    codes = encode_to_indices(sae, x)
    read = CodeIndices.from_bytes(codes.to_bytes())

    assert_same(read, codes)
    assert torch.equal(read.bits(), bits)
    assert torch.equal(decode_from_indices(sae, read), recons)
    assert not recons.requires_grad


def test_batches_give_the_same_codes_and_reconstructions():
    # float64, so that no pre-activation is near enough to its threshold to differ.
    sae, x = make_bae(dtype="float64"), make_activations(101).double()
    whole = encode_to_indices(sae, x)

    codes = encode_to_indices(sae, x, batch_size=7)

    assert_same(codes, whole)
    torch.testing.assert_close(
        decode_from_indices(sae, codes, batch_size=13), decode_from_indices(sae, whole)
    )


def test_indices_are_those_of_the_bits_that_differ():
    sae, x = make_bae(), make_activations(50)
    bits, _ = bits_and_recons(sae, x)
    majority = bits.float().mean(0) > 0.5
    assert 3 < majority.sum() < D_SAE - 3

    assert_same(encode_to_indices(sae, x), indices_of(bits, majority))


@pytest.mark.parametrize("fill", [False, True])
def test_any_majority_gives_the_same_bits(fill):
    sae, x = make_bae(), make_activations(50)
    bits, recons = bits_and_recons(sae, x)
    majority = torch.full((D_SAE,), fill)

    codes = encode_to_indices(sae, x, majority)
    majority[:] = not fill
    read = CodeIndices.from_bytes(codes.to_bytes())

    assert (codes.majority == fill).all()
    assert codes.lengths.sum() == (bits != fill).sum()
    assert torch.equal(read.bits(), bits)
    assert torch.equal(decode_from_indices(sae, read), recons)


def test_a_tie_is_kept_where_the_release_loses_it():
    sae, x = make_bae(), make_activations(2)
    bits, _ = bits_and_recons(sae, x)
    tie = bits[0] != bits[1]
    assert tie.sum() > 3
    # The release: |bit − average| > 0.5 is never so at an average of 0.5, which rounds to off.
    average = bits.double().mean(0)
    release = average.round().bool() ^ ((bits.double() - average).abs() > 0.5)
    assert not release[:, tie].any()

    codes = encode_to_indices(sae, x)

    assert not codes.majority[tie].any()
    assert torch.equal(codes.bits(), bits)


def test_vectors_equal_to_the_majority_have_no_indices():
    sae, x = make_bae(), make_activations(1).expand(30, -1)

    codes = encode_to_indices(sae, x)

    assert codes.indices.numel() == 0
    assert codes.majority.any()
    assert torch.equal(
        CodeIndices.from_bytes(codes.to_bytes()).bits(), codes.majority.expand(30, -1)
    )
    # Nothing but the header, the majority and, for each bit, that it never differs.
    assert len(codes.to_bytes()) < 60


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4)])
def test_no_vectors(shape):
    sae, x = make_bae(), torch.zeros(*shape, D_IN)

    codes = encode_to_indices(sae, x)
    read = CodeIndices.from_bytes(codes.to_bytes())

    assert_same(read, codes)
    assert not codes.majority.any()
    assert read.bits().shape == (*shape, D_SAE)
    assert decode_from_indices(sae, read).shape == x.shape
    with pytest.raises(ValueError, match="no vector"):
        _ = codes.bits_per_vector
    with pytest.raises(ValueError, match="no vector"):
        compression_report(sae, x)


def test_a_code_of_one_bit():
    sae, x = make_training_bae(seed=2, d_sae=1, target_entropy=None), make_activations(50)
    bits, recons = bits_and_recons(sae, x)

    codes = CodeIndices.from_bytes(encode_to_indices(sae, x).to_bytes())

    assert 0 < bits.sum() < 50
    assert torch.equal(codes.bits(), bits)
    assert torch.equal(decode_from_indices(sae, codes), recons)
    assert compression_report(sae, x).fixed_width_bits == 0


def test_codes_of_a_saved_and_loaded_bae(tmp_path):
    training, x = make_training_bae(dtype="float64"), make_activations(400).double()
    record_firing_rates(training, x)
    assert training.mostly_on.any()
    training.save_inference_model(tmp_path)
    sae = SAE.load_from_disk(tmp_path)
    assert isinstance(sae, BAE)

    as_trained, as_saved = encode_to_indices(training, x), encode_to_indices(sae, x)

    # Bits that were mostly on are inverted on saving: the majority changes, what differs does not.
    assert torch.equal(as_saved.indices, as_trained.indices)
    assert torch.equal(as_saved.majority, as_trained.majority ^ sae.flipped)
    assert not torch.equal(as_saved.majority, as_trained.majority)
    read = CodeIndices.from_bytes(as_saved.to_bytes())
    assert torch.equal(decode_from_indices(sae, read), bits_and_recons(sae, x)[1])


def test_a_latent_whose_scale_is_zero_or_negative():
    sae, x = make_bae(), make_activations(50)
    sae.scale[0], sae.scale[1] = 0.0, -2.0
    bits, recons = bits_and_recons(sae, x)

    codes = encode_to_indices(sae, x)

    assert bits[:, 1].any()
    assert torch.equal(codes.bits(), bits)
    assert torch.equal(decode_from_indices(sae, codes), recons)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_vectors_of_another_dtype_than_the_sae(dtype):
    sae, x = make_bae(), make_activations(50).to(dtype)

    codes = encode_to_indices(sae, x)

    assert torch.equal(codes.bits(), bits_and_recons(sae, x)[0])
    assert decode_from_indices(sae, codes).dtype == torch.float32


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_a_sae_of_another_dtype(dtype):
    sae, x = make_bae(dtype=dtype), make_activations(50)
    bits, recons = bits_and_recons(sae, x)

    codes = encode_to_indices(sae, x)

    assert torch.equal(codes.bits(), bits)
    assert torch.equal(decode_from_indices(sae, codes), recons)


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_vectors_are_encoded_like_dense_ones(layout):
    sae, x = make_bae(), make_activations(50).relu()
    sparse = x.to_sparse(layout=layout)

    assert_same(encode_to_indices(sae, sparse), encode_to_indices(sae, x))
    assert compression_report(sae, sparse) == compression_report(sae, x)


# Bytes


@settings(max_examples=300, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1), rate=st.sampled_from([0, 0.01, 0.2, 0.5, 1]))
def test_any_code_comes_back_from_its_bytes(data, seed, rate):
    shape = data.draw(st.lists(st.integers(0, 12), max_size=3))
    d_sae = data.draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(seed)
    bits = torch.rand(*shape, d_sae, generator=generator) < rate
    majority = torch.rand(d_sae, generator=generator) < data.draw(st.sampled_from([0, 0.5, 1]))
    codes = indices_of(bits, majority)

    read = CodeIndices.from_bytes(codes.to_bytes())

    assert_same(read, codes)
    assert torch.equal(read.bits(), bits)


@settings(max_examples=200, deadline=None)
@given(
    bits=st_numpy.arrays(
        bool, st_numpy.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=20)
    ).filter(lambda bits: bits.shape[1] > 0)
)
def test_any_small_code_comes_back_from_its_bytes(bits):
    codes = indices_of(torch.from_numpy(bits))

    assert torch.equal(CodeIndices.from_bytes(codes.to_bytes()).bits(), torch.from_numpy(bits))


def test_a_rare_latent_among_many_vectors():
    bits = torch.zeros(100_000, 2, dtype=torch.bool)
    bits[[0, 77_777, 99_999], 1] = True
    codes = CodeIndices(
        (100_000,),
        torch.zeros(2, dtype=torch.bool),
        bits.sum(1, dtype=torch.int32),
        bits.nonzero()[:, 1].int(),
    )

    assert torch.equal(CodeIndices.from_bytes(codes.to_bytes()).bits(), bits)
    assert len(codes.to_bytes()) < 80


def test_the_format_does_not_change_unnoticed():
    codes = indices_of(torch.tensor([[True, False, True], [False, False, True]]))

    assert codes.to_bytes().hex() == FORMAT_1
    assert_same(CodeIndices.from_bytes(bytes.fromhex(FORMAT_1)), codes)


FORMAT_1 = "4241454301465fd743010300000003000000000000000200000000000000000100000000000000640100000000000000e0"


def example() -> bytes:
    return independent_bits(torch.linspace(0, 1, 30), 40).to_bytes()


def test_every_damaged_byte_is_noticed():
    data = example()

    for i in range(len(data)):
        damaged = bytearray(data)
        damaged[i] ^= 1 << i % 8
        with pytest.raises(ValueError, match=r"Not codes|checksum is wrong"):
            CodeIndices.from_bytes(bytes(damaged))


def test_every_cut_and_whatever_follows_is_noticed():
    data = example()

    for end in range(len(data)):
        with pytest.raises(ValueError, match=r"Not codes|cut short"):
            CodeIndices.from_bytes(data[:end])
    with pytest.raises(ValueError, match="cut short or damaged"):
        CodeIndices.from_bytes(data + b"\0")


@pytest.mark.parametrize("data", [b"", b"BAE", b"\x80\x04\x95 a pickle", b"BAEC\x02 a later one"])
def test_foreign_data_are_refused(data):
    with pytest.raises(ValueError, match=rf"Not codes of a BAE.*: {len(data)} bytes"):
        CodeIndices.from_bytes(data)


def test_wrong_content_under_a_right_checksum_is_refused_or_is_another_code():
    payload = example()[9:]
    wrong = [payload[:end] for end in range(len(payload))] + [payload + b"\0"]
    # Behind the sizes and the shape, which may say anything.
    for i in range(21, len(payload)):
        wrong += [payload[:i] + bytes([payload[i] ^ 1 << b]) + payload[i + 1 :] for b in range(8)]

    messages = []
    for content in wrong:
        try:
            read = CodeIndices.from_bytes(
                b"BAEC\x01" + struct.pack("<I", zlib.crc32(content)) + content
            )
        except ValueError as error:
            messages.append(str(error))
        else:
            assert len(content) == len(payload)
            assert read.bits().shape == (40, 30)
    assert len(messages) > len(wrong) / 2
    assert all("contradict themselves" in message for message in messages)


def sealed(payload: bytes) -> bytes:
    """With its magic and a right checksum."""
    return b"BAEC\x01" + struct.pack("<I", zlib.crc32(payload)) + payload


@pytest.mark.parametrize(
    ("n_dims", "d_sae", "n_indices", "shape"),
    [
        (1, 3, 0, (2**40,)),
        (1, 3, 2**60, (2**20,)),
        (1, 3, 2**64 - 1, (2**20,)),
        (1, 2**32 - 1, 0, (4,)),
        (2, 3, 0, (2**63, 2)),
        (2, 3, 0, (0, 2**64 - 1)),
        (255, 3, 0, (2**64 - 1,) * 255),
        (255, 3, 0, (1,)),
    ],
)
def test_sizes_are_claims(n_dims, d_sae, n_indices, shape):
    """Refused before anything is allocated for them."""
    payload = struct.pack("<BIQ", n_dims, d_sae, n_indices)
    payload += struct.pack(f"<{len(shape)}Q", *shape) + example()[30:]
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"contradict themselves|max_vectors"):
            CodeIndices.from_bytes(sealed(payload))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_more_vectors_than_bytes_tell_need_a_word():
    n = 2**22 + 10**4
    codes = CodeIndices(
        (n,),
        torch.zeros(2, dtype=torch.bool),
        torch.zeros(n, dtype=torch.int32),
        torch.zeros(0, dtype=torch.int32),
    )
    data = codes.to_bytes()
    with pytest.raises(ValueError, match=f"of shape .{n},"):
        CodeIndices.from_bytes(data)
    assert CodeIndices.from_bytes(data, max_vectors=n).shape == (n,)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_content_under_a_right_checksum_is_refused_or_is_codes(data):
    payload = bytearray(data.draw(st.sampled_from([example()[9:], bytes.fromhex(FORMAT_1)[9:]])))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(payload) - 1)))
        end = data.draw(st.integers(at, min(len(payload), at + 12)))
        payload[at:end] = data.draw(st.binary(max_size=12))
    try:
        codes = CodeIndices.from_bytes(sealed(bytes(payload)))
    except ValueError:
        return
    assert len(codes.lengths) <= 2**22 + 64 * (len(payload) + 9)


# How much there is to store


def skewed_rates(n_on: float = 100, d_sae: int = 2304) -> Tensor:
    """Rates over two orders of magnitude and more, as of a trained code."""
    rates = torch.randn(d_sae, generator=torch.Generator().manual_seed(0)).exp()
    for _ in range(20):
        rates = (rates * n_on / rates.sum()).clamp(max=0.45)
    return rates


@pytest.mark.parametrize(
    ("rates", "n"),
    [
        (skewed_rates(), 4096),
        (torch.full((512,), 0.04), 4096),
        (torch.full((64,), 0.5), 2048),
        (torch.linspace(0, 1, 256), 4096),
        (torch.full((300,), 0.002), 20_000),
    ],
    ids=["skewed", "uniform", "fair", "any", "rare"],
)
def test_independent_bits_take_about_their_entropy(rates, n):
    codes = independent_bits(rates, n)
    bits = codes.bits()
    majority = bits.float().mean(0) > 0.5
    codes = CodeIndices(
        codes.shape,
        majority,
        (bits != majority).sum(1, dtype=torch.int32),
        (bits != majority).nonzero()[:, 1].int(),
    )
    entropy = marginal_entropy(bits.double()).item()

    read = CodeIndices.from_bytes(codes.to_bytes())

    assert torch.equal(read.bits(), bits)
    # The entropy of the sample, which these counts and gaps must tell: less would be a miracle.
    assert entropy <= codes.bits_per_vector <= 1.05 * entropy


def test_few_vectors_still_take_less_than_115_percent_of_the_entropy():
    codes = independent_bits(skewed_rates(), 256)

    assert codes.bits_per_vector <= 1.15 * marginal_entropy(codes.bits().double()).item()


def test_constant_bits_cost_nothing_once_they_are_the_majority():
    varying = independent_bits(torch.full((100,), 0.1), 4096)
    bits = torch.cat([varying.bits(), torch.ones(4096, 100, dtype=torch.bool)], 1)
    codes = indices_of(bits, torch.arange(200) >= 100)

    assert codes.bits_per_vector == pytest.approx(varying.bits_per_vector, rel=0.01)


def test_bits_per_vector_are_those_of_the_file():
    codes = independent_bits(torch.full((30,), 0.2), 50)

    assert codes.bits_per_vector == 8 * len(codes.to_bytes()) / 50


# Levels


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("feedback_steps", [0, 2])
@pytest.mark.parametrize("make", [make_bae, make_training_bae])
def test_levels_and_reconstruction_are_those_of_the_sae(make, feedback_steps, dtype):
    sae = make(n_levels=3, feedback_steps=feedback_steps, dtype=dtype)
    x = make_activations(200).reshape(2, 100, D_IN)
    with torch.no_grad():
        acts = sae.encode(x)
        recons, values = sae.decode(acts), sae.level_values

    codes = encode_to_indices(sae, x)
    assert isinstance(codes, CodeLevels)
    read = read_codes(codes.to_bytes())
    assert isinstance(read, CodeLevels)

    assert torch.equal(read.dense(), level_indices(acts, values).byte())
    assert read.dense().unique().tolist() == [0, 1, 2, 3]
    assert torch.equal(read.bits(), acts != 0)
    assert torch.equal(decode_from_indices(sae, read), recons)


def test_the_majority_is_the_most_frequent_level():
    sae, x = make_bae(n_levels=3), make_activations(300)
    with torch.no_grad():
        sae.b_enc.add_(1)
        levels = level_indices(sae.encode(x), sae.level_values)

    codes = encode_to_indices(sae, x)

    for column, level in zip(levels.T, codes.majority.tolist(), strict=True):
        counts = column.bincount(minlength=4).tolist()
        assert counts.index(max(counts)) == level
    assert len(codes.majority.unique()) > 2
    assert isinstance(codes, CodeLevels)
    assert torch.equal(codes.dense(), levels.byte())


def test_any_majority_gives_the_same_levels():
    sae, x = make_bae(n_levels=3), make_activations(100)
    majority = torch.arange(D_SAE).remainder(4).byte()

    codes = encode_to_indices(sae, x, majority)

    expected = encode_to_indices(sae, x)
    assert isinstance(codes, CodeLevels)
    assert isinstance(expected, CodeLevels)
    assert torch.equal(codes.majority, majority)
    assert torch.equal(read_codes(codes.to_bytes()).bits(), expected.bits())
    assert torch.equal(codes.dense(), expected.dense())
    for wrong in (majority.bool(), majority.int(), majority[1:]):
        with pytest.raises(ValueError, match=f"{D_SAE} levels in uint8"):
            encode_to_indices(sae, x, wrong)


def test_codes_of_a_bae_of_bits_are_in_the_first_version_whatever_its_feedback():
    codes = encode_to_indices(make_bae(feedback_steps=2), make_activations(50))

    assert isinstance(codes, CodeIndices)
    assert codes.to_bytes().startswith(b"BAEC\x01")


def test_report_of_levels_equals_a_plain_reference():
    sae, x = make_bae(n_levels=3), make_activations(600)
    with torch.no_grad():
        acts = sae.encode(x)
    entropy = 0.0
    for column in acts.T:
        shares = column.unique(return_counts=True)[1].double() / 600
        entropy -= torch.xlogy(shares, shares).sum().item() / math.log(2)

    report = compression_report(sae, x)

    assert report.marginal_entropy == pytest.approx(marginal_entropy((acts != 0).double()).item())
    assert report.marginal_entropy + report.level_entropy == pytest.approx(entropy)
    assert report.level_entropy > 1
    codes = encode_to_indices(sae, x)
    assert report.bits == codes.bits_per_vector
    # 40 latents, of which one takes 6 bits, and 3 levels, of which one takes 2.
    assert report.fixed_width_bits == pytest.approx(len(codes.indices) / 600 * 8)
    unexplained = (x - decode_from_indices(sae, codes)).square().sum() / (
        x - x.mean(0)
    ).square().sum()
    assert report.code_unexplained_variance == pytest.approx(unexplained.item(), rel=1e-4)


def test_a_report_that_was_saved_without_levels_loads():
    scalars = compression_report(make_bae(), make_activations(20)).to_dict()
    assert scalars.pop("level_entropy") == 0

    assert CompressionReport(**scalars).level_entropy == 0  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("n_coded", "n_of_sae"), [(1, 3), (3, 1), (3, 2)])
def test_codes_of_other_levels_are_refused(n_coded, n_of_sae):
    codes = encode_to_indices(make_bae(n_levels=n_coded), make_activations(5))

    with pytest.raises(
        ValueError, match=f"of {n_coded} levels a latent, but the SAE has {n_of_sae}"
    ):
        decode_from_indices(make_bae(n_levels=n_of_sae), codes)


def test_more_levels_than_a_byte_holds_are_refused():
    with pytest.raises(ValueError, match="255 levels a latent at most; this SAE has 256"):
        encode_to_indices(make_bae(n_levels=256, d_sae=2), make_activations(5))


# Report


def test_report_equals_a_plain_reference():
    sae, x = make_bae(), make_activations(600).reshape(3, 200, D_IN)
    bits, recons = bits_and_recons(sae, x.reshape(-1, D_IN))
    majority = bits.double().mean(0) > 0.5
    rows = x.reshape(-1, D_IN).double()
    variance = (rows - rows.mean(0)).square().sum()

    report = compression_report(sae, x)

    assert report.n_vectors == 600
    assert report.bits == encode_to_indices(sae, x).bits_per_vector
    assert report.float16_bits == 16 * D_IN
    assert report.fixed_width_bits == pytest.approx((bits != majority).sum().item() / 600 * 6)
    assert report.marginal_entropy == pytest.approx(marginal_entropy(bits.double()).item())
    assert report.ratio_to_float16 == 16 * D_IN / report.bits
    assert report.code_unexplained_variance == pytest.approx(
        ((rows - recons.double()).square().sum() / variance).item()
    )
    assert report.float16_unexplained_variance == pytest.approx(
        ((rows - rows.half().double()).square().sum() / variance).item()
    )
    assert 0 < report.float16_unexplained_variance < 1e-6 < report.code_unexplained_variance


def test_report_is_json():
    report = compression_report(make_bae(), make_activations(20))

    scalars = json.loads(json.dumps(report.to_dict(), allow_nan=False))

    assert CompressionReport(**scalars) == report


def test_what_is_not_defined_or_infinite_is_none_in_json():
    sae, x = make_bae(), make_activations(20)

    one = compression_report(sae, x[0])
    excess_over = compression_report(sae, 1e6 * x)

    assert math.isnan(one.code_unexplained_variance) or math.isinf(one.code_unexplained_variance)
    assert one.to_dict()["code_unexplained_variance"] is None
    assert excess_over.float16_unexplained_variance == math.inf
    assert excess_over.to_dict()["float16_unexplained_variance"] is None
    json.dumps(excess_over.to_dict(), allow_nan=False)


# Errors


@pytest.mark.parametrize("shape", [(5, D_IN + 1), (D_SAE,), (), (D_IN, 3)])
def test_a_wrong_width_is_refused(shape):
    with pytest.raises(ValueError, match=rf"shape \[\.\.\., {D_IN}\]; got \("):
        encode_to_indices(make_bae(), torch.zeros(shape))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_vectors_that_are_not_finite_are_refused(bad):
    x = make_activations(5)
    x[3, 2] = bad

    with pytest.raises(ValueError, match="NaN or infinite"):
        encode_to_indices(make_bae(), x)


def test_vectors_beyond_the_dtype_of_the_sae_are_refused():
    with pytest.raises(ValueError, match=r"infinite in the SAE's torch\.float16"):
        encode_to_indices(make_bae(dtype="float16"), 1e6 * make_activations(5))


def test_a_sae_that_is_not_one_bit_is_refused():
    sae = TopKSAE(TopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=4))
    codes = encode_to_indices(make_bae(), make_activations(5))

    with pytest.raises(TypeError, match="got a TopKSAE"):
        encode_to_indices(sae, make_activations(5))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="got a TopKSAE"):
        decode_from_indices(sae, codes)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("how", ["constant_norm_rescale", "layer_norm"])
def test_a_sae_that_normalizes_each_input_is_refused(how):
    sae = make_bae(normalize_activations=how)
    codes = encode_to_indices(make_bae(), make_activations(5))

    with pytest.raises(ValueError, match="norm of each input, which the code does not hold"):
        encode_to_indices(sae, make_activations(5))
    with pytest.raises(ValueError, match="norm of each input, which the code does not hold"):
        decode_from_indices(sae, codes)


def test_a_sae_that_reshapes_heads_says_what_to_do():
    metadata = SAEMetadata(hook_name="blocks.0.attn.hook_z")
    sae, x = make_bae(reshape_activations="hook_z", metadata=metadata), make_activations(5)

    with pytest.raises(ValueError, match="turn_off_forward_pass_hook_z_reshaping"):
        encode_to_indices(sae, x)
    sae.turn_off_forward_pass_hook_z_reshaping()

    assert_same(encode_to_indices(sae, x), encode_to_indices(make_bae(), x))


def test_codes_of_another_width_are_refused():
    codes = encode_to_indices(make_bae(), make_activations(5))

    with pytest.raises(ValueError, match=f"{D_SAE} latents each, but the SAE has 20"):
        decode_from_indices(make_bae(d_sae=20), codes)


@pytest.mark.parametrize(
    "majority", [torch.zeros(D_SAE), torch.zeros(3, dtype=torch.bool), torch.tensor(True)]
)
def test_a_majority_that_is_not_one_bool_a_bit_is_refused(majority):
    with pytest.raises(ValueError, match=f"majority must be {D_SAE} bools"):
        encode_to_indices(make_bae(), make_activations(5), majority)


@pytest.mark.parametrize(
    ("shape", "lengths", "indices", "message"),
    [
        ((3,), [1, 1], [0, 1], "For 3 vectors lengths must be 3"),
        ((2,), [1, 1], [0, 1, 2], "add up"),
        ((2,), [-1, 3], [0, 1], "add up"),
        ((2,), [2, 0], [1, 0], "ascend"),
        ((2,), [2, 0], [1, 1], "ascend"),
        ((2,), [1, 1], [0, 4], "from 0 to 3"),
        ((2,), [1, 1], [-1, 0], "from 0 to 3"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(shape, lengths, indices, message):
    with pytest.raises(ValueError, match=message):
        CodeIndices(
            shape,
            torch.zeros(4, dtype=torch.bool),
            torch.tensor(lengths, dtype=torch.int32),
            torch.tensor(indices, dtype=torch.int32),
        )


def test_parts_of_another_dtype_are_refused():
    with pytest.raises(ValueError, match=r"got torch\.float32, torch\.int32, torch\.int64"):
        CodeIndices(
            (0,),
            torch.zeros(4),
            torch.zeros(0, dtype=torch.int32),
            torch.zeros(0, dtype=torch.int64),
        )
