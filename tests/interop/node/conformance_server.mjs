// A server that has what the official conformance suite asks for, on the TypeScript SDK.   node conformance_server.mjs PORT
import { randomUUID } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";
import { Server } from "@modelcontextprotocol/sdk/server/index.js";
import { createMcpExpressApp } from "@modelcontextprotocol/sdk/server/express.js";
import { StreamableHTTPServerTransport } from "@modelcontextprotocol/sdk/server/streamableHttp.js";
import { InMemoryEventStore } from "@modelcontextprotocol/sdk/examples/shared/inMemoryEventStore.js";
import * as types from "@modelcontextprotocol/sdk/types.js";

const STEP_MS = 50;
const PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg==";
const WAV = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQAAAAA=";

const text = (value) => ({ type: "text", text: value });
const image = { type: "image", data: PNG, mimeType: "image/png" };
const said = (...content) => ({ content });
const object = (properties = {}, required = []) => ({ type: "object", properties, required });
const string = { type: "string" };

async function ask(extra, message, requestedSchema) {
  const params = { mode: "form", message, requestedSchema };
  const reply = await extra.sendRequest({ method: "elicitation/create", params }, types.ElicitResultSchema);
  return said(text(`Elicitation completed: action=${reply.action}, content=${JSON.stringify(reply.content ?? {})}`));
}

async function log(extra) {
  for (const data of ["Tool execution started", "Tool processing data", "Tool execution completed"]) {
    await extra.sendNotification({ method: "notifications/message", params: { level: "info", data } });
    await pause(STEP_MS);
  }
  return said(text("logged"));
}

async function progress(extra) {
  const progressToken = extra._meta?.progressToken;
  for (const done of [0, 50, 100]) {
    const params = { progressToken, progress: done, total: 100 };
    if (progressToken !== undefined) await extra.sendNotification({ method: "notifications/progress", params });
    await pause(STEP_MS);
  }
  return said(text("done"));
}

async function sample(extra, { prompt }) {
  const params = { messages: [{ role: "user", content: text(prompt) }], maxTokens: 100 };
  const reply = await extra.sendRequest({ method: "sampling/createMessage", params }, types.CreateMessageResultSchema);
  return said(text(`LLM response: ${reply.content.text}`));
}

async function reconnect(extra) {
  extra.closeSSEStream?.();
  await pause(2 * STEP_MS);
  return said(text("answered after the stream was closed"));
}

const defaults = object({
  name: { ...string, default: "John Doe" },
  age: { type: "integer", default: 30 },
  score: { type: "number", default: 95.5 },
  status: { ...string, enum: ["active", "inactive", "pending"], default: "active" },
  verified: { type: "boolean", default: true },
});
const titled = (names) => names.map((title, index) => ({ const: `value${index + 1}`, title }));
const options = ["option1", "option2", "option3"];
const enums = object({
  untitledSingle: { ...string, enum: options },
  titledSingle: { ...string, oneOf: titled(["First Option", "Second Option", "Third Option"]) },
  legacyEnum: { ...string, enum: ["opt1", "opt2", "opt3"], enumNames: ["Option One", "Option Two", "Option Three"] },
  untitledMulti: { type: "array", items: { ...string, enum: options } },
  titledMulti: { type: "array", items: { anyOf: titled(["First Choice", "Second Choice", "Third Choice"]) } },
});
const address = { type: "object", properties: { street: string, city: string } };
const account = object({ username: string, email: string }, ["username", "email"]);
const embedded = { uri: "test://embedded-resource", mimeType: "text/plain", text: "This is an embedded resource content." };
const mixed = { uri: "test://mixed-content-resource", mimeType: "application/json", text: '{"test":"data","value":123}' };

const none = object();
const tools = {
  test_simple_text: [none, () => said(text("This is a simple text response for testing."))],
  test_image_content: [none, () => said(image)],
  test_audio_content: [none, () => said({ type: "audio", data: WAV, mimeType: "audio/wav" })],
  test_embedded_resource: [none, () => said({ type: "resource", resource: embedded })],
  test_multiple_content_types: [
    none,
    () => said(text("Multiple content types test:"), image, { type: "resource", resource: mixed }),
  ],
  test_tool_with_logging: [none, log],
  test_tool_with_progress: [none, progress],
  test_error_handling: [
    none,
    () => ({ ...said(text("This tool intentionally returns an error for testing")), isError: true }),
  ],
  test_sampling: [object({ prompt: string }, ["prompt"]), sample],
  test_elicitation: [object({ message: string }, ["message"]), (extra, { message }) => ask(extra, message, account)],
  test_elicitation_sep1034_defaults: [none, (extra) => ask(extra, "Check the defaults", defaults)],
  test_elicitation_sep1330_enums: [none, (extra) => ask(extra, "Choose", enums)],
  test_reconnection: [none, reconnect],
  json_schema_2020_12_tool: [
    {
      $schema: "https://json-schema.org/draft/2020-12/schema",
      $defs: { address },
      ...object({ name: string, address: { $ref: "#/$defs/address" } }),
      additionalProperties: false,
    },
    () => said(text("ok")),
  ],
};

const user = (content) => ({ role: "user", content });
const embeddedText = "Embedded resource content for testing.";
const prompts = {
  test_simple_prompt: [[], () => [user(text("This is a simple prompt for testing."))]],
  test_prompt_with_arguments: [
    ["arg1", "arg2"],
    ({ arg1, arg2 }) => [user(text(`Prompt with arguments: arg1='${arg1}', arg2='${arg2}'`))],
  ],
  test_prompt_with_embedded_resource: [
    ["resourceUri"],
    ({ resourceUri: uri }) => [
      user({ type: "resource", resource: { uri, mimeType: "text/plain", text: embeddedText } }),
      user(text("Please process the embedded resource above.")),
    ],
  ],
  test_prompt_with_image: [[], () => [user(image), user(text("Please analyze the image above."))]],
};

const resources = {
  "test://static-text": { mimeType: "text/plain", text: "This is the content of the static text resource." },
  "test://static-binary": { mimeType: "image/png", blob: PNG },
  "test://watched-resource": { mimeType: "text/plain", text: "Watched." },
};

function read(uri) {
  const id = /^test:\/\/template\/(.+)\/data$/.exec(uri)?.[1];
  const data = { id, templateTest: true, data: `Data for ID: ${id}` };
  const found = id ? { mimeType: "application/json", text: JSON.stringify(data) } : resources[uri];
  if (!found) throw new types.McpError(-32002, `Resource not found: ${uri}`);
  return { contents: [{ uri, ...found }] };
}

const described = (name) => ({ name, description: `For the conformance scenario ${name}` });

const handlers = [
  [types.ListToolsRequestSchema, () => ({
    tools: Object.entries(tools).map(([name, [inputSchema]]) => ({ ...described(name), inputSchema })),
  })],
  [types.CallToolRequestSchema, ({ params }, extra) => {
    if (!tools[params.name]) throw new types.McpError(-32602, `Unknown tool: ${params.name}`);
    return tools[params.name][1](extra, params.arguments ?? {});
  }],
  [types.ListPromptsRequestSchema, () => ({
    prompts: Object.entries(prompts).map(([name, [names]]) => ({
      ...described(name),
      arguments: names.map((argument) => ({ ...described(argument), required: true })),
    })),
  })],
  [types.GetPromptRequestSchema, ({ params }) => ({ messages: prompts[params.name][1](params.arguments ?? {}) })],
  [types.ListResourcesRequestSchema, () => ({
    resources: Object.entries(resources).map(([uri, { mimeType }]) => ({ uri, name: uri, mimeType })),
  })],
  [types.ListResourceTemplatesRequestSchema, () => ({
    resourceTemplates: [{ uriTemplate: "test://template/{id}/data", name: "template", mimeType: "application/json" }],
  })],
  [types.ReadResourceRequestSchema, ({ params }) => read(params.uri)],
  [types.SubscribeRequestSchema, () => ({})],
  [types.UnsubscribeRequestSchema, () => ({})],
  [types.SetLevelRequestSchema, () => ({})],
  [types.CompleteRequestSchema, () => ({ completion: { values: ["paris", "park", "party"], total: 3, hasMore: false } })],
];

const capabilities = {
  tools: {}, prompts: {}, resources: { subscribe: true }, logging: {}, completions: {},
};

const transports = new Map();

async function newTransport() {
  const transport = new StreamableHTTPServerTransport({
    sessionIdGenerator: () => randomUUID(),
    eventStore: new InMemoryEventStore(),
    retryInterval: 10 * STEP_MS,
    onsessioninitialized: (id) => transports.set(id, transport),
  });
  const server = new Server({ name: "conformance", version: "1.0.0" }, { capabilities });
  for (const [schema, handle] of handlers) server.setRequestHandler(schema, handle);
  await server.connect(transport);
  return transport;
}

const [port] = process.argv.slice(2);
const app = createMcpExpressApp();
app.all("/mcp", async (req, res) => {
  const id = req.headers["mcp-session-id"];
  const transport = id ? transports.get(id) : await newTransport();
  if (!transport) return res.status(404).json({ jsonrpc: "2.0", error: { code: -32001, message: "Session not found" }, id: null });
  return transport.handleRequest(req, res, req.body);
});
app.listen(Number(port), "127.0.0.1", () => console.log(`listening on ${port}`));
