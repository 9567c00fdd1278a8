import httpx2
import pytest

from saccade_client.retry import RetryPolicy, retry_after

DATE = "Wed, 21 Oct 2026 07:28:00 GMT"
DATE_IN_UNIX_SECONDS = 1792567680.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("999999", 999999.0),
        (DATE, 10.0),
        ("Wed, 21 Oct 2026 07:28:00 -0000", 10.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("", None),
        ("-3", None),
        ("soon", None),
        ("1.2.3", None),
        ("²", None),
        ("Wed, 99 Oct 2026 07:28:00 GMT", None),
    ],
)
def test_retry_after_reads_seconds_and_dates(value, seconds):
    assert retry_after(value, now=DATE_IN_UNIX_SECONDS - 10.0) == seconds


def test_delays_double_up_to_a_limit_and_are_shortened_at_random():
    plain = RetryPolicy(max_retries=9, jitter=lambda: 0.0)
    assert [plain.after_reply(n, 503, {}) for n in range(6)] == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]
    assert RetryPolicy(jitter=lambda: 1.0).after_reply(0, 503, {}) == 0.375


@pytest.mark.parametrize(("asked", "waited"), [("3", 3.0), ("0", 0.0), ("1000", 120.0)])
def test_the_server_decides_how_long_within_reason(asked, waited):
    assert RetryPolicy().after_reply(0, 429, {"retry-after": asked}) == waited


def test_a_date_is_taken_by_the_clock_given():
    policy = RetryPolicy(now=lambda: DATE_IN_UNIX_SECONDS - 4.0)
    assert policy.after_reply(0, 503, {"retry-after": DATE}) == 4.0


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_retried_statuses(status):
    assert RetryPolicy().after_reply(1, status, {}) is not None
    assert RetryPolicy().after_reply(2, status, {}) is None
    assert RetryPolicy().after_reply(0, status, {"x-should-retry": "False"}) is None
    assert RetryPolicy(max_retries=0).after_reply(0, status, {}) is None


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 409, 413, 422, 501])
def test_other_statuses_are_final(status):
    assert RetryPolicy().after_reply(0, status, {"x-should-retry": "true"}) is None


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (httpx2.ConnectError("refused"), True),
        (httpx2.ConnectTimeout("late"), True),
        (httpx2.PoolTimeout("full"), True),
        (httpx2.ReadError("reset"), True),
        (httpx2.RemoteProtocolError("hung up"), True),
        (httpx2.ReadTimeout("still at work"), False),
        (httpx2.LocalProtocolError("ours"), False),
        (httpx2.UnsupportedProtocol("gopher"), False),
    ],
)
def test_retried_errors(error, again):
    assert (RetryPolicy().after_error(0, error) is not None) is again
