"""The cached lengths of padded texts, also where threads with different masks share a model."""

from itertools import count

import pytest
from interruptions import interrupted

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
    from pegasusx_torch.padding import SourceLengths

    lengths, x_BHTF = SourceLengths(), torch.zeros(1, 1, 9, 1)
    mask, other = (torch.arange(9)[None] < length for length in (4, 7))

    def interfere() -> None:
        assert lengths.get(other, x_BHTF) == [7]

    for line in count(1):
        lengths.get(mask if is_cached else other, x_BHTF)
        with interrupted([SourceLengths.get], line, interfere) as seen:
            found = lengths.get(mask, x_BHTF)
        assert found == [4], f"another mask's lengths after an interruption before line {line}"
        if seen.num_lines < line:
            break
    assert line > 3
