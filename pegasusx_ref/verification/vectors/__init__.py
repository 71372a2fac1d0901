"""Conformance vectors: weights, inputs and every trace point of small models on disk, for any language. [spec 16]"""

from pegasusx_ref.verification.vectors.cases import CASES
from pegasusx_ref.verification.vectors.checking import check_vector
from pegasusx_ref.verification.vectors.making import Vector, make_vector
from pegasusx_ref.verification.vectors.reading import read_vector
from pegasusx_ref.verification.vectors.writing import write_vector, write_vectors

__all__ = ["CASES", "Vector", "check_vector", "make_vector", "read_vector", "write_vector", "write_vectors"]
