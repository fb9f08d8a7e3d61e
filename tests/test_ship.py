"""What is shipped of a run: less, and the same figures."""

import json
import re

import pandas as pd
import pytest

from mmcollapse.errors import MMCollapseError
from mmcollapse.figures.house import open_source
from mmcollapse.runner import FOLDERS
from mmcollapse.ship import ship


@pytest.fixture(scope="module")
def shipped(smoke, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shipped")
    return smoke.folder, folder, ship(smoke.folder / "results", folder / "results", folder / "figures", "smoke")


def page_of(folder) -> str:
    return (folder / "results" / "07_claims.md").read_text()


def test_tables_and_provenance_are_shipped_whole(shipped):
    run, folder, written = shipped
    for path in (run / "results").glob("0*.*"):
        if path.suffix == ".parquet" and ".samples" not in path.name and not path.name.startswith("07"):
            assert (folder / "results" / path.name).read_bytes() == path.read_bytes()
        if path.suffix == ".json":
            theirs, ours = (json.loads(p.read_text()) for p in (path, folder / "results" / path.name))
            places = {name for name in FOLDERS if theirs.get("settings", {}).get(name)}
            assert "runs" in places or "settings" not in theirs
            assert all(ours["settings"].pop(name) == "" and theirs["settings"].pop(name) for name in places)
            assert ours == theirs and str(run) not in json.dumps(ours)
    assert {"00_gates.parquet", "07_claims.parquet"} <= {path.name for path in written}
    assert not list(folder.rglob("*.ipynb"))
    links = [folder / "results" / link for link in re.findall(r"\]\(([^)]+\.png)\)", page_of(folder))]
    assert links and all(link.is_file() for link in links)  # figures that were drawn after the verdicts
    assert all(path.is_file() for path in written) and len(set(written)) == len(written)


def test_of_the_samples_those_that_a_figure_shows(shipped):
    """The figures are those of the run, to the byte; `ship` looks, too."""
    run, folder, _ = shipped
    of_run = {path.name for path in (run / "figures").glob("*.png")}  # other tests add tables of no experiment
    assert of_run <= {path.name for path in (folder / "figures").glob("*.png")} and len(of_run) > 20
    for name in of_run:
        assert (folder / "figures" / name).read_bytes() == (run / "figures" / name).read_bytes()
    sizes = []
    for path in (folder / "results").glob("*.samples.parquet"):
        few, all_ = pd.read_parquet(path), pd.read_parquet(run / "results" / path.name)
        assert (few.arm == "world").sum() == (all_.arm == "world").sum() > 0
        assert list(few.columns) == list(all_.columns) and len(few) <= len(all_)
        sizes.append(len(few) / len(all_))
    assert min(sizes) < 0.7


def test_samples_open_as_before(shipped):
    import datasets

    _, folder, _ = shipped
    path = folder / "results" / "01_variance.samples.parquet"
    data = datasets.load_dataset("parquet", data_files=str(path), cache_dir=str(folder / "cache"))["train"]
    assert data[0]["image"].size == (64, 64)
    assert not open_source(folder / "results", "01_variance").samples("image", "guidance 1", ["recursive"]).empty


def test_mistakes_are_refused(tmp_path, smoke):
    with pytest.raises(MMCollapseError, match="nothing to ship"):
        ship(tmp_path, tmp_path / "to", tmp_path / "figures")
    results = smoke.folder / "results"
    with pytest.raises(MMCollapseError, match="is the folder of what is shipped"):
        ship(results, results, tmp_path)


def test_a_figure_that_would_change_is_refused(tmp_path, smoke, monkeypatch):
    monkeypatch.setattr("mmcollapse.ship.selected", lambda frame, rows: frame.generation < 0)
    with pytest.raises(MMCollapseError, match="needs samples that were left"):
        ship(smoke.folder / "results", tmp_path / "to", tmp_path / "figures")


def test_what_was_shipped_before_stays(tmp_path, smoke):
    """Another experiment of the same study is shipped beside it."""
    for name in ("01_variance", "02_decoding_budget"):
        (tmp_path / name).mkdir()
        for path in (smoke.folder / "results").glob(f"{name}.*"):
            (tmp_path / name / path.name).write_bytes(path.read_bytes())
        ship(tmp_path / name, tmp_path / "to", tmp_path / "figures")
    drawn = {path.name[:2] for path in (tmp_path / "figures").glob("*.png")}
    assert {path.name[:2] for path in (tmp_path / "to").glob("*.parquet")} == {"01", "02"} <= drawn
    gates = smoke.folder / "results" / "00_gates.parquet"  # now the verdicts are of both
    (tmp_path / "02_decoding_budget" / gates.name).write_bytes(gates.read_bytes())
    ship(tmp_path / "02_decoding_budget", tmp_path / "to", tmp_path / "figures", "smoke")
    verdicts = pd.read_parquet(tmp_path / "to" / "07_claims.parquet")
    assert set(verdicts[verdicts.seeds > 0].claim) >= {"C1", "C4"} and set(verdicts.profile) == {"smoke"}
    assert "# Verdicts" in (tmp_path / "to" / "07_claims.md").read_text()
    assert (tmp_path / "figures" / "07_claims_overview.png").is_file()
