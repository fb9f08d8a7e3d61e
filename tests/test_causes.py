"""The numbers of causes.toml, from tables whose numbers are known."""

import tomllib

import pandas as pd
import pytest

from mmcollapse import claims
from mmcollapse.causes import FILE, causes
from mmcollapse.experiments import arms_of
from mmcollapse.settings import load_settings

CAUSES = tomllib.loads(FILE.read_text())["cause"]


def rows_of(cause, seeds=(0, 1), generations=10) -> pd.DataFrame:
    """Chains of every arm that a cause asks for: a value is 0.5 plus a hundredth of the generation, and of its seed."""
    rows = []
    for modality, metric, measurement, arm, _ in cause["values"].values():
        for seed in seeds:
            for g in range(generations + 1):
                rows.append((arm, seed, g, modality, metric, measurement, 0.5 + g / 100 + seed / 100))
    frame = pd.DataFrame(
        rows, columns=["arm", "seed", "generation", "modality", "metric", "measurement", "value"]
    ).drop_duplicates()
    return frame.assign(space="judge", subset="test", model="generator", n=9, missing="")


def test_every_cause_names_claims_and_arms_that_exist():
    ids = {claim.id for claim in claims.all_claims()}
    for cause in CAUSES:
        arms = {p.arm for p in arms_of(cause["experiment"], load_settings("study", cause["experiment"]))}
        assert set(cause["claims"]) <= ids and {row[3] for row in cause["values"].values()} <= arms
        assert all(row[4] in ("start", "late") for row in cause["values"].values())


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause["claims"][0])
def test_numbers_are_means_over_seeds_of_whole_chains(cause):
    """Late is the mean of generations 8 to 10, which here is 0.59, half a hundredth more over two seeds."""
    table = rows_of(cause)
    others = [table.assign(space="words", value=9.0), table.assign(subset="train", value=9.0)]
    others += [table.assign(model=model, value=9.0) for model in ("student 0", "pool")]
    (line,) = causes({cause["experiment"]: pd.concat([table, *others])})
    values = {name: 0.505 if row[4] == "start" else 0.595 for name, row in cause["values"].items()}
    assert line == f"**{', '.join(cause['claims'])}** (2 seeds): " + cause["text"].format(**values)
    a_gap = table[~((table.seed == 1) & (table.generation == 9))]
    arms = {row[3] for row in cause["values"].values()}
    assert not causes({cause["experiment"]: a_gap}) and not causes({cause["experiment"]: table[table.arm != min(arms)]})


def test_arms_of_fewer_seeds_are_told_and_nothing_is_said_of_none():
    cause = CAUSES[0]
    table = rows_of(cause, seeds=range(5))
    few = table[(table.arm != "gen0") | (table.seed < 3)]
    assert causes({"01_variance": few})[0].startswith("**C1** (3 to 5 seeds): ")
    assert causes({}) == [] and causes({"02_decoding_budget": table}) == []
