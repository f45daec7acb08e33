"""Entropy of the last token's hidden state against the number of demonstrations (arXiv 2509.20997, §4.3)."""

from __future__ import annotations

import logging
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bae_lens.activations.hook_points import hook_width
from bae_lens.activations.texts import check_text
from bae_lens.architectures.bae import TrainingBAEConfig
from bae_lens.checks.fields import ListOf, Text, check, whole
from bae_lens.entropy.cells import Cell, Settings, measure
from bae_lens.entropy.hidden_states import check_tokenizer, hidden_states, tokenize
from bae_lens.entropy.result import EntropyProfile, ProfileRow, overfit_warning

logger = logging.getLogger(__name__)

SHUFFLED = "shuffled labels"
# It begins with a newline: in front of some first words SmolLM2 (and not only it) would otherwise park
# its attention there, with a hidden state a hundred times longer than any other.
TEMPLATE = "\n{text}\nSentiment: {label}\n"


class Prompt(NamedTuple):
    """A k-shot prompt.

    Attributes:
        text: what the model reads; it ends just before the query's label.
        label: of the query.
        query: the query's text.
        demonstrations: texts and labels, in the order in which they stand.
    """

    text: str
    label: str
    query: str
    demonstrations: tuple[tuple[str, str], ...]


def k_shot_prompts(
    examples: Sequence[tuple[str, str]],
    n_shots: int,
    n_prompts: int,
    template: str = TEMPLATE,
    shuffle_labels: bool = False,
    seed: int = 0,
) -> list[Prompt]:
    """Prompts of demonstrations with their labels and one query without.

    Demonstrations are drawn afresh for each prompt, without replacement, and never the query itself.
    (The authors' release takes the first k examples of its data for all prompts. That alone makes
    last-token states alike, and their entropy low, with k.) For each the class is drawn first, so
    classes are balanced in expectation whatever they are in ``examples``; queries are balanced
    exactly, but for the last few.

    With the same seed the queries are the same for every ``n_shots`` and for either
    ``shuffle_labels``; the demonstrations of fewer shots are the first of those of more; and shuffled
    prompts have the same texts. So conditions can be compared pair by pair.

    Args:
        examples: texts and labels. A text that stands twice counts once.
        n_shots: demonstrations a prompt.
        n_prompts: prompts, each with a query of its own.
        template: of one example. The query's ends where its label would begin, without the space
            before it.
        shuffle_labels: draw the label of each demonstration at random: the control, in which
            demonstrations show texts and labels but not how they belong together.
        seed: of the draws.

    Raises:
        ValueError: if the template has not ``{text}`` and then ``{label}`` once each, there are fewer
            than two labels, or too few examples of one, or a text or label is no string.
    """
    n_shots, n_prompts = (
        check("n_shots", n_shots, whole(0)),
        check("n_prompts", n_prompts, whole(1)),
    )
    seed = check("seed", seed, whole(None))
    before, between, after = _template_parts(template)
    # Otherwise a demonstration could be the query's own text, with its label.
    examples = list(dict(examples).items())
    for i, (text, label) in enumerate(examples):
        check_text(text, f"The text of example {i}")
        check_text(label, f"The label of example {i}")
    by_label: dict[str, list[int]] = defaultdict(list)
    for i, (_, label) in enumerate(examples):
        by_label[label].append(i)
    labels = sorted(by_label)
    if len(labels) < 2:
        raise ValueError(f"examples must have at least two different labels; got {labels}.")
    smallest = min(labels, key=lambda label: len(by_label[label]))
    needed = max(-(-n_prompts // len(labels)), n_shots + 1)
    if len(by_label[smallest]) < needed:
        raise ValueError(
            f"{n_prompts} prompts of {n_shots} shots need at least {needed} examples of each label; "
            f"of {smallest!r} there are {len(by_label[smallest])}. Give more examples, or fewer prompts "
            "and shots."
        )

    queries = {
        label: random.Random(f"{seed} queries {label}").sample(rows, len(rows))
        for label, rows in by_label.items()
    }
    prompts = []
    for n in range(n_prompts):
        query, label = examples[queries[labels[n % len(labels)]][n // len(labels)]]
        # Each prompt has streams of its own, so that neither k nor the control changes what is drawn.
        draw = random.Random(f"{seed} demonstrations {n}")
        flip = random.Random(f"{seed} labels {n}")
        taken = {query}
        shown: list[tuple[str, str]] = []
        while len(shown) < n_shots:
            text, its_label = examples[draw.choice(by_label[draw.choice(labels)])]
            if text in taken:
                continue
            taken.add(text)
            shown.append((text, flip.choice(labels) if shuffle_labels else its_label))
        parts = [before + text + between + shown_label + after for text, shown_label in shown]
        text = "".join(parts) + before + query + between.rstrip(" ")
        prompts.append(Prompt(text, label, query, tuple(shown)))
    return prompts


def in_context_entropy(
    model: Any,
    examples: Sequence[tuple[str, str]],
    hooks: Sequence[str],
    shots: Sequence[int] = (0, 1, 2, 4, 8),
    *,
    max_unexplained: float,
    n_prompts: int = 2000,
    template: str = TEMPLATE,
    prompt_seed: int = 0,
    shuffled_control: bool = True,
    gaussian_control: bool = False,
    held_out_share: float = 0.2,
    seeds: Sequence[int] = (0, 1, 2),
    cfg: TrainingBAEConfig | None = None,
    starts: Sequence[float] = (0.04,),
    steps: int = 400,
    batch_size: int = 512,
    lr: float = 2e-3,
    model_batch_size: int = 32,
    device: str | None = None,
    verbose: bool = False,
) -> EntropyProfile:
    """How many bits the last token's hidden states hold after k demonstrations, by layer and k.

    For each k the model reads ``k_shot_prompts``, and the entropy of the states of their last tokens
    is taken as ``entropy_profile`` does. Queries and their split into training and held-out ones are
    the same for every k and for the control, so that ``EntropyProfile.difference`` compares like with
    like. The control ``"shuffled labels"`` has the same prompts but for the labels of the
    demonstrations: where it follows the curve, the entropy has to do with how many texts stand before
    the query and in which form, not with what is learnt from them. Without demonstrations the two are
    the same, and so are their rows.

    Args:
        model: a HookedTransformer or TransformerBridge with a tokenizer.
        examples: texts and labels.
        hooks: names of hook points.
        shots: numbers of demonstrations.
        max_unexplained: share of each cell's variance that may be left unexplained.
        n_prompts: prompts a condition: each gives one vector only, so this is what limits the
            number of bits; see ``cfg``.
        template, prompt_seed: see ``k_shot_prompts``.
        shuffled_control: run the control with shuffled labels.
        gaussian_control: run the control of ``entropy_profile`` instead; one control at a time.
        held_out_share, seeds, cfg, starts, steps, batch_size, lr, model_batch_size, device, verbose: see
            ``entropy_profile``.

    Raises:
        ValueError: before the model reads any text, if both controls are asked for, a prompt is longer
            than the model's context, a
            hook is not the model's, there are too few prompts for the batch or the bits, or
            ``k_shot_prompts`` refuses; later, if hidden states do not vary.
    """
    if shuffled_control and gaussian_control:
        raise ValueError(
            "One control at a time: set shuffled_control or gaussian_control to False."
        )
    n_prompts = check("n_prompts", n_prompts, whole(1))
    model_batch_size = check("model_batch_size", model_batch_size, whole(1))
    hooks = check("hooks", hooks, ListOf(Text(), distinct=True))
    shots = check("shots", shots, ListOf(whole(0), distinct=True))
    settings = Settings(
        max_unexplained,
        held_out_share,
        *(seeds, cfg, starts, steps, batch_size, lr),
        device=device or str(next(model.parameters()).device),
    )
    for hook in hooks:
        settings.check_size(n_prompts, 1, hook_width(model, hook))
    check_tokenizer(model)
    tokens: dict[tuple[int, str | None], list[Tensor]] = {}
    for k in shots:
        for control in (None, SHUFFLED) if shuffled_control and k > 0 else (None,):
            prompts = k_shot_prompts(
                examples, k, n_prompts, template, control is not None, prompt_seed
            )
            tokens[k, control] = tokenize(model, [prompt.text for prompt in prompts])
            _check_context(tokens[k, control], k, model.cfg.n_ctx)

    cells = (
        Cell(hook, str(k), k, control, acts)
        for (k, control), sequences in tokens.items()
        for hook, acts in hidden_states(
            model,
            hooks,
            sequences,
            torch.tensor([[len(ids) - 1] for ids in sequences]),
            model_batch_size,
            verbose,
        ).items()
    )
    rows = list(measure(cells, settings, gaussian_control, verbose))
    if shuffled_control:
        rows += [replace(row, control=SHUFFLED) for row in rows if row.at == 0]
    rows.sort(key=lambda row: _order(row, list(hooks), list(shots)))
    profile = EntropyProfile(tuple(rows), "demonstrations", max_unexplained, n_prompts)
    if (warning := overfit_warning(profile)) is not None:
        logger.warning(warning)
    return profile


@torch.no_grad()
def in_context_accuracy(
    model: Any, prompts: Sequence[Prompt], model_batch_size: int = 32, between: str = " "
) -> float:
    """Share of prompts after which the query's label is likelier than any other.

    Labels are compared by the first token of each, which must differ. Whether a model learns in
    context at all is to be known before its entropy is said to fall because it does.

    Args:
        model: a HookedTransformer or TransformerBridge with a tokenizer.
        prompts: of ``k_shot_prompts``.
        model_batch_size: prompts per forward pass.
        between: what stands between the prompt's end and the label.

    Raises:
        ValueError: if two labels begin with the same token, or a prompt is longer than the context.
    """
    model_batch_size = check("model_batch_size", model_batch_size, whole(1))
    check_tokenizer(model)
    labels = sorted({prompt.label for prompt in prompts})
    encoded = model.tokenizer([between + label for label in labels], add_special_tokens=False)
    if not all(encoded["input_ids"]):
        raise ValueError(
            f"The tokenizer makes no token of one of the labels {labels}; reword them."
        )
    first = [ids[0] for ids in encoded["input_ids"]]
    if len(set(first)) < len(first):
        raise ValueError(f"The labels {labels} do not differ in their first tokens; reword them.")
    sequences = tokenize(model, [prompt.text for prompt in prompts])
    _check_context(sequences, max(len(p.demonstrations) for p in prompts), model.cfg.n_ctx)
    device = next(model.parameters()).device
    by_length: dict[int, list[int]] = defaultdict(list)
    for i, ids in enumerate(sequences):
        by_length[len(ids)].append(i)
    n_right = 0
    for same_length in by_length.values():
        for start in range(0, len(same_length), model_batch_size):
            rows = same_length[start : start + model_batch_size]
            logits = model(torch.stack([sequences[i] for i in rows]).to(device), prepend_bos=False)
            guesses = logits[:, -1, first].argmax(dim=1).tolist()
            n_right += sum(
                labels[guess] == prompts[i].label for guess, i in zip(guesses, rows, strict=True)
            )
    return n_right / len(prompts)


def _template_parts(template: str) -> tuple[str, str, str]:
    """What stands before the text, between text and label, and after the label."""
    before, has_text, rest = template.partition("{text}")
    between, has_label, after = rest.partition("{label}")
    if not (has_text and has_label) or "{text}" in between + after or "{label}" in before + after:
        raise ValueError(
            "template must have {text} once and after it {label} once, as in "
            f"{TEMPLATE!r}; got {template!r}."
        )
    if not between.rstrip(" "):
        raise ValueError(
            "template must have more than spaces between {text} and {label}: the prompt's last token, "
            f"whose hidden state is taken, would be the text's own; got {template!r}."
        )
    return before, between, after


def _check_context(sequences: Sequence[Tensor], n_shots: int, n_ctx: int) -> None:
    i = max(range(len(sequences)), key=lambda i: len(sequences[i]))
    if len(sequences[i]) > n_ctx:
        raise ValueError(
            f"Prompt {i} with {n_shots} demonstrations has {len(sequences[i])} tokens, "
            f"{len(sequences[i]) - n_ctx} more than the model's context of {n_ctx}. Give shorter "
            "examples or fewer shots."
        )


def _order(row: ProfileRow, hooks: list[str], shots: list[int]) -> tuple[int, bool, int]:
    return hooks.index(row.hook), row.control is not None, shots.index(int(row.at))
