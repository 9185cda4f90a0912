"""The command `xaiclip`: explain one scan, from the shell."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xaiclip import __version__
from xaiclip.errors import CaseError, ConfigError, StorageError
from xaiclip.organs import SIX_CLASSES, file_stem

if TYPE_CHECKING:
    from xaiclip.data.record import Slice
    from xaiclip.explanation import Explanation
    from xaiclip.localizer.locating import Locator

#: Exit codes: all that was asked for; nothing; some organs were left out. argparse's own is 2.
DONE, FAILED, PARTLY = 0, 1, 3

_DESCRIPTION = """\
Which pixels does the segmentation of an organ hang on? Finds the organ in one slice of a scan,
segments it, perturbs the slice, and writes the map in the geometry of the scan, a picture and
its metrics.
"""
_EPILOG = """\
where the boxes come from (the segmenter is told by a box what to segment):
  --localizer    a trained localizer finds the organs. The default, 'compact', is shipped: trained
                 on phantoms, for trying things out. Another one: the file that a study trained,
                 results/demo/localizer/text/localizer.safetensors
  --box          you give it: --organ liver --box 40,60,180,200 --slice 88
  --label        a label map or folder of masks tells where the organs are

examples:
  xaiclip explain scan.nii.gz --organ liver
  xaiclip explain scan.nii.gz --organ liver,spleen --method rise --set masks=500 --guidance roi
  xaiclip explain dicom_folder --organ liver --model litemedsam --checkpoint auto
  xaiclip methods

exit codes: 0 all that was asked for; 1 nothing, and why; 2 wrong usage; 3 some organs were left
out. Names of files hold the organ and the method, never the scan's name or path.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    given = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.ERROR, format="xaiclip: %(message)s")
    try:
        return int(given.run(given))
    except (CaseError, ConfigError, StorageError, MemoryError) as error:
        print(f"xaiclip: {error or 'there is not enough memory.'}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("xaiclip: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="xaiclip", description="Explanations of medical image segmentation."
    )
    parser.add_argument("--version", action="version", version=f"xaiclip {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="command")
    explain = commands.add_parser(
        "explain",
        help="explain one slice of a scan",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    explain.set_defaults(run=_explain)
    add = explain.add_argument
    add("scan", type=Path, help="NIfTI, MetaImage, NRRD, DICOM (folder or file), PNG, TIFF, npz")
    add("--organ", action="append", metavar="NAME[,NAME]", help="default: all that are found")
    add("--out", type=Path, default=Path("explanation"), help="folder of results (%(default)s)")
    image = explain.add_argument_group("the slice")
    add = image.add_argument
    add("--slice", type=int, metavar="K", help="axial index from the feet; default: the localizer's"
        " choice, or the label's middle")  # fmt: skip
    add("--modality", choices=("CT", "MR"), help="default: as the grey values say")
    add("--window", nargs=2, type=float, metavar=("LEVEL", "WIDTH"), default=(40, 400),
        help="of a CT, HU (40 400)")  # fmt: skip
    add("--orientation", help="where the axes lead of a file that does not say so, such as LPS")
    where = explain.add_argument_group("where the organs are").add_mutually_exclusive_group()
    where.add_argument("--localizer", default="compact", metavar="FILE", help="(%(default)s)")
    where.add_argument("--box", action="append", type=_box, metavar="X0,Y0,X1,Y1",
                       help="one for each --organ, in pixels of the slice")  # fmt: skip
    where.add_argument("--label", type=Path, help="with FLARE22's ids, or a folder of masks")
    what = explain.add_argument_group("what is explained, and how")
    add = what.add_argument
    add("--model", default="compact", help="compact, litemedsam, medsam, sam_vit_b, sam_vit_l, "
        "sam_vit_h, file.py:function, or an installed package's (%(default)s)")  # fmt: skip
    add("--checkpoint", type=Path, help="the model's weights; auto fetches the published ones once")
    add("--method", default="occlusion", help="see `xaiclip methods` (%(default)s)")
    add("--set", action="append", type=_setting, default=[], metavar="KEY=VALUE",
        help="a setting of the method")  # fmt: skip
    add("--guidance", default="full", choices=("full", "roi", "roi_body", "roi_reference"),
        help="perturb everywhere, or only the organ's region (%(default)s)")  # fmt: skip
    add("--fill", default="mean", choices=("mean", "zero", "blur"), help="of what is hidden")
    add("--seed", type=int, default=2026, help="of every random choice (%(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda, mps (%(default)s)")
    add("--precision", default="auto", help="auto, fp32, bf16, fp16 (%(default)s)")
    add("--quiet", action="store_true", help="no bar, no words but errors")
    methods = commands.add_parser("methods", help="list methods and their settings")
    methods.set_defaults(run=_methods)
    return parser


def _box(text: str) -> tuple[float, ...]:
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no box: give x0,y0,x1,y1") from None
    return x0, y0, x1, y1


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is no setting: give key=value")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value  # a word


def _methods(_: argparse.Namespace) -> int:
    from xaiclip import config

    schema = config.load_schema()["properties"]["methods"]["properties"]
    defaults = config.default_config()["methods"]
    for name, section in schema.items():
        print(f"{name}: {section.get('description', '')}")
        for key, leaf in section["properties"].items():
            meaning = leaf.get("description", "")
            print(f"  {key}={json.dumps(defaults[name][key])}\n      {meaning}")
    return DONE


def _explain(given: argparse.Namespace) -> int:
    if not given.scan.exists():
        raise CaseError("there is no such file or folder; correct the path.", given.scan)
    given.organ = [_name(one) for many in given.organ or () for one in many.split(",")]
    if given.box and len(given.box) != len(given.organ):
        raise ConfigError("give one --box for each --organ.")
    say = _Words(given.quiet)
    if given.box:
        item = _load(given, say)
        boxes: Any = dict(zip(given.organ, given.box, strict=True))
        locator, found = None, None
    elif given.label:
        item = _load(given, say)
        boxes, locator, found = _labelled(item, given.organ), None, None
    else:
        locator, item = _located(given, say)
        every = locator.rois(item)
        asked = given.organ or [organ for organ, roi in every.items() if roi.box is not None]
        found = boxes = {organ: every[organ] for organ in asked}
        if all(roi.box is None for roi in found.values()):
            raise CaseError(
                f"the localizer finds no {' and no '.join(found) or 'organ'} in slice "
                f"{item.index}: choose another --slice, or give a --box."
            )
    if given.guidance == "roi" and found is None:
        raise ConfigError(
            "--guidance roi needs the localizer's regions: take --box or --label out, or choose "
            "roi_body or roi_reference."
        )
    import xaiclip

    say(f"slice {item.index}, {given.method}, guidance {given.guidance}, model {given.model}")
    maps = xaiclip.explain(
        given.model,
        item,
        boxes,
        given.method,
        rois=found if given.guidance == "roi" else None,
        guidance=given.guidance,
        fill=given.fill,
        checkpoint=given.checkpoint,
        seed=given.seed,
        device=given.device,
        precision=given.precision,
        progress=sys.stderr.isatty() and not given.quiet,
        **dict(given.set),
    )
    written = write(maps, given.out, {"boxes_from": _source(given), "settings": dict(given.set)})
    for organ, reason in maps.left_out.items():
        print(f"xaiclip: {organ} is left out: {reason}.", file=sys.stderr)
    say(f"{maps.n_forwards} forwards in {maps.seconds:.1f} s; in {given.out}:")
    for path in written:
        say(f"  {path.name}")
    return PARTLY if set(given.organ) & set(maps.left_out) else DONE


def write(maps: Explanation, folder: Path, about: dict[str, Any]) -> list[Path]:
    """Write maps, pictures, metrics and what they were made with; the files' paths.

    Names hold organ, method and guidance; nothing tells whose scan it was, or where it lies.
    """
    import numpy as np

    from xaiclip.files import atomic, write_json

    written = []
    for organ in maps.organs:
        stem = f"{file_stem(organ)}_{maps.method}_{maps.guidance}"
        if maps.slice.geometry.measured:
            written.append(folder / f"{stem}.nii.gz")
            maps.save_nifti(written[-1], organ)
        else:  # a picture lies nowhere
            written.append(folder / f"{stem}.npy")
            with atomic(written[-1]) as temporary:
                np.save(temporary, maps[organ], allow_pickle=False)
        written.append(folder / f"{stem}.png")
        maps.save_picture(written[-1], [organ])
    stem = f"{maps.method}_{maps.guidance}"
    written.append(folder / f"{stem}_metrics.csv")
    with atomic(written[-1]) as temporary:
        maps.metrics().to_csv(temporary, index=False)
    written.append(folder / f"{stem}.json")
    height, width = maps.shape
    write_json(
        written[-1],
        {
            "xaiclip": __version__,
            "model": maps.model,
            "device": maps.device,
            "precision": maps.precision,
            "method": maps.method,
            "guidance": maps.guidance,
            **about,
            "seed": maps.seed,
            "slice": maps.slice.index,
            "shape": [height, width],
            "modality": maps.slice.modality or None,
            "boxes": {
                organ: None if box is None else [float(edge) for edge in box]
                for organ, box in maps.boxes.items()
            },
            "left_out": dict(maps.left_out),
            "n_forwards": maps.n_forwards,
            "seconds": maps.seconds,
        },
    )
    return written


class _Words:
    """Says what is going on, unless it should be quiet."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet

    def __call__(self, words: str) -> None:
        if not self.quiet:
            print(words, file=sys.stderr)


def _name(organ: str) -> str:
    """An organ as classes are written: ``right_kidney`` is ``right kidney``."""
    return organ.strip().replace("_", " ")


def _source(given: argparse.Namespace) -> str:
    """Where the boxes come from; a path is nobody's business."""
    if given.box:
        return "given"
    if given.label:
        return "label"
    return "localizer (compact)" if given.localizer == "compact" else "localizer (own)"


def _reading(given: argparse.Namespace) -> dict[str, Any]:
    return {
        "modality": given.modality,
        "window": tuple(given.window),
        "orientation": given.orientation,
    }


def _load(given: argparse.Namespace, say: _Words) -> Slice:
    from xaiclip.images import load_image

    item = load_image(given.scan, slice=given.slice, label=given.label, **_reading(given))
    if given.box and given.slice is None and item.geometry.canonical_shape[2] > 1:
        raise ConfigError("a --box lies in one slice: say which with --slice.")
    _say_modality(given, item, say)
    return item


def _say_modality(given: argparse.Namespace, item: Slice, say: _Words) -> None:
    if given.modality is None and item.modality:
        say(f"taken as {item.modality} by its grey values; --modality says otherwise")


def _labelled(item: Slice, organs: Sequence[str]) -> dict[str, Any]:
    """Boxes from the label; None for an organ that it lacks."""
    from xaiclip.arguments import reference_boxes

    found = reference_boxes(item, SIX_CLASSES)
    return {organ: found.get(organ) for organ in organs} if organs else dict(found)


def _located(given: argparse.Namespace, say: _Words) -> tuple[Locator, Slice]:
    """The localizer, and the slice: as told, or where it sees most of what was asked for."""
    from xaiclip.api import find_slice
    from xaiclip.errors import named_extras
    from xaiclip.images import load_image

    with named_extras():
        from xaiclip.localizer.locating import Locator

        locator = Locator(given.localizer, given.device)
    known = locator.classes[1:]
    if unknown := [organ for organ in given.organ if organ not in known]:
        raise ConfigError(
            f"the localizer knows no {unknown[0]}; it knows {', '.join(known)}. Give a --box."
        )
    if given.slice is not None:
        item = load_image(given.scan, slice=given.slice, **_reading(given))
    else:
        item = find_slice(given.scan, given.organ or None, locator, **_reading(given))
    _say_modality(given, item, say)
    return locator, item


if __name__ == "__main__":
    sys.exit(main())
