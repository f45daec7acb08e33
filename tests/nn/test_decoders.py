from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bae_lens.nn import CausalTransformerDecoder, TokenDecoder, decoders
from tests.helpers import grad_of

D_IN, D_OUT, BATCH, LENGTH = 12, 7, 3, 10


def make_transformer(seed: int = 0, **settings: Any) -> CausalTransformerDecoder:
    torch.manual_seed(seed)
    return CausalTransformerDecoder(D_IN, D_OUT, **{"n_layers": 2, "max_length": 16, **settings})


def make_token_decoder(seed: int = 0, **settings: Any) -> TokenDecoder:
    torch.manual_seed(seed)
    return TokenDecoder(D_IN, D_OUT, **settings)


def make_codes(batch: int = BATCH, length: int = LENGTH, seed: int = 0) -> Tensor:
    return torch.randn(batch, length, D_IN, generator=torch.Generator().manual_seed(seed))


def make_valid(seed: int = 0) -> Tensor:
    """Gaps anywhere: padding before and after, special tokens between; no sequence is empty."""
    valid = torch.rand(BATCH, LENGTH, generator=torch.Generator().manual_seed(seed)) < 0.6
    valid[0, :3], valid[1, -4:], valid[:, 5] = False, False, True
    return valid


KINDS = ["sinusoidal", "learned"]


# Causality


@pytest.mark.parametrize("positions", KINDS)
@pytest.mark.parametrize("masked", [False, True])
def test_output_at_a_position_does_not_change_when_later_codes_do(positions, masked):
    decoder, codes = make_transformer(positions=positions), make_codes()
    valid = torch.ones(BATCH, LENGTH, dtype=torch.bool) if masked else None
    out = decoder(codes, valid)

    for t in range(LENGTH):
        changed = codes.clone()
        changed[:, t] = make_codes(seed=1)[:, t]
        difference = (decoder(changed, valid) - out).abs().amax(-1)
        assert (difference[:, :t] < 1e-6).all()
        assert (difference[:, t:] > 1e-6).all()  # the position itself sees it, and what comes later


def test_the_gradient_reaches_earlier_codes_and_no_later_one():
    decoder, codes = make_transformer(), make_codes().requires_grad_()

    decoder(codes)[:, 4].sum().backward()

    reached = grad_of(codes).abs().sum((0, 2)) > 0
    assert reached.tolist() == [True] * 5 + [False] * (LENGTH - 5)


@pytest.mark.parametrize("positions", KINDS)
def test_order_matters(positions):
    decoder = make_transformer(positions=positions)
    codes = make_codes()
    swapped = codes[:, [1, 0, *range(2, LENGTH)]]

    assert (decoder(codes)[:, -1] - decoder(swapped)[:, -1]).abs().max() > 1e-5


def test_equal_codes_at_two_positions_differ():
    out = make_transformer()(make_codes(1, 1).expand(1, LENGTH, D_IN))

    assert (out[0, 1:] - out[0, :1]).abs().amax(1).min() > 1e-5


def test_sequences_do_not_see_each_other():
    decoder, codes = make_transformer(), make_codes()

    alone = torch.cat([decoder(codes[i : i + 1]) for i in range(BATCH)])

    torch.testing.assert_close(decoder(codes), alone, rtol=1e-4, atol=1e-5)


# Attention, by hand


def test_attention_equals_its_definition():
    torch.manual_seed(0)
    attention = decoders._Attention(D_IN, D_IN, 3, None, None)
    h = make_codes()

    q = attention.query(h)
    k, v = attention.key_value(h).chunk(2, dim=-1)
    outs = []
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(4)
        later = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(later, -math.inf).softmax(-1)
        outs.append(weights @ v[..., part])

    expected = attention.out(torch.cat(outs, -1))
    torch.testing.assert_close(attention(h, h, None), expected, rtol=1e-4, atol=1e-5)


# Missing positions


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e6, 0.0])
@pytest.mark.parametrize("kind", ["transformer", "token", "leak"])
def test_what_missing_positions_hold_does_not_matter(junk, kind):
    decoder: nn.Module = (
        make_token_decoder()
        if kind == "token"
        else make_transformer(cross_attention=kind == "leak")
    )
    codes, valid = make_codes(), make_valid()
    memory = [make_codes(seed=2)] if kind == "leak" else []

    def fill(x: Tensor) -> Tensor:
        return torch.where(valid[..., None], x, junk)

    out = decoder(codes, valid, *memory)
    filled = fill(codes).requires_grad_()
    other = decoder(filled, valid, *[fill(m) for m in memory])
    other.square().sum().backward()

    assert torch.equal(out, other)
    assert not out[~valid].any()
    assert out[valid].abs().amin() > 0
    assert grad_of(filled).isfinite().all()
    assert not grad_of(filled)[~valid].any()
    assert all(p.grad is None or p.grad.isfinite().all() for p in decoder.parameters())


def test_padding_after_a_sequence_changes_nothing():
    decoder, codes = make_transformer(), make_codes()
    valid = torch.arange(LENGTH).expand(BATCH, -1) < 6

    torch.testing.assert_close(decoder(codes, valid)[:, :6], decoder(codes[:, :6]))


def test_padding_before_a_sequence_changes_nothing_with_its_positions_given():
    decoder, codes = make_transformer(), make_codes()
    valid = torch.arange(LENGTH).expand(BATCH, -1) >= 4
    positions = (torch.arange(LENGTH) - 4).clamp(min=0).expand(BATCH, -1)

    out = decoder(codes, valid, positions=positions)

    torch.testing.assert_close(out[:, 4:], decoder(codes[:, 4:]))


def test_missing_positions_are_not_attended_to():
    decoder, codes, valid = make_transformer(), make_codes(), make_valid()
    out = decoder(codes, valid)

    for row in range(BATCH):
        kept = valid[row].nonzero().squeeze(1)
        alone = decoder(codes[row : row + 1, kept], positions=kept[None])
        torch.testing.assert_close(out[row, kept], alone[0])


def test_nothing_valid_gives_zeros():
    out = make_transformer()(make_codes(), torch.zeros(BATCH, LENGTH, dtype=torch.bool))

    assert not out.any()


def test_no_row_of_the_mask_is_empty():
    # Which gives NaN or zeros, depending on the kernel.
    valid = make_valid()
    mask = decoders._causal_mask(valid)[:, 0]

    assert mask.any(-1).all()
    i = torch.arange(LENGTH)
    may = (i <= i[:, None]) & (valid[:, None, :] | (i == i[:, None]))
    assert torch.equal(mask, may)


# Single tokens


@pytest.mark.parametrize("positions", KINDS)
def test_two_dimensions_are_a_batch_of_sequences_of_length_1(positions):
    decoder, codes = make_transformer(positions=positions), make_codes()[0]
    valid = torch.arange(LENGTH) % 3 > 0

    assert torch.equal(decoder(codes), decoder(codes[:, None])[:, 0])
    assert torch.equal(decoder(codes, valid), decoder(codes[:, None], valid[:, None])[:, 0])
    at = torch.full((LENGTH,), 5)
    assert torch.equal(
        decoder(codes, positions=at), decoder(codes[:, None], positions=at[:, None])[:, 0]
    )
    assert not torch.equal(decoder(codes, positions=at), decoder(codes))


def test_the_first_position_is_a_sequence_of_length_1():
    decoder, codes = make_transformer(), make_codes()

    torch.testing.assert_close(decoder(codes)[:, 0], decoder(codes[:, 0]))


# The leak


def test_memory_leaks_which_is_what_it_is_for():
    decoder, codes = make_transformer(cross_attention=True), make_codes()
    memory = make_codes(seed=1)
    out = decoder(codes, memory=memory)
    changed = memory.clone()
    changed[:, 6] += 1

    difference = (decoder(codes, memory=changed) - out).abs().amax((0, 2))

    assert difference[6:].min() > 1e-6
    assert difference[:6].max() < 1e-6


def test_memory_and_cross_attention_go_together():
    with pytest.raises(ValueError, match="cross_attention=False, and memory is given"):
        make_transformer()(make_codes(), memory=make_codes())
    with pytest.raises(ValueError, match="cross_attention=True, and memory is missing"):
        make_transformer(cross_attention=True)(make_codes())


def test_two_dimensions_with_memory():
    decoder, codes = make_transformer(cross_attention=True), make_codes()[0]
    memory = make_codes(seed=1)[0]

    expected = decoder(codes[:, None], memory=memory[:, None])[:, 0]

    assert torch.equal(decoder(codes, memory=memory), expected)


# The token decoder


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 0), (2, 2, 2)])
def test_the_token_decoder_takes_any_leading_shape(shape):
    decoder = make_token_decoder()
    codes = torch.randn(*shape, D_IN)

    out = decoder(codes)

    assert out.shape == (*shape, D_OUT)
    one_by_one = [decoder(code) for code in codes.reshape(-1, D_IN)]
    for row, alone in zip(out.reshape(-1, D_OUT), one_by_one, strict=True):
        torch.testing.assert_close(row, alone)


def test_a_token_decodes_the_same_wherever_it_stands():
    decoder, codes = make_token_decoder(), make_codes()
    order = torch.randperm(LENGTH, generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(decoder(codes[:, order]), decoder(codes)[:, order])


def test_without_blocks_it_is_a_linear_map():
    decoder, codes = make_token_decoder(n_layers=0), make_codes()

    expected = codes @ decoder.head.weight.T + decoder.head.bias

    torch.testing.assert_close(decoder(codes), expected)


def test_it_fits_a_map_that_is_not_linear():
    decoder, codes = make_token_decoder(), make_codes(20, 10)
    target = codes[..., :D_OUT].abs()
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        (decoder(codes) - target).square().mean().backward()
        optimizer.step()

    # |x| and x do not covary: a linear map would explain nothing.
    assert (decoder(codes) - target).square().mean() < 0.25 * target.var()


# Settings


@pytest.mark.parametrize(("width", "heads"), [(768, 8), (576, 8), (12, 6), (7, 7), (11, 1), (1, 1)])
def test_heads_are_8_or_the_largest_number_below_that_divides_the_width(width, heads):
    assert decoders.default_heads(width) == heads


def test_a_width_of_its_own():
    decoder = make_transformer(d_model=20, d_mlp=5, n_heads=5, n_layers=1)

    assert decoder.embed.weight.shape == (20, D_IN)
    assert decoder(make_codes()).shape == (BATCH, LENGTH, D_OUT)
    assert decoder.head.weight.shape == (D_OUT, 20)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_heads": 5}, "n_heads=5 must divide the decoder's width, 12"),
        ({"n_heads": 0}, "n_heads=0 must divide"),
        ({"positions": "rotary"}, "positions must be one of sinusoidal, learned; got 'rotary'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make_transformer(**settings)


def test_learned_positions_end_and_sinusoidal_ones_do_not():
    with pytest.raises(ValueError, match=r"17 codes is longer than the 16 learned positions"):
        make_transformer(positions="learned")(make_codes(length=17))

    assert make_transformer()(make_codes(length=100)).isfinite().all()


@pytest.mark.parametrize("d", [1, 2, 5, 12])
def test_sinusoids_tell_positions_apart(d):
    vectors = decoders.sinusoids(torch.arange(50), d)

    assert vectors.shape == (50, d)
    assert len({tuple(v) for v in vectors.tolist()}) == 50
    half = (d + 1) // 2
    torch.testing.assert_close(vectors[:, 0], torch.arange(50.0).sin())
    if d > 1:
        torch.testing.assert_close(vectors[:, half], torch.arange(50.0).cos())


@pytest.mark.parametrize("decoder", [make_token_decoder(), make_transformer()])
def test_inputs_of_another_shape_are_refused(decoder):
    with pytest.raises(ValueError, match=r"takes codes \[\.\.\., 12\]; got shape \(3, 11\)"):
        decoder(torch.zeros(3, 11))
    for valid in (torch.ones(BATCH, dtype=torch.bool), torch.ones(BATCH, LENGTH)):
        with pytest.raises(ValueError, match=r"valid must be boolean .* \(3, 10\); got torch"):
            decoder(make_codes(), valid)


def test_the_transformer_refuses_what_is_no_sequence():
    for shape in ((D_IN,), (2, 2, 2, D_IN)):
        with pytest.raises(ValueError, match=r"\[n_sequences, length, d_in\]"):
            make_transformer()(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"positions must be \(3, 10\); got \(10,\)"):
        make_transformer()(make_codes(), positions=torch.arange(LENGTH))
    with pytest.raises(ValueError, match=r"memory must be \(3, 10, 12\); got \(3, 9, 12\)"):
        make_transformer(cross_attention=True)(make_codes(), memory=make_codes(length=9))


# State, precision, compilation


def make_all(**where: Any) -> list[nn.Module]:
    return [
        make_token_decoder(**where),
        make_transformer(**where),
        make_transformer(positions="learned", **where),
        make_transformer(cross_attention=True, d_model=16, **where),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_dict_round_trip_through_the_meta_device(dtype):
    for source, loaded in zip(
        make_all(dtype=dtype), make_all(device="meta", dtype=dtype), strict=True
    ):
        assert all(p.is_meta and p.dtype == dtype for p in loaded.parameters())
        assert not list(loaded.buffers())  # there is none that a file would not fill
        loaded.load_state_dict(source.state_dict(), assign=True)

        codes = make_codes().to(dtype)
        memory = [None, codes] if getattr(source, "cross_attention", False) else []
        assert torch.equal(loaded(codes, *memory), source(codes, *memory))


def test_bf16_and_autocast_stay_near_float32():
    decoder, codes, valid = make_transformer(), make_codes(), make_valid()
    expected = decoder(codes, valid)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = decoder(codes, valid)
    cast = decoder.to(torch.bfloat16)(codes.to(torch.bfloat16), valid)

    assert cast.dtype == torch.bfloat16
    torch.testing.assert_close(autocast.float(), expected, rtol=0, atol=0.05)
    torch.testing.assert_close(cast.float(), expected, rtol=0, atol=0.05)


def test_evaluation_is_deterministic():
    decoder, codes = make_transformer().eval(), make_codes()

    assert torch.equal(decoder(codes), decoder(codes))
    assert torch.equal(decoder(codes), decoder.train()(codes))


def test_all_parameters_are_trained():
    for decoder in make_all():
        memory = [make_codes(seed=3)] if getattr(decoder, "cross_attention", False) else []
        arguments = [make_valid(), *memory]

        decoder(make_codes(), *arguments).square().sum().backward()

        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.parameters())


@pytest.mark.parametrize("masked", [False, True])
def test_compiles_whole(masked):
    torch._dynamo.reset()
    decoder, codes = make_transformer(n_layers=1), make_codes()
    valid = make_valid() if masked else None
    compiled = torch.compile(decoder, backend="aot_eager", fullgraph=True)

    torch.testing.assert_close(compiled(codes, valid), decoder(codes, valid))
