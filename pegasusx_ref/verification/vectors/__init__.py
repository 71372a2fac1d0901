"""Conformance vectors: weights, inputs and every trace point of small models on disk, for any language. [spec 16]"""

from pegasusx_ref.verification.vectors.build import Vector, make_vector
from pegasusx_ref.verification.vectors.conformance import check_vector
from pegasusx_ref.verification.vectors.vector_cases import CASES
from pegasusx_ref.verification.vectors.vector_files import read_vector, write_vector, write_vectors

__all__ = ["CASES", "Vector", "check_vector", "make_vector", "read_vector", "write_vector", "write_vectors"]
