"""``previous_response_id``: a response that the gateway answered itself is known to it alone.

Its student keeps no state, and the teacher never saw that response; so the conversation is written
out from the store before anybody is asked. Ids of the teacher's own go to the teacher as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.api.request import Api, ApiRequest
from gateway.api.responses import ID_PREFIX, expanded, responses_request
from gateway.errors import GatewayError, StoreError
from gateway.offload import Offload
from gateway.store.records import Exchange, Filter, Status
from gateway.store.repository import Repository


@dataclass(frozen=True, slots=True)
class Histories:
    """Former turns, read from the store."""

    readers: Sequence[Repository]
    """The outbox first: what ended a moment ago is not in Postgres yet."""
    offload: Offload

    async def expanded(self, request: ApiRequest, principal: str) -> ApiRequest:
        """The request with one of our own ``previous_response_id`` written out; any other as it
        is.

        Raises:
            GatewayError: ``previous_response_not_found``: it is not kept, was asked for with
                ``store: false``, or is another key's.
        """
        previous = (
            request.body.get("previous_response_id") if request.api is Api.RESPONSES else None
        )
        if not isinstance(previous, str) or not previous.startswith(ID_PREFIX):
            return request
        try:
            found = await self.offload.run(self._read, previous.removeprefix(ID_PREFIX), principal)
        except StoreError as error:
            message = f"The store with former responses does not answer: {error}"
            raise GatewayError("store_unavailable", message) from error
        if found is None or found.answer is None or found.request.get("store") is False:
            raise GatewayError(
                "previous_response_not_found",
                f"Previous response with id '{previous}' not found.",
                param="previous_response_id",
            )
        body = expanded(request.body, found.request.get("input"), found.answer.get("output"))
        return responses_request(body)

    def _read(self, exchange_id: str, principal: str) -> Exchange | None:
        which = Filter(ids=(exchange_id,), principal=principal, status=Status.COMPLETE.value)
        for reader in self.readers:
            found = next(iter(reader.read(which)), None)
            if found is not None:
                return found
        return None
