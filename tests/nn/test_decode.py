import pytest
import torch
import torch.nn.functional as F

from bae_lens.nn import decode_sparse
from tests.helpers import grad_of


def acts_of(n: int, d: int, density: float, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    values = 1 + torch.rand(n, d, generator=generator, dtype=dtype)
    return values * (torch.rand(n, d, generator=generator) < density)


@pytest.mark.parametrize("shape", [(24,), (4, 6), ()])
@pytest.mark.parametrize("density", [0.0, 0.05, 0.6])
def test_output_and_gradients_are_those_of_the_product(density, shape):
    acts = acts_of(24 if shape else 1, 40, density).reshape(*shape, 40).requires_grad_()
    weight = torch.randn(40, 7, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(*shape, 7, dtype=torch.float64)

    found = []
    for out in (decode_sparse(acts, weight), acts @ weight):
        acts.grad = weight.grad = None
        (out * upstream).sum().backward()
        found.append((out.detach(), grad_of(acts), grad_of(weight)))

    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("density", "expected"), [(0.05, 2), (0.6, 0)])
def test_rows_are_added_up_only_where_they_are_few(monkeypatch, density, expected):
    calls = []
    add_up = F.embedding_bag
    monkeypatch.setattr(F, "embedding_bag", lambda *a, **k: calls.append(1) or add_up(*a, **k))

    out = decode_sparse(acts_of(24, 40, density), torch.randn(40, 7).double().requires_grad_())
    out.sum().backward()

    assert len(calls) == expected


@pytest.mark.parametrize("wanted", ["acts", "weight"])
def test_a_gradient_that_nobody_wants_is_not_computed(wanted):
    acts = acts_of(9, 40, 0.05).requires_grad_(wanted == "acts")
    weight = torch.randn(40, 7, dtype=torch.float64, requires_grad=wanted == "weight")

    decode_sparse(acts, weight).sum().backward()

    assert (acts.grad is None) == (wanted == "weight")
    assert (weight.grad is None) == (wanted == "acts")


def test_autocast_and_half_precision_are_the_plain_product():
    acts, weight = acts_of(9, 40, 0.05, torch.float32), torch.randn(40, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(decode_sparse(acts, weight), acts @ weight)
    half = acts.bfloat16(), weight.bfloat16()
    assert torch.equal(decode_sparse(*half), half[0] @ half[1])


def test_compiles_whole():
    acts, weight = acts_of(9, 40, 0.05), torch.randn(40, 7, dtype=torch.float64)
    compiled = torch.compile(decode_sparse, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(acts, weight), acts @ weight)
