"""The sample sheet: what is read, and what is wrong in which row and column."""

import json
from pathlib import Path

import pytest

from xaiclip.config.names import NAME
from xaiclip.data import sheet as sheet_module
from xaiclip.data.sheet import Case, read_sheet
from xaiclip.errors import ConfigError

HEADER = "case\timage\tlabel\tmodality\tsplit"


@pytest.fixture
def sheet(tmp_path):
    """Writes a sheet beside the files that it may name."""
    folder = tmp_path / "Studie ü mit Leerzeichen"
    (folder / "Bilder").mkdir(parents=True)
    for name in ("a.nii.gz", "a_labels.nii.gz", "Bilder/b c ü.nii.gz"):
        (folder / name).touch()

    def write(*lines, newline="\n", encoding="utf-8"):
        path = folder / "sheet.tsv"
        path.write_bytes(newline.join(lines).encode(encoding))
        return path

    return write


GOOD = "a.1\ta.nii.gz\ta_labels.nii.gz\tCT\ttrain"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_good_sheet(sheet, newline, encoding):
    path = sheet(
        HEADER + "\tbatch",
        GOOD + "\tnight-1",
        "",
        "b_2\tBilder/b c ü.nii.gz\t\tMR\ttest",
        "folder\tBilder\t\tMR\ttest\t",
        newline=newline,
        encoding=encoding,
    )
    folder = path.parent
    assert read_sheet(path) == [
        Case("a.1", folder / "a.nii.gz", folder / "a_labels.nii.gz", "CT", "train", "night-1"),
        Case("b_2", folder / "Bilder/b c ü.nii.gz", None, "MR", "test"),
        Case("folder", folder / "Bilder", None, "MR", "test"),
    ]


def test_columns_in_any_order_and_absolute_paths(sheet, tmp_path):
    (tmp_path / "elsewhere.nii").touch()
    path = sheet(
        "split\tcase\tmodality\tlabel\timage", f"test\tx\tCT\t\t{tmp_path / 'elsewhere.nii'}"
    )
    assert read_sheet(path)[0].image == tmp_path / "elsewhere.nii"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], ["is empty"]),
        (["", ""], ["is empty"]),
        ([HEADER], ["lists no case"]),
        (["case\timage\tmodality\tsplit"], ["lacks the column 'label'"]),
        ([HEADER.replace("\t", ",")], ["separated by commas", "tabs"]),
        ([HEADER.replace("\t", ";")], ["separated by semicolons", "tabs"]),
        ([HEADER.replace("\t", " ")], ["separated by spaces", "tabs"]),
        (['"' + HEADER.replace("\t", '","') + '"'], ["separated by commas", "tabs"]),
        ([HEADER, GOOD.replace("a.nii", "$(id).nii")], ["row 2", "'image'", "'$'"]),
        ([HEADER, GOOD.replace("a.nii", "`id`.nii")], ["row 2", "'image'", "'`'"]),
        ([HEADER, GOOD.replace("a.nii", "it's.nii")], ["row 2", "'image'", "rename"]),
        ([HEADER, GOOD.replace("a.nii", 'a".nii')], ["row 2", "'image'", "rename"]),
        ([HEADER, GOOD.replace("a.nii", "a\\.nii")], ["row 2", "'image'", "rename"]),
        ([HEADER, GOOD.replace("a.nii", "a\x1b.nii")], ["row 2", "'image'", "rename"]),
        ([HEADER, GOOD.replace("a_labels", "a\u2028")], ["row 2", "'label'", "rename"]),
        ([HEADER, GOOD.replace("a_labels", "a")], ["row 2", "the label is the image itself"]),
        ([HEADER + "\tage"], ["unknown or repeated column 'age'"]),
        ([HEADER + "\tcase"], ["unknown or repeated column 'case'"]),
        ([HEADER + "\t"], ["unknown or repeated column ''"]),
        ([HEADER, GOOD, GOOD], ["row 3", "'a.1' stands there twice"]),
        ([HEADER, GOOD + "\tmore"], ["row 2", "6 cells instead of 5"]),
        ([HEADER, "", GOOD.replace("CT", "PET")], ["row 3", "'modality'", "'PET'", "CT or MR"]),
        ([HEADER, GOOD.replace("CT", "ct")], ["row 2", "'modality'", "'ct'"]),
        ([HEADER, GOOD.replace("train", "validation")], ["row 2", "'split'", "train or test"]),
        ([HEADER, "a\ta.nii.gz"], ["row 2", "'modality'", "''"]),
        ([HEADER, GOOD.replace("a.nii", "lost.nii")], ["row 2", "'image'", "lost.nii.gz"]),
        ([HEADER, GOOD.replace("a_labels", "lost")], ["row 2", "'label'", "lost.nii.gz"]),
        ([HEADER, GOOD.replace("a.nii.gz", "", 1)], ["row 2", "'image'", "empty"]),
        ([HEADER, GOOD.replace("a.nii.gz", "x" * 5000, 1)], ["row 2", "'image'", "no file"]),
        ([HEADER + "\tbatch", GOOD + "\ta/b"], ["row 2", "'batch'", "'a/b'"]),
        ([HEADER, GOOD + "x" * 200_000], ["not a table"]),
    ],
)
def test_a_bad_sheet_is_refused_with_row_and_column(sheet, lines, words):
    path = sheet(*lines)
    with pytest.raises(ConfigError) as caught:
        read_sheet(path)
    text = str(caught.value)
    assert str(path) in text
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    "name",
    ["", "..", "../../x", "/etc/x", ".hidden", "a b", "ä", "a/b", "a\\b", "a*", "a\x85b", "~"],
)
def test_unsafe_case_names(sheet, name):
    with pytest.raises(ConfigError, match="row 2, column 'case'"):
        read_sheet(sheet(HEADER, GOOD.replace("a.1", name)))


def test_files_that_are_no_sheet(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        read_sheet(tmp_path / "nowhere.tsv")
    for content in (b"\xff\xfe\x00bad", b"case\0image", bytes(range(256))):
        (tmp_path / "binary.tsv").write_bytes(content)
        with pytest.raises(ConfigError, match="not a"):
            read_sheet(tmp_path / "binary.tsv")
    for kind in ("utf-16", "utf-16-le", "utf-16-be"):
        (tmp_path / "binary.tsv").write_bytes(f"{HEADER}\n{GOOD}".encode(kind))
        with pytest.raises(ConfigError, match=r"UTF-16.*save it as UTF-8"):
            read_sheet(tmp_path / "binary.tsv")
    (tmp_path / "binary.tsv").write_bytes(f"{HEADER}\nä".encode("latin-1"))
    with pytest.raises(ConfigError, match="save it as UTF-8"):
        read_sheet(tmp_path / "binary.tsv")
    (tmp_path / "binary.tsv").write_bytes(b"PK\3\4 and so on")
    with pytest.raises(ConfigError, match="a spreadsheet: save it as text"):
        read_sheet(tmp_path / "binary.tsv")
    with pytest.raises(ConfigError, match="not a"):
        read_sheet(tmp_path)


def test_schema_of_the_sheet_agrees_with_the_reader():
    path = Path(__file__).parents[1] / "config" / "samples.schema.json"
    schema = json.loads(path.read_text(encoding="utf-8"))
    columns = schema["properties"]
    assert tuple(columns) == sheet_module.REQUIRED + sheet_module.OPTIONAL
    assert tuple(columns["modality"]["enum"]) == sheet_module.MODALITIES
    assert tuple(columns["split"]["enum"]) == sheet_module.SPLITS
    assert columns["case"]["pattern"] == f"^{NAME.pattern}$"
    assert all(column["description"] for column in columns.values())


def test_quoted_cells_are_read(sheet):
    lines = [HEADER, GOOD, "b\tBilder/b c ü.nii.gz\t\tMR\ttest"]
    plain = read_sheet(sheet(*lines))
    assert read_sheet(sheet(*('"' + line.replace("\t", '"\t"') + '"' for line in lines))) == plain
    # as R writes them: text in quotes, what is missing bare
    assert read_sheet(sheet(*lines[:2], '"b"\t"Bilder/b c ü.nii.gz"\t\t"MR"\t"test"')) == plain


def test_braces_in_paths_and_a_name_of_digits_are_fine(tmp_path):
    folder = tmp_path / "{1} a{b}c"
    folder.mkdir()
    (folder / "{batch}.nii").touch()
    path = folder / "sheet{x}.tsv"
    path.write_text(f"{HEADER}\n0012\t{{batch}}.nii\t\tCT\ttest")
    (case,) = read_sheet(path)
    assert (case.name, case.image) == ("0012", folder / "{batch}.nii")


class Copies:
    """Two cases, of which one is the other's scan in another guise."""

    def __init__(self, folder):
        self.folder = folder
        self.scan = folder / "scan.nii"
        self.scan.write_bytes(bytes(range(256)) * 2000)

    def link(self):
        (self.folder / "link.nii").symlink_to(self.scan)
        return "link.nii"

    def detour(self):
        (self.folder / "sub").mkdir()
        return "sub/../scan.nii"

    def copy(self):
        (self.folder / "copy.nii").write_bytes(self.scan.read_bytes())
        return "copy.nii"

    def other_middle(self):
        """Another scan that differs where samples do not look."""
        content = bytearray(self.scan.read_bytes())
        content[100_000] ^= 1
        (self.folder / "other.nii").write_bytes(content)
        return "other.nii"

    def series(self, name, order):
        (self.folder / name).mkdir()
        for number, content in enumerate(order):
            (self.folder / name / f"{number}.dcm").write_bytes(content * 1000)
        return name

    def write(self, image, other, splits):
        lines = [HEADER, f"a\t{image}\t\tCT\t{splits[0]}", f"b\t{other}\t\tCT\t{splits[1]}"]
        (self.folder / "sheet.tsv").write_text("\n".join(lines))
        return self.folder / "sheet.tsv"


@pytest.mark.parametrize("splits", [("train", "test"), ("test", "train")])
@pytest.mark.parametrize("guise", ["link", "detour", "copy"])
def test_a_training_scan_is_no_test_scan(tmp_path, guise, splits):
    copies = Copies(tmp_path)
    with pytest.raises(ConfigError, match=r"'a'.*'b'|'b'.*'a'") as caught:
        read_sheet(copies.write("scan.nii", getattr(copies, guise)(), splits))
    assert "scan" in str(caught.value)


def test_scans_that_only_look_alike_are_two(tmp_path):
    copies = Copies(tmp_path)
    assert len(read_sheet(copies.write("scan.nii", copies.other_middle(), ("train", "test")))) == 2
    # a copy within one split is another question, one file listed twice is not
    assert len(read_sheet(copies.write("scan.nii", copies.copy(), ("test", "test")))) == 2
    with pytest.raises(ConfigError, match="one scan"):
        read_sheet(copies.write("scan.nii", copies.link(), ("test", "test")))


def test_series_are_compared_whatever_their_files_are_called(tmp_path):
    copies = Copies(tmp_path)
    one, other = copies.series("one", [b"a", b"b"]), copies.series("other", [b"b", b"a"])
    with pytest.raises(ConfigError, match="hold the same scan"):
        read_sheet(copies.write(one, other, ("train", "test")))
    third = copies.series("third", [b"b", b"c"])
    assert len(read_sheet(copies.write(one, third, ("train", "test")))) == 2
