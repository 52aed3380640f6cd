// The official clients of npm against a running `burnish serve`: `openai`, Vercel's `@ai-sdk/openai-compatible`, `ollama`.
//
//     npm install openai ai @ai-sdk/openai-compatible ollama && node clients.mjs http://127.0.0.1:8080
//
// With a PNG file as second argument, the base has to see pictures, and the clients ask about that picture instead. Exits with 1 where
// something fails.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embed, generateObject, generateText, jsonSchema, streamText } from "ai";
import { Ollama } from "ollama";
import { readFileSync } from "node:fs";
import OpenAI from "openai";

const [server, picture] = process.argv.slice(2);
const messages = [{ role: "user", content: "What is the capital of France?" }];
let failures = 0;
const check = (name, holds, found) => {
  console.log((holds ? "ok     " : "FAILED ") + name, holds ? "" : found);
  failures += holds ? 0 : 1;
};

const openai = new OpenAI({ baseURL: server + "/v1", apiKey: "none", maxRetries: 0 });
const model = (await openai.models.list()).data[0].id;
if (picture) {
  const image = readFileSync(picture);
  const url = "data:image/png;base64," + image.toString("base64");
  const question = "Which colour is this?";
  const content = [{ type: "image_url", image_url: { url } }, { type: "text", text: question }];
  const answer = await openai.chat.completions.create({ model, max_tokens: 8, temperature: 0, messages: [{ role: "user", content }] });
  const text = answer.choices[0].message.content;
  check("openai: a picture", answer.usage.prompt_tokens > 8, answer);
  const far = [{ type: "image_url", image_url: { url: "https://example.org/a.png" } }];
  const refused = await openai.chat.completions.create({ model, messages: [{ role: "user", content: far }] }).catch((caught) => caught);
  check("openai: an address is refused", refused.status === 400 && refused.param === "messages[0].content[0].image_url.url", refused);
  const vercel = createOpenAICompatible({ name: "burnish", baseURL: server + "/v1" });
  const parts = [{ type: "image", image, mediaType: "image/png" }, { type: "text", text: question }];
  const generated = await generateText({ model: vercel(model), messages: [{ role: "user", content: parts }], temperature: 0, maxOutputTokens: 8, maxRetries: 0 });
  check("ai-sdk: a picture", generated.text === text, generated.text);
  const ollama = new Ollama({ host: server });
  const told = await ollama.chat({ model, messages: [{ role: "user", content: question, images: [image] }], options: { temperature: 0, num_predict: 8 } });
  check("ollama: a picture", told.message.content === text, told);
  process.exit(failures ? 1 : 0);
}
const ask = { model, messages, max_tokens: 24, temperature: 0 };
const whole = await openai.chat.completions.create(ask);
const text = whole.choices[0].message.content;
check("openai: chat", text.length > 10, whole);
let streamed = "";
for await (const chunk of await openai.chat.completions.create({ ...ask, stream: true })) streamed += chunk.choices[0]?.delta?.content ?? "";
check("openai: stream", streamed === text, streamed);
const helper = openai.chat.completions.stream(ask);
check("openai: stream helper", (await helper.finalContent()) === text);
const error = await openai.chat.completions.create({ ...ask, model: "none" }).catch((caught) => caught);
check("openai: error", error instanceof OpenAI.NotFoundError && error.code === "model_not_found", error);
const tools = [{ type: "function", function: { name: "add", parameters: { type: "object", properties: {} } } }];
const noTools = await openai.chat.completions.create({ ...ask, tools }).catch((caught) => caught);
check("openai: tools are shown or refused", noTools.choices !== undefined || noTools.status === 400, noTools);
const place = {
  type: "object",
  properties: { name: { type: "string", maxLength: 30 }, kind: { enum: ["city", "country"] } },
  required: ["name", "kind"],
  additionalProperties: false,
};
const isPlace = (text) => ["city", "country"].includes(JSON.parse(text).kind);
const format = { type: "json_schema", json_schema: { name: "place", strict: true, schema: place } };
const held = await openai.chat.completions.create({ ...ask, max_tokens: 80, response_format: format });
check("openai: response_format", isPlace(held.choices[0].message.content) && held.choices[0].finish_reason === "stop", held);
const called = await openai.chat.completions.create({ ...ask, max_tokens: 80, tools, tool_choice: "required" }).catch((caught) => caught);
const call = called.choices?.[0].message.tool_calls?.[0].function;
check("openai: a demanded call, or a template without tools", call ? call.name === "add" : /does not show tools/.test(called.message), called);
const control = new AbortController();
const left = await openai.chat.completions.create({ ...ask, max_tokens: 400, stream: true }, { signal: control.signal });
for await (const _ of left) { control.abort(); break; }
const vector = await openai.embeddings.create({ model, input: "a dog" });
check("openai: embeddings", vector.data[0].embedding.length > 10, vector);

const vercel = createOpenAICompatible({ name: "burnish", baseURL: server + "/v1", includeUsage: true });
const options = { messages, temperature: 0, maxOutputTokens: 24, maxRetries: 0 };
const generated = await generateText({ model: vercel(model), ...options });
check("ai-sdk: chat", generated.text === text && generated.usage.outputTokens > 0, generated.text);
const stream = streamText({ model: vercel(model), ...options });
let pieces = "";
for await (const piece of stream.textStream) pieces += piece;
check("ai-sdk: stream", pieces === text && (await stream.usage).outputTokens > 0, pieces);
const structured = createOpenAICompatible({ name: "burnish", baseURL: server + "/v1", supportsStructuredOutputs: true });
const object = await generateObject({ model: structured(model), ...options, maxOutputTokens: 80, schema: jsonSchema(place) });
check("ai-sdk: an object by a schema", isPlace(JSON.stringify(object.object)), object.object);
const embedded = await embed({ model: vercel.textEmbeddingModel(model), value: "a dog" });
check("ai-sdk: embedding", embedded.embedding.length > 10);
const refused = await generateText({ model: vercel("none"), ...options }).catch((caught) => caught);
check("ai-sdk: error", /there is no model/.test(refused.message), refused);

const ollama = new Ollama({ host: server });
const chat = await ollama.chat({ model, messages, options: { temperature: 0, num_predict: 24 } });
check("ollama: chat", chat.message.content === text, chat);
let lines = "";
for await (const part of await ollama.chat({ model, messages, options: { temperature: 0, num_predict: 24 }, stream: true })) lines += part.message.content;
check("ollama: stream", lines === text, lines);
const one = await ollama.generate({ model, prompt: messages[0].content, options: { temperature: 0, num_predict: 24 } });
check("ollama: generate", one.response === text, one);
const formatted = await ollama.chat({ model, messages, format: place, options: { temperature: 0, num_predict: 80 } });
check("ollama: format", isPlace(formatted.message.content), formatted);
check("ollama: list", (await ollama.list()).models[0].name === model);
process.exit(failures ? 1 : 0);
