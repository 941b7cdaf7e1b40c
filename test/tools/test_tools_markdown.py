# SPDX-License-Identifier: Apache-2.0
import json

from vla_policy_ros.tools.markdown import describe_versions, to_markdown_table, write_report


def test_a_table():
    text = to_markdown_table(('name', 'ms'), [('a', '1'), ('b', '2')], right=(1,))
    assert text == '| name | ms |\n| --- | ---: |\n| a | 1 |\n| b | 2 |'


def test_a_cell_ends_neither_itself_nor_its_row():
    assert to_markdown_table(('x',), [('a|b\nc',)]).splitlines()[-1] == '| a\\|b c |'


def test_versions_on_one_line():
    assert describe_versions({'python': '3.11', 'numpy': '2'}) == 'python 3.11, numpy 2'


def test_a_report_is_two_files(tmp_path):
    write_report(tmp_path / 'a' / 'b', 'run', {'degrees': '°', 'ok': True}, '# Run\n')
    assert (tmp_path / 'a' / 'b' / 'run.md').read_text(encoding='utf-8') == '# Run\n'
    text = (tmp_path / 'a' / 'b' / 'run.json').read_text(encoding='utf-8')
    assert json.loads(text) == {'degrees': '°', 'ok': True}
    assert '°' in text
