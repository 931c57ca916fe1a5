"""Who takes part in a run: which site is at which node, who left, who came (back).

Node ids are the carrier's business and change when it restarts; a site is known by the name that it
gives itself when it is asked. A carrier that knows who is who (`KnowsSites`) is believed before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Protocol, runtime_checkable

from flwr.app import Message
from flwr.serverapp import Grid

from fedward.common import records
from fedward.common.errors import RoundError
from fedward.common.study import Study
from fedward.server.evaluation import OVERALL
from fedward.server.replies import Replies, ask, queries, text_of

_LONGEST_NAME = 200


@runtime_checkable
class KnowsSites(Protocol):
    """A carrier that has checked who is at the other end of each node."""

    def site_names(self) -> Mapping[int, str]:
        """Site name by node id."""
        ...


class Attendance:
    """The sites of a run, as far as they have introduced themselves.

    Args:
        study: the protocol.
        grid: the carrier; the nodes that it lists belong to the run, whether or not they answer.
    """

    def __init__(self, study: Study, grid: Grid) -> None:
        self._study = study
        self._grid = grid
        self._names: dict[int, str] = {}
        self._said: dict[str, str] = {}

    @property
    def sites(self) -> Mapping[int, str]:
        """Site name by node id."""
        return self._names

    def begin(self) -> dict[str, str]:
        """Ask every node which site it is.

        Returns:
            Of nodes that did not say so, the site (or `node <id>`) and the reason.

        Raises:
            FedwardError: fewer sites than the study needs hold this study.
            RoundError: two nodes claim to be the same site.
        """
        replies = self._ask(self._grid.get_node_ids())
        replies.require(self._study.aggregation.min_sites, during="introduction")
        names = _names(replies)
        for name, count in Counter(names.values()).items():
            if count > 1:
                raise RoundError(
                    f"two nodes introduced themselves as site {name}",
                    hint="give every site its own name",
                )
        self._names = names
        return self._news(replies.reasons)

    def update(self, eligible: Collection[str]) -> dict[str, str]:
        """Notice before a round who left, and ask nodes that are not known yet who they are.

        Args:
            eligible: sites that took part in the preparation, and so may take part in rounds.

        Returns:
            Who left, did not say who they are, or may not take part, with the reason. It is said
            once, not before every round.
        """
        listed = set(self._grid.get_node_ids())
        left = {node: name for node, name in self._names.items() if node not in listed}
        for node, name in left.items():
            del self._names[node]
            self._said.pop(name, None)
        news = {name: "left the federation" for name in left.values() if name in eligible}
        # Who is known to have missed the preparation is not asked in vain before every round.
        missed = {node for node, name in self._known().items() if name not in eligible}
        strangers = sorted(listed - set(self._names) - missed)
        if not strangers:
            return news
        replies = self._ask(strangers)
        names = _names(replies)
        taken = Counter([*self._names.values(), *names.values()])
        reasons = replies.reasons
        for node, name in names.items():
            if taken[name] > 1:
                reasons[self._called(node)] = "another node is the site of that name"
                continue
            self._names[node] = name
            news.pop(name, None)  # it is there again, at another node
            if name not in eligible:
                reasons[name] = "was not there when the run was prepared"
        return news | self._news(reasons)

    def expected(self, eligible: Collection[str]) -> int:
        """How many sites of those that may take part in rounds are not there, but may come."""
        known = self._known()
        silent = set(self._grid.get_node_ids()) - set(self._names)
        return sum(known.get(node) in eligible if node in known else True for node in silent)

    def _ask(self, nodes: Iterable[int]) -> Replies:
        known = self._known()
        asked = {node: self._called(node) for node in nodes}
        replies = ask(
            self._grid,
            queries(self._study, records.INTRODUCE, asked),
            asked,
            deadline_s=self._study.aggregation.deadline_s,
        )

        def check(_called: str, answer: Message) -> None:
            node = answer.metadata.src_node_id
            _check_name(text_of(answer, records.SITE), known.get(node))

        return replies.checked(check)

    def _known(self) -> Mapping[int, str]:
        return self._grid.site_names() if isinstance(self._grid, KnowsSites) else {}

    def _called(self, node: int) -> str:
        return self._known().get(node, f"node {node}")

    def _news(self, reasons: Mapping[str, str]) -> dict[str, str]:
        news = {who: reason for who, reason in reasons.items() if self._said.get(who) != reason}
        self._said.update(news)
        return news


def _names(replies: Replies) -> dict[int, str]:
    return {
        answer.metadata.src_node_id: text_of(answer, records.SITE)
        for answer in replies.accepted.values()
    }


def _check_name(name: str, known: str | None) -> None:
    if known is not None and name != known:
        raise RoundError("gave a name that is not its own", hint="see what is wrong at the site")
    if name == OVERALL or not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
        raise RoundError("that is no name for a site", hint="choose another in site.toml")
