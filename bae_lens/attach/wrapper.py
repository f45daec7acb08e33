"""An SAE in the place of a hook point, so that special tokens pass by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

from sae_lens import SAE, HookedSAETransformer
from sae_lens.analysis.hooked_sae_transformer import _SAEWrapper, get_deep_attr, set_deep_attr
from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from bae_lens.activations.hook_points import put_heads, take_heads
from bae_lens.activations.outlier_tokens import OutlierTokens
from bae_lens.activations.running_pass import PassTracker
from bae_lens.architectures.clvq_vae import only_tokens
from bae_lens.architectures.token_scales import flat_heads
from bae_lens.attach.left_alone import LeftAlone
from bae_lens.attach.points import (
    check_width,
    conversion_at,
    hook_path,
    note_reading,
    what_was_read,
)
from bae_lens.dictionaries import Dictionary

Model = HookedSAETransformer | SAETransformerBridge


@contextmanager
def attached(
    model: HookedSAETransformer | SAETransformerBridge,
    sae: SAE[Any],
    use_error_term: bool | None = None,
    exclude_special_tokens: bool | Sequence[int] = True,
    exclude_outlier_tokens: bool | float | OutlierTokens = False,
) -> Iterator[HookedSAETransformer | SAETransformerBridge]:
    """A context in which ``model`` runs with ``sae`` at its hook points, special tokens untouched.

    The activation of BOS can be a hundred times longer than any other (an attention sink). SAEs are
    seldom trained on it, and to replace it by a reconstruction disturbs every position after it.
    ``HookedSAETransformer.add_sae`` can leave it alone; ``SAETransformerBridge.add_sae`` cannot
    (SAELens 6.54). This does it for both.

    An SAE that writes to another hook point than it reads (a transcoder, a CLVQ-VAE) reads what is
    there after all hooks, so that an intervention at the lower hook point shows in what it writes.
    From one that decodes whole sequences special tokens are hidden, as they were in training. Where
    a hook point has heads, an SAE of one head (``metadata.hook_head_index``) is attached to that
    head, any other to all of them side by side.

    Which tokens are special is known of whatever the model itself makes of text or token ids, also
    while it generates. Given activations (``start_at_layer``) it has to be told which tokens they
    are of, by ``tokens=``, and given embeddings it cannot be: an SAE that is reached without
    knowing refuses.

    Args:
        model: the model; what was attached to the hook points before is back afterwards.
        sae: any SAE; ``metadata.hook_name`` says where it reads, ``metadata.hook_name_out`` where it
            writes, if elsewhere.
        use_error_term: add what the SAE misses, so that the model's output stays the same.
        exclude_special_tokens: True for the tokenizer's special tokens (BOS, EOS, PAD, SEP), or
            token ids; False to replace every position.
        exclude_outlier_tokens: leave alone, as special tokens are, those whose activation at either
            hook point is many times as long as others': attention sinks other than BOS. True for
            ten times the reference norm that the SAE was saved with, another multiple of it, or
            ``OutlierTokens`` with norms of one's own.

    Yields:
        ``model``.

    Raises:
        ValueError: if the model does not have the SAE's hook points (SAELens only logs a warning),
            or has no tokenizer to say which tokens are special; if what the SAE writes is not what
            it decodes from its code, which is all that SAELens takes from it; if outliers are to be
            left alone and the SAE has no reference norms. Inside, when the model
            runs: if the tokens are not known, the activations are not as wide as the SAE or have no
            such head, or a decoder of whole sequences is given the last tokens of one only.
    """
    dictionary = Dictionary(sae)
    left_alone = LeftAlone.of(model, dictionary, exclude_special_tokens, exclude_outlier_tokens)
    names = dictionary.hook_names
    path_in, path_out = (hook_path(model, name) for name in names)
    _check_output(dictionary, sae.use_error_term if use_error_term is None else use_error_term)
    converting = [conversion_at(get_deep_attr(model, path)) for path in (path_in, path_out)]
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
        wrapper.dictionary = dictionary
        wrapper.tracker, wrapper.left_alone = tracker, left_alone
        wrapper.hook_conversion = converting[1]
        wrapper.reads_elsewhere = path_in != path_out
        if wrapper.reads_elsewhere:
            if capture is not None:
                capture.remove()
            point = get_deep_attr(model, path_in)
            capture = note_reading(point, converting[0], dictionary, tracker)
        return wrapper

    tracker = PassTracker(model, prepare, path_out)
    reshapes_heads = sae.hook_z_reshaping_mode
    with _as_before_afterwards(model, names[0], path_out):
        try:
            _add(model, sae, use_error_term, path_in)
            if prepare() is None:
                raise ValueError(
                    f"The SAE cannot be attached to the {type(model).__name__}: another one, already "
                    f"attached, writes to {names[0]!r} or {names[1]!r} and hides the hook point."
                )
            with tracker.following():
                yield model
        finally:
            if capture is not None:
                capture.remove()
            if reshapes_heads and not sae.hook_z_reshaping_mode:  # A Bridge turns it off.
                sae.turn_on_forward_pass_hook_z_reshaping()


class _Wrapper(_SAEWrapper):
    """SAELens' wrapper; the tokens that pass by the SAE are also hidden from it, and heads taken."""

    dictionary: Dictionary
    tracker: PassTracker
    left_alone: LeftAlone
    # Of the hook point that it stands for: from the form of the model to that of hooks.
    hook_conversion: Any = None
    reads_elsewhere: bool = False

    @override
    def forward(self, original_output: Tensor) -> Tensor:
        sae, convert = self.sae, self.hook_conversion
        # Of one head is what it reads; where that is not where it writes, it writes to all.
        head = None if self.reads_elsewhere else self.dictionary.head_index
        if sae.hook_z_reshaping_mode and head is None and not self.reads_elsewhere:
            # Puts heads side by side and takes them apart again by itself.
            return self._run(original_output)
        acts = original_output if convert is None else convert.convert(original_output)
        with flat_heads(sae):
            new = put_heads(acts, self._run(take_heads(acts, head)), head)
        return new if convert is None else convert.revert(new)

    def _run(self, original_output: Tensor) -> Tensor:
        """Run the SAE on activations ``[batch, pos, d]``."""
        running = self.tracker.running
        if self.reads_elsewhere:
            self._captured_input = what_was_read(running, self.dictionary)
        if self.dictionary.decodes_sequences and running and running.has_past:
            raise ValueError(
                "The SAE decodes whole sequences, and a key-value cache hides from it the tokens "
                "before the last: generate with use_past_kv_cache=False."
            )
        check_width(self._captured_input, original_output, self.dictionary)
        mask = self.left_alone.mask(original_output, self._captured_input, running)
        self.set_token_mask(mask)
        try:
            with nullcontext() if mask is None else only_tokens(self.sae, ~mask):
                return super().forward(original_output)
        finally:
            self.set_token_mask(None)
            self._captured_input = None


def _check_output(dictionary: Dictionary, use_error_term: bool) -> None:
    """Refuse an SAE that writes something else than what SAELens decodes from its code."""
    if dictionary.output_is_decoded_code:
        return
    if not dictionary.has_skip:
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
    known: list[dict[str, Any]] = [model._acts_to_saes, model._transcoder_output_hooks]

    def entries() -> list[Any]:
        return [of.get(hook_in) for of in known]

    def put_entries(before: list[Any]) -> None:
        for of, value in zip(known, before, strict=True):
            of.pop(hook_in, None)
            if value is not None:
                of[hook_in] = value

    def point() -> tuple[Any, dict[str, Any]]:
        return get_deep_attr(model, path_out), _registered(model, path_out)

    def put_point(before: tuple[Any, dict[str, Any]]) -> None:
        set_deep_attr(model, path_out, before[0])
        if isinstance(model, HookedSAETransformer):
            model.setup()
            return
        for name in _registered(model, path_out):
            del model._hook_registry[name]
        for name, hook_point in before[1].items():
            model._hook_registry[name] = hook_point
            hook_point.name = name

    with (
        _put_back(model, ("entries", hook_in), entries, put_entries),
        _put_back(model, ("point", path_out), point, put_point),
    ):
        yield


@contextmanager
def _put_back(
    model: Model,
    what: tuple[str, str],
    read: Callable[[], Any],
    put: Callable[[Any], None],
) -> Iterator[None]:
    """Put back what was there before, in whatever order contexts end.

    What an outer context that ends first had found is left for the inner one to put back.

    Args:
        model: whose.
        what: of it, the same for all contexts that put it back.
        read: reads it.
        put: puts it back.
    """
    found = _FOUND.setdefault(model, {}).setdefault(what, [])
    own = [read()]
    found.append(own)
    try:
        yield
    finally:
        # The very list, since what is in it may be equal to that of another.
        i = next(i for i, other in enumerate(found) if other is own)
        del found[i]
        if i < len(found):
            found[i][:] = own
        else:
            put(own[0])


# What open contexts found, of each model, the outermost first.
_FOUND: WeakKeyDictionary[Any, dict[tuple[str, str], list[list[Any]]]] = WeakKeyDictionary()


def _registered(model: Model, path: str) -> dict[str, Any]:
    """What a Bridge knows at a hook point: itself, or an SAE and the hook points in it."""
    if isinstance(model, HookedSAETransformer):
        return {}
    return {
        name: point
        for name, point in model._hook_registry.items()
        if name == path or name.startswith(f"{path}.")
    }
