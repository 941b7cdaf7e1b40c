# SPDX-License-Identifier: Apache-2.0
"""What goes wrong on real robots: each fault is named and counted, gives no chunk, and leaves no trace afterwards."""

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from support.recordings import NUM_STEPS, STEP_NS, write_patient_deployment
from support.ros_graph import RosGraph
from support.ros_processes import RosProcesses

from vla_policy_ros.msg import ActionChunk, ObservationAck, PolicyStatus
from vla_policy_ros.ros.convert import to_ns
from vla_policy_ros.ros.qos import LATCHED, RELIABLE

pytestmark = pytest.mark.ros

JOINTS = 'joint_states[0]'


@dataclass
class Played:
    """What a policy said during one replay: acknowledgements in order, chunks, and statuses up to the end."""

    acks: list
    chunks: list
    statuses: list

    @property
    def answers(self):
        """Per reference sample: empty for a chunk, else who was at fault, and why."""
        return ['' if ack.accepted else f'{ack.stream}/{ack.cause}' for ack in self.acks]

    @property
    def causes(self):
        last = self.statuses[-1]
        return dict(zip(last.refusal_causes, last.refusal_counts, strict=True))

    def stream(self, name):
        return next(s for s in self.statuses[-1].streams if s.name == name)

    def check_consistent(self):
        """Chunks are those of the accepted samples, refusals are explained, and the status counts both."""
        accepted = [to_ns(ack.header.stamp) for ack in self.acks if ack.accepted]
        assert [to_ns(chunk.header.stamp) for chunk in self.chunks] == accepted
        assert all(ack.detail for ack in self.acks if not ack.accepted)
        last = self.statuses[-1]
        assert (last.chunks, last.refused) == (len(accepted), len(self.acks) - len(accepted))


@contextmanager
def policy_process(recording, folder, transport):
    """Run a policy node in a process, and a function that plays the recording to it with faults."""
    with RosProcesses(folder) as processes, RosGraph(processes.domain_id) as graph:
        node = processes.start_node(
            'policy_node',
            config=write_patient_deployment(folder / 'deployment.yaml', recording.bundle),
            image_transport=transport,
            status_period_s=0.05,
            qos_depth=1000,
        )
        assert graph.transition('policy_node', 'configure')

        def play(faults, *, num_answers=NUM_STEPS, rate=1.0):
            played = Played(
                graph.collect(ObservationAck, 'observation_ack', RELIABLE),
                graph.collect(ActionChunk, 'action_chunk', RELIABLE),
                graph.collect(PolicyStatus, 'policy_status', LATCHED),
            )
            assert graph.transition('policy_node', 'activate')
            replay = processes.start_node(
                'replay_node',
                dataset=recording.dataset,
                image_transport=transport,
                faults=faults,
                rate=rate,
                autostart=True,
                exit_at_end=True,
            )
            graph.spin_until(lambda: len(played.acks) == num_answers, f'{num_answers} answers')
            num_statuses = len(played.statuses)
            graph.spin_until(lambda: len(played.statuses) > num_statuses, 'a status of the end')
            assert replay.wait() == 0, replay.log
            assert graph.transition('policy_node', 'deactivate')
            graph.spin_until(lambda: played.statuses[-1].state == 'inactive', 'the last status')
            played.check_consistent()
            return played

        yield play
        assert node.end() == 0
        assert 'Traceback' not in node.log


@pytest.fixture(scope='module')
def play_raw(recording, tmp_path_factory):
    with policy_process(recording, tmp_path_factory.mktemp('raw'), 'raw') as play:
        yield play


@pytest.fixture(scope='module')
def bad_raw(play_raw):
    """One replay with a fault in every window of steps, and good ones in between."""
    return play_raw(
        'encoding:front:6-8;truncate:front:12-14;zero_stamp:front:18-20;'
        'encoding:wrist:26-28;truncate:wrist:32-34;delay:wrist:38-40:0.2;'
        'nan:joint_1:46-50;missing:joint_2:54-57'
    )


@pytest.fixture(scope='module')
def bad_compressed(recording, tmp_path_factory):
    with policy_process(recording, tmp_path_factory.mktemp('jpeg'), 'compressed') as play:
        return play('truncate:front:6-8;encoding:front:12-14;truncate:wrist:20-22')


@pytest.mark.parametrize(
    ('steps', 'answer'),
    [
        (range(6, 9), 'front/unknown_encoding'),
        (range(12, 15), 'front/short_data'),
        (range(18, 21), 'front/zero_stamp'),
    ],
)
def test_a_bad_reference_image_is_refused_by_name(bad_raw, steps, answer):
    found = [step for step, given in enumerate(bad_raw.answers) if given == answer]
    assert found == list(steps)
    assert bad_raw.causes[answer] == len(steps)


@pytest.mark.parametrize(
    ('steps', 'cause'),
    [
        (range(26, 29), 'unknown_encoding'),
        (range(32, 35), 'short_data'),
        (range(38, 41), 'out_of_order'),
    ],
)
def test_a_bad_image_of_another_camera_blocks_its_sets(bad_raw, steps, cause):
    """The image is counted under its own cause, the sets it is missing from under the camera."""
    assert bad_raw.causes[f'wrist/{cause}'] == len(steps)
    assert [bad_raw.answers[step] for step in steps] == ['wrist/out_of_tolerance'] * len(steps)


@pytest.mark.parametrize(
    ('steps', 'cause'), [(range(46, 51), 'nan_joint'), (range(54, 58), 'missing_joint')]
)
def test_bad_joints_are_counted_and_never_used(bad_raw, steps, cause):
    """Neighbours within the tolerance stand in at both ends of the window; in the middle nothing does."""
    assert bad_raw.causes[f'{JOINTS}/{cause}'] == len(steps)
    middle = list(steps)[1:-1]
    assert [bad_raw.answers[step] for step in middle] == [f'{JOINTS}/out_of_tolerance'] * len(
        middle
    )
    stamps = {to_ns(bad_raw.acks[step].header.stamp) for step in (steps[0], steps[-1])}
    ages = [
        dict(zip(chunk.stream_names, chunk.stream_ages_ns, strict=True))[JOINTS]
        for chunk in bad_raw.chunks
        if to_ns(chunk.header.stamp) in stamps
    ]
    assert [round(age / STEP_NS) for age in ages] == [1, -1]


def test_everything_else_gives_chunks(bad_raw):
    refused = [step for step, answer in enumerate(bad_raw.answers) if answer]
    windows = [(6, 9), (12, 15), (18, 21), (26, 29), (32, 35), (38, 41), (47, 50), (55, 57)]
    assert refused == [step for window in windows for step in range(*window)]
    assert bad_raw.stream('front').refused == 9
    assert bad_raw.stream('wrist').refused == 9
    assert bad_raw.stream(JOINTS).refused == 9


def test_bad_compressed_images_are_refused_by_name(bad_compressed):
    answers = Counter(bad_compressed.answers)
    assert bad_compressed.answers[6:9] == ['front/truncated_jpeg'] * 3
    assert bad_compressed.answers[12:15] == ['front/unknown_encoding'] * 3
    assert bad_compressed.causes['wrist/truncated_jpeg'] == 3
    assert bad_compressed.answers[20:23] == ['wrist/out_of_tolerance'] * 3
    assert answers[''] == NUM_STEPS - 9


def test_a_refused_message_keeps_its_stamp(bad_raw, bad_compressed):
    """All but a zero stamp: the sample can be told by it."""
    for played, unstamped in ((bad_raw, {18, 19, 20}), (bad_compressed, set())):
        stamps = {step: to_ns(ack.header.stamp) for step, ack in enumerate(played.acks)}
        for step, stamp_ns in stamps.items():
            assert stamp_ns == (0 if step in unstamped else stamps[0] + step * STEP_NS)


def test_a_camera_that_stops_is_waited_for_and_comes_back(play_raw):
    played = play_raw('drop:front:8-55', num_answers=12)
    assert played.answers == [''] * 12
    assert played.stream('front').missing == 48
    assert played.stream('wrist').missing == 0
    told = [(status.state, status.detail) for status in played.statuses]
    stop = told.index(('waiting', 'No samples from front.'))
    assert ('running', '') in told[:stop]
    assert ('running', '') in told[stop:]


def test_another_camera_that_stops_blocks_its_sets(play_raw):
    played = play_raw('drop:wrist:20-29')
    blocked = [step for step, answer in enumerate(played.answers) if answer]
    assert blocked == list(range(20, 30))
    assert {ack.stream for ack in played.acks if not ack.accepted} == {'wrist'}
    assert played.stream('wrist').missing == 10


def test_a_stamp_that_jumps_ahead_gives_no_chunk(play_raw):
    """The samples from the future wait for the others; the first one after them begins an epoch.

    What the others sent for the first sets of the epoch may have come before it began, and is gone then.
    """
    played = play_raw('jump:front:20-24:5', rate=0.5)
    assert played.answers[:20] == [''] * 20
    assert played.answers[20:25] == ['front/stale_epoch'] * 5
    first = played.answers.index('', 25)
    assert first < 35
    assert played.answers[first:] == [''] * (NUM_STEPS - first)
    assert [ack.epoch for ack in played.acks if ack.accepted][-1] == played.acks[0].epoch + 1


def test_stamps_that_jump_back_begin_an_epoch(play_raw):
    """From then on the stamps lag behind the clock, so that no sample is waited for: some sets are refused."""
    played = play_raw('jump:all:30-59:-5', rate=0.5)
    assert played.answers[:25] == [''] * 25
    assert set(played.answers[25:30]) <= {'', 'front/stale_epoch'}  # those that still waited
    first = played.chunks[0].epoch
    epochs = [(chunk.epoch - first, chunk.sequence) for chunk in played.chunks]
    num_before = sum(epoch == 0 for epoch, _ in epochs)
    num_after = len(epochs) - num_before
    assert epochs == [(0, i) for i in range(num_before)] + [(1, i) for i in range(num_after)]
    assert num_after > 0
    assert {answer.split('/')[0] for answer in played.answers} <= {'', 'front', 'wrist', JOINTS}
