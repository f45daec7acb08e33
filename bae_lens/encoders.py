"""A BERT or RoBERTa of transformers as a TransformerBridge: bare, with its masked-LM head, or as a classifier.

TransformerLens maps ``BertForMaskedLM`` and ``BertForNextSentencePrediction`` only. Loading other weights
as one of these would make up a head at random, and the logits with it. A RoBERTa has the layers of a
BERT, under another prefix; its head and the numbers of its positions are its own.
"""

from __future__ import annotations

from typing import Any

import torch
from sae_lens import SAETransformerBridge
from transformer_lens.model_bridge.generalized_components import LinearBridge
from transformer_lens.model_bridge.sources import build_bridge_config_from_hf
from transformer_lens.model_bridge.supported_architectures.bert import BertArchitectureAdapter
from typing_extensions import override

# transformers' classes, by what the ``architectures`` of a config.json call them.
ENCODER_CLASSES = (
    *("BertModel", "BertForMaskedLM", "BertForSequenceClassification"),
    *("RobertaModel", "RobertaForMaskedLM", "RobertaForSequenceClassification"),
)
_MASKED_LM_HEADS = {
    "bert": {},  # As TransformerLens has it.
    "roberta": {
        "mlm_head": "lm_head.dense",
        "ln_final": "lm_head.layer_norm",
        "unembed": "lm_head.decoder",
    },
}
_CLASSIFIERS = {
    "bert": {"pooler": "bert.pooler.dense", "classifier": "classifier"},
    "roberta": {"pooler": "classifier.dense", "classifier": "classifier.out_proj"},
}


class _EncoderAdapter(BertArchitectureAdapter):
    """The parts that a model has, whichever its head."""

    supports_causal_loss = False

    def __init__(self, cfg: Any, model: Any) -> None:
        super().__init__(cfg)
        self.cfg.attention_dir = "bidirectional"
        mapping: Any = self.component_mapping
        kind = model.config.model_type
        if type(model).__name__.endswith("ForMaskedLM"):
            for part, name in _MASKED_LM_HEADS[kind].items():
                mapping[part].name = name
        else:
            for part in ("mlm_head", "ln_final", "unembed"):
                del mapping[part]
        # ``bert.`` is where TransformerLens looks for the layers; a model without a head has no prefix.
        prefix = f"{kind}." if hasattr(model, kind) else ""
        for component in mapping.values():
            if component.name.startswith("bert."):
                component.name = prefix + component.name.removeprefix("bert.")
        if hasattr(model, "classifier"):
            for part, name in _CLASSIFIERS[kind].items():
                mapping[part] = LinearBridge(name=name)


class _EncoderBridge(SAETransformerBridge):
    """A bridge that leaves the numbers of positions to the model."""

    @override
    def _accepts_derived_position_ids(self) -> bool:
        model: Any = self.original_model
        # A RoBERTa's begin after that of padding, and not with 0.
        return model.config.model_type != "roberta"


def n_positions(config: Any) -> int | None:
    """How many tokens a model of transformers reads at most; None where its config does not say."""
    n = getattr(config, "max_position_embeddings", None)
    if n is None or config.model_type != "roberta":
        return n
    return n - config.pad_token_id - 1


def encoder_bridge(
    model: Any, tokenizer: Any, name: str, device: str | torch.device = "cpu"
) -> SAETransformerBridge:
    """A BERT or RoBERTa as a SAETransformerBridge, in evaluation mode.

    ``blocks.N.hook_out`` is the hidden state after layer N, ``blocks.0.hook_in`` the embeddings. Texts
    of different lengths in one batch need an ``attention_mask``: tokens look both ways, also at padding.

    What a forward pass returns as logits depends on the model: ``[batch, n_classes]`` of a
    ``…ForSequenceClassification``, whose head has hook points ``pooler`` and ``classifier``;
    ``[batch, pos, vocabulary]`` of a ``…ForMaskedLM``; and of a ``…Model``, which has none, the last
    hidden state ``[batch, pos, d_model]``. Asking for a loss is an error.

    Args:
        model: of one of the classes in ``ENCODER_CLASSES``, with eager attention.
        tokenizer: of the model.
        name: for ``cfg.model_name``.
        device: where to put it.
    """
    # Not boot_transformers, which also gives a tokenizer that has no BOS and EOS "<|endoftext|>" for
    # both. This one reads that as [UNK], and words it does not know would count as special tokens.
    cfg = build_bridge_config_from_hf(model.config, type(model).__name__, name, model.dtype)
    cfg.device = str(device)
    cfg.n_ctx = n_positions(model.config) or cfg.n_ctx
    return _EncoderBridge(model.to(device), _EncoderAdapter(cfg, model), tokenizer).eval()
