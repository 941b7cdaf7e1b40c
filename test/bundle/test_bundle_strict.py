# SPDX-License-Identifier: Apache-2.0
from typing import Annotated, Literal

import pytest
from pydantic import Field

from vla_policy_ros.bundle.strict import StrictModel, find_faults, parse, read_yaml, with_count
from vla_policy_ros.core.errors import BundleError, ConfigurationError


class Round(StrictModel):
    kind: Literal['round'] = 'round'
    radius_m: float = Field(gt=0)


class Square(StrictModel):
    kind: Literal['square'] = 'square'
    side_m: float = Field(gt=0)


class Table(StrictModel):
    name: str
    legs: int = Field(default=4, ge=1)
    top: Annotated[Round | Square, Field(discriminator='kind')]
    drawers: dict[str, Square] = Field(default_factory=dict)
    extras: tuple[Square, ...] = ()


def document(**changes):
    return {'name': 'desk', 'top': {'kind': 'square', 'side_m': 1.0}, **changes}


def only_fault(**changes):
    parsed, faults = find_faults(Table, document(**changes), 'table.yaml', ConfigurationError)
    assert parsed is None
    (fault,) = faults
    assert isinstance(fault, ConfigurationError)
    return fault


def test_sound_document_is_parsed_and_frozen():
    table, faults = find_faults(Table, document(), 'table.yaml', ConfigurationError)
    assert faults == []
    assert (table.legs, table.top.side_m) == (4, 1.0)
    with pytest.raises(ValueError, match='frozen'):
        table.legs = 3


@pytest.mark.parametrize(
    ('changes', 'where', 'hint'),
    [
        ({'leg': 3}, 'leg', "Did you mean 'legs'?"),
        ({'zzz': 3}, 'zzz', 'Remove the key.'),
        (
            {'top': {'kind': 'square', 'side_m': 1, 'side_n': 1}},
            'top.square.side_n',
            "Did you mean 'side_m'?",
        ),
        ({'extras': [{'side_m': 1, 'sid_m': 1}]}, 'extras[0].sid_m', "Did you mean 'side_m'?"),
        (
            {'drawers': {'left': {'side_m': 1, 'sid_m': 1}}},
            'drawers.left.sid_m',
            "Did you mean 'side_m'?",
        ),
    ],
)
def test_unknown_key_is_named_with_its_nearest_known_one(changes, where, hint):
    fault = only_fault(**changes)
    assert (fault.where, fault.code, fault.next_step) == (
        f'table.yaml: {where}',
        'unknown_key',
        hint,
    )


def test_unknown_key_of_a_tagged_model_lists_the_keys_of_that_model_only():
    fault = only_fault(top={'kind': 'round', 'radius_m': 1, 'side_m': 1})
    assert fault.expected == 'one of kind, radius_m'


@pytest.mark.parametrize(
    ('changes', 'where', 'code'),
    [
        ({'top': {'kind': 'square'}}, 'top.square.side_m', 'missing_key'),
        ({'legs': 0}, 'legs', 'bad_value'),
        ({'legs': 'many'}, 'legs', 'bad_value'),
        ({'top': {'kind': 'oval'}}, 'top', 'bad_value'),
        ({'extras': [{'side_m': 1}, {'side_m': -1}]}, 'extras[1].side_m', 'bad_value'),
    ],
)
def test_wrong_value_is_named_with_its_path(changes, where, code):
    fault = only_fault(**changes)
    assert (fault.where, fault.code) == (f'table.yaml: {where}', code)
    assert fault.got
    assert fault.expected
    assert fault.next_step


def test_long_values_are_cut_in_messages():
    assert len(only_fault(legs='x' * 1000).got) == 120


def test_all_faults_are_found_and_parse_raises_the_first_with_their_number():
    wrong = document(legs=0, leg=1)
    del wrong['name']
    _, faults = find_faults(Table, wrong, 't', BundleError)
    assert sorted(fault.code for fault in faults) == ['bad_value', 'missing_key', 'unknown_key']
    with pytest.raises(BundleError, match=r'2 more: run `vla-policy check`') as caught:
        parse(Table, wrong, 't', BundleError)
    assert caught.value.code == faults[0].code
    assert parse(Table, document(), 't', BundleError).name == 'desk'


def test_a_single_fault_is_raised_as_it_is():
    fault = only_fault(legs=0)
    assert with_count([fault]) is fault


@pytest.mark.parametrize(
    ('content', 'expected'),
    [
        (None, 'a YAML file'),
        (b'a: [1', 'valid YAML'),
        (b'\xff\xfe\x00', 'valid YAML'),
        (b'- 1\n- 2', 'a mapping'),
        (b'', 'a mapping'),
        (b'!!python/object/apply:os.getcwd []', 'valid YAML'),
    ],
    ids=['missing', 'broken', 'binary', 'list', 'empty', 'tag'],
)
def test_file_that_holds_no_mapping_is_refused(tmp_path, content, expected):
    path = tmp_path / 'a.yaml'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r'a\.yaml') as caught:
        read_yaml(path, ConfigurationError)
    assert caught.value.expected.startswith(expected)


def test_file_with_a_mapping_is_read(tmp_path):
    (tmp_path / 'a.yaml').write_text('größe: 3\n', encoding='utf-8')
    assert read_yaml(tmp_path / 'a.yaml', ConfigurationError) == {'größe': 3}


def test_a_broken_item_does_not_make_its_list_too_short():
    class Item(StrictModel):
        size: int

    class Model(StrictModel):
        items: tuple[Item, ...] = Field(min_length=1)

    _, faults = find_faults(Model, {'items': [{'size': 'x'}]}, 'f', BundleError)
    assert [fault.where for fault in faults] == ['f: items[0].size']
    _, faults = find_faults(Model, {'items': []}, 'f', BundleError)
    assert [fault.where for fault in faults] == ['f: items']
