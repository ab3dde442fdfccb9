"""Who goes where: splits by person, from a hash of the identity, so that neither the order of the files nor other
people change where a person goes. ``seen`` are clips of trained people that are held out."""

from collections.abc import Collection, Mapping

from pydantic import Field, model_validator

from v2f.config import Config
from v2f.prepare import share


class Shares(Config):
    """Shares of the people, where nothing else says who goes where."""

    train: float = Field(0.9, gt=0.0, le=1.0)
    valid: float = Field(0.05, ge=0.0, lt=1.0)
    test: float = Field(0.05, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _adds_up(self) -> "Shares":
        if abs(self.train + self.valid + self.test - 1.0) > 1e-6:
            raise ValueError("the shares of train, valid and test add up to 1")
        return self

    def without_test(self) -> "Shares":
        """For people of whom a corpus says already that they are none to be tested on."""
        train = self.train / (self.train + self.valid)
        return Shares(train=train, valid=1.0 - train, test=0.0)


def deal(
    clips: Mapping[str, Collection[str]], people: Shares, seen: float, seed: int, tested: Collection[str] | None = None
) -> dict[tuple[str, str], str]:
    """The split of each (identity, clip); ``clips``: those of each identity.

    ``tested``: the people whom the corpus itself holds out; the others are dealt to train and valid. None: all are
    dealt by their shares. Of a trained person the share ``seen`` of the clips is held out.
    """
    shares = people if tested is None else people.without_test()
    split_of: dict[tuple[str, str], str] = {}
    for identity, names in clips.items():
        place = share(str(seed), "person", identity)
        split = "train" if place < shares.train else "valid" if place < shares.train + shares.valid else "test"
        if tested is not None:
            split = "test" if identity in tested else "train" if split == "train" else "valid"
        split_of.update(((identity, name), split) for name in names)
        if split == "train":
            ranked = sorted(names, key=lambda name: share(str(seed), "clip", identity, name))
            split_of.update(((identity, name), "seen") for name in ranked[: int(len(ranked) * seen)])
    return split_of
