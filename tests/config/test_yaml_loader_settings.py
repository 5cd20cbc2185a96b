from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pytest

from hsadml_dist.config.yaml_loader import load_settings
from hsadml_dist.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Wheel:
    size: int
    colour: Literal["red", "blue"] = "red"
    spokes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Cart:
    owner: str | None = None
    load: float | None = None
    open: bool | None = None
    wheel: Wheel | None = None
    tags: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)


def cart_problems(cart):
    if cart.load is not None and cart.load > 3:
        yield "load", f"is {cart.load:g}; at most 3"
    if cart.wheel is not None and cart.wheel.size < 1:
        yield "wheel.size", "too small"


@pytest.fixture
def load(tmp_path):
    def read(text):
        path = tmp_path / "cart.yaml"
        path.write_text(text)
        return load_settings(path, Cart, "cart", cart_problems)

    return read


def faults(load, text):
    with pytest.raises(ConfigError) as caught:
        load(text)
    return caught.value.faults


def test_load_settings_reads_every_type(load):
    text = "owner: me\nload: 2\nopen: false\ntags: [a, '3']\nnotes: {A: b}\nwheel:\n  size: 4\n  spokes: [x]\n"
    wheel = Wheel(size=4, spokes=("x",))
    assert load(text) == Cart(owner="me", load=2.0, open=False, tags=("a", "3"), notes={"A": "b"}, wheel=wheel)
    assert load("") == load("# nothing\n") == load("wheel: null\nowner:\n") == Cart()


def test_all_faults_are_reported_with_their_lines(load):
    text = "ownr: me\nload: 5\nopen: 1\nwheel:\n  size: 0\n  colour: rad\ntags: x\nsize: 3\nload: 4\n"
    assert [(fault.where, fault.key) for fault in faults(load, text)] == [
        ("cart.yaml:1", "ownr"),
        ("cart.yaml:3", "open"),
        ("cart.yaml:6", "wheel.colour"),
        ("cart.yaml:7", "tags"),
        ("cart.yaml:8", "size"),
        ("cart.yaml:9", "load"),
    ]


def test_problems_are_reported_together_with_wrong_types(load):
    found = faults(load, "load: 5\nowner: 3\nwheel: {size: 0}\n")
    assert [(fault.where, fault.key) for fault in found] == [
        ("cart.yaml:2", "owner"),
        ("cart.yaml:1", "load"),
        ("cart.yaml:3", "wheel.size"),
    ]
    assert found[1].problem == "is 5; at most 3"


@pytest.mark.parametrize(
    ("text", "where", "key", "facts"),
    [
        ("owner: 0027\n", "cart.yaml:1", "owner", ["0027", '"0027"']),
        ("wheel: 3\n", "cart.yaml:1", "wheel", ["size, colour, spokes"]),
        ("wheel: {colour: red}\n", "cart.yaml:1", "wheel.size", []),
        ("wheel:\n  size: 1\n  sise: 2\n", "cart.yaml:3", "wheel.sise", ["'size'"]),
        ("wheel:\n  size: 1\n  colour: rad\n", "cart.yaml:3", "wheel.colour", ["'rad'", "'red', 'blue'"]),
        ("colour: red\n", "cart.yaml:1", "colour", ["'wheel.colour'"]),
        ("zzz: 1\n", "cart.yaml:1", "zzz", ["owner, load, open, wheel, tags, notes"]),
        ("tags: [a, 3.11]\n", "cart.yaml:1", "tags", ["['a', 3.11]", "list"]),
        ("notes: {A: 3}\n", "cart.yaml:1", "notes", ["{'A': 3}", "mapping"]),
        ("notes: {A: &x b}\nowner: *x\n", "cart.yaml:2", "cart", ["aliases"]),
        ("- a\n", "cart.yaml", "cart", ["mapping"]),
    ],
)
def test_fault_names_value_and_what_is_allowed(load, text, where, key, facts):
    (fault,) = faults(load, text)
    assert (fault.where, fault.key) == (where, key)
    assert all(fact in fault.problem for fact in facts)


def test_unreadable_file_is_a_fault(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_settings(tmp_path / "no.yaml", Cart, "cart", cart_problems)
    (fault,) = caught.value.faults
    assert fault.key == "cart" and "No such file" in fault.problem
