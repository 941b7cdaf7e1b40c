# SPDX-License-Identifier: Apache-2.0
"""Instructions become tokens with a real tokenizer: cleaning, template, a state in words, padding, refusals."""

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from vla_policy_ros.bundle.instruction import InstructionEncoder, make_prompt
from vla_policy_ros.bundle.manifest import InstructionInput
from vla_policy_ros.core.errors import BundleError, InstructionError, SpecMismatchError

WORDS = ('[PAD]', '[UNK]', 'pick', 'up', 'the', 'cube', 'Task:', 'Pick', "don't", 'dont')
IDS = {word: index for index, word in enumerate(WORDS)}


@pytest.fixture
def folder(tmp_path):
    tokenizer = Tokenizer(WordLevel(IDS, unk_token='[UNK]'))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.enable_truncation(3)  # the runtime must not cut an instruction short
    tokenizer.enable_padding(length=20)
    tokenizer.save(str(tmp_path / 'tokenizer.json'))
    return tmp_path


def make_rules(**settings):
    values = {'tokenizer': 'tokenizer.json', 'tokens': 'ids', 'max_tokens': 6, **settings}
    return InstructionInput(**values)


def make_encoder(folder, **settings):
    return InstructionEncoder(make_rules(**settings), folder)


def encode(encoder, text, width=6):
    tokens, mask = np.full((1, width), 77, np.int64), np.full((1, width), 77, np.int64)
    encoder.write(text, tokens, mask)
    return tokens[0].tolist(), mask[0].tolist()


def ids(*words):
    return [IDS[word] for word in words]


def test_padding_on_the_right(folder):
    tokens, mask = encode(make_encoder(folder), 'pick up the cube')
    assert tokens == ids('pick', 'up', 'the', 'cube', '[PAD]', '[PAD]')
    assert mask == [1, 1, 1, 1, 0, 0]


def test_padding_on_the_left_with_another_token(folder):
    encoder = make_encoder(folder, padding_side='left', pad_token='[UNK]')
    tokens, mask = encode(encoder, 'pick up')
    assert tokens == ids('[UNK]', '[UNK]', '[UNK]', '[UNK]', 'pick', 'up')
    assert mask == [0, 0, 0, 0, 1, 1]


def test_cleaning_lowers_and_drops_punctuation_before_the_template(folder):
    encoder = make_encoder(
        folder, cleaning='lower_no_punctuation', template='Task: {instruction} {x}'
    )
    tokens, _ = encode(encoder, "Pick, don't!")
    assert tokens[:4] == ids('Task:', 'pick', 'dont', '[UNK]')


def test_without_cleaning_the_text_stays(folder):
    assert encode(make_encoder(folder), "Pick don't")[0][:2] == ids('Pick', "don't")


def test_one_line_has_no_ends_and_no_underscores():
    rules = make_rules(cleaning='one_line', template='<{instruction}>')
    assert make_prompt(rules, ' \tpick_up\n\nthe Cube!_\n') == '<pick up  the Cube! >'


@pytest.mark.parametrize(
    ('num_bins', 'values', 'told'),
    [
        # Edges belong to the bin above them.
        (4, [-1.001, -1, -0.501, -0.5, -0.001, 0, 0.499, 0.5, 1, 9], '-1 0 0 1 1 2 2 3 3 3'),
        (256, [-2, -1, 0, 0.9999, 0.0078125], '-1 0 128 255 129'),
    ],
)
def test_a_state_is_told_by_its_bins(num_bins, values, told):
    rules = make_rules(template='{state}; {instruction} {x}', state_bins=num_bins)
    state = np.array(values, np.float32).reshape(1, -1, 5)  # rows one after another
    assert make_prompt(rules, 'pick {state}', state) == f'{told}; pick {{state}} {{x}}'


def test_another_state_makes_other_tokens_and_the_same_bins_do_not(folder):
    tokenizer = Tokenizer.from_file(str(folder / 'tokenizer.json'))
    tokenizer.add_tokens(['0', '1'])
    tokenizer.save(str(folder / 'tokenizer.json'))
    encoder = make_encoder(folder, template='{instruction} {state}', state_bins=2)
    tokens = np.zeros((1, 6), np.int64)

    def tell(*state):
        encoder.write('pick', tokens, state=np.array([state], np.float32))
        return tokens[0, :3].tolist()

    low, high = len(WORDS), len(WORDS) + 1
    assert tell(-0.5, 0.5) == [IDS['pick'], low, high]
    assert tell(0.5, 0.5) == [IDS['pick'], high, high]
    encoder._tokenizer = None
    assert tell(0.1, 0.9) == [IDS['pick'], high, high]


def test_as_many_tokens_as_fit_are_taken_and_one_more_is_refused(folder):
    encoder = make_encoder(folder)
    assert encode(encoder, 'up ' * 6)[1] == [1] * 6
    with pytest.raises(InstructionError, match='got 7 tokens') as caught:
        encode(encoder, 'up ' * 7)
    assert caught.value.code == 'instruction_too_long'


@pytest.mark.parametrize(
    ('text', 'cleaning'), [('', 'none'), (' \n', 'none'), ('?!', 'lower_no_punctuation')]
)
def test_no_words_are_refused_unless_the_policy_takes_them(folder, text, cleaning):
    with pytest.raises(InstructionError) as caught:
        encode(make_encoder(folder, cleaning=cleaning), text)
    assert caught.value.code == 'empty_instruction'
    encoder = make_encoder(
        folder, cleaning=cleaning, allow_empty=True, template='Task: {instruction}'
    )
    assert encode(encoder, text)[1] == [1, 0, 0, 0, 0, 0]


def test_the_same_text_is_tokenised_once(folder):
    encoder = make_encoder(folder)
    first = encode(encoder, 'pick up')
    encoder._tokenizer = None
    assert encode(encoder, 'pick up') == first
    with pytest.raises(AttributeError):
        encode(encoder, 'pick the cube')


def test_a_shorter_text_leaves_nothing_of_the_longer_one(folder):
    encoder = make_encoder(folder)
    encode(encoder, 'pick up the cube')
    assert encode(encoder, 'up') == encode(make_encoder(folder), 'up')


def test_after_a_refusal_the_last_good_text_still_stands(folder):
    encoder = make_encoder(folder)
    good = encode(encoder, 'pick up')
    with pytest.raises(InstructionError):
        encode(encoder, 'up ' * 7)
    assert encode(encoder, 'pick up') == good


def test_the_mask_is_optional(folder):
    tokens = np.zeros((1, 6), np.int64)
    make_encoder(folder).write('up', tokens)
    assert tokens[0, 0] == IDS['up']


def test_arrays_of_another_shape_are_refused(folder):
    encoder = make_encoder(folder)
    right, wrong = np.zeros((1, 6), np.int64), np.zeros((1, 5), np.int64)
    for arrays in ((wrong,), (right, wrong)):
        with pytest.raises(SpecMismatchError):
            encoder.write('up', *arrays)


def test_an_unknown_padding_token_is_refused(folder):
    with pytest.raises(BundleError) as caught:
        make_encoder(folder, pad_token='<nothing>')
    assert caught.value.code == 'unknown_pad_token'


@pytest.mark.parametrize('content', [None, b'', b'{}', b'\xff\xfe'])
def test_a_missing_or_broken_tokenizer_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / 'tokenizer.json').write_bytes(content)
    with pytest.raises(BundleError, match=r'tokenizer\.json') as caught:
        make_encoder(tmp_path)
    assert caught.value.code == 'bad_tokenizer'
