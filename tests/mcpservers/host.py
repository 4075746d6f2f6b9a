"""An MCP host: the official SDK's client, and what it would show to a model."""

import contextlib
import datetime
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import anyio
import httpx
import mcp
from mcp.client.streamable_http import streamable_http_client

from tests.mcpservers.servers import Call

LIMIT = 60.0  # seconds a tool call may take, as in the TypeScript SDK


@dataclass(frozen=True, slots=True)
class Said:
    """What a model reads of a tool call."""

    text: str
    failed: bool  # an error of the protocol, or a result that says it is one


class Host:
    def __init__(self, session: mcp.ClientSession) -> None:
        self._session = session

    async def call(self, call: Call, seconds: float = LIMIT) -> Said:
        """The result, or the error's message: models are shown both. A call that takes too long is an error."""
        try:
            result = await self._session.call_tool(
                call.tool, call.arguments, read_timeout_seconds=datetime.timedelta(seconds=seconds)
            )
        except mcp.McpError as e:
            return Said(e.error.message, True)
        text = "\n".join(part.text for part in result.content if isinstance(part, mcp.types.TextContent))
        return Said(text, result.isError)

    async def tools(self) -> list[str]:
        return [tool.name for tool in (await self._session.list_tools()).tools]


@contextlib.asynccontextmanager
async def stdio(command: list[str], environment: Mapping[str, str], log: Path) -> AsyncIterator[Host]:
    """A host and the server that it starts, which knows no other environment than this."""
    parameters = mcp.StdioServerParameters(command=command[0], args=command[1:], env=dict(environment))
    # What a server still says while its host leaves has no reader, and the SDK raises that.
    with log.open("a") as errors, contextlib.suppress(anyio.BrokenResourceError):
        async with (
            mcp.stdio_client(parameters, errlog=errors) as (incoming, outgoing),
            mcp.ClientSession(incoming, outgoing) as session,
        ):
            await session.initialize()
            yield Host(session)


@contextlib.asynccontextmanager
async def http(url: str, headers: Mapping[str, str]) -> AsyncIterator[Host]:
    """A host that speaks to a server which is there already."""
    async with (
        httpx.AsyncClient(headers=dict(headers), timeout=LIMIT) as client,
        streamable_http_client(url, http_client=client) as (incoming, outgoing, _),
        mcp.ClientSession(incoming, outgoing) as session,
    ):
        await session.initialize()
        yield Host(session)
