// A server on the TypeScript SDK's 1.x transport with one transport per session, as its users build it.
//   node server.mjs SDK PORT UNKNOWN    SDK: an alias of package.json; UNKNOWN: 400 or 404, the answer to a lost session
import { appendFileSync } from "node:fs";
import { randomUUID } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";
import express from "express";
import { z } from "zod";

const [sdk, port, unknown] = process.argv.slice(2);
const { McpServer } = await import(`${sdk}/server/mcp.js`);
const { StreamableHTTPServerTransport } = await import(`${sdk}/server/streamableHttp.js`);

const record = (key) => appendFileSync(process.env.INTEROP_LEDGER, `${key}\n`);
const said = (text) => ({ content: [{ type: "text", text: String(text) }] });
const readOnly = { readOnlyHint: true };
const slow = { seconds: z.number(), key: z.string() };

async function recordAndWait({ seconds, key }) {
  record(key);
  await pause(seconds * 1000);
  return said(key);
}

function toolServer() {
  let calls = 0;
  const server = new McpServer({ name: "interop", version: "1.0.0" });
  const tool = (name, inputSchema, annotations, run) => server.registerTool(name, { inputSchema, annotations }, run);
  tool("echo", { text: z.string() }, readOnly, async ({ text }) => said(text));
  tool("add_to_ledger", { key: z.string() }, {}, async ({ key }) => (record(key), said(key)));
  tool("slow", slow, {}, recordAndWait);
  tool("slow_read", slow, readOnly, recordAndWait);
  tool("count", {}, readOnly, async () => said(++calls));
  return server;
}

const transports = new Map();

async function newTransport() {
  const transport = new StreamableHTTPServerTransport({
    sessionIdGenerator: () => randomUUID(),
    onsessioninitialized: (id) => transports.set(id, transport),
  });
  transport.onclose = () => transports.delete(transport.sessionId);
  await toolServer().connect(transport);
  return transport;
}

const error = (code, message) => ({ jsonrpc: "2.0", error: { code, message }, id: null });

// The pattern up to 1.31 answers a POST in JSON and the other methods in Express's HTML; 1.32 gives one 404 to all.
const strangers = {
  400: (req, res) =>
    req.method === "POST"
      ? res.status(400).json(error(-32000, "Bad Request: No valid session ID provided"))
      : res.status(400).send("Invalid or missing session ID"),
  404: (_req, res) => res.status(404).json(error(-32001, "Session not found")),
};

const app = express();
app.use(express.json());
app.all("/mcp", async (req, res) => {
  const id = req.headers["mcp-session-id"];
  const opens = req.method === "POST" && !id && req.body?.method === "initialize";
  const transport = opens ? await newTransport() : transports.get(id);
  return transport ? transport.handleRequest(req, res, req.body) : strangers[unknown](req, res);
});
app.listen(Number(port), "127.0.0.1", () => console.log(`listening on ${port}`));
