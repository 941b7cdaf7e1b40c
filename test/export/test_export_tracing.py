# SPDX-License-Identifier: Apache-2.0
import logging
import warnings
from types import ModuleType

import pytest

from vla_policy_ros.export.tracing import quiet_library, replaced


def test_what_a_library_says_of_itself_is_kept_back(caplog, capsys):
    loggers = [logging.getLogger(name) for name in ('', 'torch.onnx', 'a_library')]
    with quiet_library():
        print('making weights')
        warnings.warn('old', stacklevel=1)
        for logger in loggers:
            logger.warning('might need handling')
            logger.error('broken')
    assert [record.message for record in caplog.records] == ['broken'] * 3
    assert capsys.readouterr().out == ''
    for logger in loggers:
        logger.warning('later')
    assert [record.message for record in caplog.records[3:]] == ['later'] * 3


def test_a_library_is_as_before_after_a_fault():
    module = ModuleType('library')
    module.first, module.second = 1, 2

    def fail():
        with replaced(module, first=3, second=4):
            assert (module.first, module.second) == (3, 4)
            raise OSError

    with pytest.raises(OSError):
        fail()
    assert (module.first, module.second) == (1, 2)
