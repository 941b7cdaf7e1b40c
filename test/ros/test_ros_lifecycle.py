# SPDX-License-Identifier: Apache-2.0
import pytest
from std_msgs.msg import String

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.ros.lifecycle import ERROR, FAILURE, SUCCESS, ManagedNode

pytestmark = pytest.mark.ros

FAULT = ConfigurationError('arm.yaml', got='2', expected='1', next_step='Mend it.')
BUG = RuntimeError('a bug')


class Arm(ManagedNode):
    """Notes its transitions; fails where it is told to."""

    def __init__(self, **kwargs):
        super().__init__('arm', **kwargs)
        self.calls = []
        self.failures = {}
        self.chunks = self.create_lifecycle_publisher(String, 'chunk', 10)

    def _note(self, name):
        self.calls.append(name)
        if name in self.failures:
            raise self.failures[name]

    def configure(self):
        self._note('configure')

    def activate(self):
        self._note('activate')

    def deactivate(self):
        self._note('deactivate')

    def release(self):
        self._note('release')


@pytest.fixture
def arm(graph):
    node = Arm(context=graph.context)
    graph.executor.add_node(node)
    yield node
    node.destroy_node()


def label(node):
    return node._state_machine.current_state[1]


def test_a_whole_life(arm):
    for transition, state in [
        ('configure', 'inactive'),
        ('activate', 'active'),
        ('deactivate', 'inactive'),
        ('cleanup', 'unconfigured'),
        ('shutdown', 'finalized'),
    ]:
        assert getattr(arm, f'trigger_{transition}')() == SUCCESS
        assert label(arm) == state
    assert arm.calls == ['configure', 'activate', 'deactivate', 'release', 'release']
    assert arm.exit_status == 0


@pytest.mark.parametrize(
    ('failing', 'error', 'result', 'state', 'calls'),
    [
        ('configure', FAULT, FAILURE, 'unconfigured', ['configure', 'release']),
        ('configure', BUG, ERROR, 'unconfigured', ['configure', 'release', 'release']),
        ('activate', FAULT, FAILURE, 'inactive', ['configure', 'activate', 'deactivate']),
        (
            'activate',
            BUG,
            ERROR,
            'unconfigured',
            ['configure', 'activate', 'deactivate', 'release'],
        ),
    ],
)
def test_a_failing_transition_is_said_and_leaves_nothing(
    arm, capfd, failing, error, result, state, calls
):
    arm.failures[failing] = error
    results = [arm.trigger_configure()]
    if failing == 'activate':
        results.append(arm.trigger_activate())
    assert results[-1] == result
    assert label(arm) == state
    assert arm.calls == calls
    log = capfd.readouterr().err
    assert f'cannot {failing}:' in log
    assert str(error) in log
    assert ('Traceback' in log) == (error is BUG)


def test_publishers_are_silent_unless_active(graph, arm):
    received = graph.collect(String, 'chunk')
    graph.spin_until(lambda: graph.node.count_publishers('/chunk'), 'the publisher')
    graph.spin_until(lambda: arm.count_subscribers('/chunk'), 'the subscriber')
    arm.chunks.publish(String(data='unconfigured'))
    arm.trigger_configure()
    arm.chunks.publish(String(data='inactive'))
    arm.trigger_activate()
    arm.chunks.publish(String(data='active'))
    arm.trigger_deactivate()
    arm.chunks.publish(String(data='inactive again'))
    arm.trigger_activate()
    arm.chunks.publish(String(data='sentinel'))
    graph.spin_until(lambda: any(m.data == 'sentinel' for m in received), 'the sentinel')
    assert [message.data for message in received] == ['active', 'sentinel']


def test_transitions_are_services(graph, arm):
    assert graph.transition('arm', 'configure')
    assert graph.state('arm') == 'inactive'
    arm.failures['activate'] = FAULT
    assert not graph.transition('arm', 'activate')
    assert graph.state('arm') == 'inactive'


def test_autostart_configures_and_activates(graph, arm):
    arm.autostart()
    graph.spin_until(lambda: label(arm) == 'active', 'the active state')
    assert arm.exit_status is None


@pytest.mark.parametrize('failing', ['configure', 'activate'])
def test_a_failing_autostart_ends_the_process_with_1(graph, arm, failing):
    arm.failures[failing] = FAULT
    arm.autostart()
    graph.spin_until(lambda: arm.exit_status is not None, 'an exit status')
    assert arm.exit_status == 1


def test_close_releases_in_any_state(arm, capfd):
    arm.failures['release'] = FAULT
    arm.close()
    assert arm.calls == ['release']
    assert 'cannot stop: arm.yaml' in capfd.readouterr().err
