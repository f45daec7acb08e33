from __future__ import annotations

import pytest
import torch

from bae_lens.architectures.packed_rows import pack_rows, unpack_rows
from tests.helpers import make_pairs, make_valid

D_IN, D_OUT, N = 5, 3, 24


@pytest.fixture
def pair():
    return make_pairs(N, D_IN, D_OUT)


@pytest.mark.parametrize("shape", [(N,), (3, 8), (2, 3, 4)])
@pytest.mark.parametrize("masked", [True, False])
def test_what_was_packed_comes_out_again_token_by_token(pair, shape, masked):
    lower, upper = pair
    valid = make_valid(N) if masked else torch.ones(N, dtype=torch.bool)

    rows = pack_rows(
        lower.reshape(*shape, D_IN),
        upper.reshape(*shape, D_OUT),
        valid.reshape(shape) if masked else None,
    )

    assert rows.shape == (N, D_IN + D_OUT + 1)
    packed = unpack_rows(rows, D_IN, D_OUT)
    assert torch.equal(packed.lower, lower)
    assert torch.equal(packed.upper, upper)
    assert torch.equal(packed.valid, valid)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_rows_have_the_dtype_of_the_lower_activations(pair, dtype):
    lower, upper = pair

    rows = pack_rows(lower.to(dtype), upper, make_valid(N))

    assert rows.dtype == dtype
    packed = unpack_rows(rows, D_IN, D_OUT)
    assert torch.equal(packed.upper, upper.to(dtype))
    assert torch.equal(packed.valid, make_valid(N))


@pytest.mark.parametrize("factor", [1e-4, 300.0])
def test_the_mask_survives_a_scaling_of_the_rows(pair, factor):
    # As SAELens' trainer scales a batch, of which it knows no columns.
    lower, upper = pair
    rows = factor * pack_rows(lower, upper, make_valid(N))

    assert torch.equal(unpack_rows(rows, D_IN, D_OUT).valid, make_valid(N))


def test_rows_in_any_order_keep_their_parts_together(pair):
    lower, upper = pair
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))

    packed = unpack_rows(pack_rows(lower, upper, make_valid(N))[order], D_IN, D_OUT)

    assert torch.equal(packed.lower, lower[order])
    assert torch.equal(packed.upper, upper[order])
    assert torch.equal(packed.valid, make_valid(N)[order])


def test_an_empty_batch_is_one():
    packed = unpack_rows(pack_rows(torch.zeros(0, D_IN), torch.zeros(0, D_OUT)), D_IN, D_OUT)

    assert [len(part) for part in packed] == [0, 0, 0]


def test_rows_of_one_hook_point_are_both_and_all_valid(pair):
    lower, _ = pair

    packed = unpack_rows(lower, D_IN, D_IN)

    assert torch.equal(packed.lower, lower)
    assert torch.equal(packed.upper, lower)
    assert packed.valid.all()
    assert packed.valid.shape == (N,)


@pytest.mark.parametrize(
    ("lower", "upper", "valid"),
    [
        ((N, D_IN), (N - 1, D_OUT), None),
        ((N, D_IN), (3, 8, D_OUT), None),
        ((N, D_IN), (N, D_OUT), (N - 1,)),
        ((3, 8, D_IN), (3, 8, D_OUT), (N,)),
        ((N, D_IN), (N, D_OUT), (N, 1)),
    ],
)
def test_parts_of_other_tokens_are_refused(lower, upper, valid):
    mask = None if valid is None else torch.ones(valid, dtype=torch.bool)

    with pytest.raises(ValueError, match="must be of the same tokens"):
        pack_rows(torch.zeros(lower), torch.zeros(upper), mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_a_mask_of_numbers_is_refused(pair, dtype):
    lower, upper = pair

    with pytest.raises(ValueError, match=f"must be boolean; got {dtype}"):
        pack_rows(lower, upper, make_valid(N).to(dtype))


@pytest.mark.parametrize(
    ("shape", "d_out"),
    [
        ((N, D_IN), D_OUT),
        ((N, D_IN + D_OUT), D_OUT),
        ((N, D_IN + D_OUT + 2), D_OUT),
        ((3, 8, D_IN + D_OUT + 1), D_OUT),
        ((D_IN + D_OUT + 1,), D_OUT),
        ((N, 2 * D_IN), D_IN),
        ((3, 8, D_IN), D_IN),
    ],
)
def test_rows_of_another_shape_are_refused(shape, d_out):
    expected = rf"\[n, d_in \+ d_out \+ 1 = {D_IN + d_out + 1}\]"
    expected += rf".*, or \[n, {D_IN}\]" if d_out == D_IN else "(?!.*, or)"

    with pytest.raises(ValueError, match=expected):
        unpack_rows(torch.zeros(shape), D_IN, d_out)
