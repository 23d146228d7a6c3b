// The official Node SDK over the cases on stdin: one JSON line per case and way, as it was parsed.
import OpenAI from "openai";
import { readFileSync } from "node:fs";

const { baseURL, apiKey, model, cases } = JSON.parse(readFileSync(0, "utf8"));
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });

const plain = ({ id, model, created, ...rest }) => rest;

async function whole({ stream_options, ...body }) {
  const { data, response } = await client.chat.completions.create(body).withResponse();
  return { got: plain(data), headers: response.headers };
}

async function streamed(body) {
  const { data, response } = await client.chat.completions
    .create({ ...body, stream: true })
    .withResponse();
  const heads = new Set();
  const roles = {};
  const finishes = {};
  const usage = [];
  const [seen, summed] = data.tee();
  for await (const chunk of seen) {
    heads.add(JSON.stringify([chunk.id, chunk.model, chunk.created, chunk.object]));
    if (chunk.usage) usage.push(chunk.usage);
    for (const { index, delta, finish_reason } of chunk.choices) {
      if (delta.role) (roles[index] ??= []).push(delta.role);
      if (finish_reason) (finishes[index] ??= []).push(finish_reason);
    }
  }
  // The SDK's own sum of a stream, by the class behind its `stream()` helper.
  const { ChatCompletionStream } = await import("openai/lib/ChatCompletionStream");
  const final = await ChatCompletionStream.fromReadableStream(
    summed.toReadableStream(),
  ).finalChatCompletion();
  const got = { final: plain(final), heads: heads.size, roles, finishes, usage };
  return { got, headers: response.headers };
}

for (const [name, body] of Object.entries(cases)) {
  for (const [way, ask] of Object.entries({ whole, streamed })) {
    const line = { name, way };
    try {
      const { got, headers } = await ask({ model, ...body });
      line.got = got;
      line.by = headers.get("x-understudy-served-by");
      line.reason = headers.get("x-understudy-reason");
    } catch (error) {
      const { status, code, param, type } = error;
      line.got = { raised: error.constructor.name, status, code, param, type };
      if (status === undefined) line.got.message = String(error.stack);
    }
    console.log(JSON.stringify(line));
  }
}
