"""The cached lengths of padded texts, also where threads with different masks share a model."""

import sys
from types import FrameType
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")


def test_lengths_of_each_kind_of_mask() -> None:
    from pegasusx_torch.padding import SourceLengths

    lengths, x_BHTF = SourceLengths(), torch.zeros(2, 1, 5, 1)
    right_padded = torch.arange(5) < torch.tensor([[5], [3]])
    assert lengths.get(None, x_BHTF) == [5, 5]
    assert lengths.get(right_padded, x_BHTF) == [5, 3]
    assert lengths.get(right_padded.flip(1), x_BHTF) is None
    assert lengths.get(right_padded, x_BHTF) == [5, 3]


@pytest.mark.parametrize("is_cached", [False, True])
def test_a_call_with_another_mask_at_any_line_does_not_change_the_result(is_cached: bool) -> None:
    """What a thread with another mask may do between two lines is done here before each line, so no run is lucky."""
    from pegasusx_torch.padding import SourceLengths

    lengths, x_BHTF = SourceLengths(), torch.zeros(1, 1, 9, 1)
    mask, other = (torch.arange(9)[None] < length for length in (4, 7))
    num_lines, is_interfering = 0, False

    def interfere(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal num_lines, is_interfering
        if frame.f_code is SourceLengths.get.__code__ and event == "line" and not is_interfering:
            num_lines, is_interfering = num_lines + 1, True
            if num_lines == line:
                assert lengths.get(other, x_BHTF) == [7]
            is_interfering = False
        return interfere

    before, line = sys.gettrace(), 0
    while num_lines >= line:
        lengths.get(mask if is_cached else other, x_BHTF)
        num_lines, line = 0, line + 1
        sys.settrace(interfere)
        try:
            found = lengths.get(mask, x_BHTF)
        finally:
            sys.settrace(before)
        assert found == [4], f"another mask's lengths after an interruption before line {line}"
    assert line > 3
