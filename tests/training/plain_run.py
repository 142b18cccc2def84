"""A run of one process without Ray and DeepSpeed, on prepared data: what every distributed run must equal."""

from collections.abc import Iterator

import torch

from soda_dist.config import RunConfig
from soda_dist.data.order import Order
from soda_dist.data.pairs import Pairs, local_pairs
from soda_dist.data.shards import ShardReader, read_manifest
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.parallel.progress import Say, silent
from soda_dist.runs.folder import write_config
from soda_dist.training.build import build_objective, torch_engine
from soda_dist.training.context import LocalContext
from soda_dist.training.loop import fit


def train_plainly(data_uri: str, config: RunConfig, run_uri: str, say: Say = silent) -> Folder:
    """Train to the end by the torch engine on one thread; return the run's folder."""
    folder, run = open_folder(data_uri), open_folder(run_uri)
    reader, data, batch = ShardReader(folder, read_manifest(folder), "train"), config.data, config.train.global_batch
    order = Order(reader.groups, config.seed, batch, data.shuffle_groups)

    def feed(step: int) -> Iterator[Pairs]:
        micro = batch // config.accumulation
        return local_pairs(reader, order, step * batch, micro, seed=config.seed, data=data, threads=0)

    write_config(run, config)
    engine = torch_engine(config, build_objective(config))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fit(LocalContext(say=say), engine, config, feed, run, rows=sum(reader.groups))
    finally:
        torch.set_num_threads(threads)
    return run
