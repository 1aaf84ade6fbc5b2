// Traces of texts over gRPC, as one JSON object a trace, from nothing but the service's address and its .proto file.
//
//   node read_trace.mjs ADDRESS PROTO REQUEST      REQUEST: an ActivationsRequest as JSON
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const DEADLINE_MS = 30_000;

/** The number of 16 bits of IEEE 754 binary16; JavaScript has no reader of its own before Float16Array. */
function float16(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 0x1f) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** Size in bytes and reader of each type; the bytes are little-endian whatever this machine is. */
const TYPES = {
  UINT32: [4, (data, at) => data.readUInt32LE(at)],
  INDEX_TYPE_UINT16: [2, (data, at) => data.readUInt16LE(at)],
  INDEX_TYPE_UINT32: [4, (data, at) => data.readUInt32LE(at)],
  VALUE_TYPE_FLOAT16: [2, (data, at) => float16(data.readUInt16LE(at))],
  VALUE_TYPE_FLOAT32: [4, (data, at) => data.readFloatLE(at)],
};

function numbers(data, type) {
  if (!(type in TYPES)) throw new Error(`the trace has numbers of type ${type}, which this client does not know`);
  const [size, read] = TYPES[type];
  if (data.length % size) throw new Error(`${data.length} bytes are no whole number of ${type}`);
  return Array.from({ length: data.length / size }, (_, i) => read(data, i * size));
}

function decoded(trace) {
  return {
    ...trace,
    offsets: numbers(trace.offsets, "UINT32"),
    indices: numbers(trace.indices, trace.index_dtype),
    values: numbers(trace.values, trace.dtype),
  };
}

const [address, proto, request] = process.argv.slice(2);
const definition = protoLoader.loadSync(proto, { keepCase: true, longs: Number, enums: String, defaults: true });
const { TopKService } = grpc.loadPackageDefinition(definition).topk.v1;
const client = new TopKService(address, grpc.credentials.createInsecure());
client.Activations(JSON.parse(request), { deadline: Date.now() + DEADLINE_MS }, (error, reply) => {
  client.close();
  if (error) {
    console.error(`${error.code} ${error.details}`);
    process.exitCode = 1;
    return;
  }
  for (const item of reply.data) console.log(JSON.stringify({ index: item.index, ...decoded(item.trace) }));
});
