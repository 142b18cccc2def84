"""DCI's benchmark: what it is scaled by, what it plants, and one small measurement from end to end."""

import numpy as np
import pytest

from soda_dist.benchmarks import dci
from soda_dist.benchmarks.dci import LEVELS, SLICE, count_trees, make_data, measure_dci
from soda_dist.benchmarks.harness import conclude
from soda_dist.errors import UserError
from soda_dist.parallel.local_pool import LocalPool


def test_a_round_grows_the_trees_that_scikit_learn_grows() -> None:
    codes, values, _ = make_data(60, 20, seed=0)
    for factor in SLICE:
        model = dci.GradientBoostingClassifier(n_estimators=1, max_depth=1).fit(codes, values[:, factor])
        assert model.estimators_.size == count_trees((LEVELS[factor],))
    assert count_trees(LEVELS) == 70


def test_factors_lie_in_their_sections() -> None:
    codes, values, bounds = make_data(4000, 100, seed=0)
    assert bounds == [(10 * n, 10 * n + 10) for n in range(10)]
    seen = np.abs(np.corrcoef(codes.T, values.T)[:100, 100:])
    assert (seen.reshape(10, 10, 10).mean(axis=1).argmax(axis=0) == np.arange(10)).all()
    again, other = make_data(4000, 100, seed=0)[0], make_data(4000, 100, seed=1)[0]
    assert (again == codes).all() and (other != codes).all()


@pytest.fixture(params=["process", pytest.param("actors", marks=[pytest.mark.ray, pytest.mark.long])])
def fitting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors are fitted in this process, or in the long form by actors."""
    if request.param == "actors":
        request.getfixturevalue("cluster")
    else:
        monkeypatch.setattr(dci, "ActorPool", lambda say: LocalPool())


@pytest.mark.usefixtures("fitting")
def test_a_small_measurement_names_both_sides_and_their_ratio() -> None:
    said = list[str]()
    (result,) = measure_dci(["rows=300", "codes=40", "rounds=3"], said.append)
    assert result["name"] == "DCI, 300 x 40, 10 factors" and result["limit"] == 20.0
    (ours,), theirs = result["rounds"].values()
    assert result["ratio"] == pytest.approx(ours / max(theirs), abs=0.001)
    assert list(result["median"].values()) == pytest.approx([ours, max(theirs)], rel=0.001)
    slices = [float(line.split()[-2]) for line in said if ", 6 trees" in line]
    conclude([result], None, said.append)
    assert said[-1].startswith(f"  ratio {result['ratio']:.3f}") and "; disentanglement 0." in said[-1]
    assert [3600 / rate for rate in theirs] == pytest.approx([s / 6 * 70 * 3 for s in slices], rel=0.01)


@pytest.mark.parametrize("override", ["rowz=3", "rows=x", "rows=0", "rows", "codes=9"])
def test_other_sizes_are_refused(override: str) -> None:
    with pytest.raises(UserError):
        measure_dci([override], lambda _: None)
