"""Evaluation of checkpoints and encoders, over any pool. No Ray.

from soda_dist.evaluation import LocalPool, evaluate
evaluate("RUN", "DATA", "probe,knn", pool=LocalPool())
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from soda_dist.evaluation.task_runner import evaluate, evaluate_encoder
    from soda_dist.parallel.local_pool import LocalPool

__all__ = ["LocalPool", "evaluate", "evaluate_encoder"]


def __getattr__(name: str) -> Any:
    if name == "LocalPool":
        from soda_dist.parallel.local_pool import LocalPool

        return LocalPool
    if name in __all__:
        from soda_dist.evaluation import task_runner

        return getattr(task_runner, name)
    raise AttributeError(name)
