"""Errors: one body, one table of statuses, and values shown short."""

from service.errors import (
    BadRequestError,
    BodyTooLargeError,
    InternalError,
    QueueFullError,
    ServiceError,
    path_of,
    shown,
)


def test_the_error_body_is_the_same_for_every_error() -> None:
    for kind in (InternalError, BadRequestError, BodyTooLargeError):
        error = kind("what happened", param="n")
        assert error.body() == {
            "error": {"message": "what happened", "type": kind.type, "param": "n", "code": kind.default_code}
        }
    assert QueueFullError("full", retry_after_s=1.0).retry_after_s == 1.0


def test_statuses_and_grpc_codes_stand_in_one_table() -> None:
    table = {kind.status: kind.grpc_code for kind in ServiceError.__subclasses__()}
    assert table == {
        400: "INVALID_ARGUMENT",
        401: "UNAUTHENTICATED",
        403: "PERMISSION_DENIED",
        404: "NOT_FOUND",
        405: "UNIMPLEMENTED",
        408: "DEADLINE_EXCEEDED",
        413: "RESOURCE_EXHAUSTED",
        415: "INVALID_ARGUMENT",
        429: "RESOURCE_EXHAUSTED",
        500: "INTERNAL",
        503: "UNAVAILABLE",
    }


def test_values_and_paths_are_shown_short_and_printable() -> None:
    assert shown("x" * 1000) == f"'{'x' * 40}'… (1000 characters)"
    assert shown(10**5000) == "an integer of 16610 bits"
    assert shown("\ud800\n") == r"'\ud800\n'"
    assert shown([1, 2]) == "a list of 2"
    assert path_of(("interventions", 0, "layer")) == "interventions[0].layer"
    assert path_of(("a\nb",)) == r"['a\nb']"
    assert len(path_of(("x" * 10**6,))) < 60
