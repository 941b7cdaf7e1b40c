# SPDX-License-Identifier: Apache-2.0
"""What every engine must do, shown on `support.bundles.save_doubler`: x (n, 3) float32, y = x + x."""

import numpy as np
import pytest

from vla_policy_ros.core.errors import EngineError, SpecMismatchError
from vla_policy_ros.core.specs import TensorSpec


class EngineContract:
    """Subclasses give a fixture `engine` with the doubler loaded."""

    @pytest.fixture
    def buffers(self):
        return {
            'x': np.arange(6, dtype=np.float32).reshape(2, 3),
            'y': np.full((2, 3), -1, np.float32),
        }

    def test_specs_name_the_tensors_and_leave_free_sizes_open(self, engine):
        assert engine.inputs == (TensorSpec('x', (None, 3), 'float32'),)
        assert engine.outputs == (TensorSpec('y', (None, 3), 'float32'),)

    def test_workspace_is_a_number_of_bytes(self, engine, buffers):
        assert isinstance(engine.workspace_bytes, int)
        assert engine.workspace_bytes >= 0
        engine.bind(buffers, workspace=None).close()

    def test_output_lands_in_the_callers_buffer(self, engine, buffers):
        engine.bind(buffers).enqueue()
        np.testing.assert_array_equal(buffers['y'], buffers['x'] * 2)

    def test_writing_the_input_in_place_changes_the_next_output(self, engine, buffers):
        execution = engine.bind(buffers)
        execution.enqueue()
        buffers['x'] += 10
        execution.enqueue()
        np.testing.assert_array_equal(buffers['y'], (np.arange(6).reshape(2, 3) + 10) * 2)

    def test_executions_do_not_share_buffers(self, engine, buffers):
        other = {'x': np.ones((1, 3), np.float32), 'y': np.zeros((1, 3), np.float32)}
        first, second = engine.bind(buffers), engine.bind(other)
        second.enqueue()
        assert (buffers['y'] == -1).all()
        first.enqueue()
        np.testing.assert_array_equal(other['y'], np.full((1, 3), 2))
        np.testing.assert_array_equal(buffers['y'], buffers['x'] * 2)

    def test_binding_lives_when_the_caller_lets_the_arrays_go(self, engine):
        output = np.zeros((1, 3), np.float32)
        execution = engine.bind({'x': np.full((1, 3), 4, np.float32), 'y': output})
        filler = [np.full((1, 3), 9, np.float32) for _ in range(100)]
        execution.enqueue()
        assert filler
        np.testing.assert_array_equal(output, np.full((1, 3), 8))

    @pytest.mark.parametrize(
        'change',
        [
            {'y': None},
            {'z': np.zeros(3, np.float32)},
            {'x': np.zeros((2, 4), np.float32)},
            {'x': np.zeros((2, 3), np.float64)},
            {'x': np.zeros(3, np.float32)},
        ],
        ids=['missing', 'unknown', 'size', 'dtype', 'rank'],
    )
    def test_wrong_buffers_are_refused(self, engine, buffers, change):
        tensors = {k: v for k, v in {**buffers, **change}.items() if v is not None}
        with pytest.raises(SpecMismatchError):
            engine.bind(tensors)

    def test_buffer_with_gaps_is_refused(self, engine, buffers):
        gaps = np.zeros((2, 6), np.float32)[:, ::2]
        with pytest.raises(SpecMismatchError) as caught:
            engine.bind({**buffers, 'x': gaps})
        assert caught.value.code == 'not_contiguous'

    def test_close_twice_then_calls_are_refused(self, engine, buffers):
        execution = engine.bind(buffers)
        for _ in range(2):
            execution.close()
        with pytest.raises(EngineError) as caught:
            execution.enqueue()
        assert caught.value.code == 'closed'
        for _ in range(2):
            engine.close()
        with pytest.raises(EngineError) as caught:
            engine.bind(buffers)
        assert caught.value.code == 'closed'
