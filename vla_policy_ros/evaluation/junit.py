# SPDX-License-Identifier: Apache-2.0
"""A verdict as JUnit XML, which every CI system can show."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from vla_policy_ros.evaluation.verdict import Verdict

_NOT_XML = re.compile('[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]')


def render_junit(verdict: Verdict) -> str:
    """Return the XML: one test case per check, with a failure for each that did not pass."""
    failures = sum(not check.passed for check in verdict.checks)
    suite = ET.Element(
        'testsuite',
        name=_clean(verdict.run.name),
        tests=str(len(verdict.checks)),
        failures=str(failures),
        errors='0',
    )
    for check in verdict.checks:
        case = ET.SubElement(suite, 'testcase', classname='vla_policy_ros', name=check.name)
        if not check.passed:
            ET.SubElement(case, 'failure', message=_clean(check.detail))
    root = ET.Element('testsuites')
    root.append(suite)
    ET.indent(root)
    return f"<?xml version='1.0' encoding='utf-8'?>\n{ET.tostring(root, encoding='unicode')}\n"


def _clean(text: str) -> str:
    """Drop the control characters that XML cannot hold."""
    return _NOT_XML.sub('', text)
