"""Steering vectors of other programs, read without running any of them.

    found = read_vectors(data, layers)     # bytes from anywhere; ImportRefused, and nothing else
    made = converted(found, model)         # an artifact, and what became of each layer

Layers are numbered as these programs do it: from 0, by the decoder layer whose output the vector is
added to. The output of layer N is residual N + 1, which is the number that artifacts have.
"""

from saccade_server.importing.convert import Converted, Target, converted
from saccade_server.importing.found import Found, ImportRefused
from saccade_server.importing.reading import check_size, read_vectors

__all__ = [
    "Converted",
    "Found",
    "ImportRefused",
    "Target",
    "check_size",
    "converted",
    "read_vectors",
]
