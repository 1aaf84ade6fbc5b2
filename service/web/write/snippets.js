// A completion request as code to run elsewhere: curl, Python with the openai package, gRPC with buf.

import { generateRequest } from "./proto_json.js";

// The fields for which the openai package has arguments.
const OPENAI = new Set("model prompt max_tokens temperature seed top_p stop".split(" "));

/** `base` ends with a slash; `hasKey`: a key is needed, which the code reads from TOPK_API_KEY. */
export function curl(request, { base, hasKey }) {
  return [
    `curl ${quoted(`${base}v1/completions`)}`,
    "  -H 'Content-Type: application/json'",
    ...(hasKey ? ['  -H "Authorization: Bearer $TOPK_API_KEY"'] : []),
    `  -d ${quoted(laidOut(request))}`,
  ].join(" \\\n");
}

export function python(request, { base, hasKey }) {
  /** @param {[string, any]} field */
  const isOwn = ([name]) => !OPENAI.has(name);
  const fields = Object.entries(request);
  const lines = fields.filter((field) => !isOwn(field)).map(([name, value]) => `    ${name}=${literal(value)},`);
  const indent = "        ";
  const own = fields.filter(isOwn).map(([name, value]) => `${indent}${literal(name)}: ${nested(value, literal, indent)},`);
  return [
    ...(hasKey ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${literal(`${base}v1`)}, api_key=${hasKey ? 'os.environ["TOPK_API_KEY"]' : '"none"'})`,
    "reply = client.completions.create(",
    ...lines,
    ...(own.length > 0 ? ["    extra_body={", ...own, "    },"] : []),
    ")",
    "for choice in reply.choices:",
    request.compare ? '    print(f"{choice.variant}: {choice.text}")' : "    print(choice.text)",
    "",
  ].join("\n");
}

/** `target` is host:port. */
export function grpc(request, { target, hasKey }) {
  return [
    "npx @bufbuild/buf curl --protocol grpc --http2-prior-knowledge",
    ...(hasKey ? ['  -H "Authorization: Bearer $TOPK_API_KEY"'] : []),
    `  -d ${quoted(laidOut(generateRequest(request)))}`,
    `  ${quoted(`http://${target}/topk.v1.TopKService/Generate`)}`,
  ].join(" \\\n");
}

/** The text quoted as one word for a POSIX shell. */
function quoted(text) {
  return /^[\w./:=-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

/** JSON with one line per field, and one line per object in a list. */
function laidOut(fields) {
  const lines = Object.entries(fields).map(([name, value]) => `  ${json(name)}: ${nested(value, json, "  ")}`);
  return `{\n${lines.join(",\n")}\n}`;
}

function nested(value, write, indent) {
  if (!Array.isArray(value) || typeof value[0] !== "object") return write(value);
  return `[\n${value.map((item) => `${indent}  ${write(item)}`).join(",\n")}\n${indent}]`;
}

function json(value) {
  if (Array.isArray(value)) return `[${value.map(json).join(", ")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${json(item)}`).join(", ")}}`;
}

/** A JSON value in Python's notation. JSON strings mean the same in Python. */
function literal(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${literal(item)}`).join(", ")}}`;
}
