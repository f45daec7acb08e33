from __future__ import annotations

from functools import partial
from typing import get_args

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bae_lens.nn import off_diagonal_covariance
from bae_lens.nn.covariance import penalty as covariance
from bae_lens.nn.covariance import strips as covariance_strips
from bae_lens.nn.covariance import tiles as covariance_tiles
from tests.helpers import grad_of


def by_torch_cov(codes: Tensor) -> Tensor:
    """The definition, through torch.cov and a d_sae × d_sae matrix."""
    c = torch.atleast_2d(torch.cov(codes.reshape(-1, codes.shape[-1]).T))
    return (c - torch.diag(c.diagonal())).abs().sum()


def value_and_grad(fn, codes: Tensor) -> tuple[Tensor, Tensor]:
    leaf = codes.clone().requires_grad_()
    value = fn(leaf)
    value.backward()
    return value.detach(), grad_of(leaf)


def random_bits(n: int, d: int, seed: int = 0, dtype=torch.float64) -> Tensor:
    """Bits of densities between rare and mostly on, each varying."""
    generator = torch.Generator().manual_seed(seed)
    density = torch.rand(d, generator=generator)
    bits = (torch.rand(n, d, generator=generator) < density).to(dtype)
    bits[0], bits[1] = 0, 1
    return bits


METHODS = get_args(covariance.Method)


def by(method):
    return partial(off_diagonal_covariance, method=method)


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(covariance_tiles, "_TILE", 4)
    monkeypatch.setattr(covariance_strips, "_STRIP", 128)
    monkeypatch.setattr(covariance_strips, "_MIN_WIDTH", 2)


# A batch of prime size has no two varying bits of covariance exactly zero, where the sign that
# torch.cov's rounding picks would be chance.
@pytest.mark.parametrize(("n", "d"), [(2, 3), (3, 5), (61, 17), (127, 40), (257, 9)])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 3e-6)])
@pytest.mark.parametrize("method", METHODS)
def test_value_and_gradient_equal_autograd_through_torch_cov(n, d, dtype, rtol, method):
    bits = random_bits(n, d)
    expected_value, expected_grad = value_and_grad(by_torch_cov, bits)

    value, grad = value_and_grad(by(method), bits.to(dtype))

    assert value.dtype == grad.dtype == dtype
    torch.testing.assert_close(value.double(), expected_value, rtol=rtol, atol=0)
    scale = expected_grad.abs().max().item()
    torch.testing.assert_close(grad.double(), expected_grad, rtol=rtol, atol=rtol * scale)


@pytest.mark.parametrize("d", [1, 3, 4, 5, 8, 11, 17])
@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("method", METHODS)
def test_any_width_is_covered(d, method):
    bits = random_bits(61, d)
    expected_value, expected_grad = value_and_grad(by_torch_cov, bits)

    value, grad = value_and_grad(by(method), bits)

    torch.testing.assert_close(value, expected_value, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-14)


def test_leading_dimensions_are_all_rows():
    bits = random_bits(30, 7)

    value, grad = value_and_grad(off_diagonal_covariance, bits.reshape(2, 3, 5, 7))
    flat_value, flat_grad = value_and_grad(off_diagonal_covariance, bits)

    assert torch.equal(value, flat_value)
    assert torch.equal(grad, flat_grad.reshape(2, 3, 5, 7))


@given(
    n=st.sampled_from([2, 3, 5, 7, 13, 31, 61]),
    d=st.integers(1, 40),
    density=st.floats(0, 1),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None)
def test_all_methods_agree_at_any_density(n, d, density, seed):
    generator = torch.Generator().manual_seed(seed)
    bits = (torch.rand(n, d, generator=generator) < density).double()

    tiles, *others = [value_and_grad(by(method), bits) for method in ("tiles", "strips", "pairs")]

    for other in others:
        for one, same in zip(tiles, other, strict=True):
            torch.testing.assert_close(one, same, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_the_value_needs_no_gradient(method):
    bits = random_bits(61, 17)
    expected = value_and_grad(by("tiles"), bits)[0]

    torch.testing.assert_close(off_diagonal_covariance(bits, method), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", ["strips", "pairs", "auto"])
@pytest.mark.parametrize(
    "acts",
    [
        pytest.param(torch.rand(31, 7, dtype=torch.float64), id="all of them"),
        # As many entries as their sum.
        pytest.param(torch.tensor([[0.5, 0, 1], [1.5, 0, 0], [0, 1, 0]]).double(), id="a few"),
        pytest.param(torch.tensor([[0.0, 2, 1], [-1, 0, 0], [0, 1, 0]]).double(), id="whole"),
    ],
)
def test_what_is_not_binary_goes_by_tiles(method, acts):
    expected = value_and_grad(by("tiles"), acts)
    for one, other in zip(value_and_grad(by(method), acts), expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("n", "d", "n_on", "expected"),
    [(1024, 65_536, 16, "pairs"), (1024, 8192, 50, "strips"), (64, 8192, 4096, "tiles")],
)
def test_the_sparser_and_wider_the_fewer_pairs_are_visited(n, d, n_on, expected):
    assert covariance.cheapest(torch.full((d,), n * n_on / d), n) == expected


def test_the_cheapest_method_is_the_one_that_runs(monkeypatch):
    called = []
    for name in ("tiles", "strips", "pairs"):
        function = f"{name}_value_and_grad"
        run = getattr(covariance, function)
        monkeypatch.setattr(
            covariance,
            function,
            lambda *args, run=run, name=name: called.append(name) or run(*args),
        )
    bits = random_bits(61, 17, dtype=torch.float32)

    for method in ("tiles", "strips", "pairs"):
        monkeypatch.setattr(covariance, "cheapest", lambda *_, method=method: method)
        # What the operator runs, which is another module's where the package was reloaded.
        covariance._value_and_grad(bits, "auto", is_binary=True, needs_grad=False)

    assert called == ["tiles", "strips", "pairs"]


@pytest.mark.usefixtures("small_tiles")
def test_bits_and_signs_are_exact_in_bfloat16():
    # More rows than bfloat16 can count.
    bits = random_bits(601, 17, dtype=torch.float32)

    exact = covariance_tiles.tiles_value_and_grad(bits, needs_grad=True)
    found = covariance_tiles.tiles_value_and_grad(bits, True, torch.bfloat16)

    for one, other in zip(found, exact, strict=True):
        assert one is not None
        assert other is not None
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("is_binary", [True, False])
def test_a_gpu_gives_the_same(is_binary):
    bits = random_bits(601, 130, dtype=torch.float32)
    expected = value_and_grad(by_torch_cov, bits.double())

    penalty = partial(off_diagonal_covariance, is_binary=is_binary)
    found = value_and_grad(penalty, bits.cuda())

    for one, other in zip(found, expected, strict=True):
        scale = other.abs().max().item()
        torch.testing.assert_close(one.cpu().double(), other, rtol=1e-5, atol=1e-5 * scale)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r"auto, tiles, strips, pairs; got 'sparse'"):
        off_diagonal_covariance(torch.ones(3, 2), method="sparse")  # pyright: ignore[reportArgumentType]


# Known answers


def test_two_copies_of_a_fair_bit():
    n = 12
    bit = torch.tensor([0.0, 1.0]).repeat(n // 2)

    # Var = n/(4(n − 1)), and each of the 2 ordered pairs of copies counts.
    value = off_diagonal_covariance(torch.stack([bit, bit], 1))
    assert value.item() == pytest.approx(2 * n / (4 * (n - 1)), rel=1e-6)


def test_a_fair_bit_and_its_opposite_count_like_two_copies():
    bit = torch.tensor([0.0, 1.0]).repeat(6)

    same = off_diagonal_covariance(torch.stack([bit, bit], 1))
    opposite = off_diagonal_covariance(torch.stack([bit, 1 - bit], 1))

    assert torch.equal(same, opposite)


@pytest.mark.parametrize("method", METHODS)
def test_independent_bits_have_exactly_none(method):
    bits = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 5)

    value, grad = value_and_grad(by(method), bits)

    assert value.item() == 0
    assert not grad.any()


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("method", METHODS)
def test_constant_bits_have_exactly_none(value, method):
    cov, grad = value_and_grad(by(method), torch.full((10, 6), value))

    assert cov.item() == 0
    assert not grad.any()


def test_a_constant_bit_beside_varying_ones_changes_nothing():
    bits = random_bits(31, 5)
    for constant in (0.0, 1.0):
        padded = torch.cat([bits, torch.full((31, 1), constant, dtype=bits.dtype)], 1)
        value, grad = value_and_grad(off_diagonal_covariance, padded)
        expected_value, expected_grad = value_and_grad(off_diagonal_covariance, bits)

        torch.testing.assert_close(value, expected_value)
        torch.testing.assert_close(grad[:, :5], expected_grad)
        assert not grad[:, 5].any()


def test_two_rows():
    # mean ½, deviations ±½: C_ij = ±½ for the three that vary, 3·2 ordered pairs.
    codes = torch.tensor([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 1.0]])

    assert off_diagonal_covariance(codes).item() == pytest.approx(3.0)


@pytest.mark.parametrize("shape", [(1, 4), (0, 4), (1, 1, 4)])
def test_fewer_than_two_rows_raises_and_names_the_shape(shape):
    with pytest.raises(ValueError, match=r"at least two rows.*got shape \("):
        off_diagonal_covariance(torch.zeros(shape))


def test_one_latent_has_no_off_diagonal():
    value, grad = value_and_grad(off_diagonal_covariance, random_bits(11, 1))

    assert value.item() == 0
    assert not grad.any()


# Signs


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_tie_gets_the_subgradient_zero(dtype):
    # n·N_ij = 12·2 = N_i·N_j = 6·4, in any order of the rows: no sign to follow, although no bit
    # is constant and 4/12 has no exact float.
    bits = torch.zeros(12, 2, dtype=dtype)
    bits[:6, 0] = 1
    bits[4:8, 1] = 1
    bits = bits[torch.randperm(12, generator=torch.Generator().manual_seed(0))]

    value, grad = value_and_grad(off_diagonal_covariance, bits)

    assert value.item() == 0
    assert not grad.any()


def test_ties_beside_pairs_that_covary():
    generator = torch.Generator().manual_seed(0)
    bits = (torch.rand(24, 30, generator=generator) < 0.5).double()
    counts = bits.T @ bits
    excess = 24 * counts - torch.outer(bits.sum(0), bits.sum(0))
    excess.fill_diagonal_(0)
    assert (excess == 0).sum() > 30 + 20  # there are ties in this batch
    expected = 2 / 23 * (bits - bits.mean(0)) @ excess.sign()

    _, grad = value_and_grad(off_diagonal_covariance, bits.float())

    torch.testing.assert_close(grad, expected.float(), rtol=1e-5, atol=1e-6)


def test_signs_of_large_batches_are_exact():
    # Of 6,007 rows, n·N_ij − N_i·N_j is −1 where both products are 2·10⁷, so that float32 would
    # see a tie.
    n, n_i, n_j, n_ij = 6007, 3323, 5960, 3297
    assert n * n_ij - n_i * n_j == -1
    bits = torch.zeros(n, 2)
    bits[:n_i, 0] = 1
    bits[n_i - n_ij : n_i - n_ij + n_j, 1] = 1

    value, grad = value_and_grad(off_diagonal_covariance, bits)

    assert value.item() == pytest.approx(2 / (n * (n - 1)), rel=1e-6)
    expected = -2 / (n - 1) * (bits - bits.double().mean(0)).flip(1)
    torch.testing.assert_close(grad.double(), expected, rtol=1e-4, atol=1e-12)


def test_large_batches_equal_torch_cov():
    bits = random_bits(4999, 12)
    expected_value, expected_grad = value_and_grad(by_torch_cov, bits)

    value, grad = value_and_grad(off_diagonal_covariance, bits.float())

    torch.testing.assert_close(value.double(), expected_value, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=1e-4, atol=1e-8)


# Invariances


def test_inverting_bits_keeps_the_value_and_negates_their_gradient():
    bits = random_bits(61, 9)
    sign = torch.ones(9, dtype=bits.dtype)
    sign[::2] = -1
    inverted = torch.where(sign < 0, 1 - bits, bits)

    value, grad = value_and_grad(off_diagonal_covariance, bits)
    inverted_value, inverted_grad = value_and_grad(off_diagonal_covariance, inverted)

    torch.testing.assert_close(inverted_value, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(inverted_grad, grad * sign, rtol=1e-9, atol=1e-14)


def test_upstream_gradient_multiplies():
    bits = random_bits(13, 4)

    _, grad = value_and_grad(off_diagonal_covariance, bits)
    _, scaled = value_and_grad(lambda codes: -2.5 * off_diagonal_covariance(codes), bits)

    torch.testing.assert_close(scaled, -2.5 * grad)


# Codes that are not bits


def test_real_activations():
    codes = torch.randn(40, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected_value, expected_grad = value_and_grad(by_torch_cov, codes)

    value, grad = value_and_grad(off_diagonal_covariance, codes)

    torch.testing.assert_close(value, expected_value)
    torch.testing.assert_close(grad, expected_grad)
    torch.autograd.gradcheck(off_diagonal_covariance, (codes.requires_grad_(),))


def test_real_activations_with_a_large_mean_keep_their_precision():
    generator = torch.Generator().manual_seed(0)
    codes = 1e4 + torch.randn(101, 9, generator=generator)
    expected_value, expected_grad = value_and_grad(by_torch_cov, codes.double())

    value, grad = value_and_grad(off_diagonal_covariance, codes)

    torch.testing.assert_close(value.double(), expected_value, rtol=1e-4, atol=0)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=1e-3, atol=1e-4)


def test_bits_beside_real_activations():
    generator = torch.Generator().manual_seed(0)
    real = 3 + torch.randn(53, 6, generator=generator)
    codes = torch.cat([random_bits(53, 5, dtype=torch.float32), real], 1)
    expected_value, expected_grad = value_and_grad(by_torch_cov, codes.double())

    value, grad = value_and_grad(off_diagonal_covariance, codes)

    torch.testing.assert_close(value.double(), expected_value, rtol=1e-5, atol=0)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("constant", [0.3, -7.1, 1e3])
def test_a_constant_real_column_adds_nothing_to_the_value(constant):
    codes = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([codes, torch.full((30, 1), constant)], 1)

    value = off_diagonal_covariance(padded)

    torch.testing.assert_close(value, off_diagonal_covariance(codes), rtol=1e-4, atol=1e-5)


# Precision and memory


def test_bf16_codes_are_computed_in_float32():
    bits = random_bits(1009, 6)
    expected_value, expected_grad = value_and_grad(by_torch_cov, bits)

    value, grad = value_and_grad(off_diagonal_covariance, bits.to(torch.bfloat16))

    assert value.dtype == torch.float32
    assert grad.dtype == torch.bfloat16
    torch.testing.assert_close(value.double(), expected_value, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_does_not_lower_the_precision(dtype):
    bits = random_bits(1009, 6).to(dtype)
    leaf = bits.clone().requires_grad_()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = off_diagonal_covariance(leaf)
    value.backward()

    expected_value, expected_grad = value_and_grad(off_diagonal_covariance, bits)
    assert value.dtype == torch.float32
    assert torch.equal(value, expected_value)
    assert torch.equal(grad_of(leaf), expected_grad)


def test_saves_nothing_larger_than_the_codes():
    n, d = 5, 64
    saved = []

    def pack(tensor):
        saved.append(tensor.numel())
        return tensor

    codes = random_bits(n, d, dtype=torch.float32).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        off_diagonal_covariance(codes)

    assert saved
    assert max(saved) <= n * d


class LargestTensor(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("method", METHODS)
def test_never_holds_a_matrix_of_d_sae_by_d_sae(method):
    n, d = 3, 64
    codes = random_bits(n, d, dtype=torch.float32)
    if method == "pairs":
        # It holds the pairs that fire together.
        generator = torch.Generator().manual_seed(0)
        codes = (torch.rand(n, d, generator=generator) < 0.05).float()

    with LargestTensor() as largest:
        # What the operator runs, into which the mode does not look.
        covariance._value_and_grad(codes, method, is_binary=True, needs_grad=True)

    assert 0 < largest.numel <= n * d < d * d


@pytest.mark.parametrize("method", METHODS)
def test_compiles_whole(method):
    torch._dynamo.reset()
    bits = random_bits(31, 6, dtype=torch.float32)
    compiled = torch.compile(by(method), backend="aot_eager", fullgraph=True)

    value, grad = value_and_grad(by(method), bits)
    compiled_value, compiled_grad = value_and_grad(compiled, bits)

    torch.testing.assert_close(compiled_value, value)
    torch.testing.assert_close(compiled_grad, grad)


@settings(deadline=None, max_examples=80)
@given(
    n=st.integers(2, 14),
    d=st.integers(1, 9),
    tile=st.integers(1, 5),
    density=st.floats(0, 1),
    seed=st.integers(0, 2**16),
    method=st.sampled_from(METHODS),
)
def test_any_bits_in_any_tiling_equal_the_definition_in_integers(n, d, tile, density, seed, method):
    bits = torch.rand(n, d, generator=torch.Generator().manual_seed(seed)) < density
    counts = bits.long().T @ bits.long()
    excess = n * counts - torch.outer(counts.diagonal(), counts.diagonal())
    excess.fill_diagonal_(0)
    codes = bits.double()
    expected_grad = 2 / (n - 1) * (codes - codes.mean(0)) @ excess.sign().double()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(covariance_tiles, "_TILE", tile)
        patch.setattr(covariance_strips, "_STRIP", tile * d)
        patch.setattr(covariance_strips, "_MIN_WIDTH", 1)
        value, grad = value_and_grad(by(method), codes.float())

    assert value.item() == pytest.approx(excess.abs().sum().item() / (n * (n - 1)), rel=1e-5)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(
    n=st.sampled_from([3, 17, 101, 257]),
    d=st.integers(2, 70),
    density=st.floats(0.005, 1),
    seed=st.integers(0, 2**16),
    method=st.sampled_from(METHODS),
)
def test_float32_is_float64_autograd_to_five_digits(n, d, density, seed, method):
    # Rates of every size up to the density, all-zero and all-one columns among them.
    generator = torch.Generator().manual_seed(seed)
    bits = torch.rand(n, d, generator=generator) < density * torch.rand(d, generator=generator)
    bits[:, 0], bits[:, -1] = 0, 1
    # What autograd makes of constant columns is the sign of its own rounding.
    varies = bits.any(0) & ~bits.all(0)
    assume(bool(varies.any()))
    expected_grad = torch.zeros(n, d, dtype=torch.float64)
    expected_value, expected_grad[:, varies] = value_and_grad(
        by_torch_cov, bits[:, varies].double()
    )

    value, grad = value_and_grad(by(method), bits.float())

    torch.testing.assert_close(value.double(), expected_value, rtol=1e-5, atol=1e-12)
    scale = max(1e-9, expected_grad.abs().max().item())
    torch.testing.assert_close(grad.double(), expected_grad, rtol=0, atol=1e-5 * scale)
