"""The whole evaluation over pools in this process: what is written, that no order decides anything, wrong input."""

import shutil
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from soda_dist.evaluation import LocalPool, evaluate, task_runner
from soda_dist.evaluation.task_runner import guidance_scores
from soda_dist.metrics import METRICS
from soda_dist.plots.guidance_sweep import sweep_png
from soda_dist.report.page import write_report
from soda_dist.runs.results import Data, read_run
from tests.evaluation.scattered_pool import ScatteredPool
from tests.evaluation.small_run import EVALUATION, small_data, train
from tests.tiny import tiny_config
from tests.training.older_run import FORMAT_1, age

pytestmark = pytest.mark.slow


def _fails(place: Path, message: str, tasks: str = "probe", **changed: object) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(str(place / "run"), str(place / "data"), tasks, **changed)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def results(place: Path) -> tuple[dict, list[str]]:
    said: list[str] = []
    found = evaluate(str(place / "run"), str(place / "data"), "reconstruction,knn,probe", LocalPool(), say=said.append)
    return found, said


def test_results_are_written_and_say_what_they_are(place: Path, results) -> None:
    run, found = open_folder(str(place / "run")), results[0]
    assert list(found) == ["probe", "knn", "reconstruction"]
    data = {"uri": str(place / "data"), "kind": "test", "rows": {"train": 45, "test": 30}, "reencoded": None}
    for name, result in found.items():
        assert run.read_json(f"eval/6/{name}.json") == result
        assert result["data"] == data
    assert read_run(run.uri).data == Data(**data)
    probe = found["probe"]
    counts = {"train": 44, "test": 29, "unreadable_train": 1, "unreadable_test": 1}
    assert probe["counts"] == counts and probe["unreadable"] == {"train": ["train/13.png"], "test": ["test/0.png"]}
    assert (probe["label"], probe["kind"], probe["classes"], probe["step"]) == ("colour", "class", 3, 6)
    assert probe["majority"] == pytest.approx(9 / 29)
    assert probe["settings"]["epochs"] == 60 and probe["provenance"]["packages"]["torch"]
    assert (probe["metric"], probe["value"]) == ("top1", probe["encoders"]["trained"]["estimates"]["top1"]["value"])
    assert [e["dimension"] for e in probe["encoders"].values()] == [12, 12, 768]
    assert probe["encoders"]["pixels"]["estimates"]["top1"]["value"] > 0.9, "the colour is in the pixels"
    assert set(probe["encoders"]["trained"]["details"]["held_out"]) == {"0.01", "0.03"}


def test_the_sweep_has_each_way_of_sampling_once_and_is_drawn(place: Path, results) -> None:
    result = results[0]["reconstruction"]
    ways = [(row["guidance"], row["steps"]) for row in result["sweep"]]
    assert ways == [(2.0, 5), (1.0, 5), (3.0, 5), (2.0, 2)]
    assert list(result["guidance"]) == ["2", "1", "3"] and result["value"] == result["guidance"]["2"]["psnr"]["value"]
    assert open_folder(str(place / "run")).read("eval/6/sweep.png") == sweep_png(result["sweep"])


def test_tables_and_progress_are_shown(results) -> None:
    text = "\n".join(results[1])
    probe = results[0]["probe"]["encoders"]
    assert "latents of train: 45 of 45 images" in text and "samples: 15 of 15 images" in text
    assert "probe of 44 images: 3 of 3 fits" in text
    assert "linear probe at step 6: colour, 3 classes, 44 training and 29 test images" in text
    for name, shown in (("trained", "trained"), ("untrained", "untrained"), ("pixels", "raw pixels")):
        estimate = probe[name]["estimates"]["top1"]
        line = next(line for line in results[1] if line.startswith(f"  {shown} "))
        assert f"{100 * estimate['value']:.1f}% ± {100 * estimate['standard_error']:4.1f}" in line
    assert "2 unreadable images were left out" in text


def test_the_order_in_which_pieces_are_done_decides_nothing(small: Path, place: Path, results, tmp_path: Path) -> None:
    """Another pool, and nothing cached."""
    run, other = open_folder(str(place / "run")), open_folder(str(tmp_path / "run"))
    shutil.copytree(small / "run", other.uri)
    again = evaluate(other.uri, str(place / "data"), "probe,knn,reconstruction", ScatteredPool(1), step="6")
    for task in ("probe", "knn"):
        for name, scores in again[task]["encoders"].items():
            before = results[0][task]["encoders"][name]
            assert (scores["estimates"], scores["details"]) == (before["estimates"], before["details"])
    assert again["reconstruction"]["guidance"] == results[0]["reconstruction"]["guidance"]
    for name in ("reconstruction.png", "denoising.png"):
        picture = run.read(f"eval/6/{name}")
        assert other.read(f"eval/6/{name}") == picture and Image.open(BytesIO(picture)).format == "PNG"


def test_an_earlier_step_other_settings_and_all_attributes(place: Path) -> None:
    overrides = ["evaluation.label=attributes", "evaluation.max_train_images=20", "evaluation.max_test_images=10"]
    found = evaluate(str(place / "run"), str(place / "data"), "probe", step="3", overrides=overrides)["probe"]
    assert open_folder(str(place / "run")).read_json("eval/3/probe.json") == found
    assert (found["label"], found["kind"], found["metric"]) == ("attributes", "attribute", "macro_f1")
    counts = found["counts"]
    assert [counts[which] + counts[f"unreadable_{which}"] for which in ("train", "test")] == [20, 10]
    assert (found["limits"], found["seed"]) == ({"train": 20, "test": 10}, 0)
    assert list(found["encoders"]["trained"]["estimates"]) == ["macro_f1", "accuracy"]


def test_an_older_run_is_evaluated_as_it_was_trained(small: Path, tmp_path: Path) -> None:
    config = tiny_config(evaluation=EVALUATION, denoiser=FORMAT_1)
    run = train(str(tmp_path / "run"), config)
    before = evaluate(run.uri, str(small / "data"), "knn,reconstruction")
    shutil.copytree(tmp_path / "run", tmp_path / "older", ignore=shutil.ignore_patterns("eval", "latents", "samples"))
    older = open_folder(str(tmp_path / "older"))
    age(older)
    after = evaluate(older.uri, str(small / "data"), "knn,reconstruction")
    one, other = (found["knn"]["encoders"]["trained"]["estimates"] for found in (before, after))
    assert one == other
    assert after["reconstruction"]["sweep"] == before["reconstruction"]["sweep"]
    assert read_run(older.uri).field("denoiser.up_path") == "mirrored"


def test_all_steps_are_evaluated_with_and_without_the_running_mean(small: Path, tmp_path: Path) -> None:
    run = open_folder(str(shutil.copytree(small / "run", tmp_path / "run")))
    data, settings = str(small / "data"), ["evaluation.batch=45"]
    mean = evaluate(run.uri, data, "knn", step="all", overrides=settings)["knn"]
    live = evaluate(run.uri, data, "knn", step="all", overrides=settings, ema=False)["knn"]
    written = [run.read_json(f"eval/{name}/knn.json") for name in ("3", "6", "3/without-ema", "6/without-ema")]
    assert [(each["step"], each["ema"]) for each in written] == [(3, True), (6, True), (3, False), (6, False)]
    assert (mean, live) == (written[1], written[3]), "those of the last step"
    assert len({each["weights"] for each in written}) == 4


def test_guidance_scores_are_the_reconstructions(place: Path, results) -> None:
    scores = guidance_scores(str(place / "run"), str(place / "data"), (1.0, 3.0))
    measured = results[0]["reconstruction"]["guidance"]
    assert scores == [
        {"guidance": w, "psnr": measured[name]["psnr"]["value"], "ssim": measured[name]["ssim"]["value"]}
        for w, name in ((1.0, "1"), (3.0, "3"))
    ]


def test_after_each_task_its_caller_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    tasks = {name: SimpleNamespace(do=lambda _, name=name: done.append(name) or {"task": name}) for name in "ab"}
    monkeypatch.setattr(task_runner, "TASKS", tasks)
    context = SimpleNamespace(close=lambda: done.append("closed"))
    assert list(task_runner._do(["b", "a"], context, lambda: done.append("page"))) == ["b", "a"]
    assert done == ["b", "page", "a", "page", "closed"]


def test_the_report_shows_these_results(place: Path, results) -> None:
    uri = write_report(str(place / "run"))
    text = Path(uri).read_text()
    for task in ("probe", "knn"):
        for scores in results[0][task]["encoders"].values():
            assert f'<data value="{scores["estimates"]["top1"]["value"]}">' in text
    assert text.count("data:image/png;base64") == 3


def test_a_damaged_shard_is_told_in_one_line(place: Path, tmp_path: Path) -> None:
    small_data(tmp_path / "data")
    shard = tmp_path / "data" / "test" / "00001.parquet"
    content = bytearray(shard.read_bytes())
    content[200:400] = bytes(200)
    shard.write_bytes(content)
    with pytest.raises(UserError, match="altered shard") as caught:
        # Another batch: the latents of these shards are there from before.
        evaluate(str(place / "run"), str(tmp_path / "data"), "probe", overrides=["evaluation.batch=7"])
    assert "\n" not in str(caught.value)


def test_more_neighbours_than_images_are_refused_before_any_work(place: Path) -> None:
    _fails(place, r"evaluation.knn.k: got 46; allowed: 1..45", "knn", overrides=("evaluation.knn.k=46",))
    _fails(place, r"got 5; allowed: 1..4", "knn", overrides=("evaluation.max_train_images=4",))


@pytest.mark.parametrize(
    ("message", "changed"),
    [
        (r"--tasks: got is; allowed: probe, knn, ", {"tasks": "probe,is"}),
        (r"--tasks: got nothing", {"tasks": ""}),
        (r"--step: got 4; allowed: 3, 6, latest, all", {"step": "4"}),
        (r"--step: got last; allowed: 3, 6, latest, all", {"step": "last"}),
        (r"override: got encoder.norm=batch; allowed: evaluation", {"overrides": ("encoder.norm=batch",)}),
        (r"override: got evaluation.batch; allowed: evaluation", {"overrides": ("evaluation.batch",)}),
        (r"evaluation.actors: got '?0'?; allowed", {"overrides": ("evaluation.actors=0",)}),
        (
            r"evaluation.label: got shape; allowed: colour, bright, late, attributes",
            {"overrides": ("evaluation.label=shape",)},
        ),
        (r"evaluation.test_split: got val; allowed: train, test", {"overrides": ("evaluation.test_split=val",)}),
    ],
)
def test_wrong_input_is_refused(place: Path, message: str, changed: dict) -> None:
    _fails(place, message, **changed)


def test_a_folder_that_is_no_run_or_has_no_checkpoint_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.yaml"):
        evaluate(str(tmp_path), str(place / "data"), "probe")
    open_folder(str(tmp_path)).write("config.yaml", b"seed: 1\n")
    with pytest.raises(UserError, match="has no complete checkpoint"):
        evaluate(str(tmp_path), str(place / "data"), "probe")


def test_a_missing_shard_is_refused(place: Path, tmp_path: Path) -> None:
    small_data(tmp_path)
    (tmp_path / "train" / "00001.parquet").unlink()
    with pytest.raises(UserError, match="a missing shard"):
        evaluate(str(place / "run"), str(tmp_path), "probe")


def test_the_settings_of_every_metric_are_its_section_of_the_configuration() -> None:
    config = tiny_config()
    for name in METRICS:
        assert getattr(config.evaluation, name).model_dump()


def test_the_jobs_help_names_every_task() -> None:
    from soda_dist.commands.evaluate import TASKS as HELP
    from soda_dist.evaluation.tasks import TASKS

    assert HELP.partition(";")[0].removeprefix("comma-separated: ").split(", ") == list(TASKS)
