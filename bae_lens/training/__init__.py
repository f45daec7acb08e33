"""What SAELens' trainer needs beyond W&B and a hub: runners, config files, a metric log.

``cross_layer_runner`` alone imports evals: it evaluates while it trains, as SAELens' runner does. The stores stand
with ``activations`` and are importable here too.
"""

from typing import TYPE_CHECKING

from bae_lens.checks.lazy_names import lazy_names

if TYPE_CHECKING:
    from bae_lens.activations.paired_activations import ContextStore, PairedActivations
    from bae_lens.activations.replay import ReplayedActivations
    from bae_lens.activations.sentence_store import SentenceStore
    from bae_lens.training.config_file import RunConfig, load_config
    from bae_lens.training.cross_layer_runner import (
        CrossLayerRunnerConfig,
        CrossLayerTrainingRunner,
    )
    from bae_lens.training.metric_log import MetricLog
    from bae_lens.training.runner import TrainingRunner
    from bae_lens.training.shipped_configs import list_configs
    from bae_lens.training.synthetic_runner import SyntheticTrainingRunner

__all__ = [
    "ContextStore",
    "CrossLayerRunnerConfig",
    "CrossLayerTrainingRunner",
    "MetricLog",
    "PairedActivations",
    "ReplayedActivations",
    "RunConfig",
    "SentenceStore",
    "SyntheticTrainingRunner",
    "TrainingRunner",
    "list_configs",
    "load_config",
]

lazy_names(
    __name__,
    {
        "bae_lens.activations.paired_activations": ("ContextStore", "PairedActivations"),
        "bae_lens.activations.replay": ("ReplayedActivations",),
        "bae_lens.activations.sentence_store": ("SentenceStore",),
        "bae_lens.training.config_file": ("RunConfig", "load_config"),
        "bae_lens.training.cross_layer_runner": (
            "CrossLayerRunnerConfig",
            "CrossLayerTrainingRunner",
        ),
        "bae_lens.training.metric_log": ("MetricLog",),
        "bae_lens.training.runner": ("TrainingRunner",),
        "bae_lens.training.shipped_configs": ("list_configs",),
        "bae_lens.training.synthetic_runner": ("SyntheticTrainingRunner",),
    },
)
