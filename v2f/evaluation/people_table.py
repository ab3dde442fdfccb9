"""The table with which a user tells ``v2f eval`` about people: a CSV with the column ``identity`` and one for each
attribute, such as sex, age, origin or skin. One row per person; an empty field is unknown."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

from v2f.data.manifest import Dataset
from v2f.errors import V2FError
from v2f.prepare.names import on_disk, person
from v2f.prepare.tables import read_rows
from v2f.storage import store

_IDENTITY = "identity"


@dataclass(frozen=True)
class PeopleTable:
    """What a user knows about people."""

    path: str
    sha256: str
    columns: Mapping[str, Mapping[str, str]]
    """Attribute -> person -> value, only where it is known. Persons are spelled as :func:`person` spells them."""

    def values_of(self, name: str, identities: list[str]) -> list[str]:
        """The value of attribute ``name`` of each person; empty if unknown."""
        return [self.columns[name].get(person(identity), "") for identity in identities]


def read_people(path: str, dataset: Dataset) -> PeopleTable:
    """Read the table at ``path``; V2FError unless it is one, says the same of a person in each of their rows, and names
    somebody in ``dataset``."""
    text = store.read_bytes(on_disk(path))
    rows = read_rows(text, path)
    _, header = next(rows, (0, []))
    names = [name for name in header if name]
    if _IDENTITY not in names or len(names) < 2 or len(set(names)) < len(names):
        wanted = f"its header has to be {_IDENTITY} and the names of attributes, each once"
        raise V2FError(f"{path}: {wanted}, such as identity,sex,age; it is {','.join(header) or 'empty'}")
    told: dict[str, tuple[int, dict[str, str]]] = {}
    for number, fields in rows:
        values = dict(zip(header, fields, strict=False))
        if any(fields[len(header) :]) or values.get("") or not values[_IDENTITY]:
            raise V2FError(f"{path}: line {number} does not fit the header, or names nobody ({', '.join(fields)})")
        known = {name: values.get(name, "") for name in names if name != _IDENTITY}
        first, before = told.setdefault(person(values[_IDENTITY]), (number, known))
        differing = next((name for name in known if known[name] != before[name]), None)
        if differing is not None:
            raise V2FError(
                f"{path}: {values[_IDENTITY]} has the {differing} {before[differing]!r} in line {first} and "
                f"{known[differing]!r} in line {number}; correct one of the two"
            )
    there = {person(identity) for identity in dataset.manifest.identities}
    if not there & told.keys():
        raise V2FError(
            f"{path}: none of its {len(told)} people is in {dataset.root}; its {_IDENTITY} has to be spelled as there, "
            f"for example {dataset.manifest.identities[0]!r}"
        )
    columns = {
        name: {who: known[name] for who, (_, known) in told.items() if known[name]}
        for name in names
        if name != _IDENTITY
    }
    return PeopleTable(path, sha256(text).hexdigest(), columns)
