"""Configuration files: what is wrong is named, and every key is in docs/configuration.md."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, TypeVar, get_args

import msgspec
import pytest
from msgspec import inspect as inspection

from coordinator.config import CoordinatorConfig
from edge_client.config import ClientConfig
from fedtide.config import BrokerConfig, load_config, toml_string
from fedtide.errors import ConfigError
from registrar.config import RegistrarConfig

T = TypeVar("T")

DOCUMENT = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()

COORDINATOR = """
federation = "tides"
bundle = "bundle"
state_dir = "state"
[rounds]
cohort_size = 3
"""
CLIENT = """
federation = "tides"
device = "pi"
state_dir = "state"
[data]
path = "data.npz"
"""


def keys_of(kind: type[msgspec.Struct], prefix: str = "") -> set[str]:
    """Dotted names of all keys."""
    names: set[str] = set()
    for field in msgspec.structs.fields(kind):
        parts = [field.type, *get_args(field.type)]
        table = next(
            (part for part in parts if isinstance(part, type) and issubclass(part, msgspec.Struct)),
            None,
        )
        name = f"{prefix}{field.name}"
        names |= {name} if table is None else keys_of(table, f"{name}.")
    return names


def documented(document: str) -> list[set[str]]:
    """Keys in the tables of the sections coordinator, client and registrar.toml, and [broker]."""
    sections = re.split(r"^## ", document, flags=re.MULTILINE)[1:]
    return [set(re.findall(r"^\| `([\w.]+)` \|", section, re.MULTILINE)) for section in sections]


def undocumented(document: str) -> set[str]:
    """Keys that only one of code and document knows."""
    coordinator, client, registrar, broker = documented(document)
    return (
        (keys_of(CoordinatorConfig) ^ (coordinator | broker))
        | (keys_of(ClientConfig) ^ (client | broker))
        | (keys_of(RegistrarConfig) ^ (registrar | broker))
    )


def test_every_key_is_documented_and_every_documented_key_exists() -> None:
    assert undocumented(DOCUMENT) == set()
    assert {f"broker.{field.name}" for field in msgspec.structs.fields(BrokerConfig)} == documented(
        DOCUMENT
    )[3]


def test_a_missing_or_invented_key_would_be_noticed() -> None:
    assert undocumented(DOCUMENT.replace("| `hello_ms` |", "| `hallo_ms` |")) == {
        "hello_ms",
        "hallo_ms",
    }


def test_the_examples_of_the_document_are_valid(tmp_path: Path) -> None:
    examples = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)
    coordinator, buffered, less_work, client, conditions, registrar = examples
    assert load(tmp_path, coordinator, CoordinatorConfig).rounds.quorum == 10
    begin = COORDINATOR.split("[rounds]", maxsplit=1)[0]
    assert load(tmp_path, begin + buffered, CoordinatorConfig).rounds.mode == "buffered"
    assert load(tmp_path, begin + less_work, CoordinatorConfig).rounds.weights == "fednova"
    assert load(tmp_path, client, ClientConfig).device == "kitchen-pi"
    assert load(tmp_path, CLIENT + conditions, ClientConfig).conditions.mains
    assert load(tmp_path, registrar, RegistrarConfig).broker.port == 8884


@pytest.mark.parametrize("other", ["", "cohort_size = 3\n"])
def test_what_means_nothing_to_a_buffer_is_ignored(tmp_path: Path, other: str) -> None:
    example = (Path(__file__).parents[2] / "examples" / "coordinator.toml").read_text()
    assert "cohort_fraction" in example
    text = example.replace("[rounds]", f"[rounds]\nmode = 'buffered'\n{other}")
    assert load(tmp_path, text, CoordinatorConfig).rounds.mode == "buffered"


def load(tmp_path: Path, text: str, kind: type[T]) -> T:
    path = tmp_path / "x.toml"
    path.write_text(text)
    return load_config(path, kind)


def test_defaults_and_relative_paths(tmp_path: Path) -> None:
    config = load(tmp_path, COORDINATOR, CoordinatorConfig)
    assert config.bundle == tmp_path / "bundle"
    assert (config.encoding, config.rounds.quorum, config.broker.port) == ("f32", 1, 1883)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("federation =", "federatoin ="), "federatoin"),
        (('federation = "tides"', ""), "federation"),
        (('"tides"', '"../tides"'), "federation"),
        (('"tides"', '""'), "federation"),
        (('"tides"', "7"), "federation"),
        (('bundle = "bundle"', "bundle = 5"), "bundle"),
        (('bundle = "bundle"', 'bundle = ""'), "bundle"),
        (("cohort_size = 3", "cohort_size = 0"), "rounds.cohort_size"),
        (("cohort_size = 3", "cohort_size = 2.5"), "rounds.cohort_size"),
        (("cohort_size = 3", "cohort_fraction = 1.5"), "rounds.cohort_fraction"),
        (("cohort_size = 3", "cohort_fraction = nan"), "rounds.cohort_fraction"),
        (("cohort_size = 3", "quorum = 2"), "rounds.cohort_size or rounds.cohort_fraction"),
        (
            ("cohort_size = 3", "cohort_size = 3\ncohort_fraction = 0.5"),
            "rounds.cohort_size or rounds.cohort_fraction",
        ),
        (("cohort_size = 3", "cohort_size = 3\nquorum = 4"), "rounds.quorum 4"),
        (("cohort_size = 3", "cohort_size = 3\nweights = 'equal'"), "rounds.weights"),
        *(
            (
                ("[rounds]", f"[plan]\n{plan}\n[rounds]\nweights = 'fednova'"),
                'rounds.weights "fednova"',
            )
            for plan in (
                "optimizer = 'adamw'",
                "momentum = 0.5\noptimizer_state = 'kept'",
                "momentum = 0.5\nproximal_mu = 0.1",
                "learning_rate = 0.5\nproximal_mu = 2.0",
            )
        ),
        (("[rounds]", "[plan]\ntraining_ms_max = 0\n[rounds]"), "plan.training_ms_max"),
        (
            ("cohort_size = 3", "cohort_size = 3\ncount = 200\nlearning_rate_decay = 0.5"),
            "rounds.learning_rate_decay 0.5",
        ),
        (("cohort_size = 3", "cohort_size = 3\ncollect_ms = 5"), "rounds.collect_ms"),
        (("cohort_size = 3", "mode = 'buffered'\nquorum = 11"), "rounds.quorum 11 exceeds"),
        (("cohort_size = 3", "cohort_size = 3\nlate = 'never'"), "rounds.late"),
        (("[rounds]", "[vetting]\nnorm_factor = -1\n[rounds]"), "vetting.norm_factor"),
        (("[rounds]", "[plan]\nlearning_rate = 0\n[rounds]"), "plan.learning_rate"),
        (("[rounds]", "[plan]\noptimizer = 'adam'\n[rounds]"), "plan.optimizer"),
        (("[rounds]", "[broker]\nport = 70000\n[rounds]"), "broker.port"),
        (("[rounds]", "[broker]\nprotocol = '4'\n[rounds]"), "broker.protocol"),
        (("[rounds]", "[broker]\nhots = 'x'\n[rounds]"), "hots"),
        (("state_dir", "encoding = 'f8'\nstate_dir"), "encoding"),
    ],
)
def test_each_wrong_thing_is_named(tmp_path: Path, change: tuple[str, str], named: str) -> None:
    assert change[0] in COORDINATOR
    with pytest.raises(ConfigError) as error:
        load(tmp_path, COORDINATOR.replace(*change), CoordinatorConfig)
    assert named in str(error.value)
    assert "x.toml" in str(error.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (('device = "pi"', 'device = "p i"'), "device"),
        (('path = "data.npz"', "held_out_fraction = 0.5"), "path"),
        (('path = "data.npz"', 'path = "x"\nheld_out_fraction = 1.0'), "data.held_out_fraction"),
        (("[data]", "[training]\nruntime = 'gpu'\n[data]"), "training.runtime"),
        (("[data]", "[training]\ncpu_share = 0\n[data]"), "training.cpu_share"),
    ],
)
def test_each_wrong_thing_of_a_client_is_named(
    tmp_path: Path, change: tuple[str, str], named: str
) -> None:
    assert change[0] in CLIENT
    with pytest.raises(ConfigError, match=re.escape(named)):
        load(tmp_path, CLIENT.replace(*change), ClientConfig)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("plan.optimizer = 'adam'", "plan.optimizer is 'adam': expected 'sgd' or 'adamw'"),
        ("encoding = 8", "encoding is 8: expected 'f32' or 'f16'"),
        ("encoding = 'f8'", "encoding is 'f8': expected 'f32' or 'f16'"),
        ("plan.batch_size = 'every'", "plan.batch_size is 'every': expected a number or 'all'"),
        ("broker.port = 70000", "broker.port is 70000: expected a whole number, at most 65535"),
        ("plan.betas = [0.5, 2]", "plan.betas 2 is 2: expected a number, below 1"),
        ("plan.betas = [1, 2, 3]", "plan.betas is [1, 2, 3]: expected a list of length 2"),
        ("evaluation.data = 7", "evaluation.data is 7: expected a path"),
        (f"evaluation.batch_size = '{'x' * 99}'", f"evaluation.batch_size is '{'x' * 59}…: "),
        ("plan.nesterov = true", "plan: nesterov needs a momentum above 0"),
        ("plan.rate = 1", "plan: unknown key 'rate'; known are epochs, "),
        ("plan = 7", "plan is 7: expected a table"),
        ("encoding = {z = 1}", "encoding is {'z': 1}: expected 'f32' or 'f16'"),
        ("broker.port = {z = 1}", "broker.port is {'z': 1}: expected a whole number"),
        ("broker.password_file = 1234", "broker.password_file is wrong: expected a path"),
    ],
)
def test_the_value_and_the_choices_are_named(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, f"{line}\n{COORDINATOR}", CoordinatorConfig)
    assert f"x.toml': {said}" in str(error.value)
    assert "1234" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("query = 3", "data.query is 3: expected text"),
        ("classes = ['a', 3]", "data.classes 2 is 3: expected text"),
        ("classes = []", "data.classes is []: expected a list of length at least 1"),
        ("delimiter = ';;'", "data.delimiter is ';;': expected text of length at most 1"),
        ("input_columns = [1.5]", "data.input_columns 1 is 1.5: expected text or a number"),
        ("missing = 3", "data.missing is 3: expected 'refuse' or 'skip'"),
        ("divisor = 0", "data.divisor is 0: expected a number, above 0"),
    ],
)
def test_local_data_are_refused_in_a_persons_words(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, f"{CLIENT}{line}\n", ClientConfig)
    assert error.value.args[0].endswith(said)
    assert error.value.hint


class Tide(msgspec.Struct, forbid_unknown_fields=True):
    hours: int


class Nested(msgspec.Struct, forbid_unknown_fields=True):
    perhaps: Tide | None = None
    many: tuple[Tide, ...] = ()
    named: dict[str, Tide] = {}
    rate: Annotated[float, msgspec.Meta(gt=0)] | None = None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("perhaps.hours = 'x'", "perhaps.hours is 'x': expected a whole number"),
        ("rate = 'x'", "rate is 'x': expected a number"),
        ("many = [{}]", "many 1: the required key `hours` is missing"),
        ("perhaps = {hour = 1}", "perhaps: unknown key 'hour'; did you mean 'hours'?"),
        ("many = [{hours = 1}, {hours = 'x'}]", "many 2: hours is 'x': expected a whole number"),
        ("named.a.hours = 'x'", "named[...].hours: Expected a whole number"),
    ],
)
def test_tables_in_arrays_and_tables_that_may_be_absent(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        load(tmp_path, text, Nested)


@pytest.mark.parametrize("kind", [CoordinatorConfig, ClientConfig])
@pytest.mark.parametrize("value", ["-1", "'a b'", "[]", "[{}]", "1979-05-27", "inf", "{z = 1}"])
def test_any_value_of_any_key_is_taken_or_refused(
    tmp_path: Path, kind: type[msgspec.Struct], value: str
) -> None:
    text = COORDINATOR if kind is CoordinatorConfig else CLIENT
    for key in keys_of(kind):
        lines = [
            line for line in text.splitlines() if not line.startswith(f"{key.split('.')[-1]} ")
        ]
        table = next((line for line in lines if line == f"[{key.split('.')[0]}]"), None)
        if table is None:
            lines.insert(0, f"{key} = {value}")
        else:
            lines.insert(lines.index(table) + 1, f"{key.split('.', 1)[1]} = {value}")
        try:
            load(tmp_path, "\n".join(lines), kind)
            continue
        except ConfigError as exc:
            said = str(exc)
        assert key in said or "give either rounds" in said or "required" in said


@pytest.mark.parametrize("key", sorted(key for key in keys_of(CoordinatorConfig) if "_ms" in key))
def test_a_duration_that_no_message_can_hold_is_refused(key: str) -> None:
    value: object = 2**53
    for name in reversed(key.split(".")):
        value = {name: value}
    with pytest.raises(msgspec.ValidationError, match=f"9007199254740991.*{key}"):
        msgspec.convert(
            {"federation": "f", "bundle": "b", "state_dir": "s", **dict(value)},  # type: ignore[call-overload]
            CoordinatorConfig,
            dec_hook=lambda kind, raw: kind(raw),
        )


def unbounded(kind: object) -> list[object]:
    """The integers in a type, down to the last table, that have no least or no greatest value."""
    if isinstance(kind, inspection.IntType):
        ends = (kind.ge, kind.gt), (kind.le, kind.lt)
        return [] if all(set(end) != {None} for end in ends) else [kind]
    if isinstance(kind, inspection.StructType):
        return [(field.name, found) for field in kind.fields for found in unbounded(field.type)]
    if isinstance(kind, inspection.UnionType):
        return [found for part in kind.types for found in unbounded(part)]
    return []


@pytest.mark.parametrize("kind", [CoordinatorConfig, ClientConfig])
def test_every_integer_is_bounded(tmp_path: Path, kind: type[msgspec.Struct]) -> None:
    assert unbounded(inspection.type_info(kind)) == []
    assert unbounded(inspection.type_info(Nested)) != [], "one without bounds is found"
    text = "rounds.count = " if kind is CoordinatorConfig else "training.threads = "
    base = COORDINATOR.replace("[rounds]\n", "rounds.") if kind is CoordinatorConfig else CLIENT
    for value in (2**53, 2**63, 2**64, 10**26):
        with pytest.raises(ConfigError, match=f"is {value}: "):
            load(tmp_path, f"{text}{value}\n{base}", kind)


def test_no_file_no_toml_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "absent.toml", ClientConfig)
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(tmp_path, ClientConfig)
    with pytest.raises(ConfigError, match="is not TOML"):
        load(tmp_path, "federation = ", ClientConfig)
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_config(tmp_path / "b.toml", ClientConfig)
    with pytest.raises(ConfigError, match="no regular file"):
        load_config(Path("/dev/zero"), ClientConfig)
    with pytest.raises(ConfigError, match="longer than 1,000,000 bytes"):
        load(tmp_path, "#" * 1_000_001, ClientConfig)
    with pytest.raises(tomllib.TOMLDecodeError):
        tomllib.loads("federation = ")


def test_the_password_is_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "password"
    assert BrokerConfig().password() is None
    path.write_text("tide\nrest\n")
    assert BrokerConfig(password_file=path).password() == "tide"
    for content in (b"", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"broker\.password_file"):
            BrokerConfig(password_file=path).password()
    path.unlink()
    with pytest.raises(ConfigError, match=r"broker\.password_file"):
        BrokerConfig(password_file=path).password()


@pytest.mark.parametrize("text", ["", 'a "b" \\ c', "\x00\x1f\t\n\x7f\x80", "Füße 🌊", "\\u0041"])
def test_text_in_a_file_that_we_write_is_read_as_it_was(text: str) -> None:
    assert tomllib.loads(f"key = {toml_string(text)}") == {"key": text}
