"""The service against its own OpenAPI document: whatever schemathesis makes of it, nothing breaks and nothing lies."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.support.served import MODEL_ID, Served


@pytest.mark.long
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_replies_keep_to_the_document(served: Served, mode: GenerationMode) -> None:
    document = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    statuses: dict[str, set[int]] = {}

    for found in document.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and operation.method == "get":
            continue  # nothing to get wrong

        num_examples = 5 if operation.path == "/v1/levers" else 40  # a search takes a second

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=num_examples, deadline=None, suppress_health_check=list(HealthCheck))
        def check(case: schemathesis.Case) -> None:
            for place in (case.body, case.query) if mode is GenerationMode.POSITIVE else ():
                if isinstance(place, dict) and "model" in place:
                    place["model"] = MODEL_ID  # or nothing would come past the 404
                    if "search" in case.operation.path:
                        place.pop("layers", None)  # of which most are not there
                        if place.get("text") is not None:
                            place.pop("contrast", None)  # either one or the other
                    if "levers" in case.operation.path:
                        place["words"] = ["war"]  # few are asked for, and most would be blank, or both
                        for name in ("texts", "timeout_s"):
                            place.pop(name, None)
            if case.path_parameters and "neuron" in case.path_parameters:
                case.path_parameters = {"layer": 0, "neuron": 1}  # of which most are not there
            # Some rules join two fields (op and value), which JSON Schema says badly: a 400 is right there.
            reply = case.call_and_validate(excluded_checks=[positive_data_acceptance])
            statuses.setdefault(case.operation.path, set()).add(reply.status_code)

        try:
            check()
        except Exception as error:
            error.add_note(f"{operation.method} {operation.path}")
            raise
    if mode is GenerationMode.POSITIVE:
        unlucky = {path for path, seen in statuses.items() if 200 not in seen}
        assert unlucky <= {"/v1/models/{model_id}", "/v1/chat/completions"}
    assert len(statuses) == (18 if mode is GenerationMode.POSITIVE else 8)
    assert served.wait_idle()
