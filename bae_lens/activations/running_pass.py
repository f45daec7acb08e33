"""The forward pass that is running, and the tokens that it runs on."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens import HookedTransformer
from transformer_lens.model_bridge import TransformerBridge

# Hook points of a HookedTransformer that generate leaves out.
_EMBEDDINGS = ("hook_embed", "hook_pos_embed")


@dataclass
class RunningPass:
    """One forward pass of a language model.

    Attributes:
        tokens: ids ``[batch, pos]`` of the tokens whose activations are computed; None where the
            model was given activations without their tokens.
        attention_mask: what the caller said of padding ``[batch, pos]``, if anything.
        embeds: whether the model itself still has to embed them.
        has_past: whether earlier tokens are there as keys and values only.
        captured: what was read at the hook point that an SAE reads.
    """

    tokens: Tensor | None = None
    attention_mask: Tensor | None = None
    embeds: bool = False
    has_past: bool = False
    captured: Tensor | None = None


class PassTracker:
    """Follows a model's forward passes while its context is open.

    A pass is a call of ``forward``, of a HookedTransformer or of the model within a Bridge, which
    everything comes through: text, tokens, ``run_with_cache``, ``generate``. What is known of one
    is gone when it ends, also when it is stopped early or an exception ends it, so that nothing of
    a pass is ever taken for the next.

    Args:
        model: the model.
        begin: called when a pass begins.
        hook_name: where the SAE writes. Below ``decoder``, in an encoder-decoder model, the tokens
            are those of the decoder.
    """

    def __init__(
        self,
        model: HookedTransformer | TransformerBridge,
        begin: Callable[[], object],
        hook_name: str,
    ) -> None:
        self.model, self._begin, self._hook_name = model, begin, hook_name
        of = "decoder_" if hook_name.startswith("decoder") else ""
        self._ids_argument, self._mask_argument = f"{of}input_ids", f"{of}attention_mask"
        self._passes: list[RunningPass] = []
        # Tokens of the sequence that HookedTransformer.generate is writing.
        self._generated: list[Tensor] | None = None

    @property
    def running(self) -> RunningPass | None:
        """The innermost pass; None between passes."""
        return self._passes[-1] if self._passes else None

    @contextmanager
    def following(self) -> Iterator[None]:
        """Follow the model's passes while inside; may be nested with those of other trackers."""
        model = self.model
        if not isinstance(model, HookedTransformer):
            inner = model.original_model
            with _wrapped(inner, "forward", self._around_bridge(inner.forward)):
                yield
            return
        handle = model.embed.register_forward_pre_hook(self._note_tokens)
        try:
            with (
                _wrapped(model, "forward", self._around_forward),
                _wrapped(model, "generate", self._around_generate),
            ):
                yield
        finally:
            handle.remove()

    @contextmanager
    def _pass(self, running: RunningPass) -> Iterator[None]:
        self._passes.append(running)
        try:
            self._begin()
            yield
        finally:
            self._passes.pop()

    # HookedTransformer

    def _around_forward(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        past = kwargs.get("past_kv_cache")
        has_past = past is not None and past[0].past_keys.shape[1] > 0
        running = RunningPass(
            attention_mask=kwargs.get("attention_mask"),
            embeds=kwargs.get("start_at_layer") is None,
            has_past=has_past,
        )
        if not running.embeds:
            # The caller may say which tokens these activations are of.
            residual = args[0] if args else kwargs.get("input")
            tokens = kwargs.get("tokens")
            if tokens is None and isinstance(residual, Tensor):
                tokens = self._last_generated(residual.shape[1])
            running.tokens = tokens[None] if tokens is not None and tokens.ndim == 1 else tokens
        with self._pass(running):
            return forward(*args, **kwargs)

    def _around_generate(self, generate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # It embeds the prompt and each new token itself, and runs the residual stream from there.
        if self._hook_name in _EMBEDDINGS:
            raise ValueError(
                f"HookedTransformer.generate does not pass {self._hook_name!r}, where the SAE is "
                "attached: use generate_stream."
            )
        outer, self._generated = self._generated, []
        try:
            return generate(*args, **kwargs)
        finally:
            self._generated = outer

    def _note_tokens(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:  # noqa: ARG002
        running = self.running
        if running is None:
            if self._generated is not None:
                self._generated.append(inputs[0])
        elif running.embeds:
            # What is embedded after that, by somebody's hook, is not what the model runs on.
            running.tokens, running.embeds = inputs[0], False

    def _last_generated(self, n: int) -> Tensor | None:
        """The last ``n`` tokens of the sequence that is being generated, if so many are known."""
        if not self._generated:
            return None
        tokens = torch.cat(self._generated, dim=1)
        return tokens[:, -n:] if n <= tokens.shape[1] else None

    # TransformerBridge

    def _around_bridge(self, original: Callable[..., Any]) -> Callable[..., Any]:
        names = list(inspect.signature(original).parameters)

        def around(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            given = dict(zip(names, args, strict=False)) | kwargs
            running = RunningPass(
                given.get(self._ids_argument),
                given.get(self._mask_argument),
                has_past=_has_past(given),
            )
            with self._pass(running):
                return forward(*args, **kwargs)

        return around


def _has_past(given: dict[str, Any]) -> bool:
    """Whether a model of transformers, given these arguments, goes on from cached tokens."""
    tokens, mask = given.get("input_ids"), given.get("attention_mask")
    if tokens is not None and mask is not None and mask.shape[-1] > tokens.shape[-1]:
        return True
    # By its name up to transformers 5.23 and by the one after that.
    for past in (given.get("past_key_values"), given.get("cache")):
        if past is not None:
            length = getattr(past, "get_seq_length", None)
            return (len(past) if length is None else length()) > 0
    return False


@contextmanager
def _wrapped(owner: Any, name: str, around: Callable[..., Any]) -> Iterator[None]:
    """``owner.name(…)`` becomes ``around(what it was, …)`` while inside.

    Contexts that wrap the same method may end in any order (those of generators do, and of code that enters them by
    hand): each takes away its own.
    """
    method = vars(owner).get(name)
    if not isinstance(method, _Wrapped):
        method = _Wrapped(getattr(owner, name), method)
        object.__setattr__(owner, name, method)
    method.arounds.append(around)
    try:
        yield
    finally:
        method.arounds.remove(around)
        # Somebody else may have put theirs over it meanwhile: it then stays below, and does nothing.
        if not method.arounds and vars(owner).get(name) is method:
            if method.before is None:
                object.__delattr__(owner, name)
            else:
                object.__setattr__(owner, name, method.before)


class _Wrapped:
    """A method that calls of go through functions, the last one first.

    Args:
        method: bound.
        before: what stood in its owner in the place of the class's, if anything did.
    """

    def __init__(self, method: Callable[..., Any], before: Any) -> None:
        functools.update_wrapper(self, method)
        self.method, self.before = method, before
        self.arounds: list[Callable[..., Any]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self.method
        for around in self.arounds:
            call = functools.partial(around, call)
        return call(*args, **kwargs)
