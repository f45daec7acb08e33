"""A task as a vector: the latents whose firing differs most between prompts with demonstrations and without.

The newest experiment of the BAE release (``ICL_steer.py``) reads the last token of prompts with four
demonstrations and of the same queries without, takes the k bits whose firing rates differ most, adds up their decoder
rows, each with the sign of its difference, and scales the sum to a share of the norm of the difference of the two
sets' mean activations. Here each latent's row is weighted by what the latent usually is (of a bit: that it is on), so that
the same holds for levels and real values, and the vector comes with what it has to be compared with:
the difference of means itself, other latents, the same latents with other signs, and random directions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from sae_lens import SAE
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from bae_lens.activations.special_tokens import special_token_ids
from bae_lens.activations.token_ids import check_given_ids, check_token_ids
from bae_lens.attach.points import Model
from bae_lens.checks.fields import OneOf, check, shown, whole
from bae_lens.dictionaries import Dictionary
from bae_lens.entropy.hidden_states import check_tokenizer, hidden_states, tokenize
from bae_lens.results import Table
from bae_lens.stats import Interval, wilson
from bae_lens.stats import shown as shown_interval
from bae_lens.steering.rows import check_codes_alone, check_has_rows, latent_rows

By = Literal["rate", "mean"]
Prompts = Sequence[str] | Sequence[Int[Tensor, " length"]] | Int[Tensor, "n length"]


class TaskLatent(NamedTuple):
    """A latent of a task vector.

    Attributes:
        latent: which one.
        rate_with: share of prompts with demonstrations at whose last token it fires, with its 95 % interval
            (Wilson).
        rate_without: the same without demonstrations.
        weight: of its decoder row in the vector, before that is scaled: by rates, what the latent is on average where it
            fires, with the sign of the difference of its rates; by means, the difference of its mean activations.
    """

    latent: int
    rate_with: Interval
    rate_without: Interval
    weight: float


class _Reading(NamedTuple):
    """What was read at the last tokens: codes, of prompts with demonstrations and without, and the change of the mean."""

    dictionary: Dictionary
    code_with: Float[Tensor, "n n_latents"]
    code_without: Float[Tensor, "m n_latents"]
    difference_of_means: Float[Tensor, " d_out"]


@dataclass(frozen=True, eq=False)
class TaskVector:
    """What demonstrations change at the last token, in latents; see ``task_vector``.

    All vectors are in the units of the activation where the SAE writes, ``[d_out]``, float32, on the CPU, and of the
    norm of ``difference_of_means``: multiply by the strength and give it to ``add_direction``.

    Attributes:
        latents: by how much they differ, the largest first.
        direction: the sum of their decoder rows by ``TaskLatent.weight``, scaled.
        difference_of_means: the mean activation with demonstrations less that without.
        by: what the latents were chosen and weighted by.
        n_with: number of prompts with demonstrations.
        n_without: number of prompts without.
    """

    latents: tuple[TaskLatent, ...]
    direction: Float[Tensor, " d_out"]
    difference_of_means: Float[Tensor, " d_out"]
    by: By
    n_with: int
    n_without: int
    _reading: _Reading = field(repr=False)

    @classmethod
    @torch.no_grad()
    def of_activations(
        cls,
        sae: SAE[Any],
        with_demonstrations: Float[Tensor, "n d_in"],
        without: Float[Tensor, "m d_in"],
        k: int | None = 20,
        by: By = "rate",
        written: tuple[Float[Tensor, "n d_out"], Float[Tensor, "m d_out"]] | None = None,
    ) -> TaskVector:
        """What ``task_vector`` makes of prompts whose last tokens have been read already.

        Args:
            sae: as of ``task_vector``.
            with_demonstrations: activations of last tokens where the SAE reads, heads flattened.
            without: the same without demonstrations.
            k: as of ``task_vector``.
            by: as of ``task_vector``.
            written: both where the SAE writes, if elsewhere.

        Raises:
            ValueError: as ``task_vector``; or if activations are not as wide as the SAE, or not finite.
        """
        dictionary = _checked(sae)
        if dictionary.writes_elsewhere and written is None:
            raise ValueError(
                "The SAE writes to another hook point than it reads: give the activations of both there too, as written."
            )
        read = with_demonstrations, without
        both = read if written is None else written
        for name, acts, width in (
            *zip(("with_demonstrations", "without"), read, [dictionary.d_in] * 2, strict=True),
            *(("written", acts, dictionary.d_out) for acts in both),
        ):
            if not isinstance(acts, Tensor) or acts.ndim != 2 or acts.shape[1] != width:
                got = tuple(acts.shape) if isinstance(acts, Tensor) else shown(acts)
                raise ValueError(f"{name} must have shape [n, {width}]; got {got}.")
            if not len(acts) or not acts.isfinite().all():
                raise ValueError(f"{name} must have a row at least, and finite numbers in it.")
        mean_with, mean_without = (acts.cpu().double().mean(0) for acts in both)
        code_with, code_without = (_code(dictionary, acts) for acts in read)
        difference = (mean_with - mean_without).float()
        sizes = max(mean_with.norm().item(), mean_without.norm().item())
        if not difference.norm().item() > torch.finfo(torch.float32).eps * sizes:
            raise ValueError(
                "The mean activations with demonstrations and without are equal, so that their difference has no direction: "
                "are the prompts of both the same?"
            )
        return _chosen(_Reading(dictionary, code_with, code_without, difference), k, by)

    def choose(self, k: int | None = 20, by: By = "rate") -> TaskVector:
        """Of the same prompts, by another number of latents or another measure; nothing is read again.

        Args:
            k: as of ``task_vector``.
            by: as of ``task_vector``.
        """
        return _chosen(self._reading, k, by)

    @property
    def cosine(self) -> float:
        """Between ``direction`` and ``difference_of_means``: how much of one is the other."""
        return cosine_similarity(self.direction, self.difference_of_means, dim=0).item()

    # Controls, all of the same norm

    def random_latents(self, seed: int = 0) -> Float[Tensor, " d_out"]:
        """As many others, drawn among all latents of the dictionary, with these latents' weights and random signs.

        Raises:
            ValueError: if there are fewer others.
        """
        generator = _generator(seed)
        chosen = torch.tensor([found.latent for found in self.latents])
        others = torch.arange(self._reading.dictionary.n_latents)
        others = others[~torch.isin(others, chosen)]
        if len(others) < len(chosen):
            raise ValueError(
                f"The dictionary has {len(others)} latents beside the {len(chosen)} of the vector, too few to draw as "
                "many: take a smaller k, or compare with random_signs."
            )
        drawn = others[torch.randperm(len(others), generator=generator)[: len(chosen)]]
        signs = _signs(len(chosen), generator)
        return self._sum(drawn.tolist(), signs * self._weights().abs())

    def random_signs(self, seed: int = 0) -> Float[Tensor, " d_out"]:
        """The same latents, each with a sign drawn at random; not all as they are, nor all the opposite.

        Raises:
            ValueError: if there is one latent only.
        """
        if len(self.latents) < 2:
            raise ValueError(
                "The vector is of one latent, which with another sign is its negative and no control: compare with "
                "random_latents, or take a larger k."
            )
        generator, own = _generator(seed), self._weights() > 0
        signs = _signs(len(own), generator)
        while ((signs > 0) == own).unique().numel() == 1:
            signs = _signs(len(own), generator)
        return self._sum([found.latent for found in self.latents], signs * self._weights().abs())

    def random_direction(
        self, seed: int = 0, equal_cosine: bool = False
    ) -> Float[Tensor, " d_out"]:
        """A Gaussian direction.

        Args:
            seed: of the draw.
            equal_cosine: with the cosine to ``difference_of_means`` that ``direction`` has: what of the effect is
                owed to that alone.
        """
        mean, norm = self.difference_of_means, self.difference_of_means.norm()
        drawn = torch.randn(mean.shape, generator=_generator(seed))
        if equal_cosine:
            along = mean / norm
            across = normalize(drawn - (drawn @ along) * along, dim=0)
            cosine = min(max(self.cosine, -1.0), 1.0)
            drawn = cosine * along + math.sqrt(1 - cosine**2) * across
        return drawn / drawn.norm() * norm

    # As a table

    def table(self) -> Table:
        """The latents with their rates."""
        rows = [
            (
                str(found.latent),
                shown_interval(found.rate_with),
                shown_interval(found.rate_without),
                f"{found.rate_with.mean - found.rate_without.mean:+.3f}",
            )
            for found in self.latents
        ]
        return Table(
            ("latent", "rate with", "rate without", "difference"),
            rows,
            (
                f"Last tokens of {self.n_with} prompts with demonstrations and {self.n_without} without; cosine to the "
                f"difference of means {self.cosine:.2f}, norm {self.difference_of_means.norm():.2f}.",
            ),
            "The latents were chosen by their difference on these prompts, which on others is smaller.",
        )

    # Parts

    def _weights(self) -> Tensor:
        return torch.tensor([found.weight for found in self.latents])

    def _sum(self, latents: Sequence[int], weights: Tensor) -> Tensor:
        norm = self.difference_of_means.norm().item()
        return _scaled_sum(self._reading.dictionary, latents, weights, norm)


@torch.no_grad()
def task_vector(
    model: Model,
    sae: SAE[Any],
    with_demonstrations: Prompts,
    without: Prompts,
    k: int | None = 20,
    by: By = "rate",
    exclude_special_tokens: bool | Sequence[int] = True,
    batch_size: int = 32,
) -> TaskVector:
    """The vector of a task from the latents whose firing at the last token demonstrations change most.

    Prompts end where the answer begins. Which latents differ is only of use if nothing else does: give the same
    queries with and without, and, where the vector is to be tested, other queries than it was made of.

    * ``by="rate"``, the release's way with bits: the k latents whose firing rates differ most; each adds its decoder
      row × the mean of its activation where it fires in these prompts (a bit: × what it is on), with the sign of its
      difference.
    * ``by="mean"``, the release's way with real values: the k latents whose mean activations differ most, each
      weighted by its difference. Of all latents that is the difference of means as the SAE sees it.

    Equal differences go by index.

    Args:
        model: HookedTransformer or TransformerBridge.
        sae: any SAE with a row for each latent; of one that writes to another hook point than it reads, latents are
            read at one, and the difference of means is that of the other.
        with_demonstrations: texts, or their token ids.
        without: the same without demonstrations.
        k: number of latents; fewer where fewer differ. None: all that differ.
        by: what latents are chosen and weighted by.
        exclude_special_tokens: as of ``attached``; prompts that end with one of these are refused, since nothing is
            added there.
        batch_size: prompts of equal length per forward pass.

    Raises:
        ValueError: if there are no prompts, one is empty, longer than the model's context, or ends with a special token, no latent or not even the mean
            activation differs, a code has no direction of its own, or what fires at a token depends on others.
    """
    dictionary = _checked(sae)
    k, by = _check_choice(k, by)
    special = special_token_ids(model, exclude_special_tokens)
    named = {"with_demonstrations": with_demonstrations, "without": without}
    sequences = {name: _tokens(model, prompts, name, special) for name, prompts in named.items()}
    (one, written_one), (other, written_other) = (
        _read(model, dictionary, tokens, batch_size) for tokens in sequences.values()
    )
    return TaskVector.of_activations(sae, one, other, k, by, (written_one, written_other))


def _checked(sae: SAE[Any]) -> Dictionary:
    """An SAE of which each latent has a row and each token a code of its own."""
    dictionary = Dictionary(sae)
    check_has_rows(dictionary)
    check_codes_alone(dictionary, "take another SAE")
    return dictionary


def _check_choice(k: Any, by: Any) -> tuple[int | None, By]:
    return check("k", k, whole(1, or_none=True)), check("by", by, OneOf(("rate", "mean")))


def _chosen(reading: _Reading, k: int | None, by: By) -> TaskVector:
    """The latents that differ most, as a vector."""
    k, by = _check_choice(k, by)
    dictionary, code_with, code_without, means = reading
    fires, fires_without = code_with != 0, code_without != 0
    if by == "rate":
        difference = _difference(fires, fires_without)
        weights = difference.sign() * _units(reading)
    else:
        difference = _difference(code_with, code_without)
        weights = difference / (len(code_with) * len(code_without))
    order = difference.abs().argsort(descending=True, stable=True)
    order = order[difference[order] != 0][:k].tolist()
    if not order:
        raise ValueError(
            "No latent fires differently with demonstrations and without: are the prompts of both the same?"
        )
    return TaskVector(
        tuple(
            TaskLatent(j, _rate(fires[:, j]), _rate(fires_without[:, j]), weights[j].item())
            for j in order
        ),
        _scaled_sum(dictionary, order, weights[order].float(), means.norm().item()),
        means,
        by,
        len(code_with),
        len(code_without),
        reading,
    )


def _difference(one: Tensor, other: Tensor) -> Float[Tensor, " n_latents"]:
    """n m × the difference of the means of n and m rows, which of counts is exact: equal ones are equal."""
    return one.double().sum(0) * len(other) - other.double().sum(0) * len(one)


def _units(reading: _Reading) -> Float[Tensor, " n_latents"]:
    """What each latent is on average where it fires; 0 of one that never does."""
    both = torch.cat([reading.code_with, reading.code_without])
    return both.sum(0) / (both != 0).sum(0).clamp(min=1)


def _tokens(
    model: Any, prompts: Any, name: str, special: Sequence[int]
) -> list[Int[Tensor, " length"]]:
    """Token ids of prompts, checked."""
    if isinstance(prompts, str) or not isinstance(prompts, (Sequence, Tensor)) or not len(prompts):
        raise ValueError(f"{name} must be a list of prompts; got {shown(prompts)}.")
    sequences: list[Any] = list(prompts)
    checked = check_given_ids
    if isinstance(sequences[0], str):
        check_tokenizer(model)
        sequences, checked = list(tokenize(model, sequences)), check_token_ids
    for i, tokens in enumerate(sequences):
        if not isinstance(tokens, Tensor):
            raise ValueError(
                f"{name} must be texts, or token ids of one prompt each; got {shown(tokens)} as number {i}."
            )
        sequences[i] = checked(model, tokens, f"Prompt {i} of {name}")
        if tokens[-1].item() in special:
            raise ValueError(
                f"Prompt {i} of {name} ends with the special token {tokens[-1].item()}, which is left as it is. Give "
                "prompts that end where the answer begins, or exclude_special_tokens=False."
            )
    return sequences


def _read(
    model: Any, dictionary: Dictionary, sequences: Sequence[Tensor], batch_size: int
) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n d_out"]]:
    """Activations at the last token of each prompt, where the SAE reads and where it writes."""
    last = torch.tensor([[len(tokens) - 1] for tokens in sequences])
    hooks = list(dict.fromkeys(dictionary.hook_names))
    states = hidden_states(model, hooks, sequences, last, batch_size)
    widths = dictionary.d_in, dictionary.d_out
    of = zip(dictionary.hook_names, dictionary.head_indices, widths, strict=True)
    read, written = (_of_head(states[hook][:, 0], head, width) for hook, head, width in of)
    return read, written


def _code(dictionary: Dictionary, acts: Tensor) -> Float[Tensor, "n n_latents"]:
    """The code of activations, float64, on the CPU."""
    code = dictionary.encode(acts.to(dictionary.device, dictionary.dtype)).cpu().double()
    # Whatever a code is scaled by, it is what the token has: see latent_rows.
    return (code != 0).double() if dictionary.kind.is_one_hot else code


def _of_head(states: Tensor, head: int | None, width: int) -> Tensor:
    """Of heads side by side, one."""
    return states if head is None else states.unflatten(1, (-1, width))[:, head]


def _scaled_sum(
    dictionary: Dictionary, latents: Sequence[int], weights: Tensor, norm: float
) -> Float[Tensor, " d_out"]:
    """Σ weight × decoder row, of a norm."""
    total = torch.zeros(dictionary.d_out)
    # So many at a time, each of which is decoded by itself.
    for part in torch.arange(len(latents)).split(256):
        rows = latent_rows(dictionary, [latents[i] for i in part.tolist()])
        total += weights[part] @ rows.float().cpu()
    if not total.norm() > 0:
        raise ValueError(
            f"The decoder rows of latents {shown(list(latents))} add up to nothing, which has no direction."
        )
    return total / total.norm() * norm


def _rate(fired: Bool[Tensor, " n"]) -> Interval:
    interval = wilson(int(fired.sum()), len(fired))
    assert interval is not None
    return interval


def _signs(n: int, generator: torch.Generator) -> Float[Tensor, " n"]:
    return 2.0 * torch.randint(2, (n,), generator=generator) - 1


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(check("seed", seed, whole(0)))
