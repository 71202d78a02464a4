"""Scenario files: what is wrong is named, every key is in docs/simulate.md, the ready ones run."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import msgspec
import pytest

from coordinator.config import RoundsConfig
from fedtide.errors import ConfigError, FedtideError
from fedtide.plan import Plan
from simulator.fleet.conditions import Conditions
from simulator.fleet.inputs import differing, input_digests
from simulator.fleet.profiles import MODELS
from simulator.fleet.scenario import (
    AvailabilityConfig,
    DropoutsConfig,
    FleetConfig,
    GroupConfig,
    LearningConfig,
    LinkNumbers,
    PolicyConfig,
    Scenario,
    StragglersConfig,
    policies,
    read_scenario,
)
from simulator.learning.bundles import MODELS as BUNDLES
from simulator.learning.datasets import DATA_SETS

ROOT = Path(__file__).parents[3]
DOCUMENT = (ROOT / "docs" / "simulate.md").read_text()
READY = sorted((ROOT / "examples" / "scenarios").glob("*.toml"))
BASE = """
name = "tides"
[fleet]
devices = 20
[rounds]
cohort_size = 4
"""
TABLES: dict[str, type[msgspec.Struct]] = {
    "": Scenario,
    "fleet.": FleetConfig,
    "fleet.group.": GroupConfig,
    "fleet.group.link.": LinkNumbers,
    "availability.": AvailabilityConfig,
    "dropouts.": DropoutsConfig,
    "stragglers.": StragglersConfig,
    "learning.": LearningConfig,
    "policy.": PolicyConfig,
}


def load(folder: Path, text: str) -> Scenario:
    path = folder / "x.toml"
    path.write_text(text)
    return read_scenario(path)


def with_group(*lines: str) -> str:
    return BASE.replace("[rounds]", "\n".join(["[[fleet.group]]", *lines, "[rounds]"]))


def keys() -> set[str]:
    """Dotted names of all keys but those of the coordinator."""
    names = {
        prefix + field.name
        for prefix, kind in TABLES.items()
        for field in msgspec.structs.fields(kind)
    }
    return names - {prefix.rstrip(".") for prefix in TABLES} - {"rounds", "plan"} | {
        "fleet.group.link"
    }


def documented(document: str) -> set[str]:
    section = document.split("## Keys")[1].split("\n## ", maxsplit=1)[0]
    return set(re.findall(r"^\| `([\w.]+)` \|", section, re.MULTILINE))


def test_every_key_is_documented_and_every_documented_key_exists() -> None:
    assert documented(DOCUMENT) ^ keys() == set()


def test_a_missing_or_invented_key_would_be_noticed() -> None:
    planted = DOCUMENT.replace("| `dropouts.at_epoch` |", "| `dropouts.at_apoch` |")
    assert documented(planted) ^ keys() == {"dropouts.at_epoch", "dropouts.at_apoch"}


def test_the_examples_of_the_document_are_valid(tmp_path: Path) -> None:
    examples = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)
    assert examples
    for example in examples:
        assert Conditions(load(tmp_path, example)).parameters > 0


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_the_ready_scenarios_are_valid_and_ask_a_question(path: Path) -> None:
    scenario = read_scenario(path)
    assert scenario.name == path.stem
    assert path.read_text().startswith("# ")
    assert "?" in path.read_text().split("\n\n")[0]
    assert len(Conditions(scenario)) == scenario.fleet.devices
    assert path.name in DOCUMENT


def test_there_are_ready_scenarios() -> None:
    assert len(READY) >= 5


def test_without_policies_there_is_one(tmp_path: Path) -> None:
    (policy,) = policies(load(tmp_path, BASE))
    assert policy == ("default", RoundsConfig(cohort_size=4), Plan())


def test_a_policy_changes_the_keys_that_it_names(tmp_path: Path) -> None:
    text = f"""{BASE}quorum = 2
[plan]
epochs = 5
[[policy]]
name = "plain"
[[policy]]
name = "half"
rounds.cohort_fraction = 0.5
plan = {{ epochs = 1, momentum = 0.5 }}
[[policy]]
name = "buffer"
[policy.rounds]
mode = "buffered"
buffer_size = 3
"""
    plain, half, buffer = policies(load(tmp_path, text))
    assert (plain.rounds.quorum, plain.plan.epochs) == (2, 5)
    assert (half.rounds.cohort_size, half.rounds.cohort_fraction) == (None, 0.5)
    assert (half.plan.epochs, half.plan.momentum, half.rounds.quorum) == (1, 0.5, 2)
    assert (buffer.rounds.mode, buffer.rounds.cohort_size, buffer.plan.epochs) == ("buffered", 4, 5)


def test_files_are_relative_to_the_scenario(tmp_path: Path) -> None:
    text = (
        f"{BASE}[learning]\nmodel = './bundle'\n[availability]\nkind = 'trace'\ntrace = 't.csv'\n"
    )
    scenario = load(tmp_path, text)
    assert scenario.learning.model == str(tmp_path / "bundle")
    assert scenario.availability.trace == tmp_path / "t.csv"
    assert load(tmp_path, f"{BASE}[learning]\nmodel = 'digits'\n").learning.model == "digits"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BASE.replace("devices = 20", ""), "fleet: the required key `devices` is missing"),
        (BASE.replace("devices", "device"), "fleet: unknown key 'device'; did you mean 'devices'?"),
        (BASE.replace("20", "0"), "fleet.devices is 0: expected a whole number, at least 1"),
        (BASE.replace('"tides"', '"a b"'), "name is 'a b'"),
        (BASE.replace("cohort_size = 4", ""), "give either rounds.cohort_size or"),
        (f"{BASE}quorum = 5", "rounds.quorum 5 exceeds rounds.cohort_size 4"),
        (f"{BASE}devices_min = 21", "rounds.devices_min is 21, expected at most fleet.devices, 20"),
        (f"hours_max = 0\n{BASE}", "hours_max is 0"),
        (
            f"{BASE}[dropouts]\nin_training = 1.5",
            "dropouts.in_training is 1.5: expected a number, at most 1",
        ),
        (f"{BASE}[dropouts]\nbefore_upload = -0.1", "dropouts.before_upload is -0.1: expected"),
        (
            f"{BASE}[dropouts]\nin_training = 0.6\nduring_upload = 0.5",
            "dropouts: the rates of the phases add up to 1.1, expected 1 at the most",
        ),
        (f"{BASE}[stragglers]\nkind = 'slow'", "'none' or 'factor' or 'log_normal'"),
        (f"{BASE}[stragglers]\nfraction = nan", "stragglers.fraction is nan"),
        (
            f"{BASE}[stragglers]\nfactor = 0.5",
            "stragglers.factor is 0.5: expected a number, at least 1",
        ),
        (f"{BASE}[availability]\nkind = 'trace'", 'availability: give trace with kind = "trace"'),
        (f"{BASE}[availability]\ntrace = 't.csv'", 'availability: give trace with kind = "trace"'),
        (f"{BASE}[availability]\nrepeat_s = 5", 'repeat_s is of kind = "trace", the kind is'),
        (f"{BASE}[availability]\nnight_from_h = 6", "the night begins and ends at 6 h"),
        (
            f"{BASE}[availability]\nkind = 'day_night'\nnight_share = 0",
            "night_share and day_share are both 0: no device is ever on",
        ),
        (f"{BASE}[learning]\nkind = 'real'", 'learning: kind = "real" needs data'),
        (
            f"{BASE}[learning]\nkind = 'real'\ndata = 'digits'\nparameters = 5",
            'parameters are of kind = "modelled"',
        ),
        *(
            (f"{BASE}[{key.partition('.')[0]}]\n{key.partition('.')[2]} = {value}", f"{key} has no")
            for key, value in [
                ("availability.on_s", 5),
                ("availability.zones_h", 5),
                ("stragglers.fraction", 0.5),
                ("stragglers.factor", 5),
                ("stragglers.sigma", 1),
                ("learning.partition", "'shards'"),
                ("learning.alpha", 1),
                ("learning.data", "'mnist'"),
            ]
        ),
        (
            f"{BASE}[learning]\nkind = 'real'\ndata = 'digits'\nmodel = 'digits'\nexamples = 5",
            'learning.examples has no effect: it is of learning.kind = "modelled", and that is',
        ),
        (f"{BASE}[learning]\nmodel = 'mnist_lr'", "give learning.step_ms"),
        (
            with_group("step_ms = 3") + "[learning]\nstep_ms = 2\n",
            "learning.step_ms is 2 and has no effect: it is for groups with a profile",
        ),
        (with_group('profile = "pi-4"', "share = 0.4"), "shares of the groups add up to 0.4"),
        (with_group("share = 1.0"), "give one of profile, step_ms and benchmark, not none"),
        (with_group('profile = "pi-4"', "step_ms = 3"), "not 2 of them"),
        (
            with_group('profile = "pi-6"'),
            "fleet.group 1: profile is 'pi-6', expected one of: pi-zero-2w, pi-4, pi-5",
        ),
        (
            with_group('profile = "pi-4"', 'link = "5g"'),
            "fleet.group 1: link is '5g', expected numbers or one of: ethernet, wifi, 4g",
        ),
        (
            with_group('profile = "pi-4"', "link = {down_bytes_per_s = 0, up_bytes_per_s = 1}"),
            "fleet.group 1: link.down_bytes_per_s is 0: expected a number, at least 1",
        ),
        (f"{BASE}[learning]\nmodel = '~nobody-here/x'", "learning.model is '~nobody-here/x': "),
        (f'{BASE}[learning]\nmodel = "a/\\u0000b"', "Expected a path: embedded null"),
        (f"{BASE}[learning]\nmodel = './{'x' * 5_000}'", "Expected a path: File name too long"),
        (f"{BASE}[learning]\ndata_dir = '~nobody-here/x'", "data_dir is '~nobody-here/x': "),
        (
            f"{BASE}[learning]\nparameters = {2**52}",
            "expected a whole number, at most 1000000000000",
        ),
        (f"{BASE}[learning]\nmodel = 'resnet'", "learning.model is 'resnet', expected the folder"),
        (
            f"{BASE}[learning]\nparameters = 7",
            "reference machine, whose time for this model is not",
        ),
        (f"{BASE}[[policy]]\nname = 'a'\n[[policy]]\nname = 'a'", "policy.name 'a' is given twice"),
        (
            f"{BASE}[[policy]]\nname = 'a'\nrounds.quorums = 3",
            "policy 'a': rounds: unknown key 'quorums'; did you mean 'quorum'?",
        ),
        (f"{BASE}[[policy]]\nname = 'a'\nrounds.quorum = 9", "policy 'a': rounds.quorum 9 exceeds"),
        (
            f"{BASE}[[policy]]\nname = 'a'\nrounds = {{cohort_size = 3, cohort_fraction = 0.5}}",
            "policy 'a': give either rounds.cohort_size or rounds.cohort_fraction",
        ),
        (
            f"{BASE}[[policy]]\nname = 'a'\nplan.epochs = 0",
            "policy 'a': plan.epochs is 0: expected",
        ),
        (
            f"{BASE}[[policy]]\nname = 'a'\nplan.nesterov = true",
            "nesterov needs a momentum above 0",
        ),
        (f"{BASE}[[policy]]\nrounds.quorum = 9", "policy 1: the required key `name` is missing"),
    ],
)
def test_each_wrong_thing_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        Conditions(load(tmp_path, text))
    assert said in str(error.value)


@pytest.mark.parametrize("value", ["-1", "'a b'", "[]", "[{}]", "1979-05-27", "inf", "{z = 1}"])
def test_any_value_of_any_key_is_taken_or_refused(tmp_path: Path, value: str) -> None:
    for key in sorted(keys() - {"name"}):
        table, _, name = key.rpartition(".")
        head = f"[[{table}]]" if table in ("fleet.group", "policy") else f"[{table}]"
        if key == "fleet.devices":
            text = BASE.replace("20", value)
        elif not table:
            text = f"{name} = {value}\n{BASE}"
        elif table == "fleet.group.link":
            text = with_group('profile = "pi-4"', f"link.{name} = {value}")
        else:
            text = f"{BASE}{head}\n{name} = {value}\n"
        try:
            Conditions(load(tmp_path, text))
            continue
        except FedtideError as exc:
            said = str(exc)
        assert name in said or "required" in said or table in said


BENCHMARK = """{"name": "digits-mlp", "results": [
 {"runtime": "portable", "threads": 1, "batch_size": 10, "median_s": 0.004},
 {"runtime": "portable", "threads": 2, "batch_size": 10, "median_s": 0.002},
 {"runtime": "portable", "threads": 1, "batch_size": 50, "median_s": 0.010},
 {"runtime": "portable", "threads": 4, "batch_size": 50, "error": "no memory"}]}"""


def test_a_profile_may_be_measured(tmp_path: Path) -> None:
    (tmp_path / "my-pi.json").write_text(BENCHMARK)
    conditions = Conditions(load(tmp_path, with_group('benchmark = "my-pi.json"')))
    traits = conditions.traits(0)
    assert (traits.profile, traits.times.at(10)) == ("my-pi", 2.0)
    assert (traits.times.at(50), traits.times.at(30)) == (10.0, 6.0)


def test_files_are_known_by_what_is_in_them(tmp_path: Path) -> None:
    path = tmp_path / "my-pi.json"
    path.write_text(BENCHMARK)
    scenario = load(tmp_path, with_group('benchmark = "my-pi.json"'))
    before = input_digests(scenario)
    assert before == {"fleet.group 1: benchmark": hashlib.sha256(BENCHMARK.encode()).hexdigest()}
    path.write_text(BENCHMARK.replace("0.004", "0.005"))
    assert differing(before, input_digests(scenario)) == ["fleet.group 1: benchmark"]
    assert differing(before, {}) == differing({}, before) == ["fleet.group 1: benchmark"]
    assert differing(None, before) == []
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    scenario = load(tmp_path, BASE + "[learning]\nmodel = './bundle'\n")
    assert input_digests(scenario) == {"learning.model": hashlib.sha256(b"{}").hexdigest()}
    (tmp_path / "bundle" / "manifest.json").unlink()
    with pytest.raises(ConfigError, match=r"learning.model .*manifest.json' cannot be read"):
        input_digests(scenario)


def test_models_learn_from_data_sets_that_exist() -> None:
    assert {name for model in MODELS.values() for name in model.data} == set(DATA_SETS)
    assert set(MODELS) == set(BUNDLES)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file"),
        (b"", "is not what `fedtide client benchmark` prints"),
        (b"[]", "is not what `fedtide client benchmark` prints"),
        (b"\xff", "is not what `fedtide client benchmark` prints"),
        (b'{"name": "x", "results": []}', "holds no measurement"),
        (b'{"name": "x", "results": [{"threads": 1, "batch_size": 9}]}', "holds no measurement"),
    ],
)
def test_a_benchmark_that_is_none(tmp_path: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / "my-pi.json").write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(said)):
        Conditions(load(tmp_path, with_group('benchmark = "my-pi.json"')))
