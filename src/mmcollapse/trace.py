"""From a number, a figure or a verdict to the run that made it: folders in the store, parents up to the base model,
settings."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pandas as pd

from mmcollapse.errors import MMCollapseError
from mmcollapse.experiments import EXPERIMENTS
from mmcollapse.settings import Settings, load_settings
from mmcollapse.store import Item, Store
from mmcollapse.table import COLUMNS, read_table

MOST = 5  # measured sets that one call traces


def trace(settings: Settings, experiment: str, row: str = "", figure: str = "", claim: str = "") -> str:
    """What is known of a row of the result table, of the rows that a figure shows, or of those that a verdict rests on,
    as text.

    row: a number (counted from 0), the beginning of a `hash`, or a filter such as "arm=recursive generation=2".
    figure: one of the files of a figure. claim: the id of a claim, such as "C1". Works for things whose files were
    pruned: their manifests stay."""
    if sum(map(bool, (row, figure, claim))) != 1:
        raise MMCollapseError(
            "trace needs a row, a figure or a claim: ROW=12, ROW='arm=real metric=all_right', FIGURE=file.png or "
            "CLAIM=C1"
        )
    path = settings.results_folder / f"{experiment}.parquet"
    if claim:
        lines, found = _of_claim(claim, settings.results_folder)
        for name, rows in found.items():
            lines += ["", *_lineage(settings, path.with_name(f"{name}.parquet"), name, rows)]
    elif figure:
        lines, experiment, path, rows = _of_figure(Path(figure), settings.results_folder)
        lines += _lineage(settings, path, experiment, rows)
    else:
        lines = _lineage(settings, path, experiment, select(read_table(path), row))
    return "\n".join(lines)


def _lineage(settings: Settings, path: Path, experiment: str, rows: pd.DataFrame) -> list[str]:
    """Some rows of a table, where they come from, and what made them."""
    provenance = path.with_suffix(".json")
    made = json.loads(provenance.read_text()) if provenance.is_file() else {}
    lines = [f"{path}: {len(rows)} row{'s' * (len(rows) > 1)}"]
    lines += ["  " + _row(number, r) for number, r in rows.head(MOST).iterrows()]
    if len(rows) > MOST:
        lines += ["  ..."]
    lines += _over_seeds(rows)
    lineages = Lineages(Store(settings.runs_folder), made)
    sets = rows.drop_duplicates("hash")
    if len(sets) > MOST:  # the last generation of each arm has all others as its parents
        chains = rows[rows.arm != "world"].sort_values(["seed", "generation"], ascending=[False, True])
        sets = chains.drop_duplicates(["modality", "arm", "model"], keep="last")
        lines += [f"{rows.hash.nunique()} measured sets; of each arm and model the last generation of the first seed:"]
    for r in sets.itertuples():
        model = f", {r.model}" if r.model else ""
        lines += ["", f"{r.arm}{model}, seed {r.seed}, generation {r.generation}:", *lineages.of(r.hash)]
    return [*lines, "", *_settings(made, provenance, experiment, rows)]


def select(table: pd.DataFrame, row: str) -> pd.DataFrame:
    """The rows that `row` means (see trace); MMCollapseError if there are none."""
    if row.isdecimal() and len(row) < 10:
        if int(row) >= len(table):
            raise MMCollapseError(f"row {row}: the table has rows 0 to {len(table) - 1}")
        return table.iloc[[int(row)]]
    if "=" not in row:
        found = table[table.hash.str.startswith(row) | table.hash.str.contains(f"-{row}", regex=False)]
    else:
        wanted = dict(
            re.findall(r"(\w+)=(.*?)(?=\s+\w+=|\s*$)", row)
        )  # a value may have spaces: measurement=guidance 1
        for name in wanted:
            if name not in COLUMNS:
                raise MMCollapseError(f"{name}={wanted[name]!r}: the columns are {', '.join(COLUMNS)}")
        found = table
        for name, value in wanted.items():
            found = found[found[name].astype(str) == value.strip("\"'")]
    if found.empty:
        raise MMCollapseError(f"no row with {row}")
    return found


def _of_figure(file: Path, results: Path) -> tuple[list[str], str, Path, pd.DataFrame]:
    """What the file beside a figure says: lines to print, experiment, table, the rows that the figure shows."""
    about = file.with_suffix(".json")
    try:
        record = json.loads(about.read_text())
        sources, filters = record["sources"], record["rows"]
    except (OSError, ValueError, KeyError) as error:
        raise MMCollapseError(f"{file} is no figure of this project: it has no {about.name} ({error})") from error
    lines, places = [f"figure {record['figure']}, drawn by: {record['command']}"], []
    for name, sha256 in sources.items():
        place = next((p for p in (Path(name), results / Path(name).name) if p.is_file()), None)
        if place is None:
            raise MMCollapseError(
                f"{file} was drawn from {name}, which is not there; give its folder as RESULTS=folder"
            )
        same = hashlib.sha256(place.read_bytes()).hexdigest() == sha256
        lines.append(f"  from {place} ({'unchanged since' if same else 'CHANGED since: draw the figure again'})")
        places.append(place)
    names = list(dict.fromkeys(place.name.split(".")[0] for place in places))
    tables = [name for name in names if EXPERIMENTS.get(name)] or [n for n in names if n == "00_instruments"]
    if not tables:
        raise MMCollapseError(
            f"{file} shows verdicts, which are computed from the tables of 01 to 06: trace one of them (make trace "
            "CLAIM=C1), a row of a table (ONLY=01_variance ROW=...), or one of its figures"
        )
    experiment = tables[0]
    path = places[0].with_name(f"{experiment}.parquet")
    table = pd.concat([read_table(places[0].with_name(f"{name}.parquet")) for name in tables], ignore_index=True)
    shown = pd.Series(False, index=table.index)
    for wanted in filters:
        here = pd.Series(True, index=table.index)
        for name in wanted.keys() & COLUMNS.keys():
            here &= table[name].isin(wanted[name] if isinstance(wanted[name], list) else [wanted[name]])
        shown |= here
    if not shown.any():
        raise MMCollapseError(f"{path} has none of the rows that {file} was drawn from")
    return lines, experiment, path, table[shown]


def _of_claim(name: str, results: Path) -> tuple[list[str], dict[str, pd.DataFrame]]:
    """A claim with its verdict and, contrast by contrast, the rows that it rests on: lines, rows by experiment."""
    from mmcollapse import claims
    from mmcollapse.verify import named_rows, of_endpoint, rows_of

    known = {claim.id: claim for claim in claims.all_claims()}
    if name not in known:
        raise MMCollapseError(f"claim={name!r}: the claims are {', '.join(known)}")
    claim, first = known[name], known[name].experiments[0]
    tables = {
        e: read_table(results / f"{e}.parquet") for e in claim.experiments if (results / f"{e}.parquet").is_file()
    }
    if not tables:
        read_table(results / f"{first}.parquet")  # says what is wrong with it
    judged = claims.conclude(tables, [claim]).set_index("contrast")
    lines, parts = [f"{claim.id}: {claim.text}: {judged.verdict[claims.EVERY]}"], {e: [] for e in tables}
    for part in claim.contrasts:
        if isinstance(part, claims.Correlation):  # of what students make of a set, and of the set, in every table
            own = {}
            for e, table in tables.items():
                students = of_endpoint(table, part.outcome)
                sets = of_endpoint(table, part.endpoint)
                own[e] = pd.concat([sets[sets.arm.isin(students.arm)], students])
        elif (part := claims.resolve(part, tables[first])[0]) is None:
            continue
        else:
            own = {first: rows_of(tables[first], part, int(tables[first].generation.max()))}
        if part.name in judged.index and any(map(len, own.values())):
            row = judged.loc[part.name]
            found = "" if pd.isna(row.effect) else f" {row.effect:+.3g}"
            found += "" if pd.isna(row.low) else f" ({row.low:+.3g} to {row.high:+.3g})"
            lines += [f"  {part.part}, {part.name}:{found} {row.verdict}"]
            for e, rows in own.items():
                if len(rows):
                    lines += [f"    {named_rows(e, part, rows)}"]
                    parts[e].append(rows)
    if not any(parts.values()):
        raise MMCollapseError(f"claim={name!r}: {results / f'{first}.parquet'} has none of the rows that it needs")
    return lines, {e: (r := pd.concat(p))[~r.index.duplicated()].sort_index() for e, p in parts.items() if p}


def _over_seeds(rows: pd.DataFrame) -> list[str]:
    """Where rows differ in the seed alone: their mean and range, a line a value."""
    names = [c for c in COLUMNS if c not in ("experiment", "seed", "value", "missing", "n", "hash", "claims")]
    lines = []
    for key, some in rows.groupby(names, sort=False):
        if some.seed.nunique() > 1:
            what = ", ".join(f"{n} {v}" for n, v in zip(names, key, strict=True) if v != "")
            values = some.value
            lines.append(
                f"  mean of {len(some)} seeds {values.mean():.4g} ({values.min():.4g} to {values.max():.4g}): {what}"
            )
    return lines[:MOST] + (["  ..."] if len(lines) > MOST else [])


def _row(number: int, row: pd.Series) -> str:
    names = [
        c for c in COLUMNS if c not in ("experiment", "value", "n", "hash")
    ]  # a reason for a missing value is said
    return f"row {number}: {', '.join(f'{c} {row[c]}' for c in names if row[c] != '')}: {row.value:.6g} (n {row.n})"


class Lineages:
    """Where measured sets come from, by the manifests of a store. made: the provenance of their table."""

    def __init__(self, store: Store, made: dict):
        self.store, items = store, store.items() if store.root.is_dir() else []
        self.names = {item.name: item for item in items}
        items = sorted(items, key=lambda item: item.manifest["made_at"], reverse=True)  # of equals the first made
        self.pairs = {item.digest: item for item in items if item.kind == "pairs"}
        weights = [item for item in items if item.kind == "weights"]
        # A clone's first generation equals that of a lone model, whose pairs are one item: that is told.
        weights.sort(key=lambda item: item.inputs["pairs"] in self.pairs)
        self.weights = {item.digest: item for item in weights}
        sets = [item for item in items if item.inputs.get("metric") == "set"]
        self.sets = {item.inputs["of"]: item.facts["made of"] for item in sets}
        self.base = {digest: role for role, digest in made.get("models", {}).items()}

    def of(self, hash_: str) -> list[str]:
        """Lines from the measured set called `hash_` back to the base model."""
        if hash_.startswith("world "):
            return [f"  real pairs of {hash_}: no model made them"]
        if hash_.startswith("set-"):
            return self._set(hash_.removeprefix("set-"))
        if hash_ in self.names:
            item = self.names[hash_]
            return [f"  measured   {self._item(item)}, {_decoding(item)}", *self._makers(item)]
        known = [d for d in (*self.weights, *self.base) if d.startswith(hash_)]  # computed from settings, for a model
        return self._weights(known[0]) if known else [f"  {hash_} is not in the store {self.store.root}"]

    def _set(self, digest: str) -> list[str]:
        """Of the training pairs whose digest begins so."""
        whole = next((d for d in (*self.sets, *self.pairs) if d.startswith(digest)), digest)
        lines = [f"  training pairs, digest {whole[:20]}"]
        if whole not in self.sets and whole not in self.pairs:
            return [*lines, f"  which are not in the store {self.store.root}"]
        for part in (parts := self._made_of(whole)):
            lines += [f"  made       {self._item(part)}, {_decoding(part)}", *self._makers(part)]
        return lines if parts else [*lines, "  real pairs: no model made them"]

    def _made_of(self, digest: str) -> list[Item]:
        """The items of training pairs; none of real ones."""
        names = self.sets.get(digest, ())
        whole = [self.pairs[digest]] if digest in self.pairs else []
        return [self.names[n] for n in names if n in self.names] or whole

    def _makers(self, item: Item) -> list[str]:
        """Of each model that made an item, back to its base."""
        makers = item.inputs["makers"]
        return [line for digest in (makers if isinstance(makers, list) else [makers]) for line in self._weights(digest)]

    def _weights(self, digest: str) -> list[str]:
        lines = []
        while (item := self.weights.get(digest)) is not None:
            recipe, (seed, generation, *_) = item.inputs["recipe"], item.inputs["seed"]
            how = (
                f"{recipe['steps']} steps of {recipe['batch']}, rate {recipe['lr']:g}, {recipe['method']}, seed {seed}"
            )
            lines.append(f"  generation {generation}  {self._item(item)}, {how}")
            parts = self._made_of(item.inputs["pairs"])
            for pairs in parts:
                maker = self.weights.get(pairs.inputs["makers"])
                base = f"the base {self.base.get(pairs.inputs['makers'], 'model')}"
                by = f"generation {maker.inputs['seed'][1]}" if maker else base
                lines.append(f"    trained on {self._item(pairs)}, {_decoding(pairs)}, by {by}")
            if not parts:
                lines.append(f"    trained on {item.facts.get('n', '')} real pairs, digest {item.inputs['pairs'][:20]}")
            digest = item.inputs["parent"]
        if digest in self.base:
            return [*lines, f"  generation 0  the base {self.base[digest]}, digest {digest}"]
        return [*lines, f"  from weights with digest {digest}: a base model, or of another store"]

    def _item(self, item: Item) -> str:
        pruned = ", files pruned" if item.manifest.get("pruned") else ""
        return f"{item.folder} (made {item.manifest['made_at']}{pruned})"


def _decoding(item: Item) -> str:
    if (decoding := item.inputs.get("decoding")) is None:
        return "written by the oracle"
    return "decoded with " + ", ".join(f"{k} {v:g}" for k, v in decoding.items())


def _runs_of(made: dict, rows: pd.DataFrame) -> list[dict]:
    """Of the runs that a table was made in, those that made chains of `rows`; all of them if none says so."""
    runs = [*made.get("runs", []), made]
    ends = {f" {r.arm} seed {r.seed}" for r in rows.drop_duplicates(["arm", "seed"]).itertuples()}
    return [run for run in runs if any(name.endswith(tuple(ends)) for name in run.get("chains", ()))] or runs


def _settings(made: dict, path: Path, experiment: str, rows: pd.DataFrame) -> list[str]:
    """The runs and settings that made `rows` of a table, and the command that makes it again."""
    if not made:
        return [f"settings: {path} is missing, so they are not known"]
    now, profile = made["settings"], made["settings"]["profile"]
    lines = []
    for run in _runs_of(made, rows):
        commit = (run["commit"] or "unknown") + (" and changes" if run["changed since commit"] else "")
        lines += [
            f"made {run['made_at']} on {run['device']} ({run['machine']}) in {run['seconds']:g} s, commit {commit}"
        ]
    lines += ["versions " + ", ".join(f"{k} {v}" for k, v in made["versions"].items())]
    lines += [f"settings ({path}) " + ", ".join(f"{k}={v}" for k, v in now.items() if v != "")]
    variables = {k: now[k] for k in ("world", "data", "runs", "results", "figures") if now.get(k)}
    usual = vars(load_settings(profile, experiment))
    others = [f"{k}={v}" for k, v in now.items() if k not in ("profile", *variables) and k in usual and v != usual[k]]
    again = [f"{k.upper()}={v}" for k, v in ({"profile": profile, "only": experiment} | variables).items()]
    return [*lines, "again: make reproduce " + " ".join(again) + (f' SET="{" ".join(others)}"' if others else "")]
