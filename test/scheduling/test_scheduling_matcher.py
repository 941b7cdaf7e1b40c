# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.scheduling.matcher import MatchedSet, Refusal, StampMatcher, is_time_jump
from vla_policy_ros.scheduling.samples import StreamRule

MS = 1_000_000
FAR = 10**15


def rule(name, kind='nearest', *, tolerance=20, max_age=100, history=(0,), **other):
    history_ns = tuple(offset * MS for offset in history)
    return StreamRule(name, kind, tolerance * MS, max_age * MS, history_ns=history_ns, **other)


def matcher(*others, reference=None, patience=200):
    return StampMatcher(
        'front',
        [reference or rule('front'), *others],
        patience_ns=patience * MS,
        interpolate=lambda a, b, ratio: a + (b - a) * ratio,
    )


def offer(subject, stream, *stamps_ms):
    """Offer samples whose payload is their stamp in milliseconds."""
    for stamp in stamps_ms:
        assert subject.offer(stream, round(stamp * MS), stamp) is None


def only(outcomes):
    (outcome,) = outcomes
    return outcome


def test_matches_the_same_stamp_at_once():
    subject = matcher(rule('wrist'))
    offer(subject, 'front', 1000)
    assert subject.poll(1000 * MS) == []
    offer(subject, 'wrist', 1000)
    matched = only(subject.poll(1000 * MS))
    assert matched.stamp_ns == 1000 * MS
    assert matched.samples == {'front': (1000,), 'wrist': (1000,)}
    assert matched.stamps_ns == {'front': 1000 * MS, 'wrist': 1000 * MS}
    assert matched.filled == ()


def test_the_order_of_arrival_does_not_matter():
    late, early = matcher(rule('wrist')), matcher(rule('wrist'))
    offer(early, 'wrist', 990, 1005)
    offer(early, 'front', 1000)
    offer(late, 'front', 1000)
    offer(late, 'wrist', 990)
    assert late.poll(1000 * MS) == []
    offer(late, 'wrist', 1005)
    picks = [only(subject.poll(1010 * MS)).samples['wrist'] for subject in (early, late)]
    assert picks == [(1005,), (1005,)]


@pytest.mark.parametrize(('kind', 'largest_gap'), [('nearest', 16), ('as_of', 32)])
@given(phase=st.integers(0, 32), history=st.sampled_from([(0,), (-66, 0)]))
def test_a_known_period_gives_the_same_sets_without_the_wait(kind, largest_gap, phase, history):
    """A free-running camera's next image is up to a period away, and nearer only beyond half a period."""
    known = rule('wrist', kind, history=history, period_ns=33 * MS)
    quick, patient = matcher(known), matcher(rule('wrist', kind, history=history))
    for subject in (quick, patient):
        offer(subject, 'wrist', *range(800 - phase, 1001 - phase, 33))
        offer(subject, 'front', 998)
    at_once = quick.poll(998 * MS)
    for subject in (quick, patient):
        offer(subject, 'wrist', 1031 - phase)
    expected = only(patient.poll(1031 * MS)).samples['wrist']
    gap = 998 - (800 - phase + 33 * 6)
    assert bool(at_once) == (gap <= largest_gap)
    assert only(at_once or quick.poll(1031 * MS)).samples['wrist'] == expected


def test_a_known_period_does_not_make_up_what_never_came():
    subject = matcher(rule('wrist', period_ns=33 * MS))
    offer(subject, 'front', 1000)
    assert subject.poll(1000 * MS) == []


def test_equally_near_samples_give_the_older_one():
    subject = matcher(rule('wrist'))
    offer(subject, 'wrist', 990, 1010)
    offer(subject, 'front', 1000)
    assert only(subject.poll(0)).samples['wrist'] == (990,)


def test_patience_ends_the_wait():
    subject = matcher(rule('wrist'), patience=200)
    offer(subject, 'wrist', 995)
    offer(subject, 'front', 1000)
    assert subject.poll(1199 * MS) == []
    assert only(subject.poll(1200 * MS)).samples['wrist'] == (995,)


def test_the_patience_begins_with_the_arrival():
    """However late a camera is, its partner that comes a moment later is still waited for."""
    subject = matcher(rule('wrist'), patience=200)
    subject.offer('front', 1000 * MS, 'late', now_ns=1500 * MS)
    assert subject.poll(1500 * MS) == []
    subject.offer('wrist', 1000 * MS, 'later', now_ns=1503 * MS)
    assert only(subject.poll(1503 * MS)).samples == {'front': ('late',), 'wrist': ('later',)}


def test_a_stamp_from_the_future_is_not_waited_for_longer():
    subject = matcher(rule('wrist'), patience=200)
    subject.offer('front', 9000 * MS, 'early', now_ns=1000 * MS)
    subject.offer('wrist', 1000 * MS, 'right', now_ns=1000 * MS)
    assert subject.poll(1199 * MS) == []
    assert only(subject.poll(1200 * MS)).cause == 'too_old'


def test_a_stream_that_never_came_is_named():
    subject = matcher(rule('wrist'), rule('joints'))
    offer(subject, 'front', 1000)
    offer(subject, 'wrist', 1000)
    refusal = only(subject.poll(FAR))
    assert (refusal.stream, refusal.cause) == ('joints', 'no_sample')
    assert refusal.stamp_ns == 1000 * MS


@pytest.mark.parametrize(
    ('stamps', 'cause', 'words'),
    [
        ([979], 'out_of_tolerance', '21.0 ms older'),
        ([1021], 'out_of_tolerance', '21.0 ms newer'),
        ([899], 'too_old', '101.0 ms older'),
        ([899, 1021], 'out_of_tolerance', '21.0 ms newer'),
    ],
)
@pytest.mark.parametrize('kind', ['nearest', 'interpolate'])
def test_refuses_beyond_tolerance(kind, stamps, cause, words):
    subject = matcher(rule('wrist', kind))
    offer(subject, 'wrist', *stamps)
    offer(subject, 'front', 1000)
    refusal = only(subject.poll(FAR))
    assert (refusal.stream, refusal.cause) == ('wrist', cause)
    assert words in refusal.detail


@pytest.mark.parametrize('stamp', [980, 1020])
def test_the_tolerance_itself_is_allowed(stamp):
    subject = matcher(rule('wrist'))
    offer(subject, 'wrist', stamp)
    offer(subject, 'front', 1000)
    assert only(subject.poll(FAR)).samples['wrist'] == (stamp,)


def test_a_maximum_age_below_the_tolerance_counts_for_the_past_only():
    subject = matcher(rule('wrist', tolerance=50, max_age=10))
    offer(subject, 'wrist', 985, 1040)
    offer(subject, 'front', 1000)
    assert only(subject.poll(FAR)).samples['wrist'] == (1040,)


class TestAsOf:
    def test_takes_the_newest_that_is_not_later(self):
        subject = matcher(rule('joints', 'as_of'))
        offer(subject, 'joints', 950, 960)
        offer(subject, 'front', 1000)
        assert subject.poll(1000 * MS) == []
        offer(subject, 'joints', 1001)
        assert only(subject.poll(1000 * MS)).samples['joints'] == (960,)

    def test_an_exact_sample_decides(self):
        subject = matcher(rule('joints', 'as_of'))
        offer(subject, 'joints', 990, 1000)
        offer(subject, 'front', 1000)
        assert only(subject.poll(0)).samples['joints'] == (1000,)

    def test_does_not_look_ahead(self):
        subject = matcher(rule('joints', 'as_of'))
        offer(subject, 'joints', 1001)
        offer(subject, 'front', 1000)
        assert only(subject.poll(0)).cause == 'no_sample'

    def test_refuses_what_is_too_old(self):
        subject = matcher(rule('joints', 'as_of', max_age=30))
        offer(subject, 'joints', 969, 1001)
        offer(subject, 'front', 1000)
        assert only(subject.poll(0)).cause == 'too_old'


class TestInterpolation:
    def test_blends_both_neighbours(self):
        subject = matcher(rule('joints', 'interpolate'))
        offer(subject, 'joints', 990, 1000, 1015)
        offer(subject, 'front', 1003)
        matched = only(subject.poll(0))
        assert matched.samples['joints'] == (pytest.approx(1003),)
        assert matched.stamps_ns['joints'] == 1003 * MS

    def test_an_exact_sample_is_taken_as_it_is(self):
        subject = matcher(rule('joints', 'interpolate'))
        offer(subject, 'joints', 1000)
        offer(subject, 'front', 1000)
        assert only(subject.poll(0)).samples['joints'] == (1000,)

    @pytest.mark.parametrize('stamps', [[990], [990, 1060], [900, 990]])
    def test_a_missing_side_is_not_extrapolated(self, stamps):
        subject = matcher(rule('joints', 'interpolate'))
        offer(subject, 'joints', *stamps)
        offer(subject, 'front', 1000)
        matched = only(subject.poll(FAR))
        assert matched.samples['joints'] == (990,)
        assert matched.stamps_ns['joints'] == 990 * MS


class TestHistory:
    def test_one_sample_per_offset_oldest_first(self):
        subject = matcher(
            rule('wrist', history=(-100, 0)), reference=rule('front', history=(-50, 0))
        )
        for stamp in (900, 950, 1000):
            offer(subject, 'wrist', stamp + 1)
            offer(subject, 'front', stamp)
        *_, matched = subject.poll(FAR)
        assert matched.samples == {'front': (950, 1000), 'wrist': (901, 1001)}
        assert matched.stamps_ns['wrist'] == 1001 * MS

    def test_the_start_has_no_history(self):
        subject = matcher(reference=rule('front', history=(-100, 0)))
        offer(subject, 'front', 1000, 1100)
        refusal, matched = subject.poll(0)
        assert (refusal.stream, refusal.cause) == ('front', 'no_history')
        assert matched.samples['front'] == (1000, 1100)

    def test_a_hole_in_the_history_is_out_of_tolerance(self):
        subject = matcher(reference=rule('front', history=(-100, 0)))
        offer(subject, 'front', 950, 1100)
        *_, refusal = subject.poll(0)
        assert (refusal.stamp_ns, refusal.cause) == (1100 * MS, 'out_of_tolerance')


class TestFill:
    def test_last_takes_the_last_sample_and_says_so(self):
        subject = matcher(rule('wrist', fill='last'))
        offer(subject, 'wrist', 700, 1030)
        offer(subject, 'front', 1000)
        matched = only(subject.poll(0))
        assert matched.samples['wrist'] == (700,)
        assert matched.filled == ('wrist',)
        assert matched.stamps_ns['wrist'] == 700 * MS

    def test_last_keeps_its_sample_while_the_stream_is_silent(self):
        subject = matcher(rule('wrist', fill='last'))
        offer(subject, 'wrist', 700)
        offer(subject, 'front', 1000, 2000, 3000)
        assert [m.samples['wrist'] for m in subject.poll(FAR)] == [(700,)] * 3

    def test_last_begins_with_the_first_sample(self):
        subject = matcher(reference=rule('front', history=(-100, 0), fill='last'))
        offer(subject, 'front', 1000)
        assert only(subject.poll(0)).samples['front'] == (1000, 1000)

    def test_last_without_any_sample_refuses(self):
        subject = matcher(rule('wrist', fill='last'))
        offer(subject, 'front', 1000)
        assert only(subject.poll(FAR)).cause == 'no_sample'

    def test_black_is_none_without_a_stamp(self):
        subject = matcher(rule('wrist', fill='black'))
        offer(subject, 'front', 1000)
        matched = only(subject.poll(FAR))
        assert matched.samples['wrist'] == (None,)
        assert matched.filled == ('wrist',)
        assert 'wrist' not in matched.stamps_ns

    def test_nothing_is_filled_while_there_are_samples(self):
        subject = matcher(rule('wrist', fill='black'))
        offer(subject, 'front', 1000)
        offer(subject, 'wrist', 1001)
        matched = only(subject.poll(0))
        assert (matched.samples['wrist'], matched.filled) == ((1001,), ())


@pytest.mark.parametrize(
    ('stamp', 'cause'),
    [(0, 'zero_stamp'), (-1, 'zero_stamp'), (1000 * MS, 'duplicate_stamp'), (1, 'out_of_order')],
)
@pytest.mark.parametrize('stream', ['front', 'wrist'])
def test_bad_stamps_are_refused_on_offer(stream, stamp, cause):
    subject = matcher(rule('wrist'))
    offer(subject, stream, 1000)
    refusal = subject.offer(stream, stamp, 'bad')
    assert (refusal.stream, refusal.stamp_ns, refusal.cause) == (stream, stamp, cause)
    offer(subject, stream, 1001)
    outcomes = subject.poll(FAR)
    assert [outcome.stamp_ns for outcome in outcomes] == (
        [1000 * MS, 1001 * MS] if stream == 'front' else []
    )


def test_a_refused_reference_sample_keeps_its_turn():
    subject = matcher(rule('wrist'))
    offer(subject, 'front', 1000)
    subject.refuse(1033 * MS, 'truncated_jpeg', 'It ends early.')
    offer(subject, 'front', 1030)
    assert subject.poll(1000 * MS) == []
    offer(subject, 'wrist', 1000, 1030)
    first, second, third = subject.poll(1000 * MS)
    assert (first.stamp_ns, third.stamp_ns) == (1000 * MS, 1030 * MS)
    assert second == Refusal(1033 * MS, 'front', 'truncated_jpeg', 'It ends early.')


def test_too_many_waiting_reference_samples_end_the_oldest():
    subject = matcher(rule('wrist'), reference=rule('front', depth=2))
    offer(subject, 'front', 1000, 1001, 1002, 1003)
    first, second = subject.poll(0)
    assert [(r.stamp_ns, r.stream, r.cause) for r in (first, second)] == [
        (1000 * MS, 'wrist', 'superseded'),
        (1001 * MS, 'wrist', 'superseded'),
    ]
    offer(subject, 'wrist', 1002, 1003)
    assert [m.samples['front'] for m in subject.poll(0)] == [(1002,), (1003,)]


@pytest.mark.parametrize('fill', ['last', 'black'])
def test_what_may_be_filled_is_not_superseded(fill):
    """A dead optional camera costs at most the patience, and never a chunk, at any rate of the reference."""
    subject = matcher(rule('wrist', fill=fill), reference=rule('front', depth=3))
    offer(subject, 'wrist', 500)
    outcomes = []
    for stamp in range(1000, 1200, 10):
        offer(subject, 'front', stamp)
        outcomes += subject.poll(stamp * MS)
    outcomes += subject.poll(FAR)
    assert [outcome.samples['front'] for outcome in outcomes] == [
        (stamp,) for stamp in range(1000, 1200, 10)
    ]
    assert all(outcome.filled == ('wrist',) for outcome in outcomes)


def test_the_history_of_what_waits_is_kept():
    subject = matcher(rule('wrist'), reference=rule('front', history=(-20, 0), depth=4))
    for stamp in (1000, 1010, 1020, 1030):
        offer(subject, 'front', stamp)
        if stamp < 1020:
            offer(subject, 'wrist', stamp)
        subject.poll(stamp * MS)
    offer(subject, 'front', 1040)
    (ended,) = subject.poll(1040 * MS)
    assert (ended.samples['front'], ended.samples['wrist']) == ((1000, 1020), (1010,))


def test_samples_that_end_too_early_for_the_history_are_told_from_a_start():
    subject = matcher(reference=rule('front', history=(-100, 0), depth=3))
    causes = []
    for stamp in range(1000, 1200, 30):
        offer(subject, 'front', stamp)
        causes += [(outcome.cause, outcome.detail) for outcome in subject.poll(stamp * MS)]
    assert [cause for cause, _ in causes] == ['no_history'] * 2 + ['short_buffer'] * 5
    assert 'policy.slots' in causes[-1][1]


@pytest.mark.parametrize('wild', [9000, 1])
def test_a_stream_whose_clock_jumped_recovers(wild):
    """Ahead and back again, or back for good: one sample is refused, the stream goes on."""
    subject = matcher(rule('wrist'))
    offer(subject, 'wrist', 2100)
    refusals = [subject.offer('wrist', stamp * MS, stamp) for stamp in (wild, 2110, 2120)]
    assert [r and r.cause for r in refusals].count('out_of_order') == 1
    offer(subject, 'front', 2120)
    assert only(subject.poll(FAR)).samples['wrist'] == (2120,)


def test_buffers_evict_the_oldest():
    subject = matcher(rule('wrist', depth=2, tolerance=5))
    offer(subject, 'wrist', 1000, 1100, 1200)
    offer(subject, 'front', 1000)
    assert only(subject.poll(0)).cause == 'out_of_tolerance'


def test_samples_that_cannot_be_used_any_more_are_let_go():
    subject = matcher(rule('wrist', history=(-50, 0)))
    offer(subject, 'wrist', *range(900, 1001, 10))
    offer(subject, 'front', 1000)
    subject.poll(0)
    assert len(subject._buffers['wrist']) == 6  # 950 to 1000
    assert len(subject._buffers['front']) == 1


def test_reset_ends_what_waits_and_forgets_stamps():
    subject = matcher(rule('wrist'))
    offer(subject, 'wrist', 500)
    offer(subject, 'front', 1000)
    subject.refuse(1001 * MS, 'truncated_jpeg', '')
    causes = [r.cause for r in subject.reset('stale_epoch', 'A reset ended its epoch.')]
    assert causes == ['stale_epoch', 'truncated_jpeg']
    offer(subject, 'front', 1)
    assert only(subject.poll(FAR)).cause == 'no_sample'


def test_reset_ends_what_was_matched_and_not_fetched():
    subject = matcher(reference=rule('front', depth=1))
    offer(subject, 'front', 1000, 1001)
    told = [(r.stamp_ns // MS, r.cause) for r in subject.reset('stale_epoch', '')]
    assert told == [(1000, 'stale_epoch'), (1001, 'stale_epoch')]


def test_the_reference_needs_a_rule():
    with pytest.raises(ConfigurationError) as caught:
        StampMatcher('top', [rule('front')], patience_ns=0, interpolate=lambda a, b, r: a)
    assert caught.value.code == 'unknown_reference'


@pytest.mark.parametrize(
    ('newest', 'stamp', 'expected'),
    [
        (None, 5, False),
        (1000, 899, True),
        (1000, 900, False),
        (1000, 2000, False),
        (1000, 0, False),
    ],
)
def test_time_jump(newest, stamp, expected):
    assert is_time_jump(newest, stamp, 100) is expected


stamps = st.lists(st.integers(1, 400), min_size=1, max_size=30)
events = st.lists(
    st.tuples(st.sampled_from(['front', 'wrist', 'joints', 'bad', 'poll']), st.integers(-1, 400)),
    max_size=80,
)


@given(events, st.integers(1, 8), st.sampled_from(['refuse', 'last', 'black']))
def test_every_reference_sample_has_exactly_one_outcome(events, depth, fill):
    subject = matcher(
        rule('wrist', fill=fill),
        rule('joints', 'interpolate'),
        reference=rule('front', history=(-30, 0), depth=depth),
        patience=50,
    )
    offered, outcomes = [], []
    for kind, stamp in events:
        if kind == 'poll':
            outcomes += subject.poll(stamp * MS)
        elif kind == 'bad':
            offered.append(stamp * MS)
            subject.refuse(stamp * MS, 'bad_image', '')
        else:
            refusal = subject.offer(kind, stamp * MS, stamp)
            if kind == 'front':
                offered.append(stamp * MS)
                outcomes += [refusal] if refusal else []
    outcomes += subject.poll(FAR)
    assert sorted(outcome.stamp_ns for outcome in outcomes) == sorted(offered)
    assert subject.poll(FAR) == []
    matched = [o.stamp_ns for o in outcomes if isinstance(o, MatchedSet)]
    assert matched == sorted(set(matched))


@given(stamps, stamps, st.sampled_from(['nearest', 'as_of', 'interpolate']), st.integers(0, 60))
def test_nothing_beyond_the_limits_is_matched(front, wrist, kind, limit):
    subject = matcher(rule('wrist', kind, tolerance=limit, max_age=limit))
    offer(subject, 'wrist', *sorted(set(wrist)))
    offer(subject, 'front', *sorted(set(front)))
    for outcome in subject.poll(FAR):
        nearest = min(abs(stamp * MS - outcome.stamp_ns) for stamp in wrist)
        if isinstance(outcome, MatchedSet):
            assert abs(outcome.stamps_ns['wrist'] - outcome.stamp_ns) <= limit * MS
        elif kind != 'as_of':
            assert nearest > limit * MS


@given(stamps, stamps, st.data())
def test_nearest_agrees_with_brute_force_in_any_order_of_arrival(front, wrist, data):
    subject = matcher(rule('wrist'), patience=10**6)
    front, wrist = sorted(set(front)), sorted(set(wrist))
    arrivals = data.draw(st.permutations(['front'] * len(front) + ['wrist'] * len(wrist)))
    queues = {'front': iter(front), 'wrist': iter(wrist)}
    outcomes = []
    for stream in arrivals:
        offer(subject, stream, next(queues[stream]))
        outcomes += subject.poll(0)
    outcomes += subject.poll(FAR)
    assert [outcome.stamp_ns // MS for outcome in outcomes] == front
    for stamp, outcome in zip(front, outcomes, strict=True):
        best = min(wrist, key=lambda other: (abs(other - stamp), other))
        if abs(best - stamp) <= 20:
            assert outcome.samples == {'front': (stamp,), 'wrist': (best,)}
        else:
            assert outcome.cause in {'out_of_tolerance', 'too_old'}
