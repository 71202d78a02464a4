// Runs one ONNX graph in onnxruntime-web: node step.mjs MODULES REQUEST
// REQUEST is a JSON file: {graph, inputs: {name: {type, dims, data}}}, contents in base64. Prints
// {name: {type, dims, data}} of the outputs.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [modules, request] = process.argv.slice(2);
const ort = createRequire(modules + "/")("onnxruntime-web");
ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";
const arrays = { float32: Float32Array, int64: BigInt64Array };

const { graph, inputs } = JSON.parse(readFileSync(request, "utf8"));
const bytes = (text) => Uint8Array.from(Buffer.from(text, "base64"));
const feeds = {};
for (const [name, { type, dims, data }] of Object.entries(inputs)) {
  feeds[name] = new ort.Tensor(type, new arrays[type](bytes(data).buffer), dims);
}
const session = await ort.InferenceSession.create(bytes(graph), { executionProviders: ["wasm"] });
const results = await session.run(feeds);
const answer = {};
for (const [name, { type, dims, data }] of Object.entries(results)) {
  const content = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  answer[name] = { type, dims, data: content.toString("base64") };
}
process.stdout.write(JSON.stringify(answer));
