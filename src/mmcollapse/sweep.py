"""The recipe: learning rate and steps, chosen on the *real* arm alone, on pilot seeds that are never used again."""

from __future__ import annotations

import io
from dataclasses import replace
from math import nan

import pandas as pd

from mmcollapse.disk import write_whole
from mmcollapse.experiment import Chain, Progress
from mmcollapse.experiments import real
from mmcollapse.settings import Settings
from mmcollapse.stats import late_generations

SEEDS = (900, 901, 902)
RATES = (0.25, 0.5, 1.0, 2.0, 4.0)  # times the profile's learning rate
STEPS = (0.5, 1.0, 2.0)  # times the profile's steps
LOSS = 0.05  # of all-right, from generation 0 to late, that the recipe may cost on real data
DECIDES = {"generator": "guidance 1", "captioner": "greedy"}  # the measurement that is looked at
COLUMNS = ["role", "learning_rate", "steps", "seed", "generation", "measurement", "metric", "value", "n", "hash"]


def sweep(settings: Settings, pool) -> pd.DataFrame:
    """Run the grid on a pool.Pool and write RESULTS/00_recipe.parquet: a row a value, columns COLUMNS, metric all_right
    on test prompts at generation 0 and the late generations. A chain that ended early has one more row, with the value
    NaN."""
    look, chains, rows = {0, *late_generations(settings.generations)}, [], []
    for role in DECIDES:
        for rate in RATES:
            for steps in STEPS:
                changes = {f"lr_{role}": rate * getattr(settings, f"lr_{role}"), "students": 0, "measure": "brief"}
                own = replace(settings, steps=max(1, round(steps * settings.steps)), **changes)
                chains += [Chain("00_recipe", real(role), seed, own) for seed in SEEDS]
    progress = Progress(len(chains), settings.generations)
    for done in pool.run(chains):
        (role,), own = done.chain.protocol.roles, done.chain.settings
        common = {"role": role, "learning_rate": getattr(own, f"lr_{role}"), "steps": own.steps}
        common |= {"seed": done.chain.seed, "metric": "all_right"}
        progress.chain(f"{done.chain.name}, rate {common['learning_rate']:g}, {own.steps} steps", done.seconds)
        found = [r for r in done.rows if r["metric"] == "all_right" and r["subset"] == "test" and r["model"] != "set"]
        rows += [{k: r[k] for k in COLUMNS if k in r} | common for r in found if r["generation"] in look]
        if done.failure:
            print(f"FAILED: {done.failure}", flush=True)
            rows.append(common | {"generation": -1, "measurement": DECIDES[role], "value": nan, "n": 0, "hash": ""})
    table, buffer = pd.DataFrame(rows, columns=COLUMNS), io.BytesIO()
    table = table.sort_values(COLUMNS[:6], ignore_index=True)
    table.to_parquet(buffer, index=False)
    settings.results_folder.mkdir(parents=True, exist_ok=True)
    write_whole(settings.results_folder / "00_recipe.parquet", buffer.getvalue())
    return table


def choose(table: pd.DataFrame) -> pd.DataFrame:
    """Of a sweep's table, a row a setting: role, learning_rate, steps, start and late all-right (means over seeds),
    loss (start - late), kept (loss at most LOSS, no chain diverged), chosen (of those that are kept, the one with the
    most training, learning rate x steps; of equals the one that loses least; none if none is kept)."""
    out = []
    for (role, lr, steps), rows in table.groupby(["role", "learning_rate", "steps"]):
        rows = rows[rows.measurement == DECIDES[role]]
        start, late = rows[rows.generation == 0].value.mean(), rows[rows.generation != 0].value.mean(skipna=False)
        loss = start - late
        out.append([role, lr, steps, start, late, loss, bool(loss <= LOSS)])
    settings = pd.DataFrame(out, columns=["role", "learning_rate", "steps", "start", "late", "loss", "kept"])
    settings["training"] = (settings.learning_rate * settings.steps).round(12)
    settings["chosen"] = False
    best = settings[settings.kept].sort_values(["training", "loss"], ascending=[False, True]).drop_duplicates("role")
    settings.loc[best.index, "chosen"] = True
    return settings.drop(columns="training")


def in_words(settings: pd.DataFrame) -> str:
    """What `choose` found, for the terminal."""
    lines = [settings.to_string(index=False, float_format=lambda v: f"{v:.4g}"), ""]
    for role, rows in settings.groupby("role"):
        chosen = rows[rows.chosen]
        if chosen.empty:
            lines.append(f"{role}: no setting keeps *real* within {LOSS} of generation 0; lower the rates")
        else:
            c = chosen.iloc[0]
            why = f"the most training with which *real* loses at most {LOSS}; it loses {c.loss:.3f}"
            lines.append(f"{role}: rate {c.learning_rate:g}, {c.steps} steps ({why})")
    return "\n".join(lines)
