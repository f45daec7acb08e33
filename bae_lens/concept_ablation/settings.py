"""What can be chosen in a concept ablation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from bae_lens.activations.outlier_tokens import multiple_of
from bae_lens.checks.fields import Flag, ListOf, OneOf, Rule, Text, check_fields, whole
from bae_lens.checks.old_names import renamed_fields

Protocol = Literal["controlled", "released"]
Attribution = Literal["integrated_gradients", "gradient_x_activation"]
Vectors = Literal["decoder", "encoder"]
Readout = Literal["last", "first", "mean"]
PredictedBy = Literal["head", "label_words", "probe"]
ProbeKind = Literal["logistic", "mlp"]

# What None stands for.
_BY_PROTOCOL: dict[str, dict[str, Any]] = {
    "controlled": {"center": True, "probe": "logistic", "n_folds": 5, "causal": True},
    "released": {"center": False, "probe": "mlp", "n_folds": 20, "causal": False},
}


_FIELDS: Mapping[str, Rule] = {
    "protocol": OneOf(get_args(Protocol)),
    "readout": OneOf((None, *get_args(Readout))),
    "template": Text(or_none=True, may_be_empty=False),
    "label_words": ListOf(Text(), or_none=True),
    "predicted_by": OneOf((None, *get_args(PredictedBy))),
    "context_size": whole(3),
    "max_examples": whole(1, or_none=True),
    "salient": OneOf((*get_args(Attribution), "readout")),
    "n_steps": whole(1),
    "rank": whole(1),
    "vectors": OneOf(get_args(Vectors)),
    "center": Flag(or_none=True),
    "probe": OneOf((None, *get_args(ProbeKind))),
    "n_folds": whole(2, or_none=True),
    "causal": Flag(or_none=True),
    "n_ordinary": whole(0),
    "n_sample_tokens": whole(1),
    "batch_size": whole(1),
    # Of scikit-learn's generator.
    "seed": whole(0, 2**32 - 1),
}


@renamed_fields(centre="center")
@dataclass(frozen=True)
class AblationSettings:
    """Settings of ``concept_ablation``.

    Args:
        protocol (str): ``"controlled"``, or ``"released"`` for the arithmetic of the CLVQ-VAE
            release: nothing is centered, its MLP probe, 20 folds, stored representations only. (Not
            its choice of the probe's weights on the test fold.) The controls are computed all the
            same. It sets ``center``, ``probe``, ``n_folds`` and ``causal`` where they are None.
        readout (str | None): What a text's vector is: the activation at its ``"last"`` token, at its
            ``"first"`` ([CLS]), or the ``"mean"`` over its tokens. None: last for decoders, first for
            encoders.
        template (str | None): What the model reads, with ``{text}`` in it; None: the text alone.
            With label words it ends where the label would come.
        label_words (Sequence[str] | None): What the model would say for each class, in the order of
            the labels, leading space included; each is told by its first token. The model is then
            asked itself, by its logits for them at the last position.
        predicted_by (str | None): Whose prediction is attributed to tokens, and is told from concepts
            (``RecoverabilityTask``, the quiz): that of the model itself, by its classifier's ``"head"``
            or its ``"label_words"``, or a ``"probe"``'s at the upper hook point. None: the head where
            the model has one, else the label words where they are given, else the probe. Inside the
            forward pass both are read after an ablation, the model and the probe, whoever predicts; of
            stored vectors only a probe can be read.
        context_size (int): Tokens of a text at most; the rest is cut off.
        max_examples (int | None): Labeled texts that are used, a stratified sample where there are
            more; None: all.
        salient (str): How the salient token is found: ``"integrated_gradients"``,
            ``"gradient_x_activation"``, or ``"readout"`` for the position of the text's vector.
        n_steps (int): Gradients a text, of integrated gradients.
        rank (int): Latents, or nearest codes, of the salient token that are removed together.
        vectors (str): Directions of an SAE's latents: rows of its ``"decoder"`` or columns of its
            ``"encoder"``. Of a transcoder it is always the encoder at the hook point that it reads.
        center (bool | None): Remove means before projecting.
        probe (str | None): ``"logistic"`` regression, or the paper's small ``"mlp"``.
        n_folds (int | None): Each text is scored by a probe fitted on the other folds.
        causal (bool | None): Also ablate inside the forward pass.
        n_ordinary (int): Texts whose cross-entropy is measured under ablation.
        n_sample_tokens (int): Tokens that codes get their means from.
        batch_size (int): Texts a forward pass.
        seed (int): Of sample, folds, probes and random controls.
        exclude_outlier_tokens (bool | float): Leave attention sinks other than BOS out as special tokens
            are, told by their norm at either hook point: they are never salient nor ablated, and in
            no mean. True, or the multiple of the reference norm, which is the median over the first
            valid tokens of the labeled texts.

    Raises:
        ValueError: if a value is outside its range.
    """

    protocol: Protocol = "controlled"
    readout: Readout | None = None
    template: str | None = None
    label_words: Sequence[str] | None = None
    context_size: int = 128
    max_examples: int | None = 200
    salient: Attribution | Literal["readout"] = "integrated_gradients"
    n_steps: int = 16
    rank: int = 1
    vectors: Vectors = "decoder"
    center: bool | None = None
    probe: ProbeKind | None = None
    n_folds: int | None = None
    causal: bool | None = None
    n_ordinary: int = 32
    n_sample_tokens: int = 20_000
    batch_size: int = 16
    seed: int = 0
    exclude_outlier_tokens: bool | float = True
    predicted_by: PredictedBy | None = None

    def __post_init__(self) -> None:
        check_fields(self, _FIELDS)
        if not isinstance(self.exclude_outlier_tokens, bool):
            multiple = multiple_of(self.exclude_outlier_tokens)
            object.__setattr__(self, "exclude_outlier_tokens", multiple)
        for name, default in _BY_PROTOCOL[self.protocol].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        if self.label_words is not None and self.readout not in (None, "last"):
            raise ValueError(
                "label_words are predicted at the last token: set readout to 'last', not "
                f"{self.readout!r}."
            )
        if self.predicted_by == "label_words" and self.label_words is None:
            raise ValueError(
                "predicted_by is 'label_words', and there are none: give label_words, what the model "
                "would say for each class."
            )
        if self.predicted_by == "head" and self.label_words is not None:
            raise ValueError(
                "predicted_by is 'head', which has the classes itself, and label_words are given: leave "
                "one of the two out."
            )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"label_words": self.label_words and list(self.label_words)}
