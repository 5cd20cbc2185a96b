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


def rules(cart):
    if cart.load is not None and cart.load > 3:
        yield "load", f"is {cart.load:g}; at most 3"
    if cart.wheel is not None and cart.wheel.size < 1:
        yield "wheel.size", "too small"


@pytest.fixture
def load(tmp_path):
    def read(text):
        path = tmp_path / "cart.yaml"
        path.write_text(text)
        return load_settings(path, Cart, "cart", rules)

    return read


def faults(load, text):
    with pytest.raises(ConfigError) as caught:
        load(text)
    return [str(fault) for fault in caught.value.faults]


def test_values_of_every_type(load):
    text = "owner: me\nload: 2\nopen: false\ntags: [a, '3']\nnotes: {A: b}\nwheel:\n  size: 4\n  spokes: [x]\n"
    wheel = Wheel(size=4, spokes=("x",))
    assert load(text) == Cart(owner="me", load=2.0, open=False, tags=("a", "3"), notes={"A": "b"}, wheel=wheel)
    assert load("") == load("# nothing\n") == load("wheel: null\nowner:\n") == Cart()


def test_all_faults_come_at_once_each_with_its_line(load):
    assert faults(
        load, "ownr: me\nload: 5\nopen: 1\nwheel:\n  size: 0\n  colour: rad\ntags: x\nsize: 3\nload: 4\n"
    ) == [
        "cart.yaml:1: ownr: unknown setting (did you mean 'owner'?)",
        "cart.yaml:3: open: 1 is not true or false or null",
        "cart.yaml:6: wheel.colour: 'rad' is not one of 'red', 'blue' (did you mean 'red'?)",
        "cart.yaml:7: tags: 'x' is not a list of texts (quote them)",
        "cart.yaml:8: size: unknown setting (did you mean 'wheel.size'?)",
        "cart.yaml:9: load: given twice, first in line 2",
    ]


def test_rules_are_reported_beside_wrong_types(load):
    assert faults(load, "load: 5\nowner: 3\nwheel: {size: 0}\n") == [
        'cart.yaml:2: owner: 3 is a number, and text is wanted; write it in quotes: "3"',
        "cart.yaml:1: load: is 5; at most 3",
        "cart.yaml:3: wheel.size: too small",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("owner: 0027\n", '1: owner: 0027 is a number, and text is wanted; write it in quotes: "0027"'),
        ("wheel: 3\n", "1: wheel: must be a mapping of size, colour, spokes"),
        ("wheel: {colour: red}\n", "1: wheel.size: must be given"),
        ("wheel:\n  size: 1\n  sise: 2\n", "3: wheel.sise: unknown setting (did you mean 'size'?)"),
        ("zzz: 1\n", "1: zzz: unknown setting; allowed: owner, load, open, wheel, tags, notes"),
        ("tags: [a, 3.11]\n", "1: tags: ['a', 3.11] is not a list of texts (quote them)"),
        ("notes: {A: 3}\n", "1: notes: {'A': 3} is not a mapping of texts (quote them)"),
        ("notes: {A: &x b}\nowner: *x\n", "2: cart: is not YAML: aliases are refused; write the value out"),
        ("- a\n", " cart: must be a mapping of settings, such as 'partition: gpu'"),
    ],
)
def test_a_fault_says_what_is_allowed(load, text, fault):
    assert faults(load, text) == [f"cart.yaml:{fault}"]


def test_a_file_that_cannot_be_read_is_a_fault(tmp_path):
    with pytest.raises(ConfigError, match="cart: cannot be read: No such file"):
        load_settings(tmp_path / "no.yaml", Cart, "cart", rules)
