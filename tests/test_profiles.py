"""The profiles agree with the rules and with each other, and docs/cluster.md with the rules."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DEFAULT, SLURM = (
    yaml.safe_load((ROOT / "profiles" / name / "config.yaml").read_text(encoding="utf-8"))
    for name in ("default", "slurm")
)
PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")


def rules():
    """What each rule asks for: GPU, threads, memory and minutes, as docs/cluster.md prints them."""
    found = {}
    for path in sorted((ROOT / "rules").glob("*.smk")):
        text = path.read_text(encoding="utf-8")
        # in turn: what stands before the first rule, then each rule's name and body
        _, *parts = re.split(r"^ *rule (\w+):\n", text, flags=re.M)
        for name, body in zip(parts[::2], parts[1::2], strict=True):
            if not re.search(r"^ *script:", body, re.M):  # a name for targets
                continue
            asked = {}
            for key in ("mem_mb", "runtime"):
                times, value = re.search(rf"{key}=(lambda.*?: )?(\d+|\w+)", body).groups()
                asked[key] = f"{value} ×" if times and value.isdigit() else value
                if value == "slices_mb":  # hangs on the scans
                    asked[key] = "by size ×"
            threads = re.search(r"threads: (\w+)", body)
            found[name] = {
                "gpu": "1" if re.search(r"gpu=(1|one_gpu),", body) else "",
                # 8 on a cluster
                "threads": threads.group(1).replace("model_threads", "8") if threads else "1",
                **asked,
                "local": "localrule: True" in body,
            }
    return found


RULES = rules()


def test_the_slurm_profile_keeps_the_default_one_s_choices():
    differ = {key for key in DEFAULT if SLURM.get(key) != DEFAULT[key]}
    assert differ == {"resources"}


def test_commands_reach_sbatch_as_a_script():
    """Wrapped in double quotes, `$(…)` in a path would run on the login node."""
    assert SLURM["slurm-pass-command-as-script"] is True


def test_groups_are_of_rules_that_are_submitted():
    assert set(SLURM["groups"]) <= set(RULES)
    assert not any(RULES[name]["local"] for name in SLURM["groups"])


def test_one_partition_has_gpus_and_one_has_none():
    file = ROOT / "profiles" / "slurm" / SLURM["slurm-partition-config"]
    partitions = yaml.safe_load(file.read_text(encoding="utf-8"))["partitions"]
    assert {bool(limits["max_gpu"]) for limits in partitions.values()} == {True, False}


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if not rule["local"]])
def test_the_page_says_what_a_rule_asks_for(name):
    row = next(
        line for line in PAGE.splitlines() if f"`{name}`" in line.partition("| ")[2].split("|")[0]
    )
    if "compact" in name:  # two rules in one row
        assert RULES[name]["mem_mb"] in row
        assert RULES[name]["runtime"] in row
        return
    _, gpu, threads, memory, runtime, group = (cell.strip() for cell in row.split("|")[2:-1])
    asked = RULES[name]
    assert (gpu, threads) == (asked["gpu"], asked["threads"])
    assert (memory, runtime) == (asked["mem_mb"], asked["runtime"])
    assert group.strip("`") == SLURM["groups"].get(name, "")


def test_the_page_lists_the_gpu_rules():
    sentence = re.search(r"The GPU rules are (.*?)\.", PAGE, re.S).group(1)
    assert set(re.findall(r"`(\w+)`", sentence)) == {
        name for name, rule in RULES.items() if rule["gpu"]
    }
