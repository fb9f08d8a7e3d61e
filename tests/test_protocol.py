"""The arms of the experiments, what makes a protocol wrong, and the decoding schedule that drifts."""

from dataclasses import replace

import pytest

from mmcollapse.errors import MMCollapseError
from mmcollapse.experiments import EXPERIMENTS, arms_of, controls, gen0, real, recursive
from mmcollapse.models.captioner import CaptionDecoding
from mmcollapse.protocol import DRIFT, MODALITY, ROLES, Member, Protocol, drifting
from mmcollapse.settings import load_settings, profiles

MATCHED = CaptionDecoding(temperature=1.0, max_tokens=30)
WITH_ARMS = [name for name, make in EXPERIMENTS.items() if make]


def arms(experiment, profile="smoke", **changes):
    return arms_of(experiment, load_settings(profile, experiment, **changes))


def schedule(generation, what=DRIFT, words=323, reference=10.0, most=30):
    return drifting(generation, what, words, reference, most)


def test_the_published_schedule():
    """As published for 10 generations: the first, the middle and the last."""
    assert schedule(0) == CaptionDecoding(0.8, 50, 0.9, 5, 1.2, 0, 0, 30)
    assert vars(schedule(10)) == pytest.approx(vars(CaptionDecoding(1.5, 20, 0.98, 1, 1.8, 2, 25, 30)))
    five = schedule(5)
    assert (five.temperature, five.top_k, five.beams, five.no_repeat) == (1.5, 35, 3, 2)
    assert (five.top_p, five.repetition_penalty) == pytest.approx((0.94, 1.5))
    assert schedule(1).temperature == pytest.approx(0.95) and schedule(1).min_tokens == 25
    assert schedule(12) == schedule(10)  # it ends there


def test_what_does_not_drift_is_as_in_the_matched_arms():
    for g in (0, 1, 10):
        assert schedule(g, ()) == MATCHED
        length = schedule(g, ("length",))
        assert length == CaptionDecoding(temperature=1.0, max_tokens=30, min_tokens=25 if g else 0)
        assert schedule(g, ("temperature",)).temperature == pytest.approx(min(0.8 + 0.15 * g, 1.5))
        assert schedule(g, ("temperature",)).top_k == 0


def test_the_schedule_is_carried_over_by_ratio():
    assert schedule(0, words=646).top_k == 100 and schedule(10, words=646).top_k == 40
    assert schedule(10, words=5).top_k == 2  # at least two words to choose from
    assert schedule(1, reference=6.0).min_tokens == 15
    assert schedule(1, reference=100.0).min_tokens == 29  # at most what the captioner can write


# ---- the arms


@pytest.mark.parametrize("profile", profiles())
@pytest.mark.parametrize("experiment", WITH_ARMS)
def test_every_experiment_has_the_controls(experiment, profile):
    protocols = arms(experiment, profile)
    named = [(modality, p.arm) for p in protocols for modality in p.modalities]
    assert len(set(named)) == len(named)  # a table tells them apart
    assert len({p.arm for p in protocols if "generator" in p.roles}) == sum("generator" in p.roles for p in protocols)
    for p in protocols:
        there = {q.arm: q for q in protocols if q.roles == p.roles}
        assert set(p.controls) <= set(there), p.name
        if p.trains and p.controls:  # one that is trained on real pairs, and one on what generation 0 made
            own = [there[c] for c in p.controls]
            assert any((c.pictures, c.captions) == ("real", "given") for c in own), p.name
            assert any("base" in (c.pictures, c.captions) and c.start == "previous" for c in own) or (
                p.start == "base"  # what starts from the base every time has *gen0* for its first generation
            ), p.name
    for modality in {m for p in protocols if p.trains for m in p.modalities}:
        assert {(modality, "real"), (modality, "gen0")} <= set(named)


def test_controls_differ_from_recursive_in_their_data_alone():
    for role, makes in {"generator": "pictures", "captioner": "captions"}.items():
        here = {p.arm: vars(p) for p in arms("01_variance") if p.roles == (role,)}
        given = vars(Protocol("", (role,)))[makes]
        for control, whose in {"real": given, "gen0": "base"}.items():
            assert here[control] == here["recursive"] | {"arm": control, makes: whose, "controls": ()}
        assert here["recursive"][makes] == "previous"


@pytest.mark.parametrize("experiment", ["02_decoding_budget", "06_remedies"])
def test_values_have_gen0_arms_of_their_own_where_they_change_generation_0(experiment):
    there = {(p.roles, p.arm): p for p in arms(experiment, grid="full", grid_pairs="8,12")}
    own = [p for p in there.values() if p.arm.endswith("-gen0")]
    assert own
    for p in own:
        ours = there[p.roles, p.arm.removesuffix("-gen0")]
        makes = "pictures" if p.trains == ("generator",) else "captions"
        assert vars(p) == vars(ours) | {"arm": p.arm, makes: "base", "controls": ()} and p.arm in ours.controls
    assert (("generator",), "N-8") not in there  # that is *recursive*, at 8 pairs


def test_the_values_of_a_grid():
    s = {"grid_steps": "10,2,50", "grid_guidance": "1,3", "grid_beams": "1,5", "grid_length": "6,12"}
    corner = {p.arm: dict(p.decoding) for p in arms("02_decoding_budget", **s)}
    assert corner["steps-2"] == {"steps": 2} and corner["steps-50"] == {"steps": 50} and "steps-10" not in corner
    full = {p.arm: dict(p.decoding) for p in arms("02_decoding_budget", grid="full", **s)}
    assert set(corner) < set(full) and full["steps-10"] == full["steps-10-gen0"] == {"steps": 10}
    assert full["beams-5"] == {"temperature": 0.0, "beams": 5} and full["beams-1"] == {"temperature": 0.0, "beams": 1}
    assert full["length-6"] == {"max_tokens": 6} and full["guidance-3"] == {"guidance": 3.0}
    assert full["recursive"] == full["gen0"] == full["real"] == {}


def test_populations():
    zoo = "a,b,c,d,e"
    there = {p.arm: p for p in arms("03_diversity", generators=zoo, captioners=zoo, populations="1,3,5", grid="full")}
    for k, letter in enumerate("abcde"):
        members = there[f"pool-3{letter}"].population
        assert len(set(members)) == 3 and members[0] == "abcde"[k]
    pools = [there[f"pool-3{letter}"].population for letter in "abcde"]
    assert all(sum(model in pool for pool in pools) == 3 for model in "abcde")  # each model in as many of them
    assert there["pool-5"].population == tuple("abcde") and there["clones-5"].population == ("a",) * 5
    assert there["seeds-5"].population == ("a", "a-2", "a-3", "a-4", "a-5")
    assert there["alone"].population == tuple("abcde") and not there["alone"].exchange
    assert there["alone-compute-5"].compute == 5 and not there["alone-compute-5"].exchange
    frozen = there["frozen-pool-5"]
    assert frozen.population == tuple("abcde") and frozen.exchange and frozen.captions == "base"
    alone = arms("03_diversity", generators="a", captioners="a", populations="1")
    assert {p.arm for p in alone} == {"alone", "real", "gen0"}


def test_who_is_trained_and_who_writes_in_relabeling():
    there = {p.arm: (p.trains, p.pictures, p.captions) for p in arms("04_relabeling", grid="full")}
    assert there["joint"] == (ROLES, "previous", "previous")
    assert there["frozen-captioner"] == (("generator",), "previous", "base")
    assert there["frozen-generator"] == (("captioner",), "base", "previous")
    assert there["original"] == (ROLES, "previous", "given") and there["real"] == (ROLES, "real", "given")
    assert there["oracle"] == (ROLES, "previous", "oracle") and there["noised"] == (ROLES, "previous", "noised")
    for p in arms("04_relabeling", grid="full"):
        assert p.roles == ROLES  # both are measured in every arm
        assert (p.prompts == "captions") == p.arm.endswith("-closed")
        assert p.noise_like == {"noised": "joint", "noised-closed": "joint-closed"}.get(p.arm, "")


def test_members():
    zoo = {"generator": ("generator", "generator-sdxl"), "captioner": ("captioner",)}
    both = Protocol("a", ROLES, pictures="previous", captions="previous")
    assert both.members(zoo) == [Member("generator", "generator"), Member("captioner", "captioner")]
    assert both.modalities == ("image", "text") and both.name == "generator and captioner a"
    clones = recursive("generator", population=("generator",) * 2).members(zoo)
    assert [m.label for m in clones] == ["generator", "generator clone 2"] and len(set(clones)) == 2
    assert Member("generator", "/my/own/").label == "own"


def test_arms_are_chosen_by_name_and_role():
    assert [(p.arm, p.modalities) for p in arms("01_variance", arms="real, frozen-length")] == [
        ("real", ("image",)),
        ("real", ("text",)),
        ("frozen-length", ("text",)),
    ]
    for role in ROLES:
        assert {p.modalities for p in arms("01_variance", roles=role)} == {(MODALITY[role],)}
        assert arms("04_relabeling", roles=role) == arms("04_relabeling")  # both models are in every arm
    assert arms("01_variance", roles="generator, captioner") == arms("01_variance")
    # also an arm that the profile leaves out
    assert "recursive-fresh" not in {p.arm for p in arms("01_variance")}
    chosen = arms("01_variance", arms="recursive-fresh,real-fresh,gen0-fresh", roles="captioner")
    assert [p.arm for p in chosen] == ["recursive-fresh", "real-fresh", "gen0-fresh"] and all(p.fresh for p in chosen)
    for experiment in set(EXPERIMENTS) - set(WITH_ARMS):
        assert arms(experiment) == []


@pytest.mark.parametrize(
    ("experiment", "changes", "says"),
    [
        ("01_variance", {"arms": "real,reel"}, "01_variance has no arm 'reel'; it has frozen-drift, "),
        ("01_variance", {"arms": "real,real"}, "setting arms='real,real': items must be there, and none twice"),
        ("01_variance", {"arms": "real,"}, "setting arms='real,': items must be there"),
        ("01_variance", {"roles": "painter"}, "setting roles='painter': 'painter' is none of generator, captioner"),
        ("01_variance", {"arms": "recursive"}, "recursive cannot be read without its controls real, gen0; give "),
        ("01_variance", {"arms": "recursive,real"}, "without its control gen0; give arms=recursive,real,gen0"),
        ("01_variance", {"arms": "recursive-restart"}, "its control real-restart; give "),
        ("04_relabeling", {"arms": "noised,real,gen0"}, "noised cannot be read without its control joint; give "),
        ("04_relabeling", {"arms": "noised-closed,real,gen0"}, "its control joint-closed; give "),
        ("03_diversity", {"arms": "pool-2,real,gen0"}, "pool-2 cannot be read without its control alone; give "),
        (
            "03_diversity",
            {"populations": "1,4"},
            "a population of 4 is larger than the zoo, the 2 models of the set",
        ),
        ("03_diversity", {"populations": "0"}, "setting populations='0': 0 is not allowed, 1 or more is"),
        ("03_diversity", {"populations": "x"}, "setting populations='x': 'x' is no whole number"),
        ("03_diversity", {"populations": "1,1"}, "setting populations='1,1': items must be there, and none twice"),
        ("03_diversity", {"populations": "1,01"}, "setting populations='1,01': items must be there, and none twice"),
        ("03_diversity", {"generators": "a,a"}, "setting generators='a,a': items must be there, and none twice"),
        ("03_diversity", {"generators": ""}, "setting generators='': items must be there"),
        ("06_remedies", {"grid_real": "0"}, "setting grid_real='0': 0 is not allowed, 1 to 99 is"),
        ("06_remedies", {"grid_real": "25,100"}, "setting grid_real='25,100': 100 is not allowed, 1 to 99 is"),
        ("06_remedies", {"grid_real": "2.5"}, "setting grid_real='2.5': '2.5' is no whole number"),
        ("06_remedies", {"grid_real": "1"}, "real_share=0.01 of arm 'real-1%': of 8 pairs that is none"),
        ("06_remedies", {"grid_pairs": "1", "grid": "full"}, "setting grid_pairs='1': 1 is not allowed, 2 or more is"),
        ("06_remedies", {"student_generations": "a"}, "setting student_generations='a': 'a' is no whole number"),
        ("06_remedies", {"student_generations": "0"}, "setting student_generations='0': 0 is not allowed, 1 or more"),
        ("02_decoding_budget", {"grid_steps": "2,x"}, "setting grid_steps='2,x': 'x' is no whole number"),
        ("02_decoding_budget", {"grid_steps": "2.5"}, "setting grid_steps='2.5': '2.5' is no whole number"),
        (
            "02_decoding_budget",
            {"grid_guidance": "0.5,3"},
            "setting grid_guidance='0.5,3': 0.5 is not allowed, 1 to",
        ),
        (
            "02_decoding_budget",
            {"grid_guidance": "1,1.0"},
            "setting grid_guidance='1,1.0': items must be there, and",
        ),
        ("02_decoding_budget", {"grid_beams": "0"}, "setting grid_beams='0': 0 is not allowed"),
    ],
)
def test_wrong_arms_are_refused_by_name(experiment, changes, says):
    with pytest.raises(MMCollapseError) as error:
        arms(experiment, **changes)
    assert says in str(error.value)


def test_too_few_pairs_for_a_population_are_refused():
    zoo = {"generators": "a,b,c", "captioners": "a,b,c", "populations": "3"}
    with pytest.raises(MMCollapseError, match="setting pairs=2: too few for arm 'pool-3', where 3 models make 2"):
        arms("03_diversity", pairs=2, **zoo)
    assert arms("03_diversity", pairs=3, **zoo)
    with pytest.raises(MMCollapseError, match="setting pairs=2: too few for arm 'a', where 1 model makes 0 of them"):
        recursive("generator", "a", real_share=0.75).parts(2)


def test_no_students_need_no_generations():
    assert arms("01_variance", students=0, student_generations="a")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"trains": ("painter",)}, "trains=('painter',) of arm 'a': roles are generator, captioner"),
        ({"frozen": ("painter",)}, "frozen=('painter',) of arm 'a': roles are generator, captioner"),
        ({"trains": ()}, "trains=() of arm 'a': nothing is trained and nothing is measured"),
        ({"frozen": ("generator",)}, "the generator is also to be trained; it can be one or the other"),
        ({"pictures": "fake"}, "pictures='fake' of arm 'a': allowed are real, previous, base"),
        ({"captions": "next"}, "captions='next' of arm 'a': allowed are given, previous, base, oracle, noised"),
        ({"prompts": "own"}, "prompts='own' of arm 'a': allowed are real, captions"),
        ({"start": "scratch"}, "start='scratch' of arm 'a': allowed are previous, base"),
        ({"keep": "all"}, "keep='all' of arm 'a': allowed are replace, accumulate, subsample"),
        ({"drift": ("heat",)}, "drift of 'heat' in arm 'a': allowed are temperature, "),
        ({"measured_drift": ("heat",)}, "drift of 'heat' in arm 'a'"),
        ({"real_share": 1.5}, "real_share=1.5 of arm 'a': allowed are 0 to 1"),
        ({"real_share": -0.1}, "real_share=-0.1 of arm 'a': allowed are 0 to 1"),
        ({"real_only": True}, "real_only=True of arm 'a': there is no real part"),
        (
            {"captions": "previous"},
            "captions='previous' of arm 'a': the captioner is not trained, so it has no",
        ),
        ({"trains": ("captioner",), "pictures": "previous"}, "the generator is not trained, so it has no previous"),
        ({"trains": ROLES, "population": ("b", "c")}, "population=('b', 'c') of arm 'a': populations are of one role"),
        ({"frozen": ("captioner",), "population": ("b", "c")}, "populations are of one role"),
        ({"captions": "noised"}, "noise_like='' of arm 'a': captions='noised' needs the arm whose errors it copies"),
        ({"noise_like": "joint"}, "noise_like='joint' of arm 'a': captions='noised' needs the arm"),
        ({"pairs": -1}, "pairs=-1 of arm 'a': must be positive"),
        ({"compute": 0}, "compute=0 of arm 'a': must be positive"),
    ],
)
def test_a_wrong_protocol_is_refused(values, says):
    with pytest.raises(MMCollapseError) as error:
        Protocol(**{"arm": "a", "trains": ("generator",)} | values)
    assert says in str(error.value)


def test_shorthands():
    for role in ROLES:
        assert controls(role) == [real(role), gen0(role)]
        assert replace(recursive(role), arm="b") == recursive(role, "b") and recursive(role).trains == (role,)
