"""The arms of the experiments, and the decoding schedule that drifts."""

import pytest

from mmcollapse.errors import MMCollapseError
from mmcollapse.models.captioner import CaptionDecoding
from mmcollapse.protocol import DRIFT, EXPERIMENTS, VARIANCE, Protocol, arms_of, drifting

MATCHED = CaptionDecoding(temperature=1.0, max_tokens=30)


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


def test_every_experiment_has_the_controls():
    for name, protocols in EXPERIMENTS.items():
        named = [(p.role, p.arm) for p in protocols]
        assert len(set(named)) == len(named), name
        for role in {p.role for p in protocols if p.data != "none"}:
            assert {(role, "real"), (role, "gen0")} <= set(named), name


def test_controls_differ_from_recursive_in_their_data_alone():
    for role in ("generator", "captioner"):
        arms = {p.arm: vars(p) for p in VARIANCE if p.role == role}
        for control, changes in {"real": {"data": "real"}, "gen0": {"makers": "base"}}.items():
            assert arms[control] == arms["recursive"] | {"arm": control} | changes


def test_arms_are_chosen_by_name():
    assert arms_of("01_variance") == list(VARIANCE)
    assert [(p.arm, p.modality) for p in arms_of("01_variance", "real, frozen-length")] == [
        ("real", "image"),
        ("real", "text"),
        ("frozen-length", "text"),
    ]
    with pytest.raises(MMCollapseError, match="01_variance has no arm 'reel'; it has frozen-drift, "):
        arms_of("01_variance", "real,reel")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"role": "painter"}, "role='painter' of arm 'a': allowed are generator, captioner"),
        ({"data": "fake"}, "data='fake' of arm 'a'"),
        ({"makers": "next"}, "makers='next' of arm 'a'"),
        ({"start": "scratch"}, "start='scratch' of arm 'a'"),
        ({"drift": ("heat",)}, "drift of 'heat' in arm 'a': allowed are temperature, "),
        ({"measured_drift": ("heat",)}, "drift of 'heat' in arm 'a'"),
    ],
)
def test_a_wrong_protocol_is_refused(values, says):
    with pytest.raises(MMCollapseError) as error:
        Protocol(**{"arm": "a", "role": "generator"} | values)
    assert says in str(error.value)
