"""Logical resources of runs and evaluations, and whether the cluster has them."""

from soda_dist.config.schema import RunConfig
from soda_dist.distributed.runtime.ray_internals import autoscaler_active
from soda_dist.errors import UserError
from soda_dist.parallel.progress import Say


def worker_resources(config: RunConfig) -> dict[str, float]:
    """Return what a training process reserves: its own resources and the CPUs of its data tasks, which run beside it.

    One reservation for both, so that of two runs on machines for one the second waits, and none holds half of each.
    """
    scale = config.scale
    gpus = {"GPU": scale.gpus_per_worker} if scale.gpus_per_worker > 0 else {}
    return {"CPU": scale.cpus_per_worker + scale.data_cpus_per_worker} | gpus


def training_resources(config: RunConfig) -> dict[str, float]:
    """Sum the resources of a run's workers."""
    return {name: config.scale.workers * count for name, count in worker_resources(config).items()}


def evaluation_resources(config: RunConfig) -> dict[str, float]:
    """Resources of one evaluation actor: a worker's share of a GPU if the cluster has or may get any, else a CPU."""
    import ray

    gpus = config.scale.gpus_per_worker
    if gpus > 0 and (ray.cluster_resources().get("GPU", 0) > 0 or autoscaler_active()):
        return {"GPU": gpus}
    return {"CPU": 1}


def check_resources(needed: dict[str, float], say: Say, *, setting: str = "scale.workers") -> None:
    """Raise a `UserError` for what the cluster lacks; with an autoscaler, say that the run waits for it.

    `setting`: the field to lower.
    """
    import ray

    have = ray.cluster_resources()
    short = {name: count for name, count in needed.items() if count > have.get(name, 0.0)}
    if not short:
        return
    asked = ", ".join(f"{count:g} {name}" for name, count in short.items())
    present = ", ".join(f"{have.get(name, 0.0):g} {name}" for name in short)
    if autoscaler_active():
        say(f"waiting for the autoscaler: the run needs {asked}, the cluster has {present} now")
        return
    field = setting if setting.startswith("evaluation") else "scale"
    raise UserError(
        field, f"a run that needs {asked}", f"at most {present}", f"lower {setting} or add nodes to the cluster"
    )


def capacity(needed: dict[str, float]) -> str:
    """Return what a run asks for, what the cluster has, and what of it is free, as text; empty if that suffices."""
    import ray

    have, free = ray.cluster_resources(), ray.available_resources()
    asked = {name: count for name, count in needed.items() if count}
    if all(free.get(name, 0.0) >= count for name, count in asked.items()):
        return ""
    parts = [
        f"{count:g} {name} ({free.get(name, 0.0):g} of {have.get(name, 0.0):g} free)" for name, count in asked.items()
    ]
    more = "; an autoscaler may add machines" if autoscaler_active() else ""
    return f"the run asks for {', '.join(parts)}{more}"


def fitting(needs: dict[str, float]) -> int:
    """Count the actors of these resources that fit into the cluster now; at least one."""
    import ray

    have = ray.cluster_resources()
    return max(1, int(min((have.get(name, 0.0) / count for name, count in needs.items() if count), default=1)))
