// Driver of the TypeScript SDK's 1.x client.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { ElicitRequestSchema } from "@modelcontextprotocol/sdk/types.js";
import { listenIn, serve } from "./lines.mjs";

serve(async (url, fetch, options) => {
  const capabilities = { elicitation: {} };
  const client = new Client({ name: "interop-typescript-1", version: "1.0.0" }, { capabilities, ...options });
  const transport = new StreamableHTTPClientTransport(new URL(url), { fetch });
  const heard = [];
  const waiting = [];
  client.setRequestHandler(ElicitRequestSchema, (_request, { signal }) => {
    const answer = new Promise((resolve, reject) => {
      waiting.push(() => resolve({ action: "decline" }));
      signal.addEventListener("abort", () => {
        waiting.length = 0;
        heard.push({ method: "the question was cancelled" });
        reject(new Error("cancelled"));
      });
    });
    return answer;
  });
  await client.connect(transport);
  listenIn(transport, heard);
  return { heard, waiting, client, transport, callTool: (params, options) => client.callTool(params, undefined, options) };
});
