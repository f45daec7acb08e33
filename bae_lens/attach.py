"""Attach an SAE to a model so that special tokens pass by it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from sae_lens import SAE, HookedSAETransformer
from sae_lens.analysis.hooked_sae_transformer import _SAEWrapper, get_deep_attr, set_deep_attr
from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformer_lens.hook_points import HookPoint
from typing_extensions import override

from bae_lens.clvq_vae import only_tokens
from bae_lens.hook_points import hook_names, output_is_decoded_code
from bae_lens.special_tokens import special_token_ids, special_token_mask
from bae_lens.suggest import did_you_mean

Model = HookedSAETransformer | SAETransformerBridge


@contextmanager
def attached(
    model: HookedSAETransformer | SAETransformerBridge,
    sae: SAE[Any],
    use_error_term: bool | None = None,
    exclude_special_tokens: bool | Sequence[int] = True,
) -> Iterator[HookedSAETransformer | SAETransformerBridge]:
    """A context in which ``model`` runs with ``sae`` at its hook points, special tokens untouched.

    The activation of BOS can be a hundred times longer than any other (an attention sink). SAEs are
    seldom trained on it, and to replace it by a reconstruction disturbs every position after it.
    ``HookedSAETransformer.add_sae`` can leave it alone; ``SAETransformerBridge.add_sae`` cannot
    (SAELens 6.54). This does it for both.

    An SAE that writes to another hook point than it reads (a transcoder, a CLVQ-VAE) reads what is
    there after all hooks, so that an intervention at the lower hook point shows in what it writes.
    From one that decodes whole sequences special tokens are hidden, as they were in training.

    Args:
        model: the model; what was attached to the hook points before is back afterwards.
        sae: any SAE; ``metadata.hook_name`` says where it reads, ``metadata.hook_name_out`` where it
            writes, if elsewhere.
        use_error_term: add what the SAE misses, so that the model's output stays the same.
        exclude_special_tokens: True for the tokenizer's special tokens (BOS, EOS, PAD, SEP), or
            token ids; False to replace every position.

    Yields:
        ``model``.

    Raises:
        ValueError: if the model does not have the SAE's hook points (SAELens only logs a warning),
            or has no tokenizer to say which tokens are special; if what the SAE writes is not what
            it decodes from its code, which is all that SAELens takes from it.
    """
    special = special_token_ids(model, exclude_special_tokens)
    names = hook_names(sae)
    path_in, path_out = (_path(model, name) for name in names)
    _check_output(sae, sae.use_error_term if use_error_term is None else use_error_term)
    capture: RemovableHandle | None = None

    def prepare() -> _Wrapper | None:
        # Looked up anew for each pass: an SAE that was attached and removed inside leaves another
        # wrapper, and the capture has to be the last of the hooks at whatever the SAE reads from.
        nonlocal capture
        wrapper = get_deep_attr(model, path_out)
        if not (isinstance(wrapper, _SAEWrapper) and wrapper.sae is sae):
            return None
        wrapper.__class__ = _Wrapper
        assert isinstance(wrapper, _Wrapper)
        wrapper.reads_elsewhere = path_in != path_out
        if wrapper.reads_elsewhere:
            if capture is not None:
                capture.remove()
            capture = get_deep_attr(model, path_in).register_forward_hook(
                lambda *args: wrapper.capture_input(args[-1])  # module, inputs, output
            )
        return wrapper

    def before_a_pass(module: nn.Module, inputs: tuple[Any, ...]) -> None:  # noqa: ARG001
        wrapper = prepare()
        if wrapper is not None and special:
            wrapper.set_token_mask(special_token_mask(inputs[0], special))

    with _as_before_afterwards(model, names[0], path_out):
        _add(model, sae, use_error_term, path_in)
        if prepare() is None:
            raise ValueError(
                f"The SAE cannot be attached to the {type(model).__name__}: another one, already "
                f"attached, writes to {names[0]!r} or {names[1]!r} and hides the hook point."
            )
        # The embedding sees token ids whatever the caller passed: text, tokens, with BOS or not.
        handle = model.embed.register_forward_pre_hook(before_a_pass)
        try:
            yield model
        finally:
            handle.remove()
            if capture is not None:
                capture.remove()


class _Wrapper(_SAEWrapper):
    """SAELens' wrapper; the tokens that pass by the SAE are also hidden from it."""

    reads_elsewhere: bool = False

    @override
    def forward(self, original_output: Tensor) -> Tensor:
        if self.reads_elsewhere and self._captured_input is None:
            hook_in, hook_out = hook_names(self.sae)
            raise ValueError(
                f"The model came to {hook_out!r}, where the SAE writes, without having passed "
                f"{hook_in!r}, which it reads."
            )
        mask = self._token_mask
        try:
            with nullcontext() if mask is None else only_tokens(self.sae, ~mask):
                return super().forward(original_output)
        finally:
            # Of this pass only.
            self._token_mask = None


def _path(model: Model, name: str) -> str:
    """Where in the model a hook point is; a Bridge has aliases."""
    path = name if isinstance(model, HookedSAETransformer) else model._resolve_hook_name(name)
    try:
        point = get_deep_attr(model, path)
    except (AttributeError, IndexError, KeyError, TypeError):
        point = None
    if isinstance(point, (HookPoint, _SAEWrapper)):
        return path
    raise ValueError(
        f"{type(model).__name__} has no hook point {name!r}, which the SAE's metadata names. "
        f"{did_you_mean(name, model.hook_dict)}"
    )


def _check_output(sae: SAE[Any], use_error_term: bool) -> None:
    if output_is_decoded_code(sae):
        return
    if not hasattr(sae, "W_skip"):
        raise ValueError(
            "With decoder_memory='encoder' the reconstruction is not a function of the codes, so the "
            "SAE cannot be attached. Train with decoder_memory='codes'."
        )
    if not use_error_term:
        raise ValueError(
            "SAELens attaches a skip transcoder without its skip connection, and what it writes is "
            "then wrong. Set use_error_term=True, which makes up for it."
        )


def _add(model: Model, sae: SAE[Any], use_error_term: bool | None, path_in: str) -> None:
    """``add_sae`` without SAELens' hook at the point that is read, which comes before all others.

    SAELens would take it away together with everybody's hooks there.
    """
    hooks = getattr(get_deep_attr(model, path_in), "fwd_hooks", [])
    n_before = len(hooks)
    model.add_sae(sae, use_error_term=use_error_term)
    for hook in hooks[n_before:]:
        hook.hook.remove()
    del hooks[n_before:]


@contextmanager
def _as_before_afterwards(model: Model, hook_in: str, path_out: str) -> Iterator[None]:
    """Take an SAE away and put back what was there before, the very objects.

    SAELens (6.54) puts new ones there: a hook point without the hooks that the old one had, on a
    Bridge also without its full name, so that hooks added there by name silently do nothing, and
    without its split into heads; or a copy of the SAE that was attached before.
    """
    point = get_deep_attr(model, path_out)
    known: list[dict[str, Any]] = [model._acts_to_saes, model._transcoder_output_hooks]
    before = [entries.get(hook_in) for entries in known]
    registered = _registered(model, path_out)
    try:
        yield
    finally:
        wrapper = get_deep_attr(model, path_out)
        if getattr(wrapper, "bridge_disabled_hook_z_reshaping", False):
            wrapper.sae.turn_on_forward_pass_hook_z_reshaping()
        for entries, value in zip(known, before, strict=True):
            entries.pop(hook_in, None)
            if value is not None:
                entries[hook_in] = value
        set_deep_attr(model, path_out, point)
        if isinstance(model, HookedSAETransformer):
            model.setup()
        else:
            for name in _registered(model, path_out):
                del model._hook_registry[name]
            for name, hook_point in registered.items():
                model._hook_registry[name] = hook_point
                hook_point.name = name


def _registered(model: Model, path: str) -> dict[str, Any]:
    """What a Bridge knows at a hook point: itself, or an SAE and the hook points in it."""
    if isinstance(model, HookedSAETransformer):
        return {}
    return {
        name: point
        for name, point in model._hook_registry.items()
        if name == path or name.startswith(f"{path}.")
    }
