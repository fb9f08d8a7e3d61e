"""The validation of the instruments: damages are what they say, and what is called exact is."""

import numpy as np
import pytest

from mmcollapse import instruments
from mmcollapse.instruments import PIXELS, STRENGTHS, _only


@pytest.mark.parametrize("name", PIXELS)
def test_damage_grows_with_its_strength_from_none(name, world):
    pictures = world.sample("test", np.arange(40)).images
    changed = [
        np.abs(PIXELS[name](pictures, s, np.random.default_rng(0)).astype(float) - pictures).mean() for s in STRENGTHS
    ]
    assert changed[0] == 0 and (np.diff(changed) > 0).all()
    assert all(PIXELS[name](pictures, s, np.random.default_rng(0)).dtype == np.uint8 for s in STRENGTHS)


def test_lost_modes_keep_the_commonest_pairs_and_everything_else(world):
    scenes = world.sample("test", np.arange(300)).scenes
    cells = [(shape, colour) for shape in range(10) for colour in range(10)]
    place = {cell: k for k, cell in enumerate(cells)}
    for left in (100, 50, 5):
        made = [_only(scene, place, left) for scene in scenes]
        assert {(t.shape, t.colour) for s in made for t in s.things} <= set(cells[:left])
        for a, b in zip(made, scenes, strict=True):
            assert (a.relation, a.background, [t.size for t in a.things]) == (
                b.relation,
                b.background,
                [t.size for t in b.things],
            )
            kept = all(place[t.shape, t.colour] < left for t in b.things)
            assert (a == b) == kept
    assert [_only(s, place, 100) for s in scenes] == scenes


def test_the_oracle_reads_known_damage_as_what_it_is(monkeypatch, tmp_path):
    """The whole of it, small: exact truth and the oracle's reading agree, strength by strength."""
    from mmcollapse.settings import load_settings

    monkeypatch.setattr(instruments, "REPEATS", {"damage": 1, "size": 1})
    monkeypatch.setattr(instruments, "SIZES", (10, 20))
    monkeypatch.setattr(instruments, "STRENGTHS", (0.0, 0.5, 1.0))
    monkeypatch.setattr(instruments, "PIXELS", {"noise": PIXELS["noise"]})
    settings = load_settings(
        "smoke", runs=str(tmp_path / "runs"), results=str(tmp_path), prompts=8, noises=4, captions=20
    )
    table = instruments.instruments(settings)
    for damage, metric in (("wrong scene", "all_right"), ("lost modes", "tail_coverage")):
        rows = table[(table.arm == damage) & (table.metric == metric) & (table.space != "missing")]
        wide = rows.pivot(index="measurement", columns="space", values="value")
        assert np.allclose(wide.truth, wide.oracle, atol=0.05), damage
        assert wide.truth["1"] < wide.truth["0"]
    rows = table[(table.arm == "wrong caption") & (table.metric == "all_right")]
    wide = rows.pivot(index="measurement", columns="space", values="value")
    assert np.allclose(wide.truth, wide.parser)  # the parser is exact on sentences of the grammar
    sizes = table[(table.arm == "real") & (table.metric == "vocabulary")].set_index("measurement").value
    assert sizes["n 20"] > sizes["n 10"]
