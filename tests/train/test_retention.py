"""Which checkpoints stay, against the rules said one by one."""

import math
import random

import pytest

from seq2seq_jax.errors import UserError
from seq2seq_jax.train.checkpoints import Checkpoints
from seq2seq_jax.train.retention import Retention


def make_record(score=None, hours=None):
    meta = {} if hours is None else {"seconds": 3600 * hours}
    return {"meta": meta, "metrics": {} if score is None else {"bleu": score}}


def is_needed(step, records, retention):
    """The rules, for one step at a time."""
    newer = [other for other in records if other > step]
    if step in records and len(newer) < retention.last:
        return True
    if step not in records and len([other for other in records if other >= step]) < retention.last:
        return True  # it is not known to be older than enough verified ones

    def score(other):
        return records[other]["metrics"].get("bleu", math.nan)

    sign = 1 if retention.mode == "max" else -1
    if step in records and math.isfinite(score(step)):
        better = [o for o in records if sign * score(o) > sign * score(step) or (score(o) == score(step) and o > step)]
        if len(better) < retention.best:
            return True
    if retention.hours and step in records and "seconds" in records[step]["meta"]:
        number = records[step]["meta"]["seconds"] // (3600 * retention.hours)
        same = [
            other
            for other in records
            if records[other]["meta"].get("seconds", -1) // (3600 * retention.hours) == number and other < step
        ]
        return number >= 1 and not same
    return False


def test_what_can_go_is_what_no_rule_needs():
    for seed in range(200):
        check_case(random.Random(seed))


def check_case(draw):
    steps = sorted(draw.sample(range(100), draw.randrange(12)))
    hours = sorted(draw.choice((draw.uniform(0, 9), draw.randint(0, 9))) for _ in steps)
    scores = [draw.choice((None, float("nan"), 1.0, 2.0, 3.0)) for _ in steps]
    verified = {
        step: make_record(score, None if draw.random() < 0.1 else hour)
        for step, score, hour in zip(steps, scores, hours, strict=True)
        if draw.random() < 0.8
    }
    retention = Retention(
        draw.randint(1, 3), draw.randint(0, 2), draw.choice((0.0, 0.5, 2.0)), mode=draw.choice(("max", "min"))
    )
    old = retention.find_old(steps, verified)
    assert old == [step for step in steps if not is_needed(step, verified, retention)]
    assert len(verified) < retention.last or len(set(verified) - set(old)) >= retention.last


def test_one_for_every_hour_stays_though_the_run_goes_on(tmp_path):
    """Removing as the run goes leaves the steps that would be left if all were looked at once."""
    with Checkpoints(tmp_path, keep_last=2, keep_best=0, keep_hours=1.0, warn=pytest.fail) as checkpoints:
        for step in range(1, 11):
            checkpoints.save(step, {"a": 1.0 * step}, meta={"seconds": 1500.0 * step})  # 25 minutes each
        checkpoints.wait()
        assert checkpoints.steps() == [3, 5, 8, 9, 10]  # after 75, 125, 200 minutes; and the last two


def test_odd_seconds_keep_nothing():
    for seconds in ("1", None, math.nan, math.inf, [1]):
        records = {step: {"meta": {"seconds": seconds}, "metrics": {}} for step in range(5)}
        assert Retention(2, 1, 1.0).find_old(range(5), records) == [0, 1, 2]
    records = {step: {"meta": {"seconds": 1e300}, "metrics": {}} for step in range(5)}
    assert Retention(2, 1, 1e-300).find_old(range(5), records) == [1, 2]


def test_nothing_to_resume_from_is_refused():
    with pytest.raises(UserError, match="keep_last must be at least 1"):
        Retention(0)
