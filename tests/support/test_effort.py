"""What is counted is the call's own work."""

from tests.support.effort import steps_of


class Ring:
    """Garbage that only the collector finds, and whose end takes steps."""

    def __init__(self) -> None:
        self.me = self

    def __del__(self) -> None:
        for _ in range(30):
            pass


def test_the_end_of_what_others_left_is_not_counted():
    def work() -> None:
        _ = [[] for _ in range(3_000)]  # so many new containers start the collector

    Ring()
    assert steps_of(work) == steps_of(work)
