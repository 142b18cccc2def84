"""What a run or an evaluation asks of the cluster, and whether the cluster can give it."""

from soda_dist.config.schema import RunConfig
from soda_dist.distributed.runtime.ray_internals import autoscaler_active
from soda_dist.errors import UserError
from soda_dist.parallel.progress import Say


def training_resources(config: RunConfig) -> dict[str, float]:
    """Logical resources of a run: workers and the data tasks beside them."""
    scale = config.scale
    return {
        "CPU": scale.workers * (scale.cpus_per_worker + scale.data_cpus_per_worker),
        "GPU": scale.workers * scale.gpus_per_worker,
    }


def evaluation_resources(config: RunConfig) -> dict[str, float]:
    """Of one actor of evaluation: a training worker's share of a GPU where there are any or may be, else a CPU."""
    import ray

    gpus = config.scale.gpus_per_worker
    if gpus > 0 and (ray.cluster_resources().get("GPU", 0) > 0 or autoscaler_active()):
        return {"GPU": gpus}
    return {"CPU": 1}


def check_resources(needed: dict[str, float], say: Say, *, setting: str = "scale.workers") -> None:
    """Refuse what the cluster cannot give, unless an autoscaler may add nodes: then say what is waited for.

    `setting`: the field that a smaller number of would need less.
    """
    import ray

    have = ray.cluster_resources()
    short = {name: count for name, count in needed.items() if count > have.get(name, 0.0)}
    if not short:
        return
    asked = ", ".join(f"{count:g} {name}" for name, count in short.items())
    there = ", ".join(f"{have.get(name, 0.0):g} {name}" for name in short)
    if autoscaler_active():
        say(f"waiting for the autoscaler: the run needs {asked}, the cluster has {there} now")
        return
    field = setting if setting.startswith("evaluation") else "scale"
    raise UserError(
        field, f"a run that needs {asked}", f"at most {there}", f"lower {setting} or add nodes to the cluster"
    )


def fitting(needs: dict[str, float]) -> int:
    """How many actors of these resources the cluster has room for now; at least one."""
    import ray

    have = ray.cluster_resources()
    return max(1, int(min((have.get(name, 0.0) / count for name, count in needs.items() if count), default=1)))
