"""The training loop, on a linear model whose every number can be followed."""

import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmcollapse.errors import MMCollapseError, TrainingDiverged
from mmcollapse.memory import AtOnce
from mmcollapse.randomness import generator
from mmcollapse.train import Recipe, _Step, batches, train
from test_graphs import record_here

N = 24


def problem(seed: int = 0):
    """(loss, parameters, data): linear regression with a random input, as pictures have theirs."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.nn.Parameter(torch.randn(3, 2, generator=g))
    bias = torch.nn.Parameter(torch.zeros(2))
    x = torch.randn(N, 3, generator=g)
    data = {"x": x, "y": x @ torch.randn(3, 2, generator=g) * 3 + 1}

    def loss(batch):
        return ((batch["x"] + 0.1 * batch["noise"]) @ weight + bias - batch["y"]).square().mean()

    return loss, [weight, bias], data


def draw(n, g):
    return {"noise": torch.randn(n, 3, generator=g)}


def run(recipe=None, key=("run", 0), **options):
    """(weights, log) after training the problem."""
    loss, parameters, data = problem()
    recipe = recipe or Recipe(steps=60, batch=4, lr=0.01)
    log = train(loss, parameters, data, draw, recipe, key, **options)
    return [p.detach().clone() for p in parameters], log


def same(a, b) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


# -- batches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, batch, steps", [(10, 3, 40), (10, 10, 7), (10, 4, 5), (3, 8, 9), (7, 7, 1), (1, 4, 3)])
def test_every_pair_is_seen_equally_often(n, batch, steps):
    rows = list(batches(n, batch, steps, ("key",)))
    assert len(rows) == steps and {len(r) for r in rows} == {batch}
    seen = np.bincount(torch.cat(rows), minlength=n)
    assert seen.sum() == steps * batch and np.ptp(seen) <= 1
    stream = torch.cat(rows).tolist()
    for start in range(0, len(stream) - n + 1, n):
        assert sorted(stream[start : start + n]) == list(range(n))  # one permutation after another


def test_batches_are_a_function_of_their_key_alone():
    def order(*key):
        return torch.cat(list(batches(50, 8, 20, key))).tolist()

    torch.manual_seed(1)
    first = order("a", 1)
    torch.manual_seed(2)
    assert order("a", 1) == first != order("a", 2)
    assert first[:50] != list(range(50)) and first[:50] != first[50:100]
    longer = torch.cat(list(batches(50, 8, 30, ("a", 1)))).tolist()
    assert longer[: len(first)] == first  # the number of steps planned does not change the first of them


def test_batches_start_every_position_equally_often():
    first = np.bincount([next(batches(5, 1, 1, ("k", i))).item() for i in range(2000)], minlength=5)
    assert first.min() > 330 and first.max() < 470


# -- recipe ---------------------------------------------------------------------------------------------------------


def test_learning_rate_warms_up_and_stays_or_falls():
    flat = Recipe(steps=100, batch=1, lr=2.0, warmup=10)
    assert [flat.lr_at(k) for k in (0, 4, 9, 10, 99)] == pytest.approx([0.2, 1.0, 2.0, 2.0, 2.0])
    assert Recipe(steps=5, batch=1, lr=2.0, warmup=0).lr_at(0) == 2.0
    cosine = Recipe(steps=100, batch=1, lr=2.0, warmup=10, decay="cosine")
    for k in (0, 5, 10, 50, 99):
        wanted = 2.0 * min(1, (k + 1) / 10) * 0.5 * (1 + math.cos(math.pi * k / 100))
        assert cosine.lr_at(k) == pytest.approx(wanted)
    assert cosine.lr_at(50) == pytest.approx(1.0) and cosine.lr_at(99) < 0.001


# -- the loop -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay, clip", [("constant", 1.0), ("cosine", 0.3), ("constant", 1e9)])
def test_train_is_the_plain_loop_written_out(decay, clip):
    recipe = Recipe(steps=40, batch=5, lr=0.02, warmup=6, decay=decay, weight_decay=0.1, betas=(0.8, 0.9), clip=clip)
    loss, parameters, data = problem()
    average = [p.detach().clone() for p in parameters]
    log = train(loss, parameters, data, draw, recipe, ("k", 1), average=average, average_decay=0.9, every=7)

    loss, mine, data = problem()
    followed, noise, losses = [p.detach().clone() for p in mine], generator("noise", "k", 1), []
    m, v = ([torch.zeros_like(p) for p in mine] for _ in range(2))
    norms = []
    for k, index in enumerate(batches(N, 5, 40, ("k", 1))):
        value = loss({name: t[index] for name, t in data.items()} | draw(5, noise))
        gradients = torch.autograd.grad(value, mine)
        losses.append(value.item())
        norms.append(math.sqrt(sum(float(g.square().sum()) for g in gradients)))
        with torch.no_grad():
            for i, (p, g) in enumerate(zip(mine, gradients, strict=True)):  # Loshchilov and Hutter 2019, algorithm 2
                g = g * min(1, clip / (norms[-1] + 1e-6))
                p *= 1 - recipe.lr_at(k) * 0.1
                m[i], v[i] = 0.8 * m[i] + 0.2 * g, 0.9 * v[i] + 0.1 * g * g
                step = (m[i] / (1 - 0.8 ** (k + 1))) / ((v[i] / (1 - 0.9 ** (k + 1))).sqrt() + 1e-8)
                p -= recipe.lr_at(k) * step
                followed[i] = p.clone() if k == 9 else 0.9 * followed[i] + 0.1 * p  # begun anew at a quarter
    for got, wanted in [*zip(parameters, mine, strict=True), *zip(average, followed, strict=True)]:
        assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-5)
    assert log == pytest.approx([losses[k] for k in (6, 13, 20, 27, 34, 39)], rel=1e-4)
    assert not torch.allclose(average[0], parameters[0], rtol=1e-3)
    assert max(norms) > 2 > 0.3  # so that clipping at 1 and 0.3 means something


def test_clipping_is_active():
    """AdamW forgets the scale of all gradients alike, so one wild batch must not drown the others."""

    def wild(clip):
        loss, parameters, data = problem()
        count = itertools.count()
        train(
            lambda batch: loss(batch) * (1e4 if next(count) == 5 else 1),
            parameters, data, draw, Recipe(steps=20, batch=4, lr=0.05, warmup=0, clip=clip), ("k",),
        )  # fmt: skip
        return parameters[0].detach()

    assert (wild(1.0) - wild(1e9)).abs().max() > 0.05


def test_training_learns():
    _, log = run(Recipe(steps=400, batch=8, lr=0.05, weight_decay=0.0), every=40)
    assert log[-1] < 0.05 * log[0]


def test_a_learning_rate_of_zero_changes_nothing():
    assert same(run(Recipe(steps=20, batch=4, lr=0.0))[0], problem()[1])


def test_equal_keys_give_equal_weights_whatever_the_global_generators():
    torch.manual_seed(1)
    first = run()
    torch.manual_seed(2)
    np.random.seed(2)
    state = torch.random.get_rng_state()
    again = run()
    assert same(first[0], again[0]) and first[1] == again[1]
    assert torch.equal(state, torch.random.get_rng_state())
    assert not same(first[0], run(key=("run", 1))[0])


def test_bfloat16_computes_in_it_and_keeps_float32_weights():
    seen = set()
    loss, parameters, data = problem()

    def spy(batch):
        seen.add((batch["x"] @ parameters[0]).dtype)
        return loss(batch)

    start = [p.detach().clone() for p in parameters]
    train(spy, parameters, data, draw, Recipe(steps=30, batch=4, lr=1e-5, dtype="bfloat16"), ("run", 0))
    assert seen == {torch.bfloat16} and {p.dtype for p in parameters} == {torch.float32}
    assert all(bool((p != s).all()) for p, s in zip(parameters, start, strict=True))  # 1e-5 is not lost in rounding


def test_progress_is_told_and_logged():
    told = []
    _, log = run(Recipe(steps=45, batch=4, lr=0.01), every=20, on_step=lambda step, loss: told.append((step, loss)))
    assert [step for step, _ in told] == [20, 40, 45] and [loss for _, loss in told] == log


# -- continuing -----------------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def test_resumed_equals_uninterrupted(tmp_path):
    recipe, file = Recipe(steps=1300, batch=4, lr=0.01, decay="cosine"), tmp_path / "run.pt"

    def trained(stop_at=None, checkpoint=None):
        loss, parameters, data = problem()
        average, count = [p.detach().clone() for p in parameters], itertools.count()

        def stopping(batch):
            if next(count) == stop_at:
                raise Killed
            return loss(batch)

        log = train(stopping, parameters, data, draw, recipe, ("k",), average=average, checkpoint=checkpoint, every=50)
        return [p.detach() for p in parameters] + average, log, next(count)

    whole, log, steps = trained()
    assert steps == 1300
    with pytest.raises(Killed):
        trained(stop_at=1200, checkpoint=file)
    assert file.is_file()
    resumed, resumed_log, steps = trained(checkpoint=file)
    assert steps in (300, 301)  # the first 1,000 are not done again; one makes the optimiser's state, to be overwritten
    assert same(resumed, whole) and resumed_log == log
    assert not list(tmp_path.iterdir())  # finished: nothing to continue from


PRETRAINING = """
import itertools, os, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from mmcollapse.train import Recipe, train
from test_train import draw, problem

torch.distributed.init_process_group("gloo")
file, stop = Path(sys.argv[2]), int(sys.argv[3])
loss, parameters, data = problem()
count = itertools.count()

def stopping(batch):
    if next(count) == stop:
        torch.distributed.barrier()
        os._exit(0)  # both at once, as a machine that is lost
    return loss(batch)

train(stopping, parameters, data, draw, Recipe(1300, 4, 0.01), ("k",), checkpoint=file)
if stop > 0:  # went on
    assert next(count) < 400
sys.stderr.write("weights " + " ".join(f"{float(x):.6f}" for p in parameters for x in p.flatten()) + "\\n")
torch.distributed.destroy_process_group()
"""


def test_several_processes_that_pretrain_resume_as_one(tmp_path):
    """Each with its own noise; the first alone writes."""
    script, file = tmp_path / "script.py", tmp_path / "run.pt"
    script.write_text(PRETRAINING)

    def said(stop: int) -> list[str]:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        words = [*torchrun, script, Path(__file__).parent, file, str(stop)]
        job = subprocess.run(words, stderr=-1, text=True, timeout=120)
        return [line for line in job.stderr.splitlines() if line.startswith("weights")]

    whole = said(-1)
    assert len(whole) == 2 and whole[0] == whole[1] and not file.exists()
    assert not said(1200) and file.is_file()
    loss, parameters, data = problem()
    with pytest.raises(MMCollapseError, match="run.pt is of 2 processes, now there are 1: go on with as many, or remo"):
        train(loss, parameters, data, draw, Recipe(1300, 4, 0.01), ("k",), checkpoint=file)
    assert said(1300) == whole and not file.exists()  # stops never: less than that are left


# -- recorded -------------------------------------------------------------------------------------------------------


def test_what_is_recorded_is_the_step(monkeypatch):
    """And recorded once, however often it is trained, but where a batch has other parts."""
    plain = [run(key=("run", k)) for k in range(2)]
    record_here(monkeypatch)
    recorded, (loss, parameters, data) = {}, problem()
    start = [p.detach().clone() for p in parameters]
    for k, (weights, losses) in enumerate(plain):
        torch._foreach_copy_([p.detach() for p in parameters], start)
        log = train(loss, parameters, data, draw, Recipe(60, 4, 0.01), ("run", k), recorded=recorded)
        assert same(parameters, weights) and log == losses and len(recorded) == 1
    few = {"recorded": recorded, "at_once": AtOnce(2, "pairs", "train_batch")}
    train(loss, parameters, data, draw, Recipe(60, 4, 0.01), ("run", 2), **few)
    assert len(recorded) == 2


@pytest.mark.parametrize("at", [0, 1, 3, "update"])  # the first warm-up, the second, the capture, and half way
def test_out_of_memory_while_recording_halves_the_batch_and_leaves_nothing(monkeypatch, capsys, at):
    short, step = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), _Step._update

    def trained(n: int, most: int):
        loss, parameters, data = problem()
        average, calls = [p.detach().clone() for p in parameters], []
        at_once, recorded = AtOnce(n, "pairs", "train_batch"), {}

        def small(batch):
            calls.append(len(batch["x"]))
            if at != "update" and len(calls) > at and len(batch["x"]) > most:
                raise short
            return loss(batch)

        ways = {"average": average, "at_once": at_once, "recorded": recorded}
        log = train(small, parameters, data, draw, Recipe(30, 4, 0.01), ("run", 0), **ways)
        return [p.detach() for p in parameters] + average, log, at_once.n, recorded

    whole = trained(1, 4)
    record_here(monkeypatch)
    updates = itertools.count()

    def _update(self):
        if at == "update" and next(updates) in (1, 3):  # the second of warm-ups with 4 pairs at once, and with 2
            raise short
        return step(self)

    monkeypatch.setattr(_Step, "_update", _update)
    parts = trained(4, 1)
    assert parts[2] == 1 and same(parts[0], whole[0]) and parts[1] == whole[1]
    assert [kind[0] for kind in parts[3]] == [1]
    assert "from here on 1 of pairs at once (setting train_batch)" in capsys.readouterr().err


def test_the_recorded_step_of_a_large_model_is_given_up_at_the_end(monkeypatch):
    plain = run()
    record_here(monkeypatch)
    monkeypatch.setattr("mmcollapse.graphs.LARGE", 0)
    pools = []
    monkeypatch.setattr("torch.cuda.graph_pool_handle", lambda: pools.append((0, 1)) or pools[-1])
    recorded = {}
    for k in (1, 2):
        weights, log = run(recorded=recorded, network=torch.nn.Linear(1, 1))
        assert same(weights, plain[0]) and log == plain[1] and not recorded and len(pools) == k


def test_a_large_model_is_trained_as_if_it_were_not_compiled(monkeypatch):
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(x).sin()

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr("mmcollapse.graphs.LARGE", 0)
    network, compiled, x = Network(), [], torch.randn(N, 3)
    network.compile(backend=backend)

    def loss(batch):
        return network(batch["x"]).square().mean()

    train(loss, list(network.parameters()), {"x": x}, draw, Recipe(3, 4, 0.01), ("k",), network=network)
    assert not compiled
    network(x)
    assert len(compiled) == 1


# -- what goes wrong ------------------------------------------------------------------------------------------------


def test_nan_ends_the_run_with_step_and_learning_rate():
    loss, parameters, data = problem()
    count = itertools.count()

    def breaks(batch):
        return loss(batch) * (float("nan") if next(count) >= 30 else 1)

    with pytest.raises(TrainingDiverged, match=r"nan at step 40 of 60 \(learning rate 0.003") as caught:
        train(breaks, parameters, data, draw, Recipe(steps=60, batch=4, lr=0.003), ("k",))
    assert isinstance(caught.value, MMCollapseError)


def test_an_infinite_loss_ends_the_run():
    loss, parameters, data = problem()
    with pytest.raises(TrainingDiverged, match="inf at step 20"):
        train(lambda b: loss(b) + torch.tensor(float("inf")), parameters, data, draw, Recipe(30, 4, 0.01), ("k",))


def test_a_weight_that_breaks_in_the_last_step_is_noticed():
    """The loss is finite, its gradient is not: only the weights show it."""
    loss, parameters, data = problem()
    count = itertools.count()

    def last(batch):
        value = loss(batch)
        if next(count) == 9:
            value = value + (parameters[0].sum() * 0).sqrt()
        return value

    with pytest.raises(TrainingDiverged, match="weight.*learning rate 0.01"):
        train(last, parameters, data, draw, Recipe(10, 4, 0.01), ("k",))
