"""``bae-lens demo``: latents to read, of a real language model, offline.

SmolLM2-135M reads movie reviews once; what it computes is kept and replayed to two trainings, a BAE made for
reading and SAELens' BatchTopK, whose k is such that both codes take as many bits. Both are scored on held-out reviews,
their latents are given the intruder test beside random directions, and reports of both are written, to be opened.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bae_lens.checks.fields import check, whole
from bae_lens.cli.demo_table import Column, Measured, headline, table

if TYPE_CHECKING:
    from sae_lens import SAE
    from torch import Tensor

    from bae_lens.activations.replay import ReplayedActivations
    from bae_lens.examples import LatentRecords
    from bae_lens.report import Compared
    from bae_lens.scoring import IntruderResult, ModelEncoder

# Both are trained and scored, in this order; the second is SAELens' own.
_BAE, _PEER, _RANDOM = "BAE", "SAELens BatchTopK", "random directions"
_CONFIGS = {_BAE: "smollm2-read", _PEER: "smollm2-batchtopk"}
_PROMPTS = 16
# Resolution at which BatchTopK's magnitudes are counted: of 1 to 4 bits, that at which it explains most in as
# many bits a token.
_MAGNITUDE_BITS = 3
_N_SENTENCES, _N_EFFECTS = 24, 8
_NOTES = (
    "Told apart: in 80 % of trials the one example at which the latent does not fire is found among five, where "
    "guessing finds 20 %; of all latents by the share of those tested, with its 95 % interval. The judge is a small "
    "model of sentences and gives no names. "
    "Bits are those of which latents are on (the Chow–Liu bound), and of BAE's levels as they are or BatchTopK's "
    f"magnitudes at a resolution of {_MAGNITUDE_BITS} bits."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", default="demo_output", help="folder for SAEs, reports, plots and scores"
    )
    parser.add_argument(
        "--tokens", type=int, default=200_000, help="tokens of text that the language model reads"
    )
    parser.add_argument(
        "--training_tokens",
        type=int,
        help="tokens of training, replays counted; default: as shipped",
    )
    parser.add_argument(
        "--held_out_tokens",
        type=int,
        default=40_960,
        help="tokens to score on, and as many to show latents in",
    )
    parser.add_argument(
        "--ce_batches", type=int, default=2, help=f"batches of {_PROMPTS} prompts for cross-entropy"
    )
    parser.add_argument(
        "--n_tested", type=int, default=200, help="latents of each that are given the intruder test"
    )
    parser.add_argument("--seed", type=int, help="of both trainings; default: as shipped")


def run_demo(args: argparse.Namespace) -> int:
    from bae_lens.charts import require_matplotlib

    for name in ("tokens", "held_out_tokens", "ce_batches", "n_tested"):
        check(f"--{name}", getattr(args, name), whole(1))
    check("--training_tokens", args.training_tokens, whole(1, or_none=True))
    check("--seed", args.seed, whole(0, 2**32 - 1, or_none=True))
    require_matplotlib()
    # Rather now than after minutes.
    Path(args.output).mkdir(parents=True, exist_ok=True)
    # Advice on training runs of a user's own, which this is not.
    warnings.filterwarnings("ignore", category=UserWarning, module="sae_lens")
    demo = _Demo.open(args)
    for name, shipped in _CONFIGS.items():
        demo.train_and_read(name, shipped)
    demo.test_random_directions()
    demo.show()
    return 0


@dataclass
class _Phases:
    """How long each took, those of one name together."""

    started: float = field(default_factory=time.time)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        before = time.time()
        yield
        self.seconds[name] += time.time() - before

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {s / 60:.1f}" for name, s in self.seconds.items())
        return f"{(time.time() - self.started) / 60:.1f} minutes ({parts})"


@dataclass
class _Demo:
    """One run.

    Attributes:
        args: of the command.
        model: the language model.
        reader: the model, for examples of latents: of all dictionaries they are from the same text, which it reads once.
        encoder: whose embeddings judge.
        phases: for how long each took.
        configs: of what was trained, by name.
        columns: of the table, by name.
        compared: of the reports.
        replay: activations that all are trained on; None before they are read.
        held_out: those that all are scored on.
    """

    args: argparse.Namespace
    model: Any
    reader: Any
    encoder: ModelEncoder
    phases: _Phases
    configs: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, Column] = field(default_factory=dict)
    compared: list[Compared] = field(default_factory=list)
    replay: ReplayedActivations | None = None
    held_out: ReplayedActivations | None = None

    @classmethod
    def open(cls, args: argparse.Namespace) -> _Demo:
        from bae_lens import offline
        from bae_lens.activations.read_once import ReadOnce
        from bae_lens.scoring import ModelEncoder

        phases = _Phases()
        with phases.of("loading"):
            model = offline.load_model(offline.MODEL_NAME)
            return cls(args, model, ReadOnce(model), ModelEncoder.minilm(), phases)

    @property
    def output(self) -> Path:
        """The folder that everything is written to."""
        return Path(self.args.output)

    def train_and_read(self, name: str, shipped: str) -> None:
        """Train what a config says, load it, score it, test its latents and write its report."""
        cfg = self.configs[name] = self._config(shipped)
        sae, rate = self._train(name, cfg)
        print(f"Scoring {name}")
        with self.phases.of("scoring"):
            measured = self._measure(sae, rate)
            self._show_attached(name, sae)
        with self.phases.of("testing latents"):
            records, result = self._test(sae)
        self.columns[name] = Column(result, measured)
        with self.phases.of("reports"):
            self._report(name, sae, records)

    def test_random_directions(self) -> None:
        """The control: as many directions at random, as many of them on, and no training."""
        from sae_lens import SAE

        assert self.replay is not None
        of = SAE.load_from_disk(self.configs[_PEER].output_path)
        k, mean = round(self.configs[_PEER].sae.k), self.replay.activations.mean(0)
        with self.phases.of("testing latents"):
            _, result = self._test(random_directions(of, mean, k))
        self.columns[_RANDOM] = Column(result)

    def show(self) -> None:
        """Write plots, scores and the comparison, and print what was found; where the reports are comes last."""
        from bae_lens.charts import save_figure
        from bae_lens.evals.plot import plot_densities
        from bae_lens.files.json_file import write_json
        from bae_lens.report import write_comparison
        from bae_lens.training.plot import plot_training

        assert self.replay is not None
        assert self.held_out is not None
        cfg, output = self.configs[_BAE], self.output
        title = f"SmolLM2-135M, {cfg.hook_name}"
        codes = {name: c.measured.code for name, c in self.columns.items() if c.measured}
        logs = {own.name: own.training for own in self.compared if own.training is not None}
        save_figure(plot_densities(codes, title), output / "densities.png")
        save_figure(
            plot_training(logs, cfg.sae.target_entropy_bits, title), output / "training.png"
        )
        scores = {name: column.to_dict() for name, column in self.columns.items()}
        write_json(output / "scores.json", scores, indent=2)
        comparison = output / "comparison.html"
        write_comparison(comparison, self.compared, f"The demo: {title}")
        n_read, n_scored = (len(acts.activations) for acts in (self.replay, self.held_out))
        n_ce = self.args.ce_batches * _PROMPTS * cfg.context_size
        ours, peer = ((name, self.columns[name]) for name in (_BAE, _PEER))
        print(
            f"\n{title}: {n_read:,} tokens replayed, {cfg.training_tokens:,} trained on; scored on {n_scored:,} "
            f"held-out tokens, cross-entropy on {n_ce:,}; seed {cfg.seed}\n"
        )
        print(table(self.columns))
        print(f"\n{headline(ours, peer)}\n\n{_NOTES}")
        print(
            f"\nSAEs, plots and scores.json are in {output}/. The whole demo took {self.phases}.\n\n"
            "To read what the latents are, open the first of these, which leads to the others:"
        )
        for path in (comparison, *(output / str(own.link) for own in self.compared)):
            print(path)

    # Parts

    def _config(self, shipped: str) -> Any:
        from bae_lens.training.config_file import load_config

        overrides: dict[str, Any] = {"output_path": str(self.output / shipped)}
        for name in ("training_tokens", "seed"):
            if getattr(self.args, name) is not None:
                overrides[name] = getattr(self.args, name)
        return load_config(shipped, overrides).runner

    def _train(self, name: str, cfg: Any) -> tuple[SAE[Any], float]:
        """The SAE that a user would get, and tokens per second."""
        from sae_lens import SAE

        from bae_lens.activations.replay import ReplayedActivations
        from bae_lens.training.runner import TrainingRunner

        runner = TrainingRunner(cfg, override_model=self.model)
        if self.replay is None:
            with self.phases.of("reading"):
                self.replay = ReplayedActivations.collect(
                    runner.activations_store, self.args.tokens, cfg.seed
                )
        self.replay.n_batches_served = 0  # all are trained on the same batches in the same order
        runner.activations_store = self.replay  # pyright: ignore[reportAttributeAccessIssue]
        print(f"\nTraining {name}, {cfg.sae.d_in} -> {cfg.sae.d_sae} latents, at {cfg.hook_name}")
        before = time.time()
        with self.phases.of("training"):
            runner.run()
        return SAE.load_from_disk(cfg.output_path), cfg.training_tokens / (time.time() - before)

    def _store(self, sae: SAE[Any]) -> Any:
        from bae_lens.activations.held_out import held_out_store

        return held_out_store(sae, self.model, store_batch_size_prompts=_PROMPTS)

    def _measure(self, sae: SAE[Any], tokens_per_second: float) -> Measured:
        """Code and variance on the held-out tokens, SAELens' CE evals on the same text from its start."""
        from sae_lens.evals import EvalConfig

        from bae_lens.activations.replay import ReplayedActivations
        from bae_lens.evals import run_evals, summarize_code

        if self.held_out is None:
            self.held_out = ReplayedActivations.collect(self._store(sae), self.args.held_out_tokens)
        code, explained_variance, quantized = summarize_code(
            sae,
            self.held_out.activations.split(4096),
            pair_counts=True,
            magnitude_bits=_MAGNITUDE_BITS,
        )
        metrics, _ = run_evals(
            sae,
            self._store(sae),
            self.model,
            eval_config=EvalConfig(
                batch_size_prompts=_PROMPTS,
                n_eval_reconstruction_batches=self.args.ce_batches,
                compute_ce_loss=True,
            ),
            verbose=True,
            n_code_tokens=0,
            # As the code's statistics and the training are: of all tokens.
            exclude_outlier_tokens=False,
        )
        ce = metrics["model_performance_preservation"]
        return Measured(
            code=code,
            explained_variance=explained_variance,
            quantized_explained_variance=quantized,
            ce_score_zero_ablation=ce["ce_loss_score"],
            ce_score_mean_ablation=ce["ce_loss_score_mean_ablation"],
            tokens_per_second=tokens_per_second,
        )

    def _test(self, sae: SAE[Any]) -> tuple[LatentRecords, IntruderResult | None]:
        """What is seen of the latents in held-out text, and how many can be told apart by it."""
        from bae_lens.examples import ExampleSettings, collect_examples
        from bae_lens.scoring import IntruderSettings, intruder_test
        from bae_lens.scoring.tested_latents import TestedLatents

        settings = ExampleSettings(n_tokens=self.args.held_out_tokens, n_random=20)
        records = collect_examples(
            self.reader, sae, None, settings, exclude_outlier_tokens=False, verbose=True
        )
        test = IntruderSettings(n_latents=self.args.n_tested)
        if not TestedLatents(records).with_texts(test.n_shown - 1):
            return records, None
        return records, intruder_test(records, None, test, encoder=self.encoder)

    def _report(self, name: str, sae: SAE[Any], records: LatentRecords) -> None:
        """Write what is known of one, with its test, texts and logit effects."""
        from bae_lens.report import Compared, collect_sentences, write_report
        from bae_lens.steering import logit_effects
        from bae_lens.training.metric_log import read_metric_log
        from bae_lens.training.outputs import METRICS_FILENAME

        cfg, column = self.configs[name], self.columns[name]
        folder = Path(cfg.output_path)
        assert column.measured is not None
        own = Compared(
            name,
            records,
            column.measured.code,
            read_metric_log(folder / METRICS_FILENAME),
            f"{folder.name}/report.html",
            [column.intruder] if column.intruder else [],
            {"model": cfg.model_name, "text": f"{cfg.dataset_path}, held out"},
        )
        write_report(
            self.output / str(own.link),
            records,
            own.summary,
            own.training,
            collect_sentences(self.model, sae, None, records, n_sentences=_N_SENTENCES),
            results=own.results,
            effects=logit_effects(self.model, sae, k=_N_EFFECTS),
            title=f"The demo's {name} at {records.hook_name} of SmolLM2-135M",
            about=own.about,
        )
        self.compared.append(own)

    def _show_attached(self, name: str, sae: SAE[Any]) -> None:
        """Run the model with the SAE in it, with and without what it misses added back."""
        import torch

        from bae_lens.attach import attached

        tokens = self._store(sae).get_batch_tokens(4)
        loss = partial(_loss, self.model, tokens)
        with torch.no_grad():
            alone = loss()
            with attached(self.model, sae):
                replaced = loss()
            with attached(self.model, sae, use_error_term=True):
                corrected = loss()
        print(
            f"Attached to the model, on {tokens.numel():,} tokens: cross-entropy {replaced:.4f} with the "
            f"{name}, {corrected:.4f} with its error term added, {alone:.4f} without it"
        )


def _loss(model: Any, tokens: Tensor) -> float:
    return model(tokens, return_type="loss").item()


def random_directions(of: SAE[Any], mean: Tensor, k: int, seed: int = 0) -> SAE[Any]:
    """A TopK SAE that was not trained: unit directions at random from the mean, as many as another SAE has latents,
    of which the k largest are on."""
    import torch
    from sae_lens import TopKSAE, TopKSAEConfig

    cfg = TopKSAEConfig(d_in=of.cfg.d_in, d_sae=of.cfg.d_sae, k=k, metadata=of.cfg.metadata)
    sae = TopKSAE(cfg)
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(cfg.d_sae, cfg.d_in, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    with torch.no_grad():
        sae.b_dec.copy_(mean)
        sae.W_dec.copy_(directions)
        sae.W_enc.copy_(directions.T)
    return sae.eval()
