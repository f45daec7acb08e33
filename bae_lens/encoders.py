"""A BERT of transformers as a TransformerBridge: bare, with its masked-LM head, or as a classifier.

TransformerLens maps ``BertForMaskedLM`` and ``BertForNextSentencePrediction`` only. Loading other weights
as one of these would make up a head at random, and the logits with it.
"""

from __future__ import annotations

from typing import Any

import torch
from sae_lens import SAETransformerBridge
from transformer_lens.model_bridge.generalized_components import LinearBridge
from transformer_lens.model_bridge.sources import build_bridge_config_from_hf
from transformer_lens.model_bridge.supported_architectures.bert import BertArchitectureAdapter

# transformers' classes, by what the ``architectures`` of a config.json call them.
BERT_HEADS = ("BertModel", "BertForMaskedLM", "BertForSequenceClassification")


class _BertAdapter(BertArchitectureAdapter):
    """The parts that a BERT has, whichever its head."""

    supports_causal_loss = False

    def __init__(self, cfg: Any, model: Any) -> None:
        super().__init__(cfg)
        self.cfg.attention_dir = "bidirectional"
        mapping: Any = self.component_mapping
        if not hasattr(model, "cls"):
            for part_of_the_head in ("mlm_head", "ln_final", "unembed"):
                del mapping[part_of_the_head]
        if hasattr(model, "classifier"):
            mapping["pooler"] = LinearBridge(name="bert.pooler.dense")
            mapping["classifier"] = LinearBridge(name="classifier")
        if not hasattr(model, "bert"):
            for component in mapping.values():
                component.name = component.name.removeprefix("bert.")


def bert_bridge(
    model: Any, tokenizer: Any, name: str, device: str | torch.device = "cpu"
) -> SAETransformerBridge:
    """A BERT as a SAETransformerBridge, in evaluation mode.

    ``blocks.N.hook_out`` is the hidden state after layer N, ``blocks.0.hook_in`` the embeddings. Texts
    of different lengths in one batch need an ``attention_mask``: tokens look both ways, also at padding.

    What a forward pass returns as logits depends on the model: ``[batch, n_classes]`` of a
    ``BertForSequenceClassification``, whose head has hook points ``pooler`` and ``classifier``;
    ``[batch, pos, vocabulary]`` of a ``BertForMaskedLM``; and of a ``BertModel``, which has none, the
    last hidden state ``[batch, pos, d_model]``. Asking for a loss is an error.

    Args:
        model: of one of the classes in ``BERT_HEADS``, with eager attention.
        tokenizer: of the model.
        name: for ``cfg.model_name``.
        device: where to put it.
    """
    # Not boot_transformers, which also gives a tokenizer that has no BOS and EOS "<|endoftext|>" for
    # both. This one reads that as [UNK], and words it does not know would count as special tokens.
    cfg = build_bridge_config_from_hf(model.config, type(model).__name__, name, model.dtype)
    cfg.device = str(device)
    return SAETransformerBridge(model.to(device), _BertAdapter(cfg, model), tokenizer).eval()
