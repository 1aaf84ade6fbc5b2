"""Bodies of requests: JSON, plain or compressed, never more of it in memory than the limit. Knows no route."""

import asyncio
import zlib

from starlette.requests import Request

from service.errors import BadRequestError, BodyTooLargeError, DeadlineError, UnsupportedMediaTypeError
from service.requests.limits import MAX_BODY_BYTES

#: Maximum time that a client may take to send its body.
BODY_TIMEOUT_S = 30.0
#: How much of a body over the limit is read and discarded before the connection is closed: a client that is still
#: sending then would not see the reply.
MAX_DISCARDED_BYTES = 4 * MAX_BODY_BYTES

_GZIP, _ZLIB, _RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS
#: Window bits by name of the coding.
CODINGS = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": _ZLIB}


async def read_body(request: Request, limit: int = MAX_BODY_BYTES) -> bytes:
    """The JSON body, inflated if it is compressed.

    Raises:
        ServiceError: the content type is not JSON, the coding is unknown, the body is damaged, too large or too slow.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaTypeError(f"Content-Type must be application/json, got {media_type[:100]!r}")
    inflater = inflater_of(request.headers.get("content-encoding", ""))
    body, num_bytes = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                num_bytes += len(chunk)
                if num_bytes > limit + MAX_DISCARDED_BYTES:
                    break
                if num_bytes <= limit and len(body) <= limit:
                    body += chunk if inflater is None else inflater.feed(chunk, limit + 1 - len(body))
    except TimeoutError:
        raise DeadlineError(f"the request body did not arrive within {BODY_TIMEOUT_S:g} s") from None
    if num_bytes > limit or len(body) > limit:
        inflated = " after decompression" if num_bytes <= limit else ""
        raise BodyTooLargeError(f"the request body is larger than the limit of {limit} bytes{inflated}")
    if inflater is not None:
        inflater.check_end()
    return bytes(body)


def inflater_of(header: str) -> "Inflater | None":
    """The decompressor for this Content-Encoding; None if the body is not compressed."""
    coding = header.strip().lower()
    if coding in ("", "identity"):
        return None
    if coding not in CODINGS:
        raise UnsupportedMediaTypeError(
            f"Content-Encoding must be gzip, deflate or identity, got {coding[:100]!r}", code="unsupported_encoding"
        )
    return Inflater(coding)


class Inflater:
    """Decompresses a body piece by piece, and no more of it than is requested."""

    def __init__(self, coding: str) -> None:
        self.coding = coding
        self._window_bits = CODINGS[coding]
        self._stream = zlib.decompressobj(self._window_bits)
        self._has_begun = False

    def feed(self, data: bytes, max_bytes: int) -> bytes:
        """The next piece, at most `max_bytes` of it."""
        inflated = bytearray()
        try:
            while data and len(inflated) < max_bytes:
                if self._stream.eof:  # several gzip members may follow one another
                    self._stream = zlib.decompressobj(self._window_bits)
                inflated += self._decompress(data, max_bytes - len(inflated))
                data = self._stream.unconsumed_tail or self._stream.unused_data
        except zlib.error:
            raise BadRequestError(f"the request body is not valid {self.coding}", code="invalid_encoding") from None
        return bytes(inflated)

    def _decompress(self, data: bytes, max_bytes: int) -> bytes:
        try:
            piece = self._stream.decompress(data, max_bytes)
        except zlib.error:
            if self._has_begun or self._window_bits != _ZLIB:
                raise
            # Some clients send deflate without the zlib header.
            self._window_bits = _RAW
            self._stream = zlib.decompressobj(_RAW)
            piece = self._stream.decompress(data, max_bytes)
        self._has_begun = True
        return piece

    def check_end(self) -> None:
        """Raises BadRequestError if the body ends too early."""
        if self._has_begun and not self._stream.eof:
            raise BadRequestError(f"the request body is incomplete {self.coding} data", code="invalid_encoding")
