"""Does steering with one latent say what the latent is about? Beside directions of equal norm, on SmolLM2.

    python benchmarks/steering.py --work DIR --output steering.json
    python benchmarks/steering.py --sae FOLDER --output steering.json   # somebody's own, of SmolLM2
    python benchmarks/steering.py --quick                               # minutes: few steps, two latents

An autoencoder is trained (BAE after block 15, for reading: 40 bits a token) or given. Held-out text is read once, and
latents are given the intruder test with the offline judge. Of those that pass it and are not for a single
token (their most frequent token makes up at most half of their examples), 20 are drawn by ``--seed``.

A latent's *top tokens* are the ten of the highest lift among those at which it fires in held-out text, three times at
least; nothing is taken from its decoder row. Each prompt is the beginning of another held-out text, and the model goes
on from it, sampling with the same seed in every condition: as it is, steered by the latent (strength ×
decoder row at every token but BOS, ``bae_lens.steer``), and with as controls

* a random direction of equal norm;
* another latent of those drawn from, scaled to equal norm.

**Equal fluency.** Strengths go up (1 is on as the latent usually is) for as long as the perplexity of what was written, under
the model that is not steered, is at most 10 % above that of what it writes by itself. The last of these
strengths counts, for all three; a latent without one does not reach the target, and is counted among the 20. Nothing is
chosen by the rate of its tokens. The controls' perplexity is printed: theirs may be lower.

What counts is the rate of the top tokens in what is written, over the random direction's. It is taken as the probability that
the steered model gives to them at each place of its text, whose mean is that of the count and which does not depend on
the luck of a few draws; the counts stand beside it. The target: 3 or more for at least half of the latents. It may be read in a
second way, which is printed too: what the latent adds to the rate of the model as it is, over what the random direction adds
or takes away. Both have another latent of equal norm beside them, in the latent's place.

Of what ``--output`` holds nothing is measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from concept_ablation import Cells
from cross_layer import table
from sae_lens import SAE
from torch import Tensor
from writing import add_write_argument, written

from bae_lens import add_direction, load_config, steer
from bae_lens import offline as demo
from bae_lens.dictionaries import Dictionary
from bae_lens.examples import ExampleSettings, LatentRecords, collect_examples
from bae_lens.fingerprint import weights_sha256
from bae_lens.scoring import IntruderResult, IntruderSettings, intruder_test
from bae_lens.stats import shown, wilson
from bae_lens.steering.rows import latent_rows
from bae_lens.steering.strengths import unit_of

RANDOM, OTHER = "random direction", "another latent"
# Of the rate over a random direction's, for so many of the latents.
TARGET, SHARE = 3.0, 0.5


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        seed: of the latents that are drawn, of directions and of sampling.
        n_latents: drawn.
        n_tested: given the intruder test.
        n_trials: of the test, of each latent.
        threshold: accuracy from which a latent passes it.
        max_purity: share of a latent's examples that its most frequent token may have.
        n_top: top tokens of a latent.
        n_read: tokens of held-out text that are read for examples.
        n_prompts: texts that the model goes on from.
        n_prompt: tokens of each, beside BOS.
        n_new: tokens that it writes.
        strengths: ascending.
        fluency: how much higher the perplexity may be, as a share.
    """

    seed: int = 0
    n_latents: int = 20
    n_tested: int = 150
    n_trials: int = 20
    threshold: float = 0.8
    max_purity: float = 0.5
    n_top: int = 10
    n_read: int = 150_000
    n_prompts: int = 64
    n_prompt: int = 8
    n_new: int = 32
    strengths: tuple[float, ...] = (0.25, 0.5, 1, 2, 4, 8)
    fluency: float = 0.1


QUICK: dict[str, Any] = {
    "n_latents": 2,
    "n_tested": 20,
    "n_trials": 4,
    "threshold": 0.2,
    "max_purity": 1.0,
    "n_read": 8000,
    "n_prompts": 4,
    "n_new": 4,
    "strengths": (1, 2),
}
TRAINING: dict[str, Any] = {"sae.d_sae": 1152, "sae.target_entropy": 40.0, "lr": 4e-3}
QUICK_TRAINING: dict[str, Any] = {
    "sae.d_sae": 256,
    "replay_tokens": 8192,
    "training_tokens": 30 * 1024,
    "lr_decay_steps": 10,
}


def train(folder: Path, quick: bool, device: str) -> Path:
    """An autoencoder for reading, from the folder if it is there."""
    path = folder / ("steering-quick" if quick else "steering")
    if not path.exists():
        changes = TRAINING | (QUICK_TRAINING if quick else {})
        load_config("smollm2-bae", changes | {"output_path": str(path), "device": device}).run()
    return path


# Which latents


def passing(result: IntruderResult, max_purity: float) -> list[int]:
    """Latents that pass the intruder test and are not for a single token."""
    scores = {t.latent: t.accuracy() for t in result.latents if t.purity <= max_purity}
    return sorted(
        latent
        for latent, score in scores.items()
        if score is not None and score.mean >= result.settings.threshold
    )


def top_tokens(records: LatentRecords, latent: int, n: int) -> list[int]:
    """The tokens of the highest lift at which it fires in held-out text."""
    counts = records[latent].lift_tokens or ()
    return [count.token for count in counts[:n] if count.token is not None]


def drawn(candidates: Sequence[int], plan: Plan) -> list[int]:
    """As many as are wanted, or there are."""
    rng = np.random.default_rng(plan.seed)
    n = min(plan.n_latents, len(candidates))
    return sorted(rng.choice(np.array(candidates, dtype=np.int64), n, replace=False).tolist())


# What the model writes


def read_prompts(model: Any, texts: Sequence[str], plan: Plan) -> Tensor:
    """Beginnings of the last of the texts that are long enough, with BOS: ``[n_prompts, 1 + n_prompt]``.

    Examples are from the first texts.
    """
    found = []
    for text in reversed(texts):
        tokens = model.to_tokens(text, prepend_bos=True)[0]
        if len(tokens) > plan.n_prompt:
            found.append(tokens[: plan.n_prompt + 1])
        if len(found) == plan.n_prompts:
            return torch.stack(found)
    raise SystemExit(f"{plan.n_prompts} prompts of {plan.n_prompt} tokens need more text.")


@torch.no_grad()
def goes_on(
    model: Any, prompts: Tensor, plan: Plan, context: AbstractContextManager[Any]
) -> Tensor:
    """What the model writes within a context, by the same random numbers each time: ``[n_prompts, n_new]``."""
    torch.manual_seed(plan.seed)
    with context:
        written_ = model.generate(
            prompts,
            max_new_tokens=plan.n_new,
            do_sample=True,
            temperature=1.0,
            stop_at_eos=False,
            return_type="tokens",
            verbose=False,
        )
    return written_[:, prompts.shape[1] :].clone()


def log_probs(model: Any, prompts: Tensor, new: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Log-probabilities ``[batch, n_new, d_vocab]`` at the places of what was written, and the tokens there."""
    start = prompts.shape[1]
    for part in torch.cat([prompts, new], 1).split(16):
        yield model(part[:, :-1]).float().log_softmax(-1)[:, start - 1 :], part[:, start:]


@torch.no_grad()
def perplexity(model: Any, prompts: Tensor, new: Tensor) -> float:
    """Of what was written after the prompts, under the model as it is."""
    total = 0.0
    for logp, tokens in log_probs(model, prompts, new):
        total -= logp.gather(-1, tokens[..., None]).double().sum().item()
    return math.exp(total / new.numel())


@torch.no_grad()
def expected_rate(model: Any, prompts: Tensor, new: Tensor, tokens: Tensor) -> float:
    """The mean probability of any of some tokens at the places of what was written."""
    total = sum(
        logp[..., tokens].exp().double().sum().item() for logp, _ in log_probs(model, prompts, new)
    )
    return total / new.numel()


def measure(
    model: Any,
    sae: SAE[Any],
    latent: int,
    top: Sequence[int],
    others: Sequence[int],
    usual: LatentRecords | None,
    prompts: Tensor,
    clean: dict[str, Any],
    plan: Plan,
) -> dict[str, Any]:
    """The strength that is as fluent as none, and how often the top tokens are written with it.

    Args:
        model: the language model.
        sae: its autoencoder.
        latent: to steer with.
        top: its top tokens.
        others: latents that the control is drawn from.
        usual: what latents usually are; None where the architecture knows.
        prompts: to go on from.
        clean: ``written`` and ``perplexity`` of the model as it is.
        plan: of the benchmark.
    """
    tokens = torch.tensor(top, device=prompts.device)

    def within(context: Callable[[], AbstractContextManager[Any]]) -> dict[str, Any]:
        new = goes_on(model, prompts, plan, context())
        with context():
            rate = expected_rate(model, prompts, new, tokens)
        count = int(torch.isin(new, tokens).sum())
        return {"rate": rate, "count": count, "perplexity": perplexity(model, prompts, new)}

    cell: dict[str, Any] = {"top": list(top), "strength": None, "tried": {}}
    new = clean["written"]
    cell["clean"] = {
        "rate": expected_rate(model, prompts, new, tokens),
        "count": int(torch.isin(new, tokens).sum()),
    }
    limit = clean["perplexity"] * (1 + plan.fluency)
    for strength in plan.strengths:
        steered = within(partial(steer, model, sae, {latent: strength}, usual=usual))
        cell["tried"][str(strength)] = steered
        if steered["perplexity"] > limit:
            break
        cell["strength"], cell["latent"] = strength, steered
    if cell["strength"] is None:
        return cell
    dictionary = Dictionary(sae)
    row = latent_rows(dictionary, [latent])[0] * unit_of(dictionary, [latent], usual)[0]
    norm = cell["strength"] * row.norm()
    rng = np.random.default_rng([plan.seed, latent])
    random = torch.from_numpy(rng.standard_normal(len(row))).to(row)
    another = int(rng.choice([other for other in others if other != latent]))
    other_row = latent_rows(dictionary, [another])[0]
    for name, vector in ((RANDOM, random), (OTHER, other_row)):
        cell[name] = within(partial(add_direction, model, sae, vector / vector.norm() * norm))
    cell["norm"], cell["another"] = norm.item(), another
    return cell


# The report


def ratio(cell: dict[str, Any], over: str, of: str = "latent") -> float:
    """Of the rates of the top tokens; 0 where no strength was fluent."""
    return cell[of]["rate"] / cell[over]["rate"] if cell["strength"] is not None else 0.0


def added(cell: dict[str, Any], of: str) -> float:
    """What is added to the rate of the model as it is, over what the random direction changes of it."""
    change = cell[RANDOM]["rate"] - cell["clean"]["rate"]
    return (cell[of]["rate"] - cell["clean"]["rate"]) / max(abs(change), 1e-12)


MEASURES: dict[str, Callable[[dict[str, Any], str], float]] = {
    "rate over the random direction's": lambda cell, of: ratio(cell, RANDOM, of),
    "rate over that of the model as it is": lambda cell, of: ratio(cell, "clean", of),
    "what is added to the rate, over the random direction's change": added,
}


def report(
    cells: dict[str, Any], latents: Sequence[int], plan: Plan, strings: dict[int, str]
) -> None:
    """A table of the latents, and the target."""
    of = cells["clean"]
    print(
        f"\n{of['n_passing']} of {of['n_tested']} latents tested pass the intruder test and are not for one "
        f"token; {len(latents)} drawn with seed {plan.seed}. The model writes {plan.n_prompts} × {plan.n_new} "
        f"tokens, by itself at perplexity {of['perplexity']:.1f}. Rates of the top tokens are per 1,000 tokens, with counts in brackets.\n"
    )
    lines = []
    for latent in latents:
        cell = cells[f"latent/{latent}"]
        words = " ".join(f"`{strings[t].strip() or '␣'}`" for t in cell["top"][:4])
        if cell["strength"] is None:
            lines.append([f"{latent}: {words}", "none", *["–"] * 9])
            continue
        counts = [
            f"{1000 * cell[name]['rate']:.1f} ({cell[name]['count']})"
            for name in ("latent", RANDOM, OTHER, "clean")
        ]
        fluent = [f"{cell[name]['perplexity']:.1f}" for name in ("latent", RANDOM, OTHER)]
        ratios = [f"{ratio(cell, RANDOM):.1f}", f"{ratio(cell, 'clean'):.1f}"]
        lines.append([f"{latent}: {words}", f"{cell['strength']:g}", *counts, *fluent, *ratios])
    header = ["latent: its tokens", "strength", "its rate", RANDOM, OTHER, "not steered"]
    header += ["perplexity", f"{RANDOM}'s", f"{OTHER}'s", "× random", "× not steered"]
    table(header, lines)
    found = [cells[f"latent/{latent}"] for latent in latents]
    lines = []
    for what, of_cell in MEASURES.items():
        for name in ("latent", OTHER):
            ratios = [
                of_cell(cell, name) if cell["strength"] is not None else 0.0 for cell in found
            ]
            n = sum(r >= TARGET for r in ratios)
            interval = shown(wilson(n, len(ratios)), 2)
            who = "the latent" if name == "latent" else f"control: {name}"
            lines.append(
                [
                    f"{what}, {who}",
                    f"{statistics.median(ratios):.1f}",
                    f"{n} of {len(ratios)}",
                    interval,
                ]
            )
    table(["of the top tokens", "median", f"{TARGET:g} or more", "share, 95 %"], lines)
    reached = sum(ratio(cell, RANDOM) >= TARGET for cell in found)
    verdict = "reached" if reached >= SHARE * len(found) else "missed"
    print(
        f"The target, {TARGET:g} × a random direction of equal norm for at least half of the latents, is "
        f"{verdict}: {reached} of {len(found)}."
    )


def run(model: Any, sae: SAE[Any], texts: Sequence[str], plan: Plan, cells: Cells) -> None:
    """All that is not in the file yet, and the report."""
    records_settings = ExampleSettings(
        n_tokens=plan.n_read, n_neighbors=0, n_strongest=1, n_random=20, seed=plan.seed
    )
    records: LatentRecords | None = None
    if "clean" not in cells.cells or not Dictionary(sae).kind.is_one_bit:
        # Of bits they are needed once, of other latents also for what these usually are.
        records = collect_examples(model, sae, list(texts), records_settings)
    prompts = read_prompts(model, texts, plan)
    new = goes_on(model, prompts, plan, nullcontext())
    if "clean" not in cells.cells:
        assert records is not None
        test = IntruderSettings(
            n_latents=plan.n_tested,
            n_trials=plan.n_trials,
            threshold=plan.threshold,
            n_seeds=1,
            seed=plan.seed,
        )
        result = intruder_test(records, settings=test)
        candidates = [
            latent
            for latent in passing(result, plan.max_purity)
            if top_tokens(records, latent, plan.n_top)
        ]
        if len(candidates) < 2:
            raise SystemExit(f"{len(candidates)} latents pass the intruder test: none to compare.")
        cells.add(
            "clean",
            {
                "perplexity": perplexity(model, prompts, new),
                "n_tested": len(result.latents),
                "n_passing": len(candidates),
                "tokens": {str(j): top_tokens(records, j, plan.n_top) for j in candidates},
            },
        )
    of = cells.cells["clean"]
    tokens = {int(latent): top for latent, top in of["tokens"].items()}
    latents = drawn(list(tokens), plan)
    clean = {"written": new, "perplexity": of["perplexity"]}
    usual = None if Dictionary(sae).kind.is_one_bit else records
    for latent in latents:
        if (key := f"latent/{latent}") not in cells.cells:
            own = (latent, tokens[latent], list(tokens), usual, prompts, clean, plan)
            cells.add(key, measure(model, sae, *own))
    strings = {t: model.to_string([t]) for latent in latents for t in tokens[latent]}
    report(cells.cells, latents, plan, strings)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few steps, two latents")
    parser.add_argument("--sae", type=Path, help="a saved SAE of SmolLM2; else one is trained")
    parser.add_argument("--work", type=Path, help="folder that keeps what is trained")
    parser.add_argument("--output", type=Path, help="JSON of what was measured, to go on from")
    parser.add_argument("--seed", type=int, default=Plan.seed, help="of all that is drawn")
    parser.add_argument("--latents", type=int, help=f"how many; default: {Plan.n_latents}")
    parser.add_argument("--prompts", type=int, help=f"how many; default: {Plan.n_prompts}")
    parser.add_argument("--read", type=int, help=f"tokens; default: {Plan.n_read:,}")
    parser.add_argument("--device", default="cpu")
    add_write_argument(parser)
    args = parser.parse_args()
    given = {"n_latents": args.latents, "n_prompts": args.prompts, "n_read": args.read}
    plan = replace(Plan(**(QUICK if args.quick else {})), seed=args.seed)
    plan = replace(plan, **{name: n for name, n in given.items() if n is not None})
    with written("steering", args), tempfile.TemporaryDirectory() as temporary:
        folder = args.work or Path(temporary)
        path = args.sae or train(folder, args.quick, args.device)
        sae = SAE.load_from_disk(str(path), device=args.device).eval()
        model = demo.load_model(demo.MODEL_NAME, device=args.device)
        texts: Any = demo.load_dataset(demo.DATASET_NAME, split="test")
        settings = json.loads(json.dumps(asdict(plan))) | {"weights": weights_sha256(sae)}
        run(model, sae, list(texts["text"]), plan, Cells(args.output, settings))


if __name__ == "__main__":
    main()
