"""The comparison of cross-layer methods: each piece on data whose answer is known."""

from __future__ import annotations

import importlib
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bae_lens import TrainingCLVQVAE
from bae_lens.activations.paired_batch import PairedBatch
from bae_lens.architectures.packed_rows import pack_rows

# Benchmarks are scripts: they import each other as their own folder lets them.
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
common: Any = importlib.import_module("common")
data: Any = importlib.import_module("cross_layer_data")
trials: Any = importlib.import_module("cross_layer_trials")
benchmark: Any = importlib.import_module("cross_layer")

D, LENGTH, N_TYPES = 8, 6, 5
TASK = replace(
    data.TASKS["minilm"],
    d_in=D,
    n_codes=4,
    d_sae=16,
    ks=(1, 2),
    steps=80,
    batch_size=24,
    decoder_width=8,
    n_initialization=60,
    length=LENGTH,
)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    torch.manual_seed(0)


def make_split(n: int, seed: int) -> Any:
    """Tokens of five types, far apart at both hooks; position 0 is not valid, its values are absurd."""
    generator = torch.Generator().manual_seed(seed)
    centers = 4 * torch.randn(2, N_TYPES, D, generator=torch.Generator().manual_seed(9))
    tokens = torch.randint(N_TYPES, (n, LENGTH), generator=generator)
    noise = 0.1 * torch.randn(2, n, LENGTH, D, generator=generator)
    lower, upper = (center[tokens] + eps for center, eps in zip(centers, noise, strict=True))
    lower[:, 0], upper[:, 0] = 1e4, -1e4
    valid = torch.ones(n, LENGTH, dtype=torch.bool)
    valid[:, 0] = False
    return data.Split(tokens, pack_rows(lower, upper, valid), D)


@pytest.fixture(scope="module")
def trial() -> Any:
    return data.Trial(TASK, 0, make_split(40, 1), make_split(20, 2), None)


def make_sae(trial: Any, **options: Any) -> Any:
    sae = TrainingCLVQVAE(trials.clvq_config(TASK, 0, **options))
    sae.calibrate(trials.initialization_rows(trial), TASK.batch_size)
    return sae


# Data and scores


def test_pairs_are_collected_as_whole_padded_sequences_until_there_are_enough():
    class Store:
        def paired_batch(self, raise_on_epoch_end: bool = False) -> PairedBatch:
            tokens = torch.arange(1, 10).view(3, 3)
            acts = tokens[..., None].float().expand(-1, -1, 2)
            valid = torch.tensor([[False, True, True]]).expand(3, -1)
            return PairedBatch(tokens, acts, -acts, valid)

    found = common.collect_pairs(Store(), 7, 4)

    # Two valid tokens each: the fourth sequence, first of the second batch, makes it eight.
    assert found["tokens"].tolist() == [[1, 2, 3, 0], [4, 5, 6, 0], [7, 8, 9, 0], [1, 2, 3, 0]]
    assert found["rows"].shape == (16, 5)
    assert found["rows"][:4].tolist() == [
        [1, 1, -1, -1, 0],
        [2, 2, -2, -2, 1],
        [3, 3, -3, -3, 1],
        [0, 0, 0, 0, 0],
    ]


def test_a_split_has_the_valid_tokens_by_themselves_and_puts_them_back(trial):
    split = trial.test

    assert len(split.lower) == 20 * (LENGTH - 1)
    assert split.lower.abs().max() < 1e3
    back = split.in_sequences(split.ids)
    assert torch.equal(back[:, 1:], split.tokens[:, 1:])
    assert (back[:, 0] == 0).all()


def test_explained_variance_is_1_of_the_target_and_0_of_its_mean():
    target = 5 + torch.randn(300, 3)
    mean = target.mean(0).expand_as(target)

    assert data.explained_variance(target, target) == pytest.approx(1)
    assert data.explained_variance(mean, target) == pytest.approx(0, abs=1e-6)
    halfway = (target + mean) / 2
    assert data.explained_variance(halfway, target) == pytest.approx(0.75, abs=1e-6)


def test_bits_are_the_entropy_of_the_counts():
    assert data.entropy_bits(torch.tensor([4, 0, 2, 2])) == pytest.approx(1.5)


def test_recovered_loss_is_1_of_the_activations_and_0_of_what_was_ablated(trial):
    split = trial.test
    seen = []

    def model(x: Any, start_at_layer: int, tokens: Any, **kwargs: Any) -> Any:
        seen.append((start_at_layer, x[:, 0], len(tokens)))
        return (x - true[: len(x)]).square().sum(-1)[:, :-1]

    n = 7
    true = split.rows[:, D:-1].view(-1, LENGTH, D)[:n]
    loss = data.RecoveredLoss(model, split, 3, n)
    own = split.upper[: loss.n_valid]

    assert loss.baselines["model"] == 0
    assert loss.scores(split.upper) == (1, 1)
    assert loss.scores(torch.zeros_like(split.upper))[0] == 0
    assert loss.scores(own.mean(0).expand_as(split.upper))[1] == pytest.approx(0, abs=1e-6)
    # Positions that are not valid keep what stood there, in the ablations too.
    assert all((layer, n_tokens) == (4, n) for layer, _, n_tokens in seen)
    assert all((first == -1e4).all() for _, first, _ in seen)


# Closed forms


def test_group_means_are_means_and_that_of_all_where_a_key_is_not_seen():
    keys = torch.tensor([0, 2, 2])
    values = torch.tensor([[1.0, 2.0], [3.0, 5.0], [5.0, 8.0]])

    means = trials.group_means(keys, values, 4)

    assert means.tolist() == [[1, 2], [3, 5], [4, 6.5], [3, 5]]


def test_token_identity_knows_what_the_type_says(trial):
    identity, linear = trials.fit_closed_forms(trial)

    assert identity.ev > 0.99
    assert identity.ev_shuffled < 0
    assert identity.ev_zeroed == pytest.approx(0, abs=0.05)
    assert identity.n_codes == identity.n_in_use == N_TYPES
    assert identity.bits == pytest.approx(math.log2(N_TYPES), abs=0.1)
    assert linear.bits is None


def test_the_linear_map_is_that_of_linear_data(trial):
    weight = torch.randn(D, D)
    splits = []
    for split in (trial.train, trial.test):
        lower = split.rows[:, :D]
        splits.append(
            data.Split(
                split.tokens,
                pack_rows(lower, lower @ weight + 3, split.valid),
                D,
            )
        )

    row = trials.linear_row(data.Trial(TASK, 0, *splits, None), ridge=1e-9)

    assert row.ev == pytest.approx(1, abs=1e-5)
    assert row.ev_shuffled is None


def test_what_sees_both_layers_is_no_worse_than_k_means_of_the_lower(trial):
    (clusters, _) = trials.fit_kmeans(trial)
    (linear,) = trials.fit_linear_kmeans(trial)
    (predictive,) = trials.fit_predictive(trial)

    assert linear.n_codes == predictive.n_codes == clusters.n_codes
    assert linear.ev >= clusters.ev - 0.05
    assert predictive.ev > 0
    assert predictive.ev_shuffled < predictive.ev


# Controls


def test_controls_decode_the_codes_of_other_tokens_and_none(trial):
    n = len(trial.test.upper)
    asked = []

    def decode(codes: Any) -> Any:
        asked.append(codes)
        return trial.test.upper if codes is None or codes[0] == 0 else 0 * trial.test.upper

    codes = torch.arange(n)
    row = trial.score("x", 1.0, decode, codes, n)

    own, shuffled, zeroed = asked
    assert torch.equal(own, codes)
    assert zeroed is None
    assert not torch.equal(shuffled, codes)
    assert torch.equal(shuffled.sort().values, codes)
    assert (row.ev, row.ev_zeroed) == (1, 1)
    assert row.ev_shuffled < 0
    assert row.perplexity == pytest.approx(n)


@pytest.mark.parametrize(
    "options",
    [
        {"decoder": "token"},
        {"decoder": "transformer"},
        {"decoder": "transformer", "decoder_memory": "encoder"},
    ],
)
def test_decoding_codes_is_what_the_saved_autoencoder_does(trial, options):
    sae = trials.saved(make_sae(trial, **options))
    split = trial.test
    mask = split.valid.view(-1, LENGTH)

    with torch.no_grad():
        decoded = trials.code_decoder(sae, split)(trials.codes_of(sae, split))
        with sae.only_tokens(mask):
            direct = sae(split.rows[:, :D].view(-1, LENGTH, D))[mask]

    torch.testing.assert_close(decoded, direct)


@torch.no_grad()
def test_with_zeroed_codes_only_a_memory_tells_tokens_apart(trial):
    spread = {}
    for memory in ("codes", "encoder"):
        sae = make_sae(trial, decoder="transformer", decoder_memory=memory)
        decoded = trials.code_decoder(sae.eval(), trial.test)(None)
        # At the same position.
        spread[memory] = trial.test.in_sequences(decoded)[:, 2].std(0).max().item()

    assert spread["codes"] < 1e-5
    assert spread["encoder"] > 1e-2


# Frozen codes


def test_frozen_codes_stay_while_their_decoder_is_trained(trial, monkeypatch):
    made = []
    train = trials.train

    def note(trial: Any, sae: Any, *args: Any) -> None:
        made.append((sae, {k: v.clone() for k, v in sae.state_dict().items()}))
        train(trial, sae, *args)

    monkeypatch.setattr(trials, "train", note)
    means, fitted = trials.fit_kmeans(trial)

    ((sae, before),) = made
    changed = {k for k, v in sae.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all(name.startswith("decoder.") for name in changed)
    # They are the codes of k-means.
    assert sae.encoder.alpha == 0
    assert fitted.bits == means.bits
    assert means.ev > 0.5


def test_a_single_layer_autoencoder_passes_its_codes_on(trial):
    means, fitted = trials.fit_vqvae(trial)

    assert fitted.bits == means.bits
    assert means.n_codes == TASK.n_codes


@pytest.mark.parametrize("group", ["token", "transformer, off", "released", "topk 1", "topk 2"])
def test_every_method_is_trained_and_scored(trial, group):
    (row,) = trials.groups(TASK)[group](trial)

    assert row.ev < 1
    assert row.ev_shuffled < row.ev
    assert 0 < row.n_in_use <= row.n_codes
    assert row.bits > 0
    json.dumps(vars(row))


def test_a_topk_code_of_one_latent_costs_its_entropy_and_its_magnitudes(trial):
    (row,) = trials.fit_topk(trial, 1)

    assert row.bits == row.details["support_bits"] + row.details["magnitude_bits"]
    assert row.details["support_bits"] <= math.log2(TASK.d_sae + 1)


# One step without the quantizer


def test_the_identity_step_asks_for_no_distance_and_moves_no_code(trial, monkeypatch):
    sae = make_sae(trial, decoder="token", commitment_coefficient=0.0)
    identity = benchmark.without_quantizer(sae)
    assert type(sae.quantizer) is not type(identity.quantizer)
    before = identity.codebook.clone()

    def refuse(*args: Any) -> None:
        raise AssertionError("A distance was computed.")

    for module in (
        "nn.quantize",
        "nn.codebook",
        "architectures.clvq_vae_base",
        "architectures.clvq_vae_training",
    ):
        monkeypatch.setattr(f"bae_lens.{module}.squared_distances", refuse)
    rows = trial.train.packed[:24]
    step = trials.SAETrainer(trials.trainer_config(4, 24, 1e-3), identity, iter([]))
    z = identity.encoder(identity.process_sae_in(rows[:, :D]))
    decoded = identity.to_target(identity.decoder(z)).detach()
    output = step.step(rows)

    torch.testing.assert_close(output.sae_out, decoded)
    assert torch.equal(identity.codebook, before)
    with pytest.raises(AssertionError, match="distance"):
        sae.quantizer.quantize(torch.randn(2, D))


@pytest.mark.parametrize("decoder", ["token", "transformer"])
def test_steps_are_timed_in_turns(trial, decoder):
    times = benchmark.step_seconds(trial, decoder, 3)

    assert times["ratio"] == times["quantizer"] / times["identity"]


# The report


def row_of(method: str, seed: int, ev: float, perplexity: float = 3.0, n_in_use: int = 4) -> Any:
    return data.Row(method, seed, ev, 1.0, 1.5, perplexity, n_in_use, 4)


def test_targets_are_reached_or_missed_as_measured():
    rows = [
        row_of(benchmark.TOKEN, 0, 0.46),
        row_of(benchmark.TOKEN, 1, 0.49, n_in_use=3),
        row_of(benchmark.TOKEN_OFF, 0, 0.47),
        row_of(benchmark.TOKEN_OFF, 1, 0.47, perplexity=3.5),
    ]

    found = benchmark.targets(TASK, rows, {"token": {"ratio": 1.4}})

    by_target = {entry["target"]: entry for entry in found}
    assert [entry["reached"] for entry in found] == [False, True, True, True, False, False]
    assert by_target["token: EV >= 0.47"]["measured"] == pytest.approx(0.475)
    sampling = by_target["token: EV, sampling on less off >= 0"]
    assert sampling["by_seed"] == pytest.approx([-0.01, 0.02])


def test_a_cell_has_the_deviation_where_there_are_several_seeds():
    assert benchmark.cell([0.5], ".3f") == "0.500"
    assert benchmark.cell([0.4, 0.6], ".3f") == "0.500±.141"
    assert benchmark.cell([409.0, 411.0], ".0f") == "410±1"
    assert benchmark.cell([None], ".3f") == "–"


def test_results_are_resumed_and_refuse_other_settings(tmp_path):
    path = tmp_path / "results.json"
    row = row_of(benchmark.TOKEN, 0, 0.5)
    benchmark.Results(path, [TASK]).add(benchmark.key_of(TASK, "token", 0), [row], {"model": 3.0})

    resumed = benchmark.Results(path, [TASK])

    assert resumed.rows(TASK, [0]) == [row]
    assert resumed.rows(TASK, [1]) == []
    assert resumed.ce(TASK) == {"model": 3.0}
    with pytest.raises(SystemExit, match="other settings"):
        benchmark.Results(path, [replace(TASK, steps=9)])


def test_the_report_fits_120_columns(capsys):
    methods = [benchmark.TRANSFORMER_OFF, "k-means, transformer decoder", "full linear map"]
    rows = [
        data.Row(
            m, s, 0.51 + s / 99, 456.0, 9.1 + s, 410.0 + 9 * s, 512, 512, -0.4, -0.01 - s, 0.8, 0.7
        )
        for m in methods
        for s in range(3)
    ]
    for row in rows:
        row.details = {"alpha": 0.3, "drawn_off_nearest": 0.2 + row.seed / 10}
        row.ce_zero += row.seed / 50
        row.ce_mean += row.seed / 50

    benchmark.report(TASK, rows, {"model": 3.1, "zero": 9.0, "mean": 7.0})
    benchmark.print_targets(benchmark.targets(TASK, rows, {}))

    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    assert any("0.520±.010" in line for line in lines)
