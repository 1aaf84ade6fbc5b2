"""Between the messages of FindLevers and the service's own request and reply. Knows no transport and no engine."""

from typing import TYPE_CHECKING

from service.grpc_api.conversion import fields_from_pb, fields_to_pb, number_of
from service.pb import topk_pb2 as pb
from service.requests.levers import LeversRequest
from service.requests.parsing import validate

if TYPE_CHECKING:
    from service.serving.lever_replies import LeverReply
    from service.serving.side_jobs import Progress


def levers_from_pb(message: pb.FindLeversRequest) -> LeversRequest:
    """Raises BadRequestError if it breaks the schema."""
    fields = fields_from_pb(message)
    if "texts" in fields:  # an empty list is one in JSON
        fields["texts"] = {"towards": [], "away": [], **fields["texts"]}
    return validate(LeversRequest, fields)


def lever_event_to_pb(event: "Progress | LeverReply") -> pb.FindLeversResponse:
    """How far a search has come, or what it found."""
    fields = fields_to_pb(event)
    if "levers" not in fields:
        return pb.FindLeversResponse(progress=pb.Progress(**fields))
    fields["texts"]["source"] = number_of(pb.LeverTextSource.DESCRIPTOR, fields["texts"]["source"])
    for lever in fields["levers"]:
        edit = lever["intervention"]
        lever["intervention"] = edit | {"layer": [edit["layer"]], "op": number_of(pb.Op.DESCRIPTOR, edit["op"])}
    return pb.FindLeversResponse(levers=pb.Levers(**fields))
