// Vercel's AI SDK: one streaming, one tool, one structured case, against the base URL on stdin.
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { readFileSync } from "node:fs";
import { z } from "zod";

const { baseURL, apiKey, model, prompt, system } = JSON.parse(readFileSync(0, "utf8"));
const chat = createOpenAI({ baseURL, apiKey }).chat(model);
const common = { model: chat, maxRetries: 0, prompt, instructions: system };

const stream = streamText(common);
let text = "";
for await (const piece of stream.textStream) text += piece;
const usage = await stream.usage;
const streaming = { text, finish: await stream.finishReason, output: usage.outputTokens };

const weather = tool({
  description: "The weather of a city",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => `sunny in ${city}`,
});
const called = await generateText({ ...common, tools: { weather }, stopWhen: stepCountIs(2) });
const tools = {
  calls: called.steps[0].toolCalls.map(({ toolName, input }) => [toolName, input]),
  results: called.steps[0].toolResults.map(({ output }) => output),
  text: called.text,
};

const schema = z.object({ answer: z.number() });
const { output } = await generateText({ ...common, output: Output.object({ schema }) });

console.log(JSON.stringify({ streaming, tools, structured: output }));
