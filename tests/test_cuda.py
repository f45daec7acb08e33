"""What a GPU computes, against the CPU: every architecture trained, resumed, saved, read and evaluated there.

BAE_LENS_TEST_DEVICE=cpu pytest tests/test_cuda.py  # the checks themselves, without a GPU
"""

from __future__ import annotations

import copy
import json
import math
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sae_lens import (
    SAE,
    ActivationsStore,
    LoggingConfig,
    TopKSAE,
    TopKSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.evals import get_eval_everything_config
from sae_lens.synthetic import SyntheticModelConfig, SyntheticSAERunnerConfig
from sae_lens.training._interruption import InterruptedException
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bae_lens import (
    CodeStatistics,
    CrossLayerTrainingRunner,
    ReplayedActivations,
    TrainingBAE,
    TrainingRunner,
    TrainingTopKTranscoderConfig,
    attached,
    concept_ablation,
    entropy_profile,
    run_evals,
)
from bae_lens.activations.sentence_store import SentenceStore
from bae_lens.concept_ablation import AblationSettings, Clusters
from bae_lens.entropy import in_context_accuracy, in_context_entropy, k_shot_prompts
from bae_lens.entropy.compression import compression_report, decode_from_indices, encode_to_indices
from bae_lens.entropy.estimate import estimate_entropy
from bae_lens.evals import MagnitudeQuantizer
from bae_lens.evals.codebook_use import CodebookUse
from bae_lens.examples import ExampleSettings, collect_examples
from bae_lens.fingerprint import weights_sha256
from bae_lens.loading.saved_saes import load_sae
from bae_lens.nn import (
    SURROGATES,
    AdaptiveResidualEncoder,
    CausalTransformerDecoder,
    EMACodebook,
    TokenDecoder,
    binarize,
    binary_entropy,
    calibrated_weights,
    chance_co_firing,
    chow_liu_entropy,
    chow_liu_tree,
    component,
    decode_sparse,
    flip_bits,
    follow_budget,
    heights_of,
    marginal_entropy,
    nearest_codes,
    off_diagonal_covariance,
    one_hot,
    orthonormal_basis,
    plug_in_entropy,
    prune_bits,
    quantize_levels,
    sample_codes,
    select_bits,
    squared_distances,
    straight_through,
    thresholds_of,
    with_feedback,
)
from bae_lens.report.sentences import collect_sentences
from bae_lens.training import SyntheticTrainingRunner
from bae_lens.training.finite_steps import skip_steps_not_finite
from bae_lens.training.fit import fit_activations
from bae_lens.training.rank_states import RANDOM_STATE_FILENAME, restore_random_state
from tests.concept_ablation import helpers as texts
from tests.entropy.test_in_context import EXAMPLES, TEMPLATE
from tests.helpers import (
    BATCH,
    CONTEXT_SIZE,
    D_IN,
    D_SAE,
    HOOK,
    assert_same_code,
    between,
    clvq_cfg,
    cross_layer_cfg,
    fit_codes,
    make_activations,
    make_bae,
    make_clvq,
    make_headless_encoder,
    make_model,
    make_rows,
    make_sparse_activations,
    make_text,
    make_tokens,
    make_training_bae,
    make_training_clvq,
    make_transcoder,
    runner_cfg,
    step_input,
    train_step,
    trainer_cfg,
    training_cfg,
)

DEVICE = os.environ.get("BAE_LENS_TEST_DEVICE", "cuda")
pytestmark = pytest.mark.skipif(
    DEVICE.startswith("cuda") and not torch.cuda.is_available(), reason="needs a GPU"
)
N_STEPS, REPLAY = 8, 6 * BATCH


@pytest.fixture(autouse=True)
def _exact_products():
    """Products in TF32 would be no failure, but no comparison either."""
    assert not torch.backends.cuda.matmul.allow_tf32


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def bits_of(n: int, d: int, rate: float = 0.3, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(n, d, generator=generator) < rate).to(dtype)


def flat(value: Any) -> list[Any]:
    """Numbers and tensors of nested results, in order."""
    if isinstance(value, dict):
        return [x for name in sorted(value) for x in flat(value[name])]
    if isinstance(value, (list, tuple)):
        return [x for part in value for x in flat(part)]
    return [value]


def on_cpu(value: Tensor) -> Tensor:
    return value.detach().cpu()


# Tensor maths


def value_and_grads(fn: Callable[..., Any], device: str, *inputs: Tensor) -> list[Tensor]:
    """Outputs and the gradients of a weighted sum of them, computed on a device."""
    leaves = [x.clone().to(device).requires_grad_(x.is_floating_point()) for x in inputs]
    outputs = [x for x in flat(fn(*leaves)) if isinstance(x, Tensor)]
    assert all(x.device.type == torch.device(device).type for x in outputs)
    with_grad = [x for x in outputs if x.requires_grad]
    found = [on_cpu(x) for x in outputs]
    if with_grad:
        weights = [noise(*x.shape, seed=7).to(x) for x in with_grad]
        total = sum((w * x).sum() for w, x in zip(weights, with_grad, strict=True))
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        grads = torch.autograd.grad(total, wanted, allow_unused=True)  # pyright: ignore[reportCallIssue, reportArgumentType]
        found += [on_cpu(x) for x in grads if x is not None]
    return found


def assert_same_there(fn: Callable[..., Any], *inputs: Tensor, rtol: float = 1e-9) -> None:
    expected = value_and_grads(fn, "cpu", *inputs)
    found = value_and_grads(fn, DEVICE, *inputs)
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        scale = float(other.abs().max()) if other.is_floating_point() and other.numel() else 1.0
        torch.testing.assert_close(one, other, rtol=rtol, atol=rtol * scale)


def surrogate(name: Any) -> Callable[..., Any]:
    return partial(binarize, surrogate=name, temperature=0.7)


def of_levels(pre: Tensor, gaps: Tensor, raw: Tensor, curvature: Tensor) -> Tensor:
    code = quantize_levels(
        pre, thresholds_of(gaps), heights_of(raw), temperature=0.7, curvature=curvature.detach()
    )
    return code.acts.square().sum() + (code.counts * heights_of(raw)).sum() + code.zero


X, CODE, WEIGHT = noise(61, 10), bits_of(61, 12), noise(12, 10, seed=3)
FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    **{f"binarize {s}": (surrogate(s), (X,)) for s in SURROGATES},
    "quantize_levels": (
        of_levels,
        (X, noise(10, 3, seed=5), noise(10, 3, seed=6), noise(10).abs()),
    ),
    "with_feedback": (
        lambda x, e, d, g: with_feedback(x @ e, x, e, g, lambda p: binarize(p) @ d, 2),
        (X, noise(10, 12), noise(12, 10, seed=3), noise(12, seed=4)),
    ),
    "binary_entropy": (binary_entropy, (X.sigmoid(),)),
    "marginal_entropy": (marginal_entropy, (CODE,)),
    "decode_sparse": (decode_sparse, (bits_of(61, 12, 0.05), WEIGHT)),
    "decode_sparse, dense": (decode_sparse, (CODE, WEIGHT)),
    **{
        f"covariance {m} of {name}": (partial(off_diagonal_covariance, method=m, is_binary=b), (x,))
        for m in ("auto", "tiles", "strips", "pairs")
        for name, b, x in (
            ("bits", False, CODE),
            ("bits known as such", True, CODE),
            ("mostly on", True, bits_of(61, 12, 0.9)),
            ("reals", False, noise(61, 12)),
        )
    },
    "one_hot": (one_hot, (X,)),
    "flip_bits": (
        lambda *w: flip_bits(*w, flipped=w[4] > 0.5, apply_b_dec_to_input=True),
        (noise(10, 12), noise(12), noise(12, 10), noise(10), noise(12).sigmoid()),
    ),
    "calibrated_weights": (
        lambda x, e, d: calibrated_weights(x.detach(), e.detach(), d.detach(), 0.1, True),
        (X, noise(10, 12), WEIGHT),
    ),
    "follow_budget": (follow_budget, (noise(), noise(seed=2).abs())),
    "component": (lambda v, b: component(v, orthonormal_basis(b), v.mean(0)), (X, noise(2, 10))),
    "straight_through": (straight_through, (X, noise(61, 10, seed=4))),
    "squared_distances": (squared_distances, (X.float(), noise(9, 10, seed=4).float())),
    "nearest_codes": (nearest_codes, (X.float(), noise(9, 10, seed=4).float())),
    "prune_bits": (lambda c, x: prune_bits(c.detach(), x.detach(), 0.6), (CODE, X)),
    "select_bits": (lambda c, x: select_bits(c.detach(), x.detach(), 0.6), (CODE, X)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_and_gradients(name: str):
    fn, inputs = FUNCTIONS[name]
    is_float32 = any(x.dtype == torch.float32 for x in inputs)
    is_float32 |= "known" in name or name == "calibrated_weights"
    assert_same_there(fn, *inputs, rtol=1e-5 if is_float32 else 1e-8)


@pytest.mark.parametrize("method", ["auto", "tiles", "strips", "pairs"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_covariance_of_narrow_bits_in_many_rows(method: Any, dtype: torch.dtype):
    # More rows than bfloat16 counts, and than float32 multiplies exactly; more columns than a tile.
    bits = bits_of(4801, 300, 0.1, torch.float32)
    expected = value_and_grads(off_diagonal_covariance, "cpu", bits.double())
    penalty = partial(off_diagonal_covariance, method=method, is_binary=True)
    found = value_and_grads(penalty, DEVICE, bits.to(dtype))
    rtol = 1e-5 if dtype == torch.float32 else 1e-2
    for one, other, r in zip(found, expected, (1e-5, rtol), strict=True):
        scale = other.abs().max().item()
        torch.testing.assert_close(one.double(), other, rtol=r, atol=r * scale)


def test_entropies_of_counts():
    code = bits_of(500, 12, dtype=torch.float32)
    there = code.to(DEVICE)
    assert chow_liu_entropy(there) == pytest.approx(chow_liu_entropy(code), abs=1e-12)
    counts = there.sum(0).long()
    tree = chow_liu_tree(counts, chance_co_firing(counts, 500), 500)
    expected = chow_liu_tree(counts.cpu(), chance_co_firing(counts.cpu(), 500), 500)
    assert tree.entropy == pytest.approx(expected.entropy, abs=1e-12)
    assert plug_in_entropy(counts) == pytest.approx(plug_in_entropy(counts.cpu()))


MODULES: dict[str, Callable[[], nn.Module]] = {
    "token": lambda: TokenDecoder(10, 7, n_layers=2),
    "causal": lambda: CausalTransformerDecoder(10, 7, d_model=8, n_layers=2, n_heads=2),
    "learned": lambda: CausalTransformerDecoder(10, 7, d_model=8, n_heads=2, positions="learned"),
    "leak": lambda: CausalTransformerDecoder(10, 7, d_model=8, n_heads=2, cross_attention=True),
    "encoder": lambda: AdaptiveResidualEncoder(10),
}


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_modules_and_gradients(name: str, is_masked: bool):
    torch.manual_seed(0)
    module = MODULES[name]().double()
    valid = torch.rand(6, 8, generator=torch.Generator().manual_seed(0)) < 0.7
    x = noise(6, 8, 10)
    found = []
    for device in ("cpu", DEVICE):
        there = copy.deepcopy(module).to(device)
        leaf = x.detach().clone().to(device).requires_grad_()
        args: list[Any] = [leaf]
        if name != "encoder":
            args.append(valid.to(device) if is_masked else None)
        if name == "leak":
            args.append(leaf)
        out = there(*args)
        (out * noise(*out.shape, seed=5).to(out)).sum().backward()
        found.append([out, leaf.grad, *(p.grad for p in there.parameters())])
    for one, other in zip(*found, strict=True):
        # Positions are float32, and what a GPU rounds otherwise goes through a norm.
        torch.testing.assert_close(on_cpu(other), on_cpu(one), rtol=1e-4, atol=1e-6)


def test_a_codebook_moves_as_on_the_cpu():
    books = [EMACodebook(9, 10, revive_after=None) for _ in range(2)]
    books[1].load_state_dict(books[0].state_dict())
    books[1].to(DEVICE)
    for step in range(6):
        z = noise(64, 10, seed=step, dtype=torch.float32)
        mask = bits_of(64, 1, 0.8)[:, 0].bool()
        for book in books:
            device = book.codebook.device
            q = book.quantize(z.to(device), mask.to(device))
            book.update(z.to(device), q.indices, mask.to(device), q.distance, q.nearest)
    for name, value in books[0].state_dict().items():
        torch.testing.assert_close(on_cpu(books[1].state_dict()[name]), value, rtol=1e-5, atol=1e-5)


def test_draws_follow_the_softmax_and_their_generator():
    distances = torch.tensor([0.0, 1.0, 2.0, 9.0], device=DEVICE).expand(20_000, 4)
    generator = torch.Generator(DEVICE)
    drawn = [sample_codes(distances, 3, 1.0, 1.0, generator.manual_seed(3)) for _ in range(2)]
    assert torch.equal(*drawn)
    share = torch.bincount(drawn[0], minlength=4) / 20_000
    expected = torch.cat([(-distances[0, :3]).softmax(0), distances.new_zeros(1)])
    torch.testing.assert_close(share, expected, rtol=0, atol=0.015)


def test_revival_there():
    book = EMACodebook(9, 10, revive_after=2).to(DEVICE)
    for step in range(8):
        z = 0.1 * noise(64, 10, seed=step, dtype=torch.float32).to(DEVICE) + 5
        q = book.quantize(z, top_k=3)
        book.update(z, q.indices, None, q.distance, q.nearest)
    assert int(book.n_revived) > 0
    assert all(b.isfinite().all() for b in book.buffers())


def test_operators_compile_with_inductor():
    bits, weight = bits_of(601, 130, dtype=torch.float32), noise(130, 8, dtype=torch.float32)

    def loss(codes: Tensor, weight: Tensor) -> Tensor:
        out = decode_sparse(codes, weight).square().mean()
        return out + 1e-3 * off_diagonal_covariance(codes, is_binary=True)

    expected = value_and_grads(loss, DEVICE, bits, weight)
    torch._dynamo.reset()
    found = value_and_grads(torch.compile(loss, fullgraph=True), DEVICE, bits, weight)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# Training


def sae_of(kind: str, **overrides: Any) -> Any:
    if kind == "topk_transcoder":
        widths = {"d_in": D_IN, "d_sae": D_SAE, "d_out": D_IN, "k": 3}
        return TrainingTopKTranscoderConfig(**{**widths, **overrides})
    if kind.startswith("clvq"):
        decoder = kind.removeprefix("clvq ")
        chosen = {"d_out": D_IN, "decoder": decoder, "top_k": 5, "sequence_length": None}
        return clvq_cfg(**{**chosen, **overrides})
    if kind == "bae with covariance":
        return training_cfg(**{"covariance_coefficient": 1e-3, **overrides})
    if kind == "bae with levels":
        return training_cfg(**{"n_levels": 3, "feedback_steps": 2, **overrides})
    return training_cfg(**overrides)


LENGTHS = {"clvq transformer": {"sequence_length": CONTEXT_SIZE}}
KINDS = [
    "bae",
    "bae with covariance",
    "bae with levels",
    "clvq token",
    "clvq transformer",
    "topk_transcoder",
]


def make_runner(
    folder: Path,
    kind: str,
    replay: int | None = REPLAY,
    exclude_outlier_tokens: bool = False,
    replay_path: Path | None = None,
    **fields: Any,
) -> Any:
    logger = LoggingConfig(log_to_wandb=False, wandb_log_frequency=2)
    fields = {
        "device": DEVICE,
        "logger": logger,
        "sae": sae_of(kind, **fields.pop("sae_fields", {})),
        **fields,
    }
    is_cross_layer = not kind.startswith("bae")
    make = cross_layer_cfg if is_cross_layer else runner_cfg
    runner = CrossLayerTrainingRunner if is_cross_layer else TrainingRunner
    cfg = make(folder, N_STEPS, **fields)
    model = make_model().to(str(cfg.llm_device))
    return runner(
        cfg,
        make_text(),
        model,
        replay_tokens=replay,
        exclude_outlier_tokens=exclude_outlier_tokens,
        replay_path=replay_path,
    )


def weights_in(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "output" / "sae_weights.safetensors")


def assert_trained(sae: Any, folder: Path) -> None:
    """Finite, on the device, and read back the same on the CPU and on the device."""
    assert sae.device.type == torch.device(DEVICE).type
    assert {b.device.type for b in (*sae.buffers(), *sae.parameters())} == {sae.device.type}
    assert all(w.isfinite().all() for w in weights_in(folder).values() if w.is_floating_point())
    x = make_activations(200)
    found = []
    for device in ("cpu", DEVICE):
        for loaded in (SAE.load_from_disk(folder / "output", device=device),
                       load_sae(folder / "output", device)):  # fmt: skip
            acts = loaded.encode(x.to(device))
            found.append((on_cpu(acts), on_cpu(loaded.decode(acts))))
    for acts, out in found[1:]:
        same = ((acts - found[0][0]).abs() <= 1e-4 * (1 + found[0][0].abs())).all(-1)
        assert same.float().mean() > 0.99
        torch.testing.assert_close(out[same], found[0][1][same], rtol=1e-3, atol=1e-4)
    again = load_sae(folder / "output", DEVICE, training=True)
    assert {p.device.type for p in again.parameters()} == {torch.device(DEVICE).type}


@pytest.mark.parametrize(("replay", "autocast"), [(None, False), (REPLAY, True)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run(tmp_path: Path, kind: str, replay: int | None, autocast: bool):
    runner = make_runner(tmp_path, kind, replay, autocast=autocast)
    assert_trained(runner.run(), tmp_path)
    log = [
        json.loads(line) for line in (tmp_path / "output/metrics.jsonl").read_text().splitlines()
    ]
    assert all(math.isfinite(x["losses/overall_loss"]) for x in log)


@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_run(tmp_path: Path, kind: str):
    torch._dynamo.reset()
    assert_trained(make_runner(tmp_path, kind, autocast=True, compile_sae=True).run(), tmp_path)


@pytest.mark.parametrize("kind", ["bae", "clvq token"])
@pytest.mark.parametrize(
    "fields",
    [
        {"act_store_device": "cpu"},
        {"act_store_device": "with_model"},
        {"llm_device": "cpu"},
        {"llm_device": "cpu", "act_store_device": "with_model"},
        {"device": "cpu", "llm_device": DEVICE},
        {"device": "cpu", "llm_device": DEVICE, "act_store_device": "with_model"},
        {"exclude_outlier_tokens": True},
        {"autocast_lm": True},
        {"prefetch_llm_batches": True, "replay": None},
    ],
    ids=str,
)
def test_a_run_with_parts_elsewhere(tmp_path: Path, kind: str, fields: dict[str, Any]):
    sae = make_runner(tmp_path, kind, **fields).run()
    assert all(p.isfinite().all() for p in sae.parameters())
    assert (tmp_path / "output" / "sae_weights.safetensors").exists()


@pytest.mark.parametrize("sae_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_in_bfloat16(tmp_path: Path, kind: str, dtype: str, sae_dtype: str):
    sae = make_runner(tmp_path, kind, dtype=dtype, sae_fields={"dtype": sae_dtype}).run()
    assert all(p.isfinite().all() for p in sae.parameters())


@pytest.mark.parametrize("kind", ["bae", "clvq transformer"])
def test_a_run_replays_from_disk(tmp_path: Path, kind: str):
    for name in "ab":
        make_runner(tmp_path / name, kind, replay_path=tmp_path / "rows").run()
    one, other = weights_in(tmp_path / "a"), weights_in(tmp_path / "b")
    assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)


@pytest.mark.parametrize("kind", ["bae", "topk_transcoder"])
def test_a_run_is_that_of_the_cpu(tmp_path: Path, kind: str):
    for name, device in (("a", DEVICE), ("b", "cpu")):
        make_runner(tmp_path / name, kind, device=device).run()
    logs = [
        json.loads((tmp_path / name / "output/metrics.jsonl").read_text().splitlines()[-1])
        for name in "ab"
    ]
    for name in ("losses/mse_loss", "metrics/explained_variance"):
        assert logs[0][name] == pytest.approx(logs[1][name], rel=0.05), name


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path, kind: str, autocast: bool):
    whole = make_runner(tmp_path / "a", kind, n_checkpoints=1, autocast=autocast)
    whole.run()
    [checkpoint] = Path(str(whole.cfg.checkpoint_path)).iterdir()
    assert set(load_file(checkpoint / RANDOM_STATE_FILENAME)) >= (
        {"cpu", "cuda:0"} if DEVICE.startswith("cuda") else {"cpu"}
    )
    fields = {"resume_from_checkpoint": str(checkpoint), "autocast": autocast}
    make_runner(tmp_path / "b", kind, **fields).run()
    resumed = weights_in(tmp_path / "b")
    for name, value in weights_in(tmp_path / "a").items():
        if kind.startswith("clvq"):
            # Vectors are added up in no fixed order, and two whole runs differ by as much.
            torch.testing.assert_close(resumed[name], value, rtol=1e-2, atol=1e-3)
        else:
            assert torch.equal(resumed[name], value), name


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_runner(tmp_path / "whole", "clvq token").run()
    clip, n = torch.nn.utils.clip_grad_norm_, 0

    def clip_and_signal(*args: Any, **kwargs: Any) -> Any:
        nonlocal n
        n += 1
        if n == 5:
            signal.raise_signal(signal.SIGINT)
        return clip(*args, **kwargs)

    stopped = make_runner(tmp_path / "stopped", "clvq token")
    with monkeypatch.context() as patch:
        patch.setattr("torch.nn.utils.clip_grad_norm_", clip_and_signal)
        with pytest.raises(InterruptedException):
            stopped.run()
    [checkpoint] = Path(str(stopped.cfg.checkpoint_path)).iterdir()
    make_runner(tmp_path / "again", "clvq token", resume_from_checkpoint=str(checkpoint)).run()
    whole, again = weights_in(tmp_path / "whole"), weights_in(tmp_path / "again")
    for name, value in whole.items():
        torch.testing.assert_close(again[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("there", "here"), [(DEVICE, "cpu"), ("cpu", DEVICE)])
@pytest.mark.parametrize("kind", ["bae", "clvq token"])
def test_a_run_goes_on_on_another_device(tmp_path: Path, kind: str, there: str, here: str):
    runner = make_runner(tmp_path / "a", kind, device=there, n_checkpoints=1)
    runner.run()
    [checkpoint] = Path(str(runner.cfg.checkpoint_path)).iterdir()
    resumed = make_runner(tmp_path / "b", kind, device=here, resume_from_checkpoint=str(checkpoint))
    sae = resumed.run()
    assert sae.device.type == torch.device(here).type
    assert all(p.isfinite().all() for p in sae.parameters())


def test_random_numbers_of_a_machine_with_more_gpus(tmp_path: Path):
    state = torch.Generator(DEVICE).get_state()
    cuda = {f"cuda:{i}": state.clone() for i in (0, 77)} if DEVICE.startswith("cuda") else {}
    save_file({"cpu": torch.get_rng_state(), **cuda}, tmp_path / RANDOM_STATE_FILENAME)
    restore_random_state(tmp_path)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, "topk"])
def test_a_bad_batch_leaves_no_trace(kind: str, autocast: bool):
    torch.manual_seed(0)
    if kind == "topk":
        cfg: Any = TopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=3)
    else:
        cfg = sae_of(kind, **LENGTHS.get(kind, {}))
        if kind.startswith("bae"):
            cfg.normalize_activations = "none"
    sae = TrainingSAE.from_dict(cfg.to_dict()).to(DEVICE)
    data = ReplayedActivations(make_activations(10 * BATCH).to(DEVICE), BATCH)
    trainer: Any = SAETrainer(trainer_cfg(20, device=DEVICE, autocast=autocast), sae, data)
    skip_steps_not_finite(trainer)
    for _ in range(3):
        trainer.step(next(data))

    def state() -> dict[str, Tensor]:
        found = {name: value.clone() for name, value in sae.state_dict().items()}
        for i, part in enumerate(trainer.optimizer.state.values()):
            found |= {f"{i} {name}": value.clone() for name, value in part.items()}
        return found | {"fired": trainer.act_freq_scores.clone()}

    before = state()
    for bad in (float("nan"), float("inf"), 3e38):
        batch = next(data).clone()
        batch[5, 0] = bad
        trainer.step(batch)
    after = state()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    trainer.step(next(data))
    assert any(not torch.equal(value, state()[name]) for name, value in before.items())


@pytest.mark.skipif(not DEVICE.startswith("cuda"), reason="a CPU is never waited for")
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "topk_transcoder"])
def test_no_step_waits_for_the_device(kind: str, autocast: bool):
    """But for the one number that says whether the step was finite, which is asked for elsewhere; and
    SAELens' own loss of dead latents, which a TopK transcoder has."""
    sae: Any = TrainingSAE.from_dict(sae_of(kind, **LENGTHS.get(kind, {})).to_dict()).to(DEVICE)
    x = make_activations(4 * BATCH).to(DEVICE)
    coefficients = step_input(sae, x)
    for _ in range(3):
        sae.training_forward_pass(coefficients).loss.backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            output = sae.training_forward_pass(coefficients)
        output.loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_activations_in_memory():
    x = make_sparse_activations(512)
    for where in ("cpu", DEVICE):
        sae = fit_activations(training_cfg(), x.to(where), 5, 64, device=DEVICE)
        assert sae.device.type == torch.device(DEVICE).type
        assert sae.W_enc.isfinite().all()


def test_a_synthetic_run(tmp_path: Path):
    cfg = SyntheticSAERunnerConfig(
        synthetic_model=SyntheticModelConfig(num_features=32, hidden_dim=D_IN),
        sae=training_cfg(),
        training_samples=4 * 256,
        batch_size=256,
        output_path=str(tmp_path / "output"),
        device=DEVICE,
        eval_samples=256,
        logger=LoggingConfig(log_to_wandb=False),
    )
    SyntheticTrainingRunner(cfg).run()
    assert (tmp_path / "output" / "sae_weights.safetensors").exists()


def test_weights_have_the_same_hash():
    sae = make_bae()
    assert weights_sha256(copy.deepcopy(sae).to(DEVICE)) == weights_sha256(sae)


@pytest.mark.parametrize("kind", ["bae", "bae with levels", "clvq"])
def test_a_training_step_is_that_of_the_cpu(kind: str):
    """Loss and every gradient, in float32."""
    found = []
    for device in ("cpu", DEVICE):
        if kind.startswith("bae"):
            code = {"n_levels": 3, "feedback_steps": 2} if "levels" in kind else {}
            sae: Any = make_training_bae(covariance_coefficient=1e-3, **code).to(device)
            x = make_activations(200).to(device)
        else:
            sae = make_training_clvq(decoder="transformer", top_k=1).to(device)
            x = make_rows(64).to(device)
        output = train_step(sae, x)
        output.loss.backward()
        grads = [p.grad for p in sae.parameters() if p.grad is not None]
        found.append([output.loss, output.sae_out, *grads, *sae.buffers()])
    for one, other in zip(*found, strict=True):
        one, other = on_cpu(one).float(), on_cpu(other).float()
        atol = 1e-4 * one.abs().max().item() if one.numel() else 0
        near = ((one - other).abs() <= atol + 1e-4 * one.abs()).float().mean()
        assert near > 0.99


# Evaluation


def saes() -> dict[str, Any]:
    topk = TopKSAE(TopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=5))
    with torch.no_grad():
        for parameter in topk.parameters():
            parameter.copy_(0.3 * noise(*parameter.shape, dtype=torch.float32))
    return {
        "bae": between(make_bae(), HOOK, None),
        "bae with levels": between(make_bae(n_levels=3, feedback_steps=2), HOOK, None),
        "topk": between(topk, HOOK, None),
        "clvq": fit_codes(between(make_clvq(d_out=D_IN, decoder="token")), make_activations(500)),
        "clvq transformer": fit_codes(
            between(make_clvq(d_out=D_IN, decoder="transformer")), make_activations(500)
        ),
        "transcoder": between(make_transcoder()),
    }


SAES = ["bae", "bae with levels", "topk", "clvq", "clvq transformer", "transcoder"]


def assert_about(found: Any, expected: Any, rel: float = 2e-3, where: str = "") -> None:
    """Nested numbers agree, but for rounding."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name, value in expected.items():
            assert_about(found[name], value, rel, f"{where}/{name}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_about(one, other, rel, f"{where}/{i}")
    elif isinstance(expected, Tensor):
        assert_about(found.cpu().tolist(), expected.cpu().tolist(), rel, where)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=rel, abs=1e-4, nan_ok=True), where
    else:
        assert found == expected, where


@pytest.mark.parametrize("name", SAES)
def test_evals_are_those_of_the_cpu(name: str):
    found = []
    for device in ("cpu", DEVICE):
        model, sae = make_model().to(device), saes()[name].to(device)
        store = ActivationsStore.from_sae(
            model, sae, make_text(), streaming=False, store_batch_size_prompts=4, device=device
        )
        metrics, per_latent = run_evals(
            sae,
            store,
            model,
            eval_config=get_eval_everything_config(4, 2, 2),
            exclude_special_tokens=True,
            n_code_tokens=400,
        )
        found.append((metrics, per_latent))
    assert_about(found[1][0], found[0][0])


@pytest.mark.parametrize("is_sae_elsewhere", [False, True])
def test_evals_in_sentences(is_sae_elsewhere: bool):
    sae = between(make_clvq(d_out=D_IN, decoder="token"), "blocks.0.hook_out", "blocks.1.hook_out")
    sae.cfg.metadata.text_unit = "sentence"
    sae = sae.to("cpu" if is_sae_elsewhere else DEVICE)
    model: Any = make_headless_encoder().to(DEVICE)
    store = SentenceStore(
        model,
        ["word1 word7 word3 word8", "word2", "word5 word6 word30 word12"] * 40,
        ["blocks.0.hook_out", "blocks.1.hook_out"],
        context_size=CONTEXT_SIZE,
        device=torch.device(DEVICE),
        exclude_special_tokens=[0],
    )
    metrics, _ = run_evals(
        sae, store, model, eval_config=get_eval_everything_config(4, 2, 2), n_code_tokens=200
    )
    assert "code" in metrics


@pytest.mark.parametrize("is_magnitude", [False, True])
def test_statistics_of_a_code(is_magnitude: bool):
    acts = bits_of(900, 30, dtype=torch.float32)
    W_dec = noise(30, 8, dtype=torch.float32)
    if is_magnitude:
        acts = acts * (0.1 + noise(900, 30, dtype=torch.float32).abs())
    found = []
    for device in ("cpu", DEVICE):
        fields: dict[str, Any] = {}
        if is_magnitude:
            fields["quantizer"] = MagnitudeQuantizer.fit(acts.to(device), W_dec.to(device), 3)
        statistics, other = (CodeStatistics(30, **fields) for _ in range(2))
        statistics.update(acts[:500].to(device))
        other.update(acts[500:].to(device))
        statistics.merge(other)
        summary = statistics.compute(W_dec.to(device))
        found.append({k: v for k, v in vars(summary).items()})
    assert_about(found[1], found[0], 1e-5)


def test_use_of_a_codebook():
    codes, tokens = torch.arange(200) % 7, torch.arange(200) % 5
    found = []
    for device in ("cpu", DEVICE):
        use = CodebookUse(10)
        use.update(codes.to(device), tokens.to(device))
        found.append(use.compute())
    assert_about(found[1], found[0])


@pytest.mark.parametrize("name", ["bae", "clvq", "clvq transformer", "transcoder"])
def test_attached_is_that_of_the_cpu(name: str):
    tokens = make_tokens()
    logits = []
    for device in ("cpu", DEVICE):
        model, sae = make_model().to(device), saes()[name].to(device)
        with attached(model, sae):
            logits.append(on_cpu(model(tokens.to(device))))
        with attached(model, sae, use_error_term=name == "bae"):
            # Tokens of the caller that are on the CPU still, as TransformerLens takes them.
            model(tokens)
            model("word1 word2 word3")
    near = ((logits[0] - logits[1]).abs() < 1e-3).float().mean()
    assert near > 0.98


# Examples, concept ablation, entropy


@pytest.mark.parametrize("name", ["bae", "topk", "clvq", "transcoder"])
def test_examples_are_those_of_the_cpu(name: str):
    settings = ExampleSettings(n_tokens=None, n_strongest=3, n_random=4, n_left=3, n_right=2)
    found = []
    for device in ("cpu", DEVICE):
        model, sae = make_model().to(device), saes()[name].to(device)
        records = collect_examples(model, sae, make_text(60), settings, verbose=False)
        found.append([latent.n_firings for latent in records.latents])
        sentences = collect_sentences(model, sae, ["word1 word2 word3"], records)
        assert sentences
    apart = sum(abs(a - b) for a, b in zip(*found, strict=True))
    assert apart <= 0.01 * sum(found[0])


@pytest.mark.parametrize("name", ["clusters", "clvq", "bae", "topk"])
@pytest.mark.parametrize("readout", ["mean", "last"])
def test_concept_ablation_is_that_of_the_cpu(name: str, readout: Any):
    settings = AblationSettings(
        context_size=texts.N_CTX,
        n_folds=2,
        n_steps=4,
        n_ordinary=4,
        readout=readout,
        label_words=("no", "yes") if readout == "last" else None,
    )
    x = make_activations(400, 16)
    accuracies = []
    for device in ("cpu", DEVICE):
        model = texts.make_model(16).to(device)
        dictionary: Any = (
            Clusters.fit(x, 10, texts.LOWER_HOOK)
            if name == "clusters"
            else between(saes()[name].to(device), texts.LOWER_HOOK, texts.UPPER_HOOK)
            if name == "clvq"
            else between(saes()[name].to(device), texts.LOWER_HOOK, None)
        )
        result = concept_ablation(
            model, dictionary, texts.make_rows(48), settings, verbose=False,
            hook_name_out=None if name == "clvq" else texts.UPPER_HOOK,
        )  # fmt: skip
        accuracies.append([row.accuracy for row in result.rows])
    apart = [abs(a - b) for a, b in zip(*accuracies, strict=True)]
    assert sum(apart) / len(apart) < 0.05


def small_cfg() -> Any:
    return training_cfg(d_sae=12, max_density=None, target_entropy=None)


def test_an_entropy_profile():
    profile = entropy_profile(
        make_model().to(DEVICE),
        make_text(),
        hooks=[HOOK],
        positions=[1, (2, 3)],
        max_unexplained=0.5,
        n_sequences=100,
        seeds=(0,),
        cfg=small_cfg(),
        steps=10,
        batch_size=32,
    )
    assert all(math.isfinite(row.variance) for row in profile.rows)


def test_entropy_in_context():
    model = make_model().to(DEVICE)
    profile = in_context_entropy(
        model,
        EXAMPLES,
        hooks=[HOOK],
        shots=(0, 1),
        max_unexplained=0.5,
        n_prompts=120,
        template=TEMPLATE,
        seeds=(0,),
        cfg=small_cfg(),
        steps=10,
        batch_size=32,
    )
    assert profile.rows
    prompts = k_shot_prompts(EXAMPLES, 1, 20, TEMPLATE)
    assert 0 <= in_context_accuracy(model, prompts) <= 1


@pytest.mark.parametrize("where", ["cpu", DEVICE])
def test_an_estimate_and_compression(where: str):
    x = make_sparse_activations(600).to(where)
    estimate = estimate_entropy(
        x[:400], x[400:], 0.5, small_cfg(), steps=10, batch_size=64, device=DEVICE
    )
    assert math.isfinite(estimate.entropy)
    sae = make_bae().to(DEVICE)
    indices = encode_to_indices(sae, x)
    assert decode_from_indices(sae, indices).shape == x.shape
    assert compression_report(sae, x).to_dict()


def test_a_text_dataset_of_the_store_on_the_device():
    sae = saes()["bae"].to(DEVICE)
    text = Dataset.from_dict({"text": ["word1 word2 word3", "word4"] * 40})
    model = make_model().to(DEVICE)
    store = ActivationsStore.from_sae(
        model, sae, text, streaming=False, store_batch_size_prompts=4, device=DEVICE
    )
    metrics, _ = run_evals(sae, store, model, n_code_tokens=50, exclude_special_tokens=True)
    assert metrics["code"]


def test_a_bae_saved_there_is_the_same_code_here(tmp_path: Path):
    sae = make_training_bae().to(DEVICE)
    x = make_activations(500)
    with torch.no_grad():
        sae.firing_rate.copy_((sae.encode(x.to(DEVICE)) != 0).float().mean(0))
        sae.n_updates.fill_(1000)
        acts, pre = sae.encode_with_hidden_pre(x.to(DEVICE))
        expected = (on_cpu(acts), on_cpu(sae.decode(acts)), on_cpu(pre))
    sae.save_inference_model(tmp_path)
    loaded: Any = SAE.load_from_disk(tmp_path)
    bits = (loaded.encode(x) != 0) ^ loaded.flipped
    assert_same_code(expected, (bits, loaded(x).detach()))
    assert isinstance(load_sae(tmp_path, DEVICE, training=True), TrainingBAE)
