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
    from mmcollapse import sweep
    from mmcollapse.experiment import Done
    from mmcollapse.settings import load_settings

    class Pool:
        """Gives every chain the same rows, of which three in four are not what decides; one chain diverges."""

        def run(self, chains):
            self.chains = chains
            for chain in chains:
                row = {"metric": "all_right", "subset": "test", "measurement": "x", "value": 0.5, "n": 6, "hash": "h"}
                row |= {"model": "generator", "arm": "real"}
                every = [row, row | {"subset": "train"}, row | {"metric": "kid"}, row | {"model": "set"}]
                rows = [r | {"generation": g, "seed": chain.seed} for r in every for g in range(11)]
                yield Done(chain, rows, failure="it diverged" if chain is chains[-1] else "")

    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setattr(sweep, "RATES", (0.5, 2.0))
    settings = load_settings("smoke", generations=10, steps=2, results=str(tmp_path), runs=str(tmp_path / "r"))
    pool = Pool()
    table = sweep.sweep(settings, pool)
    assert {(c.protocol.arm, c.seed) for c in pool.chains} == {("real", 900), ("real", 901), ("real", 902)}
    own = [(c.protocol.roles[0], c.settings) for c in pool.chains]
    asked = {(role, s.lr_generator, s.lr_captioner, s.steps) for role, s in own}
    g, c = settings.lr_generator, settings.lr_captioner
    wanted = {("generator", f * g, c, n) for f in (0.5, 2.0) for n in (1, 2, 4)}
    assert asked == wanted | {("captioner", g, f * c, n) for f in (0.5, 2.0) for n in (1, 2, 4)}
    assert list(table.columns) == COLUMNS and len(table) == 2 * 6 * 3 * 4 + 1  # roles, settings, seeds, generations
    assert set(table.generation) == {0, 8, 9, 10, -1} and set(table.value.dropna()) == {0.5}
    assert (tmp_path / "00_recipe.parquet").is_file()
