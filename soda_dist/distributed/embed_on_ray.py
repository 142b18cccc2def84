"""Embeddings by Ray actors: `inference.embedding` over an actor pool."""

from typing import Any

from soda_dist.config.load import with_fields
from soda_dist.distributed.runtime.cluster import ray_session
from soda_dist.inference.embedding import embed
from soda_dist.inference.loading import model_source


def embed_on_ray(*, workers: int, device: None, **arguments: Any) -> str:
    """As `inference.embed`, by `workers` actors (0 = as many as fit), with the resources of the run's evaluation."""
    names = ("step", "ema", "weights", "weights_sha256")
    source = model_source(arguments["encoder"], **{name: arguments[name] for name in names})
    config = with_fields(source.configuration(), {"evaluation.actors": workers or None})
    with ray_session(cpus=2):
        from soda_dist.distributed.evaluate_on_ray import evaluation_pool

        with evaluation_pool(config, arguments["say"]) as pool:
            return embed(**arguments, pool=pool)
