"""Neighbors against correlations computed one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from bae_lens.examples import pair_counts
from bae_lens.examples.pair_counts import PairCounts, nearest_in_codebook

D, N = 10, 300


def make_bits(density: float = 0.3):
    rng = np.random.default_rng(0)
    bits = rng.random((N, D)) < density
    bits[:, 3] = bits[:, 2] & (rng.random(N) < 0.8)  # mostly with 2
    bits[:, 5] = ~bits[:, 4]  # never with 4
    bits[:, 6] = False
    bits[:, 7] = True
    return bits


def counted(bits, blocks: int = 3) -> PairCounts:
    counts = PairCounts(D)
    for part in np.array_split(bits, blocks):
        counts.update(sparse.csr_matrix(part * np.float32(0.5)))
    return counts


@pytest.mark.parametrize("density", [0.02, 0.3])
@pytest.mark.parametrize("is_dense", [0, 2])
def test_pairs_are_counted_by_either_product(density, is_dense, monkeypatch):
    monkeypatch.setattr(pair_counts, "_DENSE", is_dense)
    monkeypatch.setattr(pair_counts, "_TILE", 4)
    bits = make_bits(density)

    assert (counted(bits).together == bits.astype(int).T @ bits).all()


@pytest.mark.parametrize("tile", [8, 2048])
def test_neighbors_are_the_most_correlated(tile, monkeypatch):
    monkeypatch.setattr(pair_counts, "_TILE", tile)
    bits = make_bits()
    when_off = np.zeros(D, dtype=bool)
    when_off[[5, 7]] = True
    records = bits ^ when_off

    found = list(counted(bits).neighbors(N, when_off, 4))

    with np.errstate(invalid="ignore"):
        phi = np.nan_to_num(np.corrcoef(records.T.astype(float)))
    np.fill_diagonal(phi, 0)
    assert len(found) == D
    for j, neighbors in enumerate(found):
        best = [k for k in np.argsort(-phi[j].round(9), kind="stable")[:4] if phi[j, k] > 1e-12]
        assert [n.latent for n in neighbors] == best
        for n in neighbors:
            assert n.value == pytest.approx(phi[j, n.latent])
            assert n.n_together == (records[:, j] & records[:, n.latent]).sum()
    # Off where 4 is on: the same evidence.
    assert found[4][0].latent == 5
    assert found[4][0].value == pytest.approx(1)
    assert found[6] == found[7] == ()


def test_codes_have_the_nearest_codes():
    codebook = torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 4.0], [1.0, 0.5]])

    found = list(nearest_in_codebook(codebook, 2))

    assert [[n.latent for n in ns] for ns in found] == [[1, 3], [3, 0], [3, 1], [1, 0]]
    assert found[0][0].value == pytest.approx(1)
    assert found[0][0].n_together is None
    assert [len(ns) for ns in nearest_in_codebook(codebook, 9)] == [3] * 4
    assert list(nearest_in_codebook(codebook[:1], 2)) == [()]
