"""The choice of the recipe from the table of a sweep."""

from math import nan

import pandas as pd

from mmcollapse.sweep import COLUMNS, choose, in_words


def table(settings):
    """settings: (role, rate, steps) -> late all-right; generation 0 is at 0.8, and three seeds spread by 0.01."""
    rows = []
    for (role, rate, steps), late in settings.items():
        decides = {"generator": "guidance 1", "captioner": "greedy"}[role]
        for seed in (900, 901, 902):
            common = {"role": role, "learning_rate": rate, "steps": steps, "seed": seed, "metric": "all_right"}
            for g, value in {0: 0.8, 8: late, 9: late, 10: late}.items():
                value = value + (seed - 901) * 0.01
                rows.append(common | {"generation": g, "measurement": decides, "value": value, "n": 500, "hash": "x"})
                rows.append(rows[-1] | {"measurement": "other", "value": 0.0})  # another measurement does not decide
    return pd.DataFrame(rows, columns=COLUMNS)


def test_the_most_training_that_does_not_destroy_is_chosen():
    found = choose(
        table(
            {
                ("generator", 1e-4, 100): 0.82,
                ("generator", 1e-4, 400): 0.76,  # loses 0.04, and is trained most of what is kept
                ("generator", 4e-4, 100): 0.751,  # the same training, but loses more
                ("generator", 4e-4, 400): 0.74,  # loses 0.06
                ("captioner", 1e-4, 100): 0.5,
            }
        )
    )
    chosen = found[found.chosen]
    assert [tuple(r) for r in chosen[["role", "learning_rate", "steps"]].values] == [("generator", 1e-4, 400)]
    assert abs(chosen.loss.iloc[0] - 0.04) < 1e-9
    said = in_words(found)
    assert "generator: rate 0.0001, 400 steps" in said and "captioner: no setting keeps *real* within 0.05" in said


def test_a_setting_that_diverged_once_is_not_chosen():
    good, bad = ("generator", 1e-4, 100), ("generator", 1e-3, 100)
    whole = table({good: 0.8, bad: 0.8})
    diverged = (whole.learning_rate == 1e-3) & (whole.seed == 902) & (whole.generation == 10)
    whole.loc[diverged, ["generation", "value"]] = [-1, nan]
    found = choose(whole)
    assert found.set_index("learning_rate").kept.to_dict() == {1e-4: True, 1e-3: False}
    assert found[found.chosen].learning_rate.tolist() == [1e-4]


def test_it_runs_the_real_arm_on_pilot_seeds_at_every_setting(tmp_path, monkeypatch):
    import test_experiments as toys
    from mmcollapse import sweep
    from mmcollapse.settings import load_settings

    settings = load_settings("smoke", generations=2, pairs=6, steps=2, results=str(tmp_path), runs=str(tmp_path / "r"))
    study, seen = toys.open_toys(tmp_path / "r", generations=2, pairs=6, steps=2), []

    def measure(study, tools, protocol, member, held, seed, g):
        seen.append((protocol.arm, member.role, seed, g, held.digest))
        row = {"metric": "all_right", "subset": "test", "measurement": "x", "value": 0.5, "n": 6, "hash": held.digest}
        return [row, row | {"subset": "train"}, row | {"metric": "kid"}]

    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setattr(sweep, "RATES", (0.5, 2.0))
    monkeypatch.setattr(sweep, "open_study", lambda settings: (study, None))
    monkeypatch.setattr(sweep, "measure_member", measure)
    table = sweep.sweep(settings)
    assert list(table.columns) == COLUMNS and len(table) == 2 * 6 * 3 * 2  # roles, settings, seeds, generations
    assert {arm for arm, *_ in seen} == {"real"} and {seed for _, _, seed, *_ in seen} == {900, 901, 902}
    assert set(table.seed) == {900, 901, 902} and toys.makings(study) == 0
    assert sorted(set(table.steps)) == [1, 2, 4] and len(set(table[table.role == "captioner"].learning_rate)) == 2
    assert len(study.store.items("weights")) == 2 * 6 * 3 * 2 and set(table.generation) == {0, 2}
    assert (tmp_path / "00_recipe.parquet").is_file()
