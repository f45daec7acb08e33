"""Tiny stand-ins for models, text and autoencoders, made on the spot: no hub, no downloads."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sae_lens import (
    AbsTopKSAE,
    AbsTopKSAEConfig,
    HookedSAETransformer,
    LanguageModelSAERunnerConfig,
    LoggingConfig,
    TemporalSAE,
    TemporalSAEConfig,
    TrainingSAE,
)
from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.saes.transcoder import (
    JumpReLUSkipTranscoder,
    JumpReLUSkipTranscoderConfig,
    JumpReLUTranscoder,
    JumpReLUTranscoderConfig,
    SkipTranscoder,
    SkipTranscoderConfig,
    Transcoder,
    TranscoderConfig,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformer_lens import HookedTransformerConfig
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertPreTrainedModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedTokenizerFast,
)

from bae_lens import (
    BAE,
    CLVQVAE,
    BAEConfig,
    CLVQVAEConfig,
    CrossLayerRunnerConfig,
    TrainingBAE,
    TrainingBAEConfig,
    TrainingCLVQVAE,
    TrainingCLVQVAEConfig,
)
from bae_lens.architectures.packed_rows import pack_rows
from bae_lens.encoders import encoder_bridge
from bae_lens.nn import level_indices

D_IN, D_SAE = 16, 40
D_OUT, N_CODES, LENGTH = 12, 10, 8
CONTEXT_SIZE, BATCH = 16, 64
HOOK, HOOK_OUT = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
# A word's token, see make_sinking_model.
SINK = 20
_SPECIAL = ("<bos>", "<eos>", "<pad>", "<unk>")
_WORDS = tuple(f"word{i}" for i in range(40))


# Language models and text


def make_tokenizer(words: Sequence[str] = _WORDS) -> PreTrainedTokenizerFast:
    """Of whole words; anything else is <unk>. Special tokens come first."""
    vocab = {word: i for i, word in enumerate((*_SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    bos, eos, pad, unk = _SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        unk_token=unk,
        add_bos_token=True,
        name_or_path="tiny",
    )


def make_model() -> HookedSAETransformer:
    """Two layers of width ``D_IN`` with random weights, always the same ones."""
    cfg = HookedTransformerConfig(
        model_name="tiny",
        n_layers=2,
        d_model=D_IN,
        n_heads=2,
        d_head=D_IN // 2,
        d_mlp=2 * D_IN,
        n_ctx=2 * CONTEXT_SIZE,
        d_vocab=len(_SPECIAL + _WORDS),
        act_fn="gelu",
        device="cpu",
        seed=0,
        # Logits that differ between tokens, so that a wrong activation is seen in the loss.
        initializer_range=0.3,
    )
    return HookedSAETransformer(cfg, tokenizer=make_tokenizer()).eval()


def make_sinking_model() -> HookedSAETransformer:
    """``make_model`` with a word, the token ``SINK``, whose activations are a hundred times as long as
    others', as those of an attention sink are."""
    model = make_model()
    with torch.no_grad():
        model.W_E[SINK] *= 150
    return model


def make_bridge(folder: Path) -> SAETransformerBridge:
    """The same shape as a TransformerBridge, booted from a GPT-2 that is first saved in a folder."""
    torch.manual_seed(0)
    bos, eos = 0, 1
    gpt2 = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(_SPECIAL + _WORDS),
            n_positions=2 * CONTEXT_SIZE,
            n_embd=D_IN,
            n_layer=2,
            n_head=2,
            bos_token_id=bos,
            eos_token_id=eos,
            initializer_range=0.3,
        )
    )
    gpt2.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return SAETransformerBridge.boot_transformers(str(folder), device="cpu").eval()  # pyright: ignore[reportReturnType]


def make_neox_bridge(folder: Path) -> SAETransformerBridge:
    """A GPT-NeoX, of a kind that TransformerBridge has begin texts without BOS."""
    torch.manual_seed(0)
    GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=len(_SPECIAL + _WORDS),
            hidden_size=D_IN,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=2 * D_IN,
            max_position_embeddings=2 * CONTEXT_SIZE,
            bos_token_id=0,
            eos_token_id=1,
        )
    ).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return SAETransformerBridge.boot_transformers(str(folder), device="cpu").eval()  # pyright: ignore[reportReturnType]


def make_text(n_rows: int = 160, n_words: int = 24) -> Dataset:
    """Random words in a fixed order: a dataset with the column ``text``."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(_WORDS), (n_rows, n_words), generator=generator)
    return Dataset.from_dict({"text": [" ".join(_WORDS[i] for i in row) for row in rows.tolist()]})


def make_tokens(batch: int = 3, length: int = CONTEXT_SIZE, seed: int = 0) -> Tensor:
    """Sequences of words, each beginning with BOS."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(
        len(_SPECIAL), len(_SPECIAL + _WORDS), (batch, length), generator=generator
    )
    tokens[:, 0] = 0
    return tokens


# Activations


def make_activations(n: int, d_in: int = D_IN, seed: int = 0, offset: float = 0.5) -> Tensor:
    """Gaussian activations about a mean that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    mean = offset * torch.randn(d_in, generator=generator)
    return torch.randn(n, d_in, generator=generator) + mean


def make_sparse_activations(
    n: int, d_in: int = D_IN, n_features: int = 2 * D_IN, density: float = 0.1, seed: int = 0
) -> Tensor:
    """Sums of a few random directions: something that a sparse code can find."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(n_features, d_in, generator=generator)
    directions = directions / directions.norm(dim=1, keepdim=True)
    on = (torch.rand(n, n_features, generator=generator) < density).float()
    return 2.0 * on @ directions + 0.02 * torch.randn(n, d_in, generator=generator)


def batches_of(activations: Tensor, batch_size: int = BATCH) -> Iterator[Tensor]:
    """Endless batches in order, as a data provider for SAELens' trainer."""
    return itertools.cycle(
        [batch for batch in activations.split(batch_size) if len(batch) == batch_size]
    )


# Autoencoders and their training


# Fields of a BAE's code that tests of many settings are run with; see the fixture ``code``.
CODE: dict[str, int] = {}


def training_cfg(**overrides: Any) -> TrainingBAEConfig:
    """With a budget of a bit per dimension: a sixteenth of that would be one bit here."""
    sizes = {"d_in": D_IN, "d_sae": D_SAE, "target_entropy": "d_in"}
    return TrainingBAEConfig(**{**sizes, **CODE, **overrides})


def make_training_bae(seed: int = 0, **overrides: Any) -> TrainingBAE:
    """A TrainingBAE with every weight random, so that no term of any formula is zero by chance.

    Its bits have densities from rare to mostly on, and it counts as calibrated.
    """
    cfg = training_cfg(**({"normalize_activations": "none"} | overrides))
    sae = TrainingBAE(cfg)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight, scale in (
            (sae.W_enc, cfg.d_in**-0.5),
            (sae.W_dec, 0.3),
            (sae.b_dec, 0.4),
            (sae.b_enc, 1.0),
        ):
            weight.copy_(scale * torch.randn(weight.shape, generator=generator))
        # Of those there are where it has several levels, or feedback.
        for name in ("threshold_gaps", "level_heights", "feedback_gain"):
            if (weight := getattr(sae, name, None)) is not None:
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    sae._is_calibrated = True
    return sae


def make_bae(seed: int = 0, **overrides: Any) -> BAE:
    """A BAE for inference with random weights and a scale that is not one."""
    cfg = BAEConfig(**{"d_in": D_IN, "d_sae": D_SAE, **CODE, **overrides})
    of_code = {"n_levels": cfg.n_levels, "feedback_steps": cfg.feedback_steps}
    source = make_training_bae(seed, d_in=cfg.d_in, d_sae=cfg.d_sae, **of_code)
    sae = BAE(cfg)
    generator = torch.Generator().manual_seed(seed + 1)
    state = {name: source.state_dict()[name] for name, _ in sae.named_parameters()}
    state["scale"] = 0.5 + torch.rand(cfg.d_sae, generator=generator)
    state["flipped"] = torch.zeros(cfg.d_sae, dtype=torch.bool)
    sae.load_state_dict(state)
    return sae


def levels_of(sae: BAE | TrainingBAE, x: Tensor) -> Tensor:
    """The level of every latent, from 0."""
    with torch.no_grad():
        return level_indices(sae.encode(x), sae.level_values)


def record_firing_rates(sae: TrainingBAE, x: Tensor) -> Tensor:
    """Give a TrainingBAE the firing rates and shares of levels that it has on ``x``; returns the former."""
    levels = levels_of(sae, x)
    with torch.no_grad():
        rate = (levels > 0).float().mean(0)
        sae.firing_rate.copy_(rate)
        if sae.cfg.n_levels > 1:
            shares = [(levels == level + 1).float().mean(0) for level in range(sae.cfg.n_levels)]
            sae.level_shares.copy_(torch.stack(shares, 1))
        sae.n_updates.fill_(1000)
    return rate


def step_input(sae: TrainingSAE[Any], x: Tensor, **coefficients: float) -> TrainStepInput:
    """What the trainer hands to a training step; coefficients default to the config's, warmed up."""
    configured = {
        name: float(value[0]) if isinstance(value, tuple) else float(value)
        for name, value in sae.get_coefficients().items()
    }
    return TrainStepInput(
        sae_in=x,
        coefficients=configured | coefficients,
        dead_neuron_mask=None,
        n_training_steps=0,
        is_logging_step=False,
    )


def train_step(sae: TrainingSAE[Any], x: Tensor, **coefficients: float) -> TrainStepOutput:
    return sae.training_forward_pass(step_input(sae, x, **coefficients))


def metric(output: TrainStepOutput, name: str) -> Tensor:
    """A metric of a step, which may be a number, a tensor or a function of nothing."""
    value = output.metrics[name]
    return torch.as_tensor(value() if callable(value) else value)


def calibrate(sae: TrainingBAE, x: Tensor) -> None:
    sae.calibrate(x)  # pyright: ignore[reportCallIssue, reportArgumentType]


def grad_of(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


def trainer_cfg(n_steps: int, **overrides: Any) -> SAETrainerConfig:
    return SAETrainerConfig(
        **{
            "total_training_samples": n_steps * BATCH,
            "train_batch_size_samples": BATCH,
            "lr": 1e-3,
            "lr_end": 1e-4,
            "n_batches_for_norm_estimate": 2,
            **overrides,
        }
    )


def runner_cfg(folder: Path, n_steps: int = 6, **overrides: Any) -> LanguageModelSAERunnerConfig:
    """A run of SAELens' own runner on the tiny model, everything it writes inside ``folder``."""
    return LanguageModelSAERunnerConfig(
        **{
            "sae": training_cfg(),
            "model_name": "tiny",
            "hook_name": HOOK,
            "dataset_path": "tiny-text",
            "is_dataset_tokenized": False,
            "context_size": CONTEXT_SIZE,
            "training_tokens": n_steps * BATCH,
            "train_batch_size_tokens": BATCH,
            "store_batch_size_prompts": 8,
            "n_batches_in_buffer": 16,
            "n_batches_for_norm_estimate": 2,
            "n_eval_batches": 1,
            "exclude_special_tokens": True,
            "lr": 1e-3,
            "checkpoint_path": str(folder / "checkpoints"),
            "output_path": str(folder / "output"),
            "logger": LoggingConfig(log_to_wandb=False),
            "verbose": False,
            **overrides,
        }
    )


# Two hook points


def cross_layer_cfg(folder: Path, n_steps: int = 6, **overrides: Any) -> CrossLayerRunnerConfig:
    """``runner_cfg`` for a CLVQ-VAE between the two hook points, tokens on their own."""
    sae = clvq_cfg(d_out=D_IN, decoder_layers=1, temperature=1.0, sequence_length=None)
    plain = runner_cfg(folder, n_steps, **{"sae": sae, **overrides})
    fields: dict[str, Any] = {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}
    # Without the run's own name, which is appended once more.
    fields["checkpoint_path"] = overrides.get("checkpoint_path", str(folder / "checkpoints"))
    return CrossLayerRunnerConfig(hook_name_out=HOOK_OUT, initialization_tokens=256, **fields)


def make_pairs(
    n: int, d_in: int = D_IN, d_out: int = D_OUT, seed: int = 0, offset: float = 0.5
) -> tuple[Tensor, Tensor]:
    """The same tokens at two hook points: the higher one is no linear function of the lower."""
    generator = torch.Generator().manual_seed(seed + 1000)
    lower = make_activations(n, d_in, seed, offset)
    mix = torch.randn(d_in, d_out, generator=torch.Generator().manual_seed(7)) / d_in**0.5
    noise = 0.1 * torch.randn(n, d_out, generator=generator)
    return lower, 3 * torch.tanh(lower @ mix) + noise + offset


def make_valid(n: int, length: int = LENGTH, seed: int = 0) -> Tensor:
    """Which of n tokens count: padding at the start, at the end, and gaps between."""
    generator = torch.Generator().manual_seed(seed)
    valid = torch.rand(n // length, length, generator=generator) < 0.7
    valid[0, :2], valid[1, -2:], valid[:, length // 2] = False, False, True
    return valid.reshape(-1)


def make_rows(n: int = BATCH, d_out: int = D_OUT, seed: int = 0, masked: bool = True) -> Tensor:
    """A training batch of both hook points; some tokens are masked."""
    valid = make_valid(n, seed=seed) if masked else None
    return pack_rows(*make_pairs(n, d_out=d_out, seed=seed), valid)


def clvq_cfg(**overrides: Any) -> TrainingCLVQVAEConfig:
    small = {"decoder_layers": 2, "decoder_mlp_width": 24, "sequence_length": LENGTH}
    return TrainingCLVQVAEConfig(
        **{"d_in": D_IN, "d_sae": N_CODES, "d_out": D_OUT, **small, **overrides}
    )


def make_training_clvq(seed: int = 0, **overrides: Any) -> TrainingCLVQVAE:
    """A calibrated TrainingCLVQVAE whose every weight is random, units and counts included."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sae = TrainingCLVQVAE(clvq_cfg(**overrides))
        with torch.no_grad():
            for parameter in sae.encoder.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        d_in, d_out = sae.cfg.d_in, sae.cfg.d_out
        rows = pack_rows(*make_pairs(200, d_in, d_out or d_in, seed=99))
        sae.calibrate(rows, batch_size=BATCH)
    return sae


def make_clvq(seed: int = 0, **overrides: Any) -> CLVQVAE:
    """A CLVQ-VAE for inference with the same weights and a scale that is not one."""
    source = make_training_clvq(seed, **overrides)
    cfg = {name: getattr(source.cfg, name) for name in CLVQVAEConfig.__dataclass_fields__}
    sae = CLVQVAE(CLVQVAEConfig(**cfg))
    state = source.state_dict()
    source.process_state_dict_for_saving_inference(state)
    generator = torch.Generator().manual_seed(seed + 1)
    state["scale"] = 0.5 + torch.rand(sae.cfg.d_sae, generator=generator).to(state["scale"])
    sae.load_state_dict(state)
    return sae


# What is compared


def about(expected: dict[str, Any], rel: float) -> dict[str, Any]:
    """Numbers to compare with but for rounding; what is None has to be None."""
    return {
        name: None if value is None else pytest.approx(value, rel=rel)
        for name, value in expected.items()
    }


def known(value: float | None) -> float:
    assert value is not None
    return value


def support_bits(code: dict[str, Any]) -> float:
    """What a code's description spends on which latents fire, from its other statistics."""
    if code["total_correlation"] is None:
        return code["marginal_entropy"]
    is_real = code["total_correlation"] - code["chance_total_correlation"]
    return code["marginal_entropy"] - max(is_real, 0)


# What "exact" means for a one-bit code


def assert_same_code(
    expected: tuple[Tensor, Tensor, Tensor], actual: tuple[Tensor, Tensor], noise: float = 1e-4
) -> None:
    """Codes and outputs agree, but for pre-activations that are rounding noise.

    Args:
        expected: bits or levels, output and pre-activations (above a threshold), rows are tokens.
        actual: bits or levels, and output.
        noise: pre-activations (of about unit size) below this may fall on either side.
    """
    code, out, pre = expected
    differs = code != actual[0]
    farthest = pre[differs].abs().max().item() if differs.any() else 0.0
    assert farthest < noise, f"a bit differs whose pre-activation is {farthest:.2g}"
    relative = (actual[1] - out).norm(dim=-1) / out.norm(dim=-1)
    share = (relative <= 1e-5).float().mean().item()
    assert share >= 0.995, f"only {share:.2%} of tokens agree within 1e-5"


# SAEs that write to another hook point than they read, and models that predict no next token


TRANSCODERS: dict[type[Any], type[Any]] = {
    Transcoder: TranscoderConfig,
    SkipTranscoder: SkipTranscoderConfig,
    JumpReLUTranscoder: JumpReLUTranscoderConfig,
    JumpReLUSkipTranscoder: JumpReLUSkipTranscoderConfig,
}


def make_transcoder(
    kind: type[Any] = Transcoder,
    d_out: int = D_IN,
    seed: int = 0,
    d_in: int = D_IN,
    d_sae: int = D_SAE,
) -> Any:
    """One of SAELens' transcoders with every weight random."""
    sae = kind(TRANSCODERS[kind](d_in=d_in, d_sae=d_sae, d_out=d_out, apply_b_dec_to_input=False))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return sae


def make_abstopk(k: int = 6) -> Any:
    """SAELens' AbsTopK, whose activations have either sign, at the tests' hook point, with random weights."""
    sae = AbsTopKSAE(AbsTopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=k))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return between(sae, hook_out=None)


def make_temporal() -> Any:
    """SAELens' temporal SAE, which reads a token after those before it, at the tests' hook point."""
    cfg = TemporalSAEConfig(d_in=D_IN, d_sae=D_SAE, n_heads=2, bottleneck_factor=2, kval_topk=4)
    return between(TemporalSAE(cfg), hook_out=None)


def between(sae: Any, hook_in: str = HOOK, hook_out: str | None = HOOK_OUT) -> Any:
    """The SAE, with the metadata that evals and stores need."""
    metadata = sae.cfg.metadata
    metadata.hook_name, metadata.hook_name_out = hook_in, hook_out
    metadata.context_size, metadata.prepend_bos = CONTEXT_SIZE, True
    return sae


def fit_codes(sae: CLVQVAE, activations: Tensor) -> CLVQVAE:
    """Codes that are among the activations, so that tokens differ in theirs."""
    activations = activations.reshape(-1, sae.cfg.d_in)
    with torch.no_grad():
        sae.input_mean.copy_(activations.mean(0))
        z = sae.encoder(sae.process_sae_in(activations))
        sae.codebook.copy_(z[torch.linspace(0, len(z) - 1, sae.cfg.d_sae).long()])
    return sae


def make_headless_encoder() -> SAETransformerBridge:
    """A BERT of two layers of width ``D_IN``, as the demo's: hidden states, and no logits."""
    torch.manual_seed(0)
    bert = BertModel(
        BertConfig(
            vocab_size=len(_SPECIAL + _WORDS),
            hidden_size=D_IN,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=2 * D_IN,
            max_position_embeddings=2 * CONTEXT_SIZE,
            initializer_range=0.3,
        )
    )
    bert.set_attn_implementation("eager")
    return encoder_bridge(bert, make_tokenizer(), "tiny-bert")


def make_bert_tokenizer() -> PreTrainedTokenizerFast:
    """``make_tokenizer`` with the names of a BERT's special tokens, which begin and end a text."""
    special = ("[CLS]", "[SEP]", "[PAD]", "[UNK]")
    vocab = {word: i for i, word in enumerate((*special, *_WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_max_length=2 * CONTEXT_SIZE,
    )


def save_bert(
    folder: Path, kind: type[BertPreTrainedModel] = BertForSequenceClassification, **config: Any
) -> Path:
    """A BERT of two layers of width ``D_IN``, with its tokenizer, as ``save_pretrained`` writes them.

    Args:
        folder: to write.
        kind: of the head.
        **config: for ``BertConfig``; classes are ``bad`` and ``good`` if there is nothing of them.
    """
    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(_SPECIAL + _WORDS),
        "hidden_size": D_IN,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 2 * D_IN,
        "max_position_embeddings": 2 * CONTEXT_SIZE,
        "initializer_range": 0.3,
        "id2label": {0: "bad", 1: "good"},
    }
    kind(BertConfig(**{**sizes, **config})).save_pretrained(folder)
    make_bert_tokenizer().save_pretrained(folder)
    return folder


def write_labeled(path: Path, n: int = 40, labels: Sequence[str] = ("bad", "good")) -> Path:
    """Texts of which every other word tells the label, no two of them the same, as JSONL."""
    rows = [
        {
            "text": " ".join(f"word{i % len(labels)} word{j + 5}" for j in (i % 34, i // 34))
            + " word4",
            "label": labels[i % len(labels)],
        }
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
