"""Do latents whose firing demonstrations change carry the task? And what is lost where a code replaces the activation?

    python benchmarks/task_vectors.py --work DIR --output task_vectors.json    # 40 minutes beside other work
    python benchmarks/task_vectors.py --quick                                  # minutes: few steps, two tasks

**Dictionaries.** After two blocks of SmolLM2 a BAE of levels with feedback (``smollm2-bae-levels``: seven levels, two steps) for reading,
40 bits a token, SAELens' BatchTopK of about as many, and a BAE of 300 bits are trained on the same activations of movie reviews.

**Task vectors.** Tasks are word pairs (``task_pairs.py``), asked as "Q: hot" / "A:". A third of the pairs makes the vector
(the last token of prompts with four demonstrations, and of the same queries without; ``bae_lens.task_vector``), a third chooses, and
the rest is scored: accuracy of the first token of the answer where the vector is added at the last token of prompts *without*
demonstrations. Every vector has the norm of the difference of means times a strength. For each row, each task and each seed by itself the
block and the strength are those of the best accuracy on the third that chooses (then the higher mean log-probability of the answer),
so that controls are chosen as what they control. Rows:

* nothing, and four demonstrations, for the floor and the ceiling;
* the difference of means, by itself and of another task (the next in the list);
* k latents by firing rate (± decoder row × what the latent is where it fires), or by mean activation;
* as many other latents of the dictionary, with random signs; the same latents with random signs; a random direction of equal norm, and
  one with the same cosine to the difference of means as the vector of k latents.

A task on which four demonstrations are not clearly better than none (the intervals overlap) has no signal and is left out of the totals.

**Replacement.** JS and KL of the next token after held-out reviews when the activation of the last token, or of all, becomes the
reconstruction, the mean or zeros (``bae_lens.evals.replacement_divergences``).

Of what ``--output`` holds nothing is measured again.
"""

from __future__ import annotations

import argparse
import itertools
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from common import hook_name
from concept_ablation import Cells
from cross_layer import table
from sae_lens import SAE
from task_pairs import TASKS
from torch import Tensor
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache
from untangling_trials import Task as Activations
from untangling_trials import Trial, language_model, lm_task, load, prepare, score_code, train
from workers import Workers
from writing import add_write_argument, written

from bae_lens import offline as demo
from bae_lens.entropy.hidden_states import hidden_states, tokenize
from bae_lens.evals import replacement_divergences
from bae_lens.stats import Interval, mean_interval, paired_bootstrap, shown, wilson
from bae_lens.steering import TaskVector

Pairs = Sequence[tuple[str, str]]
# It begins with a newline: in front of some first words SmolLM2 would park its attention there.
QUESTION, ANSWER = "\nQ: {}\nA:", " {}"
BAE, PEER, MORE = "BAE", "BatchTopK", "BAE of more bits"
# What is trained, at which of the plan's budgets, and at the rate that ``feature_untangling.py`` has chosen for most budgets.
DICTIONARIES: dict[str, tuple[str, int, float]] = {
    BAE: ("bae_levels_feedback", 0, 8e-3),
    PEER: ("batchtopk", 0, 2e-3),
    MORE: ("bae_levels_feedback", 1, 8e-3),
}
MEANS, OTHER_TASK, RANDOM = "difference of means", "that of another task", "random direction"
NOTHING, SHOTS = "nothing", "four demonstrations"


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        layers: blocks after which vectors are added.
        tasks: by name.
        steps: of training, of 512 tokens each.
        n_train: tokens that training replays.
        n_test: held-out tokens that bits and EV are of.
        bits: budgets of the BAEs.
        k: of BatchTopK, for about as many bits as the first.
        n_shots: demonstrations.
        n_prompts: of each kind that a vector is made of.
        counts: latents of a vector; None: all that differ.
        control: count of the latents that controls are of.
        strengths: times the difference of means' norm.
        seeds: of each control.
        n_texts: that are replaced.
        n_tokens: of each, BOS among them.
    """

    layers: tuple[int, ...] = (20, 22)
    tasks: tuple[str, ...] = tuple(TASKS)
    steps: int = 800
    n_train: int = 150_000
    n_test: int = 24_576
    bits: tuple[float, ...] = (40.0, 300.0)
    k: int = 6
    n_shots: int = 4
    n_prompts: int = 48
    counts: tuple[int | None, ...] = (5, 20, None)
    control: int = 20
    strengths: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0, 3.0)
    seeds: tuple[int, ...] = (0, 1, 2)
    n_texts: int = 100
    n_tokens: int = 40


QUICK: dict[str, Any] = {
    "layers": (20,),
    "tasks": ("antonym", "plural"),
    "steps": 20,
    "n_train": 8192,
    "n_test": 4096,
    "n_prompts": 8,
    "strengths": (0.5, 1.0),
    "seeds": (0,),
    "n_texts": 8,
    "n_tokens": 24,
}


# Dictionaries


def activations_of(layer: int, plan: Plan) -> Activations:
    """What is read after a block, and how dictionaries of it are trained."""
    return lm_task(
        layer,
        steps=plan.steps,
        n_train=plan.n_train,
        n_validation=4096,
        n_test=plan.n_test,
        l0s=(plan.k,) * len(plan.bits),
        entropies=plan.bits,
    )


def fit(name: str, layer: int, plan: Plan, folder: Path) -> dict[str, Any]:
    """Train a dictionary and say what it costs and gives; what a worker process does."""
    torch.set_num_threads(1)
    task, path = activations_of(layer, plan), folder / f"{name}-{layer}"
    arch, level, lr = DICTIONARIES[name]
    trial = Trial(task.name, arch, level, lr, 0)
    splits = load(folder / task.filename)
    sae = train(trial, task, splits["train"], "cpu")
    sae.save_model(path)
    row = score_code(trial, task, sae, splits)
    # Of levels as they are, of magnitudes at 4 bits.
    [bits] = (point[1] for point in row.points if point[0] in (None, 4))
    return {
        "ev": row.explained_variance,
        "bits": bits,
        "l0": row.code["l0"],
        "dense": row.code["dense_share_10"],
        "dead": row.code["dead_share"],
    }


def load_sae(name: str, layer: int, folder: Path) -> SAE[Any]:
    return SAE.load_from_disk(str(folder / f"{name}-{layer}")).eval()


# Prompts


def prompt(query: str, demonstrations: Pairs = ()) -> str:
    shown_ = (QUESTION.format(word) + ANSWER.format(answer) for word, answer in demonstrations)
    return "".join(shown_) + QUESTION.format(query)


def split(model: Any, pairs: Pairs, seed: int = 0) -> tuple[Pairs, Pairs, Pairs]:
    """Pairs that make the vector, that choose, and that are scored: of queries of one token each, so that prompts
    are of one length."""
    alike = [pair for pair in pairs if len(first_tokens(model, [f" {pair[0]}"])[0]) == 1]
    random.Random(seed).shuffle(alike)
    third = len(alike) // 3
    return alike[:third], alike[third : 2 * third], alike[2 * third :]


def first_tokens(model: Any, texts: Sequence[str]) -> list[list[int]]:
    return [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def draw(pairs: Pairs, plan: Plan) -> tuple[list[str], list[str]]:
    """Prompts with demonstrations and the same queries without. A query is never among its demonstrations."""
    rng, many = random.Random(0), itertools.cycle(pairs)
    found = []
    for pair in itertools.islice(many, plan.n_prompts):
        others = rng.sample([other for other in pairs if other != pair], plan.n_shots)
        found.append((prompt(pair[0], others), prompt(pair[0])))
    return [with_ for with_, _ in found], [without for _, without in found]


class Queries:
    """Queries without demonstrations, read once up to their last token, whose activation after a block is changed.

    It is what ``add_direction(…, position=-1)`` does, at a fraction of the time: earlier tokens do not see the last one.
    """

    @torch.no_grad()
    def __init__(self, model: Any, pairs: Pairs, layers: Sequence[int]) -> None:
        self.model = model
        tokens = torch.cat([model.to_tokens(prompt(query)) for query, _ in pairs])
        answers = first_tokens(model, [ANSWER.format(answer) for _, answer in pairs])
        self.answers = torch.tensor([ids[0] for ids in answers])
        names = [hook_name(layer) for layer in layers]
        _, cache = model.run_with_cache(tokens, names_filter=names)
        self.last = {layer: cache[name][:, -1:] for layer, name in zip(layers, names, strict=True)}
        past = TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", len(tokens))
        model(tokens[:, :-1], past_kv_cache=past)
        self._pasts = {1: past}

    @torch.no_grad()
    def scores(self, layer: int, *vectors: Tensor | float) -> list[tuple[list[bool], list[float]]]:
        """With each vector added: whether each query is answered, and the log-probability of its answer."""
        last = torch.cat([self.last[layer] + vector for vector in vectors])
        past = self._past(len(vectors))
        logits = self.model(last, start_at_layer=layer + 1, past_kv_cache=past)[:, -1]
        found = []
        for of in logits.split(len(self.answers)):
            log_probs = of.log_softmax(-1).gather(1, self.answers[:, None])[:, 0]
            found.append(((of.argmax(-1) == self.answers).tolist(), log_probs.tolist()))
        return found

    def _past(self, n: int) -> TransformerLensKeyValueCache:
        """Keys and values of the earlier tokens, so many times over, which no pass changes."""
        if n not in self._pasts:
            self._pasts[n] = past = deepcopy(self._pasts[1])
            past.previous_attention_mask = past.previous_attention_mask.repeat(n, 1)
            for entry in past.entries:
                entry.past_keys = entry.past_keys.repeat(n, 1, 1, 1)
                entry.past_values = entry.past_values.repeat(n, 1, 1, 1)
        self._pasts[n].freeze()
        return self._pasts[n]


@torch.no_grad()
def in_context(model: Any, pairs: Pairs, shown_: Pairs, plan: Plan) -> list[bool]:
    """Whether each query is answered after demonstrations drawn for it."""
    rng, found = random.Random(1), []
    for query, answer in pairs:
        tokens = model.to_tokens(prompt(query, rng.sample(list(shown_), plan.n_shots)))
        [ids] = first_tokens(model, [ANSWER.format(answer)])
        found.append(int(model(tokens)[0, -1].argmax()) == ids[0])
    return found


# Vectors


def latents_name(name: str, k: int | None, by: str = "rate") -> str:
    return f"{name}: {'all' if k is None else k} latents by {by}"


def control_names(name: str, plan: Plan) -> dict[str, str]:
    """Titles of the controls of a dictionary's latents."""
    k = plan.control
    return {
        "others": f"{name}: {k} other latents, random signs",
        "signs": f"{name}: the {k} latents, random signs",
        "cosine": f"{name}: random direction with the {k} latents' cosine",
    }


def vectors_of(
    name: str, vector: TaskVector, plan: Plan
) -> Iterator[tuple[str, list[Tensor], float, int]]:
    """Title, a vector a seed, cosine to the difference of means, number of latents."""
    for k in plan.counts:
        own = vector.choose(k)
        yield latents_name(name, k), [own.direction], own.cosine, len(own.latents)
    for k in (plan.control, None):
        own = vector.choose(k, by="mean")
        yield latents_name(name, k, "mean"), [own.direction], own.cosine, len(own.latents)
    own, titles = vector.choose(plan.control), control_names(name, plan)

    def cosine(made: Sequence[Tensor]) -> float:
        means = own.difference_of_means
        found = [torch.cosine_similarity(direction, means, dim=0).item() for direction in made]
        return sum(found) / len(found)

    makes: dict[str, Callable[[int], Tensor]] = {
        "others": own.random_latents,
        "signs": own.random_signs,
        "cosine": lambda seed: own.random_direction(seed, equal_cosine=True),
    }
    for kind, make in makes.items():
        made = [make(seed) for seed in plan.seeds]
        yield titles[kind], made, cosine(made), len(own.latents)


def row_of(
    by_layer: Mapping[int, tuple[list[Tensor], float, int]],
    choosing: Queries,
    scoring: Queries,
    plan: Plan,
) -> dict[str, Any]:
    """Which queries are answered with vectors, a seed each, at the block and strength that other queries choose."""
    n_seeds = max(len(made) for made, *_ in by_layer.values())
    row: dict[str, Any] = {"answered": [], "layers": [], "strengths": [], "validation": []}
    for seed in range(n_seeds):
        tried = {}
        for layer, (made, *_) in by_layer.items():
            found = choosing.scores(layer, *(s * made[seed] for s in plan.strengths))
            for strength, (answered, log_probs) in zip(plan.strengths, found, strict=True):
                tried[layer, strength] = sum(answered) / len(answered), sum(log_probs)
        layer, strength = max(tried, key=tried.__getitem__)
        [(answered, _)] = scoring.scores(layer, strength * by_layer[layer][0][seed])
        row["answered"].append(answered)
        row["layers"].append(layer)
        row["strengths"].append(strength)
        row["validation"].append(tried[layer, strength][0])
    row["cosine"], row["n_latents"] = by_layer[row["layers"][0]][1:]
    return row


@torch.no_grad()
def read(model: Any, task: str, plan: Plan) -> dict[int, tuple[Tensor, Tensor]]:
    """Activations of the last tokens of a task's prompts, with demonstrations and without, after each block."""
    hooks = {layer: hook_name(layer) for layer in plan.layers}
    found = []
    for prompts in draw(split(model, TASKS[task])[0], plan):
        tokens = tokenize(model, prompts)
        last = torch.tensor([[len(one) - 1] for one in tokens])
        found.append(hidden_states(model, list(hooks.values()), tokens, last))
    return {layer: (found[0][hook][:, 0], found[1][hook][:, 0]) for layer, hook in hooks.items()}


def measure(task: str, plan: Plan, folder: Path) -> dict[str, Any]:
    """A task: accuracies of every row, each at the block and strength that its other queries choose; what a worker
    process does."""
    torch.set_num_threads(1)
    model = language_model("cpu")
    makes, chooses, scored = split(model, TASKS[task])
    next_task = plan.tasks[(plan.tasks.index(task) + 1) % len(plan.tasks)]
    own, others = read(model, task, plan), read(model, next_task, plan)
    vectors: dict[str, dict[int, tuple[list[Tensor], float, int]]] = {}
    for layer in plan.layers:
        of = {
            name: TaskVector.of_activations(load_sae(name, layer, folder), *own[layer])
            for name in DICTIONARIES
        }
        for name, vector in of.items():
            for title, *what in vectors_of(name, vector, plan):
                vectors.setdefault(title, {})[layer] = tuple(what)  # pyright: ignore[reportArgumentType]
        means = of[BAE].difference_of_means
        other = others[layer][0].mean(0) - others[layer][1].mean(0)
        other = other / other.norm() * means.norm()
        cosine = torch.cosine_similarity(other, means, dim=0).item()
        vectors.setdefault(MEANS, {})[layer] = [means], 1.0, 0
        vectors.setdefault(OTHER_TASK, {})[layer] = [other], cosine, 0
        made = [of[BAE].random_direction(seed) for seed in plan.seeds]
        vectors.setdefault(RANDOM, {})[layer] = made, 0.0, 0

    choosing, scoring = (Queries(model, pairs, plan.layers) for pairs in (chooses, scored))
    cell: dict[str, Any] = {
        "n": len(scored),
        NOTHING: [scoring.scores(plan.layers[0], 0.0)[0][0]],
        SHOTS: [in_context(model, scored, makes, plan)],
        "rows": {},
    }
    for title, by_layer in vectors.items():
        cell["rows"][title] = row_of(by_layer, choosing, scoring, plan)
    return cell


def replaced(name: str, layer: int, plan: Plan, folder: Path) -> dict[str, Any]:
    """Divergences under replacement; what a worker process does."""
    torch.set_num_threads(1)
    texts: Any = demo.load_dataset(demo.DATASET_NAME, split="test")
    texts = [text for text in texts["text"] if len(text) > 8 * plan.n_tokens][: plan.n_texts]
    sae = load_sae(name, layer, folder)
    found = replacement_divergences(language_model("cpu"), sae, texts, plan.n_tokens)
    return {
        f"{where}/{what}": {m: values.tolist() for m, values in of._asdict().items()}
        for (where, what), of in found.values.items()
    }


# The report


def mean_of(answered: Sequence[Sequence[bool]]) -> Tensor:
    """Of each query, the share of seeds with which it is answered."""
    return torch.tensor(answered, dtype=torch.float64).mean(0)


def has_signal(cell: Mapping[str, Any]) -> bool:
    """Whether demonstrations are clearly better than none."""
    without, with_ = (wilson(sum(cell[name][0]), cell["n"]) for name in (NOTHING, SHOTS))
    assert without is not None
    assert with_ is not None
    return with_.low > without.high


def answers_of(cell: Mapping[str, Any], title: str) -> Tensor:
    answered = cell[title] if title in cell else cell["rows"][title]["answered"]
    return mean_of(answered)


def over(cells: Sequence[Mapping[str, Any]], title: str) -> Tensor | None:
    """Of the queries of all tasks; None where a task lacks the row."""
    if any(title not in cell and title not in cell["rows"] for cell in cells):
        return None
    return torch.cat([answers_of(cell, title) for cell in cells])


def with_sign(interval: Interval) -> str:
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*interval)


def report_vectors(cells: Mapping[str, Mapping[str, Any]], plan: Plan) -> None:
    """Accuracies by task and row, and the differences that the claim rests on."""
    signal = [task for task in plan.tasks if has_signal(cells[task])]
    without = [task for task in plan.tasks if task not in signal]
    some = [cells[task] for task in signal]
    numbers = ", ".join(f"{cells[task]['n']} ({task})" for task in plan.tasks)
    print("\n## Task vectors\n")
    print(
        f"Accuracy on queries of a third of the pairs, of one token each: {numbers}; controls: mean of "
        f"{len(plan.seeds)} seeds. Tasks without signal: {', '.join(without) or 'none'}. latents: so many as differ, k at most, and cos: to the "
        "difference of means, both means over tasks at the block chosen (of controls, of their first seed). Blocks and strengths are those chosen, most frequent first.\n"
    )
    if not some:
        print("No task has a signal.")
        return
    titles = [NOTHING, SHOTS, *dict.fromkeys(t for cell in some for t in cell["rows"])]
    lines = []
    for title in titles:
        pooled = over(some, title)
        if pooled is None:
            continue
        interval = mean_interval(pooled.tolist())
        accuracies = [f"{answers_of(cell, title).mean():.2f}" for cell in some]
        rows = [cell["rows"][title] for cell in some if title in cell["rows"]]
        n = f"{sum(r['n_latents'] for r in rows) / len(rows):.0f}" if rows else "0"
        cosine = f"{sum(r['cosine'] for r in rows) / len(rows):.2f}" if rows else "–"
        lines.append(
            [
                title,
                *accuracies,
                shown(interval, 2),
                n if n != "0" else "–",
                cosine,
                often(itertools.chain(*(r["layers"] for r in rows))),
                often(itertools.chain(*(r["strengths"] for r in rows))),
            ]
        )
    table(["added", *signal, "all, 95 %", "latents", "cos", "after block", "strength"], lines)

    lines = []
    for name in DICTIONARIES:
        own = latents_name(name, plan.control)
        for other in [
            NOTHING,
            *control_names(name, plan).values(),
            RANDOM,
            OTHER_TASK,
            MEANS,
            latents_name(name, None),
            latents_name(name, plan.control, "mean"),
            *([latents_name(PEER, plan.control)] if name == BAE else []),
            *([latents_name(BAE, plan.control)] if name == MORE else []),
        ]:
            one, less = over(some, own), over(some, other)
            if one is not None and less is not None:
                lines.append([own, other, with_sign(paired_bootstrap(one - less))])
    print(
        "Differences of accuracy over all queries, paired; 95 % intervals over queries, which other tasks, pairs of one task or trainings "
        "would widen.\n"
    )
    table(["accuracy of", "less that of", "difference"], lines)


def often(values: Iterator[Any]) -> str:
    """The two most frequent values."""
    counts: dict[Any, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    top = sorted(counts, key=lambda value: -counts[value])[:2]
    return ", ".join(f"{value:g}" for value in top) or "–"


def report_replacement(cells: Mapping[str, Any], plan: Plan) -> None:
    """Divergences, with those of mean and zeros once for each block."""
    print("## Replacement\n")
    print(
        f"Next token after {plan.n_texts} held-out reviews, their first {plan.n_tokens} tokens; nats, 95 % intervals over texts; "
        "JS is at most 0.693.\n"
    )
    lines = []
    for layer in plan.layers:
        for where in ("last", "all"):
            found = {name: cells[f"replaced/{name}/{layer}"] for name in DICTIONARIES}
            rows = {name: found[name][f"{where}/reconstruction"] for name in found}
            rows |= {what: found[BAE][f"{where}/{what}"] for what in ("mean", "zero")}
            for name, values in rows.items():
                lines.append(
                    [
                        f"{layer}",
                        where,
                        name,
                        *(shown(mean_interval(values[m])) for m in ("js", "kl")),
                    ]
                )
            difference = torch.tensor(rows[BAE]["js"]) - torch.tensor(rows[PEER]["js"])
            interval = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*paired_bootstrap(difference))
            lines.append([f"{layer}", where, f"{BAE} less {PEER}", interval, "–"])
    table(["after block", "tokens", "replaced by", "JS", "KL"], lines)


def report(cells: Mapping[str, Any], plan: Plan) -> None:
    print("## Dictionaries\n")
    print(
        f"Of {plan.steps} steps of 512 tokens; 576 → 1,152 latents. Bits: which latents fire (Chow–Liu bound) and at which "
        "level, or magnitude quantized to 4 bits and entropy coded.\n"
    )
    lines = []
    for layer, name in itertools.product(plan.layers, DICTIONARIES):
        of = cells[f"trained/{name}/{layer}"]
        shares = [f"{of[x]:.1%}" for x in ("dense", "dead")]
        lines.append(
            [f"{layer}", name, f"{of['bits']:.0f}", f"{of['ev']:.3f}", f"{of['l0']:.1f}", *shares]
        )
    table(["after block", "dictionary", "bits", "EV", "L0", "> 10 %", "dead"], lines)
    report_vectors({task: cells[f"task/{task}"] for task in plan.tasks}, plan)
    report_replacement(cells, plan)


def run(plan: Plan, cells: Cells, folder: Path, jobs: int) -> None:
    """All that is not in the file yet, and the report."""
    wanted = list(itertools.product(DICTIONARIES, plan.layers))
    missing = {
        f"trained/{name}/{layer}": (fit, (name, layer, plan, folder))
        for name, layer in wanted
        if f"trained/{name}/{layer}" not in cells.cells or not (folder / f"{name}-{layer}").exists()
    }
    if missing:
        prepare([activations_of(layer, plan) for layer in plan.layers], folder, "cpu")
        with Workers(jobs) as workers:
            for key, cell in workers.run(missing):
                cells.add(key, cell)
    left = {f"task/{task}": (measure, (task, plan, folder)) for task in plan.tasks} | {
        f"replaced/{name}/{layer}": (replaced, (name, layer, plan, folder))
        for name, layer in wanted
    }
    if left := {key: job for key, job in left.items() if key not in cells.cells}:
        with Workers(jobs) as workers:
            for key, cell in workers.run(left):
                cells.add(key, cell)
    report(cells.cells, plan)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few steps, two tasks, one block")
    parser.add_argument("--layers", type=int, nargs="+", help=f"blocks; default: {Plan.layers}")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), help="default: all")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread that train")
    parser.add_argument("--work", type=Path, help="folder that keeps activations and dictionaries")
    parser.add_argument("--output", type=Path, help="JSON of what was measured, to go on from")
    add_write_argument(parser)
    args = parser.parse_args()
    plan = Plan(**(QUICK if args.quick else {}))
    given = {"layers": args.layers, "tasks": args.tasks}
    plan = replace(plan, **{name: tuple(x) for name, x in given.items() if x is not None})
    with written("task_vectors", args), tempfile.TemporaryDirectory() as temporary:
        folder = args.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        run(plan, Cells(args.output, asdict(plan)), folder, args.jobs)


if __name__ == "__main__":
    main()
