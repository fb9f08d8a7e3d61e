"""CUDA graphs compute what the plain way computes. Where there is no GPU, only that nothing is recorded; the functions
that are recorded are compared without one, too: `a_gpu_makes` in test_generators, `a_gpu_writes` in test_captioners."""

from contextlib import contextmanager, nullcontext
from typing import ClassVar

import numpy as np
import pytest
import torch

from mmcollapse import graphs
from mmcollapse.memory import AtOnce
from mmcollapse.models import load
from mmcollapse.models.captioner import CaptionDecoding
from mmcollapse.models.generator import ImageDecoding
from mmcollapse.train import Recipe, train

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GENERATORS = ("generator", "generator-sdxl", "generator-pixart")
CAPTIONERS = ("captioner", "captioner-blip", "captioner-vit-gpt2")


def keys(n: int) -> list[tuple]:
    return [("graphs", i) for i in range(n)]


class Replayed:
    """Stands for a CUDA graph on a CPU: replayed, it calls the function, and spoils what graphs recorded after it gave
    back, as one does that works in the same memory."""

    made: ClassVar[list] = []

    def __init__(self, function):
        self.function = function
        # a capture runs no kernel: of a step the weights stay where they are
        self.output = None if function.__name__ == "_update" else function()
        self.made.append(self)

    def tensors(self) -> list[torch.Tensor]:
        return [] if self.output is None else list(self.output) if isinstance(self.output, tuple) else [self.output]

    def replay(self):
        new = self.function()
        for later in self.made[self.made.index(self) + 1 :]:
            for t in later.tensors():
                t.detach().fill_(float("nan") if t.is_floating_point() else 1)
        for t, value in zip(self.tensors(), new if isinstance(new, tuple) else [new], strict=False):
            t.copy_(value)


def record_here(monkeypatch):
    """Recording on a CPU, by Replayed."""

    def captured(function, pool=None):
        graph = Replayed(function)
        return graph, graph.output

    monkeypatch.setattr(Replayed, "made", [])
    for place in ("graphs", "train"):
        monkeypatch.setattr(f"mmcollapse.{place}.recording", lambda device: True)
        monkeypatch.setattr(f"mmcollapse.{place}.warm", lambda function, times=1: [function() for _ in range(times)])
        monkeypatch.setattr(f"mmcollapse.{place}.captured", captured)


def test_a_recording_is_called_with_what_it_is_given(monkeypatch):
    record_here(monkeypatch)
    called = graphs.Recorded(lambda inputs, by: inputs["x"] * by)
    for n in (*range(1, graphs.KEPT + 3), 1):
        x = torch.arange(n, dtype=torch.float32)
        for by in (2, 3):
            assert torch.equal(called({"x": x}, by=by), by * x)
            assert torch.equal(called({"x": x + 1}, by=by), by * (x + 1))
    assert len(called.recordings) == graphs.KEPT


def test_a_capture_that_breaks_says_why(monkeypatch):
    """Its end fails as well, on a GPU; and then the stream is still that of the capture."""
    streams = ["before"]

    @contextmanager
    def capture(graph, pool, capture_error_mode):
        streams.append("capture's")
        try:
            yield
        finally:
            raise RuntimeError("capture_end: the capture was invalidated")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: streams[-1])
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)

    def full():
        raise torch.OutOfMemoryError("CUDA out of memory")

    for function, error in ((full, torch.OutOfMemoryError), (dict, RuntimeError)):
        with pytest.raises(error) as found:
            graphs.captured(function, pool="own")
        assert type(found.value) is error and streams[-1] == "before"


def test_on_a_cpu_functions_are_called():
    called = graphs.Recorded(lambda inputs, by: inputs["x"] * by)
    x = torch.ones(3)
    assert torch.equal(called({"x": x}, by=2), 2 * x) and torch.equal(called({"x": x}, by=3), 3 * x)
    assert not called.recordings and not graphs.recording(torch.device("cpu"))


def test_plain_is_plain_within_and_no_longer():
    cuda = torch.device("cuda")
    assert graphs.recording(cuda)
    with pytest.raises(ValueError), graphs.plain():
        with graphs.plain():
            assert not graphs.recording(cuda)
        assert not graphs.recording(cuda)
        raise ValueError
    assert graphs.recording(cuda)


class Small(torch.nn.Module):
    """All kinds of layers, words that are looked up in the weights that predict them, and a layer that is unused."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 8, 3), torch.nn.GroupNorm(2, 8)
        self.linear, self.unused = torch.nn.Linear(8, 16, bias=False), torch.nn.Linear(2, 2)
        self.words, self.predicts = torch.nn.Embedding(5, 16), torch.nn.Linear(16, 5, bias=False)
        self.predicts.weight = self.words.weight

    def forward(self, images, ids):
        seen = self.linear(self.norm(self.conv(images)).mean((2, 3)))
        return self.predicts(torch.nn.functional.silu(seen + self.words(ids)))


def test_castable_is_what_only_autocast_touches():
    net = Small()
    found = {id(p) for p in graphs.castable(net)}
    named = {name for name, p in net.named_parameters() if id(p) in found}
    assert named == {"conv.weight", "conv.bias", "linear.weight", "unused.weight", "unused.bias"}


def test_weights_that_are_lowered_once_do_what_autocast_does():
    torch.manual_seed(0)
    net, found = Small(), []
    images, ids = torch.randn(4, 3, 6, 6), torch.tensor([0, 3, 3, 1])
    for parameters in ([], graphs.castable(net)):
        net.zero_grad()
        with graphs.lowered(parameters):
            with torch.autocast("cpu", torch.bfloat16):
                out = net(images, ids)
            assert net.conv.weight.dtype == (torch.bfloat16 if parameters else torch.float32)
            out.float().square().sum().backward()
        assert all(p.dtype == torch.float32 for p in net.parameters())
        found.append([out, *(p.grad for p in net.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) == 7  # the unused layer has no gradient
    for a, b in zip(*found, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b) and a.abs().sum() > 0


def test_weights_are_whole_again_after_an_error():
    net = Small()
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(ValueError), graphs.lowered(graphs.castable(net)):
        raise ValueError
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(before, net.parameters(), strict=True))


@GPU
def test_a_recording_is_of_its_shapes_and_constants_and_few_are_kept():
    called = graphs.Recorded(lambda inputs, by: inputs["x"] * by)
    for n in range(1, graphs.KEPT + 5):
        x = torch.arange(n, device="cuda", dtype=torch.float32)
        for by in (2, 3):
            assert torch.equal(called({"x": x}, by=by), by * x)
            assert torch.equal(called({"x": x + 1}, by=by), by * (x + 1))
    assert len(called.recordings) == graphs.KEPT


@GPU
def test_recordings_share_their_memory():
    """Each needs 64 MB to work in; what it gives back is small."""

    def work(inputs, by):
        return (inputs["x"].expand(2**24) * by).sum(0, keepdim=True)

    def taken() -> int:
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    called, other, x = graphs.Recorded(work), graphs.Recorded(work), torch.ones(1, device="cuda")
    called({"x": x}, by=1)
    before = taken()
    for by in (2, 3, 4):
        assert float(called({"x": x}, by=by)) == by * 2**24 == float(other({"x": x}, by=by))
        assert float(called({"x": x}, by=1)) == 2**24
    assert taken() - before < 2**26
    pools = {graph.pool() for function in (called, other) for graph, *_ in function.recordings.values()}
    assert len(pools) == 1


@GPU
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", GENERATORS)
def test_pictures_are_those_of_the_pipeline(models_folder, world, name, dtype):
    """Within rounding of the dtype; and after the weights have changed in place."""
    model = load(models_folder / name, "cuda", dtype)
    captions = [five[0] for five in world.sample("test", range(40)).captions]
    for _ in range(2):
        for guidance in (1.0, 3.0):
            decoding = ImageDecoding(10, guidance)
            fast = model.make(captions, decoding, keys(40), 16).astype(int)
            with graphs.plain():
                slow = model.make(captions, decoding, keys(40), 16).astype(int)
            # of 255 levels; bfloat16 keeps 8 bits, and ten steps add up what they lose
            assert np.abs(fast - slow).mean() < (0.1 if dtype == "float32" else 3.0)
            assert np.abs(slow - slow[::-1]).mean() > 20
        with torch.no_grad():
            for p in model.denoiser.parameters():
                p.mul_(1.01)


@GPU
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CAPTIONERS)
def test_captions_are_those_of_generate(models_folder, world, name, dtype):
    model, images = load(models_folder / name, "cuda", dtype), world.sample("test", range(200)).images
    for temperature in (0.0, 1.0):
        decoding = CaptionDecoding(temperature=temperature)
        fast = model.make(images, decoding, keys(200), 128)
        with graphs.plain():
            slow = model.make(images, decoding, keys(200), 128)
        same = np.mean([a == b for a, b in zip(fast, slow, strict=True)])
        # where two words are as likely to within rounding, either may be written
        assert same >= (0.99 if dtype == "float32" else 0.85)
        assert len(set(slow)) > 100


@GPU
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", GENERATORS + CAPTIONERS)
def test_training_ends_at_the_same_weights(models_folder, world, name, dtype):
    """The difference between the two ways against what training moved; the second of two runs is on what was recorded
    in the first, with other data."""
    model, recorded = load(models_folder / name, "cuda", dtype), {}
    values = list(model.trainable().values())
    before = [p.detach().clone() for p in values]
    recipe = Recipe(steps=20, batch=16, lr=1e-4, dtype=dtype)

    def trained(start: int, way) -> list[torch.Tensor]:
        with torch.no_grad():
            torch._foreach_copy_([p.detach() for p in values], before)
        some = world.sample("chain", range(start, start + 48))
        data = model.encode(some.images, [five[0] for five in some.captions])
        with way:
            ways = {"recorded": recorded, "network": model.network}
            train(model.loss, values, data, model.draw, recipe, ("graphs",), **ways)
        return [p.detach().clone() for p in values]

    for start in (0, 100):
        fast, slow = trained(start, nullcontext()), trained(start, graphs.plain())
        moved = sum(float((a - b).double().square().sum()) for a, b in zip(slow, before, strict=True)) ** 0.5
        apart = sum(float((a - b).double().square().sum()) for a, b in zip(slow, fast, strict=True)) ** 0.5
        # Adam divides by the size of a gradient: where it is rounding alone, so is the step
        assert 0 < moved and apart < (0.1 if dtype == "float32" else 0.5) * moved
    assert len(recorded) == 1


@GPU
@pytest.mark.parametrize("most, late", [(16, False), (6, False), (6, True)])  # pairs that there is memory for
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("name", ("generator", "generator-sdxl", "captioner", "captioner-blip"))
def test_a_large_model_is_trained_by_what_is_recorded(models_folder, world, monkeypatch, name, method, most, late):
    """With checkpointing, in parts where memory runs out (late: only in the capture), and as in the plain way; the
    recording is not kept."""
    monkeypatch.setattr(graphs, "LARGE", 0)
    some = world.sample("chain", range(48))
    ended, before = [], None
    for way in (nullcontext(), graphs.plain()):
        model, kept, at_once = load(models_folder / name, "cuda"), {}, AtOnce(16, "the pairs of a step", "train_batch")
        model.prepare(method, 4, checkpointing=True)
        values, data = list(model.trainable().values()), model.encode(some.images, [five[0] for five in some.captions])
        before = [p.detach().clone() for p in values]

        def loss(batch, model=model):
            value = model.loss(batch)
            if len(next(iter(batch.values()))) > most and (not late or torch.cuda.is_current_stream_capturing()):
                value.backward(retain_graph=True)  # some gradients are there already
                torch.empty(2**50, device="cuda")
            return value

        with way:
            recipe, ways = Recipe(20, 16, 1e-4), {"recorded": kept, "network": model.network, "size": model.size}
            train(loss, values, data, model.draw, recipe, ("large",), at_once=at_once, **ways)
        assert not kept and at_once.n == (4 if most == 6 and not (late and ended) else 16)  # halved from 16
        ended.append([p.detach().clone() for p in values])
    moved, apart = (
        sum(float((a - b).double().square().sum()) for a, b in zip(ended[0], others, strict=True)) ** 0.5
        for others in (before, ended[1])
    )
    assert 0 < moved and apart < 0.1 * moved
