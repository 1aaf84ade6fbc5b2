"""Computing an attribution: each active neuron before the target ablated alone, then whole positions and layers, then,
for a graph, what the strongest neurons do to each other. A side job's work; knows no transport and no event loop.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.answers.fields import Usage, receipt_fields
from service.answers.warnings import receipt_warnings
from service.engine.ablation import (
    EVERY_NEURON,
    Ablations,
    Ablator,
    OverflowedError,
    Reading,
    Watched,
    value_of,
)
from service.engine.request import EngineRequest
from service.errors import UnfitTextError
from service.requests.advice import never_special
from service.requests.attributing import AttributionPlan
from service.serving.attribution_reply import (
    ATTRIBUTION_VERSION,
    GRAPH_VERSION,
    AttributedNeuron,
    Attribution,
    AttributionGraph,
    AttributionReceipt,
    AttributionTarget,
    EffectSums,
    GraphEdge,
    GraphNode,
    LayerEffect,
    NeuronEffect,
    PositionEffect,
    ScoredToken,
)
from service.serving.model import ServedModel
from service.serving.side_jobs import SideJob
from topk_model.interventions import Intervention

#: Edges that change less of a node's value than this are left out of a graph.
MIN_EDGE_SHARE = 0.05

Ints = NDArray[np.int64]


def attribute(job: SideJob[Attribution], served: ServedModel, plan: AttributionPlan) -> Attribution:
    """The attribution of a plan.

    Raises:
        UnfitTextError: the edits drive the model's output to infinity.
        JobCancelledError, DeadlineError: the job has to end.
    """
    ablator = served.ablator(plan.read_ids, plan.interventions, plan.layers)
    try:
        return _Attributing(job, served, plan, ablator).run()
    except OverflowedError:
        raise UnfitTextError(
            "the interventions drove the model's output to infinity", param="interventions", code="overflow"
        ) from None
    finally:
        ablator.close()


class _Attributing:
    """One attribution on its way."""

    def __init__(self, job: SideJob[Attribution], served: ServedModel, plan: AttributionPlan, ablator: Ablator) -> None:
        self.job, self.served, self.plan, self.ablator = job, served, plan, ablator
        self.facts = served.facts
        self.num_layers = len(self.facts.topk_layers)
        self.watched: tuple[Watched, ...] = ()
        if plan.neuron is not None:
            self.watched = (Watched(layer=plan.neuron[0], position=plan.position, neuron=plan.neuron[1]),)
        self.token_texts = [served.tokenizer.token_text(one) for one in plan.prompt.ids]

    def run(self) -> Attribution:
        plan, ablator = self.plan, self.ablator
        self.job.report("reading", 0, 1)
        self.targets = self._targets()
        self.reading = ablator.read(self.targets)
        self.score = self._score(self.reading)
        single, values = self._active_neurons()
        effects = self._effects(single, "neurons")
        groups = self._effects(self._groups(), "positions and layers")
        num_positions = plan.end - plan.start if plan.layers else 0
        of_positions, of_layers = groups[:num_positions], groups[num_positions : num_positions + len(plan.layers)]
        everything = float(groups[-1]) if len(groups) else 0.0
        order = np.argsort(-np.abs(effects), kind="stable")
        order = order[np.abs(effects[order]) >= plan.min_effect]
        found = self._neuron_effects(single, values, effects, order[: max(plan.top_n, plan.max_nodes)])
        return Attribution(
            attribution_version=ATTRIBUTION_VERSION,
            model=self.facts.id,
            checkpoint=self.facts.checkpoint,
            target=self._target(),
            neurons=tuple(found[: plan.top_n]),
            num_neurons=len(single),
            positions=self._position_effects(of_positions, single.starts),
            layers=tuple(
                LayerEffect(layer=layer, num_neurons=int((single.layers == layer).sum()), effect=float(effect))
                for layer, effect in zip(plan.layers, of_layers, strict=True)
            ),
            sums=sums_of(everything, float(effects.sum()), float(of_positions.sum()), float(of_layers.sum())),
            graph=self._graph(found[: plan.max_nodes], everything) if plan.max_nodes else None,
            interventions=tuple(AttributionReceipt(**receipt_fields(one)) for one in self.reading.receipts),
            warnings=tuple(self._warnings()),
            usage=Usage.of(len(plan.prompt.ids), 0),
        )

    def _targets(self) -> tuple[int, ...]:
        """Ids of the token that is explained, and of the one that it is held against."""
        plan = self.plan
        if plan.neuron is not None:
            return ()
        token_id = self.ablator.read(num_top=1).top[0][0] if plan.token_id is None else plan.token_id
        return (token_id,) if plan.against_id is None else (token_id, plan.against_id)

    def _score(self, reading: Reading) -> float:
        if self.watched:
            return value_of(self.watched[0], reading.trace, self.num_layers)
        return float(scores_of(np.array([reading.logprobs]))[0])

    def _active_neurons(self) -> tuple[Ablations, NDArray[np.float32]]:
        """Every active neuron that may be ablated, in the order of positions, layers and indices; their values."""
        plan, trace = self.plan, self.reading.trace
        states = np.repeat(np.arange(len(trace.offsets) - 1), np.diff(trace.offsets))
        positions, layers = states // self.num_layers, states % self.num_layers
        which = (positions >= plan.start) & (positions < plan.end) & np.isin(layers, plan.layers)
        positions = positions[which]
        single = Ablations(
            layers=layers[which],
            neurons=trace.indices[which].astype(np.int64),
            starts=positions,
            ends=positions + 1,
            is_through=np.zeros(len(positions), dtype=bool),
        )
        return single, trace.values[which]

    def _groups(self) -> Ablations:
        """Every position, every layer, and everything."""
        plan = self.plan
        if not plan.layers:
            nothing = np.zeros(0, dtype=np.int64)
            return Ablations(
                layers=nothing, neurons=nothing, starts=nothing, ends=nothing, is_through=nothing.astype(bool)
            )
        positions, first = np.arange(plan.start, plan.end), plan.layers[0]
        num_positions, num_layers = len(positions), len(plan.layers)
        num_all = num_positions + num_layers + 1
        layers, starts, ends = np.full(num_all, first), np.full(num_all, plan.start), np.full(num_all, plan.end)
        starts[:num_positions], ends[:num_positions] = positions, positions + 1
        layers[num_positions:-1] = plan.layers
        is_through = np.ones(num_all, dtype=bool)
        is_through[num_positions:-1] = False
        neurons = np.full(num_all, EVERY_NEURON)
        return Ablations(layers=layers, neurons=neurons, starts=starts, ends=ends, is_through=is_through)

    def _effects(self, ablations: Ablations, stage: str) -> NDArray[np.float64]:
        """By how much the score falls in each run."""
        scores = np.empty(len(ablations))
        num_done = 0
        for batch in self.ablator.batches(ablations):
            self.job.checkpoint()
            self.job.report(stage, num_done, len(ablations))
            outcome = self.ablator.run(ablations.part(batch), self.targets, self.watched)
            if np.isnan(outcome.logprobs).any():
                raise OverflowedError
            scores[batch] = outcome.values[:, 0] if self.watched else scores_of(outcome.logprobs)
            num_done += len(batch)
        return self.score - scores

    def _neuron_effects(
        self, single: Ablations, values: NDArray[np.float32], effects: NDArray[np.float64], which: Ints
    ) -> list[NeuronEffect]:
        pairs = [(int(single.layers[i]), int(single.neurons[i])) for i in which]
        return [
            NeuronEffect(
                position=int(single.starts[i]),
                layer=pair[0],
                neuron=pair[1],
                token=self.token_texts[single.starts[i]],
                value=float(values[i]),
                label=label,
                effect=float(effects[i]),
            )
            for i, pair, label in zip(which, pairs, self._labels(pairs), strict=True)
        ]

    def _labels(self, pairs: Sequence[tuple[int, int]]) -> list[str | None]:
        catalogue = self.served.catalogue
        return [None] * len(pairs) if catalogue is None else catalogue.labels(pairs)

    def _target(self) -> AttributionTarget:
        plan = self.plan
        tokens = [
            ScoredToken(token_id=token_id, token=self.served.tokenizer.token_text(token_id), logprob=logprob)
            for token_id, logprob in zip(self.targets, self.reading.logprobs, strict=True)
        ]
        neuron = None
        if plan.neuron is not None:
            neuron = AttributedNeuron(
                position=plan.position,
                layer=plan.neuron[0],
                neuron=plan.neuron[1],
                token=self.token_texts[plan.position],
                value=self.score,
                label=self._labels([plan.neuron])[0],
            )
        return AttributionTarget(
            position=plan.position,
            score=self.score,
            unit="nats" if neuron is None else "activation",
            token=tokens[0] if tokens else None,
            against=tokens[1] if len(tokens) > 1 else None,
            neuron=neuron,
        )

    def _position_effects(self, effects: NDArray[np.float64], of_neurons: Ints) -> tuple[PositionEffect, ...]:
        """Of the positions that were ablated, and of those after the target."""
        plan = self.plan
        known = dict(zip(range(plan.start, plan.end), effects.tolist(), strict=False))
        after = range(len(plan.read_ids), len(plan.prompt.ids))
        return tuple(
            PositionEffect(
                position=at,
                token_id=plan.prompt.ids[at],
                token=self.token_texts[at],
                is_special=plan.prompt.ids[at] in self.facts.special_ids,
                num_neurons=int((of_neurons == at).sum()),
                effect=known.get(at, 0.0),
            )
            for at in (*range(plan.start, plan.end), *after)
        )

    def _graph(self, found: Sequence[NeuronEffect], everything: float) -> AttributionGraph:
        """What each of the neurons does to the others, and all of them together to the target."""
        nodes = tuple(GraphNode(id=i, **vars(one)) for i, one in enumerate(found))
        edges = tuple(self._edges(nodes)) if nodes else ()
        effect = self._effect_of_all(nodes) if nodes else 0.0
        return AttributionGraph(
            graph_version=GRAPH_VERSION,
            nodes=nodes,
            edges=edges,
            min_share=MIN_EDGE_SHARE,
            effect=effect,
            share=effect / everything if everything else None,
        )

    def _edges(self, nodes: Sequence[GraphNode]) -> list[GraphEdge]:
        starts = np.array([node.position for node in nodes])
        ablations = Ablations(
            layers=np.array([node.layer for node in nodes]),
            neurons=np.array([node.neuron for node in nodes]),
            starts=starts,
            ends=starts + 1,
            is_through=np.zeros(len(nodes), dtype=bool),
        )
        watched = [Watched(layer=node.layer, position=node.position, neuron=node.neuron) for node in nodes]
        changed = np.empty((len(nodes), len(nodes)))
        for batch in self.ablator.batches(ablations):
            self.job.checkpoint()
            self.job.report("graph", 0, len(nodes))
            changed[batch] = self.ablator.run(ablations.part(batch), (), watched).values
        edges = []
        for source, target in np.ndindex(changed.shape):
            value = nodes[target].value
            effect = value - float(changed[source, target])
            if source != target and abs(effect) >= MIN_EDGE_SHARE * abs(value):
                edges.append(GraphEdge(source=source, target=target, effect=effect, share=effect / value))
        return edges

    def _effect_of_all(self, nodes: Sequence[GraphNode]) -> float:
        """By how much the score falls if all nodes are ablated at once."""
        plan = self.plan
        ablated = tuple(
            Intervention(
                layers=(node.layer,),
                neuron=node.neuron,
                op="ablate",
                start=node.position,
                end=node.position + 1,
                include_special=True,
            )
            for node in nodes
        )
        self.job.checkpoint()
        ablator = self.served.ablator(plan.read_ids, (*plan.interventions, *ablated), plan.layers)
        try:
            return self.score - self._score(ablator.read(self.targets))
        finally:
            ablator.close()

    def _warnings(self) -> list[str]:
        plan, prompt = self.plan, self.plan.prompt
        asked = EngineRequest(request_id="", prompt_ids=plan.read_ids, max_tokens=0, interventions=plan.interventions)
        found = [one.removeprefix("choices[0].") for one in receipt_warnings(self.reading.receipts, asked, 0, 0)]
        if prompt.text is not None and (special := self.served.tokenizer.first_special(prompt.text)) is not None:
            found.append(never_special(prompt.path, special))
        if plan.neuron is not None and not self.score:
            found.append("target.neuron is not active at its position: effects show what keeps it out")
        return found


def scores_of(logprobs: NDArray[Any]) -> NDArray[np.float64]:
    """`[runs]`: the first target's log-probability, or its difference to the second's, of `[runs, targets]`."""
    scores: NDArray[np.float64] = logprobs[:, 0].astype(np.float64)
    return scores - logprobs[:, 1] if logprobs.shape[1] > 1 else scores


def sums_of(everything: float, neurons: float, positions: float, layers: float) -> EffectSums:
    return EffectSums(
        everything=everything,
        neurons=neurons,
        positions=positions,
        layers=layers,
        neurons_gap=neurons - everything,
        positions_gap=positions - everything,
        layers_gap=layers - everything,
    )
