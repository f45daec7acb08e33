"""What the metrics of an SAE come to, in two sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sae_lens import SAEConfig

from bae_lens.architectures.bae_config import budget_in_bits
from bae_lens.architectures.sae_fields import training_details
from bae_lens.checks.fields import Number, is_valid, positive
from bae_lens.results import Verdict

# Shares of latents from which on they are the first thing to change.
_MANY_DEAD, _MANY_DENSE = 0.1, 0.02
# On fewer tokens latents that are merely rare look dead; and what to ask for then.
_FEW_TOKENS, _ENOUGH_TOKENS = 32_768, 65_536
# Bits per input dimension at which codes are read best, as the default budget is (``tutorials/guides/budget.md``), and
# how many times as many are still a code to read.
_TO_READ, _FEW = 1 / 16, 1.5
# Further from its target than that, a code would come to the same with another target.
_NEAR = 1.5
_CAP = 0.05
# The coefficient follows one target: a config that names the other is refused with both, and this SAE's may be such a one.
_NO_FIDELITY = "(and --sae.target_unexplained_variance null, where the config names one)"
# As by default; with 0 a cap does nothing.
_SOME_PUSH = " --sae.density_coefficient 2"
# How a number of latents on per token is asked for. BatchTopK is saved as JumpReLU.
_BY_L0 = {
    **dict.fromkeys(("topk", "abstopk", "topk_transcoder"), "--sae.k {n}"),
    # Its target_l0 counts in one mode only, which is not the default.
    "jumprelu": "--sae.k {n} (BatchTopK) or --sae.target_l0 {n} --sae.jumprelu_sparsity_loss_mode quadratic (JumpReLU)",
}


def eval_verdict(metrics: Mapping[str, Mapping[str, Any]], cfg: SAEConfig) -> Verdict:
    """Say what is dense and dead, what the reconstruction costs, and what to train or measure next.

    The metrics have no intervals: shares and costs stand with the tokens that they are of, and the advice follows
    only from what is far off (one latent in ten dead, one in fifty denser than 10 %, worse than the mean), else from the bits.

    Args:
        metrics: Of ``run_evals``, or of the file that ``bae-lens eval`` writes; groups may be missing.
        cfg: Of the SAE.
    """
    code = metrics.get("code", {})
    parts = [_of_latents(code, cfg), _of_reconstruction(code), _of_model(metrics)]
    said = [part for part in parts if part]
    if not said:
        return Verdict("Nothing was measured.", f"Try --n_code_tokens {_ENOUGH_TOKENS}.")
    finding = "; ".join(said)
    return Verdict(f"{finding[0].upper()}{finding[1:]}.", _advice(metrics, code, cfg))


def _of_latents(code: Mapping[str, Any], cfg: SAEConfig) -> str:
    n_tokens = code.get("n_tokens")
    if not n_tokens:
        return ""
    if (in_use := code.get("codes_in_use")) is not None:
        return (
            f"on {n_tokens:,} tokens {in_use:,} of {cfg.d_sae:,} codes are in use, as many as {code['perplexity']:.0f} "
            "used evenly"
        )
    return (
        f"on {n_tokens:,} tokens {_percent(code['dead_share'])} of {cfg.d_sae:,} latents never fire (dead) and "
        f"{_percent(code['dense_share_10'])} fire at more than 10 % (dense)"
    )


def _of_reconstruction(code: Mapping[str, Any]) -> str:
    explained = _number(code, "explained_variance")
    if explained is None:
        return ""
    words = f"the reconstruction explains {explained:.3f} of the variance"
    if (bits := code.get("description_length")) is not None:
        return f"{words}, in {bits:,.0f} bits per token"
    return f"{words}, in {code['support_entropy']:,.0f} bits per token without magnitudes"


def _of_model(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    group = metrics.get("model_performance_preservation", {})
    with_sae, without = (_number(group, f"ce_loss_{which}_sae") for which in ("with", "without"))
    if with_sae is None or without is None:
        return ""
    cost = with_sae - without
    shares = [
        f"{_percent(cost / (ablated - without))} of what {what} cost"
        for name, what in (("ablation", "zeros"), ("mean_ablation", "mean activations"))
        # Where it costs nothing, which a model that says nothing allows, there is no share of it.
        if (ablated := _number(group, f"ce_loss_with_{name}")) is not None and ablated > without
    ]
    words = f"in the model it costs {cost:+.3f} nats per token"
    n_tokens = metrics.get("token_stats", {}).get("total_tokens_eval_reconstruction")
    of = f" on {n_tokens:,} tokens" if n_tokens else ""
    return f"{words}{of}" + (f", {' and '.join(shares)}" if shares else "")


def _number(group: Mapping[str, Any], name: str) -> float | None:
    """None where there is none, or it is NaN or infinite."""
    value = group.get(name)
    return value if is_valid(value, Number()) else None


def _advice(
    metrics: Mapping[str, Mapping[str, Any]], code: Mapping[str, Any], cfg: SAEConfig
) -> str:
    of_model = metrics.get("model_performance_preservation", {})
    loss, least = (_number(of_model, f"ce_loss_with_{of}") for of in ("sae", "mean_ablation"))
    explained = _number(code, "explained_variance")
    # Not the score, whose sign turns where the mean costs nothing.
    is_worse = loss is not None and least is not None and loss >= least
    if is_worse or (explained is not None and explained <= 0):
        return (
            "That is no better than the mean activation: check first that it was trained on this model, hook point and "
            "text, and try others with --model and --data."
        )
    if not code.get("n_tokens"):
        return f"For what its latents do, try --n_code_tokens {_ENOUGH_TOKENS}."
    if code["dead_share"] > _MANY_DEAD:
        return _advice_on_dead(code, cfg)
    if code.get("codes_in_use") is not None:
        return (
            f"For more of the variance, in at most {math.log2(2 * cfg.d_sae):.1f} bits per token, train with "
            f"--sae.d_sae {2 * cfg.d_sae}."
        )
    if code["dense_share_10"] > _MANY_DENSE:
        return _advice_on_dense(code, cfg)
    bits = code.get("description_length") or code["support_entropy"]
    if bits > _FEW * _TO_READ * cfg.d_in:
        fewer = _budget(code, cfg, _TO_READ * cfg.d_in / bits, bits, "d_in/16")
        return f"For latents to read, in fewer bits, train with {fewer}."
    more = _budget(code, cfg, 2, bits)
    return (
        f"For what its latents stand for, run bae-lens report; to explain more, train with {more}."
    )


def _advice_on_dead(code: Mapping[str, Any], cfg: SAEConfig) -> str:
    if code["n_tokens"] < _FEW_TOKENS:
        return f"To tell dead latents from rare ones, try --n_code_tokens {_ENOUGH_TOKENS}, on as much text."
    n_alive = round((1 - code["dead_share"]) * cfg.d_sae)
    if n_alive == 0:
        return "Train anew with a lower --lr, and watch the latents in metrics.jsonl: none is left."
    option = f"--sae.d_sae {n_alive}"
    if cfg.architecture() == "bae" and _TO_READ * cfg.d_in > n_alive * _most_bits(cfg):
        # The target by default would be refused.
        bits = code.get("description_length") or code["support_entropy"]
        option += f" --sae.target_entropy {max(round(bits), 1)} {_NO_FIDELITY}"
    return f"The same costs less with as many as are alive: train with {option}."


def _advice_on_dense(code: Mapping[str, Any], cfg: SAEConfig) -> str:
    if cfg.architecture() != "bae":
        return f"For fewer dense latents, train with {_budget(code, cfg, 0.5)}."
    of_training = training_details(cfg)
    cap, push = (_number(of_training, name) for name in ("max_density", "density_coefficient"))
    if cap is None or cap > _CAP:
        option = f"--sae.max_density {_CAP}"
        return f"To push dense latents back, train with {option}{_SOME_PUSH if push == 0 else ''}."
    more = f"--sae.density_coefficient {2 * push:g}" if push else _SOME_PUSH.strip()
    return (
        f"To push dense latents back, train with more steps (--training_tokens) or {more}, since its cap is "
        f"{cap:g} already."
    )


def _budget(
    code: Mapping[str, Any], cfg: SAEConfig, factor: float, bits: float = 0, words: str = ""
) -> str:
    """The options by which a code of that many times its bits, twice at most, is asked for; where it is not what it was
    trained for, what brings it there.

    Args:
        code: the metrics.
        cfg: of the SAE.
        factor: how many times its bits.
        bits: that it has, of a BAE.
        words: how the wanted bits are asked for, in place of the number.
    """
    kind = cfg.architecture()
    if kind in ("standard", "gated"):
        return _by_l1(cfg, factor)
    has, target = bits if kind == "bae" else code["l0"], _target(cfg)
    if target is not None and (has > _NEAR * target if factor < 1 else _NEAR * has < target):
        unit = "bits" if kind == "bae" else "latents on"
        what, came_to = _towards_target(cfg, factor), f"has {has:,.0f} on this text"
        return f"{what}, since it was trained for {target:g} {unit} per token and {came_to}"
    most = cfg.d_sae * _most_bits(cfg) if kind == "bae" else cfg.d_sae
    wanted = max(round(factor * has), 1)
    if wanted == target:
        # Rounded, it is what it was trained for.
        wanted += 1 if factor > 1 else -1
    if wanted < 1:
        return f"--sae.d_sae {2 * cfg.d_sae}"
    if kind == "bae":
        option = f"--sae.target_entropy {words or wanted} {_NO_FIDELITY}"
    else:
        option = _BY_L0.get(kind, "about {n} latents on per token").format(n=wanted)
    # Of fewer latents so much would be refused.
    return option if wanted <= most else f"{option}, and --sae.d_sae {2 * cfg.d_sae}"


def _by_l1(cfg: SAEConfig, factor: float) -> str:
    if _number(training_details(cfg), "l1_coefficient") == 0:
        # Of which half and twice are the same.
        return "an --sae.l1_coefficient above 0" if factor < 1 else f"--sae.d_sae {2 * cfg.d_sae}"
    return f"{'half' if factor > 1 else 'twice'} the --sae.l1_coefficient"


def _target(cfg: SAEConfig) -> float | None:
    """Bits, or latents on, per token that it was trained for; None where there was no target, or it is not known."""
    of_training = training_details(cfg)
    if cfg.architecture() == "bae":
        target = budget_in_bits(of_training.get("target_entropy"), cfg.d_in)
    elif of_training.get("jumprelu_sparsity_loss_mode") == "quadratic":
        target = of_training.get("target_l0")
    else:
        target = of_training.get("k", getattr(cfg, "k", None))
    return target if is_valid(target, positive()) else None


def _towards_target(cfg: SAEConfig, factor: float) -> str:
    """What brings a code with too many bits (with a factor below 1), or too few, to its target."""
    of_training, compared = training_details(cfg), "higher" if factor < 1 else "lower"
    found = ["more steps (--training_tokens)"]
    # A coefficient of 0 cannot be lowered.
    found += [
        f"a {compared} --sae.{name}"
        for name in ("entropy_coefficient", "l0_coefficient")
        if (value := _number(of_training, name)) is not None and (factor < 1 or value > 0)
    ]
    if factor < 1 and "topk_threshold_lr" in of_training:
        # Inference goes by a running mean of the batches' thresholds, from zero on.
        found.append("a higher --sae.topk_threshold_lr")
    if factor > 1 and _number(of_training, "max_density") is not None:
        found.append("--sae.max_density null")
    if factor > 1 and len(found) == 1:
        found.append(f"--sae.d_sae {2 * cfg.d_sae}")
    return " or ".join(filter(None, [", ".join(found[:-1]), found[-1]]))


def _most_bits(cfg: SAEConfig) -> float:
    """That one latent of a BAE can carry."""
    return math.log2(getattr(cfg, "n_levels", 1) + 1)


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %") if share else "0 %"
