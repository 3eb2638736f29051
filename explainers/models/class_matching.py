"""Finds a model's classes by the names that a dataset, or a user, gives them."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from explainers.models.class_names import ClassName

_SYNSET = re.compile(r"(n\d{8})(?:$|[\s_.,-]+)(.*)", re.IGNORECASE | re.DOTALL)
_NAMED = 3  # classes that a reason names


@dataclass
class Matching:
    """Which of the model's classes some names stand for.

    Attributes
    ----------
    indices
        The model's class by the position of the name.
    reasons
        Why a name stands for no class, by the position of the name: every position is in one of the two.
    how
        What the names were compared with: "synset", "name", "synset and name" or "number"; empty if no name
        stands for a class.
    """

    indices: dict[int, int] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    how: str = ""


def match(names: Sequence[str], classes: Sequence[ClassName] | None, count: int) -> Matching:
    """Find the model's classes that ``names`` stand for.

    - A name that is a synset, or begins with one ("n01440764", "n01440764_tench"), stands for the class with
      this synset. If the model's synsets are not known, what follows the synset counts as the name.
    - Any other name stands for the class that has it among its names. Case does not matter, and blanks,
      underscores and hyphens are the same. A name may be several names with commas between them ("tench,
      Tinca tinca"): those of them that the model knows have to be of one class.
    - A name that several classes have (ImageNet has two cranes) stands for none of them.
    - If every name is a whole number, and none of them is the name of a class, they are the numbers of the
      classes. A number with something behind it ("0001_cat") is an ordinary name.

    Parameters
    ----------
    names
        Names of classes.
    classes
        The model's classes; None if their names are not known, so that only numbers can be found.
    count
        The number of the model's classes.
    """
    index = _Index(classes or ())
    found = [index.find(name) for name in names]
    if names and not any(hits for hits, _ in found) and all(_is_number(name) for name in names):
        return _by_number(names, count)
    matching, hows = Matching(), set()
    for position, (name, (hits, how)) in enumerate(zip(names, found, strict=True)):
        if len(hits) == 1:
            matching.indices[position] = next(iter(hits))
            hows.add(how)
        else:
            matching.reasons[position] = index.reason(name, hits)
    matching.how = " and ".join(sorted(hows, reverse=True))
    return matching


def close_names(name: str, classes: Iterable[ClassName]) -> list[str]:
    """Up to three names of classes that are spelled like ``name``."""
    known = {normal(each): each for one in classes for each in (one.name, *one.synonyms)}
    return [known[each] for each in difflib.get_close_matches(normal(name), known, n=_NAMED, cutoff=0.6)]


def normal(name: str) -> str:
    """The form of a name in which names are compared."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    return " ".join(re.split(r"[\s_-]+", folded)).strip()


class _Index:
    """The classes of a model by synset and by name."""

    def __init__(self, classes: Sequence[ClassName]) -> None:
        self._classes = classes
        self._synsets: defaultdict[str, set[int]] = defaultdict(set)
        self._names: defaultdict[str, set[int]] = defaultdict(set)
        for number, one in enumerate(classes):
            if one.synset is not None:
                self._synsets[one.synset].add(number)
            for name in (one.name, *one.synonyms):
                self._names[normal(name)].add(number)

    def find(self, name: str) -> tuple[set[int], str]:
        """The classes that a name may stand for, and whether it was a "synset" or a "name"."""
        synset = _SYNSET.fullmatch(name.strip())
        if synset is None:
            return self._by_name(name), "name"
        if self._synsets:
            return self._synsets.get(synset[1].lower(), set()), "synset"
        return self._by_name(synset[2] or name), "name"

    def _by_name(self, name: str) -> set[int]:
        whole = self._names.get(normal(name))
        if whole:
            return whole
        parts = [self._names.get(normal(part)) for part in name.split(",")]
        known = [hits for hits in parts if hits]
        # Names of several classes, as in "maillot, tank suit", are told apart by the other names.
        return (set.intersection(*known) or set.union(*known)) if known else set()

    def reason(self, name: str, hits: set[int]) -> str:
        """Why a name that may stand for ``hits``, none or several, stands for no class."""
        if not hits:
            return f"{name!r} is none of the model's classes"
        told = [self._told(number) for number in sorted(hits)[:_NAMED]]
        more = f" and {len(hits) - _NAMED} more" if len(hits) > _NAMED else ""
        return f"{name!r} may be several of the model's classes: {', '.join(told)}{more}"

    def _told(self, number: int) -> str:
        one = self._classes[number]
        return f"{number} ({one.synset or one.name})"


def _is_number(name: str) -> bool:
    """Whether a name is a whole number of at most nine digits; zeros at its beginning do not matter."""
    return re.fullmatch(r"0*[0-9]{1,9}", name.strip()) is not None


def _by_number(names: Sequence[str], count: int) -> Matching:
    matching = Matching(how="number")
    first: dict[int, str] = {}
    for position, name in enumerate(names):
        number = int(name)
        if number >= count:
            matching.reasons[position] = f"{name!r} is no number of the model's classes, 0 to {count - 1}"
        elif number in first:
            matching.reasons[position] = f"{name!r} and {first[number]!r} are the same number"
        else:
            first[number] = name
            matching.indices[position] = number
    return matching
