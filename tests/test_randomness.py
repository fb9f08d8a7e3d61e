"""Random numbers belong to their key: to nothing before, beside or around it."""

import hashlib
import json

import numpy as np
import pytest
import torch
from scipy import stats

from mmcollapse.randomness import generator, gumbel, normal, seed_of

KEYS = [("role", g, i) for g in range(3) for i in range(4)]


def test_a_seed_is_the_hash_of_its_key():
    wanted = int.from_bytes(hashlib.sha256(b'["role", 3, 1.5]').digest()[:8], "little") >> 1
    assert seed_of("role", 3, 1.5) == wanted < 2**63
    seeds = {seed_of(*key) for key in KEYS} | {seed_of(1, 23), seed_of(12, 3), seed_of("1", 23), seed_of()}
    assert len(seeds) == len(KEYS) + 4
    assert seed_of(0, 1) != seed_of(1, 0)
    assert seed_of(("a", 1)) == seed_of(["a", 1])  # a tuple that went through JSON is the same key
    with pytest.raises(TypeError):
        seed_of(object())  # its name would change with every process
    assert json.dumps(["role", 3, 1.5]) == '["role", 3, 1.5]'


@pytest.mark.parametrize("draw", [normal, gumbel])
def test_a_draw_is_a_pure_function_of_its_key(draw):
    whole = draw(KEYS, (2, 5))
    assert whole.shape == (12, 2, 5) and whole.dtype == torch.float32
    torch.manual_seed(1)
    np.random.seed(1)
    order = [7, 0, 3]
    assert torch.equal(draw([KEYS[i] for i in order], (2, 5)), whole[order])
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    draw(KEYS, (2,))
    assert torch.equal(before[0], torch.random.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()
    assert len({row.numpy().tobytes() for row in whole}) == len(KEYS)
    assert not torch.equal(normal(KEYS[:1], (4,)), gumbel(KEYS[:1], (4,)))


@pytest.mark.parametrize("draw, law", [(normal, stats.norm), (gumbel, stats.gumbel_r)])
def test_draws_follow_their_law_within_and_between_keys(draw, law):
    within = draw([("a",)], (20_000,)).numpy().ravel()
    between = draw([("a", i) for i in range(3000)], (1,)).numpy().ravel()
    for values in (within, between):
        assert stats.kstest(values, law.cdf).pvalue > 1e-3
    pair = draw([("a", i) for i in range(3000)], (2,)).numpy()
    assert abs(np.corrcoef(pair.T)[0, 1]) < 0.06 and abs(np.corrcoef(pair[1:, 0], pair[:-1, 0])[0, 1]) < 0.06


def test_noise_is_the_same_on_every_machine():
    """Store names rest on it. torch and NumPy promise no equality across versions: these have been equal so far."""
    assert seed_of("chain", 0, 1, "picture", 2) == 1727305819299002407
    assert normal([("chain", 0)], (4,))[0].numpy() == pytest.approx(
        [0.31534836, 0.53948015, 0.90338606, -0.86133826], abs=1e-6
    )
    assert gumbel([("chain", 0)], (4,))[0].numpy() == pytest.approx(
        [0.73031759, -0.11620016, -0.90505046, -1.04022753], abs=1e-6
    )


def test_generators_of_one_key_start_alike():
    a, b = generator("x", 1), generator("x", 1)
    assert a.initial_seed() == seed_of("x", 1) and a.device.type == "cpu"
    assert torch.equal(torch.rand(3, generator=a), torch.rand(3, generator=b))
    assert not torch.equal(torch.rand(3, generator=a), torch.rand(3, generator=generator("x", 2)))
