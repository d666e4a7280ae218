"""The links of one gateway, by address: which are there, which would serve, why none would.

Knows links and their metrics; no requests. A link is made and dropped by whoever knows addresses
(the configuration, or discovery).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from lamella_contract import forms
from lamella_contract.wire import GatewayMessage

from .link import Link, LinkNews
from .metrics import Metrics

MakeLink = Callable[[str, LinkNews], Link]


class Links:
    """Used on the event loop alone. ``problem`` is why there may be none."""

    def __init__(self, make: MakeLink, news: LinkNews, metrics: Metrics) -> None:
        self._make = make
        self._news = news
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._links: dict[str, Link] = {}
        self._preferred: frozenset[str] = frozenset()
        self.problem = ""

    def __iter__(self) -> Iterator[Link]:
        return iter(list(self._links.values()))

    def __len__(self) -> int:
        return len(self._links)

    def add(self, address: str) -> None:
        """Make a link to ``address``, which has none."""
        link = self._links[address] = self._make(address, self._news)
        gauge = self._metrics.ready.labels(address)
        gauge.set_function(partial(_ready, link, self._loop))

    def drop(self, address: str) -> None:
        """Close a link; what was submitted there is lost."""
        link = self._links.pop(address)
        self._metrics.ready.remove(address)
        link.close()
        self._news.lost(address, "its address is gone", link.is_ending)
        self._news.gone(address)

    def prefer(self, addresses: tuple[str, ...]) -> None:
        """What is new goes to one of these while one of them is ready."""
        self._preferred = frozenset(addresses)

    def connected(self) -> Mapping[str, bool]:
        return {address: link.connected for address, link in self._links.items()}

    def ready(self, now_s: float) -> list[Link]:
        """Those that a request submitted now is to go to."""
        ready = [link for link in self._links.values() if link.ready(now_s)]
        return [link for link in ready if link.address in self._preferred] or ready

    def send(self, address: str, message: GatewayMessage) -> bool:
        """False when there is no link or no connection to take it."""
        link = self._links.get(address)
        return link is not None and link.send(message)

    def reason(self, now_s: float) -> str:
        """Why a request would not be served now; "" when one would."""
        reasons = {link: link.reason(now_s) for link in self._links.values()}
        if "" in reasons.values():
            return ""
        # what is of another revision is no news while one of ours is on its way
        ours = [why for link, why in reasons.items() if not link.is_other]
        told = dict.fromkeys(ours or reasons.values())
        return "; ".join(told) or self.problem or "no pipeline is known yet"

    def status(self, now_s: float) -> list[dict[str, object]]:
        """What /status says of each; whatever a replica's own status carries is passed on."""
        pipelines: list[dict[str, object]] = []
        for address, link in self._links.items():
            told = {} if link.status is None else forms.to_plain(link.status)
            assert isinstance(told, dict)
            known = {"ready": link.ready(now_s), "reason": link.reason(now_s)}
            place = {"address": address, "preferred": address in self._preferred}
            pipelines.append(told | known | place | {"connected": link.connected})
        return pipelines

    def close(self) -> None:
        """Hang up everywhere."""
        for link in self._links.values():
            link.close()


def _ready(link: Link, loop: asyncio.AbstractEventLoop) -> float:
    return float(link.ready(loop.time()))
