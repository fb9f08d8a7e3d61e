"""What is kept of measured sets: which, that it comes back as it was, and that later runs take it over."""

import hashlib
import pickle
from types import SimpleNamespace

import numpy as np
import pytest

from mmcollapse import kept
from mmcollapse.errors import MMCollapseError
from mmcollapse.metrics.truth import within_prompt_variance
from mmcollapse.store import Store

TOLD = {"measurement": "guidance 1", "subset": "test", "hash": "pairs-0123"}
WORDS = TOLD | {"measurement": "greedy"}
ON = ("01_variance", "recursive", True)


@pytest.fixture(scope="module")
def real(world):
    return world.sample("test", np.arange(12))


@pytest.fixture
def tools(tmp_path, world, oracle, judge):
    study = SimpleNamespace(world=world, store=Store(tmp_path / "runs"), device="cpu")
    return SimpleNamespace(study=study, oracle=oracle, spaces={"judge": judge}, digests={"judge": judge.digest})


@pytest.fixture
def scored(real, judge):
    """A measured set: 4 prompts with 3 pictures each."""
    item = SimpleNamespace(digest="0" * 64)
    seen = {"judge": judge.images(real.images)}
    captions = [five[0] for five in real.captions]
    return SimpleNamespace(item=item, images=real.images, captions=captions, seen=lambda space: seen[space])


def test_what_is_kept_comes_back_as_it_was(tools, scored, oracle, tmp_path):
    with kept.keeping(*ON) as found:
        kept.keep(tools, scored, TOLD, noises=3)
        kept.keep(tools, scored, WORDS | {"hash": "pairs-4567"})
    found = pickle.loads(pickle.dumps(found))  # it travels from a worker
    digest = kept.write(tmp_path, "01_variance", found, None, set())
    path = kept.path_of(tmp_path, "01_variance")
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    pictures, captions = kept.read(path)
    assert (pictures.hash, pictures.measurement, pictures.captions) == ("pairs-0123", "guidance 1", None)
    reading = oracle.read(scored.images)
    assert pictures.reading.scenes == reading.scenes and (pictures.reading.abstains == reading.abstains).all()
    np.testing.assert_allclose(pictures.reading.nuisance, reading.nuisance, atol=0.02)  # of 64 pixels
    np.testing.assert_allclose(pictures.features, scored.seen("judge"), rtol=1e-3, atol=1e-6)
    scenes = [scene for scene in reading.scenes[::3] for _ in range(3)]
    sides = [within_prompt_variance(r, scenes, 3) for r in (pictures.reading, reading)]
    assert sides[0] == {k: pytest.approx(v, rel=0.01, nan_ok=True) for k, v in sides[1].items()}
    assert (captions.measurement, captions.captions, captions.features) == ("greedy", scored.captions, None)


def test_only_a_few_sets_are_kept(tools, scored):
    wanted = {
        ("02_decoding_budget", "recursive", True): 0,
        ("01_variance", "real", True): 0,
        ("01_variance", "gen0", False): 0,
        ("01_variance", "gen0", True): 1,
    }
    for chain, count in wanted.items():
        with kept.keeping(*chain) as found:
            kept.keep(tools, scored, WORDS)
            kept.keep(tools, scored, WORDS | {"subset": "train"})
            kept.keep(tools, scored, WORDS | {"measurement": "drifting"})
        assert len(found) == count
        kept.keep(tools, scored, WORDS)  # outside nothing is wanted
        assert len(found) == count
    tools.study.world = SimpleNamespace(truth=False)  # photos are their owner's
    with kept.keeping(*ON) as found:
        kept.keep(tools, scored, WORDS)
    assert found == []


def test_a_resumed_run_finds_it_in_the_store(tools, scored):
    for again in (scored, SimpleNamespace(item=scored.item)):  # whose samples are gone
        with kept.keeping(*ON) as found:
            kept.keep(tools, again, TOLD, noises=3)
        assert found[0].num_rows == 12


def test_sets_of_earlier_runs_are_taken_over_with_their_rows(tools, scored, tmp_path):
    def some(*names):
        with kept.keeping(*ON) as found:
            for name in names:
                kept.keep(tools, scored, WORDS | {"hash": name})
        return found

    before, now = tmp_path / "before", tmp_path / "now"
    kept.write(before, "01_variance", some("a", "b", "c"), None, set())
    kept.write(now, "01_variance", some("c", "d"), before, {"a", "c", "d"})
    assert [one.hash for one in kept.read(kept.path_of(now, "01_variance"))] == ["a", "c", "d"]
    assert kept.write(now, "06_remedies", [], before, {"a"}) == ""
    assert not kept.path_of(now, "06_remedies").exists()


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_text("no table")
    with pytest.raises(MMCollapseError, match="holds no kept sets"):
        kept.read(path)


def test_it_is_small(tools, real, judge, world, tmp_path):
    """At the scale of study 2,000 pictures: two sets of them and four of captions are to stay below 1.2 MB."""
    images = world.redraw(real.scenes[:10], 20).reshape(-1, *real.images.shape[1:])
    features = judge.images(images)
    scored = SimpleNamespace(item=SimpleNamespace(digest="1" * 64), images=images, seen=lambda space: features)
    with kept.keeping(*ON) as found:
        kept.keep(tools, scored, TOLD, noises=20)
    kept.write(tmp_path, "01_variance", found, None, set())
    assert kept.path_of(tmp_path, "01_variance").stat().st_size < 200 * 200  # bytes a picture
