// A completion request of the HTTP API as JSON of the gRPC API's GenerateRequest (protos/topk/v1/topk.proto).

/** Fields in lowerCamelCase, enums by their names, and the `oneof`s as messages. */
export function generateRequest({ prompt, interventions, trace, ...rest }) {
  return {
    ...camelCased(rest),
    prompt: { text: prompt },
    ...(interventions && { interventions: interventions.map(intervention) }),
    ...(trace && { trace }),
  };
}

function intervention({ layer, op, unit, site, positions, when, ...rest }) {
  return {
    ...layers(layer),
    ...camelCased(rest),
    ...named("op", "OP", op),
    ...named("unit", "UNIT", unit),
    ...named("site", "SITE", site),
    ...(given(positions) && { positions: positionsOf(positions) }),
    ...(given(when) && { when: when.map(condition) }),
  };
}

function condition({ is, ...rest }) {
  return { ...rest, ...named("is", "CONDITION_TEST", is) };
}

function layers(layer) {
  if (layer === "all") return { allLayers: true };
  return given(layer) ? { layer: [layer].flat() } : {};
}

function positionsOf(positions) {
  return typeof positions === "string" ? named("kind", "POSITION_KIND", positions) : { range: positions };
}

function named(field, prefix, value) {
  return given(value) ? { [field]: `${prefix}_${String(value).toUpperCase()}` } : {};
}

function camelCased(fields) {
  const camel = (name) => name.replace(/_([a-z])/g, (_, letter) => letter.toUpperCase());
  return Object.fromEntries(Object.entries(fields).map(([name, value]) => [camel(name), value]));
}

function given(value) {
  return value !== undefined && value !== null;
}
