"""What the paper prints, against a second transcript of its lines, and what follows from it."""

import math

import pytest

from xaiclip.report import paper

#: The lines of Table II and of Table III, as the paper prints them.
TABLE2 = """\
Background	0.88	0.86
Liver	0.64	0.97
Right Kidney	0.44	0.97
Left Kidney	0.57	0.99
Spleen	0.24	0.98
Pancreas	0.16	0.97
"""
TABLE3 = """\
Traditional Occlusion	0.6825	0.4956	168,780	401	308.5
XAI-CLIP Occlusion	0.9871	0.9748	146,432	151	94.4
Δ Occlusion	+44.6%	+96.7%	+13.2%	+62.3%	+69.4%
Traditional LIME	> 0.1	> 0.1	131,921	420	283.7
XAI-CLIP LIME	0.412	0.297	94,431	311	223.7
Δ LIME	—	—	+28.4%	+26.0%	+21.1%
Traditional RISE	> 0.1	> 0.1	181,010	1,040	533.3
XAI-CLIP RISE	> 0.1	> 0.1	169,932	753	803
Δ RISE	—	—	+6.1%	+27.6%	+33.6%
"""
MEASURES3 = ("fidelity_dice", "fidelity_iou", "gflops_ptflops", "seconds_machine_a",
             "seconds_machine_b")  # fmt: skip
GUIDANCES = {"Traditional": "full", "XAI-CLIP": "roi", "Δ": "delta"}

#: By class and measure; by method, guidance and measure.
PRINTED2 = {
    (line.split("\t")[0].lower(), measure): cell
    for line in TABLE2.splitlines()
    for measure, cell in zip(("dice", "auc_roc"), line.split("\t")[1:], strict=True)
}
PRINTED3 = {
    (line.split("\t")[0].split()[1].lower(), GUIDANCES[line.split()[0]], measure): cell
    for line in TABLE3.splitlines()
    for measure, cell in zip(MEASURES3, line.split("\t")[1:], strict=True)
}
#: Marks by method, guidance and measure.
DOUBTS = {
    **{("occlusion", guidance, measure): "a"
       for guidance in ("full", "delta") for measure in ("fidelity_dice", "fidelity_iou")},
    **{("lime", "full", measure): "b" for measure in ("fidelity_dice", "fidelity_iou")},
    **{("rise", guidance, measure): "b"
       for guidance in ("full", "roi") for measure in ("fidelity_dice", "fidelity_iou")},
    **{("occlusion", guidance, measure): "c"
       for guidance in ("full", "roi", "delta") for measure in MEASURES3[2:]},
    **{("rise", guidance, "gflops_ptflops"): "d" for guidance in ("full", "roi", "delta")},
    **{("rise", guidance, "seconds_machine_b"): "e" for guidance in ("full", "roi")},
    ("occlusion", "full", "seconds_machine_b"): "cf",
}  # fmt: skip


def test_every_printed_value_stands_at_its_place() -> None:
    assert len(PRINTED2) == 12
    assert len(PRINTED3) == 45
    assert {key: paper.printed2(*key) for key in PRINTED2} == PRINTED2
    assert {key: paper.printed3(*key) for key in PRINTED3} == PRINTED3


def test_nothing_else_is_printed() -> None:
    assert set(paper.TABLE2) == {name for name, _ in PRINTED2}
    assert set(paper.TABLE3) == {key[:2] for key in PRINTED3}
    assert paper.METHODS == ("occlusion", "lime", "rise")
    for row in [*paper.TABLE2.values(), *paper.TABLE3.values()]:
        assert all(isinstance(cell, str) for cell in row.values())
    assert paper.printed2("gallbladder", "dice") == ""
    assert paper.printed2("liver", "iou") == ""
    assert paper.printed3("gradient", "roi", "fidelity_dice") == ""


def test_each_row_has_the_papers_name() -> None:
    assert [row["printed"].lower() for row in paper.TABLE2.values()] == list(paper.TABLE2)
    for (method, guidance), row in paper.TABLE3.items():
        names = {"full": f"Traditional {method}", "roi": f"XAI-CLIP {method}"}
        assert row["printed"].lower() == names.get(guidance, "Δ XAI-CLIP").lower()


def test_each_doubt_stands_at_its_values_alone() -> None:
    assert {key: paper.doubts(*key) for key in PRINTED3} == dict.fromkeys(PRINTED3, "") | DOUBTS
    assert set(paper.WHY) == set("abcdef")
    assert paper.doubts("gradient", "full", "gflops_ptflops") == ""


@pytest.mark.parametrize(
    ("mark", "words"),
    [
        ("a", "mean IoU cannot be below 0.518"),
        ("b", 'prints "> 0.1" where the text says "below 0.1"'),
        ("c", "227 and 197 forwards (ρ = 0.87), the times mean ρ ≈ 0.31–0.38"),
        ("d", "1.48 million GFLOPs at 742 a forward, not 181,010"),
        ("e", "two RISE times on machine B are swapped"),
        ("f", "308.5 s is about 1.4 s a forward"),
    ],
)
def test_each_mark_says_why(mark: str, words: str) -> None:
    assert words in paper.WHY[mark]


@pytest.mark.parametrize(
    ("printed", "number"),
    [("0.6825", 0.6825), ("168,780", 168780), ("1,040", 1040), ("803", 803), ("308.5", 308.5)],
)
def test_printed_values_become_numbers(printed: str, number: float) -> None:
    assert paper.number(printed) == number


@pytest.mark.parametrize("printed", ["> 0.1", "—", "+44.6%", "", "−3"])
def test_what_is_no_value_becomes_no_number(printed: str) -> None:
    assert math.isnan(paper.number(printed))


def test_doubts_follow_from_the_papers_own_numbers() -> None:
    def number(method: str, guidance: str, measure: str) -> float:
        return float(PRINTED3[method, guidance, measure].replace(",", "").rstrip("%"))

    def both(method: str, measure: str) -> list[float]:
        return [number(method, guidance, measure) for guidance in ("full", "roi")]

    mean_dice = number("occlusion", "full", "fidelity_dice")
    bound = mean_dice / (2 - mean_dice)
    assert number("occlusion", "full", "fidelity_iou") < bound
    assert bound == pytest.approx(0.518, abs=0.0005)
    forwards = [value / 742 for value in both("occlusion", "gflops_ptflops")]
    assert [round(value) for value in forwards] == [227, 197]
    assert forwards[1] / forwards[0] == pytest.approx(0.87, abs=0.005)
    for machine, share in (("a", 0.38), ("b", 0.31)):
        full, roi = both("occlusion", f"seconds_machine_{machine}")
        assert roi / full == pytest.approx(share, abs=0.005)
    full, roi = both("rise", "seconds_machine_b")
    assert 100 * (1 - full / roi) == pytest.approx(
        number("rise", "delta", "seconds_machine_b"), abs=0.05
    )
    assert pytest.approx(1.48e6, rel=0.01) == 2000 * 742
