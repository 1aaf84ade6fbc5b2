"""The RPCs of neurons. A method validates, asks, and converts the answer. Knows no catalogue and no engine."""

from typing import TYPE_CHECKING

from service.grpc_api.edge import Calls
from service.pb import topk_pb2 as pb

if TYPE_CHECKING:
    from ray.serve.grpc_util import RayServegRPCContext


class NeuronMethods(Calls):
    """Serve calls them by name, with the call's context as `grpc_context`. Messages have the fields of the JSON."""

    async def GetNeuron(
        self, request: pb.GetNeuronRequest, grpc_context: "RayServegRPCContext"
    ) -> pb.GetNeuronResponse:
        from service.grpc_api.conversion import neuron_from_pb, neuron_to_pb

        async def work(_: str) -> pb.GetNeuronResponse:
            return neuron_to_pb(await self._replica.neurons.page(neuron_from_pb(request)))

        return await self._unary(grpc_context, pb.GetNeuronResponse, work)

    async def ListNeurons(
        self, request: pb.ListNeuronsRequest, grpc_context: "RayServegRPCContext"
    ) -> pb.ListNeuronsResponse:
        from service.grpc_api.conversion import fields_to_pb, neuron_list_from_pb

        async def work(_: str) -> pb.ListNeuronsResponse:
            reply = await self._replica.neurons.listing(neuron_list_from_pb(request))
            return pb.ListNeuronsResponse(**fields_to_pb(reply))

        return await self._unary(grpc_context, pb.ListNeuronsResponse, work)

    async def SearchNeurons(
        self, request: pb.SearchNeuronsRequest, grpc_context: "RayServegRPCContext"
    ) -> pb.SearchNeuronsResponse:
        from service.grpc_api.conversion import fields_to_pb, neuron_search_from_pb

        async def work(_: str) -> pb.SearchNeuronsResponse:
            return pb.SearchNeuronsResponse(
                **fields_to_pb(await self._replica.neurons.search(neuron_search_from_pb(request)))
            )

        return await self._unary(grpc_context, pb.SearchNeuronsResponse, work)

    async def GetNeuronHistory(
        self, request: pb.GetNeuronHistoryRequest, grpc_context: "RayServegRPCContext"
    ) -> pb.GetNeuronHistoryResponse:
        from service.grpc_api.conversion import fields_to_pb, neuron_from_pb

        async def work(_: str) -> pb.GetNeuronHistoryResponse:
            reply = await self._replica.neurons.history(neuron_from_pb(request))
            return pb.GetNeuronHistoryResponse(**fields_to_pb(reply))

        return await self._unary(grpc_context, pb.GetNeuronHistoryResponse, work)
