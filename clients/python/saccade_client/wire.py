"""How all answers of the server are read: immutable, and open to fields of newer servers."""

from pydantic import ConfigDict

WIRE = ConfigDict(extra="allow", frozen=True, coerce_numbers_to_str=True, protected_namespaces=())
