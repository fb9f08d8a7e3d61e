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
