"""Which exchanges somebody wants to see, in two tongues: how an entry's line is known, and which rows hold the totals.

A line is searched as a text: in a value each quotation mark is escaped, so that none can pose as a member. To parse all
lines would take ten times as long, and so would a pattern that does not begin with several letters, for which `re`
looks as for a plain text.
"""

import re
from dataclasses import dataclass, fields
from json.encoder import encode_basestring_ascii as quoted
from re import Pattern

from proxy.entry import WELL

# A status has three digits.
STATUSES = {
    **{f"{first}xx": re.compile(f'"status":{first}') for first in range(1, 6)},
    "none": re.compile(r'"stream":(?:true|false),"result"|"status":[6-9]'),
}
MEMBERS = ("route", "model", "result", "key")
COLUMNS = {"status": "class", **{name: name for name in MEMBERS}}
FAILED = re.compile(rf'"result":"(?!(?:{"|".join(WELL)})")')


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What an exchange has to be, in the spelling of entries; None is anything.

    `status` is a class ("4xx", "none"). `request_id` is ours or the client's own. `failed` leaves out what went well.
    """

    route: str | None = None
    model: str | None = None
    status: str | None = None
    result: str | None = None
    key: str | None = None
    request_id: str | None = None
    failed: bool = False

    def chosen(self) -> dict[str, str]:
        """Return what was chosen, by its name."""
        return {field.name: value for field in fields(self) if isinstance(value := getattr(self, field.name), str)}

    def patterns(self) -> list[Pattern[str]]:
        """Return what is in the line of each entry that is wanted, all of it."""
        chosen = self.chosen()
        patterns = [member(which, chosen[which]) for which in MEMBERS if which in chosen]
        if self.status is not None:
            patterns.append(STATUSES[self.status])
        if self.failed:
            patterns.append(FAILED)
        if self.request_id is not None:
            patterns.append(id_of(self.request_id))
        return patterns

    def rows(self) -> tuple[str, list[str]]:
        """Return a condition on rows of totals, and its values. What a request's id is they do not know."""
        chosen = {COLUMNS[which]: value for which, value in self.chosen().items() if which in COLUMNS}
        conditions = ["TRUE", *(f"{column} = ?" for column in chosen)]
        if self.failed:
            conditions.append(f"result NOT IN {WELL}")  # which are words of ours
        return " AND ".join(conditions), [*chosen.values()]


ANY = Wanted()


def member(name: str, text: str) -> Pattern[str]:
    """Return what finds a member of an entry that is this text."""
    return re.compile(re.escape(f'"{name}":{quoted(text)}'))


def id_of(request: str) -> Pattern[str]:
    """Return what finds a request by our id or the client's own, and not by the upstream's."""
    found = re.escape(f'id":{quoted(request)}')
    return re.compile(f"{found}(?<!upstream_{found})")
