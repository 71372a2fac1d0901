"""What backends that capture steps as graphs have in common."""

from collections.abc import Sequence

from pegasusx_ref.backend.protocol import Array


def set_inputs(inputs: Sequence[Array], arguments: Sequence[Array]) -> None:
    """Copy the arguments of a call to the inputs that a graph was captured with.

    Args:
        inputs: arrays that the graph reads.
        arguments: arrays of the same shapes.

    Raises:
        ValueError: a shape differs: copying would broadcast it.
    """
    for graph_input, argument in zip(inputs, arguments, strict=True):
        if graph_input.shape != argument.shape:
            raise ValueError(
                f"called with shape {tuple(argument.shape)}: the graph was captured with {tuple(graph_input.shape)}; "
                "compile another step for it"
            )
        graph_input[...] = argument
