"""The comparison: our figures are those of the results, and each difference has its note."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from soda_dist.errors import UserError
from soda_dist.report.comparison import compare
from tests.report import evaluated_runs as make
from tests.report.evaluated_runs import ROWS, gso, imagenet

ROOT = Path(__file__).parents[2]


def table(text: str) -> dict[str, list[str]]:
    """Cells by the row's name, of a Markdown page; of equal names the first."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("| "):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            found.setdefault(re.sub(r"\*\*|( \(.*\))?(\[\^\d+\])*$", "", cells[0]).strip("*"), cells)
    return found


def footnotes(text: str) -> dict[str, str]:
    return dict(re.findall(r"^\[\^(\d+)\]: (.*)$", text, re.MULTILINE))


def noted(cell: str, text: str) -> list[str]:
    """The footnotes that a cell refers to."""
    return [footnotes(text)[number] for number in re.findall(r"\[\^(\d+)\]", cell)]


def figures(row: list[str]) -> list[str]:
    return [re.sub(r"\[\^\d+\]", "", cell) for cell in row[2:]]


def test_a_run_like_the_papers_has_no_note_but_its_budget(tmp_path: Path) -> None:
    text = compare([imagenet(tmp_path)], "1")
    row = table(text)["run"]
    assert row[1] == "run"
    assert figures(row) == ["71.6 ± 0.1", "89.4 ± 0.1", "–"]
    (budget,) = noted(row[0], text)
    epochs = 1000 * 4096 / 1_281_167
    assert budget.startswith(
        f"trained for 1,000 steps of 4,096 pairs ({epochs:.1f} epochs); the paper's, in batches of"
    )
    assert noted(row[2], text) == [] and noted(row[3], text) == []
    assert noted(row[4], text) == ["only for runs with data.augment=both data.augmentation.randaugment_rate=0."]


def test_the_papers_rows_stand_above_with_its_own_model_in_bold(tmp_path: Path) -> None:
    text = compare([imagenet(tmp_path)], "1")
    rows = table(text)
    assert figures(rows["SODA (ours)"]) == ["72.2", "90.5", "69.1"] and rows["SODA (ours)"][0] == "**SODA (ours)**"
    assert figures(rows["MAE"]) == ["68.0", "–", "68.0"] and rows["MAE"][0] == "MAE"
    assert noted(rows["iGPT"][4], text) == ["marked in the paper."] and noted(rows["iGPT"][2], text) == []
    assert text.index("| MAE ") < text.index("| **SODA (ours)**") < text.index("| **run**")


def test_epochs_are_those_that_training_logged(tmp_path: Path) -> None:
    uri = imagenet(tmp_path)
    lines = '{"step": 500, "epoch": 4.0}\n{"step": 900, "epoch": 7.2}\n{"step": 1500, "epoch": 99.0}\n'
    (tmp_path / "run" / "metrics.jsonl").write_text(lines)
    assert "(8.0 epochs)" in compare([uri], "1")


OFF = {
    "resolution": ("data.source_size=96", "source 96 px, target 128 px; the paper's 224 and 128 px."),
    "encoder": ("encoder.arch=resnet18", "encoder resnet18; the paper's is resnet50x2."),
    "width": ("encoder.width=0.5", "encoder resnet50x2 at width 0.5; the paper's is resnet50x2."),
}


@pytest.mark.parametrize(("override", "says"), OFF.values(), ids=OFF)
def test_what_sets_a_run_apart_is_noted_at_its_name(override: str, says: str, tmp_path: Path) -> None:
    text = compare([imagenet(tmp_path, override)], "1")
    assert says in noted(table(text)["run"][0], text)
    assert says not in compare([imagenet(tmp_path / "other")], "1")


COUNTS = {"train": 1_281_167, "test": 50_000, "unreadable_train": 0, "unreadable_test": 0}
PARTS = {
    "test": ({"counts": COUNTS | {"test": 300}}, "measured on 300 of the 50,000 images of val."),
    "train": ({"counts": COUNTS | {"train": 4000}}, "fitted on 4,000 of the 1,281,167 images of train."),
    "split": ({"splits": {"train": "train", "test": "train"}}, "measured on the split train; the paper's is val."),
}


@pytest.mark.parametrize(("changes", "says"), PARTS.values(), ids=PARTS)
def test_what_sets_a_figure_apart_is_noted_at_it(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    text = compare([imagenet(tmp_path, **changes)], "1")
    assert says in noted(table(text)["run"][2], text)
    assert says not in noted(table(text)["run"][0], text)


def test_unreadable_images_make_no_part_of_a_split(tmp_path: Path) -> None:
    text = compare([imagenet(tmp_path, counts=COUNTS | {"test": 49_990, "unreadable_test": 10})], "1")
    assert noted(table(text)["run"][2], text) == []


def test_a_column_that_expects_another_training_says_so(tmp_path: Path) -> None:
    text = compare([imagenet(tmp_path, "data.augmentation.randaugment_rate=0")], "1")
    row = table(text)["run"]
    rate = "data.augmentation.randaugment_rate"
    assert noted(row[2], text) == [f"trained with {rate}=0; the paper's with {rate}=0.65."]
    assert figures(row)[2] == "71.6 ± 0.1" and noted(row[4], text) == []


def test_another_data_set_a_part_of_one_and_an_unknown_one(tmp_path: Path) -> None:
    other = imagenet(tmp_path / "a", name="other", kind="cifar10")
    part = imagenet(tmp_path / "b", name="part", rows={"train": 100_000, "val": 50_000})
    unknown = imagenet(tmp_path / "c", name="unknown", data=None)
    text = compare([other, part, unknown], "1")
    rows = table(text)
    assert "different data set: cifar10; the paper's is ImageNet1K." in noted(rows["other"][0], text)
    said = "subset of the data: 150,000 images; the paper's has 1,280,000."
    assert said in noted(rows["part"][0], text) and said not in noted(rows["other"][0], text)
    assert noted(rows["unknown"][0], text)[0] == ("unknown data set: no result names it; the paper's is ImageNet1K.")
    assert "measured on 50,000 images of val, whose size is unknown." in noted(rows["unknown"][2], text)
    assert "(an unknown number of epochs)" in noted(rows["unknown"][0], text)[-1]


def test_runs_on_cifar10_stand_beside_public_figures(tmp_path: Path) -> None:
    rows = ROWS["cifar10"]
    part = {**make.probe(rows, "test", top1=0.61), "counts": {"train": 50_000, "test": 5000}}
    results = {"probe": make.probe(rows, "test", top1=0.587), "knn": part}
    measured = make.write_run(tmp_path / "measured", "cifar10", [], make.data_facts("cifar10"), results)
    fresh = make.write_run(tmp_path / "fresh", "cifar10", [], make.data_facts("cifar10"), {"dci": {}})
    text = compare([measured, fresh, imagenet(tmp_path / "c")], "1")
    _, public = text.split("## CIFAR-10: published figures of others, not the paper's\n")
    found = table(public)
    assert list(found) == ["", "SODA by FutureXiang", "DDAE, unconditional diffusion", "measured", "fresh"]
    theirs, ours = found["SODA by FutureXiang"], found["measured"]
    assert (theirs[1], figures(theirs)) == ("public", ["80.0", "80.4"]) and (ours[1], figures(ours)[0]) == (
        "run", "58.7 ± 0.1",
    )  # fmt: skip
    assert figures(found["DDAE, unconditional diffusion"]) == ["95.9", "–"]
    assert noted(theirs[0], text)[0].startswith("https://github.com/FutureXiang/soda: 800 epochs")
    assert noted(ours[0], text) == ["trained for 1,000 steps of 512 pairs (10.2 epochs)."]
    assert noted(ours[2], text) == [] and noted(ours[3], text) == ["measured on 5,000 of the 10,000 images of test."]
    assert figures(found["fresh"]) == ["not measured"] * 2
    assert "--tasks knn" in noted(found["fresh"][3], text)[0]
    assert "## CIFAR" not in compare([imagenet(tmp_path / "d")], "1")
    for form in ("latex", "html"):
        assert "public" in compare([measured], "1", form) and "80.4" in compare([measured], "1", form)


def test_a_result_on_other_data_than_the_runs_latest_says_so(tmp_path: Path) -> None:
    cifar, how = make.data_facts("cifar10"), make.sampling("imagenet")
    probed = {**make.probe(ROWS["imagenet"], "val", top1=0.7, top5=0.9), "provenance": {"time": "2024-02-02T00:00:00Z"}}
    drawn = {**make.reconstruction(10_000, "test", how, g2={"psnr": 18.25, "ssim": 0.8}), "data": cifar}
    results = {"reconstruction": drawn, "probe": probed}
    data = make.data_facts("imagenet")
    text = compare([make.write_run(tmp_path / "run", "imagenet", (), data, results)], "9")
    row = table(text)["run"]
    assert "measured on cifar10; the latest result of this run is of imagenet." in noted(row[2], text)
    assert not any("whose size" in note or "of the 50,000" in note for note in noted(row[2], text)), "all of CIFAR's"
    assert noted(row[6], text) == [] and not any("different data set" in note for note in noted(row[0], text))


def test_novel_views_of_one_source_beside_table_3(tmp_path: Path) -> None:
    text = compare([gso(tmp_path)], "3")
    row = table(text)["run"]
    assert figures(row) == ["21.12 ± 0.00", "0.811 ± 0.001", "3.46", "0.122 ± 0.001"]
    splits = "the paper made its own 80/10/10 splits and does not publish them."
    psnr, ssim, fid, lpips = (noted(cell, text) for cell in row[2:])
    assert psnr == fid == lpips == [splits], "all 12,000 views, by the paper's sampler"
    assert ssim[0] == splits and ssim[1].startswith("not on the paper's scale of SSIM") and len(ssim) == 2
    assert text.count("| **run**") == 1 and "Runs on other data sets" not in text
    assert text.index("## GSO") < text.index("| **run**") < text.index("## ShapeNet")


def test_a_part_of_the_objects_or_views_is_told_at_the_figures_of_that_set(tmp_path: Path) -> None:
    """111 of an object's 120 views are left when 9 are sources: no fewer is a part."""
    all_of_them = {"views": 11_100, "of_views": 11_100, "objects": 100, "of_objects": 100}
    text = compare([gso(tmp_path / "all", coverage=all_of_them)], "3")
    assert not any("measured on" in note for cell in table(text)["run"][2:] for note in noted(cell, text))
    text = compare([gso(tmp_path / "some", coverage=all_of_them | {"views": 64, "objects": 8})], "3")
    row, says = table(text)["run"], "measured on 64 of the 11,100 target views of test, of 8 of the 100 objects."
    assert says in noted(row[2], text) and says in noted(row[5], text)
    assert says not in noted(row[4], text), "FID has a set of its own"


def test_a_part_of_the_images_is_told_at_each_sets_own_figures(tmp_path: Path) -> None:
    data, how = make.data_facts("celebahq"), make.sampling("celebahq")
    drawn = make.reconstruction(64, "test", how, g2={"psnr": 18.25, "ssim": 0.8, "lpips": 0.3})
    fid = make.fid(3000, "test", how, reconstruction=11.5, samples=99.0)
    fid["sets"]["reconstruction"]["counts"] = {"images": 500, "unreadable": 0}
    run = make.write_run(tmp_path / "run", "celebahq", (), data, {"reconstruction": drawn, "fid": fid})
    text = compare([run], "11")
    row = table(text)["run"]
    assert "measured on 64 of the 3,000 images of test." in noted(row[6], text)
    assert "measured on 500 of the 3,000 images of test." in noted(row[8], text)


def test_lpips_by_another_network_than_the_papers_is_told(tmp_path: Path) -> None:
    data, how = make.data_facts("celebahq"), make.sampling("celebahq")
    drawn = make.reconstruction(3000, "test", how, g2={"psnr": 18.25, "ssim": 0.8, "lpips": 0.3})
    drawn["lpips"]["net"] = "alex"
    text = compare([make.write_run(tmp_path / "run", "celebahq", (), data, {"reconstruction": drawn})], "11")
    row = table(text)["run"]
    assert "LPIPS by alex; the paper's is taken to be by vgg." in noted(row[9], text)
    assert not any("LPIPS" in note for note in noted(row[6], text))


def test_a_run_on_none_of_several_data_sets_stands_below_them(tmp_path: Path) -> None:
    uri = gso(tmp_path, data=make.data_facts("cifar10", {"train": 96_000, "test": 12_000}))
    text = compare([uri], "3")
    assert text.index("## NMR") < text.index("## Runs on other data sets (compared with GSO)") < text.index("| **run**")
    assert "different data set: cifar10; the paper's is GSO." in noted(table(text)["run"][0], text)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["sampling.guidance=1"], "guidance 1; the paper's is 2.5."),
        (["sampling.steps=20"], "sampled by ddpm in 20 steps; the paper's by ddpm in 75 to 250."),
        (["sampling.method=ddim"], "sampled by ddim in 100 steps; the paper's by ddpm in 75 to 250."),
    ],
)
def test_another_way_of_sampling_is_noted(overrides: list[str], says: str, tmp_path: Path) -> None:
    text = compare([gso(tmp_path, *overrides)], "3")
    row = table(text)["run"]
    assert says in noted(row[2], text) and says not in noted(row[4], text), "FID's own settings are the paper's"


def test_test_weights_make_no_fid_that_can_be_compared(tmp_path: Path) -> None:
    text = compare([gso(tmp_path, published=False)], "3")
    says = "FID used non-standard weights; not comparable with published values."
    row = table(text)["run"]
    assert says in noted(row[4], text) and says not in noted(row[2], text)


def test_fid_by_sources_is_asked_for_at_the_number_of_the_column(tmp_path: Path) -> None:
    text = compare([gso(tmp_path, fid_sampling=("sampling.sources=3",))], "5")
    row = table(text)["run"]
    assert figures(row) == ["not measured", "3.456", "not measured", "not measured", "not measured"]
    (note,) = noted(row[4], text)
    assert "--tasks fid --step 1000 sampling.sources=5 evaluation.inception.weights=FILE" in note


def test_what_is_not_measured_names_its_command(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    uri = imagenet(tmp_path / "a b")
    text = compare([uri], "9")
    row = table(text)["run"]
    assert figures(row)[:4] == ["not measured"] * 4 and figures(row)[4] == "71.57 ± 0.10"
    (note,) = noted(row[2], text)
    assert noted(row[3], text) == [note], "PSNR and SSIM have one command, and so one footnote"
    assert len(set(footnotes(text).values())) == len(footnotes(text))
    words = shlex.split(re.search(r"`(.*)`", note)[1])
    assert words[:6] == ["python", "jobs/evaluate.py", "--run", uri, "--data", "/gone/data"]
    assert words[words.index("--tasks") + 1] == "reconstruction" and words[words.index("--step") + 1] == "1000"


@pytest.mark.parametrize(
    ("overrides", "key", "shown"),
    [
        ((), "g2", "18.25 ± 0.00"),
        (("sampling.guidance=2.5",), "g2_5", "18.25 ± 0.00"),
        (("sampling.guidance=3",), "g2", "not measured"),
        (("method=encdec", "denoiser.layer_mask_rate=0", "denoiser.guidance_mask_rate=0"), "g1", "18.25 ± 0.00"),
    ],
)
def test_reconstructions_are_those_at_the_runs_guidance(
    overrides: tuple[str, ...], key: str, shown: str, tmp_path: Path
) -> None:
    data, rows = make.data_facts("celebahq"), ROWS["celebahq"]
    how = make.sampling("celebahq", *(o for o in overrides if o.startswith("sampling.")))
    results = {
        "probe": make.probe(rows, "test", macro_f1=0.7111, accuracy=0.99),
        "dci": make.dci(rows, 0.61, 0.52, 0.43),
        "reconstruction": make.reconstruction(3000, "test", how, **{key: {"psnr": 18.25, "ssim": 0.8, "lpips": 0.3}}),
        "fid": make.fid(3000, "test", how, reconstruction=11.5, samples=99.0),
    }
    row = table(compare([make.write_run(tmp_path / "run", "celebahq", overrides, data, results)], "11"))["run"]
    assert figures(row)[:4] == ["71.11 ± 0.10", "61.00", "52.00", "43.00"]
    assert figures(row)[4] == shown and figures(row)[6] == "11.50"


def test_an_unconditional_run_has_no_reconstruction_and_the_fid_of_its_samples(tmp_path: Path) -> None:
    data = make.data_facts("celebahq")
    overrides = ("method=unconditional", "denoiser.layer_mask_rate=0", "denoiser.guidance_mask_rate=0")
    results = {"fid": make.fid(3000, "test", make.sampling("celebahq"), reconstruction=1.0, samples=25.5)}
    text = compare([make.write_run(tmp_path / "run", "celebahq", overrides, data, results)], "6")
    row = table(text)["run"]
    assert figures(row)[4:] == ["–", "–", "25.50", "–"]
    assert noted(row[6], text) == ["not defined for method=unconditional."]


def test_the_mean_of_three_scores_has_no_standard_error(tmp_path: Path) -> None:
    data = make.data_facts("mpi3d_toy")
    results = {"dci": make.dci(ROWS["mpi3d_toy"], 0.9, 0.6, 0.3)}
    text = compare([make.write_run(tmp_path / "run", "mpi3d_toy", (), data, results)], "4")
    assert figures(table(text)["run"]) == ["60.00"]
    assert "the paper's figure is the mean over MPI3D's four sets." in noted(table(text)["run"][0], text)


def test_the_latest_evaluated_step_is_taken_or_the_one_asked_for(tmp_path: Path) -> None:
    data = make.data_facts("imagenet")
    for step, top1 in ((900, 0.5), (10_000, 0.7), (2000, 0.6)):
        result = {"probe": make.probe(ROWS["imagenet"], "val", top1=top1, top5=0.9)}
        uri = make.write_run(tmp_path / "run", "imagenet", (), data, result, step)
    assert figures(table(compare([uri], "1"))["run"])[0] == "70.0 ± 0.1"
    text = compare([uri], "1", step="900")
    assert figures(table(text)["run"])[0] == "50.0 ± 0.1" and "trained for 900 steps" in text
    with pytest.raises(UserError, match="900, 2000, 10000, latest"):
        compare([uri], "1", step="901")


def test_runs_are_told_apart_by_folder_and_by_what_differs(tmp_path: Path) -> None:
    uris = [
        imagenet(tmp_path / "a"),
        imagenet(
            tmp_path / "b", "data.views=same", "scale.workers=32", "evaluation.batch=7", "optim.lr=1e-3", "seed=4"
        ),
    ]
    names = [line.split("|")[1].strip() for line in compare(uris, "1").splitlines() if line.startswith("| **")][1:]
    assert re.sub(r"\[\^\d+\]", "", names[0]) == "**a/run** (views=augmented, seed=0, lr=0.0004)"
    assert re.sub(r"\[\^\d+\]", "", names[1]) == "**b/run** (views=same, seed=4, lr=0.001)"
    single = table(compare(uris[:1], "1"))["run"][0]
    assert single.startswith("**run** (method=soda, views=augmented, arch=resnet50x2, ")
    with pytest.raises(UserError, match="twice"):
        compare([uris[0], f"{uris[0]}/"], "1")


def _job(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "jobs/compare.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_the_job_prints_markdown_or_says_where_it_wrote(tmp_path: Path) -> None:
    uri = imagenet(tmp_path)
    done = _job("--runs", uri, "--table", "1")
    assert (done.returncode, done.stdout) == (0, compare([uri], "1")), done.stderr
    done = _job("--runs", uri, "--table", "1", "--format", "html", "--out", str(tmp_path / "out"))
    assert done.stdout == f"{tmp_path}/out/compare-1.html\n"


@pytest.mark.parametrize(
    ("evaluated", "arguments", "says"),
    [
        (False, ["--table", "1"], "which has no evaluation"),
        (True, ["--table", "13"], "--table: got 13; allowed: 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, G.3"),
        (True, ["--table", "1", "--format", "pdf"], "--format: got pdf; allowed: markdown, latex, html"),
        (None, ["--table", "1"], "which has no config.yaml"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    evaluated: bool | None, arguments: list[str], says: str, tmp_path: Path
) -> None:
    uri = imagenet(tmp_path) if evaluated else str(tmp_path / "run")
    if evaluated is False:
        make.write_run(tmp_path / "run", "imagenet", (), {}, {})
    done = _job("--runs", uri, *arguments)
    assert done.returncode == 2 and says in done.stderr, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
