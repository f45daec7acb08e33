"""What SAELens' trainer needs beyond W&B and a hub: runners, replayed activations, a metric log."""

from bae_lens.training.config_file import RunConfig, list_configs, load_config
from bae_lens.training.metric_log import MetricLog
from bae_lens.training.replay import ReplayedActivations
from bae_lens.training.runner import SyntheticTrainingRunner, TrainingRunner

__all__ = [
    "MetricLog",
    "ReplayedActivations",
    "RunConfig",
    "SyntheticTrainingRunner",
    "TrainingRunner",
    "list_configs",
    "load_config",
]
