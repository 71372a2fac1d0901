"""Conformance vectors: weights, inputs and every trace point of small models on disk, for any language. [spec 16]"""

from pegasusx_ref.verification.vectors.build import Vector, make_vector
from pegasusx_ref.verification.vectors.conformance import check_vector
from pegasusx_ref.verification.vectors.vector_cases import CASES
from pegasusx_ref.verification.vectors.vector_files import VECTORS, write_vector, write_vectors
from pegasusx_ref.verification.vectors.vector_reader import read_vector

__all__ = ["CASES", "VECTORS", "Vector", "check_vector", "make_vector", "read_vector", "write_vector", "write_vectors"]
