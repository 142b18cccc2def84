"""`benchmark.py checkpoint`: how long training stands still for a checkpoint, and what runs beside it.

Needs no Ray. Files go to a temporary folder of the machine: where they go makes no difference to the pause.
"""

import statistics
import tempfile
import time
from itertools import cycle, islice

from soda_dist.benchmarks.harness import Result, alternate, ratio
from soda_dist.benchmarks.update import PAIRS, Device, device_of, noise_batches, seconds, wait
from soda_dist.config.load import load_config
from soda_dist.data.storage.folder import open_folder
from soda_dist.parallel.progress import Say
from soda_dist.training.build import build_objective, torch_engine
from soda_dist.training.checkpoint_writer import CheckpointWriter
from soda_dist.training.context import LocalContext

WARM_UP, STEPS = 2, 3
"""Steps before, and timed steps of a round."""
PART = 0.01
"""Largest share of the time between two checkpoints."""


def measure_checkpoint(preset: str, overrides: list[str], device_name: Device, say: Say) -> list[Result]:
    """Compare the pause for a checkpoint with a training step, and with the preset's time between checkpoints.

    Batches are in memory, in float32 on a CPU; their default size is that of `benchmark.py step`, less than the
    preset's, so that a step is shorter than in training. Limits: one step, and 1% of `train.checkpoint_every_steps`.

    Raises:
        UserError: a missing device.
    """
    device = device_of(device_name)
    fields = ["scale.workers=1", "scale.gpus_per_worker=0", f"train.global_batch={PAIRS[device.type]}"]
    fields += ["train.precision=fp32"] if device.type == "cpu" else []  # bf16 is slow without units for it
    config = load_config(preset, [*fields, "train.keep_checkpoints=1", *overrides])
    engine = torch_engine(config, build_objective(config).to(device))
    batches = cycle(noise_batches(config, device))
    writing, during, numbers = list[float](), list[float](), iter(range(1, 1000))

    def step(count: int = 1) -> None:
        for _ in range(count):
            engine.step(islice(batches, config.accumulation), config.optim.lr)

    def step_rate(_: int) -> float:
        return STEPS / seconds(lambda: step(STEPS), device, warm=False)

    def pause_rate(_: int) -> float:
        wait(device)
        began = time.perf_counter()
        pause = writer.save(next(numbers))
        during.append(seconds(step, device, warm=False))
        writer.wait()
        writing.append(time.perf_counter() - began)
        return 1 / pause

    with (
        tempfile.TemporaryDirectory() as place,
        CheckpointWriter(open_folder(place), engine, LocalContext(device), config) as writer,
    ):
        step(WARM_UP)
        say(f"first pause, with the memory for copies: {1 / pause_rate(-1):.3g} s")
        rounds = alternate(f"checkpoint pause, {preset}", {"pauses": pause_rate, "steps": step_rate}, "1/s", say)
    every = config.train.checkpoint_every_steps
    facts = {
        "step, s": statistics.median(1 / rate for rate in rounds["steps"]),
        "step while writing, s": statistics.median(during[1:]),
        "pause, s": statistics.median(1 / rate for rate in rounds["pauses"]),
        "written after, s": statistics.median(writing[1:]),
    }
    shares = {"pauses": rounds["pauses"], "share of interval": [rate / every / PART for rate in rounds["steps"]]}
    return [
        ratio(f"checkpoint pause against a step, {preset}", rounds, "1/s", 1.0, facts),
        ratio(f"checkpoint pause against {PART:.0%} of {every} steps, {preset}", shares, "1/s", 1.0),
    ]
