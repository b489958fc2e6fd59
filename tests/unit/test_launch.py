"""What a worker takes for Ctrl-C."""

import contextlib

from lampseg.parallel.launch import interrupted


def caught(first: BaseException, then: BaseException | None) -> BaseException:
    try:
        with contextlib.ExitStack() as stack:
            if then is not None:
                stack.callback(fail, then)
            raise first
    except BaseException as error:  # noqa: BLE001 (it is what is asked for)
        return error


def fail(error: BaseException) -> None:
    raise error


def test_an_interrupt_is_one_too_where_leaving_a_mode_fails_of_it() -> None:
    assert interrupted(caught(KeyboardInterrupt(), None))
    assert interrupted(caught(KeyboardInterrupt(), RuntimeError("trying to pop from empty mode stack")))
    assert not interrupted(caught(ValueError(), RuntimeError()))
