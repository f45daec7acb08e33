"""Prompts are drawn as said, pair by pair; last-token states are those of single runs."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch

from bae_lens import TrainingBAEConfig
from bae_lens.entropy import Prompt, in_context_accuracy, in_context_entropy, k_shot_prompts
from bae_lens.entropy.hidden_states import hidden_states, tokenize
from bae_lens.entropy.in_context import SHUFFLED
from tests.helpers import D_IN, make_bridge, make_model

HOOKS = ["blocks.0.hook_resid_post", "blocks.1.hook_mlp_out"]
# Words that the tiny model's tokenizer knows; the label begins a word of its own.
TEMPLATE = " {text} word38 {label} word39 "


def make_examples(n: int = 300) -> list[tuple[str, str]]:
    """Texts of one to three words, a third of them of the first label."""
    generator = torch.Generator().manual_seed(0)
    seen: dict[str, str] = {}
    while len(seen) < n:
        length = int(torch.randint(1, 4, (), generator=generator))
        words = torch.randint(36, (length,), generator=generator).tolist()
        label = "word36" if len(seen) % 3 == 0 else "word37"
        seen.setdefault(" ".join(f"word{i}" for i in words), label)
    return list(seen.items())


EXAMPLES = make_examples()


def profile_of(model=None, examples=EXAMPLES, **overrides):
    arguments = {
        "hooks": HOOKS,
        "shots": (0, 2),
        "max_unexplained": 0.5,
        "n_prompts": 120,
        "template": TEMPLATE,
        "seeds": (0, 1),
        "cfg": TrainingBAEConfig(d_in=D_IN, d_sae=12, max_density=None, target_entropy=None),
        "steps": 10,
        "batch_size": 32,
    }
    return in_context_entropy(model or make_model(), examples, **(arguments | overrides))


# Prompts


def test_a_prompt_is_the_template_repeated_and_ends_before_the_label():
    [prompt, _] = k_shot_prompts(
        [("good", "yes"), ("bad", "no"), ("fine", "yes"), ("awful", "no")], 1, 2
    )

    [(text, label)] = prompt.demonstrations
    assert prompt.text == f"\n{text}\nSentiment: {label}\n\n{prompt.query}\nSentiment:"
    assert {prompt.query, text} <= {"good", "bad", "fine", "awful"}


def test_texts_with_braces_are_taken_as_they_are():
    examples = [("{label} {x}", "yes"), ("{text}", "no")]

    prompts = k_shot_prompts(examples, 0, 2)

    assert {prompt.text for prompt in prompts} == {
        "\n{label} {x}\nSentiment:",
        "\n{text}\nSentiment:",
    }


def test_demonstrations_are_drawn_afresh_without_replacement_and_never_the_query():
    prompts = k_shot_prompts(EXAMPLES, 4, 150)

    labels = dict(EXAMPLES)
    for prompt in prompts:
        texts = [text for text, _ in prompt.demonstrations]
        assert len(set(texts)) == 4
        assert prompt.query not in texts
        assert all(labels[text] == label for text, label in prompt.demonstrations)
        assert labels[prompt.query] == prompt.label
    # The release gives all prompts the same ones.
    assert len({prompt.demonstrations for prompt in prompts}) == 150
    uses = Counter(text for prompt in prompts for text, _ in prompt.demonstrations)
    assert len(uses) > 200
    assert max(uses.values()) < 15


def test_each_query_is_asked_once_and_classes_are_balanced():
    prompts = k_shot_prompts(EXAMPLES, 3, 200)

    assert len({prompt.query for prompt in prompts}) == 200
    assert Counter(prompt.label for prompt in prompts) == {"word36": 100, "word37": 100}
    shown = Counter(label for prompt in prompts for _, label in prompt.demonstrations)
    # Of 600 fair draws: four standard deviations.
    assert abs(shown["word36"] - 300) < 49


def test_conditions_are_paired():
    few, many, shuffled, other = (
        k_shot_prompts(EXAMPLES, k, 60, shuffle_labels=shuffle, seed=seed)
        for k, shuffle, seed in ((1, False, 0), (4, False, 0), (4, True, 0), (4, False, 1))
    )

    for a, b, c in zip(few, many, shuffled, strict=True):
        assert a.query == b.query == c.query
        assert a.demonstrations == b.demonstrations[:1]
        assert [t for t, _ in b.demonstrations] == [t for t, _ in c.demonstrations]
    assert [p.query for p in many] != [p.query for p in other]
    assert k_shot_prompts(EXAMPLES, 4, 60) == many
    assert [p.query for p in k_shot_prompts(EXAMPLES, 4, 20)] == [p.query for p in many[:20]]


def test_shuffled_labels_are_fair_coins():
    prompts = k_shot_prompts(EXAMPLES, 4, 150, shuffle_labels=True)

    labels = dict(EXAMPLES)
    shown = [pair for prompt in prompts for pair in prompt.demonstrations]
    right = sum(labels[text] == label for text, label in shown)
    assert abs(right - 300) < 49
    assert all(labels[prompt.query] == prompt.label for prompt in prompts)


def test_a_text_that_stands_twice_counts_once():
    examples = [("same", "yes")] * 50 + [("other", "yes"), ("third", "no"), ("fourth", "no")]

    for prompt in k_shot_prompts(examples, 1, 4):
        assert prompt.query not in [text for text, _ in prompt.demonstrations]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_prompts": 201}, "need at least 101 examples of each label; of 'word36' there are 100"),
        ({"n_shots": 100}, "100 shots need at least 101 examples"),
        ({"n_shots": -1}, "shots"),
        ({"n_prompts": 0}, "prompts"),
        ({"examples": EXAMPLES[:1]}, r"two different labels; got \['word36'\]"),
        ({"examples": []}, r"two different labels; got \[\]"),
        ({"template": "{text}"}, "must have {text} once and after it {label} once"),
        ({"template": "{label}: {text}"}, "must have {text} once and after it {label} once"),
        ({"template": "{text}{text}={label}"}, "must have {text} once and after it {label} once"),
        ({"template": "{text} {label}"}, "more than spaces between"),
    ],
)
def test_prompts_that_cannot_be_made_are_refused(arguments, message):
    defaults = {"examples": EXAMPLES, "n_shots": 2, "n_prompts": 20}
    with pytest.raises(ValueError, match=message):
        k_shot_prompts(**(defaults | arguments))


# Hidden states


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("kind", ["hooked", "bridge"])
def test_states_are_those_of_single_runs(kind, padding_side, tmp_path):
    model: Any = make_model() if kind == "hooked" else make_bridge(tmp_path)
    model.tokenizer.padding_side = padding_side
    hooks = HOOKS if kind == "hooked" else ["blocks.0.hook_out", "blocks.1.mlp.hook_out"]
    prompts = k_shot_prompts(EXAMPLES, 3, 30, TEMPLATE)
    sequences = tokenize(model, [prompt.text for prompt in prompts])
    assert len({len(ids) for ids in sequences}) > 3
    last = torch.tensor([[len(ids) - 1] for ids in sequences])

    states = hidden_states(model, hooks, sequences, last, batch_size=4)

    for i, ids in enumerate(sequences):
        assert ids[0] == model.tokenizer.bos_token_id
        assert (ids[1:] > 3).all()  # no special token but the first
        with torch.no_grad():
            _, cache = model.run_with_cache(ids[None], prepend_bos=False)
        for hook in hooks:
            torch.testing.assert_close(states[hook][i, 0], cache[hook][0, -1], rtol=1e-4, atol=1e-5)


def test_a_hook_without_one_vector_a_token_is_refused():
    model = make_model()
    ids = [torch.tensor([0, 5, 6])]
    with pytest.raises(ValueError, match=r"no activation for each token: one token gives"):
        hidden_states(model, ["blocks.0.attn.hook_pattern"], ids, torch.tensor([[2]]))


def test_heads_are_flattened():
    model, ids = make_model(), torch.tensor([0, 5, 6, 7])

    hook = "blocks.1.attn.hook_z"
    states = hidden_states(model, [hook], [ids], torch.tensor([[1, 3]]))[hook]

    _, cache = model.run_with_cache(ids[None])
    assert states.shape == (1, 2, D_IN)
    torch.testing.assert_close(states[0], cache[hook][0, [1, 3]].flatten(1))


# The profile


@pytest.fixture(scope="module")
def profile():
    return profile_of()


def test_rows_are_every_hook_k_control_and_seed(profile):
    cells = [(row.hook, row.control, row.label, row.seed) for row in profile.rows]

    assert cells == [
        (hook, control, k, seed)
        for hook in HOOKS
        for control in (None, SHUFFLED)
        for k in ("0", "2")
        for seed in (0, 1)
    ]
    assert profile.axis == "demonstrations"
    assert profile.n_texts == 120
    assert all(row.estimate["n_train"] == 96 for row in profile.rows)
    assert json.loads(json.dumps(profile.to_dict(), allow_nan=False))["n_texts"] == 120


def test_without_demonstrations_there_is_nothing_to_shuffle(profile):
    for hook in HOOKS:
        assert profile.values(hook, 0) == profile.values(hook, 0, SHUFFLED)
        assert profile.values(hook, 2) != profile.values(hook, 2, SHUFFLED)
        assert profile.difference((hook, 0, None), (hook, 0, SHUFFLED)) == (0.0, 0.0)


def test_it_repeats_itself(profile):
    assert profile_of().to_dict() == profile.to_dict()


def test_controls_can_be_left_out_or_exchanged():
    plain = profile_of(hooks=HOOKS[:1], shuffled_control=False, seeds=(0,))
    gaussian = profile_of(
        hooks=HOOKS[:1], shuffled_control=False, gaussian_control=True, seeds=(0,)
    )

    assert plain.controls == [None]
    assert gaussian.controls == [None, "gaussian"]
    assert plain.values(HOOKS[0], 2) == gaussian.values(HOOKS[0], 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"shots": ()},
            r"shots must be a list of 1 or more different values, each a whole number .*; got \(\)",
        ),
        ({"shots": (1, 1)}, "shots must be a list of 1 or more different values"),
        ({"hooks": []}, "hooks must be a list of 1 or more different values"),
        ({"hooks": ["blocks.0.nothing"]}, "The model has no hook 'blocks.0.nothing'"),
        ({"n_prompts": 20}, "16 training vectors .* fewer than batch_size = 32"),
        ({"gaussian_control": True}, "One control at a time"),
        ({"seeds": ()}, "seeds must be a list of 1 or more different values"),
        ({"shots": (0, 2, 9)}, r"Prompt \d+ with 9 demonstrations has (4\d|5\d) tokens, \d+ more"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        profile_of(**arguments)


# Accuracy


def test_accuracy_is_the_share_of_likelier_labels():
    model: Any = make_model()
    prompts = k_shot_prompts(EXAMPLES, 1, 60, TEMPLATE)

    accuracy = in_context_accuracy(model, prompts, model_batch_size=7)

    right = 0
    for prompt in prompts:
        [ids] = tokenize(model, [prompt.text])
        logits = model(ids[None], prepend_bos=False)[0, -1]
        yes, no = (model.tokenizer.convert_tokens_to_ids(label) for label in ("word36", "word37"))
        right += ("word36" if logits[yes] > logits[no] else "word37") == prompt.label
    assert accuracy == right / 60
    assert 0 < accuracy < 1


def test_labels_that_begin_alike_are_refused():
    prompts = [Prompt(" word1 :", label, "word1", ()) for label in ("word5 word6", "word5 word7")]
    with pytest.raises(ValueError, match="do not differ in their first tokens"):
        in_context_accuracy(make_model(), prompts)


def test_prompts_are_in_order_of_draw():
    # Queries of the labels take turns, so that any leading part of the prompts is balanced too.
    labels = [prompt.label for prompt in k_shot_prompts(EXAMPLES, 0, 10)]
    assert all(a != b for a, b in pairwise(labels))
