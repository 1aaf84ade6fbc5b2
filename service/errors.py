"""Every error a client can get: one tree, one body, one table of HTTP statuses and gRPC codes. Knows no transport."""

from collections.abc import Sequence

from pydantic import ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

#: Maximum number of problems that the error message of one request lists.
MAX_PROBLEMS_SHOWN = 3
MAX_VALUE_CHARS = 40


class ServiceError(Exception):
    """An error that is reported to the client. The message is safe to show; it never contains a traceback."""

    status = 500
    grpc_code = "INTERNAL"
    type = "internal_error"
    default_code: str | None = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.default_code
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, dict[str, str | None]]:
        """The one error body, for replies and for events of a stream alike."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InternalError(ServiceError):
    """A fault of ours; the details are in the log, not in the message."""


class BadRequestError(ServiceError):
    """The request is invalid; sending it again will not help. `param` is the path of the field."""

    status = 400
    grpc_code = "INVALID_ARGUMENT"
    type = "invalid_request_error"
    default_code = "invalid_value"


class UnfitTextError(BadRequestError):
    """The request does not fit one of its texts but may fit another."""


class AuthenticationError(ServiceError):
    """No API key, or a wrong one."""

    status = 401
    grpc_code = "UNAUTHENTICATED"
    type = "authentication_error"
    default_code = "invalid_api_key"


class PermissionDeniedError(ServiceError):
    """The caller may not use this service from its address or web page."""

    status = 403
    grpc_code = "PERMISSION_DENIED"
    type = "permission_error"
    default_code = "permission_denied"


class NotFoundError(ServiceError):
    """An unknown model, neuron or route."""

    status = 404
    grpc_code = "NOT_FOUND"
    type = "not_found_error"
    default_code = "not_found"


class MethodNotAllowedError(ServiceError):
    """The route exists, the method does not."""

    status = 405
    grpc_code = "UNIMPLEMENTED"
    type = "invalid_request_error"
    default_code = "method_not_allowed"


class DeadlineError(ServiceError):
    """The request's time ran out before its answer was complete."""

    status = 408
    grpc_code = "DEADLINE_EXCEEDED"
    type = "timeout_error"
    default_code = "deadline_exceeded"

    def __init__(self, message: str = "the request's time ran out before its answer was complete") -> None:
        super().__init__(message)


class BodyTooLargeError(ServiceError):
    """The body or message is larger than the limit in bytes."""

    status = 413
    grpc_code = "RESOURCE_EXHAUSTED"
    type = "invalid_request_error"
    default_code = "body_too_large"


class UnsupportedMediaTypeError(ServiceError):
    """The content type of the body is not JSON."""

    status = 415
    grpc_code = "INVALID_ARGUMENT"
    type = "invalid_request_error"
    default_code = "unsupported_media_type"


class QueueFullError(ServiceError):
    """Too many requests are already waiting; `retry_after_s` is the time to wait before a retry."""

    status = 429
    grpc_code = "RESOURCE_EXHAUSTED"
    type = "rate_limit_error"
    default_code = "queue_full"


class UnavailableError(ServiceError):
    """The service is starting, stopping or has lost its engine."""

    status = 503
    grpc_code = "UNAVAILABLE"
    type = "service_unavailable_error"
    default_code = "unavailable"


def fault(rule: str, value: object, *at: str | int) -> PydanticCustomError:
    """The error for a validator to raise: `value`, found at `at` below the validated field, breaks `rule`.

    `rule` continues a sentence that begins with the field's path: "must be …".
    """
    return PydanticCustomError("fault", "{rule}", {"rule": rule, "got": shown(value), "at": at})


def shown(value: object) -> str:
    """A value as an error message shows it: in JSON's notation, always printable and short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return (
            repr(value) if len(value) <= MAX_VALUE_CHARS else f"{value[:MAX_VALUE_CHARS]!r}… ({len(value)} characters)"
        )
    if isinstance(value, int):
        return str(value) if value.bit_length() <= 100 else f"an integer of {value.bit_length()} bits"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    return f"a {type(value).__name__}"


def path_of(segments: Sequence[str | int]) -> str:
    """`("interventions", 0, "layer")` as `interventions[0].layer`; unusual and long names are quoted and cut."""
    path = ""
    for segment in segments:
        if isinstance(segment, int):
            path += f"[{segment}]"
        elif 0 < len(segment) <= MAX_VALUE_CHARS and segment.isascii() and segment.isprintable():
            path += f".{segment}" if path else segment
        else:
            path += f"[{segment[:MAX_VALUE_CHARS]!a}]"
    return path


def invalid(path: str, rule: str, value: object) -> BadRequestError:
    """The 400 for one field: `path` `rule`, got `value`."""
    return BadRequestError(f"{path} {rule}, got {shown(value)}", param=path)


def unfit(path: str, rule: str, value: object) -> UnfitTextError:
    """Like `invalid`, if the fault is in one text of the request or in how the rest fits that text."""
    return UnfitTextError(f"{path} {rule}, got {shown(value)}", param=path)


#: Our words for pydantic's error types; `{}` fields come from the error's context.
RULES = {
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be a string",
    "string_unicode": "must be valid Unicode",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "literal_error": "must be {expected}",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "string_too_short": "must have at least {min_length} character(s)",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have at least {min_length} item(s)",
    "too_long": "must have at most {max_length} items",
    "none_required": "is not supported and must be left out or null",
}


def from_validation(error: ValidationError) -> BadRequestError:
    """The 400 for a request that its schema rejects; `param` is the path of the first problem."""
    problems = [problem(details) for details in error.errors(include_url=False)[:MAX_PROBLEMS_SHOWN]]
    message = "; ".join(text for _, text in problems)
    if error.error_count() > MAX_PROBLEMS_SHOWN:
        message += f"; and {error.error_count() - MAX_PROBLEMS_SHOWN} more"
    return BadRequestError(message, param=problems[0][0])


def problem(details: ErrorDetails) -> tuple[str | None, str]:
    """Path and message of one pydantic error."""
    kind, context = details["type"], dict(details.get("ctx", {}))
    loc: tuple[str | int, ...] = details["loc"]
    got = shown(details["input"])
    if kind == "fault":
        rule, got, loc = context["rule"], context["got"], loc + tuple(context["at"])
    elif kind in RULES:
        rule = RULES[kind].format(**context)
    else:
        rule = f"is invalid ({details['msg']})"
    if loc and loc[-1] == "[key]":
        loc, rule = loc[:-1], f"has a key that {rule}"
    path = path_of(loc)
    if kind == "missing":
        return path, f"{path} is required"
    if kind == "extra_forbidden":
        return path, f"{path} is not a known field"
    return path or None, f"{path or 'the request body'} {rule}, got {got}"
