"""Named changes of a configuration, as a flag writes them."""

import pytest

from spectran_jax.config import Config
from spectran_jax.errors import InputError
from spectran_jax.studies.variants import Variant, encoder_variants, parse_changes, single_changes


def test_changes_are_read_by_the_type_of_their_field():
    text = "attention=none:softmax,taylor_order=0:4,semantic_scale=1,position_encoding=false"
    changes = parse_changes(text, "vary")
    assert changes == {
        "attention": ("none", "softmax"),
        "taylor_order": (0, 4),
        "semantic_scale": (1.0,),
        "position_encoding": (False,),
    }
    assert isinstance(changes["semantic_scale"][0], float)


def test_a_star_is_every_choice_and_the_base_is_left_out():
    base = Config().replace(attention="softmax")
    variants = single_changes(base, parse_changes("attention=*,position_encoding=*,taylor_order=2:3", "vary"))
    assert variants == [
        Variant("attention=softshrink", {"attention": "softshrink"}),
        Variant("attention=none", {"attention": "none"}),
        Variant("position_encoding=false", {"position_encoding": False}),
        Variant("taylor_order=3", {"taylor_order": 3}),
    ]
    for variant in variants:
        assert len(base.replace(**variant.values).differences(base)) == 1


def test_encoders_share_values():
    assert encoder_variants(["id", "svd"], dimension=8) == [
        Variant("id", {"item_encoder": "id", "dimension": 8}),
        Variant("svd", {"item_encoder": "svd", "dimension": 8}),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("atention=none", r"Unknown field in --vary: 'atention'.*Did you mean 'attention'"),
        ("attention=nune", "Unknown value of attention in --vary.*'nune'.*Did you mean 'none'"),
        ("taylor_order=1.5", "taylor_order takes int values, got '1.5'"),
        ("position_encoding=off", "position_encoding takes bool values, got 'off'"),
        ("dropout=*", "dropout has no closed list"),
        ("dropout", "write NAME=VALUE:VALUE"),
        ("dropout=0.1,dropout=0.2", "names dropout twice"),
    ],
)
def test_bad_changes(text, message):
    with pytest.raises(InputError, match=message):
        parse_changes(text, "vary")
