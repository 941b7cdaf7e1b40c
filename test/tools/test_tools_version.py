# SPDX-License-Identifier: Apache-2.0
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from vla_policy_ros.tools import version as tool

PACKAGE_XML = '<package><name>{name}</name><version> {number} </version></package>'


@pytest.fixture
def without_pip(monkeypatch):
    """As in a colcon workspace: pip knows other packages only."""

    def find(name):
        if name == 'vla_policy_ros':
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(tool, 'version', find)


def test_the_checkout_says_the_version_of_its_package_xml(without_pip):
    text = (Path(__file__).parents[2] / 'package.xml').read_text(encoding='utf-8')
    assert f'<version>{tool.package_version()}</version>' in text


def test_an_install_prefix_says_the_version_in_share(without_pip, monkeypatch, tmp_path):
    share = tmp_path / 'share' / 'vla_policy_ros'
    share.mkdir(parents=True)
    text = PACKAGE_XML.format(name='vla_policy_ros', number='4.5.6')
    (share / 'package.xml').write_text(text, encoding='utf-8')
    code = tmp_path / 'lib' / 'python3' / 'site-packages' / 'vla_policy_ros' / 'tools'
    monkeypatch.setattr(tool, '__file__', str(code / 'version.py'))
    assert tool.package_version() == '4.5.6'


def test_the_package_xml_of_another_package_is_not_ours(without_pip, monkeypatch, tmp_path):
    text = PACKAGE_XML.format(name='another', number='9.9.9')
    (tmp_path / 'package.xml').write_text(text, encoding='utf-8')
    monkeypatch.setattr(tool, '__file__', str(tmp_path / 'vla_policy_ros' / 'version.py'))
    assert tool.package_version() == 'unknown'


def test_what_pip_knows_wins(monkeypatch):
    monkeypatch.setattr(tool, 'version', {'vla_policy_ros': '7.8.9'}.get)
    assert tool.package_version() == '7.8.9'


def test_libraries_are_listed_with_the_machine(without_pip):
    versions = tool.list_versions('numpy', 'no-such-library')
    assert versions['numpy'] == version('numpy')
    assert versions['no-such-library'] == 'unknown'
    assert re.match(r'3\.\d+', versions['python'])
    assert versions['machine']
