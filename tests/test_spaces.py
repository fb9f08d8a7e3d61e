"""Feature spaces: stand-ins of the real networks' classes and file layouts, and what is said when one is not there."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmcollapse.errors import MMCollapseError
from mmcollapse.metrics.spaces import FILES, open_space

SIZE = 64


class Layers(torch.nn.Module):
    """As many numbers as Inception gives, of pictures of 299 pixels in [-1, 1]."""

    def forward(self, x):
        assert x.shape[2] == 299 and float(x.min()) >= -1.0 and float(x.max()) <= 1.0
        cells = torch.nn.functional.adaptive_avg_pool2d(x, 27).flatten(1)
        return cells[:, :2048]


class Base(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = Layers()

    def forward(self, x):
        return self.layers(x)


@pytest.fixture(scope="module")
def instruments(tmp_path_factory, models_folder):
    """A folder of instruments in the layout of the real ones."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("instruments")
    (folder / "inception").mkdir()
    torch.jit.script(Base()).save(folder / "inception" / FILES["inception"])
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(image_size=56, patch_size=14, **shape)).save_pretrained(folder / "dino")
    crop = {"height": 56, "width": 56}
    BitImageProcessor(size={"shortest_edge": 64}, crop_size=crop).save_pretrained(folder / "dino")
    (folder / "clip").symlink_to(models_folder / "judge")
    return folder


@pytest.fixture(scope="module")
def pictures(world):
    return world.sample("test", np.arange(6)).images


DIMENSIONS = {"judge": 64, "judge-2": 64, "inception": 2048, "clip": 64, "dino": 32}


@pytest.mark.parametrize(("name", "d"), DIMENSIONS.items())
def test_features_do_not_depend_on_batch_and_order(name, d, models_folder, instruments, pictures):
    space = open_space(name, models_folder, instruments)
    whole = space.images(pictures)
    assert whole.shape == (6, d) and np.isfinite(whole).all() and len(np.unique(whole.round(4), axis=0)) == 6
    np.testing.assert_allclose(space.images(pictures, batch=4), whole, atol=1e-4)
    np.testing.assert_allclose(space.images(pictures[::-1]), whole[::-1], atol=1e-4)
    assert hasattr(space, "texts") == (name in ("judge", "judge-2", "clip"))
    assert len(space.digest) == 64


def test_inception_sees_what_clean_fid_shows_it(models_folder, instruments, pictures, tmp_path):
    from cleanfid.features import build_feature_extractor  # noqa: F401  (clean-fid imports without a download)
    from cleanfid.fid import get_folder_features

    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    space = open_space("inception", models_folder, instruments)
    theirs = get_folder_features(
        str(tmp_path), model=space.net, num_workers=0, device=torch.device("cpu"), mode="clean", verbose=False
    )
    np.testing.assert_allclose(space.images(pictures), theirs, atol=1e-5)


def test_a_clip_resizes_pictures_of_another_size_by_its_own_processor(models_folder, instruments, pictures):
    space = open_space("clip", models_folder, instruments)
    large = np.stack([np.asarray(Image.fromarray(p).resize((128, 128), Image.BICUBIC)) for p in pictures])
    near, same = space.images(large), space.images(pictures)
    cosine = (near * same).sum(1) / np.linalg.norm(near, axis=1) / np.linalg.norm(same, axis=1)
    assert (cosine > 0.9).all()


@pytest.mark.parametrize("name", FILES)
def test_a_space_that_is_not_at_hand_says_which_file(name, tmp_path):
    with pytest.raises(MMCollapseError, match=f"{name}.*{FILES[name]}.*not there"):
        open_space(name, tmp_path, tmp_path)


def test_photos_are_prepared_in_threads_and_stay_in_order(models_folder, instruments, pictures):
    """Of another size than the network's, so that each space resizes them."""
    large, threads = np.repeat(np.repeat(pictures, 3, axis=1), 3, axis=2)[[*range(6), 0]], torch.get_num_threads()
    spaces = [open_space(name, models_folder, instruments) for name in ("clip", "dino", "inception")]
    try:
        torch.set_num_threads(1)
        alone = [space.images(large) for space in spaces]
        torch.set_num_threads(4)  # seven pictures: parts of two and of one
        for space, one in zip(spaces, alone, strict=True):
            np.testing.assert_allclose(space.images(large), one, atol=1e-4)
    finally:
        torch.set_num_threads(threads)


def test_an_unknown_space_is_refused(tmp_path):
    with pytest.raises(MMCollapseError, match="'resnet': allowed are judge, judge-2, inception, clip, dino"):
        open_space("resnet", tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (np.zeros((2, SIZE, SIZE, 3), np.float32), "float32: need uint8"),
        (np.zeros((SIZE, SIZE, 3), np.uint8), r"\(64, 64, 3\): need an array \(n, height, width, 3\)"),
        (np.zeros((0, SIZE, SIZE, 3), np.uint8), r"\(0, 64, 64, 3\)"),
        (np.zeros((2, 3, SIZE, SIZE), np.uint8), r"\(2, 3, 64, 64\)"),
        ([1, 2], "list"),
    ],
)
def test_what_is_no_set_of_pictures_is_refused(images, says, judge):
    with pytest.raises(MMCollapseError, match=says):
        judge.images(images)


def test_the_language_model_expects_the_worlds_sentences(models_folder, world):
    from mmcollapse.models.language import Language

    language = Language(models_folder / "language")
    captions = [five[0] for five in world.sample("test", np.arange(40)).captions]
    nats, tokens = language.surprise(captions)
    assert 2.5 < np.exp(nats.sum() / tokens.sum()) < 5.5
    for batch in (1, 7):
        again, count = language.surprise(captions, batch)
        np.testing.assert_allclose(again, nats, rtol=1e-4)
        assert (count == tokens).all()
    words = tokens - 1  # each word is one token, and the end is one
    assert words.tolist() == [len(c.split()) for c in captions]
    jumbled = [" ".join(c.split()[::-1]) for c in captions]
    assert (language.surprise(jumbled)[0] > nats + 5).all()
    nats, tokens = language.surprise(["", "word " * 300])
    assert np.isfinite(nats).all() and tokens.tolist() == [1, 63]
