"""The arms of the experiments, what makes a protocol wrong, and the decoding schedule that drifts."""

from dataclasses import replace

import pytest

from mmcollapse.errors import MMCollapseError
from mmcollapse.experiments import (
    EXPERIMENTS,
    PRIORITY,
    arms_of,
    controls,
    gen0,
    has_students,
    later,
    real,
    recursive,
    seeds_of,
    turn_of,
)
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


def test_populations_of_2_and_4_come_last_unless_they_are_the_largest():
    zoo = "a,b,c,d,e"
    s = {"generators": zoo, "captioners": zoo, "populations": "1,2,3,4,5"}
    settings = load_settings("smoke", "03_diversity", **s)
    found = arms_of("03_diversity", settings)
    last = [p for p in found if later(p, settings)]
    assert found[-len(last) :] == last and {len(p.population) for p in last} == {2, 4} and len(last) == 2 * 2 * 5
    assert {p.arm for p in last} == {f"pool-{m}{letter}" for m in (2, 4) for letter in "abcde"}
    two = load_settings("smoke", "03_diversity")
    assert not [p for p in arms_of("03_diversity", two) if later(p, two)]


@pytest.mark.parametrize("role", ROLES)
def test_the_full_grid_repeats_collapse_at_other_rates_and_on_further_models(role):
    more = f"generator-2,captioner-2,{role}-x"
    there = {p.arm: p for p in arms("01_variance", grid="full", further=more, roles=role)}
    plain = {arm: vars(there[arm]) | {"measured_drift": ()} for arm in ("recursive", "real", "gen0")}
    names = {"lr-half": {"rate": 0.5}, "lr-double": {"rate": 2.0}}
    names |= {f"{role}-{k}": {"population": (f"{role}-{k}",)} for k in "2x"}
    for name, changes in names.items():
        for arm, usual in plain.items():
            own = {"controls": (f"real-{name}", f"gen0-{name}")} if arm == "recursive" else {}
            assert vars(there[f"{arm}-{name}"]) == usual | {"arm": f"{arm}-{name}"} | changes | own
    other = next(r for r in ROLES if r != role)
    assert not [arm for arm in there if arm.endswith(f"{other}-2")]
    few = {p.arm for p in arms("01_variance", further=more)}
    assert not [arm for arm in few if "lr-" in arm or arm.endswith(("-2", "-x"))]


def test_two_remedies_are_repeated_on_further_models():
    more = "generator-2,captioner-2,captioner-x"
    there = {(p.roles[0], p.arm): p for p in arms("06_remedies", grid="full", grid_pairs="8", further=more)}
    for role, name in (("generator", "generator-2"), ("captioner", "captioner-2"), ("captioner", "captioner-x")):
        own = {arm: p for (r, arm), p in there.items() if r == role and arm.endswith(f"-{name}")}
        assert set(own) == {f"{arm}-{name}" for arm in ("recursive", "real", "gen0", "subsample", "real-25%")}
        for arm in ("subsample", "real-25%"):
            usual = {"arm": f"{arm}-{name}", "population": (name,), "controls": (f"real-{name}", f"gen0-{name}")}
            assert vars(own[f"{arm}-{name}"]) == vars(there[role, arm]) | usual
    assert not [arm for _, arm in there if arm.startswith("accumulate-") and arm != "accumulate-synthetic"]


# ---- seeds


def counts_of(experiment, **changes):
    """{(roles, arm): number of seeds} of the study."""
    s = load_settings("study", experiment, **changes)
    return {(p.roles, p.arm): len(seeds_of(experiment, p, s)) for p in arms_of(experiment, s)}


def test_seeds_follow_what_rests_on_an_arm():
    for experiment in PRIORITY:  # a control has as many as what is read with it
        s, counts = load_settings("study", experiment), counts_of(experiment)
        for p in arms_of(experiment, s):
            assert all(counts[p.roles, c] >= counts[p.roles, p.arm] for c in p.controls), p.name
        few = {"02_decoding_budget": {3, 10}, "06_remedies": {3, 5}, "08_intervention": {3}}
        assert set(counts.values()) == few.get(experiment, {3, 5, 10})
    for role in ROLES:
        one = {arm: n for (roles, arm), n in counts_of("01_variance").items() if roles == (role,)}
        assert one["recursive"] == one["real"] == one["gen0"] == 10
        assert one["recursive-fresh"] == one["real-lr-half"] == one[f"gen0-{role}-2"] == 5  # secondary contrasts
        pools = {arm: n for (roles, arm), n in counts_of("03_diversity").items() if roles == (role,)}
        assert {arm for arm, n in pools.items() if n == 10} == {"alone", "real", "gen0", "pool-4", "clones-4"}
        assert {n for arm, n in pools.items() if arm.startswith(("pool-2", "pool-3", "seeds"))} == {3}
    captioners = {arm: n for (roles, arm), n in counts_of("01_variance").items() if roles == ("captioner",)}
    assert captioners["frozen-drift"] == 10 and captioners["frozen-length"] == captioners["recursive-drift"] == 3
    labels = {arm: n for (_, arm), n in counts_of("04_relabeling").items()}
    assert labels["joint"] == labels["real"] == 10 and labels["joint-closed"] == 5 and labels["noised"] == 3
    remedies = {arm: n for (_, arm), n in counts_of("06_remedies").items()}
    assert remedies["accumulate"] == remedies["recursive"] == remedies["gen0"] == 5 and remedies["N-125"] == 3


def test_a_study_runs_first_what_verdicts_need():
    """Turn by turn; the first holds the arms that primary contrasts of C1 to C7 and Q1 compare, and alarms' chains."""
    turns = {}
    for experiment in PRIORITY:
        s = load_settings("study", experiment)
        for p in arms_of(experiment, s):
            turns[experiment, p.roles, p.arm] = [turn_of(experiment, p, seed, s) for seed in seeds_of(experiment, p, s)]
    first = {key for key, found in turns.items() if found[0] == 0}
    arms = {experiment: {arm for e, _, arm in first if e == experiment} for experiment in PRIORITY}
    alarms = {("01_variance", ("captioner",), arm) for arm in ("recursive-drift", "gen0-drift")}
    assert arms["01_variance"] == {"recursive", "real", "gen0", "frozen-drift", "recursive-drift", "gen0-drift"}
    assert not arms["06_remedies"]
    assert arms["03_diversity"] == {"alone", "pool-4", "clones-4"} and not arms["08_intervention"]
    assert arms["04_relabeling"] == {"joint", "original", "frozen-captioner", "frozen-generator"}
    assert arms["02_decoding_budget"] == {f"{k}{g}" for k in CORNERS for g in ("", "-gen0")}
    assert all(turns[key] == ([0] * 3 if key in alarms else [0] * 5 + [2] * 5) for key in first)
    assert turns["06_remedies", ("generator",), "real-25%"] == [1] * 5
    assert turns["04_relabeling", ROLES, "real"] == [1] * 5 + [2] * 5, "a control of those that are judged"
    assert turns["01_variance", ("generator",), "recursive-fresh"] == [1] * 5
    s = load_settings("study", "01_variance", first_seed=20, arms="recursive,real,gen0")
    assert [turn_of("01_variance", arms_of("01_variance", s)[0], seed, s) for seed in (20, 24, 25)] == [0, 0, 2]


CORNERS = ("steps-2", "steps-50", "beams-1", "beams-5")


def test_the_ends_of_a_grid_are_the_profiles():
    """Whatever they are, and whichever arms are asked for."""
    steps = counts_of("02_decoding_budget", grid_steps="3,7,9")
    assert [steps[("generator",), f"steps-{k}"] for k in (3, 7, 9)] == [10, 3, 10]
    assert [steps[("generator",), f"steps-{k}-gen0"] for k in (3, 7, 9)] == [10, 3, 10]
    one = counts_of("02_decoding_budget", grid_steps="3,7,9", arms="steps-3,steps-3-gen0,steps-7,steps-7-gen0,real")
    assert one[("generator",), "steps-3"] == 10 and one[("generator",), "steps-7"] == 3
    corners = counts_of("02_decoding_budget", grid_steps="3,7,9", grid="corners")
    assert corners[("generator",), "steps-9"] == 10 and (("generator",), "steps-7") not in corners


def test_a_control_has_the_seeds_of_all_that_are_read_with_it():
    many = counts_of("04_relabeling", seeds_primary=4, seeds_exploratory=7)  # as nobody would want it
    assert many[ROLES, "noised"] == 7 and many[ROLES, "joint"] == many[ROLES, "real"] == 7


def test_seeds_are_equal_unless_a_profile_says_otherwise():
    for profile in ("nano", "smoke"):
        for experiment in PRIORITY:
            s = load_settings(profile, experiment, seeds=2, first_seed=7)
            assert {seeds_of(experiment, p, s) for p in arms_of(experiment, s)} == {range(7, 9)}
    s = load_settings("study", "01_variance", first_seed=20)
    first, *_ = arms_of("01_variance", s)
    assert seeds_of("01_variance", first, s) == range(20, 30)


def test_students_of_some_seeds():
    s = load_settings("smoke", first_seed=5, students=1, student_generations="1,3")
    assert [has_students(s, 9, g) for g in (0, 1, 2, 3)] == [False, True, False, True]
    two = replace(s, student_seeds=2)
    assert [has_students(two, seed, 1) for seed in (5, 6, 7)] == [True, True, False]
    assert not has_students(replace(two, students=0), 5, 1)


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
        (
            "01_variance",
            {"further": "generator"},
            "further='generator': the name of 'generator' tells no role; it must",
        ),
        ("06_remedies", {"further": "captioner-2,painter-2"}, "the name of 'painter-2' tells no role"),
        ("06_remedies", {"further": "captioner-2,captioner-2"}, "items must be there, and none twice"),
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


HALF = (("real_share", 0.5),)


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
        ({"rate": 0.0}, "rate=0.0 of arm 'a': must be positive"),
        ({"rate": float("nan")}, "rate=nan of arm 'a': must be positive"),
        ({"rate": float("inf")}, "rate=inf of arm 'a': must be positive"),
        ({"switch": 3}, "switch=3 of arm 'a': a remedy needs a switch, and a switch a remedy"),
        ({"remedy": HALF}, "switch=() of arm 'a': a remedy needs a switch"),
        ({"remedy": HALF, "switch": 0}, "switch=0 of arm 'a': allowed are generations from 1 on, or names of alarms"),
        ({"remedy": HALF, "switch": ("BLEU-4 falls",)}, "alarms of what is measured are FID rises, "),
        ({"remedy": HALF, "switch": ("recall falls", "it rains")}, "alarms of what is measured are FID rises, "),
        ({"remedy": (("population", ("b",)),), "switch": 2}, "'population' cannot change within a chain; pictures, "),
        ({"remedy": (("wine", 1),), "switch": 2}, "'wine' cannot change within a chain; pictures, captions, "),
        ({"remedy": (("real_share", 1.5),), "switch": 2}, "real_share=1.5 of arm 'a': allowed are 0 to 1"),
        ({"remedy": (("captions", "previous"),), "switch": 2}, "the captioner is not trained, so it has no previous"),
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
