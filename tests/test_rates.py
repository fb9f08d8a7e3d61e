"""The table of rates: what it says, takes and refuses; and the costs that are computed from it."""

import json
import math
import re

import pytest
from safetensors import safe_open

from mmcollapse import costs
from mmcollapse.costs import Work, hours, memory, parameters
from mmcollapse.errors import MMCollapseError
from mmcollapse.rates import RATES, WORK, Rate, add_rates, best_rate, read_rates
from mmcollapse.settings import load_settings


def rate(ms=2.0, batch=16, model="m", work="denoise", device="cpu", how="64 px", source="by hand") -> Rate:
    return Rate(model, work, device, ms, batch, how, source)


def test_every_shipped_rate_says_where_it_is_from():
    """And of real models on the GPU that the issue of their speed names."""
    found = read_rates()
    assert {r.work for r in found} == set(WORK)
    assert len({(r.model, r.work, r.device, r.batch, r.how) for r in found}) == len(found)
    assert all(re.search(r"torch \d.*, \d{4}-\d\d-\d\d$", r.source) for r in found)
    large = {r.model for r in found if r.device == "NVIDIA H100 80GB HBM3"}
    assert {"CompVis/stable-diffusion-v1-4", "stabilityai/stable-diffusion-xl-base-1.0"} <= large


def test_what_is_added_is_read_again_and_takes_the_place_of_the_old(tmp_path):
    path = tmp_path / "rates.json"
    add_rates([rate(3.0), rate(5.0, batch=1)], path)
    add_rates([rate(2.5)], path)
    assert read_rates(path) == [rate(5.0, batch=1), rate(2.5)]
    assert len(path.read_text().splitlines()) == 2 + 2 and json.loads(path.read_text())  # a line a rate
    text = RATES.read_text()
    path.write_text(text)
    add_rates([], path)
    assert path.read_text() == text  # the shipped table is as this writes it


@pytest.mark.parametrize(
    "wrong",
    [{"work": "think"}, {"ms": 0.0}, {"ms": math.nan}, {"ms": math.inf}, {"batch": -1}, {"source": ""}, {"device": ""}],
)
def test_a_rate_without_sense_or_source_is_refused(wrong):
    with pytest.raises(MMCollapseError, match="a rate"):
        rate(**wrong)


@pytest.mark.parametrize("text", ["[", '[{"model": "m"}]', "3"])
def test_a_damaged_table_is_named(tmp_path, text):
    (tmp_path / "rates.json").write_text(text)
    with pytest.raises(MMCollapseError, match="rates.json is damaged"):
        read_rates(tmp_path / "rates.json")


def test_the_rate_is_of_the_batch_that_will_be_used():
    rates = [rate(40.0, 1), rate(5.0, 16), rate(4.0, 64), rate(1.0, 16, device="cuda"), rate(1.0, 16, model="other")]
    for batch, ms in {1: 40.0, 16: 5.0, 63: 5.0, 64: 4.0}.items():
        assert best_rate(rates, "m", "denoise", "cpu", batch).ms == ms
    assert best_rate([rate(9.0, 64), *rates[1:2]], "m", "denoise", "cpu", 2).ms == 5.0  # the nearest there is
    assert best_rate([*rates, rate(3.0, 0)], "m", "denoise", "cpu", 1).ms == 40.0  # one picture is no batch
    assert best_rate([*rates, rate(3.0, 0)], "m", "denoise", "cpu", 8).ms == 3.0
    assert best_rate(rates, "m", "train", "cpu", 16) is None


def test_hours_are_units_times_rates_and_what_was_not_measured_is_said():
    work = Work()
    work.amounts |= {("m", "denoise"): 1_800_000, ("m", "decode"): 10}
    lines, spent, unknown = hours(work.amounts, [rate(2.0)], "cpu", 16)
    assert spent == pytest.approx(1.0) and unknown == 1  # 1.8 million of 2 ms are an hour
    assert lines[1].endswith("not measured") and lines[2].split()[:5] == ["m:", "denoise", "1,800,000", "2", "1.00"]


def test_the_device_is_this_one_or_the_one_that_most_was_measured_on(monkeypatch):
    few = [rate(device="NVIDIA L4"), rate(device="NVIDIA H100"), rate(device="NVIDIA H100", work="train"), rate()]

    def device(setting: str, here: str = "", model: str = "m") -> str:
        monkeypatch.setattr("torch.cuda.is_available", lambda: bool(here))
        monkeypatch.setattr("torch.cuda.get_device_name", lambda: here)
        return costs.device_of(load_settings("smoke", device=setting), few, [model])

    assert device("cpu", "NVIDIA L4") == device("auto") == "cpu"
    assert device("cuda", "NVIDIA L4") == device("auto", "NVIDIA L4") == "NVIDIA L4"
    assert device("cuda", "NVIDIA H100 80GB HBM3") == device("cuda") == device("cuda", "Other") == "NVIDIA H100"
    assert device("cuda", "Other", "unknown") == "Other" and device("cuda", "", "unknown") == "GPU"


def test_memory_is_of_weights_and_of_what_training_needs_beside_them():
    """16 bytes a trained parameter in float32, 4 one that is only held; in bfloat16 a copy of what is trained. Beside
    LoRA, weights are held in bfloat16."""
    held, trained, lora = 1_066_235_307, 859_520_964, 16 * 199_296
    name, none = "CompVis/stable-diffusion-v1-4", {"spaces": "judge"}
    for method, dtype, wanted in (
        ("full", "float32", 4 * held + 12 * trained),
        ("full", "bfloat16", 4 * held + 14 * trained),
        ("lora", "float32", 4 * held + 16 * lora),
        ("lora", "bfloat16", 4 * held + 16 * lora - 2 * trained),
    ):
        settings = load_settings("single-gpu", method=method, dtype=dtype, **none)
        assert memory(settings, [name]) == (wanted, [])
    one = memory(load_settings("single-gpu", spaces="judge"), [name])[0]
    assert memory(load_settings("single-gpu", spaces="dino"), [name])[0] == one + 346_000_000


def test_work_is_counted_in_its_units():
    work = Work()
    work.settings = load_settings("smoke")
    work.make({"makers": "a", "decoding": {"steps": 10, "guidance": 1.0}}, 3)
    work.make({"makers": ["a", "b"], "decoding": {"steps": 10, "guidance": 3.0}}, 4)  # in turn, two passes a step
    work.make({"makers": "c", "decoding": {"temperature": 1.0, "beams": 5}}, 2)
    work.make({"makers": "oracle"}, 7)
    recipe = {"steps": 5, "batch": 4}
    work.train("weights-1", {"parent": "a", "recipe": recipe}, True)
    work.train("weights-1", {"parent": "a", "recipe": recipe}, False)  # shared
    work.make({"makers": "weights-1", "decoding": {"steps": 1, "guidance": 1.0}}, 1)  # is of the model "a"
    wanted = {("a", "denoise"): 30 + 40 + 1, ("b", "denoise"): 40, ("a", "decode"): 3 + 2 + 1, ("b", "decode"): 2}
    assert work.amounts == wanted | {("c", "caption"): 10, ("a", "train"): 20} and work.steps == 5


def test_the_store_is_fullest_where_most_lies_in_it(monkeypatch):
    monkeypatch.setattr(costs, "parameters", lambda settings, model: (100, 25))
    work = Work()
    work.settings = load_settings("smoke")
    recipe = {"steps": 1, "batch": 1}
    for name in "xyz":
        work.train(name, {"parent": "a", "recipe": recipe}, True)
        if name != "x":
            work.prune(name)
    assert work.peak == 2 * 25 * costs.FLOAT
    work.keep_pairs("p", 3)
    assert work.peak == 25 * costs.FLOAT + 3 * costs.PIXEL * 64 * 64


def test_parameters_are_those_of_the_files_or_of_the_published_models(models_folder, generator):
    settings = load_settings("smoke")
    held, trained = parameters(settings, "generator")
    assert trained == sum(p.numel() for p in generator.denoiser.parameters())
    parts = [part for part in generator.pipe.components.values() if hasattr(part, "parameters")]
    assert held == pytest.approx(sum(p.numel() for part in parts for p in part.parameters()), rel=1e-3)
    with safe_open(models_folder / "captioner" / "model.safetensors", "np") as file:
        stored = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())
    assert parameters(settings, "captioner") == (stored, stored)
    full, lora = (load_settings("single-gpu", method=method) for method in ("full", "lora"))
    assert parameters(full, full.generators) == (1_066_235_307, 859_520_964)
    assert parameters(lora, f"{full.generators}@main")[1] == 16 * 199_296
    assert parameters(settings, "no/such") is None
    assert memory(full, ["no/such"])[1] == ["no/such"]


def test_lora_of_published_models_is_counted_as_it_is_injected():
    """The U-Net of Stable Diffusion 1.4, without memory for its weights."""
    import torch
    from diffusers import UNet2DConditionModel

    from mmcollapse.models import add_lora
    from mmcollapse.models.generator import StableDiffusion

    with torch.device("meta"):
        unet = UNet2DConditionModel(block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768)
        assert sum(p.numel() for p in unet.parameters()) == 859_520_964
        add_lora(unet, StableDiffusion.lora_targets, 2)
    assert sum(p.numel() for p in unet.parameters() if p.requires_grad) == 2 * 199_296
