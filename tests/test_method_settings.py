"""A method's settings: stated once, read from its source, in two parts."""

import subprocess
import sys
import textwrap
from dataclasses import MISSING, asdict, fields
from importlib.metadata import EntryPoint

import pytest

from xaiclip import config, plugins
from xaiclip.config import methods as read_methods
from xaiclip.config.methods import _brought, methods, properties, section, source
from xaiclip.errors import ConfigError
from xaiclip.explain import lime, method, settings
from xaiclip.explain.settings import keys_of, read, split
from xaiclip.workflow.provenance import SCRIPTS, stage_hash

OWN = {name: method(name) for name in methods(own=True)}
PLACES = [
    "xaiclip.preprocess:PreprocessSettings",
    "xaiclip.masks.roi:RoiSettings",
    "xaiclip.metrics.statistics:Bootstrap",
    "xaiclip.localizer.model:LocalizerSettings",
    "xaiclip.localizer.training:TrainingSettings",
]


def default(one):
    value = one.default if one.default is not MISSING else one.default_factory()
    if "section" in one.metadata:
        return asdict(value)
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", OWN)
def test_what_is_read_is_what_the_module_holds(name):
    """The text against the loaded classes: keys, defaults, and the part that each belongs to."""
    module, text = OWN[name], methods(own=True)[name]
    kinds = module.PlanSettings, getattr(module, "MapSettings", None)
    for kind, part in zip(kinds, (text.plan, text.maps), strict=True):
        assert keys_of(kind) == list(part)
        for one in fields(kind) if kind else ():
            filled = config._fill(part[one.name]["default"], part[one.name], part[one.name])
            assert filled == default(one), one.name
            assert part[one.name]["description"] == one.metadata["meaning"]
            for limit, key in read_methods._LIMITS.items():
                limited = part[one.name].get("items", part[one.name])
                assert limited.get(key) == one.metadata.get(limit)


@pytest.mark.parametrize("place", PLACES)
def test_a_section_of_the_schema_is_the_dataclass(place):
    module, name = place.split(":")
    __import__(module)
    kind = getattr(sys.modules[module], name)
    stated = {one.name: one for one in fields(kind) if "meaning" in one.metadata}
    assert stated
    assert {key: part["default"] for key, part in properties(place).items()} == {
        key: default(one) for key, one in stated.items()
    }
    full = config.default_config()
    sections = [
        part for part in full.values() if isinstance(part, dict) and set(stated) <= set(part)
    ]
    assert sections[0] | {key: default(one) for key, one in stated.items()} == sections[0]


def test_reading_loads_no_method():
    program = (
        "import sys; from xaiclip import config; config.default_config(); "
        "print(*{'torch', 'skimage', 'sklearn', 'scipy', 'lime', 'cv2'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=SCRIPTS, check=True
    )
    assert done.stdout.strip() == ""


def test_a_section_is_read_in_its_two_parts():
    plan, maps = split(OWN["rise"], {"masks": 9, "estimators": ["paper"]})
    assert (plan, maps) == ({"masks": 9}, {"estimators": ["paper"]})
    assert read(OWN["rise"].PlanSettings, plan | maps).masks == 9
    with pytest.raises(ConfigError, match="'rise' has no setting 'mask'; did you mean 'masks'"):
        split(OWN["rise"], {"mask": 9})
    nested = read(lime.PlanSettings, {"slic": {"n_segments": 7}})
    assert nested.slic == lime.Slic(n_segments=7)
    assert nested.quickshift == lime.QuickShift()


def test_scores_matter_to_forwards_where_a_setting_says_so():
    known, full = methods(own=True), config.default_config()["methods"]
    values = ["hard_dice", "soft_dice"]

    def asked(name, **changed):
        return known[name].asked({**full[name], **changed}, values)

    for name in known:
        differentiates = name in ("integrated_gradients", "gradient_shap", "grad_cam")
        assert asked(name) == (values if differentiates else [])
    assert asked("occlusion", budget=0.5) == ["hard_dice"]
    assert asked("lime", stop=0.5) == ["hard_dice"]
    assert asked("rise", stop=0.5) == ["hard_dice"]
    assert asked("rise", masks=5) == []


WAY = '''
"""Mine: a method of another package.

More words.
"""
import no_such_library
from dataclasses import dataclass
from xaiclip.explain.settings import section, setting

@dataclass(frozen=True)
class Deep:
    level: float = setting(2, "How deep.", above=0)

@dataclass(frozen=True)
class PlanSettings:
    tiles: int = setting(4, "Tiles along a side.", minimum=2, maximum=64)
    kind: str = setting("plain", "Of tiles.", one_of=("plain", "round"))
    deep: Deep = section(Deep, "Depth.")

@dataclass(frozen=True)
class MapSettings:
    names: tuple[str, ...] | None = setting(None, "Maps.", one_of=("a", "b"))

def plans(context): ...
def refine(plans, tables, context): ...
def aggregate(plans, tables, context): ...
'''


@pytest.fixture
def brought(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("raise RuntimeError('loaded')")
    (tmp_path / "mine" / "way.py").write_text(WAY)
    monkeypatch.syspath_prepend(tmp_path)
    entry = EntryPoint("tiles", "mine.way", "xaiclip.methods")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry])
    _brought.cache_clear()
    yield tmp_path / "mine" / "way.py"
    _brought.cache_clear()


def test_a_method_of_another_package_has_a_section_too(brought):
    """Its package cannot even be imported here."""
    full = config.complete({"methods": {"tiles": {"tiles": 8}}})
    assert full["methods"]["tiles"] == {
        "tiles": 8,
        "kind": "plain",
        "deep": {"level": 2},
        "names": None,
    }
    one = methods()["tiles"]
    assert one.split(full["methods"]["tiles"]) == (
        {"tiles": 8, "kind": "plain", "deep": {"level": 2}},
        {"names": None},
    )
    assert one.meaning == "Mine: a method of another package."
    # it has a refine, and says no more
    assert one.asked(full["methods"]["tiles"], ["soft_dice"]) == ["soft_dice"]
    assert one.folder == brought.parents[1]
    assert "tiles" not in methods(own=True)
    assert "methods.tiles" not in config.document()
    assert section(one)["properties"]["tiles"]["maximum"] == 64


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tile": 3}, ["'methods.tiles.tile'", "did you mean 'tiles'"]),
        ({"tiles": 1}, ["'methods.tiles.tiles'"]),
        ({"kind": "square"}, ["'methods.tiles.kind'", "round"]),
        ({"names": ["c"]}, ["'methods.tiles.names"]),
        ({"deep": {"level": 0}}, ["'methods.tiles.deep.level'"]),
    ],
)
def test_its_mistyped_keys_are_refused_though_it_is_switched_off(brought, given, words):
    with pytest.raises(ConfigError) as caught:
        config.complete({"methods": {"tiles": given}})
    assert all(word in str(caught.value) for word in words), caught.value


def test_its_code_counts_stage_by_stage(brought):
    used = {"tiles": methods()["tiles"]}

    def hashes():
        return [stage_hash(script, used) for script in ("score.py", "attribute.py", "metrics.py")]

    before = hashes()
    brought.write_text(
        WAY.replace("def aggregate(plans, tables, context): ...", "def aggregate(*a): 1")
    )
    after = hashes()
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
    brought.write_text(WAY.replace("def refine(plans, tables, context): ...", "def refine(*a): 1"))
    assert [a == b for a, b in zip(before, hashes(), strict=True)] == [False, True, True]


@pytest.mark.parametrize("script", ["score.py", "attribute.py"])
def test_every_method_has_code_of_each_stage(script):
    known = methods(own=True)
    assert {"rise", "shapley", "grad_cam"} <= set(known)
    hashes = [stage_hash(script, {name: one}) for name, one in known.items()]
    assert len({*hashes, stage_hash(script, {})}) == len(known) + 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("class PlanSettings:\n    a: int = 4", "PlanSettings.a is no 'setting"),
        ("class PlanSettings(Base):\n    pass", "PlanSettings inherits its keys"),
        ("class PlanSettings:\n    a: int = setting(2 * 2, 'A.')", "computed"),
        ("class PlanSettings:\n    a: dict = setting(None, 'A.')", "of type dict"),
        ("class PlanSettings:\n    a: int = setting(1, 'A.'", "is no Python"),
        (
            "class PlanSettings:\n    a: int = setting(1, 'A.')\n"
            "class MapSettings:\n    a: int = setting(1, 'A.')",
            "'a' twice",
        ),
    ],
)
def test_settings_that_cannot_be_read_are_told(tmp_path, text, words):
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(text))
    with pytest.raises(ConfigError) as caught:
        source("mine", path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_module_without_settings_is_no_method(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def plans(context): ...")
    assert source("mine", path) is None
    assert settings.setting(3, "Three.").default == 3
