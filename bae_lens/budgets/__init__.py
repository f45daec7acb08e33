"""Which budget to train with: a few short trainings at different budgets on one collection of activations.

The data's way: ``options`` (which field of a config is its budget, and which values are tried) → ``sweep``
(trainings and their scores) → ``result`` (table, curve, recommendations).
"""

from typing import TYPE_CHECKING

from bae_lens.checks.lazy_names import lazy_names

if TYPE_CHECKING:
    from bae_lens.budgets.options import SweepSettings
    from bae_lens.budgets.result import BudgetPoint, BudgetSweep, Recommendation
    from bae_lens.budgets.sweep import sweep_budgets

__all__ = ["BudgetPoint", "BudgetSweep", "Recommendation", "SweepSettings", "sweep_budgets"]

lazy_names(
    __name__,
    {
        "bae_lens.budgets.options": ("SweepSettings",),
        "bae_lens.budgets.result": ("BudgetPoint", "BudgetSweep", "Recommendation"),
        "bae_lens.budgets.sweep": ("sweep_budgets",),
    },
)
