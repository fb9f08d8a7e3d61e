"""Random numbers belong to their key: to nothing before, beside or around it."""

import hashlib
import json

import numpy as np
import pytest
import torch
from scipy import stats

from mmcollapse.randomness import WORD, generator, gumbel, gumbel_rows, normal, philox, seed_of

KEYS = [("role", g, i) for g in range(3) for i in range(4)]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


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
    follows(draw, law)


def test_rows_follow_their_law_within_and_between_keys():
    def draw(keys, shape):
        rows = gumbel_rows(keys, 2, "cpu")
        return torch.cat([rows(k) for k in range(-(-shape[0] // 2))], 1)[:, : shape[0]]

    follows(draw, stats.gumbel_r)  # by keys and rows,
    follows(lambda keys, shape: gumbel_rows(keys, shape[0], "cpu")(3), stats.gumbel_r)  # and by words


def follows(draw, law):
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


def hexed(words: list[str]) -> torch.Tensor:
    return torch.tensor([int(word, 16) for word in " ".join(words).split()])


@pytest.mark.parametrize("device", DEVICES)
def test_philox_gives_the_published_words(device):
    """kat_vectors of Random123, by the authors of the generator: counter, key, words."""
    known = [
        ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ]
    counter, key, words = (hexed(column).view(3, -1).to(device) for column in zip(*known, strict=True))
    assert torch.equal(philox(counter, key), words)
    many = philox(counter[:, None], key)  # every counter with every key
    assert many.shape == (3, 3, 4) and torch.equal(many.diagonal().T, words) and many.unique().numel() == 36


@pytest.mark.parametrize("device", DEVICES)
def test_a_row_depends_on_key_row_and_word_alone(device):
    rows = gumbel_rows(KEYS, 11, device)
    some = [rows(k) for k in (0, 1, 5)]
    assert all(row.shape == (12, 11) and row.dtype == torch.float32 and row.device.type == device for row in some)
    assert torch.stack(some).unique().numel() == 3 * 12 * 11
    order = [7, 0, 3]
    fewer = gumbel_rows([KEYS[i] for i in order], 6, device)
    assert torch.equal(fewer(5), some[2][order, :6]) and torch.equal(fewer(0), some[0][order, :6])
    here = gumbel_rows(KEYS, 11, "cpu")
    assert torch.allclose(here(5), some[2].cpu(), rtol=1e-5, atol=1e-6)  # logarithms may round otherwise
    seed = seed_of("gumbel", *KEYS[2])
    word = philox(torch.tensor([1, 5, 0, 0]), torch.tensor([seed & WORD, seed >> 32]))[2]  # of token 5, word 4 + 2
    wanted = -np.log(-np.log((int(word) >> 8) / 2**24))
    assert float(some[2][2, 6]) == pytest.approx(wanted, rel=1e-4)


def test_generators_of_one_key_start_alike():
    a, b = generator("x", 1), generator("x", 1)
    assert a.initial_seed() == seed_of("x", 1) and a.device.type == "cpu"
    assert torch.equal(torch.rand(3, generator=a), torch.rand(3, generator=b))
    assert not torch.equal(torch.rand(3, generator=a), torch.rand(3, generator=generator("x", 2)))
