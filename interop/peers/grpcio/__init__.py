"""grpcio's clients and servers, in its synchronous and its asyncio API."""
