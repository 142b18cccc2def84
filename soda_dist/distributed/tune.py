"""Sweeps on Ray Tune: every trial is a pretraining run in its own folder, judged by its linear probe.

The trials' configurations are drawn from the search's seed before anything starts, and a trial's results are read from
its folder, so the same command resumes without Tune's own (pickled) state.
"""

from functools import partial
from typing import Any

import numpy as np

from soda_dist.config.load import dump_config, with_fields
from soda_dist.config.schema import RunConfig
from soda_dist.config.search import Range, Search
from soda_dist.data.storage.folder import Folder
from soda_dist.distributed.evaluate_on_ray import evaluate, guidance_scores
from soda_dist.distributed.pretrain import pretrain
from soda_dist.distributed.runtime.mailbox import mailbox
from soda_dist.distributed.runtime.resources import check_resources, training_resources
from soda_dist.errors import UserError
from soda_dist.parallel.progress import Say
from soda_dist.plots.search_trials import sweep_plot
from soda_dist.runs.folder import complete_steps, open_run
from soda_dist.runs.results import read_result
from soda_dist.training.observers.trackers import check_trackers

OBJECTIVE = "accuracy"
PARTS = ("search.json", "trials", "tune", "trials.json", "best.yaml", "trials.png")
"""All files and folders of a search."""
TRIAL_CPUS = 0.001
"""A trial's own process, beside those of its run: small, since a cluster sized for the runs has no more to spare."""


def sweep(config: RunConfig, search: Search, data_uri: str, run_uri: str, say: Say) -> str:
    """Search over `config`; write trials.json, best.yaml and trials.png into `run_uri`, which it returns.

    Raises:
        UserError: a field of the search does not exist, or the cluster cannot hold one trial.
    """
    if config.train.stop.metric != "none":
        got = f"{config.train.stop.metric} in a sweep"
        raise UserError("train.stop.metric", got, "none", "set it to none: a sweep ranks trials at equal steps")
    check_trackers(config.train.trackers)
    run = open_run(run_uri, PARTS)
    candidates = draw_candidates(config, search)
    _claim(run, config, search)
    needed = {name: count * search.concurrent for name, count in training_resources(config).items()}
    needed["CPU"] += TRIAL_CPUS * search.concurrent
    check_resources(needed, say)
    with mailbox(say) as box:
        trial = partial(
            _trial, configs=[c for _, c in candidates], search=search, data=data_uri, run=run.uri, lines=box.actor
        )
        _run_tuner(trial, search, run)
    trials = [_outcome(run, number, fields, search) for number, (fields, _) in enumerate(candidates)]
    _conclude(run, data_uri, search, candidates, trials, say)
    return run.uri


def draw_candidates(config: RunConfig, search: Search) -> list[tuple[dict[str, Any], RunConfig]]:
    """Draw each trial's fields and configuration: a function of `config` and `search` alone."""
    random = np.random.default_rng(search.seed)
    candidates = []
    for _ in range(search.trials):
        fields = {path: _draw(random, range_) for path, range_ in search.space.items()}
        candidates.append((fields, with_fields(config, {**fields, "train.steps": search.steps})))
    return candidates


def _draw(random: np.random.Generator, range_: Range) -> Any:
    if range_.choice is not None:
        return range_.choice[random.integers(len(range_.choice))]
    if range_.log_uniform is not None:
        low, high = np.log(range_.log_uniform)
        return float(np.exp(random.uniform(low, high)))
    assert range_.uniform is not None
    return float(random.uniform(*range_.uniform))


def _claim(run: Folder, config: RunConfig, search: Search) -> None:
    record = {"config": config.model_dump(mode="json"), "search": search.model_dump(mode="json")}
    if run.exists("search.json"):
        if run.read_json("search.json") != record:
            raise UserError("--run", run.uri, "the folder of the same search", "use another --run for a changed search")
        return
    run.write_json("search.json", record)


def _trial_folder(run: Folder, number: int) -> Folder:
    return run.child(f"trials/{number:03d}")


def _trial(
    params: dict[str, int], *, configs: list[RunConfig], search: Search, data: str, run: str, lines: Any
) -> None:
    """Run one trial: train to each rung, probe there, report; ASHA may end it at a report."""
    from ray import tune

    number = params["trial"]
    folder = _trial_folder(open_run(run, PARTS), number)

    def tell(line: str) -> None:
        lines.put.remote(f"trial {number}: {line}")

    for rung in search.rungs:
        if rung not in complete_steps(folder):
            pretrain(configs[number], data, folder.uri, tell, until=rung)
        accuracy = _accuracy(folder, rung)
        if accuracy is None:
            one = [] if configs[number].evaluation.actors else ["evaluation.actors=1"]  # the cluster is shared
            evaluate(folder.uri, data, "probe", str(rung), one, tell)
            accuracy = _accuracy(folder, rung)
        tune.report({OBJECTIVE: accuracy, "step": rung})


def _accuracy(folder: Folder, step: int) -> float | None:
    result = read_result(folder, step, "probe")
    return None if result is None else result["value"]


def _run_tuner(trial: Any, search: Search, run: Folder) -> None:
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    scratch = run.child("tune")
    filesystem, path = scratch.arrow()
    scheduler = ASHAScheduler(
        time_attr="step", max_t=search.steps + 1, grace_period=search.first_rung, reduction_factor=search.reduction
    )
    tuner = tune.Tuner(
        tune.with_resources(trial, {"CPU": TRIAL_CPUS}),
        param_space={"trial": tune.grid_search(list(range(search.trials)))},
        tune_config=tune.TuneConfig(
            metric=OBJECTIVE, mode="max", scheduler=scheduler, max_concurrent_trials=search.concurrent
        ),
        run_config=tune.RunConfig(storage_path=path, storage_filesystem=filesystem, verbose=0),
    )
    try:
        results = tuner.fit()
    finally:
        scratch.remove_tree("")
    if len(results.errors) == search.trials:
        raise results.errors[0]


def _outcome(run: Folder, number: int, fields: dict[str, Any], search: Search) -> dict[str, Any]:
    """Read a trial's folder: the accuracy at each rung it reached."""
    folder = _trial_folder(run, number)
    reached = {rung: accuracy for rung in search.rungs if (accuracy := _accuracy(folder, rung)) is not None}
    last = max(reached, default=0)
    status = "finished" if last == search.steps else ("stopped" if reached else "failed")
    return {"trial": number, "run": folder.uri, "status": status, "step": last, "fields": fields, OBJECTIVE: reached}


def _conclude(
    run: Folder, data_uri: str, search: Search, candidates: list[Any], trials: list[dict[str, Any]], say: Say
) -> None:
    """Choose the trial that got furthest and scored best there, then its guidance scale; write the results."""
    finished = [trial for trial in trials if trial[OBJECTIVE]]
    best = max(finished, key=lambda trial: (trial["step"], trial[OBJECTIVE][trial["step"]]))
    chosen = candidates[best["trial"]][1]
    summary: dict[str, Any] = {"best": best["trial"], "trials": trials}
    if search.guidance:
        scores = guidance_scores(best["run"], data_uri, search.guidance)
        summary["guidance"] = scores
        winner = max(scores, key=lambda score: score["ssim"])
        chosen = with_fields(chosen, {"sampling.guidance": winner["guidance"]})
    run.write_json("trials.json", summary)
    run.write("best.yaml", dump_config(chosen).encode())
    run.write("trials.png", sweep_plot(trials, OBJECTIVE))
    for trial in sorted(finished, key=lambda t: (-t["step"], -t[OBJECTIVE][t["step"]])):
        say(_row(trial))
    say(f"best trial {best['trial']}; its configuration is {run.uri}/best.yaml")


def _row(trial: dict[str, Any]) -> str:
    fields = "  ".join(
        f"{path.split('.')[-1]} {value:.3g}" if isinstance(value, float) else f"{path.split('.')[-1]} {value}"
        for path, value in trial["fields"].items()
    )
    accuracy = trial[OBJECTIVE][trial["step"]]
    return f"trial {trial['trial']:3}  {trial['status']:8}  step {trial['step']:6}  accuracy {accuracy:.4f}  {fields}"
