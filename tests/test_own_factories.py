"""Functions that make somebody else's segmenter: what they may give, and the examples."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from explain_fakes import picture, run_of
from own_models import BOXES, ORGANS
from xaiclip.config import complete
from xaiclip.errors import ConfigError
from xaiclip.explain.runner import Request, attribute_slice, score_slice
from xaiclip.models.segmenters.base import Prompts
from xaiclip.models.segmenters.fixed import FixedClassSegmenter
from xaiclip.models.segmenters.loading import load_segmenter
from xaiclip.models.segmenters.predict import segment_slice
from xaiclip.workflow.provenance import code_hash

ROOT = Path(__file__).parents[1]


EXAMPLES = ROOT / "docs" / "examples"


FACTORIES = """
import dataclasses
from helper import LEVEL
from torch import nn

@dataclasses.dataclass
class Settings:
    level: float = LEVEL

class Wrong:
    name, input_size, precision, device = "wrong", 32, "fp32", "cpu"
    def prepare(self, image):
        import torch
        return torch.zeros(1, 32, 32)
    def encode(self, inputs): return inputs
    def decode(self, embeddings, prompts): return embeddings[0]

def plain(width=4): return nn.Conv2d(1, width, 1)
def wrong(): return Wrong()
def nothing(checkpoint): return Settings()
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "helper.py").write_text("LEVEL = 0.5\n")
    path = tmp_path / "own.py"
    path.write_text(FACTORIES)
    return path


def test_a_plain_module_is_adapted(file):
    settings = {
        "factory": f"{file}:plain",
        "options": {"width": 3},
        "adapter": {"channels": {"liver": 2}, "size": 32, "output": None},
    }
    made = load_segmenter(settings, "cpu")
    assert isinstance(made, FixedClassSegmenter)
    assert (made.name, made.input_size) == ("own", 32)
    assert made.encode(torch.rand(2, 1, 32, 32)).shape == (2, 3, 32, 32)


@pytest.mark.parametrize(
    ("function", "more", "message"),
    [
        ("plain", {}, r"segmenter\.adapter\.channels"),
        ("plain", {"options": {"height": 2}}, "do not fit"),
        ("plain", {"options": {"device": "cpu"}}, "take it out"),
        ("nothing", {}, "lacks name, input_size"),
        ("absent", {}, "no function 'absent'"),
    ],
)
def test_factories_that_do_not_fit(file, function, more, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_segmenter({"factory": f"{file}:{function}", **more}, "cpu")
    assert "own.py" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"), [("def make(:", "cannot be imported"), ("import no_such", "no_such")]
)
def test_files_that_cannot_be_imported(tmp_path, text, message):
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_segmenter({"factory": f"{tmp_path / 'broken.py'}:make"}, "cpu")
    with pytest.raises(ConfigError, match="there is no file"):
        load_segmenter({"factory": "nowhere.py:make"}, "cpu")


def test_every_key_of_the_adapter_arrives(file):
    adapter = {
        "channels": {"liver": [0, 2]},
        "size": 48,
        "in_channels": 1,
        "mean": 0.25,
        "std": 0.5,
        "output": "sigmoid",
        "depth": 3,
        "depth_axis": "first",
        "orientation": "ras",
        "keep_aspect": True,
    }
    made = load_segmenter({"factory": f"{file}:plain", "adapter": adapter}, "cpu")
    kept = {name: getattr(made, name) for name in adapter if name not in ("size", "mean", "std")}
    assert kept | {"size": made.input_size, "mean": float(made.mean), "std": float(made.std)} == (
        adapter
    )


def test_logits_of_another_shape_are_explained(file):
    wrong = load_segmenter({"factory": f"{file}:wrong"}, "cpu")
    with pytest.raises(ConfigError, match=r"decode must give \(1, 1, h, w\)"):
        segment_slice(wrong, picture(), {"liver": BOXES["liver"]})


def test_the_hash_follows_what_the_file_imports(file):
    before = code_hash("own.py", root=file.parent)
    (file.parent / "helper.py").write_text("LEVEL = 0.6\n")
    assert code_hash("own.py", root=file.parent) != before


def explain(segmenter, organs):
    """Segment and explain a slice; the scores and maps are whole."""
    image = picture(shape=(160, 140))
    boxes = dict.fromkeys(organs, BOXES["liver"])
    masks = segment_slice(segmenter, image, boxes)
    assert any(mask.any() for mask in masks.values())
    run = run_of("occlusion", {"window": 256, "stride": 256, "min_overlap": 0.0})
    scores, skips = score_slice(segmenter, Request("case", 0, image, boxes), run)
    assert {skip.organ for skip in skips} == {o for o, mask in masks.items() if not mask.any()}
    (table,) = scores.tables.values()
    assert np.isfinite(table.scores).all()
    attributions, _ = attribute_slice(scores)
    assert attributions
    assert np.isfinite(attributions[0].map).any()


def test_example_of_a_promptable_segmenter():
    settings = {"factory": f"{EXAMPLES / 'threshold.py'}:make", "options": {"level": 0.4}}
    segmenter = load_segmenter(settings, "cpu")
    explain(segmenter, ORGANS)
    image = picture(shape=(128, 128))
    found = segment_slice(
        segmenter, image, {"liver": (10, 30, 100, 60), "spleen": (90, 8, 99, 120)}
    )
    for organ, (x0, y0, x1, y1) in (("liver", (10, 30, 100, 60)), ("spleen", (90, 8, 99, 120))):
        wanted = np.zeros(image.shape, bool)
        wanted[y0:y1, x0:x1] = image[y0:y1, x0:x1] > 0.4 * 255
        np.testing.assert_array_equal(found[organ], wanted)


#: Channels of a FLARE-like network; the config's order is another, and so is the alphabet's.
CHANNELS = {"liver": 1, "right kidney": 2, "left kidney": 3, "spleen": 4, "pancreas": 5}


@pytest.mark.parametrize("function", ["slices", "volumes"])
def test_examples_of_monai_networks(function, tmp_path):
    """The organs' probabilities are those of the network called by hand, on the right side."""
    from monai.networks.nets.unet import UNet

    torch.manual_seed(1)
    dims = 2 if function == "slices" else 3
    network = UNet(dims, 1, 6, channels=(4, 8), strides=(2,)).eval()
    torch.save({"model": network.state_dict()}, tmp_path / "unet.pt")
    settings = yaml.safe_load((EXAMPLES / "monai_unet.yaml").read_text())
    settings["segmenter"]["factory"] = f"docs/examples/monai_unet.py:{function}"
    if function == "volumes":
        settings["segmenter"].pop("adapter")
    complete(settings)
    section = settings["segmenter"] | {"checkpoint": str(tmp_path / "unet.pt")}
    section["factory"] = str(ROOT / section["factory"])
    section["options"] = {"widths": [4, 8]}
    segmenter = load_segmenter(section, "cpu")

    x = segmenter.prepare(picture())
    with torch.no_grad():
        if function == "slices":
            assert x.shape == (1, 256, 256)
            classes = network(x[None])[0]
        else:
            assert x.shape == (1, 128, 128)
            stack = torch.rot90(x[0], 2).T[..., None].repeat(1, 1, 8)
            plane = network(stack[None, None])[0, ..., 4]
            classes = torch.rot90(plane.transpose(1, 2), 2, (1, 2))
    organs = ("spleen", "left kidney", "pancreas", "liver", "right kidney")
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.5]]).repeat(5, 1)
    logits = segmenter.decode(segmenter.encode(x[None]), Prompts(organs, boxes, (160, 140)))[0]
    wanted = classes.softmax(0)[[CHANNELS[organ] for organ in organs]]
    torch.testing.assert_close(logits.sigmoid(), wanted, atol=1e-5, rtol=1e-4)

    # whichever class the random network prefers is the organ
    best = int(classes.argmax(0).flatten().mode().values)
    segmenter.channels, segmenter.output = {"liver": [best]}, "sigmoid"
    segmenter.module.register_forward_hook(lambda m, i, o: o - o.mean())
    explain(segmenter, ("liver",))
