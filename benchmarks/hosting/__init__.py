"""What a CPU does around the model: the parts of host.py.

A part is a module with ``measure()``, which returns plain data, and ``targets(found)``; ``found``
is the data of this tree and, with another tree to compare with, of that one too.
"""
